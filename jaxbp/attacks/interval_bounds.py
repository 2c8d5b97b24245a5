"""Interval bounds: where all logits lie while the input moves in a box, proven, whatever the attack (Gowal et al., ICCV 2019).

The network is traced, and each operation is evaluated on intervals (Gowal et al., section 3). An affine operation carries the centre of
its box and, with the absolute values of its weights, the half-widths; a monotone one carries both ends. The result holds for any network
of the operations below, up to rounding. It is exact for one affine layer, and widens from layer to layer, because an interval forgets how
entries depend on each other: on networks that were not trained for it, the bounds say little beyond a few layers.

Operations: sums, differences, products, quotients, matrix products and convolutions with constants on one side, ReLU and other monotone
functions, absolute values, powers, max and average pooling, comparisons and choices, and all that only moves entries. So multilayer
perceptrons, convolutional and residual networks are covered, with BatchNorm on stored statistics. Attention multiplies activations with
each other in a matrix product, which is refused, as are loops and branches.

`interval_certificate` says of each labelled example whether no point of the threat changes its class.

>>> import jax, jax.numpy as jnp
>>> from jaxbp import attacks
>>> network = lambda x: jnp.maximum(x @ jnp.array([[1.0], [-2.0]]), 0) + jnp.array([0.0, 0.5])
>>> lower, upper = attacks.interval_bounds(network, jnp.array([[0.5, 0.25]]), jnp.array([[1.0, 0.5]]))
>>> lower.tolist(), upper.tolist()                                       # x - 2 y lies between -1/2 and 1/2
([[0.0, 0.5]], [[0.5, 1.0]])
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jaxbp.attacks.attack import LogitsFn, check_within, checked_examples, floating_examples, network_of
from jaxbp.attacks.threat import Threat
from jaxbp.jaxprs import interpret


class UnboundedOperationError(ValueError):
    """An operation that has no rule for intervals."""


class _Interval(NamedTuple):
    """The ends of each entry; of booleans, whether an entry is surely true, and whether it may be."""

    lower: jax.Array
    upper: jax.Array


@dataclass(frozen=True)
class IntervalCertificate:
    """The result of `interval_certificate` for N examples.

    Attributes:
      certified: (N,), whether the label's logit is above all others throughout the threat.
      margins: (N,), the lower end of the label's logit minus the largest upper end of the others.
    """

    certified: Bool[Array, " N"]
    margins: Float[Array, " N"]


def interval_bounds(
    function: LogitsFn, lower: Float[ArrayLike, "N ..."], upper: Float[ArrayLike, "N ..."]
) -> tuple[Float[Array, "N ..."], Float[Array, "N ..."]]:
    """Bounds (lower, upper) of ``function`` (N, ...) -> (N, ...) over all inputs between ``lower`` and ``upper``, both (N, ...).

    Raises:
      UnboundedOperationError: an operation without a rule, named.
      ValueError: ends of different shapes, or not in order.
    """
    if not callable(function):
        raise ValueError(f"function must be a function of inputs (N, ...), got {type(function).__name__}")
    low, high = floating_examples(lower), floating_examples(upper)
    if low.shape != high.shape or low.dtype != high.dtype:
        raise ValueError(f"lower and upper must be alike, got {low.dtype}{list(low.shape)} and {high.dtype}{list(high.shape)}")
    if not isinstance(low, jax.core.Tracer) and not isinstance(high, jax.core.Tracer) and not bool((low <= high).all()):
        raise ValueError("lower must be at most upper, got entries where it is above or NaN")
    program = interpret.trace(function, low)
    if len(program.jaxpr.outvars) != 1:
        raise ValueError(f"function must return one array, got {len(program.jaxpr.outvars)}")
    opened = (interpret.CALL, interpret.CUSTOM_DERIVATIVE)
    (output,) = program.evaluate([_Interval(low, high)], _rule, opened=opened)
    output = _ends(output)
    return output.lower, output.upper


def interval_certificate(
    logits_fn: LogitsFn, inputs: Float[ArrayLike, "N ..."], labels: Int[ArrayLike, " N"], threat: Threat
) -> IntervalCertificate:
    """Whether each label wins throughout the threat, by `interval_bounds` of the logits.

    For "l2" and "l1" the bounds are those of the "linf" ball of the same radius, which holds them, so the certificate is loose there.

    Args:
      logits_fn: inputs (N, ...) -> logits (N, C), in evaluation mode; examples must not depend on each other.
      inputs, labels: floating-point (N, ...) inside the bounds of the threat, and integers (N,).
      threat: norm, radius and box.

    Raises:
      UnboundedOperationError: an operation without a rule, named.
      ValueError: arguments that an attack refuses.
    """
    network = network_of(logits_fn)
    epsilon = threat.check_epsilon()
    examples, classes = checked_examples(network, inputs, labels)
    check_within(inputs, threat)
    lowest, highest = threat.reach(examples)
    low, high = jnp.maximum(examples - epsilon, lowest), jnp.minimum(examples + epsilon, highest)
    lower, upper = interval_bounds(network, low, high)
    own = classes[:, None] == jnp.arange(lower.shape[-1])
    margins = jnp.where(own, lower, 0).sum(-1) - jnp.where(own, -jnp.inf, upper).max(-1)
    return IntervalCertificate(margins > 0, margins)


def _rule(operation: interpret.Operation, operands: list[Any]) -> Sequence[Any]:
    """The outputs of an operation, intervals wherever an operand is one."""
    bounded = [isinstance(operand, _Interval) for operand in operands]
    if not any(bounded):
        return operation.apply(operands)
    if operation.name in _MONOTONE:
        ends = (operation.apply([operand[end] if isinstance(operand, _Interval) else operand for operand in operands]) for end in (0, 1))
        return [_Interval(*pair) for pair in zip(*ends, strict=True)]
    if operation.name in _BILINEAR and sum(bounded) == 1:
        return [_bilinear(operation, operands, bounded.index(True))]
    rule = _RULES.get(operation.name)
    if rule is None or (operation.name in _MOVED and any(bounded[1:])):
        product = ": it multiplies activations with each other" if operation.name in _BILINEAR else ""
        raise UnboundedOperationError(
            f"interval bounds have no rule for the operation {operation.name!r}{product}; use smoothed_radii, which takes any network"
        )
    result = rule(operation, *operands)
    return [result]


# Increasing in each operand, those that only move entries among them.
_ADDITIVE = ("add", "add_any", "reduce_sum", "reduce_window_sum", "cumsum")
_LARGEST = ("max", "min", "clamp", "reduce_max", "reduce_min", "reduce_window_max", "reduce_window_min", "cummax", "cummin")
_INCREASING = (
    "exp",
    "exp2",
    "expm1",
    "log",
    "log1p",
    "tanh",
    "logistic",
    "sqrt",
    "cbrt",
    "erf",
    "sinh",
    "asinh",
    "atan",
    "floor",
    "ceil",
    "round",
)
_MOVING = (
    "reshape",
    "transpose",
    "broadcast_in_dim",
    "squeeze",
    "expand_dims",
    "slice",
    "split",
    "concatenate",
    "pad",
    "rev",
    "copy",
    "copy_p",
)
_SAME = (
    "convert_element_type",
    "reduce_precision",
    "stop_gradient",
    "optimization_barrier",
    "sign",
    "and",
    "or",
    "reduce_and",
    "reduce_or",
)
_MONOTONE = frozenset((*_ADDITIVE, *_LARGEST, *_INCREASING, *_MOVING, *_SAME))
_BILINEAR = ("dot_general", "conv_general_dilated", "jaxbp_conv")
_MOVED = ("gather", "dynamic_slice")  # by constant places


def _ends(operand: Any) -> _Interval:
    return operand if isinstance(operand, _Interval) else _Interval(operand, operand)


def _hull(*values: jax.Array) -> _Interval:
    stacked = jnp.stack(jnp.broadcast_arrays(*values))
    return _Interval(stacked.min(0), stacked.max(0))


def _bilinear(operation: interpret.Operation, operands: list[Any], place: int) -> _Interval:
    """Centre and half-width, the latter through the absolute values of the constant."""
    box = operands[place]
    half = (box.upper - box.lower) / 2
    centre = box.lower + half

    def product(activation: jax.Array, weight_fn: Callable[[Any], Any]) -> jax.Array:
        values = [activation if index == place else weight_fn(value) for index, value in enumerate(operands)]
        return operation.apply(values)[0]

    middle, width = product(centre, lambda weight: weight), product(half, jnp.abs)
    return _Interval(middle - width, middle + width)


def _difference(_: interpret.Operation, a: Any, b: Any) -> _Interval:
    a, b = _ends(a), _ends(b)
    return _Interval(a.lower - b.upper, a.upper - b.lower)


def _product(_: interpret.Operation, a: Any, b: Any) -> _Interval:
    return _hull(*(x * y for x in _ends(a) for y in _ends(b)))


def _quotient(operation: interpret.Operation, a: Any, b: Any) -> _Interval:
    """Unbounded where the denominator may be 0."""
    a, b = _ends(a), _ends(b)
    safe = b.lower * b.upper > 0
    result = _hull(*(x / jnp.where(safe, y, 1) for x in a for y in b))
    return _Interval(jnp.where(safe, result.lower, -jnp.inf), jnp.where(safe, result.upper, jnp.inf))


def _absolute(_: interpret.Operation, a: _Interval) -> _Interval:
    least = jnp.maximum(jnp.maximum(a.lower, -a.upper), 0)
    return _Interval(least, jnp.maximum(jnp.abs(a.lower), jnp.abs(a.upper)))


def _decreasing(operation: interpret.Operation, a: _Interval) -> _Interval:
    return _Interval(operation.apply([a.upper])[0], operation.apply([a.lower])[0])


def _power(operation: interpret.Operation, a: _Interval) -> _Interval:
    exponent = operation.params.get("y", 2)
    if exponent < 0:
        positive = _power_of(a, -exponent)
        return _quotient(operation, 1.0, positive)
    return _power_of(a, exponent)


def _power_of(a: _Interval, exponent: int) -> _Interval:
    base = a if exponent % 2 else _absolute(None, a)  # type: ignore[arg-type]  # the rule does not ask for its operation
    return _Interval(base.lower**exponent, base.upper**exponent)


def _greater(operation: interpret.Operation, a: Any, b: Any) -> _Interval:
    """a > b, or a >= b: surely if the lower end is beyond the upper one, perhaps if the upper end is beyond the lower one."""
    a, b = _ends(a), _ends(b)
    return _Interval(operation.apply([a.lower, b.upper])[0], operation.apply([a.upper, b.lower])[0])


def _less(operation: interpret.Operation, a: Any, b: Any) -> _Interval:
    a, b = _ends(a), _ends(b)
    return _Interval(operation.apply([a.upper, b.lower])[0], operation.apply([a.lower, b.upper])[0])


def _negation(_: interpret.Operation, a: _Interval) -> _Interval:
    return _Interval(~a.upper, ~a.lower)


def _choice(operation: interpret.Operation, which: Any, *cases: Any) -> _Interval:
    """The chosen case where the choice is known, the hull of both elsewhere."""
    if not isinstance(which, _Interval):
        ends = [_ends(case) for case in cases]
        return _Interval(*(operation.apply([which, *(end[side] for end in ends)])[0] for side in (0, 1)))
    if len(cases) != 2 or which.lower.dtype != bool:
        raise UnboundedOperationError("interval bounds have no rule for a choice among more than two cases by activations")
    first, second = map(_ends, cases)
    hull = _Interval(jnp.minimum(first.lower, second.lower), jnp.maximum(first.upper, second.upper))
    sides = zip(hull, first, second, strict=True)
    return _Interval(*(jnp.where(which.lower, b, jnp.where(which.upper, either, a)) for either, a, b in sides))


def _moved(operation: interpret.Operation, a: _Interval, *places: Any) -> _Interval:
    return _Interval(*(operation.apply([end, *places])[0] for end in a))


_RULES: dict[str, Callable[..., _Interval]] = {
    "sub": _difference,
    "neg": lambda _, a: _Interval(-a.upper, -a.lower),
    "mul": _product,
    "div": _quotient,
    "abs": _absolute,
    "rsqrt": _decreasing,
    "erfc": _decreasing,
    "integer_pow": _power,
    "square": _power,
    "gt": _greater,
    "ge": _greater,
    "lt": _less,
    "le": _less,
    "not": _negation,
    "select_n": _choice,
    "gather": _moved,
    "dynamic_slice": _moved,
}
