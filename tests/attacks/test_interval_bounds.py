"""Interval bounds against dense computations, single layers, and samples of the box; what has no rule is refused by name."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import attacks, models
from tests.attacks.test_methods import mlp, random_mlp

KEY = jax.random.key(0)


def test_one_affine_layer_is_exact(x64):
    """The ends are reached, at the corners that the signs of the weights name."""
    weights, bias = jax.random.normal(KEY, (5, 3)), jnp.array([0.1, -0.2, 0.3])
    low = jax.random.normal(jax.random.key(1), (4, 5))
    high = low + jax.random.uniform(jax.random.key(2), (4, 5))
    lower, upper = attacks.interval_bounds(lambda x: x @ weights + bias, low, high)
    for unit in range(3):
        up = np.where(weights[:, unit] > 0, high, low) @ weights[:, unit] + bias[unit]
        down = np.where(weights[:, unit] > 0, low, high) @ weights[:, unit] + bias[unit]
        np.testing.assert_allclose(upper[:, unit], up, rtol=1e-12)
        np.testing.assert_allclose(lower[:, unit], down, rtol=1e-12)


def test_a_multilayer_perceptron_by_hand(x64):
    params = random_mlp(KEY, (6, 8, 7, 3))
    inputs = jax.random.uniform(jax.random.key(1), (5, 6))
    low, high = np.asarray(inputs) - 0.05, np.asarray(inputs) + 0.05
    lower, upper = jax.jit(lambda a, b: attacks.interval_bounds(lambda x: mlp(params, x), a, b))(low, high)
    for layer, (weights, bias) in enumerate(params):
        plus, minus = np.maximum(weights, 0), np.minimum(weights, 0)
        low, high = low @ plus + high @ minus + bias, high @ plus + low @ minus + bias
        if layer < 2:
            low, high = np.maximum(low, 0), np.maximum(high, 0)
    np.testing.assert_allclose(lower, low, rtol=1e-10)
    np.testing.assert_allclose(upper, high, rtol=1e-10)


class Mixed(nn.Module):
    """Layers of each kind."""

    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3))(x))), (2, 2), (2, 2))
        x = x + nn.leaky_relu(nn.Conv(4, (3, 3), feature_group_count=2)(x), 0.1)
        x = nn.avg_pool(jnp.tanh(x), (2, 2), (2, 2))
        x = jnp.concatenate([x.reshape(len(x), -1), x.mean((1, 2))], -1)
        x = nn.gelu(nn.Dense(6)(x)) - 0.1 * jnp.abs(nn.Dense(6)(x)) + nn.Dense(6)(x) ** 2 / (1 + nn.sigmoid(nn.Dense(6)(x)))
        return nn.Dense(3)(jnp.where(x > 0.2, x, 0.5 - x))


@pytest.mark.parametrize("name", ["mixed", pytest.param("resnet", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_bounds_hold_the_outputs_of_samples(name):
    """In a box small enough for the ends to be near: all of 300 points and the corners lie between, and the bounds are not absurd."""
    if name == "mixed":
        module = Mixed()
        variables = module.init(KEY, jnp.zeros((1, 4, 4, 2)))
        variables = {**variables, "batch_stats": jax.tree.map(lambda s: s + 0.3, variables["batch_stats"])}

        def network(x):
            return module.apply(variables, x)
    else:
        net = models.create("resnet", num_classes=3, width=4, depth=1, stages=1)
        params, state = net.init(KEY, jnp.zeros((1, 4, 4, 2)))

        def network(x):
            return net.apply(params, x, state=state)

    inputs = jax.random.uniform(jax.random.key(1), (1, 4, 4, 2))
    bounds = jax.jit(lambda x, size: attacks.interval_bounds(network, x - size, x + size))
    lower, upper = bounds(inputs, 0.02)
    corners = jnp.sign(jax.random.normal(jax.random.key(2), (300, 4, 4, 2)))
    inside = corners.at[:150].multiply(jax.random.uniform(jax.random.key(3), (150, 4, 4, 2)))
    outputs = jax.jit(network)(inputs + 0.02 * inside)
    assert (outputs >= lower - 1e-5).all()
    assert (outputs <= upper + 1e-5).all()
    spread = outputs.max(0) - outputs.min(0)
    assert ((upper - lower)[0] <= 100 * spread).all()
    for end in bounds(inputs, 0.0):
        np.testing.assert_allclose(end, network(inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x**3 - x**2,
        lambda x: jnp.abs(x - 0.3) / (x + 2),
        lambda x: 1 / x**2,
        lambda x: jnp.where((x > 0) & ~(x > 0.5), -x, jnp.exp(x)),
        lambda x: jax.lax.rsqrt(x + 2) * jnp.maximum(-x, x[::-1]),
        lambda x: jnp.where(x <= 0.1, 1.0, 3.0) + jnp.pad(x, ((0, 0), (1, 1)))[:, 1:-1],
        lambda x: jnp.take(x, jnp.array([2, 0, 1]), axis=1),
        lambda x: jnp.log1p(jnp.exp(x)),
    ],
)
def test_each_rule_holds_samples(function):
    low = jnp.array([[-1.0, -0.2, 0.1], [0.2, 0.4, -0.6]])
    high = low + jnp.array([[0.7, 0.6, 0.5], [0.1, 0.0, 0.3]])
    lower, upper = jax.jit(lambda a, b: attacks.interval_bounds(function, a, b))(low, high)
    values = jax.vmap(function)(low + jax.random.uniform(KEY, (60, 2, 3)) * (high - low))
    assert (values >= lower - 1e-6).all()
    assert (values <= upper + 1e-6).all()


def test_certificates_are_right_about_an_affine_network(x64):
    """Certified exactly where the margin survives the worst corner, when both logits are opposite; margins fall with the radius."""
    weights = jax.random.normal(KEY, (6, 1))
    inputs = jax.random.uniform(jax.random.key(1), (20, 6))

    def network(x):
        value = (x - 0.5) @ weights
        return jnp.concatenate([value, -value], -1)

    labels, threat = network(inputs).argmax(-1), attacks.Threat("linf", 0.1)
    result = attacks.interval_certificate(network, inputs, labels, threat)
    slope = jnp.where(labels == 0, 1, -1)[:, None] * weights[:, 0]
    room = jnp.where(slope > 0, jnp.minimum(inputs, 0.1), jnp.minimum(1 - inputs, 0.1))
    worst = jnp.abs(network(inputs)).max(-1) - (jnp.abs(slope) * room).sum(-1)
    np.testing.assert_allclose(result.margins, 2 * worst, rtol=1e-9)
    assert 0 < result.certified.sum() < 20
    broken = jax.jit(lambda: attacks.pgd(threat)(network, KEY, inputs, labels).success)()
    np.testing.assert_array_equal(result.certified, ~broken)


def test_what_has_no_rule_is_named():
    x = jnp.ones((2, 3))
    with pytest.raises(attacks.UnboundedOperationError, match="no rule for the operation 'sin'"):
        attacks.interval_bounds(jnp.sin, x, x)
    with pytest.raises(attacks.UnboundedOperationError, match="'dot_general': it multiplies activations with each other"):
        attacks.interval_bounds(lambda x: x @ x.T, x, x)
    with pytest.raises(attacks.UnboundedOperationError, match="'scan'"):
        attacks.interval_bounds(lambda x: jax.lax.scan(lambda c, _: (c + 1, None), x, length=3)[0], x, x)
    with pytest.raises(ValueError, match="lower must be at most upper"):
        attacks.interval_bounds(lambda x: x, x, x - 1)
    with pytest.raises(ValueError, match="lower and upper must be alike"):
        attacks.interval_bounds(lambda x: x, x, x[:1])
