"""Is a small norm what makes weight decay work? Paper: "Truth or Backpropaganda?", Tables 2 and 3.

For each case two stages. ``tune`` tries every setting of both regularisers on each seed's own split and takes the best by validation
accuracy; ``compare`` trains all arms with other random numbers and evaluates them, once, on the test set. All runs of a case are one
compiled program: an arm is a coefficient and a norm.
"""

import functools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy
import xarray as xr

from experiments import papers
from experiments.norm_bias import claims
from experiments.norm_bias.settings import (
    ARMS,
    BIAS,
    BIASES,
    DECAY,
    DECAYS,
    FIXED_DECAY,
    KNOWN_DECAY,
    NONE,
    NORM_RATIOS,
    OTHER_ORDER,
    Case,
    Settings,
)
from jaxbp import data, lab, metrics, models, norms, report, stability, training
from jaxbp.claims import Above, Within
from jaxbp.data import augment

Arm = dict[str, Any]
_SALT = zlib.crc32(b"norm_bias, every seed tunes, 2")  # random numbers that no earlier run has used


def arm(coefficient: float = 0.0, ratio: float = 0.0, order: int = 0, tuned: str = "") -> Arm:
    """The arguments of a run by which arms differ.

    Args:
      coefficient, ratio: norm-bias pulls the norm to ``ratio`` times the initial norm; at 0 it is weight decay.
      order: runs of another order shuffle the batches otherwise.
      tuned: the regulariser whose coefficient and ratio, as tuned on the seed, are added.
    """
    return {"coefficient": coefficient, "ratio": ratio, "order": order, "chosen": [float(tuned == name) for name in (DECAY, BIAS)]}


@functools.lru_cache(maxsize=4)
def load(case: Case, settings: Settings) -> tuple[data.Split, int, data.Dataset]:
    """All examples that seeds draw from, the number of those that may be trained on, and the data set."""
    dataset = data.load(case.dataset, seed=0, normalise=case.normalise, validation=0, data_dir=settings.data_dir)
    both = (dataset.train, dataset.test)
    pool = data.Split(np.concatenate([split.inputs for split in both]), np.concatenate([split.labels for split in both]))
    return pool, len(dataset.train.labels), dataset


def split(case: Case, settings: Settings, seed: int) -> dict[str, np.ndarray]:
    """The examples of a seed's parts, as rows of the pool. A test part that belongs to the data set is the same for all seeds."""
    pool, num_train, dataset = load(case, settings)
    rows = np.arange(len(pool.labels))
    if not dataset.fixed_test:
        rows = data.stratified_indices(pool.labels, len(rows), seed=seed + _SALT % 2**31)
    outside = rows[:num_train][data.stratified_indices(pool.labels[rows[:num_train]], num_train, seed=seed)]
    num_validation = round(settings.validation * num_train)
    train = outside[num_validation:]
    return {"train": train[: settings.num_train], "validation": outside[:num_validation], "test": rows[num_train:]}


@functools.cache
def network(case: Case, num_classes: int) -> models.Network:
    """The network of a case."""
    return models.create(case.model, num_classes=num_classes, width=case.width, **dict(case.options))


def train(
    key: jax.Array, inputs: jax.Array, *, labels: jax.Array, rows: jax.Array, tuned: jax.Array, coefficient: jax.Array, ratio: jax.Array,
    order: jax.Array, chosen: jax.Array, case: Case, settings: Settings, num_classes: int, fill: tuple[float, ...],
) -> tuple[dict[str, Any], tuple]:  # fmt: skip
    """One run on the examples ``rows`` of the pool: curves along training, and the trained parameters and state.

    ``tuned`` (2, 2) holds the coefficients and ratios of both regularisers, for the arms that have ``chosen`` one; see `arm`.
    """
    coefficient, ratio = jnp.stack([coefficient, ratio]) + chosen @ tuned
    net = network(case, num_classes)
    init_key, train_key = jax.random.split(key)
    start = net.init(init_key, inputs[rows[:1]])
    unit = jnp.sqrt(norms.squared_norm(start[0]))
    steps = training.num_steps(rows.shape[0], settings.num_epochs, settings.batch_size)
    regulariser = norms.norm_bias(coefficient, ratio * unit)
    sgd = training.sgd(case.learning_rate, momentum=settings.momentum, decay_steps=steps, regulariser=regulariser)
    result = training.train(
        net,
        optax.chain(sgd, norms.track_angular_updates()),
        (inputs[rows], labels),
        jax.random.fold_in(train_key, order),
        training.Settings(
            num_epochs=settings.num_epochs,
            batch_size=settings.batch_size,
            measure_epochs=settings.measure_epochs,
            augment_fn=augment.crop_and_flip(settings.crop, flip=settings.flip, fill=fill) if settings.crop else None,
        ),
        start=start,
        measure_fn=functools.partial(measure_norms, optax.cosine_decay_schedule(case.learning_rate, steps)),
    )
    curves = {"train_loss": result.history["train_loss"], **result.measured}
    return {name: lab.along("epoch", curve) for name, curve in curves.items()} | {"unit": unit}, (result.params, result.state)


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


