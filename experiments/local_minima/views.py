"""Figures and tables of one case, ``m``, and Table 1 of the paper rebuilt beside the original."""

from typing import Any

import numpy as np
import xarray as xr

from experiments.local_minima import measure, outcomes
from experiments.local_minima.settings import DEFAULT, EMBEDDED, FULL, LIMIT_SHARES, PLAIN, SMALL, SMALL_LR
from jaxbp import landscape, report, stats

LABELS = {EMBEDDED: "SGD from the embedded minimum", SMALL_LR: "the same, small steps", DEFAULT: "default training"}

# Loss / gradient norm / smallest eigenvalue at the start and after training, as Table 1 of the paper prints them.
_PAPER_TABLE = {
    DEFAULT: ("4.5963 / 0.5752 / -1.5549", "0.0061 / 0.0074 / 0.0007"),
    SMALL_LR: ("1.5702 / 0.0992 / 0.03125", "1.5699 / 0.0414 / 0.0156"),
    "bias +20": ("31.204 / 343.99 / -1.7421", "2.3301 / 0.0090 / 0.0005"),
    "bias U(-50, 50)": ("51.445 / 378.36 / -430.49", "2.3153 / 0.0048 / 0.0000"),
    PLAIN: ("12.209 / 42.454 / -47.733", "0.2198 / 0.0564 / 0.0013"),
}


def escaped(m: Any) -> xr.DataArray:
    """Whether training from a perturbed minimum got more than half of the way down to default training's loss, (S, R)."""
    return m.perturb.end_loss < 0.5 * (m.embed.loss + outcomes.final_loss(m, DEFAULT))


def affine_to_trained(m: Any) -> dict[str, xr.DataArray]:
    """Training losses of the affine minimiser, embedded, and after training from there and from the default init."""
    losses = {"affine minimiser": m.embed.affine_loss, "embedded in the deep net": m.embed.loss}
    return losses | {LABELS[arm]: outcomes.final_loss(m, arm) for arm in (EMBEDDED, DEFAULT)}


def ends_by_init(m: Any) -> xr.DataArray:
    """Final losses of the arms that do not start at the embedded minimum; NaN beyond a million, which would take the axis for itself."""
    losses = outcomes.final_losses(m).sel(arm=list(m.case.tuned))
    return losses.where(losses < 1e6)


def draw_densities(m: Any) -> Any:
    """The spectral densities at both points, smoothed, a line a seed."""
    fig, axes = report.figure(2, 1, height=5.2)
    titles = {EMBEDDED: "at the embedded minimum", DEFAULT: "after default training"}
    for ax, (arm, title), colour in zip(axes, titles.items(), report.PALETTE, strict=False):
        density = m.density.sel(arm=arm)
        low, high = float(density.nodes.min()), float(density.nodes.max())
        width = 0.01 * (high - low)
        grid = np.linspace(low - 4 * width, high + 4 * width, 600)
        for seed in density.seed:
            quadrature = density.sel(seed=seed)
            smooth = landscape.SpectralDensity(quadrature.nodes.values, quadrature.weights.values).evaluate(grid, width)
            ax.plot(grid, smooth, color=colour, alpha=0.6)
        with report.style():
            ax.set_yscale("log")
            ax.set_ylim(bottom=1e-7 / width)
            ax.set_title(f"{title}: from {low:.1e} to {high:.3g}")
            ax.set_ylabel("density")
    with report.style():
        axes[-1].set_xlabel("eigenvalue of the Hessian")
    return fig


def draw_escapes(m: Any) -> Any:
    """The share of seeds that escape over the size of the perturbation, and the proven radius."""
    norms = m.perturb.relative_norm.values
    intervals = [stats.event_interval(escapes) for escapes in escaped(m).transpose("relative_norm", "seed").values.astype(float)]
    estimate, low, high = (np.array([getattr(interval, end) for interval in intervals]) for end in ("estimate", "low", "high"))
    fig, ax = report.figure()
    ax.fill_between(norms, low, high, alpha=0.18, linewidth=0)
    ax.plot(norms, estimate, "o-")
    radius = m.embed.radius.values / np.linalg.norm(m.embed.params.values, axis=1)
    with report.style():
        ax.axvspan(radius.min(), radius.max(), color=report.PALETTE[1], alpha=0.3)
        ax.set(xscale="log", ylim=(-0.03, 1.03))
        ax.set_xlabel("norm of the perturbation / norm of the parameters")
        ax.set_ylabel("share of seeds that escape")
    return fig


