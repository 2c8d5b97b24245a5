"""Per-example losses: one value an example; the caller chooses the reduction.

>>> import jax.numpy as jnp
>>> from jaxbp import losses
>>> losses.cross_entropy(jnp.zeros((2, 10)), jnp.array([3, 7])).shape
(2,)
"""

from collections.abc import Callable

import jax
import optax
from jaxtyping import Array, Float, Int

from jaxbp import checks

Logits = Float[Array, "N C"]
Labels = Int[Array, " N"]
PerExample = Float[Array, " N"]
Loss = Callable[[jax.Array, jax.Array], jax.Array]  # (logits (N, C), labels (N,)) -> (N,)


def cross_entropy(logits: Logits, labels: Labels) -> PerExample:
    """Negative log-likelihood in nats of integer ``labels`` (N,) under softmax ``logits`` (N, C); shape (N,).

    Raises:
      ValueError: other shapes or dtypes; values are not checked.
    """
    logits, labels = checks.logits_with_labels(logits, labels)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def squared_error(logits: Logits, labels: Labels) -> PerExample:
    """Half the squared distance of ``logits`` (N, C) to the one-hot ``labels`` (N,); shape (N,).

    Raises:
      ValueError: other shapes or dtypes; values are not checked.
    """
    logits, labels = checks.logits_with_labels(logits, labels)
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return optax.l2_loss(logits, targets).sum(-1)


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "squared_error": squared_error}