def train_all(
    case: Case, settings: Settings, arms: Mapping[Any, Arm], seeds: Sequence[int], part: str, tuned: np.ndarray | float = 0.0
) -> xr.Dataset:
    """All arms on all seeds, paired; accuracy in per cent on a ``part`` of the data, and curves along training.

    ``tuned`` (S, 2, 2) are the coefficients and ratios of both regularisers on each seed.
    """
    pool, _, dataset = load(case, settings)
    splits = [split(case, settings, settings.leader(seed)) for seed in seeds]
    noisy = [noisy_labels(case, settings, settings.leader(seed)) for seed in seeds]
    keys = jnp.stack([run_key(case, seed, part) for seed in seeds])
    black = (0.0,) if dataset.mean is None else tuple((-dataset.mean / dataset.std).tolist())
    fn = functools.partial(train, case=case, settings=settings, num_classes=dataset.num_classes, fill=black)
    rows = np.stack([parts["train"] for parts in splits])
    results, ends = lab.sweep(
        fn,
        arms=arms,
        seeds=seeds,
        keys=keys,
        per_seed={
            "rows": rows,
            "labels": np.stack([labels[index] for labels, index in zip(noisy, rows, strict=True)]),
            "tuned": np.broadcast_to(np.float32(tuned), (len(seeds), 2, 2)),
        },
        plan="loop" if lab.device().platform == "cpu" else "vmap",
        shared=(jnp.asarray(pool.inputs),),
    )
    net, accuracies = network(case, dataset.num_classes), np.empty((len(arms), len(seeds)))
    for seed, (parts, labels) in enumerate(zip(splits, noisy, strict=True)):
        inputs, wanted = jnp.asarray(pool.inputs[parts[part]]), jnp.asarray((pool.labels if part == "test" else labels)[parts[part]])
        for number in range(len(arms)):
            end = jax.tree.map(lambda leaf, at=(number, seed): leaf[at], ends)
            accuracies[number, seed] = accuracy(net, *end, inputs, wanted)
    results["accuracy"] = ("arm", "seed"), accuracies
    return results.assign_coords(epoch=list(settings.measure_epochs))


def run_key(case: Case, seed: int, part: str) -> jax.Array:
    """The key of a seed's runs, one for tuning and another for the comparison."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(f"{case.name}, {part}".encode()) ^ _SALT)


def noisy_labels(case: Case, settings: Settings, seed: int) -> np.ndarray:
    """Labels of the pool, a share of them replaced by another class; of the share, the same examples at any size of the share."""
    pool, _, dataset = load(case, settings)
    noise = stability.draw_label_noise(jax.random.fold_in(jax.random.key(seed), _SALT), len(pool.labels), dataset.num_classes)
    return np.asarray(stability.apply_label_noise(noise, pool.labels, case.label_noise, dataset.num_classes))


@functools.partial(jax.jit, static_argnums=0)
def accuracy(net: models.Network, params: Any, state: Any, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Accuracy in per cent; non-finite logits count as wrong."""
    logits = training.within_memory(lambda x: net.apply(params, x, state), inputs)
    return 100 * metrics.accuracy(logits, labels).mean()


