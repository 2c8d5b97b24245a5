"""`sweep.run`: grids, plans, folders, resuming, retiring, checkpoints and what may go wrong with them."""

import itertools
import json
import os
import pickle
import shutil
import signal
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxbp import sweep
from jaxbp.runtime import progress
from jaxbp.runtime.store import StoreError
from jaxbp.sweep import _checkpoints, _memory, runs, scheduler

DATA = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)


def descend(key, data, *, rate, width):
    """A little descent, of which the setting decides a number and a shape."""
    weights = jax.random.normal(key, (3, width))
    for _ in range(3):
        weights -= rate * jax.grad(lambda w: jnp.mean((data @ w) ** 2))(weights)
    return {"loss": jnp.mean((data @ weights) ** 2), "params": {"w": weights}, "key": key}


GRID = {"rate": [0.1, 0.5], "width": [2, 3]}
PLAIN = {  # calls outside the module under test
    (rate, width, seed): jax.tree.map(np.asarray, descend(jax.random.key(seed), DATA, rate=rate, width=width)["params"])["w"]
    for rate in GRID["rate"]
    for width in GRID["width"]
    for seed in range(3)
}


def init_fn(key, data, *, rate):
    return {"w": jax.random.normal(key, (3,)), "key": key}


def segment_fn(state, index, data, *, rate):
    noise = 0.01 * jax.random.normal(jax.random.fold_in(state["key"], index), (3,))
    w = state["w"] - rate * jax.grad(lambda w: jnp.mean((data @ w) ** 2))(state["w"]) + noise
    return {"w": w, "key": state["key"]}, {"loss": jnp.mean((data @ w) ** 2), "index": index}


LONG = sweep.Segments(init_fn, segment_fn, 6, finish_fn=lambda state, data, *, rate: {"w": state["w"]})


def by_hand(rate, seed, num_segments=6):
    state = init_fn(jax.random.key(seed), DATA, rate=rate)
    losses = []
    for index in range(num_segments):
        state, measures = segment_fn(state, index, DATA, rate=rate)
        losses.append(float(measures["loss"]))
    return np.array(losses), np.asarray(state["w"])


@pytest.mark.first_cases(3)
@pytest.mark.parametrize("plan", sweep.PLANS)
def test_every_plan_gives_what_plain_calls_give(plan):
    found = sweep.run(descend, GRID, seeds=3, shared=[DATA], plan=plan)
    assert len(found) == 12
    for record in found:
        expected = PLAIN[record.setting["rate"], record.setting["width"], record.seed]
        np.testing.assert_allclose(record.values["params/w"], expected, rtol=1e-5)
    assert [(r.setting["rate"], r.setting["width"], r.seed) for r in found] == list(PLAIN)


def test_results_by_name_setting_and_seed():
    found = sweep.run(descend, GRID, seeds=[5, 2], shared=[DATA])
    assert set(found[0].values) == {"loss", "params/w", "key"}
    assert found.stack("loss").shape == (4, 2)
    assert found.where(width=3).stack("params/w").shape == (2, 2, 3, 3)
    with pytest.raises(ValueError, match="params/w must have one shape"):
        found.stack("params/w")
    with pytest.raises(KeyError, match="a run has key, loss, params/w, got 'los'"):
        found.stack("los")
    with pytest.raises(KeyError, match="settings have"):
        found.where(depth=3)
    frame = found.to_dataframe()
    assert list(frame.columns) == ["rate", "width", "seed", "status", "loss"]
    assert frame.seed.tolist() == [5, 2] * 4
    np.testing.assert_array_equal(found[1].values["key"], jax.random.key_data(jax.random.key(2)))


def test_numbers_share_a_program_and_shapes_do_not():
    traces = []

    def traced(key, *, rate, width):
        traces.append(width)
        return rate * jax.random.normal(key, (width,)).sum()

    sweep.run(traced, {"rate": [0.1, 0.2, 0.3], "width": [1, 2]}, seeds=5)
    assert sorted(set(traces)) == [1, 2]
    first = len(traces)
    sweep.run(traced, {"rate": [0.4, 0.5, 0.6], "width": [1, 2]}, seeds=5)
    assert len(traces) == first <= 8  # looking at it, compiling it, and loops that look twice


@pytest.mark.first_cases(1)
@pytest.mark.parametrize("plan", ["auto", "vmap", "shard-vmap"])
def test_segments_give_what_plain_calls_give(plan):
    found = sweep.run(LONG, {"rate": [0.1, 0.3]}, seeds=3, shared=[DATA], plan=plan)
    for record in found:
        losses, weights = by_hand(record.setting["rate"], record.seed)
        np.testing.assert_allclose(record.values["loss"], losses, rtol=1e-4)
        np.testing.assert_allclose(record.values["w"], weights, rtol=1e-4)
        assert record.values["index"].tolist() == list(range(6))
        assert record.values["segments"] == 6


