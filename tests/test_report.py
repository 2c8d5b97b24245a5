import base64
import re
import subprocess
import sys
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest

from jaxbp import evidence, report
from jaxbp.evidence import Above, Below, Claim, Interval, Within

EVIL = "<script>alert('x')</script>&\"digits\""
VOID = {"meta", "img", "br"}  # elements of HTML without an end tag
SELF_CLOSED = {"path", "rect", "circle"}  # those of the inline drawings


class Page(HTMLParser):
    """Collects what the tests ask for and insists that every tag is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.headings, self.words = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_startendtag(self, tag, attrs):
        assert tag in SELF_CLOSED
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data

    def all(self, tag, **attributes):
        wanted = attributes.items()
        return [found for name, found in self.tags if name == tag and wanted <= found.items()]


def seeds(mean=0.62, spread=1.0):
    return mean + spread * (np.array([0.4, 0.7, 0.5, 0.9, 0.6]) - 0.62)


def some_verdicts():
    return [
        evidence.judge(Claim("S1.a", "It is a minimum.", EVIL, EVIL, Above(0), 0.0156), {EVIL: seeds()}),
        evidence.judge(Claim("S1.b", EVIL, "Table 1", "loss", Below(0)), {"a": seeds(), "b": seeds(-9)}),
        evidence.judge(Claim("S1.c", "It stays.", "Table 1", "share", Within(1), EVIL), {EVIL: [], "b": seeds()}),
        evidence.judge(Claim("S1.d", "Nothing was run.", "Table 1", "loss", Above(3)), {}),
        evidence.judge(Claim("S1.e", "No spread.", "Table 1", "loss", Above(0.0)), {"a": [0.0, 0.0]}),
    ]


@pytest.fixture
def picture(tmp_path):
    fig, ax = report.figure()
    report.strip(ax, {EVIL: seeds(), "other": seeds(2)})
    return report.Picture(report.save_figure(fig, tmp_path, "strip")[1], f"dots {EVIL}", f"caption {EVIL}")


@pytest.fixture
def page(tmp_path, picture):
    table = report.Table(["data", EVIL, "loss"], [[EVIL, 3, 0.12345], ["x", None, None]], f"table {EVIL}")
    sections = [report.Section(EVIL, [EVIL, picture, report.Section("Inner", [table])])]
    path = tmp_path / "report.html"
    nested = {"seeds": [0, 1], "training": {"learning_rate": 0.01, EVIL: EVIL}, "none": {}}
    report.write_page(path, title=EVIL, lead=EVIL, verdicts=some_verdicts(), sections=sections, settings=nested)
    return path.read_text("utf-8")


# The page


def test_page_is_well_formed_and_in_order(page):
    parsed = Page(page)
    assert parsed.headings == [1, 2, 2, 3, 2]
    assert parsed.all("html", lang="en")
    assert parsed.all("meta", name="viewport")
    assert page.index("Verdicts</h2>") < page.index("<img")
    for name, value in (("training.learning_rate", "0.01"), ("seeds", "[0, 1]"), ("none", "{}")):
        assert f"<dt>{name}</dt><dd>{value}</dd>" in page


def test_page_escapes_what_it_is_given(page):
    assert "<script" not in page
    parsed = Page(page)
    assert not parsed.all("script")
    assert parsed.words.count("<script>alert('x')</script>&\"digits\"") >= 12
    (image,) = parsed.all("img")
    assert image["alt"] == f"dots {EVIL}"


def test_page_fetches_nothing(page):
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<link|<iframe", page)
    sources = [value for _, attrs in Page(page).tags for key, value in attrs.items() if key in ("src", "href")]
    assert len(sources) == 1
    assert sources[0].startswith("data:image/svg+xml;base64,")


def test_page_tells_verdicts_in_words_and_drawings(page):
    assert "5 claims: 1 supported, 1 contradicted, 3 undecided." in page
    parsed = Page(page)
    badges = [attrs["class"] for tag, attrs in parsed.tags if "badge" in attrs.get("class", "")]
    assert [badges.count(f"badge {outcome}") for outcome in report._BADGES] == [
        3,
        2,
        4,
    ]  # S1.b and S1.c list two cases each
    assert len(set(report._BADGES.values())) == 3
    assert "0.62 [0.38, 0.86]" in page
    drawings = [attrs for tag, attrs in parsed.tags if attrs.get("class", "").startswith("interval")]
    assert len(drawings) == 7  # four claims with data, three of the four cases listed
    assert all("nan" not in str(attrs) for _, attrs in parsed.tags)


def test_interval_is_drawn_where_it_lies():
    found = Interval(1.0, 0.0, 2.0, 0.95, 5, "by hand")
    drawn = report._drawn_interval(found, Above(1.5), "undecided", (0.0, 2.0))
    left, right, middle = (220 * (value + 0.16) / 2.32 for value in (0.0, 2.0, 1.0))  # margins of 8 %
    limit = 220 * (1.5 + 0.16) / 2.32
    assert f'd="M{limit:.1f} 0V26"' in drawn
    assert f'x="{limit:.1f}" width="{220 - round(limit, 1):.1f}"' in drawn  # shaded to the right
    assert f"M{left:.1f} 13H{right:.1f}" in drawn
    assert f'cx="{middle:.1f}"' in drawn


def test_an_empty_page_is_a_page(tmp_path):
    report.write_page(tmp_path / "p.html", title="T", lead="L", verdicts=[])
    assert Page((tmp_path / "p.html").read_text("utf-8")).headings == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["p.html"]


def test_misuse_is_refused(tmp_path):
    with pytest.raises(ValueError, match="3 cells"):
        report.Table(["a", "b", "c"], [[1, 2]], "caption")
    with pytest.raises(TypeError, match="brackets"):
        report.Section("title", "text")
    with pytest.raises(ValueError, match="file name"):
        report.save_figure(report.figure()[0], tmp_path, "a/b")
    with pytest.raises(ValueError, match=r"\.svg or \.png"):
        report.Picture(tmp_path / "p.pdf", "alt", "caption").to_html()


# Numbers and tables


@pytest.mark.parametrize(
    "value,expected",
    [
        (None, "–"),
        (0.0, "0.00"),
        (12345678, "12345678"),
        (np.int64(7), "7"),
        (0.12345, "0.123"),
        (9.999, "10.0"),
        (1234.5, "1234"),
        (-2.5e-7, "-2.50e-07"),
        (3e9, "3.00e+09"),
        (float("nan"), "nan"),
    ],
)
def test_format_number(value, expected):
    assert report.format_number(value) == expected


@pytest.mark.parametrize(
    "ends,expected",
    [
        ((0.93275, 0.9272, 0.9383), "0.9327 [0.9272, 0.9383]"),
        ((120.0, 80.0, 160.0), "120 [80, 160]"),
        ((1.5e-7, 1e-7, 2e-7), "1.50e-07 [1.00e-07, 2.00e-07]"),
        ((0.5, 0.5, 0.5), "0.5000 [0.5000, 0.5000]"),
        ((0.0, 0.0, 0.0), "0.0000 [0.0000, 0.0000]"),
        ((2e8, 1e8, 3e8), "2.0e+08 [1.0e+08, 3.0e+08]"),
    ],
)
def test_format_interval(ends, expected):
    assert report.format_interval(Interval(*ends, 0.95, 5, "by hand")) == expected


def test_table_aligns_columns_of_numbers():
    found = report.Table(["name", "value"], [["a", 1.5], [None, None]], "caption").to_html()
    assert '<th scope="col">name</th><th scope="col" class="number">value</th>' in found
    assert '<td>–</td><td class="number">–</td>' in found


# Figures


def test_figures_are_the_same_bytes_twice(tmp_path):
    def draw(folder):
        fig, (left, right) = report.figure(2, 1)
        report.strip(left, {"a": [1.0, 2.0, 4.0, np.nan, -1.0], "b": [3.0], "none": []}, log=True)
        report.curve(right, [4, 8, 16], np.exp(np.arange(6.0).reshape(2, 3)), label="mlp", log=True)
        return [path.read_bytes() for path in report.save_figure(fig, tmp_path / folder, "x")]

    (png, svg), again = draw("one"), draw("two")
    assert [png, svg] == again
    assert png.startswith(b"\x89PNG")
    assert b"<dc:date>" not in svg


def test_strip_shows_geometric_means_and_counts_what_it_leaves_out():
    _, ax = report.figure()
    report.strip(ax, {"a": [1.0, 2.0, 4.0, np.nan, -1.0]}, log=True)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a\n(2 of 5 not shown)"]
    bar, mean = (line.get_xdata() for line in ax.get_lines())
    assert mean[0] == pytest.approx(2.0)
    expected = evidence.t_interval(np.log([1.0, 2.0, 4.0]))
    assert np.log(bar) == pytest.approx([expected.low, expected.high])
    assert len(ax.collections[0].get_offsets()) == 3


def test_curve_leaves_out_missing_seeds_point_by_point():
    _, ax = report.figure()
    report.curve(ax, [1, 2, 3], [[1.0, 2.0, np.nan], [3.0, np.nan, np.nan]], label="a")
    assert ax.get_lines()[0].get_ydata() == pytest.approx([2.0, 2.0, np.nan], nan_ok=True)
    assert len(ax.get_lines()) == 1 + 2


def test_paired_lines_count_risers():
    _, ax = report.figure()
    report.paired_lines(ax, [1.0, 2.0, 3.0], [2.0, 1.0, 4.0], labels=("none", "decay"))
    assert ax.get_title(loc="left") == "higher with decay in 2 of 3 seeds"
    assert [line.get_linestyle() for line in ax.get_lines()] == ["-", "--", "-"]


def test_a_caller_keeps_backend_and_settings(tmp_path):
    code = f"""
import sys, matplotlib
from jaxbp import report
def settings(): return {{key: matplotlib.rcParams[key] for key in matplotlib.rcParams if key != "backend"}}
before = settings()
fig, ax = report.figure()
report.strip(ax, {{"a": [1.0, 2.0]}})
report.save_figure(fig, {str(tmp_path)!r}, "x")
assert settings() == before
assert "matplotlib.pyplot" not in sys.modules  # which picks a backend as soon as it is imported
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_a_pyplot_figure_is_closed(tmp_path):
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    fig = plt.figure()
    report.save_figure(fig, tmp_path, "x")
    assert fig.number not in plt.get_fignums()


def test_heavy_drawings_are_embedded_as_bitmaps(picture, monkeypatch):
    monkeypatch.setattr(report, "MAX_SVG_BYTES", 100)
    found = picture.to_html()
    assert "data:image/png;base64," in found
    data = re.search(r"base64,([^\"]+)", found)[1]
    assert base64.b64decode(data) == picture.path.with_suffix(".png").read_bytes()
