"""Is a small norm what makes weight decay work? Paper: "Truth or Backpropaganda?", Tables 2 and 3.

For each case three stages: ``tune`` trains the unregularised network, whose final norm is the unit of norm-bias's norms, and tries both
grids on validation data; ``scan`` trains with the chosen coefficient and a range of norms; ``compare`` trains all arms on seeds of
their own and evaluates them, once, on the test set. All runs of a case are one compiled program: an arm is a coefficient and a norm.
"""

import functools
import itertools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

from experiments.norm_bias import claims
from experiments.norm_bias.settings import ARMS, BIAS, DECAY, NONE, Case, Settings
from jaxbp import data, lab, metrics, models, norms, report, training
from jaxbp.data import augment

Arm = dict[str, float]  # norm-bias of "coefficient" towards the norm "mu"; mu = 0 is weight decay
NO_REGULARISER: Arm = {"coefficient": 0.0, "mu": 0.0}


@functools.lru_cache(maxsize=4)
def load(case: Case, settings: Settings) -> data.Dataset:
    """The data, split alike for all seeds: no test example is ever validated on."""
    options = {"normalise": case.normalise, "validation": settings.validation, "data_dir": settings.data_dir}
    return data.load(case.dataset, seed=0, **options)


@functools.cache
def network(case: Case, num_classes: int) -> models.Network:
    """The network of a case."""
    return models.create(case.model, num_classes=num_classes, width=case.width, **dict(case.options))


def train(
    key: jax.Array, inputs: jax.Array, labels: jax.Array, *, rows: jax.Array, coefficient: jax.Array, mu: jax.Array,
    case: Case, settings: Settings, num_classes: int, fill: tuple[float, ...],
) -> tuple[dict[str, Any], tuple]:  # fmt: skip
    """One run on the examples ``rows``: curves along training, and the trained parameters and state."""
    steps = training.num_steps(rows.shape[0], settings.num_epochs, settings.batch_size)
    regulariser = norms.norm_bias(coefficient, mu)
    sgd = training.sgd(case.learning_rate, momentum=settings.momentum, decay_steps=steps, regulariser=regulariser)
    result = training.train(
        network(case, num_classes),
        optax.chain(sgd, norms.track_angular_updates()),
        (inputs[rows], labels[rows]),
        key,
        training.Settings(
            num_epochs=settings.num_epochs,
            batch_size=settings.batch_size,
            measure_epochs=settings.measure_epochs,
            augment_fn=augment.crop_and_flip(settings.crop, flip=settings.flip, fill=fill) if settings.crop else None,
        ),
        measure_fn=functools.partial(measure_norms, optax.cosine_decay_schedule(case.learning_rate, steps)),
    )
    curves = {"train_loss": result.history["train_loss"], **result.measured}
    return {name: lab.along("epoch", curve) for name, curve in curves.items()}, (result.params, result.state)


def measure_norms(rate_at: optax.Schedule, state: training.TrainState) -> dict[str, jax.Array]:
    """Norms, and what they do to layers that a normalisation follows: means over kernels, geometric for rates.

    A kernel that is 0, as Fixup starts some, has no effective rate.
    """
    rates = norms.effective_learning_rates(state.params, rate_at(optax.tree.get(state.opt_state, "count")))
    logarithms = jnp.where(jnp.isfinite(rates), jnp.log(rates), jnp.nan)
    return {
        "norm": jnp.sqrt(norms.squared_norm(state.params)),
        "kernel_norm": jnp.sqrt(norms.squared_norm(state.params, norms.kernels_only)),
        "effective_learning_rate": jnp.exp(jnp.nanmean(logarithms)),
        "angle": norms.angular_updates(state.opt_state).mean(),
    }


