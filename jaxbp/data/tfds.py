"""Any image-classification data set of TensorFlow Datasets, as arrays.

Preparing a data set, once, needs a network connection and TensorFlow; reading its records afterwards needs neither. Data sets that
`tfds.load` has prepared work too, but their records, TFRecord by default, need TensorFlow. TensorFlow gets no
accelerator, because JAX uses them. The entry point is ``jaxbp.data.load("tfds:...")``.

>>> from jaxbp.data import tfds
>>> tfds.read("fashion_mnst", None)
Traceback (most recent call last):
jaxbp.data.files.DataError: TFDS cannot make anything of 'fashion_mnst' (Dataset fashion_mnst not found.): did you mean fashion_mnist?
"""

import contextlib
import difflib
import http.client
import os
import queue
import re
import ssl
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from jaxbp.data.files import DataError, RawData, RawSplit, checked_split
from jaxbp.data.kept import read_once

_CHUNK = 500  # records decoded at a time; a third faster than single records
_PATIENCE = 5.0  # seconds in which a host has to answer; TFDS itself tries for minutes
_MOST_HOSTS = 3  # of the sources of a data set that are asked
_DEBIAN = {"fashion_mnist": ("dataset-fashion-mnist", "/usr/share/datasets/fashion-mnist")}  # package and folder of its files


def read(name: str, data_dir: str | os.PathLike | None) -> RawData:
    """Read the train split and, if it exists, the test split; other splits are ignored. See `kept.read_once`."""
    builder, shape, num_classes = _built(name, data_dir)
    if not builder.is_prepared():
        _prepare(name, builder, data_dir)
        builder, _, _ = _built(name, data_dir)  # another thread or process may have prepared the set
    if "train" not in builder.info.splits:
        raise DataError(f"tfds:{name} has no train split, only {sorted(builder.info.splits)}")
    return read_once(builder.data_dir, lambda: _read_splits(name, builder, shape, num_classes))


def check(name: str, data_dir: str | os.PathLike | None) -> tuple[int, ...]:
    """Look within seconds whether a set can be read: it is prepared, or its files are there, or their source answers.

    Returns:
      The shape of its images.

    Raises:
      DataError: it cannot, or it is no image-classification set.
    """
    builder, shape, _ = _built(name, data_dir)
    if not builder.is_prepared():
        _check_sources(name, builder, _folder(data_dir))
    return shape


