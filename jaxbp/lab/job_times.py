"""How long jobs took and what they left, a line each in the folder of a run: what estimates are made from."""

import contextlib
import dataclasses
import json
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from jaxbp.ops import platform
from jaxbp.runtime import jax_setup, program_cost
from jaxbp.runtime.program_cost import ProgramCost

_NAME = "job_times.{}.jsonl"
_COMPILING = "/jax/core/compile/backend_compile_duration"
_LOWERING = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_TRACING = "/jax/core/compile/jaxpr_trace_duration"
_RECENT = 8  # executables among which that of a compilation is looked for: workers compile beside each other
_of_thread = threading.local()
_running: list["_Timing"] = []  # of all threads of this process
_running_lock = threading.Lock()


@dataclasses.dataclass
class JobTime:
    """What a job took.

    Attributes:
      stage, case: of the job, by name; the stage's with its module.
      device: the kind of the device.
      weight: the job's share of the time, as its stage says it.
      scale: sizes of which a stage's cost may know nothing, such as ``num_epochs``.
      seconds: wall time, that of compilation included.
      compile_seconds: of getting programs ready, which comes once a program however long it runs: to trace, lower and compile programs,
        and to wait for one that a job of the same stage and case was getting ready.
      programs: the number of programs that were compiled.
      num_bytes: of the result on disk.
      peak_mib: peak memory of the process until then.
      flops, bytes_accessed, launches, program_bytes: what the programs that were compiled cost by the compiler's account, each called
        once (`jaxbp.runtime.program_cost`); ``program_bytes`` is the most that one of them holds on a device. 0 where it is not known.
    """

    stage: str
    case: str
    device: str
    weight: float
    scale: dict[str, float]
    seconds: float = 0.0
    compile_seconds: float = 0.0
    programs: int = 0
    num_bytes: int = 0
    peak_mib: int = 0
    flops: float = 0.0
    bytes_accessed: float = 0.0
    launches: float = 0.0
    program_bytes: int = 0


@contextlib.contextmanager
def timed(record: JobTime) -> Iterator[None]:
    """Fill in what the body takes, in this thread."""
    timing = _Timing(record)
    _of_thread.timing, began = timing, time.monotonic()
    record.device = platform.default_device().device_kind
    with _running_lock:
        _running.append(timing)
    try:
        yield
    finally:
        record.seconds, record.peak_mib = time.monotonic() - began, jax_setup.peak_memory_mib()
        with _running_lock:
            _running.remove(timing)
            waited = [(start, end) for name, start, end in timing.beside if name not in timing.ready]
        record.compile_seconds = _length([*timing.spans, *waited], began)
        _of_thread.timing = None


@dataclasses.dataclass(eq=False)
class _Timing:
    """A job that is timed.

    Attributes:
      spans: from when to when it traced, lowered or compiled.
      ready: the names of the programs that it has lowered.
      beside: programs that jobs of its stage and case have lowered and compiled meanwhile, with start and end.
    """

    record: JobTime
    spans: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    ready: set[str] = dataclasses.field(default_factory=set)
    beside: list[tuple[str, float, float]] = dataclasses.field(default_factory=list)


def _length(spans: Iterable[tuple[float, float]], began: float) -> float:
    """The time that intervals cover together, from ``began`` on: a function within another is traced in the other's time."""
    total, reached = 0.0, began
    for start, end in sorted(spans):
        total += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return total


def _note_compilation(event: str, duration_secs: float, **facts: Any) -> None:
    if event not in (_TRACING, _LOWERING, _COMPILING) or (timing := getattr(_of_thread, "timing", None)) is None:
        return
    ended, name, record = time.monotonic(), _letters(str(facts.get("fun_name", ""))), timing.record
    timing.spans.append((ended - duration_secs, ended))
    if event != _TRACING:
        timing.ready.add(name)
        with _running_lock:
            for other in _running:
                if other is not timing and (other.record.stage, other.record.case) == (record.stage, record.case):
                    other.beside.append((name, ended - duration_secs, ended))
    if event == _COMPILING:
        cost = _cost_of(str(facts.get("fun_name", "")))
        timing.spans.append((ended, time.monotonic()))
        record.programs += 1
        record.flops += cost.flops
        record.bytes_accessed += cost.bytes_accessed
        record.launches += cost.launches
        record.program_bytes = max(record.program_bytes, cost.memory)


def _cost_of(name: str) -> ProgramCost:
    """The cost of the program ``name`` that was compiled last; none where the client does not list its executables."""
    with contextlib.suppress(AttributeError, LookupError, ValueError, RuntimeError, NotImplementedError):  # never fails a job
        device = platform.default_device()
        for executable in device.client.live_executables()[:_RECENT]:
            if _letters(executable.hlo_modules()[0].name) == _letters(name):
                return program_cost.of_executable(executable)
    return ProgramCost()


def _letters(name: str) -> str:
    """A program's name without what compilers write differently, such as "jit(f)" and "jit_f"."""
    return re.sub(r"[^A-Za-z0-9]", "", name)


jax.monitoring.register_event_duration_secs_listener(_note_compilation)


def write(folder: Path, record: JobTime) -> None:
    """Append a record to those of this process; a line that a kill has torn is skipped when they are read."""
    line = json.dumps(dataclasses.asdict(record)) + "\n"
    descriptor = os.open(folder / _NAME.format(jax.process_index()), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def read(folders: Iterable[Path]) -> list[JobTime]:
    """All records of some folders."""
    records = []
    for folder in folders:
        for path in sorted(folder.glob(_NAME.format("*"))):
            for line in path.read_text("utf-8", "replace").splitlines():
                with contextlib.suppress(ValueError, TypeError):
                    records.append(JobTime(**json.loads(line)))
    return records
