"""Attempts to refute a minimum: loss along straight lines from it, and descent from points beside it.

A negative answer proves nothing; one lower loss close by refutes. Directions are random (isotropic) ones and, if given, the
direction of most negative curvature, both ways.

>>> import jax, jax.numpy as jnp
>>> from jaxbp import landscape
>>> def loss_fn(params, x):
...     return x * jnp.sum(params**2)
>>> report = landscape.probe(loss_fn, jnp.zeros(3), (jnp.ones(4),), jax.random.key(0), radii=(0.1, 1.0), step_size=0.1)
>>> report.lowest_change >= 0
True
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxbp.landscape.hessian import LossFn


class ProbeReport(NamedTuple):
    """Loss changes against the point itself, for D directions and R radii.

    ``radii`` (R,); ``line_changes`` (D, R) after a straight step; ``descent_changes`` (D, R) and ``descent_distances`` (D, R): loss
    change and distance from the point after gradient descent from there. NaN or inf where the loss is.
    """

    radii: jax.Array
    line_changes: jax.Array
    descent_changes: jax.Array
    descent_distances: jax.Array

    @property
    def lowest_change(self) -> float:
        """The most negative loss change found anywhere; positive if all were upwards."""
        return float(jnp.nanmin(jnp.concatenate([self.line_changes, self.descent_changes])))

    def lowest_change_within(self, radius: float) -> float:
        """The most negative loss change among the points at most ``radius`` away; inf if there is none."""
        lines = jnp.where(self.radii <= radius, self.line_changes, jnp.inf)
        descents = jnp.where(self.descent_distances <= radius, self.descent_changes, jnp.inf)
        return float(jnp.nanmin(jnp.concatenate([lines, descents])))


def probe(
    loss_fn: LossFn,
    params: Any,
    data: tuple[jax.Array, ...],
    key: jax.Array,
    *,
    radii: tuple[float, ...],
    step_size: float,
    num_directions: int = 4,
    num_steps: int = 20,
    direction: jax.Array | None = None,
) -> ProbeReport:
    """Probe the mean loss around ``params`` along ``num_directions`` random directions, at ``radii`` (Euclidean, > 0).

    ``direction`` (P,), for instance of most negative curvature, is added with both signs. Descent takes ``num_steps`` full-batch gradient
    steps of ``step_size`` from every probed point. Costs D x R x (1 + 2 num_steps) evaluations of the loss, D = num_directions (+ 2).
    """
    if not radii or min(radii) <= 0:
        raise ValueError(f"radii must be positive numbers, got {radii}")
    size = ravel_pytree(params)[0].size
    directions = jax.random.normal(key, (num_directions, size), jax.tree.leaves(params)[0].dtype)
    if direction is not None:
        directions = jnp.concatenate([directions, direction[None], -direction[None]])
    directions /= jnp.linalg.norm(directions, axis=1, keepdims=True)
    offsets = directions[:, None] * jnp.asarray(radii, directions.dtype)[None, :, None]
    lines, descents, distances = _probe(loss_fn, num_steps, params, data, offsets.reshape(-1, size), step_size)
    shape = offsets.shape[:2]
    return ProbeReport(jnp.asarray(radii), lines.reshape(shape), descents.reshape(shape), distances.reshape(shape))


def losses_at(loss_fn: LossFn, params: Any, data: tuple[jax.Array, ...], offsets: jax.Array) -> jax.Array:
    """Mean losses (M,) at ``params`` plus each of ``offsets`` (M, P): slices of the landscape along any directions."""
    return _losses_at(loss_fn, params, data, offsets)


@partial(jax.jit, static_argnums=0)
def _losses_at(loss_fn: LossFn, params: Any, data: tuple[jax.Array, ...], offsets: jax.Array) -> jax.Array:
    position, unravel = ravel_pytree(params)
    return jax.lax.map(lambda offset: jnp.mean(loss_fn(unravel(position + offset), *data)), offsets)


@partial(jax.jit, static_argnums=(0, 1))
def _probe(
    loss_fn: LossFn, num_steps: int, params: Any, data: tuple, offsets: jax.Array, step_size: jax.Array
) -> tuple:
    position, unravel = ravel_pytree(params)

    def loss(point: jax.Array) -> jax.Array:
        return jnp.mean(loss_fn(unravel(point), *data))

    def descend(offset: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        start = position + offset
        end, _ = jax.lax.scan(lambda p, _: (p - step_size * jax.grad(loss)(p), None), start, length=num_steps)
        return loss(start), loss(end), jnp.linalg.norm(end - position)

    lines, descents, distances = jax.lax.map(descend, offsets)
    reference = loss(position)
    return lines - reference, descents - reference, distances
