"""Number types: of what a compiled loop carries, and double precision for a while."""

import contextlib
from collections.abc import Iterator

import jax


def in_dtype_of(old: jax.Array, new: jax.Array) -> jax.Array:
    """``new`` in the type of ``old``, which a loop carries: traced settings may have widened it."""
    return new if new.dtype == old.dtype else new.astype(old.dtype)


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """Double precision whatever the session's; on the host if the default backend is a TPU, which has none."""
    device = jax.devices("cpu")[0] if jax.default_backend() == "tpu" else None
    with jax.enable_x64(True), jax.default_device(device):
        yield