@pytest.mark.parametrize("plan", ["auto", "vmap"])
@pytest.mark.first_cases(1)
def test_a_run_that_is_not_finite_is_recorded_and_rests_and_the_others_go_on(tmp_path, plan):
    grid = {"rate": [0.1, 1e20]}
    found = sweep.run(LONG, grid, seeds=2, shared=[DATA], plan=plan, out=tmp_path)
    assert [record.status for record in found] == ["finished"] * 2 + ["diverged"] * 2
    fine, bad = found.where(rate=0.1), found.where(rate=1e20)
    for record in fine:
        np.testing.assert_allclose(record.values["loss"], by_hand(0.1, record.seed)[0], rtol=1e-4)
    assert [record.setting for record in found.diverged] == [{"rate": 1e20}] * 2
    for record in bad:
        done = int(record.values["segments"])
        assert 1 <= done < 6
        assert np.isfinite(record.values["loss"][: done - 1]).all()
        assert not np.isfinite(record.values["loss"][done - 1])
        assert np.isnan(record.values["loss"][done:]).all()  # it rested
    status = progress.read(tmp_path)
    assert (len(status.done), len(status.diverged), status.state) == (2, 2, "finished")
    again = sweep.run(LONG, grid, seeds=2, shared=[DATA], plan=plan, out=tmp_path)
    assert [record.status for record in again] == [record.status for record in found]
    assert len(progress.read(tmp_path).diverged) == 2


def test_what_counts_as_diverged_can_be_said():
    fn = lambda key, *, rate: {"loss": rate}  # noqa: E731
    found = sweep.run(fn, {"rate": [0.5, 2.0, np.nan]}, seeds=1, diverged_fn=lambda values: not values["loss"] < 1)
    assert [record.status for record in found] == ["finished", "diverged", "diverged"]


def test_a_folder_holds_every_run_and_a_second_call_computes_nothing(tmp_path):
    calls = tmp_path.with_name("calls.txt")  # a list in the closure would make it another function at every call

    def count():
        with calls.open("a") as file:
            file.write("x")

    def counted(key, *, rate):
        jax.debug.callback(count)
        return {"draw": rate * jax.random.normal(key)}

    grid = {"rate": [1.0, 2.0]}
    first = sweep.run(counted, grid, seeds=3, out=tmp_path)
    assert calls.stat().st_size == 6
    second = sweep.run(counted, grid, seeds=3, out=tmp_path)
    assert calls.stat().st_size == 6
    np.testing.assert_array_equal(first.stack("draw"), second.stack("draw"))
    loaded = sweep.load(tmp_path)
    assert [(r.setting, r.seed) for r in loaded] == [(r.setting, r.seed) for r in first]
    np.testing.assert_array_equal(loaded.stack("draw"), first.stack("draw"))
    import pandas as pd

    table = pd.read_parquet(tmp_path / "results.parquet")
    assert table.draw.tolist() == first.stack("draw").ravel().tolist()
    (tmp_path / "pieces" / "setting0001-seed1.npz").unlink()
    assert len(sweep.load(tmp_path)) == 5
    third = sweep.run(counted, grid, seeds=3, out=tmp_path)
    assert calls.stat().st_size == 7  # that one alone
    np.testing.assert_array_equal(third.stack("draw"), first.stack("draw"))


def test_runs_that_go_at_once_are_computed_again_in_the_same_company(tmp_path):
    fn = lambda key, *, rate: {"draw": rate * jax.random.normal(key, (64,))}  # noqa: E731
    first = sweep.run(fn, {"rate": [1.0, 3.0]}, seeds=5, out=tmp_path, plan="vmap", memory=8000)
    config = json.loads((tmp_path / "config.json").read_text())
    (plan,) = config["plans"].values()
    assert plan["within"] == "vmap"
    assert 1 < plan["capacity"] < 10  # the bound made several chunks of it
    (tmp_path / "pieces" / "setting0000-seed3.npz").unlink()
    second = sweep.run(fn, {"rate": [1.0, 3.0]}, seeds=5, out=tmp_path, plan="vmap")  # with memory for all at once
    assert json.loads((tmp_path / "config.json").read_text())["plans"] == config["plans"]
    np.testing.assert_array_equal(first.stack("draw"), second.stack("draw"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"grid": {"rate": [0.1, 0.3]}}, r"grid\.rate: \[0\.1, 0\.2\] there, \[0\.1, 0\.3\] now"),
        ({"seeds": 3}, r"seeds: \[0, 1\] there, \[0, 1, 2\] now"),
        ({"shared": [DATA + 1]}, r"shared: \['float32\[12, 3\] \w+'\] there, \['float32\[12, 3\] \w+'\] now"),
        ({"fn": sweep.Segments(init_fn, segment_fn, 5)}, "segments: 6 there, 5 now"),
        ({"identity": {"data": "other"}}, r"identity\.data: not set there, other now"),
    ],
)
def test_another_sweep_is_refused_with_the_difference(tmp_path, change, told):
    arguments = {"fn": LONG, "grid": {"rate": [0.1, 0.2]}, "seeds": 2, "shared": [DATA], "out": tmp_path}
    sweep.run(**arguments)
    with pytest.raises(StoreError, match=told):
        sweep.run(**(arguments | change))


