"""The results of jobs on disk: labelled arrays, a netCDF file a job, written whole or not at all.

A file is named after the job and after the digest of all that the job depends on (`jaxbp.lab.jobs`), so a result that was computed
under other conditions is never taken for the one that is wanted. Any program that reads netCDF-4 reads the files.

>>> import tempfile, xarray as xr
>>> from jaxbp.lab.archive import Archive
>>> from jaxbp.runtime.store import Store
>>> with Store(tempfile.mkdtemp(), {}) as store:
...     archive = Archive(store)
...     archive.put("train; digits; seed 0", "a0", xr.Dataset({"loss": ("epoch", [0.5, 0.4])}), stage="train")
...     archive.get("train; digits; seed 0", "a0").loss.values.tolist()
[0.5, 0.4]
"""

import contextlib
import functools
import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

from jaxbp.lab.settings import as_json
from jaxbp.runtime.files import remove_temporary_files
from jaxbp.runtime.outside_text import DamagedFileError, read_json
from jaxbp.runtime.store import Store, StoreError

FOLDER, _INDEX = "jobs", "index.json"
MAP = "map.nc"  # the arrays of a map, beside its jobs


def _key(name: str) -> str:
    return hashlib.blake2b(name.encode(), digest_size=6).hexdigest()


class Archive:
    """The finished jobs in the folder of a run that this process has opened for writing.

    Args:
      store: of the folder.
      keeps_others: keep results of a job for other digests, too: those of other settings, in the folder of a map.
    """

    def __init__(self, store: Store, *, keeps_others: bool = False):
        self.store, self.folder, self._keeps_others = store, store.folder / FOLDER, keeps_others
        self.folder.mkdir(exist_ok=True)

    def tidy(self) -> None:
        """Remove what a kill left of files that were being written; for the first of several processes."""
        remove_temporary_files(self.folder)

    def path(self, name: str, digest: str) -> Path:
        """The file of a job."""
        return self.folder / f"{_key(name)}-{digest}.nc"

    def contains(self, name: str, digest: str) -> bool:
        """Whether the job's result is there."""
        return self.path(name, digest).exists()

    def put(self, name: str, digest: str, dataset: xr.Dataset, **attributes: str) -> None:
        """Write a job's result; when this returns the file is on disk whole.

        Results of the job for other digests are gone then, unless this archive keeps them.

        Raises:
          StoreError: the file cannot be written.
        """
        dataset = dataset.assign_attrs(job=name, digest=digest, **attributes)
        self.store.write(str(self.path(name, digest).relative_to(self.store.folder)), to_bytes(dataset))
        for path in () if self._keeps_others else self.others(name, digest):
            path.unlink(missing_ok=True)

    def get(self, name: str, digest: str) -> xr.Dataset:
        """The result of a job.

        Raises:
          KeyError: it is not there.
          StoreError: its file is damaged.
        """
        path = self.path(name, digest)
        if not path.exists():
            raise KeyError(f"{self.store.folder} holds no result of {name!r}")
        return read(path)

    def write_index(self, jobs: Iterable[tuple[str, str]]) -> None:
        """Note the order of the jobs, given by name and digest."""
        names = [self.path(name, digest).name for name, digest in jobs]
        self.store.write(f"{FOLDER}/{_INDEX}", json.dumps(names, indent=0).encode())

    def others(self, name: str, digest: str) -> list[Path]:
        """Files of the same job that were computed from something else."""
        return [path for path in self.folder.glob(f"{_key(name)}-*.nc") if path != self.path(name, digest)]

    def nearby(self, digest: str) -> Path | None:
        """The folder of a run nearby that has an equal job's result; None if there is none."""
        path = self._elsewhere.get(digest)
        return path and path.parent.parent

    def reuse(self, name: str, digest: str) -> bool:
        """Take over an equal job's result from a run nearby; returns whether that run has it."""
        path = self._elsewhere[digest]
        try:
            content = path.read_bytes()
            usable = from_bytes(content, path).attrs.get("digest") == digest
        except (OSError, StoreError):  # that run was just deleted, or its file is damaged: the job is computed
            return False
        if usable:
            self.store.write(str(self.path(name, digest).relative_to(self.store.folder)), content)
        return usable

    @functools.cached_property
    def _elsewhere(self) -> dict[str, Path]:
        return results_nearby(self.store.folder)


def results_nearby(folder: Path) -> dict[str, Path]:
    """Results by digest in the folders beside that of a run, in those inside them, and in those beside the parent folder."""
    run = folder.absolute()
    patterns = [(run.parent, f"*/{FOLDER}"), (run.parent, f"lab-*/*/{FOLDER}")]
    patterns += [(run.parent.parent, f"*/{FOLDER}"), (run.parent.parent, f"*/{run.name}/{FOLDER}")]
    places: list[Path] = []
    for parent, pattern in patterns:
        with contextlib.suppress(OSError):  # a neighbour that cannot be read has nothing to give
            places += parent.glob(pattern)
    return _by_digest(place for place in sorted(set(places)) if place.parent != run)


