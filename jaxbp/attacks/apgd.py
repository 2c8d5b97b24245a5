"""Auto-PGD: gradient ascent without a step size to choose (Croce & Hein, ICML 2020, Algorithm 1).

It starts with steps of 2 epsilon and carries momentum. At checkpoints, ever closer to each other, it looks back: if the loss
rose in less than a share rho of the steps, or neither the step size nor the best loss changed since the last
checkpoint, it halves the step and returns to the best point. Each example has a step size of its own.

With the cross-entropy it is the source's APGD-CE, with ``loss="dlr"`` APGD-DLR, and with ``targets=9`` the targeted
attack of AutoAttack, one run for each of the likeliest wrong classes.

The source checks after it has taken the step of the checkpoint's iteration, and then throws that step away to return to
the best point. Here the check comes before the step, so none is thrown away; what is counted is the same.

>>> from jaxbp import attacks
>>> attacks.checkpoints(100)
(22, 41, 57, 70, 80, 87, 93, 99)
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.attacks.attack import Attack, AttackResult, Goal, LogitsFn, Targets, check_goal, worse, worst_of_runs
from jaxbp.attacks.pgd import evaluated, gradient_of, nothing_at
from jaxbp.attacks.threat import Threat

MOMENTUM = 0.75  # alpha: the share of the new step in the move; the rest continues the last one
RISING = 0.75  # rho: the share of steps since the last checkpoint that must have raised the loss


def apgd(
    threat: Threat,
    *,
    num_steps: int = 100,
    num_restarts: int = 1,
    loss: str = "cross_entropy",
    targets: Targets = None,
    runs: str = "auto",
) -> Attack:
    """Auto-PGD from random starts; the result is the worst over all iterates and runs, as with `pgd`'s ``keep="best"``.

    Args:
      threat, num_restarts, loss, targets, runs: as for `pgd`.
      num_steps: gradients of a run.

    Raises:
      ValueError: an option out of its range.
    """
    check_goal(loss, targets, num_restarts, runs)
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    return Attack(_Apgd(num_steps, num_restarts, loss, targets, runs), threat)


def checkpoints(num_steps: int) -> tuple[int, ...]:
    """The iterations ceil(p_j num_steps) that check: p_0 = 0, p_1 = 0.22, p_j+1 = p_j + max(p_j - p_j-1 - 0.03, 0.06)."""
    hundredths = [0, 22]  # whole numbers, as 0.22 + 0.19 + 0.16 is more than 0.57 in floating point
    while hundredths[-1] <= 100:
        hundredths.append(hundredths[-1] + max(hundredths[-1] - hundredths[-2] - 3, 6))
    found = {-(-p * num_steps // 100) for p in hundredths[1:] if p <= 100}
    return tuple(sorted(step for step in found if 0 < step < num_steps))


class _State(NamedTuple):
    """What the next iteration needs; per example what is (N,)."""

    now: jax.Array  # (N, ...)
    before: jax.Array  # (N, ...), the iterate before
    last_loss: jax.Array  # (N,), the loss at the iterate before
    step: jax.Array  # (N,), the step size
    num_rises: jax.Array  # (N,), since the last checkpoint
    best: jax.Array  # (N, ...), where the loss was largest
    best_loss: jax.Array  # (N,)
    best_gradient: jax.Array  # (N, ...), there
    mark_loss: jax.Array  # (N,), best loss at the last checkpoint
    halved: jax.Array  # (N,), whether the last checkpoint halved the step
    found: AttackResult


@dataclass(frozen=True)
class _Apgd:
    """The static side of `apgd`; equal ones are one to jit."""

    num_steps: int
    num_restarts: int
    loss: str
    targets: Targets
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
        del step_size
        checks = checkpoints(self.num_steps)
        is_check = np.isin(np.arange(self.num_steps), checks)
        since = np.zeros(self.num_steps)  # steps between a checkpoint and the one before
        since[list(checks)] = np.diff((0, *checks))
        plan = (jnp.asarray(is_check), jnp.asarray(RISING * since, jnp.float32), jnp.arange(self.num_steps) == 0)
        project = threat.projection(inputs)

        def wide(values: jax.Array) -> jax.Array:
            return values.reshape(-1, *(1,) * (inputs.ndim - 1))

        def run(run_key: jax.Array, goal: Goal) -> AttackResult:
            def iterate(state: _State, at: tuple[jax.Array, ...]) -> tuple[_State, None]:
                check, rises_wanted, first = at
                gradient, here = gradient_of(logits_fn, goal, state.now)
                num_rises = state.num_rises + (here.loss > state.last_loss) * ~first
                better = here.loss > state.best_loss
                best = jnp.where(wide(better), state.now, state.best)
                best_gradient = jnp.where(wide(better), gradient, state.best_gradient)
                best_loss = jnp.where(better, here.loss, state.best_loss)

                stuck = ~state.halved & (best_loss <= state.mark_loss)
                halve = check & ((num_rises < rises_wanted) | stuck)
                now = jnp.where(wide(halve), best, state.now)
                gradient = jnp.where(wide(halve), best_gradient, gradient)
                step = jnp.where(halve, state.step / 2, state.step)

                plain = project(now + wide(step) * threat.ascent(gradient))
                share = jnp.where(first, 1, MOMENTUM).astype(now.dtype)
                ahead = project(now + share * (plain - now) + (1 - share) * (now - state.before))
                following = _State(
                    now=ahead,
                    before=now,
                    last_loss=jnp.where(halve, best_loss, here.loss),
                    step=step,
                    num_rises=jnp.where(check, 0, num_rises),
                    best=best,
                    best_loss=best_loss,
                    best_gradient=best_gradient,
                    mark_loss=jnp.where(check | first, best_loss, state.mark_loss),
                    halved=jnp.where(check, halve, state.halved),
                    found=worse(state.found, here),
                )
                return following, None

            start = threat.random_start(run_key, inputs)
            nothing = nothing_at(logits_fn, goal, start)
            zeros = jnp.zeros_like(start)
            state = _State(
                now=start,
                before=start,
                last_loss=nothing.loss,
                step=jnp.full(len(start), 2 * jnp.asarray(threat.epsilon, start.dtype)),
                num_rises=jnp.zeros(len(start), jnp.int32),
                best=start,
                best_loss=nothing.loss,
                best_gradient=zeros,
                mark_loss=nothing.loss,
                halved=jnp.zeros(len(start), bool),
                found=nothing,
            )
            state, _ = jax.lax.scan(iterate, state, plan)
            return worse(state.found, evaluated(logits_fn, goal, state.now))

        return worst_of_runs(
            run, key, logits_fn, inputs, labels,
            loss=self.loss, targets=self.targets, num_restarts=self.num_restarts, runs=self.runs,
        )  # fmt: skip
