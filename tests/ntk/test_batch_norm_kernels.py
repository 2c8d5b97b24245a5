"""Whole networks against patches of finite convolutions, neural-tangents, recursions by hand, and means over finite networks."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import models, ntk, stats
from jaxbp.models import layers as finite
from jaxbp.ntk import batch_norm, regression
from jaxbp.ntk.batch_norm import closed_forms, maps, networks
from jaxbp.ntk.batch_norm.maps import Convolution
from jaxbp.ntk.infinite_width import infinite_width_kernel

KEY = jax.random.key(0)
SAMPLED = {"channels": 2**11, "key": KEY}


def inputs_of(num, shape, seed=1):
    return np.asarray(jax.random.normal(jax.random.key(seed), (num, *shape)), float)


# Linear layers


@pytest.mark.parametrize(
    "window,strides,padding", [((3, 3), (1, 1), "SAME"), ((3, 3), (2, 2), "SAME"), ((3, 3), (2, 2), 1), ((1, 1), (2, 2), 0)]
)
@pytest.mark.parametrize("spatial", [(4, 5), (3, 1)])
@pytest.mark.first_cases(3)
def test_window_means_are_products_of_patches(spatial, window, strides, padding, x64):
    window, strides = (tuple(n if extent > 1 else 1 for n, extent in zip(pair, spatial, strict=True)) for pair in (window, strides))
    pads = jax.lax.padtype_to_pads(spatial, window, strides, "SAME") if padding == "SAME" else [(padding * (n > 1),) * 2 for n in window]
    x = inputs_of(2, (*spatial, 3))
    lax_patches = jax.lax.conv_general_dilated_patches(x, window, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    patches = np.asarray(lax_patches)
    expected = 2 * np.einsum("nhwp,mijp->nhwmij", patches, patches) / patches.shape[-1]
    geometry = Convolution(window, strides, tuple(pads))
    result = maps.convolved(maps.of_images(x), geometry, features=4, parametrisation="standard")
    np.testing.assert_allclose(result.covariance, expected, atol=1e-12)
    np.testing.assert_allclose(result.tangent, patches.shape[-1] / 2 * expected, atol=1e-12)  # sum of products of its inputs


@pytest.mark.parametrize("spatial,kernel_size,stride", [((4, 5), 3, 2), ((6, 1), 3, 2), ((4, 4), 1, 2), ((3, 3), 3, 1)])
@pytest.mark.first_cases(2)
def test_the_geometry_is_that_of_the_finite_convolution(spatial, kernel_size, stride):
    x = jnp.asarray(inputs_of(2, (*spatial, 1)), jnp.float32)
    layer = finite.conv(1, spatial, kernel_size=kernel_size, stride=stride, use_bias=False)
    params = layer.init(KEY, x)
    geometry = networks.convolution(spatial, kernel_size=kernel_size, stride=stride)
    patches = jax.lax.conv_general_dilated_patches(
        x, geometry.window, geometry.strides, geometry.padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    expected = patches @ params["params"]["kernel"].reshape(-1, 1)
    np.testing.assert_allclose(layer.apply(params, x), expected, atol=1e-5)


def test_pooling_and_flattening_images_or_their_covariance(x64):
    x = inputs_of(2, (5, 4, 3))
    images = maps.of_images(x)
    pooled = nn.avg_pool(x, (2, 2), (2, 2))
    np.testing.assert_allclose(maps.pooled(images, (2, 2)).covariance, maps.of_images(pooled).covariance, atol=1e-12)
    np.testing.assert_allclose(maps.globally_pooled(images).flat[0], x.mean((1, 2)) @ x.mean((1, 2)).T / 3, atol=1e-12)
    flat = maps.flattened(images)
    np.testing.assert_allclose(flat.flat[0], x.reshape(2, -1) @ x.reshape(2, -1).T / 60, atol=1e-12)
    assert flat.channels == 60
    half = maps.of_images(x[..., :1])
    both = maps.concatenated([half, maps.of_images(x[..., 1:])])
    np.testing.assert_allclose(both.covariance, images.covariance, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "net",
    [
        models.ConvNet(3, 4, depth=3, pool="average", parametrisation="standard"),
        models.ResNet(3, 4, (1, 1), norm="layer", shortcut="projection", parametrisation="ntk"),
        models.ResNet(3, 4, (1, 1), norm="layer", pre_activation=True, parametrisation="ntk"),
    ],
    ids=["convnet", "resnet", "pre-activation"],
)
def test_without_batch_norm_it_is_the_kernel_of_neural_tangents(net, x64):
    x = jnp.asarray(inputs_of(2, (4, 3, 2)))
    kernel_fn = infinite_width_kernel(net, (4, 3, 2), normal_kernels=True)
    logits = networks.propagate(networks.Propagation(net.parametrisation, None), net, x)
    for get, kernel in zip(("nngp", "ntk"), logits.flat, strict=True):
        np.testing.assert_allclose(kernel, kernel_fn(x, get=get), rtol=1e-6)


# Whole networks, by hand


@pytest.mark.parametrize("parametrisation", [pytest.param("ntk", marks=pytest.mark.slow), "standard"])
def test_stored_statistics_on_one_pixel_are_a_recursion(parametrisation, x64):
    width, x = 5, inputs_of(4, (1, 1, 6))

    def share(fan_in):
        return fan_in / 2 if parametrisation == "standard" else 1

    covariance = 2 * x.reshape(4, 6) @ x.reshape(4, 6).T / 6
    tangent = share(6) * covariance
    for _ in range(3):  # stem and two convolutions
        moments = closed_forms.relu_moments(covariance / (1 + finite.EPSILON))
        active, derivative = moments.relu, moments.step * (tangent / (1 + finite.EPSILON) + 1) + moments.relu
        covariance, tangent = 2 * active, share(width) * 2 * active + 2 * derivative
    net = models.ResNet(3, width, (1,), skip=False, parametrisation=parametrisation)
    kernel_fn = infinite_width_kernel(net, (1, 1, 6), statistics="stored", normal_kernels=True)
    np.testing.assert_allclose(kernel_fn(x, get="nngp"), covariance, rtol=1e-10)
    np.testing.assert_allclose(kernel_fn(x), tangent + 1, rtol=1e-6)
    np.testing.assert_allclose(kernel_fn(x[:3], x[3:]), kernel_fn(x)[:3, 3:], rtol=1e-12)


def test_a_dense_net_of_equal_groups_is_their_layer(x64):
    """On one pixel and by hand: each activation is that of a group, weighted by its channels."""
    x = inputs_of(8, (1, 1, 6))
    covariance = 2 * x.reshape(8, 6) @ x.reshape(8, 6).T / 6
    stem = batch_norm.batch_norm_relu(covariance, covariance)
    inner = batch_norm.batch_norm_relu(2 * stem.covariance, 2 * (stem.covariance + stem.tangent))
    grown = batch_norm.batch_norm_relu(2 * inner.covariance, 2 * (inner.covariance + inner.tangent))
    active, tangent = ((2 * old + new) / 3 for old, new in zip(stem[:2], grown[:2], strict=True))  # width and half of it
    net = models.DenseNet(3, 8, (1,), parametrisation="ntk")
    report = infinite_width_kernel(net, (1, 1, 6), statistics="batch").report(x)
    np.testing.assert_allclose(report.nngp, 2 * active, rtol=1e-10)
    np.testing.assert_allclose(report.ntk, 2 * active + 2 * tangent + 1, rtol=1e-10)
    assert report.sampling_error == 0
    assert 0 < report.quadrature_error < 1e-3
    assert 1 < report.tail < 100


# Against finite networks


class OneHidden(nn.Module):
    width: int

    @nn.compact
    def __call__(self, inputs, *, train=False):
        layer = nn.Dense(
            self.width,
            use_bias=False,
            kernel_init=nn.initializers.normal(1),
            dot_general=finite.dense(1, parametrisation="ntk").dot_general,
        )
        features = nn.relu(finite.normalise(layer(inputs), "batch", train=train))
        self.sow("intermediates", "features", features)
        return finite.dense(2, parametrisation="ntk")(features)


def finite_kernels(net, x, num_nets, statistics):
    """(networks, N, N) NNGP given the features and tangent kernel of one logit."""
    coupled = statistics == "batch"
    apply_fn = models.with_batch_statistics(net) if coupled else net.apply

    def kernels(key):
        params, state = net.init(key, x)
        if statistics == "frozen":
            state = jax.lax.fori_loop(0, 150, lambda _, old: net.update(params, x, old)[1], state)
        kernel = ntk.empirical_ntk(apply_fn, params, x, state=state, logits="trace", coupled=coupled)
        return kernel / apply_fn(params, x, state).shape[1]

    return np.asarray(jax.jit(jax.vmap(kernels))(jax.random.split(jax.random.key(7, impl="rbg"), num_nets)), float)


def deviations(samples, exact):
    """Of the mean from the exact kernel, and its standard error, both relative to the kernel's diagonal."""
    scale = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
    return np.abs(samples.mean(0) - exact) / scale, samples.std(0) / math.sqrt(len(samples)) / scale


