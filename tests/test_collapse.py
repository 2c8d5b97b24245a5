"""Collapse of a simplex, of Gaussian classes against their formula, and without a division of 0 by 0."""

import numpy as np
import pytest

from jaxbp import collapse

LABELS = np.repeat(np.arange(4), 50)
SIMPLEX = np.eye(4) - 0.25


def embedded(num_features, scale=1.0):
    """The simplex in more dimensions, far from the origin, turned."""
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(num_features, num_features)))[0]
    return scale * SIMPLEX @ rotation[:4] + 10.0


def test_a_simplex_without_noise_is_collapsed():
    means = embedded(20)
    result = collapse.measure(means[LABELS], LABELS, head=5 * (means - means.mean(0)).T, bias=-5 * (means - means.mean(0)) @ means.mean(0))
    for value in (result.nc1, result.variance_ratio, result.cdnv, result.nc2_norms, result.nc2_angles, *result.nc3, result.nc4):
        assert value == pytest.approx(0, abs=1e-9)


def test_gaussian_classes_against_their_formula():
    """Two classes at +- d e_1 with covariance s^2 I: Sigma_B^+ = e_1 e_1' / d^2, NC1 = s^2 / (2 d^2)."""
    rng, d, s, p = np.random.default_rng(0), 2.0, 0.7, 5
    labels = np.repeat([0, 1], 20_000)
    features = s * rng.normal(size=(40_000, p)) + np.where(labels[:, None] == 1, d, -d) * np.eye(p)[0]
    result = collapse.measure(features, labels)
    assert result.nc1 == pytest.approx(s**2 / (2 * d**2), rel=0.03)
    assert result.variance_ratio == pytest.approx(p * s**2 / d**2, rel=0.03)
    assert result.cdnv == pytest.approx(2 * p * s**2 / (2 * 4 * d**2), rel=0.03)
    assert (result.nc3, result.nc4) == (None, None)


def test_turning_shifting_and_scaling_change_nothing():
    rng = np.random.default_rng(0)
    features = embedded(10)[LABELS] + 0.1 * rng.normal(size=(200, 10))
    rotation = np.linalg.qr(rng.normal(size=(10, 10)))[0]
    first, second = collapse.measure(features, LABELS), collapse.measure(3 * features @ rotation - 7, LABELS)
    for name in ("nc1", "variance_ratio", "cdnv", "nc2_norms", "nc2_angles"):
        assert getattr(second, name) == pytest.approx(getattr(first, name))


def test_the_head_by_hand():
    features = embedded(4)[LABELS]
    means = SIMPLEX
    opposite = collapse.measure(features, LABELS, head=-(embedded(4) - embedded(4).mean(0)).T)
    assert opposite.nc3 == pytest.approx((2.0, 2.0))
    assert opposite.nc4 > 0.5
    shifted = collapse.measure(means[LABELS], LABELS, head=means.T + np.ones((4, 1)))
    assert shifted.nc3[0] > 0.3
    assert shifted.nc3[1] == pytest.approx(0, abs=1e-9)


def test_equal_means_and_wrong_arguments():
    result = collapse.measure(np.tile([[1.0, 2.0], [3.0, 4.0]], (2, 1)), np.array([0, 0, 1, 1]))
    assert (result.nc1, result.note) == (np.inf, "class means are equal")
    with pytest.raises(ValueError, match="each class needs at least two examples, got 0 of class 1"):
        collapse.measure(np.ones((4, 2)), np.array([0, 0, 2, 2]))
    with pytest.raises(ValueError, match=r"head must be \(P, C\) = \(4, 4\)"):
        collapse.measure(SIMPLEX[LABELS], LABELS, head=np.ones((3, 4)))
