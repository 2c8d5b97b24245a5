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
from jax.extend import core as jex_core

ApplyFn = Callable[[Any, jax.Array], jax.Array]


class UnsupportedOperation(ValueError):
    """The network uses an operation whose response to a parameter change the walk cannot bound."""


class ActivationReport(NamedTuple):
    """Signs and margins of every ReLU on every example.

    ``smallest_margin``: least |pre-activation|, 0 at a kink, infinite without ReLUs; ``active_share``: share of the positive ones;
    ``all_active``: every one positive, so that near these parameters the network is affine in its input;
    ``num_units``: ReLUs for one example.
    """

    smallest_margin: float
    active_share: float
    all_active: bool
    num_units: int


class _Radius:
    """A parameter change's norm r, possibly traced; hashed by identity, so that bounds are computed once for each."""

    def __init__(self, value: jax.Array):
        self.value = value


class _Data(NamedTuple):
    """A value that depends on the input, examples first, and how far a parameter change of norm r moves it.

    ``bounds(r)`` gives the Euclidean norm of one example's move, shape (N,), and the move of one entry, broadcasting to value.
    """

    value: jax.Array
    bounds: Callable[[_Radius], tuple[jax.Array, jax.Array]]


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


def analyse(apply_fn: ApplyFn, params: Any, inputs: jax.Array) -> ActivationReport:
    """Margins and signs of all ReLUs of ``apply_fn(params, inputs)`` over ``inputs`` (N, ...).

    Raises:
      UnsupportedOperation: names the operation that is not affine, ReLU or average pooling.
    """
    margin, num_active, num_units = _analyse(apply_fn, params, inputs)
    total = int(num_units) * inputs.shape[0]
    return ActivationReport(float(margin), int(num_active) / max(total, 1), int(num_active) == total, int(num_units))


def stable_radius(apply_fn: ApplyFn, params: Any, inputs: jax.Array) -> float:
    """A radius r: no change of all parameters together of Euclidean norm below r flips a ReLU on any of ``inputs``.

    The bound is safe, not tight: layers' worst cases are chained. 0 at a kink, infinite without ReLUs. In exact arithmetic;
    float64 is meant.

    Raises:
      UnsupportedOperation: as `analyse`.
    """
    return float(_stable_radius(apply_fn, params, inputs))


@partial(jax.jit, static_argnums=0)
def _analyse(apply_fn: ApplyFn, params: Any, inputs: jax.Array) -> tuple:
    units = _walk(apply_fn, params, inputs)
    margin = jnp.min(jnp.array([jnp.abs(z.value).min() for z in units] or [jnp.inf]))
    active = sum((z.value > 0).sum() for z in units)
    return margin, jnp.asarray(active), sum(math.prod(z.value.shape[1:]) for z in units)


