"""Embedded minimisers against the shallow map itself, evaluated by NumPy in float64."""

import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import landscape, models
from jaxbp.landscape import NotRepresentableError

NUM_CLASSES = 4


def problem(shape=(5,), num_examples=40, loss="squared_error", **options):
    """Inputs, labels and the best affine map."""
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(num_examples, *shape)) + 0.5, np.arange(num_examples) % NUM_CLASSES
    fit = landscape.fit_affine(inputs.reshape(num_examples, -1), labels, NUM_CLASSES, loss=loss, **options)
    return inputs, labels, fit


def check(net, params, inputs, fit, margin=1.0):
    """Same logits to rounding, all parameters float64, every ReLU at least ``margin`` active."""
    expected = inputs.reshape(len(inputs), -1) @ fit.kernel + fit.bias
    assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(params))
    with jax.enable_x64(True):
        np.testing.assert_allclose(net.apply({"params": params}, inputs), expected, atol=1e-12)
        report = landscape.analyse(lambda p, x: net.apply({"params": p}, x), params, jnp.asarray(inputs))
    assert report.all_active
    assert report.smallest_margin >= margin * (1 - 1e-9)
    return report


def mlp(width, depth=2, **options):
    return models.create("mlp", num_classes=NUM_CLASSES, width=width, depth=depth, **options).module


# MLPs


@pytest.mark.first_cases(1)
@pytest.mark.parametrize("depth,key", [(1, None), (2, 3), (4, None), (8, 3)])
def test_mlps_of_any_depth_and_the_smallest_width(depth, key):
    inputs, _, fit = problem()
    assert fit.rank == 3
    key = None if key is None else jax.random.key(key)
    for width in (3, 7):
        net = mlp(width, depth)
        params = landscape.embed_affine(net, fit, inputs, key=key, margin=0.5)
        report = check(net, params, inputs, fit, margin=0.5)
        assert report.smallest_margin == pytest.approx(0.5)  # and no more bias than is needed
        kernel = np.asarray(params["Dense_0"]["kernel"])
        assert (np.abs(kernel).max(0) > 0).sum() == (3 if key is None else width)  # surplus units idle or sharing
    with pytest.raises(NotRepresentableError, match="width 2 cannot carry a map of rank 3: widen it to 3"):
        landscape.embed_affine(mlp(2, depth), fit, inputs)


@pytest.mark.first_cases(1)
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize("depth", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_loss_is_kept_and_the_gradient_vanishes(depth, loss):
    inputs, labels, fit = problem(num_examples=200, loss=loss)
    net = mlp(6, depth)
    params = landscape.embed_affine(net, fit, inputs, key=jax.random.key(0))
    with jax.enable_x64(True):
        loss_fn = landscape.per_example_loss(models.from_linen(net).apply, loss)
        value, gradient = landscape.loss_and_gradient(loss_fn, params, (jnp.asarray(inputs), jnp.asarray(labels)))
        assert abs(value - fit.loss) <= 1e-12 * fit.loss
        assert np.linalg.norm(gradient) <= 1e-8


def test_each_hidden_layer_is_rotated_on_its_own():
    inputs, _, fit = problem()
    params = landscape.embed_affine(mlp(7, 3), fit, inputs, key=jax.random.key(0))
    for name in ("Dense_1", "Dense_2"):  # R diag R' for one rotation R, which would be symmetric
        kernel = np.asarray(params[name]["kernel"])
        assert np.abs(kernel - kernel.T).max() > 0.1 * np.abs(kernel).max()


def test_a_low_rank_and_a_constant_map_need_less_width():
    inputs, _, fit = problem(max_rank=1)
    net = mlp(1)
    check(net, landscape.embed_affine(net, fit, inputs), inputs, fit)
    constant = fit._replace(kernel=0 * fit.kernel, rank=0)
    check(net, landscape.embed_affine(net, constant, inputs), inputs, constant)


def test_keys_choose_the_rotation_and_nothing_else():
    inputs, _, fit = problem()
    first, again, other = (landscape.embed_affine(mlp(6), fit, inputs, key=jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    for params in (first, other):
        check(mlp(6), params, inputs, fit)
    assert np.abs(np.asarray(first["Dense_0"]["kernel"]) - np.asarray(other["Dense_0"]["kernel"])).max() > 0.01


def test_the_callers_mode_does_not_matter():
    inputs, _, fit = problem()
    outside = landscape.embed_affine(mlp(6), fit, inputs, key=jax.random.key(0))
    with jax.enable_x64(True):
        inside = landscape.embed_affine(mlp(6), fit, jnp.asarray(inputs), key=jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, outside, inside)


@pytest.mark.parametrize("net", [mlp(6, parametrisation="ntk"), nn.Sequential([nn.Dense(NUM_CLASSES)])], ids=["ntk", "no ReLU"])
def test_other_chains_of_dense_layers(net):
    inputs, _, fit = problem()
    check(net, landscape.embed_affine(net, fit, inputs), inputs, fit)


# A shallower MLP into a deeper one


def run(layers, inputs):
    for kernel, bias in layers[:-1]:
        inputs = np.maximum(inputs @ kernel + bias, 0)
    return inputs @ layers[-1][0] + layers[-1][1]


def shallow(widths, seed=0):
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=s), rng.normal(size=s[1])) for s in itertools.pairwise(widths)]


