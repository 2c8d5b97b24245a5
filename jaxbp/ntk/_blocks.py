"""One block of an empirical kernel as one compiled program: capture the data of each layer, contract, add up.

A block is a pair of (examples, directions); `jaxbp.ntk.empirical` cuts a kernel into blocks that fit the memory. With several devices
the rows of a block are split over them: each device captures its share of the columns too, and gathers the shares of the others
layer by layer.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from jaxbp.jaxprs import linear_layers
from jaxbp.ntk import _contraction
from jaxbp.ops import platform

ApplyFn = Callable[..., jax.Array]  # (params, inputs) or (params, inputs, state) -> (N, C)

_FEW = 4096  # parameters of an array such as a bias, whose copy costs less than an operation
_CACHE_BYTES = 2**22  # of a layer's output gradients that stay in the cache of a CPU


def outputs(apply_fn: ApplyFn, params: Any, x: Any, state: Any) -> jax.Array:
    """(N, C) logits of a batch; the state is passed on if there is one."""
    return apply_fn(params, x) if state is None else apply_fn(params, x, state)


@dataclasses.dataclass(frozen=True)
class InPrecision:
    """A function evaluated in another precision: real numbers among its arguments are cast first.

    Attributes:
      apply_fn: the function.
      dtype: name of the precision.
    """

    apply_fn: ApplyFn
    dtype: str

    def __call__(self, *arguments: Any) -> jax.Array:
        """The outputs, of the function's own type."""
        return self.apply_fn(*jax.tree.map(self._cast, arguments))

    def _cast(self, leaf: jax.Array) -> jax.Array:
        return leaf.astype(self.dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def num_examples(x: Any) -> int:
    """N of examples (N, ...), an array or a pytree of arrays."""
    return jax.tree.leaves(x)[0].shape[0]


def _one_example(x: Any) -> Any:
    """Shapes and dtypes of one of the examples x (N, ...)."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), x)


class KernelSpec(NamedTuple):
    """The static options of a kernel, hashable: equal ones share compiled programs.

    Attributes:
      apply_fn, logits, pairs, coupled, method: as in `jaxbp.ntk.empirical_ntk`.
      devices: the devices that share the rows, empty for a single one.
      compiler_options: sorted items.
    """

    apply_fn: ApplyFn
    logits: str | int
    pairs: str
    coupled: bool
    method: str
    devices: tuple = ()
    compiler_options: tuple = ()

    @property
    def mesh(self) -> Mesh:
        """The devices that share the rows."""
        return Mesh(np.array(self.devices), ("rows",), axis_types=(AxisType.Auto,))

    @property
    def reduction(self) -> str:
        """The pairs of gradients to contract, one of `_contraction.LOGITS`; a sum or a single logit has one gradient an example."""
        return self.logits if self.logits in _contraction.LOGITS and not self.coupled else "full"

    def example_outputs(self, params: Any, example: Any, state: Any) -> jax.Array:
        """The outputs of one example, or of a coupled batch as one example, as a vector."""
        if self.coupled:
            return outputs(self.apply_fn, params, example, state).reshape(-1)
        return outputs(self.apply_fn, params, jax.tree.map(lambda leaf: leaf[None], example), state)[0]

    def directions(self, num_examples: int, num_outputs: int) -> np.ndarray:
        """(c, outputs) linear combinations of one example's outputs, to be differentiated."""
        if self.logits == "sum":
            directions = np.ones((1, num_outputs))
        elif isinstance(self.logits, str):
            directions = np.eye(num_outputs)
        else:
            directions = np.eye(num_outputs)[[self.logits]]
        return np.kron(np.eye(num_examples), directions) if self.coupled else directions


class LayerFlows(NamedTuple):
    """How the data and output gradients of the layers are captured and contracted.

    Attributes:
      layers: the linear layers of the function, and the leaves of the parameters outside of them.
      rules: the contraction of each layer.
      reduction: see `KernelSpec.reduction`.
      chunk_size: examples captured at a time.
    """

    layers: linear_layers.LinearLayers
    rules: tuple[_contraction.Contraction, ...]
    reduction: str
    chunk_size: int

    def contracted_like(self, other: "LayerFlows") -> "LayerFlows":
        """These layers, contracted by the methods of ``other``; the layers of another coupled batch have other shapes."""
        rules = [
            rule._replace(method=example.method, from_pixels=example.from_pixels, at_once=example.at_once)
            for rule, example in zip(self.rules, other.rules, strict=True)
        ]
        return self._replace(rules=tuple(rules))

    def operands(self, params: Any, state: Any, x: Any, directions: jax.Array) -> list:
        """The operand of each layer, then the plain Jacobians (n, c, F) of the other leaves, small ones as one, for examples x (n, ...)."""
        run = linear_layers.run_fn(self.layers)
        leaves = jax.tree.leaves(params)
        dtype = jnp.result_type(*leaves)
        others = [leaves[i] for i in self.layers.others]
        taps = jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), [layer.output for layer in self.layers.layers])

        def flow(example: Any) -> list:
            arguments = jax.tree.leaves((example, state))
            out, pullback, data = jax.vjp(lambda t, o: run(t, o, leaves, arguments), taps, others, has_aux=True)
            deltas, jacobians = jax.vmap(pullback)(directions.astype(out.dtype))
            data, deltas, jacobians = jax.tree.map(lambda a: a.astype(dtype), (data, deltas, jacobians))
            operands = [rule.prepare(a, d) for rule, a, d in zip(self.rules, data, deltas, strict=True)]
            flat = [jacobian.reshape(len(jacobian), -1) for jacobian in jacobians]
            small = [jacobian for jacobian in flat if jacobian.shape[1] <= _FEW]  # one Gram matrix for all of them
            large = [jacobian for jacobian in flat if jacobian.shape[1] > _FEW]
            return [*operands, *large, *([jnp.concatenate(small, 1)] if small else [])]

        return jax.vmap(flow)(x) if self.chunk_size == num_examples(x) else jax.lax.map(flow, x, batch_size=self.chunk_size)

    def contract(self, rows: list, columns: list | None) -> jax.Array:
        """The kernel of two sets of operands, or of one with itself."""
        num_layers = len(self.rules)
        second = [None] * num_layers if columns is None else columns[:num_layers]
        shares: list[jax.Array] = []
        for rule, r, c in zip(self.rules, rows[:num_layers], second, strict=True):
            if shares and isinstance(r, _contraction.Operand):  # one layer after another needs less memory
                zero = _ordering_dependency(shares[-1])
                r = r._replace(data=jax.tree.map(lambda array, zero=zero: array + zero, r.data))
            shares.append(rule.contract(r, c, self.reduction))
        rest = zip(rows[num_layers:], (rows if columns is None else columns)[num_layers:], strict=True)
        return functools.reduce(jnp.add, shares + [_contraction.gram(r, c, self.reduction) for r, c in rest])


