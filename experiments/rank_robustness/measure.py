"""The measurements of Study 4, as named pieces of work.

A piece is one seed of a network under one kind of training: the base network is trained, fine-tuned three times, and each outcome
is measured: ranks of its layers, accuracy, and what attacks leave of it. Ranks are those of the circular operators with true
strides and map sizes, in which RankMin and RankMax project.
"""

import functools
import itertools
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.rank_robustness.settings import ADVERSARIAL, ALONE, ARMS, RANK_MAX, RANK_MIN, TRAININGS, Case, Settings
from jaxbp import attacks, data, metrics, models, spectra, training
from jaxbp.data import augment
from jaxbp.lab import Piece, SettingsError
from jaxbp.runtime.store import Store

_CURVE_STEPS = 20  # of PGD, as in the paper


def piece_name(case: Case, kind: str, seed: int) -> str:
    """Name of a piece of work."""
    return f"{case.name}; {kind}; seed {seed}"


def pieces(settings: Settings, store: Store, data_dir: Path | None) -> list[Piece]:
    """All the work of the study, each piece on one device."""
    lab = Lab(settings, data_dir)
    todo = []
    # Seeds come first, so that workers beside each other compile the programs of different networks.
    for seed, kind, case in itertools.product(settings.seeds, TRAININGS, settings.cases):
        compute = functools.partial(lab.run, case, kind, seed)
        weight = 1.0 + settings.training_steps * (kind == ADVERSARIAL)
        todo.append(Piece(piece_name(case, kind, seed), compute, weight=weight, group="runs"))
    return sorted(todo, key=lambda piece: -piece.weight)


class _Programs(NamedTuple):
    """The compiled functions of a network, shared by all seeds."""

    start: Callable  # key, inputs -> params, state
    train: Callable  # params, state, inputs, labels, key -> TrainResult
    tune: Callable  # place of the arm, then likewise; ranks (epochs, layers) are measured
    spectra: Callable  # params, inputs, state -> spectra by layer
    logits: Callable  # params, inputs, state -> logits


