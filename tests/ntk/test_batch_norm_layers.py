"""Layers with batch statistics against closed forms of special spectra, brute-force integrals, sampled channels, and identities."""

import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp.ntk import batch_norm
from jaxbp.ntk.batch_norm import closed_forms, layers, quadrature
from jaxbp.ntk.batch_norm.layers import batch_norm_relu, stored_norm_relu

D = 8


@pytest.fixture(autouse=True)
def float64(x64):
    """The comparisons, too, are in double precision."""


def centre(matrix):
    mean = np.eye(len(matrix)) - 1 / len(matrix)
    return mean @ matrix @ mean


def random_kernels(seed=0, size=D, decay=1.0):
    """A covariance, whose spectrum falls as k^-decay, and a tangent kernel."""
    rng = np.random.default_rng(seed)
    vectors = np.linalg.qr(rng.normal(size=(size, size)))[0]
    factor = rng.normal(size=(size, size))
    return vectors * np.arange(1, size + 1) ** -decay @ vectors.T, factor @ factor.T


def normalised_relu(z, epsilon):
    """One channel, as Flax computes it."""
    centred = z - z.mean()
    return jax.nn.relu(centred / jnp.sqrt((centred**2).mean() + epsilon))


def brute_force(channels, weights, theta, epsilon):
    """K and Theta_J: weighted sums over channels (M, D), Jacobians by JAX."""

    @jax.jit
    def sums(z, w):
        values = jax.vmap(normalised_relu, (0, None))(z, epsilon)
        jacobians = jax.vmap(jax.jacfwd(normalised_relu), (0, None))(z, epsilon)
        return jnp.einsum("m,mi,mj->ij", w, values, values), jnp.einsum("m,mia,ab,mjb->ij", w, jacobians, theta, jacobians)

    return [np.asarray(kernel) for kernel in sums(jnp.asarray(channels), jnp.asarray(weights))]


# Closed forms of Gaussians


