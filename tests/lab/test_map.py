"""Maps: where a claim holds over a grid of settings, computed once by content, and resumed, whatever fails in between."""

import dataclasses
import json
import signal
import subprocess
import sys
import threading
import types
from typing import ClassVar

import numpy as np
import pytest
import xarray as xr

from jaxbp import claims, data, lab
from jaxbp.claims import Axis
from jaxbp.lab import archive, map_axes, map_run
from jaxbp.lab.verdict_pairs import compared
from jaxbp.runtime import jax_setup
from jaxbp.runtime.store import StoreError
from tests.helpers import run_processes

BOUNDARY = 0.03  # of the rate, above which the made-up effect is negative
CALLS: list[tuple] = []


@dataclasses.dataclass(frozen=True)
class Case:
    dataset: str
    options: tuple[tuple[str, object], ...] = (("norm", "batch"), ("skip", True))

    @property
    def name(self):
        return f"net, {self.dataset}"


@dataclasses.dataclass(frozen=True)
class Settings(lab.Settings):
    cases: tuple[Case, ...] = (Case("digits"),)
    rate: float = 0.01
    num_epochs: int = 5
    unread: int = 0


class Arguments(lab.Arguments):
    presets: ClassVar = {"quick": Settings("quick", 8)}


@dataclasses.dataclass(frozen=True)
class SizedSettings(Settings):
    num_train: int = 100
    batch_size: int = 20


class Sized(lab.Arguments):
    presets: ClassVar = {"quick": SizedSettings("quick", 8)}


def prepare(case, settings):
    CALLS.append(("prepare", case.dataset))
    return {"offset": 0.0 if case.dataset == "digits" else 0.1}


def train(case, settings, prepared, seed):
    CALLS.append(("train", case.dataset, settings.rate, settings.num_epochs, seed))
    if settings.num_epochs == 13:
        raise ValueError("thirteen epochs are unlucky")
    noise = 0.05 * np.random.default_rng(list(seed)).standard_normal(len(seed))
    effect = np.log10(BOUNDARY / settings.rate) + 0.02 * settings.num_epochs - 0.1 + float(prepared.offset)
    return {"effect": lab.along("seed", effect + noise)}


def dear(case, settings):
    raise AssertionError("no claim that is mapped needs this stage")


CLAIM = claims.Claim("M.a", "Small rates help.", "made up", "effect", claims.Above(0.0))
OTHER = claims.Claim("M.b", "Dear things help.", "made up", "effect", claims.Above(0.0))
STUDY = lab.Study(
    "M",
    "Title",
    "Lead",
    "tests.map",
    stages=(
        lab.Stage(prepare, reads=()),
        lab.Stage(train, needs=(prepare,), over=lambda case, settings: {"seed": settings.seed_blocks}, reads=("rate", "num_epochs")),
        lab.Stage(dear),
    ),
    measures=(lab.Measure(CLAIM, lambda m: m.train.effect), lab.Measure(OTHER, lambda m: m.dear.effect)),
    controls=(),
    figures=(),
    tables=(),
    method=(),
)
RATES = (0.003, 0.01, 0.1, 0.3)


@pytest.fixture(autouse=True)
def calls():
    CALLS.clear()
    return CALLS


@pytest.fixture
def folder(tmp_path):
    """Of the map, with no other test's results nearby."""
    return tmp_path / "runs" / "map"


def mapped(axes, folder, settings=Arguments(), claim="M.a", **options):  # noqa: B008
    return lab.map(STUDY, claim, axes, settings=settings, out=folder, options=lab.MapOptions(**options))


def test_a_known_boundary_is_found_within_its_interval(folder):
    found = mapped({"rate": RATES, "num_epochs": (5, 20)}, folder)
    along, epochs = found.along
    assert along.axis.name == "rate"
    assert along.lines == {"flips": 2}
    of_few = along.boundaries["num_epochs 5"]
    assert of_few.holds_below
    assert (of_few.low, of_few.high) == (0.01, 0.1)
    assert of_few.low < BOUNDARY < of_few.high
    assert of_few.at == pytest.approx(BOUNDARY, rel=0.3)
    assert along.boundaries["num_epochs 20"].at > BOUNDARY
    assert epochs.lines == {"holds": 2, "fails": 2}
    assert found.headline == "holds in 4 of 8 specifications, contradicted in 4"
    shares = {part.axes: part.share for part in found.explained}
    assert shares["rate",] > 0.9 > 0.1 > shares["num_epochs",] > shares["rate", "num_epochs"]
    assert "holds in 4 of 8" in (folder / "map.html").read_text()