def _ordering_dependency(array: jax.Array) -> jax.Array:
    """A zero that depends on the array: XLA's CPU scheduler keeps the order of such a dependency, but not of a barrier."""
    return jnp.minimum(jnp.abs(jnp.ravel(array)[0]), 0)


def plan_flows(spec: KernelSpec, params: Any, state: Any, x: Any, directions: Any) -> LayerFlows:
    """The layers of one example of x (n, ...) and the cheapest contraction of each."""
    count, num_outputs = num_examples(x), directions.shape[0]
    layers = linear_layers.find(spec.example_outputs, params, _one_example(x), state)
    rules = [_contraction.plan(layer, count, num_outputs, spec.reduction, spec.method) for layer in layers.layers]
    rules = _formed_at_once(rules, jax.tree.leaves(params), count, num_outputs)
    if spec.coupled:  # batches of different sizes need the same contractions
        rules = [rule._replace(from_pixels=False) for rule in rules]
    largest = max((_num_bytes(layer.output) for layer in layers.layers), default=1)
    fitting = max(_CACHE_BYTES // (largest * num_outputs), 1) if platform.current() == "cpu" else count
    chunk_size = next(n for n in range(min(fitting, count), 0, -1) if count % n == 0)
    return LayerFlows(layers, tuple(rules), spec.reduction, chunk_size)


def _formed_at_once(
    rules: list[_contraction.Contraction], weights: list[Any], count: int, num_outputs: int
) -> list[_contraction.Contraction]:
    """The rules, with weight gradients formed at once where those of all layers are at most `_contraction.PART` entries more to keep."""
    spare, planned = _contraction.PART, []
    for rule in rules:
        kept = _num_entries(rule.layer.data) + num_outputs * _num_entries(rule.layer.output)
        more = count * max(num_outputs * _num_entries(weights[rule.layer.leaf]) - kept, 0)
        at_once = rule.method == "gradients" and more <= spare
        spare -= more if at_once else 0
        planned.append(rule._replace(at_once=at_once))
    return planned


def block_kernel(spec: KernelSpec, params: Any, state: Any, rows: tuple, columns: tuple | None) -> jax.Array:
    """The kernel between two blocks of (examples, directions), or of one with itself."""
    flows = plan_flows(spec, params, state, *rows)
    with jax.default_matmul_precision("highest"):
        first = flows.operands(params, state, *rows)
        if spec.pairs == "same":
            examples = jax.tree.map(lambda a: a[:, None], first)
            return jax.vmap(lambda example: flows.contract(example, example)[0, 0])(examples)
        if columns is None and not spec.devices:
            kernel = flows.contract(first, None)
        else:
            second = first
            if columns is not None:
                second = plan_flows(spec, params, state, *columns).contracted_like(flows).operands(params, state, *columns)
            if spec.devices:
                second = [_gathered(operand, spec.coupled) for operand in second]
            kernel = flows.contract(first, second)
    return kernel[0, 0] if spec.coupled else kernel


def _gathered(operand: Any, coupled: bool) -> Any:
    """An operand gathered from all devices, which split the examples or, if coupled, the directions of the same data."""

    def gather(array: jax.Array, axis: int) -> jax.Array:
        return jax.lax.all_gather(array, "rows", axis=axis, tiled=True)

    if not coupled:
        return jax.tree.map(lambda array: gather(array, 0), operand)
    if isinstance(operand, _contraction.Operand):
        return operand._replace(deltas=gather(operand.deltas, 3 if operand.deltas.ndim == 5 else 1))
    return gather(operand, 1)


def sharded_kernel(spec: KernelSpec, params: Any, state: Any, rows: tuple, columns: tuple | None) -> jax.Array:
    """`block_kernel`, its rows split over the devices if there are several."""
    if not spec.devices:
        return block_kernel(spec, params, state, rows, columns)
    split, whole = PartitionSpec("rows"), PartitionSpec()
    side = (whole, split) if spec.coupled else (split, whole)
    in_specs = (whole, whole, side, None if columns is None else side)
    kernel_fn = functools.partial(block_kernel, spec)
    split_kernel_fn = jax.shard_map(kernel_fn, mesh=spec.mesh, check_vma=False, in_specs=in_specs, out_specs=split)
    return split_kernel_fn(params, state, rows, columns)


def flow_bytes(spec: KernelSpec, params: Any, state: Any, *sides: tuple | None) -> int:
    """Bytes of the data and output gradients, or of the weight gradients where they are fewer, of some blocks of (examples, directions)."""
    total = 0
    for x, directions in (side for side in sides if side is not None):
        leaves, tree = jax.tree.flatten((params, _one_example(x), state))
        total += num_examples(x) * _bytes_per_example(spec, len(directions), tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves))
    return total // max(len(spec.devices), 1)


