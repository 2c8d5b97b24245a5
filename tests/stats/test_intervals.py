"""Intervals and tests against printed tables, defining equations closed forms of the laws behind them, and cases worked by hand."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxbp import stats
from jaxbp.stats import SampleError

FIVE = [0.4, 0.7, 0.5, 0.9, 0.6]  # mean 0.62, standard deviation sqrt(0.037)


def student_tail(t, degrees):
    """P(T > t) for t > 0 by the finite sums for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    theta = math.atan2(t, math.sqrt(degrees))
    factor, odd = 1.0, degrees % 2
    terms = []
    for power in range(1 if odd else 0, degrees - 1, 2):
        terms.append(factor * math.cos(theta) ** power)
        factor *= (power + 1) / (power + 2)
    total = math.sin(theta) * math.fsum(terms)
    return (1 - (2 / math.pi * (theta + total) if odd else total)) / 2


def binomial_tail(k, trials, p):
    """P(X >= k) of a binomial distribution, in rational numbers."""
    p = Fraction(p)
    return float(sum(math.comb(trials, i) * p**i * (1 - p) ** (trials - i) for i in range(k, trials + 1)))


# Intervals


def test_t_interval_against_the_printed_quantile():
    interval = stats.t_interval(FIVE)
    half = 2.776445 * math.sqrt(0.037 / 5)  # 97.5 % quantile of t with 4 degrees of freedom, from a table
    assert [interval.low, interval.high] == pytest.approx([0.62 - half, 0.62 + half], abs=1e-6)
    assert (interval.estimate, interval.num_seeds, interval.confidence) == (pytest.approx(0.62), 5, 0.95)


@given(st.integers(2, 30), st.floats(0.5, 0.999), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_the_ends_of_a_t_interval_have_the_tails_of_students_law(num_seeds, confidence, seed):
    values = np.random.default_rng(seed).normal(3.0, 2.0, num_seeds)
    interval = stats.t_interval(values, confidence=confidence)
    mean = math.fsum(values) / num_seeds
    error = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (num_seeds - 1) / num_seeds)
    for end in (interval.low, interval.high):
        assert student_tail(abs(end - mean) / error, num_seeds - 1) == pytest.approx((1 - confidence) / 2, rel=1e-9)
    assert interval.low < mean < interval.high


@pytest.mark.parametrize("interval_fn", [stats.t_interval, stats.bootstrap_interval])
def test_equal_seeds_give_an_interval_of_no_width(interval_fn):
    interval = interval_fn([0.1] * 3)  # whose computed mean is not 0.1
    assert interval.low == interval.estimate == interval.high == pytest.approx(0.1)


@pytest.mark.parametrize(
    "interval_fn",
    [stats.t_interval, stats.bootstrap_interval, stats.event_interval, stats.p_value],
)
def test_values_that_are_not_finite_are_counted(interval_fn):
    with pytest.raises(SampleError, match="2 of 4 seeds are not finite"):
        interval_fn([1.0, math.nan, 0.0, math.inf])


def test_misuse_is_told_apart_from_bad_data():
    with pytest.raises(SampleError, match="at least 2 seeds, got 1"):
        stats.t_interval([1.0])
    for call in (
        lambda: stats.t_interval([[1.0, 2.0]]),
        lambda: stats.t_interval(FIVE, confidence=95),
        lambda: stats.paired_difference(FIVE, FIVE[:4]),
        lambda: stats.trend([4, 4], np.ones((3, 2))),
        lambda: stats.trend([4, 8, 16], np.ones((3, 2))),
        lambda: stats.event_interval([0.5, 1.0]),
        lambda: stats.p_value(FIVE, alternative="above"),
        lambda: stats.holm([0.1, math.nan]),
    ):
        with pytest.raises(ValueError) as info:
            call()
        assert not isinstance(info.value, SampleError)


def test_bootstrap_covers_about_as_often_as_documented():
    # 20 normal values: 93 % documented; 300 trials have a standard error of 1.5 %, and 4 sigma are allowed.
    rng, num_trials = np.random.default_rng(0), 300
    intervals = [stats.bootstrap_interval(rng.normal(size=20), num_resamples=500, seed=k) for k in range(num_trials)]
    coverage = np.mean([each.low < 0 < each.high for each in intervals])
    assert abs(coverage - 0.93) < 4 * math.sqrt(0.93 * 0.07 / num_trials)


