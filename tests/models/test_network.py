"""The record `Network`: of plain functions, of modules from elsewhere, and BatchNorm's statistics."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxbp import models, ntk, training

INPUTS = jax.random.normal(jax.random.key(0), (6, 5))
LABELS = jnp.array([0, 1, 2, 0, 1, 2])


def normalised(x, mean, var):
    return (x - mean) / jnp.sqrt(var + 1e-5)


# Plain functions


def linear(params, inputs):
    return inputs @ params


def test_equal_functions_give_equal_networks():
    net = models.from_functions(linear)
    assert (net == models.from_functions(linear), hash(net) == hash(models.from_functions(linear))) == (True, True)
    assert net != models.from_functions(lambda params, inputs: inputs)
    assert net != dataclasses.replace(net, features=linear)


def test_a_network_is_a_static_argument_and_is_traced_once():
    traces = []

    def logits(net, params):
        traces.append(net)
        return net.apply(params, INPUTS)

    run = jax.jit(logits, static_argnums=0)
    for _ in range(2):
        np.testing.assert_array_equal(run(models.from_functions(linear), jnp.eye(5)), INPUTS)
    assert len(traces) == 1
    for _ in range(2):
        net = models.create("mlp", num_classes=3, width=4)
        run(net, net.init(jax.random.key(0), INPUTS)[0])
    assert len(traces) == 2


def test_what_a_network_lacks_is_named():
    for name in ("init", "features"):
        with pytest.raises(ValueError, match=rf"this network has no {name} function: give {name} to models.from_functions"):
            getattr(models.from_functions(linear), name)(jnp.eye(5), INPUTS)


def test_inputs_are_normalised_before_every_function():
    net = models.create("resnet", num_classes=3, width=2, depth=1, stages=1)
    images = jax.random.uniform(jax.random.key(1), (4, 4, 4, 2))
    mean, std = (0.5, 0.25), (2.0, 0.5)
    scaled = (images - jnp.array(mean)) / jnp.array(std)
    raw = models.with_normalised_inputs(net, mean, std)
    params, state = net.init(jax.random.key(0), images)
    for name in ("apply", "update", "features"):
        found, expected = (getattr(each, name)(params, x, state) for each, x in ((raw, images), (net, scaled)))
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert raw is models.with_normalised_inputs(models.create("resnet", num_classes=3, width=2, depth=1, stages=1), mean, std)


# Linen


class Trained(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(3)(nn.BatchNorm(use_running_average=not train)(x))


class Training(nn.Module):
    @nn.compact
    def __call__(self, x, *, training):
        return nn.Dense(3)(nn.BatchNorm(use_running_average=not training)(x))


class Deterministic(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic):
        return nn.Dense(3)(nn.BatchNorm()(x, deterministic))


class RunningAverage(nn.Module):
    @nn.compact
    def __call__(self, x, use_running_average):
        return nn.Dense(3)(nn.BatchNorm()(x, use_running_average=use_running_average))


class Unmoded(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.BatchNorm()(x))


class Named(nn.Module):
    @nn.compact
    def __call__(self, x, frozen):
        return nn.Dense(3)(nn.BatchNorm()(x, frozen))


MODULES = {
    "train": (Trained(), {}),
    "training": (Training(), {}),
    "deterministic": (Deterministic(), {}),
    "use_running_average": (RunningAverage(), {}),
    "no argument": (Unmoded(), {}),
    "an argument named": (Named(), {"mode_argument": "frozen", "training_value": False}),
}


@pytest.mark.parametrize("name", MODULES)
def test_linen_modules_in_both_modes_are_the_formula(name):
    module, options = MODULES[name]
    net = models.from_linen(module, **options)
    params, state = net.init(jax.random.key(1), INPUTS)
    state = {"batch_stats": {"BatchNorm_0": {"mean": jnp.full(5, 0.5), "var": jnp.full(5, 2.0)}}} | {
        name: value for name, value in state.items() if name != "batch_stats"
    }
    head = params["Dense_0"]["kernel"]
    np.testing.assert_allclose(net.apply(params, INPUTS, state), normalised(INPUTS, 0.5, 2.0) @ head, rtol=1e-4, atol=1e-6)
    logits, new = net.update(params, INPUTS, state)
    mean, var = INPUTS.mean(0), INPUTS.var(0)
    np.testing.assert_allclose(logits, normalised(INPUTS, mean, var) @ head, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["BatchNorm_0"]["mean"], 0.99 * 0.5 + 0.01 * mean, rtol=1e-5)
    np.testing.assert_array_equal(models.with_batch_statistics(net)(params, INPUTS, state), logits)
    assert net is models.from_linen(module.clone(), **options)
    for given, got in (({}, r"\[\]"), (state["batch_stats"], r"\['BatchNorm_0'\]")):
        with pytest.raises(
            ValueError, match=rf"keeps a state beside its parameters .* got the collections {got}: .* \{{'batch_stats': batch_"
        ):
            net.apply(params, INPUTS, given)


@pytest.mark.parametrize(
    ("norm", "mode", "message"),
    [
        (lambda x: nn.BatchNorm(use_running_average=True, name="norm")(x), "update", "norm is a BatchNorm with .*=True in training"),
        (lambda x: nn.BatchNorm(use_running_average=False, name="norm")(x), "apply", "norm is a BatchNorm with .*=False in evaluation"),
        (lambda x: nn.BatchNorm(name="norm")(x, True), "update", "norm is a BatchNorm with .*=True in training"),
        (lambda x: nn.BatchNorm(name="norm")(x, use_running_average=False), "apply", "goes by its stored statistics: leave"),
    ],
)
def test_a_batch_norm_fixed_to_the_other_statistics_is_refused(norm, mode, message):
    class Fixed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return norm(x)

    params = {"norm": {"scale": jnp.ones(5), "bias": jnp.zeros(5)}}
    state = {"batch_stats": {"norm": {"mean": jnp.zeros(5), "var": jnp.ones(5)}}}
    with pytest.raises(ValueError, match=message):
        getattr(models.from_linen(Fixed()), mode)(params, INPUTS, state)


def test_other_collections_are_state_and_what_is_sown_is_features():
    class Counting(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            count = self.variable("counts", "calls", lambda: jnp.int32(0))
            if train:
                count.value += 1
            x = nn.relu(nn.Dense(4)(x))
            self.sow("intermediates", "features", x)
            return nn.Dense(3)(x)

    net = models.from_linen(Counting())
    params, state = net.init(jax.random.key(0), INPUTS)
    logits, new = net.update(params, INPUTS, state)
    assert (int(state["counts"]["calls"]), int(new["counts"]["calls"]), set(new)) == (0, 1, {"counts"})
    head = params["Dense_1"]
    np.testing.assert_allclose(net.features(params, INPUTS, state) @ head["kernel"] + head["bias"], logits, rtol=1e-5, atol=1e-6)


def test_a_module_that_cannot_be_hashed_serves():
    class Scaled(nn.Module):
        scale: jax.Array

        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(x * self.scale)

    net = models.from_linen(Scaled(jnp.full(5, 2.0)))
    params, _ = net.init(jax.random.key(0), INPUTS)
    np.testing.assert_allclose(net.apply(params, INPUTS), 2 * INPUTS @ params["Dense_0"]["kernel"], rtol=1e-5)
    assert hash(net) == hash(dataclasses.replace(net))


def test_misuse_of_linen_modules():
    class Dropping(nn.Module):
        @nn.compact
        def __call__(self, x, deterministic=True):
            return nn.Dense(3)(nn.Dropout(0.5)(x, deterministic=deterministic))

    net = models.from_linen(Dropping())
    params, state = net.init(jax.random.key(0), INPUTS)
    assert net.apply(params, INPUTS).shape == (6, 3)
    with pytest.raises(ValueError, match=r"Dropping draws random numbers \(dropout\), for which a network's functions have no key"):
        net.update(params, INPUTS, state)
    with pytest.raises(ValueError, match=r"Dropping does not sow its features: self.sow\('intermediates', 'features'"):
        net.features(params, INPUTS)
    with pytest.raises(ValueError, match=r"the call of Dropping has no argument 'train': choose from self, x, deterministic"):
        models.from_linen(Dropping(), mode_argument="train")
    with pytest.raises(TypeError, match=r"from_linen takes a module of flax.linen, got function"):
        models.from_linen(linear)


# nnx


class NnxNet(nnx.Module):
    def __init__(self, rngs, rate=0.0):
        self.norm = nnx.BatchNorm(5, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.hidden = nnx.Linear(5, 4, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def features(self, x):
        return nnx.relu(self.hidden(self.dropout(self.norm(x))))

    def __call__(self, x):
        return self.head(self.features(x))


def test_nnx_modules_in_both_modes_are_the_formula():
    net = models.from_nnx(NnxNet)
    assert net is models.from_nnx(NnxNet)
    params, state = net.init(jax.random.key(1), INPUTS)
    assert set(params) == {"norm", "hidden", "head"}
    assert not np.array_equal(params["head"]["kernel"], net.init(jax.random.key(2), INPUTS)[0]["head"]["kernel"])
    state["norm"] = {"mean": jnp.full(5, 0.5), "var": jnp.full(5, 2.0)}

    def by_hand(mean, var):
        features = jax.nn.relu(normalised(INPUTS, mean, var) @ params["hidden"]["kernel"] + params["hidden"]["bias"])
        return features, features @ params["head"]["kernel"] + params["head"]["bias"]

    stored = by_hand(0.5, 2.0)
    np.testing.assert_allclose(net.features(params, INPUTS, state), stored[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(net.apply(params, INPUTS, state), stored[1], rtol=1e-4, atol=1e-5)
    logits, new = net.update(params, INPUTS, state)
    np.testing.assert_allclose(logits, by_hand(INPUTS.mean(0), INPUTS.var(0))[1], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(new["norm"]["mean"], 0.9 * 0.5 + 0.1 * INPUTS.mean(0), rtol=1e-5)
    assert jax.tree.structure(new) == jax.tree.structure(state)


def test_nnx_modules_draw_anew_at_each_step_and_train():
    net = models.from_nnx(lambda rngs: NnxNet(rngs, rate=0.5))
    params, state = net.init(jax.random.key(1), INPUTS)
    first, state = net.update(params, INPUTS, state)
    second, _ = net.update(params, INPUTS, state)
    assert float(jnp.abs(first - second).max()) > 0.1
    np.testing.assert_array_equal(net.apply(params, INPUTS, state), net.apply(params, INPUTS, state))
    settings = training.Settings(num_epochs=30, batch_size=3)
    plain = models.from_nnx(NnxNet)
    result = jax.jit(lambda key: training.train(plain, training.sgd(0.2), (INPUTS, LABELS), key, settings))(jax.random.key(3))
    assert result.history["train_loss"][-1] < 0.5 * result.history["train_loss"][0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda net, p, s: net.apply(p, INPUTS),
            r"NnxNet keeps a state beside its parameters .* got nothing at \['dropout'\].*: pass the state",
        ),
        (lambda net, p, s: net.apply(s, INPUTS, p), "keeps a state beside its parameters"),
        (lambda net, p, s: net.update(s, INPUTS, p), "keeps a state beside its parameters"),
        (lambda net, p, s: jax.tree_util.Partial(net.features, p)(INPUTS), "keeps a state beside its parameters"),
        (lambda net, p, s: ntk.empirical_ntk(net.apply, p, INPUTS), "keeps a state beside its parameters"),
        (lambda net, p, s: net.apply({"head": p["head"]}, INPUTS, s), r"params do not fit NnxNet, got nothing at \['hidden'\]\['bias'\]"),
        (
            lambda net, p, s: net.apply(p, INPUTS, {**s, "t": 1.0}),
            r"state do not fit NnxNet, got a value at \['t'\], which it does not keep",
        ),
        (lambda net, p, s: net.apply(p, INPUTS[:, :4], s), r"NnxNet failed on inputs of shape \(6, 4\), which may not fit its parameters"),
    ],
)
def test_values_that_do_not_fit_an_nnx_module_are_named(call, message):
    net = models.from_nnx(lambda rngs: NnxNet(rngs, rate=0.5))
    with pytest.raises(ValueError, match=message):
        call(net, *net.init(jax.random.key(0), INPUTS))


def test_an_nnx_state_of_numpy_arrays_serves_under_jit():
    net = models.from_nnx(NnxNet)
    params, state = net.init(jax.random.key(0), INPUTS)
    on_host, fn = jax.device_get(state), models.with_batch_statistics(net)
    np.testing.assert_array_equal(jax.jit(lambda p: fn(p, INPUTS, on_host))(params), jax.jit(lambda p: fn(p, INPUTS, state))(params))


def test_an_nnx_module_trained_elsewhere_comes_in_with_its_values():
    module = NnxNet(nnx.Rngs(0))
    module.train()
    module(INPUTS)  # moves the statistics
    module.head.kernel[...] += 1.0
    net = models.from_nnx(lambda rngs: module)
    params, state = net.init(jax.random.key(1), INPUTS)
    np.testing.assert_array_equal(params["head"]["kernel"], module.head.kernel[...])
    module.eval()
    np.testing.assert_array_equal(net.apply(params, INPUTS, state), module(INPUTS))


def test_misuse_of_nnx_modules():
    with pytest.raises(TypeError, match=r"from_nnx takes the function that builds a module, got a NnxNet: give lambda rngs"):
        models.from_nnx(NnxNet(nnx.Rngs(0)))

    def build(rngs):
        return nnx.Linear(5, 3, rngs=rngs)

    net = models.from_nnx(build)
    params, state = net.init(jax.random.key(0), INPUTS)
    assert (state, net.apply(params, INPUTS).shape) == ({}, (6, 3))
    with pytest.raises(ValueError, match=r"Linear has no features: give it a method features\(inputs\)"):
        net.features(params, INPUTS)


# BatchNorm


def test_calibration_gives_the_statistics_of_the_data():
    net = models.create("resnet", num_classes=3, width=2, depth=1, stages=1)
    x = 3.0 + 2.0 * jax.random.normal(jax.random.key(0), (400, 4, 4, 1))
    params, state = net.init(jax.random.key(1), x)
    calibrate = jax.jit(models.calibrate_batch_norm, static_argnames=("net", "batch_size", "num_epochs"))
    found = calibrate(net, params, state, x, batch_size=40, num_epochs=6)["batch_stats"]["BatchNorm_0"]
    kernel = params["Conv_0"]["kernel"]
    convolved = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    remembered = 1 - 0.9**60
    np.testing.assert_allclose(found["mean"], remembered * convolved.mean((0, 1, 2)), rtol=0.02, atol=0.02)
    np.testing.assert_allclose(found["var"], convolved.var((0, 1, 2)), rtol=0.05)
    with pytest.raises(ValueError, match="batch_size must be from 1 to the number of inputs 400, got 401"):
        models.calibrate_batch_norm(net, params, state, x, batch_size=401, num_epochs=1)
