"""The figures of Study 3."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.ntk_width.results import Results
from experiments.ntk_width.settings import BATCH, CALIBRATED, STORED, Network
from jaxbp import report


def draw(results: Results, folder: Path) -> list[report.Picture]:
    """Draw all figures, write them as PNG and SVG, and return them for the page."""
    plain = [n for n in results.trained if n.skip is None]
    cells = [n for n in results.trained if n.skip is not None]
    todo = {
        "correlation": lambda: _correlation(results, plain, "Figure 1a"),
        "relative_change": lambda: _change(results, results.trained),
        "factorial": lambda: _correlation(results, cells, "Figure 1b"),
        "statistics": lambda: _statistics(results),
        "exact_distance": lambda: _distance(results),
        "kernels": lambda: _kernels(results),
        "evolution": lambda: _evolution(results),
    }
    return report.save_all(todo, folder)


def _panels(networks: Sequence[Network]) -> tuple[Any, Sequence[Any]]:
    return report.panels([network.name.replace("ResNet, ", "") for network in networks], sharey=True)


def _over_widths(ax: Any, network: Network, values: np.ndarray, label: str | None = None, *, log: bool = False) -> None:
    report.curve(ax, np.array(network.widths), values, label=label, log=log)
    with report.style():
        ax.set_xscale("log", base=2)
        ax.set_xticks(network.widths, [str(w) for w in network.widths])
        ax.set_xlabel("width")


def _correlation(results: Results, networks: list[Network], figure: str) -> tuple:
    fig, axes = _panels(networks)
    for ax, network in zip(axes, networks, strict=True):
        _over_widths(ax, network, results.change(network, "correlation"))
        with report.style():
            ax.axhline(1.0, color="#888888", linewidth=1, linestyle=":")
            ax.set_ylabel("correlation")
    caption = (
        f"{figure} of the paper rebuilt: Pearson correlation of the entries of the kernel after training with those before, over "
        f"width; {results.settings.num_probes} class-balanced images, all logits, BatchNorm with stored statistics. Thin lines are seeds, "
        "bands 95 % intervals."
    )
    return fig, "correlation of kernels before and after training against width", caption


def _change(results: Results, networks: list[Network]) -> tuple:
    fig, axes = _panels(networks)
    for ax, network in zip(axes, networks, strict=True):
        change = results.change(network, "relative change")
        share = results.change(network, "share of rescaling")
        _over_widths(ax, network, change, "all", log=True)
        _over_widths(ax, network, change * np.sqrt(np.clip(1 - share, 1e-12, None)), "best rescaling taken out", log=True)
        with report.style():
            ax.set_yscale("log")
            ax.set_ylabel("relative change")
            if ax is axes[0]:
                ax.legend(fontsize=8)
    caption = (
        "Relative change of the kernel in training, in the Frobenius norm, and what is left of it when the kernel before training may be "
        "multiplied by the best number."
    )
    return fig, "relative change of the kernel against width", caption


def _statistics(results: Results) -> tuple:
    networks = [n for n in results.trained if n.batch_norm]
    fig, axes = _panels(networks)
    for ax, network in zip(axes, networks, strict=True):
        for mode in (STORED, CALIBRATED, BATCH):
            _over_widths(ax, network, results.change(network, "correlation", mode), mode)
        with report.style():
            ax.set_ylabel("correlation")
            if ax is axes[0]:
                ax.legend(fontsize=8)
    caption = (
        "What BatchNorm's statistics make of it: stored (at initialisation mean 0 and variance 1, the paper's choice), calibrated on the "
        "training data without touching the parameters, and those of the probe images themselves, differentiated through."
    )
    return fig, "correlation against width for three kinds of BatchNorm statistics", caption


def _distance(results: Results) -> tuple:
    fig, axes = report.figure(2, 1, height=7.6)
    for ax, with_norm in zip(axes, (False, True), strict=True):
        for network in [n for n in results.exact if bool(n.batch_norm) == with_norm]:
            for mode in network.modes:
                label = network.name.removesuffix(", projections") + (f", {mode}" if with_norm else "")
                report.curve(ax, np.array(network.widths), results.distance(network, mode), label=label, log=True)
        with report.style():
            ax.set_xscale("log", base=2)
            ax.set_yscale("log")
            low, high = ax.get_xlim()
            grid = np.array([low, high])
            top = np.exp(np.mean(np.log(ax.get_ylim())))
            ax.plot(grid, top * (grid / np.sqrt(low * high)) ** -0.5, ":", color="#555555", label="slope -1/2")
            ax.set_xlabel("width")
            ax.set_ylabel("relative distance")
            ax.set_title("with BatchNorm, to the twin without" if with_norm else "without BatchNorm")
            ax.legend(fontsize=7)
    caption = (
        "Distance of the kernel at initialisation (NTK parametrisation) to the exact infinite-width kernel, relative to its norm. "
        f"{results.settings.exact_probes} images, all logits. With BatchNorm there is no exact kernel; the reference is that of the "
        "same network without."
    )
    return fig, "distance to the exact kernel against width on logarithmic axes", caption


def _kernels(results: Results) -> tuple:
    networks = [n for n in results.trained if n.model in ("mlp", "resnet")]
    shown = [n for n in (networks[0], results.cell(True, False), results.cell(True, True)) if n]
    fig, axes = report.figure(len(shown), 3, width=7.0, height=2.3 * len(shown), squeeze=False)
    for row, network in zip(axes, shown, strict=True):
        found = results.training(network, network.widths[-1])
        like = [n for n in results.exact if (n.model, n.skip, n.options[:1]) == (network.model, network.skip, network.options[:1])]
        exact = results.exact_kernels(like[0])["kernel exact"] if like else None
        for ax, kernel, title in zip(
            row, (found["kernel before"], found["kernel after"], exact), ("before", "after", "exact"), strict=True
        ):
            with report.style():
                ax.grid(False)
                ax.set_xticks([])
                ax.set_yticks([])
                if kernel is not None:
                    ax.imshow(kernel / np.abs(kernel).max(), cmap="cividis", interpolation="nearest")
                ax.set_title(title, fontsize=9)
        with report.style():
            row[0].set_ylabel(f"{network.name.replace('ResNet, ', '')}\nwidth {network.widths[-1]}", fontsize=8)
    caption = (
        "Kernels of seed 0 averaged over logits, each scaled to its largest entry: before training, after, and the exact one (on "
        f"{results.settings.exact_probes} images of its own; with BatchNorm, that of the twin without)."
    )
    return fig, "kernels before and after training and exact kernels as images", caption


def _evolution(results: Results) -> tuple:
    networks = results.trained
    fig, axes = _panels(networks)
    for ax, network in zip(axes, networks, strict=True):
        for width in network.widths:
            found = results.training(network, width)
            report.curve(ax, found["epochs"], found[f"{STORED}: correlation"], label=f"width {width}")
        with report.style():
            ax.set_xscale("symlog", linthresh=1)
            ax.set_xlabel("epoch")
            ax.set_ylabel("correlation with the start")
            ax.legend(fontsize=7)
    caption = "How the kernel leaves its value at initialisation along training: correlation with it at log-spaced epochs."
    return fig, "correlation with the initial kernel along training", caption
