"""One folder for several processes, each with a lock of its own."""

import os
from collections.abc import Mapping
from typing import Any

import jax

from jaxbp.runtime import processes
from jaxbp.runtime.store import Store, StoreError


def open_together(out: str | os.PathLike, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> Store:
    """The `Store` at ``out`` of each process, once every process has its own.

    Raises:
      StoreError: as `Store` does, in all processes if in any.
    """
    store: Store | None = None
    error: StoreError | None = None
    for first in (True, False):  # the first process writes the settings, the others compare theirs
        if processes.is_first() == first:
            try:
                store = Store(out, settings, facts, process=jax.process_index())
            except StoreError as found:
                error = found
        if processes.any_process(error is not None):
            if store:
                store.close()
            raise error or StoreError(f"another process could not open {out}: see what it said")
    return store  # type: ignore[return-value]  # whoever has none has raised
