"""Stages become jobs that are computed once, in groups, and never taken for those of other code."""

import dataclasses
import functools
import json
import threading
from types import SimpleNamespace

import jax
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from jaxbp import claims, lab, report
from jaxbp.lab import execute, jobs, recorded_rules
from jaxbp.lab.archive import Archive
from jaxbp.runtime import progress
from jaxbp.runtime.store import Store, StoreError
from jaxbp.sweep import scheduler
from tests.helpers import studies


@dataclasses.dataclass(frozen=True)
class Case:
    name: str


@dataclasses.dataclass(frozen=True)
class Settings(lab.Settings):
    cases: tuple[Case, ...] = (Case("digits"),)
    scale: float = 1.0
    unused: int = 0


def study(*stages, measures=(), figures=(), tables=()):
    return lab.Study("T", "Title", "Lead", "tests.toy", stages, measures, (), figures, tables, ())


def stage(name, fn, **options):
    """A stage that calls ``fn`` with its point."""

    def compute(case, settings, *needed, **point):
        return fn(*needed, **point)

    compute.__name__ = name
    return lab.Stage(compute, **options)


@pytest.fixture
def compute(tmp_path):
    def run(of, settings=None, folder="run", **options):
        return studies.compute(of, settings or Settings("quick", 2), tmp_path / folder, **options)

    return run


def test_neighbours_of_one_group_run_beside_each_other_and_groups_do_not(compute):
    both, order = threading.Barrier(2, timeout=20), []

    def meet(name):
        both.wait()  # breaks if the two do not run at the same time
        order.append(name)
        return {}

    def alone(name):
        order.append(name)
        return {}

    a = [stage(name, functools.partial(meet, name), group="a") for name in ("a1", "a2")]
    compute(study(*a, *(stage(name, functools.partial(alone, name)) for name in "bcd")), num_workers=2)
    assert set(order[:2]) == {"a1", "a2"}
    assert order[2:] == ["b", "c", "d"]


def test_within_a_group_cases_take_turns_and_the_heaviest_jobs_come_first():
    weights = {("a", 0): 1.0, ("a", 1): 2.0, ("b", 0): 5.0, ("b", 1): 4.0, ("b", 2): 3.0}

    def over(case, settings):
        return {"part": [part for name, part in weights if name == case.name]}

    parts = lab.Stage(lambda case, settings, part: {}, over=over, cost=lambda case, settings, part: weights[case.name, part])
    planned = jobs._in_groups(jobs.plan(study(parts), Settings("quick", 2, (Case("a"), Case("b")))))
    assert [(job.case.name, job.point["part"]) for job in planned] == [("b", 0), ("a", 1), ("b", 1), ("a", 0), ("b", 2)]


def test_a_run_leaves_a_log_and_a_status_and_goes_on(compute, tmp_path, capsys):
    broken, lines = [True], []

    def look():
        (log,) = (tmp_path / "run").glob("log.txt")
        lines.append(log.read_text().splitlines()[-1].split(" ", 1)[1])
        return {}

    def fail():
        if broken:
            raise ValueError("no data")
        return look()

    of = study(stage("first", look), stage("second", look, cost=lambda case, settings: 3.0), stage("third", fail))
    with pytest.raises(ValueError, match="no data"):
        compute(of)
    status = progress.read(tmp_path / "run")
    assert (status.state, status.error, status.done) == ("failed", "ValueError: no data", ("digits; first", "digits; second"))
    assert status.failed == {"digits; third": "ValueError: no data"}
    capsys.readouterr()
    broken.clear()
    compute(of, recompute=True)  # what the functions close over has changed
    assert lines[:2] == ["started digits; first", "started digits; second"]
    assert progress.read(tmp_path / "run").state == "finished"
    assert "[3/3] digits; third" in capsys.readouterr().out


def test_a_job_that_fails_in_a_thread_is_told_and_those_beside_it_are_left(compute, tmp_path):
    beside, told = threading.Event(), threading.Event()

    def fail():
        assert beside.wait(20)
        raise ValueError("no data")

    def slow():
        beside.set()
        told.wait(20)
        return {}

    with pytest.raises(ValueError, match="no data"):
        compute(study(stage("bad", fail, group="a"), stage("slow", slow, group="a")), num_workers=2)
    status = progress.read(tmp_path / "run")
    told.set()
    assert (status.state, status.failed, status.left) == ("failed", {"digits; bad": "ValueError: no data"}, ("digits; slow",))


