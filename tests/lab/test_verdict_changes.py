"""Comparing runs: what moved, and by how much."""

import dataclasses
import json

import numpy as np
import pytest

from jaxbp import claims, lab, stats
from jaxbp.lab import verdict_changes as compare
from jaxbp.lab.verdict_pairs import compared, difference

CLAIM = claims.Claim("S2.a", "Weight decay beats none.", "Table 2", "gain", claims.Above(0.0), "0.6 [raw]")
OTHER = dataclasses.replace(CLAIM, id="S2.e", statement="Nothing.", paper_value=None)


def run(folder, first_seed=None, interval_fn=stats.t_interval, **values):
    """A folder with verdicts; each case's values are those of the seeds from ``first_seed`` on, None: of seeds that are not known."""
    known, verdicts = {"a": CLAIM, "e": OTHER}, []
    for name, by_case in values.items():
        cases = by_case if isinstance(by_case, dict) else {"case": by_case}
        seeds = () if first_seed is None else range(first_seed, first_seed + len(next(iter(cases.values()))))
        verdicts.append(claims.judge(known[name], cases, seeds=seeds, interval_fn=interval_fn))
    claims.write_verdicts(folder / "verdicts.json", verdicts)
    return str(folder)


def changed(a, b):
    return compared(*(compare.read(folder)["S2.a"] for folder in (a, b)))


def test_verdicts_that_moved_are_told(tmp_path, capsys):
    a, b = run(tmp_path / "a", a=[1.0, 2.0, 1.5]), run(tmp_path / "b", a=[-1.0, -2.0, -1.5], e=[1.0, 2.0])
    assert compare.show(*compare.read_both(a, b)) == 1
    said = capsys.readouterr().out
    assert "1 of 1 verdicts moved; 1 claim is in one run only" in said
    assert "S2.a Weight decay beats none. supported -> contradicted" in said
    assert "-3.0 [" in said
    assert compare.show(*compare.read_both(a, f"{a}/verdicts.json")) == 0


def test_the_paper_is_a_run_of_what_it_found(tmp_path, capsys):
    mine = run(tmp_path / "a", a=[-1.0, -2.0, -1.5], e=[1.0, 2.0])
    ours, theirs = compare.read_both(mine, "paper")
    assert list(theirs) == ["S2.a"]  # it says nothing about the other
    assert (theirs["S2.a"].verdict, theirs["S2.a"].interval) == ("supported", None)
    assert compare.read_both("paper", mine) == (theirs, ours)
    assert compare.show(ours, theirs) == 1
    assert "0.6 [raw]" in capsys.readouterr().out


A, B = np.array([1.0, 2.0, 1.5, 4.0]), np.array([1.1, 2.3, 1.4, 4.2])


def test_the_seeds_of_both_runs_are_paired(tmp_path):
    ours, theirs = run(tmp_path / "a", 0, a=A), run(tmp_path / "b", 0, a=B)
    found = changed(ours, theirs)
    wanted = stats.t_interval(B - A)
    assert (found.difference.low, found.difference.high) == pytest.approx((wanted.low, wanted.high))
    assert found.basis == "paired, 4 seeds"
    assert changed(ours, run(tmp_path / "c", 2, a=B)).difference.estimate == pytest.approx(((1.1 - 1.5) + (2.3 - 4.0)) / 2)  # seeds 2 and 3
    others = changed(ours, run(tmp_path / "d", 4, a=B))
    assert (others.basis, others.difference) == ("other seeds", difference(*(compare.read(x)["S2.a"].interval for x in (ours, theirs))))
    assert changed(ours, run(tmp_path / "e", a=B)).basis == "unpaired"  # as runs of earlier versions


