"""Fits against their normal equations; exact risks against simulated fits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import descent


def simulated(n, p, signal, noise, fit_fn, num_runs):
    rng, risks = np.random.default_rng([n, p]), []
    beta = np.full(p, signal / np.sqrt(p))
    for _ in range(num_runs):
        X = rng.normal(size=(n, p))
        risks.append(np.sum((fit_fn(X, X @ beta + noise * rng.normal(size=n)) - beta) ** 2))
    return np.mean(risks), np.std(risks, ddof=1) / np.sqrt(num_runs)


@pytest.mark.parametrize("p", [5, 15, 30, 60])
@pytest.mark.first_cases(2)
def test_risk_of_the_smallest_fit_against_simulated_fits(p):
    mean, error = simulated(20, p, 1.0, 0.5, descent.min_norm, 2000)
    assert abs(mean - descent.isotropic_risk(20, p, 1.0, 0.5)) < 4 * error
    assert error < 0.1


@pytest.mark.parametrize("n, p", [(200, 100), (100, 200)])
def test_ridge_risk_against_simulated_fits_and_its_minimum(n, p):
    ratio, signal, noise = p / n, 1.0, 0.5
    best = noise**2 * ratio / signal**2
    expected = descent.isotropic_ridge_risk(ratio, best, signal, noise)
    assert expected == pytest.approx(noise**2 * ratio * descent.stieltjes(ratio, best))
    assert all(expected < descent.isotropic_ridge_risk(ratio, best * factor, signal, noise) for factor in (0.8, 1.25))

    def ridge(X, y):
        return np.linalg.solve(X.T @ X / n + best * np.eye(p), X.T @ y / n)

    mean, error = simulated(n, p, signal, noise, ridge, 40)
    assert abs(mean - expected) < 4 * error + 0.02 * expected


@pytest.mark.parametrize("ratio", [0.5, 2.0])
def test_a_vanishing_ridge_is_none(ratio):
    limit = 0.25 * ratio / (1 - ratio) if ratio < 1 else 1 - 1 / ratio + 0.25 / (ratio - 1)
    assert descent.isotropic_ridge_risk(ratio, 1e-9, 1.0, 0.5) == pytest.approx(limit, rel=1e-6)
    assert descent.isotropic_risk(2_000_000, int(2_000_000 * ratio), 1.0, 0.5) == pytest.approx(limit, rel=1e-5)


def test_stieltjes_transform_against_eigenvalues():
    X = np.random.default_rng(0).normal(size=(600, 300))
    values = np.linalg.eigvalsh(X.T @ X / 600)
    for ridge in (0.01, 0.3, 5.0):
        assert descent.stieltjes(0.5, ridge) == pytest.approx(np.mean(1 / (values + ridge)), rel=0.01)


def test_no_expectation_at_the_threshold():
    assert [descent.isotropic_risk(10, p, 1.0, 1.0) for p in (9, 10, 11)] == [np.inf] * 3


def test_legendre_polynomials_are_orthonormal():
    nodes, weights = np.polynomial.legendre.leggauss(160)
    P = descent.legendre(nodes, 150)
    assert np.abs((P * weights[:, None] / 2).T @ P - np.eye(151)).max() < 1e-12


def test_ridge_path_against_the_normal_equations():
    rng = np.random.default_rng(0)
    F, y, T = rng.normal(size=(12, 30)), rng.normal(size=(12, 2)), rng.normal(size=(7, 30))
    path = descent.ridge_path(F, y, [0.0, 0.1, 3.0], T)
    assert path[0] == pytest.approx(T @ np.linalg.pinv(F) @ y)
    for ridge, predictions in zip((0.1, 3.0), path[1:], strict=True):
        assert predictions == pytest.approx(T @ np.linalg.solve(F.T @ F + ridge * np.eye(30), F.T @ y))
        # the same function by its kernel, sum_j g_j g_j'
        assert predictions == pytest.approx(T @ F.T @ np.linalg.solve(F @ F.T + ridge * np.eye(12), y))
    flat = np.c_[F, F[:, :3]]  # columns twice: singular values of 0 when there are more examples than columns
    assert np.isfinite(descent.ridge_path(flat.T, np.ones(33), [0.0], flat.T)).all()


def test_penalties_are_rescaled_features():
    """sum_j gamma^j w_j^2 over polynomials is a ridge over features gamma^(-j/2) P_j, and a kernel."""
    x, grid, gamma = np.linspace(-1, 1, 9), np.linspace(-0.9, 0.9, 5), 1.3
    scale = gamma ** (-np.arange(21) / 2)
    F, T = descent.legendre(x, 20), descent.legendre(grid, 20)
    y = np.sin(3 * x)
    penalty = np.diag(gamma ** np.arange(21.0))
    weights = np.linalg.solve(F.T @ F + 1e-3 * penalty, F.T @ y)
    assert descent.ridge_path(F * scale, y, [1e-3], T * scale)[0] == pytest.approx(T @ weights)


def test_random_features_are_nested_and_of_unit_directions():
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2, 3)), jnp.float32)
    few, many = (descent.random_features(jax.random.key(0), inputs, count, lambda z: z) for count in (3, 40))
    assert np.allclose(few, many[:, :3], atol=1e-6)
    directions = descent.random_features(jax.random.key(0), jnp.eye(6), 40, lambda z: z)
    assert np.allclose(np.linalg.norm(directions, axis=0), 1, atol=1e-6)
    assert np.allclose(many, inputs.reshape(5, 6) @ directions, atol=1e-5)


def test_effective_dimension_of_nested_features_never_falls():
    """More features only raise the Gram matrix: for random features the second descent cannot come with fewer dimensions."""
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(20, 4)), jnp.float32)
    features = np.asarray(descent.random_features(jax.random.key(0), inputs, 60))
    spectra = [np.linalg.eigvalsh(features[:, :p] @ features[:, :p].T) for p in (5, 20, 40, 60)]
    for alpha in (1e-4, 1e-2, 1.0, 100.0):
        dimensions = [descent.effective_dimension(values, alpha) for values in spectra]
        assert dimensions == sorted(dimensions)
    assert descent.effective_dimension([-5.0, 1.0], 1.0) == 0.5


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: descent.legendre([0.1], 0), "degree must be at least 1, got 0"),
        (lambda: descent.legendre([2.0], 3), "x must be numbers"),
        (lambda: descent.random_features(jax.random.key(0), jnp.ones((2, 2)), 0), "count must be at least 1, got 0"),
        (lambda: descent.ridge_path(np.ones((2, 2)), np.ones(2), [-1.0], np.ones((1, 2))), "ridges must be at least 0, got -1"),
        (lambda: descent.isotropic_risk(5, 0, 1.0, 1.0), "num_features must be at least 1, got 0"),
        (lambda: descent.isotropic_risk(5, 9, -1.0, 1.0), "signal must be one finite number, at least 0"),
        (lambda: descent.isotropic_ridge_risk(1.0, 0.0, 1.0, 1.0), "ridge must be one positive finite number"),
        (lambda: descent.effective_dimension([1.0], 0.0), "alpha must be one positive finite number"),
    ],
)
def test_arguments_are_checked(call, message):
    with pytest.raises(ValueError, match=message):
        call()
