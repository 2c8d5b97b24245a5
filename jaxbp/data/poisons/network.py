"""Perturbations made by the gradients of a network: up a loss of a trained one, or down the loss of one in training."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Float, Int, PRNGKeyArray

from jaxbp import checks, losses, metrics
from jaxbp.attacks import Attack, Threat


def _real(inputs: np.ndarray) -> np.ndarray:
    return inputs if jnp.issubdtype(inputs.dtype, jnp.floating) else inputs.astype(np.float32)


def adversarial(
    key: PRNGKeyArray,
    logits_fn: Callable[[jax.Array], jax.Array],
    inputs: Float[ArrayLike, "N ..."],
    labels: Int[ArrayLike, " N"],
    attack: Attack,
    *,
    shift: int = 1,
) -> Float[np.ndarray, "N ..."]:
    """Perturbations that a trained network takes for the class ``(y + shift) mod C``; ``shift`` 0 strengthens the own class.

    Args:
      key: of the attack.
      logits_fn: the trained network.
      inputs, labels: to perturb.
      attack: with the labels as goals, ``jaxbp.attacks.pgd(threat, targets="given")``.
      shift: to the class aimed at.

    Raises:
      ValueError: an attack that has other goals.
    """
    if getattr(attack.method, "targets", None) != "given":
        raise ValueError('the attack must aim at given classes: build it by attacks.pgd(threat, targets="given")')
    inputs = jnp.asarray(_real(checks.host_examples(inputs)))
    _, num_classes = checks.logits_shape(logits_fn, inputs)
    goals = (checks.host_labels(labels, num_classes, len(inputs)) + shift) % num_classes
    return np.asarray(attack(logits_fn, checks.prng_key(key, known=True), inputs, goals).adversarial - inputs)


class ErrorMinimising(NamedTuple):
    """What `error_minimising` reached.

    Attributes:
      perturbation: (N, ...), within the threat.
      error: of the network on the perturbed data, a share.
      num_rounds: of training and perturbing.
    """

    perturbation: Float[np.ndarray, "N ..."]
    error: float
    num_rounds: int


def error_minimising(
    key: PRNGKeyArray,
    init_fn: Callable[[jax.Array, jax.Array], Any],
    apply_fn: Callable[[Any, jax.Array], jax.Array],
    optimizer: optax.GradientTransformation,
    data: tuple[Float[ArrayLike, "N ..."], Int[ArrayLike, " N"]],
    *,
    threat: Threat,
    train_steps: int = 10,
    attack_steps: int = 20,
    step_size: float,
    batch_size: int = 128,
    stop_error: float = 0.01,
    max_rounds: int = 100,
    per_class: bool = False,
) -> ErrorMinimising:
    """Noise that leaves nothing to learn: rounds of a few training steps, then steps of all perturbations *down* the loss.

    Args:
      key: of the network and the batches.
      init_fn: ``(key, inputs) -> params``.
      apply_fn: ``(params, inputs) -> logits``.
      optimizer: of the training steps.
      data: inputs (N, ...) and labels (N,).
      threat: what perturbations may be.
      train_steps, attack_steps: of a round.
      step_size: of a step of the perturbations.
      batch_size: of a training step, and of what is in memory at a time.
      stop_error: rounds end when the share of errors on the perturbed data is at most this.
      max_rounds: rounds end here anyway.
      per_class: one perturbation for each class (box bounds aside); its gradient is the mean over the class.
    """
    inputs = jnp.asarray(_real(checks.host_examples(data[0])))
    init_key, batch_key = jax.random.split(checks.prng_key(key, known=True))
    params = init_fn(init_key, inputs[:1])
    _, num_classes = checks.logits_shape(apply_fn, params, inputs)
    labels = jnp.asarray(checks.host_labels(data[1], num_classes, len(inputs)))
    members = jax.nn.one_hot(labels, num_classes) if per_class else None
    size = min(batch_size, len(inputs))
    rows = jnp.arange(-(-len(inputs) // size) * size).reshape(-1, size) % len(inputs)  # all examples, some twice, in batches

    def loss(params: Any, inputs: jax.Array, labels: jax.Array) -> jax.Array:
        return losses.cross_entropy(apply_fn(params, inputs), labels).sum()

    @jax.jit
    def play_round(params: Any, opt_state: Any, perturbed: jax.Array, round_key: jax.Array) -> tuple[Any, Any, jax.Array, jax.Array]:
        def train(carry: tuple[Any, Any], step_key: jax.Array) -> tuple[tuple[Any, Any], None]:
            params, opt_state = carry
            batch = jax.random.choice(step_key, len(inputs), (size,), replace=False)
            gradient = jax.tree.map(lambda g: g / size, jax.grad(loss)(params, perturbed[batch], labels[batch]))
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        (params, opt_state), _ = jax.lax.scan(train, (params, opt_state), jax.random.split(round_key, train_steps))

        def batched(fn: Callable[[jax.Array, jax.Array], jax.Array], perturbed: jax.Array) -> jax.Array:
            parts = jax.lax.map(lambda batch: fn(perturbed[batch], labels[batch]), rows)
            return parts.reshape(-1, *parts.shape[2:])[: len(inputs)]

        def descend(perturbed: jax.Array, _: None) -> tuple[jax.Array, None]:
            gradient = batched(lambda *batch: jax.grad(loss, 1)(params, *batch), perturbed)
            if members is not None:
                gradient = jnp.einsum("nc,mc,m...->n...", members, members / jnp.maximum(members.sum(0), 1), gradient)
            return threat.project(perturbed - step_size * threat.steepest_ascent(gradient), inputs), None

        perturbed, _ = jax.lax.scan(descend, perturbed, length=attack_steps)
        right = batched(lambda inputs, labels: metrics.accuracy(apply_fn(params, inputs), labels), perturbed)
        return params, opt_state, perturbed, 1 - right.mean()

    perturbed, opt_state, error, number = inputs, optimizer.init(params), jnp.ones(()), 0
    while number < max_rounds and error > stop_error:
        params, opt_state, perturbed, error = play_round(params, opt_state, perturbed, jax.random.fold_in(batch_key, number))
        number += 1
    return ErrorMinimising(np.asarray(perturbed - inputs), float(error), number)
