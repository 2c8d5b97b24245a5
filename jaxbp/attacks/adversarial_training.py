"""Train on attacked inputs: the batch that a training step sees is replaced by an adversarial one.

Madry et al. (ICLR 2018) attack each batch by PGD from a random start, seven steps of epsilon / 4 on CIFAR-10, and train on the last
iterate alone. Wong et al. (ICLR 2020) take a single step of 1.25 epsilon from a uniform random start (FGSM-RS), at about a
quarter of the cost; it can collapse within an epoch ("catastrophic overfitting"), so watch the robust accuracy under PGD.

A `PerturbFn` is ``(key, logits_fn, inputs, labels) -> inputs``. The network's mode in the attack is the caller's choice, through
``logits_fn``: the code of Madry et al. attacks in training mode, where BatchNorm goes by the statistics of the attacked batch;
others attack in evaluation mode, by stored ones. Updates of the statistics are the attack's own, to be dropped. Call it outside of the
gradient that trains. `jaxbp.training.train` takes a function of the network's state instead of its logits: wrap it,
``lambda key, state, x, y: perturb_fn(key, lambda x: net.update(state.params, x, state.model_state)[0], x, y)``.
No gradient passes through the result, but one taken around it would trace through the attack in vain.

>>> import jax, jax.numpy as jnp
>>> from jaxbp import attacks
>>> perturb_fn = attacks.pgd_training(attacks.Threat("linf", 0.125), num_steps=8)
>>> inputs, labels = jnp.array([[0.5, 0.375], [0.75, 0.25]]), jnp.array([0, 0])
>>> perturb_fn(jax.random.key(0), lambda x: x, inputs, labels).tolist()
[[0.375, 0.5], [0.625, 0.375]]
"""

from collections.abc import Callable
from typing import Any

import jax

from jaxbp.attacks.attack import Attack, LogitsFn
from jaxbp.attacks.pgd import fgsm, pgd
from jaxbp.attacks.threat import Threat

PerturbFn = Callable[[jax.Array, LogitsFn, jax.Array, jax.Array], jax.Array]


def pgd_training(threat: Threat, *, num_steps: int = 7, step_size: Any = None, loss: str = "cross_entropy") -> PerturbFn:
    """Madry et al.'s: the last iterate of PGD from a random start, steps of epsilon / 4 unless ``step_size`` is given."""
    step_size = threat.epsilon / 4 if step_size is None else step_size
    return adversarial_batch(pgd(threat, num_steps=num_steps, step_size=step_size, loss=loss, keep="last"))


def fgsm_training(threat: Threat, *, step_size: Any = None, loss: str = "cross_entropy") -> PerturbFn:
    """Wong et al.'s FGSM-RS: one step of 1.25 epsilon, unless ``step_size`` is given, from a random start."""
    step_size = 1.25 * threat.epsilon if step_size is None else step_size
    return adversarial_batch(fgsm(threat, step_size=step_size, random_start=True, loss=loss))


def adversarial_batch(attack: Attack) -> PerturbFn:
    """Any attack as a `PerturbFn`. Only the inputs are used, so under jit what else the attack finds costs nothing."""

    def perturb(key: jax.Array, logits_fn: LogitsFn, inputs: jax.Array, labels: jax.Array) -> jax.Array:
        return jax.lax.stop_gradient(attack(logits_fn, key, inputs, labels).adversarial)

    return perturb
