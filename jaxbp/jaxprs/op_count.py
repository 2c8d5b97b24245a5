"""Count the matrix products and convolutions of a program, and the multiply-adds of the matrix products.

The count is taken from the program's jaxpr, without running it. A loop counts each of its iterations; a loop whose length only the
run knows counts once. A branch counts as its side with the most multiply-adds.

>>> import jax, jax.numpy as jnp
>>> from jaxbp.jaxprs import op_count
>>> op_count.count(lambda a: jax.lax.scan(lambda b, _: (b @ b, None), a, length=5)[0], jnp.ones((4, 4)))
OpCount(number=5, multiply_adds=320, convolutional=False)
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from jaxbp.jaxprs import interpret

_CONVOLUTIONS = ("conv_general_dilated", "jaxbp_conv")


class OpCount(NamedTuple):
    """Matrix products and convolutions of a program.

    Attributes:
      number: matrix products and convolutions.
      multiply_adds: multiply-adds of the matrix products alone.
      convolutional: whether the program has a convolution.
    """

    number: int
    multiply_adds: int
    convolutional: bool

    @property
    def mean(self) -> float:
        """Multiply-adds of an average matrix product."""
        return self.multiply_adds / max(self.number, 1)


def count(fn: Callable, *arguments: Any) -> OpCount:
    """Count the products of ``fn(*arguments)``; arguments are pytrees of arrays or of `jax.ShapeDtypeStruct`."""
    return _count_program(interpret.trace(fn, *arguments))


def _count_program(program: interpret.Program) -> OpCount:
    return _total(_count_operation(operation) for operation in program.operations)


def _count_operation(operation: interpret.Operation) -> OpCount:
    if operation.name in _CONVOLUTIONS:
        return OpCount(1, 0, True)
    if operation.name == "dot_general":
        (contracted, _), _ = operation.params["dimension_numbers"]
        lhs, (output,) = operation.input_types[0].shape, operation.output_types
        return OpCount(1, math.prod(output.shape) * math.prod(lhs[axis] for axis in contracted), False)
    parts = [_count_program(program) for program in operation.programs]
    if operation.kind == interpret.BRANCH:
        parts = [max(parts, key=lambda part: part.multiply_adds)]
    total = _total(parts)
    times = operation.num_repetitions
    return OpCount(times * total.number, times * total.multiply_adds, total.convolutional)


def _total(counts: Iterable[OpCount]) -> OpCount:
    parts = list(counts)
    return OpCount(
        sum(part.number for part in parts),
        sum(part.multiply_adds for part in parts),
        any(part.convolutional for part in parts),
    )
