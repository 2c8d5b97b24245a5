"""Newton-CG against closed forms and SciPy's trust-region minimiser, on functions that know no network."""

import numpy as np
import pytest
import scipy.optimize
import scipy.special

from jaxbp.linalg import newton_cg


def logistic(seed=0, num_examples=60, size=8, ridge=1e-2):
    """Ridge-regularised logistic regression: value, (value, gradient, product) and the dense Hessian."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(num_examples, size)) * np.geomspace(0.1, 10, size)

    def value_fn(x):
        return float(np.logaddexp(0, matrix @ x).sum() + 0.5 * ridge * (x**2).sum())

    def hessian_fn(x):
        p = scipy.special.expit(matrix @ x)
        return (matrix.T * (p * (1 - p))) @ matrix + ridge * np.eye(size)

    def gradient_fn(x):
        return matrix.T @ scipy.special.expit(matrix @ x) + ridge * x

    def derivatives_fn(x):
        dense = hessian_fn(x)
        return value_fn(x), gradient_fn(x), lambda direction: dense @ direction

    return value_fn, gradient_fn, hessian_fn, derivatives_fn


@pytest.mark.parametrize("seed", range(3))
def test_the_minimum_is_scipys(seed):
    value_fn, gradient_fn, hessian_fn, derivatives_fn = logistic(seed)
    result = newton_cg.minimise(value_fn, derivatives_fn, np.ones(8))
    options = {"gtol": 1e-12}
    peer = scipy.optimize.minimize(value_fn, np.ones(8), jac=gradient_fn, hess=hessian_fn, method="trust-exact", options=options)
    np.testing.assert_allclose(result.position, peer.x, rtol=1e-7, atol=1e-9)
    assert result.value <= peer.fun * (1 + 1e-14)
    assert result.gradient_norm == np.linalg.norm(gradient_fn(result.position))


def test_a_quadratic_of_any_shape_needs_few_products():
    rng = np.random.default_rng(0)
    scales, centre = rng.uniform(1, 3, (4, 5)), rng.normal(size=(4, 5))
    points = []

    def value_fn(x):
        return float((scales * (x - centre) ** 2).sum() / 2)

    def derivatives_fn(x):
        points.append(x)
        return value_fn(x), scales * (x - centre), lambda direction: scales * direction

    result = newton_cg.minimise(value_fn, derivatives_fn, np.zeros((4, 5)))
    np.testing.assert_allclose(result.position, centre, atol=1e-12)
    assert len(points) < 10


def test_the_last_point_is_the_point_that_was_measured():
    value_fn, gradient_fn, _, derivatives_fn = logistic()
    for max_newton in (1, 3):
        result = newton_cg.minimise(value_fn, derivatives_fn, np.ones(8), max_newton=max_newton)
        assert result.value == value_fn(result.position)
        assert result.gradient_norm == np.linalg.norm(gradient_fn(result.position)) > 1e-6
    np.testing.assert_array_equal(newton_cg.minimise(value_fn, derivatives_fn, np.ones(8), max_newton=1).position, np.ones(8))


def test_full_newton_steps_that_overshoot_are_halved():
    """Newton's method diverges on log cosh from |x| > 1.09 with full steps."""

    def value_fn(x):
        return float(np.logaddexp(x, -x).sum())

    def derivatives_fn(x):
        return value_fn(x), np.tanh(x), lambda direction: direction / np.cosh(x) ** 2

    result = newton_cg.minimise(value_fn, derivatives_fn, np.array([3.0, -2.0]))
    np.testing.assert_allclose(result.position, 0, atol=1e-12)
    assert result.value == pytest.approx(2 * np.log(2), rel=1e-15)


def test_without_curvature_the_direction_is_that_of_the_gradient():
    """A linear function: conjugate gradients stop at once, and the position runs away downhill."""
    slope = np.array([3.0, -4.0])

    def derivatives_fn(x):
        return float(slope @ x), slope, np.zeros_like

    result = newton_cg.minimise(lambda x: float(slope @ x), derivatives_fn, np.zeros(2), max_newton=4)
    np.testing.assert_allclose(result.position, -3 * slope)
