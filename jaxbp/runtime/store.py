"""A run's folder: settings and finished pieces of work, safe against kills, mix-ups and a second writer.

A piece is a named dictionary of arrays in a file of its own, written whole or not at all. A run that is started again finds the pieces that
are there and goes on. Settings that differ from those of the folder are refused, with the difference. Nothing read from a
folder is ever executed.

>>> import tempfile
>>> import numpy as np
>>> from jaxbp.runtime.store import Store
>>> folder = tempfile.mkdtemp()
>>> with Store(folder, {"seeds": 3}) as store:
...     store.put("digits/mlp", {"loss": np.array([0.5, 0.4])})
>>> with Store(folder, {"seeds": 3}) as store:
...     store.get("digits/mlp")["loss"].tolist()
[0.5, 0.4]
"""

import contextlib
import fcntl
import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from jaxbp.runtime.files import write_atomically

CONFIG = "config.json"
_PIECES = "pieces"
_LONG = 20  # values of a list that are shown
_SMALL = 1024  # bytes of an array's file that a number never exceeds


class StoreError(RuntimeError):
    """The folder cannot serve this run: in use, of other settings, damaged or not writable."""


class Reader:
    """The finished pieces in a folder, whoever is writing to it."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)

    def _path(self, name: str) -> Path:
        return self.folder / _PIECES / f"{quote(name, safe='')}.npz"

    def __contains__(self, name: str) -> bool:
        return self._path(name).exists()

    def get(self, name: str) -> dict[str, np.ndarray]:
        """Read a piece.

        Raises:
          KeyError: it is not there.
          StoreError: its file is truncated or is no piece.
        """
        return dict(self.lazy(name))

    def lazy(self, name: str) -> "Piece":
        """A piece whose arrays are read when they are asked for, each time anew; errors are those of `get`."""
        path = self._path(name)
        if not path.exists():
            raise KeyError(f"{self.folder} holds no piece {name!r}")
        return Piece(path)


class Piece(Mapping):
    """The arrays of a piece by name, each read from its file when it is asked for.

    Raises:
      StoreError: its file is truncated or is no piece.
    """

    def __init__(self, path: Path):
        self._path = path
        with self._archive() as archive:
            self._names = tuple(archive.files)
            sizes = [archive.zip.getinfo(f"{name}.npy").file_size for name in self._names]
        self.small = frozenset(name for name, size in zip(self._names, sizes, strict=True) if size <= _SMALL)

    @contextlib.contextmanager
    def _archive(self) -> Iterator[Any]:
        try:
            with open(self._path, "rb") as file, np.load(file, allow_pickle=False) as archive:
                yield archive
        except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, AttributeError) as error:
            raise StoreError(f"{self._path} is damaged ({error}): delete this file and start the run again; the rest is kept") from error

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        with self._archive() as archive:
            return archive[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Store(Reader):
    """The folder of one run; a context manager that holds the folder's lock until it is left.

    Args:
      folder: made if it is not there.
      settings: what identifies the run; anything JSON can write. Must equal what the folder holds.
      facts: what is worth knowing but does not identify it (versions, devices); kept from the first start.
      process: of several that share the folder as one run; each holds a lock of its own.

    Raises:
      StoreError: another process uses the folder, its settings differ, it cannot be read or written.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        settings: Mapping[str, Any],
        facts: Mapping[str, Any] | None = None,
        *,
        process: int = 0,
    ):
        super().__init__(folder)
        try:
            (self.folder / _PIECES).mkdir(parents=True, exist_ok=True)
            lock = f".lock-{process}" if process else ".lock"
            self._lock = open(self.folder / lock, "w")  # noqa: SIM115 - held until `close`
        except OSError as error:
            raise StoreError(f"cannot write to {self.folder} ({error.strerror}): name another folder") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            why = "is in use by another run" if isinstance(error, BlockingIOError) else f"has no locks ({error.strerror})"
            raise StoreError(f"{self.folder} {why}: wait for it, or name another folder") from error
        try:
            if process == 0:
                self._tidy()
            self.config = self._settle({**(facts or {}), "settings": json.loads(json.dumps(settings))})
        except BaseException:
            self.close()
            raise

    def _tidy(self) -> None:
        """Remove what a kill left of files that were being written."""
        for folder in (self.folder, self.folder / _PIECES):
            for path in folder.glob(".*.????????"):
                path.unlink(missing_ok=True)

    def _settle(self, config: dict[str, Any]) -> dict[str, Any]:
        path = self.folder / CONFIG
        if not path.exists():
            self.write(CONFIG, (json.dumps(config, indent=2) + "\n").encode())
            return config
        try:
            found = json.loads(path.read_text("utf-8"))
            there = dict(found["settings"])
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path} is damaged ({error}): delete the folder, or name another") from error
        if changes := _differences(there, config["settings"]):
            raise StoreError(
                f"{self.folder} holds a run with other settings:\n  " + "\n  ".join(changes) + "\n"
                "give the settings of that run to go on with it, or name another folder"
            )
        return found

    def put(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Write a piece; when this returns it is on disk whole."""
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **{key: np.asarray(value) for key, value in arrays.items()})
        _write(self._path(name), buffer.getvalue())

    def write(self, name: str, data: bytes) -> None:
        """Write a file of the folder that is no piece, such as a table of all of them."""
        _write(self.folder / name, data)

    def note(self, **facts: Any) -> None:
        """Add facts to config.json, such as the time a run took."""
        self.config = {**self.config, **facts}
        self.write(CONFIG, (json.dumps(self.config, indent=2) + "\n").encode())

    def close(self) -> None:
        """Let go of the folder."""
        with contextlib.suppress(ValueError):  # closed before
            fcntl.flock(self._lock, fcntl.LOCK_UN)
        self._lock.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


class Memory:
    """Pieces of a run that is not kept; as a `Store` without a folder."""

    def __init__(self) -> None:
        self.config: dict[str, Any] = {}
        self._pieces: dict[str, dict[str, np.ndarray]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._pieces

    def put(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Keep a piece."""
        self._pieces[name] = {key: np.asarray(value) for key, value in arrays.items()}

    def lazy(self, name: str) -> dict[str, np.ndarray]:
        """A piece that was kept."""
        return self._pieces[name]

    def note(self, **facts: Any) -> None:
        """Keep facts."""
        self.config |= facts

    def __enter__(self) -> "Memory":
        return self

    def __exit__(self, *exception: Any) -> None:
        pass


def _write(path: Path, data: bytes) -> None:
    try:
        write_atomically(path, data)
    except OSError as error:
        raise StoreError(f"cannot write {path} ({error.strerror}); what was finished before is safe") from error


def _differences(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name in sorted({*there, *here}):
        old, new = there.get(name, "not set"), here.get(name, "not set")
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += _differences(old, new, f"{prefix}{name}.")
        elif json.dumps(old) != json.dumps(new):  # 1, 1.0 and True are equal, but not the same
            found.append(f"{prefix}{name}: {_told(old, new)}")
    return found


def _told(old: Any, new: Any) -> str:
    lists = isinstance(old, list) and isinstance(new, list)
    if not lists or max(len(old), len(new)) <= _LONG:
        return f"{old} there, {new} now"
    where = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    first, second = (str(values[where]) if where < len(values) else "nothing" for values in (old, new))
    return f"{len(old)} values there, {len(new)} now; at position {where} {first} there, {second} now"