@pytest.mark.parametrize("key", [None, 1])
@pytest.mark.parametrize(
    "old,new",
    [((5, 7, 3), (9, 4, 6)), ((5, 7, 3), (7, 3)), ((5, 7, 6, 3), (8, 6, 4, 3, 5)), ((5, 7, 3), (7,)), ((5, 3), (4, 3))],
)
def test_a_shallow_mlp_in_a_deeper_or_wider_one(old, new, key):
    layers, inputs = shallow(old), np.random.default_rng(1).normal(size=(50, 5))
    key = None if key is None else jax.random.key(key)
    deep = landscape.embed_mlp(layers, new, inputs, key=key, margin=0.25)
    assert [kernel.shape for kernel, _ in deep] == list(zip((5, *new), (*new, 3), strict=True))
    np.testing.assert_allclose(run(deep, inputs), run(layers, inputs), atol=1e-12)
    features, num_kept = inputs, len(old) - 2
    for depth, (kernel, bias) in enumerate(deep[:-1]):
        pre = features @ kernel + bias
        surplus = pre[:, old[depth + 1] :] if depth < num_kept else pre
        np.testing.assert_allclose(surplus.min(0), 0.25, rtol=1e-9)  # each unit, none with more bias than it needs
        features = np.maximum(pre, 0)
    if num_kept:
        np.testing.assert_array_equal(deep[0][0][:, : old[1]], layers[0][0])  # the shallow net's own units


def test_the_gradient_of_a_stationary_shallow_mlp_stays_zero():
    # The output layer is fitted by least squares, hence stationary, and so must be all that it is dealt out to.
    rng = np.random.default_rng(2)
    inputs, targets = rng.normal(size=(50, 5)), rng.normal(size=(50, 3))
    kernel, bias = shallow((5, 4))[0]
    hidden = np.column_stack([np.maximum(inputs @ kernel + bias, 0), np.ones(50)])
    head = np.linalg.lstsq(hidden, targets)[0]
    deep = landscape.embed_mlp([(kernel, bias), (head[:-1], head[-1])], (6, 5, 4), inputs, key=jax.random.key(0))

    def loss(layers):
        x = inputs
        for kernel, bias in layers[:-1]:
            x = jax.nn.relu(x @ kernel + bias)
        return 0.5 * jnp.mean(jnp.sum((x @ layers[-1][0] + layers[-1][1] - targets) ** 2, 1))

    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(loss))(deep)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient[1:])) < 1e-13


def test_an_mlp_that_does_not_fit_is_refused():
    layers, inputs = shallow((5, 7, 6, 3)), np.ones((4, 5))
    for widths, message in {
        (7,): r"hidden widths \[7\] cannot hold an MLP of hidden widths \[7, 6\]",
        (6, 6): "cannot hold",
        (7, 6, 2): "width 2 cannot carry a map of rank 3",
    }.items():
        with pytest.raises(NotRepresentableError, match=message):
            landscape.embed_mlp(layers, widths, inputs)


@pytest.mark.parametrize("margin", [0.0, -1.0, float("nan")])
def test_margins_that_are_not_positive_are_refused(margin):
    inputs, _, fit = problem()
    with pytest.raises(ValueError, match="margin must be positive"):
        landscape.embed_affine(mlp(6), fit, inputs, margin=margin)
    with pytest.raises(ValueError, match="margin must be positive"):
        landscape.embed_mlp(shallow((5, 7, 3)), (7, 6), inputs, margin=margin)


# ConvNets and residual nets


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape,depth,width,parametrisation",  # the last map has 4 or 16 times fewer pixels, and as many more channels
    [
        pytest.param((7, 7, 1), 5, 4, "standard", marks=pytest.mark.slow),
        ((7, 7, 1), 3, 8, "ntk"),
        pytest.param((12, 12, 1), 3, 8, "standard", marks=pytest.mark.slow),
        ((40, 1, 1), 3, 2, "standard"),
    ],
)
def test_strided_convnets_of_sufficient_width(shape, depth, width, parametrisation):
    options = {"num_classes": NUM_CLASSES, "depth": depth, "pool": "stride", "parametrisation": parametrisation}
    inputs, _, fit = problem(shape, num_examples=150)  # more than pixels, or lost ones would not be missed
    net = models.create("convnet", width=width, **options).module
    params = landscape.embed_affine(net, fit, inputs)
    check(net, params, inputs, fit)
    kernel = np.asarray(params["Conv_0"]["kernel"])  # copies pixels, as it is used
    assert kernel.max() * (math.sqrt(2 * width / kernel.size) if parametrisation == "ntk" else 1) == pytest.approx(1)


