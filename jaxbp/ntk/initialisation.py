"""Kernels of finite networks at initialisation: their mean over random parameters, with its standard error.

The covariance of a network's outputs or features over initialisations is its NNGP kernel (Lee et al., ICLR 2018), which like the tangent
kernel tends to an exact limit as widths grow (`jaxbp.ntk.infinite_width`). At finite width both are random: a mean over seeds
is meaningful with its standard error only.

>>> import jax, jax.numpy as jnp
>>> from jaxbp.ntk import initialisation
>>> x = jnp.eye(2)
>>> def kernel_fn(key):  # of a random layer
...     return initialisation.feature_kernel(x @ jax.random.normal(key, (2, 100)))
>>> estimate = initialisation.over_seeds(kernel_fn, jax.random.key(0), num_seeds=50)
>>> bool((abs(estimate.mean - x) < 5 * estimate.standard_error).all())  # the covariance is x x^T
True
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key

from jaxbp import checks


class KernelEstimate(NamedTuple):
    """A mean over seeds.

    Attributes:
      mean: in the shape of the kernel.
      standard_error: of each entry of the mean; entries of one kernel depend on one another.
      num_seeds: number of seeds.
    """

    mean: Float[Array, "..."]
    standard_error: Float[Array, "..."]
    num_seeds: int


def feature_kernel(features1: Float[ArrayLike, "N ..."], features2: Float[ArrayLike, "M ..."] | None = None) -> Float[Array, "N M"]:
    """Inner products of features over their number F, (N, M): with ``Network.features`` the last layer's kernel, with logits one sample
    of the NNGP kernel.

    Raises:
      ValueError: features of different shapes.
    """
    first = _flat(features1, "features1")
    second = first if features2 is None else _flat(features2, "features2")
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"features must be equally many, got {first.shape[1]} and {second.shape[1]}")
    return jnp.matmul(first, second.T, precision="highest") / first.shape[1]


def over_seeds(
    kernel_fn: Callable[[Key[Array, ""]], Float[Array, "..."]], key: Key[Array, ""], *, num_seeds: int, batch_size: int = 16
) -> KernelEstimate:
    """The mean of ``kernel_fn(key)`` over random keys and its standard error, in one compiled program.

    For the tangent kernel of a network, ``lambda key: empirical_ntk(net.apply, net.init(key, x)[0], x, logits="trace")``; for its NNGP
    kernel, ``lambda key: feature_kernel(net.features(*...))``. Memory is that of ``batch_size`` kernels, whatever the number of seeds.

    Args:
      kernel_fn: draws parameters and returns their kernel; traced.
      key: split into one key a seed.
      num_seeds: at least 2.
      batch_size: seeds computed together by `jax.vmap`, rounded down to a divisor of their number.
    """
    num_seeds, batch_size = checks.count(num_seeds, "num_seeds", least=2), checks.count(batch_size, "batch_size")
    batch = next(size for size in range(min(batch_size, num_seeds), 0, -1) if num_seeds % size == 0)
    keys = jax.random.split(checks.prng_key(key), (num_seeds // batch, batch))
    like = jax.eval_shape(kernel_fn, keys[0, 0])
    zeros = jnp.zeros(like.shape, like.dtype)

    def add(carry: tuple[jax.Array, jax.Array, jax.Array], keys: jax.Array) -> tuple[tuple[jax.Array, jax.Array, jax.Array], None]:
        """Merge moments of two samples (Chan, Golub and LeVeque, 1983): sums of squares would lose the digits of a small error."""
        count, mean, squares = carry
        kernels = jax.vmap(kernel_fn)(keys)
        batch_mean = kernels.mean(0)
        step, total = batch_mean - mean, count + batch
        squares = squares + jnp.sum((kernels - batch_mean) ** 2, 0) + step**2 * (count * batch / total)
        return (total, mean + step * (batch / total), squares), None

    (_, mean, squares), _ = jax.lax.scan(add, (jnp.zeros((), like.dtype), zeros, zeros), keys)
    return KernelEstimate(mean, jnp.sqrt(squares / ((num_seeds - 1) * num_seeds)), num_seeds)


def _flat(features: ArrayLike, name: str) -> jax.Array:
    array = checks.numbers(features, name)
    if array.ndim < 2 or not array.size:
        raise ValueError(f"{name} must be (N, ...), got shape {array.shape}")
    return array.reshape(len(array), -1)
