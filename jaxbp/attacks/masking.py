"""Checks for gradient masking: a network that hides its gradients, so that gradient attacks overstate its robust accuracy.

Athalye et al. (ICML 2018, section 3.1) and Carlini et al. (arXiv 1902.06705, section 5) list behaviour that sound attacks
cannot show. This module measures six kinds of it, each against a threshold that is a named constant. A suspicious check is no
proof of masking, and no suspicious check is no proof of robustness.

- ``gradient_free``: the fraction of examples that a gradient-free attack breaks and no gradient attack breaks. Weak gradient attacks
  cause it too: ten steps of PGD on the cross-entropy may leave a few percent of them, even on a linear network, so
  repeat the check with `jaxbp.attacks.autoattack`.
- ``zero_gradients``: the fraction of examples whose cross-entropy has a gradient of exactly 0 with respect to the input.
- ``huge_radius``: the accuracy under PGD when the ball holds the whole box, so that every image is within reach.
- ``one_step``: the accuracy under many steps (PGD) minus the accuracy under one step (FGSM).
- ``probabilities``: the fraction of examples whose outputs are at least 0 and sum to 1. A softmax at the end flattens every loss but the
  margin, and the losses here take logits.
- ``randomness``: 1 if the network draws random numbers, or is another network each time it is traced, so that an attack meets
  one draw and not the network. The expectation of a network (`jaxbp.attacks.expectation`) is what to attack, and passes.

>>> import jax, jax.numpy as jnp
>>> from jaxbp import attacks
>>> inputs = jax.random.uniform(jax.random.key(0), (32, 2)); labels = inputs.argmax(-1)
>>> network = lambda x: 1e4 * x                       # so confident that float32 has no gradient left
>>> checks = attacks.gradient_masking_checks(network, jax.random.key(1), inputs, labels, attacks.Threat("linf", 0.1))
>>> [check.name for check in checks if check.suspicious]
['zero_gradients', 'huge_radius']
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int, PRNGKeyArray

from jaxbp import checks
from jaxbp.attacks.attack import Goal, LogitsFn, check_within, checked_examples, gradient_and_result, logits_of, network_of
from jaxbp.attacks.pgd import fgsm, pgd
from jaxbp.attacks.randomised import is_random
from jaxbp.attacks.threat import Threat

GRADIENT_FREE_SHARE = 0.02  # sound gradient attacks leave almost nothing to a random search; chance ties stay below 1 in 50
ZERO_GRADIENT_SHARE = 0.1  # exact zeros come from saturation or from steps; a confident network may have some
HUGE_RADIUS_ACCURACY = 0.05  # every image is allowed, so accuracy must be near 0; slow optimisation may leave a few examples
ONE_STEP_GAIN = 0.05  # many steps include the one step; a few examples may still go the other way
HUGE_RADIUS_STEPS = 50
PROBABILITY_SHARE = 0.5  # logits sum to 1 by chance at single examples only
RANDOMNESS = 0.0


_SUM_TO_ONE = 1e-3


class GradientMaskingCheck(NamedTuple):
    """One check for gradient masking.

    Attributes:
      name: one of those in the module's list.
      value: the measured value.
      threshold: a larger value is suspicious.
    """

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
    "probabilities": "the outputs of {value:.0%} of the examples sum to 1 like probabilities (limit {threshold:.0%}): return logits",
    "randomness": "the network draws random numbers, which the attacks meet as one fixed draw: attack attacks.expectation of it",
    "one_step": "accuracy under one step is {value:+.1%} lower than under many (limit {threshold:.0%})",
}


def gradient_masking_checks(
    logits_fn: LogitsFn,
    key: PRNGKeyArray,
    inputs: Float[ArrayLike, "N ..."],
    labels: Int[ArrayLike, " N"],
    threat: Threat,
    *,
    gradient_free_share: float | None = None,
) -> tuple[GradientMaskingCheck, ...]:
    """Measure the checks on ``inputs`` (N, ...) that the network classifies as their ``labels`` (N,).

    It runs three programs, of 1, about 20 and `HUGE_RADIUS_STEPS` gradients.

    Args:
      logits_fn: inputs (N, ...) -> logits (N, C), in evaluation mode.
      key: of all random starts.
      inputs, labels: correctly classified examples.
      threat: norm, radius and box.
      gradient_free_share: as `jaxbp.attacks.robust_accuracy` measures it; without it, that check is left out.

    Raises:
      ValueError: arguments that an attack refuses.
    """
    checks.refuse_traced("inputs, labels and key", inputs, labels, checks.prng_key(key))
    threat.check_epsilon()
    network = network_of(logits_fn)
    inputs, labels = checked_examples(functools.partial(logits_of, network), inputs, labels)
    check_within(inputs, threat)
    results = []
    if gradient_free_share is not None:
        results.append(GradientMaskingCheck("gradient_free", float(gradient_free_share), GRADIENT_FREE_SHARE))
    values = _measure(network, key, inputs, labels, threat)
    values = {**values, "randomness": is_random(network, inputs)}
    thresholds = {
        "zero_gradients": ZERO_GRADIENT_SHARE,
        "huge_radius": HUGE_RADIUS_ACCURACY,
        "one_step": ONE_STEP_GAIN,
        "probabilities": PROBABILITY_SHARE,
        "randomness": RANDOMNESS,
    }
    return (*results, *(GradientMaskingCheck(name, float(values[name]), limit) for name, limit in thresholds.items()))


@jax.jit
def _measure(logits_fn: LogitsFn, key: jax.Array, inputs: jax.Array, labels: jax.Array, threat: Threat) -> dict[str, jax.Array]:
    gradient, _ = gradient_and_result(logits_fn, Goal("cross_entropy", labels, None), inputs)
    flat = gradient.reshape(len(gradient), -1)
    keys = jax.random.split(key, 3)
    run = functools.partial(_accuracy, logits_fn, inputs=inputs, labels=labels)
    huge = Threat("linf", _whole_box(threat, inputs), threat.bounds)  # it holds the box in any norm
    outputs = logits_fn(inputs)
    many_steps, one_step = run(pgd(threat), keys[0]), run(fgsm(threat), keys[1])
    return {
        "zero_gradients": (flat == 0).all(-1).mean(),
        "huge_radius": run(pgd(huge, num_steps=HUGE_RADIUS_STEPS, random_start=False), keys[2]),
        "one_step": many_steps - one_step,
        "probabilities": ((outputs >= 0).all(-1) & (jnp.abs(outputs.sum(-1) - 1) < _SUM_TO_ONE)).mean(),
    }


def _accuracy(logits_fn, attack, key, *, inputs, labels):
    return 1 - attack(logits_fn, key, inputs, labels).success.mean()


def _whole_box(threat: Threat, inputs: jax.Array) -> jax.Array:
    """A radius in "linf" that holds the box or, where there is none, the extent of the inputs."""
    extents = np.subtract(threat.bounds[1], threat.bounds[0])
    extent = extents.max() if np.isfinite(extents).all() else jnp.ptp(inputs)
    return jnp.asarray(extent, inputs.dtype)
