"""Kernels over random initialisations: moments against NumPy, means against the exact limit of infinite width."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import models, ntk
from jaxbp.ntk import initialisation
from jaxbp.ntk.infinite_width import infinite_width_kernel

X = jax.random.normal(jax.random.key(5), (4, 6))
NET = models.create("mlp", num_classes=2, width=256, depth=1, parametrisation="ntk")


def by_recursion(x):
    """NNGP and NTK of one hidden layer in the "ntk" parametrisation, as the width grows: Cho and Saul's arc cosines of degree 1 and 0."""
    first = 2 * x @ x.T / x.shape[1]
    norms = np.sqrt(np.outer(np.diag(first), np.diag(first)))
    angle = np.arccos(np.clip(first / norms, -1, 1))
    covariance = norms * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / np.pi
    return covariance, covariance + 1 + (np.pi - angle) / np.pi * (first + 1)


def sample(key):
    params, state = NET.init(key, X)
    tangent = ntk.empirical_ntk(NET.apply, params, X, state=state, logits="trace") / 2
    last = 2 * initialisation.feature_kernel(NET.features(params, X, state))
    return jnp.stack([last, initialisation.feature_kernel(NET.apply(params, X, state)), tangent])


@pytest.mark.slow
def test_kernels_of_random_networks_are_those_of_the_limit_within_their_errors():
    estimate = initialisation.over_seeds(sample, jax.random.key(0), num_seeds=200, batch_size=50)
    covariance, tangent = by_recursion(np.asarray(X, np.float64))
    deviations = (estimate.mean - np.stack([covariance, covariance, tangent])) / estimate.standard_error
    assert np.abs(deviations).max() < 4.5  # of 48 entries; bias of finite width is below one error here
    assert np.abs(deviations).mean() > 0.1  # errors are no upper bounds
    relative = estimate.standard_error / estimate.mean
    assert relative[0].max() < 0.02
    assert relative[1].min() > 0.03  # two logits a network tell less than 256 features


@pytest.mark.parametrize("batch_size", [1, 4, 100])  # 4: three a time
def test_moments_are_those_of_all_samples(batch_size):
    def kernel_fn(key):
        return 1e3 + jax.random.normal(key, (3, 2))

    key = jax.random.key(1)
    estimate = initialisation.over_seeds(kernel_fn, key, num_seeds=9, batch_size=batch_size)
    batch = {1: 1, 4: 3, 100: 9}[batch_size]
    samples = np.stack([kernel_fn(k) for k in jax.random.split(key, (9 // batch, batch)).reshape(-1)]).astype(np.float64)
    np.testing.assert_allclose(estimate.mean, samples.mean(0), rtol=1e-6)
    np.testing.assert_allclose(estimate.standard_error, samples.std(0, ddof=1) / 3, rtol=1e-3)


@pytest.mark.slow  # the package loads for ten seconds
def test_the_recursion_is_that_of_the_exact_kernel():
    kernel_fn = infinite_width_kernel(NET.module, (6,))
    for get, truth in zip(("nngp", "ntk"), by_recursion(np.asarray(X, np.float64)), strict=True):
        np.testing.assert_allclose(kernel_fn(X, get=get), truth, rtol=1e-4)


def test_misuse_is_named():
    with pytest.raises(ValueError, match="num_seeds must be at least 2, got 1"):
        initialisation.over_seeds(lambda key: jnp.ones(2), jax.random.key(0), num_seeds=1)
    with pytest.raises(ValueError, match="features must be equally many, got 6 and 3"):
        initialisation.feature_kernel(X, X[:, :3])