@pytest.mark.slow
def test_one_hidden_layer_is_unbiased_at_every_width(x64):
    x = inputs_of(7, (5,))
    net = models.from_linen(OneHidden(16))
    walk = networks.Propagation("ntk", "batch")
    images = maps.of_images(jnp.asarray(x)[:, None, None, :])
    hidden = walk.activate(walk.convolve(images, 16, kernel_size=1))
    exact = maps.dense(hidden, features=2, parametrisation="ntk").flat[1]
    deviation, error = deviations(finite_kernels(net, jnp.asarray(x), 300, "batch"), np.asarray(exact))
    assert error.max() < 0.05
    assert (deviation < 4.5 * error).all()


NETS = {  # name: network of a width, statistics, shape of an input, width, networks
    "no skip": (functools.partial(models.ResNet, 2, stage_sizes=(1, 1), skip=False), "batch", (4, 4, 1), 32, 150),
    "no skip, frozen": (functools.partial(models.ResNet, 2, stage_sizes=(1,), skip=False), "frozen", (3, 3, 1), 32, 150),
    "no skip, stored": (functools.partial(models.ResNet, 2, stage_sizes=(1, 1), skip=False), "stored", (3, 3, 1), 32, 200),
    "projection": (functools.partial(models.ResNet, 2, stage_sizes=(1, 1), shortcut="projection"), "batch", (4, 4, 1), 32, 150),
    "projection, stored": (functools.partial(models.ResNet, 2, stage_sizes=(1, 1), shortcut="projection"), "stored", (3, 3, 1), 32, 200),
    "identity": (functools.partial(models.ResNet, 2, stage_sizes=(2, 1)), "batch", (4, 4, 1), 32, 150),
    "pre-activation": (functools.partial(models.ResNet, 2, stage_sizes=(2, 1), pre_activation=True), "batch", (4, 4, 1), 32, 150),
    "identity, stored": (functools.partial(models.ResNet, 2, stage_sizes=(2,)), "stored", (3, 3, 1), 32, 200),
    "identity, no norm": (functools.partial(models.ResNet, 2, stage_sizes=(2,), norm="none"), None, (3, 3, 1), 32, 200),
    "identity, layer norm": (functools.partial(models.ResNet, 2, stage_sizes=(2,), norm="layer"), None, (3, 3, 1), 32, 200),
    "densenet": (functools.partial(models.DenseNet, 2, block_sizes=(2, 1)), "batch", (4, 4, 1), 32, 150),
    "vgg": (functools.partial(models.VGG, 2, norm="batch", pool="average"), "batch", (4, 2, 1), 16, 400),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_means_of_finite_networks(name):
    build, statistics, shape, width, num_nets = NETS[name]
    module, x = build(width=width, parametrisation="ntk"), inputs_of(6, shape)
    options = {"channels": 2**13, "key": KEY} if networks.needs_channels(module, statistics) else {}
    report = infinite_width_kernel(module, shape, statistics=statistics, **options).report(x)
    samples = finite_kernels(models.from_linen(module), jnp.asarray(x, jnp.float32), num_nets, statistics)
    deviation, error = deviations(samples, report.ntk)
    assert error.max() < 0.04  # or the comparison says nothing
    assert report.sampling_error < 0.01
    assert (deviation < 4.5 * error + 1.0 / width + 2 * report.sampling_error).all(), (deviation / error).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["no skip", "projection"])
