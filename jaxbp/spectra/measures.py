"""Ranks of a network's layers along a training, as the ``measure_fn`` of `jaxbp.training.train`.

>>> import jax, jax.numpy as jnp
>>> from jaxbp import models, spectra, training
>>> net = models.from_functions(lambda params, inputs: inputs @ params["kernel"])
>>> inputs, labels, start = jnp.eye(4), jnp.array([0, 1, 0, 1]), ({"kernel": jnp.ones((4, 2))}, {})
>>> measure_fn = spectra.rank_measure(net.apply, inputs[:1], ranks=("stable",))
>>> settings = training.Settings(num_epochs=2, batch_size=4)
>>> result = training.train(net, training.sgd(1.0), (inputs, labels), jax.random.key(0), settings, start=start, measure_fn=measure_fn)
>>> [round(float(rank), 2) for rank in result.measured["kernel"]["stable"]]  # epochs 0, 1, 2
[1.0, 1.02, 1.05]
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxbp.spectra import ranks as rank_functions
from jaxbp.spectra.network import Pattern, of_network

RANKS: dict[str, Callable[..., jax.Array]] = {
    "nuclear": rank_functions.nuclear_rank,
    "stable": rank_functions.stable_rank,
    "entropy": rank_functions.entropy_rank,
    "numerical": rank_functions.numerical_rank,
}


def rank_measure(
    apply_fn: Callable, inputs: Any, *, ranks: Sequence[str] = tuple(RANKS), pattern: Pattern = None, **options: Any
) -> Callable[[Any], dict[str, dict[str, jax.Array]]]:
    """A function of a `jaxbp.training.TrainState` that returns the ranks of layers, by name of the layer and of the rank.

    `jaxbp.training.train` calls it at each measured epoch and stacks what it returns along a leading axis; it is traced, also over seeds.

    Args:
      apply_fn: ``(params, inputs, model_state) -> logits``, for instance the `apply` of a network of `jaxbp.models`.
      inputs: arrays or `jax.ShapeDtypeStruct` of the shape of a batch; one example will do.
      ranks: names of `RANKS`.
      pattern, options: which layers and how, as in `jaxbp.spectra.of_network`.

    Raises:
      ValueError: a rank that is not in `RANKS`; the function returned raises as `jaxbp.spectra.of_network`.
    """
    names = (ranks,) if isinstance(ranks, str) else tuple(ranks)
    if not names or (unknown := [name for name in names if name not in RANKS]):
        raise ValueError(f"ranks must be of {', '.join(RANKS)}, at least one, got {', '.join(map(repr, unknown)) if names else 'none'}")

    def measure(state: Any) -> dict[str, dict[str, jax.Array]]:
        spectra = of_network(lambda p, x: apply_fn(p, x, state.model_state), state.params, inputs, pattern=pattern, **options)
        return {layer: {name: RANKS[name](spectrum) for name in names} for layer, spectrum in spectra.items()}

    return measure
