import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_models import num_parameters, shapes_of
from test_resnet import convolve, drawn, inputs_of

from jaxbp import models
from jaxbp.models.mobilenet import InvertedResidual, MobileNet
from jaxbp.models.vgg import VGG

# One line a network: everything below that is parametrised by NETS runs for each.
NETS = {
    "mlp": {"width": 4},
    "convnet": {"width": 2, "depth": 2},
    "resnet": {"width": 2, "depth": 1, "stages": 1},
    "vgg11": {"width": 2},
    "vgg11, batch, average": {"width": 2, "norm": "batch", "pool": "average"},
    "mobilenetv2": {"width": 4, "stages": 1},
}


def create(name, **options):
    return models.create(name.split(",")[0], num_classes=3, **NETS[name] | options)


# VGG


def test_parameter_counts_of_vgg11():
    widths = (3, 64, 128, 256, 256, 512, 512, 512, 512)
    kernels, outputs = sum(9 * a * b for a, b in itertools.pairwise(widths)), sum(widths[1:])
    for norm, each in (("none", 1), ("batch", 2)):  # biases, or scales and biases
        net = models.create("vgg11", num_classes=10, width=64, norm=norm)
        assert num_parameters(net, (32, 32, 3)) == kernels + each * outputs + 513 * 10
    assert kernels + 2 * outputs + 513 * 10 == 9_231_114 - 2752  # PyTorch's, which keeps biases before BatchNorm


