"""Products with the tangent kernel, and its extremes, against the dense kernel in float64."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import models, ntk
from jaxbp.ntk import measures, products
from jaxbp.ops.convolution import conv_with

N, M, C = 7, 4, 3
RTOL = 1e-12


class Network(nn.Module):
    """A first layer, dense or a convolution of some formulation, batch normalisation, a skip, a head."""

    first: str
    stored: bool = True

    @nn.compact
    def __call__(self, x):
        if self.first == "dense":
            y = nn.Dense(4)(x.reshape(len(x), -1))
        else:
            y = nn.Conv(4, (3, 3), conv_general_dilated=conv_with(self.first))(x).mean((1, 2))
        y = nn.BatchNorm(use_running_average=self.stored)(y)
        return nn.Dense(C)(y + nn.tanh(nn.Dense(4)(y)))


X1, X2 = np.random.default_rng(0).normal(size=(N, 5, 5, 2)), np.random.default_rng(1).normal(size=(M, 5, 5, 2))


def gaussian(*shape, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def problem(first="dense", batch_norm="stored"):
    """(apply_fn, params, state)"""
    net = Network(first, batch_norm == "stored")
    shapes = jax.eval_shape(net.init, jax.random.key(0), X1)
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape)), shapes["params"])
    stats = jax.tree.map(lambda s: jnp.asarray(rng.uniform(0.5, 2, size=s.shape)), shapes["batch_stats"])
    network = models.from_linen(net)
    fn = models.with_batch_statistics(network) if batch_norm == "batch" else network.apply
    return fn, params, {"batch_stats": stats}


@functools.cache
def dense_kernel(first="dense"):
    """(N, N + M, C, C) in float64: the first set against both."""
    apply_fn, params, state = problem("xla" if first != "dense" else first)
    return np.asarray(ntk.empirical_ntk(apply_fn, params, X1, np.concatenate([X1, X2]), state=state))


def assert_is_product(found, kernel, vector):
    expected = np.einsum("ijkl,jl->ik", kernel, vector)
    np.testing.assert_allclose(found, expected, rtol=0, atol=RTOL * np.abs(expected).max())


CASES = [
    ("dense", None),
    ("dense", 3),
    ("dense", 100),
    ("vjp", None),
    ("vjp", 3),
]  # 3 divides neither set


@pytest.mark.first_cases(1)
@pytest.mark.parametrize("first,chunk_size", CASES)  # vjp: by the primitive jaxbp_conv
def test_products_are_those_of_the_dense_kernel(x64, first, chunk_size):
    apply_fn, params, state = problem(first)
    vector = gaussian(N + M, C, seed=3)
    for second, columns in ((X2, slice(N, None)), (None, slice(N))):
        matvec = products.ntk_vector_product(apply_fn, params, X1, second, state=state, chunk_size=chunk_size)
        assert_is_product(matvec(vector[columns]), dense_kernel(first)[:, columns], vector[columns])


@pytest.mark.slow
def test_whole_batches_are_right_for_batch_statistics(x64):
    apply_fn, params, state = problem(batch_norm="batch")
    kernel = np.asarray(ntk.empirical_ntk(apply_fn, params, X1, X2, state=state, coupled=True))
    vector = gaussian(M, C, seed=3)
    assert_is_product(products.ntk_vector_product(apply_fn, params, X1, X2, state=state)(vector), kernel, vector)
    for x1, x2 in ((X1, None), (X1[:1], X2)):
        with pytest.raises(ntk.BatchCouplingError, match="no chunk_size for its products"):
            products.ntk_vector_product(apply_fn, params, x1, x2, state=state, chunk_size=3)


def test_the_product_is_symmetric_and_not_negative(x64):
    apply_fn, params, state = problem()
    matvec = products.ntk_vector_product(apply_fn, params, X1, state=state)
    v, w = gaussian(N, C, seed=3), gaussian(N, C, seed=4)
    assert float(jnp.vdot(w, matvec(v))) == pytest.approx(float(jnp.vdot(v, matvec(w))), rel=1e-11)
    assert float(jnp.vdot(v, matvec(v))) > 0


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_extremes_against_eigh(x64, chunk_size):
    apply_fn, params, state = problem()
    values, vectors = np.linalg.eigh(np.asarray(measures.as_matrix(dense_kernel()[:, :N])))
    found = products.ntk_extremes(apply_fn, params, X1, jax.random.key(0), state=state, chunk_size=chunk_size, rtol=1e-9)
    for end, index in ((found.smallest, 0), (found.largest, -1)):
        assert end.converged
        assert end.value == pytest.approx(values[index], rel=1e-9, abs=1e-13 * values[-1])
        assert abs(vectors[:, index] @ np.asarray(end.vector)) == pytest.approx(1, abs=1e-6)


def test_products_inside_a_compiled_function(x64):
    apply_fn, params, state = problem()
    vector = gaussian(N, C, seed=3)

    def product(params, vector, chunk_size):
        return products.ntk_vector_product(apply_fn, params, X1, state=state, chunk_size=chunk_size)(vector)

    for chunk_size in (None, 3):
        found = jax.jit(product, static_argnums=2)(params, vector, chunk_size)
        assert_is_product(found, dense_kernel()[:, :N], vector)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_one_compilation_for_equal_shapes(chunk_size):
    traces = []

    def apply_fn(params, inputs):
        traces.append(inputs.shape)
        return jnp.tanh(inputs @ params)

    params, x = jnp.ones((2, C)), jnp.ones((6, 2))
    products.ntk_vector_product(apply_fn, params, x, chunk_size=chunk_size)(jnp.ones((6, C)))
    first = len(traces)
    matvec = products.ntk_vector_product(apply_fn, 2 * params, 3 * x, chunk_size=chunk_size)
    for scale in range(4):
        matvec(jnp.full((6, C), float(scale)))
    assert len(traces) <= first + 1  # the check of the output's shape


def test_misuse_is_refused():
    def apply_fn(params, inputs):
        return inputs @ params

    params, x = jnp.ones((2, C)), jnp.ones((5, 2))
    for message, call in {
        r"\(M, C\) = \(4, 3\), got \(5, 3\)": lambda: products.ntk_vector_product(apply_fn, params, x, x[:4])(x @ params),
        "chunk_size must be at least 1, got 0": lambda: products.ntk_vector_product(apply_fn, params, x, chunk_size=0),
        r"x1 must hold examples on its leading axis, got shape \(0, 2\)": lambda: products.ntk_vector_product(apply_fn, params, x[:0]),
        r"return logits \(N, C\), got shape \(5,\)": lambda: products.ntk_vector_product(lambda p, x: apply_fn(p, x)[:, 0], params, x),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
