"""One block of an empirical kernel as one compiled program: capture what flows through the layers, contract, add up.

A block is (examples, directions) against the like; `jaxbp.ntk.empirical` cuts a kernel into blocks that fit the
memory. With several devices a block's rows are split over them: each captures its share of the columns too, and layer
by layer passes it on.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from jaxbp.jaxprs import linear_layers
from jaxbp.ntk import contraction
from jaxbp.ops import platform

ApplyFn = Callable[..., jax.Array]  # (params, inputs) or (params, inputs, state) -> (N, C)

_CACHE = 2**22  # bytes of a layer's deltas that a CPU holds close by


def outputs(apply_fn: ApplyFn, params: Any, x: jax.Array, state: Any) -> jax.Array:
    """(N, C) logits of a batch, the state passed on if there is one."""
    return apply_fn(params, x) if state is None else apply_fn(params, x, state)


class Problem(NamedTuple):
    """The static side of a kernel; hashable, so that compiled programs are found again."""

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
        """Which pairs of gradients are contracted; a sum or a single logit has one gradient an example."""
        return self.logits if self.logits in contraction.LOGITS and not self.coupled else "full"

    def one_example(self, params: Any, example: jax.Array, state: Any) -> jax.Array:
        """The outputs of one example, or of the batch that stands for one, as a vector."""
        if self.coupled:
            return outputs(self.apply_fn, params, example, state).reshape(-1)
        return outputs(self.apply_fn, params, example[None], state)[0]

    def directions(self, num_examples: int, num_outputs: int) -> np.ndarray:
        """(c, outputs) combinations of one example's outputs whose gradients are wanted."""
        if self.logits == "sum":
            wanted = np.ones((1, num_outputs))
        elif isinstance(self.logits, str):
            wanted = np.eye(num_outputs)
        else:
            wanted = np.eye(num_outputs)[[self.logits]]
        return np.kron(np.eye(num_examples), wanted) if self.coupled else wanted


class Flows(NamedTuple):
    """How what flows through the layers is captured, some examples at a time, and contracted."""

    found: linear_layers.LinearLayers
    rules: tuple[contraction.Contraction, ...]
    reduction: str
    at_a_time: int

    def like(self, other: "Flows") -> "Flows":
        """These flows, contracted as ``other`` are; if coupled, the layers of another batch have other shapes."""
        rules = [
            mine._replace(method=theirs.method, from_pixels=theirs.from_pixels)
            for mine, theirs in zip(self.rules, other.rules, strict=True)
        ]
        return self._replace(rules=tuple(rules))

    def operands(self, params: Any, state: Any, x: jax.Array, directions: jax.Array) -> list:
        """Each layer's operand, and last the plain Jacobian (n, c, F) of the other leaves, for examples x (n, ...)."""
        run = linear_layers.run_fn(self.found)
        leaves = jax.tree.leaves(params)
        dtype = jnp.result_type(*leaves)
        others = [leaves[i] for i in self.found.others]
        taps = [jnp.zeros(layer.output.shape, layer.output.dtype) for layer in self.found.layers]

        def flow(example: jax.Array) -> list:
            arguments = jax.tree.leaves((example, state))
            out, pullback, data = jax.vjp(lambda t, o: run(t, o, leaves, arguments), taps, others, has_aux=True)
            deltas, jacobians = jax.vmap(pullback)(directions.astype(out.dtype))
            flowed = jax.tree.map(lambda a: a.astype(dtype), (data, deltas, jacobians))
            operands = [rule.prepare(a, d) for rule, a, d in zip(self.rules, *flowed[:2], strict=True)]
            return [*operands, *(j.reshape(len(j), -1) for j in flowed[2])]

        return jax.vmap(flow)(x) if self.at_a_time == len(x) else jax.lax.map(flow, x, batch_size=self.at_a_time)

    def contract(self, rows: list, columns: list | None) -> jax.Array:
        """The kernel of two sets of operands, or of one with itself."""
        num_layers = len(self.rules)
        second = [None] * num_layers if columns is None else columns[:num_layers]
        shares: list[jax.Array] = []
        for rule, r, c in zip(self.rules, rows[:num_layers], second, strict=True):
            if shares:  # one layer after another: less memory
                r = r._replace(seen=r.seen + _zero_of(shares[-1]))
            shares.append(rule.contract(r, c, self.reduction))
        rest = zip(rows[num_layers:], (rows if columns is None else columns)[num_layers:], strict=True)
        return functools.reduce(jnp.add, shares + [contraction.gram(r, c, self.reduction) for r, c in rest])


def _zero_of(array: jax.Array) -> jax.Array:
    """0, but not known before the array is: an order that XLA's CPU scheduler keeps, as it does not keep its barriers."""
    return jnp.minimum(jnp.abs(jnp.ravel(array)[0]), 0)


