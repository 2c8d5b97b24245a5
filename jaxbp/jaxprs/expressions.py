"""Values of a program that depend on its parameters and on constants alone, as expressions that can be evaluated later.

A kernel that a network multiplies data with may be a parameter, a rearrangement of one, a slice of a stack, or a function of several
parameters (weight normalisation, masks, sums of factors). As an expression it is known before the network sees data. `Expressions` makes
expressions and gives equal ones equal keys, so that two uses of one kernel are recognised.

>>> import jax.numpy as jnp
>>> from jaxbp.jaxprs import expressions, interpret
>>> book = expressions.Expressions()
>>> kernel, scale = book.leaf(0, jnp.ones((3, 2))), book.leaf(1, jnp.ones(()))
>>> (operation,) = interpret.trace(lambda w, s: w * s, jnp.ones((3, 2)), jnp.ones(())).operations
>>> (scaled,) = book.call(operation, [kernel, scale])
>>> sorted(scaled.leaves), expressions.evaluate(scaled, {0: jnp.full((3, 2), 3.0), 1: jnp.float32(2)}).tolist()
([0, 1], [[6.0, 6.0], [6.0, 6.0], [6.0, 6.0]])
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.jaxprs import interpret

# Operations of one operand whose entries are some of the operand's, each once, up to the sign.
_REARRANGING = ("reshape", "transpose", "squeeze", "rev", "copy", "expand_dims", "neg", "slice", "split", "dynamic_slice")
_PICKING = ("step", "slice", "dynamic_slice", "squeeze", "copy", "convert_element_type")  # leave a stack's axes in order


class Call(NamedTuple):
    """An operation on expressions.

    Attributes:
      name: of the operation.
      apply_fn: from the values of the operands to those of the outputs.
      operands: expressions.
      operation: of the program; None where a loop's step picks its part of a stack.
    """

    name: str
    apply_fn: Callable[[Sequence[Any]], Sequence[Any]]
    operands: tuple[Any, ...]  # expressions
    operation: interpret.Operation | None = None


class Expression(NamedTuple):
    """A value that depends on parameters and constants alone.

    Attributes:
      key: equal for equal expressions of one `Expressions`.
      shape, dtype: of the value.
      leaves: indices of the parameters on which the value depends.
      part: of a parameter, or a part of one, that is rearranged and multiplied by a number: the indices along leading axes that picked the
        part, one after another; None for any other function.
      call: the operation; None for parameters and constants.
      position: among the operation's outputs; of a parameter its index among the leaves.
      constant: the value of a constant.
    """

    key: int
    shape: tuple[int, ...]
    dtype: Any
    leaves: frozenset[int]
    part: tuple[int, ...] | None
    call: Call | None = None
    position: int = 0
    constant: Any = None

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


class Expressions:
    """The expressions of one program."""

    def __init__(self) -> None:
        self._keys: dict[Any, int] = {}
        self._kept: list[Any] = []  # references that keep the ids of constants unique

    def leaf(self, index: int, like: Any) -> Expression:
        """The parameter number ``index``, with the shape and dtype of ``like``."""
        return Expression(self._key(("leaf", index)), tuple(like.shape), like.dtype, frozenset({index}), (), position=index)

    def constant(self, value: Any) -> Expression:
        """A value that the program holds."""
        self._kept.append(value)
        array = value if hasattr(value, "shape") and hasattr(value, "dtype") else jnp.asarray(value)
        small = not isinstance(array, jax.core.Tracer) and array.shape == () and not jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
        name = ("scalar", str(array.dtype), float(array.real), float(array.imag)) if small else ("constant", id(value))
        return Expression(self._key(name), tuple(array.shape), array.dtype, frozenset(), None, constant=value)

    def call(self, operation: interpret.Operation, operands: Sequence[Expression]) -> list[Expression]:
        """The outputs of an operation of the program."""
        name = (operation.name, str(operation.params), tuple(operand.key for operand in operands))
        part = _part(operation, operands)
        types = operation.output_types
        return self._outputs(Call(operation.name, operation.apply, tuple(operands), operation), name, types, part)

    def step(self, stack: Expression, number: int) -> Expression:
        """``stack[number]``."""
        like = jax.ShapeDtypeStruct(stack.shape[1:], stack.dtype)
        call = Call("step", lambda values: [values[0][number]], (stack,))
        part = None if stack.part is None else (*stack.part, number)
        return self._outputs(call, ("step", number, stack.key), [like], part)[0]

    def stack(self, steps: Sequence[Expression]) -> Expression:
        """The expressions stacked on a new leading axis."""
        like = jax.ShapeDtypeStruct((len(steps), *steps[0].shape), steps[0].dtype)
        call = Call("stack", lambda values: [jnp.stack(values)], tuple(steps))
        return self._outputs(call, ("stack", *(step.key for step in steps)), [like], None)[0]

    def _outputs(self, call: Call, name: Any, types: Sequence[Any], part: tuple[int, ...] | None) -> list[Expression]:
        leaves = frozenset(leaf for operand in call.operands for leaf in operand.leaves)
        return [
            Expression(self._key((*name, place)), tuple(like.shape), like.dtype, leaves, part, call, place)
            for place, like in enumerate(types)
        ]

    def _key(self, name: Any) -> int:
        return self._keys.setdefault(name, len(self._keys))


def evaluate(expression: Expression, leaves: Mapping[int, jax.Array]) -> jax.Array:
    """The value of the expression for the values of the parameters on which it depends."""
    values: dict[int, Any] = {}
    waiting = [expression]
    while waiting:  # a loop in place of recursion: a chain may be as long as a loop of the program
        current = waiting[-1]
        missing = [] if current.call is None else [operand for operand in current.call.operands if operand.key not in values]
        if missing:
            waiting.extend(missing)
            continue
        waiting.pop()
        if current.key in values:
            continue
        if current.call is not None:
            values[current.key] = current.call.apply_fn([values[operand.key] for operand in current.call.operands])[current.position]
        else:
            values[current.key] = leaves[current.position] if current.leaves else jnp.asarray(current.constant)
    return values[expression.key]


def ancestors(expression: Expression) -> list[Expression]:
    """The expression and all on which it depends, each once."""
    known: dict[int, Expression] = {}
    waiting = [expression]
    while waiting:
        current = waiting.pop()
        if current.key not in known:
            known[current.key] = current
            waiting.extend(current.call.operands if current.call is not None else ())
    return list(known.values())


def _part(operation: interpret.Operation, operands: Sequence[Expression]) -> tuple[int, ...] | None:
    """`Expression.part` of the outputs of an operation."""
    varying = [operand for operand in operands if operand.leaves]
    if len(varying) != 1 or (part := varying[0].part) is None:
        return None
    (weight,), name = varying, operation.name
    output = operation.output_types[0]
    same_size = output.size == weight.size
    if (number := _picked(operation, operands)) is not None:
        return (*part, number)
    if name in _REARRANGING or (name == "broadcast_in_dim" and same_size):  # of the same size: new axes of extent 1
        return part
    if name == "convert_element_type" and jnp.issubdtype(output.dtype, jnp.floating):
        return part
    others = [operand for operand in operands if not operand.leaves]
    if name in ("mul", "div") and same_size and others[0].size == 1 and (name == "mul" or operands[0].leaves):
        return part
    return None


def _picked(operation: interpret.Operation, operands: Sequence[Expression]) -> int | None:
    """The index by which an operation picks one of the slices along its operand's leading axis; None if it does something else."""
    shape = operands[0].shape
    steps = {node.call.name for node in ancestors(operands[0]) if node.call is not None}
    if not steps <= set(_PICKING) or not shape or shape[0] == 1 or operation.output_types[0].shape != (1, *shape[1:]):
        return None
    if operation.name == "slice":
        return operation.params["start_indices"][0]
    if operation.name != "dynamic_slice":
        return None
    with jax.ensure_compile_time_eval():
        number = evaluate(operands[1], {})
    return None if isinstance(number, jax.core.Tracer) else int(np.clip(number, 0, shape[0] - 1))
