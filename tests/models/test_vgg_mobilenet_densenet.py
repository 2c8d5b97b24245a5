import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import models
from jaxbp.models import layers
from jaxbp.models.densenet import DenseNet
from jaxbp.models.mobilenet import InvertedResidual, MobileNet
from jaxbp.models.resnet import ResNet
from jaxbp.models.vgg import VGG
from jaxbp.ntk.infinite_width import NoExactKernelError, infinite_width_kernel
from tests.helpers.networks import convolve, drawn, inputs_of, num_parameters, shapes_of

# One line a network: everything below that is parametrised by NETS runs for each.
NETS = {
    "mlp": {"width": 4},
    "convnet": {"width": 2, "depth": 2},
    "resnet": {"width": 2, "depth": 1, "stages": 1},
    "vgg11": {"width": 2},
    "vgg11, batch, average": {"width": 2, "norm": "batch", "pool": "average"},
    "mobilenetv2": {"width": 4, "stages": 1},
    "densenet": {"width": 4, "depth": 1, "blocks": 2},
}
STATEFUL = ("resnet", "vgg11, batch, average", "mobilenetv2", "densenet")


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


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["max", "average"])
def test_vgg_is_the_formula(pool, x64):
    net, inputs = models.from_linen(VGG(3, 1, pool=pool)), inputs_of(2, 33, 2, 2)  # 33, 16, 8, 4, 2, 1 pixels high
    params, _ = drawn(net, (33, 2, 2), spread=0.6)
    x = inputs
    for layer in range(8):
        x = jax.nn.relu(convolve(x, params[f"Conv_{layer}"]))
        if layer in (0, 1, 3, 5, 7):
            x = blocks_of_two(x, jnp.max if pool == "max" else jnp.mean)
    assert x.shape == (2, 1, 1, 8)
    found = jax.jit(net.apply)(params, inputs)
    assert np.abs(found - params["Dense_0"]["bias"]).min() > 1e-3  # the ReLUs are not all shut
    np.testing.assert_allclose(found, x[:, 0, 0] @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"], rtol=1e-10)


# MobileNetV2


@pytest.mark.slow
def test_parameter_counts_of_mobilenet():
    count = functools.partial(num_parameters, input_shape=(32, 32, 3))
    assert count(models.create("mobilenetv2", num_classes=10, width=32)) == 2_236_682  # torchvision's, with 10 classes
    # One stage at width 8: stem 3 -> 8, depthwise 8, projection 8 -> 4, last 4 -> 320, each with scale and bias.
    kernels, outputs = 27 * 8 + 9 * 8 + 8 * 4 + 4 * 320, 8 + 8 + 4 + 320
    net = models.create("mobilenetv2", num_classes=10, width=8, stages=1)
    assert count(net) == kernels + 2 * outputs + 321 * 10


@pytest.mark.slow
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
    assert shapes_of(models.from_linen(MobileNet(10)), (32, 32, 3))["InvertedResidual_1"]["Conv_1"]["kernel"].shape == (3, 3, 1, 96)


@pytest.mark.parametrize("channels,stride,adds", [(4, 1, True), (4, 2, False), (6, 1, False)])
def test_residuals_are_added_where_shapes_agree(channels, stride, adds):
    block, inputs = InvertedResidual(channels, 2, stride, ()), inputs_of(2, 4, 4, 4)
    variables = jax.eval_shape(functools.partial(block.init, train=False), jax.random.key(0), inputs)
    closed = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), variables)  # the branch gives 0, whatever comes in
    np.testing.assert_array_equal(
        block.apply(closed, inputs, train=False), inputs if adds else jnp.zeros((2, 4 // stride, 4 // stride, channels))
    )


def test_relu6_bounds_the_features():
    net, inputs = create("mobilenetv2"), inputs_of(2, 4, 4, 1)
    params, state = drawn(net, (4, 4, 1), spread=3.0)
    features = jax.jit(net.features)(params, inputs, state)
    assert float(features.min()) >= 0
    assert 3 < float(features.max()) <= 6


# DenseNet


def size_of_densenet(num_layers, growth_rate):
    """Parameters of a DenseNet-BC of three blocks on 3 channels and 10 classes, added up from its description."""
    k, channels = growth_rate, 2 * growth_rate
    size = 9 * 3 * channels
    for block in range(3):
        # Before its 1x1 convolution a layer normalises what it reads, before the other 4k channels: a scale and a bias each.
        reads = [channels + k * layer for layer in range(num_layers)]
        size += sum(2 * read + read * 4 * k + 2 * 4 * k + 9 * 4 * k * k for read in reads)
        channels += k * num_layers
        if block < 2:
            size += 2 * channels + channels * (channels // 2)
            channels //= 2
    return size + 2 * channels + (channels + 1) * 10


@pytest.mark.parametrize(
    ("depth", "growth_rate", "expected"),
    [
        (2, 3, None),
        pytest.param(6, 12, 176_122, marks=pytest.mark.slow),
        # Table 2 of the source has DenseNet-BC of 100 layers: 0.8M parameters; implementations print 0.77M.
        pytest.param(16, 12, 769_162, marks=pytest.mark.slow),
    ],
)
def test_parameter_counts_of_densenet(depth, growth_rate, expected):
    count = functools.partial(num_parameters, input_shape=(32, 32, 3))
    by_hand = size_of_densenet(depth, growth_rate)
    assert expected in (None, by_hand)
    assert count(models.create("densenet", num_classes=10, width=2 * growth_rate, depth=depth)) == by_hand
    if depth == 6:
        assert count(models.create("densenet40", num_classes=10, width=24)) == by_hand


@pytest.mark.parametrize("width,growth_rate", [(24, 12), (1, 1), (3, 2), (7, 4)])
def test_growth_rate_of_densenet(width, growth_rate):
    net = models.from_linen(DenseNet(3, width, (1,)))
    assert shapes_of(net, (4, 4, 1))["DenseLayer_0"]["Conv_1"]["kernel"].shape[-1] == growth_rate


def spelled_out(params, state, inputs, block_sizes, train):
    """A DenseNet-BC, written from its description: logits, and the mean that its last BatchNorm took."""

    def norm_relu(x, owner, stats, index):
        scale, stored = owner[f"BatchNorm_{index}"], stats[f"BatchNorm_{index}"]
        mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else (stored["mean"], stored["var"])
        return jax.nn.relu((x - mean) / jnp.sqrt(var + 1e-5) * scale["scale"] + scale["bias"]), mean

    stored = state["batch_stats"]
    x, layer = convolve(inputs, params["Conv_0"]), 0
    for block, num_layers in enumerate(block_sizes):
        if block > 0:
            x = convolve(norm_relu(x, params, stored, block - 1)[0], params[f"Conv_{block}"])
            x = blocks_of_two(x, jnp.mean)
        for _ in range(num_layers):
            owner, stats = params[f"DenseLayer_{layer}"], stored[f"DenseLayer_{layer}"]
            narrow = convolve(norm_relu(x, owner, stats, 0)[0], owner["Conv_0"])
            x = jnp.concatenate([x, convolve(norm_relu(narrow, owner, stats, 1)[0], owner["Conv_1"])], axis=-1)
            layer += 1
    x, mean = norm_relu(x, params, stored, len(block_sizes) - 1)
    return x.mean((1, 2)) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"], mean


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.first_cases(1)
def test_densenet_is_the_formula(train, x64):
    net, inputs = models.from_linen(DenseNet(3, 4, (2, 1, 1))), inputs_of(3, 5, 2, 2)  # 5, 2, 1 pixels high and 2, 1, 1 wide
    params, state = drawn(net, (5, 2, 2))
    assert [params[f"Conv_{i}"]["kernel"].shape for i in range(3)] == [(3, 3, 2, 4), (1, 1, 8, 4), (1, 1, 6, 3)]
    assert [params["DenseLayer_1"][f"Conv_{i}"]["kernel"].shape for i in range(2)] == [(1, 1, 6, 8), (3, 3, 8, 2)]
    found = jax.jit(net.update if train else net.apply)(params, inputs, state)
    expected, mean = jax.jit(spelled_out, static_argnums=(3, 4))(params, state, inputs, (2, 1, 1), train)
    np.testing.assert_allclose(found[0] if train else found, expected, rtol=1e-10, atol=1e-11)
    if train:
        old, new = (each["batch_stats"]["BatchNorm_2"]["mean"] for each in (state, found[1]))
        np.testing.assert_allclose(new, 0.9 * old + 0.1 * mean, rtol=1e-10)


# ResNets of other depths


def test_parameter_counts_of_resnet20():
    count = functools.partial(num_parameters, input_shape=(32, 32, 3))
    kernels = 9 * 3 * 16 + 9 * (6 * 16 * 16 + 16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64)
    shortcuts, outputs, head = 16 * 32 + 32 * 64, 16 + 6 * (16 + 32 + 64), 65 * 10
    net = models.create("resnet20", num_classes=10, width=16)
    assert kernels + 2 * outputs + head == 269_722  # with shortcuts free of parameters: Table 6 of the source has 0.27M
    assert count(net) == kernels + shortcuts + 2 * (outputs + 32 + 64) + head == 272_474
    fixup = models.create("resnet20", num_classes=10, width=16, norm="fixup")
    assert count(fixup) == kernels + shortcuts + 2 + 9 * 5 + head


def test_parameter_counts_of_resnet34():
    stages = zip((64, 64, 128, 256), (64, 128, 256, 512), (3, 4, 6, 3), strict=True)
    kernels, outputs = 9 * 3 * 64, 64
    for before, width, num_blocks in stages:
        changes = before != width
        kernels += 9 * before * width + 9 * (2 * num_blocks - 1) * width * width + before * width * changes
        outputs += (2 * num_blocks + changes) * width
    net = models.create("resnet34", num_classes=10, width=64)
    # The count of the usual implementation for CIFAR in PyTorch.
    assert num_parameters(net, (32, 32, 3)) == kernels + 2 * outputs + 513 * 10 == 21_282_122


@pytest.mark.parametrize("dtype", layers.DTYPES)
@pytest.mark.parametrize(
    "name,options",
    [
        pytest.param("densenet40", {}, marks=pytest.mark.slow),
        ("resnet20", {"norm": "fixup"}),
        pytest.param("resnet34", {}, marks=pytest.mark.slow),
    ],
)
@pytest.mark.first_cases(1)
def test_logits_of_every_shape(name, options, dtype):
    net = models.create(name, num_classes=10, width=4, dtype=dtype, **options)
    shapes = ((8, 8, 1), (28, 28, 3), (40, 1, 1))
    if dtype == "bfloat16":  # types go by layers, not by sizes: an image and a signal
        shapes = shapes[::2]
    for input_shape in shapes:
        inputs = jax.ShapeDtypeStruct((2, *input_shape), jnp.float32)
        params, state = jax.eval_shape(net.init, jax.random.key(0), inputs)
        logits, new = jax.eval_shape(net.update, params, inputs, state)
        assert (logits.shape, logits.dtype) == ((2, 10), jnp.float32)
        assert {leaf.dtype for leaf in jax.tree.leaves((params, state, new))} == {np.dtype("float32")}


# Mixed precision


def rounded(name, **options):
    """A network's logits, state, gradients and shape of features in float32 and bfloat16, on the same parameters."""
    nets, inputs = [create(name, dtype=dtype, **options) for dtype in layers.DTYPES], inputs_of(6, 4, 4, 1)
    params, state = drawn(nets[0], (4, 4, 1))
    labels = jnp.arange(6) % 3

    def loss(params, net):
        logits, new = net.update(params, inputs, state)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean(), (logits, new)

    for net in nets:
        (_, (logits, new)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)(params, net)
        yield logits, new, gradient, jax.eval_shape(net.features, params, inputs, state)


# The other networks are with the slow tests.
MIXED = ("mlp", "resnet", "mobilenetv2", "resnet, layer")


@pytest.mark.first_cases(1)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in MIXED else pytest.mark.slow) for name in (*NETS, "resnet, fixup", "resnet, layer")]
)
def test_bfloat16_is_near_float32(name):
    family, *norm = name.split(", ")
    plain, mixed = rounded(name) if name in NETS else rounded(family, norm=norm[0])
    assert (plain[3].dtype, mixed[3].dtype) == (jnp.float32, jnp.bfloat16)
    for found in jax.tree.leaves((mixed[:3], plain[:3])):
        assert found.dtype == jnp.float32

    def flat(result, which):
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(result[which])])

    def error(which):
        return np.linalg.norm(flat(mixed, which) - flat(plain, which)) / np.linalg.norm(flat(plain, which))

    # Numbers are rounded by up to 2^-8 of themselves, some three times a layer: of ten layers' independent errors the root
    # of the sum of squares is 2 %. Measured as 0.1 to 0.4 %, and 3.6 % in the VGG that normalises single pixels.
    assert 1e-4 < error(0) < 0.05
    if plain[1]:
        assert 0 < error(1) < 0.01
    # In these tiny networks one ReLU that flips is a large part of the gradient; its direction is kept.
    gradients = flat(mixed, 2), flat(plain, 2)
    assert gradients[0] @ gradients[1] > 0.8 * np.linalg.norm(gradients[0]) * np.linalg.norm(gradients[1])


