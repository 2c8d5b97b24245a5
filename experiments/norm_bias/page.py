"""The page of Study 2: figures, tables, and how it was measured."""

from collections.abc import Sequence

import numpy as np

from experiments.norm_bias import measure
from experiments.norm_bias.claims import MARGIN
from experiments.norm_bias.results import Results, p_values
from experiments.norm_bias.settings import ARMS, BIAS, DECAY, NONE
from jaxbp import report, stats

_METHOD = [
    "Norm-bias adds lambda sign(||theta||^2 - mu^2) theta to the gradient, over all parameters, normalisation and biases too: the gradient "
    "of lambda / 2 times the paper's penalty, as in its code. Weight decay is norm-bias with mu = 0, to the last bit.",
    "Each regulariser is tuned on validation data over the same number of settings and on seeds that are not used again; norm-bias's mu is "
    "a multiple of the norm at which the unregularised network ends. The learning rate, its cosine decay to 0 and all else are alike. "
    "The test set is touched once by each final run.",
    "Seeds draw training examples, initial parameters and the order of the data; arms of one seed share all three, so differences are "
    f"paired. Worse by less than {MARGIN} percentage points counts as at least as good. A claim is supported only if it is in every case, "
    "which needs no correction for their number; p values in the table are adjusted by Holm.",
    "Layers followed by BatchNorm do not change when their kernel is scaled. Their norm acts through the step size alone: the angle "
    "by which a step turns a kernel, and the learning rate over the kernel's squared norm.",
]


def sections(results: Results, pictures: Sequence[report.Picture]) -> list[report.Section]:
    """Everything below the verdicts."""
    return [
        report.Section("Figures", list(pictures)),
        report.Section("Test accuracy", [_accuracies(results), *_published(results)]),
        report.Section("Paired differences", [_differences(results)]),
        report.Section("Where training ended", [_ends(results)]),
        report.Section("What tuning chose", [_tuning(results)]),
        report.Section("Method", _METHOD),
    ]


def _interval(values: np.ndarray) -> stats.Interval | str:
    return report.mean_cell(values, "not finite")


def _accuracies(results: Results) -> report.Table:
    rows = []
    for case in results.settings.cases:
        cells = [_interval(results.compared(case, arm, "test_accuracy")) for arm in ARMS]
        paper = " / ".join(f"{value:.2f}" for value in case.paper) if case.paper else None
        rows.append((case.name, *cells, paper))
    columns = ("case", *ARMS, "paper: none / weight decay / norm-bias")
    return report.Table(columns, rows, "Test accuracy in per cent; means and 95 % intervals over seeds.")


def _published(results: Results) -> list[report.Table]:
    cases = [case for case in results.settings.cases if case.published]
    if not cases:
        return []
    arms = measure.arms_of(cases[0])[len(ARMS) :]
    rows = [(case.name, *(_interval(results.compared(case, arm, "test_accuracy")) for arm in arms)) for case in cases]
    return [
        report.Table(
            ("case", *arms),
            rows,
            "Test accuracy in per cent with norm-bias as in the paper and the usual weight decay of each network.",
        )
    ]


def _differences(results: Results) -> report.Table:
    pairs = ((DECAY, NONE), (BIAS, NONE), (BIAS, DECAY))
    adjusted = [p_values(results, *pair) for pair in pairs]
    rows = []
    for case in results.settings.cases:
        cells: list = []
        for pair, p in zip(pairs, adjusted, strict=True):
            cells += [_interval(results.gain(case, *pair)), p[case.name]]
        rows.append((case.name, *cells))
    columns = ("case", *(title for arm, over in pairs for title in (f"{arm} - {over}", "p (Holm)")))
    return report.Table(columns, rows, "Percentage points of test accuracy within pairs; means and 95 % intervals over seeds.")


def _ends(results: Results) -> report.Table:
    rows = []
    for case in results.settings.cases:
        for arm in ARMS:
            ends = [results.compared(case, arm, name)[:, -1] for name in ("train_loss", "norm", "kernel_norm")]
            rows.append((case.name, arm, *map(_interval, ends)))
    columns = ("case", "arm", "train loss", "norm of all parameters", "norm of all kernels")
    return report.Table(
        columns,
        rows,
        "At the end of training; means and 95 % intervals over seeds.",
    )


def _tuning(results: Results) -> report.Table:
    rows = []
    for case in results.settings.cases:
        tuned = results.get(case, "tune")
        unit, means, num_decay = float(tuned["plain norm"]), tuned["accuracy"].mean(1), len(results.settings.decay_grid)
        (decay, _), (bias, mu) = tuned["chosen"]
        best = [float(means[:num_decay].max()), float(means[num_decay:].max())]
        rows.append(
            (
                case.name,
                float(decay),
                best[0],
                float(bias),
                float(mu) / unit,
                unit,
                best[1],
                float(tuned["plain accuracy"].mean()),
            )
        )
    columns = (
        "case",
        "weight decay",
        "its validation accuracy",
        "norm-bias",
        "mu / norm of none",
        "norm of none",
        "its validation accuracy",
        "without either",
    )
    settings = results.settings
    caption = f"Chosen out of {len(settings.decay_grid)} settings each; tuning seeds: {settings.num_tuning_seeds}."
    return report.Table(columns, rows, caption)
