"""The stationary point beside a point, by Newton's method.

A minimum that was rounded, to float32 for instance, is no minimum any more, but lies within rounding of one. Newton's steps, solved by
conjugate gradients, lead there without moving along flat directions, so that the sum of the steps tells how far the minimum is.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxbp.landscape.hessian import Data, Hessian, LossFn, hessian

_MAX_NEWTON = 6
_MAX_PRODUCTS = 150  # of each step


class Stationary(NamedTuple):
    """The end of the iteration.

    Attributes:
      params: the point.
      distance: Euclidean, from the start.
      gradient_norm: there.
    """

    params: PyTree
    distance: float
    gradient_norm: float


def stationary_point(loss_fn: LossFn, data: Data, operator: Hessian, scale: float, *, chunk_size: int | None = None) -> Stationary:
    """Newton's method from the point of ``operator`` until the gradient falls no further.

    Args:
      loss_fn, data, chunk_size: as in `hessian`.
      operator: at the start.
      scale: largest absolute eigenvalue of the Hessian there.
    """
    start = position = np.asarray(operator.position)
    best = position, float(np.linalg.norm(operator.gradient))
    for _ in range(_MAX_NEWTON):
        position = position + _newton_step(operator, scale)
        operator = hessian(loss_fn, operator.unravel(jnp.asarray(position)), data, chunk_size=chunk_size)
        norm = float(np.linalg.norm(operator.gradient))
        if not norm < 0.5 * best[1]:
            break
        best = position, norm
    return Stationary(operator.unravel(jnp.asarray(best[0])), float(np.linalg.norm(best[0] - start)), best[1])


def _newton_step(operator: Hessian, scale: float) -> np.ndarray:
    """Conjugate gradients for H d = -g, as far as the curvature is clearly positive."""
    residual: Any = -np.asarray(operator.gradient)
    solution, direction = np.zeros_like(residual), residual
    square = first = float(residual @ residual)
    for _ in range(_MAX_PRODUCTS):
        image = np.asarray(operator.matvec(jnp.asarray(direction)))
        curvature = float(direction @ image)
        if not curvature > 1e-13 * scale * float(direction @ direction):
            break
        solution = solution + square / curvature * direction
        residual = residual - square / curvature * image
        previous, square = square, float(residual @ residual)
        if math.sqrt(square) <= 1e-9 * math.sqrt(first):
            break
        direction = residual + square / previous * direction
    return solution
