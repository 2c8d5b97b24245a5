"""Is a small norm what makes weight decay work? Paper: "Truth or Backpropaganda?", Tables 2 and 3.

For each case three stages: ``tune`` trains the unregularised network, whose final norm is the unit of norm-bias's norms, and tries both
grids on validation data; ``scan`` trains with the chosen coefficient and a range of norms; ``compare`` trains all arms on seeds of
their own and evaluates them, once, on the test set. All runs of a case are one compiled program: an arm is a coefficient and a norm.
"""

import functools
import itertools
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

from experiments.norm_bias import claims
from experiments.norm_bias.settings import ARMS, BIAS, DECAY, NONE, Case, Settings
from jaxbp import data, lab, metrics, models, norms, report, stats, training
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


def train_all(case: Case, settings: Settings, arms: Mapping[Any, Arm], seeds: range, part: str) -> xr.Dataset:
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
    """Validation accuracy of every setting of both regularisers, (setting, seed), and the settings that won, (arm,)."""
    plain = train_all(case, settings, {NONE: NO_REGULARISER}, settings.tuning_seeds, "validation")
    unit = float(np.mean(_at_end(plain).norm.values))
    grids = {
        DECAY: [{"coefficient": c, "mu": 0.0} for c in settings.decay_grid],
        BIAS: [{"coefficient": c, "mu": ratio * unit} for c, ratio in itertools.product(settings.bias_grid, settings.norm_ratios)],
    }
    tried = [(regulariser, arm) for regulariser, arms in grids.items() for arm in arms]
    arms = {f"{regulariser}, coefficient {arm['coefficient']:.3g}, mu {arm['mu']:.3g}": arm for regulariser, arm in tried}
    runs = train_all(case, settings, arms, settings.tuning_seeds, "validation").rename(arm="setting")
    means = runs.accuracy.values.mean(1)
    first = {DECAY: 0, BIAS: len(grids[DECAY])}
    best = {name: first[name] + int(np.argmax(means[first[name] :][: len(grids[name])])) for name in grids}  # the first of equals
    return xr.Dataset(
        {
            "accuracy": runs.accuracy,
            "final_norm": _at_end(runs).norm,
            "none_accuracy": plain.accuracy.sel(arm=NONE, drop=True),
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


def compare(case: Case, settings: Settings, tuned: xr.Dataset) -> xr.Dataset:
    """Test accuracy, (arm, seed), and curves along training, (arm, seed, epoch)."""
    arms = {NONE: NO_REGULARISER}
    arms |= {name: {key: float(tuned[key].sel(arm=name)) for key in ("coefficient", "mu")} for name in (DECAY, BIAS)}
    if case.published:
        squared_norm, coefficient, usual = case.published
        arms[f"{DECAY}, published"] = {"coefficient": usual, "mu": 0.0}
        arms[f"{BIAS}, published"] = {"coefficient": coefficient, "mu": squared_norm**0.5}
    return train_all(case, settings, arms, settings.seeds, "test")


def gain(arm: str, over: str) -> Any:
    """Test accuracy of an arm minus that of another, percentage points within pairs."""
    return lambda m: m.compare.accuracy.sel(arm=arm, drop=True) - m.compare.accuracy.sel(arm=over, drop=True)


def norm_ratio(m: Any) -> xr.DataArray:
    """log2 of the final norm with norm-bias over that with weight decay."""
    norm = _at_end(m.compare).norm
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log2(norm.sel(arm=BIAS, drop=True) / norm.sel(arm=DECAY, drop=True))
