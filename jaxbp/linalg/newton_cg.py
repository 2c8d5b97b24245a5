"""Softmax regression that is too large for a Newton matrix: Newton's method with conjugate gradients, proven by duality.

Memory is that of the features and a few arrays of their shape. The proof needs no curvature: mean cross-entropy's dual is the mean
entropy of any class probabilities P (N, C) with F'(P - Y) = 0, for features F and one-hot labels Y, and each such P bounds the
minimum from below. Near the minimiser the model's own probabilities miss the constraint by the gradient G; with whitened features
(F'F / N = 1) P - F G meets it exactly, and is a probability wherever it is not negative.

>>> import numpy as np
>>> from jaxbp.linalg.newton_cg import minimise_cross_entropy
>>> rng = np.random.default_rng(0)
>>> left, _, _ = np.linalg.svd(rng.normal(size=(300, 5)) - 0.0, full_matrices=False)
>>> found = minimise_cross_entropy(np.sqrt(300) * left, rng.integers(0, 3, 300), 3)
>>> found.gradient_norm < 1e-10 and 0 <= found.value - found.lower_bound + 1e-15 < 1e-12
True
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.sparse.linalg
from scipy.special import log_softmax

_MAX_NEWTON = 60
_MAX_CG = 500
_TOLERANCE = 1e-13  # of the gradient's norm; about what rounding leaves with whitened features


class Minimum(NamedTuple):
    """``weights`` (r, C), their ``value`` and ``gradient_norm``, and a ``lower_bound`` of the minimum, -inf if unproven.

    ``smallest_curvature``: least Hessian eigenvalue there but for the classes' common shift, by Lanczos; about 0 where there is
    no minimiser.
    """

    weights: np.ndarray
    value: float
    gradient_norm: float
    lower_bound: float
    smallest_curvature: float


def minimise_cross_entropy(features: np.ndarray, labels: np.ndarray, num_classes: int) -> Minimum:
    """Minimise the mean cross-entropy of ``features @ weights`` in float64.

    Where it has no minimiser the weights grow until the loss is flat: ``smallest_curvature`` tells. Converges quadratically from
    near the minimiser.

    Args:
      features: (N, r) with orthogonal columns of mean square 1, or ``lower_bound`` is -inf.
      labels: (N,) integers below ``num_classes``.
      num_classes: C.
    """
    targets = np.eye(num_classes)[labels]
    weights = np.zeros((features.shape[1], num_classes))
    best = math.inf
    for _ in range(_MAX_NEWTON):
        p, value = _probabilities(features, labels, weights)
        gradient = features.T @ (p - targets) / len(features)
        norm = float(np.linalg.norm(gradient))
        if norm <= _TOLERANCE or (norm < 1e-11 and norm > 0.5 * best):  # no further progress: rounding
            break
        best = min(best, norm)
        direction = _conjugate_gradients(_product(features, p), -gradient, min(0.1, math.sqrt(norm)) * norm)
        weights = weights + _step_size(features, labels, weights, direction, value, float((gradient * direction).sum())) * direction
    return Minimum(weights, value, norm, _dual_bound(features, p, gradient, targets), _smallest_curvature(features, p))


def _probabilities(features: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, float]:
    log_p = log_softmax(features @ weights, 1)
    return np.exp(log_p), float(-log_p[np.arange(len(labels)), labels].mean())


def _product(features: np.ndarray, p: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The Hessian as a function on weights."""

    def product(direction: np.ndarray) -> np.ndarray:
        moved = features @ direction
        return features.T @ (p * (moved - (p * moved).sum(1, keepdims=True))) / len(features)

    return product


def _conjugate_gradients(product: Callable, target: np.ndarray, tolerance: float) -> np.ndarray:
    solution, residual = np.zeros_like(target), target
    direction, square = target, float((target**2).sum())
    for _ in range(_MAX_CG):
        along = product(direction)
        curvature = float((direction * along).sum())
        if curvature <= 0:  # flat to rounding: what is found so far is a descent direction
            break
        solution = solution + square / curvature * direction
        residual = residual - square / curvature * along
        previous, square = square, float((residual**2).sum())
        if math.sqrt(square) <= tolerance:
            break
        direction = residual + square / previous * direction
    return solution if solution.any() else target


def _step_size(features: np.ndarray, labels: np.ndarray, weights: np.ndarray, direction: np.ndarray, value: float, slope: float) -> float:
    """Halve the step until the loss falls by a share of what ``slope`` promises, or by less than rounding shows."""
    step = 1.0
    while step > 1e-9 and _probabilities(features, labels, weights + step * direction)[1] > value + 1e-4 * step * slope + 1e-14:
        step /= 2
    return step


def _smallest_curvature(features: np.ndarray, p: np.ndarray) -> float:
    shape = features.shape[1], p.shape[1]
    product = _product(features, p)

    def shifted(flat: np.ndarray) -> np.ndarray:  # a shift of all classes changes nothing: give it curvature 1
        weights = flat.reshape(shape)
        return (product(weights) + weights.mean(1, keepdims=True)).ravel()

    operator = scipy.sparse.linalg.LinearOperator((math.prod(shape),) * 2, matvec=shifted, dtype=np.float64)
    start = np.random.default_rng(0).normal(size=math.prod(shape))
    found = scipy.sparse.linalg.eigsh(operator, k=1, which="SA", tol=0.1, v0=start, return_eigenvectors=False, maxiter=2000)
    return float(found[0])


def _dual_bound(features: np.ndarray, p: np.ndarray, gradient: np.ndarray, targets: np.ndarray) -> float:
    feasible = p - features @ gradient
    violated = np.abs(features.T @ (feasible - targets)).max() / len(features)
    if feasible.min() < 0 or violated > 1e-12:
        return -math.inf
    logs = np.log(feasible, out=np.zeros_like(feasible), where=feasible > 0)
    return float(-(feasible * logs).sum(1).mean())