def blocks_of_two(x, reduce):
    """Pool by 2 along each axis that has 2 pixels; what does not fill a window is cut off."""
    a, b = (min(2, extent) for extent in x.shape[1:3])
    x = x[:, : x.shape[1] // a * a, : x.shape[2] // b * b]
    return reduce(x.reshape(len(x), x.shape[1] // a, a, x.shape[2] // b, b, -1), (2, 4))


@pytest.mark.parametrize("pool", ["max", "average"])
def test_vgg_is_the_formula(pool, x64):
    net, inputs = VGG(3, 1, pool=pool), inputs_of(2, 33, 2, 2)  # 33, 16, 8, 4, 2, 1 pixels high
    params, _ = drawn(net, (33, 2, 2), spread=0.6)
    x = inputs
    for layer in range(8):
        x = jax.nn.relu(convolve(x, params[f"Conv_{layer}"]))
        if layer in (0, 1, 3, 5, 7):
            x = blocks_of_two(x, jnp.max if pool == "max" else jnp.mean)
    assert x.shape == (2, 1, 1, 8)
    found = jax.jit(models.apply_fn(net))(params, inputs)
    assert np.abs(found - params["Dense_0"]["bias"]).min() > 1e-3  # the ReLUs are not all shut
    np.testing.assert_allclose(found, x[:, 0, 0] @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"], rtol=1e-10)


# MobileNetV2


def test_parameter_counts_of_mobilenet():
    count = functools.partial(num_parameters, input_shape=(32, 32, 3))
    assert count(models.create("mobilenetv2", num_classes=10, width=32)) == 2_236_682  # torchvision's, with 10 classes
    # One stage at width 8: stem 3 -> 8, depthwise 8, projection 8 -> 4, last 4 -> 320, each with scale and bias.
    kernels, outputs = 27 * 8 + 9 * 8 + 8 * 4 + 4 * 320, 8 + 8 + 4 + 320
    net = models.create("mobilenetv2", num_classes=10, width=8, stages=1)
    assert count(net) == kernels + 2 * outputs + 321 * 10


def test_maps_of_mobilenet():
    def maps(variables, inputs):
        watched = lambda module, _: isinstance(module, InvertedResidual)  # noqa: E731
        return MobileNet(10).apply(variables, inputs, capture_intermediates=watched, mutable=["intermediates"])[1]

    inputs = jnp.zeros((1, 32, 32, 3))
    variables = jax.eval_shape(MobileNet(10).init, jax.random.key(0), inputs)
    sown = jax.eval_shape(maps, variables, inputs)["intermediates"]
    shapes = [sown[f"InvertedResidual_{block}"]["__call__"][0].shape[1:] for block in range(17)]
    sides = [32] * 3 + [16] * 3 + [8] * 7 + [4] * 4
    widths = [16] + [24] * 2 + [32] * 3 + [64] * 4 + [96] * 3 + [160] * 3 + [320]
    assert shapes == [(side, side, width) for side, width in zip(sides, widths, strict=True)]
    assert shapes_of(MobileNet(10), (32, 32, 3))["InvertedResidual_1"]["Conv_1"]["kernel"].shape == (3, 3, 1, 96)


@pytest.mark.parametrize("channels,stride,adds", [(4, 1, True), (4, 2, False), (6, 1, False)])
def test_residuals_are_added_where_shapes_agree(channels, stride, adds):
    block, inputs = InvertedResidual(channels, 2, stride, "standard", "auto"), inputs_of(2, 4, 4, 4)
    variables = jax.eval_shape(functools.partial(block.init, train=False), jax.random.key(0), inputs)
    closed = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), variables)  # the branch gives 0, whatever comes in
    np.testing.assert_array_equal(
        block.apply(closed, inputs, train=False), inputs if adds else jnp.zeros((2, 4 // stride, 4 // stride, channels))
    )


def test_relu6_bounds_the_features():
    net, inputs = create("mobilenetv2"), inputs_of(2, 4, 4, 1)
    params, state = drawn(net, (4, 4, 1), spread=3.0)
    features = jax.jit(models.features_fn(net))(params, inputs, state)
    assert float(features.min()) >= 0
    assert 3 < float(features.max()) <= 6


# The functions that training and the instruments call


@pytest.mark.parametrize("name", NETS)
def test_state_and_modes(name):
    net, inputs = create(name), inputs_of(4, 4, 4, 1)
    params, state = jax.eval_shape(functools.partial(models.initialise, net), jax.random.key(0), inputs)
    stateful = "norm" in NETS[name] or name in ("resnet", "mobilenetv2")
    assert set(state) == ({"batch_stats"} if stateful else set())
    params, state = drawn(net, (4, 4, 1))
    logits, new = jax.jit(models.stateful_apply_fn(net, True))(params, inputs, state)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    evaluated = jax.jit(models.stateful_apply_fn(net, False))(params, inputs, state)
    assert logits.shape == evaluated.shape == (4, 3)
    assert bool((logits == evaluated).all()) is not stateful
    if stateful:
        with pytest.raises(ValueError, match=r"keeps a state beside its parameters .* use models.initialise and"):
            jax.eval_shape(models.apply_fn(net), params, inputs)
    else:
        np.testing.assert_allclose(models.apply_fn(net)(params, inputs), evaluated, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NETS)
def test_the_head_of_the_features_is_the_logits(name):
    net, inputs = create(name), inputs_of(4, 4, 4, 1)
    params, state = drawn(net, (4, 4, 1))
    features = jax.jit(models.features_fn(net))(params, inputs, state)
    head = params["Dense_2" if name == "mlp" else "Dense_0"]
    assert features.shape == (4, len(head["kernel"]))
    logits = jax.jit(models.stateful_apply_fn(net, False))(params, inputs, state)
    np.testing.assert_allclose(features @ head["kernel"] + head["bias"], logits, rtol=1e-4, atol=1e-5)  # float32


def test_initialise_draws_fresh_parameters_and_statistics():
    net, inputs = create("resnet"), inputs_of(1, 4, 4, 1)
    draw = jax.jit(functools.partial(models.initialise, net))
    first, again, other = (draw(jax.random.key(seed, impl="rbg"), inputs) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert bool((first[0]["Conv_0"]["kernel"] != other[0]["Conv_0"]["kernel"]).all())
    statistics = first[1]["batch_stats"]["BatchNorm_0"]
    assert (not statistics["mean"].any(), bool((statistics["var"] == 1).all())) == (True, True)
    assert jax.tree.structure(first) == jax.tree.structure(drawn(net, (4, 4, 1)))  # nothing sown is taken for a state


@pytest.mark.parametrize("name", NETS)
def test_equal_nets_share_their_functions(name):
    first, second = create(name), create(name)
    for make in (models.features_fn, lambda net: models.stateful_apply_fn(net, True), models.apply_fn):
        assert make(first) is make(second)
    assert models.stateful_apply_fn(first, True) is not models.stateful_apply_fn(first, False)
    assert models.features_fn(first) is not models.features_fn(create(name, width=5))


def test_features_of_foreign_networks():
    net = nn.Dense(2)

    class Modal(nn.Module):
        @nn.compact
        def __call__(self, inputs, *, train=False):
            return net.clone(parent=self)(inputs)

    params = {"Dense_0": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}
    with pytest.raises(ValueError, match=r"Modal does not sow its features: self.sow\('intermediates', 'features'"):
        models.features_fn(Modal())(params, jnp.ones((1, 3)), {})


# Registry


def test_names():
    assert set(models.REGISTRY) == {"mlp", "convnet", "resnet", "resnet18", "wideresnet", "vgg11", "mobilenetv2"}
    nets = {name: models.create(name, num_classes=3, width=4) for name in models.REGISTRY}
    assert nets["resnet18"] == nets["wideresnet"] == nets["resnet"]
    assert nets["resnet18"].stage_sizes == (2, 2, 2, 2)
    deeper = models.create("resnet", num_classes=3, width=4, depth=3, stages=3)
    assert deeper.stage_sizes == (3, 3, 3)


@pytest.mark.parametrize(
    "message,name,options",
    [
        ("no model 'densenet': choose one of mlp, convnet, resnet, resnet18, wideresnet, vgg11, ", "densenet", {}),
        ("the depth of vgg11 is part of its name: leave out depth", "vgg11", {"depth": 11}),
        ("the depth of resnet18 is part of its name: leave out stage_sizes", "resnet18", {"stage_sizes": (1,)}),
        ("resnet18 has no option stages: choose from", "resnet18", {"stages": 3}),
        ("stages must be from 1 to 7, got 8", "mobilenetv2", {"stages": 8}),
        ("stages must be from 1 to 7, got 0", "mobilenetv2", {"stages": 0}),
        (r"norm must be one of \('none', 'batch'\), got 'layer'", "vgg11", {"norm": "layer"}),
        (r"pool must be one of \('max', 'average'\), got 'stride'", "vgg11", {"pool": "stride"}),
        ("mlp has no option norm: choose from parametrisation$", "mlp", {"norm": "batch"}),
        (
            "convnet has no option norm: choose from depth, pool, parametrisation, formulation",
            "convnet",
            {"norm": "batch"},
        ),
        (r"the vgg11 takes one width, of its first convolution, got \(4, 3\)", "vgg11", {"width": (4, 3)}),
        (r"the mobilenetv2 takes one width, .* got \(4,\)", "mobilenetv2", {"width": [4]}),
        ("width must be at least 1, got 0", "mobilenetv2", {"width": 0}),
    ],
)
def test_errors(message, name, options):
    with pytest.raises(ValueError, match=message):
        models.create(name, **{"num_classes": 3, "width": 4} | options)