def test_jobs_for_the_cpu_do_not_wait_for_an_accelerator(compute, monkeypatch):
    host, accelerator = jax.local_devices()
    free = {False: scheduler._queue([accelerator]), True: scheduler._queue([host] * 2)}
    monkeypatch.setattr(scheduler, "_free_devices", lambda num_workers, on_cpu: free)
    both_there = threading.Barrier(2, timeout=20)

    def meet():  # returns only if two of them run beside each other
        both_there.wait()
        return {"device": lab.device().id}

    def where():
        return {"device": lab.device().id}

    stages = [stage(name, where, group="all") for name in "cde"] + [stage(name, meet, group="all", on_cpu=True) for name in "ab"]
    (results,) = compute(study(*stages)).cases
    assert [int(getattr(results, name).device) for name in "cdeab"] == [accelerator.id] * 3 + [host.id] * 2


def draw(case, settings, seed):
    return {"value": settings.scale * seed}


def doubled(case, settings, drawn, seed):
    return {"twice": 2 * float(drawn.value)}


def spread(case, settings, drawn):
    return {"values": lab.along("seed", drawn.value.values)}


SEEDS = {"over": lambda case, settings: {"seed": settings.seeds}}
CHAIN = study(
    lab.Stage(draw, **SEEDS, reads=("scale",)), lab.Stage(doubled, **SEEDS, needs=(draw,), reads=()), lab.Stage(spread, needs=(draw,))
)


def test_a_stage_gets_the_results_that_its_point_shares_with_the_needed_stage(compute):
    (results,) = compute(CHAIN, Settings("quick", 3)).cases
    assert results.draw.value.dims == ("seed",)
    assert results.doubled.twice.sel(seed=2) == 4.0
    assert results.spread["values"].values.tolist() == [0.0, 1.0, 2.0]
    with pytest.raises(AttributeError, match="the study has no stage 'other', it has draw, doubled, spread"):
        _ = results.other


def test_more_seeds_need_only_the_jobs_of_the_new_seeds(compute, tmp_path, capsys):
    compute(CHAIN, Settings("quick", 2), "two")
    compute(CHAIN, dataclasses.replace(Settings("quick", 3), unused=7), "three")
    assert f"4 of 7 jobs were taken over from {tmp_path / 'two'}" in capsys.readouterr().out
    started = [line.split("started ")[1] for line in (tmp_path / "three/log.txt").read_text().splitlines() if "started" in line]
    assert sorted(started) == ["digits; doubled; 2", "digits; draw; 2", "digits; spread"]


def drawn_together(case, settings, scale, seed):
    """All seeds of a tuple in one job; the first job alone has something more."""
    results = xr.Dataset({"value": ("seed", scale * np.array(seed))}, {"seed": list(seed)})
    return results.assign(start=scale) if 0 in seed else results


def over(**axes):
    return {"over": lambda case, settings: axes}


TOGETHER = study(
    lab.Stage(
        drawn_together, **over(scale=(2.0, 1.0), seed=[(0, 1), (2, 3), (4,)]), cost=lambda case, settings, scale, seed: seed[0] / scale
    ),
    stage("one_seed", lambda drawn, seed: {"twice": 2 * drawn.value}, **over(seed=range(5)), needs=(drawn_together,)),
    stage("some_seeds", lambda drawn, seed: drawn[["value"]], **over(seed=[(0, 1, 2), (3, 4)]), needs=(drawn_together,)),
)


