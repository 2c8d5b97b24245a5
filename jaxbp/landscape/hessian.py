"""Curvature of any loss at a point: the Hessian as a function that multiplies, without forming the matrix.

A Hessian-vector product is the derivative of the gradient along a vector. The quantities that do not depend on the vector (activations,
back-propagated errors, ReLU masks) are equal for all products at one point. The operator computes them once and keeps them; each product
then costs about two thirds of a product computed from scratch. The kept arrays grow with the number of examples; ``chunk_size`` bounds
their memory: chunks are then recomputed one after another and nothing is kept. Matrix products are traced at full precision: with the
reduced precision that accelerators prefer for float32, the operator would be unsymmetric in the third digit.

>>> import jax.numpy as jnp
>>> from jaxbp import landscape
>>> def loss_fn(params, x):  # per example
...     return 0.5 * (x @ params["w"]) ** 2
>>> operator = landscape.hessian(loss_fn, {"w": jnp.ones(2)}, (jnp.array([[1.0, 0.0], [0.0, 2.0]]),))
>>> operator.matvec(jnp.array([1.0, 1.0])).tolist()
[0.5, 2.0]
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse.linalg
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, PyTree, Shaped

from jaxbp import checks

Data = tuple[Shaped[jax.Array | np.ndarray, "n ..."], ...]
LossFn = Callable[..., jax.Array]  # (params, *data) -> (N,) losses, one for each example


class Hessian(NamedTuple):
    """The mean loss around one point, with P parameters flattened into one vector.

    Attributes:
      loss: a scalar.
      gradient: (P,).
      position: (P,) parameters.
      matvec: from (P,) to (P,), the product with the Hessian.
      unravel: from (P,) to the parameters' pytree.
    """

    loss: Float[jax.Array, ""]
    gradient: Float[jax.Array, " p"]
    position: Float[jax.Array, " p"]
    matvec: Callable[[jax.Array], jax.Array]
    unravel: Callable[[jax.Array], PyTree]

    @property
    def dimension(self) -> int:
        """Number of parameters P."""
        return self.position.size

    def as_scipy(self) -> scipy.sparse.linalg.LinearOperator:
        """The operator for SciPy's solvers; vectors go to the device and back at each product."""
        dtype = self.position.dtype

        def multiply(vector: np.ndarray) -> np.ndarray:
            return np.asarray(self.matvec(jnp.asarray(vector.reshape(self.dimension), dtype)))

        return scipy.sparse.linalg.LinearOperator((self.dimension, self.dimension), matvec=multiply, rmatvec=multiply, dtype=dtype)

    def as_lineax(self) -> Any:
        """The operator for lineax's solvers, tagged symmetric.

        Raises:
          ImportError: lineax is not installed.
        """
        try:
            import lineax
        except ImportError as error:
            raise ImportError(f'lineax\'s operators need the package lineax ({error}): pip install "jaxbp[solvers]"') from error

        structure = jax.ShapeDtypeStruct(self.position.shape, self.position.dtype)
        return lineax.FunctionLinearOperator(self.matvec, structure, lineax.symmetric_tag)


