"""Do wide-network theories describe real networks? Paper: "Truth or Backpropaganda?", Figure 1.

What each claim is judged by, figures and tables; `experiments.ntk_width.measure` says how kernels are measured.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from experiments import papers
from experiments.ntk_width import claims, departure, measure
from experiments.ntk_width.departure import factorial
from experiments.ntk_width.kernels import KERNELS, TARGET
from experiments.ntk_width.settings import ASYMPTOTIC, SMALL_DECAY, STORED, Case
from jaxbp import lab, report, stats
from jaxbp.claims import Above, Within
from jaxbp.models.own import is_own

Values = Callable[[Any], xr.DataArray]
JUDGED = KERNELS[0]  # unrelated networks agree too well on pairs of images, see `claims`


def at_target(variable: str, **place: Any) -> Values:
    """A variable of the training at the target loss, and at a place of its other axes."""
    return lambda m: m.train[variable].sel(place | {"point": TARGET}, drop=True)


def excess_over_floor(correlation: xr.DataArray, floor: xr.DataArray) -> xr.DataArray:
    """(c - f) / (1 - f), f the correlation of the kernels of independent initialisations; each seed has its own."""
    return (correlation - floor) / (1 - floor)


def excess(m: Any) -> xr.DataArray:
    """Excess correlation of the full kernels at the target loss, (statistics, decay, width, seed)."""
    floor = (m.train.floor + m.train.unrelated) / 2
    return excess_over_floor(at_target("correlation", kernel=JUDGED)(m), floor.sel(kernel=JUDGED, drop=True))


def slopes(values: xr.DataArray, *, log_values: bool = False) -> xr.DataArray:
    """Each seed's change per doubling of width; NaN for a seed without a value at some width, which stands in the way of a verdict."""

    def fit(rows: np.ndarray, widths: np.ndarray) -> np.ndarray:
        usable = np.isfinite(rows).all(1) & ((rows > 0).all(1) | (not log_values))
        fitted = np.full(len(rows), np.nan)
        if usable.sum() >= 2:
            fitted[usable] = stats.slopes(widths, rows[usable], log_values=log_values)
        return fitted

    axes = [["seed", "width"], ["width"]]
    return xr.apply_ufunc(fit, values, values.width, input_core_dims=axes, output_core_dims=[["seed"]], vectorize=True)


def excess_slopes(m: Any) -> xr.DataArray:
    """`slopes` of the `excess`, (statistics, decay, seed)."""
    return slopes(excess(m))


def plain_slopes(m: Any) -> xr.DataArray:
    """`excess_slopes` without the axes that have one coordinate where there is no BatchNorm and one weight decay, (seed,)."""
    return excess_slopes(m).sel(statistics=STORED, decay=SMALL_DECAY, drop=True)


def exponents(m: Any) -> xr.DataArray:
    """Exponent of the distance to the exact kernel over widths that are not too narrow, (statistics, seed)."""
    distance = m.compare_with_exact.distance
    return slopes(distance.sel(width=distance.width >= ASYMPTOTIC), log_values=True)


def by_regime(values: xr.DataArray) -> dict[str, xr.DataArray]:
    """The values (statistics, decay, seed) by weight-decay time and statistics."""
    stacked = values.stack(regime=("decay", "statistics"))
    return {
        f"weight-decay time {decay:g}, {statistics} statistics": stacked.isel(regime=i, drop=True)
        for i, (decay, statistics) in enumerate(stacked.regime.values)
    }


def falls(run: Any) -> dict[str, xr.DataArray]:
    """`excess_slopes` of the ResNet with skip connections and BatchNorm."""
    both = factorial(run).get((True, True))
    return by_regime(excess_slopes(both)) if both else {}


def interaction(run: Any) -> dict[str, xr.DataArray]:
    """Interaction of skip connections and BatchNorm in the slopes of the excess."""
    values = {
        cell: excess_slopes(m) if cell[1] else excess_slopes(m).sel(statistics=STORED, drop=True) for cell, m in factorial(run).items()
    }
    if len(values) < 4:
        return {}
    return by_regime(departure.interaction(values))


def share_of_rescaling(m: Any) -> dict[str, xr.DataArray]:
    """Share of the squared change of the kernel that the best rescaling accounts for, mean over widths, by weight-decay time."""
    shares = at_target("share_of_rescaling", statistics=STORED)(m).mean("width", skipna=False)
    return report.split(shares, "decay", labels=lambda decay: f"weight-decay time {decay:g}")


