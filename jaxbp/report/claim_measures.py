"""What was measured for each claim, as figures and a table: for studies that declare none of their own.

``measurements`` holds for each claim the values over seeds by case, as for `jaxbp.claims.judge`.
"""

import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from jaxbp import claims
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
        caption = f"{claim.statement} A dot is a seed, a bar a 95 % interval of the mean; dashed: where the claim begins or ceases to hold."
        pictures.append(Picture(path, f"{claim.measure}, by case and seed", caption))
    return pictures


def _strip(claim: claims.Claim, by_case: Mapping[str, ArrayLike]) -> "Figure":
    fig, ax = figures.figure(height=0.8 * len(by_case) + 1.2)
    figures.strip(ax, {case: np.asarray(values, float) for case, values in by_case.items()})
    with figures.style():
        for end in filter(np.isfinite, claim.rule.region):
            ax.axvline(end, linestyle="--", color="#666666", linewidth=1)
        ax.set_xlabel("\n".join(textwrap.wrap(claim.measure, 80)))
    return fig


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
