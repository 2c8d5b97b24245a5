"""What is judged and shown: measures of the claims, figures, and Table 1 of the paper rebuilt beside the original.

A measure reads the stages of one case, `jaxbp.lab.CaseResults`, here ``m``. Its values have the axis ``seed``.
"""

from typing import Any

import numpy as np
import xarray as xr

from experiments.local_minima import claims, measure
from experiments.local_minima.settings import DEFAULT, EMBEDDED, FULL, LIMIT_SHARES, MOMENTUM_INIT, PLAIN, RATES, SHIFTED, SMALL, SMALL_LR
from jaxbp import lab, landscape, report, stats
from jaxbp.claims import Above, Below

_TENTH = 0.1  # of a gap: what counts as having moved (S1.c), or as ending higher (S1.d)
_LABELS = {EMBEDDED: "SGD from the embedded minimum", SMALL_LR: "the same, small steps", DEFAULT: "default training"}

# Loss / gradient norm / smallest eigenvalue at the start and after training, as Table 1 of the paper prints them.
_PAPER_TABLE = {
    DEFAULT: ("4.5963 / 0.5752 / -1.5549", "0.0061 / 0.0074 / 0.0007"),
    SMALL_LR: ("1.5702 / 0.0992 / 0.03125", "1.5699 / 0.0414 / 0.0156"),
    "bias +20": ("31.204 / 343.99 / -1.7421", "2.3301 / 0.0090 / 0.0005"),
    "bias U(-50, 50)": ("51.445 / 378.36 / -430.49", "2.3153 / 0.0048 / 0.0000"),
    PLAIN: ("12.209 / 42.454 / -47.733", "0.2198 / 0.0564 / 0.0013"),
}


def final_losses(m: Any) -> xr.DataArray:
    """Training loss at the end, (arm, seed)."""
    return m.train.train_loss.isel(epoch=-1, drop=True).astype(float)


def final_loss(m: Any, arm: str) -> xr.DataArray:
    """Training loss at the end of an arm, (S,); not finite where the arm diverged."""
    return final_losses(m).sel(arm=arm, drop=True)


def loss_ratio(m: Any) -> xr.DataArray:
    """log2 of the embedded minimum's loss over default training's, (S,)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.log2(m.embed.loss / final_loss(m, DEFAULT))


def stays(m: Any, end_loss: xr.DataArray) -> xr.DataArray:
    """1 where a training from the embedded minimum ended within a tenth of the gap to default training, below or above it.

    A run that diverged did not stay. NaN where default training is not below the minimum.
    """
    gap = m.embed.loss - final_loss(m, DEFAULT)
    moved = np.abs(m.embed.loss - end_loss.where(np.isfinite(end_loss)))
    return (moved < _TENTH * gap).astype(float).where(np.isfinite(gap) & (gap > 0))


def stays_below_limit(m: Any) -> dict[str, xr.DataArray]:
    """Whether runs stay, for each share of the limit of linear stability and each batch size."""
    kept = stays(m, m.stay.end_loss.astype(float))
    points = [(share, batches) for share in LIMIT_SHARES for batches in (SMALL, FULL)]
    return {f"{share:g} of the limit, {batches}": kept.sel(share=share, batches=batches, drop=True) for share, batches in points}


def kinds_of_end(m: Any, arm: str) -> xr.DataArray:
    """What the end of an arm is, seed by seed, beside default training: "diverged", "low", "moving" or "suboptimal"."""
    final, reference = final_loss(m, arm), final_loss(m, DEFAULT)
    low = final - reference <= _TENTH * (m.embed.constant_loss - reference)
    still = m.train.gradient_norm.sel(arm=arm, drop=True) <= measure.STATIONARY
    kinds = xr.where(low, "low", xr.where(still, "suboptimal", "moving"))
    return xr.where(np.isfinite(final), kinds, "diverged").where(np.isfinite(reference), "no default")


def ends_badly(m: Any, arm: str) -> xr.DataArray:
    """1 where an arm ended at a suboptimal point, NaN where default training diverged."""
    kinds = kinds_of_end(m, arm)
    return (kinds == "suboptimal").astype(float).where(kinds != "no default")


def momentum_gain(m: Any) -> xr.DataArray:
    """log2 of the final loss without momentum over that with momentum; a run that diverged counts as one that stayed at its start."""
    curves = m.train.train_loss.astype(float)
    ends, starts = curves.isel(epoch=-1, drop=True), curves.isel(epoch=0, drop=True)
    ends = ends.where(np.isfinite(ends), starts)
    return np.log2(ends.sel(arm=PLAIN, drop=True) / ends.sel(arm=MOMENTUM_INIT, drop=True))


def not_minima(m: Any) -> dict[str, xr.DataArray]:
    """Whether points that are no minima were proven to be some."""
    points = {"half the rank": m.embed.saddle_status, "moved": m.embed.moved_status}
    if DEFAULT in m.case.arms:
        points["end of default training"] = m.certify_end.status.sel(arm=DEFAULT, drop=True)
    return {name: (status == "proven").astype(float) for name, status in points.items()}


def of_arms(fn: Any, *arms: str) -> Any:
    """A measure of each of these arms that a case has."""
    return lambda m: {arm: fn(m, arm) for arm in arms if arm in m.case.arms}


def escaped(m: Any) -> xr.DataArray:
    """Whether training from a perturbed minimum got more than half of the way down to default training's loss, (S, R)."""
    return m.perturb.end_loss < 0.5 * (m.embed.loss + final_loss(m, DEFAULT))


