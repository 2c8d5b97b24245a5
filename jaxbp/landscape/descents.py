"""Whether a lower loss beside a point speaks against a local minimum, or lies behind a barrier.

A lower loss at some distance refutes nothing: every local minimum that is not global has one. A saddle has lower losses at every
distance. So the lower point is drawn towards the point, halving its distance, with a gradient descent at each stage that takes out what
curvature lifts. The losses of a saddle of order k fall by 2^k from stage to stage until rounding hides them; behind a barrier they change
sign at a size that rounding cannot hide.
"""

from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from jaxbp.landscape.hessian import Data, LossFn
from jaxbp.landscape.probes import ProbeReport, probe

_STAGES = 14
_LEAST = 4  # stages with lower losses, so over a factor of 8 in distance


def halvings(distance: float) -> Float[np.ndarray, " stages"]:
    """The distances of the stages."""
    return distance * 2.0 ** -np.arange(_STAGES)


def approach(
    loss_fn: LossFn, params: Any, data: Data, offset: Float[np.ndarray, " p"], *, step_size: float, num_steps: int, chunk_size: int | None
) -> Float[np.ndarray, " stages"]:
    """Lowest loss changes beside ``offset`` (P,) times 1, 1/2, 1/4, ..."""
    radii = tuple(halvings(float(np.linalg.norm(offset))).tolist())
    report = probe(
        loss_fn,
        params,
        data,
        jax.random.key(0),  # for no direction
        radii=radii,
        step_size=step_size,
        num_directions=0,
        num_steps=num_steps,
        direction=offset,
        chunk_size=chunk_size,
    )
    return _nearby_changes(report)


def _nearby_changes(report: ProbeReport) -> np.ndarray:
    """Of each radius the change on the line or, where the descent stays near, at its end."""
    is_near = report.descent_distances[0] <= 4 * report.radii
    line, descent = report.line_changes[0], report.descent_changes[0]
    return np.where(is_near & np.isfinite(descent), np.fmin(line, descent), line)


def falls_towards(changes: Float[np.ndarray, " stages"], noise: float) -> bool:
    """Whether the losses are lower from the first stage down to where rounding, ``noise``, hides them."""
    lower = np.append(changes < -noise, False)
    count = int(np.argmin(lower))
    if count < _LEAST:
        return False
    ratios = changes[: count - 1] / changes[1:count]
    return count == len(changes) or abs(changes[count - 1]) <= 10 * noise * float(ratios.max())
