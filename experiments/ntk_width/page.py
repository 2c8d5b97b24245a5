"""The page of Study 3: verdicts, figures, tables of what was measured, and method."""

from collections.abc import Sequence

import numpy as np

from experiments.ntk_width.results import Results
from experiments.ntk_width.settings import STORED
from jaxbp import report, stats

_METHOD = [
    "The tangent kernel holds, for each pair of images and of logits, the inner product of their gradients with respect to all parameters. "
    "It is computed exactly, without forming a Jacobian, on class-balanced training images; every seed draws its own data, initial "
    "parameters and order of the data.",
    "BatchNorm at initialisation holds mean 0 and variance 1, which do not describe the network that is about to be trained. So kernels "
    "are measured with those stored statistics, as in the paper, with statistics calibrated on the training data, and with those of the "
    "probe images, differentiated through. A claim about BatchNorm is supported only if it holds with all three.",
    "Trends are slopes over log2(width), fitted seed by seed; an interval is that of the seeds' slopes. The interaction is the difference "
    "of differences of slopes over the four ResNets of the factorial.",
    "The exact kernel is that of the infinitely wide network in the NTK parametrisation, by neural-tangents, with biases that start at 0 "
    "and are learned. Identity shortcuts after a ReLU have no exact kernel, so these comparisons use 1x1 convolutions for shortcuts.",
]


def sections(results: Results, pictures: Sequence[report.Picture]) -> list[report.Section]:
    """Everything below the verdicts."""
    return [
        report.Section("Figures", list(pictures)),
        report.Section("Kernels before and after training", [_changes(results)]),
        report.Section("What was trained", [_trainings(results)]),
        report.Section("Distance to the exact kernel", [_distances(results)]),
        *_function_space(results),
        report.Section("Method", _METHOD),
    ]


def _interval(values: np.ndarray) -> stats.Interval | str:
    return report.mean_cell(values, "not finite")


def _changes(results: Results) -> report.Table:
    rows = []
    for network in results.trained:
        for mode in network.modes:
            names = ("correlation", "cosine", "centred alignment", "relative change", "share of rescaling")
            table = {name: results.change(network, name, mode) for name in names}
            for column, width in enumerate(network.widths):
                label = f"{network.name}{f', {mode}' if network.batch_norm else ''}"
                rows.append((label, width, *(_interval(values[:, column]) for values in table.values())))
    columns = (
        "network",
        "width",
        "correlation",
        "cosine",
        "centred alignment",
        "relative change",
        "share of rescaling",
    )
    return report.Table(columns, rows, "After training against before; means and 95 % intervals over seeds.")


def _trainings(results: Results) -> report.Table:
    fields = {
        "train loss": "train_loss",
        "test accuracy": "test_accuracy",
        "relative movement": "parameters: relative_l2",
        "largest movement": "parameters: l_inf",
        "correlation of features' distances": "features: distance",
        "effective rank": f"{STORED}: effective rank",
    }
    rows = []
    for network in results.trained:
        values = [results.field(network, name) for name in fields.values()]
        for column, width in enumerate(network.widths):
            rows.append((network.name, width, *(_interval(v[:, column]) for v in values)))
    return report.Table(("network", "width", *fields), rows, "At the end of training; means and 95 % intervals over seeds.")


def _distances(results: Results) -> report.Table:
    rows = []
    for network in results.exact:
        for mode in network.modes:
            plain, rescaled = (results.distance(network, mode, name) for name in ("distance", "rescaled distance"))
            for column, width in enumerate(network.widths):
                label = f"{network.name}{f', {mode}' if network.batch_norm else ''}"
                rows.append((label, width, _interval(plain[:, column]), _interval(rescaled[:, column])))
    columns = ("network", "width", "relative distance", "after the best rescaling")
    return report.Table(columns, rows, "Kernels of fresh networks against the exact kernel; means and 95 % intervals over seeds.")


def _function_space(results: Results) -> list[report.Section]:
    rows = []
    for network in results.exact:
        if found := results.regression(network):
            trained = [n for n in results.trained if n.name == network.name]
            accuracy = _interval(results.field(trained[0], "test_accuracy")[:, -1]) if trained else None
            rows.append((network.name, network.regression, *found.values(), accuracy))
    if not rows:
        return []
    columns = ("network", "images", "NNGP, exact", "NTK, exact", "NTK, empirical, widest", "network, widest, trained")
    caption = (
        "Test accuracy of kernel regression on so many training and test images of seed 0, the ridge chosen on validation "
        "images, beside that of the trained networks, which see all training images."
    )
    return [report.Section("What the kernels predict", [report.Table(columns, rows, caption)])]
