"""What the terminal shows: bars that are redrawn, or a line now and then where there is nothing to redraw."""

import functools
from collections.abc import Callable
from typing import Any

from jaxbp.runtime.progress import clock
from jaxbp.runtime.progress.tally import Tally, Unit

_LINE_EVERY = 2.0  # seconds
_MAX_ROWS = 12  # bars of settings at a time


def choose(print_fn: Callable[[str], None] | None, everything: Tally, *, several: bool) -> "Lines | Bars":
    """Bars if stdout is a terminal or a notebook and nobody asked for the lines.

    Args:
      print_fn: what to call with each line.
      everything: of all units.
      several: whether there is more than one setting, each of which is then told of.
    """
    if print_fn is None:
        from rich.console import Console

        console = Console()
        if console.is_terminal or console.is_jupyter:
            return Bars(console, everything, several=several)
        print_fn = functools.partial(print, flush=True)
    return Lines(print_fn, everything, several=several)


class Lines:
    """A line now and then."""

    def __init__(self, print_fn: Callable[[str], None], everything: Tally, *, several: bool):
        self._print, self._all, self._several, self._last = print_fn, everything, several, clock.now()

    def show(self, name: str, unit: Unit, setting: Tally | None, *, urgent: bool) -> None:
        """Tell of a unit's change, if it is urgent or the last line was some time ago; ``setting`` is the one it belongs to."""
        if urgent or clock.now() - self._last > _LINE_EVERY:
            self._print(self._line(name, unit, setting))
            self._last = clock.now()

    def _line(self, name: str, unit: Unit, setting: Tally | None) -> str:
        what = name
        if unit.state == "running":
            what += f", {100 * unit.share:.0f} % of it" if unit.share else " started"
        elif unit.state != "done":
            what += f" {unit.state}"
        what += f" ({unit.note})" if unit.note else ""
        if self._several and setting is not None:
            what += f", setting {setting.ended}/{setting.total}"
        now = clock.now()
        left = self._all.seconds_left(now)
        estimate = "" if left is None else f", about {left:.0f} s left"
        return f"[{self._all.ended}/{self._all.total}] {what}, {self._all.seconds(now):.0f} s{estimate}"

    def say(self, text: str) -> None:
        """Print a message."""
        self._print(text)

    def close(self) -> None:
        """Nothing to restore."""


class Bars:
    """A bar for all of the work and, if there are several settings, one for each that is in work."""

    def __init__(self, console: Any, everything: Tally, *, several: bool):
        from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
        from rich.text import Text

        class Times(ProgressColumn):
            def render(self, task: Any) -> Text:
                return Text(_times(task.fields["tally"]))

        text = functools.partial(TextColumn, markup=False)
        columns = (BarColumn(), text("{task.fields[count]}"), text("{task.percentage:3.0f} %"), Times())
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
        """Move the bars that a unit's change concerns; ``setting`` is the one it belongs to, and every change is drawn."""
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

    def say(self, text: str) -> None:
        """Print a message above the bars."""
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the bars as they are and the terminal as it was."""
        self._bar.stop()


def _times(tally: Tally) -> str:
    """Elapsed and left, in words."""
    now = clock.now()
    left = tally.seconds_left(now)
    elapsed = clock.format_seconds(tally.seconds(now))
    return elapsed if left is None else f"{elapsed}, left {clock.format_seconds(left)}"
