"""Adversarial attacks, adversarial training, and robust accuracy.

A `Threat` says which perturbations are allowed; `fgsm`, `pgd`, `apgd`, `fab` and `square` make an `Attack` from it, which is one compiled
program over batch and restarts, and may be vmapped over seeds. `robust_accuracy` is the worst case over attacks, with checks for masked
gradients, and `autoattack` the set of attacks to hand it. `minimal_norms` answers for all radii at once. `randomised_accuracy` is for
networks that draw random numbers. `smoothed_radii` and `interval_certificate` prove that no attack succeeds. `pgd_training` and
`fgsm_training` attack the batches of a training run.

These are the instruments of "Truth or Backpropaganda?" (Goldblum et al., ICLR 2020), section 5.

>>> import jax, jax.numpy as jnp
>>> from jaxbp import attacks
>>> attack = attacks.pgd(attacks.Threat("l2", 0.5), num_steps=20, num_restarts=2)
>>> inputs, labels = jax.random.uniform(jax.random.key(0), (8, 4, 4, 1)), jnp.zeros(8, int)
>>> result = jax.jit(attack, static_argnums=0)(lambda x: x.reshape(len(x), -1)[:, :3], jax.random.key(1), inputs, labels)
>>> bool((attack.threat.distance(result.adversarial, inputs) <= 0.5).all())
True
"""

from jaxbp.attacks.adversarial_training import PerturbFn, adversarial_batch, fgsm_training, pgd_training
from jaxbp.attacks.apgd import apgd, step_size_checkpoints
from jaxbp.attacks.attack import Attack, AttackResult
from jaxbp.attacks.distances import MinimalNorms, minimal_norms
from jaxbp.attacks.fab import fab
from jaxbp.attacks.interval_bounds import IntervalCertificate, UnboundedOperationError, interval_bounds, interval_certificate
from jaxbp.attacks.losses import LOSSES, TARGETED
from jaxbp.attacks.masking import GradientMaskingCheck, gradient_masking_checks
from jaxbp.attacks.pgd import STEP_RULES, fgsm, pgd
from jaxbp.attacks.randomised import RandomisedEvaluation, expectation, randomised_accuracy
from jaxbp.attacks.robustness import RobustEvaluation, mean_over_seeds, robust_accuracy
from jaxbp.attacks.smoothing import ABSTAINED, SmoothedRadii, smoothed_radii
from jaxbp.attacks.square import square
from jaxbp.attacks.suite import autoattack
from jaxbp.attacks.threat import NORMS, Threat
