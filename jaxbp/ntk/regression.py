"""Training in function space: what a network with a fixed tangent kernel learns, and the linearised network itself.

While its kernel stands still, a network trained on squared error follows a linear differential equation in its outputs,
with a closed solution at any time, at the end of which is kernel regression (Jacot et al., NeurIPS 2018; Lee et al.,
NeurIPS 2019, arXiv 1902.06720). The regression is neural-tangents'; the way there is solved here, because its closed form
divides by eigenvalues that may be 0. All is done eagerly, in float64 whatever
the session's precision (a kernel's condition number easily exceeds 1e7), and results are NumPy arrays.

Kernels are (N, N), one for all outputs, with targets (N, C), or (N, N, C, C) as `empirical_ntk` gives them.

>>> import numpy as np
>>> from jaxbp.ntk import regression
>>> targets = regression.centred_one_hot(np.array([0, 1]), 2)
>>> kernel = np.array([[4.0, 0.0], [0.0, 4.0]])
>>> regression.kernel_regression(kernel, np.array([[1.0, 0.0]]), targets).tolist()
[[0.125, -0.125]]
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from numpy.typing import ArrayLike

from jaxbp.ntk import compat
from jaxbp.ntk.blocks import ApplyFn


class Outputs(NamedTuple):
    """Outputs on training (N, C) and test examples (M, C), after a leading axis (T,) for T times."""

    train: np.ndarray
    test: np.ndarray


class RidgeChoice(NamedTuple):
    """The ``ridge`` of least validation error, NaN if none was finite, and the ``errors`` of all that were tried."""

    ridge: float
    errors: np.ndarray


def centred_one_hot(labels: jax.Array, num_classes: int) -> jax.Array:
    """Targets (N, C) for integer ``labels`` (N,): 1 - 1/C for the class, -1/C for the others, so that rows sum to 0."""
    return jax.nn.one_hot(labels, num_classes) - 1 / num_classes


def centred_squared_error(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Half the squared distance of ``logits`` (N, C) to `centred_one_hot` ``labels`` (N,); shape (N,), as a loss is."""
    return jnp.sum((logits - centred_one_hot(labels, logits.shape[-1])) ** 2, -1) / 2


