"""Intervals that hold at every number of seeds at once, however often one looks: e-processes and what they do not reject.

An e-value is a bet against a hypothesis: its mean is at most 1 if the hypothesis is true, along any way of stopping, so it ever exceeds
1 / alpha with a chance of at most alpha (Ville). Averages of e-values over cases are e-values, however the cases depend on each other.
Student's mixture is exact for normal values; like Student's interval it fails for few seeds of skewed laws.

>>> from jaxbp import stats
>>> interval = stats.anytime_event_interval([1] * 8)  # 8 of 8 decide that a share exceeds one half; looked at once, 6 of 6 do
>>> interval.low > 0.5 > stats.anytime_event_interval([1] * 7).low
True
"""

import math

import numpy as np
import scipy
from numpy.typing import ArrayLike

from jaxbp.stats.sample import CONFIDENCE, Interval, SampleError, checked, numbers

_WIDE = 1.0  # prior variance of the effect over that of a seed
_HALF_FLAT = (1.0, 1.0)  # the uniform law of a share


def t_e_value(values: ArrayLike, *, threshold: float = 0.0, g: float = _WIDE) -> float:
    """The e-value against normal values (num_seeds,) of mean ``threshold`` and unknown variance.

    The Bayes factor of effects, in standard deviations, of law N(0, g) over none, under the right Haar prior of the variance (Lai, Annals
    of Statistics 4, 1976; Wang and Ramdas, 2024).

    Raises:
      SampleError: fewer than two seeds, or values that are not finite.
    """
    values = checked(values)
    n, spread = len(values), float(values.std(ddof=1))
    distance = abs(float(values.mean()) - threshold)
    if spread == 0:
        return 1.0 / math.sqrt(1 + n * g) if distance == 0 else (1 + n * g) ** ((n - 1) / 2)
    y = n * (distance / spread) ** 2 / (n - 1)
    return math.exp(0.5 * n * (math.log1p(y) - math.log1p(y / (1 + n * g))) - 0.5 * math.log1p(n * g))


def anytime_t_interval(values: ArrayLike, *, confidence: float = CONFIDENCE, g: float = _WIDE) -> Interval:
    """The means that `t_e_value` does not reject: together over all numbers of seeds they cover with ``confidence``.

    The half width is s sqrt((n - 1)(A - 1) / (n (1 - A / (1 + n g)))) with A = (sqrt(1 + n g) / alpha)^(2 / n).

    Raises:
      SampleError: so few seeds that no mean is rejected (A >= 1 + n g), or values that are not finite.
    """
    values = checked(values, confidence)
    n = len(values)
    a = (math.sqrt(1 + n * g) / (1 - confidence)) ** (2 / n)
    if a >= 1 + n * g:
        raise SampleError(f"{n} seeds are too few for an interval that holds at every look")
    mean = float(values.mean())
    half = float(values.std(ddof=1)) * math.sqrt((n - 1) * (a - 1) / (n * (1 - a / (1 + n * g))))
    return Interval(mean, mean - half, mean + half, confidence, n, "t sequence")


def event_e_value(happened: ArrayLike, share: float, *, prior: tuple[float, float] = _HALF_FLAT) -> float:
    """The e-value against events (num_seeds,) of chance ``share``: mixed over shares of the law Beta(a, b) (Robbins, 1970).

    Raises:
      SampleError: no seeds, or values that are not finite.
      ValueError: a share outside [0, 1].
    """
    happened, chance = checked(happened, least=1), numbers(share, "share")
    if chance.ndim or not 0 <= chance <= 1:
        raise ValueError(f"share must be one number from 0 to 1, got {share!r}")
    return math.exp(_log_mixture(int(happened.sum()), len(happened), prior, float(chance)))


def anytime_event_interval(happened: ArrayLike, *, confidence: float = CONFIDENCE, prior: tuple[float, float] = _HALF_FLAT) -> Interval:
    """The shares that `event_e_value` does not reject: together over all numbers of seeds they cover with ``confidence``.

    Raises:
      SampleError: no seeds.
      ValueError: events other than 0 and 1.
    """
    happened = checked(happened, confidence, least=1)
    if not np.isin(happened, (0, 1)).all():
        raise ValueError(f"events are 0 or 1, got {np.setdiff1d(happened, (0, 1))[0]}: threshold the measure first")
    count, n = int(happened.sum()), len(happened)
    bound, best = -math.log(1 - confidence), count / n

    def excess(share: float) -> float:
        return _log_mixture(count, n, prior, share) - bound

    tiny = 1e-12
    low = scipy.optimize.brentq(excess, tiny, best) if count and excess(tiny) > 0 > excess(best) else 0.0
    high = scipy.optimize.brentq(excess, best, 1 - tiny) if count < n and excess(1 - tiny) > 0 > excess(best) else 1.0
    return Interval(best, float(low), float(high), confidence, n, "beta-binomial sequence")


def _log_mixture(count: int, n: int, prior: tuple[float, float], share: float) -> float:
    """Logarithm of the likelihood mixed over the prior, over that at ``share``."""
    a, b = prior
    mixed = scipy.special.betaln(a + count, b + n - count) - scipy.special.betaln(a, b)
    return float(mixed - scipy.special.xlogy(count, share) - scipy.special.xlog1py(n - count, -share))
