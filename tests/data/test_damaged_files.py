"""Files and names of any kind give a data set or a DataError, in memory that the file itself bounds."""

import contextlib
import gzip
import io
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxbp import data
from jaxbp.data import files

QUICK = settings(max_examples=40, derandomize=True, deadline=None, database=None)
MAGIC = bytes([0, 0, 8, 3])


def _read(folder, name, content):
    (folder / name).write_bytes(content)
    with contextlib.suppress(data.DataError):
        files.read(folder / name if name.endswith(".npz") else folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


@QUICK
@given(st.one_of(st.binary(max_size=60), st.binary(max_size=40).map(MAGIC.__add__)), st.sampled_from(["", ".gz"]))
def test_idx_files_of_any_bytes(folder, content, ending):
    _read(folder, f"train-images-idx3-ubyte{ending}", gzip.compress(content) if ending and len(content) % 2 else content)


@QUICK
@given(st.integers(0, 800), st.binary(min_size=1, max_size=6), st.binary(max_size=60))
def test_npz_files_of_any_bytes(folder, place, patch, header):
    buffer = io.BytesIO()
    np.savez(buffer, x=np.zeros((6, 4, 4), np.uint8), y=np.arange(6) % 2)
    content = bytearray(buffer.getvalue())
    content[place : place + len(patch)] = patch
    _read(folder, "a.npz", bytes(content))
    with zipfile.ZipFile(folder / "b.npz", "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + header)
        archive.writestr("y.npy", header)
    _read(folder, "b.npz", (folder / "b.npz").read_bytes())


@pytest.mark.slow
@QUICK
@given(st.one_of(st.none(), st.integers(), st.text(max_size=20).map("file:".__add__), st.text(max_size=20)))
def test_names_of_any_kind(name):
    with contextlib.suppress(data.DataError):
        data.check_name(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file:" + "a" * 300 + ".npz", "no path that this system has"),
        ("file:~nobody-here/x.npz", "home folder of nobody"),
        (None, "got None"),
    ],
)
def test_what_is_no_name_is_told(name, message):
    with pytest.raises(data.DataError, match=message):
        data.load(name)


def test_a_share_is_a_number():
    with pytest.raises(ValueError, match="test is a share"):
        data.load("digits", test="0.2")


@pytest.mark.parametrize("shape", [(60, 4, 16, 16), (60, 2, 16, 16), (60, 13, 16, 16), (60, 3, 4, 4), (60, 1, 5, 6)])
def test_channels_first_is_refused(shape, tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(shape, np.uint8), y=np.arange(60) % 3)
    with pytest.raises(data.DataError, match="looks like"):
        data.load(f"file:{tmp_path}/a.npz")


def _member(shape, dtype="u1", content=b""):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + content


@pytest.mark.parametrize(
    ("member", "message"),
    [(_member((10**6, 10**4, 10)), "announces shape"), (_member((1,), "|O", b"x"), "Python objects"), (b"no array", "is damaged")],
)
def test_an_npz_file_holds_what_its_headers_announce(member, message, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in "xy":
            archive.writestr(f"{name}.npy", member)
    with pytest.raises(data.DataError, match=message):
        files.read(tmp_path / "a.npz")


def test_a_gz_file_is_unpacked_no_further_than_its_header(tmp_path):
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(2**24)))
    with pytest.raises(data.DataError, match="starts with 00000000"):
        files.read(tmp_path)


def test_labels_of_other_kinds_and_pictures_are_told(tmp_path):
    x = np.zeros((6, 4, 4), np.uint8)
    for y, message in ((np.eye(3)[np.arange(6) % 3], "argmax"), (np.full(6, 2**40), "no int32 holds")):
        np.savez(tmp_path / "a.npz", x=x, y=y)
        with pytest.raises(data.DataError, match=message):
            files.read(tmp_path / "a.npz")
    (tmp_path / "cat.png").touch()
    with pytest.raises(data.DataError, match="savez"):
        files.read(tmp_path)
