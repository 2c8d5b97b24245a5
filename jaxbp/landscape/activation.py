"""How far a ReLU network is from its nearest kink, and a radius within which it cannot reach one.

A ReLU network whose pre-activations keep their signs is smooth in its parameters; if they are all positive it is a
composition of affine maps, hence affine in its input, whatever its architecture. `analyse` finds the smallest |pre-activation| over all
units and examples; `stable_radius` finds an r such that no parameter change of Euclidean norm below r flips any sign on any example.

Both walk the network's jaxpr, so they serve any model built of the operations below, Flax or not. Beside each intermediate
value the walk carries bounds on how much a parameter change of norm r can move it: ``norm``, in the Euclidean norm of one
example, and ``entry``, in each entry. A linear map W changed by at most r turns h, moved by at most d, into W h moved by
at most ||W|| d + r (||h|| + d); a ReLU passes a move on undiminished at worst; a sign is safe while its pre-activation is
larger than its ``entry`` bound. What the walk does not know (max-pooling, normalisation, tanh) it refuses by name.

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
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jex_core

ApplyFn = Callable[[Any, jax.Array], jax.Array]


class UnsupportedOperation(ValueError):
    """The network uses an operation whose response to a parameter change the walk cannot bound."""


class ActivationReport(NamedTuple):
    """Signs and margins of every ReLU on every example.

    ``smallest_margin``: least |pre-activation|, 0 at a kink, infinite without ReLUs; ``active_share``: share of the positive ones;
    ``all_active``: every one positive, so that near these parameters the network is affine in its input;
    ``num_units``: ReLUs for one example; ``max_rank``: no parameters give that affine map a higher rank (the narrowest place).
    """

    smallest_margin: float
    active_share: float
    all_active: bool
    num_units: int
    max_rank: int


class _Radius:
    """A parameter change's norm r, possibly traced; hashed by identity, so that bounds are computed once for each."""

    def __init__(self, value: jax.Array):
        self.value = value


class _Data(NamedTuple):
    """A value that depends on the input, examples first, and how far a parameter change of norm r moves it.

    ``bounds(r)`` gives the Euclidean norm of one example's move, shape (N,), and the move of one entry, broadcasting to value.
    ``rank``: numbers that one example was squeezed through at most.
    """

    value: jax.Array
    bounds: Callable[[_Radius], tuple[jax.Array, jax.Array]]
    rank: int


class _Param(NamedTuple):
    """A value made of parameters by rearranging and rescaling: entries move by at most ``entry`` r, constants by 0.

    ``size``: entries before any broadcast; a broadcast to n entries moves by at most ``entry`` sqrt(n / size) r in norm.
    """

    value: jax.Array
    size: int
    entry: jax.Array | float

    @property
    def is_constant(self) -> bool:
        return isinstance(self.entry, float) and self.entry == 0.0

    def norm(self, num_entries: int) -> jax.Array | float:
        return self.entry * math.sqrt(max(num_entries / self.size, 1.0))


def analyse(apply_fn: ApplyFn, params: Any, inputs: jax.Array, *, chunk_size: int | None = None) -> ActivationReport:
    """Margins and signs of all ReLUs of ``apply_fn(params, inputs)`` over ``inputs`` (N, ...), ``chunk_size`` at a time.

    Raises:
      UnsupportedOperation: names the operation that is not affine, ReLU or average pooling.
    """
    margins, active, num_units, max_rank = zip(*(_analyse(apply_fn, params, chunk) for chunk in _chunks(inputs, chunk_size)), strict=True)
    total, num_active = int(num_units[0]) * inputs.shape[0], sum(map(int, active))
    margin = float(jnp.min(jnp.stack(margins)))  # a NaN among them stays one
    return ActivationReport(margin, num_active / max(total, 1), num_active == total, int(num_units[0]), int(max_rank[0]))


def stable_radius(apply_fn: ApplyFn, params: Any, inputs: jax.Array, *, chunk_size: int | None = None) -> float:
    """A radius r: no change of all parameters together of Euclidean norm below r flips a ReLU on any of ``inputs``.

    The bound is safe, not tight: layers' worst cases are chained. 0 at a kink, infinite without ReLUs. In exact arithmetic;
    float64 is meant. ``chunk_size``: examples whose bounds are held at a time.

    Raises:
      UnsupportedOperation: as `analyse`.
    """
    return min(float(_stable_radius(apply_fn, params, chunk)) for chunk in _chunks(inputs, chunk_size))


def _chunks(inputs: jax.Array, chunk_size: int | None) -> list[jax.Array]:
    size = chunk_size or inputs.shape[0]
    return [inputs[start : start + size] for start in range(0, inputs.shape[0], size)]


