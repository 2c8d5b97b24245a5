"""The losses that attacks maximise: one value an example, larger where the network is closer to the desired mistake.

``cross_entropy`` is the loss of training. Where a network is confident, its gradient vanishes in floating point, and an attack
stops moving. The difference of logits ratio (``dlr``; Croce & Hein, ICML 2020, section 4.2) divides the margin of the
logits by a spread of the same logits, so neither a shift nor a scaling of the logits changes it. The plain ``margin``
serves searches without gradients.

Targeted losses ask for one class. Their ``labels`` are the true classes, or None; without labels, the strongest class apart from
the target takes their place.

>>> import jax.numpy as jnp
>>> from jaxbp.attacks import losses
>>> logits, label = jnp.array([[3.0, 1.0, 2.0, 0.0]]), jnp.array([0])
>>> losses.dlr(logits, label).item(), losses.dlr(100 * logits + 7, label).item()  # -(3 - 2) / (3 - 1)
(-0.5, -0.5)
>>> losses.margin(logits, label).item()
-1.0
"""

import jax
import jax.numpy as jnp

from jaxbp import checks, losses
from jaxbp.losses import Labels, Logits, PerExample


def cross_entropy(logits: Logits, labels: Labels) -> PerExample:
    """Cross-entropy in nats; shape (N,)."""
    return losses.cross_entropy(logits, labels)


def dlr(logits: Logits, labels: Labels) -> PerExample:
    """-(z_y - max_{i != y} z_i) / (z_1st - z_3rd), equation 5 of the source; shape (N,), above 0 for mistakes, at most 1.

    Raises:
      ValueError: fewer than 3 classes, or other shapes or dtypes.
    """
    logits, labels = checks.logits_with_labels(logits, labels)
    top = _largest(logits, 3, "dlr")
    return margin(logits, labels) / _spread(top[:, 0] - top[:, 2])


def margin(logits: Logits, labels: Labels) -> PerExample:
    """The largest other logit minus the logit of the label; shape (N,), above 0 for mistakes."""
    logits, labels = checks.logits_with_labels(logits, labels)
    others = jnp.where(_is(labels, logits), -jnp.inf, logits)
    return others.max(-1) - _at(logits, labels)


def targeted_cross_entropy(logits: Logits, labels: Labels | None, targets: Labels) -> PerExample:
    """Minus the cross-entropy of the target; shape (N,)."""
    return -losses.cross_entropy(logits, targets)


def targeted_dlr(logits: Logits, labels: Labels | None, targets: Labels) -> PerExample:
    """-(z_y - z_t) / (z_1st - (z_3rd + z_4th) / 2), equation 6 of the source; shape (N,).

    Raises:
      ValueError: fewer than 4 classes, or other shapes or dtypes.
    """
    logits, targets = checks.logits_with_labels(logits, targets)
    top = _largest(logits, 4, "targeted dlr")
    return targeted_margin(logits, labels, targets) / _spread(top[:, 0] - (top[:, 2] + top[:, 3]) / 2)


def targeted_margin(logits: Logits, labels: Labels | None, targets: Labels) -> PerExample:
    """The logit of the target minus that of the label, or, without labels, minus the largest other logit; shape (N,)."""
    if labels is None:
        return -margin(logits, targets)
    (logits, labels), (_, targets) = checks.logits_with_labels(logits, labels), checks.logits_with_labels(logits, targets)
    return _at(logits, targets) - _at(logits, labels)


LOSSES = {"cross_entropy": cross_entropy, "dlr": dlr, "margin": margin}
TARGETED = {"cross_entropy": targeted_cross_entropy, "dlr": targeted_dlr, "margin": targeted_margin}


def _is(labels: jax.Array, logits: jax.Array) -> jax.Array:
    return labels[:, None] == jnp.arange(logits.shape[-1])


def _at(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The logit of each label: a masked sum, because the gradient of a gather is a scatter, slow in loops on a CPU."""
    return jnp.where(_is(labels, logits), logits, 0).sum(-1)


def _largest(logits: jax.Array, count: int, name: str) -> jax.Array:
    if logits.shape[-1] < count:
        raise ValueError(f"{name} needs at least {count} classes, got logits of shape {logits.shape}: take cross_entropy or margin")
    return jax.lax.top_k(logits, count)[0]


def _spread(difference: jax.Array) -> jax.Array:
    """The denominator; 1 where the logits are equal and the ratio would be 0 / 0."""
    return jnp.where(difference > 0, difference, 1)
