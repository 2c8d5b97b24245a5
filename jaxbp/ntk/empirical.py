"""The empirical neural tangent kernel of any function, exactly, in bounded memory.

Theta[i, j, k, l] = sum over parameters p of (d f_k(x_i) / d theta_p) (d f_l(x_j) / d theta_p) (Jacot et al., NeurIPS
2018; "Truth or Backpropaganda?", ICLR 2020, section 4). One forward and C backward passes an example give the data and output gradients of
each linear layer (`jaxbp.jaxprs.linear_layers`), from which the layer's share of the kernel follows without its Jacobian.
Parameters with any other use (biases, normalisation, weights used twice) need plain Jacobians.

Examples are evaluated one at a time, so a function that couples them is refused. With ``coupled``, the whole batch counts as one example
with N C outputs, which is the right kernel for batch statistics.

>>> import jax, jax.numpy as jnp
>>> from jaxbp import ntk
>>> def apply_fn(params, inputs):
...     return jnp.tanh(inputs @ params["w"]) @ params["v"]
>>> params = {"w": jnp.ones((3, 4)), "v": jnp.ones((4, 2))}
>>> ntk.empirical_ntk(apply_fn, params, jnp.ones((5, 3))).shape
(5, 5, 2, 2)
"""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, PyTree, Shaped

from jaxbp import checks
from jaxbp.ntk import _contraction
from jaxbp.ntk._blocks import ApplyFn, InPrecision, KernelSpec, compiled_kernel, flow_bytes, num_examples, outputs, sharded_kernel

MEMORY = 2 * 2**30
FAST_COMPILE_OPTIONS = {"xla_backend_optimization_level": 0}
METHODS = _contraction.METHODS

_KEPT_BYTES = 2**14  # of directions that stay on a device from one kernel to the next


class InsufficientMemoryError(ValueError):
    """The smallest block does not fit the memory bound."""


def empirical_ntk(
    apply_fn: ApplyFn,
    params: PyTree,
    x1: PyTree[Shaped[ArrayLike, "N ..."]],
    x2: PyTree[Shaped[ArrayLike, "M ..."]] | None = None,
    *,
    state: PyTree = None,
    logits: str | int = "full",
    pairs: str = "all",
    coupled: bool = False,
    memory: float = MEMORY,
    method: str = "auto",
    compute_dtype: DTypeLike | None = None,
    devices: Sequence[Any] | None = None,
    compiler_options: Mapping[str, Any] | None = None,
) -> Float[Array, "..."]:
    """The tangent kernel between the examples ``x1`` (N, ...) and ``x2`` (M, ...), default the same, for C outputs.

    Args:
      apply_fn: ``(params, inputs) -> (N, C)``, or ``(params, inputs, state)`` where a state is given. Compiled once
        for each function object.
      params: pytree of float32 or float64 arrays, all differentiated.
      x1, x2: examples on the leading axis, of real or complex numbers or integers (tokens); or dicts, tuples or other pytrees of such
        arrays, equally long (tokens and their mask).
      state: further arguments of the function, not differentiated (stored batch statistics).
      logits: "full", shape (N, M, C, C); "trace", the sum over k = l, (N, M); "diagonal", (N, M, C); "sum", the
        kernel of the sum of all logits, (N, M); an integer k, the kernel of logit k, (N, M).
      pairs: "all", or "same": each example with itself only, the axis M dropped.
      coupled: outputs depend on the whole batch (batch statistics): differentiate through it. ``x1`` and ``x2`` are
        then two batches.
      memory: largest size of temporary arrays in bytes, as the compiler reports it; blocks of examples (if coupled: of outputs) are
        chosen to fit. Ignored under an outer jit: the kernel is then one block.
      method: "auto", or one of `METHODS` for every layer.
      compute_dtype: precision of the passes through the function, such as bfloat16: real arguments are cast to it. Data and gradients
        of the layers are then contracted in the precision of the parameters. `precision.kernel_error` measures what it costs.
      devices: split the rows of the kernel over these devices. Each holds its share of the layers' data or gradients, and those of all
        of one layer at a time.
      compiler_options: of XLA. `FAST_COMPILE_OPTIONS` halves compile time; the program runs up to a third slower. Use it for
        kernels computed a few times.

    Raises:
      BatchCouplingError: outputs depend on the other examples of the batch and ``coupled`` is not set. Two different examples are
        evaluated together and alone; under `jax.jit`, where values are not known, nothing is checked.
      InsufficientMemoryError: the smallest block does not fit ``memory``.
      ValueError: arguments that do not fit one another, parameters that are no real floating-point numbers of 32 bits or more, outputs
        that are not one real array (N, C).
    """
    params, state = checks.parameters(params), checks.as_arrays(state)
    x1 = checks.example_tree(x1, "x1", complex_numbers=True)
    x2 = None if x2 is None else checks.example_tree(x2, "x2", complex_numbers=True)
    logits = _logit_index(logits)
    devices = tuple(devices or ())
    options = tuple(sorted((compiler_options or {}).items()))
    spec = KernelSpec(apply_fn, logits, pairs, coupled, method, devices if len(devices) > 1 else (), options)
    num_outputs = _check(spec, params, x1, x2, state)
    wait_for_check = _coupling_check(spec, params, [x for x in (x1, x2) if x is not None], state)
    if compute_dtype is not None:
        spec = spec._replace(apply_fn=InPrecision(apply_fn, checks.real_dtype(compute_dtype, "compute_dtype")))
    params, *examples, state = _placed(spec, (params, x1, x2, state))
    dtype = jnp.result_type(*{leaf.dtype for leaf in jax.tree.leaves(params)})
    sides = tuple(_Side(spec, x, num_outputs, dtype) for x in examples if x is not None)
    kernel = _BlockedKernel(spec, params, state, sides).compute(memory)
    wait_for_check()
    return _finish(spec, kernel, sides)


