"""The Marchenko-Pastur law against its moments, numerical integrals and planted matrices."""

import numpy as np
import pytest
from scipy import integrate

from jaxbp.spectra import marchenko_pastur


def noise_values(n, m, seed, scale=1.0, spike=0.0):
    rng = np.random.default_rng(seed)
    matrix = scale * rng.normal(size=(n, m))
    left, right = rng.normal(size=n), rng.normal(size=m)
    matrix += spike * np.outer(left / np.linalg.norm(left), right / np.linalg.norm(right))
    return np.linalg.svd(matrix, compute_uv=False)


@pytest.mark.parametrize("aspect", [0.05, 0.5, 0.98, 1.0])
def test_moments_are_those_of_narayana(aspect):
    """Mass 1, mean s^2, second moment s^4 (1 + q), third s^6 (1 + 3 q + q^2); shares are integrals of the density."""
    s = 1.7
    a, b = marchenko_pastur.edges(aspect, scale=s)

    def moment(power, top=b):
        """In the angle, where the square roots at the edges are gone."""
        end = np.arccos(1 - 2 * (top - a) / (b - a))

        def integrand(t):
            x = (a + b) / 2 - (b - a) / 2 * np.cos(t)
            return float(marchenko_pastur.density(x, aspect, scale=s)) * x**power * (b - a) / 2 * np.sin(t)

        return integrate.quad(integrand, 1e-9, end, limit=200)[0]

    expected = (1, s**2, s**4 * (1 + aspect), s**6 * (1 + 3 * aspect + aspect**2))
    np.testing.assert_allclose([moment(power) for power in range(4)], expected, rtol=1e-6)
    tops = a + (b - a) * np.array([0.01, 0.3, 0.9])
    shares = marchenko_pastur.cumulative(tops, aspect, scale=s)
    np.testing.assert_allclose(shares, [moment(0, top) for top in tops], atol=1e-5)
    assert marchenko_pastur.cumulative(s**2 * marchenko_pastur.median(aspect), aspect, scale=s) == pytest.approx(0.5, abs=1e-5)
    assert marchenko_pastur.density([a - 0.1, b + 0.1], aspect, scale=s).tolist() == [0, 0]


@pytest.mark.parametrize(("n", "m"), [(120, 40), (60, 60)])
def test_noise_has_outliers_as_often_as_the_level_says(n, m):
    fits = [marchenko_pastur.fit(noise_values(n, m, seed, scale=0.3), (n, m), level=0.1) for seed in range(200)]
    share = np.mean([f.num_outliers > 0 for f in fits])
    assert 0.03 < share < 0.19  # 0.1 of 200, 3 standard errors, and the scale's own error
    np.testing.assert_allclose(np.mean([f.scale for f in fits]), 0.3, rtol=0.02)
    assert np.median([f.distance for f in fits]) < 0.06
    strict = [marchenko_pastur.fit(noise_values(n, m, seed), (m, n), level=0.001).num_outliers > 0 for seed in range(200)]
    assert sum(strict) <= 7  # the scale's own error alone


def test_spikes_are_found_above_the_threshold_of_detection_and_not_below():
    """Benaych-Georges and Nadakuditi: a signal theta above s (n m)^(1/4) puts out sqrt((theta^2 + n) (theta^2 + m)) / theta."""
    n, m = 200, 100
    detectable = marchenko_pastur.fit(noise_values(n, m, 0), (n, m)).detectable
    assert detectable == pytest.approx((n * m) ** 0.25, rel=0.03)
    for seed in range(5):
        below = marchenko_pastur.fit(noise_values(n, m, seed, spike=0.6 * (n * m) ** 0.25), (n, m))
        theta = 1.7 * (n * m) ** 0.25
        above = marchenko_pastur.fit(noise_values(n, m, seed, spike=theta), (n, m))
        assert (below.num_outliers, above.num_outliers) == (0, 1)
        assert above.outliers[0] == pytest.approx(np.sqrt((theta**2 + n) * (theta**2 + m)) / theta, rel=0.05)
        assert above.edges[1] < above.threshold < above.outliers[0]


def test_many_outliers_do_not_move_the_scale():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(300, 100))
    matrix[:, :20] += 100 * np.linalg.qr(rng.normal(size=(300, 20)))[0]
    result = marchenko_pastur.fit(np.linalg.svd(matrix, compute_uv=False), (300, 100))
    assert result.num_outliers == 20
    assert result.scale == pytest.approx(1, rel=0.06)
    heavy = marchenko_pastur.fit(np.linalg.svd(rng.standard_cauchy((300, 100)), compute_uv=False), (300, 100))
    assert heavy.distance > 0.08


def test_wrong_arguments_are_refused():
    for arguments, match in (
        ((np.ones(3), (5, 4)), "4 singular values"),
        ((np.ones(3), (3,)), "two extents"),
        (([0.0, 0.0, 1.0], (3, 3)), "low rank"),
        (([-1.0, 1.0, 1.0], (3, 3)), "none negative"),
    ):
        with pytest.raises(ValueError, match=match):
            marchenko_pastur.fit(*arguments)
    with pytest.raises(ValueError, match="level must be one of"):
        marchenko_pastur.fit(np.ones(3), (3, 3), level=0.5)
    with pytest.raises(ValueError, match="at most 1"):
        marchenko_pastur.density([1.0], 2.0)
