"""What a study in one file need not write: verdicts, rows, figures and sections, from ``measurements`` of its `frame.Results`."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxbp import claims, report, stats
from jaxbp.lab.results import Results


def verdicts(results: Results) -> list[claims.Verdict]:
    """Judge every claim by the study's kind of interval."""
    return [
        claims.judge(claim, by_case, interval_fn=results.interval_fn or stats.t_interval) for claim, by_case in results.measurements.items()
    ]


def rows(results: Results) -> Iterator[tuple[str, str, int, int, str, float]]:
    """Case, arm, seed, step, measure and value of each measurement; the arm is the claim's id, and there are no steps."""
    for claim, by_case in results.measurements.items():
        for case, values in by_case.items():
            for seed, value in zip(results.settings.seeds, values, strict=True):
                yield case, claim.id, seed, 0, claim.measure, float(value)


def draw(results: Results, folder: Path) -> list[report.Picture]:
    """A strip for each claim: a row a case, a dot a seed, and where the claim holds."""
    makers = {claim.id.replace(".", ""): lambda claim=claim: _strip(results, claim) for claim in results.measurements}
    return report.save_all(makers, folder)


def _strip(results: Results, claim: claims.Claim) -> tuple:
    by_case = results.measurements[claim]
    fig, ax = report.figure(height=0.8 * len(by_case) + 1.2)
    report.strip(ax, {case: np.asarray(values, float) for case, values in by_case.items()})
    with report.style():
        for end in filter(np.isfinite, claim.rule.region):
            ax.axvline(end, linestyle="--", color="#666666", linewidth=1)
        ax.set_xlabel(claim.measure)
    caption = f"{claim.statement} A dot is a seed, a bar a 95 % interval of the mean; dashed: where the claim begins or ceases to hold."
    return fig, f"{claim.measure}, by case and seed", caption


def sections(results: Results, pictures: Sequence[report.Picture]) -> list[report.Section]:
    """The figures, and the table of means."""
    cells = [
        (claim.id, case, report.mean_cell(np.asarray(values, float), "not finite"))
        for claim, by_case in results.measurements.items()
        for case, values in by_case.items()
    ]
    table = report.Table(("claim", "case", "mean"), cells, "Means with 95 % t intervals over seeds.")
    return [report.Section("Figures", list(pictures)), report.Section("Measured", [table])]
