"""What was measured for each claim, as figures and a table: for studies that declare none of their own.

``measurements`` holds for each claim the values over seeds by case, as for `jaxbp.claims.judge`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from jaxbp import claims, stats
from jaxbp.report import figures
from jaxbp.report.blocks import Picture, Section, Table, mean_cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Measurements = Mapping[claims.Claim, Mapping[str, ArrayLike]]


def claim_pictures(measurements: Measurements, folder: str | os.PathLike) -> list[Picture]:
    """A strip for each claim: a row a case, a dot a seed, and where the claim holds."""
    pictures = []
    for claim, by_case in measurements.items():
        path = figures.save_figure(_strip(claim, by_case), folder, claim.id.replace(".", ""))[1]
        caption = (
            f"{claim.statement} A dot is a seed, a bar a 95 % interval of the mean, the thin open line the interval that holds at every "
            "number of seeds; dashed: where the claim begins or ceases to hold."
        )
        pictures.append(Picture(path, f"{claim.measure}, by case and seed", caption))
    return pictures


def _strip(claim: claims.Claim, by_case: Mapping[str, ArrayLike]) -> "Figure":
    fig, ax = figures.figure(height=0.8 * len(by_case) + 1.2)
    figures.strip(ax, {case: np.asarray(values, float) for case, values in by_case.items()})
    with figures.style():
        for row, values in enumerate(by_case.values()):
            if (interval := _anytime(np.asarray(values, float))) is not None:
                colour = figures.PALETTE[row % len(figures.PALETTE)]
                ax.plot([interval.low, interval.high], [row + 0.42] * 2, color=colour, marker="|", linewidth=0.9)
        for end in filter(np.isfinite, claim.rule.region):
            ax.axvline(end, linestyle="--", color="#666666", linewidth=1)
        ax.set_xlabel(figures.fitting(claim.measure, ax))
    return fig


def _anytime(values: np.ndarray) -> stats.Interval | None:
    """The interval that holds at every number of seeds, of a share where the values are events; None where there is none."""
    try:
        return stats.anytime_event_interval(values) if np.isin(values, (0, 1)).all() else stats.anytime_t_interval(values)
    except stats.SampleError:
        return None


def claim_table(measurements: Measurements) -> Table:
    """The mean of each claim's measure in each case, with its 95 % t interval."""
    rows = [
        (claim.id, case, mean_cell(np.asarray(values, float), "not finite"))
        for claim, by_case in measurements.items()
        for case, values in by_case.items()
    ]
    return Table(("claim", "case", "mean"), rows, "Means with 95 % t intervals over seeds.")


@dataclass(frozen=True)
class ClaimStrips:
    """`claim_pictures` of a run as a declared figure; reads ``run.measurements``."""

    def pictures(self, run: Any, folder: str | os.PathLike) -> list[Picture]:
        """Draw a strip for each claim."""
        return claim_pictures(run.measurements, folder)


@dataclass(frozen=True)
class ClaimMeans:
    """`claim_table` of a run as a declared table; reads ``run.measurements``."""

    section: str = "Measured"

    def sections(self, run: Any) -> list[Section]:
        """The table under its heading."""
        return [Section(self.section, [claim_table(run.measurements)])]
