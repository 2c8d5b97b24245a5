"""Minimise a smooth convex function by Newton's method with conjugate gradients, without forming its Hessian.

Each Newton direction solves H d = -g inexactly by conjugate gradients (Nocedal and Wright, Numerical Optimization, section 7.1): the
residual is at most min(0.1, sqrt(||g||)) ||g||, so the iteration converges superlinearly near the minimiser. The step is halved until
the function falls enough (Armijo's rule). Memory is that of a few arrays of the argument's shape. NumPy, in float64.

>>> import numpy as np
>>> from jaxbp.linalg import newton_cg
>>> scales = np.array([1.0, 10.0, 100.0])
>>> def value_fn(x):
...     return float(np.cosh(scales * x - 1).sum())
>>> def derivatives_fn(x):
...     bend = scales**2 * np.cosh(scales * x - 1)
...     return value_fn(x), scales * np.sinh(scales * x - 1), lambda direction: bend * direction
>>> result = newton_cg.minimise(value_fn, derivatives_fn, np.zeros(3))
>>> np.round(result.position * scales, 12).tolist(), result.value
([1.0, 1.0, 1.0], 3.0)
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from jaxbp.linalg import conjugate_gradients
from jaxbp.linalg.conjugate_gradients import Product

ValueFn = Callable[[np.ndarray], float]
DerivativesFn = Callable[[np.ndarray], tuple[float, np.ndarray, Product]]

_PROGRESS = 1e-11  # gradient norms below it stop the iteration once they no longer halve: rounding has been reached


class Minimum(NamedTuple):
    """Last point of the iteration.

    Attributes:
      position: the point, in the shape of the start.
      value: value of the function there.
      gradient_norm: Euclidean norm of the gradient there.
    """

    position: Float64[np.ndarray, "..."]
    value: float
    gradient_norm: float


def minimise(
    value_fn: ValueFn,
    derivatives_fn: DerivativesFn,
    start: Float64[np.ndarray, "..."],
    *,
    tolerance: float = 1e-13,
    max_newton: int = 60,
    max_products: int = 500,
) -> Minimum:
    """Minimise a smooth convex function from ``start``.

    A function without a minimiser sends the position away until the function is flat; the caller has to check for that.

    Args:
      value_fn: value at a point.
      derivatives_fn: (value, gradient, Hessian-vector product) at a point; the gradient has the shape of the point.
      start: an array of any shape, float64.
      tolerance: Euclidean norm of the gradient at which the iteration ends.
      max_newton: largest number of points at which derivatives are evaluated.
      max_products: largest number of Hessian-vector products for one direction.
    """
    position, best = start, math.inf
    for iteration in range(max_newton):
        value, gradient, product = derivatives_fn(position)
        norm = float(np.linalg.norm(gradient))
        stalled = norm < _PROGRESS and norm > 0.5 * best
        if norm <= tolerance or stalled or iteration == max_newton - 1:
            break
        best = min(best, norm)
        inexact = conjugate_gradients.solve(product, -gradient, tolerance=min(0.1, math.sqrt(norm)) * norm, max_products=max_products)
        direction = inexact.solution if inexact.solution.any() else -gradient
        slope = float((gradient * direction).sum())
        position = position + _step_size(value_fn, position, direction, value, slope) * direction
    return Minimum(position, value, norm)


def _step_size(value_fn: ValueFn, position: np.ndarray, direction: np.ndarray, value: float, slope: float) -> float:
    """Halve the step until the function falls by 1e-4 of the linear prediction, or by less than rounding shows."""
    step = 1.0
    while step > 1e-9 and value_fn(position + step * direction) > value + 1e-4 * step * slope + 1e-14:
        step /= 2
    return step