def test_bootstrap_of_a_median_is_reproducible_and_survives_ties():
    values = np.random.default_rng(1).exponential(size=30)
    first, second = (stats.bootstrap_interval(values, statistic=np.median) for _ in range(2))
    assert first == second
    assert first.method == "bootstrap BCa"
    assert first.low <= np.median(values) <= first.high
    tied = stats.bootstrap_interval([1.0] * 9 + [2.0], statistic=np.median)
    assert (tied.low, tied.high, tied.method) == (1.0, 1.0, "bootstrap percentile")


@pytest.mark.parametrize(  # Newcombe, Statistics in Medicine 17 (1998), Table I, the method he calls "exact"
    "successes,trials,low,high",
    [(81, 263, 0.2527, 0.3676), (15, 148, 0.0578, 0.1617), (0, 20, 0.0, 0.1684), (1, 29, 0.0009, 0.1776)],
)
def test_proportion_interval_against_newcombe(successes, trials, low, high):
    interval = stats.proportion_interval(successes, trials)
    assert [interval.low, interval.high] == pytest.approx([low, high], abs=5.1e-5)
    mirrored = stats.proportion_interval(trials - successes, trials)
    assert [1 - mirrored.high, 1 - mirrored.low] == pytest.approx([interval.low, interval.high])


@pytest.mark.parametrize("confidence", [0.95, 1 - 0.05 / 6])
def test_the_ends_of_a_proportion_interval_have_the_tails_of_the_binomial_law(confidence):
    tail = pytest.approx((1 - confidence) / 2, rel=1e-11)
    for successes, trials in ((1, 5), (3, 8), (19, 20), (70, 200)):
        interval = stats.proportion_interval(successes, trials, confidence=confidence)
        assert binomial_tail(successes, trials, interval.low) == tail
        assert 1 - binomial_tail(successes + 1, trials, interval.high) == tail


def test_wilsons_interval_solves_its_equation():
    """Its ends are the probabilities p at which (share - p)^2 = z^2 p (1 - p) / n; and it covers about 95 % on average."""
    for successes, trials in itertools.product((1, 7, 19), (20, 350)):
        interval = stats.wilson_interval(successes, trials)
        for p in (interval.low, interval.high):
            assert (successes / trials - p) ** 2 == pytest.approx(1.959963984540054**2 * p * (1 - p) / trials, rel=1e-9)
    assert stats.wilson_interval(0, 9).low == 0.0
    assert stats.wilson_interval(9, 9).high == 1.0
    assert stats.wilson_interval(9, 9).method == "Wilson"
    rng = np.random.default_rng(0)
    chances = rng.uniform(size=2000)
    ends = np.array([(e.low, e.high) for e in (stats.wilson_interval(k, 40) for k in range(41))])[rng.binomial(40, chances)]
    assert np.mean((ends[:, 0] <= chances) & (chances <= ends[:, 1])) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("interval_fn", [stats.proportion_interval, stats.wilson_interval])
def test_counts_that_make_no_proportion_are_refused(interval_fn):
    with pytest.raises(ValueError, match="successes lie between"):
        interval_fn(3, 2)
    with pytest.raises(ValueError, match="confidence is a fraction"):
        interval_fn(1, 2, confidence=95)
    with pytest.raises(SampleError, match="at least 1 trial"):
        interval_fn(0, 0)


def test_event_interval_counts_events():
    assert stats.event_interval([True, False, True]) == stats.proportion_interval(2, 3)
    assert stats.event_interval(np.ones(5)).low == pytest.approx(0.025 ** (1 / 5))  # x^5 = 2.5 %


def test_paired_difference_cancels_what_seeds_share():
    shared = 100 * np.random.default_rng(2).normal(size=5)
    interval = stats.paired_difference(shared + FIVE, shared)
    expected = stats.t_interval(FIVE)
    assert [interval.low, interval.high] == pytest.approx([expected.low, expected.high], abs=1e-9)


# Trends and p values


def test_trend_of_a_power_law_is_its_exponent():
    widths = np.array([4, 8, 16, 100])
    values = np.array([[2.0], [5.0], [0.1]]) * widths**-0.5
    interval = stats.trend(widths, values, log_values=True)
    assert [interval.low, interval.estimate, interval.high] == pytest.approx([-0.5] * 3)