def test_one_network_comes_close_as_the_root_of_its_width(name):
    build, statistics, shape, _, num_nets = NETS[name]
    x, widths, distances = inputs_of(6, shape), (16, 64), []
    for width in widths:
        module = build(width=width, parametrisation="ntk")
        options = {"channels": 2**13, "key": KEY} if networks.needs_channels(module, statistics) else {}
        exact = infinite_width_kernel(module, shape, statistics=statistics, **options)(x)
        samples = finite_kernels(models.from_linen(module), jnp.asarray(x, jnp.float32), num_nets, statistics)
        distances.append(np.linalg.norm(samples - exact, axis=(1, 2)) / np.linalg.norm(exact))
    exponent = stats.trend(widths, np.transpose(distances), log_values=True)
    assert exponent.high - exponent.low < 0.25
    assert exponent.low - 0.05 < -0.5 < exponent.high + 0.05  # 0.05: terms of the next order, 1 / width


# Kernels as a user meets them


@pytest.mark.slow
def test_sampled_kernels_tell_their_error():
    net = models.ResNet(3, 4, (1,), shortcut="projection", parametrisation="ntk")
    kernel_fn, x = infinite_width_kernel(net, (2, 2, 1), statistics="batch", **SAMPLED), inputs_of(3, (2, 2, 1))
    report = kernel_fn.report(x)
    assert 0 < report.sampling_error < 0.05
    assert report.ntk.dtype == np.float64
    np.testing.assert_array_equal(kernel_fn(x), report.ntk)  # of the same key
    np.testing.assert_allclose(kernel_fn(x, get="nngp"), report.nngp, rtol=1e-9)
    other = infinite_width_kernel(net, (2, 2, 1), statistics="batch", channels=2**11, key=jax.random.key(9)).report(x)
    assert 0 < np.linalg.norm(other.ntk - report.ntk) / np.linalg.norm(report.ntk) < 8 * report.sampling_error


