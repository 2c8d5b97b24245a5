"""Per-example metrics that no gradient goes through.

>>> import jax.numpy as jnp
>>> from jaxbp import metrics
>>> metrics.accuracy(jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.array([1, 1])).tolist()
[1.0, 0.0]
"""

import chex
import jax
import jax.numpy as jnp


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """1 where the largest of ``logits`` (N, C) is the label, else 0; shape (N,), in the dtype of the logits.

    The first of equal logits is taken. Logits with a NaN among them have no largest and count as wrong: a run that
    diverged has accuracy 0, not the share of some class.
    """
    chex.assert_rank([logits, labels], [2, 1])
    correct = (jnp.argmax(logits, -1) == labels) & ~jnp.isnan(logits).any(-1)
    return correct.astype(logits.dtype)
