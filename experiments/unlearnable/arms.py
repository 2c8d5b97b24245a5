"""The arms of a seed, each made when it is asked for: clean and perturbed data, raw and projected.

Arms come perturbation by perturbation, so that whoever lets go of one arm before the next has the data of one perturbation in memory.
"""

import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.unlearnable import trainings
from experiments.unlearnable.settings import FIRST_SEED, Case, Poison, Settings
from experiments.unlearnable.trainings import Arm
from jaxbp import attacks, data, training, unlearnable
from jaxbp.data import poisons

CUTMIX_SHARE = 0.5  # of the batches, as in the authors' defaults
LINEAR_STEPS = 49  # an epoch, as 1,024 of 50,000 images a step make in the paper
ROUNDS, ATTACK_STEPS, ATTACK_BATCH = 100, 250, 1024
RADIUS = 1.5  # of the frequencies of waves, radians a pixel


class Keys(NamedTuple):
    """Random keys of a case and seed: of each poison by name, of linear classifiers, and of trainings."""

    poisons: dict[str, jax.Array]
    linear: jax.Array
    train: jax.Array


def keys_of(case: Case, seed: int) -> Keys:
    """The keys of a case and seed."""
    key = jax.random.fold_in(jax.random.key(FIRST_SEED + seed), zlib.crc32(case.name.encode()))
    poison_key, linear_key, train_key = jax.random.split(key, 3)
    names = [poison.name for poison in case.poisons]
    return Keys(dict(zip(names, jax.random.split(poison_key, len(names)), strict=True)), linear_key, train_key)


def perturb(poison: Poison, key: jax.Array, split: data.Dataset, labels: np.ndarray, case: Case, settings: Settings) -> np.ndarray:
    """Perturbations of the training data, (N, H, W, C), for ``labels``, which are the data's but for the control."""
    inputs, shape, count = split.train.inputs, split.input_shape, split.num_classes
    if poison.kind == "patches":
        return poisons.class_patches(key, labels, shape, count, rms=poison.size, patch=poison.patch)
    if poison.kind == "one pixel":
        return poisons.one_pixel(inputs, labels, count)
    if poison.kind == "waves":
        angles, steps = np.pi * np.arange(count) / count, np.linspace(0.4, 2.8, count)
        turned = RADIUS * np.stack([np.cos(angles), np.sin(angles)], 1)
        return poisons.waves(key, labels, shape, turned if shape[1] > 1 else np.stack([steps, 0 * steps], 1), rms=poison.size)
    if poison.kind == "autoregressive":
        filter_key, start_key = jax.random.split(key)
        return poisons.autoregressive(start_key, labels, shape, poisons.ar_coefficients(filter_key, count, shape), rms=poison.size)
    return by_network(poison, key, split, case, settings)


def by_network(poison: Poison, key: jax.Array, split: data.Dataset, case: Case, settings: Settings) -> np.ndarray:
    """Perturbations made by the gradients of a network like the one that is to be trained."""
    net, (inputs, labels) = trainings.network(case, split.num_classes), split.train
    threat = attacks.Threat("linf", poison.size)
    if poison.kind.startswith("error-minimising"):
        options = {"threat": threat, "step_size": poison.size / 10, "batch_size": settings.batch_size, "max_rounds": ROUNDS}
        return poisons.error_minimising(
            key,
            net.init,
            lambda variables, x: net.update(variables[0], x, variables[1])[0],
            training.sgd(0.1, momentum=0.9),
            (inputs, labels),
            stop_error=0.1 if poison.kind.endswith("class-wise") else 0.01,
            per_class=poison.kind.endswith("class-wise"),
            **options,
        ).perturbation
    ((_, trained),) = trainings.in_turn([Arm(poison.name, inputs, labels)], key, case, settings, split.num_classes)
    attack = attacks.pgd(threat, num_steps=ATTACK_STEPS, targets="given")
    parts = [slice(first, first + ATTACK_BATCH) for first in range(0, len(inputs), ATTACK_BATCH)]
    logits_fn = jax.tree_util.Partial(lambda variables, x: net.apply(variables[0], x, variables[1]), trained.variables)
    return np.concatenate([poisons.adversarial(key, logits_fn, inputs[part], labels[part], attack) for part in parts])


def mixed(arm: str) -> str:
    """The name of an arm with CutMix."""
    return f"{arm}, CutMix"


