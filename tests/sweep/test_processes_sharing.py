"""The same sweep on one device, on many, and in several processes: equal results, seed by seed."""

import textwrap

import numpy as np
import pytest

from jaxbp import sweep
from jaxbp.runtime import progress
from tests.helpers import run_processes

PROBLEM = textwrap.dedent("""
    import sys
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec
    from jaxbp import losses, models, sweep, training
    from jaxbp.runtime import processes
    from jaxbp.training import parallel

    rng = np.random.default_rng(0)
    DATA = rng.normal(size=(32, 5)).astype(np.float32), rng.integers(0, 3, 32)
    GRID = {"learning_rate": [0.05, 0.1], "width": [3]}
    NET = {width: models.create("mlp", num_classes=3, width=width, depth=1) for width in GRID["width"]}


    def train_fn(mesh=None):
        def train(key, inputs, labels, *, learning_rate, width):
            net = NET[width] if mesh is None else parallel.data_parallel(NET[width], mesh=mesh)
            optimizer, settings = training.sgd(learning_rate, momentum=0.9), training.Settings(num_epochs=3, batch_size=16)
            start = net.init(key, inputs[:1])
            found = training.train(net, optimizer, (inputs, labels), key, settings, start=start)
            return {"loss": found.history["train_loss"], "params": found.params}
        return train


    def segments(mesh=None):
        def network(width):
            return NET[width] if mesh is None else parallel.data_parallel(NET[width], mesh=mesh)

        def init_fn(key, inputs, labels, *, learning_rate, width):
            return NET[width].init(key, inputs[:1])[0], key

        def segment_fn(state, index, inputs, labels, *, learning_rate, width):
            params, key = state
            found = training.train(
                network(width), training.sgd(learning_rate), (inputs, labels), jax.random.fold_in(key, index),
                training.Settings(num_epochs=1, batch_size=16), start=(params, {}))
            return (found.params, key), {"loss": found.history["train_loss"][-1]}

        return sweep.Segments(init_fn, segment_fn, 3, lambda state, *_, **__: {"params": state[0]})
""")


# kind of run, devices that share a batch, plan
SWEEPS = [("whole", 1, "auto"), ("whole", 8, "shard-vmap"), ("segments", 2, "shard-map")]


def script(folder, body="", sweeps=SWEEPS):
    """Join the others, do all of ``sweeps``, then the body, and leave."""
    work = f"""
    for kind, num_batch, plan in {sweeps}:
        mesh = sweep.make_mesh(num_batch)
        fn = segments(mesh if num_batch > 1 else None) if kind == "segments" else train_fn(mesh if num_batch > 1 else None)
        found = sweep.run(fn, GRID, seeds=5, shared=DATA, out=f"{folder}/{{kind}}-{{num_batch}}", mesh=mesh, plan=plan)
        assert len(found) == 10
    """
    inside = textwrap.indent(textwrap.dedent(work) + textwrap.dedent(body), "    ")
    return PROBLEM + "\nwith processes.session(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])):\n" + inside


@pytest.fixture(scope="module")
def reference():
    """One process, one device."""
    names = {}
    exec(compile(PROBLEM, "problem", "exec"), names)
    options = {"seeds": 5, "shared": names["DATA"], "plan": "loop"}
    return {kind: sweep.run(names[name](), names["GRID"], **options) for kind, name in (("whole", "train_fn"), ("segments", "segments"))}


def assert_equal_to(reference, folder, sweeps=SWEEPS):
    for kind, num_batch, _ in sweeps:
        found, expected = sweep.load(folder / f"{kind}-{num_batch}"), reference[kind]
        assert [(r.setting, r.seed, r.status) for r in found] == [(r.setting, r.seed, r.status) for r in expected]
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.values.keys() == theirs.values.keys()
            for name, value in theirs.values.items():  # sums in another order: some 1e-7 a step
                np.testing.assert_allclose(ours.values[name], value, rtol=2e-4, atol=2e-6, err_msg=f"{kind} {num_batch} {name}")


