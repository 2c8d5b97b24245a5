"""Softmax regression on many features: the minimum by Newton's method with conjugate gradients, and its proof by duality.

Memory is that of the features and a few arrays of their shape. The proof needs no curvature. The dual of the mean cross-entropy is the
mean entropy of class probabilities P (N, C) that satisfy F'(P - Y) = 0, for features F and one-hot labels Y; the entropy of each such P
is a lower bound of the minimum. Near the minimiser the model's probabilities miss the constraint by the gradient G. With whitened
features (F'F / N = 1), P - F G satisfies the constraint exactly, and it is a probability wherever it is not negative.

>>> import numpy as np
>>> from jaxbp.landscape import softmax_regression
>>> rng = np.random.default_rng(0)
>>> left, _, _ = np.linalg.svd(rng.normal(size=(300, 5)), full_matrices=False)
>>> fit = softmax_regression.minimise_cross_entropy(np.sqrt(300) * left, rng.integers(0, 3, 300), 3)
>>> fit.gradient_norm < 1e-10 and 0 <= fit.value - fit.lower_bound + 1e-15 < 1e-12
True
"""

import math
from typing import NamedTuple

import numpy as np
import scipy.sparse.linalg
from jaxtyping import Float64, Int
from scipy.special import log_softmax

from jaxbp.linalg import newton_cg


class SoftmaxFit(NamedTuple):
    """The minimiser of a mean cross-entropy.

    Attributes:
      weights: (r, C).
      value: mean cross-entropy at the weights.
      gradient_norm: Euclidean norm of the gradient at the weights.
      lower_bound: of the minimum; -inf if unproven.
      smallest_curvature: least eigenvalue of the Hessian at the weights, by Lanczos, without the shift common to all classes; about 0
        where there is no minimiser.
    """

    weights: Float64[np.ndarray, "r c"]
    value: float
    gradient_norm: float
    lower_bound: float
    smallest_curvature: float


def minimise_cross_entropy(features: Float64[np.ndarray, "n r"], labels: Int[np.ndarray, " n"], num_classes: int) -> SoftmaxFit:
    """Minimise the mean cross-entropy of ``features @ weights`` in float64.

    If there is no minimiser, the weights grow until the loss is flat; ``smallest_curvature`` is then about 0. Convergence is
    superlinear near the minimiser.

    Args:
      features: (N, r) with orthogonal columns of mean square 1; for other features ``lower_bound`` is -inf.
      labels: (N,) integers below ``num_classes``.
      num_classes: C.
    """
    targets = np.eye(num_classes)[labels]

    def value_fn(weights: np.ndarray) -> float:
        return _probabilities(features, labels, weights)[1]

    def derivatives_fn(weights: np.ndarray) -> tuple[float, np.ndarray, newton_cg.Product]:
        p, value = _probabilities(features, labels, weights)
        return value, features.T @ (p - targets) / len(features), _hessian_product(features, p)

    weights, value, gradient_norm = newton_cg.minimise(value_fn, derivatives_fn, np.zeros((features.shape[1], num_classes)))
    p, _ = _probabilities(features, labels, weights)
    gradient = features.T @ (p - targets) / len(features)
    return SoftmaxFit(weights, value, gradient_norm, _dual_bound(features, p, gradient, targets), _smallest_curvature(features, p))


def _probabilities(features: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Class probabilities (N, C) and the mean cross-entropy."""
    log_p = log_softmax(features @ weights, 1)
    return np.exp(log_p), float(-log_p[np.arange(len(labels)), labels].mean())


def _hessian_product(features: np.ndarray, p: np.ndarray) -> newton_cg.Product:
    def product(direction: np.ndarray) -> np.ndarray:
        moved = features @ direction
        return features.T @ (p * (moved - (p * moved).sum(1, keepdims=True))) / len(features)

    return product


def _smallest_curvature(features: np.ndarray, p: np.ndarray) -> float:
    shape = features.shape[1], p.shape[1]
    product = _hessian_product(features, p)

    def shifted(flat: np.ndarray) -> np.ndarray:  # a shift common to all classes does not change the loss: give it curvature 1
        weights = flat.reshape(shape)
        return (product(weights) + weights.mean(1, keepdims=True)).ravel()

    operator = scipy.sparse.linalg.LinearOperator((math.prod(shape),) * 2, matvec=shifted, dtype=np.float64)
    start = np.random.default_rng(0).normal(size=math.prod(shape))
    (smallest,) = scipy.sparse.linalg.eigsh(operator, k=1, which="SA", tol=0.1, v0=start, return_eigenvectors=False, maxiter=2000)
    return float(smallest)


def _dual_bound(features: np.ndarray, p: np.ndarray, gradient: np.ndarray, targets: np.ndarray) -> float:
    feasible = p - features @ gradient
    violated = np.abs(features.T @ (feasible - targets)).max() / len(features)
    if feasible.min() < 0 or violated > 1e-12:
        return -math.inf
    logs = np.log(feasible, out=np.zeros_like(feasible), where=feasible > 0)
    return float(-(feasible * logs).sum(1).mean())
