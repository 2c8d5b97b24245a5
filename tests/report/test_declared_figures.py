import itertools
import re
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from matplotlib.text import Text

from jaxbp import report

SEEDS, EPOCHS, ARMS = 5, [0, 1, 3, 10], ["none", "decay", "bias"]


@dataclass(frozen=True)
class Case:
    name: str
    batch_norm: bool = True
    widths: tuple[int, ...] = (8, 16, 32)


class CaseResult(SimpleNamespace):
    """A case result, with the stages that it was given."""


def comparison(offset, arms=ARMS):
    rng = np.random.default_rng(offset)
    accuracy = 60 + offset + rng.normal(size=(len(arms), SEEDS)) + np.arange(len(arms))[:, None]
    norm = 10 * np.exp(-0.1 * np.arange(len(EPOCHS))) * (1 + 0.1 * rng.random((len(arms), SEEDS, len(EPOCHS))))
    variables = {
        "test_accuracy": (("arm", "seed"), accuracy, {"long_name": "test accuracy", "units": "%"}),
        "norm": (("arm", "seed", "epoch"), norm),
        "robust": (("training", "arm", "seed"), np.stack([accuracy, accuracy - 30])),
    }
    coords = {"arm": list(arms), "epoch": EPOCHS, "seed": np.arange(SEEDS), "training": ["natural", "adversarial"]}
    return xr.Dataset(variables, coords)


def kernels(offset):
    rng = np.random.default_rng(offset)
    widths, layers = [8, 16, 32], ["conv1", "conv2"]
    variables = {
        "correlation": (("seed", "width"), 1 - rng.random((SEEDS, 3)) / np.array(widths)),
        "distance": (("mode", "seed", "width"), (1 + 0.1 * rng.random((2, SEEDS, 3))) / np.sqrt(widths)),
        "nuclear_rank": (("arm", "seed", "layer"), 2 + rng.random((2, SEEDS, 2))),
        "kernel": (("when", "image", "image2"), rng.random((2, 6, 6)) * np.array([1, 3])[:, None, None]),
    }
    coords = {"width": widths, "layer": layers, "mode": ["stored", "batch"], "when": ["before", "after"], "arm": ["none", "low rank"]}
    return xr.Dataset(variables, coords)


@pytest.fixture
def run():
    settings = SimpleNamespace(num_probes=25)
    cases = [
        CaseResult(case=Case("MLP", False), name="MLP", settings=settings, compare=comparison(0), kernel=kernels(0)),
        CaseResult(case=Case("ResNet, 28x28"), name="ResNet, 28x28", settings=settings, compare=comparison(5), kernel=kernels(1)),
        CaseResult(case=Case("untrained"), name="untrained", settings=settings),
    ]
    return SimpleNamespace(settings=settings, cases=cases)


@pytest.fixture
def drawn(monkeypatch):
    """Keeps the figures that are saved, which can be asked for lines and labels."""
    kept = []
    save = report.figures.save_figure

    def keep(fig, folder, name):
        kept.append(fig)
        return save(fig, folder, name)

    monkeypatch.setattr(report.figures, "save_figure", keep)
    return kept


def titles(fig):
    return [ax.get_title(loc="left") for ax in fig.axes if ax.get_visible()]


def row_names(ax):
    return [tick.get_text() for tick in ax.get_yticklabels()]


def dot_places(ax, row):
    return np.asarray(ax.collections[row].get_offsets())[:, 0]


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()] if ax.get_legend() else None


# Strips


