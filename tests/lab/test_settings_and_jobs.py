"""What the frame of the studies does beside their own tests."""

import dataclasses
import os
import queue
import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pandas as pd
import pytest

from jaxbp import claims, lab
from jaxbp.lab import jobs
from jaxbp.runtime import jax_setup, program_cache, progress
from jaxbp.runtime.store import Store


@pytest.mark.parametrize("held, forgets", [(40, True), (20, False), (0, False)])
def test_compiled_programs_go_when_memory_maps_run_short(monkeypatch, held, forgets):
    traced = []

    @jax.jit
    def fn(x):
        traced.append(1)
        return x + 1

    fn(jnp.ones(3))
    monkeypatch.setattr(program_cache, "memory_maps", lambda: (held, 65))
    program_cache.evict_compiled_programs()
    fn(jnp.ones(3))
    assert len(traced) == (2 if forgets else 1)


def test_memory_maps_are_counted():
    held, allowed = program_cache.memory_maps()
    assert 0 < held < allowed


def test_neighbours_of_one_group_run_beside_each_other_and_groups_do_not(tmp_path):
    both, order = threading.Barrier(2, timeout=20), []

    def meet(name):
        both.wait()  # breaks if the two do not run at the same time
        order.append(name)
        return {}

    def alone(name):
        order.append(name)
        return {}

    names = {"a1": ("a", meet), "a2": ("a", meet), "b": ("b", alone), "c": (None, alone), "d": (None, alone)}
    pieces = [lab.Piece(n, lambda n=n, work=work: work(n), group=group) for n, (group, work) in names.items()]
    with Store(tmp_path / "run", {"settings": 1}, {}) as store:
        lab.run_pieces(store, pieces, num_workers=2)
        assert all(name in store for name in names)
    assert set(order[:2]) == {"a1", "a2"}
    assert order[2:] == ["b", "c", "d"]


def test_a_study_leaves_a_log_and_a_status(tmp_path, capsys):
    def fail():
        raise ValueError("no data")

    stages = []

    def look():
        (log,) = (tmp_path / "run").glob("log.txt")
        stages.append(log.read_text().splitlines()[-1].split(" ", 1)[1])
        return {}

    pieces = [lab.Piece("first", look, weight=1.0), lab.Piece("second", look, weight=3.0)]
    with Store(tmp_path / "run", {"settings": 1}, {}) as store:
        with pytest.raises(ValueError, match="no data"):
            lab.run_pieces(store, [*pieces, lab.Piece("third", fail)])
        found = progress.read(tmp_path / "run")
        assert (found.state, found.error, found.done) == ("failed", "ValueError: no data", ("first", "second"))
        assert found.failed == {"third": "ValueError: no data"}
        capsys.readouterr()
        lab.run_pieces(store, [*pieces, lab.Piece("third", look)])
    assert stages == ["started first", "started second", "started third"]
    assert progress.read(tmp_path / "run").state == "finished"
    assert "[3/3] third, 0 s, about 0 s left" in capsys.readouterr().out


def test_a_piece_that_fails_in_a_thread_is_told_and_those_beside_it_are_left(tmp_path):
    beside, told = threading.Event(), threading.Event()

    def fail():
        assert beside.wait(20)
        raise ValueError("no data")

    def slow():
        beside.set()
        told.wait(20)
        return {}

    pieces = [lab.Piece("bad", fail, group="a"), lab.Piece("slow", slow, group="a")]
    with Store(tmp_path / "run", {"settings": 1}, {}) as store, pytest.raises(ValueError, match="no data"):
        lab.run_pieces(store, pieces, num_workers=2)
    found = progress.read(tmp_path / "run")
    told.set()
    assert (found.state, found.failed, found.left) == ("failed", {"bad": "ValueError: no data"}, ("slow",))


@dataclasses.dataclass(frozen=True)
class Case:
    dataset: str
    width: int

    @property
    def name(self):
        return f"{self.dataset}, wide" if self.width > 2 else self.dataset


@dataclasses.dataclass(frozen=True)
class Settings(lab.Settings):
    cases: tuple[Case, ...]
    num_epochs: int = 3
    batch_size: int = 8
    num_train: int | None = None


@dataclasses.dataclass(frozen=True)
class Arguments(lab.Arguments):
    presets = {"quick": Settings("quick", 4, (Case("a", 1), Case("b", 1), Case("a", 5)))}  # noqa: RUF012
    width: int | None = None


def test_arguments_change_settings_or_every_case():
    assert Arguments().settings() == Arguments.presets["quick"]
    found = Arguments(epochs=7, seeds=3, num_train=9).settings()
    assert (found.num_epochs, list(found.seeds), found.num_train) == (7, [0, 1, 2], 9)
    found = Arguments(dataset="c").settings()
    assert found.cases == (Case("c", 1), Case("c", 5))  # two of three have become one
    assert [case.width for case in Arguments(width=2).settings().cases] == [2, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "paper"}, "this study has no preset 'paper': choose one of quick"),
        ({"seeds": 1}, "an interval needs at least 2 seeds, got 1: give --seeds 5 or more"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"num_train": 7}, "num_train must be at least the batch size 8, got 7"),
    ],
)
def test_settings_that_cannot_run_are_refused(arguments, message):
    with pytest.raises(lab.SettingsError, match=message):
        Arguments(**arguments).settings()