def _at_end(results: xr.Dataset) -> xr.Dataset:
    return results.isel(epoch=-1, drop=True)


def _at_end(results: xr.Dataset) -> xr.Dataset:
    return results.isel(epoch=-1, drop=True)


def settings_tried(num_settings: int) -> dict[str, list[tuple[float, float]]]:
    """Coefficients and ratios that each regulariser is tuned over, as many for each, spread over the logarithms of their ranges."""
    low, high = np.log([BIASES, NORM_RATIOS]).T
    points = scipy.stats.qmc.Sobol(2, rng=0).random_base2((num_settings - 1).bit_length())[:num_settings]
    pairs = np.exp(scipy.stats.qmc.scale(points, low, high)).tolist()
    return {DECAY: [(c, 0.0) for c in np.geomspace(*DECAYS, num_settings).tolist()], BIAS: [tuple(pair) for pair in pairs]}


def tune(case: Case, settings: Settings, seed: tuple[int, ...]) -> xr.Dataset:
    """Validation accuracy of every setting, (arm, setting, seed), and the setting that won on each seed, (arm, seed)."""
    tried = settings_tried(settings.num_settings)
    arms = {(name, number): arm(*pair) for name, pairs in tried.items() for number, pair in enumerate(pairs)}
    leaders = list(dict.fromkeys(settings.leader(number) for number in seed))
    runs = train_all(case, settings, dict(enumerate(arms.values())), leaders, "validation")
    shape = (len(tried), settings.num_settings, len(leaders))
    accuracies, reached = (values.values.reshape(shape) for values in (runs.accuracy, _at_end(runs).norm / runs.unit))
    best = accuracies.argmax(1)  # the first of equals
    chosen = np.stack([np.array(pairs)[row] for pairs, row in zip(tried.values(), best, strict=True)])
    axes = ("arm", "setting", "seed")
    results = xr.Dataset(
        {
            "accuracy": (axes, accuracies),
            "reached": (axes, reached),
            "wanted": (axes[:2], np.array(list(tried.values()))[..., 1]),
            "best_accuracy": (("arm", "seed"), accuracies.max(1)),
            "chosen": (("arm", "seed", "number"), chosen),
        },
        {"arm": list(tried), "setting": range(settings.num_settings), "number": ["coefficient", "ratio"], "seed": leaders},
    )
    return results.sel(seed=[settings.leader(number) for number in seed]).assign_coords(seed=list(seed))


def compare(case: Case, settings: Settings, tuned: xr.Dataset, seed: tuple[int, ...]) -> xr.Dataset:
    """Test accuracy, (arm, seed), and curves along training, (arm, seed, epoch)."""
    arms = {NONE: arm(), DECAY: arm(tuned=DECAY), BIAS: arm(tuned=BIAS), OTHER_ORDER: arm(order=1), FIXED_DECAY: arm(KNOWN_DECAY)}
    if case.published:
        squared_norm, coefficient, usual = case.published
        arms[f"{DECAY}, published"] = arm(usual)
        arms[f"{BIAS}, published"] = arm(coefficient, squared_norm**0.5 / initial_norm(case, settings))
    return train_all(case, settings, arms, seed, "test", tuned.chosen.transpose("seed", "arm", "number").values)


def initial_norm(case: Case, settings: Settings) -> float:
    """The norm of the case's network at initialisation, of one key; keys differ by a fraction of a percent."""
    pool, _, dataset = load(case, settings)
    params, _ = network(case, dataset.num_classes).init(jax.random.key(_SALT), jnp.asarray(pool.inputs[:1]))
    return float(jnp.sqrt(norms.squared_norm(params)))


def of_tunings(m: Any, values: xr.DataArray) -> xr.DataArray:
    """The means over the seeds that share a tuning, which is the unit of replication."""
    leaders = [m.settings.leader(seed) for seed in values.seed.values.tolist()]
    return values.assign_coords(seed=leaders).groupby("seed").mean()


def gain(first: str, over: str) -> Any:
    """Test accuracy of an arm minus that of another, percentage points within pairs, a value a tuning."""

    def measure(m: Any) -> xr.DataArray:
        accuracy = m.compare.accuracy
        return of_tunings(m, accuracy.sel(arm=first, drop=True) - accuracy.sel(arm=over, drop=True))

    return measure


