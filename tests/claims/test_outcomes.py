"""Outcomes with a quantifier, looks, premises, power, and files that cannot lie."""

import json

import numpy as np
import pytest

from jaxbp import claims, stats
from jaxbp.claims import Above, Claim, Premise, VerdictFileError, Within
from jaxbp.claims.files import entry_of

YES, NO, OPEN = [0.4, 0.7, 0.5, 0.9, 0.6], [-0.4, -0.7, -0.5, -0.9, -0.6], [-0.4, 0.7, 0.1, -0.3, 0.2]


def claim(id_="S0.a", rule=None, **more):
    return Claim(id_, "A statement.", "Table 0", "gain", rule or Above(0.0), **more)


@pytest.mark.parametrize(
    ("cases", "outcome", "counts"),
    [
        ([YES, YES], "supported", {"supported": 2}),
        ([YES, OPEN], "undecided", {"supported": 1, "undecided": 1}),
        ([NO, OPEN], "contradicted", {"contradicted": 1, "undecided": 1}),
        ([YES, NO, OPEN], "mixed", {"supported": 1, "contradicted": 1, "undecided": 1}),
        ([OPEN, [np.nan] * 5], "undecided", {"undecided": 2}),
    ],
)
def test_the_outcome_says_in_how_many_cases(cases, outcome, counts):
    verdict = claims.judge(claim(), dict(zip("abc", cases, strict=False)))
    assert (verdict.verdict, verdict.counts) == (outcome, counts)
    assert verdict.headline.startswith(outcome)


def test_a_case_that_no_premise_supports_counts_for_nothing():
    verdict = claims.judge(claim(), {"a": YES, "b": NO}, untested={"b": "nothing helps here"})
    assert (verdict.verdict, verdict.counts) == ("supported", {"supported": 1, "not tested": 1})
    assert "b: nothing helps here." in verdict.note
    assert verdict.cases[0].confidence == 0.975  # which case is left was chosen by the data
    verdict = claims.judge(claim(), {"a": YES}, untested={"a": "nothing helps here"})
    assert (verdict.verdict, verdict.interval, verdict.num_seeds) == ("not tested", None, 5)


def test_what_is_left_must_pass_at_the_level_that_all_cases_share():
    near = [0.02, 1.0, 0.6, 0.3, 0.2]
    shifted = np.array(near) - stats.t_interval(near).low + 0.01  # clears 0 at 95 %, not at 97.5 %
    assert claims.judge(claim(), {"a": shifted}).verdict == "supported"
    assert claims.judge(claim(), {"a": shifted, "b": NO}, untested={"b": "no"}).verdict == "undecided"


# Premises


def premises(premise, *, names=("net: low", "net: high"), first=("net",)):
    base = dict.fromkeys(first, YES)
    return claims.judge_all({claim("S0.b", premise=premise): dict.fromkeys(names, YES), claim("S0.a"): base})[0]


def test_a_part_of_a_case_has_the_premise_of_the_whole():
    assert premises("S0.a").verdict == "supported"
    assert premises("S0.a", names=("net",), first=("net: low", "net: high")).verdict == "supported"
    assert premises("S0.a", first=("other",)).cases[0].note == "the premise S0.a was not judged here"
    assert premises(Premise("S0.a", lambda case: "other"), first=("other",)).verdict == "supported"
    assert premises(("S0.a", Premise("S0.a", lambda case: "gone"))).verdict == "not tested"


def test_premises_that_cannot_be():
    with pytest.raises(ValueError, match=r"S0\.a presupposes S0\.z"):
        claims.judge_all({claim(premise="S0.z"): {"a": YES}})
    with pytest.raises(ValueError, match="presuppose each other"):
        claims.judge_all({claim("S0.a", premise="S0.b"): {"a": YES}, claim("S0.b", premise="S0.a"): {"a": YES}})


# Looks


def test_a_case_keeps_its_first_decision():
    looks = stats.Looks(5, most=20)
    turned = np.array([*YES, *np.negative(YES), *np.negative(YES) * 9, *np.negative(YES) * 9])
    verdict = claims.judge(claim(), {"a": turned}, looks=looks)
    assert (verdict.verdict, verdict.num_seeds, verdict.look) == ("supported", 5, 0)
    assert verdict.interval == stats.t_interval(YES, confidence=0.975)
    verdict = claims.judge(claim(), {"a": OPEN}, looks=stats.Looks(5, most=160))
    assert (verdict.verdict, verdict.is_open) == ("undecided", True)


def test_what_cannot_be_decided_is_on_the_line():
    values = np.resize([0.5, -0.5], 80)
    verdict = claims.judge(claim(), {"a": values}, looks=stats.Looks(10, most=160))
    assert (verdict.verdict, verdict.is_open) == ("undecided", False)
    interval = verdict.interval
    assert verdict.cases[0].within == max(interval.high, -interval.low)
    never = claims.judge(claim(), {"a": [np.nan] * 10}, looks=stats.Looks(10, most=160))
    assert not never.is_open  # a seed that is not finite stays


# Power


def test_power_is_the_chance_in_all_cases_together():
    verdict = claims.judge(claim(smallest_effect=0.5), {"a": YES, "b": OPEN})
    chances = [stats.chance_inside((0.0, np.inf), truth=0.5, spread=np.std(values, ddof=1), num_seeds=5) for values in (YES, OPEN)]
    assert verdict.power.chance == pytest.approx(np.prod(chances))
    assert verdict.power.seeds_needed > 5
    events = claims.judge(claim(rule=Above(0.5), smallest_effect=0.4), {"a": [1] * 10}, interval_fn=stats.event_interval)
    assert events.power.chance == pytest.approx(0.9**10 + 10 * 0.9**9 * 0.1)
    alike = claims.judge(claim(rule=Within(1.0), smallest_effect=1.0), {"a": YES})
    assert alike.power.chance == pytest.approx(stats.chance_inside((-1.0, 1.0), truth=0.0, spread=np.std(YES, ddof=1), num_seeds=5))
    assert claims.judge(claim(), {"a": YES}).power is None
    assert claims.judge(claim(smallest_effect=1.0), {"a": YES}, interval_fn=stats.bootstrap_interval).power is None
    with pytest.raises(ValueError, match="a distance above 0"):
        claim(smallest_effect=0.0)


