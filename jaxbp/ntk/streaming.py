"""Products with the kernel of sets that stay on the host: device memory is that of one chunk, whatever the number of examples.

Theta(x1, x2) v = J1 (J2^T v), as in `jaxbp.ntk.products`, but a chunk of examples is sent at a time: first the gradients of all
chunks of x2 are added up, then the sum is pushed forward through the chunks of x1. Sets may be NumPy's memory maps. With several devices
each takes an equal share of a chunk. Vectors and products are NumPy arrays on the host.

>>> import jax.numpy as jnp, numpy as np
>>> from jaxbp import ntk
>>> def apply_fn(params, inputs):
...     return inputs @ params
>>> matvec = ntk.streamed_product(apply_fn, jnp.ones((3, 2)), np.eye(3, dtype=np.float32), chunk_size=2)  # the kernel is the identity
>>> matvec(np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])).tolist()
[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, PyTree, Shaped

from jaxbp import checks
from jaxbp.ntk._blocks import ApplyFn, num_examples, outputs
from jaxbp.ntk.empirical import output_type, refuse_coupling

_IN_FLIGHT = 2  # chunks on their way to the devices: JAX would send all of them ahead of the computation


def streamed_product(
    apply_fn: ApplyFn,
    params: PyTree,
    x1: PyTree[Shaped[np.ndarray, "N ..."]],
    x2: PyTree[Shaped[np.ndarray, "M ..."]] | None = None,
    *,
    state: PyTree = None,
    chunk_size: int = 256,
    devices: Sequence[Any] | None = None,
) -> Callable[[Float[np.ndarray, "M C"]], Float[np.ndarray, "N C"]]:
    """``matvec``: v (M, C) -> (N, C), sum over j, l of Theta[i, j, k, l] v[j, l], in the type of the outputs.

    Args:
      apply_fn, params, state: as in `ntk_vector_product`; forward mode is needed.
      x1, x2: examples on the host, an array or a pytree of arrays with one leading axis; ``x2`` is by default ``x1``.
      chunk_size: examples on the devices at a time, rounded up to a multiple of their number.
      devices: share each chunk; default that of the parameters.

    Raises:
      BatchCouplingError: outputs of an example depend on other examples.
      ValueError: as `ntk_vector_product`; values that only a run can know.
    """
    stream = stream_of(apply_fn, params, state, x1, chunk_size, devices)
    second = x1 if x2 is None else x2
    columns = stream if x2 is None else stream_of(apply_fn, params, state, second, chunk_size, devices)
    shape = (columns.num_examples, columns.outputs.shape[1])

    def matvec(vector: np.ndarray) -> np.ndarray:
        vector = checks.host_array(vector, "the vector")
        if vector.shape != shape:
            raise ValueError(f"the vector must be (M, C) = {shape}, got {vector.shape}")
        return stream.push(columns.pull(vector))

    return matvec


class Stream(NamedTuple):
    """A function, its parameters on their devices, and a set of examples on the host.

    Attributes:
      apply_fn, params, state: the function and its arguments.
      x: the examples.
      chunk_size: examples sent at a time.
      split: the sharding of a chunk.
      outputs: shape and dtype of the outputs of one chunk.
    """

    apply_fn: ApplyFn
    params: Any
    state: Any
    x: Any
    chunk_size: int
    split: Any
    outputs: jax.ShapeDtypeStruct

    @property
    def num_examples(self) -> int:
        """N."""
        return num_examples(self.x)

    def chunks(self, *arrays: np.ndarray) -> Iterator[tuple]:
        """(examples, entries of further arrays (N, ...)) of each chunk; the last one is padded with its last example and zeros."""
        for start in range(0, self.num_examples, self.chunk_size):
            items = slice(start, min(start + self.chunk_size, self.num_examples))
            short = self.chunk_size - (items.stop - start)
            x = jax.tree.map(lambda leaf, i=items, n=short: _extended(np.asarray(leaf[i]), n, "edge"), self.x)
            rows = tuple(_extended(np.asarray(array[items], self.outputs.dtype), short, "constant") for array in arrays)
            yield jax.device_put((x, *rows), self.split)

    def pull(self, vector: np.ndarray) -> Any:
        """J^T vector: the gradient of all examples' outputs (N, C), weighted."""
        total = jax.tree.map(jnp.zeros_like, self.params)
        waiting: list[Any] = []
        for x, weights in self.chunks(vector):
            total = _pull(self.apply_fn, self.params, x, self.state, weights, total)
            waiting = _wait([*waiting, total])
        return total

    def push(self, gradient: Any) -> np.ndarray:
        """J gradient, (N, C)."""
        waiting: list[jax.Array] = []
        rows: list[np.ndarray] = []
        for (x,) in self.chunks():
            waiting.append(_push(self.apply_fn, self.params, x, self.state, gradient))
            if len(waiting) > _IN_FLIGHT:
                rows.append(np.asarray(waiting.pop(0)))
        return np.concatenate([*rows, *map(np.asarray, waiting)])[: self.num_examples]

    def map(self, fn: Callable) -> np.ndarray:
        """``fn(examples)`` (n, ...) of all chunks, compiled by ``fn`` itself."""
        return np.concatenate([np.asarray(fn(x)) for (x,) in self.chunks()])[: self.num_examples]