def hessian(
    loss_fn: LossFn,
    params: PyTree,
    data: Data,
    *,
    chunk_size: int | None = None,
    mesh: Mesh | None = None,
) -> Hessian:
    """The Hessian of the mean of ``loss_fn(params, *data)`` over all N examples.

    Args:
      loss_fn: per-example losses (N,). Compiled once for each function object: pass the same object again to reuse the program. With a
        ``chunk_size`` the loss of an example must not depend on other examples (no batch statistics), or the mean over chunks differs
        from the mean.
      params: pytree of floating-point arrays; their dtype is the dtype of every product.
      data: a tuple of arrays with the N examples on their leading axis. Other arguments of the loss belong into a closure.
      chunk_size: number of examples whose activations are held at a time; None holds all and reuses them for every product.
      mesh: devices over which the examples are sharded (first mesh axis); N must be a multiple of their number, without ``chunk_size``.

    Raises:
      BatchCouplingError: a ``chunk_size`` for losses that depend on the other examples of the batch (not checked on traced values).
      ValueError: parameters that are no real floating-point arrays, data that are no tuple of arrays of one length, losses that are not
        (N,), a chunk size below 1, or a mesh that does not divide N; by ``matvec``, an argument that is no vector (P,).
    """
    params, data = checked_arguments(loss_fn, params, data, chunk_size)
    num_examples = data[0].shape[0]
    if mesh is not None:
        params, data = shard(params, data, chunk_size, mesh)
    position, unravel = ravel_pytree(params)
    if chunk_size is None or chunk_size >= num_examples:
        loss, gradient, pushforward = _linearise(loss_fn, params, data)
        matvec = partial(multiply, pushforward, product_fn=apply_linear, dimension=position.size)
        return Hessian(loss, gradient, position, matvec, unravel)
    loss, gradient = _chunked_gradient(loss_fn, chunk_size, params, data)
    matvec = partial(multiply, params, data, product_fn=partial(_chunked_product, loss_fn, chunk_size), dimension=position.size)
    return Hessian(loss, gradient, position, matvec, unravel)


def loss_and_gradient(
    loss_fn: LossFn, params: PyTree, data: Data, *, chunk_size: int | None = None
) -> tuple[Float[jax.Array, ""], Float[jax.Array, " p"]]:
    """The mean loss over all examples and its gradient as a flat (P,) vector; arguments as in `hessian`."""
    params, data = checked_arguments(loss_fn, params, data, chunk_size)
    return _chunked_gradient(loss_fn, chunk_size or data[0].shape[0], params, data)


def checked_arguments(loss_fn: LossFn, params: Any, data: Any, chunk_size: int | None) -> tuple[Any, tuple[jax.Array, ...]]:
    """Parameters and data as JAX arrays, with the errors of `hessian`."""
    params = checks.parameters(params)
    if not isinstance(data, tuple | list):
        raise ValueError(f"data must be a tuple of arrays with the examples first, got {type(data).__name__}: write (inputs, labels)")
    if any(np.ndim(array) == 0 for array in data if isinstance(array, int | float | np.generic | np.ndarray | jax.Array)):
        raise ValueError("data must be arrays with the examples first, got a number among them: a number goes into a closure of loss_fn")
    data = tuple(checks.examples(array, f"data[{i}]") for i, array in enumerate(data))
    if len(lengths := {array.shape[0] for array in data}) != 1:
        raise ValueError(f"data must share their leading axis, got lengths {sorted(lengths)}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    if chunk_size is not None and chunk_size < data[0].shape[0]:
        checks.independent_examples(_losses, loss_fn, params, [data], "Use stored statistics, or leave out chunk_size")
    return params, data


@partial(jax.jit, static_argnums=0)
def _losses(loss_fn: LossFn, params: Any, *data: jax.Array) -> jax.Array:
    """The losses (N,), checked for their shape."""
    losses = loss_fn(params, *data)
    if losses.shape != data[0].shape[:1]:
        raise ValueError(f"loss_fn must return one loss an example, shape {data[0].shape[:1]}, got {losses.shape}: do not average")
    return losses


def shard(params: Any, data: Data, chunk_size: int | None, mesh: Mesh) -> tuple:
    """Parameters on every device of the mesh, and the examples split over its first axis, with the errors of `hessian`."""
    num_examples = data[0].shape[0]
    if chunk_size is not None:
        raise ValueError("give chunk_size or mesh, not both: sharding already bounds the memory of each device")
    axis = mesh.axis_names[0]
    if num_examples % mesh.shape[axis]:
        raise ValueError(f"{num_examples} examples do not divide over {mesh.shape[axis]} devices: drop or add some")
    automatic = (AxisType.Auto,) * len(mesh.axis_names)  # explicit axes would need sharding rules in the loss
    mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=automatic)
    replicate, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(axis))
    return jax.device_put(params, replicate), jax.device_put(data, split)


