"""Square attack: random search that asks only for logits (Andriushchenko et al., ECCV 2020).

A network may resist gradient attacks without being robust, because its gradients vanish or mislead (Athalye et al., ICML 2018). A search
without gradients is not misled. Each query changes a random square of the image, and keeps the change if the margin of
the true class falls. Under "linf" every pixel is always at a corner of the ball, and each channel of a square moves to one side
(Algorithm 2); the start is vertical stripes. Under "l2" a square takes the budget of another square, shaped as two bumps of
opposite sign (Algorithm 3, equation 2); the start is a tiling of such bumps. Under "l1" the search is that of "l2" with sums of absolute
values in place of lengths, and the projection onto ball and box at its end (Croce & Hein, "Mind the box", ICML 2021, section 5). Squares
shrink along the queries.

Inputs are images (N, H, W, C) or (N, H, W), signals (N, L, 1, C) or vectors (N, D). In signals and vectors, squares are
intervals and stripes are single positions. An example stays as it is once its class is wrong, and the search ends when all are.

>>> import jax, jax.numpy as jnp
>>> from jaxbp import attacks
>>> attack = attacks.square(attacks.Threat("linf", 0.1), num_queries=50)
>>> inputs, labels = jnp.array([[0.5, 0.4], [0.9, 0.1]]), jnp.array([0, 0])
>>> attack(lambda x: jnp.round(20 * x), jax.random.key(0), inputs, labels).success.tolist()  # without any gradient
[True, False]
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxbp.attacks.attack import Attack, AttackResult, Goal, LogitsFn, RestartedMethod, RunFn, Targets, elementwise_worst, forward_result
from jaxbp.attacks.threat import Threat

HALVINGS = (10, 50, 200, 1000, 2000, 4000, 6000, 8000)  # queries of 10,000 after which p is halved, section 4
_TILES = 5  # tiles along the shorter side of an image at the start of a search with bumps
_SMALLEST_BUMPS = 3  # side of the smallest window of bumps: two need room


def square(
    threat: Threat,
    *,
    num_queries: int = 5000,
    share: float = 0.8,
    num_restarts: int = 1,
    targets: Targets = None,
    runs: str = "auto",
) -> Attack:
    """Random search by squares; the result is the worst input of all queries.

    Args:
      threat, num_restarts, targets, runs: as for `jaxbp.attacks.pgd`.
      num_queries: forward passes of a run; the source has 10,000, AutoAttack 5,000.
      share: p, the fraction of an image that the first squares cover; it is halved at `HALVINGS`, rescaled to the budget.

    Raises:
      ValueError: an option out of its range; when called, inputs of another rank.
    """
    if num_queries < 1:
        raise ValueError(f"num_queries must be at least 1, got {num_queries}")
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share}")
    method = _Square(num_queries=num_queries, share=share, loss="margin", targets=targets, num_restarts=num_restarts, runs=runs)
    return Attack(method, threat, gradient_free=True)


def shares(share: float, num_queries: int) -> np.ndarray:
    """The fraction p of the image that the square covers at each query, (num_queries,)."""
    position = np.arange(num_queries) * 10_000 / num_queries
    return share / 2.0 ** np.searchsorted(HALVINGS, position, side="left")


class Windows(NamedTuple):
    """Rectangles in maps (H, W), one for each example.

    Attributes:
      row, column: (N, H, W, 1), the position of each pixel, counted from the corner of its example's rectangle.
      height, width: (), the size of all rectangles.
      inside: (N, H, W, 1), whether the pixel is in the rectangle.
    """

    row: Int[Array, "N H W 1"]
    column: Int[Array, "N H W 1"]
    height: Int[Array, ""]
    width: Int[Array, ""]
    inside: Bool[Array, "N H W 1"]


def windows(key: jax.Array, shape: tuple[int, ...], height: jax.Array, width: jax.Array) -> Windows:
    """Rectangles of one size at uniform places in maps of ``shape`` (N, H, W, C)."""
    num, rows, columns, _ = shape
    room = jnp.stack([rows - height, columns - width]) + 1
    corner = jnp.floor(jax.random.uniform(key, (num, 2)) * room).astype(jnp.int32)
    row = jnp.arange(rows).reshape(1, rows, 1, 1) - corner[:, 0].reshape(num, 1, 1, 1)
    column = jnp.arange(columns).reshape(1, 1, columns, 1) - corner[:, 1].reshape(num, 1, 1, 1)
    row, column = jnp.broadcast_arrays(row, column)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return Windows(row, column, height, width, inside)


def bumps(row: jax.Array, column: jax.Array, height: jax.Array, width: jax.Array) -> jax.Array:
    """Two pyramids of opposite sign side by side, equation 2 of the source, at places in a rectangle; of any length.

    A pyramid of h1 x h2 pixels has the height sum_{k=0}^{M} 1 / (n + 1 - k)^2 with n = floor(max(h1, h2) / 2) and M the number
    of steps from its rim.
    """
    half = width // 2
    second = column >= half
    column = jnp.where(second, column - half, column)
    width = jnp.where(second, width - half, half)
    n = jnp.maximum(height, width) // 2
    steps = n - jnp.maximum(jnp.abs(row - height // 2), jnp.abs(column - width // 2))
    sums = np.concatenate([[0], np.cumsum(1 / np.arange(1, 4096.0) ** 2)])  # of 1 / j^2, j = 1, 2, ...
    table = jnp.asarray(sums, jnp.float32)
    value = table[n + 1] - table[jnp.clip(n - steps, 0, len(table) - 1)]
    return jnp.where(second, -value, value)


@dataclass(frozen=True, kw_only=True)
class _Square(RestartedMethod):
    """The static side of `square`."""

    num_queries: int
    share: float

    def run_fn(self, threat: Threat, step_size: Any, logits_fn: LogitsFn, inputs: jax.Array) -> RunFn:
        del step_size
        shape = _map_shape(inputs.shape)
        maps = inputs.reshape(shape)
        reach = threat.projection(inputs)  # by the shape of the inputs, whose last axis bounds may follow

        def project(candidates: jax.Array) -> jax.Array:
            return reach(candidates.reshape(inputs.shape)).reshape(shape)

        start, propose = (_corners if threat.norm == "linf" else _mass)(threat, maps, project)
        smallest = 1 if threat.norm == "linf" else _SMALLEST_BUMPS
        sides = jnp.asarray(_sides(shares(self.share, self.num_queries), shape, smallest))

        def run(key: jax.Array, goal: Goal) -> AttackResult:
            def result_at(candidates: jax.Array) -> AttackResult:
                result = forward_result(logits_fn, goal, candidates.reshape(inputs.shape))
                return result._replace(adversarial=candidates)

            def is_open(carry: tuple[jax.Array, AttackResult]) -> jax.Array:
                index, worst = carry
                return (index < self.num_queries) & ~worst.success.all()

            def query(carry: tuple[jax.Array, AttackResult]) -> tuple[jax.Array, AttackResult]:
                index, worst = carry
                candidates = propose(jax.random.fold_in(key, index), worst.adversarial, sides[index])
                done = worst.success.reshape(-1, 1, 1, 1)
                return index + 1, elementwise_worst(worst, result_at(jnp.where(done, worst.adversarial, candidates)))

            first = result_at(start(jax.random.fold_in(key, 0)))
            _, worst = jax.lax.while_loop(is_open, query, (jnp.ones((), jnp.int32), first))
            return worst._replace(adversarial=worst.adversarial.reshape(inputs.shape))

        return run


def _map_shape(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """(N, H, W, C) of inputs; H = 1 for signals and vectors."""
    if len(shape) == 2:
        return shape[0], 1, shape[1], 1
    if len(shape) == 3:
        return *shape, 1
    if len(shape) == 4:
        return shape if shape[2] > 1 else (shape[0], 1, shape[1], shape[3])
    raise ValueError(f"square attacks (N, H, W, C), (N, H, W) or (N, D), got inputs of shape {shape}: wrap the network")


def _sides(covered: np.ndarray, shape: tuple[int, ...], smallest: int) -> np.ndarray:
    """Height and width, (num_queries, 2), of windows that cover these shares of a map."""
    _, rows, columns, _ = shape
    if rows == 1:
        side = np.round(covered * columns)
        return np.stack([np.ones_like(side), np.clip(side, min(smallest, columns), columns)], -1).astype(np.int32)
    shorter = min(rows, columns)
    side = np.clip(np.round(np.sqrt(covered * rows * columns)), min(smallest, shorter), shorter)
    return np.stack([side, side], -1).astype(np.int32)


def _corners(threat: Threat, maps: jax.Array, project: Callable) -> tuple[Callable, Callable]:
    """Start and proposal of "linf": points at the corners of the ball, cut with the box."""
    num, _, columns, channels = maps.shape
    epsilon = jnp.asarray(threat.epsilon, maps.dtype)
    lower, upper = project(maps - epsilon), project(maps + epsilon)

    def start(key: jax.Array) -> jax.Array:
        return jnp.where(jax.random.bernoulli(key, shape=(num, 1, columns, channels)), upper, lower)

    def propose(key: jax.Array, best: jax.Array, side: jax.Array) -> jax.Array:
        place_key, sign_key = jax.random.split(key)
        where = windows(place_key, maps.shape, *side)
        up = jax.random.bernoulli(sign_key, shape=(num, 1, 1, channels))
        return jnp.where(where.inside, jnp.where(up, upper, lower), best)

    return start, propose


def _mass(threat: Threat, maps: jax.Array, project: Callable) -> tuple[Callable, Callable]:
    """Start and proposal of "l2" and "l1": bumps that together have the length epsilon in the norm."""
    num, rows, columns, channels = maps.shape
    epsilon = jnp.asarray(threat.epsilon, maps.dtype)
    tiny = jnp.finfo(maps.dtype).tiny

    order = 2 if threat.norm == "l2" else 1

    def mass(step: jax.Array, axes: tuple[int, ...] = (1, 2)) -> jax.Array:
        """The part of epsilon^order that a step uses up."""
        return (jnp.abs(step) ** order).sum(axes, keepdims=True)

    def length(step: jax.Array, axes: tuple[int, ...] = (1, 2)) -> jax.Array:
        return mass(step, axes) ** (1 / order)

    def random_signs(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return jax.random.rademacher(key, shape, maps.dtype)

    def start(key: jax.Array) -> jax.Array:
        side = max(1, min(rows, columns) // _TILES) if rows > 1 else max(1, columns // _TILES)
        high = min(side, rows)
        row, column = jnp.arange(rows)[:, None, None], jnp.arange(columns)[None, :, None]
        shape = bumps(row % high, column % side, jnp.int32(high), jnp.int32(side)).astype(maps.dtype)
        sign = random_signs(key, (num, -(-rows // high), -(-columns // side), channels))
        sign = sign.repeat(high, 1).repeat(side, 2)[:, :rows, :columns]
        step = sign * shape
        return project(maps + epsilon * step / jnp.maximum(length(step, (1, 2, 3)), tiny))

    def propose(key: jax.Array, best: jax.Array, side: jax.Array) -> jax.Array:
        from_key, to_key, turn_key, sign_key = jax.random.split(key, 4)
        giver, taker = windows(from_key, maps.shape, *side), windows(to_key, maps.shape, *side)
        step = best - maps
        turned = jax.random.bernoulli(turn_key, shape=(num, 1, 1, 1)) & (rows > 1)  # squares may be transposed
        places = (jnp.where(turned, taker.column, taker.row), jnp.where(turned, taker.row, taker.column))
        shape = jnp.where(taker.inside, bumps(*places, *side), 0).astype(maps.dtype)
        shape = shape / jnp.maximum(length(shape), tiny)
        old = jnp.where(taker.inside, step, 0)
        direction = random_signs(sign_key, (num, 1, 1, channels)) * shape + old / jnp.maximum(length(old), tiny)
        unused = jnp.maximum(epsilon**order - mass(step, (1, 2, 3)), 0)
        moved = jnp.where(giver.inside | taker.inside, step, 0)
        budget = (mass(moved) + unused / channels) ** (1 / order)
        rest = jnp.where(giver.inside | taker.inside, 0, step)
        return project(maps + rest + budget * direction / jnp.maximum(length(direction), tiny))

    return start, propose
