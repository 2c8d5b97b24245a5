"""What a study in one file need not write: verdicts, rows, figures and sections, from ``measurements`` of its `frame.Results`."""

from collections.abc import Iterator, Sequence
from pathlib import Path

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
    return report.claim_pictures(results.measurements, folder)


def sections(results: Results, pictures: Sequence[report.Picture]) -> list[report.Section]:
    """The figures, and the table of means."""
    return [report.Section("Figures", list(pictures)), report.Section("Measured", [report.claim_table(results.measurements)])]
