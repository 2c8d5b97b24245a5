"""The nearest point on a hyperplane inside a box, in the norms "linf", "l2" and "l1".

Where a network is replaced by its linearisation, the smallest perturbation that reaches a class is the projection onto a hyperplane,
``weights . z + constant = 0``, within the box of valid inputs. In each norm all entries move in the direction that lowers the gap (Croce &
Hein, ICML 2020, section 2.1):

- "linf": all by the same amount, but by no more than the box leaves them;
- "l2": in proportion to their weight, but by no more than the box leaves them;
- "l1": those with the largest weights as far as the box lets them, until the gap is closed.

The amount of the first two solves a piecewise linear equation, concave and increasing. Newton's iteration from 0 approaches the
solution from below and passes a kink in each step, so that it ends at the exact solution, after a few steps, without a sort. Where the box
does not meet the hyperplane, the result is the corner of the box that comes closest.

>>> import jax.numpy as jnp, numpy as np
>>> from jaxbp.attacks import hyperplane
>>> point, weights = jnp.array([[0.5, 0.5]]), jnp.array([[2.0, 1.0]])
>>> for norm in ("linf", "l2", "l1"):                  # 2 x + y has to grow by 1.1, and x has room for 0.5
...     print(np.asarray(hyperplane.nearest_step(point, weights, jnp.array([-1.1]), 0.0, 1.0, norm), float).round(3).tolist())
[[0.367, 0.367]]
[[0.44, 0.22]]
[[0.5, 0.1]]
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def nearest_step(
    points: Float[Array, "N ..."], weights: Float[Array, "N ..."], gap: Float[Array, " N"], low: Any, high: Any, norm: str
) -> Float[Array, "N ..."]:
    """The smallest step from each of ``points`` to its hyperplane, inside the box.

    Args:
      points: (N, ...), inside the box.
      weights: (N, ...), the normals; a zero normal gives a zero step.
      gap: (N,), ``weights . points + constant``, which the step brings to 0.
      low, high: the box, broadcast to the points.
      norm: one of `jaxbp.attacks.NORMS`, in which the step is smallest.
    """
    num = len(points)
    weights = jnp.nan_to_num(weights).reshape(num, -1)
    largest = jnp.abs(weights).max(1, keepdims=True, initial=0)
    weights = weights / jnp.where(largest > 0, largest, 1)  # squares of small weights would vanish
    gap = jnp.nan_to_num(gap).astype(weights.dtype)[:, None] / jnp.where(largest > 0, largest, 1)
    direction = -jnp.sign(gap) * jnp.sign(weights)
    room = jnp.where(direction > 0, high - points.reshape(num, -1), points.reshape(num, -1) - low)
    room = jnp.where(direction == 0, 0, room)
    amounts = _by_weight if norm == "l1" else _in_proportion
    step = direction * amounts(jnp.abs(weights), room, jnp.abs(gap), norm)
    return jnp.where(jnp.isfinite(step), step, 0).reshape(points.shape)  # without a box, a vanishing normal leads to infinity


def _in_proportion(weights: jax.Array, room: jax.Array, gap: jax.Array, norm: str) -> jax.Array:
    """min(pace t, room) with the t that closes the gap; the pace is 1 in "linf", and the weight in "l2"."""
    pace = jnp.ones_like(weights) if norm == "linf" else weights

    def newton(state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        amount, stopped, _ = state
        closed = jnp.where(stopped, weights * room, 0).sum(1, keepdims=True)
        slope = jnp.where(stopped, 0, weights * pace).sum(1, keepdims=True)
        following = jnp.where(slope > 0, (gap - closed) / jnp.where(slope > 0, slope, 1), jnp.inf)
        amount = jnp.where(gap > closed, jnp.maximum(amount, following), amount)
        now_stopped = stopped | (pace * amount >= room)
        return amount, now_stopped, (now_stopped != stopped).any()

    start = jnp.zeros_like(gap), room <= 0, jnp.array(True)
    amount, stopped, _ = jax.lax.while_loop(lambda state: state[2], newton, start)
    return jnp.where(stopped, room, pace * amount)


def _by_weight(weights: jax.Array, room: jax.Array, gap: jax.Array, norm: str) -> jax.Array:
    """All room of the largest weights, until the gap is closed."""
    del norm
    order = jnp.argsort(-weights, axis=1)
    weight, space = jnp.take_along_axis(weights, order, 1), jnp.take_along_axis(room, order, 1)
    closed = jnp.cumsum(jnp.where(weight > 0, weight * space, 0), axis=1)
    before = jnp.concatenate([jnp.zeros_like(gap), closed[:, :-1]], axis=1)
    amount = jnp.clip((gap - before) / jnp.where(weight > 0, weight, 1), 0, jnp.where(weight > 0, space, 0))
    return jnp.zeros_like(weights).at[jnp.arange(len(weights))[:, None], order].set(amount)
