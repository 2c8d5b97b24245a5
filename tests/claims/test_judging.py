import dataclasses
import functools
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxbp import claims, stats
from jaxbp.claims import Above, Below, Claim, Within
from jaxbp.claims.files import entry_of
from jaxbp.claims.rules import rule_from_text
from jaxbp.stats import Interval

FIVE = [0.4, 0.7, 0.5, 0.9, 0.6]  # mean 0.62, standard deviation sqrt(0.037)


def claim(rule, paper_value=None):
    return Claim("S0.a", "A statement.", "Table 0", "gain", rule, paper_value)


def interval(low, high):
    return Interval((low + high) / 2, low, high, 0.95, 5, "by hand")


@functools.cache
def t_quantile(degrees, confidence):
    return float(scipy.special.stdtrit(degrees, (1 + confidence) / 2))


def fast_t_interval(values, confidence):
    """`stats.t_interval` for thousands of trials: its quantile is computed once."""
    half = t_quantile(len(values) - 1, confidence) * values.std(ddof=1) / math.sqrt(len(values))
    return Interval(values.mean(), values.mean() - half, values.mean() + half, confidence, len(values), "t")


# Rules


@pytest.mark.parametrize(
    "rule,low,high,expected",
    [
        (Above(1), 1.1, 2.0, "supported"),
        (Above(1), 1.0, 2.0, "undecided"),  # a touch decides nothing
        (Above(1), 0.5, 1.5, "undecided"),
        (Above(1), 0.0, 1.0, "undecided"),
        (Above(1), 0.0, 0.9, "contradicted"),
        (Above(1), 1.0, 1.0, "undecided"),
        (Below(1), 0.0, 0.9, "supported"),
        (Below(1), 0.0, 1.0, "undecided"),
        (Below(1), 1.0, 2.0, "undecided"),
        (Below(1), 1.1, 2.0, "contradicted"),
        (Within(1), -0.9, 0.9, "supported"),
        (Within(1), -1.0, 0.5, "undecided"),
        (Within(1), -2.0, 2.0, "undecided"),  # wide is not equivalent
        (Within(1), -2.0, -1.0, "undecided"),
        (Within(1), 1.1, 2.0, "contradicted"),
        (Within(1), -2.0, -1.1, "contradicted"),
        (Within(0.5, centre=3), 2.6, 3.4, "supported"),
        (Within(0.5, centre=3), -0.1, 0.1, "contradicted"),
    ],
)
def test_rule(rule, low, high, expected):
    assert rule.decide(interval(low, high)) == expected


def test_rules_refuse_what_cannot_be_a_threshold():
    for make in (lambda: Above(math.nan), lambda: Below(math.inf), lambda: Within(0.0), lambda: Within(-1.0)):
        with pytest.raises(ValueError):
            make()


@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(1e-300, 1e300),
    st.sampled_from(["above", "below", "within"]),
)
@settings(deadline=None)
def test_rule_survives_its_text(number, margin, kind):
    rule = {"above": Above(number), "below": Below(number), "within": Within(margin, number)}[kind]
    assert rule_from_text(rule.text("lies above 3"), "lies above 3") == rule


# Judging


def test_judge_one_case():
    verdict = claims.judge(claim(Above(0.5)), {"a": FIVE})
    assert verdict.verdict == "undecided"  # 0.62 - 0.239 < 0.5
    assert verdict.interval == stats.t_interval(FIVE)
    assert claims.judge(claim(Above(0.3)), {"a": FIVE}).verdict == "supported"
    assert claims.judge(claim(Below(0.3)), {"a": FIVE}).verdict == "contradicted"


def test_judge_takes_the_least_favourable_case():
    cases = {"strong": np.add(FIVE, 9), "weak": FIVE}
    verdict = claims.judge(claim(Above(0)), cases)
    assert (verdict.verdict, verdict.interval) == ("supported", stats.t_interval(FIVE))
    verdict = claims.judge(claim(Below(0)), cases)
    assert (verdict.verdict, verdict.interval.estimate) == ("contradicted", pytest.approx(9.62))
    mixed = claims.judge(claim(Above(0)), {"yes": FIVE, "no": np.negative(FIVE)})
    assert (mixed.verdict, mixed.interval.estimate) == ("mixed", pytest.approx(-0.62))
    assert [case.verdict for case in mixed.cases] == ["supported", "contradicted"]


def test_judge_corrects_a_contradiction_for_the_number_of_cases():
    below = [-0.2, -1.0, -0.7, -0.4, -0.1]  # the 95 % interval ends just under 0
    assert -0.1 < stats.t_interval(below).high < 0
    assert claims.judge(claim(Above(0)), {"a": below}).verdict == "contradicted"
    verdict = claims.judge(claim(Above(0)), {"a": below, "b": FIVE, "c": FIVE})
    assert verdict.verdict == "undecided"
    assert verdict.cases[0].verdict == "undecided"
    assert "98.33 %" in verdict.note


@pytest.mark.slow
def test_judge_contradicts_a_true_claim_in_at_most_one_run_of_forty():
    # Six cases on the very threshold: each strays below it in 2.5 % / 6 of runs, some case in nearly 2.5 %.
    rng, num_runs = np.random.default_rng(3), 800
    runs = rng.normal(0.0, 1.0, (num_runs, 6, 5))
    verdicts = [claims.judge(claim(Above(0)), dict(enumerate(run)), interval_fn=fast_t_interval).verdict for run in runs]
    errors, expected = verdicts.count("contradicted") / num_runs, 1 - (1 - 0.025 / 6) ** 6
    assert abs(errors - expected) < 4 * math.sqrt(expected / num_runs)


