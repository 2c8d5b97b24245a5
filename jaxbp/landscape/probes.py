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

from jaxbp.landscape.hessian import Data, LossFn, loss_and_gradient


class ProbeReport(NamedTuple):
    """Loss changes relative to the point, for D directions and R radii; NaN or infinite where the loss is.

    Attributes:
      radii: (R,) distances of the probed points.
      line_changes: (D, R) loss change after a straight step.
      descent_changes: (D, R) loss change after gradient descent from the end of the step.
      descent_distances: (D, R) distance between the end of the descent and the point.
    """

    radii: Float[np.ndarray, " r"]
    line_changes: Float[np.ndarray, "d r"]
    descent_changes: Float[np.ndarray, "d r"]
    descent_distances: Float[np.ndarray, "d r"]

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
    direction: Float[jax.Array, " p"] | None = None,
    chunk_size: int | None = None,
) -> ProbeReport:
    """Probe the mean loss around ``params`` along random directions, and by gradient descent from the points reached.

    The cost is D R (num_steps + 2) gradients, with D = num_directions, or num_directions + 2 if ``direction`` is given. The probe holds
    one offset of P numbers for each of the D directions.

    Args:
      loss_fn: per-example losses (N,), as in `hessian`.
      params: pytree with P parameters.
      data: arrays with the N examples on their leading axis.
      key: for the random directions.
      radii: Euclidean distances, positive.
      step_size: of the gradient descent.
      num_directions: number of random directions.
      num_steps: number of full-batch gradient steps from each probed point.
      direction: (P,), for instance of most negative curvature; added with both signs.
      chunk_size: number of examples whose activations are held at a time; None holds all.

    Raises:
      ValueError: for radii that are not positive.
    """
    if not radii or min(radii) <= 0:
        raise ValueError(f"radii must be positive numbers, got {radii}")
    size = ravel_pytree(params)[0].size
    directions = jax.random.normal(key, (num_directions, size), jax.tree.leaves(params)[0].dtype)
    if direction is not None:
        directions = jnp.concatenate([directions, direction[None], -direction[None]])
    directions /= jnp.linalg.norm(directions, axis=1, keepdims=True)
    changes = _probe(loss_fn, num_steps, chunk_size, params, data, directions, jnp.asarray(radii), step_size)
    return ProbeReport(np.asarray(radii), *(np.asarray(a) for a in changes))  # NumPy keeps float64 when JAX is in 32-bit mode


@partial(jax.jit, static_argnums=0, static_argnames="chunk_size")
def losses_at(
    loss_fn: LossFn,
    params: PyTree,
    data: Data,
    offsets: Float[jax.Array, "m p"],
    *,
    chunk_size: int | None = None,
) -> Float[jax.Array, " m"]:
    """Mean losses (M,) at ``params`` plus each of ``offsets`` (M, P); for slices of the landscape along any directions."""
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
    """Loss changes on the lines and after descent, and the distances after descent, each (D, R)."""
    position, unravel = ravel_pytree(params)

    def evaluate(point: jax.Array) -> tuple[jax.Array, jax.Array]:
        return loss_and_gradient(loss_fn, unravel(point), data, chunk_size=chunk_size)

    def descend(start: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        end, _ = jax.lax.scan(lambda p, _: (p - step_size * evaluate(p)[1], None), start, length=num_steps)
        return evaluate(start)[0], evaluate(end)[0], jnp.linalg.norm(end - position)

    def along(direction: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        return jax.lax.map(lambda radius: descend(position + radius * direction), radii)

    lines, descents, distances = jax.lax.map(along, directions)
    reference, _ = evaluate(position)
    return lines - reference, descents - reference, distances
