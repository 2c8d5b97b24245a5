"""TFDS sets: two tiny ones prepared here by TFDS itself, and, marked slow, the real Fashion-MNIST."""

import concurrent.futures
import contextlib
import gzip
import hashlib
import shutil
import ssl
import struct
import subprocess
import sys
import threading
import time
import types
import urllib.error
import warnings
from pathlib import Path

import numpy as np
import pytest

from jaxbp import data
from jaxbp.data import DataError, kept
from jaxbp.data import tfds as data_tfds

NUM_EXAMPLES = {"train": 40, "test": 8}


@contextlib.contextmanager
def tfds_warnings_ignored():
    """Ignore what TFDS and TensorFlow warn about themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def image_of(split, i):
    return np.full((6, 4, 3), 5 * i + (split == "test"), np.uint8)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with ``tiny_shapes`` in array_record, and one with it in TFRecord, as `tfds.load` would leave it."""
    with tfds_warnings_ignored():
        import tensorflow_datasets as tfds

        class TinyShapes(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                features = {
                    "image": tfds.features.Image(shape=(6, 4, 3)),
                    "label": tfds.features.ClassLabel(num_classes=2),
                    "id": tfds.features.Text(),
                }
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(split) for split in NUM_EXAMPLES}

            def _generate_examples(self, split):
                for i in range(NUM_EXAMPLES[split]):
                    yield i, {"image": image_of(split, i), "label": i % 2, "id": str(i)}

        folders = {}
        for file_format in ("array_record", "tfrecord"):
            folders[file_format] = tmp_path_factory.mktemp(file_format)
            builder = TinyShapes(data_dir=folders[file_format])
            config = tfds.download.DownloadConfig(num_shards=2)
            builder.download_and_prepare(file_format=file_format, download_config=config)
    return folders


def test_a_set_is_decoded_once_for_all_threads_and_seeds(prepared, monkeypatch):
    decoded, read_split, at_once = [], data_tfds._read_split, threading.Barrier(2)

    def counted(name, builder, split, shape):
        decoded.append(split)
        return read_split(name, builder, split, shape)

    def read():
        at_once.wait()
        return data_tfds.read("tiny_shapes", prepared["array_record"])

    monkeypatch.setattr(data_tfds, "_read_split", counted)
    monkeypatch.setattr(kept, "_SETTLED", 0.0)
    with tfds_warnings_ignored():
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            first, second = [future.result() for future in [pool.submit(read) for _ in range(2)]]
        parts = [data.load("tfds:tiny_shapes", seed=seed, data_dir=prepared["array_record"]).train.inputs for seed in (0, 1)]
    assert decoded == ["train", "test"]
    assert first.train.images is second.train.images
    parts[0][:] = 0  # a copy, of which nothing that is kept knows
    assert parts[1].any()
    assert first.train.images.any()


@pytest.mark.slow
def test_a_prepared_set_has_its_own_images_labels_and_splits(prepared):
    with tfds_warnings_ignored():
        found = data.load("tfds:tiny_shapes", data_dir=prepared["array_record"])
    assert (found.input_shape, found.num_classes) == ((6, 4, 3), 2)
    assert [len(part.labels) for part in (found.train, found.validation, found.test)] == [36, 4, 8]
    for part, split in ((found.train, "train"), (found.validation, "train"), (found.test, "test")):
        for image, label in zip(*part, strict=True):
            i = round(float(image[0, 0, 0]) * 255) // 5
            assert np.array_equal(image, image_of(split, i) / np.float32(255))
            assert label == i % 2
    assert len({image.tobytes() for part in (found.train, found.validation) for image in part.inputs}) == 40


@pytest.mark.slow
def test_both_file_formats_give_the_same_bits(prepared):
    with tfds_warnings_ignored():
        a, b = (data.load("tfds:tiny_shapes@2", data_dir=folder) for folder in prepared.values())
    for part in ("train", "validation", "test"):
        assert np.array_equal(getattr(a, part).inputs, getattr(b, part).inputs)
        assert np.array_equal(getattr(a, part).labels, getattr(b, part).labels)


