"""Distance of a ReLU network from its nearest kink, and a radius within which the network reaches no kink.

A ReLU network is smooth in its parameters while its pre-activations keep their signs. If all pre-activations are positive, the
network is a composition of affine maps, hence affine in its input, whatever its architecture. `analyse` finds the smallest
|pre-activation| over all units and examples. `stable_radius` finds an r such that no parameter change of Euclidean norm below r flips
any sign on any example.

Both functions interpret the network's jaxpr, so they work for any model made of the operations below, with Flax or without. For
each intermediate value the interpreter carries two bounds on how far a parameter change of norm r moves the value: ``norm``, in the
Euclidean norm of one example, and ``entry``, in each entry. Let W change by at most r in norm and let h move by at most d; then W h
moves by at most ||W|| d + r (||h|| + d). A ReLU does not enlarge a move. A sign is safe while the pre-activation is larger than its
``entry`` bound. Other operations (max-pooling, normalisation, tanh) are refused by name.

>>> import jax.numpy as jnp
>>> from jaxbp import landscape
>>> def apply_fn(params, x):
...     return jax.nn.relu(x @ params["w"] + params["b"])
>>> params = {"w": jnp.eye(2), "b": jnp.full(2, 5.0)}
>>> report = landscape.analyse(apply_fn, params, jnp.array([[3.0, 4.0]]))
>>> report.smallest_margin, report.all_active
(8.0, True)
>>> radius = landscape.stable_radius(apply_fn, params, jnp.array([[3.0, 4.0]]))  # 8 = r (||x|| + 1)
>>> round(radius, 4)
1.3333
"""

import functools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Num, PyTree

from jaxbp import checks
from jaxbp.jaxprs import interpret

Inputs = Num[jax.Array | np.ndarray, "n ..."]
ApplyFn = Callable[[Any, jax.Array], jax.Array]


class UnsupportedOperationError(ValueError):
    """The network has an operation whose response to a parameter change has no known bound."""


class ActivationReport(NamedTuple):
    """Signs and margins of every ReLU on every example.

    Attributes:
      smallest_margin: least |pre-activation|; 0 at a kink, infinite without ReLUs.
      active_share: share of the pre-activations that are positive.
      all_active: whether every pre-activation is positive, so that near these parameters the network is affine in its input.
      num_units: number of ReLUs for one example.
      max_rank: width of the narrowest place, 0 for a layer whose ReLUs are dead (negative) on every example: while no sign changes, no
        parameters give the affine map a higher rank.
    """

    smallest_margin: float
    active_share: float
    all_active: bool
    num_units: int
    max_rank: int

    @property
    def is_constant(self) -> bool:
        """Whether dead layers keep the input from the logits, so that near these parameters all examples have the same logits."""
        return self.max_rank == 0


class _Radius:
    """Norm r of a parameter change, possibly traced; hashed by identity, so that each bound is computed once for each radius."""

    def __init__(self, value: jax.Array):
        self.value = value


class _Data(NamedTuple):
    """A value that depends on the input, with bounds on its move under a parameter change of norm r.

    Attributes:
      value: examples on the leading axis.
      bounds: from r to the Euclidean norm of each example's move, shape (N,), and the move of each entry, broadcasting to ``value``.
      rank: smallest number of values that one example passed through.
    """

    value: jax.Array
    bounds: Callable[[_Radius], tuple[jax.Array, jax.Array]]
    rank: int


class _Param(NamedTuple):
    """A constant, or a value made of parameters by rearranging and rescaling.

    Attributes:
      value: the array.
      size: number of entries before any broadcast; a broadcast to n entries moves by at most ``entry`` sqrt(n / size) r in norm.
      entry: each entry moves by at most ``entry`` r; 0 for constants.
      repeats: whether the leading axis repeats one slice, as that of a bias broadcast to all examples does.
    """

    value: jax.Array
    size: int
    entry: jax.Array | float
    repeats: bool = False

    @property
    def is_constant(self) -> bool:
        return isinstance(self.entry, float) and self.entry == 0.0

    def norm(self, num_entries: int) -> jax.Array | float:
        return self.entry * math.sqrt(max(num_entries / self.size, 1.0))


