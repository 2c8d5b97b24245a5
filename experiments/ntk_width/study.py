"""Do wide-network theories describe real networks? Paper: "Truth or Backpropaganda?", Figure 1.

What each claim is judged by, figures and tables; `experiments.ntk_width.measure` says how kernels are measured.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from experiments.ntk_width import claims
from experiments.ntk_width.measure import WIDEST, compare_with_exact, regress, train
from experiments.ntk_width.settings import STORED, Case
from jaxbp import lab, report, stats

Values = Callable[[Any], xr.DataArray]


def at_end(variable: str, **point: Any) -> Values:
    """A variable of the training at its last epoch, and at a point of its other axes."""
    return lambda m: m.train[variable].isel(epoch=-1, drop=True).sel(point, drop=True)


def distance(m: Any) -> xr.DataArray:
    """Relative distance of fresh networks' kernels to the exact kernel, (statistics, width, seed)."""
    return m.compare_with_exact.distance


def slopes(values_fn: Values, *, log_values: bool = False) -> Values:
    """Each seed's change per doubling of width; NaN for a seed that diverged, which then stands in the way of a verdict."""

    def fit(values: np.ndarray, widths: np.ndarray) -> np.ndarray:
        usable = np.isfinite(values).all(1) & ((values > 0).all(1) | (not log_values))
        fitted = np.full(len(values), np.nan)
        if usable.sum() >= 2:
            fitted[usable] = stats.slopes(widths, values[usable], log_values=log_values)
        return fitted

    def measure(m: Any) -> xr.DataArray:
        values, axes = values_fn(m), [["seed", "width"], ["width"]]
        return xr.apply_ufunc(fit, values, values.width, input_core_dims=axes, output_core_dims=[["seed"]], vectorize=True)

    return measure


correlation_slopes = slopes(at_end("correlation"))
stored_slopes = slopes(at_end("correlation", statistics=STORED))
exponents = slopes(distance, log_values=True)
plain_exponents = slopes(lambda m: distance(m).sel(statistics=STORED, drop=True), log_values=True)


def by_statistics(values: xr.DataArray, prefix: str = "") -> dict[str, xr.DataArray]:
    """The values (statistics, seed) of each kind of statistics by its name."""
    return report.split(values, "statistics", labels=lambda statistics: f"{prefix}{statistics} statistics")


def factorial(run: Any) -> dict[tuple[bool, bool], Any]:
    """The trained ResNets by skip connections and BatchNorm."""
    return {(m.case.skip, m.case.batch_norm): m for m in run.cases if m.case.trained and m.case.skip is not None}


def falls(run: Any) -> dict[str, xr.DataArray]:
    """`correlation_slopes` of the ResNet with skip connections and BatchNorm."""
    both = factorial(run).get((True, True))
    return by_statistics(correlation_slopes(both)) if both else {}


def interaction(run: Any) -> dict[str, xr.DataArray]:
    """Interaction of skip connections and BatchNorm in the slopes of the correlation."""
    of_cell = {cell: correlation_slopes(m) if cell[1] else stored_slopes(m) for cell, m in factorial(run).items()}
    if len(of_cell) < 4:
        return {}
    return by_statistics(of_cell[True, True] - of_cell[False, True] - of_cell[True, False] + of_cell[False, False])


def share_of_rescaling(m: Any) -> xr.DataArray:
    """Share of the squared change of the kernel that the best rescaling accounts for, mean over widths."""
    return at_end("share_of_rescaling", statistics=STORED)(m).mean("width", skipna=False)


def exponents_with_batch_norm(run: Any) -> dict[str, xr.DataArray]:
    """`exponents` of the networks with BatchNorm by case and statistics."""
    exact = [m for m in run.cases if m.case.exact and m.case.batch_norm]
    return {label: values for m in exact for label, values in by_statistics(exponents(m), f"{m.name}, ").items()}


def changes(m: Any) -> dict[str, xr.DataArray]:
    """The kernel's relative change, and what the best rescaling leaves of it."""
    change, share = (at_end(name, statistics=STORED)(m) for name in ("relative_change", "share_of_rescaling"))
    return {"all": change, "best rescaling taken out": change * np.sqrt((1 - share).clip(1e-12))}


def distances(m: Any) -> dict[str, xr.DataArray]:
    """Distances to the exact kernel by case and statistics."""
    short = m.name.removesuffix(", projections")
    return report.split(distance(m), "statistics", labels=lambda s: f"{short}, {s}" if m.case.batch_norm else short)


def add_rate_of_theory(ax: Any, m: Any) -> None:
    """The slope of width^(-1/2)."""
    report.slope_guide(ax, -0.5, "slope -1/2")
    ax.legend(fontsize=7)


