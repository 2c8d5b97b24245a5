"""Intervals, tests and trends over seeds.

Every seed is one independent observation, so average over examples or epochs first. Intervals are two-sided at 95 % by default.

>>> from jaxbp import stats
>>> gain = stats.t_interval([0.4, 0.7, 0.5, 0.9, 0.6])
>>> print(f"{gain.estimate:.2f} in [{gain.low:.3f}, {gain.high:.3f}], {gain.num_seeds} seeds")
0.62 in [0.381, 0.859], 5 seeds
"""

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import scipy  # loads scipy.stats, which takes a second, at its first use
from numpy.typing import ArrayLike

CONFIDENCE = 0.95

Alternative = Literal["two-sided", "greater", "less"]


class SampleError(ValueError):
    """The measurements allow no interval: too few seeds, not finite, or outside the measure's domain."""


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval.

    Attributes:
      estimate: the value of the statistic over all seeds.
      low, high: the ends, finite. They are equal where all seeds agree to the last bit: right for a deterministic measure; for a
        random one it says only that these seeds show no spread.
      confidence: the nominal coverage, a fraction.
      num_seeds: the number of independent runs (or trials).
      method: how the ends were computed.
    """

    estimate: float
    low: float
    high: float
    confidence: float
    num_seeds: int
    method: str

    def __post_init__(self):
        ends = (self.estimate, self.low, self.high)
        if not (np.isfinite(ends).all() and self.low <= self.high):
            raise SampleError(f"an interval needs finite ends in order, got estimate, low, high = {ends}")


IntervalFn = Callable[..., Interval]


def _checked(values: ArrayLike, confidence: float = CONFIDENCE, *, least: int = 2, ndim: int = 1) -> np.ndarray:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is a fraction between 0 and 1, got {confidence}: write 0.95 for 95 %")
    values = _unmasked(values)
    if values.ndim != ndim and values.size:  # no seeds at all may come without the other axes
        raise ValueError(f"values need {ndim} axes, the first over seeds, got shape {values.shape}")
    if len(values) < least:
        raise SampleError(f"an interval needs at least {least} seeds, got {len(values)}")
    num_bad = len(values) - np.count_nonzero(np.isfinite(values).reshape(len(values), -1).all(1))
    if num_bad:
        raise SampleError(f"{num_bad} of {len(values)} seeds are not finite: settle what that means, then pass the rest")
    return values


def _unmasked(values: ArrayLike) -> np.ndarray:
    """float64 values, where masked ones are NaN: the mask of NumPy would be dropped, and what lies under it counted."""
    if isinstance(values, np.ma.MaskedArray):
        return np.ma.filled(values.astype(np.float64), np.nan)
    return np.asarray(values, np.float64)


def _scaled(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Values divided by a power of two near their largest size, and that power: squares of 1e-200 would be 0, those of 1e200 infinite."""
    scale = float(2.0 ** np.floor(np.log2(max(np.abs(values).max(), np.finfo(np.float64).tiny))))
    return values / scale, scale


@contextlib.contextmanager
def _no_runtime_warnings() -> Iterator[None]:
    """SciPy warns of values that are nearly equal; the interval is then narrow, as it should be."""
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # SciPy's DegenerateDataWarning is a RuntimeWarning
        yield


def t_interval(values: ArrayLike, *, confidence: float = CONFIDENCE) -> Interval:
    """Student's interval for the mean of ``values`` (num_seeds,), by `scipy.stats.ttest_1samp`.

    Exact for normal values at any number of seeds, good for roughly symmetric ones. The default everywhere, as the bootstrap
    covers too little with few seeds.

    Raises:
      SampleError: fewer than two seeds, or values that are not finite.
    """
    values = _checked(values, confidence)
    if np.ptp(values) == 0:  # the computed mean of equal numbers may differ from them in the last bit
        mean = low = high = float(values[0])
    else:
        scaled, scale = _scaled(values)
        mean = float(scaled.mean()) * scale
        with _no_runtime_warnings():
            low, high = (float(end) * scale for end in scipy.stats.ttest_1samp(scaled, 0.0).confidence_interval(confidence))
    return Interval(mean, low, high, confidence, len(values), "t")


