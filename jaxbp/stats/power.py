"""The chance that an interval will lie inside a region, if the truth is known: power, and the seeds that it takes.

>>> from jaxbp import stats
>>> chance = stats.chance_inside((0.0, float("inf")), truth=0.5, spread=1.0, num_seeds=10)
>>> print(f"{chance:.3f}")  # an effect of half a standard deviation is found by ten seeds in three runs of ten
0.293
>>> stats.seeds_needed(lambda n: stats.chance_inside((0.0, float("inf")), truth=0.5, spread=1.0, num_seeds=n))
34
>>> round(stats.event_chance_inside((0.5, float("inf")), truth=0.9, num_seeds=10), 3)  # nine of ten are needed
0.736
"""

import math
from collections.abc import Callable

import numpy as np
import scipy

from jaxbp.stats.sample import CONFIDENCE, check_confidence

_NODES = 400


def chance_inside(region: tuple[float, float], *, truth: float, spread: float, num_seeds: int, confidence: float = CONFIDENCE) -> float:
    """The chance that `jaxbp.stats.t_interval` of ``num_seeds`` normal values lies inside an open region.

    With one finite end it is a tail of the noncentral t law; with two, the power of two one-sided tests (Phillips, J. Pharmacokin.
    Biopharm. 18, 1990). Both are the same integral over the law of the standard deviation.

    Args:
      region: lower and upper end, infinite where there is none.
      truth: the mean.
      spread: the standard deviation.
      num_seeds: at least 2; fewer give no interval, and the chance 0.
      confidence: of the interval.
    """
    check_confidence(confidence)
    lower, upper = region
    if num_seeds < 2:
        return 0.0
    if spread == 0:
        return float(lower < truth < upper)
    quantile, degrees = float(scipy.stats.t.ppf((1 + confidence) / 2, num_seeds - 1)), num_seeds - 1
    error = spread / math.sqrt(num_seeds)
    if math.isinf(lower) or math.isinf(upper):
        distance = upper - truth if math.isinf(lower) else truth - lower
        return float(np.nan_to_num(scipy.stats.nct.sf(quantile, degrees, distance / error), nan=float(distance > 0)))
    levels = (np.arange(_NODES) + 0.5) / _NODES  # of the law of the standard deviation, each as likely as the next
    half = quantile * np.sqrt(scipy.stats.chi2.ppf(levels, degrees) / degrees)
    inside = scipy.special.ndtr((upper - truth) / error - half) - scipy.special.ndtr((lower - truth) / error + half)
    return float(np.clip(inside, 0, 1).mean())


def event_chance_inside(region: tuple[float, float], *, truth: float, num_seeds: int, confidence: float = CONFIDENCE) -> float:
    """The chance that `jaxbp.stats.proportion_interval` of ``num_seeds`` trials lies inside an open region of shares; exact."""
    if num_seeds < 1:
        return 0.0
    lower, upper = region
    counts = np.arange(num_seeds + 1)
    tail = (1 - confidence) / 2
    low = np.where(counts > 0, scipy.stats.beta.ppf(tail, np.maximum(counts, 1), num_seeds - counts + 1), 0.0)
    high = np.where(counts < num_seeds, scipy.stats.beta.ppf(1 - tail, counts + 1, np.maximum(num_seeds - counts, 1)), 1.0)
    inside = (low > lower) & (high < upper)
    return float(scipy.stats.binom.pmf(counts, num_seeds, min(max(truth, 0.0), 1.0))[inside].sum())


def seeds_needed(chance_fn: Callable[[int], float], *, wanted: float = 0.8, most: int = 2000) -> int | None:
    """The fewest seeds with a chance of at least ``wanted``, by bisection; None if ``most`` are too few.

    The chance of an exact interval rises in steps and falls a little between them, so the number is right to within such a step.
    """
    if chance_fn(most) < wanted:
        return None
    few, enough = 1, 2
    while chance_fn(enough) < wanted:
        few, enough = enough, min(2 * enough, most)
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if chance_fn(middle) >= wanted else (middle, enough)
    return enough