def _total_loss(loss_fn: LossFn, unravel: Callable, data: Data) -> Callable[[jax.Array], jax.Array]:
    """Sum of the losses as a function of the flat parameters."""

    def total(position: jax.Array) -> jax.Array:
        return jnp.sum(_losses(loss_fn, unravel(position), *data))

    return total


@partial(jax.jit, static_argnums=0)
@jax.default_matmul_precision("highest")
def _linearise(loss_fn: LossFn, params: Any, data: Data) -> tuple:
    position, unravel = ravel_pytree(params)
    value_and_grad = jax.value_and_grad(_total_loss(loss_fn, unravel, data))

    def gradient_fn(point: jax.Array) -> tuple[jax.Array, jax.Array]:
        loss, gradient = jax.tree.map(lambda total: total / data[0].shape[0], value_and_grad(point))
        return gradient, loss

    gradient, pushforward, loss = jax.linearize(gradient_fn, position, has_aux=True)
    return loss, gradient, pushforward


def multiply(*arguments: Any, product_fn: Callable[..., jax.Array], dimension: int) -> jax.Array:
    """``product_fn(*arguments)``, of which the last is the vector."""
    vector = arguments[-1]
    if getattr(vector, "shape", None) != (dimension,):
        got = f"shape {vector.shape}" if hasattr(vector, "shape") else type(vector).__name__
        raise ValueError(f"matvec takes a vector ({dimension},), got {got}: make one of a tree by jax.flatten_util.ravel_pytree")
    return product_fn(*arguments)


@jax.jit
def apply_linear(linear_fn: Callable, vector: jax.Array) -> jax.Array:
    """``linear_fn(vector)``, compiled."""
    return linear_fn(vector)


def sum_over_chunks(fn: Callable, chunk_size: int, data: Data) -> Any:
    """Sum of ``fn(chunk)`` over chunks of ``data``; a last, shorter chunk is evaluated separately."""
    num_examples = data[0].shape[0]
    num_full = num_examples // chunk_size
    full = tuple(a[: num_full * chunk_size].reshape(num_full, chunk_size, *a.shape[1:]) for a in data)
    rest = tuple(a[num_full * chunk_size :] for a in data)
    total = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(fn, tuple(a[:1] for a in data)))
    if num_full:
        total, _ = jax.lax.scan(lambda acc, chunk: (jax.tree.map(jnp.add, acc, fn(chunk)), None), total, full)
    if num_examples % chunk_size:
        total = jax.tree.map(jnp.add, total, fn(rest))
    return total


@partial(jax.jit, static_argnums=(0, 1))
@jax.default_matmul_precision("highest")
def _chunked_gradient(loss_fn: LossFn, chunk_size: int, params: Any, data: Data) -> tuple:
    position, unravel = ravel_pytree(params)

    def chunk_sum(chunk: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        return jax.value_and_grad(_total_loss(loss_fn, unravel, chunk))(position)

    return jax.tree.map(lambda total: total / data[0].shape[0], sum_over_chunks(chunk_sum, chunk_size, data))


@partial(jax.jit, static_argnums=(0, 1))
@jax.default_matmul_precision("highest")
def _chunked_product(loss_fn: LossFn, chunk_size: int, params: Any, data: Data, vector: jax.Array) -> jax.Array:
    position, unravel = ravel_pytree(params)

    def chunk_product(chunk: tuple[jax.Array, ...]) -> jax.Array:
        gradient_fn = jax.grad(_total_loss(loss_fn, unravel, chunk))
        return jax.jvp(gradient_fn, (position,), (vector,))[1]

    return sum_over_chunks(chunk_product, chunk_size, data) / data[0].shape[0]
