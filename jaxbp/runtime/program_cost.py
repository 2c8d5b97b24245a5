"""What a compiled program costs, read from the optimised program itself: operations, bytes, memory.

XLA's own account (`jax.stages.Compiled.cost_analysis`) counts the body of a loop once, so that a training of a thousand steps costs as much
as a step. Here each computation of the optimised HLO is counted by the compiler's rules, and a loop's body as often as it runs:

- a matrix product or convolution counts two operations a multiply-add, positions of the padding included; a reduction one for each element
  that it reads; any other arithmetic one for each element of its result;
- an instruction, or a fusion as a whole, reads its operands and writes its result once; a slice counts as what is read or replaced;
- a loop runs as often as the compiler knows; one whose rounds are known at run time only (a sweep's runs one after another, an iteration
  that converges) as often as the longest array that it fills row by row has rows, an upper bound, and once if it fills none;
- of branches the dearest counts; of calls to libraries (cuBLAS, LAPACK) bytes alone, unless XLA counts more than all of this.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import Any

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.+?) ([\w\-]+)\((.*)$")
_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_ROUNDS = re.compile(r'known_trip_count\\?":\{\\?"n\\?":\\?"(\d+)')
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id")
_MOVES = (  # data, and computes nothing
    *(
        "copy",
        "broadcast",
        "transpose",
        "reshape",
        "slice",
        "dynamic-slice",
        "dynamic-update-slice",
        "concatenate",
        "pad",
        "iota",
        "gather",
    ),
    *("convert", "bitcast-convert", "reverse", "copy-start", "copy-done", "custom-call", "rng-bit-generator"),
)
_REDUCTIONS = ("reduce", "reduce-window", "select-and-scatter", "all-reduce", "sort")


@dataclasses.dataclass(frozen=True)
class ProgramCost:
    """What a call of a program costs, over all of its devices.

    Attributes:
      flops: floating-point and integer operations.
      bytes_accessed: bytes read and written, as if no cache kept any.
      launches: operations that the program executes one after another on a device.
      memory: bytes that a device holds: arguments, results and temporaries.
    """

    flops: float = 0.0
    bytes_accessed: float = 0.0
    launches: float = 0.0
    memory: int = 0

    def __add__(self, other: "ProgramCost") -> "ProgramCost":
        """Of both, one after the other."""
        sums = (self.flops + other.flops, self.bytes_accessed + other.bytes_accessed, self.launches + other.launches)
        return ProgramCost(*sums, max(self.memory, other.memory))

    def times(self, number: float) -> "ProgramCost":
        """Of so many calls."""
        return ProgramCost(self.flops * number, self.bytes_accessed * number, self.launches * number, self.memory)


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    opcode: str
    operands: tuple[str, ...]
    text: str
    is_root: bool

    @property
    def size(self) -> int:
        """Elements of the result."""
        return sum(math.prod(shape) for _, shape in self.shapes)

    @property
    def num_bytes(self) -> float:
        return sum(math.prod(shape) * _width(kind) for kind, shape in self.shapes)


class _Module:
    """The computations of an optimised HLO module, by name."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, _Instruction]] = {}
        self.entry = ""
        for line in text.splitlines():
            if head := _COMPUTATION.match(line):
                own: dict[str, _Instruction] = {}
                self.computations[head[2]] = own
                self.entry = head[2] if head[1] else self.entry
            elif self.computations and (match := _INSTRUCTION.match(line)):
                own[match[2]] = _instruction(match)

    @functools.cache  # noqa: B019 - a module lives as long as it is read
    def cost(self, name: str) -> ProgramCost:
        """Of one run of a computation."""
        return sum((self._of(one, self.computations[name]) for one in self.computations[name].values()), ProgramCost())

    def _of(self, one: _Instruction, around: dict[str, _Instruction]) -> ProgramCost:
        called = [name for name in _called(one) if name in self.computations]
        if one.opcode in _FREE:
            return ProgramCost()
        if one.opcode == "while":
            return sum((self.cost(name) for name in called), ProgramCost()).times(self._rounds(one))
        if one.opcode == "conditional":
            return max((self.cost(name) for name in called), key=lambda cost: cost.flops + cost.bytes_accessed, default=ProgramCost())
        if one.opcode == "call" and called:
            return self.cost(called[0])
        moved = self._traffic(one, around)
        if one.opcode == "fusion":
            return ProgramCost(sum(self.cost(name).flops for name in called), moved, 1)
        return ProgramCost(_flops(one, around), moved, 1)

    def _rounds(self, loop: _Instruction) -> int:
        if known := _ROUNDS.search(loop.text):
            return int(known[1])
        rows = [1]
        for one, own in self._reached(re.findall(r"body=%?([\w.\-]+)", loop.text)):
            if one.opcode == "dynamic-update-slice" and (update := own.get(one.operands[1])):
                whole, part = one.shapes[0][1], update.shapes[0][1]
                rows += [length for length, piece in zip(whole[:1], part[:1], strict=True) if piece == 1]
        return max(rows)

    def _reached(self, names: list[str]) -> Iterator[tuple[_Instruction, dict[str, _Instruction]]]:
        """The instructions of computations and of their fusions and calls, but not of loops within them, whose rounds are their own."""
        for name in names:
            own = self.computations.get(name, {})
            for one in own.values():
                yield one, own
                if one.opcode in ("fusion", "call"):
                    yield from self._reached(_called(one))

    def _traffic(self, one: _Instruction, around: dict[str, _Instruction]) -> float:
        """Bytes that an instruction or a fusion reads and writes."""
        operands = [around[name].num_bytes if name in around else 0.0 for name in one.operands]
        if one.opcode in ("dynamic-slice", "slice", "gather"):
            return 2 * one.num_bytes
        if one.opcode == "dynamic-update-slice":
            return 2 * operands[1]
        inner = self.computations.get(next(iter(_called(one)), ""), {}) if one.opcode == "fusion" else {}
        written = one.num_bytes
        for inside in inner.values():
            if inside.opcode == "parameter":
                uses = [user for user in inner.values() if inside.name in user.operands]
                if uses and all(
                    user.opcode in ("dynamic-slice", "dynamic-update-slice") and user.operands[0] == inside.name for user in uses
                ):
                    number = int(re.match(r"\d+", inside.text)[0])  # type: ignore[index]
                    operands[number] = min(operands[number], sum(_slice_bytes(user, inner) for user in uses))
            elif inside.is_root and inside.opcode == "dynamic-update-slice":
                written = _slice_bytes(inside, inner)
        return sum(operands) + written