def train_all(case: Case, settings: Settings, arms: Mapping[Any, Arm], seeds: Sequence[int], part: str) -> xr.Dataset:
    """All arms on all seeds, paired; accuracy in per cent on a ``part`` of the data, and curves along training."""
    dataset = load(case, settings)
    labels = dataset.train.labels
    count = len(labels) if settings.num_train is None else settings.num_train
    rows = [np.arange(len(labels)) if count == len(labels) else data.stratified_indices(labels, count, seed=seed) for seed in seeds]
    keys = jnp.stack([jax.random.fold_in(jax.random.key(seed), zlib.crc32(case.name.encode())) for seed in seeds])
    black = (0.0,) if dataset.mean is None else tuple((-dataset.mean / dataset.std).tolist())
    fn = functools.partial(train, case=case, settings=settings, num_classes=dataset.num_classes, fill=black)
    results, ends = lab.sweep(
        fn, arms=arms, seeds=seeds, keys=keys, per_seed={"rows": np.stack(rows)}, plan="loop" if lab.device().platform == "cpu" else "vmap",
        shared=(jnp.asarray(dataset.train.inputs), jnp.asarray(labels)),
    )  # fmt: skip
    split = getattr(dataset, part)
    inputs, labels = jnp.asarray(split.inputs), jnp.asarray(split.labels)
    ends = [jax.tree.map(lambda leaf, at=at: leaf[at], ends) for at in np.ndindex(len(arms), len(seeds))]
    accuracies = [float(accuracy(network(case, dataset.num_classes), *end, inputs, labels)) for end in ends]
    results["accuracy"] = ("arm", "seed"), np.reshape(accuracies, (len(arms), len(seeds)))
    return results.assign_coords(epoch=list(settings.measure_epochs))