def test_the_arrays_have_the_axes_and_are_read_back(folder):
    two = dataclasses.replace(Settings("quick", 8), cases=(Case("digits"), Case("mnist1d")))
    found = mapped([Axis("rate", RATES), Axis("num_epochs", (5, 20), {"rate": 0.1})], folder, two)
    arrays = lab.open_map(folder)
    xr.testing.assert_identical(arrays.drop_attrs(), found.to_dataset().drop_attrs())
    assert dict(arrays.sizes) == {"rate": 4, "num_epochs": 2, "case": 2, "seed": 8}
    tree = lab.open(folder)  # as of a run
    np.testing.assert_allclose(tree.value.mean("seed"), arrays.effect)
    assert tree.value.sel(rate=0.003, num_epochs=5, case="net, digits").sizes == {"seed": 8}
    assert not (folder / "verdicts.json").exists()
    assert len(found.cells) == 5
    assert (arrays.effect.sel(case="net, mnist1d") - arrays.effect.sel(case="net, digits")).values == pytest.approx(0.1)
    same = arrays.sel(rate=0.01)  # where the second axis does not apply the study is the same
    assert (same.cell.isel(num_epochs=0) == same.cell.isel(num_epochs=1)).all()
    assert arrays.sel(rate=0.1).effect.diff("num_epochs").values == pytest.approx(0.3)
    with pytest.raises(StoreError, match="holds no map"):
        lab.open_map(folder.parent / "other")


def test_a_superset_computes_new_cells_alone_and_runs_nearby_share(folder, calls):
    mapped({"rate": RATES[:2], "dataset": ("digits",)}, folder)
    assert len(calls) == 3  # one preparation serves both rates
    calls.clear()
    found = mapped({"rate": RATES[:3], "dataset": ("digits", "mnist1d")}, folder)
    assert sorted(call[:3] for call in calls if call[0] == "train") == [
        ("train", "digits", 0.1),
        *(("train", "mnist1d", rate) for rate in RATES[:3]),
    ]
    assert found.facts["work"] == {"cells": 6, "cells_computed": 4, "cells_failed": 0, "jobs": 5}
    calls.clear()
    for _ in range(2):  # a map that is there says it, too
        mapped({"rate": RATES[:3], "unread": (0, 1)}, folder.parent / "beside")  # by content, from the neighbour
        assert calls == []
        assert "4 of 4 jobs were taken over from map, begun 20" in (folder.parent / "beside" / "map.html").read_text()
    other = dataclasses.replace(
        STUDY, measures=(lab.Measure(dataclasses.replace(CLAIM, rule=claims.Above(9.0)), lambda m: m.train.effect),)
    )
    found = lab.map(other, "M.a", {"rate": RATES[:1]}, settings=Arguments(), out=folder.parent / "third")
    assert calls == []
    assert any(note.startswith("The rule of M.a was changed after the run in map had begun. Then: ") for note in found.facts["notes"])
    with pytest.raises(StoreError, match="other settings"):
        mapped({"rate": RATES[:2]}, folder, claim="M.b")


def test_on_cpus_a_map_computes_a_job_a_core(folder, monkeypatch):
    monkeypatch.setattr(jax_setup, "_num_cores", lambda: 3)
    all_there = threading.Barrier(3, timeout=20)

    def meet(case, settings):  # returns only if three cells compute beside each other
        all_there.wait()
        return {"effect": lab.along("seed", np.arange(1.0, 1 + settings.num_seeds))}

    of = dataclasses.replace(STUDY, stages=(lab.Stage(meet),), measures=(lab.Measure(CLAIM, lambda m: m.meet.effect),))
    found = lab.map(of, "M.a", {"rate": RATES[:3]}, settings=Arguments(), out=folder)
    assert found.headline == "holds in 3 of 3 specifications, contradicted in 0"
    assert len(json.loads((folder / "config.json").read_text())["devices"]) == 3


