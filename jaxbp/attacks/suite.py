"""AutoAttack's standard set: four attacks that need no tuning and fail in different ways (Croce & Hein, ICML 2020).

- ``apgd_ce``: Auto-PGD on the cross-entropy;
- ``apgd_t``: Auto-PGD on the targeted ratio of logits, at each of the 9 likeliest wrong classes, which sees through confident networks;
- ``fab_t``: the nearest mistake at each of the 9 likeliest wrong classes, which needs no step size and follows the boundary;
- ``square``: a random search of 5,000 queries, which needs no gradients and is not misled by them.

Each has one run with 100 steps (for each class). Under "l1" Auto-PGD and Square are those of Croce & Hein (ICML 2021). Networks with 10
classes or more take the set as it is; with fewer, lower ``num_targets``. The targeted ratio needs 4 classes.

>>> import jax, jax.numpy as jnp
>>> from jaxbp import attacks
>>> suite = attacks.autoattack(attacks.Threat("linf", 8 / 255))
>>> list(suite)
['apgd_ce', 'apgd_t', 'fab_t', 'square']
"""

from jaxbp.attacks.apgd import apgd
from jaxbp.attacks.attack import Attack
from jaxbp.attacks.fab import fab
from jaxbp.attacks.square import square
from jaxbp.attacks.threat import Threat


def autoattack(
    threat: Threat, *, num_steps: int = 100, num_restarts: int = 1, num_targets: int = 9, num_queries: int = 5000
) -> dict[str, Attack]:
    """The standard set, for `jaxbp.attacks.robust_accuracy`; use it before a claim of robustness.

    Args:
      threat: norm, radius and box.
      num_steps: gradients of each run of APGD, linearisations of each run of FAB.
      num_restarts: runs of each attack from different starts (for each target, in the targeted attacks).
      num_targets: number of likeliest wrong classes to target, fewer than the classes.
      num_queries: forward passes of each run of Square.

    Raises:
      ValueError: an option out of its range.
    """
    return {
        "apgd_ce": apgd(threat, num_steps=num_steps, num_restarts=num_restarts),
        "apgd_t": apgd(threat, num_steps=num_steps, num_restarts=num_restarts, loss="dlr", targets=num_targets),
        "fab_t": fab(threat, num_steps=num_steps, num_restarts=num_restarts, targets=num_targets),
        "square": square(threat, num_queries=num_queries, num_restarts=num_restarts),
    }
