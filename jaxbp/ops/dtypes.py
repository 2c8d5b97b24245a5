"""Number types: of what a compiled loop carries, of numbers on their way to a device, and double precision for a while."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np


def in_dtype_of(old: jax.Array, new: jax.Array) -> jax.Array:
    """``new`` in the type of ``old``, which a loop carries: traced settings may have widened it."""
    return new if new.dtype == old.dtype else new.astype(old.dtype)


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """Double precision whatever the session's; on the host if the default backend is a TPU, which has none."""
    device = jax.devices("cpu")[0] if jax.default_backend() == "tpu" else None
    with jax.enable_x64(True), jax.default_device(device):
        yield


def check_range(what: str, values: Any) -> None:
    """Refuse NumPy numbers that the types of a device would turn into other numbers without a word; other values pass.

    Without 64-bit types, large integers would wrap, and floats beyond float32's range would become infinite or 0.

    Raises:
      OverflowError: some values change.
    """
    if not isinstance(values, np.ndarray | np.generic) or values.dtype.kind not in "iufc":
        return
    dtype = jax.dtypes.canonicalize_dtype(values.dtype)
    if dtype == values.dtype:
        return
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        there = values.astype(dtype)
        changed = (there != values) if values.dtype.kind in "iu" else (np.isinf(there) & ~np.isinf(values)) | ((there == 0) & (values != 0))
    if changed.any():
        raise OverflowError(
            f"{what} holds {np.asarray(values)[changed].flat[0]!r}, which {dtype} cannot represent: scale it, or enable 64-bit types "
            'with jax.config.update("jax_enable_x64", True)'
        )
