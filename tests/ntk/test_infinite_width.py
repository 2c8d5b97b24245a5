import functools
import math

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxbp import models, ntk
from jaxbp.models import layers
from jaxbp.ntk.infinite_width import NoExactKernelError, infinite_width_kernel

NUM_NETS = 400
PROJECTED = {"shortcut": "projection"}
# name: width, shape of an input, options. Widths at which the means over networks are within a few percent of the limit.
CASES = {
    "mlp": (64, (5,), {"depth": 2}),
    "convnet, average": (24, (4, 4, 1), {"depth": 2, "pool": "average"}),
    "convnet, stride": (24, (7, 1, 2), {"depth": 2, "pool": "stride"}),
    "resnet, no skip": (24, (4, 3, 1), {"depth": 1, "stages": 1, "norm": "none", "skip": False}),
    "resnet, skip": (24, (3, 4, 1), {"depth": 1, "stages": 2, "norm": "none", **PROJECTED}),
    "resnet, pre-activation": (24, (3, 4, 1), {"depth": 1, "stages": 2, "norm": "none", "pre_activation": True}),
    "resnet, layer norm": (32, (4, 4, 1), {"depth": 1, "stages": 1, "norm": "layer", **PROJECTED}),
}


def create(name, *, parametrisation="ntk", width=None):
    usual, _, options = CASES[name]
    family = name.split(",")[0]
    return models.create(family, num_classes=3, width=width or usual, parametrisation=parametrisation, **options)


def inputs_of(num, shape):
    return np.random.default_rng(1).normal(size=(num, *shape))


def both_kernels(kernel_fn, x):
    """NTK and NNGP in one program: operation by operation a kernel compiles a hundred."""
    return jax.jit(lambda x: (kernel_fn(x), kernel_fn(x, get="nngp")))(x)


# Against the recursion, written by hand


def by_hand(x, fan_ins, share):
    """NNGP and NTK of an MLP: K' = 2 E[relu relu], T' = share(fan_in) K' + 1 + 2 E[step step] T (Cho & Saul; Jacot et al.)."""
    covariance, tangent = None, 0.0
    for fan_in in fan_ins:
        if covariance is None:
            covariance, slope = 2 * x @ x.T / fan_in, 0.0
        else:
            norms = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
            angle = np.arccos(np.clip(covariance / norms, -1, 1))
            covariance = norms * (np.sin(angle) + (math.pi - angle) * np.cos(angle)) / math.pi
            slope = (math.pi - angle) / math.pi
        tangent = share(fan_in) * covariance + 1 + slope * tangent
    return covariance, tangent


CHAINS = {  # name: network, shape of an input, fan-ins. On one pixel a convolution is a dense layer, and pooling nothing.
    "mlp": (models.MLP(3, (7, 9)), (2, 3, 1), (6, 7, 9)),
    "convnet": (models.ConvNet(3, 2, pool="average"), (1, 1, 6), (6, 2, 4, 4, 8, 8)),
    "vgg": (models.VGG(3, 2, pool="average"), (1, 1, 6), (6, 2, 4, 8, 8, 16, 16, 16, 16)),
    "resnet": (models.ResNet(3, 4, (2, 1), norm="none", skip=False), (1, 1, 6), (6, 4, 4, 4, 4, 4, 8, 8)),
}
SHORT = (("mlp", "ntk"), ("mlp", "standard"), ("convnet", "standard"), ("resnet", "ntk"))  # the others are with the slow tests


