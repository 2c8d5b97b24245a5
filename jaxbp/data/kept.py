"""Data sets that were read stay in memory: a run loads the same one for every seed, and reading it takes seconds to minutes."""

import functools
import os
import threading
import time
from collections.abc import Callable

from jaxbp.data.files import RawData

_MOST_BYTES = 2**30  # of images: those of CIFAR-10 are 180 MB
_SETTLED = 2.0  # seconds without a change: a file that is being written may change again within the resolution of its time stamp
_reading = threading.Lock()


def read_once(path: str | os.PathLike, read: Callable[[], RawData]) -> RawData:
    """What ``read`` makes of the file or folder at ``path``, called again once that has changed.

    The arrays are read-only, since all who ask share them. Threads that ask at once wait for the first. The sets read last are kept, up to
    a gigabyte, and the newest in any case. Files that changed in the last seconds are read every time.
    """
    with _reading:
        state = _state(os.path.abspath(os.fspath(path)))
        if state is None:
            return read()
        sets = _sets()
        if state not in sets:
            sets[state] = _read_only(read())
            _forget(sets)
        return sets[state]


@functools.cache  # no global, whose value would count as part of the code: results are kept by the code that made them
def _sets() -> dict[tuple, RawData]:
    """What was read, by the state of its files, the oldest first."""
    return {}


def _state(path: str) -> tuple | None:
    """The file, or the files of the folder, with sizes and times of change; None where they are not to be known or not settled."""
    try:
        if os.path.isdir(path):
            with os.scandir(path) as entries:
                found = {entry.name: entry.stat() for entry in entries}
        else:
            found = {"": os.stat(path)}
    except OSError:  # what reads the set says what is wrong
        return None
    if time.time() - max((status.st_mtime for status in found.values()), default=0) < _SETTLED:
        return None
    return path, *sorted((name, status.st_size, status.st_mtime_ns) for name, status in found.items())


def _read_only(raw: RawData) -> RawData:
    for split in filter(None, (raw.train, raw.test)):
        for array in split:
            array.flags.writeable = False
    return raw


def _forget(sets: dict[tuple, RawData]) -> None:
    sizes = {state: sum(split.images.nbytes for split in (raw.train, raw.test) if split) for state, raw in sets.items()}
    for state in list(sets)[:-1]:
        if sum(sizes[left] for left in sets) > _MOST_BYTES:
            del sets[state]
