"""Global minima of affine classifiers, with a proof of their distance from the minimum.

A bad local minimum of a deep network is built from the best affine map (Theorem 1 of "Truth or Backpropaganda?", Goldblum et al.,
ICLR 2020), so that map must be exact to the last digit and its loss must be bounded from below. Squared error has a closed form, also
under a rank constraint (reduced-rank regression). Cross-entropy is convex; Newton's method minimises it in float64. Cross-entropy has no
minimiser where classes are linearly separable; such data are refused.

The proof is by self-concordance. The third derivative of the loss along a direction D is at most max_n(range over classes of D'x_n) times
the second derivative (Bach, Electron. J. Statist. 4, 2010, for two classes; for softmax the third central moment is at most the range
times the variance). Let M be the largest range over directions of unit Hessian norm. A Newton decrement d below 0.367 / M then proves
that the minimum lies at most 0.68 d^2 below.

>>> import numpy as np
>>> from jaxbp import landscape
>>> rng = np.random.default_rng(0)
>>> fit = landscape.fit_affine(rng.normal(size=(200, 3)), rng.integers(0, 2, 200), 2, loss="cross_entropy")
>>> fit.gradient_norm < 1e-10 and fit.loss - fit.lower_bound < 1e-15
True
"""

import math
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.linalg
import scipy.optimize
from jaxtyping import Float, Int, Num
from scipy.special import log_softmax

from jaxbp import checks, stats
from jaxbp.landscape.softmax_regression import minimise_cross_entropy

_RELATIVE_RANK = 1e-10  # singular values of the inputs below this share of the largest one count as 0
_ROUNDING = 1e-12  # relative loss differences below this are float64 noise
_MAX_NEWTON = 100
_MAX_DENSE = 4000  # unknowns up to which the Newton matrix is formed


class SeparableError(ValueError):
    """Cross-entropy has no minimiser on these data: along some direction of the weights it decreases without end."""


class AffineFit(NamedTuple):
    """The map x -> x @ kernel + bias that minimises a mean loss, in float64.

    Both lower bounds are -inf if the inputs vary in some direction by more than rounding, but too little for the direction to be used.

    Attributes:
      kernel: (d, C).
      bias: (C,).
      rank: rank of the kernel.
      loss: mean loss of the map.
      gradient_norm: Euclidean norm of the gradient with respect to kernel and bias.
      lower_bound: no affine map has a smaller loss; proven up to rounding.
      max_rank: the rank constraint; None where it does not constrain the minimiser.
      accuracy: on the training inputs.
      rank_lower_bound: no affine map of rank at most ``max_rank`` has a smaller loss. Above ``lower_bound`` under a rank constraint
        with squared error, equal to it otherwise.
    """

    kernel: Float[np.ndarray, "d c"]
    bias: Float[np.ndarray, " c"]
    rank: int
    loss: float
    gradient_norm: float
    lower_bound: float
    max_rank: int | None
    accuracy: float
    rank_lower_bound: float

    @property
    def is_attained(self) -> bool:
        """Whether the map attains the lower bound of its rank constraint, up to float64 rounding."""
        return self.loss - self.rank_lower_bound <= _ROUNDING * self.loss + 1e-30

    def bound_at(self, rank: int) -> float:
        """The lower bound of the loss of affine maps whose rank is at most ``rank``."""
        return self.lower_bound if self.max_rank is None or rank > self.max_rank else self.rank_lower_bound

    def check(self, inputs: Num[jax.Array | np.ndarray, "n d"], labels: Int[jax.Array | np.ndarray, " n"], loss: str) -> None:
        """Raise ValueError if the fit is not one of these examples and this loss."""
        inputs, labels = _checked(inputs, labels, len(self.bias), loss, self.max_rank)
        if inputs.shape[1] != len(self.kernel):
            raise ValueError(f"fit is of inputs with {len(self.kernel)} features, got {inputs.shape[1]}: fit these inputs")
        value = _evaluate(inputs, labels, self.kernel, self.bias, loss)[0]
        if not abs(value - self.loss) <= 1e-9 * abs(value) + 1e-13:
            raise ValueError(f"fit is not of these examples and this loss: its map has a loss of {value:.6g} here, {self.loss:.6g} there")