def test_programs_are_compiled_quickly_where_there_are_cpus_alone(monkeypatch):
    monkeypatch.setattr(jax_setup.importlib.util, "find_spec", lambda name: None)
    assert jax_setup._has_cpus_alone(None)
    monkeypatch.setattr(jax_setup.importlib.util, "find_spec", lambda name: "found" if name == "libtpu" else None)
    assert not jax_setup._has_cpus_alone(None)
    assert jax_setup._has_cpus_alone("cpu")
    assert not jax_setup._has_cpus_alone("cuda,cpu")
    first, second = "--xla_backend_optimization_level=1", "--xla_cpu_use_fusion_emitters=false"
    cases = {
        ("0.10.2", ""): f"{first} {second}",
        ("0.10.0", "--xla_a=1"): f"--xla_a=1 {first} {second}",
        ("0.11.2", ""): first,  # which does not know the second
        ("0.10.2", "--xla_backend_optimization_level=2"): f"--xla_backend_optimization_level=2 {second}",
        ("0.10.2", f"--xla_cpu_use_fusion_emitters=true {first}"): f"--xla_cpu_use_fusion_emitters=true {first}",
    }
    for (version, given), expected in cases.items():
        monkeypatch.setattr(jaxlib, "__version__", version)
        monkeypatch.setenv("XLA_FLAGS", given)
        jax_setup.compile_quickly()
        assert os.environ["XLA_FLAGS"] == expected


def test_every_worker_has_an_accelerator_and_cpu_workers_share_one(monkeypatch):
    devices = [SimpleNamespace(platform="gpu", number=n) for n in range(2)]
    cpus = [SimpleNamespace(platform="cpu", number=n) for n in range(3)]
    monkeypatch.setattr(jax, "local_devices", lambda backend=None: devices if backend is None else cpus)
    free = jobs._free_devices(3, on_cpu=True)
    assert [free[False].get().number for _ in range(3)] == [0, 1, 0]
    assert [free[True].get() for _ in range(3)] == cpus[:1] * 3
    assert not jobs._free_devices(3, on_cpu=False)[True].qsize()
    monkeypatch.setattr(jax, "local_devices", lambda backend=None: cpus)
    free = jobs._free_devices(2, on_cpu=True)
    assert free[True] is free[False]
    assert [free[True].get() for _ in range(2)] == cpus[:1] * 2


def test_pieces_for_the_cpu_do_not_wait_for_an_accelerator(tmp_path, monkeypatch):
    host, accelerator = jax.local_devices()
    free = {False: jobs._queue([accelerator]), True: jobs._queue([host] * 2)}
    monkeypatch.setattr(jobs, "_free_devices", lambda num_workers, on_cpu: free)
    both_there = threading.Barrier(2, timeout=20)

    def meet():  # returns only if two of them run beside each other
        both_there.wait()
        return {"device": lab.device().id}

    here = {"group": "all", "on_cpu": True}
    pieces = [lab.Piece(name, lambda: {"device": lab.device().id}, group="all") for name in ("c", "d", "e")]
    pieces += [lab.Piece(name, meet, **here) for name in ("a", "b")]
    pieces.append(lab.Piece("alone", lambda: {"device": lab.device().id}, on_cpu=True))
    with Store(tmp_path / "run", {"settings": 1}, {}) as store:
        lab.run_pieces(store, pieces)
        found = [int(store.get(piece.name)["device"]) for piece in pieces]
    assert found == [accelerator.id] * 3 + [host.id] * 3


def test_a_piece_runs_on_the_device_of_its_worker():
    last = jax.local_devices()[-1]
    free = queue.SimpleQueue()
    free.put(last)
    piece = lab.Piece("a", lambda: {"device": lab.device(), "array": jnp.ones(2) + 1})
    found = jobs._on_free_device(free, lambda piece: piece.compute(), piece)
    assert found["device"] == last
    assert found["array"].devices() == {last}
    assert free.get() == last
    assert lab.device() == jax.local_devices()[0]


ABOVE = claims.Claim("T.a", "Values are above 0.", "folklore", "value <b>", claims.Above(0.0))


def pieces(settings, store, data_dir):
    """A study in one file: this one."""
    return [lab.Piece(case.name, lambda case=case: {"value": 1.0 + np.arange(4.0)}) for case in settings.cases]


class Results(lab.Results):
    @property
    def measurements(self):
        return {ABOVE: {case.name: self.store.get(case.name)["value"] for case in self.settings.cases}}


def test_a_study_in_one_file_needs_pieces_and_measurements(tmp_path):
    study = lab.Study("T", "Title", "Lead", Arguments, __name__)
    part = study.run(Arguments().settings(), tmp_path / "run", devices=["cpu"], command="python -m this")
    (verdict,) = part.verdicts
    assert (verdict.verdict, verdict.interval.estimate) == ("supported", 2.5)
    assert [v.verdict for v in claims.read_verdicts(tmp_path / "run/verdicts.json")] == ["supported"]
    rows = pd.read_parquet(tmp_path / "run/measurements.parquet")
    assert rows[rows.case == "b"].value.tolist() == [1, 2, 3, 4]
    assert rows.seed.tolist() == [0, 1, 2, 3] * 3
    page = (tmp_path / "run/report.html").read_text()
    assert "value &lt;b&gt;" in page
    assert "python -m this" in page
    assert (tmp_path / "run/figures/Ta.svg").exists()


def test_a_study_is_known_by_its_module():
    study = lab.Study("S2", "", "", Arguments, "experiments.norm_bias")
    assert (study.command, study.name) == ("python -m experiments.norm_bias", "norm_bias")
    from experiments.norm_bias import figures, measure, page, results

    homes = {
        "pieces": measure,
        "Results": results,
        "verdicts": results,
        "rows": results,
        "draw": figures,
        "sections": page,
    }
    assert all(study.function(name) is getattr(home, name) for name, home in homes.items())