def affine_to_trained(m: Any) -> dict[str, xr.DataArray]:
    """Training losses of the affine minimiser, embedded, and after training from there and from the default init."""
    losses = {"affine minimiser": m.embed.affine_loss, "embedded in the deep net": m.embed.loss}
    return losses | {_LABELS[arm]: final_loss(m, arm) for arm in (EMBEDDED, DEFAULT)}


def ends_by_init(m: Any) -> xr.DataArray:
    """Final losses of the arms that do not start at the embedded minimum."""
    return final_losses(m).sel(arm=list(m.case.tuned))


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
        ax.annotate("default training", (1, 0), (4, 9), textcoords="offset points", color="white", ha="right")
        ax.set_xlabel("towards the default-trained point")
        ax.set_ylabel("random direction")
    return fig


def table_1(m: Any) -> dict[str, xr.DataArray]:
    """Table 1 of the paper: what certificates hold of starts and ends, by arm."""
    points = {"ours, start": m.certify_start} if "certify_start" in m.stages else {}
    points["ours, end"] = m.certify_end
    return {heading: by_arm(m, lambda arm, point=point: _medians(point.sel(arm=arm))) for heading, point in points.items()}


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
    return {"end points": by_arm(m, lambda arm: counts(kinds.sel(arm=arm))), "loss at the end": final_losses(m)}


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
        "half the rank": counts(embedded.saddle_status),
        f"moved by {measure.MOVED:g}": counts(embedded.moved_status),
    }


def stability(m: Any) -> dict[str, Any]:
    """Learning rates over the limit of linear stability, how often SGD with them stays, and how far runs below the limit came."""
    limit = measure.stability_limit(m.embed.largest, m.settings.momentum)
    columns: dict[str, Any] = {"limit": f"{float(limit.min()):.2g} to {float(limit.max()):.2g}"}
    for arm, rate in ((EMBEDDED, m.settings.learning_rate), (SMALL_LR, m.settings.small_learning_rate)):
        kept, ratio = stays(m, final_loss(m, arm)), rate / limit
        columns[f"rate {rate:g} / limit"] = f"{float(ratio.min()):.2g} to {float(ratio.max()):.2g}"
        columns[f"rate {rate:g}: stays"] = f"{int(kept.sum())} of {int(kept.notnull().sum())}"
    for share in LIMIT_SHARES:
        travel = [float(m.stay.travel.sel(share=share, batches=batches).median()) for batches in (SMALL, FULL)]
        columns[f"sum of rates at {share:g} of the limit / default's"] = " / ".join(f"{value:.2g}" for value in travel)
    return columns