@partial(jax.jit, static_argnums=0)
def _stable_radius(apply_fn: ApplyFn, params: Any, inputs: jax.Array) -> jax.Array:
    """Bisect the logarithm of r: the bounds grow with r, so the safe radii are an interval that starts at 0."""
    units = _walk(apply_fn, params, inputs)

    def safe(log_radius: jax.Array) -> jax.Array:
        radius = _Radius(jnp.exp(log_radius))
        return jnp.all(jnp.array([jnp.all(jnp.abs(z.value) > z.bounds(radius)[1]) for z in units]))

    def halve(_: int, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        middle = 0.5 * (bracket[0] + bracket[1])
        return jax.lax.cond(safe(middle), lambda: (middle, bracket[1]), lambda: (bracket[0], middle))

    if not units:
        return jnp.array(jnp.inf)
    floor, ceiling = (jnp.array(math.log(r), inputs.dtype) for r in (1e-30, 1e10))
    low, _ = jax.lax.fori_loop(0, 60, halve, (floor, ceiling))
    return jnp.where(safe(floor), jnp.exp(low), 0.0)


def _walk(apply_fn: ApplyFn, params: Any, inputs: jax.Array) -> list[_Data]:
    """Pre-activations of all ReLUs with their bounds."""
    closed = jax.make_jaxpr(apply_fn)(params, inputs)
    still = jnp.zeros(inputs.shape[0], inputs.dtype)
    arguments = [_Param(leaf, leaf.size, 1.0) for leaf in jax.tree.leaves(params)]
    arguments.append(_Data(inputs, lambda _: (still, jnp.zeros((), inputs.dtype))))
    units: list[_Data] = []
    _run(closed.jaxpr, closed.consts, arguments, units)
    return units


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
        return [_rearranged(eqn, operands)]
    if name == "max":
        units.append(_pre_activation(operands))
    data_in_other_places = any(isinstance(o, _Data) for o in operands[1:])
    if name not in _RULES or (data_in_other_places and name not in _SUMS):
        raise UnsupportedOperation(
            f"cannot bound the operation {name!r} applied to data: known are {', '.join(sorted(_RULES))}, with the data "
            "as the first operand. Use a variant of the model without it, such as average pooling or no normalisation"
        )
    value = _bind(eqn, operands)
    bounds = _RULES[name](eqn, operands, value)
    return [_Data(value, functools.cache(bounds))]  # cached: every unit downstream asks again for the same radius


def _bind(eqn: Any, operands: list) -> jax.Array:
    outputs = eqn.primitive.bind(*(o.value for o in operands), **eqn.params)
    return outputs[0] if eqn.primitive.multiple_results else outputs


def _rearranged(eqn: Any, operands: list[_Param]) -> _Param:
    """Parameters transposed, reshaped, broadcast or multiplied by constants; anything else done to them is refused."""
    value, name = _bind(eqn, operands), eqn.primitive.name
    moving = [o for o in operands if not o.is_constant]
    if not moving:
        return _constant(value)
    factor: jax.Array | float = 1.0
    if name == "mul" and len(moving) == 1:
        factor = jnp.abs(operands[1 - operands.index(moving[0])].value).max()
    elif name == "div" and moving == operands[:1]:
        factor = 1 / jnp.abs(operands[1].value).min()
    elif name not in _SAME_ENTRIES:
        raise UnsupportedOperation(
            f"cannot bound the operation {name!r} applied to parameters: rearrange or rescale them only"
        )
    return _Param(value, moving[0].size, moving[0].entry * factor)


def _pre_activation(operands: list) -> _Data:
    """The distance of ``max(data, constant)`` to its kink; the constant is 0 for a ReLU."""
    data, threshold = operands
    if isinstance(threshold, _Data) or not threshold.is_constant:
        raise UnsupportedOperation("cannot bound 'max' of anything but data and a constant")
    return _Data(data.value - threshold.value, data.bounds)


def _example_norm(value: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(value.reshape(value.shape[0], -1) ** 2, -1))


def _per_example(vector: jax.Array, like: jax.Array) -> jax.Array:
    return vector.reshape(-1, *[1] * (like.ndim - 1))


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
    matrix = weights.value.transpose(*rhs_contracted, *kept).reshape(
        -1, math.prod(weights.value.shape[i] for i in kept)
    )
    unit_norms = jnp.linalg.norm(matrix, axis=0).reshape([weights.value.shape[i] for i in kept])
    seen = jnp.sqrt(jnp.sum(data.value**2, contracted)).reshape(*_free(data.value.shape, contracted), *[1] * len(kept))
    return _linear(data, weights, value, jnp.linalg.norm(matrix, 2), unit_norms, seen, 1)


def _free(shape: tuple[int, ...], contracted: tuple[int, ...]) -> list[int]:
    return [n for i, n in enumerate(shape) if i not in contracted]


def _convolution(eqn: Any, operands: list, value: jax.Array):
    data, weights = operands
    numbers = eqn.params["dimension_numbers"]
    if numbers.lhs_spec[0] != 0 or numbers.out_spec[0] != 0 or eqn.params["batch_group_count"] != 1:
        raise UnsupportedOperation("cannot bound a convolution whose examples are not on the leading axis")
    if eqn.params["feature_group_count"] != 1:
        raise UnsupportedOperation("cannot bound a grouped convolution")
    out_axis, in_axis, *spatial = numbers.rhs_spec
    taps = math.prod(weights.value.shape[i] for i in spatial)
    matrices = weights.value.transpose(*spatial, in_axis, out_axis).reshape(taps, weights.value.shape[in_axis], -1)
    # Each tap is a shift times a matrix, so norms add up; cutting all patches out repeats an entry at most `taps` times.
    stacked = math.sqrt(taps) * jnp.linalg.norm(matrices.reshape(-1, matrices.shape[-1]), 2)
    operator_norm = jnp.minimum(jnp.linalg.norm(matrices, 2, (1, 2)).sum(), stacked)
    unit_norms = jnp.sqrt((matrices**2).sum((0, 1)))
    unit_norms = unit_norms.reshape([-1 if i == numbers.out_spec[1] else 1 for i in range(value.ndim)])
    ones_shape = [1 if i == out_axis else n for i, n in enumerate(weights.value.shape)]
    seen = jnp.sqrt(eqn.primitive.bind(data.value**2, jnp.ones(ones_shape, value.dtype), **eqn.params))
    return _linear(data, weights, value, operator_norm, unit_norms, seen, taps)


def _sum(eqn: Any, operands: list, value: jax.Array):
    def bounds(radius: _Radius) -> tuple[jax.Array, jax.Array]:
        moves = [_moves(o, radius) for o in operands]
        return moves[0][0] + moves[1][0], moves[0][1] + moves[1][1]

    return bounds


def _moves(operand: _Data | _Param, radius: _Radius) -> tuple[jax.Array, jax.Array]:
    """Norm and entry moves of a term; a parameter is repeated over the positions of one example, not over examples."""
    if isinstance(operand, _Data):
        return operand.bounds(radius)
    change = radius.value
    return change * operand.norm(math.prod(operand.value.shape[1:])), change * operand.entry


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
        return size.max() * moved + step * (example + moved), size * entry + step * (jnp.abs(data.value) + entry)

    return bounds


def _unchanged(eqn: Any, operands: list, value: jax.Array):
    """Entries stay what they are, in the same order or another; ReLU shortens moves or keeps them."""
    data = operands[0]
    if value.shape[:1] != data.value.shape[:1]:
        raise UnsupportedOperation(
            f"cannot bound {eqn.primitive.name!r} when it moves the examples off the leading axis"
        )
    same_layout = eqn.primitive.name in _ELEMENTWISE

    def bounds(radius: _Radius) -> tuple[jax.Array, jax.Array]:
        moved, entry = data.bounds(radius)
        if same_layout or entry.ndim == 0:
            return moved, entry
        return moved, _bind(eqn, [_Data(jnp.broadcast_to(entry, data.value.shape), None), *operands[1:]])

    return bounds


def _pooled(eqn: Any, operands: list, value: jax.Array):
    """Sums over disjoint or overlapping groups of entries (average pooling before its division)."""
    data = operands[0]
    if eqn.primitive.name == "reduce_sum":
        if 0 in eqn.params["axes"]:
            raise UnsupportedOperation("cannot bound a sum over the examples")
        count = overlap = math.prod(data.value.shape[i] for i in eqn.params["axes"])
        overlap = 1
    else:
        window, strides = eqn.params["window_dimensions"], eqn.params["window_strides"]
        count = math.prod(window)
        overlap = math.prod(math.ceil(w / s) for w, s in zip(window, strides, strict=True))

    def bounds(radius: _Radius) -> tuple[jax.Array, jax.Array]:
        moved, entry = data.bounds(radius)
        entry = _bind(eqn, [_Data(jnp.broadcast_to(entry, data.value.shape), None)])
        return math.sqrt(count * overlap) * moved, jnp.minimum(entry, math.sqrt(count) * _per_example(moved, value))

    return bounds


_ELEMENTWISE = ("max", "neg", "copy", "convert_element_type", "stop_gradient", "optimization_barrier")
_SAME_ENTRIES = (*_ELEMENTWISE, "reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim", "rev")
_SUMS = ("add", "add_any", "sub")
_RULES = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "mul": _scaled,
    "div": _scaled,
    "reduce_sum": _pooled,
    "reduce_window_sum": _pooled,
    **dict.fromkeys(_SUMS, _sum),
    **dict.fromkeys((*_ELEMENTWISE, "reshape", "transpose", "squeeze", "expand_dims", "rev"), _unchanged),
}
