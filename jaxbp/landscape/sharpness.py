"""Sharpness along training: measures that are traced, so that they run inside a compiled training or over many seeds at once.

>>> import jax, jax.numpy as jnp
>>> from jaxbp.landscape import sharpness
>>> def loss_fn(params, x):  # per example
...     return 0.5 * (x @ params) ** 2
>>> params, data = jnp.array([1.0, 1.0]), (jnp.array([[2.0, 0.0], [0.0, 1.0]]),)
>>> round(float(sharpness.largest_eigenvalue(loss_fn, params, data, jax.random.key(0))), 4)
2.0
>>> round(float(sharpness.ascent(loss_fn, params, data, radius=0.1)), 4)
0.2157
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Float, Key, PyTree

from jaxbp import checks
from jaxbp.landscape.hessian import Data, LossFn


def largest_eigenvalue(
    loss_fn: LossFn, params: PyTree, data: Data, key: Key[jax.Array, ""], *, num_steps: int = 20
) -> Float[jax.Array, ""]:
    """The largest eigenvalue of the Hessian of the mean loss by ``num_steps`` steps of Lanczos with full reorthogonalisation.

    A lower bound of the eigenvalue, by the tolerance that so many steps reach; `jaxbp.landscape.extreme_eigenvalues` tells its residual,
    outside of compiled code. The edge of stability is at 2 / learning rate (Cohen et al., ICLR 2021).
    """
    position, gradient_fn = _flat(loss_fn, params, data)
    steps = min(num_steps, position.size)
    pushforward = jax.linearize(gradient_fn, position)[1]
    first = jax.random.normal(checks.prng_key(key), position.shape, position.dtype)
    basis = jnp.zeros((steps + 1, position.size), position.dtype).at[0].set(first / jnp.linalg.norm(first))

    def step(index: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        rows, projected = carry
        product = pushforward(rows[index])
        for _ in range(2):
            coefficients = jnp.dot(rows, product, precision="highest")
            projected = projected.at[index].add(coefficients)
            product = product - jnp.dot(coefficients, rows, precision="highest")
        size = jnp.linalg.norm(product)
        return rows.at[index + 1].set(product / jnp.where(size > 0, size, 1)), projected

    _, projected = jax.lax.fori_loop(0, steps, step, (basis, jnp.zeros((steps, steps + 1), position.dtype)))
    return jnp.linalg.eigvalsh(projected[:, :steps], UPLO="L", symmetrize_input=False)[-1]  # row i knows the vectors up to i


def trace(loss_fn: LossFn, params: PyTree, data: Data, key: Key[jax.Array, ""], *, num_probes: int = 8) -> Float[jax.Array, ""]:
    """The trace of the Hessian of the mean loss by random signs (Hutchinson, 1990)."""
    position, gradient_fn = _flat(loss_fn, params, data)
    pushforward = jax.linearize(gradient_fn, position)[1]
    signs = jax.random.rademacher(checks.prng_key(key), (num_probes, position.size), position.dtype)
    return jax.lax.map(lambda sign: jnp.dot(sign, pushforward(sign), precision="highest"), signs).mean()


def ascent(loss_fn: LossFn, params: PyTree, data: Data, *, radius: float) -> Float[jax.Array, ""]:
    """How much the mean loss rises by a step of length ``radius`` along its gradient: SAM's sharpness (Foret et al., ICLR 2021)."""
    position, gradient_fn = _flat(loss_fn, params, data)
    gradient = gradient_fn(position)
    size = jnp.linalg.norm(gradient)
    unravel = ravel_pytree(params)[1]
    moved = position + radius * gradient / jnp.where(size > 0, size, 1)
    return loss_fn(unravel(moved), *data).mean() - loss_fn(params, *data).mean()


def sharp_directions(loss_fn: LossFn, params: PyTree, data: Data, key: Key[jax.Array, ""], **options: int) -> Float[jax.Array, ""]:
    """Trace over largest eigenvalue of the Hessian: so many directions as sharp as the sharpest would give its trace."""
    return trace(loss_fn, params, data, key, **options) / largest_eigenvalue(loss_fn, params, data, key)


def _flat(loss_fn: LossFn, params: PyTree, data: Data) -> tuple[jax.Array, Any]:
    """The flat parameters and the gradient of the mean loss in them."""
    position, unravel = ravel_pytree(params)
    return position, jax.grad(lambda point: loss_fn(unravel(point), *data).mean())