@pytest.mark.parametrize("name", NETS)
@pytest.mark.first_cases(2)
def test_a_float64_session_computes_in_float64(name, x64):
    net, inputs = create(name), inputs_of(2, 4, 4, 1)
    params, state = drawn(net, (4, 4, 1))
    assert inputs.dtype == jnp.float64
    logits, new = jax.eval_shape(net.update, params, inputs, state)
    assert {leaf.dtype for leaf in jax.tree.leaves((logits, new))} == {np.dtype("float64")}


def test_infinite_width_kernels_ignore_the_dtype():
    plain, mixed = (models.MLP(3, (4,), "ntk", dtype) for dtype in layers.DTYPES)
    inputs = inputs_of(2, 5)
    kernels = [infinite_width_kernel(net, (5,))(inputs) for net in (plain, mixed)]
    np.testing.assert_array_equal(*kernels)
    assert kernels[1].dtype == jnp.float32
    with pytest.raises(NoExactKernelError, match=r"DenseNet has .* BatchNorm has one kernel for each kind of statistics: say"):
        infinite_width_kernel(DenseNet(3, parametrisation="ntk"), (4, 4, 1))


@pytest.mark.parametrize("name", NETS)
def test_unknown_dtypes(name):
    with pytest.raises(ValueError, match=r"dtype must be one of \('float32', 'bfloat16'\), got 'float16'"):
        shapes_of(create(name, dtype="float16"), (4, 4, 1))