def norm_ratio(m: Any) -> xr.DataArray:
    """log2 of the final norm with norm-bias over that with weight decay."""
    norm = _at_end(m.compare).norm
    with np.errstate(divide="ignore", invalid="ignore"):
        return of_tunings(m, np.log2(norm.sel(arm=BIAS, drop=True) / norm.sel(arm=DECAY, drop=True)))


def draw_norms_wanted(run: lab.Run) -> Any:
    """Validation accuracy in tuning over the norm at which runs ended, a dot a run, a panel a case."""
    fig, axes = report.panels([m.name for m in run.cases])
    for ax, m in zip(axes, run.cases, strict=True):
        with report.style():
            for name in (DECAY, BIAS):
                colour = report.PALETTE[ARMS.index(name)]  # as in the other figures
                runs = m.tune.sel(arm=name)
                ax.plot(runs.reached.values.ravel(), runs.accuracy.values.ravel(), "o", color=colour, alpha=0.5, markersize=3, label=name)
            ax.set(xscale="log", xlabel="final norm / initial norm", ylabel="validation accuracy, %")
            report.label_log_axis(ax.xaxis)
    axes[0].legend()
    return fig


def along_training(variable: str, epochs: slice = slice(None)) -> Any:
    """The curves of the three arms."""
    return lambda m: m.compare[variable].sel(arm=list(ARMS)).isel(epoch=epochs)


def published(m: Any) -> xr.DataArray | None:
    """Test accuracies of the arms with the paper's numbers, if the case has such arms."""
    return m.compare.accuracy.isel(arm=slice(-2, None)) if m.case.published else None


def differences(m: Any) -> dict[str, xr.DataArray]:
    """Paired differences of test accuracy by heading."""
    return {f"{first} - {over}": gain(first, over)(m) for first, over in ((DECAY, NONE), (BIAS, NONE), (BIAS, DECAY))}


def ends(m: Any) -> xr.DataArray:
    """Training loss and norms at the end of training, by heading."""
    names = {"train_loss": "train loss", "norm": "norm of all parameters", "kernel_norm": "norm of all kernels"}
    return _at_end(m.compare)[list(names)].sel(arm=list(ARMS)).rename(names).to_dataarray("measure")


def choices(m: Any) -> dict[str, xr.DataArray]:
    """What tuning chose on each seed, and the validation accuracies there."""
    chosen, best = m.tune.chosen, m.tune.best_accuracy
    return {
        "log10 of weight decay": np.log10(chosen.sel(arm=DECAY, number="coefficient", drop=True)),
        "log10 of norm-bias": np.log10(chosen.sel(arm=BIAS, number="coefficient", drop=True)),
        "mu / initial norm": chosen.sel(arm=BIAS, number="ratio", drop=True),
        **{f"validation accuracy, {name}": best.sel(arm=name, drop=True) for name in (DECAY, BIAS)},
    }


def paper_accuracies(m: Any) -> str | None:
    """The paper's accuracies of the three arms."""
    return " / ".join(f"{value:.2f}" for value in m.case.paper) if m.case.paper else None


def over_blocks(case: Case, settings: Settings) -> dict[str, Any]:
    """The seeds, a job a block."""
    return {"seed": settings.seed_blocks}


def runs_of(number_fn: Any) -> Any:
    """The cost of a stage with so many runs on each seed."""
    return lambda case, settings, seed: case.cost * len(seed) * number_fn(case, settings)


def is_noisy(case: Case) -> bool:
    """Whether labels are replaced, so that there is something to regularise."""
    return case.label_noise > 0


CONTROLS = (
    lab.Control(
        "positive",
        "An MLP trained on noisy labels gains by a weight decay that is known to help.",
        "test accuracy with that weight decay minus without, percentage points",
        Above(0.5),
        gain(FIXED_DECAY, NONE),
        where=lambda case: is_noisy(case) and case.model == "mlp",
        smallest_effect=2.0,
    ),
    lab.Control(
        "negative",
        "Two runs without regulariser that differ in the order of the data alone are alike.",
        "test accuracy in the other order minus in the first, percentage points",
        Within(0.5),
        gain(OTHER_ORDER, NONE),
    ),
)

