"""The eigenpairs at an end of a symmetric operator's spectrum, several of them, by block Lanczos with full reorthogonalisation.

A block of b vectors finds eigenvalues of multiplicity up to b, and one product with a block costs less than b products where the operator
is vectorised (Golub and Van Loan, Matrix Computations, section 10.3.6). Residuals are measured by one more product each: some eigenvalue
lies within the residual of each value.

>>> import jax, jax.numpy as jnp
>>> from jaxbp.linalg import block_lanczos
>>> spectrum = jnp.concatenate([jnp.array([5.0, 5.0, 3.0]), jnp.linspace(0.0, 1.0, 97)])
>>> pairs = block_lanczos.top_eigenpairs(lambda v: spectrum * v, 100, jax.random.key(0), count=3)
>>> [round(float(value), 3) for value in pairs.values]
[5.0, 5.0, 3.0]
"""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Bool, Float, Key

from jaxbp import checks
from jaxbp.linalg.lanczos import Matvec, known

End = Literal["largest", "smallest", "magnitude"]


class Eigenpairs(NamedTuple):
    """Eigenpairs, the outermost first.

    Attributes:
      values: (k,) Ritz values; fewer than were asked for where a block too small meets an eigenvalue of high multiplicity.
      residuals: (k,) norms of A v - value v; an eigenvalue lies within each of its value, up to rounding.
      converged: (k,) whether a residual is within the tolerance.
      vectors: (k, P), orthonormal rows.
      num_products: products with a single vector.
    """

    values: Float[np.ndarray, " k"]
    residuals: Float[np.ndarray, " k"]
    converged: Bool[np.ndarray, " k"]
    vectors: Float[jax.Array, "k p"]
    num_products: int


def top_eigenpairs(
    matvec: Matvec,
    dimension: int,
    key: Key[jax.Array, ""],
    *,
    count: int,
    end: End = "largest",
    block_size: int = 2,
    rtol: float = 1e-3,
    max_products: int = 500,
    dtype: Any = jnp.float32,
) -> Eigenpairs:
    """The ``count`` largest or smallest eigenvalues, or those of largest magnitude, with their vectors.

    The iteration stops when all residuals are at most ``rtol`` times the largest absolute Ritz value met, or after ``max_products``.

    Args:
      matvec: the operator, which must be symmetric, on vectors (P,).
      dimension: P.
      key: of the first block.
      count: number of eigenpairs k, at most P.
      end: "largest", "smallest" or "magnitude".
      block_size: vectors of a block; eigenvalues of higher multiplicity come out fewer times than they are there.
      rtol: tolerance, relative to the spectral radius.
      max_products: largest number of products in the iteration; ``count`` more measure the residuals.
      dtype: of the vectors, 32 bits or more.

    Raises:
      ValueError: no such number, end or block, or products that are not finite.
    """
    if end not in get_args(End):
        raise ValueError(f"end must be one of {', '.join(get_args(End))}, got {end!r}")
    if not 1 <= count <= dimension or block_size < 1 or max_products < count:
        raise ValueError(
            f"count must be from 1 to {dimension}, block_size at least 1 and max_products at least count, got {count}, {block_size} "
            f"and {max_products}"
        )
    block = np.asarray(known(jax.random.normal(checks.prng_key(key), (min(block_size, dimension), dimension), dtype), "random vectors"))
    basis = images = np.zeros((0, dimension), dtype)
    while True:
        fresh = _new_directions(basis, block)
        if not len(fresh):
            break  # the Krylov space is invariant
        products = np.stack([np.asarray(known(matvec(jnp.asarray(row)))) for row in fresh])
        if not np.isfinite(products).all():
            raise ValueError("a product of the operator is not finite: check the parameters at which it was taken")
        basis, images = np.concatenate([basis, fresh]), np.concatenate([images, products])
        values, mixing, estimates = _ritz(basis, images, count, end)
        scale = np.abs(values).max()
        if len(basis) >= min(max_products, dimension) or (len(values) == count and (estimates <= rtol * scale).all()):
            break
        block = products
    vectors = jnp.asarray(mixing.T @ basis, dtype)
    residuals = np.array([_residual(matvec(row), row, value) for row, value in zip(vectors, values, strict=True)])
    return Eigenpairs(values, residuals, residuals <= rtol * scale, vectors, len(basis) + len(values))


def _ritz(basis: np.ndarray, images: np.ndarray, count: int, end: End) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The Ritz values wanted (k,), their coefficients (m, k) and the norms of their residuals (k,)."""
    projected = (basis.astype(float)) @ images.T
    values, mixing = scipy.linalg.eigh((projected + projected.T) / 2)
    order = {"largest": np.argsort(-values), "smallest": np.argsort(values), "magnitude": np.argsort(-np.abs(values))}[end][:count]
    values, mixing = values[order], mixing[:, order]
    return values, mixing, np.linalg.norm(mixing.T @ images - values[:, None] * (mixing.T @ basis), axis=1)


def _new_directions(basis: np.ndarray, block: np.ndarray) -> np.ndarray:
    """Orthonormal rows that span what the block adds to the basis; rows that add rounding noise alone are dropped."""
    tolerance = 64 * np.finfo(block.dtype).eps
    sizes = np.linalg.norm(block, axis=1, keepdims=True)
    rest = block / np.where(sizes > 0, sizes, 1)
    for _ in range(2):  # "twice is enough": Parlett, The Symmetric Eigenvalue Problem, section 6.9
        rest = rest - (rest @ basis.T) @ basis
    _, values, rows = scipy.linalg.svd(rest, full_matrices=False)
    rows = rows[values > tolerance]
    rows = rows - (rows @ basis.T) @ basis
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _residual(product: jax.Array, vector: jax.Array, value: float) -> float:
    return float(np.linalg.norm(np.asarray(product, float) - value * np.asarray(vector, float)))