@functools.lru_cache(maxsize=256)  # tracing a deep network takes longer than a small kernel
def _bytes_per_example(spec: KernelSpec, num_directions: int, tree: Any, avals: tuple) -> int:
    params, example, state = jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(*aval) for aval in avals])
    layers = linear_layers.find(spec.example_outputs, params, example, state).layers
    weights = jax.tree.leaves(params)
    flows = [_num_bytes(layer.data) + num_directions * _num_bytes(layer.output) for layer in layers]
    return sum(min(flow, num_directions * _num_bytes(weights[layer.leaf])) for flow, layer in zip(flows, layers, strict=True))


def _num_entries(arrays: Any) -> int:
    return sum(math.prod(array.shape) for array in jax.tree.leaves(arrays))


def _num_bytes(arrays: Any) -> int:
    return sum(math.prod(array.shape) * array.dtype.itemsize for array in jax.tree.leaves(arrays))


@functools.lru_cache(maxsize=8)  # each program holds one or two thousand memory maps; Linux allows 65,530
def _compiled(spec: KernelSpec, tree: Any, avals: tuple) -> tuple[Callable, int]:
    shapes = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype, sharding in avals]
    arguments = jax.tree.unflatten(tree, shapes)
    compiled = jax.jit(functools.partial(sharded_kernel, spec)).lower(*arguments).compile(dict(spec.compiler_options))
    analysis = compiled.memory_analysis()  # None on backends without this analysis
    return compiled, 0 if analysis is None else analysis.temp_size_in_bytes


def compiled_kernel(spec: KernelSpec, *arguments: Any) -> tuple[Callable, int]:
    """`sharded_kernel` compiled for the shapes and shardings of its arguments, and the bytes of its temporary arrays."""
    leaves, tree = jax.tree.flatten(arguments)
    return _compiled(spec, tree, tuple((leaf.shape, leaf.dtype, leaf.sharding) for leaf in leaves))