METHOD = (
    "Norm-bias adds lambda sign(||theta||^2 - mu^2) theta to the gradient, over all parameters, normalisation and biases too: the gradient "
    "of lambda / 2 times the paper's penalty, as in its code. Weight decay is norm-bias with mu = 0, to the last bit.",
    "Every seed draws its own split, trains every setting of both regularisers on it, as many for each, and takes the best by validation "
    "accuracy; the variance of tuning is therefore in the intervals. Norm-bias's mu is a multiple of the initial norm. The learning "
    "rate, its cosine decay to 0 and all else are alike. Each final run touches the test set once, with random numbers of its own.",
    "Arms of one seed share data, initial parameters and the order of the data, so differences are paired. Worse by less than "
    f"{claims.MARGIN} percentage points counts as at least as good. Claims about norm-bias are tested where weight decay helps.",
    "Label noise replaces labels of training and validation examples by another class; test labels are clean.",
    "Layers followed by BatchNorm do not change when their kernel is scaled. Their norm acts through the step size alone: the angle "
    "by which a step turns a kernel, and the learning rate over the kernel's squared norm.",
)

STUDY = lab.Study(
    id="S2",
    title="Is a small norm what makes weight decay work?",
    lead="Weight decay pulls parameters towards zero, and is said to help because solutions of small norm generalise. Norm-bias pulls "
    "their norm to any value wanted, a large one too. On every seed both are tuned on validation data with the same budget and compared "
    "with each other and with no regulariser, on clean labels and on noisy ones.",
    module="experiments.norm_bias",
    paper=papers.TRUTH,
    stages=(
        lab.Stage(tune, over=over_blocks, cost=runs_of(lambda case, settings: 2 * settings.num_settings)),
        lab.Stage(compare, over=over_blocks, needs=(tune,), cost=runs_of(lambda case, settings: 7 if case.published else 5)),
    ),
    measures=(
        lab.Measure(claims.S2A, gain(DECAY, NONE)),
        lab.Measure(claims.S2B, gain(BIAS, DECAY)),
        lab.Measure(claims.S2C, gain(BIAS, DECAY)),
        lab.Measure(claims.S2D, gain(BIAS, DECAY), where=lambda case: not case.batch_norm),
        lab.Measure(claims.S2E, norm_ratio),
    ),
    controls=CONTROLS,
    figures=(
        report.SeedStrip(
            "compare.accuracy", show=ARMS, joined=True, xlabel="test accuracy, %", name="accuracy",
            alt="test accuracy of the three arms, pairs joined",
            caption="Test accuracy of each arm at the end of training. Lines join runs that share data, initial parameters and the order "
            "of the data; bars are means with 95 % intervals.",
        ),
        report.CustomFigure(
            draw_norms_wanted, per_case=False, name="target_norm", alt="validation accuracy against the norm at the end of training",
            caption="Every run of tuning: validation accuracy over the norm at which the run ended, relative to the initial norm. "
            "Norm-bias pulls to norms from a fifth to one and a half times the initial one.",
        ),
        report.SeedCurves(
            along_training("norm"), log=True, ylabel="norm", name="norm", alt="norm of the parameters along training",
            caption=f"Norm of all parameters along training, by arm: what {DECAY} and {BIAS} make of it.",
        ),
        report.SeedCurves(  # the learning rate is 0 after the last step
            along_training("effective_learning_rate", slice(-1)), log=True, ylabel="effective learning rate",
            name="effective_rate", alt="effective learning rate along training",
            caption="Learning rate over the squared norm of a kernel, geometric mean over kernels: what a step amounts to in layers that "
            "BatchNorm follows, which do not change when their kernel is scaled. It falls to 0 with the learning rate.",
        ),
        report.SeedCurves(  # no step has been made at epoch 0
            along_training("angle", slice(1, None)), log=True, ylabel="angle of a step, radians", name="angle",
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
        report.MeanTable(choices, section="What tuning chose", caption="Over seeds, each of which tunes for itself."),
    ),
    method=METHOD,
)  # fmt: skip
