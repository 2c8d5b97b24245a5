"""Looks at results while seeds are added: how many seeds, at which level, and when more of them are of no use.

Adding seeds until the 95 % interval decides is wrong: of effects that lie on the threshold, looking after every seed up to 160 decides
36 %. Here the error is spent geometrically: look k = 0, 1, 2, ... is made at n_k seeds with an interval of error 0.05 x 2^-(k+1). The
errors of all looks sum to 0.05, whatever the joint law of the looks, so any way to stop is allowed, also one forced by a
budget, and all intervals of a run hold together. The rule is as good as the interval at each look: it holds for Student's intervals of
normal values and for exact intervals of shares; it fails where the interval fails, as Student's does for few seeds of a skewed or
one-sidedly heavy-tailed law, and more so since later looks reach farther into the tails. It also fails where the seeds of a look
depend on earlier results other than by stopping: seeds that are dropped, retried, or added to one case and not to another that shares data.

>>> from jaxbp import stats
>>> looks = stats.Looks(first=10, most=50)
>>> looks.sizes
(10, 20, 40, 50)
>>> [round(looks.confidence(look), 5) for look in range(4)]
[0.975, 0.9875, 0.99375, 0.99687]
>>> looks.blocks(20)
[(0, 1, 2, 3, 4, 5, 6, 7, 8, 9), (10, 11, 12, 13, 14, 15, 16, 17, 18, 19)]
"""

import itertools
import math
from dataclasses import dataclass

import scipy

from jaxbp.stats.sample import Interval


@dataclass(frozen=True)
class Looks:
    """A schedule that is fixed before the first seed.

    Attributes:
      first: the seeds of look 0, at least 2.
      factor: by which each look multiplies them.
      most: the seeds of the last look.
      error: of all looks together, for both sides.
    """

    first: int = 10
    factor: int = 2
    most: int = 160
    error: float = 0.05

    def __post_init__(self) -> None:
        if self.first < 2 or self.factor < 2:
            raise ValueError(f"looks begin with 2 seeds or more and at least double them, got {self.first} and {self.factor}")
        if self.most < self.first:
            raise ValueError(f"the last look has no fewer seeds than the first, {self.first}, got {self.most}")
        if not 0 < self.error < 1:
            raise ValueError(f"the error is a fraction between 0 and 1, got {self.error}")

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of seeds at each look; the last is ``most``."""
        sizes = [self.first]
        while sizes[-1] < self.most:
            sizes.append(min(sizes[-1] * self.factor, self.most))
        return tuple(sizes)

    def error_at(self, look: int) -> float:
        """The error that a look spends: geometric, half of the error that the looks before it have left."""
        return self.error * 2.0 ** -(look + 1)

    def confidence(self, look: int) -> float:
        """The nominal coverage of a look's intervals."""
        return 1 - self.error_at(look)

    def blocks(self, num_seeds: int) -> list[tuple[int, ...]]:
        """The seeds that each look adds, up to ``num_seeds``."""
        ends = [0, *(size for size in self.sizes if size < num_seeds), num_seeds]
        return [tuple(range(start, stop)) for start, stop in itertools.pairwise(ends)]


def chance_of_deciding(interval: Interval, limits: tuple[float, ...], looks: Looks) -> float:
    """The chance that the last look's interval will lie on one side of every limit, given the interval of an earlier look.

    The predictive chance of a mean with a flat prior: its estimate moves by the standard error of the seeds to come, and its interval
    narrows as one over the root of their number. A run may stop where the chance is small: that costs power and never validity.
    """
    law = scipy.stats.t(max(interval.num_seeds - 1, 1))
    error = (interval.high - interval.low) / 2 / float(law.ppf((1 + interval.confidence) / 2))
    if error == 0:
        return float(interval.estimate not in limits)
    share = min(interval.num_seeds / looks.most, 1.0)
    last = looks.confidence(len(looks.sizes) - 1)
    half = float(scipy.stats.t.ppf((1 + last) / 2, max(looks.most - 1, 1))) * error * math.sqrt(share)
    shift = error * math.sqrt(1 - share) or 1e-12 * error
    lower, upper = min(limits), max(limits)
    normal = scipy.stats.norm(interval.estimate, shift)
    inside = max(float(normal.cdf(upper - half) - normal.cdf(lower + half)), 0.0) if upper > lower else 0.0
    return float(normal.cdf(lower - half) + normal.sf(upper + half)) + inside
