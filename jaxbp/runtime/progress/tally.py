"""Units of work, how many are in which state, and the time left, estimated from the weights of those seen done."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

STATES = ("left", "running", "failed", "diverged", "done")  # of a unit; where processes differ, the later one holds
_ESTIMATE_FROM = 0.05  # share of the work; before it, compilation dominates


class Work(NamedTuple):
    """A unit of work: the setting it belongs to, if any, and its share of the time, in any measure that all units use."""

    group: str | None = None
    weight: float = 1.0


@dataclass
class Unit:
    """A unit of work and where it stands: its state, the share done, and what was said about it."""

    group: str | None
    weight: float
    state: str = "left"
    share: float = 0.0
    note: str = ""


class Tally:
    """Counts and weights of the units of a setting, or of all units."""

    def __init__(self, units: Iterable[Unit]):
        self.counts = dict.fromkeys(STATES, 0)
        self.weight = self.before = self.gained = 0.0  # of all, of what earlier starts did, of what this one did
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
        """Number of units that nothing more is to be done for: done, diverged or failed."""
        return self.total - self.counts["left"] - self.counts["running"]

    def move(self, unit: Unit, state: str, share: float, now: float, *, inherited: float = 0.0) -> None:
        """Count a unit's change; ``inherited`` is the share that an earlier start of the program did."""
        if self.began is None:
            self.began = now
        self.counts[unit.state] -= 1
        self.counts[state] += 1
        self.before += unit.weight * inherited
        self.gained += unit.weight * (share - unit.share - inherited)
        todo = self.weight - self.before
        found = self.gained / todo if todo > 0 else 0.0
        known = found > _ESTIMATE_FROM
        self._finish = now + (now - self.began) * max(1 - found, 0.0) / found if known else None

    def put_back(self, unit: Unit) -> None:
        """Count a running unit as left: nothing runs any more."""
        self.counts[unit.state] -= 1
        self.counts["left"] += 1

    def seconds(self, now: float) -> float:
        """Elapsed since the work began; 0 before."""
        return 0.0 if self.began is None else now - self.began

    def seconds_left(self, now: float) -> float | None:
        """As estimated at the last change, counted down since; None where it cannot be told."""
        return None if self._finish is None else max(self._finish - now, 0.0)
