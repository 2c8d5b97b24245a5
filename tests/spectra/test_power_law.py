"""Power-law fits against planted samples, closed forms and SciPy's own densities."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy import integrate, special, stats

from jaxbp import spectra
from jaxbp.spectra import power_law


def pareto(size, alpha, x_min=1.0, seed=0):
    return x_min * (1 - np.random.default_rng(seed).random(size)) ** (-1 / (alpha - 1))


def test_the_exponent_lies_within_its_error():
    """Over 200 samples with a known x_min the error in standard errors has mean near the bias 1 / sqrt(n) and variance near 1."""
    fits = [power_law.fit(pareto(100, 2.5, 3.0, seed), x_min=3.0) for seed in range(200)]
    scores = np.array([(f.alpha - 2.5) / f.standard_error for f in fits])
    assert abs(scores.mean()) < 4 / np.sqrt(200)
    assert abs(scores.std() - 1) < 4 / np.sqrt(400)


def test_x_min_is_found_where_the_tail_begins():
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.uniform(0.2, 2, 1000), pareto(1000, 3.0, 2.0)])
    result = power_law.fit(values, num_candidates=2000)
    assert 1.8 < result.x_min < 3.2  # later starts of a power law are power laws, too
    assert abs(result.alpha - 3) < 4 * result.standard_error
    assert len(result.tail) + len(result.body) == 2000
    assert result.tail.min() == result.x_min
    assert result.body.max() < result.x_min
    assert result.distance <= min(power_law.fit(values, x_min=x).distance for x in values[values < 2.5][:200]) + 1e-12


def test_two_values_by_hand():
    """Tail (1, e): alpha - 1 = 2; the fitted share below e is 1 - exp(-2), the empirical one jumps from 1/2 to 1."""
    result = power_law.fit(np.array([0.0, 1.0, np.e]))
    assert (result.x_min, len(result.tail)) == (1.0, 2)
    assert result.alpha == pytest.approx(3.0)
    assert result.standard_error == pytest.approx(np.sqrt(2))
    assert result.distance == pytest.approx(0.5)


def test_distance_and_density_are_scipys():
    values = pareto(300, 2.2, 0.5)
    result = power_law.fit(values, x_min=0.4)
    law = stats.pareto(result.alpha - 1, scale=0.4)
    assert result.distance == pytest.approx(stats.kstest(values, law.cdf).statistic)
    np.testing.assert_allclose(result.log_density(values), law.logpdf(values))


def test_units_change_only_x_min_and_squares_only_the_exponent():
    values = np.concatenate([pareto(300, 2.5), np.random.default_rng(0).random(300)])
    result, scaled, squared = power_law.fit(values), power_law.fit(1e3 * values), power_law.fit(values**2)
    assert scaled.x_min == pytest.approx(1e3 * result.x_min)
    assert scaled.alpha == pytest.approx(result.alpha)
    assert squared.x_min == pytest.approx(result.x_min**2)
    assert squared.alpha == pytest.approx((result.alpha + 1) / 2)


RNG = np.random.default_rng(3)
PLANTED = {
    "exponential": 1 + RNG.exponential(2.0, 2000),
    "log-normal": np.exp(RNG.normal(1.0, 0.5, 2000)),
    "stretched exponential": stats.weibull_min(0.6, scale=2.0).rvs(2000, random_state=RNG),
    "truncated power law": (lambda x: x[RNG.random(x.size) < np.exp(-x / 20)])(pareto(4000, 1.6, seed=4)),
}
TRUTH = {"exponential": {"rate": 0.5}, "log-normal": {"mu": 1.0, "sigma": 0.5}, "stretched exponential": {"beta": 0.6, "rate": 0.5}}
TRUTH["truncated power law"] = {"alpha": 1.6, "rate": 0.05}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_alternative_is_told_from_a_power_law(name):
    x_min = {"log-normal": 2.0, "stretched exponential": 1.0}.get(name, 1.0)
    values = PLANTED[name][PLANTED[name] >= x_min]
    comparison = power_law.compare(power_law.fit(values, x_min=x_min), name)
    assert comparison.ratio < 0
    assert comparison.p_value < 1e-3
    for parameter, truth in TRUTH[name].items():
        assert comparison.parameters[parameter] == pytest.approx(truth, rel=0.25), parameter
    if name == "truncated power law":
        assert comparison.nested_p_value < 1e-6


def test_a_planted_power_law_beats_the_exponential_and_ties_with_what_contains_it():
    result = power_law.fit(pareto(2000, 2.5), x_min=1.0)
    comparison = power_law.compare(result, "exponential")
    assert comparison.ratio > 0
    assert comparison.p_value < 1e-6
    for name in power_law.ALTERNATIVES[1:]:
        comparison = power_law.compare(result, name)
        assert -4 < comparison.ratio <= 1e-6, name  # twice the ratio is chi-squared: below -4 with probability 0.005
        assert comparison.p_value > 0.05
    assert comparison.nested_p_value > 0.01


def log_likelihood(name, parameters, values, x_min):
    """By SciPy's densities, cut off at x_min by SciPy's own tails or a numerical integral."""
    p = parameters
    if name == "exponential":
        return stats.expon(scale=1 / p["rate"]).logpdf(values - x_min).sum()
    if name == "truncated power law":
        mass = integrate.quad(lambda x: x ** -p["alpha"] * np.exp(-p["rate"] * x), x_min, np.inf, epsabs=0)[0]
        return np.sum(-p["alpha"] * np.log(values) - p["rate"] * values - np.log(mass))
    law = stats.lognorm(p["sigma"], scale=np.exp(p["mu"])) if name == "log-normal" else stats.weibull_min(p["beta"], scale=1 / p["rate"])
    return np.sum(law.logpdf(values) - law.logsf(x_min))


@pytest.mark.parametrize("name", PLANTED)
def test_ratios_are_maxima_of_scipys_likelihoods(name):
    x_min = 1.5
    values = PLANTED[name][PLANTED[name] >= x_min]
    result = power_law.fit(values, x_min=x_min)
    comparison = power_law.compare(result, name)
    own = stats.pareto(result.alpha - 1, scale=x_min).logpdf(values).sum()
    best = log_likelihood(name, comparison.parameters, values, x_min)
    assert comparison.ratio == pytest.approx(own - best, abs=1e-6 * abs(best))
    for parameter, value in comparison.parameters.items():
        for factor in (0.97, 1.03):
            moved = comparison.parameters | {parameter: value * factor}
            assert log_likelihood(name, moved, values, x_min) < best, (parameter, factor)


@pytest.mark.parametrize("argument", [1e-9, 1e-4, 0.3, 5.0, 40.0])
def test_exponential_integrals_of_whole_orders_are_scipys(argument):
    for order in (1, 2, 3, 6):
        assert power_law.log_exponential_integral(order, argument) == pytest.approx(np.log(special.expn(order, argument)), rel=1e-9)
    assert power_law.log_exponential_integral(0, argument) == pytest.approx(-argument - np.log(argument), rel=1e-9)


def test_goodness_of_fit_is_uniform_under_the_law_and_small_for_another():
    key = jax.random.key(0)
    shares = [power_law.p_value(power_law.fit(pareto(60, 2.5, seed=s), x_min=1.0), key, num_samples=50) for s in range(40)]
    assert stats.kstest(shares, "uniform").pvalue > 1e-3
    bent = power_law.fit(1 + np.random.default_rng(0).exponential(size=400), x_min=1.0)
    assert power_law.p_value(bent, key, num_samples=50) == 0


def test_the_bootstrap_draws_the_body_and_chooses_x_min_anew():
    values = np.concatenate([np.random.default_rng(1).uniform(0.2, 2, 200), pareto(200, 3.0, 2.0)])
    result = power_law.fit(values)
    assert power_law.p_value(result, jax.random.key(1), num_samples=40) > 0.02
    fixed = power_law.fit(values, x_min=result.x_min)
    assert fixed.distance == pytest.approx(result.distance)
    chosen_share, fixed_share = (
        power_law.p_value(dataclasses.replace(f, distance=0.045), jax.random.key(1), num_samples=40) for f in (result, fixed)
    )
    assert chosen_share < fixed_share  # a chosen x_min fits a sample better than one that is given


def test_a_spectrum_is_taken_and_wrong_arguments_are_refused():
    kernel = np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32)
    assert len(power_law.fit(spectra.singular_values(kernel)).tail) > 2
    for bad, match in ((np.ones(5), "two distinct"), ([-1.0, 2.0], "negative"), ([[1.0, 2.0]], "shape"), ([np.nan, 1.0], "finite")):
        with pytest.raises(ValueError, match=match):
            power_law.fit(bad)
    with pytest.raises(ValueError, match="two distinct"):
        power_law.fit([1.0, 2.0], x_min=3.0)
    with pytest.raises(ValueError, match="alternative must be"):
        power_law.compare(power_law.fit([1.0, 2.0]), "normal")
