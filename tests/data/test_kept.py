import os
import threading
import time

import numpy as np
import pytest

from jaxbp.data import DataError, kept, load
from jaxbp.data.files import RawData, RawSplit
from jaxbp.runtime.fingerprint import fingerprint


def of_size(num_bytes):
    return RawData(RawSplit(np.zeros((1, num_bytes, 1, 1), np.uint8), np.zeros(1, np.int32)), None, 2)


def settled(path, seconds=1.0):
    os.utime(path, (seconds, seconds))
    return path


@pytest.fixture
def counted():
    calls = []

    def read():
        calls.append(1)
        time.sleep(0.02)
        return of_size(10)

    read.calls = calls
    return read


@pytest.mark.parametrize("folder", [False, True])
def test_a_set_is_read_again_once_a_file_has_changed(tmp_path, counted, folder):
    file = tmp_path / "set" / "a" if folder else tmp_path / "a"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"1")
    settled(file)
    path = file.parent if folder else file
    first = kept.read_once(path, counted)
    assert kept.read_once(str(path), counted) is first
    settled(file, 2.0)
    assert kept.read_once(path, counted) is not first
    file.write_bytes(b"12")
    settled(file, 2.0)
    kept.read_once(path, counted)
    assert len(counted.calls) == 3
    if folder:
        settled(path / "a").rename(path / "b")
        kept.read_once(path, counted)
        assert len(counted.calls) == 4


def test_what_has_just_changed_or_cannot_be_looked_at_is_read_every_time(tmp_path, counted):
    (tmp_path / "new").write_bytes(b"1")
    for path in (tmp_path / "new", tmp_path / "missing"):
        assert kept.read_once(path, counted) is not kept.read_once(path, counted)
    assert len(counted.calls) == 4


def test_what_is_shared_is_read_only(tmp_path, counted):
    (tmp_path / "a").write_bytes(b"1")
    images, labels = kept.read_once(settled(tmp_path / "a"), counted).train
    for array in (images, labels):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_the_oldest_sets_are_forgotten_where_many_are_large(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "_MOST_BYTES", 100)
    sizes = []
    for number, size in enumerate((60, 30, 40, 200)):
        (tmp_path / str(number)).write_bytes(b"1")
        kept.read_once(settled(tmp_path / str(number)), lambda size=size: of_size(size))
        sizes.append([raw.train.images.nbytes for raw in kept._sets().values()])
    assert sizes == [[60], [60, 30], [30, 40], [200]]


def test_threads_that_ask_at_once_wait_for_the_first(tmp_path, counted):
    (tmp_path / "a").write_bytes(b"1")
    settled(tmp_path / "a")
    at_once, found = threading.Barrier(4), []

    def ask():
        at_once.wait()
        found.append(kept.read_once(tmp_path / "a", counted))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(counted.calls) == 1
    assert len({id(raw) for raw in found}) == 1


def test_a_file_that_fails_is_not_kept(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(b"no archive")
    settled(path)
    with pytest.raises(DataError, match=r"a\.npz"):
        load(f"file:{path}")
    np.savez(path, x=np.arange(6 * 16, dtype=np.uint8).reshape(6, 4, 4), y=[0, 1, 2] * 2)
    settled(path)
    options = {"validation": 0, "test": 0.5}
    before = fingerprint(load)
    first, second = (load(f"file:{path}", **options) for _ in range(2))
    assert fingerprint(load) == before  # what is in memory is no part of the code
    assert np.array_equal(first.train.inputs, second.train.inputs)
    assert len(kept._sets()) == 1