def difference_of_limits(run: Any) -> dict[str, xr.DataArray]:
    """Rescaled distance of the exact kernels with and without BatchNorm, (seed,), by skip connections and statistics."""
    of_cell = {(m.case.skip, m.case.batch_norm): m.limits.exact for m in run.cases if m.case.exact_widths and m.case.skip is not None}
    distances = {}
    for skip in (True, False):
        if (skip, True) in of_cell and (skip, False) in of_cell:
            plain = of_cell[skip, False].sel(statistics=STORED, drop=True)
            for name, kernel in report.split(of_cell[skip, True], "statistics").items():
                images = ("image", "other_image")
                scale = (plain * kernel).sum(images) / (plain**2).sum(images)
                left = ((kernel - scale * plain) ** 2).sum(images) / (kernel**2).sum(images)
                distances[f"{'skips' if skip else 'no skips'}, {name} statistics"] = np.sqrt(left)
    return distances


def kept(m: Any) -> xr.DataArray:
    """Excess correlation, all logits, after training with a tiny learning rate in the NTK parametrisation."""
    return excess_over_floor(m.keep_kernel.correlation, m.keep_kernel.floor).sel(kernel=JUDGED, drop=True)


def unrelated(m: Any) -> xr.DataArray:
    """Excess correlation of the kernels of unrelated networks, all logits, mean over widths."""
    return excess_over_floor(m.train.unrelated, m.train.floor).sel(statistics=STORED, kernel=JUDGED, drop=True).mean("width")


def short_name(m: Any) -> str:
    """The case's name in a panel's title."""
    return m.name.replace("ResNet, ", "")


def related_and_not(m: Any) -> dict[str, xr.DataArray]:
    """Correlations over width by weight decay, and of unrelated networks."""
    place = {"statistics": STORED, "kernel": JUDGED}
    trained = report.split(at_target("correlation", **place)(m), "decay", labels=lambda decay: f"decay time {decay:g}")
    return trained | {"unrelated networks": m.train.floor.sel(place, drop=True)}


def draw_kernels(run: Any) -> Any:
    """Kernels of seed 0's images for the four cells: a network of each width, and the infinitely wide one."""
    cells = [m for m in run.cases if m.case.exact_widths and m.case.skip is not None]
    if not cells:
        return None
    widths = cells[0].case.exact_widths
    fig, axes = report.figure(len(cells), len(widths) + 1, width=1.4 * len(widths) + 2, height=1.6 * len(cells), squeeze=False)
    for row, m in zip(axes, cells, strict=True):
        finite, exact = (array.sel(statistics=STORED).isel(seed=0) for array in (m.compare_with_exact.finite, m.limits.exact))
        kernels = {f"width {width}": finite.sel(width=width) for width in widths} | {"infinite width": exact}
        with report.style():
            for ax, (title, kernel) in zip(row, kernels.items(), strict=True):
                ax.grid(False)
                ax.set(xticks=[], yticks=[])
                ax.set_title(title, fontsize=9)
                ax.imshow(kernel / np.abs(kernel).max(), cmap="cividis", interpolation="nearest")
            row[0].set_ylabel(short_name(m).replace(", ", "\n"), fontsize=8)
    return fig


def distance_by_statistics(m: Any) -> dict[str, xr.DataArray]:
    """Distances to the exact kernel over width; without a label where there is no BatchNorm."""
    values = report.split(m.compare_with_exact.distance, "statistics")
    return values if m.case.batch_norm else {"": values[STORED]}


def add_rate_of_theory(ax: Any, m: Any) -> None:
    """The slope of width^(-1/2)."""
    report.slope_guide(ax, -0.5, "slope -1/2")
    ax.legend(fontsize=7)


def row_name(m: Any, statistics: str, *place: Any) -> tuple[Any, ...]:
    """Name and place of a row, with the statistics where there are several."""
    return (f"{m.name}, {statistics}" if m.case.batch_norm else m.name), *place


def comparisons(m: Any) -> dict[str, xr.DataArray]:
    """Kernels at the target loss against before, by heading, (statistics, decay, width, seed)."""
    names = ("cosine", "centred_alignment", "relative_change", "share_of_rescaling")
    correlations = report.split(at_target("correlation")(m), "kernel", labels=lambda kernel: f"correlation, {kernel}")
    floors = report.split(m.train.floor, "kernel", labels=lambda kernel: f"unrelated, {kernel}")
    return correlations | floors | {name.replace("_", " "): at_target(name)(m) for name in names}