@pytest.mark.slow
def test_a_convnet_too_narrow_loses_pixels():
    inputs, _, fit = problem((7, 7, 1), num_examples=100)
    net = models.create("convnet", num_classes=NUM_CLASSES, depth=3, width=7, pool="stride").module
    with pytest.raises(NotRepresentableError, match=r"differ .* at least \(product of strides\) x input channels"):
        landscape.embed_affine(net, fit, inputs)


class Residual(nn.Module):
    """A stem, a block with a projected shortcut and a strided one, a bottleneck block; odd paddings and a dilation."""

    has_stem: bool = True

    @nn.compact
    def __call__(self, x):
        if self.has_stem:
            x = nn.relu(nn.Conv(3, (3, 3), padding=1)(x))
        branch = nn.relu(nn.Conv(3, (3, 3), kernel_dilation=2)(x))
        x = nn.relu(x + nn.Conv(x.shape[-1], (3, 3), padding=[(1, 1), (1, 1)])(branch))
        branch = nn.Conv(12, (3, 3), (2, 2))(x)
        x = nn.relu(nn.Conv(12, (1, 1), (2, 2))(x) + nn.Conv(12, (3, 3))(nn.relu(branch)))
        x = nn.relu(x + 0.5 * nn.Conv(12, (1, 1))(nn.relu(nn.Conv(2, (1, 1))(x))))
        x = nn.relu(nn.Dense(5)(x.reshape(len(x), -1)))
        return nn.Dense(NUM_CLASSES)(x)


@pytest.mark.slow
def test_a_residual_net():
    inputs, _, fit = problem((4, 4, 2), num_examples=100)
    params = landscape.embed_affine(Residual(), fit, inputs, key=jax.random.key(0))
    check(Residual(), params, inputs, fit)


def test_a_window_given_as_one_number():
    inputs, _, fit = problem((6, 2), num_examples=100)
    net = nn.Sequential([nn.Conv(4, 3, 2), nn.relu, lambda x: x.reshape(len(x), -1), nn.Dense(NUM_CLASSES)])
    check(net, landscape.embed_affine(net, fit, inputs), inputs, fit)


def test_channels_that_do_not_vary_need_no_room():
    inputs, _, fit = problem((4, 4, 1), num_examples=100)
    coloured = np.concatenate([np.zeros_like(inputs), inputs, np.full_like(inputs, 3.0)], -1)
    fit = landscape.fit_affine(coloured.reshape(100, -1), np.arange(100) % NUM_CLASSES, NUM_CLASSES, loss="squared_error")
    net = models.create("convnet", num_classes=NUM_CLASSES, width=4, depth=1, pool="stride").module
    check(net, landscape.embed_affine(net, fit, coloured), coloured, fit)


class Net(nn.Module):
    """One convolution, something between, and a head."""

    conv: dict
    between: object = None
    head: dict | None = None

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(**{"features": 8, "kernel_size": (3, 3), **self.conv})(x))
        x = self.between(x) if self.between else x
        return nn.Dense(NUM_CLASSES, **(self.head or {}))(x.reshape(len(x), -1))


class Headless(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Conv(NUM_CLASSES, (3, 3))(x).mean((1, 2))


@pytest.mark.first_cases(6)
@pytest.mark.parametrize(
    "net,message",
    [
        (models.create("convnet", num_classes=NUM_CLASSES, width=8, depth=2).module, "reduce_window_max"),
        (models.create("convnet", num_classes=NUM_CLASSES, width=8, depth=2, pool="average").module, "no pooling between"),
        (Net({}, between=jnp.tanh), "not affine between its ReLUs.*tanh"),
        (Net({}, between=nn.BatchNorm(use_running_average=True)), r"state beside its parameters \(batch_stats\)"),
        (Net({}, between=nn.LayerNorm()), "not affine"),
        (Net({"feature_group_count": 2}), "Conv_0 is a grouped convolution"),
        (Net({"use_bias": False}), "Conv_0 has no bias"),
        (Net({}, head={"use_bias": False}), "Dense_0 has no bias"),
        (Net({"padding": "CIRCULAR"}), "padding 'CIRCULAR': use SAME"),
        (Net({"padding": "VALID"}), "reach the dense layers whole"),
        (Net({"kernel_size": (1, 1), "strides": 2}), "kernels as wide as their strides"),
        (Net({"features": 1}), "reach the dense layers whole"),
        (Net({}, head={"dtype": jnp.float32}), "float32"),
        (Net({}, between=nn.Dense(8)), r"only flat ones"),
        (Headless(), "no nn.Dense layer"),
        (Residual(has_stem=False), "some act on the image itself, or on a sum with it"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_represented_is_refused_with_a_reason(net, message):
    inputs, _, fit = problem((4, 4, 2), num_examples=100)
    with pytest.raises(NotRepresentableError, match=message):
        landscape.embed_affine(net, fit, inputs - 1)
