"""The work of a sweep: runs go to the devices in chunks, results to the folder as soon as a chunk is done.

Which runs share a chunk is decided by the plan alone, or does not matter (where one goes after another), so that a sweep that was
stopped ends with the same numbers as one that was not.
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
from jaxbp.runtime.program_cache import evict_compiled_programs
from jaxbp.sweep import plans
from jaxbp.sweep._checkpoints import Checkpoints
from jaxbp.sweep._chunk import Chunk
from jaxbp.sweep._placement import Placement, fitted, rows_here
from jaxbp.sweep._recorder import Recorder
from jaxbp.sweep.segments import Segments
from jaxbp.sweep._tasks import Task

_SAVE_EVERY = 2.0  # seconds of work between writes, for short runs that go one after another


@dataclass(frozen=True)
class Options:
    """How a sweep is computed; see `jaxbp.sweep.run`. ``checkpoints``: a folder for them, None for none."""

    plan: str
    mesh: Mesh
    memory: int
    checkpoints: Path | None
    checkpoint_every: float
    keep: int
    scalars: bool


class Part(NamedTuple):
    """A program of a task: a function of (one of ``runs``, shared), where only the shapes of ``runs`` matter."""

    fn: Callable
    runs: Any
    shared: tuple
    donate: bool = False

    def compiled(self, placement: Placement) -> Any:
        """The program for a chunk."""
        places = placement.like(self.runs)
        return plans.compiled(self.fn, placement.within, placement.mesh, self.donate, placement.num_devices, places, self.shared)


@dataclass(frozen=True)
class Engine:
    """Computes the tasks of a sweep; ``shared``: what all runs share, on the devices."""

    options: Options
    shared: tuple
    recorder: Recorder

    def compute(self, task: Task) -> None:
        """Compute the runs of ``task`` that are not in the store.

        Raises:
          stopping.Terminated, KeyboardInterrupt: asked to stop; what could be saved is saved.
        """
        if self.recorder.missing(task.names):
            if isinstance(task.fn, Segments):
                self._in_segments(task, task.fn.num_segments)
            else:
                self._whole(task)
            evict_compiled_programs()

    def _whole(self, task: Task) -> None:
        placement, (program,) = self._placed(task, [Part(task.functions, task.runs, self.shared)])
        for numbers in self._chunks(task, placement):
            names = [task.names[n] for n in numbers]
            self.recorder.start(names)
            runs, counts, places = placement.place(task.runs, numbers)
            rows = rows_here(program(counts, runs, self.shared), places)
            self.recorder.record(names, {names[position]: row for position, row in rows.items()})
            self.recorder.stop_if_asked()

    def _chunks(self, task: Task, placement: Placement) -> Iterator[Sequence[int]]:
        """Which runs to do next: of those that go one after another what is missing, in portions of `_SAVE_EVERY`; else whole chunks."""
        missing = self.recorder.missing(task.names)
        if placement.within == "vmap":
            yield from (chunk for chunk in placement.chunks(len(task.names)) if set(chunk) & set(missing))
            return
        number = 1
        while missing:
            began, size = time.monotonic(), placement.num_devices * number
            yield missing[:size]
            missing, took = missing[size:], time.monotonic() - began
            number = processes.from_first(max(1, min(placement.capacity, int(number * _SAVE_EVERY / took))))

    def _in_segments(self, task: Task, num_segments: int) -> None:
        init, segment, finish = task.functions
        carries = jax.eval_shape(lambda runs, shared: jax.vmap(lambda run: init(run, *shared))(runs), task.runs, self.shared)
        parts = [
            Part(init, task.runs, self.shared),
            Part(segment, carries, (np.int32(0), *self.shared), donate=True),
            Part(finish, carries, self.shared),
        ]
        # One after another nothing is gained by more than one run on a device, and less is lost to a kill with one.
        placement, programs = self._placed(task, parts, most=1)
        missing = set(self.recorder.missing(task.names))
        for numbers in placement.chunks(len(task.names)):
            if missing & set(numbers):
                self._one_chunk(task, numbers, placement, programs, placement.like(carries), num_segments)

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
        facts = {"runs": list(names), **placement.facts(), "shapes": shapes}
        return Checkpoints(self.options.checkpoints, names[0], facts, self.options.keep)

    def _placed(self, task: Task, parts: Sequence[Part], *, most: int | None = None) -> tuple[Placement, Sequence[Any]]:
        """Placement and compiled programs of a task; those of an earlier start of the sweep if the devices are as many.

        ``most``: runs on a device, one after another, at most.
        """
        mesh, store, num_runs, say = self.options.mesh, self.recorder.store, len(task.names), self.recorder.progress.say
        devices = list(mesh.devices.flat)
        plan = plans.resolve(self.options.plan, lambda: task.products(self.shared), num_runs=num_runs, devices=devices)
        within = "vmap" if plan.endswith("vmap") else "map"
        most = most if within == "map" else None
        bound: float = self.options.memory

        def compiled(placement: Placement) -> Sequence[Any]:
            return [part.compiled(placement) for part in parts]

        noted = store.config.get("plans", {})
        saved = processes.from_first(noted.get(task.label))
        if saved and Placement(mesh, within, saved["capacity"]).facts() == saved:
            most, bound = saved["capacity"], math.inf
        placement, programs = fitted(mesh, within, num_runs, compiled, most=most, bound=bound)
        if placement.facts() != saved and processes.is_first():
            store.note(plans={**noted, task.label: placement.facts()})
        say(f"{task.label}: {num_runs} runs, {placement}")
        if placement.needed > self.options.memory:
            say(f"{task.label}: that is more than the {self.options.memory / 2**20:.3g} MiB that a device may use")
        return placement, programs
