"""A run's folder: settings and finished pieces of work, safe against kills, mix-ups and a second writer.

A piece is a named dictionary of arrays in a file of its own, written whole or not at all. A run that is started again finds the pieces that
are there and goes on. Settings that differ from those of the folder are refused, with the difference. Nothing read from a
folder is ever executed.

>>> import tempfile
>>> import numpy as np
>>> from jaxbp.store import Store
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
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from jaxbp.evidence import write_atomically

CONFIG = "config.json"
_PIECES = "pieces"


class StoreError(RuntimeError):
    """The folder cannot serve this run: in use, of other settings, damaged or not writable."""


class Store:
    """The folder of one run; a context manager that holds the folder's lock until it is left.

    Args:
      folder: made if it is not there.
      settings: what identifies the run; anything JSON can write. Must equal what the folder holds.
      facts: what is worth knowing but does not identify it (versions, devices); kept from the first start.

    Raises:
      StoreError: another process uses the folder, its settings differ, it cannot be read or written.
    """

    def __init__(self, folder: str | os.PathLike, settings: Mapping[str, Any], facts: Mapping[str, Any] | None = None):
        self.folder = Path(folder)
        try:
            (self.folder / _PIECES).mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / ".lock", "w")  # noqa: SIM115 - held until `close`
        except OSError as error:
            raise StoreError(
                f"cannot write to {self.folder} ({error.strerror}): name another folder with --out"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise StoreError(
                f"{self.folder} is in use by another run: wait for it, or name another folder with --out"
            ) from error
        try:
            self.config = self._settle({**(facts or {}), "settings": json.loads(json.dumps(settings))})
        except BaseException:
            self.close()
            raise

    def _settle(self, config: dict[str, Any]) -> dict[str, Any]:
        path = self.folder / CONFIG
        if not path.exists():
            write_atomically(path, (json.dumps(config, indent=2) + "\n").encode())
            return config
        try:
            found = json.loads(path.read_text("utf-8"))
            there = dict(found["settings"])
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path} is damaged ({error}): delete the folder, or name another with --out") from error
        if changes := _differences(there, config["settings"]):
            raise StoreError(
                f"{self.folder} holds a run with other settings:\n  " + "\n  ".join(changes) + "\n"
                "give the settings of that run to go on with it, or name another folder with --out"
            )
        return found

    def _path(self, name: str) -> Path:
        return self.folder / _PIECES / f"{quote(name, safe='')}.npz"

    def __contains__(self, name: str) -> bool:
        return self._path(name).exists()

    def put(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Write a piece; when this returns it is on disk whole."""
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **{key: np.asarray(value) for key, value in arrays.items()})
        try:
            write_atomically(self._path(name), buffer.getvalue())
        except OSError as error:
            raise StoreError(
                f"cannot write {self._path(name)} ({error.strerror}); what was finished before is safe"
            ) from error

    def get(self, name: str) -> dict[str, np.ndarray]:
        """Read a piece.

        Raises:
          KeyError: it is not there.
          StoreError: its file is truncated or is no piece.
        """
        path = self._path(name)
        if not path.exists():
            raise KeyError(f"{self.folder} holds no piece {name!r}")
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
                return {key: archive[key] for key in archive.files}
        except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, AttributeError) as error:
            raise StoreError(
                f"{path} is damaged ({error}): delete this file and start the run again; the rest is kept"
            ) from error

    def note(self, **facts: Any) -> None:
        """Add facts to config.json, such as the time a run took."""
        self.config = {**self.config, **facts}
        write_atomically(self.folder / CONFIG, (json.dumps(self.config, indent=2) + "\n").encode())

    def close(self) -> None:
        """Let go of the folder."""
        with contextlib.suppress(ValueError):  # closed before
            fcntl.flock(self._lock, fcntl.LOCK_UN)
        self._lock.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    names = sorted({*there, *here})
    return [
        f"{name}: {there.get(name, 'not set')} there, {here.get(name, 'not set')} now"
        for name in names
        if name not in there or name not in here or there[name] != here[name]
    ]