def test_strip_has_a_panel_for_each_case_with_data(run, tmp_path, drawn):
    (picture,) = report.SeedStrip("compare.test_accuracy", caption="Accuracy.").pictures(run, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test_accuracy.png", "test_accuracy.svg"]
    assert (picture.path.name, picture.alt, picture.caption) == ("test_accuracy.svg", "test accuracy, % by arm", "Accuracy.")
    (fig,) = drawn
    assert titles(fig) == ["MLP", "ResNet, 28x28"]
    assert [row_names(ax) for ax in fig.axes] == [ARMS, ARMS]
    assert {ax.get_xlabel() for ax in fig.axes} == {"test accuracy, %"}
    dots = dot_places(fig.axes[0], 1)
    assert dots == pytest.approx(run.cases[0].compare.test_accuracy.sel(arm="decay").values)


def test_joined_strip_joins_the_runs_of_a_seed(run, tmp_path, drawn):
    report.SeedStrip("compare.test_accuracy", joined=True, caption="").pictures(run, tmp_path)
    line = drawn[0].axes[0].get_lines()[2]
    assert line.get_xdata() == pytest.approx(run.cases[0].compare.test_accuracy.sel(seed=2).values)
    assert np.diff(line.get_ydata()) == pytest.approx([1, 1])  # from dot to dot, each as far from its row
    dots = drawn[0].axes[0].collections[0].get_offsets()
    assert line.get_xydata()[0] == pytest.approx(dots[2])


def test_strip_shows_the_arms_asked_for_in_their_order_and_by_other_names(run, tmp_path, drawn):
    strip = report.SeedStrip("compare.test_accuracy", show=["bias", "absent", "none"], labels={"none": "no regulariser"}, caption="")
    strip.pictures(run, tmp_path)
    assert row_names(drawn[0].axes[0]) == ["bias", "no regulariser"]


def test_a_figure_a_case_carries_the_name_of_the_case(run, tmp_path, drawn):
    strip = report.SeedStrip(
        lambda m: {"start": m.compare.norm[0, :, 0], "end": m.compare.norm[0, :, -1]},
        name="ends",
        log=True,
        per_case=True,
        lines=lambda m: float(m.compare.norm.mean()),
        xlabel="norm",
        alt="norms",
        caption=lambda m: f"{m.settings.num_probes} images.",
    )
    pictures = strip.pictures(run, tmp_path)
    assert [picture.path.name for picture in pictures] == ["ends_MLP.svg", "ends_ResNet__28x28.svg"]
    assert (pictures[1].alt, pictures[1].caption) == ("ResNet, 28x28: norms", "ResNet, 28x28. 25 images.")
    for fig, m in zip(drawn, run.cases, strict=False):
        (ax,) = fig.axes
        assert row_names(ax) == ["start", "end"]
        dashed = [line.get_xdata()[0] for line in ax.get_lines() if line.get_linestyle() == "--"]
        assert dashed == [pytest.approx(float(m.compare.norm.mean()))]
        assert ax.get_xscale() == "log"


@pytest.mark.slow
def test_a_panel_for_each_case_and_coordinate(run, tmp_path, drawn):
    strip = report.SeedStrip("compare.robust", panel_by="training", title=lambda m: m.name[:3], caption="")
    strip.pictures(run, tmp_path)
    assert titles(drawn[0]) == ["MLP, natural", "MLP, adversarial", "Res, natural", "Res, adversarial"]
    dots = dot_places(drawn[0].axes[3], 0)
    assert dots == pytest.approx(run.cases[1].compare.robust.sel(training="adversarial", arm="none").values)


def test_cases_as_rows_of_one_strip(run, tmp_path, drawn):
    gain = report.SeedStrip(
        lambda m: m.compare.test_accuracy.sel(arm="bias") - m.compare.test_accuracy.sel(arm="none"),
        by=report.CASES,
        name="gain",
        lines=(0, 1),
        caption="",
    )
    gain.pictures(run, tmp_path)
    (ax,) = drawn[0].axes
    assert row_names(ax) == ["MLP", "ResNet, 28x28"]
    assert [line.get_xdata()[0] for line in ax.get_lines() if line.get_linestyle() == "--"] == [0, 1]


def test_stacked_strips_have_one_label_at_the_bottom(run, tmp_path, drawn):
    report.SeedStrip("compare.test_accuracy", stacked=True, caption="").pictures(run, tmp_path)
    assert [ax.get_xlabel() for ax in drawn[0].axes] == ["", "test accuracy, %"]
    assert titles(drawn[0]) == ["MLP", "ResNet, 28x28"]


def test_titles_of_stacked_panels_stay_inside_and_rows_of_two_lines_apart(run, tmp_path, drawn):
    run.cases[0].name = "MLP of 3 layers, weight decay tuned, " + run.cases[1].name
    for case in run.cases[:2]:
        case.name += ", trained from pairs of biases that are widely spread"
        case.compare.test_accuracy[..., 0] = np.nan
    report.SeedStrip("compare.test_accuracy", stacked=True, caption="").pictures(run, tmp_path)
    (fig,) = drawn
    assert all("\n" in title for title in titles(fig))
    for ax in fig.axes:
        assert max(text.get_window_extent().x1 for text in ax.findobj(Text) if text.get_text() == ax.get_title(loc="left")) < fig.bbox.x1
        rows = [label.get_window_extent() for label in ax.get_yticklabels()]
        assert ax.get_yticklabels()[0].get_text() == "none\n(1 of 5 not shown)"
        assert all(above.y0 > below.y1 for above, below in itertools.pairwise(rows))


# Curves


def test_curves_over_an_axis_have_thin_lines_and_a_legend_in_the_first_panel(run, tmp_path, drawn):
    (picture,) = report.SeedCurves("compare.norm", log=True, caption="Norms.").pictures(run, tmp_path)
    first, second = drawn[0].axes
    assert picture.alt == "norm against epoch"
    assert (legend(first), legend(second)) == (ARMS, None)
    assert (first.get_yscale(), first.get_xlabel(), first.get_ylabel()) == ("log", "epoch", "norm")
    norm = run.cases[0].compare.norm.sel(arm="none")
    mean, *seeds = first.get_lines()[: 1 + SEEDS]
    assert mean.get_xdata().tolist() == EPOCHS
    assert mean.get_ydata() == pytest.approx(np.exp(np.log(norm).mean("seed").values))
    assert np.array([line.get_ydata() for line in seeds]) == pytest.approx(norm.transpose("seed", "epoch").values)


@pytest.mark.slow
def test_curves_of_one_label_have_one_colour_in_all_panels(run, tmp_path, drawn):
    run.cases[1].compare = comparison(5, ["bias", "none", "other"])
    report.SeedCurves("compare.norm", caption="").pictures(run, tmp_path)
    colours = [{line.get_label(): line.get_color() for line in ax.get_lines()} for ax in drawn[0].axes]
    assert colours[0]["none"] == colours[1]["none"] != colours[0]["bias"] == colours[1]["bias"]
    assert len({colours[1][arm] for arm in ("bias", "none", "other")}) == 3
    assert [legend(ax) for ax in drawn[0].axes] == [ARMS, ["bias", "none", "other"]]  # the first does not tell all


def test_curves_over_width_write_the_widths(run, tmp_path, drawn):
    curves = report.SeedCurves(
        "kernel.correlation", x="width", by=None, x_scale="log2", share_y=True, lines=1, limits=(0, 2), ylabel="correlation", caption=""
    )
    curves.pictures(run, tmp_path)
    ax = drawn[0].axes[0]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["8", "16", "32"]
    dotted = [line.get_ydata()[0] for line in ax.get_lines() if line.get_linestyle() == ":"]
    assert (dotted, legend(ax), ax.get_ylim(), ax.get_ylabel()) == ([1], None, (0, 2), "correlation")


def test_curves_over_names_are_numbered(run, tmp_path, drawn):
    curves = report.SeedCurves(
        lambda m: {**report.split(m.kernel.nuclear_rank, "arm"), "untrained": m.kernel.nuclear_rank[0] + 1},
        x="layer",
        name="rank",
        xlabel="convolution",
        ylabel="rank",
        caption="",
    )
    curves.pictures(run, tmp_path)
    ax = drawn[0].axes[0]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "2"]
    assert legend(ax) == ["none", "low rank", "untrained"]