class _Side:
    """One set of examples, cut into blocks of examples with all their directions or, if coupled, into blocks of directions."""

    def __init__(self, spec: KernelSpec, x: Any, num_outputs: int, dtype: Any):
        self.x = jax.tree.map(lambda leaf: leaf[None], x) if spec.coupled else x
        self.num_examples = num_examples(x)
        self.directions = spec.directions(self.num_examples, num_outputs).astype(dtype)
        self.coupled = spec.coupled

    @property
    def length(self) -> int:
        """Number of items, which blocks are made of."""
        return len(self.directions) if self.coupled else self.num_examples

    def block(self, start: int, size: int, logits: slice = slice(None)) -> tuple[Any, np.ndarray]:
        """Examples and directions of one block; the last block is padded with its last item."""
        items = np.minimum(np.arange(start, start + size), self.length - 1)
        if self.coupled:
            return self.x, self.directions[items]
        return (self.x if size == self.length else jax.tree.map(lambda leaf: leaf[items], self.x)), self.directions[logits]


def _check(spec: KernelSpec, params: Any, x1: Any, x2: Any, state: Any) -> int:
    """Raise for arguments that do not fit one another; returns the number of outputs C."""
    if spec.pairs not in ("all", "same"):
        raise ValueError(f'pairs must be "all" or "same", got {spec.pairs!r}')
    if spec.method not in ("auto", *_contraction.METHODS):
        raise ValueError(f"method must be auto or one of {', '.join(_contraction.METHODS)}, got {spec.method!r}")
    if spec.pairs == "same" and (x2 is not None or spec.coupled or spec.devices):
        raise ValueError('pairs="same" takes one set of examples on one device, not coupled: leave out x2, coupled, devices')
    if x2 is not None:
        _check_alike(x1, x2)
    num_outputs = output_type(spec.apply_fn, params, x1, state).shape[1]
    is_name = spec.logits in (*_contraction.LOGITS, "sum")
    if not is_name and not (isinstance(spec.logits, int) and 0 <= spec.logits < num_outputs):
        raise ValueError(f"logits must be full, trace, diagonal, sum or from 0 to {num_outputs - 1}, got {spec.logits!r}")
    return num_outputs