@pytest.mark.slow
def test_regression_by_the_kernel_of_a_joint_batch():
    """Two classes of noisy signals: training and test signals make up one batch, whose kernel is cut."""
    rng = np.random.default_rng(0)
    labels = np.arange(32) % 2
    x = rng.normal(size=(32, 4, 1, 2)) * 0.5 + np.where(labels, 1.0, -1.0)[:, None, None, None] * np.array([1, -1, 1, -1])[:, None, None]
    targets = regression.centred_one_hot(labels[:24], 2)
    options = {"skip": False, "stage_sizes": (1,), "parametrisation": "ntk"}
    kernels = {
        "batch": infinite_width_kernel(models.ResNet(2, 8, **options), (4, 1, 2), statistics="batch")(x),
        "stored": infinite_width_kernel(models.ResNet(2, 8, **options), (4, 1, 2), statistics="stored")(x),
        "none": np.asarray(jax.jit(infinite_width_kernel(models.ResNet(2, 8, norm="none", **options), (4, 1, 2)))(jnp.asarray(x))),
    }
    for name, kernel in kernels.items():
        predictions = regression.kernel_regression(kernel[:24, :24], kernel[24:, :24], targets, ridge=1e-3)
        assert (predictions.argmax(1) == labels[24:]).mean() > 0.8, name
    distances = [
        np.linalg.norm(kernels["batch"] / np.trace(kernels["batch"]) - kernels[n] / np.trace(kernels[n])) for n in ("stored", "none")
    ]
    assert min(distances) > 1e-2  # each kind of statistics has its own kernel


def test_refusals():
    net = models.ResNet(3, 4, (1,), skip=False, parametrisation="ntk")
    kernel_fn, x = infinite_width_kernel(net, (2, 2, 1), statistics="batch"), inputs_of(4, (2, 2, 1))
    with pytest.raises(ValueError, match="batch statistics couple all examples of a batch: give them all as x1"):
        kernel_fn(x, x)
    with pytest.raises(ValueError, match=r"get must be one of \('ntk', 'nngp'\), got 'cov'"):
        kernel_fn(x, get="cov")
    with pytest.raises(ValueError, match=r"takes inputs of shape \(N, 2, 2, 1\), got \(4, 2, 1, 1\)"):
        kernel_fn(x[:, :, :1])
    with pytest.raises(ValueError, match=r"call it outside of jax\.jit"):
        jax.jit(kernel_fn)(x)
    with pytest.raises(ntk.InsufficientMemoryError, match=r"4 examples of 4 pixels take about .* GiB, which memory=9.31e-09 GiB"):
        infinite_width_kernel(net, (2, 2, 1), statistics="batch", memory=10.0)(x)
    with pytest.raises(batch_norm.DegenerateBatchError, match="are all equal"):
        kernel_fn(np.ones((3, 2, 2, 1)) * 0.0)
    with pytest.raises(ValueError, match=r"give key=jax.random.key\(0\) and channels, got channels=8, key=None"):
        infinite_width_kernel(models.ResNet(3, 4, parametrisation="ntk"), (2, 2, 1), statistics="batch", channels=8)
