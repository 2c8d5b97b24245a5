"""Seeds until decided: blocks of seeds that never change, looks in one folder, premises and controls of a study."""

import dataclasses
import json
import re

import numpy as np
import pytest

from jaxbp import claims, lab, stats
from jaxbp.claims import Above, Claim, Within
from jaxbp.lab import execute, jobs
from jaxbp.lab.settings import SettingsError, looks_of
from jaxbp.runtime.store import StoreError

EFFECTS = {"large": 3.0, "small": 0.4, "none": 0.0}
HELPS = Claim("T.a", "It helps.", "nowhere", "gain", Above(0.0), smallest_effect=0.5)
MORE = Claim("T.b", "It helps by a half.", "nowhere", "gain", Above(0.5), premise="T.a")


@dataclasses.dataclass(frozen=True)
class Case:
    name: str


@dataclasses.dataclass(frozen=True)
class Settings(lab.Settings):
    cases: tuple[Case, ...] = (Case("large"), Case("small"))


def tune(case, settings):
    return {"scale": 1.0}


def train(case, settings, tuned, seed):
    noise = [np.random.default_rng([number, len(case.name)]).normal() for number in seed]
    sham = [np.random.default_rng([number, 99]).normal() for number in seed]
    return {
        "gain": lab.along("seed", EFFECTS[case.name] + np.array(noise) * float(tuned.scale)),
        "sham": lab.along("seed", np.array(sham)),
    }


GAIN = lab.Measure(HELPS, lambda m: m.train.gain)


def study(*, controls=(), measures=(GAIN,)):
    over = {"over": lambda case, settings: {"seed": settings.seed_blocks}}
    stages = (lab.Stage(tune, reads=()), lab.Stage(train, needs=(tune,), **over))
    return lab.Study("T", "Title", "Lead", "tests.toy", stages, measures, controls, (), (), ())


def planted(rule=None):
    return lab.Control("positive", "The planted effect is found.", "planted", rule or Above(0.0), lambda m: 5 + m.train.sham)


SHAM = lab.Control("negative", "Arms that differ in name only are alike.", "sham", Within(0.5), lambda m: m.train.sham)


@pytest.fixture
def run(tmp_path):
    def run(of, settings, folder="run"):
        return execute.run(of, settings, tmp_path / folder, devices=["cpu"], command="toy", recompute=False, reuse=False)

    return run


@pytest.fixture
def computed(tmp_path):
    """The jobs that were computed in a folder, by all of its runs in their order."""
    return lambda folder="run": re.findall(r"started (\w+; .*)", (tmp_path / folder / "log.txt").read_text())


def settings(most=40, cases=("large", "small")):
    looks = stats.Looks(5, most=most)
    return Settings("quick", looks.first, tuple(map(Case, cases)), looks=looks)


def test_seeds_are_added_in_blocks_until_all_is_decided(run, computed, tmp_path):
    (verdict,) = run(study(), settings()).verdicts
    assert verdict.verdict == "supported"
    large, small = verdict.cases
    assert large.num_seeds < small.num_seeds  # each is frozen at its own look
    assert small.confidence == 1 - 0.05 * 2.0 ** -(small.look + 1)
    names, blocks = computed(), verdict.looks.blocks(small.num_seeds)
    assert [name for name in names if name.startswith("large")] == ["large; tune", *(f"large; train; {block}" for block in blocks)]
    entry = json.loads((tmp_path / "run/verdicts.json").read_text())[0]
    assert entry["schedule"] == {"first": 5, "factor": 2, "most": 40, "error": 0.05, "spending": "geometric: look k has error x 2^-(k+1)"}
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["settings"]["looks"]["most"] == 40
    assert "num_seeds" not in config["settings"]
    assert run(study(), settings()).verdicts == [verdict]
    assert computed() == names  # all of it is there


@pytest.mark.slow
def test_a_run_that_was_killed_between_looks_ends_alike(run, computed, monkeypatch):
    whole, names = run(study(), settings(), "whole").verdicts, computed("whole")

    def die(results):
        raise KeyboardInterrupt

    monkeypatch.setattr(execute, "_look", die)
    with pytest.raises(KeyboardInterrupt):
        run(study(), settings(), "killed")
    monkeypatch.undo()
    assert computed("killed") == names[:4]
    assert run(study(), settings(), "killed").verdicts == whole
    assert computed("killed") == names
    with pytest.raises(StoreError, match="other settings"):  # the schedule is fixed before the first seed
        run(study(), settings(most=80), "killed")


