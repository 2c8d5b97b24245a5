"""The figures of Study 2."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.norm_bias.results import Results
from experiments.norm_bias.settings import ARMS, BIAS, DECAY, Case
from jaxbp import report


def draw(results: Results, folder: Path) -> list[report.Picture]:
    """Draw all figures, write them as PNG and SVG, and return them for the page."""
    todo = {
        "accuracy": _accuracy, "target_norm": _target_norm, "norm": _norm, "effective_rate": _effective_rate, "angle": _angle,
    }  # fmt: skip
    return report.save_all({name: functools.partial(make, results) for name, make in todo.items()}, folder)


def _panels(cases: Sequence[Case]) -> tuple[Any, Sequence[Any]]:
    return report.panels([case.name.removesuffix(" inputs") for case in cases])


def _accuracy(results: Results) -> tuple:
    fig, axes = _panels(results.settings.cases)
    for ax, case in zip(axes, results.settings.cases, strict=True):
        values = {arm: results.compared(case, arm, "test_accuracy") for arm in ARMS}
        for of_seed in zip(*values.values(), strict=True):
            ax.plot(of_seed, range(len(ARMS)), color="#999999", linewidth=0.6, alpha=0.6, zorder=0)
        report.strip(ax, values)
        with report.style():
            ax.set_xlabel("test accuracy, %")
    return (
        fig,
        "test accuracy of the three arms, pairs joined",
        "Test accuracy of each arm at the end of training. Lines join runs that share data, initial parameters and the order of the "
        "data; bars are means with 95 % intervals.",
    )


def _target_norm(results: Results) -> tuple:
    cases = results.settings.cases
    fig, axes = _panels(cases)
    for ax, case in zip(axes, cases, strict=True):
        scan, unit = results.get(case, "scan"), float(results.get(case, "tune")["plain norm"])
        report.curve(ax, scan["mu"] / unit, scan["accuracy"].T)
        with report.style():
            ax.set_ylabel("validation accuracy, %")
            ax.set_xlabel("norm wanted / norm without regulariser")
            reached = ax.twinx()
            reached.plot(scan["mu"] / unit, scan["final norm"].mean(1) / unit, "s:", color="#b3541e", markersize=3)
            reached.set_ylabel("norm reached (squares)", color="#b3541e")
            reached.grid(False)
    return (
        fig,
        "validation accuracy and final norm against the norm wanted",
        "Norm-bias with the coefficient chosen in tuning and a range of norms: validation accuracy (seeds thin) and the norm reached "
        "(squares, right axis), both relative to the norm at which the unregularised network ends.",
    )


def _along(results: Results, name: str, ylabel: str) -> Any:
    cases = results.settings.cases
    fig, axes = _panels(cases)
    for ax, case in zip(axes, cases, strict=True):
        for arm in ARMS:
            curve = results.compared(case, arm, name)
            # No step has been made at epoch 0, and the learning rate is 0 after the last one.
            kept = {"angle": slice(1, None), "effective_learning_rate": slice(-1)}.get(name, slice(None))
            report.curve(ax, np.array(results.settings.measure_epochs)[kept], curve[:, kept], label=arm, log=True)
        with report.style():
            ax.set_yscale("log")
            ax.set_xlabel("epoch")
            ax.set_ylabel(ylabel)
            if ax is axes[0]:
                ax.legend(fontsize=8)
    return fig


def _norm(results: Results) -> tuple:
    caption = f"Norm of all parameters along training, by arm: what {DECAY} and {BIAS} make of it."
    return _along(results, "norm", "norm"), "norm of the parameters along training", caption


def _effective_rate(results: Results) -> tuple:
    caption = (
        "Learning rate over the squared norm of a kernel, geometric mean over kernels: what a step amounts to in layers that "
        "BatchNorm follows, which do not change when their kernel is scaled. It falls to 0 with the learning rate."
    )
    alternative = "effective learning rate along training"
    return _along(results, "effective_learning_rate", "effective learning rate"), alternative, caption


def _angle(results: Results) -> tuple:
    caption = "Angle by which a step turns the kernels, mean over kernels, along training: the effective learning rate at work."
    return _along(results, "angle", "angle of a step, radians"), "angular update along training", caption