def of_text(hlo: str) -> ProgramCost:
    """The cost of an optimised module from its text, without ``memory``, for one device."""
    module = _Module(hlo)
    return module.cost(module.entry) if module.entry else ProgramCost()


def of_compiled(compiled: Any) -> ProgramCost:
    """The cost of a `jax.stages.Compiled`."""
    own, totals, stats = of_text(compiled.as_text()), compiled.cost_analysis(), compiled.memory_analysis()
    return _joined(own, totals, stats, 1)


def of_executable(executable: Any) -> ProgramCost:
    """The cost of an executable as a device's client lists them."""
    own = sum((of_text(module.to_string()) for module in executable.hlo_modules()), ProgramCost())
    return _joined(own, executable.cost_analysis(), executable.get_compiled_memory_stats(), len(executable.local_devices()))


def _joined(own: ProgramCost, totals: Any, stats: Any, num_devices: int) -> ProgramCost:
    """Our counts with what XLA tells of memory; never fewer operations than XLA counts."""
    flops = max(own.flops, float((totals or {}).get("flops", 0.0)))
    memory = 0
    if stats is not None:
        parts = (stats.argument_size_in_bytes, stats.output_size_in_bytes, stats.temp_size_in_bytes)
        memory = sum(parts) - stats.alias_size_in_bytes
    return ProgramCost(num_devices * flops, num_devices * own.bytes_accessed, own.launches, memory)


def _instruction(match: re.Match) -> _Instruction:
    is_root, name, kind, opcode, rest = match.groups()
    shapes = tuple((element, tuple(map(int, filter(None, dims.split(","))))) for element, dims in _SHAPE.findall(kind))
    return _Instruction(name, shapes, opcode, tuple(_NAME.findall(_inside(rest))), rest, bool(is_root))


def _inside(text: str) -> str:
    """The text up to the bracket that closes the operands."""
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[:place]
    return text


def _called(one: _Instruction) -> list[str]:
    branches = _BRANCHES.search(one.text)
    return [*_CALLED.findall(one.text), *(name.strip().lstrip("%") for name in (branches[1].split(",") if branches else []))]


def _flops(one: _Instruction, around: dict[str, _Instruction]) -> float:
    operands = [around.get(name) for name in one.operands]
    if one.opcode == "dot" and operands[0]:
        dims = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.text)
        contracted = [operands[0].shapes[0][1][int(d)] for d in filter(None, dims[1].split(","))] if dims else []
        return 2.0 * one.size * math.prod(contracted)
    if one.opcode == "convolution" and operands[1]:
        labels = re.search(r"dim_labels=\w+_(\w+)->", one.text)
        kernel = operands[1].shapes[0][1]
        dilation = re.search(r"lhs_dilate=([\dx]+)", one.text)
        zeros = math.prod(map(int, dilation[1].split("x"))) if dilation else 1
        per_output = math.prod(kernel) / (kernel[labels[1].index("o")] if labels else 1)
        return 2.0 * one.size * per_output / zeros
    if one.opcode in _REDUCTIONS:
        return float(operands[0].size) if operands and operands[0] else float(one.size)
    return 0.0 if one.opcode in (*_MOVES, *_FREE) else float(one.size)


def _slice_bytes(one: _Instruction, around: dict[str, _Instruction]) -> float:
    if one.opcode == "dynamic-slice":
        return one.num_bytes
    return around[one.operands[1]].num_bytes if one.operands[1] in around else one.num_bytes


def _width(kind: str) -> float:
    """Bytes of an element."""
    bits = re.search(r"\d+", kind)
    return 1.0 if kind == "pred" or not bits else int(bits[0]) / 8
