"""The page of Study 4: figures, tables, and how it was measured."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from experiments.rank_robustness.claims import CLEAN_MARGIN, ROBUST_MARGIN
from experiments.rank_robustness.results import Results
from experiments.rank_robustness.settings import (
    ADVERSARIAL,
    ALONE,
    ARMS,
    NATURAL,
    RANK_MAX,
    RANK_MIN,
    TRAININGS,
    UNTRAINED,
    Case,
)
from jaxbp import report, stats

_METHOD = [
    "Singular values are those of each convolution as an operator on its own feature map, with its stride: exact for circular padding, "
    "by folding the frequencies that a stride confounds. The networks pad with zeros; RankMin and RankMax, as in the paper, act on the "
    "circular operator. First convolution and shortcuts are left alone.",
    "RankMin sets singular values below the threshold to 0, RankMax cuts those above the ceiling; kernels then come back to their "
    "window, which undoes a part, and training goes on. What is judged is the rank at the end, whatever was asked. The network left "
    "alone is fine-tuned alike, from the same parameters, on the same batches.",
    "Adversarial training replaces each batch by PGD examples from a random start (Madry et al., ICLR 2018). Robust accuracy is the worst "
    "case over APGD on the cross-entropy, targeted APGD on the DLR loss (Croce & Hein, ICML 2020) and Square (Andriushchenko et al., "
    "ECCV 2020), each tried on what is left. PGD of 20 steps, the paper's measure, is shown beside it.",
    f"Clean accuracy counts as the same within {CLEAN_MARGIN:g} percentage point, a gain of robust accuracy as none below "
    f"{ROBUST_MARGIN:g}. A claim is supported only if it is in every case. Seeds draw training and test examples, initial parameters and "
    "the order of the data.",
]
_PAPER = {  # Table 4: train, clean, PGD-20 at 8/255 and at 1/255
    (NATURAL, ALONE): (99.99, 94.66, 0.00, 31.98),
    (NATURAL, RANK_MAX): (99.76, 93.66, 0.00, 22.01),
    (NATURAL, RANK_MIN): (99.90, 94.44, 0.00, 31.53),
    (ADVERSARIAL, ALONE): (89.66, 85.06, 33.10, 80.49),
    (ADVERSARIAL, RANK_MAX): (89.21, 84.72, 32.40, 80.11),
    (ADVERSARIAL, RANK_MIN): (88.33, 84.68, 30.57, 79.98),
}


def sections(results: Results, pictures: Sequence[report.Picture]) -> list[report.Section]:
    """Everything below the verdicts."""
    return [
        report.Section("Figures", list(pictures)),
        report.Section("Accuracy", [_accuracies(results), _paper()]),
        report.Section("Paired differences from the network left alone", [_differences(results)]),
        report.Section("Effective rank", [_ranks(results)]),
        report.Section("Signs of masked gradients", [_masking(results)]),
        report.Section("Method", _METHOD),
    ]


def _interval(values: np.ndarray) -> stats.Interval | str:
    return report.mean_cell(values, "not finite")


def _every(results: Results) -> Iterator[tuple[Case, str]]:
    return itertools.product(results.settings.cases, TRAININGS)


def _accuracies(results: Results) -> report.Table:
    settings, rows = results.settings, []
    of_pgd = [settings.curve.index(radius) for radius in (settings.small_radius, settings.radius)]
    for (case, kind), arm in itertools.product(_every(results), ARMS):
        pgd, strongest = (results.of_arm(case, kind, arm, name) for name in ("curve", "strongest"))
        values = [results.of_arm(case, kind, arm, name) for name in ("train accuracy", "clean")]
        for at, index in enumerate(of_pgd):
            values += [pgd[:, index], strongest[:, at]]
        rows.append((case.name, kind, arm, *map(_interval, values)))
    radii = [f"{radius:.3g}" for radius in (settings.small_radius, settings.radius)]
    columns = ["network", "training", "arm", "train", "clean"]
    for radius in radii:
        columns += [f"PGD-20, {radius}", f"strongest, {radius}"]
    return report.Table(columns, rows, "Accuracy in per cent; means and 95 % intervals over seeds.")


def _paper() -> report.Table:
    rows = [(kind, arm, *(f"{value:.2f}" for value in values)) for (kind, arm), values in _PAPER.items()]
    columns = ("training", "arm", "train", "clean", "PGD-20, 8/255", "PGD-20, 1/255")
    return report.Table(columns, rows, "The paper's Table 4 (ResNet-18, CIFAR-10), one run each.")


def _differences(results: Results) -> report.Table:
    rows = []
    for (case, kind), arm in itertools.product(_every(results), (RANK_MIN, RANK_MAX)):
        clean = results.change(case, kind, arm, "clean")
        robust = [results.change(case, kind, arm, "strongest", at) for at in (0, 1)]
        rank = results.log_rank(case, kind, arm) - results.log_rank(case, kind, ALONE)
        rows.append((case.name, kind, arm, *map(_interval, (rank, clean, *robust))))
    radii = [f"strongest, {radius:.3g}" for radius in (results.settings.small_radius, results.settings.radius)]
    columns = ("network", "training", "arm", "log2 of rank", "clean", *radii)
    return report.Table(columns, rows, "Percentage points within pairs; means and 95 % intervals over seeds.")


def _ranks(results: Results) -> report.Table:
    rows = []
    for case, kind in _every(results):
        for place, layer in enumerate(results.layers(case)):
            arms = [results.of_arm(case, kind, arm, "rank")[:, place] for arm in ARMS]
            cells = map(_interval, (results.get(case, kind, "untrained rank")[:, place], *arms))
            rows.append((case.name, kind, layer, *cells))
    columns = ("network", "training", "layer", UNTRAINED, *ARMS)
    return report.Table(columns, rows, "Nuclear over Frobenius norm; means and 95 % intervals over seeds.")


def _masking(results: Results) -> report.Table:
    rows = [
        (case.name, kind, arm, *map(int, results.of_arm(case, kind, arm, "masked").sum(0)))
        for (case, kind), arm in itertools.product(_every(results), ARMS)
    ]
    radii = (f"radius {radius:.3g}" for radius in (results.settings.small_radius, results.settings.radius))
    caption = (
        f"Networks, of {results.settings.num_seeds}, in which some sign of masked gradients was found (Athalye et al., ICML 2018): their "
        "robust accuracy may be overstated."
    )
    return report.Table(("network", "training", "arm", *radii), rows, caption)
