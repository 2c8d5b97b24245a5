"""Runs in segments that the devices compute together: advanced, monitored, retired, saved and restored."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxbp.runtime import preemption, processes
from jaxbp.sweep._checkpoints import Checkpoints
from jaxbp.sweep._placement import rows_here
from jaxbp.sweep._recorder import Recorder
from jaxbp.sweep.segments import Carry


class Chunk:
    """Some runs, with their carry on the devices and their checkpoints.

    Args:
      recorder: receives results and progress.
      names: names of the runs.
      places: position of each run in the leading axis of the carry.
      start: computes the initial carry; called if there is no checkpoint.
      like: shapes and shardings of the carry.
      checkpoints: None for no checkpoints.
    """

    def __init__(
        self,
        recorder: Recorder,
        names: Sequence[str],
        places: np.ndarray,
        start: Callable[[], Carry],
        like: Carry,
        checkpoints: Checkpoints | None,
    ):
        self.recorder, self.names, self.places, self.checkpoints = recorder, names, places, checkpoints
        self.num_done: int
        self.carry: Carry
        self.num_done, self.carry = (checkpoints and checkpoints.latest(like)) or (0, start())
        self.retired: set[str] = set()

    def advance(
        self,
        segment: Callable[[Carry, int], Carry],
        num_segments: int,
        *,
        checkpoint_every: float,
        scalars: bool = False,
    ) -> None:
        """Compute the remaining segments, until their end or until no run is alive.

        Args:
          segment: compiled program, ``(carry, index) -> carry``.
          num_segments: number of segments of a run.
          checkpoint_every: seconds between checkpoints. Segments too long for the grace period of SIGTERM are saved after each.
          scalars: write measures for TensorBoard.
        """
        self.recorder.start(self.names, self.num_done / num_segments)
        written = time.monotonic()  # time of the last checkpoint
        for index in range(self.num_done, num_segments):
            began = time.monotonic()
            self.carry, self.num_done = segment(self.carry, index), index + 1
            alive = self._retire()
            self.recorder.advance(alive, self.num_done / num_segments)
            if scalars:
                self._write_scalars(alive, index)
            if len(self.retired) == len(self.names):
                return
            self.recorder.stop_if_asked(self._save)
            ended = time.monotonic()
            due = ended - written > checkpoint_every or ended - began > preemption.GRACE / 2
            if self.num_done < num_segments and processes.from_first(due):
                self._save()
                written = time.monotonic()

    def finish(self, finish: Callable[[Carry], Any]) -> None:
        """Record the results of the runs that reached their end."""
        rows = self._rows(finish(self.carry))
        ended = [name for name in self.names if name not in self.retired]
        self.recorder.record(ended, {name: row for name, row in rows.items() if name not in self.retired})
        if self.checkpoints:
            self.checkpoints.delete()

    def _retire(self) -> list[str]:
        """Record runs that are no longer finite, in any process; returns the names of the finite runs of this process."""
        alive = {name: bool(row["alive"]) for name, row in self._rows({"alive": self.carry.alive}).items()}
        dead = processes.any_process([not alive.get(name, True) for name in self.names])
        if new := [name for name, is_dead in zip(self.names, dead, strict=True) if is_dead and name not in self.retired]:
            rows = self._rows({**self.carry.history, "segments": self.carry.num_done})
            self.recorder.record(new, {name: rows[name] for name in new if name in rows}, retired=True)
            self.retired.update(new)
        return [name for name, is_alive in alive.items() if is_alive]

    def _rows(self, tree: dict[str, Any]) -> dict[str, dict[str, np.ndarray]]:
        return {self.names[position]: row for position, row in rows_here(tree, self.places).items()}

    def _write_scalars(self, names: Sequence[str], index: int) -> None:
        measured = {name: values[:, index] for name, values in self.carry.history.items() if values.ndim == 2}
        rows = self._rows(measured)
        for name in names:
            self.recorder.progress.scalars(self.recorder.labels[name], index, {k: float(v) for k, v in rows[name].items()})

    def _save(self) -> None:
        if self.checkpoints:
            self.checkpoints.save(self.num_done, self.carry)
