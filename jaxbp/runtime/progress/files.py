"""The files of a run's folder: their names, how they are written where the disk may be full, and the lock on the log.

A process holds the lock on its log while it is open. The system takes it away when the process ends, however it ends, so whoever finds
it free knows that the process is gone.
"""

import contextlib
import fcntl
import io
import json
import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from jaxbp.runtime.files import write_atomically
from jaxbp.runtime.progress import clock, events


class Files:
    """Log, status and event files of one process in a run's folder. What cannot be written is told once."""

    def __init__(self, folder: Path, process: int, num_processes: int):
        self._folder, self._process, self._num_processes = folder, process, num_processes
        self._suffix = _suffix(process, num_processes)
        self._told: set[str] = set()
        self._log: io.FileIO | None = None
        self._locked, self._began = False, time.time()

    @contextlib.contextmanager
    def _writing(self, path: Path, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if what not in self._told:
                self._told.add(what)
                with contextlib.suppress(OSError):
                    print(
                        f"warning: cannot write {path} ({error.strerror or error}); the work goes on without {what}",
                        file=sys.stderr,
                        flush=True,
                    )

    def open(self) -> None:
        """Make the folder, open and lock the log, and remove what a start with another number of processes left."""
        path = self._folder / f"log{self._suffix}.txt"
        with self._writing(path, "a log"):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._log = open(path, "ab", buffering=0)  # noqa: SIM115 - held until `close`
            self._locked = _try_lock(self._log)
        if self._process == 0:
            expected = {f"status{_suffix(i, self._num_processes)}.json" for i in range(self._num_processes)}
            for stale in status_files(self._folder):
                if stale.name not in expected:
                    with self._writing(stale, "a clean start"):
                        stale.unlink(missing_ok=True)

    def log(self, text: str) -> None:
        """Add a line, with the time, to the log."""
        if self._log:
            line = f"{clock.stamp()} {' | '.join(text.splitlines())}\n".encode(errors="backslashreplace")
            with self._writing(Path(self._log.name), "a log"):
                while line:  # a disk that fills up takes a part, and refuses the rest
                    line = line[self._log.write(line) :]

    def status(self, fields: Mapping[str, Any]) -> None:
        """Replace the status by these fields, and whether the log is locked."""
        path = self._folder / f"status{self._suffix}.json"
        entries = {**fields, "locked": self._locked}
        lines = (f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in entries.items())
        with self._writing(path, "a status"):
            write_atomically(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode(errors="backslashreplace"))

    def scalars(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """Add measurements to the event file of a unit."""
        path = self._folder / "tensorboard" / quote(name, safe="") / events.file_name(self._began)
        with self._writing(path, "TensorBoard scalars"):
            events.append(path, step, values)

    def close(self) -> None:
        """Close the log; with it the lock goes."""
        if self._log:
            self._log.close()


def status_files(folder: Path) -> list[Path]:
    """The statuses of all processes of the run in a folder."""
    return sorted(path for path in folder.glob("status*.json") if re.fullmatch(r"status(-\d+)?\.json", path.name))


def is_abandoned(status: Path) -> bool:
    """Whether nobody holds the lock on the log beside a status; False also where that cannot be told."""
    log = status.with_name(status.name.replace("status", "log")).with_suffix(".txt")
    try:
        with open(log, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # held; or there is no log or no lock to be had here, which tells nothing
        return False
    return True


def _suffix(process: int, num_processes: int) -> str:
    return f"-{process}" if num_processes > 1 else ""


def _try_lock(file: BinaryIO) -> bool:
    for _ in range(10):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.01)  # `is_abandoned` has it for a moment
        except OSError:  # not every network file system has locks
            break
    return False