def test_trend_is_the_change_per_doubling():
    slopes = np.array([0.1, 0.2, 0.3])
    interval = stats.trend([1, 2, 4, 8], 7 + slopes[:, None] * np.arange(4))
    expected = stats.t_interval(slopes)
    assert [interval.low, interval.high] == pytest.approx([expected.low, expected.high])


def test_trend_reports_bad_seeds():
    with pytest.raises(SampleError, match="1 of 2 seeds are not finite"):
        stats.trend([1, 2], [[1.0, math.nan], [1.0, 2.0]])
    with pytest.raises(SampleError, match="1 of 2 seeds hold values without a logarithm"):
        stats.trend([1, 2], [[1.0, 0.0], [1.0, 2.0]], log_values=True)


def test_p_values_are_the_tails_of_students_law():
    tail = student_tail(0.12 / math.sqrt(0.037 / 5), 4)  # mean 0.62 against 0.5
    for alternative, expected in {"two-sided": 2 * tail, "greater": tail, "less": 1 - tail}.items():
        assert stats.p_value(FIVE, threshold=0.5, alternative=alternative) == pytest.approx(expected, rel=1e-9)
    assert stats.p_value(np.negative(FIVE), threshold=-0.5, alternative="less") == pytest.approx(tail, rel=1e-9)


def test_nearly_equal_values_give_a_narrow_interval_without_a_warning():
    values = 1.0 + np.array([0.0, 1.0, 2.0]) * np.finfo(float).eps
    interval = stats.t_interval(values)
    assert 1 - 1e-14 < interval.low < interval.high < 1 + 1e-14
    assert 0 <= stats.p_value(values, threshold=1.0) <= 1


def test_p_value_without_spread():
    sides = {"greater": 0.0, "less": 1.0, "two-sided": 0.0}
    for alternative, expected in sides.items():
        assert stats.p_value([2.0, 2.0], alternative=alternative) == expected
        assert stats.p_value([0.0, 0.0], alternative=alternative) == 1.0


def test_holm_on_a_case_worked_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04; the last may not fall to 0.04.
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert stats.holm([]).shape == (0,)


@pytest.mark.parametrize(("num_seeds", "confidence"), [(6, 0.95), (10, 0.95), (25, 0.95), (40, 0.99)])
def test_the_interval_of_a_median_inverts_the_sign_test(num_seeds, confidence):
    values = np.random.default_rng(0).permutation(num_seeds)
    interval = stats.median_interval(values, confidence=confidence)
    rank = int(interval.low) + 1
    tails = [1 - binomial_tail(k, num_seeds, Fraction(1, 2)) for k in (rank, rank + 1)]  # P(X < k)
    assert tails[0] <= (1 - confidence) / 2 < tails[1]
    assert (interval.estimate, interval.high) == ((num_seeds - 1) / 2, num_seeds - rank)
    far = np.where(values == num_seeds - 1, 1e9, values)
    assert stats.median_interval(far, confidence=confidence).low == interval.low


def test_five_seeds_are_too_few_for_a_median():
    with pytest.raises(SampleError, match="5 seeds are too few"):
        stats.median_interval(FIVE)


def test_what_is_no_count_or_no_sample_is_refused():
    for count in (stats.proportion_interval, stats.wilson_interval):
        assert count(93.0, 100).estimate == 0.93
        for successes, trials in ((0.93, 100), (5, 9.9)):
            with pytest.raises(ValueError, match="must be a whole number"):
                count(successes, trials)
    masked = np.ma.masked_greater(np.array([1.0, 2.0, 3.0, 1000.0]), 100)
    for interval in (stats.t_interval, stats.bootstrap_interval, stats.event_interval):
        with pytest.raises(stats.SampleError, match="1 of 4 seeds"):
            interval(masked)
    with pytest.raises(ValueError, match="num_resamples must be a whole number of at least 40"):
        stats.bootstrap_interval([1.0, 2.0, 3.0], num_resamples=1)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_a_spread_of_any_scale_has_width(scale):
    unit, scaled = stats.t_interval([1.0, 2.0, 3.0]), stats.t_interval(scale * np.array([1.0, 2.0, 3.0]))
    assert (scaled.low, scaled.high) == pytest.approx((scale * unit.low, scale * unit.high), rel=1e-12)
    assert stats.p_value(scale * np.array([1.0, -2.0, 3.0])) == pytest.approx(stats.p_value([1.0, -2.0, 3.0]))
