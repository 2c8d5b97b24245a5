"""State of a run, read from its folder by any process. Files are validated; nothing is changed or executed."""

import dataclasses
import math
import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxbp.runtime.outside_text import DamagedFileError, read_json
from jaxbp.runtime.progress.files import is_abandoned, status_files
from jaxbp.runtime.progress.tally import STATES

State = Literal["running", "finished", "stopped", "failed", "killed"]


class StatusError(RuntimeError):
    """The folder has no readable status."""


@dataclass(frozen=True)
class ProcessStatus:
    """State of one process; ``killed`` if its file says ``running`` and the process is gone."""

    process: int
    num_processes: int
    state: State
    error: str
    pid: int
    host: str
    started: datetime
    updated: datetime
    seconds: float
    seconds_left: float | None


@dataclass(frozen=True)
class Status:
    """State of a run over all its processes.

    Attributes:
      state: ``running`` while any process runs; else the worst state of the processes; ``finished`` if no unit is left.
      error: messages of processes that failed.
      started: time of the first start among the processes.
      updated: time of the latest status.
      seconds: elapsed time of the slowest process, as of ``updated``.
      seconds_left: estimate of the slowest process, as of ``updated``; None if unknown.
      done: names of finished units.
      running: finished share by name of the running units.
      diverged: notes by name of the diverged units.
      failed: notes by name of the failed units.
      left: names of the other units.
      settings: for each setting, the number of units by state and in ``total``.
      processes: the processes.
    """

    state: State
    error: str
    started: datetime
    updated: datetime
    seconds: float
    seconds_left: float | None
    done: tuple[str, ...]
    running: dict[str, float]
    diverged: dict[str, str]
    failed: dict[str, str]
    left: tuple[str, ...]
    settings: dict[str, dict[str, int]]
    processes: tuple[ProcessStatus, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Number of units by state, and in ``total``."""
        counts = {state: len(getattr(self, state)) for state in STATES}
        return {"total": sum(counts.values()), **counts}


def read(folder: str | os.PathLike) -> Status:
    """Read the state of the run in ``folder``; nothing in the folder is changed or executed.

    A process whose status says ``running`` counts as killed if the lock on its log is free, or if this machine has no such process. Where
    neither can be determined (another machine, no locks) the process counts as running: compare ``updated`` with the time.

    Raises:
      StatusError: the folder has no status, or a damaged one.
    """
    folder = Path(folder)
    if not (paths := status_files(folder)):
        reason = "holds no run" if folder.is_dir() else "is no folder"
        raise StatusError(f"{folder} {reason} (no status.json): name the folder that the run writes to")
    return _merge([_parse(path) for path in paths])


_FIELDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("state", "error", "host", "started", "updated"), str),
    **dict.fromkeys(("process", "num_processes", "pid"), int),
    **dict.fromkeys(("settings", "running", "diverged", "failed"), dict),
    **dict.fromkeys(("done", "left"), list),
    "seconds": (int, float),
    "seconds_left": (int, float, type(None)),
    "locked": bool,
}


class _Report(NamedTuple):
    process: ProcessStatus
    units: dict[str, tuple[str, Any]]  # name: state, and the share or note that goes with it
    members: dict[str, list[str]]


def _parse(path: Path) -> _Report:
    try:
        entry = read_json(path)
        for key, kind in _FIELDS.items():
            if not isinstance(entry[key], kind) or (isinstance(entry[key], float) and not math.isfinite(entry[key])):
                raise TypeError(f"{key} is {entry[key]!r}")
        if entry["state"] not in ("running", "finished", "stopped", "failed"):
            raise ValueError(f"state is {entry['state']!r}")
        units = {str(name): ("left", "") for name in entry["left"]} | dict.fromkeys(map(str, entry["done"]), ("done", ""))
        units |= {name: ("running", float(share)) for name, share in entry["running"].items()}
        units |= {name: (state, str(note)) for state in ("diverged", "failed") for name, note in entry[state].items()}
        members = {group: [str(name) for name in counts["names"]] for group, counts in entry["settings"].items()}
        if missing := {name for names in members.values() for name in names} - units.keys():
            raise ValueError(f"{min(missing)!r} has no state")
        started, updated = (datetime.fromisoformat(entry[key]).astimezone(UTC) for key in ("started", "updated"))
        shared = ("process", "num_processes", "state", "error", "pid", "host", "seconds", "seconds_left")
        process = ProcessStatus(**{key: entry[key] for key in shared}, started=started, updated=updated)
    except OSError as error:
        raise StatusError(f"cannot read {path} ({error.strerror or error})") from error
    except DamagedFileError as error:
        raise StatusError(f"{error}: the next start of the run writes it anew") from error
    except KeyError as error:
        raise StatusError(f"{path} is damaged ({error} is missing): the next start of the run writes it anew") from error
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise StatusError(f"{path} is damaged ({error}): the next start of the run writes it anew") from error
    if process.state == "running" and not _lives(path, process, locked=entry["locked"]):
        process = dataclasses.replace(process, state="killed", seconds_left=None)
    if process.state != "running":
        units = {name: ("left", "") if state == "running" else (state, note) for name, (state, note) in units.items()}
    return _Report(process, units, members)


def _lives(path: Path, process: ProcessStatus, *, locked: bool) -> bool:
    if process.host == socket.gethostname() and not _is_process(process.pid):
        return False
    return not (locked and is_abandoned(path))


def _is_process(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def _merge(reports: list[_Report]) -> Status:
    units: dict[str, tuple[str, Any]] = {}
    members: dict[str, dict[str, None]] = {}
    for report in reports:
        for name, unit in report.units.items():
            if name not in units or STATES.index(unit[0]) > STATES.index(units[name][0]):
                units[name] = unit
        for group, names in report.members.items():
            members.setdefault(group, {}).update(dict.fromkeys(names))
    settings = {}
    for group, listed in members.items():
        settings[group] = {"total": len(listed), **dict.fromkeys(STATES, 0)}
        for name in listed:
            settings[group][units[name][0]] += 1
    processes = tuple(report.process for report in reports)
    states = {process.state for process in processes}
    ranking: tuple[State, ...] = ("running", "killed", "failed")
    state: State = next((s for s in ranking if s in states), "stopped")
    by_state = {s: {name: note for name, (own, note) in units.items() if own == s} for s in STATES}
    if state == "stopped" and not by_state["left"]:  # units left by one process were finished by another
        state = "finished"
        processes = tuple(dataclasses.replace(process, state="finished") for process in processes)
    return Status(
        state=state,
        error="; ".join(dict.fromkeys(process.error for process in processes if process.error)),
        started=min(process.started for process in processes),
        updated=max(process.updated for process in processes),
        seconds=max(process.seconds for process in processes),
        seconds_left=max((p.seconds_left for p in processes if p.seconds_left is not None), default=None),
        done=tuple(by_state["done"]),
        running=by_state["running"],
        diverged=by_state["diverged"],
        failed=by_state["failed"],
        left=tuple(by_state["left"]),
        settings=settings,
        processes=processes,
    )