def test_cases_of_one_title_share_a_panel(run, tmp_path, drawn):
    curves = report.SeedCurves(
        lambda m: report.split(m.kernel.distance, "mode", labels=lambda mode: f"{m.name}, {mode}"),
        x="width",
        name="distance",
        title=lambda m: "any network",
        stacked=True,
        log=True,
        x_scale="log2",
        legend="each",
        decorate=lambda ax, m: report.slope_guide(ax, -0.5, "slope -1/2"),
        caption="",
    )
    curves.pictures(run, tmp_path)
    (ax,) = drawn[0].axes
    assert titles(drawn[0]) == ["any network"]
    assert legend(ax)[:4] == [f"{name}, {mode}" for name in ("MLP", "ResNet, 28x28") for mode in ("stored", "batch")]
    guide = next(line for line in ax.get_lines() if line.get_label() == "slope -1/2")
    assert np.diff(np.log(guide.get_ydata())) / np.diff(np.log(guide.get_xdata())) == pytest.approx(-0.5)


def test_means_alone_are_lines_without_seeds(run, tmp_path, drawn):
    report.SeedCurves("compare.norm", mean_only=True, dashed=["none"], caption="").pictures(run, tmp_path)
    lines = drawn[0].axes[0].get_lines()
    assert [line.get_linestyle() for line in lines] == ["--", "-", "-"]
    assert lines[1].get_ydata() == pytest.approx(run.cases[0].compare.norm.sel(arm="decay").mean("seed").values)


