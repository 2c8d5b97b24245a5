"""Atomic writes: a file is whole or absent."""

import os
import secrets
from pathlib import Path


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all: to a temporary file beside it, flushed to disk, then renamed.

    Raises:
      OSError: the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # mkstemp would make a file that only its owner can read
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename is on disk, too
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporary_files(folder: Path) -> None:
    """Remove files that a killed process was writing into ``folder`` by `write_atomically`."""
    for path in folder.glob(".*.????????"):
        path.unlink(missing_ok=True)
