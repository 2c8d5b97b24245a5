"""A training run in segments of an epoch, so that it can be saved, stopped and watched between them.

>>> import jax, jax.numpy as jnp
>>> from jaxbp import models, sweep, training
>>> x = jax.random.normal(jax.random.key(0), (64, 2)); y = (x[:, 0] > 0).astype(int)
>>> def recipe_fn(num_examples, *, width, learning_rate):
...     settings = training.Settings(num_epochs=5, batch_size=16)
...     return models.create("mlp", num_classes=2, width=width), training.sgd(learning_rate), settings
>>> segments = sweep.Segments(*training.segmented(recipe_fn, num_epochs=5))
>>> runs = sweep.run(segments, {"width": [8], "learning_rate": [0.1, 0.5]}, seeds=2, shared=[(x, y)], quiet=True)
>>> runs.stack("train_loss").shape
(2, 2, 5)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxbp.models.network import Network
from jaxbp.training import loop
from jaxbp.training.evaluation import evaluate
from jaxbp.training.settings import Settings
from jaxbp.training.state import TrainState

RecipeFn = Callable[..., tuple[Network, optax.GradientTransformation, Settings]]


class Segmented(NamedTuple):
    """A training in parts, as `jaxbp.sweep.Segments` takes it.

    Attributes:
      init_fn: ``(key, data, test_data=None, **setting) -> state``, a `TrainState` with the key of the shuffles.
      segment_fn: ``(state, epoch, data, test_data=None, **setting) -> (state, measures)``, the epoch with this number and its evaluation.
      num_segments: epochs.
    """

    init_fn: Callable[..., tuple[TrainState, jax.Array]]
    segment_fn: Callable[..., tuple[tuple[TrainState, jax.Array], dict[str, jax.Array]]]
    num_segments: int


def segmented(recipe_fn: RecipeFn, num_epochs: int, *, measure_fn: Callable[[TrainState], dict[str, jax.Array]] | None = None) -> Segmented:
    """`jaxbp.training.train` an epoch at a time: the same operations on the same random numbers, so the same history but for epoch 0.

    Two compiled programs may round differently.

    Args:
      recipe_fn: ``(num_examples, **setting) -> (net, optimizer, settings)``; of a setting, numbers may be traced.
      num_epochs: those of the settings.
      measure_fn: any further measurements after each epoch, by name, of the `TrainState`.

    Raises:
      ValueError: when traced, settings of other epochs, or that measure some epochs only.
    """

    def recipe(data: loop.Arrays, setting: dict[str, Any]) -> tuple[Network, optax.GradientTransformation, Settings]:
        net, optimizer, settings = recipe_fn(len(data[1]), **setting)
        if settings.num_epochs != num_epochs or settings.measure_epochs is not None:
            raise ValueError(
                f"a segmented training measures each of its {num_epochs} epochs, got settings of {settings.num_epochs} epochs that "
                f"measure {settings.measure_epochs}: set the same num_epochs and leave measure_epochs out"
            )
        return net, optimizer, settings

    def init_fn(key: jax.Array, data: loop.Arrays, test_data: loop.Arrays | None = None, **setting: Any) -> tuple[TrainState, jax.Array]:
        net, optimizer, _ = recipe(data, setting)
        return loop.begin(net, optimizer, data[0][:1], key, None)

    def segment_fn(
        carry: tuple[TrainState, jax.Array],
        index: jax.Array,
        data: loop.Arrays,
        test_data: loop.Arrays | None = None,
        **setting: Any,
    ) -> tuple[tuple[TrainState, jax.Array], dict[str, jax.Array]]:
        state, order_key = carry
        net, optimizer, settings = recipe(data, setting)
        train_epoch = loop.epoch_fn(loop.step_fn(net, optimizer, settings), data, settings)
        state = train_epoch(state, jax.random.split(order_key, num_epochs)[index])
        state = loop.project(settings, state, jnp.asarray(settings.projects)[index])
        measures = evaluate(loop.network_at(net, state), settings.loss_fn, train=data, test=test_data)
        return (state, order_key), measures | (measure_fn(state) if measure_fn else {})

    return Segmented(init_fn, segment_fn, num_epochs)
