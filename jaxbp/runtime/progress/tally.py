"""Units of work, their number by state, and the time left, estimated from the weights of finished work."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

STATES = ("left", "running", "failed", "diverged", "done")  # of a unit; if processes differ, the later state holds
_ESTIMATE_FROM = 0.05  # share of the work; before it, compilation dominates


class Work(NamedTuple):
    """A unit of work.

    Attributes:
      group: setting of the unit; None for none.
      weight: share of the time, in a unit of measure that all units of work use.
    """

    group: str | None = None
    weight: float = 1.0


@dataclass
class Unit:
    """A unit of work and its state.

    Attributes:
      group: setting of the unit; None for none.
      weight: share of the time.
      state: one of `STATES`.
      share: finished part, 0 to 1.
      note: message that came with the last change.
      note_is_shown: whether the display shows the message.
    """

    group: str | None
    weight: float
    state: str = "left"
    share: float = 0.0
    note: str = ""
    note_is_shown: bool = True


class Tally:
    """Counts and weights of some units: those of a setting, or all."""

    def __init__(self, units: Iterable[Unit]):
        self.counts = dict.fromkeys(STATES, 0)
        self.weight = self.before = self.gained = 0.0  # of all units; finished by earlier starts; finished by this start
        self.began: float | None = None
        self._finish: float | None = None
        for unit in units:
            self.counts[unit.state] += 1
            self.weight += unit.weight
            self.before += unit.weight * unit.share

    @property
    def total(self) -> int:
        """Number of units."""
        return sum(self.counts.values())

    @property
    def ended(self) -> int:
        """Number of units that are done, diverged or failed."""
        return self.total - self.counts["left"] - self.counts["running"]

    def move(self, unit: Unit, state: str, share: float, time: float, *, inherited: float = 0.0) -> None:
        """Count the change of a unit; ``inherited``: share finished by an earlier start of the program."""
        if self.began is None:
            self.began = time
        self.counts[unit.state] -= 1
        self.counts[state] += 1
        self.before += unit.weight * inherited
        self.gained += unit.weight * (share - unit.share - inherited)
        todo = self.weight - self.before
        finished = self.gained / todo if todo > 0 else 0.0
        known = finished > _ESTIMATE_FROM
        self._finish = time + (time - self.began) * max(1 - finished, 0.0) / finished if known else None

    def put_back(self, unit: Unit) -> None:
        """Count a running unit as left, once the work has ended."""
        self.counts[unit.state] -= 1
        self.counts["left"] += 1

    def seconds(self, time: float) -> float:
        """Seconds since the work began; 0 before."""
        return 0.0 if self.began is None else time - self.began

    def seconds_left(self, time: float) -> float | None:
        """Seconds left as estimated at the last change; None while less than 5 % of the work is finished."""
        return None if self._finish is None else max(self._finish - time, 0.0)
