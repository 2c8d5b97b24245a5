"""Looks, intervals for every number of seeds, sign flips, summaries over cases and power, against closed forms and simulation."""

import itertools
import math

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats

from jaxbp import stats
from jaxbp.stats import Interval, Looks, SampleError


def test_looks_spend_no_more_than_their_error():
    looks = Looks(10, most=10 * 2**30)
    assert looks.sizes[:3] == (10, 20, 40)
    assert sum(looks.error_at(look) for look in range(len(looks.sizes))) == pytest.approx(0.05, rel=1e-8)
    assert looks.confidence(0) == 0.975
    assert Looks(10, most=25).sizes == (10, 20, 25)
    assert Looks(10, most=25).blocks(25) == [tuple(range(10)), tuple(range(10, 20)), tuple(range(20, 25))]
    for wrong in ({"first": 1}, {"factor": 1}, {"most": 9}, {"error": 0.0}):
        with pytest.raises(ValueError, match=r"looks begin|last look|the error is"):
            Looks(**wrong)


def test_the_chance_of_deciding_is_that_of_simulated_seeds():
    rng, looks = np.random.default_rng(0), Looks(10, most=40)
    values = rng.normal(0.3, 1.0, 10)
    interval = stats.t_interval(values, confidence=0.975)
    half = scipy.stats.t.ppf((1 + looks.confidence(2)) / 2, 39) * values.std(ddof=1) / math.sqrt(40)
    truths = rng.normal(values.mean(), values.std(ddof=1) / math.sqrt(10), 20_000)  # a flat prior
    means = (10 * values.mean() + 30 * rng.normal(truths, values.std(ddof=1) / math.sqrt(30))) / 40
    expected = np.mean(np.abs(means) > half)
    assert stats.chance_of_deciding(interval, (0.0,), looks) == pytest.approx(expected, abs=0.015)
    both = np.mean((means > 1 + half) | (means < -1 - half) | ((means > -1 + half) & (means < 1 - half)))
    assert stats.chance_of_deciding(interval, (-1.0, 1.0), looks) == pytest.approx(both, abs=0.015)
    assert stats.chance_of_deciding(Interval(1.0, 1.0, 1.0, 0.95, 10, ""), (0.0,), looks) == 1.0


def test_the_anytime_interval_is_what_the_bets_do_not_reject():
    values = np.random.default_rng(1).normal(0.4, 1.3, 12)
    interval = stats.anytime_t_interval(values, g=2.0)
    for end in (interval.low, interval.high):
        assert stats.t_e_value(values, threshold=end, g=2.0) == pytest.approx(20)
    events = [1, 0, 1, 1, 1, 0, 1, 1, 1, 1]
    interval = stats.anytime_event_interval(events)
    for end in (interval.low, interval.high):
        assert stats.event_e_value(events, end) == pytest.approx(20)
    assert stats.anytime_event_interval([1, 1]).high == 1.0
    with pytest.raises(SampleError, match="2 seeds are too few"):
        stats.anytime_t_interval([1.0, 2.0])
    with pytest.raises(ValueError, match="events are 0 or 1"):
        stats.anytime_event_interval([0.5])


def test_the_bet_on_a_mean_is_a_ratio_of_marginal_likelihoods():
    """Integrated over the variance (right Haar prior) and, for the bet, over effects of law N(0, g) in standard deviations."""
    values, g = np.array([0.3, 1.1, -0.2, 0.8]), 1.5

    def marginal(spread_of_mean):
        covariance = np.eye(4) + spread_of_mean  # in units of the variance
        quadratic, determinant = values @ np.linalg.solve(covariance, values), np.linalg.det(covariance)
        return scipy.integrate.quad(lambda s: s**-5 * math.exp(-quadratic / (2 * s * s)) / math.sqrt(determinant), 0, math.inf)[0]

    assert stats.t_e_value(values, g=g) == pytest.approx(marginal(g) / marginal(0.0), rel=1e-6)


def test_the_bet_on_a_share_is_a_mean_over_shares():
    mixed = scipy.integrate.quad(lambda p: p**5 * (1 - p) ** 2, 0, 1)[0]
    assert stats.event_e_value([1, 1, 0, 1, 1, 0, 1], 0.3) == pytest.approx(mixed / (0.3**5 * 0.7**2))


def test_bets_without_spread():
    assert stats.t_e_value([0.0, 0.0, 0.0]) == pytest.approx(0.5)
    assert stats.t_e_value([1.0, 1.0, 1.0]) == pytest.approx(4.0)  # its limit as the spread vanishes
    assert stats.t_e_value([1.0, 1.0 + 1e-9, 1.0]) == pytest.approx(4.0)