def _coupling_check(spec: KernelSpec, params: Any, sets: Sequence[Any], state: Any) -> Callable[[], None]:
    """Begin to check that examples are independent, which the function that is returned waits for.

    Until a kernel of the spec has passed it is waited for at once, since what is coupled need not be compiled.
    """
    if spec.coupled:
        return lambda: None
    wait = _begin_check(spec.apply_fn, params, sets, state)
    if _traced(params, sets, state) or (passed := _passed(spec)):
        return wait
    wait()
    passed.append(True)
    return lambda: None


@functools.lru_cache(maxsize=64)
def _passed(spec: KernelSpec) -> list[bool]:
    """What `_coupling_check` notes of a spec: empty until a kernel has passed; traced values, which nobody checks, do not count."""
    return []


def _check_alike(x1: Any, x2: Any) -> None:
    if jax.tree.structure(x1) != jax.tree.structure(x2):
        raise ValueError(f"x1 and x2 must have one structure, got {jax.tree.structure(x1)} and {jax.tree.structure(x2)}")
    for first, second in zip(jax.tree.leaves(x1), jax.tree.leaves(x2), strict=True):
        if first.shape[1:] != second.shape[1:]:
            raise ValueError(f"examples of x1 and x2 must have one shape, got {first.shape[1:]} and {second.shape[1:]}")
        if first.dtype != second.dtype:
            raise ValueError(f"x1 and x2 must have one dtype, got {first.dtype} and {second.dtype}: cast one of them")


def _logit_index(logits: Any) -> Any:
    """A whole number of any type as an int, all else as it is; a boolean, which is a number to Python, as text."""
    if isinstance(logits, bool | np.bool_):
        return repr(logits)
    try:
        return logits if isinstance(logits, str) else operator.index(logits)
    except TypeError:
        return repr(logits)


def output_type(apply_fn: ApplyFn, params: Any, x: Any, state: Any) -> jax.ShapeDtypeStruct:
    """Shape (N, C) and dtype of the outputs for N examples x, traced once.

    Raises:
      ValueError: a function that returns something else, or that cannot be hashed.
    """
    try:
        hash(apply_fn)
    except TypeError as error:
        raise ValueError(
            f"apply_fn must be hashable, as it is compiled once, got {type(apply_fn).__name__}: wrap it in a function"
        ) from error
    leaves, tree = jax.tree.flatten((params, x, state))
    logits = _traced_type(apply_fn, tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves))
    if logits.shape[0] != num_examples(x):
        raise ValueError(f"apply_fn must return logits (N, C) for N = {num_examples(x)} examples, got shape {logits.shape}")
    return logits


@functools.lru_cache(maxsize=256)
def _traced_type(apply_fn: ApplyFn, tree: Any, avals: tuple) -> jax.ShapeDtypeStruct:
    params, x, state = jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(*aval) for aval in avals])
    return checks.logits_type(apply_fn, *((params, x) if state is None else (params, x, state)))


