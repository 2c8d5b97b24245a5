"""Recomputing the stored statistics of BatchNorm, with parameters as they are."""

from typing import Any

import jax

from jaxbp import checks
from jaxbp.models.network import Network, State


def calibrate_batch_norm(net: Network, params: Any, state: State, inputs: jax.Array, *, batch_size: int, num_epochs: int) -> State:
    """The state of a network after some passes over ``inputs`` in training mode; parameters stay as they are.

    Each pass goes over the whole batches of ``inputs`` in order; examples left over are not used. To be jitted with ``net``,
    ``batch_size`` and ``num_epochs`` static.

    Args:
      net, params, state: a network; ``state`` from its init or its training.
      inputs: (N, ...).
      batch_size, num_epochs: of the passes.

    Raises:
      ValueError: inputs that are none, or ``batch_size`` is not from 1 to N.
    """
    inputs = checks.examples(inputs)
    if not 1 <= batch_size <= len(inputs):
        raise ValueError(f"batch_size must be from 1 to the number of inputs {len(inputs)}, got {batch_size}")
    num_batches = len(inputs) // batch_size
    batches = inputs[: num_batches * batch_size].reshape(num_batches, batch_size, *inputs.shape[1:])

    def one_pass(state: Any, _: None) -> tuple[Any, None]:
        return jax.lax.scan(lambda s, batch: (net.update(params, batch, s)[1], None), state, batches)

    return jax.lax.scan(one_pass, state, None, length=num_epochs)[0]
