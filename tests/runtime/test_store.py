import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time

import jax
import numpy as np
import pytest

from jaxbp.runtime import jax_setup
from jaxbp.runtime.store import Store, StoreError

SETTINGS = {"seeds": 3, "cases": ("a", "b")}


def piece_file(folder):
    (path,) = (folder / "pieces").iterdir()
    return path


def test_a_piece_comes_back_as_it_was(tmp_path):
    arrays = {"loss": np.array([0.1, np.nan], np.float32), "status": "proven", "count": 3}
    name = "mnist5k@7, MLP 4; train; bias U(-10, 10)/../x"
    with Store(tmp_path, SETTINGS) as store:
        assert name not in store
        store.put(name, arrays)
        assert name in store
    with Store(tmp_path, SETTINGS) as store:
        piece = store.get(name)
    assert piece["loss"].dtype == np.float32
    np.testing.assert_array_equal(piece["loss"], arrays["loss"])
    assert (str(piece["status"]), int(piece["count"])) == ("proven", 3)
    assert piece_file(tmp_path).parent == tmp_path / "pieces"  # a name is no path


def test_an_unknown_piece_is_a_key_error(tmp_path):
    with Store(tmp_path, SETTINGS) as store, pytest.raises(KeyError, match="no piece 'x'"):
        store.get("x")


def test_other_settings_are_refused_with_the_difference(tmp_path):
    Store(tmp_path, SETTINGS).close()
    Store(tmp_path, {"seeds": 3, "cases": ["a", "b"]}).close()  # the same once written as JSON
    with pytest.raises(StoreError, match=r"seeds: 3 there, 5 now\n.*name another folder"):
        Store(tmp_path, {**SETTINGS, "seeds": 5})
    with pytest.raises(StoreError, match="width: not set there, 4 now"):
        Store(tmp_path, {**SETTINGS, "width": 4})


def test_numbers_that_are_equal_but_not_the_same_are_other_settings(tmp_path):
    Store(tmp_path, {"rate": 1, "flag": True}).close()
    with pytest.raises(StoreError, match=r"flag: True there, 1 now\n  rate: 1 there, 1.0 now"):
        Store(tmp_path, {"rate": 1.0, "flag": 1})


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def test_provenance_does_not_identify_a_run_and_every_start_is_recorded(tmp_path):
    starts = [{"started": day, "git_commit": commit} for day, commit in (("monday", "a"), ("tuesday", "b"), ("friday", None))]
    for number, provenance in enumerate(starts, 1):
        with Store(tmp_path, SETTINGS, provenance) as store:
            assert config_of(tmp_path)["starts"] == starts[:number]  # on disk before any work
            store.add_metadata(wall_seconds=4.5 * number)
    settings = {"seeds": 3, "cases": ["a", "b"]}
    assert config_of(tmp_path) == {**starts[0], "settings": settings, "starts": starts, "wall_seconds": 13.5}


def test_a_refused_start_is_not_recorded(tmp_path):
    with Store(tmp_path, SETTINGS, {"started": "monday"}):
        for settings in (SETTINGS, {"seeds": 4}):
            with pytest.raises(StoreError):
                Store(tmp_path, settings, {"started": "tuesday"})
    with pytest.raises(StoreError, match="seeds"):
        Store(tmp_path, {"seeds": 4}, {"started": "friday"})
    assert config_of(tmp_path)["starts"] == [{"started": "monday"}]


def test_one_of_several_processes_records_the_start(tmp_path):
    with Store(tmp_path, SETTINGS, {"host": "a"}), Store(tmp_path, SETTINGS, {"host": "b"}, process=1):
        pass
    assert config_of(tmp_path)["starts"] == [{"host": "a"}]


def test_provenance_names_what_a_run_needs_to_be_repeated():
    facts = jax_setup.provenance(["cpu"])
    assert set(facts) == {"started", "command", "python", "packages", "devices", "git_commit", "host", "machine"}
    assert facts["packages"]["jax"] == jax.__version__
    assert json.loads(json.dumps(facts)) == facts