class Stop(Exception):
    """An end in the middle."""


def stopped_at(monkeypatch, folder, segment, signum=signal.SIGTERM, **options):
    """Run `LONG` until the first chunk has done ``segment`` segments, then send a signal to this process."""
    seen = []
    real = runs.Recorder.advance

    def advance(self, names, share):
        real(self, names, share)
        seen.append(share)
        if len(seen) == segment:
            os.kill(os.getpid(), signum)
            threading.Event().wait(0.3)  # the listener's turn

    monkeypatch.setattr(runs.Recorder, "advance", advance)
    with pytest.raises(sweep.Terminated if signum == signal.SIGTERM else KeyboardInterrupt):
        sweep.run(LONG, {"rate": [0.1, 0.3]}, seeds=2, shared=[DATA], out=folder, **options)
    monkeypatch.undo()
    return seen


def resumed(monkeypatch, folder, **options):
    seen = []
    real = runs.Recorder.advance
    monkeypatch.setattr(runs.Recorder, "advance", lambda self, names, share: (real(self, names, share), seen.append(share)))
    found = sweep.run(LONG, {"rate": [0.1, 0.3]}, seeds=2, shared=[DATA], out=folder, **options)
    return found, seen


@pytest.mark.first_cases(2)
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("plan", ["vmap", "shard-map"])
def test_a_stopped_run_is_saved_and_goes_on_bit_for_bit(tmp_path, monkeypatch, signum, plan):
    whole = sweep.run(LONG, {"rate": [0.1, 0.3]}, seeds=2, shared=[DATA], plan=plan)
    stopped_at(monkeypatch, tmp_path, 4, signum, plan=plan)
    assert progress.read(tmp_path).state == "stopped"
    assert list((tmp_path / "checkpoints").glob("*/4/digests.json"))
    found, seen = resumed(monkeypatch, tmp_path, plan=plan)
    assert seen[0] == pytest.approx(5 / 6)  # four segments were not done again
    for name in ("loss", "w", "index", "segments"):
        np.testing.assert_array_equal(found.stack(name), whole.stack(name))
    assert not (tmp_path / "checkpoints").exists()


def test_checkpoints_come_by_the_clock_and_the_last_are_kept(tmp_path, monkeypatch):
    saved = []
    real = _checkpoints.Checkpoints.save

    def save(self, step, tree):
        real(self, step, tree)
        saved.append(
            (
                step,
                sorted(int(p.name) for p in self.folder.iterdir() if p.is_dir()),
                len(list(self.folder.glob("*/digests.json"))),
            )
        )

    monkeypatch.setattr(_checkpoints.Checkpoints, "save", save)
    sweep.run(LONG, {"rate": [0.1]}, seeds=2, shared=[DATA], out=tmp_path / "often", checkpoint_every=0, keep=2)
    assert [step for step, _, _ in saved] == [1, 2, 3, 4, 5]  # not at the end, where results are written
    assert saved[-1] == (5, [4, 5], 2)
    saved.clear()
    sweep.run(LONG, {"rate": [0.1]}, seeds=2, shared=[DATA], out=tmp_path / "seldom", checkpoint_every=3600)
    assert saved == []