def plan_flows(problem: Problem, params: Any, state: Any, x: Any, directions: Any) -> Flows:
    """The layers of one example of x (n, ...) and the cheapest way to contract each."""
    num_examples, num_outputs = x.shape[0], directions.shape[0]
    found = linear_layers.find(problem.one_example, params, jax.ShapeDtypeStruct(x.shape[1:], x.dtype), state)
    rules = [contraction.plan(layer, num_examples, num_outputs, problem.reduction, problem.method) for layer in found.layers]
    if problem.coupled:  # batches of different sizes have to be contracted alike
        rules = [rule._replace(from_pixels=False) for rule in rules]
    largest = max((math.prod(layer.output.shape) * layer.output.dtype.itemsize for layer in found.layers), default=1)
    fitting = max(_CACHE // (largest * num_outputs), 1) if platform.current() == "cpu" else num_examples
    at_a_time = next(n for n in range(min(fitting, num_examples), 0, -1) if num_examples % n == 0)
    return Flows(found, tuple(rules), problem.reduction, at_a_time)


def block_kernel(problem: Problem, params: Any, state: Any, rows: tuple, columns: tuple | None) -> jax.Array:
    """The kernel between two blocks of (examples, directions), or of one with itself."""
    flows = plan_flows(problem, params, state, *rows)
    with jax.default_matmul_precision("highest"):
        first = flows.operands(params, state, *rows)
        if problem.pairs == "same":
            each = jax.tree.map(lambda a: a[:, None], first)
            return jax.vmap(lambda one: flows.contract(one, one)[0, 0])(each)
        if columns is None and not problem.devices:
            kernel = flows.contract(first, None)
        else:
            second = first
            if columns is not None:
                second = plan_flows(problem, params, state, *columns).like(flows).operands(params, state, *columns)
            if problem.devices:
                second = [_gathered(operand, problem.coupled) for operand in second]
            kernel = flows.contract(first, second)
    return kernel[0, 0] if problem.coupled else kernel


def _gathered(operand: Any, coupled: bool) -> Any:
    """An operand of all devices: examples are split over them or, if coupled, gradients, which see the same data."""

    def gather(array: jax.Array, axis: int) -> jax.Array:
        return jax.lax.all_gather(array, "rows", axis=axis, tiled=True)

    if not coupled:
        return jax.tree.map(lambda array: gather(array, 0), operand)
    if isinstance(operand, contraction.Operand):
        return operand._replace(deltas=gather(operand.deltas, 3 if operand.deltas.ndim == 5 else 1))
    return gather(operand, 1)


def spread(problem: Problem, params: Any, state: Any, rows: tuple, columns: tuple | None) -> jax.Array:
    """`block_kernel`, its rows split over the devices if there are several."""
    if not problem.devices:
        return block_kernel(problem, params, state, rows, columns)
    split, whole = PartitionSpec("rows"), PartitionSpec()
    side = (whole, split) if problem.coupled else (split, whole)
    split_program = jax.shard_map(
        functools.partial(block_kernel, problem), mesh=problem.mesh, check_vma=False,
        in_specs=(whole, whole, side, None if columns is None else side), out_specs=split,
    )  # fmt: skip
    return split_program(params, state, rows, columns)


def flow_bytes(problem: Problem, params: Any, state: Any, *sides: tuple | None) -> int:
    """Bytes of what has to be held of some blocks of (examples, directions): the least that any program needs."""
    total = 0
    for x, directions in (side for side in sides if side is not None):
        leaves, tree = jax.tree.flatten((params, jax.ShapeDtypeStruct(x.shape[1:], x.dtype), state))
        total += len(x) * _bytes_an_example(problem, len(directions), tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves))
    return total // max(len(problem.devices), 1)


@functools.lru_cache(maxsize=256)  # tracing a deep network takes longer than a small kernel
def _bytes_an_example(problem: Problem, num_directions: int, tree: Any, avals: tuple) -> int:
    params, example, state = jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(*aval) for aval in avals])
    layers = linear_layers.find(problem.one_example, params, example, state).layers
    sizes = [math.prod(layer.data.shape) + num_directions * math.prod(layer.output.shape) for layer in layers]
    return sum(size * layer.output.dtype.itemsize for size, layer in zip(sizes, layers, strict=True))


@functools.lru_cache(maxsize=8)  # each holds a thousand memory maps or two, of 65,530 that Linux allows
def _compiled(problem: Problem, tree: Any, avals: tuple) -> tuple[Callable, int]:
    shapes = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype, sharding in avals]
    arguments = jax.tree.unflatten(tree, shapes)
    compiled = jax.jit(functools.partial(spread, problem)).lower(*arguments).compile(dict(problem.compiler_options))
    analysis = compiled.memory_analysis()  # None on backends that do not say
    return compiled, 0 if analysis is None else analysis.temp_size_in_bytes


def program(problem: Problem, *arguments: Any) -> tuple[Callable, int]:
    """`spread` compiled for the shapes and places of its arguments, and the bytes of its temporary arrays."""
    leaves, tree = jax.tree.flatten(arguments)
    return _compiled(problem, tree, tuple((leaf.shape, leaf.dtype, leaf.sharding) for leaf in leaves))
