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
_LEAST = 4  # stages with lower losses: over a factor of 8 in distance


def halvings(distance: float, num_stages: int = _STAGES) -> Float[np.ndarray, " stages"]:
    """The distances of the stages, the largest first."""
    return distance * 2.0 ** -np.arange(num_stages)


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
    """Whether the losses are lower at all distances that rounding, ``noise``, does not hide, the largest first.

    The least change that rounding does not hide must be negative, lie where a power of the distance would leave it, and follow at least
    three others that are negative and grow.
    """
    changes = np.where(np.isfinite(changes), changes, np.inf)
    visible = np.flatnonzero(np.abs(changes) > noise)
    if not visible.size or visible[-1] < _LEAST - 1:
        return False
    last = int(visible[-1])
    run = changes[last - _LEAST + 1 : last + 1]
    if not ((run < -noise).all() and (run[:-1] < run[1:]).all()):
        return False
    return last == len(changes) - 1 or -run[-1] <= 10 * noise * float((run[:-1] / run[1:]).max())