def test_judge_passes_one_failing_case_rarely():
    # The failing case sits on the threshold, the others clear it: the union of cases gives no second chance.
    rng, num_runs = np.random.default_rng(4), 800
    runs = rng.normal([[0.0], [9.0], [9.0]], 1.0, (num_runs, 3, 5))
    verdicts = [claims.judge(claim(Above(0)), dict(enumerate(run)), interval_fn=fast_t_interval).verdict for run in runs]
    assert abs(verdicts.count("supported") / num_runs - 0.025) < 4 * math.sqrt(0.025 * 0.975 / num_runs)


def test_judge_without_data():
    verdict = claims.judge(claim(Above(0)), {"gone": [math.nan] * 3, "lone": [1.0], "good": FIVE})
    assert verdict.verdict == "undecided"
    assert [case.verdict for case in verdict.cases] == ["undecided", "undecided", "supported"]
    assert [case.num_seeds for case in verdict.cases] == [3, 1, 5]
    assert "gone: 3 of 3 seeds have no value." in verdict.note
    told = claims.judge(dataclasses.replace(claim(Above(0)), no_value="training diverged"), {"a": [1.0, math.nan, 2.0]})
    assert told.note == "a: 1 of 3 seeds has no value: training diverged."
    assert verdict.interval == stats.t_interval(FIVE)
    for empty in ({}, {"gone": []}):
        verdict = claims.judge(claim(Above(0)), empty)
        assert (verdict.verdict, verdict.interval, verdict.num_seeds) == ("undecided", None, 0)
    broken = claims.judge(claim(Above(0)), {"gone": [], "bad": np.negative(FIVE)})
    assert broken.verdict == "contradicted"


def test_judge_equal_seeds_and_other_intervals():
    assert claims.judge(claim(Within(0.1)), {"a": [0.0] * 4}).verdict == "supported"
    assert claims.judge(claim(Above(0)), {"a": [0.0] * 4}).verdict == "undecided"
    stay = claims.judge(claim(Above(0.5)), {"a": np.ones(8)}, interval_fn=stats.event_interval)
    assert stay.verdict == "supported"  # 0.025 ** (1 / 8) = 0.63

    def slope(values, confidence):
        return stats.trend([1, 2, 4], values, confidence=confidence)

    rising = np.add.outer(FIVE, [0.0, 1.0, 2.0])
    verdict = claims.judge(claim(Above(0)), {"a": rising, "b": []}, interval_fn=slope)
    assert [case.verdict for case in verdict.cases] == ["supported", "undecided"]
    with pytest.raises(ValueError, match="one per column"):  # misuse is not data
        claims.judge(claim(Above(0)), {"a": rising[:, :2]}, interval_fn=slope)


# Files


def test_verdicts_file_holds_the_agreed_keys_and_reads_back(tmp_path):
    one = claims.judge(claim(Above(np.float32(0.25)), "rises"), {"digits/mlp": np.float32(FIVE), "none": []})
    two = claims.judge(Claim("S0.b", "ü <b>", "§ 2", "x of y", Within(1, 0.5), 0.3, belief="All are ü."), {})
    path = tmp_path / "new" / "verdicts.json"
    claims.write_verdicts(path, [one, two])

    def refuse(constant):
        raise AssertionError(constant)

    first, second = json.loads(path.read_text("utf-8"), parse_constant=refuse)
    agreed = {"id", "statement", "source", "measure", "holds_if", "estimate", "ci95", "seeds", "verdict"}
    assert set(first) == agreed | {
        *("paper_value", "belief", "cases", "note", "premises", "counts", "over_cases", "power", "schedule", "look"),
    }
    assert (first["belief"], second["belief"]) == ("", "All are ü.")
    assert first["ci95"] == [one.interval.low, one.interval.high]
    assert set(first["cases"][0]) == {"case", "estimate", "ci95", "seeds", "verdict", "judged_at"}
    assert first["holds_if"] == "the whole 95 % interval of gain lies above 0.25"
    assert second["holds_if"] == "the whole 95 % interval of x of y lies within 1 of 0.5"
    assert (second["estimate"], second["ci95"], second["cases"]) == (None, [None, None], [])
    again = claims.read_verdicts(path)
    assert [entry_of(verdict) for verdict in again] == [first, second]
    assert [verdict.claim.rule for verdict in again] == [Above(0.25), Within(1, 0.5)]
    assert os.listdir(path.parent) == ["verdicts.json"]


def test_verdicts_written_before_beliefs_were_read_back(tmp_path):
    verdict = claims.judge(claim(Above(0)), {"a": FIVE})
    entry = entry_of(verdict)
    for name in ("belief", "premises", "counts", "over_cases", "power", "schedule", "look"):
        del entry[name]
    del entry["cases"][0]["judged_at"]
    (tmp_path / "verdicts.json").write_text(json.dumps([entry]))
    (again,) = claims.read_verdicts(tmp_path / "verdicts.json")
    assert again.claim == verdict.claim


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "verdicts.json"
    verdict = claims.judge(claim(Above(0)), {"a": FIVE})
    claims.write_verdicts(path, [verdict])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="ids must differ"):
        claims.write_verdicts(path, [verdict, verdict])
    with pytest.raises(ValueError, match="JSON"):
        claims.write_verdicts(path, [claims.judge(claim(Above(0), math.nan), {"a": FIVE})])

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        claims.write_verdicts(path, [])
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["verdicts.json"]


def test_import_needs_no_jax():
    code = "import sys; from jaxbp import claims, report; print({'jax', 'matplotlib'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
