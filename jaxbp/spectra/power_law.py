"""Continuous power-law fits of the tail of a spectrum, with a test of the fit and of its rivals (Clauset, Shalizi and Newman 2009).

The density is p(x) = (alpha - 1) / x_min (x / x_min)^-alpha for x >= x_min. `fit` finds alpha by maximum likelihood and x_min as the value
whose tail is closest to its own fit, `p_value` asks whether samples of the fit lie as far from their own fits as the data do, and `compare`
sets the power law against another density of the same tail. A straight line in a log-log plot tells none of these.

Of y = log(x / x_min) the log-normal has the density exp(-a y - b y^2) up to a factor, the truncated power law exp(-a y - k exp(y)), and the
stretched exponential one whose limit is a power law as its exponent falls to 0. So each of the three contains the power law as a limit, a
fit at this limit has a ratio of 0, and log-likelihoods in (a, b) or (a, k) are concave: a maximum is the maximum.

All is NumPy and SciPy in float64 on the host. Source: SIAM Review 51, 661-703 (sections 3 to 5, appendices B and C).

Values at hand are often singular values or their squares. If singular values have the exponent alpha, their squares have (alpha + 1) / 2.

>>> import numpy as np
>>> from jaxbp.spectra import power_law
>>> pareto = (1 - np.random.default_rng(0).random(2000)) ** (-1 / 1.5)               # alpha 2.5, x_min 1
>>> result = power_law.fit(pareto, x_min=1.0)
>>> round(result.alpha, 2), round(result.standard_error, 2)
(2.5, 0.03)
>>> power_law.compare(result, "exponential").ratio > 100                            # far more likely than an exponential tail
True
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import scipy  # loads scipy.stats, which takes a second, at its first use

from jaxbp import checks
from jaxbp.spectra import ranks

ALTERNATIVES = ("exponential", "log-normal", "stretched exponential", "truncated power law")


@dataclass(frozen=True, eq=False)
class PowerLaw:
    """A power law fitted to the values from ``x_min`` on.

    Attributes:
      alpha: exponent, above 1.
      x_min: the least value of the tail.
      standard_error: of alpha for this x_min, (alpha - 1) / sqrt(num_tail); it knows nothing of the choice of x_min.
      distance: Kolmogorov-Smirnov distance between the tail and its fit.
      tail: (num_tail,) the values from x_min on, ascending.
      body: (num_body,) all others, ascending.
      was_given: whether x_min was given, not chosen.
      num_candidates: as asked of `fit`.
    """

    alpha: float
    x_min: float
    standard_error: float
    distance: float
    tail: np.ndarray
    body: np.ndarray
    was_given: bool
    num_candidates: int

    def log_density(self, values: Any) -> np.ndarray:
        """Log-density of values from x_min on."""
        return math.log((self.alpha - 1) / self.x_min) - self.alpha * np.log(np.asarray(values, np.float64) / self.x_min)


@dataclass(frozen=True)
class Comparison:
    """A power law against another density of the same tail.

    Attributes:
      alternative: one of `ALTERNATIVES`.
      parameters: of the alternative, by name.
      ratio: log-likelihood of the power law minus that of the alternative; positive speaks for the power law.
      normalised_ratio: the ratio over its standard deviation, normal with variance 1 if both are equally far from the truth.
      p_value: two-sided, of the normalised ratio (Vuong 1989); a large one says that the data do not tell the two apart.
      nested_p_value: of the hypothesis that the power law holds, against the truncated power law that contains it, by the chi-squared law
        of twice the ratio (Wilks); twice too large, as the cutoff cannot be negative. None for the other alternatives.
    """

    alternative: str
    parameters: dict[str, float]
    ratio: float
    normalised_ratio: float
    p_value: float
    nested_p_value: float | None


def fit(values: Any, *, x_min: float | None = None, num_candidates: int = 1000) -> PowerLaw:
    """Fit a power law to the tail of ``values``.

    alpha = 1 + n / sum log(x / x_min) over the n values of the tail (equation 3.1). x_min is the value with the least Kolmogorov-Smirnov
    distance (section 3.3), here the largest of both sides of each step, so that n values are never closer than 1 / 2n. The estimate is
    biased by about (alpha - 1) / n; under 50 values in the tail trust neither it nor tests.

    Args:
      values: (count,) finite numbers, none negative, or a `jaxbp.spectra.Spectrum`; zeros belong to no tail.
      x_min: where the tail begins; None to choose it.
      num_candidates: with more distinct values than this, so many of them, spread evenly over their order, are tried as x_min. A fit
        takes time in proportion to count times candidates: 20 ms for 1000 times 1000.

    Raises:
      ValueError: other values, or a tail without two distinct ones.
    """
    held = checks.host_values(ranks.held_values(values), "values", shape=(None,), finite=True)
    num_candidates = checks.count(num_candidates, "num_candidates")
    if held.size == 0 or held.min() < 0:
        raise ValueError(f"values must not be negative, and at least one, got {held.min() if held.size else 'none'}")
    ordered = np.sort(held)
    if x_min is not None:
        x_min = checks.number(x_min, "x_min", positive=True, known=True)
    return _fit(ordered, x_min, num_candidates)


def p_value(result: PowerLaw, key: jax.Array, *, num_samples: int = 200) -> float:
    """The share of samples from the fit that lie at least as far from their own fits as the data do: goodness of fit, section 4.1.

    A sample has as many values as the data, each from the fitted power law with the tail's share of probability, else drawn from the body
    with replacement; where x_min was chosen, it is chosen anew. Below 0.1 the power law is implausible, in the paper's words.

    Args:
      result: of `fit`.
      key: random key.
      num_samples: each costs a fit; the standard error is at most 1 / (2 sqrt(num_samples)).

    Raises:
      ValueError: another key, or no samples.
    """
    num_samples = checks.count(num_samples, "num_samples")
    rng = np.random.default_rng(np.asarray(jax.random.key_data(checks.prng_key(key, known=True))))
    return float(np.mean([_sample_fit(result, rng).distance >= result.distance for _ in range(num_samples)]))


def compare(result: PowerLaw, alternative: str) -> Comparison:
    """The likelihood ratio of the fit against an alternative, fitted to the same tail by maximum likelihood; section 5, appendix C.

    - ``exponential``           exp(-rate x);
    - ``log-normal``            of log x with ``mu`` and ``sigma``, cut off below x_min;
    - ``stretched exponential`` x^(beta - 1) exp(-(rate x)^beta);
    - ``truncated power law``   x^-alpha exp(-rate x), alpha of any sign.

    Raises:
      ValueError: an alternative that is not in `ALTERNATIVES`.
    """
    if alternative not in ALTERNATIVES:
        raise ValueError(f"alternative must be one of {', '.join(ALTERNATIVES)}, got {alternative!r}")
    scaled = result.tail / result.x_min
    log_density, parameters = _FITS[alternative](scaled, result)
    differences = result.log_density(result.tail) - (log_density - math.log(result.x_min))
    ratio, spread = float(differences.sum()), float(differences.std())
    # Two equal densities differ by rounding alone, of which a ratio over its spread would make noise.
    normalised = ratio / (spread * math.sqrt(len(differences))) if spread > 1e-7 else 0.0
    nested = float(scipy.stats.chi2.sf(max(-2 * ratio, 0), 1)) if alternative == "truncated power law" else None
    return Comparison(alternative, parameters, ratio, normalised, float(scipy.special.erfc(abs(normalised) / math.sqrt(2))), nested)


def _fit(ordered: np.ndarray, x_min: float | None, num_candidates: int) -> PowerLaw:
    starts = [int(np.searchsorted(ordered, x_min))] if x_min is not None else _candidates(ordered, num_candidates)
    if not starts or len(ordered) - starts[0] < 2 or ordered[-1] <= max(x_min or 0, ordered[starts[0]]):
        where = "positive ones" if x_min is None else f"ones from x_min = {x_min:g} on"
        raise ValueError(f"a tail needs two distinct values, {where}, got {len(ordered)} values up to {ordered[-1]:g}")
    with np.errstate(divide="ignore"):
        logs = np.log(ordered)
    best = (math.inf, 0, math.nan)
    for start in starts:
        heights = logs[start:] - (logs[start] if x_min is None else math.log(x_min))
        rate = len(heights) / heights.sum()  # alpha - 1, of the exponential law of the logarithms
        steps = np.arange(len(heights) + 1) / len(heights)
        fitted = -np.expm1(-rate * heights)
        distance = max((fitted - steps[:-1]).max(), (steps[1:] - fitted).max())
        best = min(best, (float(distance), start, float(rate)))
    distance, start, rate = best
    tail = ordered[start:]
    least = float(tail[0]) if x_min is None else x_min
    return PowerLaw(1 + rate, least, rate / math.sqrt(len(tail)), distance, tail, ordered[:start], x_min is not None, num_candidates)


def _candidates(ordered: np.ndarray, num_candidates: int) -> list[int]:
    """Where tails may start: at the first of each positive value but the largest."""
    distinct, firsts = np.unique(ordered, return_index=True)
    firsts = firsts[:-1][distinct[:-1] > 0]
    if len(firsts) > num_candidates:
        firsts = firsts[np.linspace(0, len(firsts) - 1, num_candidates).astype(int)]
    return [int(first) for first in firsts]


def _sample_fit(result: PowerLaw, rng: np.random.Generator) -> PowerLaw:
    """The fit of a sample of ``result``; a tail of equal values, as small ones may draw, is drawn again."""
    size = len(result.tail) + len(result.body)
    while True:
        num_tail = int(rng.binomial(size, len(result.tail) / size))
        tail = result.x_min * (1 - rng.random(num_tail)) ** (-1 / (result.alpha - 1))
        body = rng.choice(result.body, size - num_tail) if num_tail < size else np.empty(0)
        ordered = np.sort(np.concatenate([body, tail]))
        if num_tail >= 2:
            return _fit(ordered, result.x_min if result.was_given else None, result.num_candidates)


_Fit = tuple[np.ndarray, dict[str, float]]  # log-densities of x / x_min, and the parameters in the units of x


def _exponential(scaled: np.ndarray, result: PowerLaw) -> _Fit:
    rate = 1 / (scaled.mean() - 1)
    return math.log(rate) - rate * (scaled - 1), {"rate": float(rate / result.x_min)}


def _log_normal(scaled: np.ndarray, result: PowerLaw) -> _Fit:
    """In natural parameters: exp(-a y - b y^2) on y >= 0; mu = -a / 2b and sigma^2 = 1 / 2b are finite for b > 0 alone."""
    heights = np.log(scaled)
    unit = heights.mean()  # a unit of height in which a power law has a = 1, b = 0
    y = heights / unit
    mean, square = y.mean(), np.mean(y**2)

    def loss(point: np.ndarray) -> float:
        return float(point[0] * mean + point[1] * square + _log_half_normal(*point))

    a, b = _minimise(loss, (1.0, 0.1), ((None, None), (0.0, None)))
    log_density = -a * y - b * y**2 - _log_half_normal(a, b) - math.log(unit) - heights
    sigma = unit / math.sqrt(2 * b) if b > 0 else math.inf
    mu = math.log(result.x_min) - a * unit / (2 * b) if b > 0 else -math.inf
    return log_density, {"mu": float(mu), "sigma": float(sigma)}


def _log_half_normal(a: float, b: float) -> float:
    """log of the integral of exp(-a y - b y^2) over y >= 0."""
    if b < 1e-12 * a * abs(a):  # erfcx(t) = 1 / (t sqrt(pi)) to the last digit
        return -math.log(a)
    root = math.sqrt(b) if b > 0 else 1e-150
    t = a / (2 * root)
    log_erfcx = math.log(scipy.special.erfcx(t)) if t > -20 else math.log(2) + t**2
    return 0.5 * math.log(math.pi) - math.log(2 * root) + log_erfcx


def _stretched(scaled: np.ndarray, result: PowerLaw) -> _Fit:
    """For a given beta the rate has a closed form; what is left is a function of beta, on a grid and then refined."""
    heights = np.log(scaled)

    def loss(log_beta: float) -> float:
        beta = math.exp(log_beta)
        return float(math.log(np.mean(np.expm1(beta * heights)) / beta) - beta * heights.mean())

    grid = np.linspace(math.log(1e-6 / heights.mean()), math.log(300 / heights.max()), 100)
    least = int(np.argmin([loss(point) for point in grid]))
    ends = grid[max(least - 1, 0)], grid[min(least + 1, len(grid) - 1)]
    beta = math.exp(scipy.optimize.minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-10}).x)
    c = 1 / np.mean(np.expm1(beta * heights))  # (rate x_min)^beta
    log_density = math.log(beta * c) + (beta - 1) * heights - c * np.expm1(beta * heights)
    with np.errstate(over="ignore", under="ignore"):  # of betas near 0
        rate = float(np.exp(math.log(c) / beta)) / result.x_min
    return log_density, {"beta": beta, "rate": rate}


_POINTS = np.arange(-4.5, 7.0, 0.01)
_HEIGHTS = np.exp(_POINTS - np.exp(-_POINTS))  # double-exponential quadrature on y >= 0, for integrands that fall exponentially
_LOG_WEIGHTS = np.log(0.01 * _HEIGHTS * (1 + np.exp(-_POINTS)))


def log_exponential_integral(order: float, argument: float) -> float:
    """log of E_order(argument), the integral of exp(-argument z) z^-order over z >= 1, for real orders; order > 1 where argument is 0."""
    if argument == 0:
        return -math.log(order - 1) if order > 1 else math.inf
    with np.errstate(over="ignore"):
        exponents = (1 - order) * _HEIGHTS - argument * np.expm1(np.minimum(_HEIGHTS, 700.0))
    return float(scipy.special.logsumexp(exponents + _LOG_WEIGHTS)) - argument


def _truncated(scaled: np.ndarray, result: PowerLaw) -> _Fit:
    heights = np.log(scaled)
    mean, excess = heights.mean(), scaled.mean() - 1  # excess makes cutoffs of the data's scale numbers of order 1

    def loss(point: np.ndarray) -> float:
        order, cutoff = point[0], point[1] / excess
        value = order * mean + cutoff * (excess + 1) + log_exponential_integral(order, cutoff)
        return float(min(value, 1e10))

    order, cutoff = _minimise(loss, (result.alpha, 0.1), ((None, None), (0.0, None)))
    rate = cutoff / excess
    log_density = -order * heights - rate * scaled - log_exponential_integral(order, rate)
    return log_density, {"alpha": float(order), "rate": float(rate / result.x_min)}


def _minimise(loss: Callable[[np.ndarray], float], start: tuple, limits: tuple) -> np.ndarray:
    """The minimum of a convex function of two parameters, the second of them at least 0."""
    result = scipy.optimize.minimize(
        loss, start, bounds=limits, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 2000}
    )
    return result.x


_FITS: dict[str, Callable[[np.ndarray, PowerLaw], _Fit]] = {
    "exponential": _exponential,
    "log-normal": _log_normal,
    "stretched exponential": _stretched,
    "truncated power law": _truncated,
}
