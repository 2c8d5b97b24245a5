"""Gradient flow of a linearised network on any loss, in function space.

A network with a constant kernel follows df/dt = -K g(f) / N under gradient flow on a mean loss with gradients g in the logits (Lee et
al., NeurIPS 2019, arXiv 1902.06720, section 2.2). With squared error the solution is closed (`jaxbp.ntk.regression.mean_prediction`);
with softmax cross-entropy it is not, and is integrated here. The state is a(t) = -(integral of g) / N, one number for each training
output: f_train = f_train(0) + K a and f_test = f_test(0) + K_test a, so that test examples cost nothing. The equation is stiff, as a
kernel's eigenvalues span many orders: Radau's implicit method with the exact Jacobian, in float64 on the host (Hairer and Wanner 1996,
section IV.8).

>>> import numpy as np
>>> from jaxbp.ntk import flow
>>> start = np.zeros((1, 2)), np.zeros((1, 2))
>>> outputs = flow.gradient_flow(np.eye(1), np.eye(1), np.array([[1.0, 0.0]]), start, [0.0, 100.0])
>>> outputs.train.round(2).tolist()  # u of (u, -u) solves u + (exp(2 u) - 1) / 2 = time
[[[0.0, 0.0]], [[2.64, -2.64]]]
"""

import numpy as np
import scipy.integrate
import scipy.special
from numpy.typing import ArrayLike

from jaxbp import checks
from jaxbp.losses import LOSSES
from jaxbp.ntk.regression import Outputs, checked_kernels, checked_outputs, checked_times, flat_kernel


def gradient_flow(
    k_train_train: ArrayLike,
    k_test_train: ArrayLike,
    targets: ArrayLike,
    outputs: tuple[ArrayLike, ArrayLike],
    time: ArrayLike,
    *,
    loss: str = "cross_entropy",
    rtol: float = 1e-7,
) -> Outputs:
    """Outputs at ``time`` of gradient flow on the mean loss of a network with these kernels, constant in time.

    Time is learning rate times steps of plain gradient descent on the linearised network, up to terms of the order of the learning rate.
    Each factorisation costs (N C)^3 operations, for some tens of them; memory is (N C)^2.

    Args:
      k_train_train, k_test_train: (N, N) and (M, N), one for all outputs, or (N, N, C, C) and (M, N, C, C).
      targets: (N, C); for cross-entropy class probabilities, such as one-hot rows.
      outputs: at time 0, on training (N, C) and test examples (M, C).
      time: a number or (T,) numbers.
      loss: "cross_entropy", of the softmax of the outputs; or "squared_error", half the squared distance.
      rtol: tolerance of the integrator, relative to the size of the outputs.

    Returns:
      Outputs (N, C) and (M, C), or (T, N, C) and (T, M, C), float64; NaN at times that the integrator did not reach.

    Raises:
      ValueError: shapes that do not fit one another, an unknown loss, targets that are no probabilities.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
    kernels, targets, _ = checked_kernels(k_train_train, k_test_train, targets)
    rtol = checks.number(rtol, "rtol", positive=True, known=True)
    start, times = checked_outputs(outputs, kernels, targets), checked_times(time)
    if not times.size:
        raise ValueError("time must hold at least one time, got none")
    if not all(np.isfinite(array).all() for array in (*kernels, targets, *start)):
        raise ValueError("kernels, targets and outputs must be finite numbers, got NaN or infinite ones: the integrator cannot start")
    if loss == "cross_entropy" and not (np.all(targets >= 0) and np.allclose(targets.sum(1), 1)):
        raise ValueError("targets must be class probabilities (N, C), rows that sum to 1, for cross-entropy: take one-hot labels")
    num_examples, num_outputs = targets.shape
    train, test = (flat_kernel(kernel if kernel.ndim == 4 else _for_each_output(kernel, num_outputs)) for kernel in kernels)

    def logits(a: np.ndarray) -> np.ndarray:
        return start.train + (train @ a).reshape(targets.shape)

    def velocity(_: float, a: np.ndarray) -> np.ndarray:
        f = logits(a)
        predicted = scipy.special.softmax(f, -1) if loss == "cross_entropy" else f
        return (targets - predicted).reshape(-1) / num_examples

    def jacobian(_: float, a: np.ndarray) -> np.ndarray:
        if loss == "squared_error":
            return -train / num_examples
        p = scipy.special.softmax(logits(a), -1)
        rows = train.reshape(num_examples, num_outputs, -1)
        curved = p[:, :, None] * (rows - np.einsum("nc,nck->nk", p, rows)[:, None])  # (diag(p) - p p^T) K
        return -curved.reshape(train.shape) / num_examples

    distinct, places = np.unique(times, return_inverse=True)
    size = np.abs(train).sum(1).max() or 1.0
    atol = rtol * (1 + np.abs(start.train).max()) / size  # of a; outputs are K a
    steps = {"method": "Radau", "jac": jacobian, "rtol": rtol, "atol": atol, "t_eval": distinct}
    solved = scipy.integrate.solve_ivp(velocity, (0.0, distinct[-1]), np.zeros(targets.size), **steps)
    a = np.full((len(distinct), targets.size), np.nan)
    a[: solved.y.shape[1]] = solved.y.T
    a = a[places.reshape(-1)]
    return Outputs(*(out + (a @ kernel.T).reshape(*times.shape, *out.shape) for out, kernel in zip(start, (train, test), strict=True)))


def _for_each_output(kernel: np.ndarray, num_outputs: int) -> np.ndarray:
    """(N, M) as (N, M, C, C), without coupling of outputs."""
    return kernel[:, :, None, None] * np.eye(num_outputs)
