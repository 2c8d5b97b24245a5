"""Evaluations of many examples in full batches, so that each program is compiled for one shape."""

from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import Bool

from jaxbp import metrics
from jaxbp.attacks.attack import LogitsFn


def full_batches(chosen: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs (rows, places): rows of a full batch, the last batch padded with its first row, and the rows without padding."""
    for start in range(0, len(chosen), batch_size):
        places = chosen[start : start + batch_size]
        yield np.concatenate([places, np.repeat(places[:1], batch_size - len(places))]), places


def correct_examples(network: LogitsFn, inputs: np.ndarray, labels: np.ndarray, batch_size: int) -> Bool[np.ndarray, " N"]:
    """Whether the network classifies each of ``inputs`` (N, ...) as its label."""
    correct = np.zeros(len(inputs), bool)
    for rows, places in full_batches(np.arange(len(inputs)), batch_size):
        correct[places] = np.asarray(_is_right(network, inputs[rows], labels[rows]))[: len(places)]
    return correct


@jax.jit
def _is_right(logits_fn: LogitsFn, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    return metrics.accuracy(logits_fn(inputs), labels) > 0
