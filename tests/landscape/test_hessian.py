"""Hessian products against `jax.hessian` of the whole loss, which shares no code with them."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType

from jaxbp import landscape, ntk
from jaxbp.checks import BatchCouplingError
from jaxbp.losses import LOSSES
from jaxbp.ops.convolution import conv_with

NUM_EXAMPLES, NUM_CLASSES = 14, 3
pytestmark = pytest.mark.usefixtures("x64")


class Conv(nn.Module):
    formulation: str

    @nn.compact
    def __call__(self, x):
        convolve = conv_with(self.formulation)
        x = jnp.tanh(nn.Conv(3, (3, 3), 2, param_dtype=float, conv_general_dilated=convolve)(x))
        return nn.Dense(NUM_CLASSES, param_dtype=float)(x.reshape(len(x), -1))


NETS = {
    "tanh": nn.Sequential([nn.Dense(6, param_dtype=float), jnp.tanh, nn.Dense(NUM_CLASSES, param_dtype=float)]),
    "relu": nn.Sequential([nn.Dense(6, param_dtype=float), nn.relu, nn.Dense(NUM_CLASSES, param_dtype=float)]),
    "conv auto": Conv("auto"),
    "conv xla": Conv("xla"),
}


@functools.cache
def problem(net="tanh", loss="cross_entropy", dtype=np.float64):
    """(loss_fn, params, data, value, gradient and dense Hessian of the mean loss)."""
    module, rng = NETS[net], np.random.default_rng(1)
    inputs = rng.normal(size=(NUM_EXAMPLES, *((5, 5, 2) if net.startswith("conv") else (4,))))
    labels = rng.integers(0, NUM_CLASSES, NUM_EXAMPLES)
    shapes = jax.eval_shape(module.init, jax.random.key(0), inputs)["params"]
    params = jax.tree.map(lambda s: rng.normal(size=s.shape), shapes)

    def loss_fn(params, inputs, labels):
        return LOSSES[loss](module.apply({"params": params}, inputs), labels)

    def mean_loss(flat):
        return loss_fn(unravel(flat), inputs, labels).mean()

    flat, unravel = ravel_pytree(params)
    reference = jax.jit(lambda p: (*jax.value_and_grad(mean_loss)(p), jax.hessian(mean_loss)(p)))(flat)
    params = jax.tree.map(lambda p: jnp.asarray(p.astype(dtype)), params)
    data = (jnp.asarray(inputs.astype(dtype)), jnp.asarray(labels))
    return loss_fn, params, data, *map(np.asarray, reference)


def vector(operator, seed=2):
    return np.random.default_rng(seed).normal(size=operator.dimension).astype(operator.position.dtype)


@pytest.mark.first_cases(1)
@pytest.mark.parametrize(
    "net,chunk_size", [pytest.param("conv auto", 4, marks=pytest.mark.slow), *(("tanh", size) for size in (None, 1, 4, 7, 13, 50))]
)
def test_products_gradient_and_loss_do_not_depend_on_chunks(net, chunk_size):  # N = 14: dividing or not, more than N
    loss_fn, params, data, value, gradient, dense = problem(net)
    operator = landscape.hessian(loss_fn, params, data, chunk_size=chunk_size)
    v = vector(operator)
    np.testing.assert_allclose(operator.matvec(v), v @ dense, atol=1e-13 * np.abs(dense).max() * operator.dimension)
    np.testing.assert_allclose(operator.loss, value, rtol=1e-14)
    np.testing.assert_allclose(operator.gradient, gradient, atol=1e-15 * operator.dimension)
    jax.tree.map(np.testing.assert_array_equal, operator.unravel(operator.position), params)


@pytest.mark.first_cases(1)
@pytest.mark.parametrize("net,loss", [*((net, "cross_entropy") for net in NETS), ("tanh", "squared_error")])
def test_products_are_those_of_the_dense_hessian(net, loss):
    loss_fn, params, data, *_, dense = problem(net, loss)
    operator = landscape.hessian(loss_fn, params, data)
    columns = jax.vmap(operator.matvec)(np.eye(operator.dimension))
    np.testing.assert_allclose(columns, dense, atol=1e-13 * np.abs(dense).max())


@pytest.mark.parametrize("chunk_size", [None, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_float32_stays_float32_and_is_close(chunk_size):
    *_, dense = problem()
    loss_fn, params, data, *_ = problem(dtype=np.float32)
    operator = landscape.hessian(loss_fn, params, data, chunk_size=chunk_size)
    v = vector(operator)
    product = operator.matvec(v)
    assert product.dtype == operator.gradient.dtype == operator.loss.dtype == np.float32
    np.testing.assert_allclose(product, v @ dense, atol=1e-5)  # 51 terms below 1 of epsilon 1e-7


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_examples_are_sharded_over_a_mesh(axis_type):
    loss_fn, params, data, *_, dense = problem()
    mesh = jax.make_mesh((2,), ("examples",), axis_types=(axis_type,))
    operator = landscape.hessian(loss_fn, params, data, mesh=mesh)
    v = vector(operator)
    product = operator.matvec(v)
    np.testing.assert_allclose(product, v @ dense, atol=1e-13)
    assert len(product.sharding.device_set) == 2
    kept = jax.tree.leaves(operator.matvec.args)  # activations and the like
    assert any(not array.sharding.is_fully_replicated for array in kept)
    extremes = landscape.extreme_eigenvalues(operator.matvec, v)
    assert extremes.largest.value == pytest.approx(np.linalg.eigvalsh(dense)[-1], rel=1e-3)


@pytest.mark.parametrize("chunk_size", [None, 5])
@pytest.mark.first_cases(1)
def test_loss_and_gradient_alone(chunk_size):
    loss_fn, params, data, value, gradient, _ = problem()
    result = landscape.loss_and_gradient(loss_fn, params, data, chunk_size=chunk_size)
    np.testing.assert_allclose(result[0], value, rtol=1e-14)
    np.testing.assert_allclose(result[1], gradient, atol=1e-15 * len(gradient))


def test_chunks_bound_the_memory():
    width, num_examples = 64, 4096
    data = (jax.ShapeDtypeStruct((num_examples, 8), float),)
    params = {"a": jax.ShapeDtypeStruct((8, width), float), "b": jax.ShapeDtypeStruct((width,), float)}

    def loss_fn(params, x):
        return jnp.tanh(x @ params["a"]) @ params["b"]

    def temporary_bytes(chunk_size):
        def product(params, data, vector):
            return landscape.hessian(loss_fn, params, data, chunk_size=chunk_size).matvec(vector)

        vector = jax.ShapeDtypeStruct((9 * width,), float)
        return jax.jit(product).lower(params, data, vector).compile().memory_analysis().temp_size_in_bytes

    hidden = 8 * num_examples * width  # bytes of one layer's activations
    assert temporary_bytes(None) > hidden
    assert temporary_bytes(128) < hidden / 4  # a chunk holds 1 / 32 of each of its few arrays


def test_a_second_point_and_every_further_product_reuse_what_was_compiled():
    loss_fn, params, data, *_ = problem()
    traces = 0

    def counted(params, inputs, labels):
        nonlocal traces
        traces += 1
        return loss_fn(params, inputs, labels)

    points = params, jax.tree.map(jnp.negative, params)
    for chunk_size in (None, 7):
        counts = []
        for point in points:
            operator = landscape.hessian(counted, point, data, chunk_size=chunk_size)
            operator.matvec(operator.gradient)
            operator.matvec(operator.position)
            counts.append(traces)
        assert counts[0] == counts[1]


def test_losses_that_are_not_finite_come_back_as_values():
    def loss_fn(params, x):
        return jnp.log(x @ params)

    operator = landscape.hessian(loss_fn, -jnp.ones(2), (jnp.ones((3, 2)),))
    assert jnp.isnan(operator.loss)
    assert jnp.isfinite(operator.matvec(jnp.ones(2))).all()  # the derivative of 1 / z is fine at z < 0


def test_misuse_is_refused():
    loss_fn, params, data, *_ = problem()
    mesh = jax.make_mesh((2,), ("examples",), axis_types=(AxisType.Auto,))
    for message, call in {
        "share their leading axis, got lengths .13, 14.": lambda: landscape.hessian(loss_fn, params, (data[0], data[1][1:])),
        "must hold examples on its leading axis": lambda: landscape.hessian(loss_fn, params, (data[0][:0], data[1][:0])),
        "chunk_size must be at least 1, got 0": lambda: landscape.hessian(loss_fn, params, data, chunk_size=0),
        "not both": lambda: landscape.hessian(loss_fn, params, data, chunk_size=7, mesh=mesh),
        "13 examples do not divide": lambda: landscape.hessian(loss_fn, params, jax.tree.map(lambda a: a[1:], data), mesh=mesh),
        r"one loss an example, shape \(14,\), got \(\)": lambda: landscape.hessian(lambda *args: loss_fn(*args).mean(), params, data),
        r"one loss an example, shape \(2,\), got \(\)": lambda: landscape.hessian(
            lambda *args: loss_fn(*args).mean(), params, data, chunk_size=5
        ),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_arguments_of_other_kinds_are_refused():
    x, y, params = jnp.ones((6, 4)), jnp.zeros(6, int), {"k": jnp.ones((4, 3))}

    def loss_fn(params, x, *rest):
        return ((x @ params["k"]) ** 2).sum(-1)

    operator = landscape.hessian(loss_fn, params, (x.tolist(), y.tolist()))  # lists are arrays
    assert operator.dimension == 12
    options = {"radii": (0.1,), "step_size": 0.1}
    for message, call in {
        "data must be a tuple of arrays with the examples first, got dict": lambda: landscape.hessian(loss_fn, params, {"x": x, "y": y}),
        "tuple of arrays with the examples first, got ArrayImpl": lambda: landscape.hessian(loss_fn, params, x),
        "a number goes into a closure": lambda: landscape.hessian(loss_fn, params, (x, y, jnp.float32(0.1))),
        r"data\[1\] must be one array, got NoneType": lambda: landscape.hessian(loss_fn, params, (x, None)),
        r"vector \(12,\), got dict: .*ravel_pytree": lambda: operator.matvec(params),
        r"vector \(12,\), got shape \(4, 3\)": lambda: operator.matvec(params["k"]),
        r"got int\d+ at \['step'\]: pass it as state": lambda: landscape.hessian(loss_fn, {**params, "step": jnp.int32(7)}, (x, y)),
        r"got complex\d+": lambda: landscape.probe(loss_fn, {"k": 1j * params["k"]}, (x, y), jax.random.key(0), **options),
        "got bool": lambda: landscape.losses_at(loss_fn, {"k": jnp.ones((4, 3), bool)}, (x, y), jnp.zeros((1, 12))),
        "got bfloat16": lambda: landscape.loss_and_gradient(loss_fn, {"k": jnp.ones((4, 3), jnp.bfloat16)}, (x, y)),
        "examples first, got str": lambda: landscape.losses_at(loss_fn, params, "xy", jnp.zeros((1, 12))),
        "key must be one random key": lambda: landscape.probe(loss_fn, params, (x, y), 0, **options),
        "not zero": lambda: landscape.probe(loss_fn, params, (x, y), jax.random.key(0), direction=jnp.zeros(12), **options),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_chunks_refuse_coupled_examples():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4)))

    def loss_fn(params, x):
        h = x @ params
        return (((h - h.mean(0)) / jnp.sqrt(h.var(0) + 1e-3)) ** 3).sum(-1)  # batch statistics

    params = jnp.asarray(np.random.default_rng(1).normal(size=(4, 2)))
    whole = landscape.hessian(loss_fn, params, (x,))
    assert whole.loss == pytest.approx(float(loss_fn(params, x).mean()))
    for data in (x, x.at[7].set(x[0]), x.at[1].set(x[0])):
        for call in (landscape.hessian, landscape.loss_and_gradient):
            with pytest.raises(BatchCouplingError, match=r"examples are coupled.*leave out chunk_size"):
                call(loss_fn, params, (data,), chunk_size=4)
    assert ntk.BatchCouplingError is BatchCouplingError