def trainings(m: Any) -> dict[str, xr.DataArray]:
    """What became of networks, by heading."""
    at_end = {name: m.train[name].isel(epoch=-1, drop=True) for name in ("train_loss", "test_accuracy")}
    return {
        "reached the target loss": m.train.reached,
        "epoch there": m.train.epoch_at_target,
        "train loss at the end": at_end["train_loss"],
        "test accuracy at the end": at_end["test_accuracy"],
        "relative movement": m.train.relative_l2,
    }


def distances(m: Any) -> dict[str, xr.DataArray]:
    """Distances to the exact kernel, and how far to trust it, by heading."""
    exact, limit = m.compare_with_exact, m.limits
    return {
        "relative distance": exact.distance,
        "after the best rescaling": exact.rescaled_distance,
        "sampling error of the limit": limit.sampling_error,
        "tail": limit["tail"],  # xarray has a method of that name
    }


def predictions(m: Any) -> dict[str, Any]:
    """Test accuracies of regression with kernels and, where it was trained, of the widest network, by heading."""
    trained = m.train.test_accuracy.isel(epoch=-1, width=-1, decay=0, drop=True) if m.case.decays else None
    return report.split(m.regress.test_accuracy, "kernel") | {"network, widest, trained": trained}


def is_trained(case: Case, settings: Any = None) -> bool:
    """Whether the case trains networks."""
    return bool(case.decays)


def speaks_of_plain(case: Case) -> bool:
    """Whether S3.a speaks of the case: MLPs, ConvNets, and any network of the user's own."""
    return is_trained(case) and (case.model in ("mlp", "convnet") or is_own(case.model))


def has_limit(case: Case, settings: Any = None) -> bool:
    """Whether the case is compared with an exact kernel."""
    return bool(case.exact_widths)


def has_controls(case: Case, settings: Any = None) -> bool:
    """Whether the positive controls are run beside the case."""
    return is_trained(case) and case.model == "mlp"


def over_blocks(case: Case, settings: Any) -> dict[str, Any]:
    """The seeds, a job a block."""
    return {"seed": settings.seed_blocks}


CONTROLS = (
    lab.Control(
        "positive", "An MLP in the NTK parametrisation that hardly learns keeps its kernel.",
        "excess of the correlation over that of unrelated networks, all logits", Above(0.9), kept,
        where=has_controls, claims=("S3.a", "S3.b", "S3.c", "S3.d", "S3.h"), smallest_effect=0.05,
    ),
    lab.Control(
        "positive", "The exact tangent kernel of a deep chain with BatchNorm explodes: by pi / (pi - 1) = 1.467 a layer for large batches "
        "(Yang et al., ICLR 2019).", "growth a layer", Within(0.1, centre=1.467), lambda m: m.explode.growth,
        where=has_controls, claims=("S3.e", "S3.f", "S3.g"), smallest_effect=0.05,
    ),
    lab.Control(
        "negative", "Kernels of independent initialisations correlate no better than the floor.",
        "excess of the correlation over that of unrelated networks, all logits", Within(0.1), unrelated, where=is_trained,
        claims=("S3.a", "S3.b", "S3.c"),
    ),
)  # fmt: skip

METHOD = (
    "The tangent kernel holds, for each pair of images and of logits, the inner product of their gradients with respect to all parameters. "
    "It is computed exactly, without forming a Jacobian, on class-balanced training images; every seed draws its own data, initial "
    "parameters and order of the data.",
    "Kernels are compared at the first measured epoch at which the training loss is at most the target, the same for all widths. A network "
    "that never reaches it has no value there, and its seed has no slope: a case with such a seed is not decided, and no claim that "
    "presupposes it is tested there. The tables tell how many did not reach the loss.",
    "Correlations are judged beyond the floor f of unrelated networks of the same width, as (c - f) / (1 - f), f the mean over two "
    "networks of other initialisations on the same images, for all entries of the full kernel.",
    "Weight-decay time is learning rate x coefficient x steps / (1 - momentum) over the whole training, about 1.5 in the paper.",
    "BatchNorm's kernels are measured with stored statistics, as in the paper, and with those of the probe images, differentiated through.",
    "Trends are slopes over log2(width), fitted seed by seed; an interval is that of the seeds' slopes. The interaction is the difference "
    "of differences of slopes over the four ResNets of the factorial. It is tested where the correlation does fall.",
    "Exact kernels are those of infinitely wide networks in the NTK parametrisation, with BatchNorm too (`jaxbp.ntk.batch_norm`), with "
    f"biases that start at 0 and are learned, on each seed's own images. Exponents are fitted to widths from {ASYMPTOTIC} on. Sums that "
    "are not Gaussian, at shortcuts, are averages over sampled channels; the table gives their error.",
    "A trained network's distance to an exact kernel is that of the same function's kernel in the NTK parametrisation, in which its limit "
    "is stated: its weights divided by sqrt(2 / fan-in). They start from uniform numbers, so that pre-activations of the first layer are "
    "not Gaussian at any width, which changes the limit by about 5 % / fan-in of that layer.",
)
_DATA = ("dataset", "num_train")
_TRAINING = (
    *_DATA, "num_epochs", "measure_epochs", "target_loss", "batch_size", "momentum", "milestones", "decay", "num_probes", "exact_probes",
    "memory",
)  # fmt: skip


