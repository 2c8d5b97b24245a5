"""Interpret a traced program operation by operation, with values of any kind.

`trace` turns a function into a `Program`. `Program.evaluate` runs the program forward and asks a rule for the outputs of each
operation, so values may be arrays, bounds, or arrays with labels. `Program.operations` lists the operations without running them.
Operations that carry programs of their own (jit, custom derivatives, loops, branches) are described by one table, `WRAPPERS`;
`evaluate` opens the kinds that its caller names and hands all others to the rule.

>>> import jax, jax.numpy as jnp
>>> from jaxbp.jaxprs import interpret
>>> program = interpret.trace(jax.jit(lambda x: jnp.sin(x) * 2.0), jnp.ones(3))
>>> [operation.kind for operation in program.operations]
['call']
>>> names = []
>>> def rule_fn(operation, operands):
...     names.append(operation.name)
...     return operation.apply(operands)
>>> program.evaluate([jnp.zeros(3)], rule_fn)[0].tolist(), names
([0.0, 0.0, 0.0], ['sin', 'mul'])
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core as jex_core

CALL = "call"  # runs one program once, on the operation's operands
CUSTOM_DERIVATIVE = "custom derivative"  # a call with derivative rules of its own, which evaluating the program would lose
LOOP = "loop"
BRANCH = "branch"

WRAPPERS = {
    "jit": CALL,
    "pjit": CALL,
    "closed_call": CALL,
    "core_call": CALL,
    "remat": CALL,
    "remat2": CALL,
    "checkpoint": CALL,
    "custom_jvp_call": CUSTOM_DERIVATIVE,
    "custom_vjp_call": CUSTOM_DERIVATIVE,
    "scan": LOOP,
    "while": LOOP,
    "cond": BRANCH,
}


class Operation(NamedTuple):
    """One equation of a program.

    Attributes:
      jaxpr: the jaxpr that holds the equation.
      equation: the equation, a `jax.extend.core.JaxprEqn`.
    """

    jaxpr: Any
    equation: Any

    @property
    def name(self) -> str:
        """Name of the primitive."""
        return self.equation.primitive.name

    @property
    def params(self) -> dict[str, Any]:
        """Parameters of the primitive."""
        return self.equation.params

    @property
    def input_types(self) -> list[Any]:
        """Abstract values (shape and dtype) of the operands."""
        return [atom.aval for atom in self.equation.invars]

    @property
    def output_types(self) -> list[Any]:
        """Abstract values (shape and dtype) of the outputs."""
        return [variable.aval for variable in self.equation.outvars]

    @property
    def kind(self) -> str | None:
        """Kind of the wrapper (`WRAPPERS`); None for operations that are not in the table."""
        return WRAPPERS.get(self.name)

    @property
    def programs(self) -> list["Program"]:
        """Programs that the operation carries, in the table or not: of a branch each side, of a while loop condition and body."""
        return [program for value in self.params.values() for program in _programs(value)]

    @property
    def num_repetitions(self) -> int:
        """Number of times that the operation runs its programs; 1 where the number is not known before the run."""
        return self.params["length"] if self.name == "scan" else 1

    def apply(self, values: Sequence[Any]) -> list[Any]:
        """Evaluate the operation on arrays, as a program of one equation; a literal operand keeps the literal's value.

        ``values`` may have other shapes than in the trace, where the primitive's parameters allow them.
        """
        operands = {  # a variable may occur twice
            atom: value for atom, value in zip(self.equation.invars, values, strict=True) if not isinstance(atom, jex_core.Literal)
        }
        alone = self.jaxpr.replace(
            constvars=[],
            invars=list(operands),
            outvars=self.equation.outvars,
            eqns=[self.equation],
            effects=self.equation.effects,
        )
        return jex_core.jaxpr_as_fun(jex_core.ClosedJaxpr(alone, ()))(*operands.values())


RuleFn = Callable[[Operation, list[Any]], Sequence[Any]]


class Program(NamedTuple):
    """A traced program.

    Attributes:
      jaxpr: equations, inputs and outputs.
      consts: values of the constants.
    """

    jaxpr: Any
    consts: Sequence[Any] = ()

    @property
    def input_types(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the flat inputs."""
        return [jax.ShapeDtypeStruct(variable.aval.shape, variable.aval.dtype) for variable in self.jaxpr.invars]

    @property
    def operations(self) -> list[Operation]:
        """The operations in the order in which they run; those inside wrappers are in `Operation.programs`."""
        return [Operation(self.jaxpr, equation) for equation in self.jaxpr.eqns]

    @property
    def float_types(self) -> dict[Any, str]:
        """The floating dtypes in which the program computes, each with the name of an operation, of a conversion for want of others."""
        names: dict[Any, str] = {}
        for operation in self.operations:
            made = {getattr(kind, "dtype", None): operation.name for kind in operation.output_types} if not operation.programs else {}
            for types in (made, *(program.float_types for program in operation.programs)):
                for dtype, name in types.items():
                    if dtype is not None and jnp.issubdtype(dtype, jnp.floating) and names.get(dtype) in (None, "convert_element_type"):
                        names[dtype] = name
        return names

    @property
    def largest_bytes(self) -> int:
        """Bytes of the largest array that an operation makes, those inside wrappers included."""
        made = [kind for operation in self.operations for kind in operation.output_types if hasattr(kind, "shape")]
        inside = [program.largest_bytes for operation in self.operations for program in operation.programs]
        return max((*(kind.size * kind.dtype.itemsize for kind in made), *inside), default=0)

    def run(self, *arguments: Any) -> list[Any]:
        """The flat outputs for flat arrays, of the shapes of the trace."""
        return jex_core.jaxpr_as_fun(jex_core.ClosedJaxpr(self.jaxpr, self.consts))(*arguments)

    def evaluate(
        self,
        arguments: Sequence[Any],
        rule_fn: RuleFn,
        *,
        opened: Sequence[str] = (CALL,),
        constant_fn: Callable[[Any], Any] = lambda value: value,
    ) -> list[Any]:
        """Run the program on the flat ``arguments`` and return its flat outputs.

        Args:
          arguments: one value for each input, of any type that ``rule_fn`` understands.
          rule_fn: ``(operation, operands) -> outputs``, called for each operation that is not opened.
          opened: kinds of wrappers (`CALL`, `CUSTOM_DERIVATIVE`) whose program is evaluated in place of the operation.
          constant_fn: turns constants and literals into values that ``rule_fn`` understands.

        Raises:
          ValueError: for loops and branches among ``opened``: their programs do not run once on the operands.
        """
        if closed := set(opened) - {CALL, CUSTOM_DERIVATIVE}:
            raise ValueError(f"opened must be of {CALL!r} and {CUSTOM_DERIVATIVE!r}, got {', '.join(sorted(closed))}")
        environment = dict(zip(self.jaxpr.constvars, map(constant_fn, self.consts), strict=True))
        environment.update(zip(self.jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> Any:
            return constant_fn(atom.val) if isinstance(atom, jex_core.Literal) else environment[atom]

        for operation in self.operations:
            operands = [read(atom) for atom in operation.equation.invars]
            outputs: Sequence[Any]
            if operation.kind in opened:
                (program,) = operation.programs
                outputs = program.evaluate(operands, rule_fn, opened=opened, constant_fn=constant_fn)
            else:
                outputs = rule_fn(operation, operands)
            environment.update(zip(operation.equation.outvars, outputs, strict=True))
        return [read(atom) for atom in self.jaxpr.outvars]


def trace(fn: Callable, *arguments: Any) -> Program:
    """Trace ``fn(*arguments)``; arguments are pytrees of arrays or of `jax.ShapeDtypeStruct`."""
    closed = jax.make_jaxpr(fn)(*arguments)
    return Program(closed.jaxpr, closed.consts)


def _programs(value: Any) -> Iterator[Program]:
    for entry in value if isinstance(value, tuple | list) else (value,):
        jaxpr = getattr(entry, "jaxpr", entry)  # a closed jaxpr holds its constants too
        if hasattr(jaxpr, "eqns"):
            yield Program(jaxpr, getattr(entry, "consts", ()))