def _traced(*trees: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def refuse_coupling(apply_fn: ApplyFn, params: Any, sets: Sequence[Any], state: Any = None) -> None:
    """Raise `BatchCouplingError` if the outputs of two different examples of the sets differ alone and in a batch; traced values pass."""
    _begin_check(apply_fn, params, sets, state)()


def _begin_check(apply_fn: ApplyFn, params: Any, sets: Sequence[Any], state: Any) -> Callable[[], None]:
    """`refuse_coupling` in two steps: the function that is returned waits for the outcome."""
    advice = "Use stored statistics, or take the batch as a whole (coupled=True for a kernel, no chunk_size for its products)"
    fn = _OfLeaves(apply_fn, jax.tree.structure(sets[0]))
    return checks.examples_check(_outputs_of, fn, (params, state), [tuple(jax.tree.leaves(x)) for x in sets], advice)


class _OfLeaves(NamedTuple):
    """A function of a pytree of examples, told by its leaves."""

    apply_fn: ApplyFn
    tree: Any


def _outputs_of(fn: _OfLeaves, context: tuple[Any, Any], *leaves: jax.Array) -> jax.Array:
    params, state = context
    return outputs(fn.apply_fn, params, jax.tree.unflatten(fn.tree, leaves), state)


def _placed(spec: KernelSpec, arrays: tuple) -> tuple:
    """The arrays in one place: on all devices of the spec if it has several, else beside the parameters."""
    if _traced(arrays):
        return arrays
    if spec.devices:
        return jax.device_put(arrays, NamedSharding(spec.mesh, PartitionSpec()))
    used = {leaf.sharding for leaf in jax.tree.leaves(arrays)}
    if any(len(sharding.device_set) > 1 for sharding in used):  # sharded by the caller
        return arrays
    beside = jax.tree.leaves(arrays[0])[0].sharding
    return arrays if used == {beside} else jax.device_put(arrays, beside)  # to put a tree where it is takes a millisecond


def _rounded_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


class _Block(NamedTuple):
    """The part of a kernel that is computed at a time: ``size`` items of each side, and a slice of their logits."""

    size: int
    logits: slice


class _BlockedKernel(NamedTuple):
    """A kernel that is computed in blocks.

    Attributes:
      spec: its static options.
      params, state: arguments of the function.
      sides: one set of examples, for its kernel with itself, or two.
    """

    spec: KernelSpec
    params: Any
    state: Any
    sides: tuple[_Side, ...]

    def compute(self, memory: float) -> jax.Array:
        """The kernel over all items, in as few blocks as the memory allows."""
        if _traced(self.params, self.state, self.sides[0].x, self.sides[-1].x):
            return self._in_one_block()
        kernels = [self._assemble(block) for block in self._fitting_blocks(memory)]
        return _joined(kernels, -1) if self.spec.reduction == "diagonal" else functools.reduce(jnp.add, kernels)

    def _in_one_block(self) -> jax.Array:
        """The kernel as a part of an outer compiled function."""
        rows, *columns = (self._items(side, 0, _Block(_rounded_up(side.length, self._unit), slice(None))) for side in self.sides)
        return self._trimmed(sharded_kernel(self.spec, self.params, self.state, rows, columns[0] if columns else None))

    def _assemble(self, block: _Block) -> jax.Array:
        """The kernel for the block's logits; of a symmetric kernel only the blocks on and above the diagonal are computed."""
        starts = [range(0, side.length, block.size) for side in self.sides]
        symmetric = len(self.sides) == 1
        kernel: list[list[jax.Array]] = []
        for i in starts[0]:
            kernel_row: list[jax.Array] = []
            rows = self._items(self.sides[0], i, block)
            for j in starts[-1] if self.spec.pairs == "all" else (i,):
                if symmetric and j < i:
                    kernel_row.append(_contraction.swap_examples(kernel[j // block.size][i // block.size]))
                    continue
                columns = None if symmetric and i == j else self._items(self.sides[-1], j, block)
                compiled, _ = compiled_kernel(self.spec, self.params, self.state, rows, columns)
                kernel_row.append(compiled(self.params, self.state, rows, columns))
            kernel.append(kernel_row)
        if self.spec.pairs == "same":
            return self._trimmed(_joined([kernel_row[0] for kernel_row in kernel], 0))
        return self._trimmed(_joined([_joined(kernel_row, 1) for kernel_row in kernel], 0))

    def _fitting_blocks(self, memory: float) -> list[_Block]:
        """The largest equal blocks that fit the memory.

        Where the kernel holds no pairs of logits (a trace, a diagonal), blocks of logits come before blocks of examples: a
        block of logits costs one more forward pass, a pair of blocks of examples costs all passes again.
        """
        longest, unit = max(side.length for side in self.sides), self._unit
        size = _rounded_up(longest, unit)
        separable = self.spec.reduction != "full" and self.spec.pairs == "all"
        num_logits = len(self.sides[0].directions) if separable else 1
        chunk_size = num_logits
        while True:
            needed = self._bytes_needed(_Block(size, slice(chunk_size if num_logits > 1 else None)), longest, memory)
            if needed <= memory:
                if num_logits == 1:
                    return [_Block(size, slice(None))]
                return [_Block(size, slice(k, k + chunk_size)) for k in range(0, num_logits, chunk_size)]
            fraction = min(0.9 * memory / needed, 0.75)
            if chunk_size > 1:
                chunk_size = next(n for n in range(max(int(chunk_size * fraction), 1), 0, -1) if num_logits % n == 0)
            elif size > unit:
                num_blocks = -(-longest // max(int(size * fraction), 1))
                size = max(unit, _rounded_up(-(-longest // num_blocks), unit) if num_blocks < longest else unit)
            else:
                raise InsufficientMemoryError(
                    f"a block of {size} {'outputs' if self.spec.coupled else 'examples'} needs {needed:.3g} bytes of temporary "
                    f"memory, more than memory = {memory:.3g}: allow more, or ask for fewer logits at a time"
                )

    def _bytes_needed(self, block: _Block, longest: int, memory: float) -> int:
        """Bytes of temporary arrays for one pair of blocks; a lower bound where that exceeds the memory, without a compilation."""
        is_alone = len(self.sides) == 1 and (block.size >= longest or self.spec.pairs == "same")
        rows, columns = self._items(self.sides[0], 0, block), None if is_alone else self._items(self.sides[-1], 0, block)
        lower_bound = flow_bytes(self.spec, self.params, self.state, rows, columns)
        return lower_bound if lower_bound > memory else compiled_kernel(self.spec, self.params, self.state, rows, columns)[1]

    @property
    def _unit(self) -> int:
        """Block sizes are multiples of the number of devices."""
        return max(len(self.spec.devices), 1)

    def _items(self, side: _Side, start: int, block: _Block) -> tuple[Any, jax.Array]:
        """Examples and directions of one side of a block, on the devices of the examples."""
        x, directions = side.block(start, block.size, block.logits)
        return x, jnp.asarray(directions) if _traced(x) else _on_devices(directions, jax.tree.leaves(x)[0].sharding)

    def _trimmed(self, kernel: jax.Array) -> jax.Array:
        """The kernel without the padding of the last blocks."""
        sides = self.sides[:1] if self.spec.pairs == "same" else (self.sides[0], self.sides[-1])
        whole = tuple(side.length for side in sides)
        return kernel if kernel.shape[: len(whole)] == whole else kernel[tuple(slice(length) for length in whole)]


def _on_devices(directions: np.ndarray, sharding: Sharding) -> jax.Array:
    """Directions where the examples are; few are put there once, since that takes half a millisecond."""
    if directions.nbytes > _KEPT_BYTES:
        return jax.device_put(directions, sharding)
    return _kept_on_devices(directions.tobytes(), directions.shape, directions.dtype.str, sharding)


@functools.lru_cache(maxsize=64)
def _kept_on_devices(content: bytes, shape: tuple[int, ...], dtype: str, sharding: Sharding) -> jax.Array:
    with jax.ensure_compile_time_eval():  # an array, also where an outer function is being traced
        return jax.device_put(np.frombuffer(content, dtype).reshape(shape), sharding)


def _joined(parts: list[jax.Array], axis: int) -> jax.Array:
    """The parts as one array; a single one as it is, since an operation of its own costs as much as a small kernel."""
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis)


def _finish(spec: KernelSpec, kernel: jax.Array, sides: tuple[_Side, ...]) -> jax.Array:
    """The kernel in the shape of its ``logits``."""
    single = spec.logits not in _contraction.LOGITS
    if not spec.coupled:
        return kernel[..., 0, 0] if single else kernel
    n, m = sides[0].num_examples, sides[-1].num_examples
    kernel = kernel.reshape(n, -1, m, kernel.shape[1] // m).transpose(0, 2, 1, 3)
    if single:
        return kernel[..., 0, 0]
    if spec.logits == "full":
        return kernel
    diagonal = jnp.diagonal(kernel, axis1=2, axis2=3)
    return diagonal if spec.logits == "diagonal" else diagonal.sum(-1)
