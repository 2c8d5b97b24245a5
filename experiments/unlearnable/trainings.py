"""Trainings of the study: all arms as one program, or one after another with data that stay on the host.

Either takes the arms from an iterator and gives each back trained. In turn, an arm is made when the one before it is done with, so that
one arm's data are in memory beside the clean ones, whatever the number of arms; batches are sent to the device.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.unlearnable.settings import Case, Settings
from jaxbp import lab, metrics, models, training
from jaxbp.data import augment
from jaxbp.training import parallel

MEMORY = 2**28  # bytes of examples on a device where data stay on the host
EVALUATED = 1000  # examples at a time, there

Variables = tuple[Any, Any]  # parameters and state


@dataclasses.dataclass(frozen=True)
class Arm:
    """What a network is trained on.

    Attributes:
      name: of the arm.
      inputs: (N, H, W, C).
      labels: (N,).
      span: basis of what test data are projected off, (H W C, r), for a second test accuracy; None for raw test data alone.
      cutmix: share of batches that CutMix mixes.
      refitted: whether heads are refitted to the features.
      facts: what is known of the perturbation, by name.
    """

    name: str
    inputs: np.ndarray
    labels: np.ndarray
    span: np.ndarray | None = None
    cutmix: float = 0.0
    refitted: bool = False
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Trained(NamedTuple):
    """A trained network.

    Attributes:
      variables: at the end.
      train_accuracy: in per cent.
      along: variables at each of `Case.refit_epochs` for arms whose heads are refitted; otherwise those at the end alone.
    """

    variables: Variables
    train_accuracy: float
    along: list[Variables]


@functools.cache
def network(case: Case, num_classes: int) -> models.Network:
    """The network of a case."""
    return models.create(case.model, num_classes=num_classes, width=case.width, **dict(case.options))


def _recipe(case: Case, settings: Settings, num_classes: int, num_train: int, cutmix: Any, epochs: Sequence[int]) -> tuple:
    """Network, optimiser and settings of a training that is measured after some epochs."""
    steps = training.num_steps(num_train, case.num_epochs, settings.batch_size)
    sgd = training.sgd(case.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay, decay_steps=steps)
    options = training.Settings(
        num_epochs=case.num_epochs,
        batch_size=settings.batch_size,
        measure_epochs=epochs,
        augment_fn=augment.crop_and_flip(case.crop, flip=case.flip) if case.crop else None,
        mix_fn=augment.cutmix(cutmix) if case.cutmix else None,
    )
    return network(case, num_classes), sgd, options


def _variables(state: training.TrainState) -> Variables:
    return state.params, state.model_state


def train(
    key: jax.Array,
    *,
    inputs: jax.Array,
    labels: jax.Array,
    cutmix: jax.Array,
    case: Case,
    settings: Settings,
    num_classes: int,
) -> tuple[dict[str, Any], tuple]:
    """One run: its training accuracy; the trained parameters and state, and those along training where heads are refitted on the way."""
    recipe = _recipe(case, settings, num_classes, len(inputs), cutmix, case.refit_epochs)
    keep = _variables if len(case.refit_epochs) > 1 else None
    result = training.train(*recipe[:2], (inputs, labels), key, recipe[2], measure_fn=keep)
    return {"train_accuracy": 100 * result.history["train_accuracy"][-1]}, ((result.params, result.state), result.measured)


def together(arms: Iterable[Arm], key: jax.Array, case: Case, settings: Settings, num_classes: int) -> Iterator[tuple[Arm, Trained]]:
    """All arms of a seed as one program."""
    every = list(arms)
    results, ends = lab.sweep(
        functools.partial(train, case=case, settings=settings, num_classes=num_classes),
        arms={arm.name: {"inputs": arm.inputs, "labels": arm.labels, "cutmix": arm.cutmix} for arm in every},
        seeds=[0],
        keys=key[None],
    )
    for number, arm in enumerate(every):
        variables, along = jax.tree.map(lambda leaf, number=number: leaf[number, 0], ends)
        yield (
            arm,
            Trained(variables, float(results.train_accuracy[number, 0]), _each(along, case) if arm.refitted and along else [variables]),
        )


def in_turn(arms: Iterable[Arm], key: jax.Array, case: Case, settings: Settings, num_classes: int) -> Iterator[tuple[Arm, Trained]]:
    """One arm after another, with the numbers of `together` up to rounding."""
    for arm in arms:
        epochs = case.refit_epochs if arm.refitted else (case.num_epochs,)
        net, sgd, options = _recipe(case, settings, num_classes, len(arm.labels), arm.cutmix, epochs)
        mesh = parallel.make_mesh(settings.batch_size, [lab.device()])
        keep = _variables if arm.refitted else None
        result = parallel.stream(net, sgd, (arm.inputs, arm.labels), key, options, memory=MEMORY, measure_fn=keep, mesh=mesh)
        variables = result.params, result.state
        along = _each(jax.tree.map(np.asarray, result.measured), case) if arm.refitted else [variables]
        yield arm, Trained(variables, 100 * float(result.history["train_accuracy"][-1]), along)
        del arm, result, variables, along  # before the next arm is made


def _each(stacked: Any, case: Case) -> list[Variables]:
    return [jax.tree.map(lambda leaf, row=row: leaf[row], stacked) for row in range(len(case.refit_epochs))]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _correct(case: Case, num_classes: int, variables: Variables, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    logits = network(case, num_classes).apply(variables[0], inputs, variables[1])
    return jnp.where(jnp.isfinite(logits).all(), metrics.accuracy(logits, labels), jnp.nan)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _features(case: Case, num_classes: int, variables: Variables, inputs: jax.Array) -> jax.Array:
    return network(case, num_classes).features(variables[0], inputs, variables[1])


def accuracy(case: Case, num_classes: int, variables: Variables, inputs: np.ndarray, labels: np.ndarray) -> float:
    """In per cent; NaN of a network that diverged, so that its seed decides nothing."""
    correct_fn = functools.partial(_correct, case, num_classes, variables)
    return 100 * float(np.mean(training.in_chunks(correct_fn, inputs, labels, chunk_size=_chunk_size(case))))


def features(case: Case, num_classes: int, variables: Variables, inputs: np.ndarray) -> np.ndarray:
    """Inputs of the linear head (N, F), with stored statistics."""
    return training.in_chunks(functools.partial(_features, case, num_classes, variables), inputs, chunk_size=_chunk_size(case))


def _chunk_size(case: Case) -> int | None:
    return EVALUATED if case.streamed else None
