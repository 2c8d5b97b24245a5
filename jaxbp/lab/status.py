"""Where a run stands, from any terminal.

``python -m jaxbp.lab.status FOLDER [--follow]`` prints state, counts, time left, what is in work, what diverged or failed, and a
table of the settings; of each study in the folder of the whole lab. It only reads the folder, so it disturbs nothing, and it works for
a run of any state, killed ones included.
Exit code 2 with one line where there is no run.
"""

import dataclasses
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from jaxbp.runtime import progress
from jaxbp.runtime.progress import format_seconds

_REFRESH = 2.0  # seconds
_MAX_NAMES = 10  # of each kind; all are in status.json


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Print where the run in a folder stands."""

    folder: Annotated[Path, tyro.conf.Positional]
    """The folder that the run writes to, such as runs/norm_bias-quick."""
    follow: bool = False
    """Print it again every two seconds until the run is over."""


def main() -> None:
    """Parse the arguments and print."""
    arguments = tyro.cli(Arguments, prog="python -m jaxbp.lab.status")
    try:
        inside = runs_in(arguments.folder)
        if inside and arguments.follow:
            raise progress.StatusError(f"{arguments.folder} holds several runs: follow one of them, such as {inside[-1]}")
        for folder in inside:
            print(f"{folder}:")
            show(folder, follow=False)
        if not inside:
            show(arguments.folder, follow=arguments.follow)
    except progress.StatusError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def runs_in(folder: Path) -> list[Path]:
    """The runs in the folder of a whole lab, in the order of their start; none in that of a single run."""
    if any(folder.glob("status*.json")):
        return []
    return sorted({path.parent for path in folder.glob("*/status*.json")}, key=lambda run: progress.read(run).started)


def show(folder: Path, *, follow: bool) -> None:
    """Print the summary, once or until the run is over: redrawn in a terminal, elsewhere whenever the headline changes.

    Raises:
      StatusError: there is no status in the folder, or it is damaged.
    """
    console = Console(soft_wrap=True)
    status = progress.read(folder)
    if not follow:
        console.print(summary(status))
        return
    if console.is_terminal:
        with Live(summary(status), console=console, auto_refresh=False) as live:
            while status.state == "running":
                time.sleep(_REFRESH)
                status = progress.read(folder)
                live.update(summary(status), refresh=True)
        return
    said = None
    while status.state == "running":
        if (now := headline(status)) != said:
            print(said := now, flush=True)
        time.sleep(_REFRESH)
        status = progress.read(folder)
    console.print(summary(status))


def headline(status: Any) -> str:
    """State and counts of a `progress.Status` in a line."""
    counts = status.counts
    others = [f"{counts[state]} {state}" for state in ("running", "failed", "diverged", "left") if counts[state]]
    return ", ".join([f"{status.state}: {counts['done']} of {counts['total']} done", *others])


def summary(status: Any) -> Any:
    """Everything worth knowing about a `progress.Status`, as a rich renderable."""
    parts: list[Any] = [Text(headline(status), style="bold"), Text("\n".join(_times(status)))]
    if status.error:
        parts.append(Text(f"ended with {status.error}"))
    if status.state == "killed":
        parts.append(Text("the process is gone without a word; the command that started it goes on from there"))
    if len(status.processes) > 1:
        parts += [
            Text(f"process {one.process} of {one.num_processes}: {one.state}, pid {one.pid} on {one.host}") for one in status.processes
        ]
    parts += _names("running", {name: f"{100 * share:.0f} %" for name, share in status.running.items()})
    parts += _names("failed", status.failed) + _names("diverged", status.diverged)
    if status.settings:
        parts.append(_table(status.settings))
    return Group(*parts)


def _times(status: Any) -> list[str]:
    age = max((datetime.now(UTC) - status.updated).total_seconds(), 0.0)
    at = status.updated.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    lines = [f"started {status.started.astimezone():%Y-%m-%d %H:%M:%S}, last update {at}, {format_seconds(age)} ago"]
    if status.state == "running":
        left = status.seconds_left
        guess = "not known yet" if left is None else f"about {format_seconds(max(left - age, 0.0))}"
        lines.append(f"elapsed {format_seconds(status.seconds + age)}, time left {guess}")
    else:
        lines.append(f"took {format_seconds(status.seconds)}")
    return lines


def _names(title: str, notes: dict[str, str]) -> list[Any]:
    lines = [f"  {name}: {note}" if note else f"  {name}" for name, note in list(notes.items())[:_MAX_NAMES]]
    if more := len(notes) - len(lines):
        lines.append(f"  and {more} more, see status.json")
    return [Text("\n".join([f"{title}:", *lines]))] if lines else []


def _table(settings: dict[str, dict[str, int]]) -> Any:
    columns = ("total", "done", "running", "left", "diverged", "failed")
    table = Table("setting")
    for column in columns:
        table.add_column(column, justify="right")
    for setting, counts in settings.items():
        table.add_row(Text(setting), *(str(counts[column]) for column in columns))
    return table


if __name__ == "__main__":
    main()
