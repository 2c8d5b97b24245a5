"""The stage of the study: the arms of one seed under one kind of training.

The base network is trained and fine-tuned once for each arm, and each outcome is measured: ranks of layers, accuracy, and the accuracy that
attacks leave. Ranks are those of the circular operators with true strides and map sizes, in which RankMin and RankMax project.
"""

import functools
import itertools
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from experiments.rank_robustness.settings import ADVERSARIAL, ALL_ARMS, ARMS, OTHER_WAY, UNTRAINED, Case, Settings
from jaxbp import attacks, data, lab, metrics, models, spectra, training
from jaxbp.data import augment

_CURVE_STEPS = 20  # of PGD, as in the paper
_ANGLE = 0.3  # radians, of the rotation of output channels that leaves ranks as they are


@functools.lru_cache(maxsize=4)
def load(name: str, data_dir: Path | None) -> data.Dataset:
    """The data, raw: attacks are in the units of pixels, from 0 to 1."""
    return data.load(name, seed=0, validation=0, data_dir=data_dir)


def examples(case: Case, settings: Settings, part: str, count: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The seed's examples of a part, classes in proportion."""
    split = getattr(load(case.dataset, settings.data_dir), part)
    if count is None:
        return split.inputs, split.labels
    rows = data.stratified_indices(split.labels, count, seed=seed)
    return split.inputs[rows], split.labels[rows]


@functools.cache
def network(case: Case, settings: Settings) -> models.Network:
    """The network of a case, of raw pixels.

    Raises:
      lab.SettingsError: its data set cannot be attacked, or it has no layer whose rank could be moved.
    """
    dataset = load(case.dataset, settings.data_dir)
    pixels, most_targets = dataset.train.inputs, max(3, settings.num_targets)
    if pixels.min() < 0 or pixels.max() > 1:
        raise lab.SettingsError(
            f"inputs must lie from 0 to 1 to be attacked, got {pixels.min():.3g} to {pixels.max():.3g} in {case.dataset}: "
            "choose another data set"
        )
    if dataset.num_classes <= most_targets:
        raise lab.SettingsError(
            f"targeted attacks need more than {most_targets} classes, {case.dataset} has {dataset.num_classes}: choose another data set"
        )
    net = models.create(case.model, num_classes=dataset.num_classes, width=case.width, **dict(case.options))
    variables = jax.eval_shape(net.init, jax.random.key(0), pixels[:1])
    try:
        spectra.layers_of(
            lambda both, inputs: net.apply(both[0], inputs, both[1]), variables, pixels[:1], pattern=spectra.inner_convolutions
        )
    except ValueError as error:
        raise lab.SettingsError(f"{case.name} has no convolution after the first whose rank could be moved: choose another") from error
    moments = tuple(pixels.mean((0, 1, 2)).tolist()), tuple((pixels.std((0, 1, 2)) + 1e-6).tolist())
    return models.with_normalised_inputs(net, *moments)


@functools.partial(jax.jit, static_argnums=0)
def initialise(net: models.Network, key: jax.Array, inputs: jax.Array) -> tuple[Any, Any]:
    """Fresh parameters and state."""
    return net.init(key, inputs[:1])


@functools.partial(jax.jit, static_argnums=0)
def layer_spectra(net: models.Network, params: Any, inputs: jax.Array, state: Any) -> dict[str, spectra.Spectrum]:
    """Spectra of the convolutions that RankMin and RankMax treat."""
    apply_fn = functools.partial(net.apply, state=state)
    return spectra.of_network(apply_fn, params, inputs[:1], pattern=spectra.inner_convolutions, padding="circular")


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def train_base(
    net: models.Network, settings: Settings, adversarial: bool, start: tuple, split: tuple, key: jax.Array
) -> training.TrainResult:
    """The base network."""
    epochs = settings.num_epochs
    return _train(net, settings, adversarial, settings.learning_rate, start, split, key, num_epochs=epochs, measure_epochs=(epochs,))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def fine_tune(
    net: models.Network, settings: Settings, adversarial: bool, arm: jax.Array, start: tuple, split: tuple, key: jax.Array
) -> training.TrainResult:
    """An arm, given by its place in `projections`: one program serves all. Effective ranks, (epochs, layers), are measured."""
    (params, state), inputs = start, split[0]
    choices = projections(functools.partial(net.apply, state=state), params, inputs[:1], settings)

    def measure_ranks(now: training.TrainState) -> jax.Array:
        by_layer = layer_spectra(net, now.params, inputs, now.model_state)
        return jnp.stack([spectra.nuclear_rank(spectrum) for spectrum in by_layer.values()])

    return _train(
        net,
        settings,
        adversarial,
        settings.fine_tuning_rate,
        start,
        split,
        key,
        measure_ranks,
        num_epochs=settings.num_fine_tuning,
        measure_epochs=settings.measure_epochs,
        project_epochs=settings.project_epochs,
        project_fn=lambda p: jax.lax.switch(arm, choices, p),
    )


def projections(apply_fn: Callable, params: Any, inputs: jax.Array, settings: Settings) -> list[Callable[[Any], Any]]:
    """What is done to parameters in the arms `CONTROL`, `RANK_MIN`, `RANK_MAX` and `ROTATED`."""
    options = {"num_projections": settings.num_projections}
    lower = spectra.rank_min(apply_fn, params, inputs, **dict([settings.lower]), **options)
    cap = spectra.rank_max(apply_fn, params, inputs, **dict([settings.upper]), **options)
    treated = [layer.name for layer in spectra.layers_of(apply_fn, params, inputs, pattern=spectra.inner_convolutions)]
    return [lambda p: p, lambda p: _with_norms_of(p, lower(p)[0]), lambda p: _with_norms_of(p, cap(p)[0]), lambda p: _rotated(p, treated)]


def _with_norms_of(before: Any, after: Any) -> Any:
    """Arrays scaled to the norms that they had, which leaves effective ranks as they are."""

    def scaled(old: jax.Array, new: jax.Array) -> jax.Array:
        norm = jnp.linalg.norm(new.ravel())
        return jnp.where(norm > 0, new * (jnp.linalg.norm(old.ravel()) / jnp.where(norm > 0, norm, 1)), new)

    return jax.tree.map(scaled, before, after)


def _rotated(params: Any, names: Sequence[str]) -> Any:
    """Output channels of the layers turned by a fixed angle in random planes: another network, of the same singular values."""

    def turned(path: tuple, leaf: jax.Array) -> jax.Array:
        name = "/".join(str(part.key) for part in path)
        if name not in names:
            return leaf
        entries = jax.random.normal(jax.random.key(zlib.crc32(name.encode())), (leaf.shape[-1],) * 2, leaf.dtype)
        skew = entries - entries.T
        return leaf @ jax.scipy.linalg.expm(_ANGLE * skew / jnp.linalg.norm(skew, 2))

    return jax.tree_util.tree_map_with_path(turned, params)


def _train(
    net: models.Network,
    settings: Settings,
    adversarial: bool,
    rate: float,
    start: tuple,
    split: tuple,
    key: jax.Array,
    measure_fn: Callable | None = None,
    **options: Any,
) -> training.TrainResult:
    perturbation = attacks.pgd_training(attacks.Threat("linf", settings.radius), num_steps=settings.training_steps)

    def perturb(key: jax.Array, state: training.TrainState, inputs: jax.Array, labels: jax.Array) -> jax.Array:
        # As in the code of Madry et al., BatchNorm goes by the batch, whose statistics then are dropped.
        logits_fn = models.with_batch_statistics(net)
        return perturbation(key, lambda x: logits_fn(state.params, x, state.model_state), inputs, labels)

    steps = training.num_steps(len(split[1]), options["num_epochs"], settings.batch_size)
    optimizer = training.sgd(rate, momentum=settings.momentum, weight_decay=settings.weight_decay, decay_steps=steps)
    plan = training.Settings(
        batch_size=settings.batch_size,
        augment_fn=augment.crop_and_flip(settings.crop, flip=settings.flip) if settings.crop else None,
        perturb_fn=perturb if adversarial else None,
        **options,
    )
    return training.train(net, optimizer, split, key, plan, start=start, measure_fn=measure_fn)


def compare(case: Case, settings: Settings, *, training: str, seed: int) -> xr.Dataset:
    """The arms of one seed under one kind of training; accuracies in per cent, singular values largest first, NaN after the last."""
    net, adversarial = network(case, settings), training == ADVERSARIAL
    # The key is the same for both kinds of training and for all arms, so that they are paired.
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(f"{case.name}, recovery".encode()))
    start_key, order_key, tune_key, attack_key = jax.random.split(key, 4)
    inputs, labels = split = examples(case, settings, "train", settings.num_train, seed)
    fresh = initialise(net, start_key, inputs)
    base = train_base(net, settings, adversarial, fresh, split, order_key)
    start = base.params, base.state
    places = {name: place for place, name in enumerate(ALL_ARMS) if name != OTHER_WAY} | {OTHER_WAY: 0}
    tuned = [fine_tune(net, settings, adversarial != (name == OTHER_WAY), places[name], start, split, tune_key) for name in ALL_ARMS]
    by_weights = [layer_spectra(net, params, inputs, state) for params, state in (fresh, *((end.params, end.state) for end in tuned))]
    longest = max(len(spectrum.values) for spectrum in by_weights[0].values())
    networks = [jax.tree_util.Partial(net.apply, end.params, state=end.state) for end in tuned]
    radius, test = settings.judged_radius(training), examples(case, settings, "test", settings.num_test, seed)
    return xr.Dataset(
        {
            "train_loss": ("arm", [float(end.history["train_loss"][-1]) for end in tuned]),
            "train_accuracy": ("arm", [100 * float(metrics.accuracy(_logits(fn, inputs), labels).mean()) for fn in networks]),
            **under_attack(networks, settings, radius, *test, attack_key),
            "effective_rank": (("weights", "layer"), [[float(spectra.nuclear_rank(s)) for s in of.values()] for of in by_weights]),
            "effective_rank_along": (("arm", "epoch", "layer"), np.stack([np.asarray(end.measured) for end in tuned])),
            "singular_values": (("arm", "layer", "index"), [[_padded(s.values, longest) for s in of.values()] for of in by_weights[1:]]),
        },
        {
            "arm": list(ALL_ARMS),
            "weights": [UNTRAINED, *ALL_ARMS],
            "layer": list(by_weights[0]),
            "epoch": list(settings.measure_epochs),
            "radius": list(settings.curve),
        },
    )


