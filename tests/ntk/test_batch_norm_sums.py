"""Sums of normalised maps, by sampled channels, against the exact layer, a quadrature in two dimensions and Jacobians of plain channels."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp.ntk import batch_norm
from jaxbp.ntk.batch_norm import layers
from jaxbp.ntk.batch_norm.sums import Branch, sampled_sum_relu
from tests.helpers.sum_covariance import sum_covariance

D = 6
EPSILON = 0.01
CHANNELS = 2**13


@pytest.fixture(autouse=True)
def float64(x64):
    """The comparisons, too, are in double precision."""


def random_kernels(seed=0):
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(2, D, D))
    return factors[0] @ factors[0].T / D, factors[1] @ factors[1].T / D


def relative(found, expected):
    return np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected)


@pytest.mark.first_cases(2)
@pytest.mark.parametrize("statistics", ["batch", "frozen", "stored", None])
def test_one_branch_is_the_exact_layer(statistics):
    pair = random_kernels()
    if statistics in layers.COUPLED:
        exact = layers.batch_norm_relu(*pair, statistics=statistics, epsilon=EPSILON)
    else:
        exact = layers.stored_norm_relu([pair], epsilon=EPSILON) if statistics else layers.relu(*pair)
    sampled, _ = sampled_sum_relu(jax.random.key(0), [Branch(*pair, statistics)], channels=CHANNELS, epsilon=EPSILON)
    assert relative(sampled.covariance, exact.covariance) < 0.01
    assert relative(sampled.tangent, exact.tangent) < 0.01
    nngp, _ = sampled_sum_relu(jax.random.key(0), [Branch(pair[0], None, statistics)], channels=CHANNELS, epsilon=EPSILON)
    assert nngp.tangent is None
    np.testing.assert_allclose(nngp.covariance, sampled.covariance, rtol=1e-12)


def test_two_branches_have_the_covariance_of_the_quadrature():
    first, second = random_kernels(0)[0], 3 * random_kernels(1)[0]
    exact = sum_covariance(first, second, EPSILON)
    np.testing.assert_allclose(sum_covariance(first, second, EPSILON, 40), exact, atol=1e-4)
    rng = np.random.default_rng(0)
    total = 0.0
    for matrix in (first, second):  # the quadrature against plain samples
        y = rng.normal(size=(100_000, D)) @ np.linalg.cholesky(matrix).T
        y = y - y.mean(1, keepdims=True)
        total = total + y / np.sqrt((y**2).mean(1, keepdims=True) + EPSILON)
    active = np.maximum(total, 0)
    products = active[:, :, None] * active[:, None, :]
    assert np.abs((products.mean(0) - exact) / products.std(0) * math.sqrt(len(products))).max() < 4.5
    branches = [Branch(first, None), Branch(second, None)]
    sampled, _ = sampled_sum_relu(jax.random.key(0), branches, channels=CHANNELS, epsilon=EPSILON)
    assert relative(sampled.covariance, exact) < 0.01


def test_stored_branches_have_a_closed_form():
    pairs = [random_kernels(0), random_kernels(1)]
    exact = layers.stored_norm_relu(pairs, epsilon=EPSILON)
    branches = [Branch(*pair, "stored") for pair in pairs]
    sampled, _ = sampled_sum_relu(jax.random.key(0), branches, channels=CHANNELS, epsilon=EPSILON)
    assert relative(sampled.covariance, exact.covariance) < 0.01
    assert relative(sampled.tangent, exact.tangent) < 0.01


def test_a_carried_map_has_the_tangents_of_all_branches():
    """relu(relu(u_1) + u_2), each normalised by the batch: Jacobians of plain channels by JAX."""
    pairs = [random_kernels(0), random_kernels(1)]

    def normalised(z, scale, bias):
        centred = z - z.mean()
        return scale * centred / jnp.sqrt((centred**2).mean() + EPSILON) + bias

    def block(first, second):
        return jax.nn.relu(jax.nn.relu(normalised(*first)) + normalised(*second))

    def kernels(first, second):
        arguments = (first, jnp.ones(D), jnp.zeros(D)), (second, jnp.ones(D), jnp.zeros(D))
        ones = jnp.ones((D, D))
        active, jacobians = block(*arguments), jax.jacfwd(block, (0, 1))(*arguments)
        tangent = sum(
            jac @ theta @ jac.T
            for branch, pair in zip(jacobians, pairs, strict=True)
            for jac, theta in zip(branch, (pair[1], ones, ones), strict=True)
        )
        return jnp.outer(active, active), tangent

    rng = np.random.default_rng(3)
    z = [jnp.asarray(rng.normal(size=(40_000, D)) @ np.linalg.cholesky(covariance).T) for covariance, _ in pairs]
    samples = [np.asarray(kernel) for kernel in jax.jit(jax.vmap(kernels))(*z)]
    results = []
    for seed in range(2):
        first, second = jax.random.split(jax.random.key(seed))
        _, carried = sampled_sum_relu(first, [Branch(*pairs[0])], channels=CHANNELS, epsilon=EPSILON)
        layer, carried = sampled_sum_relu(second, [Branch(*pairs[1])], channels=CHANNELS, carried=carried, epsilon=EPSILON)
        results.append((layer.covariance, layer.tangent))
        assert len(carried.branches) == 2
        assert carried.activations.shape == (CHANNELS, D)
    for index, sample in enumerate(samples):
        mean, error = sample.mean(0), np.linalg.norm(sample.std(0)) / math.sqrt(len(sample)) / np.linalg.norm(sample.mean(0))
        assert error < 0.01
        assert relative((results[0][index] + results[1][index]) / 2, mean) < 3 * error + 0.005


def test_the_error_falls_with_channels_faster_than_plain_sampling():
    pair = random_kernels()
    exact = layers.batch_norm_relu(*pair, epsilon=EPSILON)

    def error(channels):
        keys = jax.random.split(jax.random.key(1), 4)
        drawn = [sampled_sum_relu(key, [Branch(*pair)], channels=channels, epsilon=EPSILON)[0] for key in keys]
        return np.sqrt(np.mean([relative(layer.covariance, exact.covariance) ** 2 for layer in drawn]))

    assert error(CHANNELS) < error(CHANNELS // 16) / 4  # Sobol points in all six directions


def test_refusals():
    branch = Branch(*random_kernels())
    for channels in (0, 1, 1000):
        with pytest.raises(ValueError, match=f"channels must be a power of 2, at least 2, got {channels}"):
            sampled_sum_relu(jax.random.key(0), [branch], channels=channels)
    with pytest.raises(ValueError, match="at least one Branch, got none"):
        sampled_sum_relu(jax.random.key(0), [], channels=8)
    with pytest.raises(ValueError, match=r"one of \('batch', .* None\), got 'layer'"):
        sampled_sum_relu(jax.random.key(0), [branch._replace(statistics="layer")], channels=8)
    _, carried = sampled_sum_relu(jax.random.key(0), [branch], channels=8)
    with pytest.raises(ValueError, match="map that is carried, 8, got 16"):
        sampled_sum_relu(jax.random.key(0), [branch], channels=16, carried=carried)
    with pytest.raises(ValueError, match="key must be one random key"):
        sampled_sum_relu(0, [branch], channels=8)
    thin = branch._replace(covariance=np.diag([1.0, 1.0] + [0.0] * (D - 2)))
    with pytest.raises(batch_norm.DegenerateBatchError, match="numbers that vary in 2"):
        sampled_sum_relu(jax.random.key(0), [branch, thin], channels=8)
