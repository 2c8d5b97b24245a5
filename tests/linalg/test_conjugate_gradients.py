"""Conjugate gradients with and without a Nystrom preconditioner, against a dense solve of an ill-conditioned system."""

import jax
import numpy as np

from jaxbp.linalg import conjugate_gradients

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
Q = np.linalg.qr(RNG.normal(size=(60, 60)))[0]
EIGENVALUES = np.geomspace(1e6, 1e-2, 60)
A = (Q * EIGENVALUES) @ Q.T
SHIFT = 1.0
TARGET = RNG.normal(size=(20, 3))


def product(vector):
    return (A @ vector.reshape(-1)).reshape(vector.shape)


def solve(precondition_fn=None):
    system = lambda v: product(v) + SHIFT * v  # noqa: E731
    return conjugate_gradients.solve(system, TARGET, tolerance=1e-9, max_products=2000, precondition_fn=precondition_fn)


def test_the_preconditioner_saves_more_products_than_it_costs():
    truth = np.linalg.solve(A + SHIFT * np.eye(60), TARGET.reshape(-1)).reshape(20, 3)
    plain, saved = solve(), solve(conjugate_gradients.nystrom(product, (20, 3), 40, KEY, shift=SHIFT))
    for result in (plain, saved):
        np.testing.assert_allclose(result.solution, truth, atol=1e-8 * np.abs(truth).max())
        assert result.residual_norm <= 1e-9
    assert saved.num_products + 40 < plain.num_products / 2


def test_full_rank_inverts_the_matrix():
    precondition = conjugate_gradients.nystrom(product, (20, 3), 100, KEY, shift=SHIFT)
    exact = np.linalg.solve(A + SHIFT * np.eye(60), TARGET.reshape(-1)) * (EIGENVALUES[-1] + SHIFT)
    np.testing.assert_allclose(precondition(TARGET).reshape(-1), exact, atol=1e-6 * np.abs(exact).max())


def test_a_zero_matrix_and_a_zero_target():
    assert (conjugate_gradients.nystrom(np.zeros_like, (20, 3), 5, KEY)(TARGET) == TARGET).all()
    assert conjugate_gradients.solve(product, np.zeros(60), tolerance=0.0).num_products == 0
    assert not conjugate_gradients.solve(np.zeros_like, TARGET, tolerance=0.0).solution.any()
