"""Where along an axis an effect enters or leaves a region, with an interval.

>>> from jaxbp import stats
>>> found = stats.boundary([0.01, 0.1, 1.0], [0.5, 0.2, -0.4], errors=[0.02] * 3, region=(0.0, float("inf")), log=True)
>>> print(f"holds below {found.at:.2f}, in [{found.low}, {found.high}]" if found.holds_below else "")
holds below 0.22, in [0.1, 1.0]
"""

import math
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike

from jaxbp.stats.sample import CONFIDENCE, check_confidence

_DRAWS = 1000


@dataclass(frozen=True)
class Boundary:
    """A place at which an effect crosses the end of a region.

    Attributes:
      at: the place, by interpolation between grid points.
      low, high: its interval; an end is infinite where the boundary may lie beyond the grid.
      holds_below: whether the effect lies in the region below the place, and not above.
    """

    at: float
    low: float
    high: float
    holds_below: bool


def boundary(
    points: ArrayLike,
    effects: ArrayLike,
    *,
    errors: ArrayLike,
    region: tuple[float, float],
    log: bool = False,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Boundary | None:
    """Find where effects that rise or fall along an axis enter or leave a region.

    The distance into the region is made monotone by isotonic regression (Barlow et al., 1972) weighted by the errors, rising or falling,
    whichever fits better; the boundary is where the distance changes its sign. Between two grid points nothing was measured, so the
    interval does not trust the interpolation: of effects drawn anew from normal laws with their errors, each draw gives the two grid
    points between which it crosses, and the interval reaches from a low quantile of the lower ones to a high quantile of the upper ones.
    It covers the boundary of any monotone effect. Effects count as independent.

    Args:
      points: N increasing places.
      effects: N finite effects.
      errors: their standard errors.
      region: lower and upper end; infinite for none.
      log: interpolate over the logarithms of the points.
      confidence: of the interval.
      seed: of the draws.

    Returns:
      The boundary; None if all of the monotone effect lies in the region, or none of it.
    """
    check_confidence(confidence)
    x, values, spread = (np.asarray(array, float) for array in (points, effects, errors))
    if len(x) < 2 or np.any(np.diff(x) <= 0):
        raise ValueError(f"a boundary needs 2 or more increasing points, got {x.tolist()}")
    weights = 1 / np.maximum(spread, 1e-9 * (np.ptp(values) or 1.0)) ** 2
    fitted, rising = _monotone(_inside(values, region), weights)
    bracket = _bracket(fitted, rising)
    if not 0 <= bracket < len(x) - 1:
        return None
    draws = values + spread * np.random.default_rng(seed).standard_normal((_DRAWS, len(x)))
    brackets = np.array([_bracket(_isotonic(_inside(draw, region), weights, rising), rising) for draw in draws])
    ends = np.concatenate([[-math.inf], x, [math.inf]])
    tail = (1 - confidence) / 2
    low = np.quantile(ends[brackets + 1], tail, method="lower")
    high = np.quantile(ends[brackets + 2], 1 - tail, method="higher")
    scale = np.log(x) if log else x
    before, after = fitted[bracket], fitted[bracket + 1]
    place = scale[bracket] + (scale[bracket + 1] - scale[bracket]) * before / (before - after)
    return Boundary(float(np.exp(place) if log else place), float(low), float(high), not rising)


def _inside(values: np.ndarray, region: tuple[float, float]) -> np.ndarray:
    """The distance into the region; negative outside."""
    return np.minimum(values - region[0], region[1] - values)


def _monotone(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, bool]:
    """The better of the rising and the falling fit, and whether it rises."""
    fits = {rising: _isotonic(values, weights, rising) for rising in (True, False)}
    rising = min(fits, key=lambda key: float(weights @ (values - fits[key]) ** 2))
    return fits[rising], rising


def _isotonic(values: np.ndarray, weights: np.ndarray, rising: bool) -> np.ndarray:
    return scipy.optimize.isotonic_regression(values, weights=weights, increasing=rising).x


def _bracket(fitted: np.ndarray, rising: bool) -> int:
    """The last place before the sign changes; -1 or the last place of all if the sign is that behind or before the change everywhere."""
    before = fitted <= 0 if rising else fitted > 0
    return int(before.sum()) - 1