def test_results_of_jobs_that_compute_several_coordinates_are_put_one_after_another(compute, tmp_path):
    (results,) = compute(TOGETHER, Settings("quick", 5)).cases
    for dataset in (results.drawn_together, lab.open(tmp_path / "run")["digits/drawn_together"]):
        assert dataset.scale.values.tolist() == [2.0, 1.0]  # the order of the axis, not that of the cost
        assert dataset.seed.values.tolist() == [0, 1, 2, 3, 4]
        assert dataset.value.transpose("scale", "seed").values.tolist() == [[0, 2, 4, 6, 8], [0, 1, 2, 3, 4]]
        assert dataset.start.dims == ("scale",)
    assert results.one_seed.twice.sel(seed=3, scale=1.0) == 6.0
    xr.testing.assert_equal(results.some_seeds.value.transpose("scale", "seed"), results.drawn_together.value.transpose("scale", "seed"))


def test_a_setting_that_a_stage_reads_makes_other_jobs():
    one, other = (jobs.plan(CHAIN, Settings("quick", 1, scale=scale)) for scale in (1.0, 2.0))
    assert not {job.digest for job in one} & {job.digest for job in other}


def test_results_of_other_code_are_refused_with_what_changed_or_computed_anew(compute, capsys):
    def value():
        return {"value": factor}

    factor = 1.0
    assert float(compute(study(stage("a", value))).cases[0].a.value) == 1.0
    factor = 2.0
    with pytest.raises(StoreError, match=r"(?s)results that other code computed:.*--recompute"):
        compute(study(stage("a", value)))
    assert float(compute(study(stage("a", value)), recompute=True).cases[0].a.value) == 2.0
    assert "1 of 1 jobs are in" not in capsys.readouterr().out
    compute(study(stage("a", value)))
    assert "1 of 1 jobs are in" in capsys.readouterr().out


def test_a_damaged_result_is_told(compute, tmp_path):
    compute(CHAIN)
    path = sorted((tmp_path / "run/jobs").glob("*.nc"))[0]
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(StoreError, match=r"is damaged.*delete this file and start the run again"):
        [getattr(results, name) for results in compute(CHAIN).cases for name in results.stages]


def test_a_bit_that_flipped_on_disk_is_told(tmp_path):
    values = np.linspace(1, 2, 1000)
    with Store(tmp_path / "run", {}) as store:
        archive = Archive(store)
        archive.put("a", "d", xr.Dataset({"x": ("i", values)}))
        path = archive.path("a", "d")
        content = bytearray(path.read_bytes())
        content[content.index(values.tobytes()) + 4000] ^= 1
        path.write_bytes(content)
        with pytest.raises(StoreError, match="is damaged"):
            archive.get("a", "d")


def test_needed_stages_must_come_first():
    with pytest.raises(ValueError, match="stage doubled of T needs draw: put the needed stages before it"):
        study(lab.Stage(doubled, needs=(draw,)))
    with pytest.raises(ValueError, match="stage doubled of T is in the group of draw, which it needs: give it another group"):
        study(lab.Stage(draw, group="all"), lab.Stage(doubled, needs=(draw,), group="all"))


ABOVE = claims.Claim("T.a", "Values are above 0.", "folklore", "value <b>", claims.Above(0.0))


def test_a_study_ends_with_verdicts_a_table_and_a_page(tmp_path):
    of = study(
        lab.Stage(lambda case, settings: {"value": lab.along("seed", 1.0 + np.arange(4.0))}),
        measures=(lab.Measure(ABOVE, lambda m: getattr(m, "<lambda>").value),),
        figures=(report.ClaimStrips(),),
        tables=(report.ClaimMeans(),),
    )
    settings = Settings("quick", 4, (Case("a"), Case("b")))
    section = execute.run(of, settings, tmp_path / "run", devices=["cpu"], command="python -m this")
    (verdict,) = section.verdicts
    assert (verdict.verdict, verdict.interval.estimate) == ("supported", 2.5)
    (read,) = claims.read_verdicts(tmp_path / "run/verdicts.json")
    assert read.verdict == "supported"
    assert [dict(case.by_seed) for case in read.cases] == [{0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}] * 2
    rows = pd.read_parquet(tmp_path / "run/measurements.parquet")
    assert rows[rows.case == "b"].value.tolist() == [1, 2, 3, 4]
    page = (tmp_path / "run/report.html").read_text()
    assert "value &lt;b&gt;" in page
    assert "python -m this" in page
    assert (tmp_path / "run/figures/Ta.svg").exists()


