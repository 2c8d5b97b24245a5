"""Attempts to refute a minimum: losses along straight lines from a point, and gradient descent from points beside it.

A lower loss close to the point refutes a minimum; the absence of one proves nothing. Directions are random (isotropic); a given
direction, such as that of most negative curvature, is added with both signs.

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
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Float, PyTree

from jaxbp import checks
from jaxbp.landscape.hessian import Data, LossFn, checked_arguments, loss_and_gradient


class ProbeReport(NamedTuple):
    """Loss changes relative to the point, for D directions and R radii; NaN or infinite where the loss is.

    Attributes:
      radii: (R,) distances of the probed points.
      line_changes: (D, R) loss change after a straight step.
      descent_changes: (D, R) loss change after gradient descent from the end of the step.
      descent_distances: (D, R) distance between the end of the descent and the point.
      lowest_offset: (P,) from the point to the lowest probed point within twice the largest radius; None where it was not kept.
    """

    radii: Float[np.ndarray, " r"]
    line_changes: Float[np.ndarray, "d r"]
    descent_changes: Float[np.ndarray, "d r"]
    descent_distances: Float[np.ndarray, "d r"]
    lowest_offset: Float[np.ndarray, " p"] | None = None

    @property
    def lowest_change(self) -> float:
        """The most negative loss change of all probed points; positive if all losses are higher."""
        return self.lowest_change_within(np.inf)

    def lowest_change_within(self, radius: float) -> float:
        """The most negative loss change among the points at most ``radius`` away; infinite if none of them has a finite loss."""
        distances = np.concatenate([np.broadcast_to(self.radii, self.line_changes.shape), self.descent_distances])
        changes = np.concatenate([self.line_changes, self.descent_changes])
        return float(changes[(distances <= radius) & np.isfinite(changes)].min(initial=np.inf))


def probe(
    loss_fn: LossFn,
    params: PyTree,
    data: Data,
    key: jax.Array,
    *,
    radii: tuple[float, ...],
    step_size: float,
    num_directions: int = 4,
    num_steps: int = 20,
    direction: Float[jax.Array | np.ndarray, "*k p"] | None = None,
    chunk_size: int | None = None,
) -> ProbeReport:
    """Probe the mean loss around ``params`` along random directions, and by gradient descent from the points reached.

    The cost is D R (num_steps + 2) gradients, with D = num_directions + 2 k, k the number of given directions. The probe holds one offset
    of P numbers for each of the D directions.

    Args:
      loss_fn: per-example losses (N,), as in `hessian`.
      params: pytree with P parameters.
      data: arrays with the N examples on their leading axis.
      key: for the random directions.
      radii: Euclidean distances, positive.
      step_size: of the gradient descent.
      num_directions: number of random directions.
      num_steps: number of full-batch gradient steps from each probed point.
      direction: (P,) or (k, P), for instance of most negative curvature; added with both signs, after the random ones.
      chunk_size: number of examples whose activations are held at a time; None holds all.

    Raises:
      ValueError: as `hessian`; for radii that are not positive, or a direction that is zero.
    """
    if not radii or min(radii) <= 0:
        raise ValueError(f"radii must be positive numbers, got {radii}")
    params, data = checked_arguments(loss_fn, params, data, chunk_size)
    position = ravel_pytree(params)[0]
    checks.refuse_traced("params, data and key", position, key, *data)
    if not position.size:
        raise ValueError("params hold no number: there is nothing to move")
    directions = jax.random.normal(checks.prng_key(key), (num_directions, position.size), position.dtype)
    if direction is not None:
        given = jnp.atleast_2d(jnp.asarray(direction, position.dtype))
        if given.ndim != 2 or given.shape[1] != position.size:
            raise ValueError(f"direction must be ({position.size},) or (k, {position.size}), got shape {jnp.shape(direction)}")
        directions = jnp.concatenate([directions, *(row for line in given for row in (line[None], -line[None]))])
    directions /= jnp.abs(directions).max(1, keepdims=True)  # of any scale
    directions /= jnp.linalg.norm(directions, axis=1, keepdims=True)
    if not jnp.isfinite(directions).all():
        raise ValueError("direction must be finite and not zero")
    result = _probe(loss_fn, num_steps, chunk_size, params, data, directions, jnp.asarray(radii), step_size)
    return ProbeReport(np.asarray(radii), *(np.asarray(a) for a in result))  # NumPy keeps float64 when JAX is in 32-bit mode


def losses_at(
    loss_fn: LossFn,
    params: PyTree,
    data: Data,
    offsets: Float[jax.Array | np.ndarray, "m p"],
    *,
    chunk_size: int | None = None,
) -> Float[jax.Array, " m"]:
    """Mean losses (M,) at ``params`` plus each of ``offsets`` (M, P); for slices of the landscape along any directions.

    Raises:
      ValueError: as `hessian`.
    """
    params, data = checked_arguments(loss_fn, params, data, chunk_size)
    offsets, dimension = checks.examples(offsets, "offsets"), ravel_pytree(params)[0].size
    if offsets.shape[1:] != (dimension,):
        raise ValueError(f"offsets must be (M, {dimension}), an offset of all parameters each, got shape {offsets.shape}")
    return _losses_at(loss_fn, chunk_size, params, data, offsets)


@partial(jax.jit, static_argnums=(0, 1))
def _losses_at(loss_fn: LossFn, chunk_size: int | None, params: Any, data: Any, offsets: jax.Array) -> jax.Array:
    position, unravel = ravel_pytree(params)

    def loss(offset: jax.Array) -> jax.Array:
        return loss_and_gradient(loss_fn, unravel(position + offset), data, chunk_size=chunk_size)[0]

    return jax.lax.map(loss, offsets)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _probe(
    loss_fn: LossFn,
    num_steps: int,
    chunk_size: int | None,
    params: Any,
    data: tuple,
    directions: jax.Array,
    radii: jax.Array,
    step_size: jax.Array,
) -> tuple:
    """Loss changes on the lines and after descent, distances after descent, each (D, R), and the offset of the lowest end."""
    position, unravel = ravel_pytree(params)
    reference = loss_and_gradient(loss_fn, params, data, chunk_size=chunk_size)[0]

    def evaluate(point: jax.Array) -> tuple[jax.Array, jax.Array]:
        return loss_and_gradient(loss_fn, unravel(point), data, chunk_size=chunk_size)

    def descend(lowest: tuple, start: jax.Array) -> tuple[tuple, tuple]:
        end, _ = jax.lax.scan(lambda p, _: (p - step_size * evaluate(p)[1], None), position + start, length=num_steps)
        line, change, offset = evaluate(position + start)[0] - reference, evaluate(end)[0] - reference, end - position
        distance = jnp.linalg.norm(offset)
        for height, place, counts in ((line, start, True), (change, offset, distance <= 2 * radii.max())):
            lower = (height < lowest[0]) & counts  # never for NaN
            lowest = jnp.where(lower, height, lowest[0]), jnp.where(lower, place, lowest[1])
        return lowest, (line, change, distance)

    def along(lowest: tuple, direction: jax.Array) -> tuple[tuple, tuple]:
        return jax.lax.scan(descend, lowest, radii[:, None].astype(position.dtype) * direction)

    nowhere = jnp.array(jnp.inf, reference.dtype), jnp.zeros_like(position)
    (_, offset), (lines, descents, distances) = jax.lax.scan(along, nowhere, directions)
    return lines, descents, distances, offset
