"""Number types of what a compiled loop carries."""

import jax


def in_dtype_of(old: jax.Array, new: jax.Array) -> jax.Array:
    """``new`` in the type of ``old``, which a loop carries: traced settings may have widened it."""
    return new if new.dtype == old.dtype else new.astype(old.dtype)