# The functions that training and the instruments call


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in ("resnet", "densenet") else pytest.mark.slow) for n in STATEFUL])
def test_statistics_of_many_seeds_are_those_of_each(name, x64):
    net, inputs = create(name), inputs_of(4, 4, 4, 1)
    params, state = drawn(net, (4, 4, 1))
    scales = jnp.asarray([0.5, 1.0, 2.0])
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf * scale + scale / 9 for scale in scales]), params)
    found = jax.jit(jax.vmap(net.update, in_axes=(0, None, None)))(stacked, inputs, state)
    alone = jax.jit(net.update)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11)
    for seed in range(3):
        one = alone(jax.tree.map(lambda leaf: leaf[seed], stacked), inputs, state)  # noqa: B023
        jax.tree.map(close, jax.tree.map(lambda leaf: leaf[seed], found), one)  # noqa: B023
    changes = [float(jnp.abs(leaf[0] - leaf[2]).max()) for leaf in jax.tree.leaves(found[1])]
    assert min(changes) > 1e-3  # or the seeds are no different runs


@pytest.mark.first_cases(1)
@pytest.mark.parametrize("name", NETS)
def test_state_and_modes(name):
    net, inputs = create(name), inputs_of(4, 4, 4, 1)
    params, state = jax.eval_shape(net.init, jax.random.key(0), inputs)
    stateful = name in STATEFUL
    assert set(state) == ({"batch_stats"} if stateful else set())
    params, state = drawn(net, (4, 4, 1))
    logits, new = jax.jit(net.update)(params, inputs, state)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    evaluated = jax.jit(net.apply)(params, inputs, state)
    assert logits.shape == evaluated.shape == (4, 3)
    assert bool((logits == evaluated).all()) is not stateful
    if stateful:
        with pytest.raises(ValueError, match=r"keeps a state beside its parameters .* pass the state that init or update returned"):
            jax.eval_shape(net.apply, params, inputs)
    else:
        np.testing.assert_allclose(net.apply(params, inputs), evaluated, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.first_cases(2)
def test_the_head_of_the_features_is_the_logits(name):
    net, inputs = create(name), inputs_of(4, 4, 4, 1)
    params, state = drawn(net, (4, 4, 1))
    features = jax.jit(net.features)(params, inputs, state)
    head = params["Dense_2" if name == "mlp" else "Dense_0"]
    assert features.shape == (4, len(head["kernel"]))
    logits = jax.jit(net.apply)(params, inputs, state)
    np.testing.assert_allclose(features @ head["kernel"] + head["bias"], logits, rtol=1e-4, atol=1e-5)  # float32


def test_initialise_draws_fresh_parameters_and_statistics():
    net, inputs = create("resnet"), inputs_of(1, 4, 4, 1)
    draw = jax.jit(net.init)
    first, again, other = (draw(jax.random.key(seed, impl="rbg"), inputs) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert bool((first[0]["Conv_0"]["kernel"] != other[0]["Conv_0"]["kernel"]).all())
    statistics = first[1]["batch_stats"]["BatchNorm_0"]
    assert (not statistics["mean"].any(), bool((statistics["var"] == 1).all())) == (True, True)
    assert jax.tree.structure(first) == jax.tree.structure(drawn(net, (4, 4, 1)))  # nothing sown is taken for a state


@pytest.mark.parametrize("name", NETS)
def test_equal_nets_share_their_functions(name):
    first, second = create(name), create(name)
    assert (first == second, hash(first) == hash(second)) == (True, True)
    for function in ("init", "apply", "update", "features"):
        assert getattr(first, function) is getattr(second, function)
    assert models.with_batch_statistics(first) is models.with_batch_statistics(second)
    other = create(name, width=5)
    assert first != other
    assert first.features is not other.features


# Registry

DEEPER = {"depth": 2, "block_sizes": (2, 2)}


def test_names():
    others = {"wideresnet", "vgg11", "mobilenetv2", "densenet", "densenet40"}
    assert set(models.REGISTRY) == {"mlp", "convnet", "resnet", "resnet18", "resnet20", "resnet34"} | others
    nets = {name: models.create(name, num_classes=3, width=4) for name in models.REGISTRY}
    assert nets["resnet18"] == nets["resnet"]
    assert nets["wideresnet"].module == ResNet(3, 4, widening=2)
    stages = {"resnet18": (2, 2, 2, 2), "resnet20": (3, 3, 3), "resnet34": (3, 4, 6, 3)}
    assert {name: nets[name].module.stage_sizes for name in stages} == stages
    assert nets["densenet40"] == nets["densenet"] == models.from_linen(DenseNet(3, 4, (6, 6, 6)))
    deeper = models.create("resnet", num_classes=3, width=4, depth=3, stages=3)
    assert deeper.module.stage_sizes == (3, 3, 3)
    dense = models.create("densenet", num_classes=3, width=4, depth=2, blocks=4)
    assert dense == models.create("densenet", num_classes=3, width=4, block_sizes=[2] * 4)


@pytest.mark.parametrize(
    "message,name,options",
    [
        ("no model 'alexnet': choose one of mlp, convnet, resnet, resnet18, wideresnet, resnet20, ", "alexnet", {}),
        ("the depth of resnet20 is part of its name: leave out depth", "resnet20", {"depth": 20}),
        ("the depth of resnet34 is part of its name: leave out stage_sizes", "resnet34", {"stage_sizes": (1,)}),
        ("the depth of densenet40 is part of its name: leave out block_sizes, d", "densenet40", DEEPER),
        ("densenet40 has no option blocks: choose from", "densenet40", {"blocks": 3}),
        (r"give depth \(layers of every block\) and blocks \(their .* or block_sizes, not both", "densenet", DEEPER),
        (r"at least one block, each of at least 1 layer, got \(\)", "densenet", {"blocks": 0}),
        (r"at least one block, each of at least 1 layer, got \(2, 0\)", "densenet", {"block_sizes": (2, 0)}),
        ("the depth of vgg11 is part of its name: leave out depth", "vgg11", {"depth": 11}),
        ("the depth of resnet18 is part of its name: leave out stage_sizes", "resnet18", {"stage_sizes": (1,)}),
        ("resnet18 has no option stages: choose from", "resnet18", {"stages": 3}),
        ("stages must be from 1 to 7, got 8", "mobilenetv2", {"stages": 8}),
        ("stages must be from 1 to 7, got 0", "mobilenetv2", {"stages": 0}),
        (r"norm must be one of \('none', 'batch'\), got 'layer'", "vgg11", {"norm": "layer"}),
        (r"pool must be one of \('max', 'average'\), got 'stride'", "vgg11", {"pool": "stride"}),
        ("mlp has no option norm: choose from parametrisation, dtype$", "mlp", {"norm": "batch"}),
        (
            "convnet has no option norm: choose from depth, pool, parametrisation, formulation, dtype",
            "convnet",
            {"norm": "batch"},
        ),
        ("widening must be at least 1, got 0", "wideresnet", {"widening": 0}),
        ("the depth of wideresnet is part of its name: leave out stage_sizes", "wideresnet", {"stage_sizes": (1,)}),
        (r"stem must be one of \('small', 'large'\), got 'imagenet'", "resnet18", {"stem": "imagenet"}),
        ("fixup has blocks of its own: leave pre_activation out", "resnet20", {"norm": "fixup", "pre_activation": True}),
        (r"the vgg11 takes one width, of its first convolution, got \(4, 3\)", "vgg11", {"width": (4, 3)}),
        (r"the mobilenetv2 takes one width, .* got \(4,\)", "mobilenetv2", {"width": [4]}),
        ("width must be at least 1, got 0", "mobilenetv2", {"width": 0}),
    ],
)
def test_errors(message, name, options):
    with pytest.raises(ValueError, match=message):
        models.create(name, **{"num_classes": 3, "width": 4} | options)
