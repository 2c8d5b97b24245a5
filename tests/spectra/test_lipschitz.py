"""Lipschitz bounds against dense matrices and the enumeration of activation patterns."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import models
from jaxbp.spectra import lipschitz
from tests.helpers.networks import drawn

KEY = jax.random.key(0)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def dense_norm(fn, inputs):
    """Norm of the linear part of an affine function, from its values at the unit vectors."""
    points = np.concatenate([np.zeros((1, inputs.size), np.float32), np.eye(inputs.size, dtype=np.float32)])
    at_zero, *at_units = np.asarray(jax.jit(lambda x: jax.lax.map(fn, x))(points.reshape(-1, *inputs.shape)))
    columns = np.stack(at_units) - at_zero
    return np.linalg.norm(columns.reshape(inputs.size, -1), 2)


class Net(nn.Module):
    activation: str = "identity"

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(nn.Conv(3, (3, 3), strides=2)(x))
        if self.activation == "identity":
            return nn.Dense(2)(nn.avg_pool(x, (2, 2)).mean((1, 2)))
        x = nn.max_pool(getattr(nn, self.activation)(x), (2, 2), (1, 1))
        x = x + nn.tanh(nn.Conv(3, (1, 1))(x))
        return nn.Dense(2)(nn.avg_pool(x, (2, 2)).reshape(len(x), -1))


def linen(activation):
    net = models.from_linen(Net(activation))
    params, state = drawn(net, (6, 6, 2))
    return (lambda p, x: net.apply(p, x, state)), params


def test_affine_networks_have_the_norm_of_their_matrix():
    fn, params = linen("identity")
    inputs = normal(1, 6, 6, 2)
    bound = lipschitz.upper(fn, params, inputs)
    norm = dense_norm(lambda x: fn(params, x), inputs)
    assert bound.value == pytest.approx(norm, rel=1e-5)
    assert bound.value < np.prod([factor for _, factor in bound.factors])


@pytest.mark.parametrize(
    "fn",
    [
        lambda w, x: jax.lax.conv_general_dilated(x, w, (2, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")),
        lambda w, x: nn.avg_pool(x, (3, 2), (1, 2), padding="SAME") * w[0, 0, 0, 0],
        lambda w, x: x.sum(2) / jnp.abs(w[0, 0]).min(),
        lambda w, x: jnp.einsum("nhwc,cd->ndhw", x, w[0, 0]),
        lambda w, x: jnp.concatenate([x[:, ::-1], jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))], 1),
        lambda w, x: jnp.broadcast_to(x[:, None], (1, 3, *x.shape[1:])),
    ],
)
def test_each_linear_operation_has_its_norm(fn):
    """With ReLU behind it the function is not affine, and the bound is the product of factors."""
    w, x = normal(3, 3, 2, 3), normal(1, 5, 4, 2)
    bound = lipschitz.upper(lambda p, x: jax.nn.relu(fn(p, x)), w, x).value
    assert bound == pytest.approx(dense_norm(lambda x: fn(w, x), x), rel=1e-5)


@pytest.mark.parametrize(("n", "width", "stride"), [(5, 3, 1), (5, 3, 2), (4, 2, 2)])
def test_max_pooling_has_the_largest_norm_of_its_selections(n, width, stride):
    windows = [range(start, start + width) for start in range(0, n - width + 1, stride)]
    largest = max(np.linalg.norm(np.eye(n)[list(picked)], 2) for picked in itertools.product(*windows))
    bound = lipschitz.upper(lambda p, x: nn.max_pool(p * x, (width,), (stride,)), jnp.float32(1), jnp.ones((1, n, 1))).value
    assert bound == pytest.approx(largest)


def test_one_hidden_layer_lies_between_its_activation_patterns():
    """With fewer hidden units than inputs each of the 2^5 patterns occurs, so that the largest of their norms is the constant."""
    params = {"a": normal(7, 5), "b": normal(5, 3, seed=1)}
    fn, x = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], normal(12, 7, seed=2)
    a, b = (np.asarray(params[name], np.float64) for name in "ab")
    constant = max(np.linalg.norm((a * np.array(signs)) @ b, 2) for signs in itertools.product((0, 1), repeat=5))
    upper = lipschitz.upper(fn, params, x).value
    assert upper == pytest.approx(np.linalg.norm(a, 2) * np.linalg.norm(b, 2), rel=1e-5)
    lower = lipschitz.lower(fn, params, x, KEY, num_steps=40, radius=0.5)
    assert 0.98 * constant < lower < constant * (1 + 1e-5)
    assert constant < upper
    at_inputs = max(np.linalg.norm((a * (row @ a > 0)) @ b, 2) for row in np.asarray(x, np.float64))
    assert lipschitz.lower(fn, params, x, KEY, num_steps=0, num_products=100) == pytest.approx(at_inputs, rel=1e-3)


@pytest.mark.parametrize("activation", ["relu", *(pytest.param(name, marks=pytest.mark.slow) for name in ("leaky_relu", "silu"))])
@pytest.mark.slow
def test_lower_bounds_lie_below_upper_bounds(activation):
    fn, params = linen(activation)
    x = normal(4, 6, 6, 2)
    upper, lower = lipschitz.upper(fn, params, x).value, lipschitz.lower(fn, params, x, KEY, num_steps=5)
    assert 0.02 * upper < lower < upper


def test_paths_of_residual_networks_add_up():
    params = {"a": jnp.diag(jnp.array([3.0, 1.0])), "b": jnp.diag(jnp.array([1.0, 5.0]))}

    def fn(p, x):
        x = x + jax.nn.relu(x @ p["a"])
        return x - 2 * jax.nn.relu(x @ p["b"])

    assert lipschitz.upper(fn, params, jnp.ones((1, 2))).value == pytest.approx((1 + 3) * (1 + 2 * 5))
    net = models.create("resnet", num_classes=3, width=2, stages=1, depth=1)
    params, state = drawn(net, (4, 4, 1))
    assert np.isfinite(lipschitz.upper(lambda p, x: net.apply(p, x, state), params, jnp.ones((1, 4, 4, 1))).value)


@pytest.mark.parametrize(
    "name", ["relu", "relu6", "softplus", "silu", "log_sigmoid", "hard_tanh", "soft_sign", "selu", "elu", "celu", "tanh", "sigmoid"]
)
def test_slopes_are_reached_and_not_exceeded(name):
    grid = np.linspace(-8, 8, 20001)
    with jax.enable_x64(True):
        values = np.asarray(getattr(jax.nn, name)(jnp.asarray(grid)))
    slope = lipschitz.upper(lambda p, x: getattr(jax.nn, name)(p * x), jnp.float32(1), jnp.ones((1, 2))).value
    assert slope == pytest.approx(np.abs(np.diff(values) / np.diff(grid)).max(), rel=1e-3)


def test_what_is_not_known_is_named():
    @jax.jit
    def silu(x):
        return x**2

    for fn, match in (
        (lambda p, x: x * (p * x), "operation mul"),
        (lambda p, x: jnp.exp(x), "operation exp"),
        (lambda p, x: silu(x), "operation integer_pow|operation square"),
        (lambda p, x: jax.lax.fori_loop(0, 2, lambda _, y: y * p, x), "operation scan"),
        (lambda p, x: (x, x), "one array, got 2"),
    ):
        with pytest.raises(ValueError, match=match):
            lipschitz.upper(fn, jnp.float32(1), jnp.ones((1, 2)))
    with pytest.raises(ValueError, match="floating-point"):
        lipschitz.upper(lambda p, x: x * p, jnp.float32(1), jnp.ones((1, 2), int))
    assert lipschitz.upper(lambda p, x: jnp.full(3, p), jnp.float32(1), jnp.ones((1, 2))).value == 0