def test_the_clock_of_checkpoints_starts_anew_with_each(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(_checkpoints.Checkpoints, "save", lambda self, step, tree: saved.append(step))
    ticks = types.SimpleNamespace(monotonic=itertools.count().__next__)  # one second a look: two or three a segment
    monkeypatch.setattr("jaxbp.sweep._chunk.time", ticks)
    sweep.run(LONG, {"rate": [0.1]}, seeds=1, shared=[DATA], out=tmp_path, checkpoint_every=5)
    assert saved == [3]  # the segments end at 2, 4, 6, and 9, 11, 13 seconds; it is saved at 6, and not at the end


@pytest.mark.parametrize(
    "damage", ["flip", "missing", *(pytest.param(damage, marks=pytest.mark.slow) for damage in ("truncate", "digests", "pickle", "list"))]
)
@pytest.mark.first_cases(1)
def test_a_damaged_checkpoint_is_told_and_nothing_earlier_is_lost(tmp_path, monkeypatch, damage):
    stopped_at(monkeypatch, tmp_path, 4, plan="vmap", checkpoint_every=0, keep=2)
    (folder,) = (tmp_path / "checkpoints").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["3", "4"]
    digests = folder / "4" / "digests.json"
    largest = max((p for p in (folder / "4").rglob("*") if p.is_file() and p != digests), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    unpickled = tmp_path / "unpickled"
    evil = pickle.dumps(Evil(str(unpickled)))
    if damage == "missing":
        largest.unlink()
    elif damage == "digests":
        digests.write_text("{")
    elif damage == "list":
        digests.write_text("[3]")
    else:
        largest.write_bytes({"flip": bytes(content), "truncate": bytes(content[:-1]), "pickle": evil}[damage])
    with pytest.raises(StoreError, match=r"checkpoint .*4.* damaged .*: delete it .* goes on from the one before"):
        resumed(monkeypatch, tmp_path, plan="vmap")
    assert not unpickled.exists()
    shutil.rmtree(folder / "4")
    monkeypatch.undo()
    found, seen = resumed(monkeypatch, tmp_path, plan="vmap")
    assert seen[0] == pytest.approx(4 / 6)
    np.testing.assert_array_equal(
        found.stack("loss"), sweep.run(LONG, {"rate": [0.1, 0.3]}, seeds=2, shared=[DATA], plan="vmap").stack("loss")
    )


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.slow
def test_checkpoints_of_two_plans_do_not_meet(tmp_path, monkeypatch):
    stopped_at(monkeypatch, tmp_path, 4, plan="vmap")
    seen = stopped_at(monkeypatch, tmp_path, 3, plan="shard-map")
    assert seen[0] == pytest.approx(1 / 6)
    seen = stopped_at(monkeypatch, tmp_path, 1, plan="shard-map")
    assert seen[0] == pytest.approx(4 / 6)
    found, seen = resumed(monkeypatch, tmp_path, plan="vmap")
    assert seen[0] == pytest.approx(5 / 6)
    for record in found:
        np.testing.assert_allclose(record.values["loss"], by_hand(record.setting["rate"], record.seed)[0], rtol=1e-4)


def test_a_damaged_result_is_told(tmp_path):
    sweep.run(LONG, {"rate": [0.1]}, seeds=2, shared=[DATA], out=tmp_path)
    (tmp_path / "pieces" / "setting0000-seed1.npz").write_bytes(b"no archive")
    for call in (
        lambda: sweep.load(tmp_path),
        lambda: sweep.run(LONG, {"rate": [0.1]}, seeds=2, shared=[DATA], out=tmp_path),
    ):
        with pytest.raises(StoreError, match=r"seed1\.npz is damaged .* delete this file"):
            call()


def test_two_sweeps_do_not_share_a_folder(tmp_path):
    inside = []

    def nosy(key):
        def look():
            with pytest.raises(StoreError, match="in use by another run"):
                sweep.run(lambda key: key, seeds=1, out=tmp_path)
            inside.append(1)

        jax.debug.callback(look)
        return jax.random.normal(key)

    sweep.run(nosy, seeds=1, out=tmp_path, plan="map")
    assert inside == [1]


def test_what_the_device_refuses_is_told_and_the_rest_is_done(tmp_path):
    def picky(key, *, width):
        def look(x):
            if x.shape[0] == 3:
                raise RuntimeError("out of something")

        draw = jax.random.normal(key, (width,))
        jax.debug.callback(look, draw)
        return draw.sum()

    with pytest.raises(sweep.SweepError, match=r"the others are done, and kept:\n  width=3: .*"):
        sweep.run(picky, {"width": [2, 3, 4]}, seeds=2, out=tmp_path, plan="map")
    status = progress.read(tmp_path)
    assert (len(status.done), len(status.failed)) == (4, 2)
    assert len(sweep.load(tmp_path)) == 4


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"plan": "fastest"}, ValueError, "plan must be one of auto"),
        ({"seeds": []}, ValueError, "seeds must be different numbers"),
        ({"seeds": [1, 1]}, ValueError, "seeds must be different numbers"),
        ({"seeds": [-1]}, ValueError, "seeds must be different numbers"),
        ({"seeds": True}, ValueError, "seeds must be a number of them, or a list"),
        ({"seeds": 0}, ValueError, "seeds must be a number from 1"),
        ({"seeds": 10**11}, ValueError, "seeds must be a number from 1"),
        ({"keep": 0}, ValueError, "keep must be a whole number from 1"),
        ({"keep": 1.5}, ValueError, "keep must be a whole number from 1"),
        ({"checkpoint_every": float("nan")}, ValueError, "checkpoint_every 0 or more"),
        ({"memory": 0}, ValueError, "memory must be a number of bytes, got 0"),
        ({"memory": "1G"}, ValueError, "memory must be a number of bytes, got '1G'"),
        ({"shared": DATA}, TypeError, "shared must be a list .* got ndarray: put brackets around it"),
        ({"mesh": jax.sharding.Mesh(np.array(jax.devices()), ("x",))}, ValueError, "mesh must be one of sweep.make_mesh"),
        ({"grid": {"seed": [1.0]}}, ValueError, "must not be called 'seed'"),
        ({"grid": {"rate": [{}]}}, ValueError, "settings must be numbers, strings"),
        ({"grid": {"rate": 0.1}}, ValueError, "rate must have a list of values"),
        ({"grid": {"rate": []}}, ValueError, "rate must have a list of values"),
        ({"grid": {"rate": "ab"}}, ValueError, "rate must have a list of values"),
        ({"grid": []}, ValueError, "one setting at least"),
        ({"grid": [{"rate": 0.1}, {"mu": 0.1}]}, ValueError, "the same names"),
        ({"grid": [{"rate": 0.1}, {"rate": 0.1}]}, ValueError, "settings must differ, got twice: rate=0.1"),
        ({"grid": {"rate": [object()]}}, ValueError, "settings must be numbers, strings"),
        ({"grid": {"rate": [np.ones(2), np.ones(3)]}}, ValueError, "values of rate must have one shape"),
        ({"static": ["width"]}, ValueError, r"static must name some of \['rate'\]"),
        ({"grid": {"rte": [0.1]}}, TypeError, "unexpected keyword argument 'rte'"),
    ],
)
def test_misuse(change, error, told):
    with pytest.raises(error, match=told):
        sweep.run(**({"fn": LONG, "grid": {"rate": [0.1]}, "seeds": 2, "shared": [DATA]} | change))


