"""Adversarial training: each training step sees an attacked batch in place of the clean one.

Madry et al. (ICLR 2018) attack each batch by PGD from a random start, seven steps of epsilon / 4 on CIFAR-10, and train on the last
iterate. Wong et al. (ICLR 2020) take a single step of 1.25 epsilon from a uniform random start (FGSM-RS), at about a
quarter of the cost; it can collapse within an epoch ("catastrophic overfitting"), so measure the robust accuracy under PGD.

A `PerturbFn` is ``(key, logits_fn, inputs, labels) -> inputs``. The caller chooses the network's mode during the attack through
``logits_fn``: the code of Madry et al. attacks in training mode, where BatchNorm uses the statistics of the attacked batch; other
implementations attack in evaluation mode, with stored statistics. Discard statistics that the attack updates.
`jaxbp.training.train` passes the state of the network, not its logits, so wrap it,
``lambda key, state, x, y: perturb_fn(key, lambda x: net.update(state.params, x, state.model_state)[0], x, y)``.

The result is stop_gradient-ed. Call a `PerturbFn` outside of the differentiated function: JAX would trace the attack for nothing.

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
from jaxbp.attacks.threat import Threat, multiple_of_epsilon

PerturbFn = Callable[[jax.Array, LogitsFn, jax.Array, jax.Array], jax.Array]


def pgd_training(threat: Threat, *, num_steps: int = 7, step_size: Any = None, loss: str = "cross_entropy") -> PerturbFn:
    """Madry et al.'s perturbation: the last iterate of PGD from a random start, with steps of epsilon / 4 by default."""
    step_size = multiple_of_epsilon(threat, 1 / 4) if step_size is None else step_size
    return adversarial_batch(pgd(threat, num_steps=num_steps, step_size=step_size, loss=loss, keep="last"))


def fgsm_training(threat: Threat, *, step_size: Any = None, loss: str = "cross_entropy") -> PerturbFn:
    """Wong et al.'s FGSM-RS: one step, of 1.25 epsilon by default, from a random start."""
    step_size = multiple_of_epsilon(threat, 1.25) if step_size is None else step_size
    return adversarial_batch(fgsm(threat, step_size=step_size, random_start=True, loss=loss))


def adversarial_batch(attack: Attack) -> PerturbFn:
    """Any attack as a `PerturbFn`. It uses the adversarial inputs only, so under jit the other results cost nothing.

    Raises:
      ValueError: an attack with ``targets="given"``, as training hands it the true labels; when called, whatever the attack refuses.
    """
    attack = attack.for_true_labels("adversarial_batch")

    def perturb(key: jax.Array, logits_fn: LogitsFn, inputs: jax.Array, labels: jax.Array) -> jax.Array:
        return jax.lax.stop_gradient(attack(logits_fn, key, inputs, labels).adversarial)

    return perturb
