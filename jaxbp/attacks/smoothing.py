"""Randomised smoothing: a radius in "l2" within which no attack succeeds, with high probability (Cohen et al., ICML 2019).

The smoothed network answers with the class that the network gives most often to the input plus Gaussian noise of deviation sigma. If a
class has the probability p > 1/2 there, no perturbation shorter than sigma times the normal quantile of p changes the answer (theorem 1
with p_B = 1 - p). The certificate is for the smoothed network, not for the network itself, and it holds for any network.

The probability is estimated: a first sample selects the class, a second one, independent, counts it, and the lower end of the one-sided
Clopper-Pearson interval takes the place of p (Algorithm 2, CERTIFY). So a radius is too large with a probability of at most ``failure``
for each example. Where the lower end is not above 1/2, the network abstains. Noise leaves the box of valid inputs; the certificate
holds there too.

>>> import jax, jax.numpy as jnp
>>> from jaxbp import attacks
>>> inputs = jnp.array([[0.75, 0.25], [0.5, 0.5]])
>>> network = lambda x: x                                                # the boundary is at distances 0.35 and 0
>>> result = attacks.smoothed_radii(network, jax.random.key(0), inputs, sigma=0.25, num_estimation=10_000)
>>> result.classes.tolist(), result.radii.round(2).tolist()
([0, -1], [0.34, 0.0])
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # loads scipy.stats, which takes a second, at its first use
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxbp import checks, stats
from jaxbp.attacks.attack import LogitsFn, floating_examples, network_of
from jaxbp.attacks.randomised import refuse_coupling
from jaxbp.attacks.threat import checked_radii

ABSTAINED = -1


@dataclass(frozen=True)
class SmoothedRadii:
    """The certificates of `smoothed_radii` for N examples.

    Attributes:
      classes: (N,), the answers of the smoothed network, `ABSTAINED` where it has none.
      radii: (N,), the certified radii in "l2"; 0 where it abstained.
      probabilities: (N,), the lower ends p of the probability of the class; the selected one where it abstained.
      sigma: the deviation of the noise.
      failure: the probability, for each example, that its radius is too large.
    """

    classes: Int[np.ndarray, " N"]
    radii: Float[np.ndarray, " N"]
    probabilities: Float[np.ndarray, " N"]
    sigma: float
    failure: float

    def accuracy(self, labels: Int[ArrayLike, " N"], radii: Sequence[float]) -> list[stats.Interval]:
        """Certified accuracy at each of the ``radii``, with Wilson's 95 % interval: right answers whose certificate is at least as wide.

        Raises:
          ValueError: labels that are not (N,) integers, or radii that are no finite numbers of at least 0.
        """
        labels = checks.host_array(labels, "labels", shape=(len(self.classes),))
        right = self.classes == labels
        return [stats.wilson_interval(int((right & (self.radii >= radius)).sum()), len(labels)) for radius in checked_radii(radii)]


def smoothed_radii(
    logits_fn: LogitsFn,
    key: PRNGKeyArray,
    inputs: Float[ArrayLike, "N ..."],
    *,
    sigma: float,
    num_selection: int = 100,
    num_estimation: int = 100_000,
    failure: float = 0.001,
    batch_size: int = 1000,
) -> SmoothedRadii:
    """Certify the smoothed network at each input; the defaults are those of the source.

    The largest radius that n draws can certify is about sigma times 3.8 for 100,000, and 3.2 for 10,000.

    Args:
      logits_fn: inputs (N, ...) -> logits (N, C), in evaluation mode, best of a network trained with such noise.
      key: of the noise.
      inputs: floating-point (N, ...).
      sigma: the deviation of the noise, in units of the inputs.
      num_selection, num_estimation: draws that select the class, and draws that count it.
      failure: the probability, for each example, that its radius is too large; above 0 and below 1/2.
      batch_size: noisy inputs evaluated at a time.

    Raises:
      ValueError: arguments that are none of these.
      BatchCouplingError: as `jaxbp.attacks.robust_accuracy`.
    """
    checks.refuse_traced("inputs and key", inputs, checks.prng_key(key))
    sigma, failure = checks.number(sigma, "sigma", positive=True, known=True), checks.number(failure, "failure", positive=True, known=True)
    if failure >= 0.5:
        raise ValueError(f"failure must be below 0.5, a probability for each example, got {failure:g}")
    num_selection, num_estimation = checks.count(num_selection, "num_selection"), checks.count(num_estimation, "num_estimation")
    batch_size = min(checks.count(batch_size, "batch_size"), max(num_selection, num_estimation))
    network = network_of(logits_fn)
    examples = floating_examples(inputs)
    checks.logits_shape(network, examples, name="logits_fn", num_examples=len(examples))
    refuse_coupling(network, examples)

    classes, radii, probabilities = np.full(len(examples), ABSTAINED), np.zeros(len(examples)), np.zeros(len(examples))
    for index, example in enumerate(examples):
        draw = functools.partial(_class_counts, network, batch_size=batch_size, example=example, sigma=sigma)
        first, second = jax.random.split(jax.random.fold_in(key, index))
        selected = int(np.argmax(draw(first, num=num_selection)))
        count = int(draw(second, num=num_estimation)[selected])
        probabilities[index] = stats.proportion_interval(count, num_estimation, confidence=1 - 2 * failure).low
        if probabilities[index] > 0.5:
            classes[index], radii[index] = selected, sigma * scipy.stats.norm.ppf(probabilities[index])
    return SmoothedRadii(classes, radii, probabilities, sigma, failure)


@functools.partial(jax.jit, static_argnames="batch_size")
def _class_counts(
    network: LogitsFn, key: PRNGKeyArray, *, batch_size: int, example: Float[Array, "..."], sigma: jax.Array, num: jax.Array
) -> Int[Array, " C"]:
    """How often each class wins in ``num`` noisy copies of the example; NaN logits count for no class."""
    copies = jnp.broadcast_to(example, (batch_size, *example.shape))
    num_classes = jax.eval_shape(network, copies).shape[-1]

    def count(batch: jax.Array, counts: jax.Array) -> jax.Array:
        noise = jax.random.normal(jax.random.fold_in(key, batch), copies.shape, copies.dtype)
        logits = network(copies + jnp.asarray(sigma, copies.dtype) * noise)
        drawn = (batch * batch_size + jnp.arange(batch_size) < num) & jnp.isfinite(logits).all(-1)
        return counts + (drawn[:, None] & (logits.argmax(-1)[:, None] == jnp.arange(num_classes))).sum(0)

    return jax.lax.fori_loop(0, -(-num // batch_size), count, jnp.zeros(num_classes, jnp.int32))
