"""Stages, measures of the claims, controls, figures and tables, put together."""

from typing import Any

from experiments import papers
from experiments.local_minima import claims, measure, outcomes, views
from experiments.local_minima.settings import DEFAULT, EMBEDDED, FULL, LIMIT_SHARES, MOMENTUM_INIT, PLAIN, RATES, SHIFTED, SMALL, SMALL_LR
from jaxbp import lab, report, stats
from jaxbp.claims import CLEAR_MAJORITY, Above, Below


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
    paper=papers.TRUTH,
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
            measure.loss_slice, over=lambda case, settings: {"arm": (DEFAULT,), "seed": settings.seeds[:1]}, where=explores("slice_points"),
            needs=(measure.embed, measure.train), reads=("slice_points",), cost=passes(300), group="points",
        ),
    ),
    measures=(
        lab.Measure(claims.S1A, lambda m: (m.embed.status == "proven").astype(float), interval_fn=stats.event_interval),
        lab.Measure(claims.S1B, outcomes.loss_ratio, where=has(DEFAULT)),
        lab.Measure(claims.S1C, outcomes.stays_below_limit, where=has(DEFAULT), interval_fn=stats.event_interval),
        lab.Measure(claims.S1D, outcomes.of_arms(outcomes.ends_badly, *SHIFTED), where=has(DEFAULT), interval_fn=stats.event_interval),
        lab.Measure(claims.S1E, outcomes.momentum_gain, where=has(MOMENTUM_INIT, PLAIN), interval_fn=stats.median_interval),
    ),
    controls=(
        lab.Control(
            "positive",
            "A kick as long as the parameters leaves the embedded minimum.",
            "share of seeds whose loss after SGD from there differs by a tenth of the gap to default training or more",
            Above(0.5),
            lambda m: 1 - outcomes.stays(m, m.perturb.end_loss.isel(relative_norm=-1, drop=True).astype(float)),
            where=lambda case: case.explore,
            interval_fn=stats.event_interval,
            claims=("S1.c",),
            smallest_effect=CLEAR_MAJORITY,
        ),
        lab.Control(
            "positive",
            "The best affine map of half the rank, embedded, is a saddle: its certificate is refuted.",
            "share of seeds whose point is refuted",
            Above(0.5),
            lambda m: (m.embed.saddle_status == "refuted").astype(float),
            where=lambda case: case.has_saddle,
            interval_fn=stats.event_interval,
            claims=("S1.a",),
            smallest_effect=CLEAR_MAJORITY,
        ),
        lab.Control(
            "negative",
            f"No proof goes through at a distance of {measure.MOVED:g} of the norm, at half the rank, or where default training ended.",
            "share of seeds whose point is proven to be a local minimum",
            Below(0.5),
            outcomes.not_minima,
            interval_fn=stats.event_interval,
            claims=("S1.a",),
        ),
    ),
    figures=(
        report.SeedStrip(
            views.affine_to_trained, name="losses", where=has(EMBEDDED, DEFAULT), stacked=True, log=True,
            xlabel="training loss", alt="Training losses by seed: affine, embedded, fine-tuned, default",
            caption="Training loss of the affine minimiser, of the deep network that it was embedded in, after SGD from there, and after "
            "default training with the same optimiser. A dot is a seed, a bar a 95 % interval of the (geometric) mean.",
        ),
        report.SeedStrip(
            views.ends_by_init, name="ends", where=lambda case: bool(set(SHIFTED) & set(case.arms)), per_case=True, log=True,
            lines=lambda m: float(m.embed.loss.mean()), xlabel="training loss at the end", alt="training loss at the end by init",
            caption="Where training ends, by init; dashed: the embedded minimum. Seeds that diverged, or ended above a million, are "
            "counted beside the name.",
        ),
        report.SeedCurves(
            "train.train_loss", name="curves", where=lambda case: case.explore, per_case=True, log=True, legend="below",
            show=(DEFAULT, EMBEDDED, SMALL_LR, *SHIFTED), labels=views.LABELS, ylabel="training loss",
            alt="training loss against epoch for several inits",
            caption="Training curves; a thin line is a seed, a band a 95 % interval.",
        ),
        report.CustomFigure(
            views.draw_densities, name="density", alt="spectral densities at the embedded minimum and after default training",
            caption=lambda m: f"Spectral density of the Hessian by stochastic Lanczos quadrature, {m.density.sizes['seed']} seeds, "
            "smoothed by 1 % of the range; titles give the extreme Ritz values. At the embedded minimum most eigenvalues are 0, as layers "
            "can be rescaled against each other.",
        ),
        report.CustomFigure(
            views.draw_escapes, name="escape", alt="share of seeds that escape against the size of the perturbation",
            caption=lambda m: "How often SGD escapes after a random perturbation of the embedded minimum: it ends below the middle between "
            f"the minimum's loss and default training's. Band: exact 95 % interval, {m.perturb.sizes['seed']} seeds. Orange: the proven "
            "radius, within which no activation can change.",
        ),
        report.CustomFigure(
            views.draw_slice, name="slice", alt="two-dimensional slice of the loss",
            caption=lambda m: "The loss on a plane through both points of seed 0, in units of their distance, "
            f"{float(m.loss_slice.distance.squeeze()):.3g}.",
        ),
    ),
    tables=(
        report.MeanTable(
            views.table_1, section=heading, per_case=True, rows=("arm",), headings=("init",),
            beside={f"paper, {end}": views.paper_point(end) for end in ("start", "end")},
            caption="Loss / gradient norm / smallest Hessian eigenvalue on the training set, medians over seeds, beside Table 1 of the "
            "paper (CIFAR-10, one run each).",
        ),
        report.MeanTable(
            views.end_points, section=heading, per_case=True, rows=("arm",), headings=("init",), not_finite="diverged",
            caption=f"What the end points are. Near-global: at most {measure.NEAR_GLOBAL:.0%} of the affine minimum's loss; converged: "
            f"gradient norm at most {measure.STATIONARY:g}; saddle: negative curvature, a ReLU exactly at its kink, or a probe that found "
            "1 % less.",
        ),
        report.MeanTable(
            views.choices, section=heading, per_case=True, rows=("arm",), headings=("init",),
            caption="Ends beside default training of the same seed, and the learning rates chosen, over seeds. Low: at most a tenth of the "
            "gap from default training to the best constant above default training; of the others, suboptimal: gradient norm at most "
            f"{measure.STATIONARY:g}, the largest at the end points of the paper; moving: above that.",
        ),
        report.MeanTable(
            views.certificates, section="Certificates of the embedded minima",
            caption=f"The arm '{EMBEDDED}' starts from these points. Extremes over all seeds, in float64; last, what certificates say of "
            "points that are no minima.",
        ),
        report.MeanTable(
            lambda m: views.stability(m) if m.case.arms else None, section="Linear stability of the embedded minima",
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
