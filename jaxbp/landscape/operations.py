"""What a network's program tells about derivatives: operations with kinks, and floats too short for a certificate.

Rectifiers, maxima, absolute values and choices by the sign of a value have kinks, at which no derivative decides. A kink whose value
passes through a stopped gradient, such as the maximum that a softmax subtracts, changes no output and does not count.

>>> import jax, jax.numpy as jnp
>>> from jaxbp.landscape import operations
>>> sorted(operations.kinks(lambda p, x: jnp.abs(jax.nn.softmax(x @ p)), jnp.ones((3, 2)), jnp.ones((4, 3))))
['abs']
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbp.jaxprs import interpret

_KINKED = frozenset(
    ("abs", "ceil", "clamp", "cummax", "cummin", "floor", "max", "min", "rem", "round", "sign", "sort", "top_k")
    + ("reduce_max", "reduce_min", "reduce_window", "reduce_window_max", "reduce_window_min")
)


class _Trait(NamedTuple):
    """Whether a value depends on the parameters, and the kinked operations that it went through."""

    depends: bool
    kinks: frozenset[str]


_FIXED = _Trait(False, frozenset())


def kinks(apply_fn: Callable, params: Any, inputs: Any) -> frozenset[str]:
    """Names of the operations with kinks through which the outputs depend on the parameters."""
    program = interpret.trace(apply_fn, params, inputs)
    num_params = len(jax.tree.leaves(params))
    arguments = [_Trait(i < num_params, frozenset()) for i in range(len(program.input_types))]
    return frozenset().union(*(trait.kinks for trait in _traits(program, arguments)))


def short_floats(apply_fn: Callable, params: Any, inputs: Any) -> tuple[tuple[str, ...], float]:
    """The dtypes shorter than float64 in which the network computes, each with an operation that does, and the largest machine epsilon."""
    names: dict[Any, str] = {}
    _collect_short(interpret.trace(apply_fn, params, inputs), names)
    epsilons = [float(jnp.finfo(dtype).eps) for dtype in (*names, jnp.float64)]
    return tuple(f"{dtype} in {name!r}" for dtype, name in names.items()), max(epsilons)


def _collect_short(program: interpret.Program, names: dict[Any, str]) -> None:
    for operation in program.operations:
        for inner in operation.programs:
            _collect_short(inner, names)
        for kind in operation.output_types:
            dtype = getattr(kind, "dtype", None)
            if dtype is not None and jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 64 and not operation.programs:
                names.setdefault(dtype, operation.name)


def _traits(program: interpret.Program, arguments: list[_Trait]) -> list[_Trait]:
    opened = (interpret.CALL, interpret.CUSTOM_DERIVATIVE)
    return program.evaluate(arguments, _rule, opened=opened, constant_fn=lambda _: _FIXED)


def _rule(operation: interpret.Operation, operands: list[_Trait]) -> list[_Trait]:
    depends = any(o.depends for o in operands)
    passed = frozenset().union(*(o.kinks for o in operands))
    name = operation.name
    if name == "stop_gradient":
        passed = frozenset()
    elif name == "select_n" or operation.kind == interpret.BRANCH:
        passed |= {name} if operands[0].depends else set()
    elif name in _KINKED and depends:
        passed |= {name}
    for inner in operation.programs if depends else ():  # loops and branches: as if all their inputs depended on the parameters
        for trait in _traits(inner, [_Trait(True, frozenset())] * len(inner.input_types)):
            passed |= trait.kinks
    return [_Trait(depends, passed)] * len(operation.output_types)