@functools.partial(jax.jit, static_argnums=0)
def accuracy(net: models.Network, params: Any, state: Any, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Accuracy in per cent; non-finite logits count as wrong."""
    return 100 * metrics.accuracy(net.apply(params, inputs, state), labels).mean()


def _at_end(results: xr.Dataset) -> xr.Dataset:
    return results.isel(epoch=-1, drop=True)


def tune(case: Case, settings: Settings) -> xr.Dataset:
    """Validation accuracy of every setting of both regularisers, (setting, tuning_seed), and the settings that won, (arm,)."""
    plain = train_all(case, settings, {NONE: NO_REGULARISER}, settings.tuning_seeds, "validation")
    unit = float(np.mean(_at_end(plain).norm.values))
    grids = {
        DECAY: [{"coefficient": c, "mu": 0.0} for c in settings.decay_grid],
        BIAS: [{"coefficient": c, "mu": ratio * unit} for c, ratio in itertools.product(settings.bias_grid, settings.norm_ratios)],
    }
    tried = [(regulariser, arm) for regulariser, arms in grids.items() for arm in arms]
    arms = {f"{regulariser}, coefficient {arm['coefficient']:.3g}, mu {arm['mu']:.3g}": arm for regulariser, arm in tried}
    runs = train_all(case, settings, arms, settings.tuning_seeds, "validation").rename(arm="setting", seed="tuning_seed")
    means = runs.accuracy.values.mean(1)
    first = {DECAY: 0, BIAS: len(grids[DECAY])}
    best = {name: first[name] + int(np.argmax(means[first[name] :][: len(grids[name])])) for name in grids}  # the first of equals
    return xr.Dataset(
        {
            "accuracy": runs.accuracy,
            "final_norm": _at_end(runs).norm,
            "none_accuracy": plain.accuracy.sel(arm=NONE, drop=True).rename(seed="tuning_seed"),
            "none_norm": unit,
            "coefficient": ("arm", [tried[best[name]][1]["coefficient"] for name in grids]),
            "mu": ("arm", [tried[best[name]][1]["mu"] for name in grids]),
            "best_accuracy": ("arm", [means[best[name]] for name in grids]),
        },
        {"arm": list(grids)},
    )


def scan(case: Case, settings: Settings, tuned: xr.Dataset) -> xr.Dataset:
    """Validation accuracy and final norm over the norm wanted, (ratio, seed), with norm-bias's chosen coefficient."""
    unit, coefficient = float(tuned.none_norm), float(tuned.coefficient.sel(arm=BIAS))
    arms = {ratio: {"coefficient": coefficient, "mu": ratio * unit} for ratio in settings.scan_ratios}
    runs = train_all(case, settings, arms, settings.tuning_seeds, "validation").rename(arm="ratio")
    return xr.Dataset({"accuracy": runs.accuracy, "reached": _at_end(runs).norm / unit})


def compare(case: Case, settings: Settings, tuned: xr.Dataset, seed: tuple[int, ...]) -> xr.Dataset:
    """Test accuracy, (arm, seed), and curves along training, (arm, seed, epoch)."""
    arms = {NONE: NO_REGULARISER}
    arms |= {name: {key: float(tuned[key].sel(arm=name)) for key in ("coefficient", "mu")} for name in (DECAY, BIAS)}
    if case.published:
        squared_norm, coefficient, usual = case.published
        arms[f"{DECAY}, published"] = {"coefficient": usual, "mu": 0.0}
        arms[f"{BIAS}, published"] = {"coefficient": coefficient, "mu": squared_norm**0.5}
    return train_all(case, settings, arms, seed, "test")


def gain(arm: str, over: str) -> Any:
    """Test accuracy of an arm minus that of another, percentage points within pairs."""
    return lambda m: m.compare.accuracy.sel(arm=arm, drop=True) - m.compare.accuracy.sel(arm=over, drop=True)


def norm_ratio(m: Any) -> xr.DataArray:
    """log2 of the final norm with norm-bias over that with weight decay."""
    norm = _at_end(m.compare).norm
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log2(norm.sel(arm=BIAS, drop=True) / norm.sel(arm=DECAY, drop=True))


def draw_scans(run: lab.Run) -> Any:
    """Validation accuracy (left axis) and the norm reached (squares, right axis) over the norm wanted, a panel a case."""
    fig, axes = report.panels([case_title(m) for m in run.cases])
    for ax, m in zip(axes, run.cases, strict=True):
        report.curve(ax, m.scan.ratio.values, m.scan.accuracy.transpose("seed", "ratio").values)
        with report.style():
            ax.set_ylabel("validation accuracy, %")
            ax.set_xlabel("norm wanted / norm without regulariser")
            right = ax.twinx()
            right.plot(m.scan.ratio, m.scan.reached.mean("seed"), "s:", color="#b3541e", markersize=3)
            right.set_ylabel("norm reached (squares)", color="#b3541e")
            right.grid(False)
    return fig


def along_training(variable: str, epochs: slice = slice(None)) -> Any:
    """The curves of the three arms."""
    return lambda m: m.compare[variable].sel(arm=list(ARMS)).isel(epoch=epochs)


def published(m: Any) -> xr.DataArray | None:
    """Test accuracies of the arms with the paper's numbers, if the case has such arms."""
    return m.compare.accuracy.isel(arm=slice(len(ARMS), None)) if m.case.published else None


def differences(m: Any) -> dict[str, xr.DataArray]:
    """Paired differences of test accuracy by heading."""
    return {f"{arm} - {over}": gain(arm, over)(m) for arm, over in ((DECAY, NONE), (BIAS, NONE), (BIAS, DECAY))}


def ends(m: Any) -> xr.DataArray:
    """Training loss and norms at the end of training, by heading."""
    names = {"train_loss": "train loss", "norm": "norm of all parameters", "kernel_norm": "norm of all kernels"}
    return _at_end(m.compare)[list(names)].sel(arm=list(ARMS)).rename(names).to_dataarray("measure")


def choices(m: Any) -> dict[str, float]:
    """The settings that tuning chose, and the mean validation accuracies of the tuning seeds."""
    tuned = m.tune
    return {
        "weight decay": float(tuned.coefficient.sel(arm=DECAY)),
        "validation accuracy with weight decay": float(tuned.best_accuracy.sel(arm=DECAY)),
        "norm-bias": float(tuned.coefficient.sel(arm=BIAS)),
        "mu / norm of none": float(tuned.mu.sel(arm=BIAS) / tuned.none_norm),
        "norm of none": float(tuned.none_norm),
        "validation accuracy with norm-bias": float(tuned.best_accuracy.sel(arm=BIAS)),
        "validation accuracy without either": float(tuned.none_accuracy.mean()),
    }


def choices_caption(run: Any) -> str:
    """How many settings and seeds tuning had."""
    return f"Chosen out of {len(run.settings.decay_grid)} settings each; tuning seeds: {run.settings.num_tuning_seeds}."


def paper_accuracies(m: Any) -> str | None:
    """The paper's accuracies of the three arms."""
    return " / ".join(f"{value:.2f}" for value in m.case.paper) if m.case.paper else None


def case_title(m: Any) -> str:
    """The case's name in a panel's title."""
    return m.name.removesuffix(" inputs")


def runs_of(stage: str) -> Any:
    """The number of trainings of a stage times the cost of each."""

    def cost(case: Case, settings: Settings, seed: tuple[int, ...] = ()) -> float:
        tuning, arms = settings.num_tuning_seeds, len(ARMS) + 2 * bool(case.published)
        number = {"tune": tuning * (1 + 2 * len(settings.decay_grid)), "scan": tuning * len(settings.scan_ratios)}
        return case.cost * number.get(stage, len(seed) * arms)

    return cost


METHOD = (
    "Norm-bias adds lambda sign(||theta||^2 - mu^2) theta to the gradient, over all parameters, normalisation and biases too: the gradient "
    "of lambda / 2 times the paper's penalty, as in its code. Weight decay is norm-bias with mu = 0, to the last bit.",
    "Each regulariser is tuned on validation data over the same number of settings and on seeds that are not used again; norm-bias's mu is "
    "a multiple of the norm at which the unregularised network ends. The learning rate, its cosine decay to 0 and all else are alike. "
    "The test set is touched once by each final run.",
    "Seeds draw training examples, initial parameters and the order of the data; arms of one seed share all three, so differences are "
    f"paired. Worse by less than {claims.MARGIN} percentage points counts as at least as good. A claim is supported only if it is in every "
    "case, which needs no correction for their number; p values in the table are adjusted by Holm.",
    "Layers followed by BatchNorm do not change when their kernel is scaled. Their norm acts through the step size alone: the angle "
    "by which a step turns a kernel, and the learning rate over the kernel's squared norm.",
)

STUDY = lab.Study(
    id="S2",
    title="Is a small norm what makes weight decay work?",
    lead="Weight decay pulls parameters towards zero, and is said to help because solutions of small norm generalise. Norm-bias pulls "
    "their norm to any value wanted, a large one too. Both are tuned on validation data with the same budget and compared with each "
    "other and with no regulariser, on paired seeds.",
    module="experiments.norm_bias",
    stages=(
        lab.Stage(tune, cost=runs_of("tune")),
        lab.Stage(  # the longer of the two comes first
            compare, over=lambda case, settings: {"seed": settings.seed_blocks}, needs=(tune,), cost=runs_of("compare"), group="tuned",
        ),
        lab.Stage(scan, needs=(tune,), cost=runs_of("scan"), group="tuned"),
    ),
    measures=(
        lab.Measure(claims.S2A, gain(DECAY, NONE)),
        lab.Measure(claims.S2B, gain(BIAS, DECAY)),
        lab.Measure(claims.S2C, gain(BIAS, DECAY)),
        lab.Measure(claims.S2D, gain(BIAS, DECAY), where=lambda case: not case.batch_norm),
        lab.Measure(claims.S2E, norm_ratio),
    ),
    controls=(),
    figures=(
        report.SeedStrip(
            "compare.accuracy", show=ARMS, joined=True, title=case_title, xlabel="test accuracy, %", name="accuracy",
            alt="test accuracy of the three arms, pairs joined",
            caption="Test accuracy of each arm at the end of training. Lines join runs that share data, initial parameters and the order "
            "of the data; bars are means with 95 % intervals.",
        ),
        report.CustomFigure(
            draw_scans, per_case=False, name="target_norm", alt="validation accuracy and final norm against the norm wanted",
            caption="Norm-bias with the coefficient chosen in tuning and a range of norms: validation accuracy (seeds thin) and the norm "
            "reached (squares, right axis), both relative to the norm at which the unregularised network ends.",
        ),
        report.SeedCurves(
            along_training("norm"), log=True, title=case_title, ylabel="norm", name="norm", alt="norm of the parameters along training",
            caption=f"Norm of all parameters along training, by arm: what {DECAY} and {BIAS} make of it.",
        ),
        report.SeedCurves(  # the learning rate is 0 after the last step
            along_training("effective_learning_rate", slice(-1)), log=True, title=case_title, ylabel="effective learning rate",
            name="effective_rate", alt="effective learning rate along training",
            caption="Learning rate over the squared norm of a kernel, geometric mean over kernels: what a step amounts to in layers that "
            "BatchNorm follows, which do not change when their kernel is scaled. It falls to 0 with the learning rate.",
        ),
        report.SeedCurves(  # no step has been made at epoch 0
            along_training("angle", slice(1, None)), log=True, title=case_title, ylabel="angle of a step, radians", name="angle",
            alt="angular update along training",
            caption="Angle by which a step turns the kernels, mean over kernels, along training: the effective learning rate at work.",
        ),
    ),
    tables=(
        report.MeanTable(
            "compare.accuracy", columns="arm", show=ARMS, section="Test accuracy",
            beside={"paper: none / weight decay / norm-bias": paper_accuracies},
            caption="Test accuracy in per cent; means and 95 % intervals over seeds.",
        ),
        report.MeanTable(
            published, columns="arm", section="Test accuracy",
            caption="Test accuracy in per cent with norm-bias as in the paper and the usual weight decay of each network.",
        ),
        report.MeanTable(
            differences, p_values=True, section="Paired differences",
            caption="Percentage points of test accuracy within pairs; means and 95 % intervals over seeds.",
        ),
        report.MeanTable(
            ends, columns="measure", rows=("arm",), section="Where training ended",
            caption="At the end of training; means and 95 % intervals over seeds.",
        ),
        report.MeanTable(choices, section="What tuning chose", caption=choices_caption),
    ),
    method=METHOD,
)  # fmt: skip
