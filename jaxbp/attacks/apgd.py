"""Auto-PGD: gradient ascent without a step size to choose (Croce & Hein, ICML 2020, Algorithm 1).

It starts with steps of 2 epsilon and carries momentum. At checkpoints, whose distances shrink, it halves the step and returns to
the best point in two cases: the loss rose in less than a share rho of the steps since the last checkpoint, or neither the
step size nor the best loss changed since then. Each example has its own step size.

With the cross-entropy it is the source's APGD-CE, with ``loss="dlr"`` APGD-DLR, and with ``targets=9`` the targeted
attack of AutoAttack, one run for each of the likeliest wrong classes.

The source checks after the step of the checkpoint's iteration, and then discards that step to return to the best point. Here the
check comes before the step, so no step is discarded; the counted quantities are the same.

>>> from jaxbp import attacks
>>> attacks.step_size_checkpoints(100)
(22, 41, 57, 70, 80, 87, 93, 99)
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.attacks.apgd_l1 import L1Apgd
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
from jaxbp.attacks.threat import Threat, wide

MOMENTUM = 0.75  # alpha: weight of the new step in a move; the last move has the rest
RISING = 0.75  # rho: fraction of the steps since the last checkpoint that must raise the loss


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
      threat, num_restarts, loss, targets, runs: as for `pgd`; in the norm "l1" the method is that of `jaxbp.attacks.apgd_l1`.
      num_steps: gradients of a run.

    Raises:
      ValueError: an option out of its range.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    method = L1Apgd if isinstance(threat, Threat) and threat.norm == "l1" else _Apgd
    return Attack(method(num_steps=num_steps, loss=loss, targets=targets, num_restarts=num_restarts, runs=runs), threat)


def step_size_checkpoints(num_steps: int) -> tuple[int, ...]:
    """The iterations ceil(p_j num_steps) that check the step size: p_0 = 0, p_1 = 0.22, p_j+1 = p_j + max(p_j - p_j-1 - 0.03, 0.06)."""
    hundredths = [0, 22]  # whole numbers, as 0.22 + 0.19 + 0.16 is more than 0.57 in floating point
    while hundredths[-1] <= 100:
        hundredths.append(hundredths[-1] + max(hundredths[-1] - hundredths[-2] - 3, 6))
    steps = {-(-p * num_steps // 100) for p in hundredths[1:] if p <= 100}
    return tuple(sorted(step for step in steps if 0 < step < num_steps))


class _State(NamedTuple):
    """The state between two iterations.

    Attributes:
      iterate, previous: (N, ...), this iterate and the one before.
      last_loss: (N,), the loss at the previous iterate.
      step: (N,), the step size.
      num_rises: (N,), steps since the last checkpoint that raised the loss.
      best, best_loss, best_gradient: (N, ...), (N,) and (N, ...), the iterate of largest loss.
      checkpoint_loss: (N,), the best loss at the last checkpoint.
      halved: (N,), whether the last checkpoint halved the step.
      worst: the worst result of all iterates.
    """

    iterate: jax.Array
    previous: jax.Array
    last_loss: jax.Array
    step: jax.Array
    num_rises: jax.Array
    best: jax.Array
    best_loss: jax.Array
    best_gradient: jax.Array
    checkpoint_loss: jax.Array
    halved: jax.Array
    worst: AttackResult


class _Iteration(NamedTuple):
    """The schedule of one iteration: whether it checks, how many rises it then asks for, whether it is the first."""

    is_checkpoint: jax.Array
    rises_needed: jax.Array
    is_first: jax.Array


def _schedule(num_steps: int) -> _Iteration:
    """The schedule of all iterations, (num_steps,) each."""
    checkpoints = step_size_checkpoints(num_steps)
    is_checkpoint = np.isin(np.arange(num_steps), checkpoints)
    distances = np.zeros(num_steps)  # steps between a checkpoint and the one before
    distances[list(checkpoints)] = np.diff((0, *checkpoints))
    return _Iteration(jnp.asarray(is_checkpoint), jnp.asarray(RISING * distances, jnp.float32), jnp.arange(num_steps) == 0)


def _first_state(start: jax.Array, result: AttackResult, epsilon: Any) -> _State:
    return _State(
        iterate=start,
        previous=start,
        last_loss=result.loss,
        step=jnp.full(len(start), 2 * jnp.asarray(epsilon, start.dtype)),
        num_rises=jnp.zeros(len(start), jnp.int32),
        best=start,
        best_loss=result.loss,
        best_gradient=jnp.zeros_like(start),
        checkpoint_loss=result.loss,
        halved=jnp.zeros(len(start), bool),
        worst=result,
    )


def _with_best(state: _State, loss: jax.Array, gradient: jax.Array) -> _State:
    """The state with ``best`` replaced where the loss at the iterate is larger."""
    better = loss > state.best_loss
    return state._replace(
        best=jnp.where(wide(better, state.best), state.iterate, state.best),
        best_loss=jnp.where(better, loss, state.best_loss),
        best_gradient=jnp.where(wide(better, state.best), gradient, state.best_gradient),
    )


@dataclass(frozen=True, kw_only=True)
class _Apgd(RestartedMethod):
    """The static side of `apgd`."""

    num_steps: int

    def run_fn(self, threat: Threat, step_size: Any, logits_fn: LogitsFn, inputs: jax.Array) -> RunFn:
        del step_size
        schedule, project = _schedule(self.num_steps), threat.projection(inputs)

        def move(iterate: jax.Array, previous: jax.Array, gradient: jax.Array, step: jax.Array, is_first: jax.Array) -> jax.Array:
            """The next iterate: an ascent step, mixed with the last move."""
            plain = project(iterate + wide(step, iterate) * threat.steepest_ascent(gradient))
            weight = jnp.where(is_first, 1, MOMENTUM).astype(iterate.dtype)
            return project(iterate + weight * (plain - iterate) + (1 - weight) * (iterate - previous))

        def run(key: jax.Array, goal: Goal) -> AttackResult:
            def iterate(state: _State, iteration: _Iteration) -> tuple[_State, None]:
                is_checkpoint, rises_needed, is_first = iteration
                gradient, result = gradient_and_result(logits_fn, goal, state.iterate)
                num_rises = state.num_rises + (result.loss > state.last_loss) * ~is_first
                state = _with_best(state, result.loss, gradient)

                stuck = ~state.halved & (state.best_loss <= state.checkpoint_loss)
                halve = is_checkpoint & ((num_rises < rises_needed) | stuck)
                here = jnp.where(wide(halve, inputs), state.best, state.iterate)
                gradient = jnp.where(wide(halve, inputs), state.best_gradient, gradient)
                step = jnp.where(halve, state.step / 2, state.step)
                following = state._replace(
                    iterate=move(here, state.previous, gradient, step, is_first),
                    previous=here,
                    last_loss=jnp.where(halve, state.best_loss, result.loss),
                    step=step,
                    num_rises=jnp.where(is_checkpoint, 0, num_rises),
                    checkpoint_loss=jnp.where(is_checkpoint | is_first, state.best_loss, state.checkpoint_loss),
                    halved=jnp.where(is_checkpoint, halve, state.halved),
                    worst=elementwise_worst(state.worst, result),
                )
                return following, None

            start = threat.random_start(key, inputs)
            state = _first_state(start, unevaluated_result(logits_fn, goal, start), threat.epsilon)
            state, _ = jax.lax.scan(iterate, state, schedule)
            return elementwise_worst(state.worst, forward_result(logits_fn, goal, state.iterate))

        return run