def _built(name: str, data_dir: str | os.PathLike | None) -> tuple[Any, tuple[int, ...], int]:
    """TFDS's builder of a set, the shape of its images and the number of its classes."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except Exception as error:  # unknown name, bad syntax, unknown config or version: TFDS raises several kinds of errors
        raise DataError(_unknown(name, error, tfds.list_builders(with_community_datasets=False))) from error
    return builder, *_image_shape_and_classes(name, builder, tfds)


def _folder(data_dir: str | os.PathLike | None) -> str:
    """Where TFDS looks for prepared data sets."""
    return str(data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))


def _unknown(name: str, error: Exception, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known)
    hint = f": did you mean {' or '.join(close)}?" if close else ", see tensorflow_datasets.list_builders()"
    return f"TFDS cannot make anything of {name!r} ({str(error).strip().splitlines()[0]}){hint}"


def _image_shape_and_classes(name: str, builder: Any, tfds: Any) -> tuple[tuple[int, ...], int]:
    features = builder.info.features
    by_name = dict(features.items()) if hasattr(features, "items") else {}
    image, label = by_name.get("image"), by_name.get("label")
    if not (isinstance(image, tfds.features.Image) and isinstance(label, tfds.features.ClassLabel)):
        raise DataError(f"tfds:{name} is no image-classification set: it needs 'image' and 'label', got {sorted(by_name)}")
    if None in image.shape or image.np_dtype != np.uint8:  # np_dtype, as dtype imports TensorFlow
        raise DataError(
            f"tfds:{name} has images of shape {image.shape} and dtype {image.np_dtype}: they need one fixed size and "
            "uint8. Resize them into an .npz file and load that with file:"
        )
    return image.shape, label.num_classes


def _one_at_a_time(name: str, folder: str) -> filelock.FileLock:
    """A lock beside the prepared sets: TFDS fails where two threads or processes prepare one set at once."""
    place = Path(folder).expanduser()
    place.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(place / f".{re.sub(r'[^a-z0-9_]', '-', name)}.lock")


def _prepare(name: str, builder: Any, data_dir: str | os.PathLike | None) -> None:
    folder = _folder(data_dir)
    by_hand = f"or prepare it elsewhere with TFDS and copy its folder to {folder}"
    _import_tensorflow(f"tfds:{name} is not prepared in {folder}, and preparing", by_hand)
    _check_sources(name, builder, folder)
    try:
        with _one_at_a_time(name, folder):
            if not _built(name, data_dir)[0].is_prepared():
                print(
                    f"tfds:{name} is not prepared in {folder}: its files are fetched and prepared there, once", file=sys.stderr, flush=True
                )
                # TFDS has array_record, which reads without TensorFlow, on Linux only
                builder.download_and_prepare(file_format="array_record" if sys.platform == "linux" else None)
    except Exception as error:  # no network, a full disk, a changed checksum, ...
        raise DataError(
            f"tfds:{name} could not be downloaded and prepared ({error}). With a network it comes by itself; without, "
            f"put the original files into {folder}/downloads/manual under the names they have at their source, {by_hand}"
        ) from error


def _check_sources(name: str, builder: Any, folder: str) -> None:
    """Refuse a set whose files are neither there nor on a host that answers."""
    downloads = Path(folder).expanduser() / "downloads"
    if any(path.is_file() for path in downloads.glob("*")):  # fetched before, under names of TFDS's own
        return
    urls = {url: info.filename for url, info in (builder.url_infos or {}).items() if url.startswith(("http:", "https:"))}
    lacking = {url: file for url, file in urls.items() if not (file and (downloads / "manual" / file).exists())}
    hosts = {urllib.parse.urlsplit(url).netloc: url for url in reversed(lacking)}
    if not (hosts and (silence := _silence(list(hosts.values())[:_MOST_HOSTS]))):
        return
    package, place = _DEBIAN.get(name.partition("/")[0].partition(":")[0], ("", ""))
    debian = f"install Debian's package {package} and name file:{place} in place of tfds:{name}, or " * bool(package)
    files = ", ".join(filter(None, list(lacking.values())[:4])) or "the original files"
    raise DataError(
        f"tfds:{name} is not prepared in {folder}, and its source does not answer ({silence}). With a network it comes by itself; without: "
        f"{debian}name a folder where it is prepared by --data-dir (data_dir=), put {files} into {downloads / 'manual'}, or give file:PATH"
    )


def _silence(urls: Sequence[str]) -> str:
    """Why no host of ``urls`` answers within seconds; empty if one does. Proxies of the environment are used, as TFDS uses them."""
    answers: queue.SimpleQueue = queue.SimpleQueue()
    for url in urls:  # threads, as no timeout ends a look-up of a name
        threading.Thread(target=lambda url=url: answers.put(_problem(url)), daemon=True).start()
    deadline, problems = time.monotonic() + _PATIENCE, []
    for _ in urls:
        try:
            problem = answers.get(timeout=max(deadline - time.monotonic(), 0))
        except queue.Empty:
            break
        if not problem:
            return ""
        problems.append(problem)
    return "; ".join(problems) or f"{', '.join(urllib.parse.urlsplit(url).netloc for url in urls)}: silent for {_PATIENCE:g} s"


def _problem(url: str) -> str:
    """Why a host gives no answer at all; empty if it gives one, be it a refusal."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_PATIENCE):
            return ""
    except (urllib.error.HTTPError, http.client.HTTPException):
        return ""
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return "" if isinstance(reason, ssl.SSLError) else f"{urllib.parse.urlsplit(url).netloc}: {reason}"


def _import_tensorflow(what: str, otherwise: str) -> None:
    try:
        import tensorflow as tf
    except ImportError as error:
        raise DataError(f"{what} takes TensorFlow, which cannot be imported: pip install tensorflow, {otherwise}") from error
    for kind in ("GPU", "TPU"):
        with contextlib.suppress(RuntimeError):  # the caller has initialised TensorFlow
            tf.config.set_visible_devices([], kind)


def _read_splits(name: str, builder: Any, shape: tuple[int, ...], num_classes: int) -> RawData:
    names = [split for split in ("train", "test") if split in builder.info.splits]
    splits = [_read_split(name, builder, split, shape) for split in names]
    return RawData(splits[0], splits[1] if len(splits) > 1 else None, num_classes)


def _read_split(name: str, builder: Any, split: str, shape: tuple[int, ...]) -> RawSplit:
    num_examples = builder.info.splits[split].num_examples
    images, labels = np.empty((num_examples, *shape), np.uint8), np.empty(num_examples, np.int64)
    try:
        for row, example in zip(range(num_examples), _examples(name, builder, split), strict=True):
            images[row], labels[row] = example["image"], example["label"]
    except DataError:
        raise
    except Exception as error:  # from the record reader, the decoder or a wrong count of records
        raise DataError(
            f"tfds:{name}: the {split} split in {builder.data_dir} is damaged ({error}): remove the folder, and it is prepared anew"
        ) from error
    where = f"tfds:{name}, {split}"
    return checked_split((f"{where} images", images), (f"{where} labels", labels))


def _examples(name: str, builder: Any, split: str) -> Iterator[dict[str, Any]]:
    """Yield in the order of the files, which is the same for every file format."""
    try:
        source = builder.as_data_source(split)
    except NotImplementedError:  # TFRecord, the default of `tfds.load`, which only TensorFlow reads
        _import_tensorflow(f"Reading tfds:{name} in {builder.data_dir}, in TFRecord format,", "or remove that folder")
        import tensorflow_datasets as tfds

        in_order = tfds.ReadConfig(interleave_cycle_length=1)
        yield from tfds.as_numpy(builder.as_dataset(split, read_config=in_order))
    else:
        for start in range(0, len(source), _CHUNK):
            yield from source.__getitems__(range(start, min(start + _CHUNK, len(source))))
