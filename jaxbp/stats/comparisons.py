"""Paired comparisons, trends over widths, p values and their adjustment for multiplicity."""

import dataclasses
from typing import Literal, get_args

import numpy as np
import scipy  # loads scipy.stats, which takes a second, at its first use
from numpy.typing import ArrayLike

from jaxbp.stats.intervals import t_interval
from jaxbp.stats.sample import CONFIDENCE, Interval, SampleError, checked, no_runtime_warnings, numbers, scaled

Alternative = Literal["two-sided", "greater", "less"]


def paired_difference(a: ArrayLike, b: ArrayLike, *, confidence: float = CONFIDENCE) -> Interval:
    """t interval for the mean of a - b, both (num_seeds,), where equal positions share a seed.

    Effects that paired runs share (initialisation, data order) cancel. The matching p value is `p_value` of a - b.
    """
    a, b = numbers(a, "a"), numbers(b, "b")
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
    widths, table = numbers(widths, "widths"), checked(values, ndim=2)
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
    values = checked(values)
    if np.ptp(values) == 0:
        on_side = {"two-sided": values[0] != threshold, "greater": values[0] > threshold, "less": values[0] < threshold}
        return 0.0 if on_side[alternative] else 1.0
    *values, threshold = scaled(np.append(values, threshold))[0]
    with no_runtime_warnings():
        return float(scipy.stats.ttest_1samp(values, threshold, alternative=alternative).pvalue)


def holm(p_values: ArrayLike) -> np.ndarray:
    """Adjust p values (num_tests,) for multiplicity, in the given order (Holm, Scand. J. Statist. 6, 1979).

    Rejecting where the result is at most alpha keeps the probability of any false rejection at alpha, however the
    tests depend on each other. Never weaker than Bonferroni.
    """
    p = numbers(p_values, "p values")
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p values are a list of numbers between 0 and 1, got {p.tolist()}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return adjusted


def kendall(x: ArrayLike, y: ArrayLike) -> float:
    """Kendall's rank correlation tau-b of ``x`` and ``y``, both (N,): a measure of one seed, whose interval is over seeds.

    NaN where either is constant or holds a value that is not finite.

    Raises:
      ValueError: shapes that differ, or fewer than two values.
    """
    x, y = numbers(x, "x"), numbers(y, "y")
    if x.ndim != 1 or x.shape != y.shape or len(x) < 2:
        raise ValueError(f"rank correlation needs two lists of one length, at least 2, got shapes {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return float("nan")
    first, second = np.triu_indices(len(x), 1)
    a, b = np.sign(x[first] - x[second]), np.sign(y[first] - y[second])
    ties = np.count_nonzero(a) * np.count_nonzero(b)
    return float(a @ b / np.sqrt(ties)) if ties else float("nan")
