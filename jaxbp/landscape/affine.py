"""Global minima of affine classifiers, with a proof of how close to the minimum they are.

A bad local minimum of a deep network is built from the best affine map (paper, Theorem 1), so that map has to be known to
the last digit and its loss bounded from below. Squared error has a closed form, also under a rank constraint
(reduced-rank regression). Cross-entropy is convex and is minimised by Newton's method in float64; it has no minimiser where
classes are linearly separable, which is detected and refused. The proof is by self-concordance: the third derivative of the
loss along a direction D is at most max_n(range over classes of D'x_n) times the second (Bach, Electron. J. Statist. 4, 2010,
for two classes; for softmax the third central moment is at most the range times the variance), so a Newton decrement d below 0.367 / M,
with M the largest range over directions of unit Hessian norm, proves a minimiser at most 0.68 d^2 below.

>>> import numpy as np
>>> from jaxbp import landscape
>>> rng = np.random.default_rng(0)
>>> fit = landscape.fit_affine(rng.normal(size=(200, 3)), rng.integers(0, 2, 200), 2, loss="cross_entropy")
>>> fit.gradient_norm < 1e-10 and fit.loss - fit.lower_bound < 1e-15
True
"""

import math
from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.optimize
from scipy.special import log_softmax

_RELATIVE_RANK = 1e-10  # singular values of the inputs below this share of the largest count as 0
_MAX_NEWTON = 100
_MAX_DENSE = 4000  # unknowns up to which the Newton matrix is formed


class SeparableError(ValueError):
    """Cross-entropy has no minimiser on these data: some weights push it towards its infimum for ever."""


class AffineFit(NamedTuple):
    """The map x -> x @ kernel + bias that minimises a mean loss, in float64.

    ``kernel`` (d, C), ``bias`` (C,), ``rank`` of the kernel; ``loss`` and ``gradient_norm`` there (all parameters); ``lower_bound``: no
    affine map of rank at most ``max_rank`` (any rank if None) has a smaller loss, proven up to rounding, or -inf where only a
    local minimum is known; ``accuracy`` on the training inputs.
    """

    kernel: np.ndarray
    bias: np.ndarray
    rank: int
    loss: float
    gradient_norm: float
    lower_bound: float
    max_rank: int | None
    accuracy: float


def fit_affine(
    inputs: np.ndarray, labels: np.ndarray, num_classes: int, *, loss: str, max_rank: int | None = None
) -> AffineFit:
    """Minimise the mean of `objectives.LOSSES` named ``loss`` over affine maps of ``inputs`` (N, d) to logits.

    The minimiser of least norm is returned where it is not unique: constant features, and for cross-entropy a shift common
    to all classes, get no weight.

    Raises:
      SeparableError: cross-entropy on data without a minimiser.
      ValueError: for inputs that are not a finite (N, d), labels out of range, an unknown loss or a rank below 1.
    """
    inputs, labels = _checked(inputs, labels, num_classes, loss, max_rank)
    basis, scale, features = _whiten(inputs)
    limit = min(features.shape[1] - 1, num_classes - (loss == "cross_entropy"))
    if max_rank is not None and max_rank >= limit:
        max_rank = None
    if loss == "squared_error":
        weights = _least_squares(features, labels, num_classes, max_rank)
        gap = _squared_gap(features, labels, weights) if max_rank is None else 0.0
    elif max_rank is None:
        weights, gap = _newton(features, labels, num_classes)
    else:
        weights, gap = _factored_cross_entropy(features, labels, num_classes, max_rank), math.inf
    kernel = basis @ (weights[:-1] / scale[:, None])
    bias = weights[-1] - inputs.mean(0) @ kernel
    value, gradient_norm, accuracy = _evaluate(inputs, labels, kernel, bias, loss)
    rank = int(np.linalg.matrix_rank(kernel, tol=1e-10 * max(np.linalg.norm(kernel, 2), 1e-300)))
    return AffineFit(kernel, bias, rank, value, gradient_norm, value - gap, max_rank, accuracy)