@pytest.mark.slow
def test_eight_devices_give_what_one_gives(reference, tmp_path):
    run_processes.run(script(tmp_path, "assert jax.device_count() == 8"), 1, 8, timeout=240)
    assert_equal_to(reference, tmp_path)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(reference, tmp_path):
    sweeps = [("whole", 1, "shard-vmap")]
    run_processes.run(script(tmp_path, "assert jax.device_count() == 2 and jax.process_count() == 2", sweeps), 2, 1, timeout=240)
    assert_equal_to(reference, tmp_path, sweeps)
    status = progress.read(tmp_path / "whole-1")
    assert (status.state, len(status.done), len(status.processes)) == ("finished", 10, 2)
    assert len([path for path in (tmp_path / "whole-1").iterdir() if path.name.startswith(("log", "status"))]) == 4


@pytest.mark.slow
def test_two_processes_of_four_devices_give_what_one_gives(reference, tmp_path):
    body = f"""
    me = jax.process_index()
    assert processes.gather({{"process": me, "long": "x" * me * 100}}) == [{{"process": i, "long": "x" * i * 100}} for i in range(2)]
    uneven = sweep.run(train_fn(), GRID, seeds=5, shared=DATA, out="{tmp_path}/uneven", plan="shard-vmap", memory=[10**9, 5000][me])
    assert len(uneven) == 10
    assert jax.device_count() == 8 and jax.process_count() == 2
    import os
    mine = [name for name in os.listdir("{tmp_path}/whole-1") if name.startswith(("log", "status"))]
    assert len(mine) == 4, mine
    """
    run_processes.run(script(tmp_path, body), 2, 4, timeout=240)
    assert_equal_to(reference, tmp_path)
    status = progress.read(tmp_path / "whole-1")
    assert (status.state, len(status.done), len(status.processes)) == ("finished", 10, 2)


@pytest.mark.slow
def test_another_number_of_processes_goes_on_from_what_is_there(reference, tmp_path):
    sweeps = [("whole", 1, "shard-map")]
    run_processes.run(script(tmp_path, sweeps=sweeps), 1, 2, timeout=240)
    kept = {path: path.stat().st_mtime_ns for path in sorted((tmp_path / "whole-1" / "pieces").iterdir())}
    for path in list(kept)[3:8]:
        path.unlink()
        del kept[path]
    run_processes.run(script(tmp_path, sweeps=sweeps), 2, 1, timeout=240)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # nothing was done twice
    assert_equal_to(reference, tmp_path, sweeps)


@pytest.mark.slow
def test_processes_that_disagree_are_told(tmp_path):
    body = """
    from jaxbp.runtime.store import StoreError
    rate = 0.1 + int(sys.argv[3])
    try:
        sweep.run(train_fn(), {"learning_rate": [rate], "width": [3]}, seeds=2, shared=DATA, out=OUT)
    except StoreError as error:
        print(error)
    """
    inside = textwrap.indent(textwrap.dedent(body).replace("OUT", repr(str(tmp_path / "run"))), "    ")
    head = PROBLEM + "\nwith processes.session(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])):\n"
    first, second = run_processes.run(head + inside, 2, 1, timeout=120)
    assert "another process could not open" in first.stdout
    assert "grid.learning_rate: [0.1] there, [1.1] now" in second.stdout


@pytest.mark.slow
def test_a_stopped_process_stops_the_others_and_all_go_on_bit_for_bit(tmp_path):
    body = """
    import os, signal, threading
    from jaxbp.sweep import runs
    class Recorder(runs.Recorder):
        calls = 0
        def advance(self, names, share):
            super().advance(names, share)
            Recorder.calls += 1
            if STOPS and Recorder.calls == 2 and int(sys.argv[3]) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
                threading.Event().wait(0.3)
    runs.Recorder = Recorder
    sweep.run(segments(), GRID, seeds=5, shared=DATA, out=OUT, plan="shard-vmap")
    """
    head = PROBLEM + "\nwith processes.session(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])):\n"

    def run(folder, *, stops):
        text = textwrap.dedent(body).replace("OUT", repr(str(folder))).replace("STOPS", str(stops))
        done = run_processes.run(head + textwrap.indent(text, "    "), 2, 2, timeout=120, check=not stops)
        return [each.returncode for each in done]

    assert run(tmp_path / "run", stops=True) == [143, 143]
    assert list((tmp_path / "run" / "checkpoints").glob("*/2/digests.json"))
    assert run(tmp_path / "run", stops=False) == [0, 0]
    assert run(tmp_path / "whole", stops=False) == [0, 0]
    for ours, theirs in zip(sweep.load(tmp_path / "run"), sweep.load(tmp_path / "whole"), strict=True):
        for name, value in theirs.values.items():
            np.testing.assert_array_equal(ours.values[name], value)