def fit_affine(
    inputs: Num[jax.Array | np.ndarray, "n d"],
    labels: Int[jax.Array | np.ndarray, " n"],
    num_classes: int,
    *,
    loss: str,
    max_rank: int | None = None,
) -> AffineFit:
    """Minimise a mean loss over affine maps from inputs to logits.

    Where the minimiser is not unique, the result is the one of least norm: constant features, and for cross-entropy a shift common to
    all classes, get no weight. Cross-entropy under a rank constraint is minimised locally, from the truncated global minimiser.

    Args:
      inputs: (N, d).
      labels: (N,) integers below ``num_classes``.
      num_classes: C.
      loss: a name in `jaxbp.losses.LOSSES`.
      max_rank: largest rank of the kernel; None for no constraint.

    Raises:
      SeparableError: cross-entropy on data without a minimiser, whether or not there is one under the rank constraint.
      ValueError: for inputs that are not a finite (N, d), labels out of range, an unknown loss or a rank below 1.
    """
    inputs, labels = _checked(inputs, labels, num_classes, loss, max_rank)
    basis, scale, features, is_whole = _whiten(inputs)
    if max_rank is not None and max_rank >= min(features.shape[1] - 1, num_classes - 1):
        max_rank = None  # minimisers have a kernel whose classes sum to 0
    if loss == "squared_error":
        weights, lower_bound, rank_lower_bound = _least_squares(features, labels, num_classes, max_rank)
    else:
        weights, lower_bound = _newton(features, labels, num_classes)
        rank_lower_bound = lower_bound
        if max_rank is not None:
            weights = _factored_cross_entropy(features, labels, weights, max_rank)
    if not is_whole:
        lower_bound = rank_lower_bound = -math.inf
    kernel = basis @ (weights[:-1] / scale[:, None])
    bias = weights[-1] - inputs.mean(0) @ kernel
    value, gradient_norm, accuracy = _evaluate(inputs, labels, kernel, bias, loss)
    rank = int(np.linalg.matrix_rank(kernel, tol=1e-12 * max(float(np.linalg.norm(kernel, 2)), 1e-300)))
    return AffineFit(kernel, bias, rank, value, gradient_norm, lower_bound, max_rank, accuracy, rank_lower_bound)


def _checked(inputs: Any, labels: Any, num_classes: int, loss: str, max_rank: int | None) -> tuple[np.ndarray, np.ndarray]:
    if np.iscomplexobj(inputs):
        raise ValueError("inputs must be real numbers, got complex ones: split real and imaginary parts into two features")
    inputs, (_, labels) = stats.numbers(inputs, "inputs"), checks.on_host((np.zeros(0), labels))
    if inputs.ndim != 2 or not np.isfinite(inputs).all():
        raise ValueError(f"inputs must be a finite (N, d) array, got shape {inputs.shape}: flatten images first")
    if not len(inputs):
        raise ValueError("inputs hold no example: a mean loss needs at least one")
    is_integer = np.issubdtype(labels.dtype, np.integer)
    if not is_integer or labels.shape != inputs.shape[:1] or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels must be {inputs.shape[0]} integers in [0, {num_classes}), got shape {labels.shape} of {labels.dtype}")
    if loss not in ("cross_entropy", "squared_error"):
        raise ValueError(f"loss must be 'cross_entropy' or 'squared_error', got {loss!r}")
    if max_rank is not None and max_rank < 1:
        raise ValueError(f"max_rank must be at least 1, got {max_rank}")
    absent = np.flatnonzero(np.bincount(labels, minlength=num_classes) == 0)
    if loss == "cross_entropy" and absent.size:
        raise SeparableError(
            f"classes {absent.tolist()} have no example: cross-entropy has no minimiser, it pushes their logits down for ever. "
            "Leave them out, or use loss='squared_error'"
        )
    return inputs, labels.astype(np.int64)