@pytest.mark.first_cases(1)
@pytest.mark.parametrize(
    ("name", "parametrisation"),
    [
        pytest.param(name, parametrisation, marks=[] if (name, parametrisation) in SHORT else pytest.mark.slow)
        for name in CHAINS
        for parametrisation in ("ntk", "standard")
    ],
)
def test_the_kernel_is_the_recursion(name, parametrisation, x64):
    net, input_shape, fan_ins = CHAINS[name]
    x = inputs_of(4, input_shape)
    kernel_fn = infinite_width_kernel(net.clone(parametrisation=parametrisation), input_shape, normal_kernels=True)
    share = (lambda fan_in: fan_in / 2) if parametrisation == "standard" else (lambda fan_in: 1)
    nngp, tangent = by_hand(x.reshape(4, 6), fan_ins, share)
    # Rounding under the root of 1 - cos(angle)^2, on the diagonal where it is 0: about the root of 1e-16.
    for kernel, expected in zip(both_kernels(kernel_fn, x), (tangent, nngp), strict=True):
        np.testing.assert_allclose(kernel, expected, rtol=1e-6)


@pytest.mark.slow
def test_a_residual_network_with_layer_norm_is_the_recursion(x64):
    # On one pixel, where convolutions are dense layers. What enters the second block has variance 2, so that each LayerNorm counts.
    def dense(k, t):
        return 2 * k, 2 * k + 1 + 2 * t

    def normalise(k, t):
        variances = np.diag(k) + layers.EPSILON
        return k / np.sqrt(np.outer(variances, variances)), t / np.sqrt(np.outer(variances, variances))

    def relu(k, t):
        norms = np.sqrt(np.outer(np.diag(k), np.diag(k)))
        angle = np.arccos(np.clip(k / norms, -1, 1))
        return norms * (np.sin(angle) + (math.pi - angle) * np.cos(angle)) / (2 * math.pi), t * (math.pi - angle) / (2 * math.pi)

    x = inputs_of(4, (1, 1, 6))
    kernels = relu(*normalise(*dense(x.reshape(4, 6) @ x.reshape(4, 6).T / 6, 0.0)))
    for _ in range(2):
        branch, shortcut = normalise(*dense(*relu(*normalise(*dense(*kernels))))), normalise(*dense(*kernels))
        kernels = relu(branch[0] + shortcut[0], branch[1] + shortcut[1])
    net = models.ResNet(3, 4, (2,), norm="layer", shortcut="projection", parametrisation="ntk")
    for kernel, expected in zip(both_kernels(infinite_width_kernel(net, (1, 1, 6)), x), reversed(dense(*kernels)), strict=True):
        np.testing.assert_allclose(kernel, expected, rtol=1e-6)