@partial(jax.jit, static_argnums=0)
def _analyse(apply_fn: ApplyFn, params: Any, inputs: jax.Array) -> tuple:
    units, max_rank = _walk(apply_fn, params, inputs)
    margin = jnp.min(jnp.array([jnp.abs(z.value).min() for z in units] or [jnp.inf]))
    active = sum((z.value > 0).sum() for z in units)
    return margin, jnp.asarray(active), sum(math.prod(z.value.shape[1:]) for z in units), max_rank


@partial(jax.jit, static_argnums=0)
def _stable_radius(apply_fn: ApplyFn, params: Any, inputs: jax.Array) -> jax.Array:
    """Bisect the logarithm of r: the bounds grow with r, so the safe radii are an interval that starts at 0."""
    units, _ = _walk(apply_fn, params, inputs)

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


def _walk(apply_fn: ApplyFn, params: Any, inputs: jax.Array) -> tuple[list[_Data], int]:
    """Pre-activations of all ReLUs with their bounds, and the rank of the narrowest place."""
    closed = jax.make_jaxpr(apply_fn)(params, inputs)
    still = jnp.zeros(inputs.shape[0])
    arguments: list[_Param | _Data] = [_Param(leaf, leaf.size, 1.0) for leaf in jax.tree.leaves(params)]
    arguments.append(_Data(inputs, lambda _: (still, jnp.zeros(())), math.prod(inputs.shape[1:])))
    units: list[_Data] = []
    outputs = _run(closed.jaxpr, closed.consts, arguments, units)
    return units, sum(out.rank for out in outputs if isinstance(out, _Data))


