"""The scheduler: devices of workers, errors that are tolerated, what is kept before an error ends the work."""

import queue
import threading
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from jaxbp import lab
from jaxbp.sweep import scheduler


def test_every_worker_has_an_accelerator_and_cpu_workers_share_one(monkeypatch):
    devices = [SimpleNamespace(platform="gpu", number=n) for n in range(2)]
    cpus = [SimpleNamespace(platform="cpu", number=n) for n in range(3)]
    monkeypatch.setattr(jax, "local_devices", lambda backend=None: devices if backend is None else cpus)
    free = scheduler._free_devices(3, on_cpu=True)
    assert [free[False].get().number for _ in range(3)] == [0, 1, 0]
    assert [free[True].get() for _ in range(3)] == cpus[:1] * 3
    assert not scheduler._free_devices(3, on_cpu=False)[True].qsize()
    monkeypatch.setattr(jax, "local_devices", lambda backend=None: cpus)
    free = scheduler._free_devices(2, on_cpu=True)
    assert free[True] is free[False]
    assert [free[True].get() for _ in range(2)] == cpus[:1] * 2


def test_work_runs_on_the_device_of_its_worker():
    last = jax.local_devices()[-1]
    free = queue.SimpleQueue()
    free.put(last)
    result = scheduler._on_free_device(free, lambda: {"device": lab.device(), "array": jnp.ones(2) + 1})
    assert result["device"] == last
    assert result["array"].devices() == {last}
    assert free.get() == last
    assert lab.device() == jax.local_devices()[0]


@pytest.mark.parametrize("num_workers", [1, 3])
def test_tolerated_errors_leave_the_other_pieces(num_workers):
    kept = []

    def compute(name):
        if name == "b":
            raise OSError("no room")
        return name

    pieces = [scheduler.Work(name, lambda name=name: compute(name), kept.append) for name in "abc"]
    errors = scheduler.run(pieces, num_workers=num_workers, tolerated=(OSError,))
    assert {name: str(error) for name, error in errors.items()} == {"b": "no room"}
    assert sorted(kept) == ["a", "c"]


def test_what_is_done_is_kept_before_an_error_ends_the_work():
    kept, ended = [], threading.Barrier(3, timeout=20)

    def fail():
        ended.wait()
        raise OSError("no room")

    def succeed():
        ended.wait()
        return "good"

    def keep_when_both_have_ended(result):
        ended.wait()
        time.sleep(0.2)  # both futures are done by now, so that the scheduler sees them at once
        kept.append(result)

    pieces = [
        scheduler.Work("first", lambda: "first", keep_when_both_have_ended),
        scheduler.Work("bad", fail, kept.append),
        scheduler.Work("good", succeed, kept.append),
        scheduler.Work("later", lambda: "later", kept.append, group="later"),
    ]
    with pytest.raises(OSError, match="no room"):
        scheduler.run(pieces, num_workers=3)
    assert kept == ["first", "good"]


def test_a_group_begins_when_the_one_before_is_kept():
    kept = []
    pieces = [
        scheduler.Work(name, lambda: list(kept), lambda seen, name=name: kept.append((name, len(seen))), name[0])
        for name in ["a1", "a2", "b1"]
    ]
    scheduler.run(pieces, num_workers=2)
    assert kept[-1] == ("b1", 2)
