"""Per-example metrics, which are not differentiated.

>>> import jax.numpy as jnp
>>> from jaxbp import metrics
>>> metrics.accuracy(jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.array([1, 1])).tolist()
[1.0, 0.0]
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxbp import checks


def accuracy(logits: Float[Array, "N C"], labels: Int[Array, " N"]) -> Float[Array, " N"]:
    """1 where the largest of ``logits`` (N, C) is the label, else 0; shape (N,), in the dtype of the logits.

    Of equal logits the first is the largest. Logits with a NaN among them count as wrong: a run that diverged has
    accuracy 0, not the frequency of some class.

    Raises:
      ValueError: other shapes or dtypes; values are not checked.
    """
    logits, labels = checks.logits_with_labels(logits, labels)
    correct = (jnp.argmax(logits, -1) == labels) & ~jnp.isnan(logits).any(-1)
    return correct.astype(logits.dtype)
