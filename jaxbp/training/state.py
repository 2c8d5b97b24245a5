"""What a training carries from step to step, and what it ends with."""

from typing import Any, NamedTuple

import jax

from jaxbp.models.network import State


class TrainState(NamedTuple):
    """What the next step needs.

    Attributes:
      params: parameters of the network.
      opt_state: the state of the optimiser.
      model_state: the state of the network, for instance BatchNorm's statistics; ``{}`` if it has none.
    """

    params: Any
    opt_state: Any
    model_state: State


class TrainResult(NamedTuple):
    """A finished run.

    Attributes:
      params: parameters at the end.
      state: the state of the network at the end; ``{}`` if it has none.
      history: "train_loss", "train_accuracy" and, with test data, "test_loss" and "test_accuracy", each (E,) for the E measured
        epochs; epoch 0 is before training.
      measured: what ``measure_fn`` returned, stacked along a leading axis E.
    """

    params: Any
    state: State
    history: dict[str, jax.Array]
    measured: Any