class Lab:
    """The data, and the pieces of work on them."""

    def __init__(self, settings: Settings, data_dir: Path | None):
        self.settings, self.data_dir = settings, data_dir

    @functools.cache  # noqa: B019 - lives as long as the program
    def dataset(self, name: str) -> data.Dataset:
        """The data, raw: attacks are in the units of pixels, from 0 to 1."""
        return data.load(name, seed=0, validation=0, data_dir=self.data_dir)

    @functools.cache  # noqa: B019 - as above
    def programs(self, case: Case, kind: str) -> _Programs:
        """The programs of a network and a kind of training."""
        dataset = self.dataset(case.dataset)
        pixels = dataset.train.inputs
        if pixels.min() < 0 or pixels.max() > 1:
            raise SettingsError(
                f"inputs must lie from 0 to 1 to be attacked, got {pixels.min():.3g} to {pixels.max():.3g} in {case.dataset}: "
                "choose another data set"
            )
        if dataset.num_classes <= max(3, self.settings.num_targets):
            raise SettingsError(
                f"targeted attacks need more than {max(3, self.settings.num_targets)} classes, {case.dataset} has "
                f"{dataset.num_classes}: choose another data set"
            )
        moments = tuple(pixels.mean((0, 1, 2)).tolist()), tuple((pixels.std((0, 1, 2)) + 1e-6).tolist())
        return _programs(case, kind, self.settings, moments, dataset.num_classes)

    def run(self, case: Case, kind: str, seed: int) -> Mapping[str, np.ndarray]:
        """Everything about one seed: arrays over arms, and over layers, epochs or radii."""
        programs = self.programs(case, kind)
        inputs, labels = self._rows(case, "train", self.settings.num_train, seed)
        start_key, order_key, tune_key, attack_key = jax.random.split(self._key(case, seed), 4)
        fresh = programs.start(start_key, inputs)
        base = programs.train(*fresh, inputs, labels, order_key)
        start = base.params, base.state, inputs, labels, tune_key
        tuned = {arm: programs.tune(place, *start) for place, arm in enumerate(ARMS)}
        ends = {arm: (result.params, result.state) for arm, result in tuned.items()}
        found = {
            "loss": np.array([float(tuned[arm].history["train_loss"][-1]) for arm in ARMS]),
            "ranks along": np.stack([np.asarray(tuned[arm].measured) for arm in ARMS]),
            "untrained rank": _ranks(programs.spectra(fresh[0], inputs, fresh[1])),
        }
        by_layer = {arm: programs.spectra(params, inputs, state) for arm, (params, state) in ends.items()}
        found["rank"] = np.stack([_ranks(by_layer[arm]) for arm in ARMS])
        found["layers"] = np.array(list(by_layer[ALONE]))
        for arm in ARMS:
            found |= {f"values; {arm}; {name}": np.asarray(s.values) for name, s in by_layer[arm].items()}
        networks = {arm: jax.tree_util.Partial(programs.logits, params, state=state) for arm, (params, state) in ends.items()}
        trained = [self._accuracy(networks[arm], inputs, labels) for arm in ARMS]
        test = self._rows(case, "test", self.settings.num_test, seed)
        return found | {"train accuracy": np.array(trained)} | self._attacked(networks, *test, attack_key)

    def _attacked(self, networks: Mapping[str, Any], inputs: np.ndarray, labels: np.ndarray, key: jax.Array) -> dict[str, np.ndarray]:
        """Test accuracies in per cent: clean (arms,), under PGD (arms, radii) and the strongest attack (arms, 2)."""
        settings = self.settings
        evaluate = functools.partial(attacks.robust_accuracy, key=key, inputs=inputs, labels=labels, batch_size=settings.attack_batch)
        clean, curve, strongest, masked = [], [], [], []
        for arm in ARMS:
            of_radius = []
            for radius in settings.curve:
                pgd = attacks.pgd(attacks.Threat("linf", radius), num_steps=_CURVE_STEPS)
                of_radius.append(evaluate(networks[arm], attacks={"pgd": pgd}, check_masking=False))
            worst = [
                evaluate(
                    networks[arm],
                    attacks=attacks.autoattack_suite(
                        attacks.Threat("linf", radius), num_steps=settings.attack_steps,
                        num_targets=settings.num_targets, num_queries=settings.num_queries,
                    ),
                )
                for radius in (settings.small_radius, settings.radius)
            ]  # fmt: skip
            clean.append(100 * worst[0].clean.estimate)
            curve.append([100 * e.worst_case.estimate for e in of_radius])
            strongest.append([100 * e.worst_case.estimate for e in worst])
            masked.append([float(e.masking_suspected) for e in worst])
        found = {"clean": clean, "curve": curve, "strongest": strongest, "masked": masked}
        return {name: np.array(values) for name, values in found.items()}

    def _accuracy(self, network: Any, inputs: np.ndarray, labels: np.ndarray) -> float:
        return 100 * float(metrics.accuracy(_evaluate(network, inputs), labels).mean())

    def _rows(self, case: Case, part: str, count: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The seed's examples of a part, classes in proportion."""
        split = getattr(self.dataset(case.dataset), part)
        if count is None:
            return split.inputs, split.labels
        rows = data.stratified_indices(split.labels, count, seed=seed)
        return split.inputs[rows], split.labels[rows]

    def _key(self, case: Case, seed: int) -> jax.Array:
        """The same for both kinds of training and for all arms, so that they are paired."""
        return jax.random.fold_in(jax.random.key(seed), zlib.crc32(case.name.encode()))


@jax.jit
def _evaluate(network: Any, inputs: jax.Array) -> jax.Array:
    return network(inputs)


def _ranks(by_layer: Mapping[str, spectra.Spectrum]) -> np.ndarray:
    return np.array([float(spectra.nuclear_rank(spectrum)) for spectrum in by_layer.values()])


@functools.cache
def _spectra_fn(net: models.Network) -> Callable:
    """``(params, inputs, state) -> spectra of the treated layers``, compiled."""

    @jax.jit
    def by_layer(params: Any, inputs: jax.Array, state: Any) -> dict[str, spectra.Spectrum]:
        network = functools.partial(net.apply, state=state)
        return spectra.of_network(network, params, inputs[:1], pattern=spectra.inner_convolutions, padding="circular")

    return by_layer


def _projection(settings: Settings, network: Callable, params: Any, inputs: jax.Array, arm: Any) -> Callable:
    """``params -> params`` of an arm, given by its place in `ARMS`, which may be traced: one program serves all."""
    options = {"num_projections": settings.num_projections}
    lower = spectra.rank_min(network, params, inputs[:1], threshold=settings.threshold, **options)
    cap = spectra.rank_max(network, params, inputs[:1], ceiling=settings.ceiling, **options)
    branch = {ALONE: lambda p: p, RANK_MIN: lambda p: lower(p)[0], RANK_MAX: lambda p: cap(p)[0]}
    return lambda p: jax.lax.switch(arm, [branch[name] for name in ARMS], p)


@functools.cache
def _programs(case: Case, kind: str, settings: Settings, moments: tuple, num_classes: int) -> _Programs:
    net = models.create(case.model, num_classes=num_classes, width=case.width, **dict(case.options))
    net = models.with_normalised_inputs(net, *moments)
    by_layer = _spectra_fn(net)
    perturbation = attacks.pgd_training(attacks.Threat("linf", settings.radius), num_steps=settings.training_steps)

    def perturb(key: jax.Array, state: training.TrainState, inputs: jax.Array, labels: jax.Array) -> jax.Array:
        # As in the code of Madry et al., BatchNorm goes by the batch, whose statistics then are dropped.
        logits_fn = models.with_batch_statistics(net)
        return perturbation(key, lambda x: logits_fn(state.params, x, state.model_state), inputs, labels)

    def ranks(inputs: jax.Array, state: training.TrainState) -> jax.Array:
        found = by_layer(state.params, inputs, state.model_state)
        return jnp.stack([spectra.nuclear_rank(spectrum) for spectrum in found.values()])

    def train(
        num_epochs: int,
        rate: float,
        start: tuple,
        split: tuple,
        key: jax.Array,
        measure_fn: Callable | None = None,
        **options: Any,
    ) -> training.TrainResult:
        steps = training.num_steps(len(split[1]), num_epochs, settings.batch_size)
        plan = training.Settings(
            num_epochs=num_epochs,
            batch_size=settings.batch_size,
            augment_fn=augment.crop_and_flip(settings.crop, flip=settings.flip) if settings.crop else None,
            perturb_fn=perturb if kind == ADVERSARIAL else None,
            **options,
        )
        optimizer = training.sgd(rate, momentum=settings.momentum, weight_decay=settings.weight_decay, decay_steps=steps)
        return training.train(net, optimizer, split, key, plan, start=start, measure_fn=measure_fn)

    def base(params: Any, state: Any, inputs: Any, labels: Any, key: jax.Array) -> training.TrainResult:
        rate, epochs = settings.learning_rate, (settings.num_epochs,)
        return train(settings.num_epochs, rate, (params, state), (inputs, labels), key, measure_epochs=epochs)

    def tune(arm: jax.Array, params: Any, state: Any, inputs: Any, labels: Any, key: jax.Array) -> training.TrainResult:
        network = functools.partial(net.apply, state=state)
        return train(
            settings.num_fine_tuning,
            settings.fine_tuning_rate,
            (params, state),
            (inputs, labels),
            key,
            measure_epochs=settings.measure_epochs,
            measure_fn=functools.partial(ranks, inputs),
            project_epochs=settings.project_epochs,
            project_fn=_projection(settings, network, params, inputs, arm),
        )

    return _Programs(
        start=jax.jit(lambda key, inputs: net.init(key, inputs[:1])),
        train=jax.jit(base),
        tune=jax.jit(tune),
        spectra=by_layer,
        logits=net.apply,
    )
