"""Sweeps that are killed, terminated, starved of disk and started twice: nothing is lost, nothing is there twice, no number changes.

Slow: some five minutes. ``pytest -m slow tests/test_sweep_faults.py``.
"""

import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from jaxbp import sweep
from jaxbp.runtime import progress
from tests.helpers import run_processes

pytestmark = pytest.mark.slow

# Two sweeps of some seconds each: one of short whole runs, which go to the folder as they end, one of runs in segments, with a
# checkpoint every fifth of a second. A run rests a moment in every step, so that a kill finds it at work.
SUBJECT = textwrap.dedent("""
    import os, sys, time
    import jax, jax.numpy as jnp, numpy as np
    from jaxbp import lab

    def rest(x):
        time.sleep(0.02)
        return x

    def step(state, rate):
        w, key = state
        gradient = jax.grad(lambda w: jnp.mean((DATA @ w) ** 2))(w)
        w = w - rate * gradient + 0.01 * jax.random.normal(key, w.shape)
        w = jax.pure_callback(rest, jax.ShapeDtypeStruct(w.shape, w.dtype), w, vmap_method="expand_dims")
        return (w, jax.random.fold_in(key, 1)), jnp.mean((DATA @ w) ** 2)

    DATA = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    GRID = {"rate": [0.1, 0.3], "width": [2, 3]}

    def init_fn(key, *, rate, width):
        return jax.random.normal(key, (4, width)), key

    def whole(key, *, rate, width):
        (w, _), losses = jax.lax.scan(lambda s, _: step(s, rate), init_fn(key, rate=rate, width=width), length=5)
        return {"w": w, "losses": losses}

    def segment_fn(state, index, *, rate, width):
        state, loss = step(state, rate)
        return state, {"loss": loss}

    def main(folder):
        from jaxbp import sweep
        lab.start_jax()
        print("ready", flush=True)
        sweep.run(whole, GRID, seeds=8, out=folder + "/whole", plan="shard-map")
        long = sweep.Segments(init_fn, segment_fn, 25, lambda state, **_: {"w": state[0]})
        for plan in ("shard-map", "vmap"):
            sweep.run(long, GRID, seeds=4, out=folder + "/" + plan, plan=plan, checkpoint_every=0.2)
        print("all done", flush=True)

    with lab.guarded(sys.argv[1]):
        main(sys.argv[1])
""")
SWEEPS = {"whole": 32, "shard-map": 16, "vmap": 16}


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """Starts the program on a folder; programs are compiled once, into a cache of this test's own."""
    cache = tmp_path_factory.mktemp("cache")
    path = tmp_path_factory.mktemp("subject") / "subject.py"
    path.write_text(SUBJECT)

    def start(folder, **options):
        env = run_processes.as_users()
        env |= {"XDG_CACHE_HOME": str(cache), "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
        env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "PYTHONPATH": str(Path(__file__).parents[2])}
        return subprocess.Popen(
            [sys.executable, str(path), str(folder)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
        )

    return start


@pytest.fixture(scope="module")
def undisturbed(subject, tmp_path_factory):
    """The results, and how many seconds the work takes after the start."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for attempt in ("compiles", "measures"):
        with subject(folder / attempt) as running:
            assert running.stdout.readline() == "ready\n"
            began = time.monotonic()
            out, err = running.communicate(timeout=300)
            assert running.returncode == 0, out + err
    return folder / "measures", time.monotonic() - began


def assert_complete_and_equal(folder, expected):
    """Every run is there exactly once, with the numbers, to the bit, of a sweep that nobody disturbed."""
    for name, num_runs in SWEEPS.items():
        ours, theirs = sweep.load(folder / name), sweep.load(expected / name)
        files = sorted(path.name for path in (folder / name / "pieces").iterdir() if not path.name.startswith("."))
        assert files == sorted(path.name for path in (expected / name / "pieces").iterdir())
        assert len(files) == num_runs == len({(str(r.setting), r.seed) for r in ours}) == len(ours)
        for a, b in zip(ours, theirs, strict=True):
            assert (a.setting, a.seed, a.status) == (b.setting, b.seed, b.status)
            assert a.values.keys() == b.values.keys()
            for value in a.values:
                np.testing.assert_array_equal(a.values[value], b.values[value])
        status = progress.read(folder / name)
        assert (status.state, len(status.done), len(status.left)) == ("finished", num_runs, 0)


def disturbed(subject, folder, seconds, rng, signum, number):
    """Start, send a signal at a random moment, start again on what is there, ``number`` times; then let it end.

    Returns how many signals found the sweep at work, and how many folders were filled.
    """
    hits, filled, round_ = 0, [], 0
    while hits < number:
        target = folder / str(round_)
        with subject(target) as running:
            assert running.stdout.readline() == "ready\n"
            try:
                out, err = running.communicate(timeout=rng.uniform(0, 0.7 * seconds))
                assert running.returncode == 0, out + err
                filled.append(target)
                round_ += 1
            except subprocess.TimeoutExpired:
                asked = time.monotonic()
                running.send_signal(signum)
                out, _ = running.communicate(timeout=30)
                if "all done" in out:  # it was through; on its way out a signal has its usual effect
                    assert running.returncode in (0, 143, -signum)
                    filled.append(target)
                    round_ += 1
                    continue
                assert running.returncode == (-signal.SIGKILL if signum == signal.SIGKILL else 143)
                assert time.monotonic() - asked < 10
                hits += 1
    with subject(folder / str(round_)) as running:
        out, err = running.communicate(timeout=300)
        assert running.returncode == 0, out + err
    return hits, [*filled, folder / str(round_)]


@pytest.mark.parametrize(("signum", "number"), [(signal.SIGKILL, 8), (signal.SIGTERM, 3)])
def test_signals_at_random_moments_change_nothing(subject, undisturbed, tmp_path, signum, number):
    expected, seconds = undisturbed
    hits, filled = disturbed(subject, tmp_path, seconds, random.Random(int(signum)), signum, number)
    assert hits == number
    for folder in dict.fromkeys(filled):
        assert_complete_and_equal(folder, expected)
    print(f"{hits} signals, {len(set(filled))} folders filled, all equal to an undisturbed sweep")


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # the child becomes another program at once
def test_a_disk_that_fills_up_is_told_and_nothing_is_lost(subject, undisturbed, tmp_path):
    """A file-size limit stands for the disk: first nothing but small files can be written, then all again."""
    import resource

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (800, 800))

    expected, _ = undisturbed
    with subject(tmp_path / "run", preexec_fn=limit) as running:
        out, err = running.communicate(timeout=120)
    assert running.returncode == 2, out + err
    assert re.search(r"error: cannot write .* \(File too large\)", err)
    with subject(tmp_path / "run") as running:
        out, err = running.communicate(timeout=300)
        assert running.returncode == 0, out + err
    assert_complete_and_equal(tmp_path / "run", expected)


def test_a_full_file_system_in_the_middle(subject, undisturbed, tmp_path):
    """A small tmpfs, where one may be mounted: results stop when it is full, and go on once there is room."""
    mount = tmp_path / "small"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(mount)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        with subject(mount / "run") as running:
            out, err = running.communicate(timeout=120)
        assert running.returncode == 2, out + err
        assert "No space left on device" in err
        assert len(sweep.load(mount / "run" / "whole")) > 3  # what was finished is there, whole
        subprocess.run(["mount", "-o", "remount,size=64m", str(mount)], check=True)
        with subject(mount / "run") as running:
            out, err = running.communicate(timeout=300)
            assert running.returncode == 0, out + err
        assert_complete_and_equal(mount / "run", undisturbed[0])
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_of_two_that_start_in_one_folder_one_is_refused_and_the_other_unharmed(subject, undisturbed, tmp_path):
    folder = tmp_path / "run"
    with subject(folder) as first:
        while not (folder / "whole" / "config.json").exists():
            time.sleep(0.05)
        with subject(folder) as second:
            out, err = second.communicate(timeout=60)
            assert second.returncode == 2, out + err
            assert "is in use by another run" in err
        out, err = first.communicate(timeout=300)
        assert first.returncode == 0, out + err
    assert_complete_and_equal(folder, undisturbed[0])