def test_other_axes_of_a_measure_are_cases_of_their_own(compute):
    def grid():
        return xr.Dataset({"x": (("arm", "seed"), [[1.0, 2.0], [3.0, 4.0]])}, {"arm": ["p", "q"], "seed": [0, 1]})

    run = compute(study(stage("grid", grid), measures=(lab.Measure(ABOVE, lambda m: m.grid.x),)))
    (values,) = run.measurements.values()
    assert {name: list(of_seeds) for name, of_seeds in values.items()} == {"digits: p": [1.0, 2.0], "digits: q": [3.0, 4.0]}
    assert len(run.table()) == 4


def test_a_run_is_read_back_as_a_tree(compute, tmp_path):
    compute(CHAIN, Settings("quick", 3, (Case("a/b"), Case("c"))))
    tree = lab.open(tmp_path / "run")
    assert tree["c/draw"].value.values.tolist() == [0.0, 1.0, 2.0]
    assert "a-b" in tree
    with pytest.raises(FileNotFoundError, match="holds no results"):
        lab.open(tmp_path / "nowhere")


def test_what_a_kill_left_of_a_file_goes(compute, tmp_path):
    compute(CHAIN)
    leftover = tmp_path / "run/jobs/.0123-4567.nc.89abcdef"
    leftover.write_bytes(b"half")
    compute(CHAIN)
    assert not leftover.exists()


def test_a_refused_start_leaves_the_results_to_be_read(compute, tmp_path):
    def value():
        return {"value": factor}

    factor = 1.0
    compute(study(stage("a", value)))
    factor = 2.0
    with pytest.raises(StoreError, match="other code computed"):
        compute(study(stage("a", value)))
    assert float(lab.open(tmp_path / "run")["digits/a"].value) == 1.0


def test_what_a_property_of_a_case_or_the_settings_says_is_part_of_the_identity():
    def planned(seeds, name):
        case = type("Case", (Case,), {"label": property(lambda self: name)})("digits")
        settings = type("Settings", (Settings,), {"tuning": property(lambda self: seeds)})("quick", 2, (case,))
        return jobs.plan(CHAIN, settings)[0].digest

    assert planned([1], "a") == planned([1], "a")
    assert len({planned([1], "a"), planned([2], "a"), planned([1], "b")}) == 3


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"x": lab.along("seed", [1.0, 2.0])}, "is one seed, so its result must not have the axis 'seed'"),
        ({"x": 1.0}, "needs the axis 'seed' of length 2, got None"),
    ],
)
def test_a_result_whose_axes_do_not_fit_the_point_is_refused(compute, result, message):
    seeds = [(0, 1)] if "needs" in message else [0, 1]
    with pytest.raises(ValueError, match=message):
        compute(study(stage("a", lambda seed: result, over=lambda case, settings: {"seed": seeds})))


def test_names_of_stages_and_groups_do_not_meet():
    with pytest.raises(ValueError, match="functions with names of their own, got \\['a', 'a'\\]"):
        study(stage("a", dict), stage("a", dict))
    with pytest.raises(ValueError, match="stage doubled of T is in the group of draw"):
        study(lab.Stage(draw), lab.Stage(doubled, needs=(draw,), group="draw"))


def test_arms_need_the_same_arguments():
    with pytest.raises(ValueError, match="all arms need the arguments \\['scale'\\], and 'b' has \\['scale', 'shift'\\]"):
        lab.sweep(lambda key, **options: {}, seeds=range(2), arms={"a": {"scale": 1.0}, "b": {"scale": 1.0, "shift": 2.0}})


def test_a_sweep_without_arms_has_no_axis_for_them():
    results = lab.sweep(lambda key: {"x": jax.random.normal(key)}, seeds=[3, 5])
    assert results.x.dims == ("seed",)
    assert results.seed.values.tolist() == [3, 5]