def bootstrap_interval(
    values: ArrayLike,
    *,
    statistic: Callable = np.mean,
    confidence: float = CONFIDENCE,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Bias-corrected accelerated bootstrap (Efron, JASA 82, 1987) for any ``statistic`` of the seeds.

    Use it for statistics without a formula, such as a median, and for 20 seeds or more: a nominal 95 % interval covers 93 %
    with 20 normal values, 90 % with ten, 84 % with five. Equal values give an interval of width zero. Where BCa is undefined
    (a median under ties may ignore every single seed), the ends are percentiles of the same resamples, and ``method`` says so.
    """
    values = _checked(values, confidence)
    fewest = math.ceil(2 / (1 - confidence))  # one resample beyond each end
    if isinstance(num_resamples, bool) or not isinstance(num_resamples, int | np.integer) or num_resamples < fewest:
        raise ValueError(f"num_resamples must be a whole number of at least {fewest} at confidence {confidence}, got {num_resamples!r}")
    estimate = float(statistic(values))
    if np.ptp(values) == 0:
        return Interval(estimate, estimate, estimate, confidence, len(values), "bootstrap, no spread")
    with _no_runtime_warnings():
        result = scipy.stats.bootstrap(
            (values,),
            statistic,
            n_resamples=num_resamples,
            confidence_level=confidence,
            method="BCa",
            random_state=np.random.default_rng(seed),  # SciPy 1.14 has no other name for it
        )
    ends, method = np.asarray(result.confidence_interval), "bootstrap BCa"
    if not np.isfinite(ends).all():
        tail = (1 - confidence) / 2
        ends, method = np.quantile(result.bootstrap_distribution, [tail, 1 - tail]), "bootstrap percentile"
    return Interval(estimate, float(ends[0]), float(ends[1]), confidence, len(values), method)


def proportion_interval(successes: int, trials: int, *, confidence: float = CONFIDENCE) -> Interval:
    """Exact interval (Clopper and Pearson, Biometrika 26, 1934) for the probability behind ``successes`` of ``trials``.

    It covers at least the nominal level whatever the probability, at the price of width. Wilson's and other approximate
    intervals fall below it for some probabilities (Brown, Cai and DasGupta, Statistical Science 16, 2001); a verdict must not.

    The ends are quantiles of beta distributions. `scipy.stats.binomtest` finds the same ends by bisection, to 2e-12 only.

    Raises:
      SampleError: no trials.
      ValueError: successes not from 0 to trials, or a confidence not between 0 and 1.
    """
    successes, trials = _checked_counts(successes, trials, confidence)
    tail, failures = (1 - confidence) / 2, trials - successes
    low = float(scipy.stats.beta.ppf(tail, successes, failures + 1)) if successes else 0.0
    high = float(scipy.stats.beta.ppf(1 - tail, successes + 1, failures)) if failures else 1.0
    return Interval(successes / trials, low, high, confidence, trials, "Clopper-Pearson")


def wilson_interval(successes: int, trials: int, *, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval (JASA 22, 1927) for the probability behind ``successes`` of ``trials``.

    Its coverage is the nominal one on average over probabilities, and lower for some; where coverage must hold for every
    probability, use `proportion_interval`. ``num_seeds`` of the result is the number of trials.

    Raises:
      SampleError: no trials.
      ValueError: successes not from 0 to trials, or a confidence not between 0 and 1.
    """
    successes, trials = _checked_counts(successes, trials, confidence)
    ends = scipy.stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return Interval(successes / trials, float(ends.low), float(ends.high), confidence, trials, "Wilson")


def _checked_counts(successes: int, trials: int, confidence: float) -> tuple[int, int]:
    for name, count in (("successes", successes), ("trials", trials)):
        if not (np.ndim(count) == 0 and np.isfinite(count) and count == int(count)):
            raise ValueError(f"{name} must be a whole number, got {count!r}: give counts, not shares")
    successes, trials = int(successes), int(trials)
    if not 0 <= successes <= trials:
        raise ValueError(f"successes lie between 0 and trials = {trials}, got {successes}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is a fraction between 0 and 1, got {confidence}: write 0.95 for 95 %")
    if not trials:
        raise SampleError("an interval needs at least 1 trial, got 0")
    return successes, trials


def event_interval(happened: ArrayLike, *, confidence: float = CONFIDENCE) -> Interval:
    """`proportion_interval` of an event that ``happened`` (1) or not (0) in each seed (num_seeds,); made for `jaxbp.claims.judge`."""
    happened = _checked(happened, confidence, least=1)
    if not np.isin(happened, (0, 1)).all():
        raise ValueError(f"events are 0 or 1, got {np.setdiff1d(happened, (0, 1))[0]}: threshold the measure first")
    return proportion_interval(happened.sum(), len(happened), confidence=confidence)


def paired_difference(a: ArrayLike, b: ArrayLike, *, confidence: float = CONFIDENCE) -> Interval:
    """t interval for the mean of a - b, both (num_seeds,), where equal positions share a seed.

    Effects that paired runs share (initialisation, data order) cancel. The matching p value is `p_value` of a - b.
    """
    a, b = _unmasked(a), _unmasked(b)
    if a.shape != b.shape:
        raise ValueError(f"pairs need the same seeds in the same order, got shapes {a.shape} and {b.shape}")
    return dataclasses.replace(t_interval(a - b, confidence=confidence), method="paired t")


def trend(widths: ArrayLike, values: ArrayLike, *, log_values: bool = False, confidence: float = CONFIDENCE) -> Interval:
    """Mean change of a measure per doubling of width, from ``values`` (num_seeds, num_widths): the t interval of `slopes`."""
    interval = t_interval(slopes(widths, values, log_values=log_values), confidence=confidence)
    return dataclasses.replace(interval, method="t over slopes")


def slopes(widths: ArrayLike, values: ArrayLike, *, log_values: bool = False) -> np.ndarray:
    """Each seed's change of a measure per doubling of width, (num_seeds,), from ``values`` (num_seeds, num_widths).

    A least-squares line over log2(width) is fitted to each seed, so the widths of one seed may depend on each other. With
    ``log_values`` the slope is that of log2(value), the exponent of a power law. A slope tells a direction; it does
    not show that the measure is monotone.

    Raises:
      SampleError: values that are not finite, or not positive with ``log_values``.
      ValueError: widths that are not positive, not different, or not one per column.
    """
    widths, table = np.asarray(widths, np.float64), _checked(values, ndim=2)
    if widths.shape != table.shape[1:] or len(np.unique(widths)) < 2 or not (widths > 0).all():
        raise ValueError(
            "a trend needs two or more different positive widths, one per column of values: "
            f"got widths {widths.tolist()} and values of shape {table.shape}"
        )
    if log_values:
        if num_bad := np.count_nonzero(table.min(1) <= 0):
            raise SampleError(f"{num_bad} of {len(table)} seeds hold values without a logarithm")
        table = np.log2(table)
    x = np.log2(widths)
    x -= x.mean()
    return (table - table.mean(1, keepdims=True)) @ x / (x @ x)


def p_value(values: ArrayLike, *, threshold: float = 0.0, alternative: Alternative = "two-sided") -> float:
    """Student's p value against the mean of ``values`` (num_seeds,) being ``threshold``; paired for differences.

    Values without spread give 0 if they lie on the side of the alternative, else 1.

    Raises:
      SampleError: fewer than two seeds, or values that are not finite.
      ValueError: an unknown alternative.
    """
    if alternative not in get_args(Alternative):
        raise ValueError(f"alternative is one of {list(get_args(Alternative))}, got {alternative!r}")
    values = _checked(values)
    if np.ptp(values) == 0:
        on_side = {"two-sided": values[0] != threshold, "greater": values[0] > threshold, "less": values[0] < threshold}
        return 0.0 if on_side[alternative] else 1.0
    scaled, _ = _scaled(np.append(values, threshold))
    with _no_runtime_warnings():
        return float(scipy.stats.ttest_1samp(scaled[:-1], scaled[-1], alternative=alternative).pvalue)


def holm(p_values: ArrayLike) -> np.ndarray:
    """Adjust p values (num_tests,) for multiplicity, in the given order (Holm, Scand. J. Statist. 6, 1979).

    Rejecting where the result is at most alpha keeps the probability of any false rejection at alpha, however the
    tests depend on each other. Never weaker than Bonferroni.
    """
    p = np.asarray(p_values, np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p values are a list of numbers between 0 and 1, got {p.tolist()}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return adjusted