def test_the_sign_flip_interval_is_what_the_test_does_not_reject():
    values = np.array([0.2, 0.9, 0.4, 0.4, 0.4, 1.6, 0.4])
    interval = stats.sign_flip_interval(values, confidence=0.9)

    def p_above(centre):  # that the mean of flipped deviations is at least the mean of the deviations
        deviations = values - centre
        flips = np.array(list(itertools.product([-1, 1], repeat=7)))
        return np.mean(flips @ deviations >= deviations.sum() - 1e-9)

    assert p_above(interval.low - 1e-6) <= 0.05 < p_above(interval.low + 1e-6)
    mirrored = stats.sign_flip_interval(-values, confidence=0.9)
    assert (mirrored.low, mirrored.high) == pytest.approx((-interval.high, -interval.low))
    with pytest.raises(SampleError, match="5 seeds are too few for an interval by sign flips"):
        stats.sign_flip_interval(values[:5])


@pytest.mark.slow
def test_the_sign_flip_interval_covers_where_seeds_are_tied():
    # Steps of a standard deviation: nominal 95 % for ten and for thirty seeds; 200 trials, four standard errors are 6.2 %.
    rng = np.random.default_rng(2)
    for num_seeds in (10, 30):
        intervals = [stats.mean_interval(np.round(rng.normal(size=num_seeds)), resolution=1.0) for _ in range(200)]
        assert {each.method for each in intervals} == {"sign flips"}
        assert np.mean([each.low < 0 < each.high for each in intervals]) > 0.95 - 0.062


def test_equal_seeds_are_no_certainty_where_a_measure_has_steps():
    rounding = 0.5 / math.sqrt(12)
    interval = stats.t_interval([3.0, 3.0], resolution=0.5)
    assert interval.high - 3.0 == pytest.approx(scipy.stats.t.ppf(0.975, 1) * rounding / math.sqrt(2))
    assert stats.mean_interval([3.0] * 10, resolution=0.5).high - 3.0 == pytest.approx(
        scipy.stats.t.ppf(0.975, 9) * rounding / math.sqrt(10)
    )
    wide = [0.0, 1.5, 3.1, 4.9]
    assert stats.mean_interval(wide, resolution=0.1) == stats.t_interval(wide)
    with pytest.raises(ValueError, match="a resolution is a step of 0 or more"):
        stats.t_interval(wide, resolution=-1.0)


# Summaries over cases


def by_error(effects, errors):
    quantile = scipy.stats.t.ppf(0.975, 9)
    return [Interval(y, y - quantile * e, y + quantile * e, 0.95, 10, "") for y, e in zip(effects, errors, strict=True)]


def test_with_equal_errors_the_summary_has_a_closed_form():
    """Then REML is the method of moments: tau^2 = s^2 - v, the mean is plain, and Hartung and Knapp's error is s / sqrt(k)."""
    effects = [0.1, 0.9, 0.5, 1.7]
    summary = stats.random_effects(by_error(effects, [0.2] * 4))
    variance, quantile = np.var(effects, ddof=1), scipy.stats.t.ppf(0.975, 3)
    assert summary.tau == pytest.approx(math.sqrt(variance - 0.04), rel=1e-6)
    assert summary.mean.estimate == pytest.approx(0.8)
    assert summary.mean.high - 0.8 == pytest.approx(quantile * math.sqrt(variance / 4))
    assert summary.prediction.high - 0.8 == pytest.approx(quantile * math.sqrt(variance - 0.04 + variance / 4))
    alike = stats.random_effects(by_error([1.0, 1.01, 0.99], [0.2] * 3))
    assert alike.tau == 0.0
    assert alike.mean.high - 1.0 == pytest.approx(scipy.stats.t.ppf(0.975, 2) * 0.2 / math.sqrt(3))  # never narrower than a common effect


def test_tau_maximises_the_restricted_likelihood():
    effects, errors = np.array([0.1, 0.9, 0.5, 1.7, -0.4]), np.array([0.1, 0.5, 0.2, 0.9, 0.3])

    def likelihood(tau):  # of contrasts that do not know the mean (Patterson and Thompson)
        contrasts = scipy.linalg.null_space(np.ones((1, 5))).T
        return scipy.stats.multivariate_normal.logpdf(contrasts @ effects, cov=contrasts @ np.diag(errors**2 + tau**2) @ contrasts.T)

    best = scipy.optimize.minimize_scalar(lambda tau: -likelihood(tau), bounds=(0, 3), method="bounded", options={"xatol": 1e-9}).x
    assert stats.random_effects(by_error(effects, errors)).tau == pytest.approx(best, rel=1e-5)


