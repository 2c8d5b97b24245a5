"""Function space against `numpy.linalg.solve`, the matrix exponential, and networks that were really trained."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import scipy.stats

from jaxbp import models, ntk, training
from jaxbp.ntk import compat, regression

N, M, C = 6, 4, 3


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def kernels(full, seed=0):
    """(train-train, test-train) kernels of random Jacobians, with or without logits."""
    train, test = gaussian(N, C, 60, seed=seed), gaussian(M, C, 60, seed=seed + 1)
    if full:
        return np.einsum("ikp,jlp->ijkl", train, train), np.einsum("ikp,jlp->ijkl", test, train)
    return train[:, 0] @ train[:, 0].T, test[:, 0] @ train[:, 0].T


def matrix(kernel):
    """(n C, m C); a kernel without logits is the same for each and zero between them."""
    if kernel.ndim == 2:
        return np.kron(kernel, np.eye(C))
    n, m = kernel.shape[:2]
    return kernel.swapaxes(1, 2).reshape(n * C, m * C)


TARGETS = gaussian(N, C, seed=5)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_regression_by_solve(full, ridge):
    k, k_test = kernels(full)
    dense = matrix(k)
    dense = dense + ridge * np.trace(dense) / len(dense) * np.eye(len(dense))
    expected = matrix(k_test) @ np.linalg.solve(dense, TARGETS.ravel())
    found = regression.kernel_regression(k, k_test, TARGETS, ridge=ridge)  # without the fixture: float64 all the same
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected.reshape(M, C), rtol=1e-11, atol=1e-12)
    scaled = regression.kernel_regression(9 * k, 9 * k_test, TARGETS, ridge=ridge)
    np.testing.assert_allclose(scaled, found, rtol=1e-11)


@pytest.mark.parametrize("full", [False, True])
def test_without_ridge_targets_are_interpolated(full):
    k, _ = kernels(full)
    np.testing.assert_allclose(regression.kernel_regression(k, k, TARGETS), TARGETS, atol=1e-12)
    assert np.abs(regression.kernel_regression(k, k, TARGETS, ridge=0.1) - TARGETS).max() > 0.01


@pytest.mark.parametrize("full", [False, True])
def test_gradient_flow_by_matrix_exponential(full):
    k, k_test = kernels(full)
    start = gaussian(N, C, seed=7), gaussian(M, C, seed=8)
    dense, times = matrix(k), np.array([0.0, 0.03, 0.2, 4.0])
    found = regression.mean_prediction(k, k_test, TARGETS, start, times)
    assert (found.train.shape, found.test.shape) == ((4, N, C), (4, M, C))
    for i, time in enumerate(times):
        residual = scipy.linalg.expm(-dense * time / N) @ (start[0] - TARGETS).ravel()
        np.testing.assert_allclose(found.train[i], TARGETS + residual.reshape(N, C), atol=1e-11)
        moved = matrix(k_test) @ np.linalg.solve(dense, residual - (start[0] - TARGETS).ravel())
        np.testing.assert_allclose(found.test[i], start[1] + moved.reshape(M, C), atol=1e-11)
        one = regression.mean_prediction(k, k_test, TARGETS, start, float(time))
        np.testing.assert_allclose(one.test, found.test[i], atol=1e-13)
    end = regression.mean_prediction(k, k_test, TARGETS, start)
    np.testing.assert_array_equal(end.train, TARGETS)
    late = regression.mean_prediction(k, k_test, TARGETS, start, 1e9)
    np.testing.assert_allclose(late.test, end.test, atol=1e-11)


def network(params, inputs):
    return jnp.tanh(jnp.tanh(inputs @ params["w"]) @ params["v"]) @ params["u"] + params["b"]


@pytest.fixture
def trained(x64):
    """(params, inputs, labels, test inputs)"""
    params = {"w": gaussian(5, 20), "v": gaussian(20, 20, seed=1), "u": gaussian(20, C, seed=2), "b": np.zeros(C)}
    params = jax.tree.map(lambda p: jnp.asarray(p) / math.sqrt(len(p)), params)
    labels = jnp.array([0, 1, 2, 0, 1, 2])
    return params, jnp.asarray(gaussian(N, 5, seed=3)), labels, jnp.asarray(gaussian(M, 5, seed=4))


def empirical(params, inputs, test_inputs):
    return ntk.empirical_ntk(network, params, inputs), ntk.empirical_ntk(network, params, test_inputs, inputs)


def test_the_end_of_gradient_flow_is_kernel_regression_of_what_is_left_to_learn(trained):
    params, inputs, labels, test_inputs = trained
    targets = regression.centred_one_hot(labels, C)
    k, k_test = empirical(params, inputs, test_inputs)
    start = network(params, inputs), network(params, test_inputs)
    end = regression.mean_prediction(k, k_test, targets, start)
    expected = start[1] + regression.kernel_regression(k, k_test, targets - start[0])
    condition = np.linalg.cond(matrix(np.asarray(k)))
    np.testing.assert_allclose(end.test, expected, rtol=2**-52 * condition)
    from_zero = regression.mean_prediction(k, k_test, targets, (np.zeros((N, C)), np.zeros((M, C))))
    np.testing.assert_allclose(from_zero.test, regression.kernel_regression(k, k_test, targets), rtol=2**-52 * condition)


def test_a_linearised_network_trains_as_predicted(trained):
    # Gradient descent is Euler's method for the flow: of first order, so half the step has half the error.
    params, inputs, labels, test_inputs = trained
    linear_fn, time, num_steps = regression.linearised(network, params), 2.0, np.array([400, 800])
    k, k_test = empirical(params, inputs, test_inputs)
    targets = regression.centred_one_hot(labels, C)
    start = network(params, inputs), network(params, test_inputs)
    wanted = regression.mean_prediction(k, k_test, targets, start, time)

    def run(learning_rate):
        return training.train(
            models.from_functions(linear_fn),
            training.sgd(learning_rate),
            (inputs, labels),
            jax.random.key(0),
            training.Settings(num_epochs=800, batch_size=N, loss_fn=regression.centred_squared_error, measure_epochs=num_steps),
            start=(params, {}),
            measure_fn=lambda now: (linear_fn(now.params, inputs), linear_fn(now.params, test_inputs)),
        ).measured

    found = [f[[0, 1], [0, 1]] for f in jax.vmap(run)(time / num_steps)]  # each step where it arrives at the time
    errors = np.array([np.linalg.norm(f - w, axis=(1, 2)) for f, w in zip(found, wanted, strict=True)])
    # On the training set Euler's error is known: (1 - h l)^n against exp(-n h l) along each eigenvector.
    rates, vectors = np.linalg.eigh(matrix(np.asarray(k)) / N)
    gaps = [(1 - time / n * rates) ** n - np.exp(-rates * time) for n in num_steps]
    residual = vectors.T @ np.ravel(start[0] - targets)
    np.testing.assert_allclose(errors[0], [np.linalg.norm(gap * residual) for gap in gaps], rtol=1e-8)
    np.testing.assert_allclose(errors[:, 0] / errors[:, 1], 2, rtol=0.02)
    assert (errors < 0.01 * np.linalg.norm(wanted.train - start[0])).all()


def test_the_linearised_network_is_the_taylor_expansion(trained):
    params, inputs, _, _ = trained
    linear_fn = regression.linearised(network, params)
    np.testing.assert_allclose(linear_fn(params, inputs), network(params, inputs), rtol=1e-14)
    direction = jax.tree.map(lambda p: jnp.asarray(gaussian(*p.shape, seed=9)), params)

    def away(size):
        return jax.tree.map(lambda p, d: p + size * d, params, direction)

    gaps = [float(jnp.abs(linear_fn(away(s), inputs) - network(away(s), inputs)).max()) for s in (1e-3, 5e-4)]
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.01)  # what is left is of second order
    middle = (linear_fn(away(1.0), inputs) + linear_fn(away(-3.0), inputs)) / 2
    np.testing.assert_allclose(linear_fn(away(-1.0), inputs), middle, rtol=1e-11, atol=1e-12)
    far = ntk.empirical_ntk(linear_fn, away(1.0), inputs)  # its kernel stands still
    np.testing.assert_allclose(far, ntk.empirical_ntk(network, params, inputs), rtol=1e-10, atol=1e-11)


def test_the_linearised_network_carries_a_state_along(x64):
    def apply_fn(params, inputs, state):
        return jnp.sin(inputs * params) * state

    linear_fn = regression.linearised(apply_fn, jnp.float64(0.5))
    assert float(linear_fn(jnp.float64(0.7), 2.0, 3.0)) == pytest.approx(3 * (math.sin(1) + 0.2 * 2 * math.cos(1)))


def test_ridge_is_the_best_of_the_grid_on_validation_data():
    k, k_valid = kernels(False)
    valid_targets, grid = gaussian(M, C, seed=6), [10.0, 0.0, 0.1, 1.0]
    predictions = [k_valid @ np.linalg.solve(k + r * np.trace(k) / N * np.eye(N), TARGETS) for r in grid]
    expected = [((p - valid_targets) ** 2).mean() for p in predictions]
    choice = regression.choose_ridge(k, k_valid, TARGETS, valid_targets, grid)
    np.testing.assert_allclose(choice.errors, expected, rtol=1e-10)
    assert choice.ridge == grid[int(np.argmin(expected))]
    signed = regression.choose_ridge(k, k_valid, TARGETS, valid_targets, grid, error_fn=lambda p, y: -abs(p).max())
    assert signed.ridge == 0  # ridges shrink
    tied = regression.choose_ridge(k, k_valid, TARGETS, valid_targets, grid, error_fn=lambda p, y: 1.0)
    assert tied.ridge == 10


RIDGES = (0.0, 0.1, 3.0)


@pytest.mark.parametrize("full", [False, True])
def test_the_evidence_is_a_density_of_all_targets(full):
    kernel, _ = kernels(full)
    dense = matrix(kernel)
    noisy = [dense + ridge * np.trace(dense) / len(dense) * np.eye(len(dense)) for ridge in RIDGES]
    expected = [scipy.stats.multivariate_normal.logpdf(TARGETS.ravel(), cov=covariance) for covariance in noisy]
    np.testing.assert_allclose(regression.log_evidence(kernel, TARGETS, RIDGES), expected, rtol=1e-10)
    # at its best scale, found by a search over scales
    for covariance, evidence in zip(noisy, regression.log_evidence(kernel, TARGETS, RIDGES, best_scale=True), strict=True):
        search = scipy.optimize.minimize_scalar(
            lambda log_scale, covariance=covariance: (
                -scipy.stats.multivariate_normal.logpdf(TARGETS.ravel(), cov=math.exp(log_scale) * covariance)
            ),
            bounds=(-15, 15),
            method="bounded",
        )
        assert evidence == pytest.approx(-search.fun, abs=1e-6)
    np.testing.assert_allclose(
        regression.log_evidence(9 * kernel, TARGETS, RIDGES, best_scale=True),
        regression.log_evidence(kernel, TARGETS, RIDGES, best_scale=True),
        rtol=1e-10,
    )


def test_the_evidence_of_one_target_sums_to_one():
    targets, step = np.linspace(-40, 40, 4001), 0.02
    densities = np.exp([regression.log_evidence([[2.0]], [[target]], [0.5])[0] for target in targets])
    assert densities.sum() * step == pytest.approx(1, abs=1e-12)
    assert (densities * targets**2).sum() * step == pytest.approx(2 * 1.5, rel=1e-9)  # the kernel and half of it again


def test_the_evidence_of_a_singular_kernel_without_noise_is_nan():
    evidence = regression.log_evidence(np.ones((N, N)), TARGETS, [0.0, 1.0])
    assert np.isnan(evidence[0])
    assert np.isfinite(evidence[1])
    zeros = regression.log_evidence(np.ones((N, N)), np.zeros((N, C)), [0.0, 1.0], best_scale=True)
    assert np.isnan(zeros[0])
    assert zeros[1] == np.inf


@pytest.mark.parametrize(
    ("size", "entries"), [(3, np.s_[:]), (30, ([0, 1], [1, 0]))]
)  # LAPACK refuses the one, and finds finite values in the other
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_kernel_that_is_not_finite_has_no_evidence_and_no_flow(size, entries, value):
    kernel, targets = np.eye(size), np.eye(size, C)
    kernel[entries] = value
    assert np.isnan(regression.log_evidence(kernel, targets, [0.1, 1.0])).all()
    assert np.isnan(regression.log_evidence(kernel, targets, [0.1], best_scale=True)).all()
    flow = regression.mean_prediction(kernel, np.eye(size), targets, (targets, targets), 1.0)
    assert np.isnan(flow.train).all()
    assert np.isnan(flow.test).all()


def test_a_singular_kernel_gives_nan_and_is_not_chosen():
    ones = np.ones((N, N))
    assert np.isnan(regression.kernel_regression(ones, ones, TARGETS)).all()
    choice = regression.choose_ridge(ones, ones, TARGETS, TARGETS, [0.0, 1.0])
    assert choice.ridge == 1
    assert math.isnan(choice.errors[0])
    assert math.isnan(regression.choose_ridge(ones, ones, TARGETS, TARGETS, [0.0]).ridge)
    start = np.zeros((N, C)), np.zeros((N, C))
    flow = regression.mean_prediction(ones, ones, TARGETS, start, 1.0)  # only the mean is learned, at rate N / N
    np.testing.assert_allclose(flow.test, np.tile((1 - math.exp(-1)) * TARGETS.mean(0), (N, 1)), atol=1e-12)
    np.testing.assert_allclose(flow.train, flow.test, atol=1e-12)
    assert np.isnan(regression.mean_prediction(ones, ones, TARGETS, start).test).all()
    silent = np.diag(np.arange(N))  # the first example moves no parameter
    flow = regression.mean_prediction(silent, np.ones((N, N)), TARGETS, start, 1.5)
    rates = np.arange(1, N)
    learned = -np.expm1(-1.5 * rates / N)[:, None] * TARGETS[1:]
    np.testing.assert_allclose(flow.train, np.concatenate([np.zeros((1, C)), learned]), atol=1e-14)
    pulled = 1.5 / N * TARGETS[0] + (learned / rates[:, None]).sum(0)  # a kernel of ones adds up all weights
    np.testing.assert_allclose(flow.test, np.tile(pulled, (N, 1)), atol=1e-14)


@pytest.mark.parametrize("full", [False, True])
def test_gradient_flow_is_that_of_neural_tangents(x64, full):
    k, k_test = kernels(full)
    start = gaussian(N, C, seed=7), gaussian(M, C, seed=8)
    predict_fn = compat.load().predict.gradient_descent_mse(
        jnp.asarray(k), jnp.asarray(TARGETS), learning_rate=C, trace_axes=() if full else (-1,)
    )  # their loss is the mean over logits, too, which makes time run slower by their number
    for time in (0.7, None):
        found, theirs = regression.mean_prediction(k, k_test, TARGETS, start, time), predict_fn(time, *start, k_test)
        np.testing.assert_allclose(found.train, theirs[0], atol=1e-11)
        np.testing.assert_allclose(found.test, theirs[1], atol=1e-11)


def test_float64_inside_a_float32_session():
    basis = np.linalg.qr(gaussian(N, N))[0]
    k = (basis * np.geomspace(1e-9, 1, N)) @ basis.T  # too ill-conditioned for float32
    found = regression.kernel_regression(k, k, TARGETS)
    np.testing.assert_allclose(found, TARGETS, atol=1e9 * 2**-52 * 100)
    assert jnp.ones(1).dtype == jnp.float32


def test_targets_and_loss_by_hand():
    np.testing.assert_allclose(regression.centred_one_hot(jnp.array([1, 0]), 4), [[-0.25, 0.75, -0.25, -0.25], [0.75, -0.25, -0.25, -0.25]])
    # distances to (3/4, -1/4, -1/4, -1/4): 1/4, 5/4, 1/4, 1/4
    loss = regression.centred_squared_error(jnp.array([[1.0, 1.0, 0.0, 0.0]]), jnp.array([0]))
    assert float(loss[0]) == pytest.approx((3 / 16 + 25 / 16) / 2)


def test_misuse_is_refused():
    k, k_test = kernels(False)
    full, full_test = kernels(True)
    start = np.zeros((N, C)), np.zeros((M, C))
    for message, call in {
        r"targets must be \(N, C\), got shape \(6,\)": lambda: regression.kernel_regression(k, k_test, TARGETS[:, 0]),
        r"k_train_train must be \(5, 5\) for targets \(5, 3\), got \(6, 6\)": lambda: regression.kernel_regression(k, k_test, TARGETS[:5]),
        r"k_test_train must be \(6, 6\) for targets \(6, 3\), got \(6, 4\)": lambda: regression.kernel_regression(k, k_test.T, TARGETS),
        r"must be \(4, 6, 3, 3\) for .* got \(4, 6\)": lambda: regression.kernel_regression(full, k_test, TARGETS),
        r"must be \(6, 6, 2, 2\) for": lambda: regression.kernel_regression(full, full_test, TARGETS[:, :2]),
        "ridge must be at least 0, got -1": lambda: regression.kernel_regression(k, k_test, TARGETS, ridge=-1),
        r"ridges must be at least 0, one or more of them, got \[\]": lambda: regression.log_evidence(k, TARGETS, []),
        r"ridges must be at least 0, one or more of them, got \[0.1, -1.0\]": lambda: regression.log_evidence(k, TARGETS, [0.1, -1.0]),
        "at least one ridge, got none": lambda: regression.choose_ridge(k, k_test, TARGETS, start[1], []),
        r"valid_targets must be \(V, C\) = \(4, 3\), got \(6, 3\)": lambda: regression.choose_ridge(k, k_test, TARGETS, TARGETS, [1.0]),
        r"outputs must be \(6, 3\) and \(4, 3\), got \(4, 3\) and": lambda: regression.mean_prediction(k, k_test, TARGETS, start[::-1]),
        "finite and not negative, got -1.0": lambda: regression.mean_prediction(k, k_test, TARGETS, start, -1.0),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