def draw_slice(m: Any) -> Any:
    """Contours of the loss on the plane through both points of seed 0."""
    loss = m.loss_slice.train_loss.squeeze(drop=True)
    fig, ax = report.figure(height=4.6)
    with report.style():
        ax.grid(False)
        filled = ax.contourf(loss.along, loss.across, np.log10(np.maximum(loss.values, 1e-12)), levels=30, cmap="cividis")
        filled.set_edgecolor("face")
        fig.colorbar(filled, ax=ax, label="log10 of the training loss")
        ax.plot([0], [0], "o", color="white", markeredgecolor="black")
        ax.plot([1], [0], "s", color="white", markeredgecolor="black")
        ax.annotate("embedded minimum", (0, 0), (6, 8), textcoords="offset points", color="white")
        ax.annotate("default training", (1, 0), (4, -16), textcoords="offset points", color="white", ha="right")
        ax.set_xlabel("towards the default-trained point")
        ax.set_ylabel("random direction")
    return fig


def table_1(m: Any) -> dict[str, xr.DataArray]:
    """Table 1 of the paper: what certificates hold of starts and ends, by arm."""
    points = {"ours, start": m.certify_start} if "certify_start" in m.stages else {}
    points["ours, end"] = m.certify_end
    return {heading: by_arm(m, lambda arm, point=point: _medians(point.sel(arm=arm))) for heading, point in points.items()}


def paper_point(end: str) -> Any:
    """A column of Table 1 as the paper prints it, at the "start" or the "end" of an arm."""
    return lambda m, arm: _PAPER_TABLE.get(arm, (None, None))[end == "end"]


def by_arm(m: Any, text_fn: Any, arms: Any = None) -> xr.DataArray:
    """A text for each arm, of all or of some."""
    arms = list(arms or m.case.arms)
    return xr.DataArray([text_fn(arm) for arm in arms], {"arm": arms})


def _medians(certificates: xr.Dataset) -> str:
    """Loss, gradient norm and smallest eigenvalue as medians over seeds, as the paper writes its single runs."""
    fields = [certificates[name].values for name in ("loss", "gradient_norm", "smallest")]
    return " / ".join(report.format_number(float(np.nanmedian(v))) if np.isfinite(v).any() else "diverged" for v in fields)


def end_points(m: Any) -> dict[str, xr.DataArray]:
    """What the end points of each arm are, and the losses there."""
    kinds = m.certify_end["class"]
    losses = by_arm(m, lambda arm: report.cell_text(report.geometric_mean_cell(outcomes.final_loss(m, arm).values, "diverged")))
    return {"end points": by_arm(m, lambda arm: counts(kinds.sel(arm=arm))), "loss at the end": losses}


def counts(words: Any) -> str:
    """How often each word of an array occurs, the most frequent first."""
    kinds, numbers = np.unique(np.asarray(words).astype(str), return_counts=True)
    return ", ".join(f"{numbers[i]} {kinds[i]}" for i in np.argsort(-numbers))


def certificates(m: Any) -> dict[str, Any]:
    """The worst of the certificates of the embedded minima over all seeds."""
    embedded = m.embed
    return {
        "certificates": f"{(embedded.status == 'proven').sum().item()} of {embedded.sizes['seed']} proven",
        "|deep / affine loss - 1|, largest": float(np.abs(embedded.loss / embedded.affine_loss - 1).max()),
        "gradient norm, largest": float(embedded.gradient_norm.max()),
        "smallest / largest eigenvalue, least": float((embedded.smallest / embedded.largest).min()),
        "ReLU margin, least": float(embedded.margin.min()),
        "proven radius, least": float(embedded.radius.min()),
        "half the rank": counts(embedded.saddle_status) if m.case.has_saddle else None,
        f"moved by {measure.MOVED:g}": counts(embedded.moved_status),
    }


def stability(m: Any) -> dict[str, Any]:
    """Learning rates over the limit of linear stability, how often SGD with them stays, and how far runs below the limit came."""
    limit = measure.stability_limit(m.embed.largest, m.settings.momentum)
    columns: dict[str, Any] = {"limit": f"{float(limit.min()):.2g} to {float(limit.max()):.2g}"}
    for arm, rate in ((EMBEDDED, m.settings.learning_rate), (SMALL_LR, m.settings.small_learning_rate)):
        kept, ratio = outcomes.stays(m, outcomes.final_loss(m, arm)), rate / limit
        columns[f"rate {rate:g} / limit"] = f"{float(ratio.min()):.2g} to {float(ratio.max()):.2g}"
        columns[f"rate {rate:g}: stays"] = f"{int(kept.sum())} of {int(kept.notnull().sum())}"
    for share in LIMIT_SHARES:
        travel = [float(m.stay.travel.sel(share=share, batches=batches).median()) for batches in (SMALL, FULL)]
        columns[f"sum of rates at {share:g} of the limit / default's"] = " / ".join(f"{value:.2g}" for value in travel)
    return columns


def choices(m: Any) -> dict[str, Any]:
    """What the ends of an arm are and the learning rates that seeds chose."""
    ends = {"end": by_arm(m, lambda arm: counts(outcomes.kinds_of_end(m, arm)), m.case.tuned)}
    chosen = {arm: np.array([f"at {rate:g}" for rate in m.tune.best.sel(trained=arm).values]) for arm in m.case.tuned}
    return ends | {"learning rates": by_arm(m, lambda arm: counts(chosen[arm]), m.case.tuned)}