@pytest.mark.parametrize("shortcut", ["identity", pytest.param("projection", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_pre_activation_network_is_the_recursion(shortcut, x64):
    def dense(k, t):
        return 2 * k, 2 * k + 1 + 2 * t

    def relu(k, t):
        norms = np.sqrt(np.outer(np.diag(k), np.diag(k)))
        angle = np.arccos(np.clip(k / norms, -1, 1))
        return norms * (np.sin(angle) + (math.pi - angle) * np.cos(angle)) / (2 * math.pi), t * (math.pi - angle) / (2 * math.pi)

    x = inputs_of(4, (1, 1, 6))
    kernels = dense((x[:, 0, 0] @ x[:, 0, 0].T) / 6, 0.0)
    for _ in range(2):
        read = relu(*kernels)
        branch, side = dense(*relu(*dense(*read))), dense(*read) if shortcut == "projection" else kernels
        kernels = branch[0] + side[0], branch[1] + side[1]
    net = models.ResNet(3, 4, (2,), norm="none", shortcut=shortcut, pre_activation=True, parametrisation="ntk")
    for kernel, expected in zip(both_kernels(infinite_width_kernel(net, (1, 1, 6)), x), reversed(dense(*relu(*kernels))), strict=True):
        np.testing.assert_allclose(kernel, expected, rtol=1e-6)


def test_a_stride_takes_the_pixels_that_a_centred_window_takes(x64):
    """The covariance of a strided convolution's outputs on an even map, summed by hand over windows around pixels 0, 2, ..."""
    shape, x = (4, 6, 2), inputs_of(3, (4, 6, 2))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = np.stack([padded[:, r : r + 3, c : c + 3].reshape(3, -1) for r in (0, 2) for c in (0, 2, 4)], 1)
    covariance = 2 * np.einsum("npi,mpi->nmp", patches, patches) / 18
    own = np.sqrt(np.einsum("nnp->np", covariance))
    angle = np.arccos(np.clip(covariance / (own[:, None] * own[None]), -1, 1))
    expected = own[:, None] * own[None] * (np.sin(angle) + (math.pi - angle) * np.cos(angle)) / math.pi
    net = models.ConvNet(3, 4, depth=1, pool="stride", parametrisation="ntk")
    kernel_fn = infinite_width_kernel(net, shape)
    np.testing.assert_allclose(jax.jit(lambda x: kernel_fn(x, get="nngp"))(x), expected.mean(-1), rtol=1e-6)


# Against finite networks


@functools.cache
def finite_kernels(name, parametrisation):
    """(networks, N, N) tangent kernels and covariances of the logits given the features, of freshly drawn networks."""
    net = create(name, parametrisation=parametrisation)
    x = inputs_of(2, CASES[name][1]).astype(np.float32)

    def kernels(key):
        params, state = net.init(key, x)
        features = net.features(params, x, state)
        return ntk.empirical_ntk(net.apply, params, x, logits="trace") / 3, 2 * features @ features.T / features.shape[1]

    keys = jax.random.split(jax.random.key(0, impl="rbg"), NUM_NETS)  # the generator that compiles fastest
    return dict(zip(("ntk", "nngp"), jax.jit(jax.vmap(kernels))(keys), strict=True))


QUICK = ("mlp",)  # to compile


@pytest.mark.slow
@pytest.mark.parametrize(
    "name,parametrisation",
    [pytest.param(name, "ntk", marks=[pytest.mark.slow] if name not in QUICK else []) for name in CASES]
    + [("convnet, stride", "standard")],
)
def test_means_of_finite_networks(name, parametrisation):
    net, x = create(name, parametrisation=parametrisation), inputs_of(2, CASES[name][1])
    limit = both_kernels(infinite_width_kernel(net.module, x.shape[1:], normal_kernels=True), x)
    for get, expected in zip(("ntk", "nngp"), limit, strict=True):
        expected, found = np.asarray(expected, float), np.asarray(finite_kernels(name, parametrisation)[get], float)
        scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
        error = found.std(0) / math.sqrt(NUM_NETS) / scale
        assert error.max() < 0.04  # or the comparison says nothing
        # The mean's own distance from the limit is O(1 / width). Times the width it was measured, noise included, as
        # 0.1 to 0.7 (ntk) and 0.3 to 1.4 (nngp) in these cases.
        allowed = 4.5 * error + 1.0 / CASES[name][0]
        assert (np.abs(found.mean(0) - expected) / scale < allowed).all(), (get, found.mean(0), expected)


# Identities


@pytest.mark.parametrize("name", ["mlp", pytest.param("convnet, stride", marks=pytest.mark.slow)])
def test_kernels_are_symmetric_positive_and_consistent(name, x64):
    shape = CASES[name][1]
    kernel_fn, x = infinite_width_kernel(create(name).module, shape), inputs_of(5, shape)
    whole, parts = jax.jit(lambda x: [[kernel_fn(*inputs, get) for get in ("ntk", "nngp")] for inputs in ((x, None), (x[:3], x[3:]))])(x)
    for kernel, part in zip(whole, parts, strict=True):
        np.testing.assert_allclose(kernel, kernel.T, rtol=1e-6)
        eigenvalues = np.linalg.eigvalsh(kernel)
        assert eigenvalues[0] > 1e-6 * eigenvalues[-1]
        np.testing.assert_allclose(part, kernel[:3, 3:], rtol=1e-6)


@pytest.mark.parametrize("name", ["mlp", "convnet, average"])
def test_width_does_not_matter(name):
    shape = CASES[name][1]
    kernel_fns = [infinite_width_kernel(create(name, width=width).module, shape) for width in (3, 64)]
    first, second = jax.jit(lambda x: [kernel_fn(x) for kernel_fn in kernel_fns])(inputs_of(2, shape))
    np.testing.assert_array_equal(first, second)


def test_kernels_compile(x64):
    kernel_fn, x = infinite_width_kernel(create("mlp").module, (5,)), inputs_of(3, (5,))
    np.testing.assert_allclose(jax.jit(kernel_fn)(x), kernel_fn(x), rtol=1e-6)


# Networks without an exact kernel


@pytest.mark.parametrize(
    "message,net,statistics",
    [
        ("ConvNet has no exact .* max-pooling .*: choose pool='average'", models.ConvNet(3, 4), None),
        ("VGG has no exact .* max-pooling .*: choose pool='average'", models.VGG(3, 4), None),
        ("max-pooling .*; BatchNorm has one kernel for each .*: say statistics='batch'", models.VGG(3, 4, norm="batch"), None),
        ("max-pooling .*: choose pool='average'$", models.VGG(3, 4, norm="batch"), "batch"),
        ("say statistics='batch', 'frozen' or 'stored', or choose norm='none'", models.ResNet(3, 4, skip=False), None),
        ("DenseNet has no .* say statistics='batch'", models.DenseNet(3, 4), None),
        ("Fixup starts with .* choose norm='none'", models.ResNet(3, 4, norm="fixup", shortcut="projection"), None),
        ("choose stem='small'", models.ResNet(3, 4, norm="none", skip=False, stem="large"), None),
        ("draw its channels with channels=8192 .* choose shortcut='projection' or skip=False", models.ResNet(3, 4, norm="none"), None),
        ("rectified map, .* or choose shortcut='projection' or skip=False", models.ResNet(3, 4), "stored"),
        ("rectified map, .* or choose skip=False", models.ResNet(3, 4), "batch"),
        ("add two normalised maps, .* or choose skip=False", models.ResNet(3, 4, shortcut="projection"), "frozen"),
        ("MobileNet has .* depthwise .*: take a ResNet", models.MobileNet(3), "batch"),
        ("Dense has .* build it with neural_tangents.stax", nn.Dense(3), None),
        ("uniform kernels .*: choose parametrisation='ntk', or .* normal_kernels=True", models.MLP(3, (4,)), None),
        ("uniform kernels .*: choose parametrisation='ntk'", models.ResNet(3, 4, skip=False), "stored"),
    ],
)
def test_networks_without_an_exact_kernel_are_refused(message, net, statistics):
    assert issubclass(NoExactKernelError, ValueError)
    with pytest.raises(NoExactKernelError, match=message):
        infinite_width_kernel(net, (4, 4, 1), statistics=statistics)


def test_statistics_that_do_not_suit_the_network():
    with pytest.raises(ValueError, match="those of BatchNorm, which this MLP does not have: leave them out"):
        infinite_width_kernel(models.MLP(3, (4,)), (5,), statistics="batch")
    with pytest.raises(ValueError, match=r"None or one of \('batch', 'frozen', 'stored'\), got 'calibrated'"):
        infinite_width_kernel(models.ResNet(3, 4), (4, 4, 1), statistics="calibrated")


def test_errors_of_kernels():
    kernel_fn = infinite_width_kernel(create("mlp").module, (5,))
    with pytest.raises(ValueError, match=r"get must be one of \('ntk', 'nngp'\), got 'cov1'"):
        kernel_fn(inputs_of(2, (5,)), get="cov1")
    for wrong in ((inputs_of(2, (4,)),), (inputs_of(2, (5,)), inputs_of(2, (4,)))):
        with pytest.raises(ValueError, match=r"takes inputs of shape \(N, 5\), got \(2, 4\)"):
            kernel_fn(*wrong)
