import numpy as np
import pytest

from jaxbp import report, stats
from jaxbp.claims import Above, Claim, Within

HIGHER = Claim("S9.a", "It rises.", "nobody", "gain", Above(1.0))
SAME = Claim("S9.b", "It stays.", "nobody", "difference", Within(0.5))
MEASUREMENTS = {HIGHER: {"MLP": [1.0, 2.0, 4.0], "VGG": [3.0, np.nan, 2.0]}, SAME: {"MLP": [0.1, 0.2, 0.0]}}


def test_each_claim_has_a_strip_with_its_limits(tmp_path, monkeypatch):
    saved = []
    save = report.figures.save_figure
    monkeypatch.setattr(report.figures, "save_figure", lambda fig, *place: saved.append(fig) or save(fig, *place))
    pictures = report.claim_pictures(MEASUREMENTS, tmp_path)
    assert [picture.path.name for picture in pictures] == ["S9a.svg", "S9b.svg"]
    assert pictures[0].alt == "gain, by case and seed"
    assert pictures[0].caption.startswith("It rises. A dot is a seed")
    dashed = [[line.get_xdata()[0] for line in fig.axes[0].get_lines() if line.get_linestyle() == "--"] for fig in saved]
    assert dashed == [[1.0], [-0.5, 0.5]]
    names = [tick.get_text() for tick in saved[0].axes[0].get_yticklabels()]
    assert names == ["MLP", "VGG\n(1 of 3 not shown)"]
    assert saved[0].axes[0].get_xlabel() == "gain"


def test_the_table_lists_means_and_counts_what_is_not_finite():
    table = report.claim_table(MEASUREMENTS)
    assert table.columns == ("claim", "case", "mean")
    assert table.rows[0] == ("S9.a", "MLP", stats.t_interval([1.0, 2.0, 4.0]))
    assert table.rows[1] == ("S9.a", "VGG", "1 of 3 not finite")
    assert table.rows[2][:2] == ("S9.b", "MLP")


@pytest.mark.parametrize("measurements", [{}, {HIGHER: {}}])
def test_without_measurements_the_table_is_empty(measurements):
    assert report.claim_table(measurements).rows == []


def test_a_label_stays_inside_the_figure_beside_long_names_of_cases(tmp_path, monkeypatch):
    saved = []
    save = report.figures.save_figure
    monkeypatch.setattr(report.figures, "save_figure", lambda fig, *place: saved.append(fig) or save(fig, *place))
    claim = Claim("S9.c", "It is positive.", "nobody", "share of seeds whose estimate is not negative", Above(0.5))
    for length in (1, 60):
        report.claim_pictures({claim: {"c" * length: [0, 1, 1]}}, tmp_path)
    labels = [fig.axes[0].xaxis.label for fig in saved]
    assert labels[0].get_text() == claim.measure
    assert labels[1].get_text().splitlines() == ["share of seeds", "whose estimate", "is not negative"]
    for fig, label in zip(saved, labels, strict=True):
        box = label.get_window_extent()
        assert 0 <= box.x0 < box.x1 <= fig.bbox.width