@pytest.mark.parametrize(
    ("segment", "told"),
    [
        (lambda state, index, *, rate: (state, 3), "measures a dictionary, got .*int32"),
        (lambda state, index, *, rate: ((state, state), {}), "a state like the one it got"),
        (lambda state, index, *, rate: (jnp.ones(2), {}), r"was float32\[\], became float32\[2\]"),
        (lambda state, index, *, rate: (1, {}), r"was float32\[\], became int32\[\]"),
    ],
)
def test_a_segment_that_cannot_go_on_is_told_with_the_setting(segment, told):
    walk = sweep.Segments(lambda key, *, rate: jax.random.normal(key), segment, 2)
    with pytest.raises(TypeError, match=told) as caught:
        sweep.run(walk, {"rate": [1.0]}, seeds=1)
    assert "while tracing the function of the sweep" in "".join(caught.value.__notes__)


def test_a_run_has_a_segment_at_least():
    with pytest.raises(ValueError, match="num_segments must be at least 1, got 0"):
        sweep.Segments(init_fn, segment_fn, 0)


def test_measures_and_final_results_have_different_names():
    walk = sweep.Segments(lambda key: jnp.float32(0), lambda state, index: (state, {"a": state}), 2, finish_fn=lambda state: {"a": state})
    with pytest.raises(ValueError, match=r"must not have the names of measures .* got \['a'\]"):
        sweep.run(walk, seeds=1)


def test_floats_can_be_static_and_arrays_are_traced():
    seen = []

    def fn(key, *, rate, steps, name):
        seen.append((type(rate).__name__, isinstance(steps, jax.Array), name))
        return rate * jnp.float32(steps)

    found = sweep.run(fn, {"rate": [0.5, 1.5], "steps": np.array([1, 2]), "name": [None]}, seeds=1, static=["rate"])
    assert found.stack("value").ravel().tolist() == [0.5, 1.0, 1.5, 3.0]
    assert set(seen) == {("float", True, None)}