def _by_digest(places: Iterable[Path]) -> dict[str, Path]:
    return {path.stem.partition("-")[2]: path for place in places for path in place.glob("*-*.nc")}


class Results:
    """Read access to what the folder of a run and those nearby hold, whether or not the folder is there."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.paths = results_nearby(folder) | _by_digest([folder / FOLDER])

    @property
    def folders(self) -> list[Path]:
        """The folders of the runs."""
        return sorted({path.parent.parent for path in self.paths.values()} | {self.folder})

    def contains(self, name: str, digest: str) -> bool:
        """As `Archive.contains`."""
        return digest in self.paths

    def get(self, name: str, digest: str) -> xr.Dataset:
        """As `Archive.get`."""
        return read(self.paths[digest])


def to_bytes(dataset: xr.Dataset) -> bytes:
    """A netCDF-4 file with a checksum for every array of numbers."""
    encoding: dict[Any, dict[str, Any]] = {}
    for name, variable in dataset.variables.items():
        numeric = variable.dtype.kind in "iufb"
        encoding[name] = {"_FillValue": None} if variable.dtype.kind == "f" else {}
        if numeric and variable.size and variable.ndim:
            encoding[name]["fletcher32"] = True
    buffer = dataset.to_netcdf(engine="h5netcdf", encoding=encoding)
    return bytes(buffer)


def read(path: Path) -> xr.Dataset:
    """A file of `to_bytes` in memory.

    Raises:
      StoreError: the file is truncated, damaged or none of these.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StoreError(f"cannot read {path} ({error.strerror}): start the run again") from error
    return from_bytes(content, path)


def from_bytes(content: bytes, path: Path) -> xr.Dataset:
    """The inverse of `to_bytes`; errors name ``path``."""
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            dict(file.attrs)  # a file of h5netcdf that fails here would fail again, in its own words, when it is deleted
        return xr.load_dataset(io.BytesIO(content), engine="h5netcdf")
    except Exception as error:  # HDF5 and its readers raise errors of many kinds
        raise StoreError(f"{path} is damaged ({error}): delete this file and start the run again; the rest is kept") from error


def all_in(folder: Path) -> Iterator[tuple[dict[str, Any], xr.Dataset]]:
    """Every result in the folder of a run with its stage, case and point, in the order of the jobs."""
    index = folder / FOLDER / _INDEX
    try:
        names = read_json(index) if index.exists() else []
        paths = [folder / FOLDER / Path(name).name for name in names]  # a name with a folder in it would leave this one
    except (DamagedFileError, TypeError, OSError) as error:
        raise StoreError(f"{index} is damaged ({error}): start the run again, which writes it anew; the results are kept") from error
    for path in paths:
        if path.exists():
            dataset = read(path)
            yield _attributes(dataset, path), dataset


def _attributes(dataset: xr.Dataset, path: Path) -> dict[str, Any]:
    """Stage, case and point of a result."""
    texts: dict[str, Any] = {name: dataset.attrs.get(name, "{}" if name == "point" else "") for name in ("stage", "case", "point")}
    try:
        point = json.loads(texts["point"])
    except (TypeError, ValueError, RecursionError):
        point = None
    if not isinstance(point, dict) or not all(isinstance(text, str) and text for text in texts.values()):
        raise StoreError(
            f"{path} is damaged, it names no stage, case and point: delete this file and start the run again; the rest is kept"
        )
    return {**dataset.attrs, "point": point}


def parts_of(dataset: xr.Dataset, path: Path) -> dict[str, str]:
    """What the result in a file depends on, digests by name.

    Raises:
      StoreError: the file does not say so.
    """
    try:
        parts = json.loads(dataset.attrs.get("parts", "{}"))
    except (TypeError, ValueError, RecursionError):
        parts = None
    if not isinstance(parts, dict) or not all(isinstance(text, str) for text in parts.values()):
        raise StoreError(f"{path} is damaged, it does not say what it depends on: delete this file and start the run again")
    return parts


def combine(results: list[tuple[dict[str, Any], xr.Dataset]]) -> xr.Dataset:
    """One Dataset of the results at all points of a product of axes, in the order of their first appearance.

    Results at tuples of coordinates have that axis themselves and are put one after another along it; an array without the axis is the
    first result's.
    """
    axes = list(results[0][0])
    groups: dict[str, list[tuple[dict[str, Any], xr.Dataset]]] = {}
    if not axes:
        return results[0][1].drop_attrs(deep=False)
    axis, rest = axes[0], axes[1:]
    for point, dataset in results:
        groups.setdefault(json.dumps(as_json(point[axis])), []).append((point, dataset))
    parts = [combine([({name: point[name] for name in rest}, dataset) for point, dataset in group]) for group in groups.values()]
    points = [group[0][0][axis] for group in groups.values()]
    options: dict[str, Any] = {"coords": "minimal", "join": "outer", "compat": "override"}
    if isinstance(points[0], tuple | list):  # JSON makes lists of tuples
        return xr.concat(parts, axis, data_vars="minimal", **options)
    return xr.concat(parts, xr.DataArray(np.array(points), dims=axis, name=axis), data_vars="all", **options)
