"""Files of a run's folder: their names, writes that survive a full disk, and the lock on the log.

A process locks its log while it runs. The operating system releases the lock when the process ends, also after kill -9: a free lock
therefore means that the process is gone.

The lock is a plain ``flock`` and not a `filelock.FileLock`, which takes exclusive locks only and opens its file for writing. Readers of a
status need a shared lock on a file opened for reading: two readers at a time must both see that a run was killed, and so must a reader who
may not write to the folder (tests/runtime/test_status.py).
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
    """Log, status and event files of one process. Each kind of write that fails is reported once on stderr, and the work goes on."""

    def __init__(self, folder: Path, process: int, num_processes: int):
        self._folder, self._process, self._num_processes = folder, process, num_processes
        self._suffix = _suffix(process, num_processes)
        self._failed: set[str] = set()
        self._log: io.FileIO | None = None
        self._locked, self._began = False, time.time()

    @contextlib.contextmanager
    def _writing(self, path: Path, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if what not in self._failed:
                self._failed.add(what)
                with contextlib.suppress(OSError):
                    print(
                        f"warning: cannot write {path} ({error.strerror or error}); the work goes on without {what}",
                        file=sys.stderr,
                        flush=True,
                    )

    def open(self) -> None:
        """Create the folder, open and lock the log, and remove status files of an earlier start with another number of processes."""
        path = self._folder / f"log{self._suffix}.txt"
        with self._writing(path, "a log"):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._log = open(path, "ab", buffering=0)  # noqa: SIM115 - open until `close`
            self._locked = _try_lock(self._log)
        if self._process == 0:
            expected = {f"status{_suffix(i, self._num_processes)}.json" for i in range(self._num_processes)}
            for stale in status_files(self._folder):
                if stale.name not in expected:
                    with self._writing(stale, "a clean start"):
                        stale.unlink(missing_ok=True)

    def log(self, text: str) -> None:
        """Append a line with the time to the log."""
        if self._log:
            line = f"{clock.stamp()} {' | '.join(text.splitlines())}\n".encode(errors="backslashreplace")
            with self._writing(Path(self._log.name), "a log"):
                while line:  # a disk that fills up takes a part, and refuses the rest
                    line = line[self._log.write(line) :]

    def status(self, fields: Mapping[str, Any]) -> None:
        """Replace the status by these fields and a flag that says whether the log is locked."""
        path = self._folder / f"status{self._suffix}.json"
        entries = {**fields, "locked": self._locked}
        lines = (f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in entries.items())
        with self._writing(path, "a status"):
            write_atomically(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode(errors="backslashreplace"))

    def scalars(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """Append measurements to the event file of a unit."""
        path = self._folder / "tensorboard" / quote(name, safe="") / events.file_name(self._began)
        with self._writing(path, "TensorBoard scalars"):
            events.append(path, step, values)

    def close(self) -> None:
        """Close the log, which releases its lock."""
        if self._log:
            self._log.close()


def status_files(folder: Path) -> list[Path]:
    """Return the status files of all processes of the run in ``folder``."""
    return sorted(path for path in folder.glob("status*.json") if re.fullmatch(r"status(-\d+)?\.json", path.name))


def is_abandoned(status: Path) -> bool:
    """Return True if no process holds the lock on the log of ``status``; False also where this cannot be determined."""
    log = status.with_name(status.name.replace("status", "log")).with_suffix(".txt")
    try:
        with open(log, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # the lock is held; or the log or the locks are missing, which says nothing about the process
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
            time.sleep(0.01)  # `is_abandoned` holds the lock for a moment
        except OSError:  # some network file systems have no locks
            break
    return False