def test_arctangents_and_moments():
    y, x = np.abs(np.random.default_rng(0).normal(size=1000)), np.random.default_rng(1).normal(size=1000)
    places = np.concatenate([y, [0, 0, 1, 1, 0]]), np.concatenate([x, [1, -1, 0, 1, 0]])
    np.testing.assert_allclose(closed_forms._angle(*map(jnp.asarray, places)), np.arctan2(*places), rtol=0, atol=2e-15)
    covariance = np.array([[2.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 0.0]])  # the last pixel does not vary
    angle = math.acos(0.9 / math.sqrt(2))
    density, step, relu = map(np.asarray, closed_forms.relu_moments(jnp.asarray(covariance)))
    np.testing.assert_allclose(step, [[0.5, 0.5 - angle / (2 * math.pi), 0], [0.5 - angle / (2 * math.pi), 0.5, 0], [0, 0, 0]])
    np.testing.assert_allclose(relu[0, 1], math.sqrt(2) * (math.sin(angle) + (math.pi - angle) * math.cos(angle)) / (2 * math.pi))
    np.testing.assert_allclose(density, [[0, math.sqrt(2) * math.sin(angle) / (2 * math.pi), 0], [density[0, 1], 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(np.diag(relu), [1.0, 0.5, 0.0])


def test_products_gated_by_a_sum_by_sampling():
    first, second = random_kernels(0)[0][:3, :3] + 0.1, random_kernels(1)[0][:3, :3] + 0.1
    rng = np.random.default_rng(0)
    part, rest = (rng.normal(size=(100_000, 3)) @ np.linalg.cholesky(c).T for c in (first, second))
    products = part[:, :, None] * part[:, None, :] * ((part + rest > 0)[:, :, None] & (part + rest > 0)[:, None, :])
    total = jnp.asarray(first + second)
    exact = closed_forms.gated_products(jnp.asarray(first), total, closed_forms.relu_moments(total).step)
    assert np.abs((products.mean(0) - exact) / products.std(0) * math.sqrt(len(products))).max() < 4.5
    step, relu = closed_forms.relu_moments(total)[1:]
    np.testing.assert_allclose(closed_forms.gated_products(total, total, step), relu, rtol=1e-7)


# One layer, against integrals known otherwise


def isotropic(size, theta):
    """K and Theta_J for the covariance G = I - 11'/D without epsilon: direction and norm are independent, with n = D - 1 directions."""
    n, c, t = size - 1, jnp.asarray(centre(np.eye(size))), centre(theta)
    density, step, relu = map(np.asarray, closed_forms.relu_moments(c))
    c, v = np.asarray(c), np.diagonal(c)
    edges = density * (np.diagonal(t @ c) / v)[:, None] + (t @ c) * step
    ctc = c @ t @ c
    form = np.trace(t @ c) * relu + density * np.add.outer(np.diagonal(ctc) / v, np.diagonal(ctc) / v) + 2 * ctc * step
    return size / n * relu, size / (n - 2) * (t * step - (edges + edges.T) / n + form / (n * (n + 2)))


def test_isotropic_covariance():
    theta = random_kernels()[1]
    layer = batch_norm_relu(3.0 * np.eye(D), 3.0 * theta, epsilon=0.0, affine=False, num_nodes=49)
    for result, expected in zip((layer.covariance, layer.tangent), isotropic(D, theta), strict=True):
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


@pytest.mark.slow
def test_tangent_kernels_explode_with_depth():
    """A chain's grows by pi / (pi - 1) a layer (Yang et al., ICLR 2019, arXiv 1902.08129), at large D; the closed form holds at each."""
    growth = []
    for size in (10, 100):
        theta = np.eye(size) / (1 - 1 / math.pi)  # covariance (1 - 1/pi) I, theta I, by scale invariance
        growth.append(2 * (1 - 1 / math.pi) * np.trace(centre(isotropic(size, theta)[1])) / (size - 1) / (1 - 1 / math.pi))
    np.testing.assert_allclose(growth, [1.829, 1.494], rtol=1e-3)
    assert 0 < growth[-1] - math.pi / (math.pi - 1) < 0.03


@pytest.mark.first_cases(1)
@pytest.mark.parametrize("epsilon", [1e-3, 0.1, 1.0])
def test_two_examples(epsilon):
    covariance, theta = np.array([[1.3, 0.2], [0.2, 0.9]]), np.array([[2.0, 0.3], [0.3, 1.0]])
    variance = (1.3 + 0.9 - 2 * 0.2) / 2  # of (z_1 - z_2) / sqrt(2)
    places = np.linspace(-9, 9, 40_000) * math.sqrt(variance)  # 0, the kink, is none of them
    density = np.exp(-(places**2) / (2 * variance)) / math.sqrt(2 * math.pi * variance) * (places[1] - places[0])
    expected = brute_force(places[:, None] * np.array([1, -1]) / math.sqrt(2), density, theta, epsilon)
    layer = batch_norm_relu(covariance, theta, epsilon=epsilon, affine=False)
    np.testing.assert_allclose(layer.covariance, expected[0], atol=1e-6)
    np.testing.assert_allclose(layer.tangent, expected[1], atol=1e-4)
    trained = batch_norm_relu(covariance, theta, epsilon=epsilon)  # adds K and E[step step] = I / 2
    np.testing.assert_allclose(trained.tangent, layer.tangent + layer.covariance + np.eye(2) / 2, atol=1e-12)


def test_three_examples_on_a_polar_grid():
    covariance, theta = random_kernels(size=3)
    epsilon = 0.05
    values, vectors = np.linalg.eigh(centre(covariance))
    angles = (np.arange(3000) + 0.5) / 3000 * 2 * math.pi
    logs = np.linspace(-12, math.log(10), 150)
    radii, step = np.exp(logs), logs[1] - logs[0]
    plane = np.stack([np.cos(angles), np.sin(angles)], 1) @ (vectors[:, 1:] * np.sqrt(values[1:])).T
    weights = np.repeat((radii**2 * np.exp(-(radii**2) / 2) * step)[:, None] / len(angles), len(angles), 1)
    expected = brute_force((radii[:, None, None] * plane).reshape(-1, 3), weights.ravel(), theta, epsilon)
    layer = batch_norm_relu(covariance, theta, epsilon=epsilon, affine=False)
    np.testing.assert_allclose(layer.covariance, expected[0], atol=1e-5)
    np.testing.assert_allclose(layer.tangent, expected[1], atol=2e-3 * np.abs(expected[1]).max())


@pytest.mark.parametrize("statistics", ["batch", "frozen"])
def test_channels_that_are_sampled(statistics):
    covariance, theta = random_kernels()
    z = np.random.default_rng(2).normal(size=(50_000, D)) @ np.linalg.cholesky(covariance).T
    centred = z - z.mean(1, keepdims=True)
    inverse = 1 / np.sqrt((centred**2).mean(1, keepdims=True) + 0.01)
    u, gates = centred * inverse, centred > 0
    if statistics == "batch":  # the Jacobian of u is (G - u u' / D) / norm
        projected = theta - theta.mean(0) - theta.mean(1)[:, None] + theta.mean()
        moved = u @ projected
        form = (moved * u).sum(1)[:, None, None] / D**2
        cross = moved[:, :, None] * u[:, None, :] / D
        tangents = (projected - cross - cross.transpose(0, 2, 1) + form * u[:, :, None] * u[:, None, :]) * inverse[:, :, None] ** 2
    else:
        tangents = theta * inverse[:, :, None] ** 2
    gated = gates[:, :, None] & gates[:, None, :]
    samples = u[:, :, None] * u[:, None, :] * gated, (tangents + u[:, :, None] * u[:, None, :] + 1) * gated
    layer = batch_norm_relu(covariance, theta, epsilon=0.01, statistics=statistics)
    for exact, sample in zip((layer.covariance, layer.tangent), samples, strict=True):
        deviations = (sample.mean(0) - exact) / (sample.std(0) / math.sqrt(len(sample)))
        assert np.abs(deviations).max() < 5
        assert (sample.std(0) / math.sqrt(len(sample))).max() < 0.03 * np.abs(exact).max()


def test_a_large_epsilon_leaves_a_linear_layer():
    covariance, theta = random_kernels()
    layer = batch_norm_relu(1e7 * covariance, 1e7 * theta, epsilon=1e7, affine=False)
    linear = jnp.asarray(centre(covariance))
    layer_limit = closed_forms.relu_moments(linear)
    large = batch_norm_relu(covariance, theta, epsilon=1e6, affine=False)
    np.testing.assert_allclose(1e6 * large.covariance, layer_limit.relu, rtol=0, atol=1e-5)
    np.testing.assert_allclose(1e6 * large.tangent, centre(theta) * layer_limit.step, rtol=0, atol=1e-4)
    small = batch_norm_relu(covariance, theta, epsilon=1.0, affine=False)
    np.testing.assert_allclose(layer.tangent, small.tangent, rtol=1e-9, atol=1e-12)  # of one scale


def test_stored_statistics_are_a_scale():
    covariance, theta = random_kernels()
    layer = stored_norm_relu([(covariance, theta)], epsilon=0.25)
    moments = closed_forms.relu_moments(jnp.asarray(covariance / 1.25))
    np.testing.assert_allclose(layer.covariance, moments.relu, rtol=1e-12)
    np.testing.assert_allclose(layer.tangent, moments.step * (theta / 1.25 + 1) + moments.relu, rtol=1e-8)


# Identities


def test_identities():
    covariance, theta = random_kernels()
    exact = {"epsilon": 0.0, "affine": False, "num_nodes": 49}
    layer = batch_norm_relu(covariance, theta, **exact)
    np.testing.assert_allclose(np.trace(layer.covariance), D / 2, rtol=1e-9)
    scaled = batch_norm_relu(7 * covariance + 3.0, 7 * theta + 5.0, **exact)  # constants are centred away
    np.testing.assert_allclose(scaled.covariance, layer.covariance, atol=1e-10)
    np.testing.assert_allclose(scaled.tangent, layer.tangent, atol=1e-9)
    other = random_kernels(5)[1]
    whole, part = (batch_norm_relu(covariance, kernel, **exact).tangent for kernel in (theta + 2 * other, other))
    np.testing.assert_allclose(whole, layer.tangent + 2 * part, atol=1e-9 * np.abs(whole).max())
    order = np.random.default_rng(1).permutation(D)
    moved = batch_norm_relu(covariance[np.ix_(order, order)], theta[np.ix_(order, order)], **exact)
    np.testing.assert_allclose(moved.tangent, np.asarray(layer.tangent)[np.ix_(order, order)], atol=1e-9)
    trained = batch_norm_relu(covariance, theta)
    for kernel in (trained.covariance, trained.tangent):
        np.testing.assert_array_equal(kernel, kernel.T)
        assert np.linalg.eigvalsh(kernel)[0] > -1e-9
    np.testing.assert_array_equal(batch_norm_relu(covariance).covariance, trained.covariance)
    assert batch_norm_relu(covariance).tangent is None


@pytest.mark.slow
def test_blocks_of_rows_and_zero_eigenvalues_change_nothing(monkeypatch):
    covariance, theta = random_kernels(size=72, decay=0.5)
    covariance = covariance[:, :9] @ covariance[:9]  # rank 9, as of a stem of one colour; 64 eigenvectors are kept
    whole = batch_norm_relu(covariance, theta)
    monkeypatch.setattr(layers, "_BLOCKED_FROM", 70)
    monkeypatch.setattr(layers, "_RANK_STEP", 72)
    other = batch_norm_relu(covariance, theta)
    np.testing.assert_allclose(other.covariance, whole.covariance, atol=1e-11)
    np.testing.assert_allclose(other.tangent, whole.tangent, atol=1e-11 * np.abs(whole.tangent).max())


# Quadrature


@pytest.mark.parametrize("rank,decay", [(3, 0.0), (5, 0.5), (7, 0.0), (7, 2.0)])
def test_the_error_estimate_bounds_the_error(rank, decay):
    directions = of_rank(rank)
    covariance, theta = directions, random_kernels(decay=decay)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", batch_norm.SlowLimitWarning)
        results = {number: batch_norm_relu(covariance, theta, num_nodes=number) for number in (25, 49, 97)}
    for number in (25, 49):
        error = np.abs(results[number].tangent - results[97].tangent).max() / np.abs(results[97].tangent).max()
        assert error < max(results[number].error, 1e-9)
        assert error < {25: 1e-5, 49: 1e-9}[number]


def test_moments_of_the_norm():
    spectrum, dimension = np.full(12, 0.7), 12
    np.testing.assert_allclose(quadrature.tail(spectrum, 0.0), dimension**2 / ((dimension - 2) * (dimension - 4)), rtol=1e-6)
    np.testing.assert_allclose(np.sum(quadrature.nodes(spectrum, 0.0, 49).weights), 1 / (0.7 * (dimension - 2)), rtol=1e-10)
    assert quadrature.tail(np.full(2000, 1.0), 0.0) < 1.01


# Batches that do not vary enough


def of_rank(rank):
    factor = np.random.default_rng(0).normal(size=(D, rank))
    return factor @ factor.T


@pytest.mark.parametrize("rank", [1, 2])
def test_too_few_directions_are_refused(rank):
    with pytest.raises(batch_norm.DegenerateBatchError, match=f"at least 4 normalised numbers .* got 8 numbers that vary in {rank}"):
        batch_norm_relu(of_rank(rank), np.eye(D))
    assert np.isfinite(batch_norm_relu(of_rank(rank)).covariance).all()  # the NNGP alone
    assert np.isfinite(batch_norm_relu(of_rank(rank), np.eye(D), epsilon=1.0).tangent).all()


def test_slow_limits_are_warned_of():
    with pytest.warns(batch_norm.SlowLimitWarning, match="vary in 4 directions only"):
        batch_norm_relu(of_rank(4), np.eye(D))
    with pytest.warns(batch_norm.SlowLimitWarning, match="norm of tail .*, above 100"):
        batch_norm_relu(np.diag([1.0, *[3e-4] * (D - 1)]), np.eye(D), epsilon=1e-9)


def test_batches_that_do_not_vary_are_refused():
    with pytest.raises(batch_norm.DegenerateBatchError, match="8 normalised numbers of a channel are all equal"):
        batch_norm_relu(np.full((D, D), 3.0))


def test_a_quadrature_that_has_not_converged_is_an_error(monkeypatch):
    monkeypatch.setattr(layers, "_LARGEST_ERROR", 1e-30)
    with pytest.raises(batch_norm.InaccurateQuadratureError, match=r"193 nodes leave an error estimate of .*: take a larger batch"):
        batch_norm_relu(*random_kernels())


def test_statistics_have_names():
    with pytest.raises(ValueError, match=r"one of \('batch', 'frozen'\), got 'stored'"):
        batch_norm_relu(np.eye(D), statistics="stored")


def test_float32_is_computed_in_float64():
    covariance, theta = (matrix.astype(np.float32) for matrix in random_kernels())
    with jax.enable_x64(False):
        layer = batch_norm_relu(jnp.asarray(covariance), jnp.asarray(theta))
    assert layer.tangent.dtype == np.float64
    np.testing.assert_allclose(layer.tangent, batch_norm_relu(covariance.astype(float), theta.astype(float)).tangent, rtol=1e-9)
