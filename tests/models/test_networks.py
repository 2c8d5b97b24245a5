import functools
import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import models
from jaxbp.models import layers
from tests.helpers.networks import num_parameters, shapes_of

SHAPES = {(8, 8, 1): "digits", (28, 28, 1): "MNIST", (32, 32, 3): "CIFAR", (40, 1, 1): "signals", (7, 5, 2): "odd"}
NETS = {
    "mlp": {"width": 6, "depth": 3},
    "mlp of two widths": {"width": (6, 4)},
    "convnet": {"width": 2},
    "convnet, average": {"width": 2, "pool": "average"},
    "convnet, stride": {"width": 2, "pool": "stride"},
    "shallow convnet": {"width": 3, "depth": 2},
}


def create(name, **options):
    family = "convnet" if "convnet" in name else "mlp"
    return models.create(family, num_classes=10, **NETS[name] | options)


def fan_in(kernel):
    return math.prod(kernel.shape[:-1])


def map_kernels(scale, params):
    return jax.tree_util.tree_map_with_path(lambda path, leaf: scale(leaf) if path[-1].key == "kernel" else leaf, params)


# Architecture


def test_parameter_counts_by_hand():
    paper = models.create("mlp", num_classes=10, width=(2048, 2048, 1024))
    assert num_parameters(paper, (32, 32, 3)) == 3073 * 2048 + 2049 * 2048 + 2049 * 1024 + 1025 * 10
    assert num_parameters(models.create("mlp", num_classes=3, width=5, depth=4), (2, 2, 1)) == 5 * 5 + 3 * 6 * 5 + 6 * 3
    assert num_parameters(models.create("mlp", num_classes=3, width=5), (7,)) == 8 * 5 + 6 * 5 + 6 * 3  # 2 hidden layers

    def convnet(w, channels, positions, window=9):  # w, 2w, 2w, 4w, 4w, then a head on what pooling leaves
        widths = [channels, w, 2 * w, 2 * w, 4 * w, 4 * w]
        convolutions = sum((window * a + 1) * b for a, b in itertools.pairwise(widths))
        return convolutions + (4 * w * positions + 1) * 10

    for pool in ("max", "average"):
        net = models.create("convnet", num_classes=10, width=8, pool=pool)
        assert num_parameters(net, (32, 32, 3)) == convnet(8, 3, 3 * 3)  # 32 -> 10 -> 3
        assert num_parameters(net, (28, 28, 1)) == convnet(8, 1, 3 * 3)  # 28 -> 9 -> 3
        assert num_parameters(net, (8, 8, 1)) == convnet(8, 1, 1)  # 8 -> 2 -> 1
        assert num_parameters(net, (40, 1, 1)) == convnet(8, 1, 4, window=3)  # 40 -> 13 -> 4
    net = models.create("convnet", num_classes=10, width=8, pool="stride")
    assert num_parameters(net, (7, 5, 1)) == convnet(8, 1, 2 * 2)  # 7 -> 4 -> 2 and 5 -> 3 -> 2
    assert num_parameters(net, (40, 1, 1)) == convnet(8, 1, 10, window=3)


def test_depths_of_the_convnet():
    net = models.create("convnet", num_classes=10, width=2, depth=7)
    channels = [leaf["kernel"].shape[-1] for name, leaf in shapes_of(net, (32, 32, 3)).items() if "Conv" in name]
    assert channels == [2, 4, 4, 8, 8, 8, 8]
    single = models.create("convnet", num_classes=10, width=2, depth=1)
    assert shapes_of(single, (32, 32, 3))["Dense_0"]["kernel"].shape == (10 * 10 * 2, 10)  # its one layer is pooled


@pytest.mark.first_cases(4)
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("input_shape", SHAPES, ids=SHAPES.get)
def test_logits_of_every_shape(name, input_shape):
    for formulation in ("auto", "xla"):
        options = {"formulation": formulation} if "convnet" in name else {}
        net = create(name, **options)
        inputs = jax.ShapeDtypeStruct((3, *input_shape), jnp.float32)
        logits = jax.eval_shape(net.apply, shapes_of(net, input_shape), inputs)
        assert (logits.shape, logits.dtype) == ((3, 10), jnp.float32)


def relu(x):
    return np.maximum(x, 0)


