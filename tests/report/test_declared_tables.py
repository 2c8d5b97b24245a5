import re
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from jaxbp import report, stats

ARMS = ["none", "decay"]


class CaseResult(SimpleNamespace):
    """A case result, with the stages that it was given."""


def comparison(offset, arms=ARMS):
    values = offset + np.arange(len(arms))[:, None] + np.array([0.1, 0.2, 0.4, 0.8])
    variables = {
        "accuracy": (("arm", "seed"), values),
        "robust": (("training", "arm", "seed"), np.stack([values, values - 5])),
        "status": (("arm",), ["converged"] * len(arms)),
        "masked": (("training", "arm", "seed"), np.stack([values > offset + 0.3, values < 0])),
        "rate": ((), 0.5 + offset),
    }
    return xr.Dataset(variables, {"arm": list(arms), "training": ["natural", "adversarial"]})


@pytest.fixture
def run():
    cases = [
        CaseResult(case=SimpleNamespace(paper=(93.5, 94.1)), name="MLP", compare=comparison(0)),
        CaseResult(case=SimpleNamespace(paper=None), name="VGG", compare=comparison(10, ["decay", "bias"])),
        CaseResult(case=SimpleNamespace(paper=None), name="untrained"),
    ]
    return SimpleNamespace(settings=SimpleNamespace(num_seeds=4), cases=cases)


def mean(run, case, arm):
    return stats.t_interval(run.cases[case].compare.accuracy.sel(arm=arm).values)


def test_means_by_column_beside_the_papers_values(run):
    table = report.MeanTable(
        "compare.accuracy",
        columns="arm",
        beside={"paper": lambda m: m.case.paper and " / ".join(map(str, m.case.paper))},
        caption=lambda run: f"{run.settings.num_seeds} seeds.",
    )
    (built,) = table.tables(run)
    assert built.caption == "4 seeds."
    assert built.columns == ["case", "none", "decay", "bias", "paper"]
    assert built.rows == [
        ("MLP", mean(run, 0, "none"), mean(run, 0, "decay"), None, "93.5 / 94.1"),
        ("VGG", None, mean(run, 1, "decay"), mean(run, 1, "bias"), None),
    ]


def test_columns_asked_for_in_their_order_and_by_other_names(run):
    table = report.MeanTable("compare.accuracy", columns="arm", show=["bias", "none"], labels={"none": "no regulariser"}, caption="")
    (built,) = table.tables(run)
    assert built.columns == ["case", "no regulariser", "bias"]
    assert built.rows == [("MLP", mean(run, 0, "none"), None), ("VGG", None, mean(run, 1, "bias"))]


def test_a_row_for_each_coordinate_the_last_dimension_fastest(run):
    table = report.MeanTable(
        lambda m: {"robust": m.compare.robust, "clean": m.compare.accuracy, "state": m.compare.status, "rate": m.compare.rate, "text": "x"},
        rows=("training", "arm"),
        beside={"paper": lambda m, training, arm: {("natural", "none"): 1.5}.get((training, arm))},
        headings=("network", "training", "init"),
        caption="",
    )
    (built,) = table.tables(run)
    assert built.columns == ["network", "training", "init", "robust", "clean", "state", "rate", "text", "paper"]
    assert [row[:3] for row in built.rows[:4]] == [("MLP", t, a) for t in ("natural", "adversarial") for a in ARMS]
    robust = run.cases[0].compare.robust.sel(training="adversarial", arm="decay")
    assert built.rows[3][3:] == (stats.t_interval(robust.values), mean(run, 0, "decay"), "converged", 0.5, "x", None)
    assert built.rows[0][-1] == 1.5
    assert len(built.rows) == 8


def test_rows_may_be_named_by_a_function(run):
    table = report.MeanTable(
        "compare.accuracy", rows=("arm",), headings=("run",), row_names=lambda m, arm: [f"{m.name}, {arm}"], caption=""
    )
    (built,) = table.tables(run)
    assert built.columns == ["run", "accuracy"]
    assert built.rows[1] == ("MLP, decay", mean(run, 0, "decay"))


def test_counts_are_written_as_they_are(run):
    table = report.MeanTable(lambda m: {"masked": m.compare.masked.sum("seed")}, rows=("training", "arm"), caption="")
    (built,) = table.tables(run)
    assert [row[-1] for row in built.rows[:4]] == [2, 4, 0, 0]
    assert all(isinstance(row[-1], int) for row in built.rows)


def test_a_table_a_case_needs_no_column_for_it(run):
    table = report.MeanTable("compare.accuracy", columns="arm", per_case=True, section=lambda m: f"Of {m.name}", caption=lambda m: m.name)
    first, second = table.sections(run)
    assert (first.title, second.title) == ("Of MLP", "Of VGG")
    assert first.blocks[0].columns == ["none", "decay"]
    assert second.blocks[0].caption == "VGG"


def test_p_values_are_adjusted_over_the_rows_of_a_column(run):
    run.cases[1].compare = comparison(-0.3)
    run.cases.append(CaseResult(case=None, name="diverged", compare=comparison(np.nan)))
    table = report.MeanTable("compare.accuracy", columns="arm", p_values=True, not_finite="diverged", caption="")
    (built,) = table.tables(run)
    assert built.columns == ["case", "none", "p (Holm)", "decay", "p (Holm)"]
    for column, arm in ((2, "none"), (4, "decay")):
        p = [stats.p_value(run.cases[case].compare.accuracy.sel(arm=arm).values) for case in (0, 1)]
        assert [row[column] for row in built.rows] == [*stats.holm(p), None]
    assert built.rows[2][1] == "4 of 4 diverged"


def test_cells_may_be_other_than_means(run):
    table = report.MeanTable("compare.accuracy", columns="arm", cell_fn=lambda values: float(values.max()), caption="")
    assert table.tables(run)[0].rows[0] == ("MLP", 0.8, 1.8, None)


def test_custom_tables_are_built_once_or_a_case(run):
    once = report.CustomTable(lambda run: report.Table(["seeds"], [[run.settings.num_seeds]], "once"))
    assert [table.rows for table in once.tables(run)] == [[[4]]]
    of_case = report.CustomTable(lambda m: report.Table(["rate"], [[float(m.compare.rate)]], m.name), per_case=True)
    assert [table.caption for table in of_case.tables(run)] == ["MLP", "VGG"]
    assert report.CustomTable(lambda run: None).sections(run) == []


def test_without_data_there_is_no_table(run):
    assert report.MeanTable("scan.accuracy", columns="arm", caption="").sections(run) == []


@pytest.mark.parametrize(
    "table,message",
    [
        (report.MeanTable("compare.robust", columns="arm", caption=""), "an array over ('training', 'seed')"),
        (report.MeanTable("compare.accuracy", columns="arm", rows=("epoch",), caption=""), "no array has the dimension 'epoch'"),
    ],
)
def test_values_that_fit_no_cell_are_refused(run, table, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        table.tables(run)


def test_rows_are_a_list():
    with pytest.raises(TypeError, match="brackets"):
        report.MeanTable("compare.accuracy", rows="arm", caption="")
