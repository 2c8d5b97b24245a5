"""Kernel regression of sets whose kernel is too large to form: conjugate gradients on streamed products.

(K + ridge mean(diag K) I) coefficients = targets is solved by products with the (N C, N C) kernel alone (`jaxbp.ntk.streaming`), so that
10^5 examples cost one gradient and one forward-mode pass an iteration, and memory for one chunk. A kernel's spectrum falls fast, so a
Nystrom preconditioner of a few dozen products often saves more iterations than it costs where the ridge is small; `Regression` tells both
numbers.

>>> import jax.numpy as jnp, numpy as np
>>> from jaxbp.ntk import iterative
>>> def apply_fn(params, inputs):
...     return inputs @ params
>>> result = iterative.kernel_regression(apply_fn, jnp.ones((2, 1)), 2 * np.eye(2), np.array([[1.0], [3.0]]), np.ones((1, 2)))
>>> result.test.round(5).tolist(), result.converged
([[2.0]], True)
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, PRNGKeyArray, PyTree, Shaped

from jaxbp import checks
from jaxbp.linalg import conjugate_gradients
from jaxbp.ntk._blocks import ApplyFn
from jaxbp.ntk.empirical import empirical_ntk
from jaxbp.ntk.streaming import stream_of


class Regression(NamedTuple):
    """Predictions of kernel regression, and how well its system was solved.

    Attributes:
      test: (M, C) predictions, float64.
      coefficients: (N, C), (K + shift I)^-1 targets, float64.
      shift: ridge times the mean of the kernel's diagonal.
      residual: ||targets - (K + shift I) coefficients|| / ||targets||, by one more product.
      converged: whether that is at most twice ``rtol``.
      num_iterations: of conjugate gradients.
      num_products: products with the kernel in all: of the preconditioner, the iterations and the residual.
    """

    test: Float[np.ndarray, "M C"]
    coefficients: Float[np.ndarray, "N C"]
    shift: float
    residual: float
    converged: bool
    num_iterations: int
    num_products: int


def kernel_regression(
    apply_fn: ApplyFn,
    params: PyTree,
    x_train: PyTree[Shaped[np.ndarray, "N ..."]],
    targets: Float[ArrayLike, "N C"],
    x_test: PyTree[Shaped[np.ndarray, "M ..."]],
    *,
    ridge: float = 0.0,
    state: PyTree = None,
    rank: int = 0,
    key: PRNGKeyArray | None = None,
    rtol: float = 1e-5,
    max_iterations: int = 500,
    chunk_size: int = 256,
    devices: Sequence[Any] | None = None,
) -> Regression:
    """Predictions K_test,train (K + ridge mean(diag K) I)^-1 targets, as `jaxbp.ntk.regression.kernel_regression`, without a kernel.

    In float32 products carry errors near 1e-6, so that a residual below about 1e-6 times the condition number of K + shift I cannot be
    reached: ``converged`` tells. A ridge bounds that number.

    Args:
      apply_fn, params, state, chunk_size, devices: as in `streamed_product`.
      x_train, x_test: examples on the host.
      targets: (N, C).
      ridge: relative to the mean of the kernel's diagonal. In float32 less than about 1e-7 N C is lost in the rounding of the products,
        which may then make the system indefinite: the iteration wanders off, and the residual exceeds 1.
      rank: products spent on the Nystrom preconditioner, which holds 2 ``rank`` vectors (N, C) of float64; 0 for none.
      key: of the preconditioner's vectors.
      rtol: of the residual, relative to the targets.
      max_iterations: largest number of iterations.

    Raises:
      BatchCouplingError: outputs of an example depend on other examples.
      ValueError: arguments that do not fit one another.
    """
    ridge = checks.number(ridge, "ridge", least=0, known=True)
    rtol = checks.number(rtol, "rtol", positive=True, known=True)
    rank, max_iterations = checks.count(rank, "rank", least=0), checks.count(max_iterations, "max_iterations")
    train, test = (stream_of(apply_fn, params, state, x, chunk_size, devices) for x in (x_train, x_test))
    shape = (train.num_examples, train.outputs.shape[1])
    targets = checks.host_values(targets, "targets", shape=shape, finite=True)
    products = 0

    def product(vector: np.ndarray) -> np.ndarray:
        nonlocal products
        products += 1
        return train.push(train.pull(vector))

    shift = ridge * _mean_diagonal(train) if ridge else 0.0
    precondition_fn = conjugate_gradients.nystrom(product, shape, rank, checks.prng_key(key), shift=shift) if rank else None

    def system(vector: np.ndarray) -> np.ndarray:
        return product(vector) + shift * vector

    scale = float(np.linalg.norm(targets)) or 1.0
    solved = conjugate_gradients.solve(
        system, targets, tolerance=rtol * scale, max_products=max_iterations, precondition_fn=precondition_fn
    )
    residual = float(np.linalg.norm(targets - system(solved.solution))) / scale
    predictions = test.push(train.pull(solved.solution)).astype(np.float64)
    return Regression(predictions, solved.solution, shift, residual, residual <= 2 * rtol, solved.num_products, products)


def _mean_diagonal(train: Any) -> float:
    """The mean of the kernel's diagonal over examples and outputs, chunk by chunk."""

    def traces(x: Any) -> jax.Array:
        return empirical_ntk(train.apply_fn, train.params, x, state=train.state, logits="trace", pairs="same")

    return float(train.map(traces).astype(np.float64).mean()) / train.outputs.shape[1]
