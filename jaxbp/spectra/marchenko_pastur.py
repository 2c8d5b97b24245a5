"""The Marchenko-Pastur law of the squared singular values of noise, and the values that stand out from it.

Let X be n by m with n >= m, entries independent with mean 0 and variance s^2, and q = m / n. As both grow, the eigenvalues of X^T X / n,
which are squared singular values over n, get the density sqrt((b - x) (x - a)) / (2 pi s^2 q x) on [a, b] = s^2 (1 -+ sqrt(q))^2 (Marchenko
and Pastur, Math. USSR-Sbornik 1, 1967). The largest of them lies above b by a Tracy-Widom variable times s^2 mu', a width of order n^(-2/3)
(Johnstone, Annals of Statistics 29, 2001). A rank-one signal of singular value theta sticks out of the bulk if theta > s (n m)^(1/4) and is
invisible in the largest value below that (Baik, Ben Arous and Peche, Annals of Probability 33, 2005; Benaych-Georges and Nadakuditi, 2012).

`fit` takes the noise scale from the median, so that a few outliers do not move it; all is NumPy and SciPy in float64 on the host.
A trained layer's bulk is seldom free noise: where ``distance`` is large the law does not hold, and outliers mean little.

>>> import numpy as np
>>> from jaxbp.spectra import marchenko_pastur
>>> rng = np.random.default_rng(0)
>>> spike = 60 * np.outer(rng.normal(size=200), rng.normal(size=100)) / np.sqrt(200 * 100)
>>> result = marchenko_pastur.fit(np.linalg.svd(rng.normal(size=(200, 100)) + spike, compute_uv=False), (200, 100))
>>> result.num_outliers, round(result.scale, 2)
(1, 0.99)
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import integrate

from jaxbp import checks
from jaxbp.spectra import ranks

# Quantiles of the Tracy-Widom law of real matrices (beta = 1), by 1 - probability: table 2 of Johnstone (2001) and its successors.
TRACY_WIDOM = {0.1: 0.4501, 0.05: 0.9793, 0.01: 2.0234, 0.001: 3.2724}


@dataclass(frozen=True, eq=False)
class MarchenkoPastur:
    """A noise law fitted to the singular values of a matrix.

    Attributes:
      scale: s, the standard deviation of the noise's entries.
      edges: (lower, upper) singular values between which those of large noise lie, s (sqrt(n) -+ sqrt(m)).
      threshold: the singular value that the largest of pure noise exceeds with probability ``level``.
      detectable: s (n m)^(1/4), the least singular value of a signal that shows in large matrices.
      outliers: (num_outliers,) singular values above ``threshold``, descending.
      distance: Kolmogorov-Smirnov distance between the other values and the law.
      level: as asked of `fit`.
      shape: (n, m) of the matrix.
    """

    scale: float
    edges: tuple[float, float]
    threshold: float
    detectable: float
    outliers: np.ndarray
    distance: float
    level: float
    shape: tuple[int, int]

    @property
    def num_outliers(self) -> int:
        """Number of values above the threshold."""
        return len(self.outliers)


def edges(aspect: Any, *, scale: Any = 1.0) -> tuple[float, float]:
    """Least and largest eigenvalue (a, b) of the law with ``aspect`` q = m / n in (0, 1].

    Raises:
      ValueError: an aspect outside (0, 1], or a scale that is not positive.
    """
    q, s = _aspect(aspect), checks.number(scale, "scale", positive=True, known=True)
    return s**2 * (1 - math.sqrt(q)) ** 2, s**2 * (1 + math.sqrt(q)) ** 2


def density(eigenvalues: Any, aspect: Any, *, scale: Any = 1.0) -> np.ndarray:
    """Density of eigenvalues of X^T X / n, of the shape of ``eigenvalues``; it integrates to 1, and is infinite at 0 for q = 1.

    Raises:
      ValueError: as `edges`, or values that are no numbers.
    """
    x = checks.host_values(eigenvalues, "eigenvalues")
    a, b = edges(aspect, scale=scale)
    inside = (x >= a) & (x <= b)
    with np.errstate(divide="ignore", invalid="ignore"):
        heights = np.sqrt(np.maximum((b - x) * (x - a), 0)) / (2 * math.pi * float(scale) ** 2 * _aspect(aspect) * x)
    heights = np.where((x == 0) & (a == 0), np.inf, heights)
    return np.where(inside, heights, np.where(np.isnan(x), np.nan, 0.0))


def cumulative(eigenvalues: Any, aspect: Any, *, scale: Any = 1.0) -> np.ndarray:
    """Share of the law below each value, by interpolation between 2000 exact points, with errors under 1e-5."""
    x = checks.host_values(eigenvalues, "eigenvalues")
    a, b = edges(aspect, scale=scale)
    angles, shares = _table(_aspect(aspect))
    with np.errstate(invalid="ignore"):
        position = np.arccos(1 - 2 * np.clip((x - a) / (b - a), 0, 1))
    return np.interp(position, angles, shares)


def fit(values: Any, shape: Sequence[int], *, level: float = 0.01) -> MarchenkoPastur:
    """Fit the law to the singular values of a matrix and name those that stand out.

    The scale is that at which the median of the values without the outliers is the law's median, found by turns until the outliers stay the
    same. Only up to a half of the values can be outliers. The error of the median adds to the level: of 200 square matrices of noise with
    60 rows 26 had outliers at level 0.1, 9 at 0.01 and 4 at 0.001.

    Args:
      values: (min(shape),) singular values of a matrix, not squared, or a `jaxbp.spectra.Spectrum` of a dense layer. For convolutions as
        operators the law does not hold: their entries repeat; take the singular values of the kernel as a matrix.
      shape: of the matrix, in any order.
      level: a key of `TRACY_WIDOM`: the probability that pure noise has any outlier.

    Raises:
      ValueError: negative values, a number of them that does not fit the shape, or an unknown level.
    """
    held = checks.host_values(ranks.held_values(values), "values", shape=(None,), finite=True)
    if not isinstance(shape, Sequence) or len(shape) != 2:
        raise ValueError(f"shape must be two extents, got {shape!r}")
    m, n = sorted(checks.count(extent, "shape") for extent in shape)
    if len(held) != m or held.min() < 0:
        raise ValueError(
            f"values must be the {m} singular values of a matrix {n} by {m}, none negative, got {len(held)} from {held.min(initial=0):g}"
        )
    if not isinstance(level, float) or level not in TRACY_WIDOM:
        raise ValueError(f"level must be one of {', '.join(map(str, TRACY_WIDOM))}, got {level!r}")
    if np.median(held) == 0:
        raise ValueError("half of the values are 0: a matrix of low rank has no bulk to fit; take the values of its factors")
    descending = np.sort(held)[::-1]
    middle, margin, num_outliers = median(m / n), _largest_of_noise(n, m, TRACY_WIDOM[level]), 0
    for _ in range(m):
        scale = math.sqrt(float(np.median(descending[num_outliers:])) ** 2 / n / middle)
        above = min(int(np.sum(descending > scale * margin)), m // 2)
        if above <= num_outliers:  # the scale falls with each outlier taken out, so that their number only grows
            break
        num_outliers = above
    bulk = descending[num_outliers:][::-1]
    shares, steps = cumulative(bulk**2 / n, m / n, scale=scale), np.arange(len(bulk) + 1) / len(bulk)
    distance = max((shares - steps[:-1]).max(), (steps[1:] - shares).max())
    lower, upper = scale * (math.sqrt(n) - math.sqrt(m)), scale * (math.sqrt(n) + math.sqrt(m))
    return MarchenkoPastur(
        scale, (lower, upper), scale * margin, scale * (n * m) ** 0.25, descending[:num_outliers], float(distance), level, (n, m)
    )


@functools.lru_cache(maxsize=64)
def median(aspect: float) -> float:
    """Median of the law with scale 1."""
    a, b = edges(aspect)
    angles, shares = _table(_aspect(aspect))
    return a + (b - a) * (1 - math.cos(float(np.interp(0.5, shares, angles)))) / 2


def _aspect(aspect: Any) -> float:
    q = checks.number(aspect, "aspect", positive=True, known=True)
    if q > 1:
        raise ValueError(f"aspect must be the shorter extent over the longer one, at most 1, got {q:g}")
    return q


@functools.lru_cache(maxsize=64)
def _table(q: float) -> tuple[np.ndarray, np.ndarray]:
    """Angles t from 0 to pi, x = a + (b - a) (1 - cos t) / 2, and the shares of the law below x: in t the density is smooth."""
    a, b = edges(q)
    angles = np.linspace(0, math.pi, 2001)
    x = (a + b) / 2 - (b - a) / 2 * np.cos(angles)
    with np.errstate(invalid="ignore"):
        heights = ((b - a) / 2 * np.sin(angles)) ** 2 / (2 * math.pi * q * x)
    heights[0] = 2 / math.pi if a == 0 else 0.0  # sin^2 / (1 - cos) = 2 at t = 0
    shares = integrate.cumulative_simpson(heights, x=angles, initial=0)
    return angles, shares / shares[-1]


def _largest_of_noise(n: int, m: int, quantile: float) -> float:
    """The singular value of standard normal noise that is exceeded with the quantile's probability; equation 1.3 of Johnstone (2001)."""
    root = math.sqrt(n - 1 if n > 1 else 0.5) + math.sqrt(m)
    width = root * (1 / math.sqrt(n - 1 if n > 1 else 0.5) + 1 / math.sqrt(m)) ** (1 / 3)
    return math.sqrt(root**2 + width * quantile)
