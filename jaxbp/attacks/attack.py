"""An attack as a value: a method that is static, and a threat that is data.

``attack(logits_fn, key, inputs, labels)`` is pure: it may be jitted, vmapped over keys and parameters, and run in a
scan. An attack is a pytree too, whose leaves are the radius and the step size. Handed to a jitted function as an
argument, attacks that differ in these alone share a compiled program; so do networks of different parameters, if
``logits_fn`` is a `jax.tree_util.Partial` of a function and its parameters.

All attacks take inputs that the network already gets wrong like any other. `jaxbp.attacks.robust_accuracy` leaves them out.

>>> import jax, jax.numpy as jnp
>>> from jaxbp import attacks
>>> def logits(weights, inputs): return inputs @ weights
>>> network = jax.tree_util.Partial(logits, jnp.array([[1.0, 0.0], [0.0, 1.0]]))
>>> run = jax.jit(lambda attack, *arguments: attack(*arguments))
>>> inputs, labels = jnp.array([[0.5, 0.375], [0.9, 0.1]]), jnp.array([0, 0])
>>> for epsilon in (0.0625, 0.125):                                             # compiled once
...     result = run(attacks.fgsm(attacks.Threat("linf", epsilon)), network, jax.random.key(0), inputs, labels)
...     print(result.success.tolist(), result.adversarial[0].tolist())
[False, False] [0.4375, 0.4375]
[True, False] [0.375, 0.5]
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxbp import metrics
from jaxbp.attacks import losses
from jaxbp.attacks.threat import Threat
from jaxbp.ops import platform

LogitsFn = Callable[[jax.Array], jax.Array]  # inputs (N, ...) -> logits (N, C)
Targets = int | Literal["given"] | None
RUNS = ("auto", "loop", "batch")


class AttackResult(NamedTuple):
    """What an attack found.

    ``adversarial`` (N, ...): the worst input found for each example; ``success`` (N,): whether it does what was wanted,
    a mistake or the target class; ``loss`` (N,): the attack's own loss there; ``num_evaluations``: forward passes spent on each
    example, a gradient counting as one.
    """

    adversarial: jax.Array
    success: jax.Array
    loss: jax.Array
    num_evaluations: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Attack:
    """A method under a threat; made by `fgsm`, `pgd`, `apgd`, `square`, or of a method of your own.

    Attributes:
      method: static and hashable; ``method(threat, step_size, logits_fn, key, inputs, labels) -> AttackResult``.
      threat: what is allowed.
      step_size: of the first step, in units of the inputs; None if the method has none.
      gradient_free: whether the method does without gradients; `robust_accuracy` compares the two kinds.
    """

    method: Callable[..., AttackResult] = dataclasses.field(metadata={"static": True})
    threat: Threat
    step_size: Any = None
    gradient_free: bool = dataclasses.field(default=False, metadata={"static": True})

    def __call__(self, logits_fn: LogitsFn, key: jax.Array, inputs: jax.Array, labels: jax.Array) -> AttackResult:
        """Attack floating-point ``inputs`` (N, ...) of integer ``labels`` (N,); ValueError if they are not."""
        inputs, labels = jnp.asarray(inputs), jnp.asarray(labels)
        if not jnp.issubdtype(inputs.dtype, jnp.floating):
            raise ValueError(f"inputs must be of a floating dtype, got {inputs.dtype}: divide images by 255")
        if inputs.shape[:1] != labels.shape or not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ValueError(
                f"labels must be integers, one an input, got {labels.dtype} of shape {labels.shape} for inputs of shape {inputs.shape}"
            )
        return self.method(self.threat, self.step_size, logits_fn, key, inputs, labels)


class Goal(NamedTuple):
    """What one run of an attack is after: away from ``labels`` (N,), or to ``targets`` (N,) if they are given.

    ``labels`` may be None with targets: then success is the target itself, not just a mistake.
    """

    loss: str
    labels: jax.Array | None
    targets: jax.Array | None

    def value(self, logits: jax.Array) -> jax.Array:
        """The loss to maximise, (N,)."""
        chex.assert_rank(logits, 2)
        if self.targets is None:
            return losses.LOSSES[self.loss](logits, self.labels)  # type: ignore[arg-type]  # given if there are no targets
        return losses.TARGETED[self.loss](logits, self.labels, self.targets)

    def reached(self, logits: jax.Array) -> jax.Array:
        """Whether the goal is reached, (N,); NaN logits are a mistake, and no target."""
        if self.labels is None:
            return metrics.accuracy(logits, self.targets) > 0  # type: ignore[arg-type]  # given if there are no labels
        return metrics.accuracy(logits, self.labels) == 0


def check_goal(loss: str, targets: Targets, num_restarts: int, runs: str) -> None:
    """ValueError unless the options that attacks share make sense."""
    for name, value, choices in (("loss", loss, tuple(losses.LOSSES)), ("runs", runs, RUNS)):
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    number = isinstance(targets, int) and not isinstance(targets, bool) and targets >= 1
    if not (targets is None or targets == "given" or number):
        raise ValueError(f"targets must be None, 'given' or a number of classes, got {targets!r}")
    if num_restarts < 1:
        raise ValueError(f"num_restarts must be at least 1, got {num_restarts}")


def worse(first: AttackResult, second: AttackResult) -> AttackResult:
    """For each example the more adversarial of two: success goes before loss, and the first before an equal.

    Evaluations add up.
    """
    louder = (first.success == second.success) & (second.loss > first.loss)
    second_wins = louder | (second.success & ~first.success)

    def pick(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(second_wins.reshape(-1, *(1,) * (a.ndim - 1)), b, a)

    adversarial, success, loss = jax.tree.map(pick, first[:3], second[:3])
    return AttackResult(adversarial, success, loss, first.num_evaluations + second.num_evaluations)


def worst_of_runs(
    run: Callable[[jax.Array, Goal], AttackResult],
    key: jax.Array,
    logits_fn: LogitsFn,
    inputs: jax.Array,
    labels: jax.Array,
    *,
    loss: str,
    targets: Targets,
    num_restarts: int,
    runs: str,
) -> AttackResult:
    """The worst over restarts, and over the likeliest wrong classes if ``targets`` is their number.

    Runs follow each other in a loop ("loop"), or their batches are laid side by side ("batch"). "auto" loops on the CPU, where
    large batches fall out of the cache.
    """
    if targets is None or targets == "given":
        aims = Goal(loss, labels, None) if targets is None else Goal(loss, None, labels)
        classes, extra = None, 0
    else:
        aims = Goal(loss, labels, None)
        likeliest = _likeliest_wrong(logits_fn(inputs), labels, targets)
        classes, extra = jnp.repeat(likeliest, num_restarts, axis=0), 1
    num_runs = num_restarts * (1 if classes is None else len(classes) // num_restarts)

    def one(draw: tuple[jax.Array, jax.Array | None]) -> AttackResult:
        run_key, wanted = draw
        return run(run_key, aims if wanted is None else aims._replace(targets=wanted))

    draws = (jax.random.split(key, num_runs), classes)
    if num_runs == 1:
        found = one(jax.tree.map(lambda leaf: leaf[0], draws))
    elif runs == "loop" or (runs == "auto" and platform.current() == "cpu"):
        blank = nothing_found(jax.eval_shape(one, jax.tree.map(lambda leaf: leaf[0], draws)), inputs)
        found, _ = jax.lax.scan(lambda best, draw: (worse(best, one(draw)), None), blank, draws)
    else:
        stacked = jax.vmap(one)(draws)
        each = [jax.tree.map(lambda leaf, i=index: leaf[i], stacked) for index in range(num_runs)]
        found = functools.reduce(worse, each)
    return found._replace(num_evaluations=found.num_evaluations + extra)


def nothing_found(shapes: AttackResult, inputs: jax.Array) -> AttackResult:
    """What any finding is worse than."""
    loss = jnp.full(shapes.loss.shape, -jnp.inf, shapes.loss.dtype)
    return AttackResult(inputs, jnp.zeros(len(inputs), bool), loss, jnp.zeros((), shapes.num_evaluations.dtype))


def _likeliest_wrong(logits: jax.Array, labels: jax.Array, count: int) -> jax.Array:
    """The ``count`` classes of largest logits beside the label, (count, N)."""
    num_classes = logits.shape[-1]
    if count >= num_classes:
        raise ValueError(f"targets must be at most {num_classes - 1}, the number of wrong classes, got {count}")
    others = jnp.where(labels[:, None] == jnp.arange(num_classes), -jnp.inf, logits)
    return jax.lax.top_k(others, count)[1].T