def _run(jaxpr: Any, consts: list, arguments: list, units: list[_Data]) -> list:
    environment = dict(zip(jaxpr.constvars, map(_constant, consts), strict=True))
    environment.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> _Data | _Param:
        return _constant(atom.val) if isinstance(atom, jex_core.Literal) else environment[atom]

    for eqn in jaxpr.eqns:
        environment.update(zip(eqn.outvars, _evaluate(eqn, [read(a) for a in eqn.invars], units), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _constant(value: Any) -> _Param:
    value = jnp.asarray(value)
    return _Param(value, max(value.size, 1), 0.0)


_CALLS = {  # operations that only wrap a jaxpr, and the field that holds it
    "jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr", "remat2": "jaxpr", "checkpoint": "jaxpr",
}  # fmt: skip


def _evaluate(eqn: Any, operands: list, units: list[_Data]) -> list:
    name = eqn.primitive.name
    if name in _CALLS:
        inner = eqn.params[_CALLS[name]]
        jaxpr, consts = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, [])
        return _run(jaxpr, consts, operands, units)
    if all(isinstance(o, _Param) for o in operands):
        return _rearranged(eqn, operands)
    if name in ("mul", "max") and isinstance(operands[0], _Param):
        operands = operands[::-1]  # they commute
    data = [o for o in operands if isinstance(o, _Data)]
    if name not in _RULES or (name not in _SUMS and not (len(data) == 1 and data[0] is operands[0])):
        raise UnsupportedOperation(
            f"cannot bound the operation {name!r} applied to data: known are {', '.join(sorted(_RULES))}, with the data "
            "as the first operand. Use a variant of the model without it, such as average pooling or no normalisation"
        )
    if name == "max":
        units.append(_pre_activation(operands))
    (value,) = _bind(eqn, [o.value for o in operands])
    bounds = functools.cache(_RULES[name](eqn, operands, value))  # every unit downstream asks for the same radius
    return [_Data(value, bounds, min(sum(o.rank for o in data), math.prod(value.shape[1:])))]


def _bind(eqn: Any, values: list[jax.Array]) -> list[jax.Array]:
    outputs = eqn.primitive.bind(*values, **eqn.params)
    return list(outputs) if eqn.primitive.multiple_results else [outputs]


def _rearranged(eqn: Any, operands: list[_Param]) -> list[_Param]:
    """Parameters transposed, reshaped, broadcast or multiplied by constants; anything else done to them is refused."""
    values, name = _bind(eqn, [o.value for o in operands]), eqn.primitive.name
    moving = [o for o in operands if not o.is_constant]
    if not moving:
        return [_constant(value) for value in values]
    factor: jax.Array | float = 1.0
    if name == "mul" and len(moving) == 1:
        constant = operands[1] if operands[0] is moving[0] else operands[0]
        factor = jnp.abs(constant.value).max()
    elif name == "div" and operands[1].is_constant:
        factor = 1 / jnp.abs(operands[1].value).min()
    elif name not in _SAME_ENTRIES or not _keeps_digits(eqn):
        raise UnsupportedOperation(f"cannot bound the operation {name!r} applied to parameters: rearrange or rescale them only")
    return [_Param(values[0], moving[0].size, moving[0].entry * factor)]


def _pre_activation(operands: list) -> _Data:
    """The distance of ``max(data, constant)`` to its kink; the constant is 0 for a ReLU."""
    data, threshold = operands
    if not threshold.is_constant:
        raise UnsupportedOperation("cannot bound 'max' of anything but data and a constant")
    return data._replace(value=data.value - threshold.value)


def _example_norm(value: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(value.reshape(value.shape[0], -1) ** 2, -1))


def _per_example(vector: jax.Array, like: jax.Array) -> jax.Array:
    return vector.reshape(-1, *[1] * (like.ndim - 1))


def _repeats(operand: jax.Array, value: jax.Array) -> float:
    """Growth of the norm of ``operand`` when it is broadcast to the shape of ``value``."""
    return math.sqrt(value.size / operand.size)


def _linear(data: _Data, weights: _Param, value: jax.Array, operator_norm: Any, unit_norms: Any, seen: Any, uses: int):
    """Bounds after a linear map: ``unit_norms`` are norms of the weights of each output unit, ``seen`` those of the inputs
    that an output entry is made of; each weight is used at ``uses`` places of an overlapping patch at most."""
    example = _example_norm(data.value)
    step = weights.norm(weights.value.size)

    def bounds(radius: _Radius) -> tuple[jax.Array, jax.Array]:
        moved, _ = data.bounds(radius)
        norm = operator_norm * moved + radius.value * step * math.sqrt(uses) * (example + moved)
        here = _per_example(moved, value)
        return norm, unit_norms * here + radius.value * step * (seen + here)

    return bounds


def _dot(eqn: Any, operands: list, value: jax.Array):
    data, weights = operands
    (contracted, rhs_contracted), batch = eqn.params["dimension_numbers"]
    if batch != ((), ()) or 0 in contracted:
        raise UnsupportedOperation("cannot bound a 'dot_general' that contracts or batches over the examples")
    kept = [i for i in range(weights.value.ndim) if i not in rhs_contracted]
    kept_shape = [weights.value.shape[i] for i in kept]
    matrix = weights.value.transpose(*rhs_contracted, *kept).reshape(-1, math.prod(kept_shape))
    unit_norms = jnp.linalg.norm(matrix, axis=0).reshape(kept_shape)
    free = [n for i, n in enumerate(data.value.shape) if i not in contracted]
    seen = jnp.sqrt(jnp.sum(data.value**2, contracted)).reshape(*free, *[1] * len(kept))
    return _linear(data, weights, value, jnp.linalg.norm(matrix, 2), unit_norms, seen, 1)


def _convolution(eqn: Any, operands: list, value: jax.Array):
    data, weights = operands
    numbers = _dimension_numbers(eqn, value.ndim - 2)
    out_axis, in_axis, *spatial = numbers.rhs_spec
    taps = math.prod(weights.value.shape[i] for i in spatial)
    matrices = weights.value.transpose(*spatial, in_axis, out_axis).reshape(taps, weights.value.shape[in_axis], -1)
    # Each tap is a shift times a matrix, so norms add up; cutting all patches out repeats an entry at most `taps` times.
    stacked = math.sqrt(taps) * jnp.linalg.norm(matrices.reshape(-1, matrices.shape[-1]), 2)
    operator_norm = jnp.minimum(jnp.linalg.norm(matrices, 2, (1, 2)).sum(), stacked)
    unit_norms = jnp.sqrt((matrices**2).sum((0, 1)))
    unit_norms = unit_norms.reshape([-1 if i == numbers.out_spec[1] else 1 for i in range(value.ndim)])
    ones_shape = [1 if i == out_axis else n for i, n in enumerate(weights.value.shape)]
    seen = jnp.sqrt(_bind(eqn, [data.value**2, jnp.ones(ones_shape, value.dtype)])[0])
    return _linear(data, weights, value, operator_norm, unit_norms, seen, taps)


def _dimension_numbers(eqn: Any, num_spatial: int) -> lax.ConvDimensionNumbers:
    """Axes of a convolution by `jax.lax`, or by `jaxbp.ops.convolution`, which is channels-last."""
    if eqn.primitive.name == "jaxbp_conv":
        if eqn.params["spec"].product != "output" or eqn.params["spec"].stacked:
            raise UnsupportedOperation("cannot bound the gradient of a convolution, or one with vmapped kernels")
        spatial = range(1, num_spatial + 1)
        last = num_spatial + 1
        return lax.ConvDimensionNumbers((0, last, *spatial), (last, num_spatial, *range(num_spatial)), (0, last, *spatial))
    numbers = eqn.params["dimension_numbers"]
    if numbers.lhs_spec[0] != 0 or numbers.out_spec[0] != 0 or eqn.params["batch_group_count"] != 1:
        raise UnsupportedOperation("cannot bound a convolution whose examples are not on the leading axis")
    if eqn.params["feature_group_count"] != 1:
        raise UnsupportedOperation("cannot bound a grouped convolution")
    return numbers


def _sum(eqn: Any, operands: list, value: jax.Array):
    def bounds(radius: _Radius) -> tuple[jax.Array, jax.Array]:
        moves = [_moves(o, value, radius) for o in operands]
        return moves[0][0] + moves[1][0], moves[0][1] + moves[1][1]

    return bounds


def _moves(operand: _Data | _Param, value: jax.Array, radius: _Radius) -> tuple[jax.Array, jax.Array]:
    """Norm and entry moves of a term of ``value``, to which it may be broadcast (a bias over the positions of a map)."""
    if isinstance(operand, _Data):
        moved, entry = operand.bounds(radius)
        return _repeats(operand.value, value) * moved, entry
    return radius.value * operand.norm(math.prod(value.shape[1:])), radius.value * operand.entry


def _scaled(eqn: Any, operands: list, value: jax.Array):
    data, factor = operands
    if eqn.primitive.name == "div":
        if not factor.is_constant:
            raise UnsupportedOperation("cannot bound a division by parameters")
        factor = _constant(1 / factor.value)
    example = _example_norm(data.value)

    def bounds(radius: _Radius) -> tuple[jax.Array, jax.Array]:
        moved, entry = data.bounds(radius)
        size, step = jnp.abs(factor.value), radius.value * factor.entry
        norm = _repeats(data.value, value) * (size.max() * moved + step * (example + moved))
        return norm, size * entry + step * (jnp.abs(data.value) + entry)

    return bounds


def _unchanged(eqn: Any, operands: list, value: jax.Array):
    """Entries stay what they are, in the same order or another, or are repeated; ReLU shortens moves or keeps them."""
    data, others = operands[0], [o.value for o in operands[1:]]
    if value.shape[:1] != data.value.shape[:1] or not _keeps_examples(eqn):
        raise UnsupportedOperation(f"cannot bound {eqn.primitive.name!r} when it moves the examples off the leading axis")
    if not _keeps_digits(eqn):
        raise UnsupportedOperation(f"cannot bound the rounding of 'convert_element_type' to {value.dtype}")
    same_layout = eqn.primitive.name in _ELEMENTWISE

    def bounds(radius: _Radius) -> tuple[jax.Array, jax.Array]:
        moved, entry = data.bounds(radius)
        if not (same_layout or entry.ndim == 0):
            (entry,) = _bind(eqn, [jnp.broadcast_to(entry, data.value.shape), *others])
        return _repeats(data.value, value) * moved, entry

    return bounds


def _keeps_examples(eqn: Any) -> bool:
    """Whether the leading axis stays itself, beyond its length."""
    name, params = eqn.primitive.name, eqn.params
    if name == "transpose":
        return params["permutation"][0] == 0
    if name == "rev":
        return 0 not in params["dimensions"]
    return name != "broadcast_in_dim" or params["broadcast_dimensions"][0] == 0


def _keeps_digits(eqn: Any) -> bool:
    if eqn.primitive.name != "convert_element_type":
        return True
    old, new = eqn.invars[0].aval.dtype, eqn.params["new_dtype"]
    return jnp.issubdtype(new, jnp.floating) and jnp.promote_types(old, new) == new


def _pooled(eqn: Any, operands: list, value: jax.Array):
    """Sums over disjoint or overlapping groups of entries (average pooling before its division)."""
    data, params = operands[0], eqn.params
    if eqn.primitive.name == "reduce_sum":
        over_examples, overlap = 0 in params["axes"], 1
        count = math.prod(data.value.shape[i] for i in params["axes"])
    else:
        window, strides = params["window_dimensions"], params["window_strides"]
        over_examples, count = window[0] != 1 or strides[0] != 1, math.prod(window)
        dilated = any(d != 1 for d in params["window_dilation"])
        overlap = count if dilated else math.prod(math.ceil(w / s) for w, s in zip(window, strides, strict=True))
    if over_examples:
        raise UnsupportedOperation("cannot bound a sum over the examples")

    def bounds(radius: _Radius) -> tuple[jax.Array, jax.Array]:
        moved, entry = data.bounds(radius)
        (entry,) = _bind(eqn, [jnp.broadcast_to(entry, data.value.shape)])
        return math.sqrt(count * overlap) * moved, jnp.minimum(entry, math.sqrt(count) * _per_example(moved, value))

    return bounds


_ELEMENTWISE = ("max", "neg", "copy", "convert_element_type", "stop_gradient")
_LAYOUT = ("reshape", "transpose", "squeeze", "broadcast_in_dim", "rev")
_SAME_ENTRIES = {*_ELEMENTWISE, *_LAYOUT} - {"max"}  # of parameters: a ReLU of them has a kink of its own
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
