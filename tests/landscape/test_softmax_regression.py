"""Softmax regression against the dense solver of `fit_affine`, dense Hessians and bounds by duality."""

import numpy as np
import pytest

from jaxbp import landscape
from jaxbp.landscape import affine, softmax_regression


def overlapping(num_examples=800, num_features=12, num_classes=4):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(num_examples, num_features)) * np.linspace(0.01, 3, num_features)
    noisy = inputs[:, -num_classes:] + 3 * rng.gumbel(size=(num_examples, num_classes))
    return inputs, noisy.argmax(1)


@pytest.fixture
def large(monkeypatch):
    """Makes `fit_affine` take the route for problems that are too large for a matrix."""
    monkeypatch.setattr(affine, "_MAX_DENSE", 1)


def test_it_finds_the_dense_solvers_minimum(large, monkeypatch):
    inputs, labels = overlapping()
    ours = landscape.fit_affine(inputs, labels, 4, loss="cross_entropy")
    monkeypatch.undo()
    dense = landscape.fit_affine(inputs, labels, 4, loss="cross_entropy")
    assert ours.loss == pytest.approx(dense.loss, rel=1e-14)
    np.testing.assert_allclose(ours.kernel, dense.kernel, atol=1e-10)
    assert ours.gradient_norm <= 1e-10
    # Both are bounds of the same minimum, by duality here and by self-concordance there.
    assert ours.lower_bound == pytest.approx(dense.lower_bound, abs=1e-14)


def test_the_dual_bound_is_below_the_minimum_from_any_weights():
    inputs, labels = overlapping()
    minimum = landscape.fit_affine(inputs, labels, 4, loss="cross_entropy").loss
    _, _, features, _ = affine._whiten(inputs)
    best = softmax_regression.minimise_cross_entropy(features, labels, 4).weights
    rng, proven = np.random.default_rng(1), []
    for scale in (1e-1, 1e-2, 1e-3, 1e-5):
        weights = best + scale * rng.normal(size=best.shape)
        p, _ = softmax_regression._probabilities(features, labels, weights)
        gradient = features.T @ (p - np.eye(4)[labels]) / len(features)
        proven.append(softmax_regression._dual_bound(features, p, gradient, np.eye(4)[labels]))
    assert max(proven) <= minimum + 1e-14
    assert proven[-1] > minimum - 1e-8
    assert proven == sorted(proven)


def test_features_that_are_not_whitened_prove_nothing():
    inputs, labels = overlapping()
    features = np.column_stack([inputs - inputs.mean(0), np.ones(len(inputs))])
    fit = softmax_regression.minimise_cross_entropy(features, labels, 4)
    assert fit.gradient_norm < 1e-9
    p, _ = softmax_regression._probabilities(features, labels, fit.weights + 0.01)
    off = features.T @ (p * 1.01 - np.eye(4)[labels]) / len(features)
    assert softmax_regression._dual_bound(features, p, off, np.eye(4)[labels]) == -np.inf


def test_the_smallest_curvature_is_the_dense_hessians():
    inputs, labels = overlapping()
    _, _, features, _ = affine._whiten(inputs)
    fit = softmax_regression.minimise_cross_entropy(features, labels, 4)
    _, _, curvature = affine._cross_entropy(features, labels, fit.weights)
    assert fit.smallest_curvature == pytest.approx(np.linalg.eigvalsh(curvature)[0], rel=0.01)


@pytest.mark.parametrize("kind", ["all classes", "one class"])
def test_separable_classes_are_refused(large, kind):
    inputs, _ = overlapping()
    coin = np.random.default_rng(2).integers(0, 2, len(inputs))
    labels = (inputs[:, -1] > 0).astype(int) if kind == "all classes" else np.where(inputs[:, -1] > 4, 2, coin)
    with pytest.raises(landscape.SeparableError, match="separable"):
        landscape.fit_affine(inputs, labels, labels.max() + 1, loss="cross_entropy")
