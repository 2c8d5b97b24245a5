"""One folder for several processes, each of which holds a lock of its own."""

import os
from collections.abc import Mapping
from typing import Any

import jax

from jaxbp.runtime import processes
from jaxbp.runtime.store import Store, StoreError


def open_together(out: str | os.PathLike, settings: Mapping[str, Any], provenance: Mapping[str, Any]) -> Store:
    """Open the `Store` at ``out`` in every process; returns once all processes have opened it.

    Raises:
      StoreError: as `Store` does; a failure in one process raises in all.
    """
    store: Store | None = None
    failure: StoreError | None = None
    for first in (True, False):  # process 0 writes the settings, the others compare theirs
        if processes.is_first() == first:
            try:
                store = Store(out, settings, provenance, process=jax.process_index())
            except StoreError as error:
                failure = error
        if processes.any_process(failure is not None):
            if store:
                store.close()
            raise failure or StoreError(f"another process could not open {out}: see what it said")
    assert store is not None  # a process without a store has raised
    return store
