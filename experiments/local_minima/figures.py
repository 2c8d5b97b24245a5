"""The figures of Study 1."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments.local_minima.results import Results
from experiments.local_minima.settings import DEFAULT, EMBEDDED, GENTLE, SHIFTED, Case
from jaxbp import report, stats

_NAMES = {EMBEDDED: "SGD from the embedded minimum", GENTLE: "the same, small steps", DEFAULT: "default training"}


def draw(results: Results, folder: Path) -> list[report.Picture]:
    """Draw and save all figures that the run has data for."""
    pictures = [_losses(results, folder)]
    for case in results.trained_cases:
        if set(SHIFTED) & set(case.arms):
            pictures.append(_save(_ends, results, case, folder, "ends"))
        if not case.explore:
            continue
        pictures.append(_save(_curves, results, case, folder, "curves"))
        if results.settings.num_densities:
            pictures.append(_save(_densities, results, case, folder, "density"))
        if results.settings.kicks:
            pictures.append(_save(_escapes, results, case, folder, "escape"))
        if results.settings.slice_points:
            pictures.append(_save(_slice, results, case, folder, "slice"))
    return pictures


def _save(draw_fn: Callable, results: Results, case: Case, folder: Path, name: str) -> report.Picture:
    fig, alt, caption = draw_fn(results, case)
    slug = "".join(c if c.isalnum() else "_" for c in case.name)
    _, svg = report.save_figure(fig, folder, f"{name}_{slug}")
    return report.Picture(svg, f"{case.name}: {alt}", f"{case.name}. {caption}")


def _losses(results: Results, folder: Path) -> report.Picture:
    cases = [case for case in results.trained_cases if {EMBEDDED, DEFAULT} <= set(case.arms)]
    fig, axes = report.figure(len(cases), 1, height=1.9 * len(cases) + 0.4, squeeze=False)
    for ax, case in zip(axes[:, 0], cases, strict=True):
        groups = {
            "affine minimiser": results.embedded(case, "affine_loss"),
            "embedded in the deep net": results.embedded(case, "loss"),
        }
        groups |= {_NAMES[arm]: results.final_loss(case, arm) for arm in (EMBEDDED, DEFAULT)}
        report.strip(ax, groups, log=True)
        with report.style():
            ax.set_title(case.name)
    with report.style():
        axes[-1, 0].set_xlabel("training loss")
    _, svg = report.save_figure(fig, folder, "losses")
    caption = (
        "Training loss of the affine minimiser, of the deep network that it was embedded in, after SGD from there, and after default "
        "training with the same optimiser. A dot is a seed, a bar a 95 % interval of the (geometric) mean."
    )
    return report.Picture(svg, "Training losses by seed: affine, embedded, fine-tuned, default", caption)


def _ends(results: Results, case: Case) -> tuple:
    arms = [arm for arm in case.arms if arm not in (EMBEDDED, GENTLE)]
    fig, ax = report.figure(height=0.42 * len(arms) + 1.1)
    report.strip(ax, {arm: results.final_loss(case, arm) for arm in arms}, log=True)
    with report.style():
        ax.axvline(float(results.embedded(case, "loss").mean()), color="#444444", linestyle="--", linewidth=1)
        ax.set_xlabel("training loss at the end")
    caption = "Where training ends, by init; dashed: the embedded minimum. Seeds that diverged are counted beside the name."
    return fig, "training loss at the end by init", caption


def _curves(results: Results, case: Case) -> tuple:
    arms = [arm for arm in (DEFAULT, EMBEDDED, GENTLE, *SHIFTED) if arm in case.arms]
    fig, ax = report.figure(height=4.4)
    for arm in arms:
        found = results.training(case, arm)
        report.curve(ax, found["epochs"], found["train_loss"], label=_NAMES.get(arm, arm), log=True)
    with report.style():
        ax.set_xlabel("epoch")
        ax.set_ylabel("training loss")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return (
        fig,
        "training loss against epoch for several inits",
        "Training curves; a thin line is a seed, a band a 95 % interval.",
    )


def _densities(results: Results, case: Case) -> tuple:
    fig, axes = report.figure(2, 1, height=5.2)
    titles = {EMBEDDED: "at the embedded minimum", DEFAULT: "after default training"}
    for ax, (arm, title), colour in zip(axes, titles.items(), report.PALETTE, strict=False):
        densities = results.density(case, arm)
        nodes = np.concatenate([d["nodes"].ravel() for d in densities])
        low, high = nodes.min(), nodes.max()
        width = 0.01 * (high - low)
        grid = np.linspace(low - 4 * width, high + 4 * width, 600)
        for density in densities:
            ax.plot(grid, _smooth(density, grid, width), color=colour, alpha=0.6)
        with report.style():
            ax.set_yscale("log")
            ax.set_ylim(bottom=1e-7 / width)
            ax.set_title(f"{title}: from {low:.1e} to {high:.3g}")
            ax.set_ylabel("density")
    with report.style():
        axes[-1].set_xlabel("eigenvalue of the Hessian")
    caption = (
        f"Spectral density of the Hessian by stochastic Lanczos quadrature, {len(densities)} seeds, smoothed by 1 % of the range; "
        "titles give the extreme Ritz values. At the embedded minimum most eigenvalues are 0, as layers can be rescaled against each other."
    )
    return fig, "spectral densities at the embedded minimum and after default training", caption


def _smooth(density: dict[str, np.ndarray], grid: np.ndarray, width: float) -> np.ndarray:
    from jaxbp.landscape import SpectralDensity

    return SpectralDensity(density["nodes"], density["weights"]).evaluate(grid, width)


def _escapes(results: Results, case: Case) -> tuple:
    escaped, kicks = results.escaped(case), results.kicks(case)["kicks"]
    intervals = [stats.event_interval(column) for column in escaped.T.astype(float)]
    estimate, low, high = (np.array([getattr(i, end) for i in intervals]) for end in ("estimate", "low", "high"))
    fig, ax = report.figure()
    ax.fill_between(kicks, low, high, alpha=0.18, linewidth=0)
    ax.plot(kicks, estimate, "o-")
    radius = results.embedded(case, "radius") / np.linalg.norm(results.embedded(case, "params"), axis=1)
    with report.style():
        ax.axvspan(radius.min(), radius.max(), color=report.PALETTE[1], alpha=0.3)
        ax.set_xscale("log")
        ax.set_ylim(-0.03, 1.03)
        ax.set_xlabel("norm of the kick / norm of the parameters")
        ax.set_ylabel("share of seeds that escape")
    caption = (
        "How often SGD escapes after a random kick off the embedded minimum: it ends below the middle between the minimum's loss and "
        f"default training's. Band: exact 95 % interval, {len(escaped)} seeds. Orange: the proven radius, within which no "
        "activation can change."
    )
    return fig, "share of seeds that escape against the size of the kick", caption


def _slice(results: Results, case: Case) -> tuple:
    found = results.slice(case)
    losses = np.log10(np.maximum(found["losses"], 1e-12))
    fig, ax = report.figure(height=4.6)
    with report.style():
        ax.grid(False)
        filled = ax.contourf(found["along"], found["across"], losses, levels=30, cmap="cividis")
        filled.set_edgecolor("face")
        fig.colorbar(filled, ax=ax, label="log10 of the training loss")
        ax.plot([0], [0], "o", color="white", markeredgecolor="black")
        ax.plot([1], [0], "s", color="white", markeredgecolor="black")
        ax.annotate("embedded minimum", (0, 0), (6, 8), textcoords="offset points", color="white")
        ax.annotate("default training", (1, 0), (4, 9), textcoords="offset points", color="white", ha="right")
        ax.set_xlabel("towards the default-trained point")
        ax.set_ylabel("random direction")
    caption = f"The loss on a plane through both points of seed 0, in units of their distance, {float(found['distance']):.3g}."
    return fig, "two-dimensional slice of the loss", caption
