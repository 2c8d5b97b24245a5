"""The settings of a training: everything but the network, the optimiser, the data and the key."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxbp import losses
from jaxbp.training.state import TrainState

Perturbation = Callable[[jax.Array, TrainState, jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a network is trained; hashable, since sequences become tuples.

    Attributes:
      num_epochs: passes over the training data.
      batch_size: examples in a step, see `num_steps`.
      loss_fn: per-example loss from `jaxbp.losses`.
      measure_epochs: when to evaluate and measure; default all, from 0 (before training) to ``num_epochs``.
      augment_fn: ``(key, inputs) -> inputs`` for each batch to train on, for instance `jaxbp.data.augment.crop_and_flip`.
      mix_fn: ``(key, inputs, labels) -> (inputs, other_labels, share)`` for each batch, once augmented, for instance
        `jaxbp.data.augment.cutmix`: the loss is ``share`` of that for the labels plus the rest of that for ``other_labels``.
      perturb_fn: ``(key, state, inputs, labels) -> inputs``, which replaces the inputs of each batch, once augmented, with a `TrainState`:
        adversarial training (Madry et al., ICLR 2018). It acts between gradients and is not differentiated.
      project_fn: ``params -> params``, applied at the end of each of ``project_epochs``, before anything is measured there, for
        instance RankMin of `jaxbp.spectra`; the state of the optimiser stays as it is.
      project_epochs: some of 1 to ``num_epochs``.

    Raises:
      ValueError: epochs out of range, or ``project_fn`` without ``project_epochs`` or the reverse.
    """

    num_epochs: int
    batch_size: int
    loss_fn: losses.Loss = losses.cross_entropy
    measure_epochs: Sequence[int] | None = None
    augment_fn: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    mix_fn: Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]] | None = None
    perturb_fn: Perturbation | None = None
    project_fn: Callable[[Any], Any] | None = None
    project_epochs: Sequence[int] = ()

    def __post_init__(self):
        if self.num_epochs < 0:
            raise ValueError(f"num_epochs must be at least 0, got {self.num_epochs}")
        if self.measure_epochs is not None:
            object.__setattr__(self, "measure_epochs", _whole_numbers(self.measure_epochs))
        object.__setattr__(self, "project_epochs", _whole_numbers(self.project_epochs))
        if self.measure_epochs is not None and not (self.measure_epochs and set(self.measure_epochs) <= set(range(self.num_epochs + 1))):
            raise ValueError(f"measure_epochs must be some of 0 to {self.num_epochs}, got {list(self.measure_epochs)}")
        if (self.project_fn is None) != (not self.project_epochs):
            raise ValueError(f"project_fn and project_epochs go together, got {self.project_fn} and {list(self.project_epochs)}")
        if not set(self.project_epochs) <= set(range(1, self.num_epochs + 1)):
            raise ValueError(f"project_epochs must be some of 1 to {self.num_epochs}, got {list(self.project_epochs)}")

    @property
    def measured_epochs(self) -> np.ndarray:
        """When a run is measured, in ascending order, (E,)."""
        return np.unique(range(self.num_epochs + 1) if self.measure_epochs is None else self.measure_epochs)

    @property
    def projects(self) -> np.ndarray:
        """Whether each epoch ends in a projection, (num_epochs,)."""
        return np.isin(np.arange(1, self.num_epochs + 1), self.project_epochs)

    @property
    def draws_keys(self) -> bool:
        """Whether each batch needs a random key."""
        return any(function is not None for function in (self.augment_fn, self.mix_fn, self.perturb_fn))


def num_steps(num_examples: int, num_epochs: int, batch_size: int) -> int:
    """Steps of a run: whole batches only, examples left over wait for the next epoch's shuffle."""
    if not 1 <= batch_size <= num_examples:
        raise ValueError(f"batch_size must be from 1 to the number of training examples {num_examples}, got {batch_size}")
    return num_epochs * (num_examples // batch_size)


def _whole_numbers(values: Sequence[int]) -> tuple:
    """Python's numbers of a sequence or an array, so that settings are hashable; what is no whole number stays and is refused."""
    return tuple(np.asarray(values).tolist())
