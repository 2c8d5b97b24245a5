"""The folder of a run: settings and finished pieces of work, safe against kills, mix-ups and a second writer.

A piece is a named dictionary of arrays. Each piece has a file of its own, which is whole or absent. A restarted run continues from the
pieces in its folder. `Store` refuses settings that differ from those of the folder and shows the difference. Reading a folder executes
nothing.

config.json holds the provenance of the first start at its top level, the settings under ``settings``, and the provenance of every start,
in order, under ``starts``.

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
import io
import json
import math
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import filelock
import numpy as np

from jaxbp.runtime.files import remove_temporary_files, write_atomically
from jaxbp.runtime.outside_text import plain_text

CONFIG, SETTINGS, STARTS = "config.json", "settings", "starts"
_PIECES = "pieces"
_MAX_SHOWN = 20  # values of a list in an error message
_NUMBER_BYTES = 1024  # upper bound on the file of a single number


class StoreError(RuntimeError):
    """The folder cannot serve this run: in use, made with other settings, damaged or not writable."""


class Reader:
    """Read access to the finished pieces of a folder, also while another process writes to it."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)

    def _path(self, name: str) -> Path:
        return self.folder / _PIECES / f"{quote(name, safe='')}.npz"

    def __contains__(self, name: str) -> bool:
        return self._path(name).exists()

    def get(self, name: str) -> dict[str, np.ndarray]:
        """Read a piece.

        Raises:
          KeyError: the folder has no such piece.
          StoreError: the file of the piece is damaged.
        """
        return dict(self.lazy(name))

    def lazy(self, name: str) -> "StoredArrays":
        """Return a piece whose arrays are read from disk at every access.

        Raises:
          KeyError: the folder has no such piece.
          StoreError: the file of the piece is damaged.
        """
        path = self._path(name)
        if not path.exists():
            raise KeyError(f"{self.folder} holds no piece {name!r}")
        return StoredArrays(path)


class StoredArrays(Mapping):
    """The arrays of a piece by name; every access reads the array from the file.

    Attributes:
      small: names of the arrays that are small enough to be a single number.

    Raises:
      StoreError: the file is damaged.
    """

    def __init__(self, path: Path):
        self._path = path
        with self._archive() as archive:
            self._names = tuple(archive.files)
            sizes = [archive.zip.getinfo(f"{name}.npy").file_size for name in self._names]
        self.small = frozenset(name for name, size in zip(self._names, sizes, strict=True) if size <= _NUMBER_BYTES)

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
    """The folder of one run; a context manager that holds the lock of the folder.

    The operating system releases the lock when the process ends, also after kill -9.

    Args:
      folder: created if absent.
      settings: the identity of the run, as JSON; a folder with other settings is refused.
      provenance: facts that do not identify the run (versions, devices, commit). Those of the first start stay at the top level of
        config.json; those of every start are appended to ``starts``.
      process: number of this process among those that share the folder. Each process holds a lock of its own; process 0 records
        the starts.

    Raises:
      StoreError: another run uses the folder, its settings differ, or it cannot be read or written.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        settings: Mapping[str, Any],
        provenance: Mapping[str, Any] | None = None,
        *,
        process: int = 0,
    ):
        super().__init__(folder)
        path = self.folder / (f".lock-{process}" if process else ".lock")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            raise StoreError(f"cannot write to {self.folder} ({error.strerror}): name another folder") from error
        # Without flock, filelock would fall back to a file that outlives a killed process. Any thread may close the store.
        self._lock = filelock.FileLock(path, timeout=0, thread_local=False, fallback_to_soft=False)
        try:
            self._lock.acquire()
        except filelock.Timeout as error:
            raise StoreError(f"{self.folder} is in use by another run: wait for it, or name another folder") from error
        except (OSError, NotImplementedError) as error:
            raise StoreError(f"{self.folder} has no locks ({error}): wait for it, or name another folder") from error
        try:
            if process == 0:
                for place in (self.folder, self.folder / _PIECES):
                    remove_temporary_files(place)
            self.config = self._open_config(_as_stored(settings), dict(provenance or {}), writes=process == 0)
        except BaseException:
            self.close()
            raise

    def _open_config(self, settings: dict[str, Any], provenance: dict[str, Any], *, writes: bool) -> dict[str, Any]:
        """Compare the settings with those of the folder, and record this start."""
        path = self.folder / CONFIG
        config: dict[str, Any] = {**provenance, SETTINGS: settings, STARTS: []}
        if known := path.exists():
            try:
                config = json.loads(path.read_text("utf-8"))
                settings_there, starts = _finite(dict(config[SETTINGS])), [dict(start) for start in config.get(STARTS, [])]
            except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
                raise StoreError(
                    f"{path} is damaged ({plain_text(str(error))}): move it away and give the settings of that run; its finished work "
                    "is kept, and the settings are written anew"
                ) from error
            if changes := _differences(settings_there, settings):
                raise StoreError(
                    f"{self.folder} holds a run with other settings:\n  " + "\n  ".join(changes) + "\n"
                    "give the settings of that run to go on with it, or name another folder"
                )
            config[STARTS] = starts
        if not known or (writes and provenance):
            if provenance:
                config[STARTS] = [*config[STARTS], provenance]
            self._write_config(config)
        return config

    def _write_config(self, config: Mapping[str, Any]) -> None:
        self.write(CONFIG, (json.dumps(_finite(config), indent=2, allow_nan=False) + "\n").encode())

    def put(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Write a piece; on return it is on disk, whole.

        Raises:
          StoreError: the piece cannot be written.
        """
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **{key: np.asarray(value) for key, value in arrays.items()})
        _write(self._path(name), buffer.getvalue())

    def write(self, name: str, data: bytes) -> None:
        """Write a file beside the pieces, such as a table of results, whole or not at all.

        Raises:
          StoreError: the file cannot be written.
        """
        _write(self.folder / name, data)

    def add_metadata(self, **entries: Any) -> None:
        """Add entries, such as the wall time, to the top level of config.json."""
        self.config = {**self.config, **entries}
        self._write_config(self.config)

    def close(self) -> None:
        """Release the lock of the folder."""
        self._lock.release()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