@pytest.mark.parametrize(("fixed", "each", "bound"), [(0, 10, 100), (40, 10, 100), (95, 10, 100), (200, 10, 100), (5, 1, 10**9)])
def test_the_largest_number_that_fits_is_found_in_few_compilations(fixed, each, bound):
    compiled = []

    class Program:
        def __init__(self, number):
            self.number = number

        def memory_analysis(self):
            sizes = {"argument": fixed, "output": each * self.number, "temp": 7, "alias": 7}
            return type("Stats", (), {f"{k}_size_in_bytes": v for k, v in sizes.items()})

    def compile_fn(number):
        compiled.append(number)
        return [Program(number // 2), Program(number)]  # the most demanding counts

    (_, program), number, needed = _memory.fit(compile_fn, 64, bound)
    best = max([n for n in range(1, 65) if fixed + each * n <= bound], default=1)
    assert (number, program.number, needed) == (best, best, fixed + each * best)
    assert len(compiled) <= 3


def test_a_chunk_keeps_within_the_memory_it_was_given(tmp_path):
    def wide(key, *, rate):
        matrix = jax.random.normal(key, (64, 64))
        return rate * jnp.linalg.norm(matrix @ matrix)

    roomy = sweep.run(wide, {"rate": [1.0]}, seeds=16, out=tmp_path / "roomy", plan="vmap")
    tight = sweep.run(wide, {"rate": [1.0]}, seeds=16, out=tmp_path / "tight", plan="vmap", memory=300_000)
    capacity = [
        next(iter(json.loads((tmp_path / name / "config.json").read_text())["plans"].values()))["capacity"] for name in ("roomy", "tight")
    ]
    assert capacity[0] == 16
    assert 1 <= capacity[1] < 16
    np.testing.assert_allclose(tight.stack("value"), roomy.stack("value"), rtol=1e-5)


def test_measures_go_to_tensorboard(tmp_path):
    sweep.run(LONG, {"rate": [0.1, 0.2]}, seeds=1, shared=[DATA], out=tmp_path, tensorboard=True)
    assert len(list((tmp_path / "tensorboard").glob("*/events*"))) == 2


@pytest.mark.parametrize(("moment", "kept", "next_segment"), [("write", "2", 3), ("digests", "3", 4)])
@pytest.mark.first_cases(1)
def test_a_kill_during_a_checkpoint_leaves_a_whole_one(tmp_path, monkeypatch, moment, kept, next_segment):
    """With one to keep: the one before stays until the next is committed, and a committed one counts."""

    class Killed(BaseException):
        pass

    def killed_at_the_third(real):
        calls = []

        def call(*arguments, **options):
            calls.append(1)
            if len(calls) == 3:
                raise Killed
            return real(*arguments, **options)

        return call

    target, name = {"write": (ocp.StandardCheckpointHandler, "finalize"), "digests": (_checkpoints, "_digests")}[moment]
    monkeypatch.setattr(target, name, killed_at_the_third(getattr(target, name)))
    options = {"plan": "vmap", "checkpoint_every": 0, "keep": 1}
    with pytest.raises(Killed):
        sweep.run(LONG, {"rate": [0.1, 0.3]}, seeds=2, shared=[DATA], out=tmp_path, **options)
    monkeypatch.undo()
    (folder,) = (tmp_path / "checkpoints").iterdir()
    assert [path.name for path in folder.iterdir() if path.name.isdigit()] == [kept]
    results, seen = resumed(monkeypatch, tmp_path, **options)
    assert seen[0] == pytest.approx(next_segment / 6)
    whole = sweep.run(LONG, {"rate": [0.1, 0.3]}, seeds=2, shared=[DATA], plan="vmap")
    np.testing.assert_array_equal(results.stack("loss"), whole.stack("loss"))


@pytest.mark.parametrize(
    ("target", "name", "next_segment"), [(ocp.StandardCheckpointHandler, "finalize", 3), (_checkpoints, "write_atomically", 4)]
)
@pytest.mark.first_cases(1)
def test_a_disk_that_cannot_take_a_checkpoint_is_told_and_the_last_whole_one_serves(tmp_path, monkeypatch, target, name, next_segment):
    stopped_at(monkeypatch, tmp_path, 2, plan="vmap")

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(target, name, refuse)
    with pytest.raises(StoreError, match=r"cannot write a checkpoint .*No space left on device.* is safe"):
        sweep.run(LONG, {"rate": [0.1, 0.3]}, seeds=2, shared=[DATA], out=tmp_path, plan="vmap", checkpoint_every=0)
    monkeypatch.undo()
    _, seen = resumed(monkeypatch, tmp_path, plan="vmap")
    assert seen[0] == pytest.approx(next_segment / 6)


def test_segments_that_sigterm_would_cut_off_are_saved_one_by_one(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(_checkpoints.Checkpoints, "save", lambda self, step, tree: saved.append(step))
    monkeypatch.setattr("jaxbp.runtime.preemption.GRACE", 0.0)
    sweep.run(LONG, {"rate": [0.1]}, seeds=1, shared=[DATA], out=tmp_path, checkpoint_every=3600)
    assert saved == [1, 2, 3, 4, 5]


def test_a_signal_at_the_very_end_is_not_lost(tmp_path):
    def finish_fn(state, data, *, rate):
        def ask():
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(0.3)

        jax.debug.callback(ask)
        return {"w": state["w"]}

    last = sweep.Segments(init_fn, segment_fn, 2, finish_fn)
    with pytest.raises(sweep.Terminated):
        sweep.run(last, {"rate": [0.1]}, seeds=1, shared=[DATA], out=tmp_path)
    assert [record.status for record in sweep.load(tmp_path)] == ["finished"]


def test_a_full_grid_becomes_an_axis_for_each_name():
    grid = {"rate": [0.5, 0.1], "layers": [(8,), (4, 4)], "flag": [1, True]}
    fn = lambda key, *, rate, layers, flag: {"v": rate + jax.random.uniform(key), "n": jnp.full(3, len(layers))}  # noqa: E731
    ran = sweep.run(fn, grid, seeds=[7, 3])
    dataset = ran.to_dataset()
    assert dict(dataset.sizes) == {"rate": 2, "layers": 2, "flag": 2, "seed": 2, "n_axis0": 3}
    assert dataset.rate.values.tolist() == [0.5, 0.1]
    assert dataset.layers.values.tolist() == ["(8,)", "(4, 4)"]
    assert dataset.flag.values.tolist() == ["1", "True"]  # equal for Python, and two settings
    for record in ran:
        values = {name: record.setting[name] if name == "rate" else str(record.setting[name]) for name in grid}
        cell = dataset.sel(**values, seed=record.seed)
        assert (float(cell.v), cell.n.values.tolist(), str(cell.status.values)) == (
            record.values["v"],
            [len(record.setting["layers"])] * 3,
            "finished",
        )
    assert dataset.v.dtype == np.float32
    assert dict(ran.where(rate=0.1).to_dataset(["v"]).sizes) == {"rate": 1, "layers": 2, "flag": 2, "seed": 2}


def test_a_list_of_settings_becomes_one_axis_and_gaps_are_marked(tmp_path):
    grid = [{"rate": 0.5, "name": "a"}, {"rate": 0.1, "name": "b"}, {"rate": 0.2, "name": "a"}]
    fn = lambda key, *, rate, name: {"v": jnp.float32(rate), "count": jnp.int32(3)}  # noqa: E731
    sweep.run(fn, grid, seeds=2, out=tmp_path)
    (tmp_path / "pieces" / "setting0001-seed1.npz").unlink()
    dataset = sweep.load(tmp_path).to_dataset()
    assert dict(dataset.sizes) == {"setting": 3, "seed": 2}
    assert dataset.name.values.tolist() == ["a", "b", "a"]
    assert dataset.status.values.tolist() == [["finished"] * 2, ["finished", "missing"], ["finished"] * 2]
    np.testing.assert_array_equal(dataset.v, np.float32([[0.5, 0.5], [0.1, np.nan], [0.2, 0.2]]))
    np.testing.assert_array_equal(dataset["count"], [[3, 3], [3, np.nan], [3, 3]])


def test_results_that_cannot_be_labelled_are_told():
    ran = sweep.run(descend, GRID, seeds=2, shared=[DATA])
    with pytest.raises(ValueError, match=r"params/w must have one shape, got .* names of other results"):
        ran.to_dataset()
    np.testing.assert_array_equal(ran.to_dataset(["loss"]).loss.values.reshape(4, 2), ran.stack("loss"))
    with pytest.raises(KeyError, match="a run has"):
        ran.to_dataset(["los"])
    with pytest.raises(ValueError, match="there are no records"):
        ran.where(rate=7.0).to_dataset()


def test_incomplete_results_are_not_stacked(tmp_path):
    fn = lambda key, *, rate: {"v": rate * jax.random.normal(key), "none": jnp.zeros((0, 3))}  # noqa: E731
    found = sweep.run(fn, {"rate": [1.0, 100.0]}, seeds=3, out=tmp_path)
    assert found.stack("none").shape == (2, 3, 0, 3)
    for seed in (1, 2):
        (tmp_path / "pieces" / f"setting0001-seed{seed}.npz").unlink()
    partial = sweep.load(tmp_path)
    with pytest.raises(ValueError, match="2 of 6 records are missing"):
        partial.stack("v")
    np.testing.assert_array_equal(partial.where(rate=1.0).stack("v"), found.where(rate=1.0).stack("v"))
    with pytest.raises(ValueError, match="no setting has these values"):
        partial.where(rate=3.0).stack("v")


def test_what_is_loaded_is_found_by_the_same_settings(tmp_path):
    grid = {"layers": [(8, 8), (4,)], "scale": np.array([[1.0, 2.0], [3.0, 4.0]]), "mix": [1, "a"], "flag": [np.True_]}
    fn = lambda key, *, layers, scale, mix, flag: {"v": scale.sum() + len(layers)}  # noqa: E731
    ran = sweep.run(fn, grid, seeds=2, out=tmp_path)
    for found in (ran, sweep.load(tmp_path)):
        for layers in ((8, 8), [8, 8], np.array([8, 8])):
            assert found.where(layers=layers, scale=[3.0, 4.0], mix="a", flag=True).stack("v").tolist() == [[9.0, 9.0]]


def test_results_of_every_type_and_name(tmp_path):
    def fn(key, *, rate):
        return {
            "bfloat16": jnp.full(2, 0.5, jnp.bfloat16),
            "float8": jnp.full(2, jnp.nan, jnp.float8_e4m3fn),
            "int4": jnp.ones(2, jnp.int4),
            "complex": jnp.complex64(1j),
            "flag": jnp.bool_(True),
            "nested": [jnp.ones(2), (jnp.zeros(3),)],
        }

    (record,) = sweep.run(fn, {"rate": [1.0]}, seeds=1, out=tmp_path)
    kinds = {name: str(value.dtype) for name, value in record.values.items()}
    assert kinds == {
        "bfloat16": "float32",
        "float8": "float32",
        "int4": "int32",
        "complex": "complex64",
        "flag": "bool",
        "nested/0": "float32",
        "nested/1/0": "float32",
    }
    assert record.status == "diverged"


@pytest.mark.parametrize(
    ("fn", "error", "told"),
    [
        (lambda key, *, rate: None, TypeError, "must return an array, .* got none"),
        (lambda key, *, rate: {"rate": rate}, ValueError, "a result must not be called 'rate'"),
        (lambda key, *, rate: {"seed": rate}, ValueError, "a result must not be called 'seed'"),
        (lambda key, *, rate: {"a/b": rate, "a": {"b": rate}}, ValueError, "two results are called 'a/b'"),
    ],
)
def test_results_that_cannot_be_told_apart_are_refused(fn, error, told):
    with pytest.raises(error, match=told):
        sweep.run(fn, {"rate": [1.0]}, seeds=1)


def test_numbers_of_a_grid_are_as_exact_as_the_context():
    fn = lambda key, *, rate, array: rate * jnp.ones(1) + array * 0  # noqa: E731
    grid = {"rate": [0.1, 1], "array": np.array([0.1])}
    with jax.enable_x64(True):
        assert sweep.run(fn, grid, seeds=1).stack("value").ravel().tolist() == [
            0.1,
            1.0,
        ]  # not what float32 makes of it
    found = sweep.run(fn, grid, seeds=1).stack("value")
    assert found.dtype == np.float32
    assert found.ravel().tolist() == [np.float32(0.1), 1.0]


def test_a_folder_knows_the_random_bits_it_was_made_with(tmp_path):
    fn = lambda key, *, rate: rate * jax.random.normal(key)  # noqa: E731
    first = sweep.run(fn, {"rate": [1.0]}, seeds=1, out=tmp_path)
    with jax.default_prng_impl("rbg"):
        with pytest.raises(StoreError, match="random_bits: threefry2x32 there, rbg now"):
            sweep.run(fn, {"rate": [1.0]}, seeds=1, out=tmp_path)
        other = sweep.run(fn, {"rate": [1.0]}, seeds=1)
        assert other[0].values["value"] == fn(jax.random.key(0), rate=1.0)
    assert other[0].values["value"] != first[0].values["value"]


def test_the_most_demanding_program_decides_how_many_runs_fit(tmp_path, capsys):
    def init_fn(key):
        return jnp.linalg.norm(jax.random.normal(key, (128, 128)) @ jnp.ones((128, 128)))

    long = sweep.Segments(init_fn, lambda state, index: (state, {"state": state}), 2)
    sweep.run(long, seeds=16, out=tmp_path, plan="vmap", memory=500_000)
    (plan,) = json.loads((tmp_path / "config.json").read_text())["plans"].values()
    assert 1 <= plan["capacity"] < 8
    capsys.readouterr()
    sweep.run(long, seeds=2, plan="vmap", memory=1000)
    assert "that is more than the 0.000954 MiB that a device may use" in capsys.readouterr().out


def test_room_is_made_after_every_program(monkeypatch):
    calls = []
    monkeypatch.setattr(scheduler, "evict_compiled_programs", lambda: calls.append(1))
    sweep.run(lambda key, *, width: jnp.ones(width).sum(), {"width": [1, 2, 3]}, seeds=1)
    assert len(calls) == 3


def test_equal_sweeps_are_compiled_once_and_other_precisions_anew():
    compiled = []

    def note(event, *_, **__):
        if "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        fn = lambda key, *, rate: {"draw": rate * jax.random.normal(key)}  # noqa: E731
        sweep.run(fn, {"rate": [1.0, 2.0]}, seeds=3, plan="vmap", quiet=True)
        first = len(compiled)
        sweep.run(fn, {"rate": [3.0, 4.0]}, seeds=range(3, 6), plan="vmap", quiet=True)
        assert len(compiled) == first > 0
        with jax.enable_x64(True):
            found = sweep.run(fn, {"rate": [3.0, 4.0]}, seeds=3, plan="vmap", quiet=True)
        assert len(compiled) > first
        assert found.stack("draw").dtype == np.float64
        longer = len(compiled)
        with jax.default_matmul_precision("highest"):
            sweep.run(fn, {"rate": [3.0, 4.0]}, seeds=3, plan="vmap", quiet=True)
        assert len(compiled) > longer
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def test_results_are_read_from_the_folder_when_they_are_asked_for(tmp_path):
    def fn(key, *, rate):
        return {"loss": rate, "params": jax.random.normal(key, (1000,))}

    found = sweep.run(fn, {"rate": [1.0, 2.0]}, seeds=2, out=tmp_path, quiet=True)
    path = tmp_path / "pieces" / "setting0001-seed1.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255  # within params
    path.write_bytes(content)
    assert found.to_dataframe().loss.tolist() == [1.0, 1.0, 2.0, 2.0]
    assert "params" not in found.to_dataframe().columns
    with pytest.raises(StoreError, match=r"seed1\.npz is damaged"):
        found.stack("params")
    with pytest.raises(KeyError, match="a run has loss, params, got 'param'"):
        found[0].values["param"]
