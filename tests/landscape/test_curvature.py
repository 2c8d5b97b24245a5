"""Gauss-Newton matrices, parts of operators, eigenpairs, traces and sharpness against dense matrices."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import lineax
import numpy as np
import pytest
import scipy.sparse.linalg
from jax.flatten_util import ravel_pytree

from jaxbp import landscape
from jaxbp.landscape import sharpness
from jaxbp.losses import LOSSES

pytestmark = pytest.mark.usefixtures("x64")
N, C = 9, 3
NET = nn.Sequential([nn.Dense(5, param_dtype=float), jnp.tanh, nn.Dense(C, param_dtype=float)])
KEY = jax.random.key(3)


def apply_fn(params, inputs):
    return NET.apply({"params": params}, inputs)


@functools.cache
def problem():
    """Parameters, inputs, labels, logits (N, C), their Jacobian (N, C, P)."""
    rng = np.random.default_rng(0)
    inputs, labels = jnp.asarray(rng.normal(size=(N, 4))), jnp.asarray(rng.integers(0, C, N))
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), NET.init(KEY, inputs)["params"])
    flat, unravel = ravel_pytree(params)
    logits, jacobian = jax.jit(lambda p: (apply_fn(unravel(p), inputs), jax.jacobian(lambda q: apply_fn(unravel(q), inputs))(p)))(flat)
    return params, inputs, labels, np.asarray(logits), np.asarray(jacobian)


def loss_fn(params, inputs, labels):
    return LOSSES["cross_entropy"](apply_fn(params, inputs), labels)


@functools.cache
def hessian():
    params, inputs, labels, *_ = problem()
    operator = landscape.hessian(loss_fn, params, (inputs, labels))
    return operator, dense(operator)


def dense(operator):
    return np.asarray(jax.vmap(operator.matvec)(jnp.eye(operator.dimension)))


def softmax(logits):
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


@pytest.mark.parametrize("kind", ["exact", "sampled"])
@pytest.mark.first_cases(1)
def test_examples_are_sharded_over_a_mesh(kind):
    params, inputs, labels, *_ = problem()
    options = {"loss": "cross_entropy", "kind": kind, "key": KEY if kind == "sampled" else None}
    mesh = jax.make_mesh((2,), ("examples",))
    whole = landscape.gauss_newton(apply_fn, params, inputs[:8], labels[:8], **options)
    split = landscape.gauss_newton(apply_fn, params, inputs[:8], labels[:8], mesh=mesh, **options)
    vector = jnp.linspace(-1, 1, whole.dimension)
    np.testing.assert_allclose(split.matvec(vector), whole.matvec(vector), atol=1e-14)
    np.testing.assert_allclose(split.gradient, whole.gradient, atol=1e-15)
    assert len(split.matvec(vector).sharding.device_set) == 2
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(split.matvec.args))
    with pytest.raises(ValueError, match="9 examples do not divide over 2 devices"):
        landscape.gauss_newton(apply_fn, params, inputs, labels, mesh=mesh, **options)


def test_curvature_in_the_input():
    params, inputs, labels, *_ = problem()
    operator = landscape.hessian(lambda image, targets: loss_fn(params, image[None], targets), inputs[0], (labels[:1],))
    truth = jax.hessian(lambda image: loss_fn(params, image[None], labels[:1])[0])(inputs[0])
    np.testing.assert_allclose(dense(operator), truth, atol=1e-14)


def fisher_over_classes(loss):
    """The expectation over the model's labels of the gradients' outer products, class by class."""
    _, _, _, logits, jacobian = problem()
    if loss == "squared_error":
        return np.einsum("ncp,ncq->pq", jacobian, jacobian) / N
    chances = softmax(logits)
    total = 0
    for c in range(C):
        gradients = np.einsum("nk,nkp->np", chances - np.eye(C)[c], jacobian)
        total = total + np.einsum("n,np,nq->pq", chances[:, c], gradients, gradients)
    return total / N


@pytest.mark.first_cases(2)
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_the_exact_matrix_is_the_fisher_information_over_classes(loss, chunk_size):
    params, inputs, labels, *_ = problem()
    operator = landscape.gauss_newton(apply_fn, params, inputs, labels, loss=loss, chunk_size=chunk_size)
    np.testing.assert_allclose(dense(operator), fisher_over_classes(loss), atol=1e-12)
    if loss == "cross_entropy":
        np.testing.assert_allclose(operator.gradient, hessian()[0].gradient, rtol=1e-12)
        assert operator.loss == pytest.approx(hessian()[0].loss)


@pytest.mark.slow
def test_the_empirical_matrix_has_the_true_labels_and_the_sampled_one_the_models():
    params, inputs, labels, logits, jacobian = problem()
    gradients = np.einsum("nk,nkp->np", softmax(logits) - np.eye(C)[np.asarray(labels)], jacobian)
    empirical = landscape.gauss_newton(apply_fn, params, inputs, labels, loss="cross_entropy", kind="empirical")
    np.testing.assert_allclose(dense(empirical), gradients.T @ gradients / N, atol=1e-12)
    draw = functools.partial(landscape.gauss_newton, apply_fn, params, inputs, labels, kind="sampled")
    for loss in LOSSES:
        np.testing.assert_allclose(dense(draw(loss=loss, key=KEY)), dense(draw(loss=loss, key=KEY, chunk_size=4)), atol=1e-12)
        traces = [np.trace(dense(draw(loss=loss, key=key))) for key in jax.random.split(KEY, 60)]
        assert abs(np.mean(traces) - np.trace(fisher_over_classes(loss))) < 4 * np.std(traces) / 60**0.5


def test_wrong_kinds_and_keys_are_refused():
    params, inputs, labels, *_ = problem()
    with pytest.raises(ValueError, match="kind must be one of exact, sampled, empirical"):
        landscape.gauss_newton(apply_fn, params, inputs, labels, loss="cross_entropy", kind="true")
    for kind, key in (("sampled", None), ("exact", KEY)):
        with pytest.raises(ValueError, match="a key draws the labels"):
            landscape.gauss_newton(apply_fn, params, inputs, labels, loss="cross_entropy", kind=kind, key=key)
    with pytest.raises(ValueError, match="labels must lie from 0 to 2"):
        landscape.gauss_newton(apply_fn, params, inputs, labels + 1, loss="cross_entropy")


@pytest.mark.slow
def test_a_part_of_the_parameters_is_a_principal_submatrix():
    params, *_ = problem()
    operator, matrix = hessian()
    flags = jax.tree.map(lambda leaf: np.zeros(leaf.shape, bool), params)
    flags["layers_2"]["kernel"][0] = True
    by_mask, by_name = landscape.restrict(operator, params, flags), landscape.restrict(operator, params, "layers_0/")
    chosen = np.asarray(ravel_pytree(jax.tree.map(jnp.asarray, flags))[0])
    np.testing.assert_allclose(dense(by_mask), matrix[np.ix_(chosen, chosen)], atol=1e-12)
    first = np.arange(25)  # biases and kernel of the first layer come first
    np.testing.assert_allclose(dense(by_name), matrix[np.ix_(first, first)], atol=1e-12)
    moved = by_mask.unravel(by_mask.position + 1)
    np.testing.assert_allclose(moved["layers_2"]["kernel"][0], params["layers_2"]["kernel"][0] + 1)
    np.testing.assert_array_equal(moved["layers_0"]["kernel"], params["layers_0"]["kernel"])
    assert landscape.layers(params) == ("layers_0", "layers_2")
    spectra = landscape.block_spectra(operator, params, KEY, rtol=1e-6)
    values = np.linalg.eigvalsh(matrix[:25, :25])
    assert (spectra["layers_0"].smallest.value, spectra["layers_0"].largest.value) == pytest.approx((values[0], values[-1]), rel=1e-4)
    for wrong, message in (
        ("none", "no parameter is chosen"),
        ({"a": True}, "a pytree like params"),
        (jax.tree.map(jnp.ones_like, params), "booleans"),
    ):
        with pytest.raises(ValueError, match=message):
            landscape.restrict(operator, params, wrong)


@pytest.mark.parametrize("end", ["largest", "smallest", "magnitude"])
def test_eigenpairs_are_those_of_the_dense_matrix(end):
    operator, matrix = hessian()
    values = np.linalg.eigvalsh(matrix)
    order = {"largest": -values, "smallest": values, "magnitude": -np.abs(values)}[end].argsort()[:4]
    pairs = landscape.top_eigenpairs(operator.matvec, len(values), KEY, count=4, end=end, rtol=1e-6, dtype=float)
    np.testing.assert_allclose(pairs.values, values[order], atol=1e-8)
    vectors = np.asarray(pairs.vectors)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(4), atol=1e-10)
    np.testing.assert_allclose(np.linalg.norm(vectors @ matrix - pairs.values[:, None] * vectors, axis=1), pairs.residuals, atol=1e-10)
    assert pairs.converged.all()


def test_eigenvalues_of_higher_multiplicity_come_as_often_as_the_block_allows():
    spectrum = jnp.asarray([4.0] * 3 + [1.0] * 97)

    def values(block_size, count=3):
        return landscape.top_eigenpairs(lambda v: spectrum * v, 100, KEY, count=count, block_size=block_size, dtype=float).values

    np.testing.assert_allclose(values(3), [4, 4, 4], atol=1e-9)
    np.testing.assert_allclose(values(1, 2), [4, 1], atol=1e-9)
    with pytest.raises(ValueError, match="not finite"):
        landscape.top_eigenpairs(lambda v: v * jnp.nan, 5, KEY, count=1)


@pytest.mark.slow
def test_traces_diagonals_and_determinants_lie_within_their_errors():
    rng = np.random.default_rng(5)
    basis, _ = np.linalg.qr(rng.normal(size=(60, 60)))
    matrix = (basis * 0.7 ** np.arange(60)) @ basis.T
    product = jax.jit(lambda v: jnp.asarray(matrix) @ v)
    estimates = [landscape.trace(product, 60, key, num_products=16, dtype=float) for key in jax.random.split(KEY, 40)]
    scores = np.array([(e.value - np.trace(matrix)) / e.error for e in estimates])
    assert np.median(np.abs(scores)) < 1.5
    assert np.abs(np.mean([e.value for e in estimates]) - np.trace(matrix)) < 4 * np.std([e.value for e in estimates]) / 40**0.5
    plain = landscape.hutchinson_trace(product, 60, KEY, num_probes=16, dtype=float)
    assert np.mean([e.error for e in estimates]) < 0.25 * plain[1]
    low = landscape.trace(lambda v: jnp.asarray(basis[:, :3] @ (basis[:, :3].T @ v)), 60, KEY, num_products=16, dtype=float)
    assert low.value == pytest.approx(3, abs=1e-6)  # the range is found whole
    assert landscape.trace(product, 60, KEY, num_products=60, dtype=float) == (pytest.approx(np.trace(matrix)), 0.0, 60)
    found = landscape.diagonal(product, 60, KEY, num_products=400, dtype=float)
    assert np.abs((found.value - np.diag(matrix)) / found.error).max() < 5
    truth = np.linalg.slogdet(matrix + 0.1 * np.eye(60))[1]
    logarithm = landscape.log_determinant(product, 60, KEY, shift=0.1, num_probes=30, dtype=float)
    assert abs(logarithm.value - truth) < 4 * logarithm.error
    with pytest.raises(landscape.NotPositiveError, match="give a shift larger than"):
        landscape.log_determinant(lambda v: -product(v), 60, KEY, dtype=float)


def test_a_band_covers_the_density_of_many_probes():
    rng = np.random.default_rng(2)
    spectrum = jnp.asarray(rng.normal(size=300))
    grid = np.linspace(-2, 2, 9)
    density = landscape.spectral_density(lambda v: spectrum * v, 300, KEY, num_probes=6, num_steps=40, dtype=float)
    low, high = density.band(grid, 0.3)
    truth = np.exp(-0.5 * ((grid[:, None] - np.asarray(spectrum)) / 0.3) ** 2).mean(-1) / (0.3 * (2 * np.pi) ** 0.5)
    assert ((low <= truth) & (truth <= high)).mean() > 0.7
    assert (low <= density.evaluate(grid, 0.3)).all()
    with pytest.raises(ValueError, match="at least 2 probes"):
        landscape.SpectralDensity(density.nodes[:1], density.weights[:1]).band(grid, 0.3)


def test_solvers_of_other_packages_take_the_operator():
    operator, matrix = hessian()
    np.testing.assert_allclose(operator.as_scipy() @ np.eye(operator.dimension), matrix, atol=1e-12)
    largest = scipy.sparse.linalg.eigsh(operator.as_scipy(), k=1, which="LA", return_eigenvectors=False)
    assert largest[0] == pytest.approx(np.linalg.eigvalsh(matrix)[-1])
    np.testing.assert_allclose(operator.as_lineax().as_matrix(), matrix, atol=1e-12)
    assert lineax.is_symmetric(operator.as_lineax())


@pytest.mark.slow
def test_sharpness_is_traced_and_that_of_the_dense_matrix():
    params, inputs, labels, *_ = problem()
    _, matrix = hessian()
    data = (inputs, labels)

    @jax.jit
    def measures(params):
        return (
            sharpness.largest_eigenvalue(loss_fn, params, data, KEY, num_steps=43),
            sharpness.trace(loss_fn, params, data, KEY, num_probes=400),
            sharpness.ascent(loss_fn, params, data, radius=0.05),
            sharpness.sharp_directions(loss_fn, params, data, KEY, num_probes=400),
        )

    largest, trace, rise, directions = measures(params)
    assert largest == pytest.approx(np.linalg.eigvalsh(matrix)[-1], rel=1e-9)
    off = matrix - np.diag(np.diag(matrix))
    assert abs(trace - np.trace(matrix)) < 4 * (2 * (off**2).sum() / 400) ** 0.5  # the variance of a sign's estimate
    operator = hessian()[0]
    size = np.linalg.norm(operator.gradient)
    moved = operator.unravel(operator.position + 0.05 * operator.gradient / size)
    assert rise == pytest.approx(loss_fn(moved, *data).mean() - operator.loss)
    assert directions == pytest.approx(float(trace / largest), rel=1e-3)


@pytest.mark.parametrize(
    "measure",
    [
        lambda product, key: landscape.top_eigenpairs(product, 8, key, count=1, dtype=jnp.float64).values,
        lambda product, key: landscape.extreme_eigenvalues(product, jax.random.normal(key, (8,))).largest.value,
        lambda product, key: landscape.spectral_density(product, 8, key, dtype=jnp.float64).nodes,
        lambda product, key: landscape.trace(product, 8, key, num_products=4, dtype=jnp.float64).value,
        lambda product, key: landscape.trace(product, 8, key, num_products=8, dtype=jnp.float64).value,
        lambda product, key: landscape.diagonal(product, 8, key, dtype=jnp.float64).value,
        lambda product, key: landscape.log_determinant(product, 8, key, dtype=jnp.float64).value,
        lambda product, key: landscape.hutchinson_trace(product, 8, key, dtype=jnp.float64)[0],
    ],
)
def test_what_runs_outside_of_compiled_code_refuses_traced_operators_and_keys(measure):
    scales = jnp.arange(1.0, 9.0)
    for traced in (lambda scale: measure(lambda v: scale * scales * v, KEY), lambda scale: measure(lambda v: scales * v, as_key(scale))):
        with pytest.raises(ValueError, match=r"got a traced one.* use largest_eigenvalue and trace of jaxbp\.landscape\.sharpness"):
            jax.jit(traced)(2.0)


def as_key(number):
    return jax.random.fold_in(KEY, number.astype(int))