def correlation_curves(where: Callable[[Case], bool], name: str, figure: str) -> report.SeedCurves:
    """A figure of the paper rebuilt: the correlation of kernels at equal training loss and before training over width."""
    return report.SeedCurves(
        related_and_not, where=where, x="width", x_scale="log2", share_y=True, title=short_name, legend="each",
        name=name, ylabel="correlation", alt="correlation of kernels before training and at equal training loss against width",
        caption=lambda run: f"{figure} of the paper rebuilt at equal training loss ({run.settings.target_loss:g}): Pearson correlation of "
        f"the entries of the kernel with those before training, over width; {run.settings.num_probes} class-balanced images, all logits, "
        "BatchNorm with stored statistics. Unrelated networks, independent initialisations, are the floor.",
    )  # fmt: skip


STUDY = lab.Study(
    id="S3",
    title="Do wide-network theories describe real networks?",
    lead="As networks grow wide, theory says, their tangent kernel becomes that of an infinitely wide network and stops changing in "
    "training. Here the kernels of finite networks are measured before training and at equal training loss over a range of widths, with "
    "and without BatchNorm and skip connections, and compared with the exact infinite-width kernels, BatchNorm's included.",
    module="experiments.ntk_width",
    paper=papers.TRUTH,
    stages=(
        lab.Stage(
            measure.train, where=is_trained, reads=_TRAINING, group="first",
            over=lambda case, settings: {"width": case.widths, "decay": [case.decays], "seed": settings.seed_blocks},
            cost=lambda case, settings, width, decay, seed: case.cost(width) * max(settings.num_epochs * len(seed) * len(decay), 30),
        ),
        lab.Stage(
            measure.limits, over=over_blocks, where=has_limit, reads=(*_DATA, "exact_probes", "channels", "memory"), group="first",
            cost=lambda case, settings, seed: 30 * len(seed),
        ),
        lab.Stage(
            measure.keep_kernel, over=over_blocks, where=has_controls, reads=_TRAINING, group="first",
            cost=lambda case, settings, seed: case.cost(max(case.widths)) * settings.num_epochs * len(seed),
        ),
        lab.Stage(
            measure.explode, over=over_blocks, where=has_controls, reads=(*_DATA, "chain"), group="first",
            cost=lambda case, settings, seed: 10 * len(seed),
        ),
        lab.Stage(
            measure.compare_with_exact, needs=(measure.limits,), where=has_limit, reads=(*_DATA, "exact_probes", "memory"), group="second",
            over=lambda case, settings: {"width": case.exact_widths, "seed": settings.seed_blocks},
            cost=lambda case, settings, width, seed: 15 * case.cost(width),
        ),
        lab.Stage(
            measure.regress, reads=(*_DATA, "channels", "memory"), group="second",
            where=lambda case, settings: bool(case.regression),
            cost=lambda case, settings: 20 * case.cost(max(case.widths)),
        ),
    ),
    measures=(
        lab.Measure(claims.S3A, plain_slopes, where=speaks_of_plain),
        lab.Measure(claims.S3B, falls, across=True),
        lab.Measure(claims.S3C, interaction, across=True),
        lab.Measure(claims.S3D, share_of_rescaling, where=lambda case: is_trained(case) and not case.batch_norm),
        lab.Measure(claims.S3E, lambda m: exponents(m).sel(statistics=STORED, drop=True), where=has_limit),
        lab.Measure(claims.S3F, exponents, where=lambda case: has_limit(case) and bool(case.batch_norm)),
        lab.Measure(claims.S3G, difference_of_limits, across=True),
        lab.Measure(claims.S3H, share_of_rescaling, where=lambda case: is_trained(case) and bool(case.batch_norm)),
    ),
    controls=CONTROLS,
    figures=(
        report.CustomFigure(
            departure.draw_change_and_distance, per_case=False, name="change_and_distance",
            alt="change of the kernel in training against its distance to the infinite-width kernel, a path over widths for each ResNet",
            caption="The question in one look: how far kernels move until the target loss, relative to their norm, over how far they lie "
            "from the network's own infinite-width limit at initialisation (NTK parametrisation, after the best rescaling: 0 is the same "
            "direction, 1 a right angle), before training and at the target loss. Means over the seeds that reached it, of changes "
            "geometric ones; numbers are widths; statistics are the stored ones. Theory says that a path leads down and to the left, and "
            "that training does not move it to the right. Solid: BatchNorm; round: skip connections.",
        ),
        correlation_curves(lambda case: case.skip is None and is_trained(case), "correlation", "Figure 1a"),
        correlation_curves(lambda case: case.skip is not None and is_trained(case), "factorial", "Figure 1b"),
        report.SeedCurves(
            distance_by_statistics, where=has_limit, x="width", x_scale="log2", log=True, share_y=True,
            title=short_name, ylabel="relative distance", name="exact_distance", decorate=add_rate_of_theory,
            alt="distance to the network's own exact kernel against width on logarithmic axes",
            caption=lambda run: "Distance of the kernel at initialisation (NTK parametrisation) to the network's own exact infinite-width "
            f"kernel, with BatchNorm that with BatchNorm, relative to its norm. {run.settings.exact_probes} images a seed, all logits.",
        ),
        report.CustomFigure(
            draw_kernels, per_case=False, name="kernels", alt="kernels of finite networks and of infinitely wide ones as images",
            caption="Kernels at initialisation, averaged over logits, each scaled to its largest entry: the 2 x 2 of skip connections and "
            "BatchNorm (stored statistics) at every width and at infinite width.",
        ),
        report.SeedCurves(
            lambda m: m.train.train_loss.isel(decay=0), where=is_trained, by="width", labels=lambda width: f"width {width}", log=True,
            share_y=True, legend="each", title=short_name, ylabel="training loss", name="loss",
            alt="training loss along training for each width",
            caption=lambda run: f"Training loss at the smallest weight decay; kernels are compared where it first is at most "
            f"{run.settings.target_loss:g}.",
        ),
    ),
    tables=(
        report.MeanTable(
            comparisons, rows=("statistics", "decay", "width"), headings=("network", "weight-decay time", "width"), row_names=row_name,
            section="Kernels at the target loss", not_finite=departure.NOT_REACHED,
            caption="At the target loss against before training; means and 95 % intervals over seeds. Correlations on pairs of images are "
            "shown and judge no claim: those of unrelated networks differ from seed to seed by as much as 1 minus their mean.",
        ),
        report.CustomTable(
            departure.departure_table, per_case=False, section="Distance of trained networks to exact kernels",
        ),
        report.CustomTable(
            departure.interaction_table, per_case=False, section="Distance of trained networks to exact kernels",
        ),
        report.MeanTable(
            trainings, rows=("decay", "width"), headings=("network", "weight-decay time", "width"),
            row_names=lambda m, decay, width: (m.name, decay, width), section="What was trained", not_finite=departure.NOT_REACHED,
            caption="Means and 95 % intervals over seeds.",
        ),
        report.MeanTable(
            distances, rows=("statistics", "width"), headings=("network", "width"), row_names=row_name,
            section="Distance to the exact kernel",
            caption="Kernels of fresh networks against the network's own exact kernel; means and 95 % intervals over seeds. The tail is 1 "
            "where norms of normalised channels do not fluctuate; single networks scatter by its root.",
        ),
        report.MeanTable(
            predictions, headings=("network", "images"),
            row_names=lambda m: (m.name, m.case.regression), section="What the kernels predict",
            caption="Test accuracy of kernel regression on so many training and test images of seed 0, the ridge chosen on validation "
            "images, beside that of the trained networks, which see all training images. The dense chain has three hidden layers, with and "
            "without BatchNorm; the statistics of a batch are those of all images.",
        ),
    ),
    method=METHOD,
)  # fmt: skip