@pytest.fixture
def run(tmp_path):
    """A function that runs a study of one measured value under a rule, with a premise or not, in a folder of its own or not."""
    value = stage("value", lambda: {"x": lab.along("seed", [1.0, 2.0, 3.0])})
    more = lab.Measure(dataclasses.replace(ABOVE, id="T.p"), lambda m: m.value.x)

    def run_under(rule, folder="run", **options):
        measure = lab.Measure(dataclasses.replace(ABOVE, rule=rule, **options), lambda m: m.value.x)
        of = study(value, measures=(measure, more))
        return execute.run(of, Settings("quick", 3), tmp_path / "runs" / folder, devices=["cpu"], command="this")

    return run_under


def test_a_rule_that_differs_from_that_of_the_run_whose_results_are_taken_over_is_told(run, tmp_path, capsys):
    run(claims.Above(0.0), "first")
    begun = json.loads((tmp_path / "runs/first/config.json").read_text())["started"][:10]
    capsys.readouterr()
    same = run(claims.Above(0.0), "same")
    source = tmp_path / "runs" / "first"
    assert f"1 of 1 job was taken over from {source}, begun {begun}" in (said := capsys.readouterr().out)
    assert "The rule" not in said
    assert f"1 of 1 job was taken over from first, begun {begun}." in same.sections[-1].blocks
    assert "written down before the first seed. " in same.methods()
    told = "The rule of T.a was changed after the run in first had begun. Then: the whole 95 % interval of value <b> lies above 0. Now: "
    for _ in range(2):  # also when the run goes on
        other = run(claims.Above(9.0), "other", premise="T.p")
        assert told in (said := capsys.readouterr().out)
        assert "The premises of T.a were changed after the run in first had begun. Then: none. Now: T.p." in said
        assert told in str(other.sections[-1].blocks)
        assert "before the first seed, but for T.a, changed or added since." in other.methods()
        assert "fixed before the run" not in (tmp_path / "runs" / "other" / "report.html").read_text()


def test_rules_that_were_added_or_dropped_are_told(run, tmp_path):
    then = recorded_rules.Rules({"T.a": "above 0", "T.b": "above 1"}, None)
    now = recorded_rules.Rules({"T.a": "above 0", "T.c": "above 2"}, {"T.a": ["T.c"]})
    told = [change.sentence for change in recorded_rules.changes(then, now, "this run")]
    assert told == [
        "The rule of T.c was added after this run had begun: above 2.",
        "The rule of T.b was dropped after this run had begun: above 1.",
    ]
    run(claims.Above(0.0), "first")
    config = tmp_path / "runs/first/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "rules": None}))
    section = run(claims.Above(0.0), "second")
    assert "No rule was written down in first, whose results are used." in section.sections[-1].blocks
    assert "but for T.a, T.p, changed or added since" in section.methods()


def test_a_rule_that_was_changed_after_the_run_began_is_told(run, capsys):

    run(claims.Above(0.0))
    assert "The rule" not in capsys.readouterr().out
    section = run(claims.Above(9.0))
    told = "The rule of T.a was changed after this run had begun. Then: "
    assert told in capsys.readouterr().out
    assert told in str(section.sections[-1].blocks)


def test_the_wall_time_counts_starts_that_were_stopped_or_killed(tmp_path, monkeypatch):
    ends, seconds = [KeyboardInterrupt, ValueError, None], iter(range(0, 10**6, 100))  # the clock goes on by 100 s at each look
    monkeypatch.setattr(execute, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))

    def finish():
        noted.append(config().get("wall_seconds", 0))
        if error := ends.pop(0):
            raise error("stop")
        return {"x": lab.along("seed", [1.0, 2.0, 3.0])}

    def config():
        return json.loads((tmp_path / "run" / "config.json").read_text())

    noted = []
    of = study(stage("first", lambda: {"x": 1.0}), stage("second", finish), measures=(lab.Measure(ABOVE, lambda m: m.second.x),))
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error):
            execute.run(of, Settings("quick", 3), tmp_path / "run", devices=["cpu"], command="", recompute=True)
        noted.append(config()["wall_seconds"])
    section = execute.run(of, Settings("quick", 3), tmp_path / "run", devices=["cpu"], command="", recompute=True)
    first_job, first_stop, start, second_stop, last_start, end = *noted, section.settings["wall_seconds"]
    assert 0 < first_job < first_stop == start < second_stop == last_start < end
