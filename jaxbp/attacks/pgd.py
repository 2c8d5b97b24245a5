"""Projected gradient ascent and its one-step relatives.

FGSM (Goodfellow et al., ICLR 2015) takes one step of length epsilon along the sign of the gradient. PGD (Madry et al., ICLR
2018, section 2) takes many shorter steps from a random point of the ball, and projects after each. In the norm "l2" a step follows
the gradient itself, scaled to the step size. In "l1" a step moves one entry, which is slow: use `jaxbp.attacks.apgd` there. All steps
are one compiled loop, which forms gradients with respect to the inputs only.

PGD returns one of two iterates. ``keep="best"`` returns the worst iterate over all steps and restarts: success before
failure, then the larger loss. ``keep="last"`` takes the last iterate of each restart, as the source and foolbox do, and
returns the worst of these. It is cheaper in training: where only the adversarial inputs are used, the compiled program
leaves out the evaluation of the last iterate.

>>> import jax, jax.numpy as jnp
>>> from jaxbp import attacks
>>> attack = attacks.pgd(attacks.Threat("linf", 0.1), num_steps=10, num_restarts=2)
>>> inputs, labels = jnp.array([[0.5, 0.4], [0.9, 0.1]]), jnp.array([0, 0])
>>> result = attack(lambda x: x, jax.random.key(0), inputs, labels)   # the logits are the inputs
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
    RestartedMethod,
    RunFn,
    Targets,
    elementwise_worst,
    forward_result,
    gradient_and_result,
    unevaluated_result,
)
from jaxbp.attacks.threat import Threat, multiple_of_epsilon

StepRule = str | Callable[[float], float]  # fraction of the steps done, in [0, 1) -> factor of the step size
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
      step_rule: a key of `STEP_RULES`, or a function of the fraction of steps done; it multiplies the step size.
      random_start: start from a random point of the ball, or from the input itself.
      num_restarts, targets, runs: see `jaxbp.attacks.attack.RestartedMethod`.
      loss: a key of `jaxbp.attacks.losses.LOSSES`.
      keep: one of `KEEPS`.

    Raises:
      ValueError: an option out of its range.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    if not callable(step_rule) and step_rule not in STEP_RULES:
        raise ValueError(f"step_rule must be a function or one of {', '.join(STEP_RULES)}, got {step_rule!r}")
    if keep not in KEEPS:
        raise ValueError(f"keep must be one of {', '.join(KEEPS)}, got {keep!r}")
    if step_size is None:
        step_size = multiple_of_epsilon(threat, 2.5 / num_steps)
    method = _Pgd(
        num_steps=num_steps,
        step_rule=step_rule,
        random_start=random_start,
        keep=keep,
        loss=loss,
        targets=targets,
        num_restarts=num_restarts,
        runs=runs,
    )
    return Attack(method, threat, step_size)


def fgsm(
    threat: Threat,
    *,
    step_size: Any = None,
    random_start: bool = False,
    loss: str = "cross_entropy",
    targets: Targets = None,
) -> Attack:
    """The fast gradient sign method: one step, of length epsilon by default, from the input or a random start."""
    step_size = multiple_of_epsilon(threat, 1) if step_size is None else step_size
    return pgd(threat, num_steps=1, step_size=step_size, random_start=random_start, loss=loss, targets=targets, keep="last")


@dataclass(frozen=True, kw_only=True)
class _Pgd(RestartedMethod):
    """The static side of `pgd`."""

    num_steps: int
    step_rule: StepRule
    random_start: bool
    keep: str

    def run_fn(self, threat: Threat, step_size: Any, logits_fn: LogitsFn, inputs: jax.Array) -> RunFn:
        rule = self.step_rule if callable(self.step_rule) else STEP_RULES[self.step_rule]
        factors = np.array([rule(step / self.num_steps) for step in range(self.num_steps)])
        steps = jnp.asarray(step_size, inputs.dtype) * factors.astype(inputs.dtype)
        project = threat.projection(inputs)

        def run(key: jax.Array, goal: Goal) -> AttackResult:
            start = threat.random_start(key, inputs) if self.random_start else inputs

            def ascend(carry: tuple[jax.Array, AttackResult | None], step: jax.Array) -> tuple[Any, None]:
                iterate, worst = carry
                gradient, result = gradient_and_result(logits_fn, goal, iterate)
                worst = None if worst is None else elementwise_worst(worst, result)
                if threat.norm == "l1":  # where the largest entry is at the box's edge, no step would move anything
                    gradient = threat.open_entries(gradient, iterate)
                return (project(iterate + step * threat.steepest_ascent(gradient)), worst), None

            worst = None if self.keep == "last" else unevaluated_result(logits_fn, goal, start)
            (last, worst), _ = jax.lax.scan(ascend, (start, worst), steps)
            result = forward_result(logits_fn, goal, last)
            if worst is None:
                return result._replace(num_evaluations=result.num_evaluations + self.num_steps)
            return elementwise_worst(worst, result)

        return run
