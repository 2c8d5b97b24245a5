"""FAB: the smallest perturbation that changes the class (Croce & Hein, ICML 2020, Algorithm 1).

Other attacks ask whether a ball of given radius holds a mistake. FAB asks for the nearest mistake, so that one run answers for all
radii. It follows the decision boundary: each step linearises the network, and projects the iterate and the input itself onto the
hyperplane where the class changes, inside the box (`jaxbp.attacks.hyperplane`). The next iterate is a mean of both projections, a
little beyond the hyperplane. A mistake that is nearer than all before is kept, and the iterate steps back towards the input. At the end
a secant search between the input and the nearest mistake closes the gap.

Untargeted, a step goes to the class whose hyperplane is nearest, which costs one gradient for each class. With ``targets=9`` a run
goes to each of the 9 likeliest wrong classes, one gradient a step, as in AutoAttack. Any mistake counts in either case.

Four details differ from the source. The nearest class is the one whose hyperplane is nearest inside the box, where the source measures
without the box, which misleads at images with many black pixels. The secant search aims 1 % beyond the boundary, because on an almost
linear network rounding would often leave the boundary itself on the right side. After it, the input is projected a few times onto the
hyperplane at the nearest mistake, with smaller overshoots: the overshoot of the steps alone costs up to 0.3 % of the distance where the
box binds. Restarts for one class do not know the nearest mistake of another.

`jaxbp.attacks.minimal_norms` returns the distances. As an `Attack`, made by `fab`, the nearest mistake succeeds if it lies in the ball; the
attribute ``loss`` of the result is minus its distance, -inf where there is none.

>>> import jax, jax.numpy as jnp
>>> from jaxbp import attacks
>>> attack = attacks.fab(attacks.Threat("linf", 0.1), num_steps=10)
>>> inputs, labels = jnp.array([[0.5, 0.4], [0.9, 0.1]]), jnp.array([0, 0])
>>> result = attack(lambda x: x, jax.random.key(0), inputs, labels)
>>> result.success.tolist(), (-result.loss).round(3).tolist()
([True, False], [0.05000000074505806, 0.4000000059604645])
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbp import checks
from jaxbp.attacks import hyperplane
from jaxbp.attacks.attack import (
    Attack,
    AttackResult,
    Goal,
    LogitsFn,
    RestartedMethod,
    RunFn,
    Targets,
    forward_result,
    gradient_and_result,
)
from jaxbp.attacks.threat import Threat, wide

MOST_BIAS = 0.1  # alpha_max: largest weight of the projection of the input in a step
OVERSHOOT = 1.05  # eta: a step goes so much farther than the hyperplane
BACKWARD = 0.9  # beta: a mistake is drawn to this fraction of its distance
NUM_SECANTS = 3
TANGENT_OVERSHOOTS = (1e-3, 1e-4, 1e-5)  # of the projections of the input onto the hyperplane at the nearest mistake, at the end
_UNREACHED = 1e-3  # of the gap that may stay by rounding where a hyperplane meets the box
_BEYOND = 0.01  # of the segment from the estimated boundary to the mistake


def fab(threat: Threat, *, num_steps: int = 100, num_restarts: int = 1, targets: Targets = None, runs: str = "auto") -> Attack:
    """The nearest mistake, which succeeds if it lies within the threat; see the module.

    Args:
      threat, targets, runs: as for `jaxbp.attacks.pgd`; epsilon also bounds where restarts begin.
      num_steps: linearisations of a start.
      num_restarts: starts, for each target if there are several: first the input, then random points at half the distance of the
        nearest mistake, or of epsilon where that is less.

    Raises:
      ValueError: an option out of its range.
    """
    checks.count(num_steps, "num_steps")
    checks.count(num_restarts, "num_restarts")
    method = _Fab(num_steps=num_steps, num_starts=num_restarts, loss="margin", targets=targets, num_restarts=1, runs=runs)
    return Attack(method, threat)


class _Nearest(NamedTuple):
    """The nearest mistake so far: (N, ...), its distance (N,), inf where there is none."""

    point: jax.Array
    distance: jax.Array


class _Plane(NamedTuple):
    """The linearised boundary at an iterate: normals (N, ...), and the value there (N,), above 0 beyond the boundary."""

    normal: jax.Array
    value: jax.Array


@dataclass(frozen=True, kw_only=True)
class _Fab(RestartedMethod):
    """The static side of `fab`; its starts depend on each other, so a run makes all of them."""

    num_steps: int
    num_starts: int

    def run_fn(self, threat: Threat, step_size: Any, logits_fn: LogitsFn, inputs: jax.Array) -> RunFn:
        del step_size
        lowest, highest = threat.reach(inputs)
        low, high = (jnp.reshape(end, (len(inputs), -1)) for end in (lowest, highest))

        def run(key: jax.Array, goal: Goal) -> AttackResult:
            def result_at(points: jax.Array) -> AttackResult:
                return forward_result(logits_fn, goal, points)

            def step(carry: tuple[jax.Array, _Nearest], _: None) -> tuple[tuple[jax.Array, _Nearest], None]:
                iterate, nearest = carry
                plane = _linearise(logits_fn, goal, iterate, threat, low, high)
                towards = _biased_step(threat, plane, iterate, inputs, low, high)
                point = jnp.clip(towards, lowest, highest)
                wrong = result_at(point).success
                back = jnp.where(wide(wrong, point), BACKWARD * point + (1 - BACKWARD) * inputs, point)
                return (back, _nearer(nearest, point, wrong, threat, inputs)), None

            def start(nearest: _Nearest, draw: tuple[jax.Array, jax.Array]) -> tuple[_Nearest, None]:
                start_key, is_first = draw
                length = jnp.minimum(nearest.distance, jnp.asarray(threat.epsilon, inputs.dtype)) / 2
                direction = jax.random.normal(start_key, inputs.shape, inputs.dtype)
                direction /= wide(threat.distance(direction, jnp.zeros_like(direction)), direction)
                random = jnp.clip(inputs + wide(length, direction) * direction, lowest, highest)
                (_, nearest), _ = jax.lax.scan(step, (jnp.where(is_first, inputs, random), nearest), None, length=self.num_steps)
                return nearest, None

            def tangent(nearest: _Nearest, overshoot: jax.Array) -> tuple[_Nearest, None]:
                plane = _linearise(logits_fn, goal, nearest.point, threat, low, high)
                step = hyperplane.nearest_step(inputs, plane.normal, _gap(plane, nearest.point, inputs), low, high, threat.norm)
                point = jnp.clip(inputs + (1 + overshoot) * step, lowest, highest)
                return _nearer(nearest, point, result_at(point).success, threat, inputs), None

            first = result_at(inputs)
            nearest = _Nearest(inputs, jnp.where(first.success, 0, jnp.inf).astype(inputs.dtype))
            draws = jax.random.split(key, self.num_starts), jnp.arange(self.num_starts) == 0
            nearest, _ = jax.lax.scan(start, nearest, draws)
            nearest = _secant_search(result_at, first, nearest, threat, inputs)
            nearest, _ = jax.lax.scan(tangent, nearest, jnp.asarray(TANGENT_OVERSHOOTS, inputs.dtype))
            nearest = _secant_search(result_at, first, nearest, threat, inputs)
            result = result_at(threat.project(nearest.point, inputs))
            per_step = 1 + (1 if goal.targets is not None or goal.labels is None else _num_classes(logits_fn, inputs))
            evaluations = (self.num_starts * self.num_steps + len(TANGENT_OVERSHOOTS)) * per_step + 2 * (NUM_SECANTS + 1) + 2
            return result._replace(loss=-nearest.distance.astype(result.loss.dtype), num_evaluations=jnp.int32(evaluations))

        return run


def _linearise(logits_fn: LogitsFn, goal: Goal, iterate: jax.Array, threat: Threat, low: jax.Array, high: jax.Array) -> _Plane:
    """The boundary towards the target; without one, of the wrong class whose hyperplane is nearest in the box (N, D) from low to high."""
    if goal.targets is not None or goal.labels is None:
        normal, result = gradient_and_result(logits_fn, goal, iterate)
        return _Plane(normal, result.loss.astype(iterate.dtype))
    logits, pullback = jax.vjp(logits_fn, iterate)
    num, num_classes = logits.shape
    classes = jnp.arange(num_classes)
    own = goal.labels[:, None] == classes
    one_hot = own.astype(logits.dtype)

    def towards(other: jax.Array) -> jax.Array:
        return pullback((classes == other).astype(logits.dtype) - one_hot)[0]

    normals = jax.vmap(towards)(classes)  # (C, N, ...)
    values = logits - (logits * one_hot).sum(-1, keepdims=True)

    def many(array: jax.Array) -> jax.Array:
        return jnp.tile(array, (num_classes, 1))

    flat = normals.reshape(num_classes * num, -1)
    steps = hyperplane.nearest_step(many(iterate.reshape(num, -1)), flat, values.T.ravel(), many(low), many(high), threat.norm)
    gained = (flat * steps).sum(-1).reshape(num_classes, num).T
    lengths = threat.distance(steps, jnp.zeros_like(steps)).reshape(num_classes, num).T
    reached = ~own & (jnp.abs(values + gained) <= _UNREACHED * jnp.abs(values))
    candidates = jnp.where(reached.any(-1, keepdims=True), reached, ~own)
    chosen = jax.nn.one_hot(jnp.where(candidates, lengths, jnp.inf).argmin(-1), num_classes, dtype=logits.dtype)
    normal = jnp.einsum("nc,cn...->n...", chosen.astype(iterate.dtype), normals)
    return _Plane(normal, (values * chosen).sum(-1).astype(iterate.dtype))


def _biased_step(threat: Threat, plane: _Plane, iterate: jax.Array, inputs: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """The mean of both projections, each a little beyond the hyperplane (equations 7 to 9 of the source)."""
    gap = _gap(plane, iterate, inputs)
    points, normals = jnp.concatenate([iterate, inputs]), jnp.concatenate([plane.normal, plane.normal])
    box = jnp.concatenate([low, low]), jnp.concatenate([high, high])
    both = hyperplane.nearest_step(points, normals, jnp.concatenate([plane.value, gap]), box[0], box[1], threat.norm)  # in one loop
    here, there = jnp.split(both, 2)
    lengths = [threat.distance(part, jnp.zeros_like(part)) for part in (here, there)]
    total = lengths[0] + lengths[1]
    bias = wide(jnp.minimum(lengths[0] / jnp.where(total > 0, total, 1), MOST_BIAS), inputs)
    return (1 - bias) * (iterate + OVERSHOOT * here) + bias * (inputs + OVERSHOOT * there)


def _gap(plane: _Plane, iterate: jax.Array, points: jax.Array) -> jax.Array:
    """The linearisation at ``iterate``, evaluated at ``points``; (N,)."""
    return plane.value + (plane.normal * (points - iterate)).sum(tuple(range(1, points.ndim)))


def _nearer(nearest: _Nearest, point: jax.Array, wrong: jax.Array, threat: Threat, inputs: jax.Array) -> _Nearest:
    distance = threat.distance(point, inputs)
    better = wrong & (distance < nearest.distance)
    return _Nearest(jnp.where(wide(better, point), point, nearest.point), jnp.where(better, distance, nearest.distance))


def _secant_search(result_at: Any, first: AttackResult, nearest: _Nearest, threat: Threat, inputs: jax.Array) -> _Nearest:
    """The nearest mistake, moved towards the boundary on the segment that joins it with the input."""

    def secant(carry: tuple[jax.Array, jax.Array, jax.Array, _Nearest], _: None) -> tuple[Any, None]:
        right, loss_right, loss_wrong, nearest = carry
        share = jnp.clip(-loss_right / jnp.where(loss_wrong > loss_right, loss_wrong - loss_right, 1), 0, 1)
        share = jnp.where(jnp.isfinite(share), share + _BEYOND * (1 - share), 1)
        point = right + wide(share.astype(right.dtype), right) * (nearest.point - right)
        result = result_at(point)
        wrong = result.success
        right = jnp.where(wide(wrong, right), right, point)
        loss_right, loss_wrong = jnp.where(wrong, loss_right, result.loss), jnp.where(wrong, result.loss, loss_wrong)
        return (right, loss_right, loss_wrong, _nearer(nearest, point, wrong, threat, inputs)), None

    carry = inputs, first.loss, result_at(nearest.point).loss, nearest
    return jax.lax.scan(secant, carry, None, length=NUM_SECANTS)[0][-1]


def _num_classes(logits_fn: LogitsFn, inputs: jax.Array) -> int:
    return jax.eval_shape(logits_fn, inputs).shape[-1]
