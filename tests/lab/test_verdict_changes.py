"""Comparing runs: what moved, and by how much."""

import dataclasses

import numpy as np
import pytest

from jaxbp import claims, lab, stats
from jaxbp.lab import verdict_changes as compare

CLAIM = claims.Claim("S2.a", "Weight decay beats none.", "Table 2", "gain", claims.Above(0.0), "0.6 [raw]")
OTHER = dataclasses.replace(CLAIM, id="S2.e", statement="Nothing.", paper_value=None)


def run(folder, **values):
    known = {"a": CLAIM, "e": OTHER}
    claims.write_verdicts(folder / "verdicts.json", [claims.judge(known[k], {"case": v}) for k, v in values.items()])
    return str(folder)


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
        found = compare.difference(a, b)
        covered += found.low < 0 < found.high
        assert found.estimate == pytest.approx(b.estimate - a.estimate)
    assert 930 < covered < 980
    assert compare.difference(a, None) is None
