"""Find every place where parameters multiply data, with the kernel as a function of the parameters, and name what cannot be followed.

`read` walks through the program of any function of (params, inputs) without running it. A value that depends on parameters and constants
alone is an `Expression`; all others are data. Where a matrix product or a convolution meets an expression and data there is a layer, and
the expression is its kernel: a parameter, a slice of a stack, a normalised, masked or scaled parameter, a product of factors. Calls,
functions with derivative rules, loops and branches are followed: a stack of L kernels under `nn.scan` is L layers, the kernel of a
recurrent cell is one. Kernels side by side in one product, as in LSTM cells, are a layer each. Looking up rows of a table is the product
of a one-hot matrix and the table. The map that a convolution reads is followed back through padding (`jaxbp.jaxprs.padded_maps`).

A parameter may also be added to data, or be joined to it; then it is no kernel. Whatever else meets a parameter of two or more axes is
named in `Reading.refused`, unless some layer accounts for the parameter.

>>> import jax.numpy as jnp
>>> from jaxbp.jaxprs import weight_uses
>>> params = {"gate": jnp.ones((4, 3)), "kernel": jnp.ones((3, 5)), "mask": jnp.ones((3, 5))}
>>> reading = weight_uses.read(lambda p, x: (x * p["gate"]) @ (p["kernel"] * p["mask"]), params, jnp.ones((4, 3)))
>>> [sorted(use.kernel.leaves) for use in reading.uses], reading.refused
([[1, 2]], {0: 'it multiplies data entry by entry'})
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast

import jax
from jaxtyping import PyTree

from jaxbp.jaxprs import interpret, padded_maps
from jaxbp.jaxprs.expressions import Expression, Expressions, ancestors
from jaxbp.jaxprs.products import BILINEAR, Convolution, Matmul, geometry_of

_MOST_STEPS = 1024  # of a loop that are followed one by one
_JOINING = ("add", "sub", "add_any", "concatenate", "select_n", "dynamic_update_slice", "scatter", "scatter-add", "pad", "max", "min")
_REARRANGING = ("copy", "reshape", "transpose", "squeeze", "expand_dims")
_ENTRYWISE = (*_JOINING, *_REARRANGING, "mul", "div", "neg", "convert_element_type", "integer_pow")
_COMPARING = ("eq", "ne", "lt", "le", "gt", "ge", "stop_gradient")


class WeightUse(NamedTuple):
    """A place where a kernel that depends on parameters multiplies data.

    Attributes:
      kernel: the kernel as an operand of the product.
      geometry: the product of data and kernel.
      data: shape and dtype of the data; of a padded map those of the map that was padded.
      output: shape and dtype of the output.
      source: a number that is equal for uses that read the same array.
      pixels: for each axis of the data that the convolution reads, the index of the pixel that it copies, -1 for zeros; None for data that
        are read as they are.
    """

    kernel: Expression
    geometry: Matmul | Convolution
    data: jax.ShapeDtypeStruct
    output: jax.ShapeDtypeStruct
    source: int
    pixels: tuple[tuple[int, ...], ...] | None = None


class Reading(NamedTuple):
    """What `read` has found.

    Attributes:
      uses: in the order of the program; equal uses of equal kernels occur once.
      refused: parameters that multiply data in a way that cannot be followed, by index among the leaves, and how.
    """

    uses: tuple[WeightUse, ...]
    refused: dict[int, str]


def read(fn: Callable, params: PyTree, *arguments: PyTree) -> Reading:
    """Trace ``fn(params, *arguments)``, which may return anything, and find the uses of its parameters; only shapes matter."""
    program = interpret.trace(fn, params, *arguments)
    num_leaves = len(jax.tree.leaves(params))
    walk = _Walk()
    types = program.input_types
    leaves = [walk.expressions.leaf(index, like) for index, like in enumerate(types[:num_leaves])]
    outputs = walk.run(program, [*leaves, *(walk.data(like) for like in types[num_leaves:])])
    for output in outputs:
        if isinstance(output, Expression):
            walk.leave(output)
    accounted = {leaf for use in walk.uses.values() for leaf in use.kernel.leaves}
    matrices = {index for index, like in enumerate(types[:num_leaves]) if len(like.shape) > 1}
    doubtful = {leaf: reason for leaf, reason in walk.doubtful.items() if leaf not in accounted}
    refused = {leaf: reason for leaf, reason in {**doubtful, **walk.refused}.items() if leaf in matrices}
    return Reading(tuple(walk.uses.values()), dict(sorted(refused.items())))


class _Data(padded_maps.Rearranged):
    """A value that depends on the inputs, and how it was made from others by moving entries.

    Attributes:
      dtype: of the value.
      source: a number that is equal for an array and its casts.
      mixed: parameters that, changed by data, may still be in the value as a kernel, and how they were changed.
      is_product: whether the value is the output of a matrix product or a convolution.
    """

    def __init__(
        self,
        like: Any,
        source: int,
        *,
        mixed: dict[int, str] | None = None,
        is_product: bool = False,
        parents: Sequence = (),
        move_fn: Any = None,
    ):
        super().__init__(like.shape, parents, move_fn)
        self.dtype, self.source, self.mixed, self.is_product = like.dtype, source, mixed or {}, is_product


_Value = Expression | _Data


class _Walk:
    """One walk through a program.

    Attributes:
      uses: by what makes them equal.
      doubtful: parameters that may be kernels in a way that is not followed, and how they are used.
      refused: parameters that are kernels in a way that is not followed.
    """

    def __init__(self) -> None:
        self.expressions = Expressions()
        self.uses: dict[Any, WeightUse] = {}
        self.doubtful: dict[int, str] = {}
        self.refused: dict[int, str] = {}
        self._count = itertools.count()
        self._left: set[int] = set()

    def data(self, like: Any, **attributes: Any) -> _Data:
        return _Data(like, next(self._count), **attributes)

    def run(self, program: interpret.Program, values: Sequence[_Value]) -> list[_Value]:
        opened = (interpret.CALL, interpret.CUSTOM_DERIVATIVE)
        return program.evaluate(values, self._evaluate, opened=opened, constant_fn=self.expressions.constant)

    def _evaluate(self, operation: interpret.Operation, operands: list[_Value]) -> Sequence[_Value]:
        if all(isinstance(operand, Expression) for operand in operands):
            return self.expressions.call(operation, cast(list[Expression], operands))
        if operation.name in _LOOPS:
            return _LOOPS[operation.name](self, operation, operands)
        if operation.name in BILINEAR:
            return self._multiply(operation, operands)
        if operation.name == "gather" and isinstance(operands[0], Expression) and _looks_up_rows(operation, operands[0]):
            return self._look_up(operation, operands)
        return self._mix(operation, operands)

    def _multiply(self, operation: interpret.Operation, operands: list[_Value]) -> list[_Value]:
        (like,) = operation.output_types
        side, kernel = next(((side, operand) for side, operand in enumerate(operands) if isinstance(operand, Expression)), (0, None))
        if kernel is None:
            for operand in operands:
                self.refused.update(cast(_Data, operand).mixed)
        elif kernel.leaves:
            geometry = geometry_of(operation, side, kernel.shape)
            if geometry is None:
                self._doubt(kernel, "it takes part in a convolution whose kernel is data")
            else:
                self._use(kernel, geometry, operands[1 - side], like)
        return [self.data(like, is_product=True)]

    def _use(self, kernel: Expression, geometry: Matmul | Convolution, data: _Value, output: Any) -> None:
        if (parts := _side_by_side(kernel, geometry, output)) is not None:
            for part, like in parts:
                if part.leaves:
                    self._use(part, geometry, data, like)
            return
        pixels, like = None, data
        if isinstance(data, _Data) and isinstance(geometry, Convolution):
            pixels, like = self._unpadded(data, geometry)
        source = like.source if isinstance(like, _Data) else -1 - like.key
        read_type, output_type = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (like, output))
        use = WeightUse(kernel, geometry, read_type, output_type, source, pixels)
        self.uses.setdefault((kernel.key, geometry, read_type, pixels), use)

    def _unpadded(self, data: _Data, geometry: Convolution) -> tuple[tuple[tuple[int, ...], ...] | None, _Data]:
        """The pixels that the convolution reads, and the map that they copy: that which was padded, if any."""
        space = geometry.data_spec[2:]
        for origin in reversed(data.origins()[1:]):
            pixels = padded_maps.pixels_of(data, origin)
            if pixels is None:
                continue
            whole = [set(line) - {-1} == set(range(extent)) for line, extent in zip(pixels, origin.shape, strict=True)]
            kept = [line == tuple(range(extent)) for line, extent in zip(pixels, origin.shape, strict=True)]
            if all(whole[axis] if axis in space else kept[axis] for axis in range(len(pixels))):
                return (None if all(kept) else tuple(pixels[axis] for axis in space)), cast(_Data, origin)
        return None, data

    def _look_up(self, operation: interpret.Operation, operands: list[_Value]) -> list[_Value]:
        table, (like,) = cast(Expression, operands[0]), operation.output_types
        num_rows, width = table.shape
        one_hot = jax.ShapeDtypeStruct((like.size // width, num_rows), table.dtype)
        self._use(table, Matmul((1,), (), 1, (0,), ()), self.data(one_hot), jax.ShapeDtypeStruct((like.size // width, width), table.dtype))
        return [self.data(like)]

    def _mix(self, operation: interpret.Operation, operands: list[_Value]) -> list[_Value]:
        """An operation that is no product of a kernel and data."""
        name, types = operation.name, operation.output_types
        kernels = [operand for operand in operands if isinstance(operand, Expression) and operand.leaves]
        data = [operand for operand in operands if isinstance(operand, _Data)]
        mixed: dict[int, str] = {}
        is_bias = name in ("add", "sub") and any(operand.is_product for operand in data)
        for kernel in kernels:
            self.leave(kernel)
            by_number = name in ("mul", "div") and all(operand.size == 1 for operand in data)
            reason = _reason(name, by_number)
            if name not in (*_JOINING, *_COMPARING):
                self._doubt(kernel, reason)
            picked = name in ("dynamic_slice", "gather")
            if picked or (name in _ENTRYWISE and types[0].size == kernel.size and not is_bias):
                mixed.update(dict.fromkeys(kernel.leaves, "it is picked by the inputs" if picked else reason))
        if name in _ENTRYWISE:
            for operand in data:
                if operand.mixed and types[0].size == operand.size:
                    mixed.update(operand.mixed)
        if name == "convert_element_type":
            return [_Data(types[0], data[0].source, mixed=mixed, parents=data, move_fn=padded_maps.move_fns(operation)[0])]
        parents = [operand if isinstance(operand, _Data) else None for operand in operands]
        moves = padded_maps.move_fns(operation)
        return [self.data(like, mixed=mixed, parents=parents, move_fn=move) for like, move in zip(types, moves, strict=True)]

    def _doubt(self, kernel: Expression, reason: str) -> None:
        for leaf in kernel.leaves:
            self.doubtful.setdefault(leaf, reason)

    def leave(self, value: Expression) -> None:
        """Note that a value of parameters alone becomes data: products on the way to it are layers on constant data."""
        for node in ancestors(value):
            if node.key in self._left or node.call is None or not node.leaves:
                continue
            self._left.add(node.key)
            call = node.call
            if call.name in BILINEAR and call.operation is not None:
                side = 1 if call.operands[1].leaves else 0
                kernel, data = call.operands[side], call.operands[1 - side]
                geometry = geometry_of(call.operation, side, kernel.shape)
                if geometry is not None:
                    self._use(kernel, geometry, data, node)
            elif call.operation is not None and call.operation.programs:
                self._doubt(node, f"it enters the operation {call.name}")

    def _scan(self, operation: interpret.Operation, operands: list[_Value]) -> list[_Value]:
        """Follow the steps of a loop one by one, until all later ones are like the last."""
        params, (program,) = operation.params, operation.programs
        length, types = params["length"], operation.output_types
        num_stacks, num_carry = _num_stacks(operation, program), _num_carry(operation, program)
        num_kept = len(operands) - num_stacks
        consts, carry, stacks = operands[: num_kept - num_carry], operands[num_kept - num_carry : num_kept], operands[num_kept:]
        if length > _MOST_STEPS:
            carry, stacks = (self._as_data(group, "a loop of over 1024 steps picks it") for group in (carry, stacks))
        varied = [stack for stack in stacks if isinstance(stack, Expression)]
        steps: list[list[_Value]] = []
        before: list[Any] = []
        for number in range(length)[:: -1 if params["reverse"] else 1]:
            items = [
                self.expressions.step(stack, number)
                if isinstance(stack, Expression)
                else self.data(jax.ShapeDtypeStruct(stack.shape[1:], stack.dtype), mixed=stack.mixed)
                for stack in stacks
            ]
            signature = [_signature(value) for value in carry]
            if not varied and signature == before:
                break
            outputs = self.run(program, [*consts, *carry, *items])
            carry, before = outputs[:num_carry], signature
            steps.append(outputs[num_carry:])
        results = list(carry)
        for index, like in enumerate(types[num_carry:]):
            ys = [step[index] for step in steps]
            if len(ys) == length and all(isinstance(y, Expression) for y in ys):
                ys = ys[::-1] if params["reverse"] else ys
                results.append(self.expressions.stack(cast(list[Expression], ys)))
            else:
                results.append(self._joined(ys, like))
        return results

    def _while(self, operation: interpret.Operation, operands: list[_Value]) -> list[_Value]:
        params = operation.params
        condition, body = (interpret.Program(params[name].jaxpr, params[name].consts) for name in ("cond_jaxpr", "body_jaxpr"))
        first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
        carry = list(operands[second:])
        while True:  # ends: each round turns at least one more value into data
            outputs = self.run(body, [*operands[first:second], *carry])
            changed = [_signature(new) != _signature(old) for new, old in zip(outputs, carry, strict=True)]
            if not any(changed):
                break
            carry = [
                self._joined([new, old], old) if different else old for new, old, different in zip(outputs, carry, changed, strict=True)
            ]
        self.run(condition, [*operands[:first], *carry])
        return self._as_data(carry, "a loop changes it")

    def _cond(self, operation: interpret.Operation, operands: list[_Value]) -> list[_Value]:
        sides = [self.run(interpret.Program(branch.jaxpr, branch.consts), operands[1:]) for branch in operation.params["branches"]]
        return [
            values[0]
            if len({_signature(value) for value in values}) == 1 and isinstance(values[0], Expression)
            else self._joined(values, like)
            for values, like in zip(zip(*sides, strict=True), operation.output_types, strict=True)
        ]

    def _joined(self, values: Iterable[_Value], like: Any) -> _Data:
        """Data that may be any of the values; parameters among them stay in it as kernels that are picked by the inputs."""
        mixed: dict[int, str] = {}
        for value in values:
            if isinstance(value, Expression):
                self.leave(value)
                mixed.update(dict.fromkeys(value.leaves, "it is picked by the inputs"))
            else:
                mixed.update(value.mixed)
        return self.data(like, mixed=mixed)

    def _as_data(self, values: Iterable[_Value], reason: str) -> list[_Value]:
        replaced: list[_Value] = []
        for value in values:
            if isinstance(value, Expression):
                self.leave(value)
                value = self.data(value, mixed=dict.fromkeys(value.leaves, reason))
            replaced.append(value)
        return replaced


_LOOPS: dict[str, Callable[[_Walk, interpret.Operation, list], list]] = {"scan": _Walk._scan, "while": _Walk._while, "cond": _Walk._cond}


def _num_stacks(operation: interpret.Operation, program: interpret.Program) -> int:
    """How many inputs of a loop have an entry for each step: those with an axis more than in the step; counts' names vary between JAX's."""
    pairs = zip(operation.input_types, program.jaxpr.invars, strict=True)
    return sum(len(whole.shape) > len(variable.aval.shape) for whole, variable in pairs)


def _num_carry(operation: interpret.Operation, program: interpret.Program) -> int:
    """How many outputs of a loop are those of its last step."""
    pairs = zip(operation.output_types, program.jaxpr.outvars, strict=True)
    return sum(len(whole.shape) == len(atom.aval.shape) for whole, atom in pairs)


def _signature(value: _Value) -> Any:
    return value.key if isinstance(value, Expression) else tuple(sorted(value.mixed))


def _reason(name: str, by_number: bool) -> str:
    if by_number:
        return "its weight is multiplied by a number that is known only at run time"
    if name in ("mul", "div"):
        return "it multiplies data entry by entry"
    if name in _JOINING:
        return "its weight is changed by data"
    return f"it enters the operation {name} together with data"


def _looks_up_rows(operation: interpret.Operation, table: Expression) -> bool:
    numbers, sizes = operation.params["dimension_numbers"], tuple(operation.params["slice_sizes"])
    return len(table.shape) == 2 and tuple(numbers.collapsed_slice_dims) == (0,) and sizes == (1, table.shape[1]) and bool(table.leaves)


def _side_by_side(kernel: Expression, geometry: Matmul | Convolution, output: Any) -> list[tuple[Expression, Any]] | None:
    """Parts of a kernel that is joined along an axis of outputs, each with its output; None for any other kernel."""
    if kernel.call is None or kernel.call.name != "concatenate" or kernel.call.operation is None or len(kernel.call.operands) < 2:
        return None
    axis = kernel.call.operation.params["dimension"]
    if isinstance(geometry, Convolution):
        if axis != geometry.weight_spec[0] or geometry.groups > 1:
            return None
        place = geometry.output_spec[1]
    else:
        free = [a for a in range(len(kernel.shape)) if a not in (*geometry.weight_contract, *geometry.weight_batch)]
        if axis not in free:
            return None
        first = len(geometry.batch) if geometry.weight_side == 0 else len(output.shape) - len(free)
        place = first + free.index(axis)
    shapes = [(*output.shape[:place], part.shape[axis], *output.shape[place + 1 :]) for part in kernel.call.operands]
    return [(part, jax.ShapeDtypeStruct(shape, output.dtype)) for part, shape in zip(kernel.call.operands, shapes, strict=True)]