def test_results_that_cannot_be_copied_are_computed_and_not_told_as_taken_over(folder, calls, monkeypatch):
    mapped({"rate": RATES[:2]}, folder)
    calls.clear()
    monkeypatch.setattr(archive.Archive, "reuse", lambda self, name, digest: False)  # the run nearby was deleted meanwhile
    mapped({"rate": RATES[:2]}, folder.parent / "beside")
    assert len(calls) == 3
    assert "taken over from" not in (folder.parent / "beside" / "map.html").read_text()


def test_the_call_has_the_options_that_decide_what_is_computed():
    axes = map_axes.as_axes({"rate": (0.1, 0.2)})
    question = types.SimpleNamespace(claim_id="T.a")
    called = map_run._call(question, axes, lab.MapOptions(only_cases=("digits",), num_cells=3, reuse=False))
    assert called.endswith("settings=settings, options=lab.MapOptions(num_cells=3, only_cases=('digits',)))")
    assert map_run._call(question, axes, lab.MapOptions()).endswith("settings=settings)")


def test_a_cell_that_fails_says_why_and_the_map_goes_on(folder, calls, capsys):
    found = mapped({"num_epochs": (0, 5, 13)}, folder)
    invalid, fine, failed = found.cells
    assert "epochs must be at least 1, got 0" in invalid.failure
    assert fine.verdict.verdict == "supported"
    assert failed.failure == "net, digits; train; (0, 1, 2, 3, 4, 5, 6, 7): ValueError: thirteen epochs are unlucky"
    assert found.counts == {"supported": 1, "failed": 2}
    assert "unlucky" in (page := (folder / "map.html").read_text())
    assert "<figcaption>The specification: mark" in page
    assert "thirteen epochs are unlucky In 1 of 3 cells: num_epochs 13" in capsys.readouterr().out
    calls.clear()
    mapped({"num_epochs": (0, 5, 13)}, folder)
    assert [call[3] for call in calls] == [13]  # what failed is tried again
    with pytest.raises(lab.SettingsError, match="no cell of the map can run"):
        mapped({"num_epochs": (0,)}, folder.parent / "none")


def test_data_that_cannot_be_loaded_fail_a_cell_before_any_is_computed(folder, calls, monkeypatch):
    looked = []
    check = data.check
    monkeypatch.setattr(data, "check", lambda name, data_dir: looked.append((name, list(calls))) or check(name, data_dir=data_dir))
    found = mapped({"dataset": ("digits", "digits@3"), "rate": RATES[:2]}, folder)
    assert sorted(looked) == [("digits", []), ("digits@3", [])]
    assert {call[1] for call in calls} == {"digits"}
    assert ["8 x 8 inputs cannot be pooled to 3" in cell.failure for cell in found.cells] == [False, False, True, True]
    assert found.facts["work"] == {"cells": 4, "cells_computed": 2, "cells_failed": 2, "jobs": 3}


def test_cases_are_chosen_by_name_and_a_cell_without_one_fails(folder):
    two = dataclasses.replace(Settings("quick", 8), cases=(Case("digits"), Case("mnist1d")))
    found = mapped({"rate": (0.01,)}, folder, two, only_cases=("*mnist1d",))
    assert [case.case for case in found.cells[0].verdict.cases] == ["net, mnist1d"]
    with pytest.raises(lab.SettingsError, match="no case matches x: the cases are net, digits, net, mnist1d"):
        mapped({"rate": (0.01,)}, folder, two, only_cases=("x",))
    of_one = dataclasses.replace(STUDY.measures[0], where=lambda case: case.dataset == "digits")
    study = dataclasses.replace(STUDY, measures=(of_one,))
    found = lab.map(study, "M.a", {"dataset": ("digits", "mnist1d")}, settings=Arguments(), out=folder)
    assert [cell.failure for cell in found.cells] == ["", "the claim has no case at these settings"]


def test_a_control_keeps_its_case_where_the_claim_is_judged_in_another(folder):
    two = dataclasses.replace(Settings("quick", 8), cases=(Case("digits"), Case("mnist1d")))
    effect = {"measure": "effect", "fn": lambda m: m.train.effect}
    control = lab.Control("positive", "There.", rule=claims.Above(0.0), where=lambda case: case.dataset == "digits", **effect)
    other = lab.Control("negative", "Not there.", rule=claims.Below(9.0), **effect)
    found = lab.map(
        dataclasses.replace(STUDY, controls=(control, other)),
        "M.a",
        {"rate": (0.01, 1.0)},
        settings=two,
        out=folder,
        options=lab.MapOptions(only_cases=("*mnist1d",)),
    )
    fine, too_fast = (cell.verdict for cell in found.cells)
    assert [case.case for case in fine.cases] == ["net, mnist1d"]
    assert (fine.verdict, too_fast.verdict) == ("supported", "void")  # void by what came out in the other case


