"""The page of a map: numbers of its heat maps and curve, and text from outside that does no harm."""

import itertools
import re

import numpy as np
import pytest

from jaxbp import claims, report
from jaxbp.claims import Axis, ClaimMap, MapCell
from jaxbp.lab.output import print_map
from jaxbp.report import claim_maps

CLAIM = claims.Claim("X.a", "Claims <b>hold</b>.", "nowhere", "gain", claims.Above(0.0))
AXES = (Axis("rate", (0.01, 0.1, 1.0)), Axis("norm", ("batch", "<script>alert(1)</script>")))
FACTS = {"sampling": "every cell", "controls": [], "work": {"cells": 6, "cells_computed": 1, "jobs": 2}, "command": "python -m x"}


def cell(rate, norm, effect):
    spread = 0.1 * np.linspace(-1, 1, 6)
    verdict = claims.judge(CLAIM, {"one": effect + spread, "two": effect + 0.5 + spread})
    return MapCell({"rate": rate, "norm": norm}, verdict)


@pytest.fixture(scope="module")
def found():
    cells = [cell(rate, norm, 1.0 - 1.2 * number) for number, (rate, norm) in enumerate(itertools.product(*(a.values for a in AXES)))]
    cells[-1] = MapCell(cells[-1].point, None, "ValueError: <img src=x>")
    return ClaimMap(CLAIM, AXES, tuple(cells), FACTS)


def test_a_heat_map_has_means_counts_and_colours(found):
    by_title = {heat.title: heat for heat in claim_maps.heat_maps(found)}
    assert len(by_title) == 3  # two axes and the cases
    rates = by_title["rate and norm"]
    assert [axis.name for axis in (rates.rows, rates.columns)] == ["rate", "norm"]
    assert rates.cells[0][0] == ("1.25", "supported", "all 2 hold", "supported", rates.cells[0][0].strength)
    assert rates.cells[2][1] == ("–", "failed", "failed", "", 0)
    assert rates.cells[2][0].ground == "contradicted"
    of_case = by_title["case and norm"] if "case and norm" in by_title else by_title["norm and case"]
    assert {field.told for row in of_case.cells for field in row} <= {"1 of 3 hold", "all 3 contradicted", "0 of 3 hold"}


def test_the_curve_rises_and_names_the_settings(found):
    drawn = claim_maps.curve(found)
    assert [mark.y for mark in drawn.marks] == sorted((mark.y for mark in drawn.marks), reverse=True)  # pixels count from the top
    assert len(drawn.marks) == 10
    assert drawn.left_out == 1
    assert [name for name, _ in drawn.rows] == ["rate", "norm", "case"]
    for _, values in drawn.rows:
        assert sorted(x for _, places in values for x in places) == [mark.x for mark in drawn.marks]


def test_the_page_shows_all_and_runs_nothing(found, tmp_path):
    report.write_map_page(tmp_path / "map.html", found)
    text = (tmp_path / "map.html").read_text()
    assert "default-src &#39;none&#39;" in text
    assert not re.search(r"<script|<img|<b>hold", text)
    assert "holds in 3 of 11 specifications (6 cells), contradicted in 7, failed in 1" in text
    assert "&lt;img src=x&gt; <span" in text
    assert text.count("<table") == 3 + 1 + 1  # heat maps, shares, all specifications


def test_shares_that_noise_alone_would_give_are_told_as_such(tmp_path, capsys):
    wide = 9.0 * np.linspace(-1, 1, 6)
    cells = [MapCell({"rate": rate}, claims.judge(CLAIM, {"": 0.1 * rate + wide})) for rate in (1, 2, 3)]
    noisy = ClaimMap(CLAIM, (Axis("rate", (1, 2, 3)),), tuple(cells), FACTS)
    (_, share, noise), *_ = claim_maps.explained_rows(noisy)
    assert noise > share == pytest.approx(100.0)
    assert (claim_maps.noise_text(noise), claim_maps.noise_text(12.34)) == ("over 100 %", "12.3 %")
    report.write_map_page(tmp_path / "map.html", noisy)
    assert "over 100 %" in (tmp_path / "map.html").read_text()
    print_map(noisy, tmp_path)
    assert "rate: 100 % of the variance of the effect (no more than noise alone gives)" in capsys.readouterr().out


def test_a_line_that_goes_back_and_forth_has_no_boundary():
    axes = (Axis("rate", (1, 2, 3)),)
    cells = [MapCell({"rate": rate}, claims.judge(CLAIM, {"": effect + 0.01 * np.arange(4)})) for rate, effect in ((1, 1), (2, -1), (3, 1))]
    (along,) = ClaimMap(CLAIM, axes, tuple(cells), FACTS).along
    assert along.lines == {"goes back and forth": 1}
    assert along.boundaries == {}