def test_a_fixed_run_gives_its_first_seeds_to_a_run_by_looks():
    fixed, by_looks = jobs.plan(study(), Settings("quick", 5)), jobs.plan(study(), settings())
    assert [job.digest for job in fixed if "seed" in job.point] == [job.digest for job in by_looks if "seed" in job.point]


def test_what_is_on_the_threshold_stays_undecided_and_is_told(run):
    (verdict,) = run(study(), settings(most=20, cases=("none",))).verdicts
    assert (verdict.verdict, verdict.num_seeds, verdict.is_open) == ("undecided", 10, False)
    assert "on the line, within" in verdict.note


def test_a_stage_that_computes_all_seeds_at_once_is_refused():
    def all_seeds(case, settings):
        return {"gain": lab.along("seed", np.zeros(settings.num_seeds))}

    of = lab.Study("T", "", "", "tests.toy", (lab.Stage(all_seeds, reads=("num_seeds",)),), (), (), (), (), ())
    with pytest.raises(SettingsError, match="seeds cannot be added to stage all_seeds of T"):
        jobs.plan(of, settings())
    jobs.plan(of, Settings("quick", 5))


def test_a_premise_decides_where_a_claim_is_tested(run):
    measures = tuple(lab.Measure(claim, lambda m: m.train.gain) for claim in (MORE, HELPS))
    more, helps = run(study(measures=measures), Settings("quick", 10, (Case("large"), Case("none")))).verdicts
    assert [case.verdict for case in helps.cases] == ["supported", "undecided"]
    assert [case.verdict for case in more.cases] == ["supported", "not tested"]
    assert more.headline == "supported: supported in 1 of 2 cases, not tested in 1"
    assert more.cases[1].note == "the premise T.a is undecided in none"
    with pytest.raises(ValueError, match=r"T\.b presupposes T\.a, which is not among the claims"):
        study(measures=measures[:1])


def test_controls_are_run_and_void_what_hangs_on_them(run, tmp_path):
    section = run(study(controls=(planted(), SHAM)), Settings("quick", 10), "good")
    assert [result.passed for result in section.controls] == [True, True]
    assert section.verdicts[0].verdict == "supported"
    section = run(study(controls=(planted(Above(9.0)), SHAM)), Settings("quick", 10), "bad")
    (verdict,) = section.verdicts
    assert verdict.verdict == "void"
    assert "the positive control T.positive failed, what is there was not found in large, small" in verdict.note
    page = (tmp_path / "bad/report.html").read_text()
    assert page.index("1 of 2 passed") < page.index("It helps.")
    positive, negative = claims.read_controls(tmp_path / "bad/verdicts.json")
    assert (positive.passed, negative.passed, positive.control.kind) == (False, True, "positive")
    assert [v.verdict for v in claims.read_verdicts(tmp_path / "bad/verdicts.json")] == ["void"]


def test_controls_come_in_both_kinds():
    with pytest.raises(ValueError, match="T has positive controls alone"):
        study(controls=(planted(),))
    with pytest.raises(ValueError, match="a control is one of"):
        lab.Control("neutral", "", "", Above(0.0), lambda m: m)
    with pytest.raises(ValueError, match=r"controls of T name T\.z"):
        study(controls=(planted(), dataclasses.replace(SHAM, claims=("T.z",))))


def test_the_command_line_makes_the_schedule():
    assert looks_of(None, 160) == stats.Looks(10, most=160)
    assert looks_of(None, 4) == stats.Looks(4, most=4)
    with pytest.raises(SettingsError, match="no fewer seeds than the first, 20, got 10"):
        looks_of(20, 10)

    class Arguments(lab.Arguments):
        presets = {"quick": Settings("quick", 3)}  # noqa: RUF012

    made = Arguments(until_decided=True, most_seeds=20).settings()
    assert (made.looks.sizes, made.seed_blocks) == ((10, 20), [tuple(range(10))])
    assert Arguments().settings().seed_blocks == [(0, 1, 2)]