def test_summaries_of_few_or_equal_cases():
    with pytest.raises(SampleError, match="at least 2"):
        stats.random_effects(by_error([1.0], [0.1]))
    assert stats.random_effects(by_error([1.0, 2.0], [0.1, 0.1])).prediction is None
    same = stats.random_effects(by_error([1.0, 1.0], [0.0, 0.0]))
    assert (same.mean.low, same.mean.high, same.tau) == (1.0, 1.0, 0.0)
    assert stats.random_effects(by_error([1.0, 3.0, 1.0], [0.0, 0.1, 0.0])).tau == pytest.approx(math.sqrt(4 / 3), rel=0.01)


def test_the_summary_of_shares_lies_between_0_and_1():
    of = lambda *counts: stats.random_effects_of_shares([stats.proportion_interval(k, 10) for k in counts])  # noqa: E731
    for counts in ((10, 10, 10), (10, 0, 10, 4), (0, 0), (9, 10, 10, 10)):
        summary = of(*counts)
        ends = [end for one in (summary.mean, summary.prediction) if one for end in (one.low, one.estimate, one.high)]
        assert 0 <= min(ends) <= max(ends) <= 1
    sure = of(*[10] * 6)
    assert (sure.mean.estimate, sure.mean.high, sure.tau) == (1.0, 1.0, 0.0)
    angle = math.asin(math.sqrt(10.375 / 10.75)) - scipy.stats.t.ppf(0.975, 5) / math.sqrt(6 * 42)  # by hand: variance 1 / (4 n + 2)
    assert sure.mean.low == pytest.approx((10.75 * math.sin(angle) ** 2 - 0.375) / 10)
    assert of(5, 5, 5).mean.estimate == pytest.approx(0.5)
    assert of(3, 6, 8).mean.low == pytest.approx(1 - of(7, 4, 2).mean.high)
    with pytest.raises(ValueError, match="shares lie between 0 and 1"):
        stats.random_effects_of_shares(by_error([1.2, 0.5], [0.1, 0.1]))


@pytest.mark.parametrize("truth", [0.5, 0.9, 0.97])
def test_the_summary_of_shares_covers_the_truth(truth):
    # 6 cases of 10 seeds: the plain arcsine covers 0.97 in 83 % of draws; 200 draws, three standard errors of 95 % are 4.6 %.
    counts = np.random.default_rng(0).binomial(10, truth, (200, 6))
    intervals = {k: stats.proportion_interval(k, 10) for k in range(11)}
    means = [stats.random_effects_of_shares([intervals[int(k)] for k in row]).mean for row in counts]
    assert np.mean([mean.low <= truth <= mean.high for mean in means]) > 0.904


# Power


@pytest.mark.parametrize("region", [(0.0, math.inf), (-math.inf, 0.8), (-0.8, 1.2)])
def test_the_chance_of_support_is_the_share_of_simulated_runs(region):
    rng, num_seeds = np.random.default_rng(3), 9
    values = rng.normal(0.3, 0.6, (20_000, num_seeds))
    half = scipy.stats.t.ppf(0.975, num_seeds - 1) * values.std(1, ddof=1) / math.sqrt(num_seeds)
    share = np.mean((values.mean(1) - half > region[0]) & (values.mean(1) + half < region[1]))
    chance = stats.chance_inside(region, truth=0.3, spread=0.6, num_seeds=num_seeds)
    assert chance == pytest.approx(share, abs=4 * math.sqrt(0.25 / 20_000))


def test_the_chance_of_two_ends_tends_to_that_of_one():
    far = stats.chance_inside((0.0, 1e6), truth=0.5, spread=1.0, num_seeds=12)
    assert far == pytest.approx(stats.chance_inside((0.0, math.inf), truth=0.5, spread=1.0, num_seeds=12), abs=1e-4)


def test_chances_at_the_limits():
    assert stats.chance_inside((0.0, math.inf), truth=0.0, spread=1.0, num_seeds=10) == pytest.approx(0.025)
    assert stats.chance_inside((0.0, math.inf), truth=0.1, spread=0.0, num_seeds=10) == 1.0
    assert stats.chance_inside((0.0, math.inf), truth=9.0, spread=1.0, num_seeds=1) == 0.0
    assert stats.chance_inside((0.0, math.inf), truth=1e3, spread=1.0, num_seeds=50) == 1.0


def test_the_chance_of_events_is_a_sum_over_counts():
    # Of ten, nine must have happened for the interval to lie above one half: 0.9^10 + 10 x 0.9^9 x 0.1.
    chance = stats.event_chance_inside((0.5, math.inf), truth=0.9, num_seeds=10)
    assert chance == pytest.approx(0.9**10 + 10 * 0.9**9 * 0.1)


def test_the_seeds_needed_are_the_first_with_the_chance():
    def chance(num_seeds):
        return stats.chance_inside((0.0, math.inf), truth=0.7, spread=1.0, num_seeds=num_seeds)

    needed = stats.seeds_needed(chance)
    assert chance(needed - 1) < 0.8 <= chance(needed)
    assert stats.seeds_needed(lambda n: 0.1) is None
