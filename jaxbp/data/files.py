"""Image-classification data from untrusted files: .npz archives and folders of IDX files.

Nothing is unpickled. A file that is truncated, mislabelled, empty or wrongly shaped raises a `DataError` that
names it; every returned data set can be split and trained on. The entry point is ``jaxbp.data.load("file:...")``.

>>> import tempfile
>>> from pathlib import Path
>>> import numpy as np
>>> from jaxbp.data import files
>>> path = Path(tempfile.mkdtemp()) / "mine.npz"
>>> np.savez(path, x=np.zeros((6, 4, 4), np.uint8), y=np.array([0, 1, 2, 0, 1, 2]))
>>> raw = files.read(path)
>>> raw.train.images.shape, raw.test, raw.num_classes
((6, 4, 4, 1), None, 3)
"""

import gzip
import itertools
import math
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

_Named = tuple[str, np.ndarray]  # the origin of an array, for messages, and the array

_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
_IDX_FILES = (("train-images", "train-labels"), ("t10k-images", "t10k-labels"))
_IDX_AXES = {"images": 3, "labels": 1}
_MOST_CLASSES = 2**31
_MOST_DEFLATED = 1040  # bytes that a byte of a deflated file makes: 1032, and some room
_CHUNK = 2**20  # bytes read at once
_HEADERS: dict[tuple[int, int], Callable[[IO[bytes]], Any]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_NPZ_KEYS = (("x_train", "y_train"), ("x_test", "y_test"))


class DataError(ValueError):
    """A data set that is unknown, damaged, unsuitable, not downloaded, or too small to split."""


class RawSplit(NamedTuple):
    """Images as stored, (N, H, W, C), uint8 or floats, and labels (N,) int32."""

    images: np.ndarray
    labels: np.ndarray


class RawData(NamedTuple):
    """A data set before seeded splits and scaling; ``test`` is None where the source has no test split."""

    train: RawSplit
    test: RawSplit | None
    num_classes: int


def read(path: Path) -> RawData:
    """Read an .npz file or a folder of IDX files, and validate shapes, pixels and labels."""
    check_exists(path)
    pairs = _read_idx_folder(path) if path.is_dir() else _read_npz(path)
    splits = [checked_split(*pair) for pair in pairs]
    num_classes = _count_classes(splits[0].labels, pairs[0][1][0])
    for split, ((images_name, images), (labels_name, _)) in zip(splits, pairs, strict=True):
        if split.images.shape[1:] != splits[0].images.shape[1:]:
            raise DataError(
                f"{images_name} holds images of another shape than the training images: "
                f"{images.shape[1:]} against {splits[0].images.shape[1:]}"
            )
        _check_labels(labels_name, split.labels, num_classes)
    return RawData(splits[0], splits[1] if len(splits) > 1 else None, num_classes)


def check_exists(path: Path) -> None:
    """Raise `DataError` where there is nothing to read."""
    try:
        exists = path.exists()
    except (OSError, ValueError) as error:  # a name that is too long, or holds a zero byte
        raise DataError(
            f"{str(path)[:80]!r} is no path that this system has ({error}): give an .npz file or a folder of IDX files"
        ) from error
    if not exists:
        raise DataError(f"{path} does not exist: give an .npz file or a folder of IDX files")


def checked_split(images: _Named, labels: _Named) -> RawSplit:
    """Convert images to (N, H, W, C) and labels to (N,) int32; DataError with the reason if that is impossible."""
    images_name, x = images
    labels_name, y = labels
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4 or 0 in x.shape:
        raise DataError(f"{images_name} has shape {images[1].shape}: images need (N, H, W) or (N, H, W, C), none of them zero")
    if _looks_channels_first(x.shape):
        raise DataError(f"{images_name} has shape {x.shape}, which looks like (N, C, H, W): move the channels to the last axis")
    if y.ndim == 2 and y.shape[1] == 1:  # the convention of Keras
        y = y[:, 0]
    if y.ndim == 2 and len(y) == len(x) and np.isin(y, (0, 1)).all() and (y.sum(1) == 1).all():
        raise DataError(f"{labels_name} has shape {y.shape}, which looks like one-hot labels: take y.argmax(1)")
    if y.shape != x.shape[:1]:
        raise DataError(f"{labels_name} has shape {labels[1].shape}, but {images_name} holds {len(x)} images")
    _check_pixels(images_name, x)
    _check_labels(labels_name, y)
    return RawSplit(x, y.astype(np.int32))


def _looks_channels_first(shape: tuple[int, ...]) -> bool:
    """Whether the two last axes, or all but the first of few, look like rows and columns; square images of 1 to 4 rows are no images."""
    _, first, rows, columns = shape
    return (first in (1, 3) and columns > 4) or (first != rows == columns and rows > 1)


def _check_pixels(name: str, x: np.ndarray) -> None:
    if x.dtype == np.uint8:
        return
    if not np.issubdtype(x.dtype, np.floating):
        raise DataError(f"{name} has dtype {x.dtype}: save pixels as uint8 (0 to 255) or as floats in [0, 1]")
    low, high = float(x.min()), float(x.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError(f"{name} holds {np.count_nonzero(~np.isfinite(x))} values that are NaN or infinite")
    if low < 0 or high > 1:
        raise DataError(f"{name} holds floats from {low:g} to {high:g}: scale them into [0, 1], or save pixels as uint8")


def _check_labels(name: str, y: np.ndarray, num_classes: int = _MOST_CLASSES) -> None:
    """Refuse labels that are not integers from 0 to ``num_classes`` - 1."""
    if not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"{name} has dtype {y.dtype}: labels are integers that count classes from 0")
    low, high = int(y.min()), int(y.max())
    if low < 0:
        raise DataError(f"{name} holds the label {low}: labels count classes from 0")
    if high >= num_classes == _MOST_CLASSES:
        raise DataError(f"{name} holds the label {high}, which no int32 holds: number the classes from 0")
    if high >= num_classes:
        raise DataError(f"{name} holds the label {high}, but there are only {num_classes} classes, 0 to {num_classes - 1}")


def _count_classes(labels: np.ndarray, name: str) -> int:
    classes = np.unique(labels)
    if len(classes) < 2:
        raise DataError(f"{name} holds one class only, {classes[0]}: there is nothing to classify")
    if classes[-1] != len(classes) - 1:
        missing = next(c for c in itertools.count() if c != classes[c])
        raise DataError(
            f"{name} goes up to {classes[-1]} without any example of class {missing}: number the classes 0 to {len(classes) - 1}"
        )
    return len(classes)


def _read_npz(path: Path) -> list[tuple[_Named, _Named]]:
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty")
    if not zipfile.is_zipfile(path):  # np.load would try .npy and pickle next
        raise DataError(f"{path} is no .npz file, or a truncated one: write it anew with numpy.savez")
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            keys = sorted(name.removesuffix(".npy") for name in archive.namelist())
            pairs = [pair for pair in (*_NPZ_KEYS, ("x", "y")) if set(pair) <= set(keys)]
            for key in itertools.chain(*pairs):
                arrays[key] = _read_member(archive, f"{key}.npy", f"{path}: {key}")
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds of errors on damaged bytes
        raise DataError(f"{path} is damaged, or no .npz file ({error}): write it anew with numpy.savez") from error
    if tuple(pairs) not in (_NPZ_KEYS, (("x", "y"),)):
        raise DataError(f"{path} holds {keys}: it needs either x_train, y_train, x_test, y_test or x, y")
    return [((f"{path}: {x}", arrays[x]), (f"{path}: {y}", arrays[y])) for x, y in pairs]


def _read_member(archive: zipfile.ZipFile, member: str, name: str) -> np.ndarray:
    """An array of an .npz file; its header is read first, and only an array that fits the file after it."""
    info = archive.getinfo(member)
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise DataError(f"{name} has the .npy version {version}: save arrays of plain numbers with numpy.savez")
        shape, is_fortran, dtype = _HEADERS[version](file)
        if dtype.hasobject:
            raise DataError(f"{name} holds Python objects, and nothing is unpickled: save arrays of numbers, such as x.astype('uint8')")
        size = math.prod(shape) * dtype.itemsize
        held = info.file_size - file.tell()
        if size != held or info.file_size > _MOST_DEFLATED * (info.compress_size + 1):
            raise DataError(f"{name} announces shape {shape}, {size} bytes, and its file holds {held}: it is damaged, write it anew")
        content = file.read(size)
        file.read(1)  # at the end the checksum is compared
    return np.frombuffer(content, dtype).reshape(shape, order="F" if is_fortran else "C")


def _read_idx_folder(folder: Path) -> list[tuple[_Named, _Named]]:
    return [(_read_idx(*_find_idx(folder, x)), _read_idx(*_find_idx(folder, y))) for x, y in _IDX_FILES]


def _find_idx(folder: Path, stem: str) -> tuple[Path, int]:
    num_axes = _IDX_AXES[stem.split("-")[1]]
    names = [f"{stem}{mark}idx{num_axes}-ubyte{suffix}" for suffix in ("", ".gz") for mark in "-."]
    for name in names:
        if (folder / name).is_file():
            return folder / name, num_axes
    hint = ""
    if any(path.suffix.lower() in _PICTURES for path in folder.rglob("*")):
        hint = ": pictures are read from an .npz file; make one with numpy.savez('mine.npz', x=images, y=labels), images (N, H, W, C) uint8"
    raise DataError(f"{folder} holds none of {', '.join(names)}{hint}")


def _read_idx(path: Path, num_axes: int) -> _Named:
    """Read unsigned bytes: magic 0, 0, 8, number of axes; each axis as a big-endian uint32; then the bytes."""
    magic, header = bytes([0, 0, 8, num_axes]), 4 + 4 * num_axes
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            start = file.read(header)
            if start[:4] != magic:
                raise DataError(
                    f"{path} starts with {start[:4].hex() or 'nothing'}, not {magic.hex()}: it is no IDX file of unsigned "
                    f"bytes with {num_axes} {'axis' if num_axes == 1 else 'axes'}"
                )
            shape = tuple(int(n) for n in np.frombuffer(start[4:].ljust(4 * num_axes, b"\0"), ">u4"))
            size = math.prod(shape)
            content = _read_at_most(file, size + 1)
    except (OSError, EOFError, zlib.error) as error:  # a damaged gzip stream shows as any of them
        raise DataError(f"{path} cannot be read: {error}") from error
    if len(start) < header or len(content) != size:
        held = f"{len(start) + len(content)}" if len(content) <= size else "more"
        raise DataError(
            f"{path} is {'too long' if len(content) > size else 'truncated'}: its header "
            f"announces shape {shape}, {header + size} bytes in all, and it has {held}"
        )
    return str(path), np.frombuffer(content, np.uint8).reshape(shape)


def _read_at_most(file: Any, size: int) -> bytearray:
    """Up to ``size`` bytes; takes memory for those that are there only, whatever the header announces."""
    content = bytearray()
    while len(content) < size and (chunk := file.read(min(size - len(content), _CHUNK))):
        content += chunk
    return content
