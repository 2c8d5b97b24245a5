"""Terminal display of progress: redrawn bars, or occasional lines where output cannot be redrawn."""

import functools
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.text import Text

from jaxbp.runtime.progress import clock
from jaxbp.runtime.progress.tally import Tally, Unit

_LINE_EVERY = 2.0  # seconds
_MAX_ROWS = 12  # bars of settings at a time


def choose(print_fn: Callable[[str], None] | None, everything: Tally, *, several: bool) -> "Lines | Bars":
    """Choose bars for a terminal or a notebook without ``print_fn``, else lines.

    Args:
      print_fn: called with each line.
      everything: tally of all units.
      several: whether the work has more than one setting; the display then shows each setting.
    """
    if print_fn is None:
        console = Console()
        if console.is_terminal or console.is_jupyter:
            return Bars(console, everything, several=several)
        print_fn = functools.partial(print, flush=True)
    return Lines(print_fn, everything, several=several)


class Lines:
    """Lines, at most one in two seconds."""

    def __init__(self, print_fn: Callable[[str], None], everything: Tally, *, several: bool):
        self._print, self._all, self._several, self._last = print_fn, everything, several, clock.now()

    def show(self, name: str, unit: Unit, setting: Tally | None, *, urgent: bool) -> None:
        """Print the change of a unit if it is urgent or the last line is old enough; ``setting``: tally of the unit's setting."""
        if urgent or clock.now() - self._last > _LINE_EVERY:
            self._print(self._line(name, unit, setting))
            self._last = clock.now()

    def _line(self, name: str, unit: Unit, setting: Tally | None) -> str:
        description = name
        if unit.state == "running":
            description += f", {100 * unit.share:.0f} % of it" if unit.share else " started"
        elif unit.state != "done":
            description += f" {unit.state}"
        description += f" ({unit.note})" if unit.note and unit.note_is_shown else ""
        if self._several and setting is not None:
            description += f", setting {setting.ended}/{setting.total}"
        time = clock.now()
        left = self._all.seconds_left(time)
        estimate = "" if left is None else f", about {left:.0f} s left"
        return f"[{self._all.ended}/{self._all.total}] {description}, {self._all.seconds(time):.0f} s{estimate}"

    def log(self, text: str) -> None:
        """Print a message."""
        self._print(text)

    def close(self) -> None:
        """Nothing to restore."""


class _Times(ProgressColumn):
    def render(self, task: Any) -> Text:
        """The time that the work of a bar has taken, and takes yet."""
        return Text(_times(task.fields["tally"]))


class Bars:
    """A bar for all work and, with several settings, a bar for each setting in work."""

    def __init__(self, console: Any, everything: Tally, *, several: bool):
        text = functools.partial(TextColumn, markup=False)
        columns = (BarColumn(), text("{task.fields[count]}"), text("{task.percentage:3.0f} %"), _Times())
        self._bar = Progress(*columns, text("{task.description}"), console=console)
        self._all, self._several = everything, several
        self._rows: dict[str, Any] = {}  # of settings
        self._row = self._add("starting", everything)
        self._bar.start()

    def _add(self, description: str, tally: Tally) -> Any:
        row = self._bar.add_task(description, total=tally.weight, tally=tally, count="")
        self._update(row, tally)
        return row

    def _update(self, row: Any, tally: Tally, **changes: Any) -> None:
        count = f"{tally.ended}/{tally.total}"
        self._bar.update(row, completed=tally.before + tally.gained, count=count, **changes)

    def show(self, name: str, unit: Unit, setting: Tally | None, *, urgent: bool) -> None:
        """Update the bars of a unit; ``setting``: tally of the unit's setting. Every change is drawn."""
        self._update(self._row, self._all, description=name)
        if not self._several or setting is None or unit.group is None:
            return
        if not setting.counts["running"]:
            if unit.group in self._rows:
                self._bar.remove_task(self._rows.pop(unit.group))
        elif unit.group in self._rows:
            self._update(self._rows[unit.group], setting)
        elif len(self._rows) < _MAX_ROWS:
            self._rows[unit.group] = self._add(unit.group, setting)

    def log(self, text: str) -> None:
        """Print a message above the bars."""
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Stop redrawing and restore the terminal."""
        self._bar.stop()


def _times(tally: Tally) -> str:
    """Elapsed time and time left, as text."""
    time = clock.now()
    left = tally.seconds_left(time)
    elapsed = clock.format_seconds(tally.seconds(time))
    return elapsed if left is None else f"{elapsed}, left {clock.format_seconds(left)}"
