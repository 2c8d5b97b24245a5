"""Lanczos, quadrature and trace against dense `numpy.linalg.eigvalsh` in float64."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

from jaxbp import landscape
from jaxbp.losses import cross_entropy

EPS = {np.float32: 2**-23, np.float64: 2**-52}
SIZES = (1, 2, 9, 21)  # few, so that little is compiled


def gaussian(size, seed=0, dtype=np.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(size=size), dtype)


@jax.jit
def multiply(matrix, v):
    return matrix @ v


def operator(matrix):
    matrix = jnp.asarray(matrix)
    return lambda v: multiply(matrix, v)


def rotated(spectrum, seed=0):
    """A dense symmetric matrix with this spectrum."""
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(spectrum),) * 2))[0]
    return (basis * spectrum) @ basis.T


def spectrum_of(kind, size, rng):
    return {
        "random": rng.normal(size=size),
        "repeated": rng.choice([-1.0, 0.5, 2.0], size),
        "clustered": 1 + 1e-9 * rng.normal(size=size),
        "identity": np.ones(size),
        "one": np.eye(size)[0],
        "zero": np.zeros(size),
        "huge": 1e15 * rng.normal(size=size),
        "wide": np.geomspace(1e-12, 1, size) * rng.choice([-1, 1], size),
    }[kind]


KINDS = ("random", "repeated", "clustered", "identity", "one", "zero", "huge", "wide")
matrices = st.tuples(st.sampled_from(KINDS), st.sampled_from(SIZES), st.booleans(), st.integers(0, 2**32 - 1), st.integers(1, 21))


# Extreme eigenvalues


@pytest.mark.slow
@pytest.mark.parametrize("width,depth", [(8, 1), pytest.param(20, 2, marks=pytest.mark.slow)])  # 323 and 1,223 parameters
def test_extremes_of_a_network_against_eigh(x64, width, depth):
    net = nn.Sequential([f for _ in range(depth) for f in (nn.Dense(width), nn.relu)] + [nn.Dense(3)])
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(40, 36)), rng.integers(0, 3, 40)
    shapes = jax.eval_shape(net.init, jax.random.key(0), inputs)
    params = jax.tree.map(lambda s: rng.normal(size=s.shape) * s.shape[0] ** -0.5, shapes)

    def loss_fn(params, inputs, labels):
        return cross_entropy(net.apply(params, inputs), labels)

    flat, unravel = ravel_pytree(params)
    assert flat.size <= 3000
    dense = np.asarray(jax.jit(jax.hessian(lambda p: loss_fn(unravel(p), inputs, labels).mean()))(flat))
    eigenvalues, vectors = np.linalg.eigh(dense)
    hessian = landscape.hessian(loss_fn, params, (jnp.asarray(inputs), jnp.asarray(labels)))
    result = landscape.extreme_eigenvalues(hessian.matvec, gaussian(flat.size), rtol=1e-8)
    for end, index in ((result.smallest, 0), (result.largest, -1)):
        assert end.converged
        assert end.value == pytest.approx(eigenvalues[index], rel=1e-8)
        assert abs(vectors[:, index] @ np.asarray(end.vector)) == pytest.approx(1, abs=1e-6)
    assert result.num_products < 150


def test_the_spectrum_on_which_shifted_power_iteration_fails(x64):
    # paper.md: from -0.05 to 50, where 500 shifted power steps report +0.0007
    spectrum = jnp.concatenate([jnp.array([50.0, -0.05]), jnp.linspace(0.0, 1.0, 298)])
    result = landscape.extreme_eigenvalues(lambda v: spectrum * v, gaussian(300), rtol=1e-6, max_products=60)
    assert result.num_products <= 62
    assert result.smallest.converged
    assert result.smallest.value == pytest.approx(-0.05, abs=1e-7)
    assert result.largest.value == pytest.approx(50, rel=1e-12)


@given(matrices)
@settings(max_examples=60, deadline=None)
def test_intervals_contain_an_eigenvalue_and_bounds_hold(case):
    kind, size, diagonal, seed, max_products = case
    spectrum = spectrum_of(kind, size, np.random.default_rng(seed))
    with jax.enable_x64(True):
        matrix = np.diag(spectrum) if diagonal else rotated(spectrum, seed)
        result = landscape.extreme_eigenvalues(operator(matrix), gaussian(size, seed), max_products=max_products)
    rounding = 100 * EPS[np.float64] * np.abs(spectrum).max()
    for end in result[:2]:
        low, high = end.interval
        assert ((spectrum >= low - rounding) & (spectrum <= high + rounding)).any()
        assert spectrum.min() - rounding <= end.value <= spectrum.max() + rounding
        assert np.linalg.norm(end.vector) == pytest.approx(1, abs=1e-6)
    assert result.smallest.bound <= spectrum.min() + rounding
    assert result.largest.bound >= spectrum.max() - rounding
    assert result.num_products <= min(max_products, size) + 2


@pytest.mark.slow
@given(matrices)
@settings(max_examples=40, deadline=None)
def test_the_whole_krylov_space_gives_the_ends_in_both_precisions(case):
    kind, size, diagonal, seed, _ = case
    spectrum = spectrum_of(kind, size, np.random.default_rng(seed))
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(dtype is np.float64):
            matrix = (np.diag(spectrum) if diagonal else rotated(spectrum, seed)).astype(dtype)
            result = landscape.extreme_eigenvalues(operator(matrix), gaussian(size, seed, dtype), rtol=0.0, atol=0.0)
        rounding = 100 * EPS[dtype] * np.abs(spectrum).max()
        assert result.smallest.value == pytest.approx(spectrum.min(), abs=rounding)
        assert result.largest.value == pytest.approx(spectrum.max(), abs=rounding)
        assert result.smallest.residual <= rounding
        assert result.largest.vector.dtype == dtype


@pytest.mark.slow
def test_bound_holds_as_often_as_promised_and_is_not_idle(x64):
    # A gap at the top hides the largest eigenvalue from short iterations: 1 of 300 starts sees nothing of it.
    spectrum = jnp.append(jnp.linspace(0.0, 1.0, 299), 1.1)
    missed = 0
    for seed in range(100):
        result = landscape.extreme_eigenvalues(lambda v: spectrum * v, gaussian(300, seed), rtol=0, max_products=20, confidence=0.5)
        missed += result.largest.bound < 1.1 or result.smallest.bound > 0
        assert result.largest.value < result.largest.bound < 2
    assert missed <= 50 + 4 * 5  # binomial, 4 sigma


def test_bound_is_the_root_of_its_polynomial(x64):
    # For every k, prod(beta) is the norm of p(A) start, p the monic characteristic polynomial of Lanczos' matrix, which
    # is the least that any monic polynomial of degree k attains: a least-squares problem.
    spectrum, start, confidence, degree = np.linspace(-1, 1, 21), np.asarray(gaussian(21)), 0.9, 8
    powers = np.vander(spectrum, degree + 1, increasing=True) * (start / np.linalg.norm(start))[:, None]
    coefficients = np.append(-np.linalg.lstsq(powers[:, :-1], powers[:, -1])[0], 1.0)
    polynomial = np.polynomial.Polynomial(coefficients)
    component = 0.05 / math.sqrt(2 * 21 / math.pi)  # each end may fail with 5 %
    expected = (polynomial - np.linalg.norm(powers @ coefficients) / component).roots()
    expected = expected[np.abs(expected.imag) < 1e-9].real
    result = landscape.extreme_eigenvalues(operator(np.diag(spectrum)), start, rtol=0, max_products=degree, confidence=confidence)
    assert result.largest.bound == pytest.approx(expected.max(), rel=1e-6)
    assert result.smallest.bound == pytest.approx(expected.min(), rel=1e-6)


def test_value_and_residual_by_hand(x64):
    # One product with diag(3, 1) from (1, 1) / sqrt 2: A v = (3, 1) / sqrt 2, of which 2 v is left with (1, -1) / sqrt 2.
    result = landscape.extreme_eigenvalues(operator(np.diag([3.0, 1.0])), jnp.ones(2), max_products=1)
    assert result.smallest.value == result.largest.value == pytest.approx(2)
    assert result.smallest.residual == pytest.approx(1)
    assert result.largest.interval == pytest.approx((1, 3))
    assert (result.largest.converged, result.largest.confidence, result.num_products) == (False, 0.999, 3)


def test_error_by_hand(x64):
    # Two products span the plane of (1, 1, 1) and A (1, 1, 1); its Ritz values are those of the matrix projected on the plane.
    matrix, start = np.diag([10.0, 1.0, 0.0]), np.ones(3)
    plane = np.linalg.qr(np.stack([start, matrix @ start], 1))[0]
    ritz, vectors = np.linalg.eigh(plane.T @ matrix @ plane)
    pairs = plane @ vectors
    residuals = np.linalg.norm(matrix @ pairs - pairs * ritz, axis=0)
    result = landscape.extreme_eigenvalues(operator(matrix), jnp.asarray(start), max_products=2)
    assert result.largest.error == pytest.approx(residuals[1] ** 2 / (ritz[1] - ritz[0] - residuals[0]))
    assert result.smallest.error == pytest.approx(residuals[0] ** 2 / (ritz[1] - residuals[1] - ritz[0]))
    assert max(end.error / end.residual for end in result[:2]) < 0.1
    one = landscape.extreme_eigenvalues(operator(matrix), jnp.asarray(start), max_products=1)
    assert one.largest.error == one.largest.residual  # of a single Ritz value there is no gap


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_need_fewer_products_and_errors_hold(dtype):
    rng = np.random.default_rng(5)
    spectrum = np.concatenate([[50, -0.05], np.linspace(0, 1, 198)]), np.concatenate([5 * rng.exponential(size=10), rng.normal(size=190)])
    with jax.enable_x64(dtype is np.float64):
        for values in spectrum:
            start, diagonal = gaussian(200, 3, dtype), jnp.asarray(values, dtype)
            exact, quick = (
                landscape.extreme_eigenvalues(lambda v, d=diagonal: d * v, start, accuracy=accuracy) for accuracy in ("vectors", "values")
            )
            assert quick.num_products < exact.num_products
            for end, truth in ((quick.smallest, values.min()), (quick.largest, values.max())):
                assert end.converged
                rounding = 4 * EPS[dtype] * np.abs(values).max()
                assert abs(end.value - truth) <= end.error + rounding
                assert end.error <= 1e-3 * abs(truth) + 8 * rounding
            assert max(end.residual / abs(end.value) for end in quick[:2]) > 1e-3  # which is not within the tolerance


@pytest.mark.parametrize("accuracy", ["vectors", "values"])
def test_products_are_counted_and_end_with_the_first_step_that_will_do(x64, accuracy):
    # Values alone take no product of their own for residuals, which are right nevertheless.
    rng = np.random.default_rng(6)
    diagonal = jnp.asarray(np.concatenate([[50, -0.05], rng.uniform(0, 1, 298)]))
    calls = []

    def matvec(v):
        calls.append(v)
        return diagonal * v

    result = landscape.extreme_eigenvalues(matvec, gaussian(300, 4), accuracy=accuracy)
    assert result.num_products == len(calls)
    for end in result[:2]:
        assert end.converged
        assert end.residual == pytest.approx(float(jnp.linalg.norm(diagonal * end.vector - end.value * end.vector)), abs=1e-12)
    most = result.num_products - (2 if accuracy == "vectors" else 0)
    assert most % 4  # so that looking at every fourth step alone would have gone on
    cut = landscape.extreme_eigenvalues(matvec, gaussian(300, 4), accuracy=accuracy, max_products=most - 1)
    assert not (cut.smallest.converged and cut.largest.converged)


def test_an_unknown_accuracy_is_refused():
    with pytest.raises(ValueError, match="accuracy must be one of vectors, values, got 'value'"):
        landscape.extreme_eigenvalues(lambda v: v, gaussian(3, dtype=np.float32), accuracy="value")


def test_an_iteration_cut_short_says_so(x64):
    spectrum = jnp.linspace(-1.0, 1.0, 300)
    result = landscape.extreme_eigenvalues(lambda v: spectrum * v, gaussian(300), max_products=10)
    assert (result.smallest.converged, result.largest.converged, result.num_products) == (False, False, 12)
    assert result.largest.residual > 1e-3


def test_tolerances_stop_the_iteration(x64):
    spectrum = jnp.concatenate([jnp.array([1000.0, -1e-3]), jnp.linspace(0.0, 1.0, 298)])
    loose, tight = (landscape.extreme_eigenvalues(lambda v: spectrum * v, gaussian(300), rtol=1e-3, atol=atol) for atol in (1e-3, None))
    assert loose.num_products < tight.num_products
    assert loose.smallest.residual <= 1e-3 * 1000 + 1e-6
    assert tight.smallest.residual <= 1e-3 * 1e-3 + 32 * EPS[np.float64] * 1000
    assert tight.smallest.value == pytest.approx(-1e-3, rel=1e-3)


def test_the_ends_of_minus_an_operator_are_its_ends_turned_about(x64):
    # The same Krylov spaces: what is converged, and how soon, must not depend on the sign of the spectrum.
    spectrum = jnp.concatenate([jnp.array([1000.0]), jnp.linspace(0.0, 1.0, 299)])
    plus, minus = (landscape.extreme_eigenvalues(lambda v, s=sign: s * spectrum * v, gaussian(300), rtol=0, atol=1e-6) for sign in (1, -1))
    assert minus.num_products == plus.num_products
    rounding = 1e4 * EPS[np.float64]  # ten times the norm's
    assert minus.smallest.value == pytest.approx(-plus.largest.value, abs=rounding)
    assert minus.largest.value == pytest.approx(-plus.smallest.value, abs=rounding)
    assert minus.largest.converged
    assert plus.smallest.converged


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_operator_that_is_not_finite_comes_back_as_a_value(bad):
    result = landscape.extreme_eigenvalues(lambda v: bad * v, gaussian(21, dtype=np.float32))
    assert math.isnan(result.smallest.value)
    assert result.largest.residual == math.inf
    assert not result.largest.converged
    density = landscape.spectral_density(lambda v: bad * v, 21, jax.random.key(0), num_probes=2, num_steps=5)
    assert np.isnan(density.nodes).all()
    assert not math.isfinite(landscape.hutchinson_trace(lambda v: bad * v, 21, jax.random.key(0), num_probes=2)[0])


def test_misuse_is_refused():
    start = jnp.ones(3)
    for message, call in {
        r"vector .P,., got shape .3, 1.: draw one: jax.random.normal.key, .P,..": lambda: landscape.extreme_eigenvalues(
            lambda v: v, start[:, None]
        ),
        r"got shape .*: draw one: jax.random.normal.key, .3,..": lambda: landscape.extreme_eigenvalues(lambda v: v, 3),
        "got an array key.*: draw one": lambda: landscape.extreme_eigenvalues(lambda v: v, jax.random.key(0)),
        "finite and not zero, got a largest entry of 0": lambda: landscape.extreme_eigenvalues(lambda v: v, 0 * start),
        "finite and not zero, got a largest entry of nan": lambda: landscape.extreme_eigenvalues(lambda v: v, math.nan * start),
        "real numbers, got complex64": lambda: landscape.extreme_eigenvalues(lambda v: v, 1j * start),
        "max_products must be at least 1": lambda: landscape.extreme_eigenvalues(lambda v: v, start, max_products=0),
        "at least 1, got 0 and": lambda: landscape.spectral_density(lambda v: v, 3, jax.random.key(0), num_probes=0),
        "at least 2 for a standard error": lambda: landscape.hutchinson_trace(lambda v: v, 3, jax.random.key(0), num_probes=1),
        "width must be positive": lambda: landscape.SpectralDensity(np.ones((1, 1)), np.ones((1, 1))).evaluate(np.ones(1), 0.0),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


# Spectral density and trace


@pytest.mark.first_cases(1)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_density_has_the_moments_of_the_spectrum(dtype):
    spectrum = np.random.default_rng(0).gamma(1.0, size=300) - 0.1
    num_probes = 40
    with jax.enable_x64(dtype is np.float64):
        result = landscape.spectral_density(
            operator(rotated(spectrum).astype(dtype)),
            300,
            jax.random.key(1),
            num_probes=num_probes,
            num_steps=12,
            dtype=dtype,
        )
    np.testing.assert_allclose(result.weights.sum(1), 1, atol=1e-12)
    for power in (1, 2, 3):
        moments = (result.weights * result.nodes**power).sum(1)
        error = moments.std(ddof=1) / math.sqrt(num_probes)
        assert abs(moments.mean() - (spectrum**power).mean()) < 4 * error  # sigma
        assert error < 0.1 * (spectrum**power).mean()


def test_density_with_all_steps_has_the_eigenvalues_as_nodes(x64):
    spectrum = np.random.default_rng(2).normal(size=21)
    matrix = rotated(spectrum)
    result = landscape.spectral_density(operator(matrix), 21, jax.random.key(0), num_probes=2, num_steps=99, dtype=float)
    assert result.nodes.shape == (2, 21)
    np.testing.assert_allclose(result.nodes, np.tile(np.sort(spectrum), (2, 1)), atol=1e-12)


def test_density_of_few_eigenvalues_leaves_steps_unused(x64):
    spectrum = np.repeat([-1.0, 2.0], [30, 10])
    result = landscape.spectral_density(operator(np.diag(spectrum)), 40, jax.random.key(0), num_probes=50, num_steps=9, dtype=float)
    np.testing.assert_allclose(result.nodes[:, :2], np.tile([-1.0, 2.0], (50, 1)), atol=1e-12)
    assert not result.weights[:, 2:].any()
    # weight of 2 is Beta(5, 15): mean 1/4, variance 1/112
    assert result.weights[:, 1].mean() == pytest.approx(0.25, abs=4 * math.sqrt(1 / 112 / 50))


def test_smoothed_density_integrates_to_one_and_is_a_gaussian_around_one_node():
    nodes, weights = np.array([[0.0, 3.0], [1.0, 0.0]]), np.array([[0.25, 0.75], [1.0, 0.0]])
    density = landscape.SpectralDensity(nodes, weights)
    grid = np.linspace(-10, 13, 4001)
    values = density.evaluate(grid, width=0.5)
    assert np.trapezoid(values, grid) == pytest.approx(1, abs=1e-9)
    assert np.trapezoid(values * grid, grid) == pytest.approx((0.75 * 3 + 1) / 2, abs=1e-9)
    peak = 0.5 * 0.75 / (0.5 * math.sqrt(2 * math.pi))  # the others are 4 and 6 widths away
    assert density.evaluate(np.array([3.0]), width=0.5)[0] == pytest.approx(peak, rel=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_trace_within_its_error(dtype):
    matrix = np.random.default_rng(0).normal(size=(60, 60))
    matrix = (matrix + matrix.T + 5 * np.eye(60)).astype(dtype)
    with jax.enable_x64(dtype is np.float64):
        mean, error = landscape.hutchinson_trace(operator(matrix), 60, jax.random.key(3), num_probes=400, dtype=dtype)
    off_diagonal = matrix - np.diag(np.diag(matrix))
    expected = math.sqrt(2 * (off_diagonal**2).sum() / 400)  # Hutchinson: variance 2 sum of squares off the diagonal
    assert error == pytest.approx(expected, rel=4 / math.sqrt(2 * 400))
    assert abs(mean - np.trace(matrix)) < 4 * expected


def test_the_error_of_a_trace_is_that_of_the_mean_of_its_probes(x64):
    matrix, probes = rotated(np.arange(4.0)), []
    mean, error = landscape.hutchinson_trace(
        lambda v: probes.append(np.asarray(v)) or matrix @ v, 4, jax.random.key(0), num_probes=3, dtype=float
    )
    values = np.array([v @ matrix @ v for v in probes])
    assert mean == pytest.approx(values.mean())
    assert error == pytest.approx(math.sqrt(((values - values.mean()) ** 2).sum() / 2 / 3))  # of 3 probes, 2 free


def test_trace_of_a_diagonal_is_exact():
    spectrum = jnp.arange(5.0)
    assert landscape.hutchinson_trace(lambda v: spectrum * v, 5, jax.random.key(0), num_probes=3) == (10.0, 0.0)


# Scale, and what may have been missed


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-10, 1.0, 1e20, 1e30])
def test_float32_operators_of_every_scale(scale):
    spectrum = jnp.float32(scale) * jnp.arange(1.0, 10.0)
    result = landscape.extreme_eigenvalues(lambda v: multiply(jnp.diag(spectrum), v), gaussian(9, dtype=np.float32))
    for end, expected in ((result.smallest, 1.0), (result.largest, 9.0)):
        assert end.converged
        assert (end.value / scale, end.bound / scale) == pytest.approx((expected, expected), rel=1e-5)
        assert end.residual < 1e-5 * scale * 9
    density = landscape.spectral_density(lambda v: multiply(jnp.diag(spectrum), v), 9, jax.random.key(0), num_probes=1)
    np.testing.assert_allclose(density.nodes[0] / scale, np.arange(1.0, 10.0), rtol=1e-4)
    small = landscape.extreme_eigenvalues(lambda v: spectrum * v, jnp.float32(1e-30) * gaussian(9, dtype=np.float32))
    assert small.largest.value == pytest.approx(9 * scale, rel=1e-5)


def test_fewer_directions_than_stated_are_missed(x64):
    # Ten steps see little of 5 eigenvalues of -0.1 among 300: at a confidence of 50 % the bound for k of them fails for at most half of the
    # starts, and the more directions there are, the nearer it lies.
    spectrum = jnp.concatenate([jnp.full(5, -0.1), jnp.linspace(0.0, 1.0, 295)])
    bounds = []
    for seed in range(40):
        result = landscape.extreme_eigenvalues(lambda v: spectrum * v, gaussian(300, seed), rtol=0, max_products=10)
        bounds.append([result.excluded_below(k, 0.5) for k in (1, 5, 50)])
        assert result.excluded_below(1, 0.9995) == pytest.approx(result.smallest.bound, rel=1e-3)  # two ends share 0.1 %
    one, five, fifty = np.array(bounds).T
    assert (one < five).all()
    assert (five < fifty).all()
    assert (five > -0.1).sum() <= 20 + 4 * 3.2  # binomial, 4 sigma
    assert (five > -0.11).all()  # not idle: close to the eigenvalue
    with pytest.raises(ValueError, match="from 1 to 300"):
        result.excluded_below(301)


def test_a_density_takes_a_list_as_grid():
    density = landscape.SpectralDensity(np.zeros((1, 1)), np.ones((1, 1)))
    assert density.evaluate([0.0, 1.0], 1.0)[0] == pytest.approx(1 / math.sqrt(2 * math.pi))
    with pytest.raises(ValueError, match=r"grid must be a vector of points, got shape \(1, 2\)"):
        density.evaluate([[0.0, 1.0]], 0.1)