# Figures of a study's own


def test_custom_figures_are_drawn_a_case_or_once(run, tmp_path):
    def draw(m):
        fig, ax = report.figure()
        ax.plot(m.compare.norm[0, 0])
        return fig

    a_case = report.CustomFigure(draw, name="own", alt="a line", caption=lambda m: f"{m.compare.sizes['seed']} seeds.")
    assert [picture.caption for picture in a_case.pictures(run, tmp_path)] == ["MLP. 5 seeds.", "ResNet, 28x28. 5 seeds."]
    once = report.CustomFigure(lambda run: draw(run.cases[0]), name="once", alt="a line", caption="A line.", per_case=False)
    assert [picture.path.name for picture in once.pictures(run, tmp_path)] == ["once.svg"]
    nothing = report.CustomFigure(lambda m: None, name="nothing", alt="", caption="")
    assert nothing.pictures(run, tmp_path) == []


# What is left out, and what is refused


# Scatters and bars


def test_a_scatter_has_a_dot_a_seed_and_joins_levels(run, tmp_path, drawn):
    scatter = report.SeedScatter(
        lambda m: m.compare.norm,
        x=lambda m: 2 * m.compare.norm,
        joined="epoch",
        log_x=True,
        log=True,
        name="norms",
        diagonal=True,
        caption="",
    )
    (picture,) = scatter.pictures(run, tmp_path)
    assert picture.path.name == "norms.svg"
    ax = drawn[0].axes[0]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    lines = [line for line in ax.get_lines() if len(line.get_xdata()) == len(EPOCHS)]
    assert len(lines) == len(ARMS) * SEEDS
    np.testing.assert_allclose(lines[0].get_ydata(), run.cases[0].compare.norm.values[0, 0])
    np.testing.assert_allclose(lines[0].get_xdata(), 2 * lines[0].get_ydata())
    assert legend(ax) == ARMS
    assert [line.get_color() for line in lines] == [colour for colour in report.PALETTE[:3] for _ in range(SEEDS)]
    (diagonal,) = (line for line in ax.get_lines() if line.get_linestyle() == ":")
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata())


def test_figures_of_runs_that_all_diverged_are_drawn_without_points(run, tmp_path, drawn):
    for case in run.cases[:2]:
        case.compare.norm[...] = np.nan
        case.compare.norm[..., 0] = -np.inf
    options = {"log": True, "caption": ""}
    report.SeedCurves("compare.norm", x_scale="log", **options).pictures(run, tmp_path)
    report.SeedScatter("compare.norm", x=lambda m: m.compare.norm, log_x=True, name="scatter", **options).pictures(run, tmp_path)
    assert [(ax.get_xscale(), ax.get_yscale()) for fig in drawn for ax in fig.axes] == [("linear", "linear")] * 4


def test_bars_stack_parts_by_sign_and_show_every_seeds_sum(run, tmp_path, drawn):
    run.cases[0].compare.norm[0, 0, 1] = np.nan  # a seed that lacks a part is left out
    bars = report.StackedBars(
        lambda m: m.compare.norm * xr.DataArray([1, -1, 1, 1], {"epoch": EPOCHS}), parts="epoch", mark="10", name="parts", caption=""
    )
    bars.pictures(run, tmp_path)
    ax = drawn[0].axes[0]
    assert row_names(ax) == [f"none\n(1 of {SEEDS} not shown)", *ARMS[1:]]
    first, second, third = ax.patches[:3]
    values = run.cases[0].compare.norm.values[0, 1:]
    np.testing.assert_allclose([bar.get_width() for bar in (first, second, third)], values.mean(0)[:3] * [1, -1, 1])
    assert (first.get_x(), second.get_x()) == (0, 0)
    assert third.get_x() == first.get_width()
    sums, mark = ax.get_lines()[:2]
    np.testing.assert_allclose(sums.get_xdata(), values[:, [0, 2]].sum(1) - values[:, 1])
    np.testing.assert_allclose(mark.get_xdata(), values[:, 3].mean())
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["sum", "10", "0", "1", "3"]


