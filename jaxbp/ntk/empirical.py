"""The empirical neural tangent kernel of any function, exactly, in bounded memory.

Theta[i, j, k, l] = sum over parameters p of (d f_k(x_i) / d theta_p) (d f_l(x_j) / d theta_p) (Jacot et al., NeurIPS
2018; paper, Study 3). One forward and C backward passes an example give what flows into and back out of each linear
layer (`jaxbp.jaxprs.linear_layers`), from which each layer's share follows without its Jacobian (`jaxbp.ntk.contraction`).
Parameters that are used in any other way (biases, normalisation, weights used twice) are served by plain Jacobians.

Examples are taken one at a time, so nothing that couples them may be hidden in the function: batch statistics are
refused, or, with ``coupled``, the whole batch is taken as one example with N C outputs, which is the right kernel
there.

>>> import jax, jax.numpy as jnp
>>> from jaxbp import ntk
>>> def apply_fn(params, inputs):
...     return jnp.tanh(inputs @ params["w"]) @ params["v"]
>>> params = {"w": jnp.ones((3, 4)), "v": jnp.ones((4, 2))}
>>> ntk.empirical_ntk(apply_fn, params, jnp.ones((5, 3))).shape
(5, 5, 2, 2)
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxbp.ntk import contraction
from jaxbp.ntk.blocks import ApplyFn, Problem, flow_bytes, outputs, program, spread

MEMORY = 2 * 2**30
QUICKLY = {"xla_backend_optimization_level": 0}
_COUPLED_FROM = 1e-3  # relative change of outputs, alone against in company, that rounding does not explain


class TooLittleMemory(ValueError):
    """Not even the smallest block fits the memory bound."""


class CoupledExamples(ValueError):
    """The function lets examples influence one another, and was not said to."""


def empirical_ntk(
    apply_fn: ApplyFn,
    params: Any,
    x1: jax.Array,
    x2: jax.Array | None = None,
    *,
    state: Any = None,
    logits: str | int = "full",
    pairs: str = "all",
    coupled: bool = False,
    memory: float = MEMORY,
    method: str = "auto",
    devices: Sequence[Any] | None = None,
    compiler_options: Mapping[str, Any] | None = None,
) -> jax.Array:
    """The tangent kernel between the examples ``x1`` (N, ...) and ``x2`` (M, ...), default the same, for C outputs.

    Args:
      apply_fn: ``(params, inputs) -> (N, C)``, or ``(params, inputs, state)`` where a state is given. Compiled once
        per function object.
      params: pytree of floating-point arrays, all differentiated.
      x1, x2: examples on the leading axis.
      state: what the function needs beside parameters, not differentiated (stored batch statistics).
      logits: "full", shape (N, M, C, C); "trace", the sum over k = l, (N, M); "diagonal", (N, M, C); "sum", the
        kernel of the sum of all logits, (N, M); an integer k, the kernel of logit k, (N, M).
      pairs: "all", or "same": each example with itself only, the axis M dropped.
      coupled: outputs depend on the whole batch (batch statistics): differentiate through it. ``x1`` and ``x2`` are
        then two batches.
      memory: most bytes of temporary arrays, by the compiler's own account; examples (if coupled: outputs) are taken
        in blocks that fit. Not kept to inside another compiled function, where all is one block.
      method: "auto", or one of `contraction.METHODS` for every layer.
      devices: split the rows of the kernel over these; each holds its share of what flows, and layer by layer all of
        it.
      compiler_options: of XLA. `QUICKLY` compiles in half the time what then runs up to a third slower, which pays for a
        kernel that is needed a few times.

    Raises:
      CoupledExamples: examples influence one another and ``coupled`` is not set.
      TooLittleMemory: not even the smallest block fits ``memory``.
      ValueError: arguments that do not suit one another.
    """
    params, x1, x2, state = jax.tree.map(jnp.asarray, (params, x1, x2, state))
    devices = tuple(devices or ())
    options = tuple(sorted((compiler_options or {}).items()))
    problem = Problem(apply_fn, logits, pairs, coupled, method, devices if len(devices) > 1 else (), options)
    num_outputs = _check(problem, params, x1, x2, state)
    params, x1, x2, state = _placed(problem, (params, x1, x2, state))
    sides = [_Side(problem, x, num_outputs) for x in ((x1,) if x2 is None else (x1, x2))]
    kernel = _in_blocks(problem, params, state, sides, memory)
    return _finish(problem, kernel, sides)


class _Side:
    """One set of examples, cut into blocks: of examples with all their directions or, if coupled, of directions."""

    def __init__(self, problem: Problem, x: jax.Array, num_outputs: int):
        self.x = x[None] if problem.coupled else x
        self.directions = problem.directions(len(x), num_outputs)
        self.coupled = problem.coupled
        self.num_examples = len(x)

    @property
    def length(self) -> int:
        """Number of items that blocks are made of."""
        return len(self.directions) if self.coupled else self.num_examples

    def block(self, start: int, size: int, logits: slice = slice(None)) -> tuple[jax.Array, np.ndarray]:
        """Examples and directions of one block; the last one is filled up with its last item."""
        items = np.minimum(np.arange(start, start + size), self.length - 1)
        if self.coupled:
            return self.x, self.directions[items]
        return (self.x if size == self.length else self.x[items]), self.directions[logits]


def _check(problem: Problem, params: Any, x1: jax.Array, x2: jax.Array | None, state: Any) -> int:
    """Raise for arguments that do not suit one another; returns the number of outputs C."""
    if problem.pairs not in ("all", "same"):
        raise ValueError(f'pairs must be "all" or "same", got {problem.pairs!r}')
    if problem.method not in ("auto", *contraction.METHODS):
        raise ValueError(f"method must be auto or one of {', '.join(contraction.METHODS)}, got {problem.method!r}")
    if problem.pairs == "same" and (x2 is not None or problem.coupled or problem.devices):
        raise ValueError('pairs="same" takes one set of examples on one device, not coupled: leave out x2, coupled, devices')
    for name, x in (("x1", x1), ("x2", x2)):
        if x is not None and (x.ndim < 1 or len(x) == 0):
            raise ValueError(f"{name} must hold examples on its leading axis, got shape {x.shape}")
    if x2 is not None and x1.shape[1:] != x2.shape[1:]:
        raise ValueError(f"examples of x1 and x2 must have one shape, got {x1.shape[1:]} and {x2.shape[1:]}")
    leaves = jax.tree.leaves(params)
    if not leaves or not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
        kinds = sorted({str(leaf.dtype) for leaf in leaves})
        raise ValueError(f"params must be floating-point arrays, got {kinds or 'none'}: pass the rest as state")
    shapes, tree = jax.tree.flatten((params, x1, state))
    out = _output_shape(problem.apply_fn, tree, tuple((leaf.shape, leaf.dtype) for leaf in shapes))
    if len(out.shape) != 2 or out.shape[0] != len(x1):
        raise ValueError(f"apply_fn must return (N, C) for N = {len(x1)} examples, got {out.shape}: reshape its outputs")
    named = problem.logits in (*contraction.LOGITS, "sum")
    if not named and not (isinstance(problem.logits, int) and 0 <= problem.logits < out.shape[1]):
        raise ValueError(f"logits must be full, trace, diagonal, sum or from 0 to {out.shape[1] - 1}, got {problem.logits!r}")
    if not problem.coupled:
        refuse_coupling(problem.apply_fn, params, x1, state)
    return out.shape[1]


@functools.lru_cache(maxsize=256)
def _output_shape(apply_fn: ApplyFn, tree: Any, avals: tuple) -> jax.ShapeDtypeStruct:
    """Shape of the outputs, traced once."""
    arguments = jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(*aval) for aval in avals])
    return jax.eval_shape(functools.partial(outputs, apply_fn), *arguments)


def _traced(*trees: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def refuse_coupling(apply_fn: ApplyFn, params: Any, x: jax.Array, state: Any = None) -> None:
    """Raise `CoupledExamples` if the first and last of ``x`` have other outputs together than alone; traced values pass."""
    if len(x) < 2 or _traced(params, x, state):
        return
    gap = float(_company(apply_fn, params, x[np.array([0, -1])], state))
    if gap > _COUPLED_FROM:
        raise CoupledExamples(
            f"apply_fn gives an example other outputs alone than in a batch of two (relative change {gap:.2g}), so "
            "examples are coupled, for instance by batch statistics: use stored statistics, or take the batch as a whole "
            "(coupled=True for a kernel, no chunk_size for its products)"
        )


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICKLY)
def _company(apply_fn: ApplyFn, params: Any, two: jax.Array, state: Any) -> jax.Array:
    """How much outputs change, relative to their size, when examples are evaluated in company."""
    together = outputs(apply_fn, params, two, state)
    alone = jax.lax.map(lambda one: outputs(apply_fn, params, one[None], state)[0], two)  # one body to compile
    return jnp.max(jnp.abs(together - alone)) / jnp.maximum(jnp.max(jnp.abs(together)), jnp.finfo(together.dtype).tiny)


def _placed(problem: Problem, arrays: tuple) -> tuple:
    """The arrays together: on all devices if several were named, else where the parameters are."""
    if _traced(arrays):
        return arrays
    if problem.devices:
        return jax.device_put(arrays, NamedSharding(problem.mesh, PartitionSpec()))
    used = {leaf.sharding for leaf in jax.tree.leaves(arrays)}
    if any(len(sharding.device_set) > 1 for sharding in used):  # the caller has spread them
        return arrays
    return jax.device_put(arrays, jax.tree.leaves(arrays[0])[0].sharding)


def _in_blocks(problem: Problem, params: Any, state: Any, sides: list[_Side], memory: float) -> jax.Array:
    """The kernel over all items, in as few blocks as the memory allows."""
    dtype = jnp.result_type(*jax.tree.leaves(params))

    def block(side: _Side, start: int, shape: _Block) -> tuple:
        x, unit_vectors = side.block(start, shape.size, shape.logits)
        directions = jnp.asarray(unit_vectors, dtype)
        return x, directions if _traced(x) else jax.device_put(directions, x.sharding)

    if _traced(params, state, sides[0].x, sides[-1].x):
        left, *right = (block(side, 0, _Block(_up(side.length, len(problem.devices)), slice(None))) for side in sides)
        kernel = spread(problem, params, state, left, right[0] if right else None)
        return kernel[: sides[0].length] if problem.pairs == "same" else kernel[: sides[0].length, : sides[-1].length]

    def compute(left: tuple, right: tuple | None) -> jax.Array:
        return program(problem, params, state, left, right)[0](params, state, left, right)

    blocks = _blocks(problem, params, state, sides, block, memory)
    kernels = [_assembled(problem, sides, functools.partial(block, shape=shape), shape.size, compute) for shape in blocks]
    return jnp.concatenate(kernels, -1) if problem.reduction == "diagonal" else functools.reduce(jnp.add, kernels)


def _assembled(problem: Problem, sides: list[_Side], block: Callable, size: int, compute: Callable) -> jax.Array:
    """A kernel from its blocks of items; of a symmetric one only those on and above the diagonal are computed."""
    starts = [range(0, side.length, size) for side in sides]
    rows: list[list[jax.Array]] = []
    for i in starts[0]:
        row: list[jax.Array] = []
        left = block(sides[0], i)
        for j in starts[-1] if problem.pairs == "all" else (i,):
            if len(sides) == 1 and j < i:
                row.append(contraction.exchanged(rows[j // size][i // size]))
            else:
                row.append(compute(left, None if len(sides) == 1 and i == j else block(sides[-1], j)))
        rows.append(row)
    if problem.pairs == "same":
        return jnp.concatenate([row[0] for row in rows])[: sides[0].length]
    return jnp.concatenate([jnp.concatenate(row, 1) for row in rows])[: sides[0].length, : sides[-1].length]


def _up(number: int, multiple: int) -> int:
    return -(-number // max(multiple, 1)) * max(multiple, 1)


class _Block(NamedTuple):
    """How much of a kernel is computed at a time: ``size`` items a side, and which of their logits."""

    size: int
    logits: slice


def _blocks(problem: Problem, params: Any, state: Any, sides: list[_Side], block: Callable, memory: float) -> list[_Block]:
    """The largest equal blocks that fit the memory.

    Where no two logits meet (a trace, a diagonal), logits go one after another before examples do: each block of
    logits costs one more forward pass, each pair of blocks of examples costs all passes again.
    """
    longest, unit = max(side.length for side in sides), max(len(problem.devices), 1)
    size = _up(longest, unit)
    num_logits = len(sides[0].directions) if problem.reduction != "full" and problem.pairs == "all" else 1
    at_a_time = num_logits
    while True:
        shape = _Block(size, slice(at_a_time if num_logits > 1 else None))
        alone = len(sides) == 1 and (size >= longest or problem.pairs == "same")
        pair = block(sides[0], 0, shape), None if alone else block(sides[-1], 0, shape)
        needed = flow_bytes(problem, params, state, *pair)
        if needed <= memory:  # else not worth a compilation
            needed = program(problem, params, state, *pair)[1]
        if needed <= memory:
            if num_logits == 1:
                return [shape]
            return [_Block(size, slice(k, k + at_a_time)) for k in range(0, num_logits, at_a_time)]
        fraction = min(0.9 * memory / needed, 0.75)
        if at_a_time > 1:
            at_a_time = next(n for n in range(max(int(at_a_time * fraction), 1), 0, -1) if num_logits % n == 0)
        elif size > unit:
            num_blocks = -(-longest // max(int(size * fraction), 1))
            size = max(unit, _up(-(-longest // num_blocks), unit) if num_blocks < longest else unit)
        else:
            raise TooLittleMemory(
                f"a block of {size} {'outputs' if problem.coupled else 'examples'} needs {needed:.3g} bytes of temporary memory, more "
                f"than memory = {memory:.3g}: allow more, or ask for fewer logits at a time"
            )


def _finish(problem: Problem, kernel: jax.Array, sides: list[_Side]) -> jax.Array:
    """Give the kernel the shape that was asked for."""
    single = problem.logits not in contraction.LOGITS
    if not problem.coupled:
        return kernel[..., 0, 0] if single else kernel
    n, m = sides[0].num_examples, sides[-1].num_examples
    kernel = kernel.reshape(n, -1, m, kernel.shape[1] // m).transpose(0, 2, 1, 3)
    if single:
        return kernel[..., 0, 0]
    if problem.logits == "full":
        return kernel
    diagonal = jnp.diagonal(kernel, axis1=2, axis2=3)
    return diagonal if problem.logits == "diagonal" else diagonal.sum(-1)
