"""Streamed products and kernel regression by conjugate gradients, against the dense kernel in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jaxbp import ntk
from jaxbp.ntk import iterative, measures

N, M, C = 25, 6, 2
RNG = np.random.default_rng(0)
X, TEST, Y = RNG.normal(size=(N, 2)), RNG.normal(size=(M, 2)), RNG.normal(size=(N, C))
PARAMS = {"w": RNG.normal(size=(2, 40)), "b": RNG.normal(size=40), "v": RNG.normal(size=(40, C))}
TRACES = []


def apply_fn(params, x):
    TRACES.append(x.shape)
    return jnp.tanh(x @ params["w"] + params["b"]) @ params["v"] / 40**0.5


@pytest.fixture(scope="module")
def kernels():
    with jax.enable_x64(True):
        kernel = np.asarray(measures.as_matrix(ntk.empirical_ntk(apply_fn, PARAMS, np.concatenate([X, TEST]), X)))
    return kernel[: N * C], kernel[N * C :]


def test_streamed_products_are_those_of_the_dense_kernel(x64, kernels):
    for options in ({}, {"devices": jax.devices()[:2]}):
        TRACES.clear()
        square = ntk.streamed_product(apply_fn, PARAMS, X, chunk_size=4, **options)
        across = ntk.streamed_product(apply_fn, PARAMS, TEST, X, chunk_size=4, **options)
        for matvec, kernel in zip((square, across), kernels, strict=True):
            np.testing.assert_allclose(matvec(Y).reshape(-1), kernel @ Y.reshape(-1), rtol=1e-10, atol=1e-12)
        assert all(shape[0] <= 4 for shape in TRACES)  # the device never sees more than a chunk
    with pytest.raises(ValueError, match=r"\(M, C\) = \(25, 2\), got \(6, 2\)"):
        square(Y[:M])


def test_regression_is_that_of_a_dense_solve_and_the_preconditioner_saves_iterations(x64, kernels):
    ridge = 1e-7
    shift = ridge * np.diag(kernels[0]).mean()
    assert np.linalg.cond(kernels[0] + shift * np.eye(N * C)) > 1e6
    truth = scipy.linalg.solve(kernels[0] + shift * np.eye(N * C), Y.reshape(-1), assume_a="pos")
    plain, saved = (
        iterative.kernel_regression(
            apply_fn, PARAMS, X, Y, TEST, ridge=ridge, rank=rank, key=jax.random.key(0), rtol=1e-9, chunk_size=13, max_iterations=2000
        )
        for rank in (0, 40)
    )
    for result in (plain, saved):
        assert result.converged
        assert result.shift == pytest.approx(shift, rel=1e-10)
        np.testing.assert_allclose(result.coefficients.reshape(-1), truth, atol=1e-4 * np.abs(truth).max())
        predictions = kernels[1] @ truth
        np.testing.assert_allclose(result.test.reshape(-1), predictions, atol=1e-6 * np.abs(predictions).max())
    assert saved.num_iterations < plain.num_iterations / 2
    assert saved.num_products == saved.num_iterations + 41


def test_what_float32_cannot_solve_is_reported():
    params, x = jax.tree.map(np.float32, (PARAMS, X))
    result = iterative.kernel_regression(apply_fn, params, x, Y, x[:3], max_iterations=30, rtol=1e-7)
    assert not result.converged
    assert result.residual > 1e-7