def analyse(apply_fn: ApplyFn, params: PyTree, inputs: Inputs, *, chunk_size: int | None = None) -> ActivationReport:
    """Margins and signs of all ReLUs of ``apply_fn(params, inputs)``.

    Args:
      apply_fn: logits (N, C) from parameters and inputs; pass the same object again to reuse the compiled program.
      params: pytree of floating-point arrays.
      inputs: (N, ...).
      chunk_size: number of examples whose activations are held at a time; None holds all.

    Raises:
      UnsupportedOperationError: for an operation that is not affine, ReLU or average pooling; the message names it.
      ValueError: parameters that are no real floating-point arrays, or inputs that are no array of examples.
    """
    params, inputs = checks.parameters(params), checks.examples(inputs)
    checks.refuse_traced("params and inputs", inputs, *jax.tree.leaves(params))
    reports = [_analyse(apply_fn, params, chunk) for chunk in _chunks(inputs, chunk_size)]
    margins, active, num_units, max_ranks, dead = zip(*reports, strict=True)
    total, num_active = int(num_units[0]) * inputs.shape[0], sum(map(int, active))
    margin = float(jnp.min(jnp.stack(margins)))  # a NaN among them stays one
    dead = np.all(dead, axis=0)
    max_rank = _max_rank(apply_fn, params, inputs[:1], dead.tolist()) if dead.any() else int(max_ranks[0])
    return ActivationReport(margin, num_active / max(total, 1), num_active == total, int(num_units[0]), max_rank)


def stable_radius(apply_fn: ApplyFn, params: PyTree, inputs: Inputs, *, chunk_size: int | None = None) -> float:
    """A radius r such that no parameter change of Euclidean norm below r (over all parameters) flips a ReLU on any of ``inputs``.

    The bound is safe, not tight: it chains the worst cases of the layers. The radius is 0 at a kink and infinite without ReLUs. The
    bound holds in exact arithmetic: use float64.

    Args:
      apply_fn, params, inputs: as in `analyse`.
      chunk_size: number of examples whose bounds are held at a time; None holds all.

    Raises:
      UnsupportedOperationError: as `analyse`.
    """
    params, inputs = checks.parameters(params), checks.examples(inputs)
    return min(float(_stable_radius(apply_fn, params, chunk)) for chunk in _chunks(inputs, chunk_size))


def _chunks(inputs: Any, chunk_size: int | None) -> list[jax.Array]:
    size = chunk_size or inputs.shape[0]
    return [inputs[start : start + size] for start in range(0, inputs.shape[0], size)]


@partial(jax.jit, static_argnums=0)
def _analyse(apply_fn: ApplyFn, params: Any, inputs: jax.Array) -> tuple:
    units, max_rank = _interpret(apply_fn, params, inputs)
    margin = jnp.min(jnp.array([jnp.abs(z.value).min() for z in units] or [jnp.inf]))
    active = sum((z.value > 0).sum() for z in units)
    dead = jnp.array([jnp.all(z.value < 0) for z in units], bool)
    return margin, jnp.asarray(active), sum(math.prod(z.value.shape[1:]) for z in units), max_rank, dead


def _max_rank(apply_fn: ApplyFn, params: Any, inputs: jax.Array, dead: list[bool]) -> int:
    """The rank of the narrowest place, by tracing alone; the ReLUs of ``dead`` layers carry nothing."""
    ranks: list[int] = []
    jax.eval_shape(lambda p, x: ranks.append(_interpret(apply_fn, p, x, dead)[1]), params, inputs)
    return ranks[0]


