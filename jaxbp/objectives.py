"""Per-example losses: one value an example, so that the caller chooses how to reduce.

>>> import jax.numpy as jnp
>>> from jaxbp import objectives
>>> objectives.cross_entropy(jnp.zeros((2, 10)), jnp.array([3, 7])).shape
(2,)
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import optax

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Negative log-likelihood in nats of integer ``labels`` (N,) under softmax ``logits`` (N, C); shape (N,)."""
    chex.assert_rank([logits, labels], [2, 1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def squared_error(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Half the squared distance of ``logits`` (N, C) to the one-hot ``labels`` (N,); shape (N,)."""
    chex.assert_rank([logits, labels], [2, 1])
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return optax.l2_loss(logits, targets).sum(-1)


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "squared_error": squared_error}


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """1 where the largest of ``logits`` (N, C) is the label, else 0; shape (N,), in the dtype of the logits.

    The first of equal logits is taken. Logits with a NaN among them have no largest and count as wrong: a run that
    diverged has accuracy 0, not the share of some class.
    """
    chex.assert_rank([logits, labels], [2, 1])
    correct = (jnp.argmax(logits, -1) == labels) & ~jnp.isnan(logits).any(-1)
    return correct.astype(logits.dtype)