def test_a_second_writer_is_refused_at_once_until_the_first_ends(tmp_path):
    with Store(tmp_path, SETTINGS):
        began = time.monotonic()
        with pytest.raises(StoreError, match="in use by another run"):
            Store(tmp_path, SETTINGS)
        assert time.monotonic() - began < 1
        code = f"from jaxbp.runtime.store import Store; Store({str(tmp_path)!r}, {SETTINGS!r})"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "in use by another run" in other.stderr
    Store(tmp_path, SETTINGS).close()


def test_any_thread_may_close_a_store(tmp_path):
    store = Store(tmp_path, SETTINGS)
    thread = threading.Thread(target=store.close)
    thread.start()
    thread.join()
    Store(tmp_path, SETTINGS).close()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, number):
    """A file as a lock, filelock's own way out, would outlive a killed process."""

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(StoreError, match=r"has no locks .*name another folder"):
        Store(tmp_path, SETTINGS)


@pytest.mark.parametrize("damage", ["truncate", "empty", "flip", "garbage", "pickle"])
def test_damage_is_told_by_file_and_the_rest_is_kept(tmp_path, damage):
    with Store(tmp_path, SETTINGS) as store:
        store.put("bad", {"loss": np.arange(1000.0)})
        path = piece_file(tmp_path)
        store.put("good", {"loss": np.ones(2)})
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 255
        unpickled = tmp_path / "unpickled"
        evil = pickle.dumps(Evil(str(unpickled)))
        path.write_bytes({"truncate": whole[:-100], "empty": b"", "flip": bytes(flipped), "garbage": b"x" * 99, "pickle": evil}[damage])
        with pytest.raises(StoreError, match=r"bad\.npz is damaged .* delete this file"):
            store.get("bad")
        assert not unpickled.exists()
        np.testing.assert_array_equal(store.get("good")["loss"], 1.0)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_object_arrays_are_not_written(tmp_path):
    with Store(tmp_path, SETTINGS) as store, pytest.raises(ValueError, match="allow_pickle"):
        store.put("x", {"object": np.array([{}], object)})


def test_a_damaged_config_is_told(tmp_path):
    Store(tmp_path, SETTINGS).close()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(StoreError, match=r"config\.json is damaged"):
        Store(tmp_path, SETTINGS)


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write to .*file.* name another folder"):
        Store(tmp_path / "file" / "run", SETTINGS)


def test_a_full_disk_is_told_and_loses_nothing(tmp_path):
    script = textwrap.dedent(f"""
        import resource, signal
        import numpy as np
        from jaxbp.runtime.store import Store, StoreError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with Store({str(tmp_path)!r}, {{}}) as store:
            store.put("small", {{"a": np.ones(10)}})
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
            try:
                store.put("large", {{"a": np.ones(10_000)}})
            except StoreError as error:
                assert "finished before is safe" in str(error), error
            else:
                raise SystemExit("no error")
            assert "large" not in store
            assert store.get("small")["a"].sum() == 10
    """)
    subprocess.run([sys.executable, "-c", script], check=True)
    assert [path.name for path in (tmp_path / "pieces").iterdir()] == ["small.npz"]


def test_a_kill_between_pieces_leaves_whole_pieces_and_no_lock(tmp_path):
    script = textwrap.dedent(f"""
        import numpy as np
        from jaxbp.runtime.store import Store
        store = Store({str(tmp_path)!r}, {{}})
        for i in range(10**6):
            store.put(str(i), {{"a": np.full(20_000, i)}})
            print(i, flush=True)
    """)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        said = [int(process.stdout.readline()) for _ in range(20)]
        process.send_signal(signal.SIGKILL)
    with Store(tmp_path, {}) as store:
        for i in said:
            assert (store.get(str(i))["a"] == i).all()
