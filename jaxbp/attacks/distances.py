"""The distance from each input to the nearest mistake, and the robust accuracy at all radii that it gives at once.

The distances come from FAB (`jaxbp.attacks.fab`) and are upper bounds, so the curve of robust accuracy against the radius is one too.

>>> import jax, jax.numpy as jnp
>>> from jaxbp import attacks
>>> inputs, labels = jnp.array([[0.5, 0.4], [0.9, 0.1]]), jnp.array([0, 0])
>>> result = attacks.minimal_norms(lambda x: x, jax.random.key(0), inputs, labels, norm="linf", num_steps=10)
>>> result.distances.round(3).tolist()                     # where both entries are equal
[0.05, 0.4]
>>> [interval.estimate for interval in result.accuracy([0.0, 0.1, 0.5])]
[1.0, 0.5, 0.0]
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int, PRNGKeyArray

from jaxbp import checks, stats
from jaxbp.attacks.attack import Attack, AttackResult, LogitsFn, check_within, checked_examples, logits_of, network_of
from jaxbp.attacks.batching import correct_examples, full_batches
from jaxbp.attacks.fab import fab
from jaxbp.attacks.randomised import refuse_coupling
from jaxbp.attacks.threat import Threat, checked_radii


@dataclass(frozen=True)
class MinimalNorms:
    """The nearest mistakes that `minimal_norms` reached: upper bounds of the true distances.

    Attributes:
      norm: the norm of the distances.
      distances: (N,), 0 where the network errs on the input itself, inf where no mistake came to light.
      adversarial: (N, ...), the nearest mistakes, so close to the boundary that rounding may decide their class; the inputs themselves
        where the distance is 0 or inf.
      num_evaluations: forward passes over all examples; a gradient counts as one.
    """

    norm: str
    distances: Float[np.ndarray, " N"]
    adversarial: Float[np.ndarray, "N ..."]
    num_evaluations: int

    def accuracy(self, radii: Sequence[float]) -> list[stats.Interval]:
        """Robust accuracy at each of the ``radii``, with Wilson's 95 % interval: the fraction of examples whose distance is larger.

        Raises:
          ValueError: radii that are no finite numbers of at least 0.
        """
        return [stats.wilson_interval(int((self.distances > radius).sum()), len(self.distances)) for radius in checked_radii(radii)]


def minimal_norms(
    logits_fn: LogitsFn,
    key: PRNGKeyArray,
    inputs: Float[ArrayLike, "N ..."],
    labels: Int[ArrayLike, " N"],
    *,
    norm: str,
    bounds: Any = (0.0, 1.0),
    num_steps: int = 100,
    num_restarts: int = 1,
    targets: int | None = None,
    batch_size: int = 128,
) -> MinimalNorms:
    """The distance from each input to the nearest mistake, by `fab`, with no radius given.

    A ``logits_fn`` that is a `jax.tree_util.Partial` shares a compiled program with others of its function.

    Args:
      logits_fn: inputs (N, ...) -> logits (N, C), in evaluation mode.
      key: of the restarts.
      inputs, labels: floating-point (N, ...) inside the bounds, and integers (N,).
      norm, bounds: as for `jaxbp.attacks.Threat`.
      num_steps, num_restarts, targets: as for `fab`.
      batch_size: examples attacked at a time.

    Raises:
      ValueError: arguments that an attack refuses, or an option out of its range.
      BatchCouplingError: as `jaxbp.attacks.robust_accuracy`.
    """
    checks.refuse_traced("inputs, labels and key", inputs, labels, checks.prng_key(key))
    batch_size = checks.count(batch_size, "batch_size")
    network = network_of(logits_fn)
    outputs_fn = functools.partial(logits_of, network)
    inputs, labels = map(np.asarray, checked_examples(outputs_fn, inputs, labels))
    box = Threat(norm, 0.0, bounds)
    check_within(inputs, box)
    attack = fab(Threat(norm, box.diameter(inputs), box.bounds), num_steps=num_steps, num_restarts=num_restarts, targets=targets)
    attack.for_true_labels("minimal_norms").for_classes(checks.logits_shape(outputs_fn, inputs)[1])
    refuse_coupling(network, inputs)

    distances, adversarial = np.zeros(len(inputs)), inputs.copy()
    correct, num_evaluations = correct_examples(network, inputs, labels, batch_size), 0
    for batch, (rows, places) in enumerate(full_batches(np.flatnonzero(correct), batch_size)):
        result = _run(attack, network, jax.random.fold_in(key, batch), inputs[rows], labels[rows])
        distances[places] = -np.asarray(result.loss)[: len(places)]
        adversarial[places] = np.asarray(result.adversarial)[: len(places)]
        num_evaluations += int(result.num_evaluations) * len(places)
    return MinimalNorms(norm, distances, adversarial, num_evaluations)


@jax.jit
def _run(attack: Attack, network: LogitsFn, key: jax.Array, inputs: jax.Array, labels: jax.Array) -> AttackResult:
    return attack(network, key, inputs, labels)