# Files


def test_shares_are_summarised_between_0_and_1_and_old_summaries_are_read(tmp_path):
    """Ends of earlier summaries of shares were outside; their entries are read as they are, and have no scale."""
    verdict = claims.judge(claim(rule=Above(0.5)), {"a": [1.0] * 10, "b": [0.0, 1.0] * 5}, interval_fn=stats.event_interval)
    ends = [verdict.summary.mean.low, verdict.summary.mean.high]
    assert 0 <= ends[0] < ends[1] <= 1
    claims.write_verdicts(tmp_path / "new.json", [verdict])
    assert claims.read_verdicts(tmp_path / "new.json")[0].summary.scale == verdict.summary.scale == "angle"
    (entry,) = json.loads((tmp_path / "new.json").read_text())
    del entry["over_cases"]["scale"]
    entry["over_cases"]["ci95"] = [-0.7, 1.9]
    (tmp_path / "old.json").write_text(json.dumps([entry]))
    old = claims.read_verdicts(tmp_path / "old.json")[0].summary
    assert (old.mean.low, old.scale) == (-0.7, "")


def test_all_of_a_verdict_is_written_and_read(tmp_path):
    looks = stats.Looks(5, most=10)
    control = claims.Control("positive", "It is there.", "gain", Above(0.0), "S0.positive", ("S0.a",), 0.5)
    verdicts = claims.judge_all(
        {claim(smallest_effect=0.5): {"a": YES, "b": NO}, claim("S0.b", premise="S0.a"): {"a": YES, "b": YES}}, looks=looks
    )
    result = claims.judge_control(control, {"a": YES}, looks=looks)
    claims.write_verdicts(tmp_path / "verdicts.json", verdicts, [result])
    again, (read,) = claims.read_verdicts(tmp_path / "verdicts.json"), claims.read_controls(tmp_path / "verdicts.json")
    assert [entry_of(verdict) for verdict in again] == [entry_of(verdict) for verdict in verdicts]
    assert (read.control, read.passed, read.verdict.looks) == (control, True, looks)
    assert again[0].interval.confidence == 0.975
    assert again[0].summary.scale == ""
    assert json.loads((tmp_path / "verdicts.json").read_text())[1]["ci"] == [verdicts[0].interval.low, verdicts[0].interval.high]


def test_values_by_seed_are_written_and_read(tmp_path):
    short, lost = YES[:4], [*YES[:4], np.nan]
    (verdict,) = claims.judge_all({claim(): {"a": YES, "b": short, "c": lost}}, seeds=range(7, 12))
    assert [len(case.by_seed) for case in verdict.cases] == [5, 0, 5]  # of four values nobody knows which seeds they are of
    assert verdict.cases[0].by_seed == tuple(zip(range(7, 12), YES, strict=True))
    assert verdict.cases[2].by_seed[-1] == (11, None)
    claims.write_verdicts(tmp_path / "verdicts.json", [verdict])
    (again,) = claims.read_verdicts(tmp_path / "verdicts.json")
    assert [case.by_seed for case in again.cases] == [case.by_seed for case in verdict.cases]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verdict": "proven!"}, "a verdict is one of"),
        ({"seeds": "many"}, "'seeds' is of the wrong type"),
        ({"seeds": -1}, "seeds are counted from 0"),
        ({"seeds": True}, "'seeds' is of the wrong type"),
        ({"id": 5}, "'id' is of the wrong type"),
        ({"statement": "\x1b[31mred"}, "control characters"),
        ({"note": "a\x07"}, "control characters"),
        ({"verdict": "contradicted"}, "the verdict is 'contradicted', and the interval"),
        ({"verdict": "undecided"}, "the verdict is 'undecided', and the interval"),
        ({"estimate": None}, "no interval"),
        ({"ci95": [-1.0, 2.0]}, "the verdict is 'supported'"),
        ({"ci95": [2.0, 1.0]}, "in order"),
        ({"ci95": ["a", 1.0]}, "the ends of an interval are numbers"),
        ({"ci95": [1.0]}, "unpack"),
        ({"holds_if": "always"}, "none of this module's rules"),
        ({"cases": [5]}, "a case is a mapping"),
        ({"cases": [{"case": "a", "estimate": 1.0, "ci95": [0.5, 1.5], "seeds": 5, "verdict": "contradicted"}]}, "contradicted"),
        ({"schedule": {"first": 1, "factor": 2, "most": 9, "error": 0.05}}, "looks begin"),
        ({"power": {"effect": 1.0}}, "missing"),
    ],
)
def test_files_that_are_wrong_are_refused(change, message, tmp_path):
    entry = entry_of(claims.judge(claim(), {"a": YES})) | change
    (tmp_path / "verdicts.json").write_text(json.dumps([entry]))
    with pytest.raises(VerdictFileError, match=message):
        claims.read_verdicts(tmp_path / "verdicts.json")


@pytest.mark.parametrize("text", ["{", "{}", "[5]", '[{"id": NaN}]'])
def test_what_is_no_list_of_verdicts_is_refused(text, tmp_path):
    (tmp_path / "verdicts.json").write_text(text)
    with pytest.raises(VerdictFileError, match="is no"):
        claims.read_verdicts(tmp_path / "verdicts.json")
