"""What a program multiplies: how many matrix products and convolutions it does, and how large they are.

Counted in the program's jaxpr, loops included, without running it. A loop whose length only the run knows counts once, a
branch as its most expensive side.

>>> import jax, jax.numpy as jnp
>>> from jaxbp.jaxprs import op_count
>>> op_count.count(lambda a: jax.lax.scan(lambda b, _: (b @ b, None), a, length=5)[0], jnp.ones((4, 4)))
OpCount(number=5, multiply_adds=320, convolutional=False)
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

_CONVOLUTIONS = ("conv_general_dilated", "jaxbp_conv")


class OpCount(NamedTuple):
    """Matrix products and convolutions of a program; multiply-adds are those of matrix products alone."""

    number: int
    multiply_adds: int
    convolutional: bool

    @property
    def mean(self) -> float:
        """Multiply-adds of an average matrix product."""
        return self.multiply_adds / max(self.number, 1)


def count(fn: Callable, *arguments: Any) -> OpCount:
    """The products of ``fn(*arguments)``; arrays or `jax.ShapeDtypeStruct`."""
    return _of(jax.make_jaxpr(fn)(*arguments).jaxpr)


def _of(jaxpr: Any) -> OpCount:
    number = multiply_adds = 0
    convolutional = False
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name in _CONVOLUTIONS:
            found = OpCount(1, 0, True)
        elif name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            lhs, (out,) = equation.invars[0].aval.shape, equation.outvars
            found = OpCount(1, math.prod(out.aval.shape) * math.prod(lhs[axis] for axis in contracted), False)
        else:
            inner = [_of(each) for each in _inside(parameters)]
            if name == "cond":
                inner = [max(inner, key=lambda of: of.multiply_adds)]
            times = parameters["length"] if name == "scan" else 1
            found = OpCount(
                times * sum(each.number for each in inner),
                times * sum(each.multiply_adds for each in inner),
                any(each.convolutional for each in inner),
            )
        number, multiply_adds = number + found.number, multiply_adds + found.multiply_adds
        convolutional = convolutional or found.convolutional
    return OpCount(number, multiply_adds, convolutional)


def _inside(parameters: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs that an equation carries."""
    for value in parameters.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            each = getattr(each, "jaxpr", each)  # a closed one holds its constants too
            if hasattr(each, "eqns"):
                yield each