def _whiten(inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """Inputs as orthogonal features of unit variance and a constant feature: (basis, scale, features (N, r + 1), is_whole).

    ``is_whole``: the directions left out hold only rounding, so the affine maps of the features are those of the inputs.
    """
    mean = inputs.mean(0)
    left, singular, right = np.linalg.svd(inputs - mean, full_matrices=False)
    largest = max(singular.max(initial=0.0), 1e-300)
    rounding = np.finfo(float).eps * (max(inputs.shape) * largest + math.sqrt(inputs.size) * np.abs(mean).max(initial=0.0))
    keep = singular > max(_RELATIVE_RANK * largest, rounding)
    root = math.sqrt(len(inputs))
    features = np.column_stack([root * left[:, keep], np.ones(len(inputs))])
    return right[keep].T, singular[keep] / root, features, bool((singular[~keep] <= rounding).all())


def _one_hot(labels: np.ndarray, num_classes: int) -> np.ndarray:
    return np.eye(num_classes)[labels]


def _least_squares(features: np.ndarray, labels: np.ndarray, num_classes: int, max_rank: int | None) -> tuple[np.ndarray, float, float]:
    """Weights (r + 1, C) and lower bounds of the loss over all weights and over those of rank ``max_rank``.

    Features are orthogonal, so regression is projection, and the truncated SVD of the fitted values solves the rank constraint globally
    (Izenman, J. Multivariate Anal. 5, 1975). The Hessian is the identity, so the loss exceeds its minimum by half the squared gradient.
    """
    targets = _one_hot(labels, num_classes)
    weights = features.T @ targets / len(features)
    error = features @ weights - targets
    gradient = features.T @ error / len(features)
    lower_bound = 0.5 * float((error**2).sum(1).mean() - (gradient**2).sum())
    if max_rank is None:
        return weights, lower_bound, lower_bound
    left, singular, right = np.linalg.svd(weights[:-1], full_matrices=False)
    weights[:-1] = (left[:, :max_rank] * singular[:max_rank]) @ right[:max_rank]
    return weights, lower_bound, lower_bound + 0.5 * float((singular[max_rank:] ** 2).sum())


def _evaluate(inputs: np.ndarray, labels: np.ndarray, kernel: np.ndarray, bias: np.ndarray, loss: str) -> tuple[float, float, float]:
    """Mean loss, gradient norm and accuracy."""
    logits = inputs @ kernel + bias
    targets = _one_hot(labels, len(bias))
    if loss == "cross_entropy":
        value, error = -log_softmax(logits, 1)[targets > 0].mean(), np.exp(log_softmax(logits, 1)) - targets
    else:
        value, error = 0.5 * ((logits - targets) ** 2).sum(1).mean(), logits - targets
    gradient = np.concatenate([inputs.T @ error, error.sum(0, keepdims=True)]) / len(inputs)
    return float(value), float(np.linalg.norm(gradient)), float((logits.argmax(1) == labels).mean())


def _newton(features: np.ndarray, labels: np.ndarray, num_classes: int) -> tuple[np.ndarray, float]:
    """Weights (r + 1, C) by damped Newton, with classes that sum to 0, and a proven lower bound of the minimum."""
    weights = np.zeros((features.shape[1], num_classes))
    if weights.size > _MAX_DENSE:
        return _newton_cg(features, labels, num_classes)
    largest_norm = np.linalg.norm(features, axis=1).max()
    previous = math.inf
    for _ in range(_MAX_NEWTON):
        value, gradient, curvature = _cross_entropy(features, labels, weights)
        smallest = scipy.linalg.eigh(curvature, eigvals_only=True, subset_by_index=[0, 0])[0]
        _refuse_separable(features, labels, weights, smallest)
        direction = -scipy.linalg.solve(curvature, gradient.ravel(), assume_a="pos").reshape(weights.shape)
        decrement = math.sqrt(max(-float((gradient * direction).sum()), 0.0))
        certain = decrement < 0.367 * math.sqrt(smallest) / (math.sqrt(2) * largest_norm)
        # Full steps so close to the minimiser at least halve the decrement in exact arithmetic; a smaller decrease means rounding.
        if certain and (decrement**2 < 1e-26 * max(value, 1.0) or decrement > 0.5 * previous):
            return weights, value - 0.68 * decrement**2
        previous = decrement if certain else math.inf
        step = 1.0 if certain else _step_size(features, labels, weights, direction, value, decrement)
        weights = weights + step * direction
    raise SeparableError(
        f"Newton's method found no minimiser of cross-entropy in {_MAX_NEWTON} steps (loss {value:.3g}, weights' norm "
        f"{np.linalg.norm(weights):.3g}): some classes are separable, or very nearly. {_ADVICE}"
    )


def _newton_cg(features: np.ndarray, labels: np.ndarray, num_classes: int) -> tuple[np.ndarray, float]:
    """As `_newton`, for more unknowns than a dense Newton matrix can hold."""
    fit = minimise_cross_entropy(features, labels, num_classes)
    _refuse_separable(features, labels, fit.weights, fit.smallest_curvature)
    # The condition of `_newton`, with the decrement bounded by gradient norm / sqrt(smallest curvature).
    largest_norm = np.linalg.norm(features, axis=1).max()
    if not fit.gradient_norm < 0.367 * fit.smallest_curvature / (math.sqrt(2) * largest_norm):
        raise SeparableError(
            f"Newton's method stopped at a gradient norm of {fit.gradient_norm:.1g} and a smallest curvature of "
            f"{fit.smallest_curvature:.1g}, which does not show a minimiser: some classes are separable, or very nearly. {_ADVICE}"
        )
    return fit.weights, fit.lower_bound


_ADVICE = "Use loss='squared_error', pool the images (mnist5k@4), or take more examples"


def _step_size(
    features: np.ndarray, labels: np.ndarray, weights: np.ndarray, direction: np.ndarray, value: float, decrement: float
) -> float:
    """Halve the step until the loss falls enough, or until the decrease is too small to differ from rounding."""
    step, rounding = 1.0, 1e-14 * max(value, 1.0)
    while step > 1e-9:
        if _cross_entropy_value(features, labels, weights + step * direction) <= value - 0.1 * step * decrement**2 + rounding:
            break
        step /= 2
    return step


def _refuse_separable(features: np.ndarray, labels: np.ndarray, weights: np.ndarray, smallest: float) -> None:
    """Raise SeparableError if the weights classify all examples correctly, or if the loss is flat there (smallest curvature)."""
    logits = features @ weights
    right = logits[np.arange(len(labels)), labels]
    logits[np.arange(len(labels)), labels] = -np.inf
    if (right > logits.max(1)).all():
        raise SeparableError(f"the classes are linearly separable: cross-entropy has no minimiser, only the infimum 0. {_ADVICE}")
    if smallest < 1e-13:
        raise SeparableError(
            f"cross-entropy is flat along some direction (smallest curvature {smallest:.1g}): some classes are separable, or so nearly "
            f"that float64 cannot tell, and it has no minimiser. {_ADVICE}"
        )


def _cross_entropy_value(features: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    return float(-log_softmax(features @ weights, 1)[np.arange(len(labels)), labels].mean())


def _cross_entropy(features: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Value, gradient (r + 1, C) and Hessian; the shift common to all classes, which does not change the loss, gets curvature 1."""
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


def _factored_cross_entropy(features: np.ndarray, labels: np.ndarray, weights: np.ndarray, max_rank: int) -> np.ndarray:
    """A local minimum over kernels U V of rank ``max_rank``; the start is the truncated unconstrained minimiser ``weights``."""
    targets = _one_hot(labels, weights.shape[1])
    left, singular, right = np.linalg.svd(weights[:-1], full_matrices=False)
    root = np.sqrt(singular[:max_rank])
    factors = [left[:, :max_rank] * root, root[:, None] * right[:max_rank], weights[-1]]
    ends = np.cumsum([f.size for f in factors])[:-1]

    def unpack(flat: np.ndarray) -> list[np.ndarray]:
        return [part.reshape(f.shape) for part, f in zip(np.split(flat, ends), factors, strict=True)]

    def value_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        u, v, b = unpack(flat)
        logits = features[:, :-1] @ (u @ v) + b
        error = (np.exp(log_softmax(logits, 1)) - targets) / len(features)
        outer = features[:, :-1].T @ error
        value = _cross_entropy_value(features, labels, np.vstack([u @ v, b]))
        return value, np.concatenate([(outer @ v.T).ravel(), (u.T @ outer).ravel(), error.sum(0)])

    start = np.concatenate([f.ravel() for f in factors])
    options = {"maxiter": 5000, "gtol": 1e-10, "ftol": 0.0, "maxfun": 50_000, "maxcor": 50}
    u, v, b = unpack(scipy.optimize.minimize(value_and_gradient, start, jac=True, method="L-BFGS-B", options=options).x)
    return np.vstack([u @ v, b])