def test_prepared_sets_are_read_without_tensorflow_and_without_jax(prepared):
    folders = {file_format: str(folder) for file_format, folder in prepared.items()}
    code = f"""
import importlib.machinery, sys
finder = importlib.machinery.PathFinder
find_spec = finder.find_spec
finder.find_spec = lambda name, *rest: None if name.split(".")[0] == "tensorflow" else find_spec(name, *rest)
from jaxbp import data
print(len(data.load("tfds:tiny_shapes", data_dir={folders["array_record"]!r}).train.labels), "jax" in sys.modules)
for name, folder in (("cifar10", {folders["array_record"]!r}), ("tiny_shapes", {folders["tfrecord"]!r})):
    try:
        data.load("tfds:" + name, data_dir=folder)
    except data.DataError as error:
        print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    read, unprepared, other_format = run.stdout.strip().splitlines()
    assert read == "36 False"
    assert unprepared.startswith(f"tfds:cifar10 is not prepared in {folders['array_record']}")
    assert other_format.startswith(f"Reading tfds:tiny_shapes in {folders['tfrecord']}")
    assert "pip install tensorflow" in unprepared
    assert "pip install tensorflow" in other_format


def test_tensorflow_sees_no_accelerator(prepared):
    with tfds_warnings_ignored():
        import tensorflow as tf

        hidden = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tf.config, "set_visible_devices", lambda devices, kind: hidden.append((devices, kind)))
            data.load("tfds:tiny_shapes", data_dir=prepared["tfrecord"])
    assert {*map(str, hidden)} == {"([], 'GPU')", "([], 'TPU')"}


@pytest.mark.parametrize("size", [-100, 0])
@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_damaged_records_are_refused_by_name(prepared, tmp_path, file_format, size):
    shutil.copytree(prepared[file_format], tmp_path, dirs_exist_ok=True)
    (second,) = tmp_path.glob("tiny_shapes/1.0.0/*-train*-00001-of-00002")
    second.write_bytes(second.read_bytes()[:size])
    with tfds_warnings_ignored(), pytest.raises(DataError, match=rf"tiny_shapes: the train .*{tmp_path}.* is damaged"):
        data.load("tfds:tiny_shapes", data_dir=tmp_path)


def test_a_failed_download_tells_what_to_do(tmp_path, monkeypatch):
    with tfds_warnings_ignored():
        import tensorflow_datasets as tfds

        def no_network(self, **settings):
            raise ConnectionError("no route to host")

        monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", no_network)
        monkeypatch.setattr(data_tfds, "_problem", lambda url: "")
        with pytest.raises(DataError) as caught:
            data.load("tfds:cifar10", data_dir=tmp_path)
    for part in ("tfds:cifar10", "no route to host", f"{tmp_path}/downloads/manual", "prepare it elsewhere"):
        assert part in str(caught.value)


def silent(url):
    """A host that a firewall drops packets to."""
    time.sleep(5)


def refused(url):
    return "a.host: Connection refused"


@pytest.mark.parametrize("problem, told", [(silent, "silent for 0.1 s"), (refused, "a.host: Connection refused")])
@pytest.mark.parametrize("call", [data.load, data.check])
def test_without_a_network_a_set_is_refused_within_seconds(tmp_path, monkeypatch, call, problem, told):
    monkeypatch.setattr(data_tfds, "_problem", problem)
    monkeypatch.setattr(data_tfds, "_PATIENCE", 0.1)
    with tfds_warnings_ignored(), pytest.raises(DataError) as caught:
        call("tfds:fashion_mnist@14", data_dir=tmp_path)
    for part in (
        f"tfds:fashion_mnist is not prepared in {tmp_path}",
        told,
        "dataset-fashion-mnist",
        "file:/usr/share/datasets/fashion-mnist",
    ):
        assert part in str(caught.value)
    for part in ("--data-dir", "train-images-idx3-ubyte.gz", f"{tmp_path}/downloads/manual"):
        assert part in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_files_that_are_there_need_no_network(tmp_path, monkeypatch, prepared):
    monkeypatch.setattr(data_tfds, "_problem", refused)
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        with tfds_warnings_ignored(), pytest.raises(DataError, match="does not answer"):
            data.check("tfds:fashion_mnist", data_dir=tmp_path)
        (manual / f"{name}-ubyte.gz").touch()
    with tfds_warnings_ignored():
        data.check("tfds:fashion_mnist", data_dir=tmp_path)
        data.check("tfds:tiny_shapes", data_dir=prepared["array_record"])
        with pytest.raises(DataError, match="cannot be pooled to 11"):
            data.check("tfds:fashion_mnist@11", data_dir=tmp_path)


def test_an_answer_of_any_kind_is_one(monkeypatch):
    def answer(error):
        def urlopen(request, timeout):
            raise error

        monkeypatch.setattr(data_tfds.urllib.request, "urlopen", urlopen)
        return data_tfds._problem("https://a.host/file")

    assert answer(urllib.error.HTTPError("https://a.host/file", 403, "Forbidden", {}, None)) == ""
    assert answer(urllib.error.URLError(ssl.SSLError("unknown authority"))) == ""  # TFDS may know the authority
    assert answer(urllib.error.URLError(OSError("no route"))) == "a.host: no route"


@pytest.mark.parametrize(
    "name, message",
    [
        ("fashion_mnst", "'fashion_mnst' .*not found.*did you mean fashion_mnist"),
        ("mnist_corrupted/no_such_noise", "'mnist_corrupted/no_such_noise' .*not found"),
        (
            "iris",
            r"tfds:iris is no image-classification set: it needs 'image' and 'label', got \['features', 'label'\]",
        ),
        ("binarized_mnist", r"no image-classification set: .*got \['image'\]"),
        ("food101", r"tfds:food101 has images of shape \(None, None, 3\)"),
    ],
)
def test_unfit_sets_are_refused_before_any_download(name, message, tmp_path):
    with tfds_warnings_ignored(), pytest.raises(DataError, match=message):
        data.load(f"tfds:{name}", data_dir=tmp_path)


@pytest.mark.parametrize(
    "name, shape, num_classes",
    [
        ("cifar10", (32, 32, 3), 10),
        ("cifar100", (32, 32, 3), 100),
        ("mnist", (28, 28, 1), 10),
        ("svhn_cropped", (32, 32, 3), 10),
    ],
)
def test_the_usual_sets_are_image_classification_sets(name, shape, num_classes, tmp_path):
    with tfds_warnings_ignored():
        import tensorflow_datasets as tfds

        builder = tfds.builder(name, data_dir=tmp_path)
        assert data_tfds._image_shape_and_classes(name, builder, tfds) == (shape, num_classes)


def test_two_threads_prepare_a_set_once(tmp_path, monkeypatch):
    prepared, at_once = [], threading.Barrier(2)

    class Builder:
        info = types.SimpleNamespace(splits={})

        def is_prepared(self):
            return bool(prepared)

        def download_and_prepare(self, file_format):
            time.sleep(0.2)
            prepared.append(file_format)

    monkeypatch.setattr(data_tfds, "_built", lambda *_: (Builder(), (8, 8, 1), 10))
    for name in ("_import_tensorflow", "_check_sources"):
        monkeypatch.setattr(data_tfds, name, lambda *_: None)

    def read():
        at_once.wait()
        with contextlib.suppress(DataError):  # it has no train split
            data_tfds.read("some/set:1.0.0", tmp_path / "new")

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(prepared) == 1


# Fashion-MNIST as TFDS prepares it

DEBIAN_FILES = Path("/usr/share/datasets/fashion-mnist")
ORIGINAL_FILES = {  # time stamp in the gzip header, and the SHA-256 that TFDS demands
    "train-images-idx3-ubyte": (1504176606, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
    "train-labels-idx1-ubyte": (1504176606, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
    "t10k-images-idx3-ubyte": (1504176627, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
    "t10k-labels-idx1-ubyte": (1504176627, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
}


def restore_original_files(folder):
    """Debian drops name and time from the gzip headers for reproducible builds; the compressed stream is the original."""
    folder.mkdir(parents=True)
    for name, (seconds, digest) in ORIGINAL_FILES.items():
        stripped = (DEBIAN_FILES / f"{name}.gz").read_bytes()
        header = struct.pack("<4BIBB", 0x1F, 0x8B, 8, 8, seconds, 0, 3) + name.encode() + b"\0"
        original = header + stripped[10:]
        assert hashlib.sha256(original).hexdigest() == digest
        (folder / f"{name}.gz").write_bytes(original)


def images_and_labels(prefix, num_examples):
    images = gzip.decompress((DEBIAN_FILES / f"{prefix}-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((DEBIAN_FILES / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())[8:]
    return {(images[784 * i : 784 * (i + 1)], labels[i]) for i in range(num_examples)}


@pytest.mark.debian
@pytest.mark.skipif(not DEBIAN_FILES.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_fashion_mnist_prepared_by_tfds(tmp_path):
    restore_original_files(tmp_path / "downloads" / "manual")
    with tfds_warnings_ignored():
        found = data.load("tfds:fashion_mnist", data_dir=tmp_path)
    assert (found.input_shape, found.num_classes) == ((28, 28, 1), 10)
    assert np.bincount(found.train.labels).tolist() == [5400] * 10
    assert np.bincount(found.validation.labels).tolist() == [600] * 10
    assert np.bincount(found.test.labels).tolist() == [1000] * 10

    def pairs(*parts):
        bytes_and_labels = [((255 * part.inputs).round().astype(np.uint8), part.labels) for part in parts]
        return {(x.tobytes(), int(y)) for images, labels in bytes_and_labels for x, y in zip(images, labels, strict=True)}

    assert pairs(found.train, found.validation) == images_and_labels("train", 60_000)
    assert pairs(found.test) == images_and_labels("t10k", 10_000)
    assert len(images_and_labels("train", 60_000)) > 59_000  # hardly any occurs twice

    folder = data.load(f"file:{DEBIAN_FILES}")  # the same files without TFDS
    assert pairs(folder.test) == pairs(found.test)