def stream_of(apply_fn: ApplyFn, params: Any, state: Any, x: Any, chunk_size: int, devices: Sequence[Any] | None) -> Stream:
    """The stream of some examples, its arguments checked as `streamed_product` says."""
    checks.refuse_traced("params and state", *jax.tree.leaves((params, state)))
    params, state = checks.parameters(params), checks.as_arrays(state)
    x = checks.example_tree(x, "examples", on_host=True)
    chunk_size = min(checks.count(chunk_size, "chunk_size"), num_examples(x))
    whole = split = jax.tree.leaves(params)[0].sharding
    if devices:
        mesh = Mesh(np.array(devices), ("examples",), axis_types=(AxisType.Auto,))
        whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("examples"))
        chunk_size = -(-chunk_size // len(devices)) * len(devices)
    first = jax.tree.map(lambda leaf: jnp.asarray(_extended(np.asarray(leaf[:chunk_size]), chunk_size - len(leaf[:chunk_size]), "edge")), x)
    out = output_type(apply_fn, params, first, state)
    refuse_coupling(apply_fn, params, [jax.tree.map(lambda leaf: leaf[:2], first)], state)
    params, state = jax.device_put((params, state), whole)
    return Stream(apply_fn, params, state, x, chunk_size, split, out)


def _extended(array: np.ndarray, short: int, mode: Any) -> np.ndarray:
    return np.pad(array, [(0, short)] + [(0, 0)] * (array.ndim - 1), mode) if short else array


def _wait(waiting: list) -> list:
    if len(waiting) > _IN_FLIGHT:
        jax.block_until_ready(waiting.pop(0))
    return waiting


# Matrix products at full precision: the reduced precision of accelerators would make the kernel unsymmetric.


@partial(jax.jit, static_argnums=0)
@jax.default_matmul_precision("highest")
def _pull(apply_fn: ApplyFn, params: Any, x: Any, state: Any, weights: jax.Array, total: Any) -> Any:
    _, pullback = jax.vjp(lambda p: outputs(apply_fn, p, x, state), params)
    return jax.tree.map(jnp.add, total, pullback(weights)[0])


@partial(jax.jit, static_argnums=0)
@jax.default_matmul_precision("highest")
def _push(apply_fn: ApplyFn, params: Any, x: Any, state: Any, gradient: Any) -> jax.Array:
    return jax.jvp(lambda p: outputs(apply_fn, p, x, state), (params,), (gradient,))[1]