class Memory:
    """A `Store` without a folder: pieces stay in memory."""

    def __init__(self) -> None:
        self.config: dict[str, Any] = {}
        self._pieces: dict[str, dict[str, np.ndarray]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._pieces

    def put(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Store a piece."""
        self._pieces[name] = {key: np.asarray(value) for key, value in arrays.items()}

    def lazy(self, name: str) -> dict[str, np.ndarray]:
        """Return a piece."""
        return self._pieces[name]

    def add_metadata(self, **entries: Any) -> None:
        """Add entries to the configuration."""
        self.config |= entries

    def __enter__(self) -> "Memory":
        return self

    def __exit__(self, *exception: Any) -> None:
        pass


def _as_stored(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as a file gives them back.

    Raises:
      StoreError: JSON cannot write one of them.
    """
    for name, value in settings.items():
        try:
            json.dumps({name: value})
        except (TypeError, ValueError, RecursionError) as error:
            raise StoreError(f"the setting {name!r} must be what JSON can write, got {value!r} ({error}): give numbers or text") from error
    return json.loads(json.dumps(_finite(settings)))


def _finite(value: Any) -> Any:
    """``value`` with infinite numbers and NaN as text: JSON has no such numbers."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {name: _finite(entry) for name, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value


def _write(path: Path, data: bytes) -> None:
    try:
        write_atomically(path, data)
    except OSError as error:
        raise StoreError(f"cannot write {path} ({error.strerror}); what was finished before is safe") from error


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for name in sorted({*old, *new}):
        before, after = old.get(name, "not set"), new.get(name, "not set")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += _differences(before, after, f"{prefix}{name}.")
        elif json.dumps(before) != json.dumps(after):  # Python equates 1, 1.0 and True
            lines.append(plain_text(f"{prefix}{name}: {_describe(before, after)}"))
    return lines


def _describe(old: Any, new: Any) -> str:
    lists = isinstance(old, list) and isinstance(new, list)
    if not lists or max(len(old), len(new)) <= _MAX_SHOWN:
        return f"{old} there, {new} now"
    position = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    first, second = (str(values[position]) if position < len(values) else "nothing" for values in (old, new))
    return f"{len(old)} values there, {len(new)} now; at position {position} {first} there, {second} now"
