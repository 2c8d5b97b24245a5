"""Linear systems by conjugate gradients, with a preconditioner that needs no entry of the matrix.

`solve` needs products only (Hestenes and Stiefel, 1952; preconditioned: Saad, Iterative Methods for Sparse Linear Systems, algorithm 9.1).
`nystrom` builds a preconditioner from as many products as its rank: it inverts the largest eigenvalues of a positive semidefinite
matrix, so that the others alone set the number of iterations. NumPy, in float64, whatever the precision of the products.

>>> import numpy as np
>>> from jaxbp.linalg import conjugate_gradients
>>> scales = np.array([1.0, 10.0, 100.0])
>>> result = conjugate_gradients.solve(lambda v: scales * v, np.ones(3), tolerance=1e-12)
>>> (result.solution * scales).round(12).tolist(), result.num_products
([1.0, 1.0, 1.0], 3)
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float64

Product = Callable[[np.ndarray], np.ndarray]

_ROUNDING = 16  # eigenvalues of a sketch below so many epsilons of the products' type, times its rank, are noise


class Solution(NamedTuple):
    """Last iterate.

    Attributes:
      solution: in the shape of the target.
      residual_norm: Euclidean norm of target - A solution by its recurrence, which the true one follows down to rounding only.
      num_products: products with A, one an iteration.
    """

    solution: Float64[np.ndarray, "..."]
    residual_norm: float
    num_products: int


def solve(
    product_fn: Product,
    target: Float64[np.ndarray, "..."],
    *,
    tolerance: float,
    max_products: int = 1000,
    precondition_fn: Product | None = None,
) -> Solution:
    """Solve A solution = target for a symmetric positive definite A, from 0.

    Ends early where a direction has no positive curvature, which is flat to rounding: the solution so far then is the last one.

    Args:
      product_fn: v -> A v, both in the shape of the target.
      target: an array of any shape, float64.
      tolerance: Euclidean norm of the residual at which the iteration ends.
      max_products: largest number of products.
      precondition_fn: v -> an approximation of A^-1 v, symmetric and positive definite.
    """
    solution, residual = np.zeros_like(target), target
    preconditioned = residual if precondition_fn is None else precondition_fn(residual)
    direction, square, norm, used = preconditioned, float((residual * preconditioned).sum()), _norm(residual), 0
    while used < max_products and norm > tolerance:
        image = product_fn(direction)
        used += 1
        curvature = float((direction * image).sum())
        if not curvature > 0:
            break
        solution = solution + square / curvature * direction
        residual = residual - square / curvature * image
        preconditioned = residual if precondition_fn is None else precondition_fn(residual)
        previous, square = square, float((residual * preconditioned).sum())
        norm = _norm(residual)
        direction = preconditioned + square / previous * direction
    return Solution(solution, norm, used)


def _norm(array: np.ndarray) -> float:
    return math.sqrt(float((array**2).sum()))


def nystrom(product_fn: Product, shape: tuple[int, ...], rank: int, key: jax.Array, *, shift: float = 0.0) -> Product:
    """A preconditioner of A + shift I, by ``rank`` products with a positive semidefinite A.

    P^-1 v = (l + shift) U (L + shift)^-1 U^T v + (v - U U^T v), with the eigenvalues L, of which l is the smallest, and the vectors U of
    the Nystrom approximation from Gaussian vectors (Frangella, Tropp and Udell, SIAM J. Matrix Anal. Appl. 2023, equation 5.3).
    Directions that rounding cannot tell from 0 are left out. Memory: 2 ``rank`` arrays of the given shape.

    Args:
      product_fn: v -> A v.
      shape: of v.
      rank: number of products, at most the number of entries of v.
      key: of the vectors.
      shift: of the system to be solved, such as a ridge; at least 0.
    """
    size = math.prod(shape)
    vectors = np.linalg.qr(np.asarray(jax.random.normal(key, (size, min(rank, size))), np.float64))[0]
    images = [np.asarray(product_fn(vector.reshape(shape))) for vector in vectors.T]
    epsilon = max(float(np.finfo(image.dtype).eps) for image in images)
    sketch = np.stack([image.reshape(-1) for image in images], 1).astype(np.float64)
    core = vectors.T @ sketch
    values, rotation = np.linalg.eigh((core + core.T) / 2)
    kept = values > _ROUNDING * epsilon * len(values) * values[-1]
    if not kept.any():
        return lambda vector: vector
    left, singular_values, _ = np.linalg.svd(sketch @ (rotation[:, kept] / np.sqrt(values[kept])), full_matrices=False)
    eigenvalues = singular_values**2
    weights = (eigenvalues[-1] + shift) / (eigenvalues + shift) - 1

    def precondition(vector: np.ndarray) -> np.ndarray:
        flat = vector.reshape(-1)
        return (flat + left @ (weights * (left.T @ flat))).reshape(shape)

    return precondition
