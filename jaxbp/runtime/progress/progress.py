"""`Progress`: takes the changes of units of work and passes them to the display and the files."""

import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jaxbp.runtime.progress import clock, display, events
from jaxbp.runtime.progress.files import Files
from jaxbp.runtime.progress.tally import STATES, Tally, Unit, Work

_STATUS_EVERY = 1.0  # seconds between writes of the status
_STATUS_COST = 50  # multiple of the duration of the last write: a slow disk takes 2 % of the time


class Progress:
    """Progress of units of work; a context manager with thread-safe methods.

    The final state is ``finished``, or ``stopped`` if units are left; after an Exception it is ``failed``, after any other exception
    (Ctrl-C, SystemExit) ``stopped``. Later calls, from threads that still work, do nothing.

    Args:
      work: by name of the unit, its group and weight as a `Work` or a pair, for all units of this process.
      folder: folder of log and status, created if absent; None for neither.
      process: number of this process among those that share the folder. Each writes files of its own; process 0 alone has a display.
      num_processes: number of processes that share the folder.
      done_before: names of units that an earlier start finished; names outside ``work`` are ignored.
      diverged_before: names and notes of units that diverged in an earlier start, likewise; they take precedence over ``done_before``.
      tensorboard: write event files in `scalars`; needs tensorboardX.
      print_fn: called with each line, instead of bars or printed lines.

    Raises:
      ValueError: a weight is negative or not finite, or event files are requested without a folder.
      MissingTensorBoardError: event files are requested, and tensorboardX is not installed.
    """

    def __init__(
        self,
        work: Mapping[str, Work | tuple[str | None, float]],
        folder: str | os.PathLike | None,
        *,
        process: int = 0,
        num_processes: int = 1,
        done_before: Iterable[str] = (),
        diverged_before: Mapping[str, str] = MappingProxyType({}),
        tensorboard: bool = False,
        print_fn: Callable[[str], None] | None = None,
    ):
        if tensorboard and folder is None:
            raise ValueError("TensorBoard scalars are written into the folder of the run: name one")
        if tensorboard:
            events.require_tensorboard()
        self._units = {name: Unit(*entry) for name, entry in work.items()}
        for name, unit in self._units.items():
            if not 0 <= unit.weight < math.inf:
                raise ValueError(f"a weight is a share of the time, zero or more, got {unit.weight} for {name!r}")
        ended = [(name, "done", "") for name in done_before]
        ended += [(name, "diverged", note) for name, note in diverged_before.items()]
        for name, state, note in ended:
            if name in self._units:
                unit = self._units[name]
                unit.state, unit.share, unit.note = state, 1.0, note
        self._members: dict[str, list[str]] = {}
        for name, unit in self._units.items():
            if unit.group is not None:
                self._members.setdefault(unit.group, []).append(name)
        self._all = Tally(self._units.values())
        self._tallies = {group: Tally(self._units[name] for name in names) for group, names in self._members.items()}
        self._process, self._num_processes, self._print = process, num_processes, print_fn
        self._files = None if folder is None else Files(Path(folder), process, num_processes)
        self._tensorboard, self._open, self._next_status = tensorboard, False, -math.inf
        self._timer: threading.Timer | None = None
        self._lock = threading.RLock()

    def __enter__(self) -> "Progress":
        self._all.began, self._open = clock.now(), True
        self._started = clock.stamp()
        several, shows = len(self._members) > 1, self._process == 0
        self._display = display.choose(self._print, self._all, several=several) if shows else None
        if self._files:
            self._files.open()
            diverged = self._all.counts["diverged"]
            self._files.log(
                f"process {self._process} of {self._num_processes}, pid {os.getpid()} on {socket.gethostname()}: "
                f"{self._all.ended} of {self._all.total} done before" + (f", {diverged} of them diverged" if diverged else "")
            )
            self._write_status("running")
        return self

    def start(self, name: str, share: float = 0.0) -> None:
        """Mark a unit as running; ``share``: part that an earlier start of the program finished."""
        self._move(name, "running", share, "started", inherited=share)

    def advance(self, name: str, share: float) -> None:
        """Set the finished share of a unit, 0 to 1."""
        self._move(name, "running", share, f"{100 * share:.0f} % of")

    def done(self, name: str, note: str = "") -> None:
        """Mark a unit as finished, its result being on disk."""
        self._move(name, "done", 1.0, "done", note)

    def diverged(self, name: str, note: str) -> None:
        """Mark a unit as retired with results that are not finite."""
        self._move(name, "diverged", 1.0, "diverged", note)

    def failed(self, name: str, error: BaseException | str, *, raised: bool = False) -> None:
        """Mark a unit as ended by an error; another start may try the unit again.

        An error that is ``raised`` all the same is told where it ends the program: the display names the unit alone.
        """
        self._move(name, "failed", 1.0, "failed", error if isinstance(error, str) else _describe(error), note_is_shown=not raised)

    def log(self, text: str) -> None:
        """Write a message to the display and the log."""
        with self._lock:
            if not self._open:
                return
            if self._files:
                self._files.log(text)
            if self._display:
                self._display.log(text)

    def scalars(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """Write measurements of a unit for TensorBoard, if requested; each unit is a TensorBoard run."""
        if self._tensorboard:
            if name not in self._units:  # a misspelt name must not create a folder
                raise KeyError(name)
            with self._lock:
                if self._open and self._files:
                    self._files.scalars(name, step, values)

    def _move(
        self, name: str, state: str, share: float, verb: str, note: str = "", *, inherited: float = 0.0, note_is_shown: bool = True
    ) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"a share is between 0 and 1, got {share} for {name!r}")
        unit = self._units[name]
        with self._lock:
            if not self._open:
                return
            time_of_change = clock.now()
            for tally in self._tallies_of(unit):
                tally.move(unit, state, share, time_of_change, inherited=inherited)
            unit.state, unit.share, unit.note, unit.note_is_shown = state, share, note, note_is_shown
            if self._files:
                self._files.log(f"{verb} {name}" + (f": {note}" if note else ""))
            if self._display:
                urgent = state == "failed" or (self._all.ended == self._all.total and state != "running")
                setting = None if unit.group is None else self._tallies[unit.group]
                self._display.show(name, unit, setting, urgent=urgent)
            self._status_due()

    def _tallies_of(self, unit: Unit) -> list[Tally]:
        return [self._all] if unit.group is None else [self._all, self._tallies[unit.group]]

    def _status_due(self) -> None:
        """Write the status now, or by a timer if the last write was a moment ago."""
        wait = self._next_status - time.monotonic()
        if wait <= 0:
            self._write_status("running")
        elif self._timer is None:
            self._timer = threading.Timer(wait, self._write_late)
            self._timer.daemon = True
            self._timer.start()

    def _write_late(self) -> None:
        with self._lock:
            if self._open:
                self._write_status("running")

    def _write_status(self, state: str, error: str = "") -> None:
        if not self._files:
            return
        began, elapsed_at = time.monotonic(), clock.now()
        self._timer = None
        by_state = {s: {name: unit for name, unit in self._units.items() if unit.state == s} for s in STATES}
        self._files.status(
            {
                "state": state,
                "error": error,
                "process": self._process,
                "num_processes": self._num_processes,
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "started": self._started,
                "updated": clock.stamp(),
                "seconds": round(self._all.seconds(elapsed_at), 3),
                "seconds_left": self._all.seconds_left(elapsed_at) if state == "running" else None,
                "counts": {"total": self._all.total, **self._all.counts},
                "settings": {
                    group: {"total": tally.total, **tally.counts, "names": self._members[group]} for group, tally in self._tallies.items()
                },
                "running": {name: unit.share for name, unit in by_state["running"].items()},
                "diverged": {name: unit.note for name, unit in by_state["diverged"].items()},
                "failed": {name: unit.note for name, unit in by_state["failed"].items()},
                "done": list(by_state["done"]),
                "left": list(by_state["left"]),
            }
        )
        ended = time.monotonic()
        self._next_status = ended + max(_STATUS_EVERY, _STATUS_COST * (ended - began))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        with self._lock:
            self._open = False
            if self._timer:
                self._timer.cancel()
            if self._display:
                self._display.close()
            for unit in self._units.values():
                if unit.state == "running":  # the work has ended
                    for tally in self._tallies_of(unit):
                        tally.put_back(unit)
                    unit.state = "left"
            if error is None:
                state, why = ("stopped" if self._all.counts["left"] else "finished"), ""
            else:
                state, why = ("failed" if isinstance(error, Exception) else "stopped"), _describe(error)
            if self._files:
                counts = ", ".join(f"{n} {s}" for s, n in reversed(self._all.counts.items()) if n)
                seconds = self._all.seconds(clock.now())
                self._files.log(f"{state}{f' ({why})' if why else ''} after {seconds:.1f} s: {counts or 'no work'}")
                self._write_status(state, why)
                self._files.close()


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