@partial(jax.jit, static_argnums=0)
def _stable_radius(apply_fn: ApplyFn, params: Any, inputs: jax.Array) -> jax.Array:
    """Bisect the logarithm of r; the bounds grow with r, so the safe radii are an interval that starts at 0."""
    units, _ = _interpret(apply_fn, params, inputs)

    def safe(log_radius: jax.Array) -> jax.Array:
        radius = _Radius(jnp.exp(log_radius))
        return jnp.all(jnp.array([jnp.all(jnp.abs(z.value) > z.bounds(radius)[1]) for z in units]))

    def halve(_: int, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        middle = 0.5 * (bracket[0] + bracket[1])
        return jax.lax.cond(safe(middle), lambda: (middle, bracket[1]), lambda: (bracket[0], middle))

    if not units:
        return jnp.array(jnp.inf)
    floor, ceiling = jnp.log(jnp.array([1e-30, 1e10], float))
    low, _ = jax.lax.fori_loop(0, 60, halve, (floor, ceiling))
    return jnp.where(safe(floor), jnp.exp(low), 0.0)


def _interpret(apply_fn: ApplyFn, params: Any, inputs: jax.Array, dead: Sequence[bool] = ()) -> tuple[list[_Data], int]:
    """Pre-activations of all ReLUs with their bounds, and the rank of the narrowest place."""
    program = interpret.trace(apply_fn, params, inputs)
    still = jnp.zeros(inputs.shape[0])
    arguments: list[_Param | _Data] = [_Param(leaf, leaf.size, 1.0) for leaf in jax.tree.leaves(params)]
    arguments.append(_Data(inputs, lambda _: (still, jnp.zeros(())), math.prod(inputs.shape[1:])))
    units: list[_Data] = []
    outputs = program.evaluate(
        arguments, partial(_evaluate, units, dead), opened=(interpret.CALL, interpret.CUSTOM_DERIVATIVE), constant_fn=_constant
    )
    return units, sum(output.rank for output in outputs if isinstance(output, _Data))


def _constant(value: Any, repeats: bool = False) -> _Param:
    value = jnp.asarray(value)
    return _Param(value, max(value.size, 1), 0.0, repeats)


def _evaluate(units: list[_Data], dead: Sequence[bool], operation: interpret.Operation, operands: list) -> list:
    """Value and bounds of one operation's outputs; pre-activations are appended to ``units``."""
    name = operation.name
    if all(isinstance(o, _Param) for o in operands):
        return _rearranged(operation, operands)
    values = [o.value for o in operands]
    if name in ("mul", "max") and isinstance(operands[0], _Param):
        operands = operands[::-1]  # both operations commute
    data = [o for o in operands if isinstance(o, _Data)]
    if name not in _RULES or (name not in _SUMS and not (len(data) == 1 and data[0] is operands[0])):
        raise UnsupportedOperationError(
            f"cannot bound the operation {name!r} applied to data: known are {', '.join(sorted(_RULES))}, with the data "
            "as the first operand. Use a variant of the model without it, such as average pooling or no normalisation"
        )
    if name in (*_SUMS, "mul", "div", "max"):
        _refuse_per_example(operands, data[0].value)
    rank = min(sum(o.rank for o in data), math.prod(operation.output_types[0].shape[1:]))
    if name == "max":
        rank = 0 if dead and dead[len(units)] else rank
        units.append(_pre_activation(operands))
    (value,) = operation.apply(values)
    bounds = functools.cache(_RULES[name](operation, operands, value))  # every later unit asks for the same radius
    return [_Data(value, bounds, rank)]


def _refuse_per_example(operands: list, data: jax.Array) -> None:
    """Raise for parameters or constants with an entry for each example: with them the logits are no function of the input alone."""
    for operand in operands:
        if isinstance(operand, _Param) and operand.value.ndim == data.ndim and not operand.repeats and operand.value.shape[0] > 1:
            raise UnsupportedOperationError(
                f"parameters or constants of shape {operand.value.shape} have an entry for each of {data.shape[0]} examples: "
                "pass what belongs to an example as part of the inputs"
            )


def _rearranged(operation: interpret.Operation, operands: list[_Param]) -> list[_Param]:
    """Parameters after a transposition, reshape, broadcast or multiplication by constants; refuse all other operations."""
    values, name = operation.apply([o.value for o in operands]), operation.name
    moving = [o for o in operands if not o.is_constant]
    repeats = _repeats_leading(operation, operands)
    if not moving:
        return [_constant(value, repeats) for value in values]
    factor: jax.Array | float = 1.0
    if name == "mul" and len(moving) == 1:
        constant = operands[1] if operands[0] is moving[0] else operands[0]
        factor = jnp.abs(constant.value).max()
    elif name == "div" and operands[1].is_constant:
        factor = 1 / jnp.abs(operands[1].value).min()
    elif name not in _SAME_ENTRIES or not _keeps_digits(operation):
        raise UnsupportedOperationError(f"cannot bound the operation {name!r} applied to parameters: rearrange or rescale them only")
    return [_Param(values[0], moving[0].size, moving[0].entry * factor, repeats)]


def _repeats_leading(operation: interpret.Operation, operands: list[_Param]) -> bool:
    """Whether all slices of the result along its leading axis are equal by construction."""
    if operation.name == "broadcast_in_dim":
        axes = operation.params["broadcast_dimensions"]
        return 0 not in axes or operands[0].value.shape[axes.index(0)] == 1 or operands[0].repeats
    if operation.name in ("reshape", "transpose", "squeeze", "rev"):
        return False
    return all(o.repeats or o.value.ndim == 0 for o in operands)


def _pre_activation(operands: list) -> _Data:
    """The distance of ``max(data, constant)`` from its kink; the constant is 0 for a ReLU."""
    data, threshold = operands
    if not threshold.is_constant:
        raise UnsupportedOperationError("cannot bound 'max' of anything but data and a constant")
    return data._replace(value=data.value - threshold.value)


def _example_norm(value: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(value.reshape(value.shape[0], -1) ** 2, -1))


def _per_example(vector: jax.Array, like: jax.Array) -> jax.Array:
    return vector.reshape(-1, *[1] * (like.ndim - 1))


def _repeats(operand: jax.Array, value: jax.Array) -> float:
    """Growth of the norm of ``operand`` when it is broadcast to the shape of ``value``."""
    return math.sqrt(value.size / operand.size)


def _linear(data: _Data, weights: _Param, value: jax.Array, operator_norm: Any, unit_norms: Any, seen: Any, uses: int):
    """Bounds after a linear map.

    Args:
      data, weights: the factors; value: their product.
      operator_norm: spectral norm of the map.
      unit_norms: norms of the weights of each output unit.
      seen: norms of the inputs that each output entry depends on.
      uses: largest number of places of an overlapping patch at which a weight is used.
    """
    example = _example_norm(data.value)
    step = weights.norm(weights.value.size)

    def bounds(radius: _Radius) -> tuple[jax.Array, jax.Array]:
        moved, _ = data.bounds(radius)
        norm = operator_norm * moved + radius.value * step * math.sqrt(uses) * (example + moved)
        here = _per_example(moved, value)
        return norm, unit_norms * here + radius.value * step * (seen + here)

    return bounds


def _dot(operation: interpret.Operation, operands: list, value: jax.Array):
    data, weights = operands
    (contracted, rhs_contracted), batch = operation.params["dimension_numbers"]
    if batch != ((), ()) or 0 in contracted:
        raise UnsupportedOperationError("cannot bound a 'dot_general' that contracts or batches over the examples")
    kept = [i for i in range(weights.value.ndim) if i not in rhs_contracted]
    kept_shape = [weights.value.shape[i] for i in kept]
    matrix = weights.value.transpose(*rhs_contracted, *kept).reshape(-1, math.prod(kept_shape))
    unit_norms = jnp.linalg.norm(matrix, axis=0).reshape(kept_shape)
    free = [n for i, n in enumerate(data.value.shape) if i not in contracted]
    seen = jnp.sqrt(jnp.sum(data.value**2, contracted)).reshape(*free, *[1] * len(kept))
    return _linear(data, weights, value, jnp.linalg.norm(matrix, 2), unit_norms, seen, 1)


def _convolution(operation: interpret.Operation, operands: list, value: jax.Array):
    data, weights = operands
    numbers = _dimension_numbers(operation, value.ndim - 2)
    out_axis, in_axis, *spatial = numbers.rhs_spec
    taps = math.prod(weights.value.shape[i] for i in spatial)
    matrices = weights.value.transpose(*spatial, in_axis, out_axis).reshape(taps, weights.value.shape[in_axis], -1)
    # Each tap is a shift times a matrix, so the norms of the taps add up. The patches repeat an entry at most `taps` times.
    stacked = math.sqrt(taps) * jnp.linalg.norm(matrices.reshape(-1, matrices.shape[-1]), 2)
    operator_norm = jnp.minimum(jnp.linalg.norm(matrices, 2, (1, 2)).sum(), stacked)
    unit_norms = jnp.sqrt((matrices**2).sum((0, 1)))
    unit_norms = unit_norms.reshape([-1 if i == numbers.out_spec[1] else 1 for i in range(value.ndim)])
    ones_shape = [1 if i == out_axis else n for i, n in enumerate(weights.value.shape)]
    seen = jnp.sqrt(operation.apply([data.value**2, jnp.ones(ones_shape, value.dtype)])[0])
    return _linear(data, weights, value, operator_norm, unit_norms, seen, taps)


def _dimension_numbers(operation: interpret.Operation, num_spatial: int) -> lax.ConvDimensionNumbers:
    """Axes of a convolution by `jax.lax` or by `jaxbp.ops.convolution`; the latter has its channels last."""
    if operation.name == "jaxbp_conv":
        if operation.params["spec"].product != "output" or operation.params["spec"].stacked:
            raise UnsupportedOperationError("cannot bound the gradient of a convolution, or one with vmapped kernels")
        spatial = range(1, num_spatial + 1)
        last = num_spatial + 1
        return lax.ConvDimensionNumbers((0, last, *spatial), (last, num_spatial, *range(num_spatial)), (0, last, *spatial))
    numbers = operation.params["dimension_numbers"]
    if numbers.lhs_spec[0] != 0 or numbers.out_spec[0] != 0 or operation.params["batch_group_count"] != 1:
        raise UnsupportedOperationError("cannot bound a convolution whose examples are not on the leading axis")
    if operation.params["feature_group_count"] != 1:
        raise UnsupportedOperationError("cannot bound a grouped convolution")
    return numbers


def _sum(operation: interpret.Operation, operands: list, value: jax.Array):
    def bounds(radius: _Radius) -> tuple[jax.Array, jax.Array]:
        moves = [_moves(o, value, radius) for o in operands]
        return moves[0][0] + moves[1][0], moves[0][1] + moves[1][1]

    return bounds


def _moves(operand: _Data | _Param, value: jax.Array, radius: _Radius) -> tuple[jax.Array, jax.Array]:
    """Norm and entry moves of a term of ``value``; the term may be broadcast to it (a bias over the positions of a map)."""
    if isinstance(operand, _Data):
        moved, entry = operand.bounds(radius)
        return _repeats(operand.value, value) * moved, entry
    return radius.value * operand.norm(math.prod(value.shape[1:])), radius.value * operand.entry


def _scaled(operation: interpret.Operation, operands: list, value: jax.Array):
    data, factor = operands
    if operation.name == "div":
        if not factor.is_constant:
            raise UnsupportedOperationError("cannot bound a division by parameters")
        factor = _constant(1 / factor.value)
    example = _example_norm(data.value)

    def bounds(radius: _Radius) -> tuple[jax.Array, jax.Array]:
        moved, entry = data.bounds(radius)
        size, step = jnp.abs(factor.value), radius.value * factor.entry
        norm = _repeats(data.value, value) * (size.max() * moved + step * (example + moved))
        return norm, size * entry + step * (jnp.abs(data.value) + entry)

    return bounds


def _unchanged(operation: interpret.Operation, operands: list, value: jax.Array):
    """Bounds after an operation that reorders or repeats entries, or after a ReLU, which enlarges no move."""
    data, others = operands[0], [o.value for o in operands[1:]]
    if value.shape[:1] != data.value.shape[:1] or not _keeps_examples(operation):
        raise UnsupportedOperationError(f"cannot bound {operation.name!r} when it moves the examples off the leading axis")
    if not _keeps_digits(operation):
        raise UnsupportedOperationError(f"cannot bound the rounding of 'convert_element_type' to {value.dtype}")
    same_layout = operation.name in _ELEMENTWISE

    def bounds(radius: _Radius) -> tuple[jax.Array, jax.Array]:
        moved, entry = data.bounds(radius)
        if not (same_layout or entry.ndim == 0):
            (entry,) = operation.apply([jnp.broadcast_to(entry, data.value.shape), *others])
        return _repeats(data.value, value) * moved, entry

    return bounds


def _keeps_examples(operation: interpret.Operation) -> bool:
    """Whether the examples keep their order on the leading axis."""
    name, params = operation.name, operation.params
    if name == "transpose":
        return params["permutation"][0] == 0
    if name == "rev":
        return 0 not in params["dimensions"]
    return name != "broadcast_in_dim" or params["broadcast_dimensions"][0] == 0


def _keeps_digits(operation: interpret.Operation) -> bool:
    """Whether the operation rounds nothing."""
    if operation.name != "convert_element_type":
        return True
    old, new = operation.input_types[0].dtype, operation.params["new_dtype"]
    return jnp.issubdtype(new, jnp.floating) and jnp.promote_types(old, new) == new


def _pooled(operation: interpret.Operation, operands: list, value: jax.Array):
    """Bounds after sums over disjoint or overlapping groups of entries (average pooling before its division)."""
    data, params = operands[0], operation.params
    if operation.name == "reduce_sum":
        over_examples, overlap = 0 in params["axes"], 1
        count = math.prod(data.value.shape[i] for i in params["axes"])
    else:
        window, strides = params["window_dimensions"], params["window_strides"]
        over_examples, count = window[0] != 1 or strides[0] != 1, math.prod(window)
        dilated = any(d != 1 for d in params["window_dilation"])
        overlap = count if dilated else math.prod(math.ceil(w / s) for w, s in zip(window, strides, strict=True))
    if over_examples:
        raise UnsupportedOperationError("cannot bound a sum over the examples")

    def bounds(radius: _Radius) -> tuple[jax.Array, jax.Array]:
        moved, entry = data.bounds(radius)
        (entry,) = operation.apply([jnp.broadcast_to(entry, data.value.shape)])
        return math.sqrt(count * overlap) * moved, jnp.minimum(entry, math.sqrt(count) * _per_example(moved, value))

    return bounds


_ELEMENTWISE = ("max", "neg", "copy", "convert_element_type", "stop_gradient")
_LAYOUT = ("reshape", "transpose", "squeeze", "broadcast_in_dim", "rev")
_SAME_ENTRIES = {*_ELEMENTWISE, *_LAYOUT} - {"max"}  # operations on parameters; a ReLU of parameters has a kink of its own
_SUMS = ("add", "add_any", "sub")
_RULES = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "jaxbp_conv": _convolution,
    "mul": _scaled,
    "div": _scaled,
    "reduce_sum": _pooled,
    "reduce_window_sum": _pooled,
    **dict.fromkeys(_SUMS, _sum),
    **dict.fromkeys((*_ELEMENTWISE, *_LAYOUT), _unchanged),
}
