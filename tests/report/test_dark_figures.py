"""Figures on dark pages: legible, in the page's own colours, words as words."""

import re
from pathlib import Path

import pytest

from jaxbp import report
from jaxbp.report import dark_figures, figures

CSS = (Path(report.__file__).parent / "templates" / "page.css").read_text("utf-8")


def luminance(colour):
    """Relative luminance (WCAG 2.2) of "#rrggbb"."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_data_and_words_stand_out_from_dark_paper():
    dark = dark_figures.DARK
    paper = luminance(dark["#ffffff"])
    contrasts = {light: (luminance(dark[light]) + 0.05) / (paper + 0.05) for light in dark}
    assert {colour.lower() for colour in figures.PALETTE} <= set(dark)
    assert all(contrasts[colour.lower()] >= 5 for colour in figures.PALETTE)
    assert min(contrasts["#444444"], contrasts["#666666"]) >= 7
    assert 1.2 < contrasts["#e4e4e4"] < 3  # grids stay behind


def test_the_ground_and_the_outcomes_are_the_pages():
    told = dict(re.findall(r"--(\w+): (#\w{6})", CSS.partition("prefers-color-scheme: dark")[2]))
    dark = dark_figures.DARK
    assert (dark["#ffffff"], dark["#000000"]) == (told["paper"], told["ink"])
    assert (dark["#009e73"], dark["#d55e00"]) == (told["supported"], told["contradicted"])


def test_a_saved_figure_has_its_words_as_text_and_a_rule_for_dark_pages(tmp_path):
    fig, ax = report.figure()
    ax.plot([1, 2], [1, 2], label="an arm")
    ax.annotate("on the data", (1, 1), color="white")
    ax.legend()
    _, path = report.save_figure(fig, tmp_path, "x")
    svg = path.read_text("utf-8")
    assert ">an arm</text>" in svg
    assert 'style="fill: #ffffff"' in svg  # the paper
    rules = svg.partition("prefers-color-scheme: dark")[2].partition("</style>")[0]
    assert ':not(text, tspan)[style*="fill: #ffffff"] { fill: #14181c !important }' in rules
    assert svg.count("</style>") == 1


def test_a_file_without_a_style_is_refused():
    with pytest.raises(ValueError, match="this one has none"):
        dark_figures.with_dark_colours(b"<svg></svg>")
