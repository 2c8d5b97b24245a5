"""The page of Study 1: verdicts, figures, Table 1 of the paper rebuilt beside the original, certificates and method."""

from collections.abc import Sequence

import numpy as np

from experiments.local_minima.results import Results, shares
from experiments.local_minima.settings import EMBEDDED, NEAR_GLOBAL, STATIONARY, Case
from jaxbp import report

# Loss / gradient norm / smallest eigenvalue at the start and after training, as Table 1 of the paper prints them.
_PAPER_TABLE = {
    "default": ("4.5963 / 0.5752 / -1.5549", "0.0061 / 0.0074 / 0.0007"),
    "embedded, gentle": ("1.5702 / 0.0992 / 0.03125", "1.5699 / 0.0414 / 0.0156"),
    "bias +20": ("31.204 / 343.99 / -1.7421", "2.3301 / 0.0090 / 0.0005"),
    "bias U(-50, 50)": ("51.445 / 378.36 / -430.49", "2.3153 / 0.0048 / 0.0000"),
    "bias U(-10, 10), no momentum": ("12.209 / 42.454 / -47.733", "0.2198 / 0.0564 / 0.0013"),
}

_METHOD = [
    "Every seed draws its own training examples, initial parameters and order of the data; the seed's own affine minimiser is fitted "
    "to float64 precision and embedded with random rotations of the dense layers.",
    "A certificate is 'proven' if every ReLU is strictly active on every training example, so that the network is affine in its input "
    "within the stated radius, and the loss equals a proven lower bound of the loss over all affine maps. Then no parameters "
    "within the radius do better. The smallest eigenvalue alone could not show that: it is exactly 0, "
    "since layers can be rescaled against each other.",
    "A claim that is tested in several cases is supported only if it holds in each of them.",
]


def sections(results: Results, pictures: Sequence[report.Picture]) -> list[report.Section]:
    """Everything below the verdicts."""
    found = [report.Section("Figures", list(pictures))]
    for case in results.trained_cases:
        if results.settings.certified_seeds(case):
            found.append(report.Section(f"Starts and ends: {case.name}", [_table_1(results, case), _classes(results, case)]))
    return [
        *found,
        report.Section("Certificates of the embedded minima", [_certificates(results)]),
        report.Section("Method", _METHOD),
    ]


def _triple(*values: np.ndarray) -> str:
    """Medians over seeds, as the paper writes its single runs."""
    return " / ".join(report.format_number(float(np.nanmedian(v))) if np.isfinite(v).any() else "diverged" for v in values)


def _table_1(results: Results, case: Case) -> report.Table:
    fields = ("loss", "gradient_norm", "smallest")
    measured = {"ours, end": results.ends}
    if case.explore and results.settings.num_densities:
        measured = {"ours, start": results.starts} | measured
    rows = []
    for arm in case.arms:
        ours = (_triple(*(values(case, arm, f) for f in fields)) for values in measured.values())
        rows.append((arm, *ours, *_PAPER_TABLE.get(arm, (None, None))))
    return report.Table(
        ("init", *measured, "paper, start", "paper, end"),
        rows,
        "Loss / gradient norm / smallest Hessian eigenvalue on the training set, medians over seeds, beside Table 1 of the paper "
        "(CIFAR-10, one run each).",
    )


def _classes(results: Results, case: Case) -> report.Table:
    rows = []
    for arm in case.arms:
        counts = shares(results.ends(case, arm, "class"))
        rows.append(
            (
                arm,
                ", ".join(f"{count} {word}" for word, count in counts.items()),
                report.mean_cell(results.final_loss(case, arm), "diverged"),
            )
        )
    return report.Table(
        ("init", "end points", "loss at the end"),
        rows,
        f"What the end points are. Near-global: at most {NEAR_GLOBAL:.0%} of the affine minimum's loss; converged: gradient norm at most "
        f"{STATIONARY:g}; saddle: negative curvature, a ReLU exactly at its kink, or a probe that found 1 % less.",
    )


def _certificates(results: Results) -> report.Table:
    rows = []
    for case in results.settings.cases:
        embedded, affine = results.embedded(case, "loss"), results.embedded(case, "affine_loss")
        smallest, largest = results.embedded(case, "smallest"), results.embedded(case, "largest")
        statuses = ", ".join(f"{n} {word}" for word, n in shares(results.embedded(case, "status")).items())
        rows.append((
            case.name, statuses, float(np.abs(embedded / affine - 1).max()), float(results.embedded(case, "gradient_norm").max()),
            float((smallest / largest).min()), float(results.embedded(case, "margin").min()), float(results.embedded(case, "radius").min()),
        ))  # fmt: skip
    columns = (
        "case", "certificates", "|deep / affine loss - 1|, largest", "gradient norm, largest",
        "smallest / largest eigenvalue, least", "ReLU margin, least", "proven radius, least",
    )  # fmt: skip
    return report.Table(columns, rows, f"The arm '{EMBEDDED}' starts from these points. Extremes over all seeds, in float64.")
