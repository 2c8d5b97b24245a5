"""What a network's program tells about derivatives: operations with kinks, and floats too short for a certificate.

Rectifiers, maxima, absolute values and choices by the sign of a value have kinks, at which no derivative decides. A kink whose value
passes through a stopped gradient, such as the maximum that a softmax subtracts, changes no output and does not count.

>>> import jax, jax.numpy as jnp
>>> from jaxbp.landscape import operations
>>> sorted(operations.kinks(lambda p, x: jnp.abs(jax.nn.softmax(x @ p)), jnp.ones((3, 2)), jnp.ones((4, 3))))
['abs']
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbp import checks
from jaxbp.jaxprs import interpret
from jaxbp.landscape import dense_chain

IN_FLOAT64 = "build it without a dtype of its own (dtype=None)"

_KINKED = {"abs", "ceil", "clamp", "cummax", "cummin", "floor", "max", "min", "rem", "round", "sign", "sort", "top_k"}
_KINKED |= {"reduce_max", "reduce_min", "reduce_window", "reduce_window_max", "reduce_window_min"}


class _Trait(NamedTuple):
    """Whether a value depends on the parameters, and the kinked operations that it went through."""

    depends: bool
    kinks: frozenset[str]


_FIXED = _Trait(False, frozenset())


class Facts(NamedTuple):
    """What a network's program tells.

    Attributes:
      num_classes: number of logits.
      kinks: operations with kinks.
      short: dtypes shorter than float64 in which the network computes, each with an operation that does.
      epsilon: largest machine epsilon.
      chain: layers of a chain of dense layers; None for another network.
    """

    num_classes: int
    kinks: frozenset[str]
    short: tuple[str, ...]
    epsilon: float
    chain: tuple[dense_chain.Dense, ...] | None


def facts(apply_fn: Callable, params: Any, inputs: jax.Array) -> Facts:
    """The facts of a network of float64 ``params`` on ``inputs``, traced once for each function object and shapes.

    Raises:
      ValueError: for logits that are no float64 (N, C), or a network that takes no other number of examples.
    """
    leaves, tree = jax.tree.flatten((params, inputs))
    return _traced_facts(apply_fn, tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves))


@functools.lru_cache(maxsize=64)
def _traced_facts(apply_fn: Callable, tree: Any, kinds: tuple) -> Facts:
    params, inputs = jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(*kind) for kind in kinds])
    num_examples, num_classes = checks.logits_shape(apply_fn, params, inputs)
    if num_examples != inputs.shape[0]:
        raise ValueError(f"apply_fn must return logits for each of {inputs.shape[0]} examples, got {num_examples} rows")
    if (dtype := jax.eval_shape(apply_fn, params, inputs).dtype) != jnp.float64:
        raise ValueError(
            f"the network computes logits in {dtype} from float64 parameters and inputs, too coarse for a certificate: {IN_FLOAT64}"
        )
    _refuse_per_example(apply_fn, params, inputs, num_classes)
    program = apply_fn, params, inputs
    short, epsilon = short_floats(*program)
    return Facts(num_classes, kinks(*program), short, epsilon, dense_chain.read(*program))


def _refuse_per_example(apply_fn: Callable, params: Any, inputs: Any, num_classes: int) -> None:
    """Raise ValueError for a network that takes these examples only: parameters or constants hold an entry for each of them."""
    more = jax.ShapeDtypeStruct((inputs.shape[0] + 1, *inputs.shape[1:]), inputs.dtype)
    try:
        is_free = checks.logits_shape(apply_fn, params, more) == (inputs.shape[0] + 1, num_classes)
    except (TypeError, ValueError):
        is_free = False
    if not is_free:
        raise ValueError(
            f"the network takes {inputs.shape[0]} examples and no other number: parameters or constants have an entry for each example, or "
            "the number is fixed in a shape. Pass what belongs to an example as part of inputs"
        )


def kinks(apply_fn: Callable, params: Any, inputs: Any) -> frozenset[str]:
    """Names of the operations with kinks through which the outputs depend on the parameters."""
    program = interpret.trace(apply_fn, params, inputs)
    num_params = len(jax.tree.leaves(params))
    arguments = [_Trait(i < num_params, frozenset()) for i in range(len(program.input_types))]
    return frozenset().union(*(trait.kinks for trait in _traits(program, arguments)))


def short_floats(apply_fn: Callable, params: Any, inputs: Any) -> tuple[tuple[str, ...], float]:
    """The dtypes shorter than float64 in which the network computes, each with an operation that does, and the largest machine epsilon."""
    types = interpret.trace(apply_fn, params, inputs).float_types
    names = {dtype: name for dtype, name in types.items() if jnp.finfo(dtype).bits < 64}
    epsilons = [float(jnp.finfo(dtype).eps) for dtype in (*names, jnp.float64)]
    return tuple(f"{dtype} in {name!r}" for dtype, name in names.items()), max(epsilons)


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