def draw_kernels(run: Any) -> Any:
    """Kernels of one seed before and after training and the exact one, for an MLP and two ResNets, as images."""
    cells, mlps = factorial(run), [m for m in run.cases if m.case.trained and m.case.model == "mlp"]
    shown = [*mlps[:1], *(cells[cell] for cell in ((True, False), (True, True)) if cell in cells)]
    if not shown:
        return None
    start_and_end = [m.train.isel(width=-1)[name].values for m in shown for name in ("kernel_at_start", "kernel_at_end")]
    least = min(float(np.nanmin(kernel / np.abs(kernel).max())) for kernel in start_and_end)  # one scale for all panels
    fig, axes = report.figure(len(shown), 3, width=7.0, height=2.3 * len(shown), squeeze=False)
    for row, m in zip(axes, shown, strict=True):
        widest = m.train.isel(width=-1)
        exact = [like.compare_with_exact.exact.isel(width=-1) for like in run.cases if like.case.exact and _alike(like.case, m.case)]
        kernels = {"before": widest.kernel_at_start, "after": widest.kernel_at_end, "exact": exact[0] if exact else None}
        with report.style():
            for ax, (title, kernel) in zip(row, kernels.items(), strict=True):
                ax.grid(False)
                ax.set(xticks=[], yticks=[])
                ax.set_title(title, fontsize=9)
                if kernel is None:
                    ax.set_aspect("equal")  # an empty panel as large as the others
                    continue
                image = ax.imshow(kernel / np.abs(kernel).max(), cmap="cividis", interpolation="nearest", vmin=least, vmax=1)
            row[0].set_ylabel(f"{short_name(m)}\nwidth {m.case.widths[-1]}", fontsize=8)
    with report.style():
        fig.colorbar(image, ax=axes, label="entry / largest entry", shrink=0.8)
    return fig


def _alike(a: Case, b: Case) -> bool:
    return (a.model, a.skip, a.batch_norm, a.options[:1]) == (b.model, b.skip, b.batch_norm, b.options[:1])


def short_name(m: Any) -> str:
    """The case's name in a panel's title."""
    return m.name.replace("ResNet, ", "")


def row_name(m: Any, statistics: str, width: int) -> tuple[str, int]:
    """Name and width of a row, with the statistics where there are several."""
    return (f"{m.name}, {statistics}" if m.case.batch_norm else m.name), width


def trainings(m: Any) -> dict[str, xr.DataArray]:
    """What became of networks at the end of training, by heading."""
    return {
        "train loss": at_end("train_loss")(m),
        "test accuracy": at_end("test_accuracy")(m),
        "relative movement": m.train.relative_l2,
        "largest movement": m.train.l_inf,
        "correlation of features' distances": m.train.feature_correlation.sel(map="distance", drop=True),
        "effective rank": at_end("entropy_rank", statistics=STORED)(m),
    }


def predictions(m: Any) -> dict[str, Any]:
    """Test accuracies of regression with kernels and, where it was trained, of the widest network, by heading."""
    trained = at_end("test_accuracy")(m).isel(width=-1) if m.case.trained else None
    return report.split(m.regress.test_accuracy, "kernel") | {"network, widest, trained": trained}


def correlation_curves(where: Callable[[Case], bool], name: str, figure: str) -> report.SeedCurves:
    """A figure of the paper rebuilt: the correlation of kernels after and before training over width."""
    return report.SeedCurves(
        at_end("correlation", statistics=STORED), where=where, x="width", x_scale="log2", share_y=True, lines=1.0, title=short_name,
        name=name, ylabel="correlation", alt="correlation of kernels before and after training against width",
        caption=lambda run: f"{figure} of the paper rebuilt: Pearson correlation of the entries of the kernel after training with those "
        f"before, over width; {run.settings.num_probes} class-balanced images, all logits, BatchNorm with stored statistics. Thin lines "
        "are seeds, bands 95 % intervals.",
    )  # fmt: skip


METHOD = (
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
)
COMPARISONS = ("correlation", "cosine", "centred_alignment", "relative_change", "share_of_rescaling")
_DATA = ("dataset", "num_train")
_KERNEL = (*_DATA, "batch_size", "calibration_epochs", "memory")
_TRAINING = ("num_epochs", "measure_epochs", "learning_rate", "momentum", "weight_decay", "milestones", "decay", "num_probes")