def _padded(values: jax.Array, length: int) -> np.ndarray:
    return np.pad(np.sort(np.asarray(values))[::-1], (0, length - len(values)), constant_values=np.nan)


@jax.jit
def _logits(network_fn: Any, inputs: jax.Array) -> jax.Array:
    return training.within_memory(network_fn, inputs)


def under_attack(
    networks: list, settings: Settings, radius: float, inputs: np.ndarray, labels: np.ndarray, key: jax.Array
) -> Mapping[str, tuple]:
    """Test accuracy in per cent without attack, under PGD at the radii of the curve and under the strongest attack at ``radius``.

    The curve has the arms `ARMS` alone; it is NaN for the others.
    """
    evaluate = functools.partial(attacks.robust_accuracy, key=key, inputs=inputs, labels=labels, batch_size=settings.attack_batch)
    options = {"num_steps": settings.attack_steps, "num_targets": settings.num_targets, "num_queries": settings.num_queries}
    suite = attacks.autoattack(attacks.Threat("linf", radius), **options)
    strongest = [evaluate(network_fn, attacks=suite) for network_fn in networks]
    curve = np.full((len(networks), len(settings.curve)), np.nan)
    for number, size in itertools.product(range(len(ARMS)), range(len(settings.curve))):
        pgd = {"pgd": attacks.pgd(attacks.Threat("linf", settings.curve[size]), num_steps=_CURVE_STEPS)}
        curve[number, size] = 100 * evaluate(networks[number], attacks=pgd, check_masking=False).worst_case.estimate
    return {
        "test_accuracy": ("arm", [100 * evaluation.clean.estimate for evaluation in strongest]),
        "pgd_accuracy": (("arm", "radius"), curve),
        "robust_accuracy": ("arm", [100 * evaluation.worst_case.estimate for evaluation in strongest]),
        "masking_suspected": ("arm", [float(evaluation.masking_suspected) for evaluation in strongest]),
    }