def kernel_regression(k_train_train: ArrayLike, k_test_train: ArrayLike, targets: ArrayLike, *, ridge: float = 0.0) -> np.ndarray:
    """Predictions (M, C) on test examples: K_test,train (K + ridge mean(diag K) I)^-1 targets, float64.

    Args:
      k_train_train: (N, N) or (N, N, C, C), symmetric.
      k_test_train: (M, N) or (M, N, C, C).
      targets: (N, C).
      ridge: relative to the mean of the kernel's diagonal, so that one grid of ridges serves kernels of any scale. 0
        interpolates the targets.

    Returns:
      NaN where K + ridge is not positive definite in float64: then there is no Cholesky factor.

    Raises:
      ValueError: shapes that do not suit one another, or a negative ridge.
    """
    kernels, targets, trace_axes = _checked(k_train_train, k_test_train, targets)
    if not ridge >= 0:
        raise ValueError(f"ridge must be at least 0, got {ridge}")
    with _float64():
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

    The whole grid is tried, always: it is the budget, and kernels are compared fairly when each gets the same grid
    (ridges are relative to the kernel's scale). Of equal errors the larger ridge wins; errors that are not finite lose.

    Args:
      k_train_train, targets: as in `kernel_regression`.
      k_valid_train, valid_targets: (V, N) or (V, N, C, C) kernel and (V, C) targets of validation examples, which are
        in neither the training nor the test set.
      ridges: the grid, not negative.
      error_fn: ``(predictions, valid_targets) -> error``, to be small; default their mean squared difference.
    """
    if not len(ridges):
        raise ValueError("ridges must hold at least one ridge, got none")
    valid_targets = np.asarray(valid_targets, np.float64)
    shape = (np.shape(k_valid_train)[0], *np.shape(targets)[1:])
    if valid_targets.shape != shape:
        raise ValueError(f"valid_targets must be (V, C) = {shape}, got {valid_targets.shape}")
    error_fn = error_fn or _mean_squared_error
    predictions = [kernel_regression(k_train_train, k_valid_train, targets, ridge=ridge) for ridge in ridges]
    errors = np.array([float(error_fn(p, valid_targets)) for p in predictions])
    ranks = [(error, -ridge) for error, ridge in zip(errors, ridges, strict=True) if math.isfinite(error)]
    return RidgeChoice(float(-min(ranks)[1]) if ranks else math.nan, errors)


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
    learning rate. For an ensemble of wide networks ``outputs`` of 0 give the mean, hence the name.

    Args:
      k_train_train, k_test_train, targets: as in `kernel_regression`.
      outputs: at time 0, on training (N, C) and test examples (M, C).
      time: a number, (T,) of them, or None: the end of time, by a linear solve as in `kernel_regression`. The training
        outputs are then the targets, whether or not a singular kernel could reach them.

    Returns:
      Outputs (N, C) and (M, C), or (T, N, C) and (T, M, C); float64. What a singular kernel cannot learn stays as it
      is, except at the end of time, where the test outputs are NaN if the kernel is not positive definite.

    Raises:
      ValueError: shapes that do not suit one another, or a negative time.
    """
    kernels, targets, _ = _checked(k_train_train, k_test_train, targets)
    train, test = (np.asarray(out, np.float64) for out in outputs)
    if train.shape != targets.shape or test.shape != (len(kernels[1]), targets.shape[1]):
        wanted = targets.shape, (len(kernels[1]), targets.shape[1])
        raise ValueError(f"outputs must be {wanted[0]} and {wanted[1]}, got {train.shape} and {test.shape}")
    if time is None:
        return Outputs(targets, test + kernel_regression(*kernels, targets - train))
    times = np.asarray(time, np.float64)
    if times.ndim > 1 or not np.all((times >= 0) & np.isfinite(times)):
        raise ValueError(f"time must be None, a number or (T,), finite and not negative, got {time}")
    moved = _moved(_matrix(kernels[0]), _matrix(kernels[1]), targets - train, np.atleast_1d(times))
    train, test = (out + np.reshape(change, (*times.shape, *out.shape)) for out, change in zip((train, test), moved, strict=True))
    return Outputs(train, test)


def _moved(k_train: np.ndarray, k_test: np.ndarray, residual: np.ndarray, times: np.ndarray) -> Iterator[np.ndarray]:
    """How far training and test outputs have come at ``times`` (T,), towards a ``residual`` (N, C).

    Along an eigenvector of eigenvalue l of K / N the kernel's columns have weights (1 - exp(-l t)) / l, t where l is 0.
    """
    rates, vectors = np.linalg.eigh(k_train / len(residual))
    grown = times[:, None] * scipy.special.exprel(-rates * times[:, None])
    weights = grown[:, :, None] * (vectors.T @ residual.reshape(len(k_train), -1))
    return (kernel @ (vectors @ weights) / len(residual) for kernel in (k_train, k_test))


def _matrix(kernel: np.ndarray) -> np.ndarray:
    """(N, M, C, C) as (N C, M C)."""
    if kernel.ndim == 2:
        return kernel
    n, m, c = kernel.shape[:3]
    return kernel.transpose(0, 2, 1, 3).reshape(n * c, m * c)


def linearised(apply_fn: ApplyFn, params: Any) -> ApplyFn:
    """The network f as its first-order Taylor expansion around ``params``: f(x; params) + J(x) (now - params).

    A function ``(now, inputs)`` or ``(now, inputs, state)`` of the same kind as ``apply_fn``, which must have forward
    mode; one `jax.jvp` each call. Its tangent kernel is that of f at ``params``, everywhere. `training.train` takes
    ``models.from_functions(linear_fn)``, starting at ``params``; with stored batch statistics as the state, give
    ``update=lambda p, x, s: (linear_fn(p, x, s), s)``, which leaves them alone.
    """

    def linear_fn(now: Any, inputs: jax.Array, *state: Any) -> jax.Array:
        step = jax.tree.map(jnp.subtract, now, params)
        outputs, change = jax.jvp(lambda p: apply_fn(p, inputs, *state), (params,), (step,))
        return outputs + change

    return linear_fn


def _mean_squared_error(predictions: np.ndarray, targets: np.ndarray) -> float:
    return float(np.mean((predictions - targets) ** 2))


@contextlib.contextmanager
def _float64() -> Iterator[None]:
    """Double precision, which TPUs do not have, so there on the host."""
    device = jax.devices("cpu")[0] if jax.default_backend() == "tpu" else None
    with jax.enable_x64(True), jax.default_device(device):
        yield


def _checked(
    k_train_train: ArrayLike, k_test_train: ArrayLike, targets: ArrayLike
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, tuple[int, ...]]:
    """(kernels, targets, trace_axes) in float64; trace_axes say whether the logits are in the kernel."""
    kernels = np.asarray(k_train_train, np.float64), np.asarray(k_test_train, np.float64)
    targets = np.asarray(targets, np.float64)
    if targets.ndim != 2:
        raise ValueError(f"targets must be (N, C), got shape {targets.shape}")
    num_examples, num_outputs = targets.shape
    logits = (num_outputs, num_outputs) if kernels[0].ndim == 4 else ()
    wanted = (num_examples, num_examples, *logits), (*kernels[1].shape[:1], num_examples, *logits)
    for name, kernel, shape in zip(("k_train_train", "k_test_train"), kernels, wanted, strict=True):
        if kernel.shape != shape:
            raise ValueError(f"{name} must be {shape} for targets {targets.shape}, got {kernel.shape}")
    return kernels, targets, () if logits else (-1,)
