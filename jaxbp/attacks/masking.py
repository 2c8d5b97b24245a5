"""Signs that a network hides its gradients rather than resists: then gradient attacks overstate its robust accuracy.

Athalye et al. (ICML 2018, section 3.1) and Carlini et al. (arXiv 1902.06705, section 5) list behaviour that sound attacks
cannot show. Four of them are measured here, each against a threshold that is a named constant. A sign is a suspicion, not a
proof; and no sign proves nothing.

- ``gradient_free``: the share of examples that a gradient-free attack breaks and no gradient attack does. Gradient attacks too
  weak do it as well: ten steps of PGD on the cross-entropy alone may leave a few percent of them, even on a linear network, so
  look again with `jaxbp.attacks.strongest`.
- ``zero_gradients``: the share of examples whose cross-entropy has a gradient of exactly 0 with respect to the input.
- ``huge_radius``: the accuracy under PGD when the ball holds the whole box, where every image is within reach.
- ``one_step``: how much lower accuracy is under one step (FGSM) than under many (PGD).

>>> import jax, jax.numpy as jnp
>>> from jaxbp import attacks
>>> inputs = jax.random.uniform(jax.random.key(0), (32, 2)); labels = inputs.argmax(-1)
>>> network = lambda x: 1e4 * x                       # so sure that float32 has no gradient left
>>> signs = attacks.masking_signs(network, jax.random.key(1), inputs, labels, attacks.Threat("linf", 0.1))
>>> [sign.name for sign in signs if sign.suspicious]
['zero_gradients', 'huge_radius']
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.attacks.attack import Goal, LogitsFn
from jaxbp.attacks.pgd import fgsm, gradient_of, pgd
from jaxbp.attacks.threat import Threat

GRADIENT_FREE_SHARE = 0.02  # sound gradient attacks leave a random search next to nothing; one in 50 is more than chance ties
ZERO_GRADIENT_SHARE = 0.1  # exact zeros come of saturation or of steps; some examples of a sure network may have them
HUGE_RADIUS_ACCURACY = 0.05  # any image is allowed, so accuracy must be near 0; slow optimisation may leave a few
ONE_STEP_GAIN = 0.05  # many steps contain the one; a few examples may still go the other way
HUGE_RADIUS_STEPS = 50


class Sign(NamedTuple):
    """One check: its ``name``, the ``value`` measured, and the ``threshold`` above which it is suspicious."""

    name: str
    value: float
    threshold: float

    @property
    def suspicious(self) -> bool:
        """Whether the value exceeds the threshold; NaN does not."""
        return self.value > self.threshold

    def __str__(self) -> str:
        return _MEANINGS[self.name].format(value=self.value, threshold=self.threshold)


_MEANINGS = {
    "gradient_free": "a gradient-free attack alone breaks {value:.1%} of the examples (limit {threshold:.0%})",
    "zero_gradients": "{value:.1%} of the examples have a gradient of exactly 0 (limit {threshold:.0%})",
    "huge_radius": "accuracy is {value:.1%} where the ball holds every image (limit {threshold:.0%})",
    "one_step": "accuracy under one step is {value:+.1%} lower than under many (limit {threshold:.0%})",
}


def masking_signs(
    logits_fn: LogitsFn,
    key: jax.Array,
    inputs: jax.Array,
    labels: jax.Array,
    threat: Threat,
    *,
    gradient_free_share: float | None = None,
) -> tuple[Sign, ...]:
    """Measure the signs on ``inputs`` (N, ...) that the network classifies as their ``labels`` (N,).

    ``gradient_free_share`` is what `jaxbp.attacks.robust_accuracy` found; left out, the sign is missing. Three programs
    are run, of 1, about 20 and `HUGE_RADIUS_STEPS` gradients.
    """
    signs = []
    if gradient_free_share is not None:
        signs.append(Sign("gradient_free", float(gradient_free_share), GRADIENT_FREE_SHARE))
    network = logits_fn if isinstance(logits_fn, jax.tree_util.Partial) else jax.tree_util.Partial(logits_fn)
    found = {name: float(value) for name, value in _measure(network, key, inputs, labels, threat).items()}
    limits = {"zero_gradients": ZERO_GRADIENT_SHARE, "huge_radius": HUGE_RADIUS_ACCURACY, "one_step": ONE_STEP_GAIN}
    return (*signs, *(Sign(name, found[name], limit) for name, limit in limits.items()))


@jax.jit
def _measure(logits_fn: LogitsFn, key: jax.Array, inputs: jax.Array, labels: jax.Array, threat: Threat) -> dict[str, jax.Array]:
    gradient, _ = gradient_of(logits_fn, Goal("cross_entropy", labels, None), inputs)
    flat = gradient.reshape(len(gradient), -1)
    keys = jax.random.split(key, 3)
    run = functools.partial(_accuracy, logits_fn, inputs=inputs, labels=labels)
    huge = Threat(threat.norm, _whole_box(threat, inputs), threat.bounds)
    many, one = run(pgd(threat), keys[0]), run(fgsm(threat), keys[1])
    return {
        "zero_gradients": (flat == 0).all(-1).mean(),
        "huge_radius": run(pgd(huge, num_steps=HUGE_RADIUS_STEPS, random_start=False), keys[2]),
        "one_step": many - one,
    }


def _accuracy(logits_fn, attack, key, *, inputs, labels):
    return 1 - attack(logits_fn, key, inputs, labels).success.mean()


def _whole_box(threat: Threat, inputs: jax.Array) -> jax.Array:
    """A radius that holds the box or, where there is none, the extent of the inputs."""
    low, high = threat.bounds
    extent = high - low if np.isfinite(high - low) else jnp.ptp(inputs)
    size = np.prod(inputs.shape[1:]) if threat.norm == "l2" else 1
    return jnp.asarray(extent * np.sqrt(size), inputs.dtype)
