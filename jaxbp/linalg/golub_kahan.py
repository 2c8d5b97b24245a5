"""The largest and smallest singular values of an operator that is known by its products, by Golub-Kahan bidiagonalisation.

From a random unit vector, alternating products with A and A* build two orthonormal bases in which A is a bidiagonal matrix (Golub and
Kahan, SIAM J. Numer. Anal. B 2, 1965; Golub and Van Loan, section 10.4). The singular values of this matrix converge to those of A from
inside: the largest fast, the smallest slowly, as they lie close together. Each new basis vector is orthogonalised twice; without this,
finite precision produces spurious copies of converged values. The number of steps is fixed, so that the iteration is one compiled program.
Each pair of Ritz vectors has a residual r = ||A* u - sigma v||, and some singular value of A lies within r of sigma.

>>> import jax, jax.numpy as jnp
>>> from jaxbp.linalg import golub_kahan
>>> scales = jnp.array([9.0, *jnp.linspace(1.0, 2.0, 98), 0.1])
>>> triplets = golub_kahan.golub_kahan(lambda x: scales * x, jax.random.normal(jax.random.key(0), (100,)), num_steps=24)
>>> [f"{float(v):.3f}" for v in triplets.values]
['9.000', '0.100']
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxbp import checks

Operator = Callable[[jax.Array], jax.Array]


class SingularTriplets(NamedTuple):
    """Approximate singular values and vectors.

    Attributes:
      values: (k,), descending.
      left: (k, \\*outputs) left singular vectors u.
      right: (k, \\*inputs) right singular vectors v.
      residuals: (k,) Euclidean norms of A* u - sigma v.
    """

    values: Float[jax.Array, " k"]
    left: Float[jax.Array, "k ..."]
    right: Float[jax.Array, "k ..."]
    residuals: Float[jax.Array, " k"]


def golub_kahan(
    operator: Operator,
    start: Float[jax.Array, "..."],
    *,
    num_largest: int = 1,
    num_smallest: int = 1,
    num_steps: int = 64,
) -> SingularTriplets:
    """The ends of the spectrum of a linear function of arrays.

    If an operator has more inputs than outputs, its smallest singular value over the inputs is a trivial 0: pass the adjoint instead.

    Args:
      operator: a linear function that JAX can transpose.
      start: an input of the operator, drawn from a normal distribution.
      num_largest, num_smallest: number of singular values at each end.
      num_steps: number of products with A and with A*.

    Raises:
      ValueError: for more values than steps, or more steps than inputs.
    """
    start = checks.parameters(checks.numbers(start, "start"), "start")
    if num_steps > start.size or num_largest + num_smallest > num_steps or min(num_largest, num_smallest) < 0:
        raise ValueError(
            f"num_largest + num_smallest must be at most num_steps, and num_steps at most the {start.size} inputs, got "
            f"{num_largest}, {num_smallest} and {num_steps}"
        )
    V, U, alphas, betas = _bases(operator, start, num_steps)
    small_left, values, small_right = jnp.linalg.svd(jnp.diag(alphas) + jnp.diag(betas[:-1], 1))
    ends = jnp.array([*range(num_largest), *range(num_steps - num_smallest, num_steps)])
    left = jnp.tensordot(small_left.T[ends], U, 1, precision="highest")
    right = jnp.tensordot(small_right[ends], V, 1, precision="highest")
    # A v = sigma u holds to rounding; A* u = sigma v up to the part along the next basis vector.
    return SingularTriplets(values[ends], left, right, betas[-1] * jnp.abs(small_left[-1, ends]))


def _bases(operator: Operator, start: jax.Array, num_steps: int) -> tuple[jax.Array, ...]:
    """V (k, \\*inputs) and U (k, \\*outputs) with A V = U B and A* U = V B* + beta_k v_next e_k*, and the two diagonals of B (k,)."""
    out = jax.eval_shape(operator, start)
    adjoint = jax.linear_transpose(operator, start)
    V, U = jnp.zeros((num_steps, *start.shape), start.dtype), jnp.zeros((num_steps, *out.shape), start.dtype)
    v = start / jnp.linalg.norm(start.ravel())

    def clean(vector: jax.Array, basis: jax.Array) -> jax.Array:
        axes = range(1, basis.ndim)
        for _ in range(2):
            along = jnp.tensordot(basis, vector, (tuple(axes), tuple(range(vector.ndim))), precision="highest")
            vector = vector - jnp.tensordot(along, basis, 1, precision="highest")
        return vector

    def unit(vector: jax.Array) -> tuple[jax.Array, jax.Array]:
        length = jnp.linalg.norm(vector.ravel())
        return length, jnp.where(length > 0, vector / jnp.where(length > 0, length, 1), 0)

    def step(state: tuple, k: jax.Array) -> tuple[tuple, tuple]:
        V, U, v = state
        V = V.at[k].set(v)
        alpha, u = unit(clean(operator(v), U))
        U = U.at[k].set(u)
        beta, following = unit(clean(adjoint(u)[0], V))
        return (V, U, following), (alpha, beta)

    (V, U, _), (alphas, betas) = jax.lax.scan(step, (V, U, v), jnp.arange(num_steps))
    return V, U, alphas, betas
