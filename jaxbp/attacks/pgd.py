"""Projected gradient ascent and its one-step relatives.

FGSM (Goodfellow et al., ICLR 2015) takes one step of length epsilon along the sign of the gradient. PGD (Madry et al., ICLR
2018, section 2) takes many shorter ones, from a random point of the ball, and projects after each. "l2" steps along
the gradient itself, scaled to the step size. All steps are one compiled loop, in which only the gradient with respect to the
inputs is formed.

Which of its iterates PGD hands back is a choice. ``keep="best"`` takes the worst for the network over all iterates and
restarts: one that succeeds before one that does not, then the larger loss. ``keep="last"`` takes the last iterate of each
restart, as in the source and in foolbox, and the worst of these; in training it is the cheaper, as where only the
adversarial inputs are used, the evaluation of the last iterate is left out of the compiled program.

>>> import jax, jax.numpy as jnp
>>> from jaxbp import attacks
>>> attack = attacks.pgd(attacks.Threat("linf", 0.1), num_steps=10, num_restarts=2)
>>> inputs, labels = jnp.array([[0.5, 0.4], [0.9, 0.1]]), jnp.array([0, 0])
>>> result = attack(lambda x: x, jax.random.key(0), inputs, labels)   # the logits are the two inputs themselves
>>> result.success.tolist(), result.num_evaluations.item()            # the second margin, 0.8, is out of reach
([True, False], 22)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.attacks.attack import (
    Attack,
    AttackResult,
    Goal,
    LogitsFn,
    Targets,
    check_goal,
    nothing_found,
    worse,
    worst_of_runs,
)
from jaxbp.attacks.threat import Threat

StepRule = str | Callable[[float], float]  # the share of the step size at a share of the steps in [0, 1)
STEP_RULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
}
KEEPS = ("best", "last")


def pgd(
    threat: Threat,
    *,
    num_steps: int = 20,
    step_size: Any = None,
    step_rule: StepRule = "constant",
    random_start: bool = True,
    num_restarts: int = 1,
    loss: str = "cross_entropy",
    targets: Targets = None,
    keep: str = "best",
    runs: str = "auto",
) -> Attack:
    """Projected gradient ascent; see the module.

    Args:
      threat: norm, radius and box.
      num_steps: gradients of a run.
      step_size: length of the first step in units of the inputs, may be traced; default 2.5 epsilon / num_steps (Madry et al.).
      step_rule: of `STEP_RULES`, or a function of the share of steps done; multiplies the step size.
      random_start: from a random point of the ball, or from the input itself.
      num_restarts: runs from different starts (for each target, if there are several).
      loss: of `jaxbp.attacks.losses.LOSSES`.
      targets: None for any mistake; a number k for the k likeliest wrong classes, one run after another; "given" if the
        labels that the attack is called with are the classes to reach.
      keep: of `KEEPS`.
      runs: "loop", "batch" or "auto", see `jaxbp.attacks.attack.worst_of_runs`.

    Raises:
      ValueError: an option out of its range.
    """
    check_goal(loss, targets, num_restarts, runs)
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    if not callable(step_rule) and step_rule not in STEP_RULES:
        raise ValueError(f"step_rule must be a function or one of {', '.join(STEP_RULES)}, got {step_rule!r}")
    if keep not in KEEPS:
        raise ValueError(f"keep must be one of {', '.join(KEEPS)}, got {keep!r}")
    if step_size is None:
        step_size = 2.5 * threat.epsilon / num_steps
    return Attack(_Pgd(num_steps, step_rule, random_start, num_restarts, loss, targets, keep, runs), threat, step_size)


def fgsm(
    threat: Threat,
    *,
    step_size: Any = None,
    random_start: bool = False,
    loss: str = "cross_entropy",
    targets: Targets = None,
) -> Attack:
    """The fast gradient sign method: one step, of length epsilon by default, from the input or a random start."""
    step_size = threat.epsilon if step_size is None else step_size
    return pgd(threat, num_steps=1, step_size=step_size, random_start=random_start, loss=loss, targets=targets, keep="last")


@dataclass(frozen=True)
class _Pgd:
    """The static side of `pgd`; equal ones are one to jit."""

    num_steps: int
    step_rule: StepRule
    random_start: bool
    num_restarts: int
    loss: str
    targets: Targets
    keep: str
    runs: str

    def __call__(
        self,
        threat: Threat,
        step_size: Any,
        logits_fn: LogitsFn,
        key: jax.Array,
        inputs: jax.Array,
        labels: jax.Array,
    ) -> AttackResult:
        rule = self.step_rule if callable(self.step_rule) else STEP_RULES[self.step_rule]
        shares = np.array([rule(step / self.num_steps) for step in range(self.num_steps)])
        steps = jnp.asarray(step_size, inputs.dtype) * shares.astype(inputs.dtype)
        project = threat.projection(inputs)

        def run(run_key: jax.Array, goal: Goal) -> AttackResult:
            start = threat.random_start(run_key, inputs) if self.random_start else threat.project(inputs, inputs)

            def ascend(carry: tuple[jax.Array, AttackResult | None], step: jax.Array) -> tuple[Any, None]:
                now, best = carry
                gradient, found = gradient_of(logits_fn, goal, now)
                best = None if best is None else worse(best, found)
                return (project(now + step * threat.ascent(gradient)), best), None

            best = None if self.keep == "last" else nothing_at(logits_fn, goal, start)
            (last, best), _ = jax.lax.scan(ascend, (start, best), steps)
            found = evaluated(logits_fn, goal, last)
            if best is None:
                return found._replace(num_evaluations=found.num_evaluations + self.num_steps)
            return worse(best, found)

        return worst_of_runs(
            run, key, logits_fn, inputs, labels,
            loss=self.loss, targets=self.targets, num_restarts=self.num_restarts, runs=self.runs,
        )  # fmt: skip


def evaluated(logits_fn: LogitsFn, goal: Goal, now: jax.Array) -> AttackResult:
    """The inputs ``now`` (N, ...) as a finding, from one forward pass."""
    logits = logits_fn(now)
    return AttackResult(now, goal.reached(logits), goal.value(logits), jnp.ones((), jnp.int32))


def gradient_of(logits_fn: LogitsFn, goal: Goal, now: jax.Array) -> tuple[jax.Array, AttackResult]:
    """The gradient (N, ...) of the loss with respect to the inputs ``now``, and these as a finding."""

    def total(candidates: jax.Array) -> tuple[jax.Array, AttackResult]:
        found = evaluated(logits_fn, goal, candidates)
        return found.loss.sum(), found

    return jax.grad(total, has_aux=True)(now)


def nothing_at(logits_fn: LogitsFn, goal: Goal, start: jax.Array) -> AttackResult:
    """A finding that any other is worse than; nothing is evaluated."""
    shapes = jax.eval_shape(lambda now: evaluated(logits_fn, goal, now), start)
    return nothing_found(shapes, start)