def test_a_map_of_one_cell_on_fresh_seeds_is_compared_with_others(folder):
    mapped({"rate": (0.01,)}, folder)
    fresh = folder.parent / "fresh"
    mapped({"rate": (0.01,)}, fresh, Arguments(first_seed=100))
    assert lab.open(fresh).seed.values.tolist() == list(range(100, 108))
    (of_old,), (of_fresh,) = (claims.read_verdicts(path / "verdicts.json") for path in (folder, fresh))
    found = compared(of_old, of_fresh)
    assert (found.case, found.basis) == ("net, digits", "other seeds")
    mapped({"rate": RATES}, fresh)
    assert not (fresh / "verdicts.json").exists()  # it was that of another map


def test_the_page_says_which_settings_the_cells_had_and_what_each_start_computed(folder):
    axes = {"num_epochs": (20,), "rate": RATES[:2], "dataset": ("mnist1d",)}
    settings = mapped(axes, folder).facts["settings"]
    assert settings == {
        "preset": "quick",
        "num_seeds": 8,
        "looks": None,
        "rate": "varied: 0.003; 0.01",
        "num_epochs": 20,
        "unread": 0,
        "dataset": "mnist1d",
    }
    page = (folder / "map.html").read_text()
    assert "2 cells. The last start computed 3 jobs for 2 of them." in page
    assert "cells_computed" not in page
    CALLS.clear()
    mapped(axes, folder)
    page = (folder / "map.html").read_text()
    assert "2 cells. The last start found all results there, of earlier starts or of runs nearby; earlier starts computed 3 jobs." in page


def test_seeds_are_added_cell_by_cell_until_each_is_decided(folder):
    arguments = Arguments(until_decided=True, seeds=4, most_seeds=16)
    found = mapped({"rate": (0.01, 0.0301)}, folder, arguments)  # far from the boundary, and on it
    far, near = (cell.verdict for cell in found.cells)
    assert (far.verdict, far.num_seeds) == ("supported", 4)
    assert near.verdict == "undecided"
    assert near.num_seeds > 4


def test_stages_of_one_code_are_told_apart(folder):
    def stage(name, over):
        def compute(case, settings, **point):
            return {"effect": lab.along("seed", np.ones(settings.num_seeds))}

        compute.__name__ = name
        return lab.Stage(compute, over=over)

    first, second = (stage(name, lambda case, settings: {}) for name in ("first", "second"))
    measure = lab.Measure(CLAIM, lambda m: m.first.effect + m.second.effect)
    study = dataclasses.replace(STUDY, stages=(first, second), measures=(measure,))
    (cell,) = lab.map(study, "M.a", {"rate": (0.1,)}, settings=Settings("quick", 4), out=folder).cells
    assert cell.verdict.interval.estimate == 2.0


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["rat=1,2"], r"no setting rat to vary(.|\n)*rate: 0.01\n(.|\n)*options.norm: 'batch'"),
        (["rate"], "NAME=VALUE"),
        (["rate=0.1,0.1"], "must differ"),
        (["rate=0.1", "rate=0.2"], "given twice"),
        (["rate[num_epochs=5]=0.1", "num_epochs=5,20"], "before it stands no axis"),
        (["num_seeds=4,5"], "no setting num_seeds"),
        (["+rate.norm=1"], "no setting .rate.norm"),
        (["+options=1"], "no setting .options"),
        ([], "needs an axis"),
    ],
)
def test_bad_axes_say_what_there_is(texts, message):
    with pytest.raises(lab.SettingsError, match=message):
        map_axes.check_known(Arguments(), map_axes.parse_axes(texts))


