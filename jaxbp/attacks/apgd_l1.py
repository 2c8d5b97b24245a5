"""Auto-PGD in the norm "l1" (Croce & Hein, "Mind the box", ICML 2021, section 4).

The steepest step in "l1" moves one entry, and in a box that is far too few: entries reach the edge of the box and the budget lies idle. A
step therefore moves the k entries with the largest gradient by the same amount, among those that the box leaves free, and the
result is projected onto the intersection of ball and box (`jaxbp.attacks.Threat.projection`).

Each example has its own k and its own step size. At checkpoints, every 4 % of the steps, k becomes the number of entries in which the best
point differs from the input, divided by 1.5. Where k falls by more than 5 %, the step size starts anew at the radius, from
the best point; elsewhere it is divided by 1.5, down to a tenth of the radius. There is no momentum.

The run begins in balls of 3 epsilon and 2 epsilon, with 30 % of the steps each, and each ball starts from the best point of the one before,
projected. Only points of the ball of epsilon count for the result.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.attacks.attack import (
    AttackResult,
    Goal,
    LogitsFn,
    RestartedMethod,
    RunFn,
    elementwise_worst,
    forward_result,
    gradient_and_result,
    unevaluated_result,
)
from jaxbp.attacks.threat import Threat, wide

PHASES = ((3, 30), (2, 30), (1, 40))  # multiples of epsilon, and percent of the steps
CHECK_EVERY = 0.04  # of the steps
FEWER = 1.5  # the factor of k, and of the step size
FALLING = 0.95  # k counts as falling below this fraction of the last one
FIRST_SHARE = 5  # the first k is the number of entries over this
SMALLEST_STEP = 0.1  # of the radius


class _Iteration(NamedTuple):
    """The schedule of one iteration: the multiple of epsilon, and whether a ball begins, a checkpoint is due, and the result counts."""

    factor: jax.Array
    begins: jax.Array
    is_checkpoint: jax.Array
    counts: jax.Array


class _State(NamedTuple):
    """The state between two iterations.

    Attributes:
      iterate: (N, ...).
      best, best_loss, best_gradient: (N, ...), (N,) and (N, ...), the iterate of largest loss in this ball.
      num_entries: (N,), k.
      step: (N,), the step size.
      worst: the worst result of all iterates that count.
    """

    iterate: jax.Array
    best: jax.Array
    best_loss: jax.Array
    best_gradient: jax.Array
    num_entries: jax.Array
    step: jax.Array
    worst: AttackResult


def schedule(num_steps: int) -> _Iteration:
    """The schedule of all iterations, (num_steps,) each; few steps are all in the ball of epsilon."""
    counts = [num_steps * percent // 100 for _, percent in PHASES[:-1]]
    counts.append(num_steps - sum(counts))
    factor = np.repeat([factor for factor, _ in PHASES], counts)
    place = np.concatenate([np.arange(count) for count in counts])  # within its ball
    period = max(int(CHECK_EVERY * num_steps), 1)
    return _Iteration(
        jnp.asarray(factor), jnp.asarray(place == 0), jnp.asarray((place > 0) & (place % period == 0)), jnp.asarray(factor == 1)
    )


@dataclass(frozen=True, kw_only=True)
class L1Apgd(RestartedMethod):
    """The static side of `jaxbp.attacks.apgd` in "l1"."""

    num_steps: int

    def run_fn(self, threat: Threat, step_size: Any, logits_fn: LogitsFn, inputs: jax.Array) -> RunFn:
        """See `jaxbp.attacks.attack.RestartedMethod.run_fn`."""
        del step_size
        iterations = schedule(self.num_steps)
        epsilon = jnp.asarray(threat.epsilon, inputs.dtype)
        first_entries = jnp.full(len(inputs), max(int(np.prod(inputs.shape[1:])) / FIRST_SHARE, 1), inputs.dtype)
        axes = tuple(range(1, inputs.ndim))

        def run(key: jax.Array, goal: Goal) -> AttackResult:
            def iterate(state: _State, iteration: _Iteration) -> tuple[_State, None]:
                radius = iteration.factor * epsilon
                ball = replace(threat, epsilon=radius)
                project = ball.projection(inputs)
                state = _select(iteration.begins, _begun(project(state.best), first_entries, radius, state.worst), state)
                gradient, result = gradient_and_result(logits_fn, goal, state.iterate)
                better = result.loss > state.best_loss
                best = jnp.where(wide(better, inputs), state.iterate, state.best)
                best_gradient = jnp.where(wide(better, inputs), gradient, state.best_gradient)

                num_moved = (best != inputs).sum(axes).astype(inputs.dtype)
                fewer = jnp.where(iteration.is_checkpoint, jnp.maximum(num_moved / FEWER, 1), state.num_entries)
                anew = iteration.is_checkpoint & (fewer <= FALLING * state.num_entries)
                shorter = jnp.maximum(state.step / FEWER, SMALLEST_STEP * radius)
                step = jnp.where(anew, radius, jnp.where(iteration.is_checkpoint, shorter, state.step))
                here = jnp.where(wide(anew, inputs), best, state.iterate)
                gradient = jnp.where(wide(anew, inputs), best_gradient, gradient)
                ascent = ball.sparse_ascent(ball.open_entries(gradient, here), fewer)
                following = _State(
                    iterate=project(here + wide(step, inputs) * ascent),
                    best=best,
                    best_loss=jnp.where(better, result.loss, state.best_loss),
                    best_gradient=best_gradient,
                    num_entries=fewer,
                    step=step,
                    worst=_select(iteration.counts, elementwise_worst(state.worst, result), state.worst),
                )
                return following, None

            start = replace(threat, epsilon=PHASES[0][0] * epsilon).random_start(key, inputs)
            nothing = unevaluated_result(logits_fn, goal, start)
            nothing = nothing._replace(adversarial=inputs)  # the start is outside the ball of epsilon
            first = _begun(start, first_entries, epsilon, nothing)
            state, _ = jax.lax.scan(iterate, first, iterations)
            result = elementwise_worst(state.worst, forward_result(logits_fn, goal, state.iterate))
            return result._replace(num_evaluations=jnp.int32(self.num_steps + 1))

        return run


def _begun(start: jax.Array, num_entries: jax.Array, radius: jax.Array, worst: AttackResult) -> _State:
    """The state at the start of a ball."""
    nothing = jnp.full(worst.loss.shape, -jnp.inf, worst.loss.dtype)
    return _State(start, start, nothing, jnp.zeros_like(start), num_entries, jnp.full(len(start), radius), worst)


def _select(condition: jax.Array, first: Any, second: Any) -> Any:
    """One of two pytrees, by a condition ()."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), first, second)
