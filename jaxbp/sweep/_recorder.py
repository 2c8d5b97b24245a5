"""Results of runs: first to disk, then to the display; and the end of a sweep after a signal."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxbp.runtime import preemption, processes
from jaxbp.sweep import results

NOT_FINITE = "not finite"

Values = Mapping[str, np.ndarray]


class Recorder:
    """Writes results of a sweep to the store and reports them, in step with the other processes.

    Args:
      store: `jaxbp.runtime.store.Store` or ``Memory``.
      progress: `jaxbp.runtime.progress.Progress`.
      guard: guard of signals.
      labels: text of each run for the display.
      diverged_fn: ``results by name -> True if the run diverged``; default: any number is not finite.
    """

    def __init__(
        self,
        store: Any,
        progress: Any,
        guard: preemption.Guard,
        labels: Mapping[str, str],
        diverged_fn: Callable[[Values], bool] | None = None,
    ):
        self.store, self.progress, self.guard, self.labels = store, progress, guard, labels
        self._is_diverged = diverged_fn or _is_not_finite

    def missing(self, names: Sequence[str]) -> list[int]:
        """Positions of the runs without a result on disk, the same in all processes."""
        return processes.from_first([i for i, name in enumerate(names) if name not in self.store])

    def start(self, names: Iterable[str], share: float = 0.0) -> None:
        """Report that runs are being computed; ``share``: part that is finished already."""
        for name in names:
            self.progress.start(self.labels[name], share)

    def advance(self, names: Iterable[str], share: float) -> None:
        """Report the finished share of runs."""
        for name in names:
            self.progress.advance(self.labels[name], share)

    def record(self, names: Sequence[str], rows: Mapping[str, Values], *, retired: bool = False) -> None:
        """Write the results of this process; once all processes have written theirs, report all of ``names``.

        Args:
          names: runs of all processes.
          rows: results by name, of the runs of this process.
          retired: the runs diverged before their end.
        """
        diverged = {name for name, values in rows.items() if retired or self._is_diverged(values)}
        for name, values in rows.items():
            if name not in self.store:
                status = results.DIVERGED if name in diverged else results.FINISHED
                self.store.put(name, results.to_piece(status, values))
        written = processes.any_process([[name in rows, name in diverged] for name in names])
        for name, (done, bad) in zip(names, written, strict=True):
            if done and (name in rows or processes.is_first()):
                self._report(name, diverged=bad)

    def fail(self, names: Iterable[str], reason: str) -> None:
        """Report the runs without a result as failed."""
        for name in names:
            if name not in self.store:
                self.progress.failed(self.labels[name], reason)

    def _report(self, name: str, *, diverged: bool) -> None:
        if diverged:
            self.progress.diverged(self.labels[name], NOT_FINITE)
        else:
            self.progress.done(self.labels[name])

    def stop_if_asked(self, save: Callable[[], None] | None = None) -> None:
        """End the sweep here if any process received a signal, after ``save`` has saved the state.

        Raises:
          preemption.Terminated, KeyboardInterrupt: the signal that this or another process received.
        """
        if processes.any_process(self.guard.signal is not None):
            if save:
                save()
            self.guard.check()
            raise preemption.Terminated  # another process received the signal


def _is_not_finite(values: Values) -> bool:
    return not all(np.isfinite(value).all() for value in values.values() if np.issubdtype(value.dtype, np.inexact))
