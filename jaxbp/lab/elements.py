"""Figures and tables that every study can declare: each claim's measure, by case and seed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxbp import report


@dataclass(frozen=True)
class ClaimStrips:
    """For each claim a strip: a row a case, a dot a seed, and the region where the claim holds."""

    def pictures(self, run: Any, folder: Path) -> list[report.Picture]:
        """Draw, and write PNG and SVG files to ``folder``."""
        makers = {
            measure.claim.id.replace(".", ""): lambda measure=measure, by_case=by_case: _strip(measure.claim, by_case)
            for measure, by_case in run.values.items()
        }
        return report.save_all(makers, folder)


def _strip(claim: Any, by_case: dict[str, Any]) -> tuple:
    fig, ax = report.figure(height=0.8 * len(by_case) + 1.2)
    report.strip(ax, {case: np.asarray(values, float) for case, values in by_case.items()})
    with report.style():
        for end in filter(np.isfinite, claim.rule.region):
            ax.axvline(end, linestyle="--", color="#666666", linewidth=1)
        ax.set_xlabel(claim.measure)
    caption = f"{claim.statement} A dot is a seed, a bar a 95 % interval of the mean; dashed: where the claim begins or ceases to hold."
    return fig, f"{claim.measure}, by case and seed", caption


@dataclass(frozen=True)
class ClaimMeans:
    """The means of every claim's measure, by case, with 95 % t intervals."""

    def sections(self, run: Any) -> list[report.Section]:
        """The table under its heading."""
        cells = [
            (measure.claim.id, case, report.mean_cell(np.asarray(values, float), "not finite"))
            for measure, by_case in run.values.items()
            for case, values in by_case.items()
        ]
        table = report.Table(("claim", "case", "mean"), cells, "Means with 95 % t intervals over seeds.")
        return [report.Section("Measured", [table])]