def test_reference_lines_may_have_names(run, tmp_path, drawn):
    report.SeedStrip("compare.test_accuracy", lines={"chance": 55.0}, caption="").pictures(run, tmp_path)
    (label,) = drawn[0].axes[0].texts
    assert (label.get_text(), label.get_position()[0]) == ("chance", 55)
    assert [55, 55] in [list(line.get_xdata()) for line in drawn[0].axes[0].get_lines()]


def test_a_missing_stage_leaves_a_case_out_but_a_mistake_is_seen(run, tmp_path):
    strip = report.SeedStrip(lambda m: m.scan.accuracy, name="scan", caption="")
    assert strip.pictures(run, tmp_path) == []
    with pytest.raises(AttributeError, match="acuracy"):
        report.SeedStrip(lambda m: m.compare.acuracy, name="scan", caption="").pictures(run, tmp_path)
    with pytest.raises(ValueError, match=r"compare\.acuracy.*test_accuracy"):
        report.SeedStrip("compare.acuracy", caption="").pictures(run, tmp_path)


def test_where_selects_cases(run, tmp_path, drawn):
    report.SeedStrip("compare.test_accuracy", where=lambda case: case.batch_norm, caption="").pictures(run, tmp_path)
    assert titles(drawn[0]) == ["ResNet, 28x28"]


@pytest.mark.parametrize(
    "declare,message",
    [
        (lambda: report.SeedStrip(lambda m: None, caption=""), "name"),
        (lambda: report.SeedCurves("norm", caption=""), r"stage\.variable"),
        (lambda: report.CustomFigure(lambda m: None, caption=""), "name"),
    ],
)
def test_a_declaration_that_cannot_be_drawn_is_refused(declare, message):
    with pytest.raises(ValueError, match=message):
        declare()


@pytest.mark.parametrize(
    "figure,message",
    [
        (report.SeedStrip("compare.norm", caption=""), "none: one number a seed is needed, got dimensions ('seed', 'epoch')"),
        (report.SeedCurves("compare.robust", caption=""), "none: dimensions seed and 'epoch' are needed, got dimensions ('training'"),
        (report.SeedStrip("compare.norm", by="arm", name="h", caption="", where=lambda case: False), None),
        (report.SeedStrip("compare.test_accuracy", title=lambda m: "same", caption=""), "got ['bias', 'decay', 'none'] twice"),
    ],
)
def test_values_of_a_wrong_shape_are_refused(run, tmp_path, figure, message):
    if message is None:
        assert figure.pictures(run, tmp_path) == []
        return
    with pytest.raises(ValueError, match=re.escape(message)):
        figure.pictures(run, tmp_path)


def test_sections_hold_figures_tables_by_heading_and_method(run, tmp_path):
    sections = report.build_sections(
        run,
        tmp_path,
        figures=[report.SeedStrip("compare.test_accuracy", caption="")],
        tables=[
            report.MeanTable("compare.test_accuracy", columns="arm", section="Accuracy", caption="all"),
            report.MeanTable("compare.test_accuracy", columns="arm", section=lambda m: f"Of {m.name}", per_case=True, caption="own"),
            report.CustomTable(lambda run: report.Table(["a"], [[1]], "by hand"), section="Accuracy"),
        ],
        method=["First.", "Second."],
    )
    assert [section.title for section in sections] == ["Figures", "Accuracy", "Of MLP", "Of ResNet, 28x28", "Method"]
    assert [table.caption for table in sections[1].blocks] == ["all", "by hand"]
    assert sections[-1].blocks == ["First.", "Second."]


def test_two_figures_of_one_name_are_refused(run, tmp_path):
    strip = report.SeedStrip("compare.test_accuracy", caption="")
    with pytest.raises(ValueError, match=r"test_accuracy.*twice"):
        report.draw_figures(run, [strip, strip], tmp_path)
