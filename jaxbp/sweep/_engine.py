"""The work of a sweep: devices compute chunks of runs, and the results of a chunk go to the folder at once.

A stopped and resumed sweep gives the same numbers as an undisturbed one: either the plan alone determines the runs of a chunk, or the
runs of a chunk are computed one after another and do not influence each other.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxbp.runtime import processes
from jaxbp.sweep import plans
from jaxbp.sweep._checkpoints import Checkpoints
from jaxbp.sweep._chunk import Chunk
from jaxbp.sweep._placement import Placement, fitted, rows_here
from jaxbp.sweep._recorder import Recorder
from jaxbp.sweep._tasks import Task
from jaxbp.sweep.segments import Segments

_SAVE_EVERY = 2.0  # seconds between writes of short runs that are computed one after another


@dataclass(frozen=True)
class Options:
    """How a sweep is computed: arguments of `jaxbp.sweep.run`; ``checkpoints`` is a folder, or None for no checkpoints."""

    plan: str
    mesh: Mesh
    memory: int
    checkpoints: Path | None
    checkpoint_every: float
    keep: int
    scalars: bool


class DeviceProgram(NamedTuple):
    """A program of a task before compilation.

    Attributes:
      fn: function of a run and of ``shared``.
      runs: stack of runs; only the shapes matter.
      shared: arguments that all runs share.
      donate: give the memory of the runs to the results.
    """

    fn: Callable
    runs: Any
    shared: tuple
    donate: bool = False

    def compiled(self, placement: Placement) -> Any:
        """Compile the program for a chunk."""
        places = placement.like(self.runs)
        return plans.compiled(self.fn, placement.within, placement.mesh, self.donate, placement.num_devices, places, self.shared)


@dataclass(frozen=True)
class Engine:
    """Computes the tasks of a sweep; ``shared``: arguments of all runs, on the devices."""

    options: Options
    shared: tuple
    recorder: Recorder

    def compute(self, task: Task) -> None:
        """Compute the runs of ``task`` that are not in the store.

        Raises:
          preemption.Terminated, KeyboardInterrupt: a signal arrived; finished runs and segments are saved.
        """
        if self.recorder.missing(task.names):
            if isinstance(task.fn, Segments):
                self._in_segments(task, task.fn.num_segments)
            else:
                self._whole(task)

    def _whole(self, task: Task) -> None:
        placement, (program,) = self._place(task, [DeviceProgram(task.functions, task.runs, self.shared)])
        for numbers in self._chunks(task, placement):
            names = [task.names[n] for n in numbers]
            self.recorder.start(names)
            runs, counts, places = placement.place(task.runs, numbers)
            rows = rows_here(program(counts, runs, self.shared), places)
            self.recorder.record(names, {names[position]: row for position, row in rows.items()})
            self.recorder.stop_if_asked()

    def _chunks(self, task: Task, placement: Placement) -> Iterator[Sequence[int]]:
        """Yield the numbers of the next runs: under "vmap" whole chunks, under "map" the missing runs in portions of `_SAVE_EVERY`."""
        missing = self.recorder.missing(task.names)
        if placement.within == "vmap":
            yield from (chunk for chunk in placement.chunks(len(task.names)) if set(chunk) & set(missing))
            return
        number = 1
        while missing:
            began, size = time.monotonic(), placement.num_devices * number
            yield missing[:size]
            missing, seconds = missing[size:], time.monotonic() - began
            number = processes.from_first(max(1, min(placement.capacity, int(number * _SAVE_EVERY / seconds))))

    def _in_segments(self, task: Task, num_segments: int) -> None:
        init, segment, finish = task.functions
        carries = jax.eval_shape(lambda runs, shared: jax.vmap(lambda run: init(run, *shared))(runs), task.runs, self.shared)
        programs = [
            DeviceProgram(init, task.runs, self.shared),
            DeviceProgram(segment, carries, (np.int32(0), *self.shared), donate=True),
            DeviceProgram(finish, carries, self.shared),
        ]
        # Under "map" more than one run on a device gains nothing, and a kill loses less with one.
        placement, compiled = self._place(task, programs, most=1)
        missing = set(self.recorder.missing(task.names))
        for numbers in placement.chunks(len(task.names)):
            if missing & set(numbers):
                self._one_chunk(task, numbers, placement, compiled, placement.like(carries), num_segments)

    def _one_chunk(
        self, task: Task, numbers: Sequence[int], placement: Placement, programs: Sequence, like: Any, num_segments: int
    ) -> None:
        start, advance, end = programs
        runs, counts, places = placement.place(task.runs, numbers)
        names = [task.names[n] for n in numbers]
        chunk = Chunk(
            self.recorder,
            names,
            places,
            lambda: start(counts, runs, self.shared),
            like,
            self._checkpoints(names, placement, like),
        )
        chunk.advance(
            lambda carry, index: advance(counts, carry, (np.int32(index), *self.shared)),
            num_segments,
            checkpoint_every=self.options.checkpoint_every,
            scalars=self.options.scalars,
        )
        chunk.finish(lambda carry: end(counts, carry, self.shared))

    def _checkpoints(self, names: Sequence[str], placement: Placement, like: Any) -> Checkpoints | None:
        if self.options.checkpoints is None:
            return None
        shapes = [f"{leaf.dtype}{list(leaf.shape)}" for leaf in jax.tree.leaves(like)]
        identity = {"runs": list(names), **placement.identity(), "shapes": shapes}
        return Checkpoints(self.options.checkpoints, names[0], identity, self.options.keep)

    def _place(self, task: Task, programs: Sequence[DeviceProgram], *, most: int | None = None) -> tuple[Placement, Sequence[Any]]:
        """Placement and compiled programs of a task; the placement of an earlier start is kept if the devices are equally many.

        ``most``: largest number of runs on a device under "map".
        """
        mesh, store, num_runs, log = self.options.mesh, self.recorder.store, len(task.names), self.recorder.progress.log
        devices = list(mesh.devices.flat)
        plan = plans.resolve(self.options.plan, lambda: task.cost_per_run(self.shared), num_runs=num_runs, devices=devices)
        within = "vmap" if plan.endswith("vmap") else "map"
        most = most if within == "map" else None
        bound: float = self.options.memory

        def compile_all(placement: Placement) -> Sequence[Any]:
            return [program.compiled(placement) for program in programs]

        known = store.config.get("plans", {})
        saved = processes.from_first(known.get(task.label))
        if saved and Placement(mesh, within, saved["capacity"]).identity() == saved:
            most, bound = saved["capacity"], math.inf
        placement, compiled = fitted(mesh, within, num_runs, compile_all, most=most, bound=bound)
        if placement.identity() != saved and processes.is_first():
            store.add_metadata(plans={**known, task.label: placement.identity()})
        log(f"{task.label}: {num_runs} runs, {placement}")
        if placement.needed > self.options.memory:
            log(f"{task.label}: that is more than the {self.options.memory / 2**20:.3g} MiB that a device may use")
        return placement, compiled