def test_equal_runs_are_told_to_be_identical(tmp_path):
    ours, noted = run(tmp_path / "a", 0, a=A), run(tmp_path / "b", a=A)
    assert changed(ours, ours).told == "identical"
    assert changed(noted, noted).told == "the same numbers"
    assert changed(ours, run(tmp_path / "c", 0, a=A[:2])).told == "identical for the 2 seeds of both"
    assert changed(ours, run(tmp_path / "d", 7, a=A)).basis == "other seeds"
    two, other = run(tmp_path / "e", 0, a={"x": A, "y": A + 9}), run(tmp_path / "f", 0, a={"x": A, "y": B + 9})
    assert changed(two, other).told == "identical in this case"


def test_the_same_case_of_both_runs_is_compared(tmp_path):
    ours, theirs = run(tmp_path / "a", 0, a={"x": A, "y": A + 9}), run(tmp_path / "b", 0, a={"x": A + 20, "y": A + 8})
    found = changed(ours, theirs)  # the least favourable case is x in one, y in the other
    assert (found.case, found.difference.estimate) == ("x", pytest.approx(20.0))
    apart = changed(ours, run(tmp_path / "c", 0, a={"z": A}))
    assert (apart.case, apart.basis) == ("", "of different cases, unpaired")


def test_changes_of_shares_and_medians(tmp_path):
    events = {"interval_fn": stats.event_interval}
    shares = changed(*(run(tmp_path / n, 0, a=v, **events) for n, v in (("a", [1.0] * 6), ("b", [0.0] * 5 + [1.0]))))
    assert shares.difference.low == -1.0 < shares.difference.high < 1e-9
    medians = {"interval_fn": stats.median_interval}
    values = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 50.0, 60.0])
    found = changed(*(run(tmp_path / n, 0, a=v, **medians) for n, v in (("c", values), ("d", values + np.arange(7)))))
    assert (found.difference.estimate, found.difference.method) == (3.0, "order statistics")


def test_heads_say_what_the_runs_are_and_lone_claims_are_listed_on_demand(tmp_path, capsys):
    a, b = run(tmp_path / "a", 100, a=A, e=A), run(tmp_path / "b", 0, a=B)
    settings = {"preset": "quick"}
    (tmp_path / "a" / "config.json").write_text(json.dumps({"settings": settings, "git_commit": "0123\u001b[31m"}))
    known = compare.read(a)
    assert compare.head(a, known) == compare.head(f"{a}/verdicts.json", known) == "quick, 4 seeds from 100, commit 0123\ufffd[31m"
    assert compare.head(b, compare.read(b)) == "4 seeds"
    compare.show(*compare.read_both(a, b))
    said = capsys.readouterr().out
    assert "S2.e" not in said
    assert "1 claim is in one run only (--every lists them)" in said
    compare.show(*compare.read_both(a, b), every=True)
    assert "not in it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (None, "there is no .*verdicts.json: name the folder of a finished run"),
        ("{", "cannot be read as verdicts"),
        ('[{"id": 1}]', "cannot be read as verdicts"),
        ('[{"id": "S1.a[/]\\u001b[31m", "verdict": "proven!", "seeds": "many"}]', "cannot be read as verdicts"),
        ("[]", "no claim is in both"),
    ],
)
def test_what_is_no_run_is_told(broken, message, tmp_path):
    mine = run(tmp_path / "a", a=[1.0, 2.0])
    if broken is not None:
        (tmp_path / "b").mkdir()
        (tmp_path / "b/verdicts.json").write_text(broken)
    with pytest.raises(lab.SettingsError, match=message):
        compare.read_both(mine, str(tmp_path / "b"))
    with pytest.raises(lab.SettingsError, match="the paper agrees with itself"):
        compare.read_both("paper", "paper")


@pytest.mark.slow
def test_the_interval_of_a_difference_covers_it():
    # Two independent runs of 10 seeds, equal in truth: nominal 95 %; 1,000 trials, three standard errors are 2 %.
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        a, b = (stats.t_interval(rng.normal(size=10)) for _ in range(2))
        found = difference(a, b)
        covered += found.low < 0 < found.high
        assert found.estimate == pytest.approx(b.estimate - a.estimate)
    assert 930 < covered < 980
    assert difference(a, None) is None