def test_axes_of_texts_options_and_entries():
    rate, widths, norm = map_axes.parse_axes(["rate=0.1,0.01,1", "widths=(4,8),(8,16)", "options.norm=layer,none"])
    assert rate.values == (0.01, 0.1, 1)
    assert rate.is_log
    assert widths.values == ((4, 8), (8, 16))
    assert norm.values == ("layer", None)
    pairs = map_axes.parse_values("(relative_rank,0.6),('a b',1e-3,none),((skip,True),)")
    assert pairs == (("relative_rank", 0.6), ("a b", 1e-3, None), (("skip", True),))
    assert map_axes.settings_at(Arguments(), {"epochs": 7}).num_epochs == 7
    with pytest.raises(lab.SettingsError, match="num_train must be at least the batch size"):
        map_axes.settings_at(Sized(), {"num_train": 10})
    assert map_axes.settings_at(Sized(), {"num_train": 10, "batch_size": 5}).num_train == 10  # validated once, together
    assert map_axes.settings_at(Arguments(epochs=3), {"num_epochs": 9}).num_epochs == 9
    (case,) = map_axes.settings_at(Arguments(), {"options.norm": "layer", "dataset": "mnist1d"}).cases
    assert case == Case("mnist1d", (("norm", "layer"), ("skip", True)))
    (added,) = map_axes.parse_axes(["+options.parametrisation=standard,ntk"])
    map_axes.check_known(Arguments(), [added])
    (case,) = map_axes.settings_at(Arguments(), {added.name: "ntk"}).cases
    assert case.options == (("norm", "batch"), ("skip", True), ("parametrisation", "ntk"))
    with pytest.raises(lab.SettingsError, match="num_epochs takes a whole number, such as 5, got 'many'"):
        map_axes.settings_at(Arguments(), {"num_epochs": "many"})


@pytest.mark.parametrize("sampling", ["sobol", "random"])
def test_a_subset_is_drawn_without_repeats_and_grows(sampling):
    axes = [Axis("a", tuple(range(9))), Axis("b", tuple(range(9))), Axis("c", (1, 2), {"a": 0})]
    small, large = (map_axes.points(axes, number, sampling) for number in (10, 40))
    assert large[:10] == small
    assert len({repr(point) for point in large}) == 40
    assert all(("c" in point) == (point["a"] == 0) for point in large)
    assert len(map_axes.points(axes, 1000)) == 8 * 9 + 2 * 9


@pytest.mark.slow
def test_a_killed_map_goes_on_from_what_is_there(folder):
    code = (
        "import os, signal, sys; from tests.lab import test_map as t; from jaxbp.lab.archive import Archive\n"
        "put = Archive.put\n"
        "def then_die(self, *args, **facts):\n"
        "    put(self, *args, **facts)\n"
        "    if len(t.CALLS) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Archive.put = then_die\n"
        "t.mapped({'rate': t.RATES}, sys.argv[1], devices=['cpu'])\n"
    )
    died = subprocess.run([sys.executable, "-c", code, str(folder)], check=False, capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()[-2000:]
    assert not (folder / "map.nc").exists()
    found = mapped({"rate": RATES}, folder)
    assert len(CALLS) == 2
    assert found.counts == {"supported": 2, "contradicted": 2}


@pytest.mark.slow
def test_two_processes_share_the_cells_of_a_map(folder):
    script = (
        "import sys, json, pathlib; from jaxbp.runtime import processes\n"
        "processes.initialize(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))\n"
        "from tests.lab import test_map as t\n"
        f"found = t.mapped({{'rate': t.RATES, 'num_epochs': (5, 13)}}, {str(folder)!r})\n"
        f"path = pathlib.Path({str(folder.parent)!r}) / f'calls-{{sys.argv[3]}}.json'\n"
        "path.write_text(json.dumps([t.CALLS, [[cell.failure, str(cell.verdict and cell.verdict.verdict)] for cell in found.cells]]))\n"
        "processes.shutdown()\n"
    )
    folder.parent.mkdir()
    run_processes.run(script, 2, timeout=120)
    (first, cells), (second, same) = (json.loads((folder.parent / f"calls-{i}.json").read_text()) for i in range(2))
    assert len(first) + len(second) == 9  # a preparation, and a training for each of eight cells: none of them twice
    assert len({json.dumps(call) for call in (*first, *second)}) == 9
    assert first
    assert second
    assert cells == same
    fine, failed = cells[::2], cells[1::2]
    assert [outcome for _, outcome in fine] == ["supported", "supported", "contradicted", "contradicted"]
    assert all("thirteen epochs are unlucky" in failure for failure, _ in failed)
    CALLS.clear()
    mapped({"rate": RATES}, folder)  # alone, on what the two have left
    assert CALLS == []