def _checked(inputs, labels, num_classes: int, loss: str, max_rank: int | None) -> tuple[np.ndarray, np.ndarray]:
    inputs, labels = np.asarray(inputs, np.float64), np.asarray(labels)
    if inputs.ndim != 2 or not np.isfinite(inputs).all():
        raise ValueError(f"inputs must be a finite (N, d) array, got shape {inputs.shape}: flatten images first")
    if labels.shape != inputs.shape[:1] or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels must be {inputs.shape[0]} integers in [0, {num_classes}), got shape {labels.shape}")
    if loss not in ("cross_entropy", "squared_error"):
        raise ValueError(f"loss must be 'cross_entropy' or 'squared_error', got {loss!r}")
    if max_rank is not None and max_rank < 1:
        raise ValueError(f"max_rank must be at least 1, got {max_rank}")
    return inputs, labels.astype(np.int64)


def _whiten(inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs as orthogonal features of unit variance plus a constant one: (basis, scale, features (N, r + 1))."""
    centred = inputs - inputs.mean(0)
    left, singular, right = np.linalg.svd(centred, full_matrices=False)
    keep = singular > _RELATIVE_RANK * max(singular.max(initial=0.0), 1e-300)
    root = math.sqrt(len(inputs))
    features = np.column_stack([root * left[:, keep], np.ones(len(inputs))])
    return right[keep].T, singular[keep] / root, features


def _one_hot(labels: np.ndarray, num_classes: int) -> np.ndarray:
    return np.eye(num_classes)[labels]


def _least_squares(features: np.ndarray, labels: np.ndarray, num_classes: int, max_rank: int | None) -> np.ndarray:
    """Features are orthogonal, so regression is projection; truncating the fitted values' SVD solves the rank constraint
    globally (Izenman, J. Multivariate Anal. 5, 1975)."""
    weights = features.T @ _one_hot(labels, num_classes) / len(features)
    if max_rank is not None:
        left, singular, right = np.linalg.svd(weights[:-1], full_matrices=False)
        weights[:-1] = (left[:, :max_rank] * singular[:max_rank]) @ right[:max_rank]
    return weights


def _squared_gap(features: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """Loss above its minimum: half the squared gradient, as the Hessian is the identity in whitened features."""
    gradient = features.T @ (features @ weights - _one_hot(labels, weights.shape[1])) / len(features)
    return 0.5 * float((gradient**2).sum())


def _evaluate(inputs: np.ndarray, labels: np.ndarray, kernel: np.ndarray, bias: np.ndarray, loss: str) -> tuple:
    logits = inputs @ kernel + bias
    targets = _one_hot(labels, len(bias))
    if loss == "cross_entropy":
        value, error = -log_softmax(logits, 1)[targets > 0].mean(), np.exp(log_softmax(logits, 1)) - targets
    else:
        value, error = 0.5 * ((logits - targets) ** 2).sum(1).mean(), logits - targets
    gradient = np.concatenate([inputs.T @ error, error.sum(0, keepdims=True)]) / len(inputs)
    return float(value), float(np.linalg.norm(gradient)), float((logits.argmax(1) == labels).mean())


def _newton(features: np.ndarray, labels: np.ndarray, num_classes: int) -> tuple[np.ndarray, float]:
    """Damped Newton on weights (r + 1, C) whose classes sum to 0; returns them and the proven gap to the minimum."""
    weights = np.zeros((features.shape[1], num_classes))
    if weights.size > _MAX_DENSE:
        raise ValueError(
            f"cross-entropy with {weights.size} unknowns exceeds the dense solver's {_MAX_DENSE}: pool the images "
            "(for instance mnist5k@7), or use loss='squared_error'"
        )
    largest_norm = np.linalg.norm(features, axis=1).max()
    value, gradient, curvature = _cross_entropy(features, labels, weights)
    for _ in range(_MAX_NEWTON):
        smallest = scipy.linalg.eigh(curvature, eigvals_only=True, subset_by_index=[0, 0])[0]
        _refuse_separable(features, labels, weights, smallest)
        direction = -scipy.linalg.solve(curvature, gradient.ravel(), assume_a="pos").reshape(weights.shape)
        decrement = math.sqrt(max(-float((gradient * direction).sum()), 0.0))
        certain = 0.367 * math.sqrt(smallest) / (math.sqrt(2) * largest_norm)
        if decrement < certain and decrement**2 < 1e-26 * max(value, 1.0):
            return weights, 0.68 * decrement**2
        step = 1.0
        while (
            _cross_entropy_value(features, labels, weights + step * direction)
            > value - 0.1 * step * decrement**2 + 1e-15
        ):
            step /= 2
        weights = weights + step * direction
        value, gradient, curvature = _cross_entropy(features, labels, weights)
    raise SeparableError(
        f"Newton's method found no minimiser of cross-entropy in {_MAX_NEWTON} steps (loss {value:.3g}, weights' norm "
        f"{np.linalg.norm(weights):.3g} and growing): some classes are separable. {_ADVICE}"
    )


_ADVICE = "Use loss='squared_error', pool the images (mnist5k@7), or take more examples"


def _refuse_separable(features: np.ndarray, labels: np.ndarray, weights: np.ndarray, smallest: float) -> None:
    logits = features @ weights
    right = logits[np.arange(len(labels)), labels]
    logits[np.arange(len(labels)), labels] = -np.inf
    if (right > logits.max(1)).all():
        raise SeparableError(
            f"the classes are linearly separable: cross-entropy has no minimiser, only the infimum 0. {_ADVICE}"
        )
    if smallest < 1e-13:
        raise SeparableError(
            f"cross-entropy is flat along some direction (smallest curvature {smallest:.1g}): some classes are separable and it has "
            f"no minimiser. {_ADVICE}"
        )


def _cross_entropy_value(features: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    return float(-log_softmax(features @ weights, 1)[np.arange(len(labels)), labels].mean())


def _cross_entropy(
    features: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """Value, gradient (r + 1, C) and Hessian, which has the classes' common shift, no change of the loss, filled with 1."""
    num_examples, num_classes = len(features), weights.shape[1]
    log_p = log_softmax(features @ weights, 1)
    p = np.exp(log_p)
    gradient = features.T @ (p - _one_hot(labels, num_classes)) / num_examples
    dim = features.shape[1]
    hessian = np.empty((dim, num_classes, dim, num_classes))
    for c in range(num_classes):
        for k in range(c + 1):
            share = p[:, c] * ((c == k) - p[:, k]) / num_examples
            hessian[:, c, :, k] = hessian[:, k, :, c] = (features * share[:, None]).T @ features
    hessian += np.einsum("ij,ck->icjk", np.eye(dim), np.full((num_classes, num_classes), 1 / num_classes))
    value = -log_p[np.arange(num_examples), labels].mean()
    return float(value), gradient, hessian.reshape(dim * num_classes, -1)


def _factored_cross_entropy(features: np.ndarray, labels: np.ndarray, num_classes: int, max_rank: int) -> np.ndarray:
    """A local minimum over kernels U V of rank ``max_rank``, started from the truncated unconstrained minimiser."""
    weights, _ = _newton(features, labels, num_classes)
    left, singular, right = np.linalg.svd(weights[:-1], full_matrices=False)
    root = np.sqrt(singular[:max_rank])
    factors = [left[:, :max_rank] * root, root[:, None] * right[:max_rank], weights[-1]]
    ends = np.cumsum([f.size for f in factors])[:-1]

    def unpack(flat: np.ndarray) -> list[np.ndarray]:
        return [part.reshape(f.shape) for part, f in zip(np.split(flat, ends), factors, strict=True)]

    def value_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        u, v, b = unpack(flat)
        logits = features[:, :-1] @ (u @ v) + b
        error = (np.exp(log_softmax(logits, 1)) - _one_hot(labels, num_classes)) / len(features)
        outer = features[:, :-1].T @ error
        value = _cross_entropy_value(features, labels, np.vstack([u @ v, b]))
        return value, np.concatenate([(outer @ v.T).ravel(), (u.T @ outer).ravel(), error.sum(0)])

    start = np.concatenate([f.ravel() for f in factors])
    options = {"maxiter": 5000, "gtol": 1e-10, "ftol": 0.0, "maxfun": 50_000, "maxcor": 50}
    u, v, b = unpack(scipy.optimize.minimize(value_and_gradient, start, jac=True, method="L-BFGS-B", options=options).x)
    return np.vstack([u @ v, b])
