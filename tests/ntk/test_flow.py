"""Gradient flow in function space, against the closed form of squared error and small steps of the linearised network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import ntk
from jaxbp.ntk import flow, measures, regression

N, M, C = 6, 3, 3
RNG = np.random.default_rng(0)
X, TEST = RNG.normal(size=(N, 4)), RNG.normal(size=(M, 4))
PARAMS = {"w": RNG.normal(size=(4, 8)), "v": RNG.normal(size=(8, C)) / 2}
TARGETS = np.eye(C)[[0, 1, 2, 0, 1, 1]]
TIMES = np.array([4.0, 0.0, 1.0])


def apply_fn(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


@pytest.fixture(scope="module")
def problem():
    with jax.enable_x64(True):
        kernel = np.asarray(ntk.empirical_ntk(apply_fn, PARAMS, np.concatenate([X, TEST]), X))
        outputs = np.asarray(apply_fn(PARAMS, np.concatenate([X, TEST])))
    return kernel[:N], kernel[N:], TARGETS, (outputs[:N], outputs[N:])


def test_squared_error_has_its_closed_form(problem):
    single = [np.asarray(measures.as_matrix(kernel[:, :, 0, 0])) for kernel in problem[:2]]
    for arguments in (problem, (*single, *problem[2:])):
        result, truth = (
            flow.gradient_flow(*arguments, TIMES, loss="squared_error"),
            regression.mean_prediction(*arguments, TIMES),
        )
        np.testing.assert_allclose(result.train, truth.train, atol=1e-5)
        np.testing.assert_allclose(result.test, truth.test, atol=1e-5)
    assert flow.gradient_flow(*problem, 1.0, loss="squared_error").test.shape == (M, C)


def test_cross_entropy_is_descent_in_small_steps(x64, problem):
    linear_fn = regression.linearised(apply_fn, PARAMS)

    def loss_fn(params):
        return -(TARGETS * jax.nn.log_softmax(linear_fn(params, X))).sum() / N

    @jax.jit
    def descend(params, step_size, num_steps):
        step = lambda _, p: jax.tree.map(lambda leaf, g: leaf - step_size * g, p, jax.grad(loss_fn)(p))  # noqa: E731
        params = jax.lax.fori_loop(0, num_steps, step, params)
        return linear_fn(params, X), linear_fn(params, TEST)

    start = jax.tree.map(jnp.asarray, PARAMS)
    coarse, fine = (descend(start, 4.0 / steps, steps) for steps in (2000, 4000))
    result = flow.gradient_flow(*problem, TIMES)
    for path, two, one, initial in zip(result, fine, coarse, problem[3], strict=True):
        limit = 2 * np.asarray(two) - np.asarray(one)  # Richardson: the error of a step is linear in it
        np.testing.assert_allclose(path[0], limit, atol=2e-5)
        np.testing.assert_allclose(path[1], initial, atol=1e-12)
        assert np.abs(path[0] - initial).max() > 0.5


def test_misuse_is_named(problem):
    with pytest.raises(ValueError, match="loss must be one of cross_entropy, squared_error, got 'hinge'"):
        flow.gradient_flow(*problem, 1.0, loss="hinge")
    with pytest.raises(ValueError, match="class probabilities"):
        flow.gradient_flow(*problem[:2], TARGETS - 1 / 3, problem[3], 1.0)
    with pytest.raises(ValueError, match="finite and not negative"):
        flow.gradient_flow(*problem, -1.0)
