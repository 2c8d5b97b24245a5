"""Kernel regression and its evidence, gradient flow in function space, and linearised networks.

While its kernel is constant, a network trained on squared error follows a linear differential equation in its outputs, with a
closed solution at any time; the limit of infinite time is kernel regression (Jacot et al., NeurIPS 2018; Lee et al.,
NeurIPS 2019, arXiv 1902.06720). The regression is that of neural-tangents. Finite times are solved here, because the closed form of
neural-tangents divides by eigenvalues that may be 0. Everything runs eagerly, in float64 whatever
the session's precision (a kernel's condition number easily exceeds 1e7), and results are NumPy arrays.

Kernels are (N, N), one for all outputs, with targets (N, C), or (N, N, C, C) as `empirical_ntk` returns them.

>>> import numpy as np
>>> from jaxbp.ntk import regression
>>> targets = regression.centred_one_hot(np.array([0, 1]), 2)
>>> kernel = np.array([[4.0, 0.0], [0.0, 4.0]])
>>> regression.kernel_regression(kernel, np.array([[1.0, 0.0]]), targets).tolist()
[[0.125, -0.125]]
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Array, Float, Int, PyTree
from numpy.typing import ArrayLike

from jaxbp import checks, stats
from jaxbp.ntk import compat
from jaxbp.ntk._blocks import ApplyFn
from jaxbp.ops import dtypes


class Outputs(NamedTuple):
    """Outputs, with a leading axis (T,) for T times.

    Attributes:
      train: (N, C), on training examples.
      test: (M, C), on test examples.
    """

    train: Float[np.ndarray, "*T N C"]
    test: Float[np.ndarray, "*T M C"]


class RidgeChoice(NamedTuple):
    """The result of `choose_ridge`.

    Attributes:
      ridge: the ridge of least validation error; NaN if no error was finite.
      errors: (num_ridges,), the validation errors.
    """

    ridge: float
    errors: Float[np.ndarray, " R"]


def centred_one_hot(labels: Int[jax.typing.ArrayLike, " N"], num_classes: int) -> Float[Array, "N C"]:
    """Targets (N, C) for integer ``labels`` (N,): 1 - 1/C for the class, -1/C for the others, so that rows sum to 0."""
    indices = checks.numbers(labels, "labels")
    return jax.nn.one_hot(checks.labels(indices, num_classes, indices.size), num_classes) - 1 / num_classes


def centred_squared_error(logits: Float[Array, "N C"], labels: Int[Array, " N"]) -> Float[Array, " N"]:
    """Half the squared distance of ``logits`` (N, C) to the `centred_one_hot` ``labels`` (N,); shape (N,)."""
    logits, labels = checks.logits_with_labels(logits, labels)
    return jnp.sum((logits - centred_one_hot(labels, logits.shape[-1])) ** 2, -1) / 2


def kernel_regression(
    k_train_train: ArrayLike, k_test_train: ArrayLike, targets: ArrayLike, *, ridge: float = 0.0
) -> Float[np.ndarray, "M C"]:
    """Predictions (M, C) on test examples: K_test,train (K + ridge mean(diag K) I)^-1 targets, float64.

    Args:
      k_train_train: (N, N) or (N, N, C, C), symmetric.
      k_test_train: (M, N) or (M, N, C, C).
      targets: (N, C).
      ridge: relative to the mean of the kernel's diagonal, so that one grid of ridges serves kernels of any scale. 0
        interpolates the targets.

    Returns:
      (M, C); NaN where K + ridge is not positive definite in float64 and has no Cholesky factor.

    Raises:
      ValueError: shapes that do not fit one another, or a negative ridge.
    """
    kernels, targets, trace_axes = checked_kernels(k_train_train, k_test_train, targets)
    if not ridge >= 0:
        raise ValueError(f"ridge must be at least 0, got {ridge}")
    with dtypes.float64():
        predict_fn = compat.load().predict.gp_inference(
            jnp.asarray(kernels[0]), jnp.asarray(targets), diag_reg=float(ridge), trace_axes=trace_axes
        )
        return np.asarray(predict_fn("ntk", jnp.asarray(kernels[1])))


def choose_ridge(
    k_train_train: ArrayLike,
    k_valid_train: ArrayLike,
    targets: ArrayLike,
    valid_targets: ArrayLike,
    ridges: Sequence[float],
    *,
    error_fn: Callable[[np.ndarray, np.ndarray], float] | None = None,
) -> RidgeChoice:
    """The ridge of a given grid whose `kernel_regression` predicts validation targets best.

    Every ridge of the grid is tried: the grid is the budget of a kernel, and a fair comparison gives each kernel the same grid
    (ridges are relative to the kernel's scale). Of equal errors the larger ridge wins; errors that are not finite lose.

    Args:
      k_train_train, targets: as in `kernel_regression`.
      k_valid_train, valid_targets: (V, N) or (V, N, C, C) kernel and (V, C) targets of validation examples, which are
        in neither the training nor the test set.
      ridges: the grid, not negative.
      error_fn: ``(predictions, valid_targets) -> error``; the smallest wins; default their mean squared difference.
    """
    if not len(ridges):
        raise ValueError("ridges must hold at least one ridge, got none")
    valid_targets = stats.numbers(valid_targets, "valid_targets")
    shape = (np.shape(k_valid_train)[0], *np.shape(targets)[1:])
    if valid_targets.shape != shape:
        raise ValueError(f"valid_targets must be (V, C) = {shape}, got {valid_targets.shape}")
    error_fn = error_fn or _mean_squared_error
    predictions = [kernel_regression(k_train_train, k_valid_train, targets, ridge=ridge) for ridge in ridges]
    errors = np.array([float(error_fn(p, valid_targets)) for p in predictions])
    ranks = [(error, -ridge) for error, ridge in zip(errors, ridges, strict=True) if math.isfinite(error)]
    return RidgeChoice(float(-min(ranks)[1]) if ranks else math.nan, errors)


def log_evidence(k_train_train: ArrayLike, targets: ArrayLike, ridges: ArrayLike, *, best_scale: bool = False) -> Float[np.ndarray, " R"]:
    """The log marginal likelihood of the targets under the Gaussian process of the kernel with noise, for each ridge: (R,), natural.

    log N(targets; 0, K + ridge mean(diag K) I), of all C outputs, which are independent unless the kernel is (N, N, C, C) (Rasmussen and
    Williams, Gaussian Processes for Machine Learning, 2006, eq. 2.30); divide by N for the evidence per example. Densities can exceed 1.
    One eigendecomposition serves all ridges; the best one chooses the noise's variance without validation data.

    Args:
      k_train_train, targets: as in `kernel_regression`.
      ridges: (R,), at least 0, relative to the mean of the kernel's diagonal.
      best_scale: multiply kernel and noise by the number that maximises the evidence, y^T (K + ridge)^-1 y / (N C), for each ridge, so that
        kernels of any scale are compared by their shape. `kernel_regression` predicts the same at any scale.

    Returns:
      (R,); NaN where K + ridge is not positive definite in float64 or not finite, infinite with ``best_scale`` if all targets are 0.

    Raises:
      ValueError: shapes that do not fit one another, or negative ridges.
    """
    (kernel, _), targets, _ = checked_kernels(k_train_train, k_train_train, targets)
    ridges = checks.host_values(ridges, "ridges", shape=(None,), finite=True)
    if not ridges.size or ridges.min() < 0:
        raise ValueError(f"ridges must be at least 0, one or more of them, got {ridges.tolist()}")
    dense = flat_kernel(kernel)
    outputs = targets.reshape(len(dense), -1)  # (N, C), or (N C, 1) of a kernel between outputs
    values, vectors = _eigh(dense)
    variances = values + ridges[:, None] * np.diag(dense).mean()
    definite = variances[:, 0] > len(dense) * np.finfo(np.float64).eps * variances[:, -1]
    variances = np.where(definite[:, None], variances, np.nan)
    distance = np.sum(np.sum((vectors.T @ outputs) ** 2, 1) / variances, 1)  # y^T (K + ridge)^-1 y
    log_determinant = outputs.shape[1] * np.sum(np.log(variances), 1)
    if best_scale:
        with np.errstate(divide="ignore"):
            log_determinant = log_determinant + targets.size * np.log(distance / targets.size)
        distance = np.where(definite, targets.size, np.nan)
    return -(distance + log_determinant + targets.size * math.log(2 * math.pi)) / 2


def mean_prediction(
    k_train_train: ArrayLike,
    k_test_train: ArrayLike,
    targets: ArrayLike,
    outputs: tuple[ArrayLike, ArrayLike],
    time: ArrayLike | None = None,
) -> Outputs:
    """Outputs at ``time`` of gradient flow on the mean over examples of half the squared distance to the targets.

    df/dt = -K (f_train - targets) / N. Time is learning rate times steps of plain gradient descent on the loss of
    `training.train` with `centred_squared_error` or `losses.squared_error`, up to terms of the order of the
    learning rate. For an ensemble of wide networks, ``outputs`` of 0 give the mean of the ensemble.

    Args:
      k_train_train, k_test_train, targets: as in `kernel_regression`.
      outputs: at time 0, on training (N, C) and test examples (M, C).
      time: a number, (T,) numbers, or None for infinite time, by a linear solve as in `kernel_regression`. The training
        outputs are then the targets, even if a singular kernel could not reach them.

    Returns:
      Outputs (N, C) and (M, C), or (T, N, C) and (T, M, C); float64. Components outside the range of a singular kernel keep
      their initial values, except for infinite time, where the test outputs are NaN if the kernel is not positive definite. All
      are NaN for a kernel that is not finite, but the training outputs at infinite time.

    Raises:
      ValueError: shapes that do not fit one another, or a negative time.
    """
    kernels, targets, _ = checked_kernels(k_train_train, k_test_train, targets)
    train, test = checked_outputs(outputs, kernels, targets)
    if time is None:
        return Outputs(targets, test + kernel_regression(*kernels, targets - train))
    times = checked_times(time)
    changes = _changes(flat_kernel(kernels[0]), flat_kernel(kernels[1]), targets - train, np.atleast_1d(times))
    train, test = (out + np.reshape(change, (*times.shape, *out.shape)) for out, change in zip((train, test), changes, strict=True))
    return Outputs(train, test)


def _changes(k_train: np.ndarray, k_test: np.ndarray, residual: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The changes of training and test outputs at ``times`` (T,), for an initial ``residual`` (N, C).

    Along an eigenvector of K / N with eigenvalue l, the kernel's columns have weights (1 - exp(-l t)) / l, or t where l is 0.
    """
    rates, vectors = _eigh(k_train / len(residual))
    grown = times[:, None] * scipy.special.exprel(-rates * times[:, None])
    weights = grown[:, :, None] * (vectors.T @ residual.reshape(len(k_train), -1))
    with np.errstate(invalid="ignore"):  # an infinite kernel times NaN
        return k_train @ (vectors @ weights) / len(residual), k_test @ (vectors @ weights) / len(residual)


def _eigh(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (n,), ascending, and vectors (n, n) of a symmetric matrix; NaN for one that is not finite.

    LAPACK gives such a matrix an error, NaN or finite values, as its size and the order of its operations have it.
    """
    if not np.isfinite(matrix).all():
        return np.full(len(matrix), np.nan), np.full(matrix.shape, np.nan)
    values, vectors = np.linalg.eigh(matrix)
    return values, vectors


def flat_kernel(kernel: np.ndarray) -> np.ndarray:
    """(N, M, C, C) as (N C, M C)."""
    if kernel.ndim == 2:
        return kernel
    n, m, c = kernel.shape[:3]
    return kernel.transpose(0, 2, 1, 3).reshape(n * c, m * c)


def linearised(apply_fn: ApplyFn, params: PyTree) -> ApplyFn:
    """The first-order Taylor expansion of a network f around ``params``: f(x; params) + J(x) (new_params - params).

    The result is a function ``(new_params, inputs)`` or ``(new_params, inputs, state)`` like ``apply_fn``, which must have
    forward mode; each call is one `jax.jvp`. Its tangent kernel is that of f at ``params``, at all parameters.
    `training.train` takes ``models.from_functions(linear_fn)``, starting at ``params``; with stored batch statistics as the
    state, give ``update=lambda p, x, s: (linear_fn(p, x, s), s)``, which keeps them constant.
    """

    def linear_fn(new_params: PyTree, inputs: jax.Array, *state: Any) -> jax.Array:
        step = jax.tree.map(jnp.subtract, new_params, params)
        outputs, change = jax.jvp(lambda p: apply_fn(p, inputs, *state), (params,), (step,))
        return outputs + change

    return linear_fn


def checked_outputs(outputs: tuple[ArrayLike, ArrayLike], kernels: tuple[np.ndarray, np.ndarray], targets: np.ndarray) -> Outputs:
    """Outputs on training (N, C) and test examples (M, C), float64.

    Raises:
      ValueError: other shapes.
    """
    if not isinstance(outputs, tuple | list) or len(outputs) != 2:
        raise ValueError(f"outputs must be a pair, on training and on test examples, got {type(outputs).__name__}")
    train, test = (checks.host_values(out, f"outputs on {name} examples") for out, name in zip(outputs, ("training", "test"), strict=True))
    expected = (len(kernels[1]), targets.shape[1])
    if train.shape != targets.shape or test.shape != expected:
        raise ValueError(f"outputs must be {targets.shape} and {expected}, got {train.shape} and {test.shape}")
    return Outputs(train, test)


def checked_times(time: ArrayLike) -> np.ndarray:
    """A number or (T,) numbers, float64.

    Raises:
      ValueError: other shapes, or times that are negative or not finite.
    """
    times = checks.host_values(time, "time")
    if times.ndim > 1 or not np.all((times >= 0) & np.isfinite(times)):
        raise ValueError(f"time must be None, a number or (T,), finite and not negative, got {time!r}")
    return times


def _mean_squared_error(predictions: np.ndarray, targets: np.ndarray) -> float:
    return float(np.mean((predictions - targets) ** 2))


def checked_kernels(
    k_train_train: ArrayLike, k_test_train: ArrayLike, targets: ArrayLike
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, tuple[int, ...]]:
    """(kernels, targets, trace_axes) in float64; trace_axes is () for kernels with logits, else (-1,).

    Raises:
      ValueError: shapes that do not fit one another.
    """
    kernels = stats.numbers(k_train_train, "k_train_train"), stats.numbers(k_test_train, "k_test_train")
    targets = stats.numbers(targets, "targets")
    if targets.ndim != 2:
        raise ValueError(f"targets must be (N, C), got shape {targets.shape}")
    num_examples, num_outputs = targets.shape
    logits = (num_outputs, num_outputs) if kernels[0].ndim == 4 else ()
    expected = (num_examples, num_examples, *logits), (*kernels[1].shape[:1], num_examples, *logits)
    for name, kernel, shape in zip(("k_train_train", "k_test_train"), kernels, expected, strict=True):
        if kernel.shape != shape:
            raise ValueError(f"{name} must be {shape} for targets {targets.shape}, got {kernel.shape}")
    return kernels, targets, () if logits else (-1,)