STUDY = lab.Study(
    id="S3",
    title="Do wide-network theories describe real networks?",
    lead="As networks grow wide, theory says, their tangent kernel becomes that of an infinitely wide network and stops changing in "
    "training. Here the kernels of finite networks are measured before, during and after training over a range of widths, with and "
    "without BatchNorm and skip connections, and compared with the exact infinite-width kernels.",
    module="experiments.ntk_width",
    stages=(
        lab.Stage(
            train,
            over=lambda case, settings: {"width": case.widths, "seed": settings.groups},
            where=lambda case, settings: case.trained,
            cost=lambda case, settings, width, seed: case.cost(width) * max(settings.num_epochs * len(seed), 30),
            reads=(*_KERNEL, *_TRAINING),
            group="all",
        ),
        lab.Stage(
            compare_with_exact,
            over=lambda case, settings: {"width": case.widths, "seed": settings.seed_blocks},
            where=lambda case, settings: case.exact,
            cost=lambda case, settings, width, seed: 15 * case.cost(width),
            reads=(*_KERNEL, "exact_probes"),
            group="all",
        ),
        lab.Stage(
            regress,
            where=lambda case, settings: bool(case.regression),
            cost=lambda case, settings: 20 * case.cost(max(case.widths)),
            reads=(*_DATA, "memory"),
            group="all",
        ),
    ),
    measures=(
        lab.Measure(claims.S3A, stored_slopes, where=lambda case: case.trained and case.model in ("mlp", "convnet")),
        lab.Measure(claims.S3B, falls, across=True),
        lab.Measure(claims.S3C, interaction, across=True),
        lab.Measure(claims.S3D, share_of_rescaling, where=lambda case: case.trained),
        lab.Measure(claims.S3E, plain_exponents, where=lambda case: case.exact and not case.batch_norm),
        lab.Measure(claims.S3F, exponents_with_batch_norm, across=True),
    ),
    controls=(),
    figures=(
        correlation_curves(lambda case: case.skip is None, "correlation", "Figure 1a"),
        report.SeedCurves(
            changes, x="width", x_scale="log2", log=True, share_y=True, title=short_name, ylabel="relative change", name="relative_change",
            alt="relative change of the kernel against width",
            caption="Relative change of the kernel in training, in the Frobenius norm, and what is left of it when the kernel before "
            "training may be multiplied by the best number.",
        ),
        correlation_curves(lambda case: case.skip is not None, "factorial", "Figure 1b"),
        report.SeedCurves(
            at_end("correlation"), where=lambda case: bool(case.batch_norm), by="statistics", x="width", x_scale="log2", share_y=True,
            title=short_name, ylabel="correlation", name="statistics",
            alt="correlation against width for three kinds of BatchNorm statistics",
            caption="What BatchNorm's statistics make of it: stored (at initialisation mean 0 and variance 1, the paper's choice), "
            "calibrated on the training data without touching the parameters, and those of the probe images themselves, differentiated "
            "through.",
        ),
        report.SeedCurves(
            distances, x="width", x_scale="log2", log=True, stacked=True, height=7.6, ylabel="relative distance", name="exact_distance",
            title=lambda m: "with BatchNorm, to the twin without" if m.case.batch_norm else "without BatchNorm",
            decorate=add_rate_of_theory, alt="distance to the exact kernel against width on logarithmic axes",
            caption=lambda run: "Distance of the kernel at initialisation (NTK parametrisation) to the exact infinite-width kernel, "
            f"relative to its norm. {run.settings.exact_probes} images, all logits. With BatchNorm there is no exact kernel; the reference "
            "is that of the same network without.",
        ),
        report.CustomFigure(
            draw_kernels, per_case=False, name="kernels", alt="kernels before and after training and exact kernels as images",
            caption=lambda run: "Kernels of seed 0 averaged over logits, each scaled to its largest entry: before training, after, and "
            f"the exact one (on {run.settings.exact_probes} images of its own; with BatchNorm, that of the twin without).",
        ),
        report.SeedCurves(
            lambda m: m.train.correlation.sel(statistics=STORED), by="width", labels=lambda width: f"width {width}", x_scale="symlog",
            share_y=True, legend="each", title=short_name, ylabel="correlation with the start", name="evolution",
            alt="correlation with the initial kernel along training",
            caption="How the kernel leaves its value at initialisation along training: correlation with it at log-spaced epochs.",
        ),
    ),
    tables=(
        report.MeanTable(
            lambda m: {name.replace("_", " "): at_end(name)(m) for name in COMPARISONS},
            rows=("statistics", "width"), headings=("network", "width"), row_names=row_name, section="Kernels before and after training",
            caption="After training against before; means and 95 % intervals over seeds.",
        ),
        report.MeanTable(
            trainings, rows=("width",), headings=("network", "width"), row_names=lambda m, width: (m.name, width),
            section="What was trained", caption="At the end of training; means and 95 % intervals over seeds.",
        ),
        report.MeanTable(
            lambda m: m.compare_with_exact[["distance", "rescaled_distance"]].to_dataarray("measure"), columns="measure",
            labels={"distance": "relative distance", "rescaled_distance": "after the best rescaling"},
            rows=("statistics", "width"), headings=("network", "width"), row_names=row_name, section="Distance to the exact kernel",
            caption="Kernels of fresh networks against the exact kernel; means and 95 % intervals over seeds.",
        ),
        report.MeanTable(
            predictions, show=("NNGP, exact", "NTK, exact", WIDEST, "network, widest, trained"), headings=("network", "images"),
            row_names=lambda m: (m.name, m.case.regression), section="What the kernels predict",
            caption="Test accuracy of kernel regression on so many training and test images of seed 0, the ridge chosen on validation "
            "images, beside that of the trained networks, which see all training images.",
        ),
    ),
    method=METHOD,
)  # fmt: skip
