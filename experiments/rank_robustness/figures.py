"""The figures of Study 4."""

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.rank_robustness.results import Results
from experiments.rank_robustness.settings import ALONE, ARMS, TRAININGS, UNTRAINED, Case
from jaxbp import report


def draw(results: Results, folder: Path) -> list[report.Picture]:
    """Draw all figures, write them as PNG and SVG, and return them for the page."""
    todo = {
        "rank_by_layer": _rank_by_layer, "accuracy_by_radius": _accuracy_by_radius, "clean_and_robust": _clean_and_robust,
        "rank_along": _rank_along, "singular_values": _singular_values,
    }  # fmt: skip
    return report.save_all({name: functools.partial(make, results) for name, make in todo.items()}, folder)


def _panels(results: Results, **subplots: Any) -> tuple[Any, Iterator[tuple[Any, Case, str]]]:
    """A panel for each network and kind of training."""
    shown = list(itertools.product(results.settings.cases, TRAININGS))
    fig, axes = report.panels([f"{case.network}, {kind}" for case, kind in shown], **subplots)
    return fig, ((ax, *what) for ax, what in zip(axes, shown, strict=True))


def _finish(ax: Any, x: str, y: str, *, legend: bool) -> None:
    with report.style():
        ax.set_xlabel(x)
        ax.set_ylabel(y)
        if legend:
            ax.legend(fontsize=8)


def _rank_by_layer(results: Results) -> tuple:
    fig, axes = _panels(results)
    for index, (ax, case, kind) in enumerate(axes):
        places = np.arange(1, len(results.layers(case)) + 1)
        for arm in ARMS:
            report.curve(ax, places, results.of_arm(case, kind, arm, "rank"), label=arm)
        report.curve(ax, places, results.get(case, kind, "untrained rank"), label=UNTRAINED)
        with report.style():
            ax.set_xticks(places)
        _finish(ax, "convolution", "effective rank", legend=index == 0)
    return (
        fig,
        "effective rank of each convolution, by arm",
        "Figure 2 of the paper rebuilt: effective rank (nuclear over Frobenius norm) of each treated convolution as an operator, after "
        "fine-tuning and before any training. Thin lines are seeds, bands 95 % intervals. The largest possible value is the "
        "root of the number of singular values, which differs between layers.",
    )


def _accuracy_by_radius(results: Results) -> tuple:
    fig, axes = _panels(results)
    radii = np.array([0.0, *results.settings.curve])
    for index, (ax, case, kind) in enumerate(axes):
        for arm in ARMS:
            clean = results.of_arm(case, kind, arm, "clean")[:, None]
            report.curve(ax, radii, np.hstack([clean, results.of_arm(case, kind, arm, "curve")]), label=arm)
        _finish(ax, "radius", "accuracy, %", legend=index == 0)
    return (
        fig,
        "test accuracy under PGD against the radius, by arm",
        "Test accuracy under PGD of 20 steps against the radius of the l_inf ball; radius 0 is without attack.",
    )


def _clean_and_robust(results: Results) -> tuple:
    fig, axes = _panels(results)
    radii = results.settings.small_radius, results.settings.radius
    for ax, case, kind in axes:
        groups = {f"{arm}, clean": results.of_arm(case, kind, arm, "clean") for arm in ARMS}
        for at, radius in enumerate(radii):
            groups |= {f"{arm}, radius {radius:.3g}": results.of_arm(case, kind, arm, "strongest")[:, at] for arm in ARMS}
        report.strip(ax, groups)
        with report.style():
            ax.tick_params(axis="y", labelsize=7)
            ax.set_xlabel("test accuracy, %")
    return (
        fig,
        "test accuracy without attack and under the strongest attack, by arm",
        "Test accuracy without attack and under the strongest attack (the worst of APGD on the cross-entropy, targeted APGD on the DLR "
        "loss, and Square) at both radii. A dot is a seed, bars are 95 % intervals of the mean.",
    )


def _rank_along(results: Results) -> tuple:
    fig, axes = _panels(results)
    epochs = np.array(results.settings.measure_epochs)
    for index, (ax, case, kind) in enumerate(axes):
        for arm in ARMS:
            along = np.log2(results.of_arm(case, kind, arm, "ranks along")).mean(-1)
            report.curve(ax, epochs, along - along[:, :1], label=arm)
        _finish(ax, "epoch of fine-tuning", "log2 of rank / rank at start", legend=index == 0)
    return (
        fig,
        "effective rank along fine-tuning, by arm",
        "Effective rank along fine-tuning, relative to its start, mean of log2 over layers: right after each projection, and at the end, "
        "some epochs after the last one. What training undoes shows at the end.",
    )


def _singular_values(results: Results) -> tuple:
    fig, axes = _panels(results)
    for index, (ax, case, kind) in enumerate(axes):
        layer = results.layers(case)[-1]
        for arm in ARMS:
            values = np.sort(results.get(case, kind, f"values; {arm}; {layer}"), axis=-1)[:, ::-1]
            share = np.linspace(0, 1, values.shape[1])
            with report.style():
                ax.plot(share, values.mean(0), label=arm, alpha=0.9, linestyle="--" if arm == ALONE else "-")
        with report.style():
            for level in (results.settings.threshold, results.settings.ceiling):
                ax.axhline(level, color="#888888", linewidth=1, linestyle=":")
        _finish(ax, "share of singular values", "singular value", legend=index == 0)
    return (
        fig,
        "singular values of the last treated convolution, largest first, by arm",
        "Singular values of the last treated convolution after fine-tuning, largest first, mean over seeds at each rank. Dotted: the "
        "threshold of RankMin and the ceiling of RankMax.",
    )