def choices(m: Any) -> dict[str, Any]:
    """What the ends of an arm are and the learning rates that seeds chose."""
    ends = {"end": by_arm(m, lambda arm: counts(kinds_of_end(m, arm)), m.case.tuned)}
    chosen = {arm: np.array([f"at {rate:g}" for rate in m.tune.best.sel(trained=arm).values]) for arm in m.case.tuned}
    return ends | {"learning rates": by_arm(m, lambda arm: counts(chosen[arm]), m.case.tuned)}


def heading(m: Any) -> str:
    """The heading of a case's starts and ends."""
    return f"Starts and ends: {m.name}"


def passes(number: float) -> Any:
    """The cost of a job that takes as long as so many passes over the data."""
    return lambda case, settings, **point: number * case.cost


def trainings(number_fn: Any) -> Any:
    """The cost of a job with so many trainings a seed."""
    return lambda case, settings, seed, **point: 0.75 * number_fn(settings) * len(seed) * case.num_epochs * case.cost


def over_blocks(case: Any, settings: Any) -> dict[str, Any]:
    """The seeds, a job a block."""
    return {"seed": settings.seed_blocks}


def is_trained(case: Any, settings: Any) -> bool:
    """Whether the case trains."""
    return bool(case.arms)


def certified_ends(case: Any, settings: Any) -> dict[str, Any]:
    """The end points that are certified."""
    return {"arm": case.arms, "seed": settings.seeds[: settings.num_certified]}


def first_seeds(*arms: str) -> Any:
    """The seeds of which densities are measured, of ``arms`` or of all."""
    return lambda case, settings: {"arm": arms or case.arms, "seed": settings.seeds[: settings.num_densities]}


def explores(field: str) -> Any:
    """Whether a case explores and the settings ask for this part."""
    return lambda case, settings: case.explore and bool(getattr(settings, field))


def has(*arms: str) -> Any:
    """Whether a case has all these arms."""
    return lambda case: set(arms) <= set(case.arms)


_TRAINED_AT: dict[str, Any] = {"needs": (measure.embed, measure.train), "reads": ()}
_POINTS: dict[str, Any] = {"group": "points", "on_cpu": True, "cost": passes(100)}

