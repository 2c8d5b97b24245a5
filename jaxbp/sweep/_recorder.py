"""What happens to results: onto disk first, then said; and the end of a sweep that is asked to stop."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxbp.runtime import preemption, processes
from jaxbp.sweep import results

NOT_FINITE = "not finite"

Values = Mapping[str, np.ndarray]


class Recorder:
    """Results of a sweep to its store and its display, in step with the other processes.

    Args:
      store: for pieces and facts.
      progress: a `jaxbp.runtime.progress.Progress`.
      watch: of signals.
      words: what the display calls each run.
      diverged_fn: whether a run's results mean that it diverged; default, that any number is not finite.
    """

    def __init__(
        self,
        store: Any,
        progress: Any,
        watch: preemption.Guard,
        words: Mapping[str, str],
        diverged_fn: Callable[[Values], bool] | None = None,
    ):
        self.store, self.progress, self.watch, self.words = store, progress, watch, words
        self._is_diverged = diverged_fn or _is_not_finite

    def missing(self, names: Sequence[str]) -> list[int]:
        """Positions of the runs that are not on disk, the same in all processes."""
        return processes.from_first([i for i, name in enumerate(names) if name not in self.store])

    def start(self, names: Iterable[str], share: float = 0.0) -> None:
        """Say that runs are being computed, of which ``share`` is done already."""
        for name in names:
            self.progress.start(self.words[name], share)

    def advance(self, names: Iterable[str], share: float) -> None:
        """Say that ``share`` of these runs is done."""
        for name in names:
            self.progress.advance(self.words[name], share)

    def record(self, names: Sequence[str], rows: Mapping[str, Values], *, retired: bool = False) -> None:
        """Write the results of this process's runs; when all processes have written theirs, say that all of ``names`` are done.

        ``rows``: results by name, of some of ``names``; ``retired``: they diverged before their end.
        """
        diverged = {name for name, values in rows.items() if retired or self._is_diverged(values)}
        for name, values in rows.items():
            if name not in self.store:
                status = results.DIVERGED if name in diverged else results.FINISHED
                self.store.put(name, results.to_piece(status, values))
        written = processes.any_process([[name in rows, name in diverged] for name in names])
        for name, (done, bad) in zip(names, written, strict=True):
            if done and (name in rows or processes.is_first()):
                self._say(name, diverged=bad)

    def fail(self, names: Iterable[str], why: str) -> None:
        """Say that the runs that have no result have none for this reason."""
        for name in names:
            if name not in self.store:
                self.progress.failed(self.words[name], why)

    def _say(self, name: str, *, diverged: bool) -> None:
        if diverged:
            self.progress.diverged(self.words[name], NOT_FINITE)
        else:
            self.progress.done(self.words[name])

    def stop_if_asked(self, save: Callable[[], None] | None = None) -> None:
        """End here if any process was asked to, once ``save`` has saved what there is.

        Raises:
          preemption.Terminated, KeyboardInterrupt: what this process, or another, was asked by.
        """
        if processes.any_process(self.watch.signal is not None):
            if save:
                save()
            self.watch.check()
            raise preemption.Terminated  # another process was asked


def _is_not_finite(values: Values) -> bool:
    return not all(np.isfinite(value).all() for value in values.values() if np.issubdtype(value.dtype, np.inexact))