def of_clean(split: data.Dataset, case: Case, settings: Settings, seed: int) -> Iterator[Arm]:
    """Clean data; the clean subset as often as all arms take as many steps; projected; and the control, whose labels say nothing."""
    (inputs, labels), keys = split.train, keys_of(case, seed)
    yield Arm("clean", inputs, labels, refitted=True)
    rows = np.arange(len(labels)) % num_clean(split, settings)
    yield Arm("subset", inputs[rows], labels[rows])
    _, span = _weights(inputs, labels, split.num_classes, keys.linear)
    yield Arm("clean, projected", unlearnable.project_out(inputs, span), labels, span)
    first, others = case.poisons[0], np.random.default_rng(seed).permutation(labels)
    shuffled = perturb(first, keys.poisons[first.name], split, others, case, settings)
    yield Arm("shuffled", poisons.apply(inputs, shuffled, *_box(case)).inputs, labels)


def of_poison(poison: Poison, split: data.Dataset, case: Case, settings: Settings, seed: int) -> Iterator[Arm]:
    """Perturbed data; projected; clean data projected alike; the first two with CutMix, too, where a case has it."""
    (inputs, labels), keys, name = split.train, keys_of(case, seed), poison.name
    perturbed, facts = _perturbed(poison, keys.poisons[name], split, case, settings)
    weights, span = _weights(perturbed, labels, split.num_classes, keys.linear)
    pictures = np.array([inputs[0], perturbed[0], facts.pop("first"), weights[:, 0].reshape(split.input_shape)])  # no view of a set
    yield Arm(name, perturbed, labels, refitted=True, facts=facts)
    if case.cutmix:
        yield Arm(mixed(name), perturbed, labels, cutmix=CUTMIX_SHARE)
    perturbed = unlearnable.project_out(perturbed, span)
    facts = {"pictures": np.concatenate([pictures, perturbed[:1]])}
    yield Arm(f"{name}, projected", perturbed, labels, span, facts=facts)
    if case.cutmix:
        yield Arm(mixed(f"{name}, projected"), perturbed, labels, cutmix=CUTMIX_SHARE)
    del perturbed
    yield Arm(f"clean, projected by {name}", unlearnable.project_out(inputs, span), labels, span)


def num_clean(split: data.Dataset, settings: Settings) -> int:
    """How many of the first examples, which have the classes in proportion, are kept clean."""
    return round(settings.clean_share * len(split.train.labels))


def _box(case: Case) -> tuple[float, float]:
    return (0.0, 1.0) if case.clip else (-np.inf, np.inf)


def _perturbed(poison: Poison, key: jax.Array, split: data.Dataset, case: Case, settings: Settings) -> tuple[np.ndarray, dict[str, Any]]:
    """Perturbed inputs, and what the perturbation is, the first one among it."""
    inputs, labels = split.train
    perturbed, perturbation, clipped = poisons.apply(inputs, perturb(poison, key, split, labels, case, settings), *_box(case))
    whole, half = separability(perturbation, labels, split.num_classes)
    facts = {"inseparable": float(whole.status == "inseparable"), "separable": float(whole.status == "separable")}
    facts |= {"linear_accuracy": 100 * half.fresh_accuracy, "clipped": clipped}
    facts["relative_size"] = poisons.budget(perturbation)["rms"] / inputs.std()
    return perturbed, facts | {"first": perturbation[0].copy()}


def _weights(inputs: np.ndarray, labels: np.ndarray, num_classes: int, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Weights of a linear classifier of a set, and a basis of what they span."""
    weights = unlearnable.linear_weights(inputs, labels, num_classes, key, batch_size=len(inputs) // LINEAR_STEPS)
    return np.asarray(weights), unlearnable.projection(weights)


def separability(perturbation: np.ndarray, labels: np.ndarray, num_classes: int) -> tuple[unlearnable.Separability, ...]:
    """Of all perturbations, and of one half of them with the other half fresh; pairs of opposite signs stay together."""
    ranks = np.empty(len(labels), int)
    for label in np.unique(labels):
        ranks[labels == label] = np.arange((labels == label).sum())
    half = ranks // 2 % 2 == 0
    whole = unlearnable.separability(perturbation, labels, num_classes)
    parts = (perturbation[half], labels[half]), (perturbation[~half], labels[~half])
    return whole, unlearnable.separability(*parts[0], num_classes, fresh=parts[1])