STUDY = lab.Study(
    id="S1",
    title="Do suboptimal local minima exist?",
    lead="The best affine classifier of a data set, embedded in a deep ReLU network, is said to be a local minimum of its "
    "loss, far above what training from a usual start reaches. Here such minima are built, certified, and left to SGD.",
    module="experiments.local_minima",
    stages=(  # embeddings come first: data that have no affine minimiser are refused before any training
        lab.Stage(
            measure.embed, over=lambda case, settings: {"seed": settings.seeds}, cost=passes(500), reads=("margin",), on_cpu=True
        ),
        lab.Stage(
            measure.tune, over=lambda case, settings: {"trained": case.tuned, **over_blocks(case, settings)}, where=is_trained,
            cost=trainings(lambda settings: len(RATES)), reads=("momentum",),
        ),
        lab.Stage(
            measure.perturb, over=over_blocks, needs=(measure.embed,), where=explores("perturbations"), group="train",
            cost=trainings(lambda settings: len(settings.perturbations)), reads=("learning_rate", "momentum", "perturbations"),
        ),
        lab.Stage(
            measure.stay, over=lambda case, settings: {"batches": (SMALL, FULL), **over_blocks(case, settings)}, where=is_trained,
            needs=(measure.embed,), group="train", cost=trainings(lambda settings: len(LIMIT_SHARES) * settings.stay_passes),
            reads=("learning_rate", "momentum", "stay_passes"),
        ),
        lab.Stage(
            measure.train, over=lambda case, settings: {"arm": case.arms, **over_blocks(case, settings)}, where=is_trained,
            needs=(measure.embed, measure.tune), group="train", cost=trainings(lambda settings: 1),
            reads=("learning_rate", "momentum", "small_learning_rate"),
        ),
        lab.Stage(measure.certify_end, over=certified_ends, where=is_trained, **_TRAINED_AT, **_POINTS),
        lab.Stage(
            measure.certify_start, over=first_seeds(), needs=(measure.embed,), where=explores("num_densities"), reads=(), **_POINTS
        ),
        lab.Stage(measure.density, over=first_seeds(EMBEDDED, DEFAULT), where=explores("num_densities"), **_TRAINED_AT, **_POINTS),
        lab.Stage(
            measure.loss_slice, over=lambda case, settings: {"arm": (DEFAULT,), "seed": (0,)}, where=explores("slice_points"),
            needs=(measure.embed, measure.train), reads=("slice_points",), cost=passes(300), group="points",
        ),
    ),
    measures=(
        lab.Measure(claims.S1A, lambda m: (m.embed.status == "proven").astype(float), interval_fn=stats.event_interval),
        lab.Measure(claims.S1B, loss_ratio, where=has(DEFAULT)),
        lab.Measure(claims.S1C, stays_below_limit, where=has(DEFAULT), interval_fn=stats.event_interval),
        lab.Measure(claims.S1D, of_arms(ends_badly, *SHIFTED), where=has(DEFAULT), interval_fn=stats.event_interval),
        lab.Measure(claims.S1E, momentum_gain, where=has(MOMENTUM_INIT, PLAIN), interval_fn=stats.median_interval),
    ),
    controls=(
        lab.Control(
            "positive",
            "A kick as long as the parameters leaves the embedded minimum.",
            "share of seeds whose loss after SGD from there differs by a tenth of the gap to default training or more",
            Above(0.5),
            lambda m: 1 - stays(m, m.perturb.end_loss.isel(relative_norm=-1, drop=True).astype(float)),
            where=lambda case: case.explore,
            interval_fn=stats.event_interval,
            claims=("S1.c",),
            smallest_effect=claims.CLEARLY,
        ),
        lab.Control(
            "positive",
            "The best affine map of half the rank, embedded, is a saddle or beside one: its certificate is refuted.",
            "share of seeds whose point is refuted",
            Above(0.5),
            lambda m: (m.embed.saddle_status == "refuted").astype(float),
            interval_fn=stats.event_interval,
            claims=("S1.a",),
            smallest_effect=claims.CLEARLY,
        ),
        lab.Control(
            "negative",
            f"No proof goes through at half the rank, at a distance of {measure.MOVED:g} of the norm, or where default training ended.",
            "share of seeds whose point is proven to be a local minimum",
            Below(0.5),
            not_minima,
            interval_fn=stats.event_interval,
            claims=("S1.a",),
        ),
    ),
    figures=(
        report.SeedStrip(
            affine_to_trained, name="losses", where=has(EMBEDDED, DEFAULT), stacked=True, log=True,
            xlabel="training loss", alt="Training losses by seed: affine, embedded, fine-tuned, default",
            caption="Training loss of the affine minimiser, of the deep network that it was embedded in, after SGD from there, and after "
            "default training with the same optimiser. A dot is a seed, a bar a 95 % interval of the (geometric) mean.",
        ),
        report.SeedStrip(
            ends_by_init, name="ends", where=lambda case: bool(set(SHIFTED) & set(case.arms)), per_case=True, log=True,
            lines=lambda m: float(m.embed.loss.mean()), xlabel="training loss at the end", alt="training loss at the end by init",
            caption="Where training ends, by init; dashed: the embedded minimum. Seeds that diverged are counted beside the name.",
        ),
        report.SeedCurves(
            "train.train_loss", name="curves", where=lambda case: case.explore, per_case=True, log=True, legend="below",
            show=(DEFAULT, EMBEDDED, SMALL_LR, *SHIFTED), labels=_LABELS, ylabel="training loss",
            alt="training loss against epoch for several inits",
            caption="Training curves; a thin line is a seed, a band a 95 % interval.",
        ),
        report.CustomFigure(
            draw_densities, name="density", alt="spectral densities at the embedded minimum and after default training",
            caption=lambda m: f"Spectral density of the Hessian by stochastic Lanczos quadrature, {m.density.sizes['seed']} seeds, "
            "smoothed by 1 % of the range; titles give the extreme Ritz values. At the embedded minimum most eigenvalues are 0, as layers "
            "can be rescaled against each other.",
        ),
        report.CustomFigure(
            draw_escapes, name="escape", alt="share of seeds that escape against the size of the perturbation",
            caption=lambda m: "How often SGD escapes after a random perturbation of the embedded minimum: it ends below the middle between "
            f"the minimum's loss and default training's. Band: exact 95 % interval, {m.perturb.sizes['seed']} seeds. Orange: the proven "
            "radius, within which no activation can change.",
        ),
        report.CustomFigure(
            draw_slice, name="slice", alt="two-dimensional slice of the loss",
            caption=lambda m: "The loss on a plane through both points of seed 0, in units of their distance, "
            f"{float(m.loss_slice.distance.squeeze()):.3g}.",
        ),
    ),
    tables=(
        report.MeanTable(
            table_1, section=heading, per_case=True, rows=("arm",), headings=("init",),
            beside={f"paper, {end}": lambda m, arm, i=i: _PAPER_TABLE.get(arm, (None, None))[i] for i, end in enumerate(("start", "end"))},
            caption="Loss / gradient norm / smallest Hessian eigenvalue on the training set, medians over seeds, beside Table 1 of the "
            "paper (CIFAR-10, one run each).",
        ),
        report.MeanTable(
            end_points, section=heading, per_case=True, rows=("arm",), headings=("init",), not_finite="diverged",
            caption=f"What the end points are. Near-global: at most {measure.NEAR_GLOBAL:.0%} of the affine minimum's loss; converged: "
            f"gradient norm at most {measure.STATIONARY:g}; saddle: negative curvature, a ReLU exactly at its kink, or a probe that found "
            "1 % less.",
        ),
        report.MeanTable(
            choices, section=heading, per_case=True, rows=("arm",), headings=("init",),
            caption="Ends beside default training of the same seed, and the learning rates chosen, over seeds. Low: at most a tenth of the "
            "gap from default training to the best constant above default training; of the others, suboptimal: gradient norm at most "
            f"{measure.STATIONARY:g}, the largest at the end points of the paper; moving: above that.",
        ),
        report.MeanTable(
            certificates, section="Certificates of the embedded minima",
            caption=f"The arm '{EMBEDDED}' starts from these points. Extremes over all seeds, in float64; last, what certificates say of "
            "points that are no minima.",
        ),
        report.MeanTable(
            lambda m: stability(m) if m.case.arms else None, section="Linear stability of the embedded minima",
            caption="Gradient descent leaves a quadratic if its learning rate is above the limit 2 (1 + momentum) / lambda_max. Limits and "
            "ratios are ranges over seeds. Last, the sum of learning rates that runs below the limit reached, relative to that of default "
            "training at the paper's rate: medians, small batches / all examples.",
        ),
    ),
    method=(
        "Every seed draws its own training examples, initial parameters and order of the data; the seed's own affine minimiser is fitted "
        "to float64 precision and embedded with random rotations of the dense layers.",
        "A certificate is 'proven' if every ReLU is strictly active on every training example, so that the network is affine in its input "
        "within the stated radius, and the loss equals a proven lower bound of the loss over all affine maps. Then no parameters "
        "within the radius do better. The smallest eigenvalue alone could not show that: it is exactly 0, "
        "since layers can be rescaled against each other.",
        "The learning rate of every training that does not start at the embedded minimum is tuned on each seed, over "
        f"{', '.join(f'{rate:g}' for rate in RATES)}, with other initial parameters and another order; the rate of the lowest loss at the "
        "end is taken. A run that diverges is never chosen in tuning; in the final run it is a category of its own.",
        "A claim that is tested in several cases is supported only if it holds in each of them.",
    ),
)  # fmt: skip