def test_mlp_is_the_formula(x64):
    net = models.create("mlp", num_classes=3, width=(4, 5))
    params = jax.tree.map(lambda leaf: np.random.default_rng(leaf.size).normal(size=leaf.shape), shapes_of(net, (2, 3, 1)))
    inputs = np.random.default_rng(0).normal(size=(6, 2, 3, 1))
    first, second, head = ((params[f"Dense_{i}"]["kernel"], params[f"Dense_{i}"]["bias"]) for i in range(3))
    hidden = relu(relu(inputs.reshape(6, 6) @ first[0] + first[1]) @ second[0] + second[1])
    found = net.apply(params, jnp.asarray(inputs))
    np.testing.assert_allclose(found, hidden @ head[0] + head[1], rtol=1e-12)


def padded_convolution(x, kernel, strides):
    """Cross-correlation, position by position, with zeros on both sides alike."""
    sizes = [-(-extent // stride) for extent, stride in zip(x.shape[1:3], strides, strict=True)]
    x = np.pad(x, ((0, 0), *((extent // 2, extent // 2) for extent in kernel.shape[:2]), (0, 0)))
    out = np.zeros((len(x), *sizes, kernel.shape[-1]))
    for i, j in np.ndindex(*sizes):
        top, left = i * strides[0], j * strides[1]
        patch = x[:, top : top + kernel.shape[0], left : left + kernel.shape[1]]
        out[:, i, j] = np.tensordot(patch, kernel, 3)
    return out


@pytest.mark.parametrize("pool", ["max", "average", "stride"])
@pytest.mark.parametrize("input_shape", [(8, 7, 2), (13, 1, 1)], ids=["image", "signal"])
@pytest.mark.first_cases(2)
def test_convnet_is_the_formula(pool, input_shape, x64):
    net = models.create("convnet", num_classes=3, width=2, pool=pool)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes_of(net, input_shape))
    inputs = features = rng.normal(size=(2, *input_shape))
    for layer in range(5):
        pooled, (height, width) = layer >= 3, features.shape[1:3]
        stride = 2 if pooled and pool == "stride" else 1
        kernel, bias = params[f"Conv_{layer}"]["kernel"], params[f"Conv_{layer}"]["bias"]
        features = relu(padded_convolution(features, kernel, (stride, stride if width > 1 else 1)) + bias)
        if pooled and pool != "stride":
            a, b = min(3, height), min(3, width)
            features = features[:, : height // a * a, : width // b * b]
            blocks = features.reshape(2, height // a, a, width // b, b, -1)
            features = (np.max if pool == "max" else np.mean)(blocks, (2, 4))
    head = params["Dense_0"]
    found = jax.jit(net.apply)(params, jnp.asarray(inputs))
    np.testing.assert_allclose(found, features.reshape(2, -1) @ head["kernel"] + head["bias"], rtol=1e-11)


# Parametrisations


@pytest.mark.parametrize(
    ("name", "input_shape"),
    [
        pytest.param("mlp", (8, 8, 3), marks=pytest.mark.slow),
        ("mlp", (40, 1, 1)),
        ("convnet", (8, 8, 3)),
        pytest.param("convnet", (40, 1, 1), marks=pytest.mark.slow),
    ],
)
@pytest.mark.first_cases(1)
def test_initial_parameters(name, input_shape):
    for parametrisation in layers.PARAMETRISATIONS:
        net = models.create(name, num_classes=40, width=24, parametrisation=parametrisation)
        key = jax.random.key(0, impl="rbg")  # the generator that compiles fastest
        params = jax.jit(net.init)(key, jnp.zeros((1, *input_shape)))[0]
        for layer in params.values():
            kernel = np.asarray(layer["kernel"], float)
            assert not layer["bias"].any()
            variance = 2 / fan_in(kernel) if parametrisation == "standard" else 1.0
            if parametrisation == "standard":
                bound = math.sqrt(6 / fan_in(kernel))
                assert bound * (1 - 30 / kernel.size) < np.abs(kernel).max() <= bound * (1 + 1e-6)  # missed once in e^30
            # The squares of n uniform (normal) numbers have a relative standard deviation sqrt(0.8 / n) (sqrt(2 / n)).
            assert abs((kernel**2).mean() / variance - 1) < 5 * math.sqrt(2 / kernel.size)
            assert abs(kernel.mean()) < 5 * math.sqrt(variance / kernel.size)


@pytest.mark.parametrize("name", ["mlp of two widths", "shallow convnet", "convnet, stride"])
@pytest.mark.first_cases(1)
def test_the_parametrisations_map_onto_each_other(name, x64):
    standard, ntk = (create(name, parametrisation=each) for each in layers.PARAMETRISATIONS)
    inputs = jax.random.normal(jax.random.key(1), (3, 9, 8, 2))
    assert shapes_of(ntk, inputs.shape[1:]) == shapes_of(standard, inputs.shape[1:])
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes_of(ntk, inputs.shape[1:]))  # biases too
    scaled = map_kernels(lambda kernel: kernel * math.sqrt(2 / fan_in(kernel)), params)
    found, expected = (jax.jit(net.apply)(params, inputs) for net, params in ((ntk, params), (standard, scaled)))
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("parametrisation", layers.PARAMETRISATIONS)
def test_variance_of_the_logits_at_initialisation(parametrisation):
    # He's gain keeps E|h|^2 / fan_in through ReLU layers of any width, so that logits have variance 2 |x|^2 / d.
    net = models.create("mlp", num_classes=10, width=32, depth=1, parametrisation=parametrisation)
    inputs = jax.random.normal(jax.random.key(0), (1, 6))

    def logits(key):
        return net.apply(net.init(key, inputs)[0], inputs)[0]

    found = np.asarray(jax.jit(jax.vmap(logits))(jax.random.split(jax.random.key(1), 1000)), float)
    expected = 2 * float((inputs**2).mean())
    squares = (found**2).mean(1)  # logits of one network are dependent, networks are not
    assert abs(squares.mean() - expected) < 5 * squares.std() / math.sqrt(len(squares))
    assert squares.std() / math.sqrt(len(squares)) < 0.05 * expected
    assert abs(found.mean()) < 5 * math.sqrt(expected / found.size)


def test_formulations_share_their_parameters(x64):
    rng, inputs = np.random.default_rng(0), jax.random.normal(jax.random.key(1), (2, 13, 11, 2))
    nets = [create("shallow convnet", pool="stride", formulation=formulation) for formulation in ("xla", "vjp")]
    shapes = [shapes_of(net, (13, 11, 2)) for net in nets]
    assert shapes[0] == shapes[1]
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes[0])
    losses = [jax.jit(jax.value_and_grad(lambda p, net=net: net.apply(p, inputs).var())) for net in nets]
    # Sums of some hundred terms; 1e-11 leaves room for the derivative of the variance, which cancels.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-11)
    jax.tree.map(close, losses[0](params), losses[1](params))


# Registry


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("parametrisation", layers.PARAMETRISATIONS)
def test_equal_nets_share_one_trace(name, parametrisation):
    first, second = (create(name, parametrisation=parametrisation) for _ in range(2))
    assert (first == second, hash(first) == hash(second)) == (True, True)
    assert first.apply is second.apply
    other = create(name, parametrisation="ntk" if parametrisation == "standard" else "standard")
    assert first.apply is not other.apply
    # Flax compares the layers that a network makes, too.
    made = [layers.conv(2, (5, 5), parametrisation=parametrisation) for _ in range(2)]
    assert (made[0] == made[1], hash(made[0]) == hash(made[1])) == (True, True)


def test_widths():
    assert models.create("mlp", num_classes=2, width=[4, 3]) == models.create("mlp", num_classes=2, width=(4, 3), depth=2)
    assert models.create("mlp", num_classes=2, width=4, depth=2) == models.create("mlp", num_classes=2, width=(4, 4))


@pytest.mark.parametrize(
    "message,name,options",
    [
        ("no model 'alexnet': choose one of mlp, convnet", "alexnet", {"width": 4}),
        ("width must be at least 1, got 0", "convnet", {"width": 0}),
        (r"width must be at least 1, got \(4, 0\)", "mlp", {"width": (4, 0)}),
        (r"width must be at least 1, got \(\)", "mlp", {"width": ()}),
        ("depth must be at least 1, got 0", "mlp", {"width": 4, "depth": 0}),
        ("depth must be left out or be the number of widths 2, got 3", "mlp", {"width": (4, 3), "depth": 3}),
        (r"takes one width, of its first convolution, got \(4, 3\)", "convnet", {"width": (4, 3)}),
        (r"pool must be one of \('max', 'average', 'stride'\), got 'min'", "convnet", {"width": 2, "pool": "min"}),
        ("parametrisation must be one of .*'ntk'.*, got 'mup'", "mlp", {"width": 2, "parametrisation": "mup"}),
        ("parametrisation must be one of .*'ntk'.*, got 'mup'", "convnet", {"width": 2, "parametrisation": "mup"}),
        ("unknown formulation 'fft'", "convnet", {"width": 2, "formulation": "fft"}),
    ],
)
def test_errors(message, name, options):
    with pytest.raises(ValueError, match=message):
        models.create(name, num_classes=3, **options).init(jax.random.key(0), jnp.zeros((1, 6, 6, 1)))


def test_layers_of_axes_with_one_pixel():
    layer = layers.conv(3, (9, 1), kernel_size=5, stride=2)
    assert (layer.kernel_size, layer.strides) == ((5, 1), (2, 1))
    assert isinstance(layers.dense(3), nn.Dense)
