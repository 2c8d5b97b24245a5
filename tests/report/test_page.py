import base64
import collections
import dataclasses
import importlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import get_args
from urllib.parse import unquote

import matplotlib
import numpy as np
import pytest
from matplotlib.text import Text

from jaxbp import claims, report, stats
from jaxbp.claims import Above, Below, Claim, Within
from jaxbp.report import blocks, outcomes, rendering
from jaxbp.stats import Interval

EVIL = "<script>alert('x')</script>&\"digits\""
VOID = {"meta", "img", "link", "input"}  # elements of HTML without an end tag
SELF_CLOSED = {"path", "rect", "circle"}  # those of the inline drawings


class Page(HTMLParser):
    """Collects what the tests ask for and insists that every tag is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.headings, self.words = [], [], [], ""
        self.texts, self.cells = collections.defaultdict(list), []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts[tag].append("")
        if tag == "td":
            self.cells.append(["", dict(attrs)])
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_startendtag(self, tag, attrs):
        assert tag in SELF_CLOSED
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data
        for tag in set(self.open):
            self.texts[tag][-1] += data
        if "td" in self.open:
            self.cells[-1][0] += data

    def all(self, tag, **attributes):
        wanted = attributes.items()
        return [found for name, found in self.tags if name == tag and wanted <= found.items()]


def seeds(mean=0.62, spread=1.0):
    return mean + spread * (np.array([0.4, 0.7, 0.5, 0.9, 0.6]) - 0.62)


def some_verdicts():
    return [
        claims.judge(Claim("S1.a", "It is.", EVIL, EVIL, Above(0), 0.0156, belief=EVIL), {EVIL: seeds()}),
        claims.judge(Claim("S1.b", EVIL, "Table 1", "loss", Below(0)), {"a": seeds(), "b": seeds(-9)}),
        claims.judge(Claim("S1.c", "It stays.", "Table 1", "share", Within(1), EVIL), {EVIL: [], "b": seeds()}),
        claims.judge(Claim("S1.d", "Nothing was run.", "Table 1", "loss", Above(3)), {}),
        claims.judge(Claim("S1.e", "No spread.", "Table 1", "loss", Above(0.0)), {"a": [0.0, 0.0]}),
    ]


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    fig, ax = report.figure()
    report.strip(ax, {EVIL: seeds(), "other": seeds(2)})
    return report.Picture(report.save_figure(fig, tmp_path_factory.mktemp("figures"), "strip")[1], f"dots {EVIL}", f"caption {EVIL}")


CONFIG = {
    "started": "2026-01-02T03:04:05Z",
    "command": f"__main__.py --out {EVIL}",
    "python": "3.11.7",
    "packages": {"jaxbp": "0.1.0", "jax": "0.10.2", "odd one": "1"},
    "devices": ["cpu", "cpu"],
    "git_commit": "cad038273aea-dirty",
    "wall_seconds": 3725.4,
    "settings": {
        "seeds": [0, 1],
        "cases": [{"width": 8, EVIL: EVIL}, {"width": None}],
        "training": {"learning_rate": 0.01},
        "none": {},
    },
}


@pytest.fixture
def study(picture):
    table = report.Table(["data", EVIL, "loss"], [[EVIL, 3, 0.12345], ["x", None, None]], f"table {EVIL}")
    sections = [report.Section(EVIL, [EVIL, picture, report.Section("Inner", [table])])]
    return report.StudySection("S1", EVIL, EVIL, some_verdicts(), sections, CONFIG, f"python -m study --data {EVIL}")


@pytest.fixture
def write(tmp_path):
    def write(*studies):
        path = tmp_path / "page" / "report.html"
        report.write_page(path, title="The title", lead="The lead", studies=studies)
        assert [other.name for other in path.parent.iterdir()] == ["report.html"]
        return path.read_text("utf-8")

    return write


@pytest.fixture
def page(write, study):
    return write(study)


# The page


def test_page_is_well_formed_and_in_order(page):
    parsed = Page(page)
    assert parsed.headings == [1, 2, 2, 3, 2]
    assert parsed.all("html", lang="en")
    assert parsed.all("meta", name="viewport")
    assert page.index("<h2>Verdicts</h2>") < page.index("<img")
    assert page.count("The lead") == 1
    (image,) = parsed.all("img", decoding="async")
    assert (image["width"], image["height"]) == ("614", "403")  # 6.4 by 4.2 inches, 96 pixels each


def test_page_of_a_study_does_not_repeat_its_title(write, study):
    one = dataclasses.replace(study, title="The title", lead="The lead")
    words = Page(write(one)).words
    assert words.count("The title") == 3  # once in the tab, once in the paragraph on methods
    assert words.count("The lead") == 1


def test_page_of_several_studies_has_all_verdicts_first(write, study):
    other = claims.judge(Claim("S2.a", "Another.", "Table 2", "loss", Below(0)), {"a": seeds(-9)})
    second = report.StudySection("S2", "Second", "Its lead", [other], [report.Section("Figures", ["none"])])
    page = write(study, second)
    parsed = Page(page)
    assert parsed.headings == [1, 2, 3, 3, 2, 3, 4, 3, 2, 3]
    assert "6 claims: 2 supported, 0 contradicted, 1 mixed, 3 undecided." in page
    assert "1 claim: 1 supported, 0 contradicted, 0 undecided" in page
    assert page.index('id="S2.a"') < page.index('id="S1-1"') < page.index('id="S2"')
    assert page.index("Its lead") > page.index('id="S2"')


@pytest.mark.parametrize("count", [1, 2])
def test_every_link_leads_somewhere(write, study, count):
    odd = claims.judge(Claim("S2.<b>'\"%41", "Odd.", "Table 2", "loss", Below(0)), {"a": seeds(-9)})
    second = report.StudySection("S2&é", "Second", "Its lead", [odd], settings={"a": 1})
    parsed = Page(write(*[study, second][-count:]))
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(set(ids)) == len(ids)
    assert {"S2&é", odd.claim.id} <= set(ids)
    links = [attrs["href"] for attrs in parsed.all("a")]
    assert len(links) == 5 if count == 1 else len(links) > 5
    assert {unquote(link.removeprefix("#")) for link in links} <= set(ids)
    assert all(link.startswith("#") for link in links)


def test_page_tells_how_to_reproduce_it(page):
    parsed = Page(page)
    said = parsed.words
    assert (
        "git checkout cad038273aea\npip install -e . jax==0.10.2 'odd one==1'\n"
        f"python -m study --data {EVIL}\n" in f"{parsed.texts['code'][0]}\n"
    )
    assert "had changes that are not in the commit" in said
    facts = dict(zip(parsed.texts["dt"], parsed.texts["dd"], strict=True))
    expected = {
        "Wall time": "1:02:05 (h:mm:ss)",
        "Devices": "2 × cpu",
        "Packages": "jaxbp 0.1.0, jax 0.10.2, odd one 1",
        "Started as": f"__main__.py --out {EVIL}",
        "seeds": "[0, 1]",
        "cases[0].width": "8",
        f"cases[0].{EVIL}": EVIL,
        "cases[1].width": "null",
        "training.learning_rate": "0.01",
        "none": "{}",
    }
    assert expected.items() <= facts.items()
    assert "Every setting (6)" in said


def test_a_paper_can_cite_the_study_and_tell_its_methods(write):
    paper = report.Publication("doe2020", f"Title {EVIL}", ("Jane Doe", "Max Mustermann"), 2020, venue="ICLR", arxiv="1234.56789")
    told = [claims.judge(Claim(f"S1.{name}", "It is.", "Table 1", "loss", Above(0.5)), {"a": seeds()}) for name in "ab"]
    control = claims.Control("negative", "Nothing is there.", "gain", Within(9.0), id="S1.negative")
    passed = claims.judge_control(control, {"a": seeds()})
    settings = {"preset": "quick", "num_seeds": 5, "num_train": 300, "cases": [{"dataset": "digits", "model": "mlp"}]}
    rules = {"S1.b": "the whole 95 % interval of loss lies above 0"}
    config = CONFIG | {"rules": rules, "settings": settings}
    page = Page(write(report.StudySection("S1", "Is it?", "", told, [], config, "", [passed], paper)))
    (text,) = (said for said in page.texts["p"] if said.startswith("We ran"))
    for sentence in (
        'We ran the study "Is it?" of jaxbp 0.1.0 (commit cad038273aea-dirty), preset quick, on 5 seeds.',
        "There was 1 case (digits, mlp); settings of all cases: num train 300.",
        "a rule written down before the first seed, but for S1.b, changed or added since.",
        "S1.a holds in a case if the whole 95\u00a0% interval of loss lies above 0.5.",
        f"Kind of the intervals over seeds: {told[0].interval.method}.",
        "Of 1 control with a known answer 1 passed.",
        "Software: Python 3.11.7, jax 0.10.2, odd one 1.",
    ):
        assert sentence in text
    (entries,) = (code for code in page.texts["code"] if code.startswith("@"))
    assert entries.startswith(
        "@software{jaxbp,\n  title = {{jaxbp}},\n  author = {{The jaxbp authors}},\n  version = {0.1.0},\n  year = {2026},"
    )
    assert entries.endswith(paper.bibtex())
    assert entries.count("{") == entries.count("}")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"a": seeds(0.1, 0.1)}, ""),  # the interval shows that there is nothing
        ({"a": seeds(0.1, 0.1), "b": seeds(0.3), "c": seeds(0.2)}, "Not refuted, no more: 5 seeds cannot rule out 0.539 in b."),
        ({"a": seeds(-0.3), "b": [np.nan] * 5}, "Not refuted, no more: no interval in b; 5 seeds cannot rule out -0.539 in a."),
        ({"a": seeds(2.0)}, ""),  # refuted, so it failed
    ],
)
def test_a_negative_control_that_was_not_refuted_says_what_it_cannot_rule_out(write, values, told):
    control = claims.Control("negative", "Nothing is there.", "gain", Within(0.5), id="S1.negative")
    result = claims.judge_control(control, values)
    assert outcomes.control_caveat(result) == told
    page = Page(write(report.StudySection("S1", "Is it?", "", some_verdicts()[3:4], controls=[result]))).words
    assert ("Not refuted" in page) == bool(told)
    assert told in page
    if len(values) == 3:
        powerful = claims.judge_control(dataclasses.replace(control, smallest_effect=0.5), values)
        chance, needed = powerful.verdict.power.chance, powerful.verdict.power.seeds_needed
        added = f" Were it 0 in truth, the chance of an interval inside the region is {100 * chance:.0f} %; {needed} seeds make it 80 %."
        assert outcomes.control_caveat(powerful) == told + added


def test_a_study_without_a_paper_has_no_column_for_it(write, study):
    own = claims.judge(Claim("S2.a", "Another.", "mine", "loss", Below(0)), {"a": seeds(-9), "b": seeds(-8)})
    page = write(report.StudySection("S2", "Is it?", "", [own]))
    assert "The paper" not in page
    assert 'colspan="5"' in page
    paper = report.Publication("doe2020", "Title", ("Jane Doe",), 2020, venue="ICLR")
    assert "The paper" in write(report.StudySection("S2", "Is it?", "", [own], paper=paper))
    assert "The paper" in write(study)  # some of its claims have a value


def test_page_has_links_to_its_data(write, study):
    files = {"the data": "javascript:alert(1)/a b#c", "verdicts": "S1/verdicts.json"}
    text = write(dataclasses.replace(study, data=files))
    links = [attrs["href"] for attrs in Page(text).all("a") if attrs["href"][0] != "#"]
    assert links == ["./javascript%3Aalert%281%29/a%20b%23c", "./S1/verdicts.json"]  # below the page's folder, whatever they are called


def test_page_escapes_what_it_is_given(page):
    assert "<script" not in page
    parsed = Page(page)
    assert not parsed.all("script")
    assert parsed.words.count("<script>alert('x')</script>&\"digits\"") >= 16
    (image,) = parsed.all("img")
    assert image["alt"] == f"dots {EVIL}"


def test_page_shows_text_that_no_file_can_hold(write):
    page = write(report.StudySection("S1", "", "", [], [report.Section("a\x00b\x1bc\x85d\te\ud800f", ["x"])]))
    assert "a\ufffdb\ufffdc\ufffdd\te\ufffdf" in page


def test_page_fetches_nothing(page):
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<iframe|<script", page)
    parsed = Page(page)
    assert not [key for _, attrs in parsed.tags for key in attrs if key.startswith("on")]
    (policy,) = parsed.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline';")
    sources = [value for _, attrs in parsed.tags for key, value in attrs.items() if key in ("src", "href")]
    assert {source.partition(",")[0] for source in sources if source[0] != "#"} == {
        "data:",
        "data:image/svg+xml;base64",
    }


def test_page_tells_verdicts_in_words_and_drawings(page):
    assert "5 claims: 1 supported, 0 contradicted, 1 mixed, 3 undecided." in page
    parsed = Page(page)
    badges = [attrs["class"] for tag, attrs in parsed.tags if "badge" in attrs.get("class", "")]
    counts = [badges.count(f"badge {outcome}") for outcome in get_args(claims.Outcome)]
    assert counts == [4, 1, 2, 7, 0, 0]  # each claim in the strip and in its row; S1.b and S1.c list two cases each
    assert len(set(re.findall('<svg class="icon".*?</svg>', page))) == 4
    cells = [text for text, attrs in parsed.cells if attrs.get("class") in ("belief", "paper")]
    assert cells == [EVIL, "0.0156", "–", "not tested", "–", EVIL, "–", "not tested", "–", "not tested"]
    assert "0.62 [0.38, 0.86]" in page
    drawings = [attrs for tag, attrs in parsed.tags if attrs.get("class", "").startswith("interval")]
    assert len(drawings) == 7  # four claims with data, three of the four cases listed
    assert all("nan" not in str(attrs) for _, attrs in parsed.tags)


def drawn_interval(*arguments):
    return rendering.render_interval(outcomes.draw_interval(*arguments))


def test_interval_is_drawn_where_it_lies():
    found = Interval(1.0, 0.0, 2.0, 0.95, 5, "by hand")
    drawn = drawn_interval(found, Above(1.5), "undecided", (0.0, 2.0))
    left, right, middle = (220 * (value + 0.3) / 2.6 for value in (0.0, 2.0, 1.0))  # margins of 15 %
    limit = 220 * (1.5 + 0.3) / 2.6
    assert f'd="M{limit:.1f} 0V26"' in drawn
    assert f'x="{limit:.1f}" width="{220 - round(limit, 1):.1f}"' in drawn  # shaded to the right
    assert f"M{left:.1f} 13H{right:.1f}" in drawn
    assert f'cx="{middle:.1f}"' in drawn
    assert f'<text x="{limit:.1f}" y="37">1.5</text>' in drawn
    assert 'aria-label="95 % interval from 0.00 to 2.00; the claim holds above 1.5"' in drawn


def test_limits_that_would_touch_are_written_as_one():
    found = Interval(0.0, -9.0, 9.0, 0.95, 5, "by hand")
    drawn = drawn_interval(found, Within(0.25, centre=-0.5), "undecided", (-9.0, 9.0))
    assert re.findall("<text[^>]*>(.*?)</text>", drawn) == ["-0.75 to -0.25"]
    assert "the claim holds between -0.75 and -0.25" in drawn
    drawn = drawn_interval(found, Within(5), "undecided", (-9.0, 9.0))
    assert re.findall("<text[^>]*>(.*?)</text>", drawn) == ["-5", "5"]


def test_an_empty_page_is_a_page(write):
    assert Page(write()).headings == [1]
    assert Page(write(report.StudySection("S1", "", "", []))).headings == [1]


def test_misuse_is_refused(tmp_path):
    with pytest.raises(ValueError, match="3 cells"):
        report.Table(["a", "b", "c"], [[1, 2]], "caption")
    with pytest.raises(TypeError, match="brackets"):
        report.Section("title", "text")
    with pytest.raises(ValueError, match="file name"):
        report.save_figure(report.figure()[0], tmp_path, "a/b")
    with pytest.raises(ValueError, match=r"\.svg or \.png"):
        rendering.render_block(report.Picture(tmp_path / "p.pdf", "alt", "caption"))


@pytest.mark.parametrize("ids,message", [(["S 1"], "white space"), ([""], "white space"), (["S1", "S1"], "S1"), (["verdicts"], "verdicts")])
def test_ids_that_cannot_be_linked_to_are_refused(tmp_path, ids, message):
    with pytest.raises(ValueError, match=message):
        report.write_page(tmp_path / "p.html", title="", lead="", studies=[report.StudySection(i, "", "", []) for i in ids])


@pytest.mark.parametrize("study", ["local_minima", "norm_bias", "ntk_width", "rank_robustness"])
def test_every_claim_of_the_paper_tells_what_was_believed(study):
    module = importlib.import_module(f"experiments.{study}.claims")
    claims = [value for value in vars(module).values() if isinstance(value, Claim)]
    assert len(claims) >= 5
    assert all(claim.belief.endswith(".") and len(claim.belief) < 120 for claim in claims)


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
        ((2.3025024, 2.3024975, 2.3025073), "2.3025024 [2.3024975, 2.3025073]"),
        ((0.5, 0.5 - 1e-12, 0.5 + 1e-12), "0.500000000 [0.500000000, 0.500000000]"),
    ],
)
def test_format_interval(ends, expected):
    assert report.format_interval(Interval(*ends, 0.95, 5, "by hand")) == expected


def test_table_aligns_columns_of_numbers():
    found = rendering.render_block(report.Table(["name", "value"], [["a", 1.5], [None, None]], "caption"))
    assert '<th scope="col">name</th><th scope="col" class="number">value</th>' in found
    assert '<th scope="row">–</th><td class="number">–</td>' in found
    mixed = rendering.render_block(report.Table(["a", "b"], [["x", 1.5], ["y", 2.5], ["z", "diverged"]], "caption"))
    assert '<td class="number">diverged</td>' in mixed
    empty = rendering.render_block(report.Table(["a", "b"], [["x", None]], "a 95 % interval"))
    assert "<td>–</td>" in empty
    assert "<figcaption>a 95\u00a0% interval</figcaption>" in empty


# Figures


@pytest.mark.slow
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


def test_curves_differ_in_shape_as_well_as_in_colour():
    _, ax = report.figure()
    for label in "abc":
        report.curve(ax, [4, 8, 16], np.ones((2, 3)), label=label)
    lines = [line for line in ax.lines if line.get_label() in tuple("abc")]
    assert len({line.get_marker() for line in lines}) == len({line.get_color() for line in lines}) == 3


def test_strip_shows_geometric_means_and_counts_what_it_leaves_out():
    _, ax = report.figure()
    report.strip(ax, {"a": [1.0, 2.0, 4.0, np.nan, -1.0]}, log=True)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a\n(2 of 5 not shown)"]
    bar, mean = (line.get_xdata() for line in ax.get_lines())
    assert mean[0] == pytest.approx(2.0)
    expected = stats.t_interval(np.log([1.0, 2.0, 4.0]))
    assert np.log(bar) == pytest.approx([expected.low, expected.high])
    assert len(ax.collections[0].get_offsets()) == 3


def test_curve_leaves_out_missing_seeds_point_by_point():
    _, ax = report.figure()
    report.curve(ax, [1, 2, 3], [[1.0, 2.0, np.nan], [3.0, np.nan, np.nan]], label="a")
    assert ax.get_lines()[0].get_ydata() == pytest.approx([2.0, 2.0, np.nan], nan_ok=True)
    assert len(ax.get_lines()) == 1 + 2


def test_curve_has_a_band_where_there_are_three_seeds():
    _, ax = report.figure()
    report.curve(ax, [1, 2, 3], [[1.0, 2.0, 3.0], [3.0, 2.5, 5.0], [2.0, 3.0, np.nan]])
    drawn = np.concatenate([path.vertices for path in ax.collections[0].get_paths()])
    assert set(drawn[:, 0]) == {1, 2}
    assert ax.get_ylim()[1] < 7  # the interval of 3 and 5 ends at 17


def test_a_curve_that_starts_at_0_tells_no_events():
    _, ax = report.figure()
    report.curve(ax, [0, 1], [[0.0, 5.0], [0.0, 6.0], [0.0, 5.5]])
    start = [y for path in ax.collections[0].get_paths() for x, y in path.vertices if x == 0]
    assert set(start) == {0.0}


def test_long_titles_of_panels_stay_inside():
    title = "ResNet, Fixup, mnist5k@7, normalised"
    fig, axes = report.panels([title, title, "short"])
    for ax in axes:
        report.strip(ax, {"weight decay": [1.0, 2.0]})
    fig.draw_without_rendering()
    titles = [text for ax in axes for text in ax.findobj(Text) if text.get_text().startswith("ResNet")]
    ends = [text.get_window_extent().x1 for text in titles]
    assert ends[0] < axes[1].get_window_extent().x0
    assert ends[1] < fig.bbox.x1
    assert [ax.get_visible() for ax in fig.axes] == [True, True, True, False]


@pytest.mark.slow
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
    monkeypatch.setattr(blocks, "MAX_SVG_BYTES", 100)
    found = rendering.render_block(picture)
    assert "data:image/png;base64," in found
    assert ' width="614" height="403"' in found
    data = re.search(r"base64,([^\"]+)", found)[1]
    assert base64.b64decode(data) == picture.path.with_suffix(".png").read_bytes()


def test_a_strip_without_logarithms_and_of_events_can_be_saved(tmp_path):
    fig, ax = report.figure()
    report.strip(ax, {"a": [0.0, 0.0], "b": [-1.0, -2.0]}, log=True)
    assert [text.get_text() for text in ax.texts] == ["no value has a logarithm"]
    report.save_figure(fig, tmp_path, "x")
    _, ax = report.figure()
    report.strip(ax, {"a": [0.0, 1.0]})
    assert 0 <= min(ax.lines[0].get_xdata()) < max(ax.lines[0].get_xdata()) <= 1
    assert report.mean_cell([1.0], "diverged") == "1.00 (1 seed)"


def test_losses_have_a_geometric_mean():
    cell = report.geometric_mean_cell([0.01, 1.0, 100.0], "diverged")
    assert cell.estimate == pytest.approx(1)
    assert 0 < cell.low < 1 < cell.high
    assert report.geometric_mean_cell([1.0, np.nan], "diverged") == "1 of 2 diverged"


def test_the_first_screen_has_every_outcome_and_whether_the_paper_says_so(write):
    told = Claim("S3.a", "Falls.", "Table 1", "loss", Below(0), paper_value="-0.3")
    with_paper = [claims.judge(told, {"a": seeds(9)}), claims.judge(dataclasses.replace(told, id="S3.b"), {"a": seeds(-9)})]
    silent = claims.judge(dataclasses.replace(told, id="S3.c", paper_value=None), {"a": seeds(9)})
    assert [report.beside_paper(verdict) for verdict in (*with_paper, silent)] == ["against its paper", "as its paper says", ""]
    head = write(report.StudySection("S3", "Third", "Its lead", [*with_paper, silent])).partition("<nav")[0]
    chips = re.findall(r'class="chip" href="#(S3\..)">(.*?)</a>', head, re.DOTALL)
    assert [name for name, _ in chips] == ["S3.a", "S3.b", "S3.c"]
    assert ["contradicted</span>" in text for _, text in chips] == [True, False, True]
    assert ["≠ paper" in text for _, text in chips] == [True, False, False]
