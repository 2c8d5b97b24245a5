"""One block of an empirical kernel as one compiled program: capture what flows through the layers, contract, add up.

A block is (examples, directions) against the like; `jaxbp.ntk.empirical` cuts a kernel into blocks that fit the
memory. With several devices a block's rows are split over them: each captures its share of the columns too, and layer
by layer passes it on.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from jaxbp.ntk import contraction, layers

ApplyFn = Callable[..., jax.Array]  # (params, inputs) or (params, inputs, state) -> (N, C)

_PARTS = 4  # row blocks of a symmetric kernel, of which only pairs on or above the diagonal are computed
_PARTS_FROM = 2e9  # multiply-adds of a layer from which the parts pay for their longer program


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
    """How what flows through the layers is captured and contracted."""

    found: layers.Layers
    rules: tuple[contraction.Contraction, ...]
    reduction: str
    num_parts: int

    def of(self, other: "Flows") -> "Flows":
        """These flows, contracted as ``other`` are; batches of another size have layers of another shape."""
        rules = [
            mine._replace(method=theirs.method, from_pixels=theirs.from_pixels)
            for mine, theirs in zip(self.rules, other.rules, strict=True)
        ]
        return self._replace(rules=tuple(rules))

    def operands(self, params: Any, state: Any, x: jax.Array, directions: jax.Array) -> list:
        """Each layer's operand, and last the plain Jacobian (n, c, F) of the other leaves, for examples x (n, ...)."""
        run = layers.run_fn(self.found)
        leaves = jax.tree.leaves(params)
        dtype = jnp.result_type(*leaves)
        others = [leaves[i] for i in self.found.others]
        taps = [jnp.zeros(layer.output.shape, layer.output.dtype) for layer in self.found.layers]

        def flow(example: jax.Array) -> tuple:
            arguments = jax.tree.leaves((example, state))
            out, pullback, data = jax.vjp(lambda t, o: run(t, o, leaves, arguments), taps, others, has_aux=True)
            return data, *jax.vmap(pullback)(directions.astype(out.dtype))

        data, deltas, jacobians = jax.tree.map(lambda a: a.astype(dtype), jax.vmap(flow)(x))
        prepared = [rule.prepare(a, d) for rule, a, d in zip(self.rules, data, deltas, strict=True)]
        return [*prepared, *(j.reshape(*j.shape[:2], -1) for j in jacobians)]

    def contract(self, rows: list, columns: list) -> jax.Array:
        """The kernel of two sets of operands."""
        num_layers = len(self.rules)
        shares = [
            rule.contract(r, c, self.reduction)
            for rule, r, c in zip(self.rules, rows[:num_layers], columns[:num_layers], strict=True)
        ]
        rest = zip(rows[num_layers:], columns[num_layers:], strict=True)
        return functools.reduce(jnp.add, shares + [contraction.gram(r, c, self.reduction) for r, c in rest])

    def symmetric(self, operands: list) -> jax.Array:
        """The kernel of a set with itself: parts of the rows against the columns from their own on, mirrored."""
        num_examples = jax.tree.leaves(operands)[0].shape[0]
        edges = [num_examples * i // self.num_parts for i in range(self.num_parts + 1)]

        def cut(start: int, stop: int) -> list:
            return jax.tree.map(lambda a: a[start:stop], operands)

        blocks = [self.contract(cut(a, b), cut(a, num_examples)) for a, b in itertools.pairwise(edges)]
        filled = [jnp.pad(b, [(0, 0), (a, 0), *[(0, 0)] * (b.ndim - 2)]) for a, b in zip(edges, blocks, strict=False)]
        return _mirrored(jnp.concatenate(filled), np.searchsorted(edges, np.arange(num_examples), side="right"))


def _mirrored(upper: Any, part: np.ndarray) -> Any:
    """Fill the entries below the diagonal of parts from those above; ``part``: of each row and column."""
    below = (part[:, None] > part).reshape(len(part), len(part), *[1] * (upper.ndim - 2))
    return jnp.where(below, exchanged(upper), upper)


def exchanged(kernel: Any) -> Any:
    """Theta with its two examples, and their logits, exchanged."""
    kernel = kernel.swapaxes(0, 1)
    return kernel.swapaxes(2, 3) if kernel.ndim == 4 else kernel


def _flows(problem: Problem, params: Any, state: Any, x: Any, directions: Any) -> Flows:
    """The layers of one example of x (n, ...) and the cheapest way to contract each."""
    num_examples, num_outputs = x.shape[0], directions.shape[0]
    found = layers.find(problem.one_example, params, jax.ShapeDtypeStruct(x.shape[1:], x.dtype), state)
    rules = [
        contraction.plan(layer, num_examples, num_outputs, problem.reduction, problem.method) for layer in found.layers
    ]
    if problem.coupled:  # batches of different sizes have to be contracted alike
        rules = [rule._replace(from_pixels=False) for rule in rules]
    heaviest = max((rule.operations(num_examples, num_outputs, problem.reduction) for rule in rules), default=0.0)
    parts = _PARTS if num_examples >= 2 * _PARTS and heaviest > _PARTS_FROM else 1
    return Flows(found, tuple(rules), problem.reduction, parts)


def block_kernel(problem: Problem, params: Any, state: Any, rows: tuple, columns: tuple | None) -> jax.Array:
    """The kernel between two blocks of (examples, directions), or of one with itself."""
    flows = _flows(problem, params, state, *rows)
    with jax.default_matmul_precision("highest"):
        first = flows.operands(params, state, *rows)
        if problem.pairs == "same":
            each = jax.tree.map(lambda a: a[:, None], first)
            return jax.vmap(lambda one: flows.contract(one, one)[0, 0])(each)
        if columns is None and not (problem.coupled or problem.devices):
            return flows.symmetric(first)
        if columns is None:
            second = first
        else:
            second = _flows(problem, params, state, *columns).of(flows).operands(params, state, *columns)
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
    if isinstance(operand, contraction.Operand) and operand.second is not None:
        return operand._replace(second=gather(operand.second, 1))
    return jax.tree.map(lambda array: gather(array, 1), operand)


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


@functools.lru_cache(maxsize=64)
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
