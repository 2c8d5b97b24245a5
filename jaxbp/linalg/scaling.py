"""Norms and ratios that do not overflow: arrays are divided by a power of two near their largest entry, which is exact.

>>> import jax.numpy as jnp
>>> from jaxbp.linalg import scaling
>>> [f"{scaling.norm(jnp.array([3 * scale, 4 * scale])):.3g}" for scale in (1e-30, 1.0, 1e30)]
['5e-30', '5', '5e+30']
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Inexact

Axes = int | Sequence[int] | None


def power_of_two(array: Inexact[jax.Array, "..."], axis: Axes = None) -> Float[jax.Array, "..."]:
    """The power of two at or below the largest absolute entry along ``axis``, which is kept with extent 1; 1 where that is 0, inf or NaN.

    A constant for differentiation.
    """
    largest = lax.stop_gradient(jnp.max(jnp.abs(array), axis=axis, keepdims=True, initial=0))
    dtype = largest.dtype
    mask, bits = {4: (0x7F800000, jnp.uint32), 8: (0x7FF0000000000000, jnp.uint64), 2: (0, jnp.uint16)}[dtype.itemsize]
    exponent = lax.bitcast_convert_type(lax.bitcast_convert_type(largest, bits) & jnp.asarray(mask, bits), dtype)  # without the fraction
    return jnp.where((exponent > 0) & jnp.isfinite(exponent), exponent, 1).astype(dtype)


def norm(array: Inexact[jax.Array, "..."], axis: Axes = None) -> Float[jax.Array, "..."]:
    """Euclidean norm along ``axis``, of all entries by default; the gradient at 0 is 0."""
    scale = power_of_two(array, axis)
    squares = jnp.sum(jnp.abs(array / scale) ** 2, axis=axis)
    root = jnp.where(squares != 0, jnp.sqrt(jnp.where(squares != 0, squares, 1)), 0)  # NaN stays NaN
    return root * scale.reshape(root.shape)


def unit(array: Inexact[jax.Array, "..."]) -> Inexact[jax.Array, "..."]:
    """The array over its norm; NaN for zeros."""
    scaled = array / power_of_two(array)
    return scaled / norm(scaled)
