"""What a function makes of many examples: all at once where memory allows, else so many at a time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxbp import checks, losses, metrics
from jaxbp.jaxprs import interpret

MEMORY = 2**30  # bytes of the largest array at a time; a program holds a few of that size


def evaluate(
    logits_fn: Callable[[jax.Array], jax.Array], loss_fn: losses.Loss, **splits: tuple[jax.Array, jax.Array] | None
) -> dict[str, jax.Array]:
    """Mean loss and accuracy of each split, as "NAME_loss" and "NAME_accuracy", from one pass over all of them together.

    Raises:
      ValueError: a split that is no pair of inputs (N, ...) and labels (N,), labels that are no class, or logits that are not (N, C).
    """
    given = {name: checks.labelled_examples(split, name) for name, split in splits.items() if split is not None}
    logits = within_memory(logits_fn, jnp.concatenate([inputs for inputs, _ in given.values()]))
    measures, start = {}, 0
    for name, (_, indices) in given.items():
        part = logits[start : start + len(indices)]
        start += len(indices)
        labels = checks.labels(indices, part.shape[-1], len(part), f"{name}'s labels")
        measures[f"{name}_loss"] = loss_fn(part, labels).mean()
        measures[f"{name}_accuracy"] = metrics.accuracy(part, labels).mean()
    return measures


def within_memory(fn: Callable[[jax.Array], jax.Array], inputs: ArrayLike, memory: float | None = None) -> jax.Array:
    """``fn(inputs)`` (N, ...), from parts of the N examples if one of its arrays would exceed ``memory`` bytes, default `MEMORY`.

    ``fn`` must treat each example alone. It may be traced; under `jax.vmap` the bound is that of each of the functions. How inputs are
    split over devices is not seen.
    """
    inputs, memory = jnp.asarray(inputs), memory or MEMORY
    num_examples, program = len(inputs), interpret.trace(fn, jax.ShapeDtypeStruct(inputs.shape, inputs.dtype))
    if program.largest_bytes <= memory:
        return program.run(inputs)[0]  # as it is traced: a network takes long to trace again
    num_parts = -(-num_examples // max(int(num_examples * memory / program.largest_bytes), 1))
    size = -(-num_examples // num_parts)
    rows = jnp.minimum(jnp.arange(num_parts * size), num_examples - 1).reshape(num_parts, size)  # copies of the last fill the last part
    parts = jax.lax.map(lambda part: fn(inputs[part]), rows)
    return parts.reshape(-1, *parts.shape[2:])[:num_examples]


def in_chunks(fn: Callable[..., jax.Array], *arrays: np.ndarray, chunk_size: int | None) -> np.ndarray:
    """``fn(*arrays)`` (N, ...), on the host, from at most ``chunk_size`` of the N examples at a time; None takes all at once.

    For data that the device cannot hold together with what the function makes of them. ``fn`` must treat each example alone.
    """
    size = chunk_size or len(arrays[0])
    starts = range(0, len(arrays[0]), size)
    return np.concatenate([np.asarray(fn(*(array[start : start + size] for array in arrays))) for start in starts])
