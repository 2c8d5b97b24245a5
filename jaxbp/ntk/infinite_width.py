"""Exact kernels of infinitely wide Flax networks, from the configuration of the finite network.

As the widths grow, a network at initialisation becomes a Gaussian process, whose covariance is the NNGP kernel (Lee et
al., ICLR 2018), and its tangent kernel becomes deterministic (Jacot et al., NeurIPS 2018). Both follow layer by layer
from the covariance between pixels of pairs of inputs (Arora et al., NeurIPS 2019), which neural-tangents computes.
One convention differs from that package: biases are learned but start at 0, so a layer's share of the tangent kernel has one
more term, 1, that the covariance does not have.

neural-tangents knows neither BatchNorm nor identity shortcuts around a ReLU. `jaxbp.ntk.batch_norm` does: with batch statistics all
examples of a batch depend on one another, so that its kernels are those of whole batches.

This module and `jaxbp.ntk.batch_norm.networks` alone of `jaxbp.ntk` import `jaxbp.models`, because they translate their configurations;
`jaxbp.ntk` does not import them.

>>> import jax.numpy as jnp
>>> from jaxbp import models
>>> from jaxbp.ntk.infinite_width import infinite_width_kernel
>>> net = models.create("mlp", num_classes=10, width=64, parametrisation="ntk")
>>> kernel_fn = infinite_width_kernel(net.module, (8, 8, 1))
>>> kernel_fn(jnp.ones((3, 8, 8, 1)), jnp.ones((2, 8, 8, 1)), get="nngp").shape
(3, 2)
>>> net = models.ResNet(10, 64, (1,), skip=False, parametrisation="ntk")
>>> kernel_fn = infinite_width_kernel(net, (4, 4, 1), statistics="stored")
>>> kernel_fn.report(jnp.eye(4)[None, :, :, None]).ntk.shape
(1, 1)
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from jaxbp.models.convnet import ConvNet, pool_window
from jaxbp.models.densenet import DenseNet
from jaxbp.models.layers import EPSILON, window
from jaxbp.models.mlp import MLP
from jaxbp.models.mobilenet import MobileNet
from jaxbp.models.resnet import ResNet
from jaxbp.models.vgg import VGG
from jaxbp.ntk import compat
from jaxbp.ntk.batch_norm.kernels import KERNELS, MEMORY, PropagatedKernel
from jaxbp.ntk.batch_norm.networks import needs_channels

STATISTICS = ("batch", "frozen", "stored")
KernelFn = Callable[..., Float[Array, "N M"]]  # (x1 (N, ...), x2 (M, ...) or None, get) -> (N, M)


class NoExactKernelError(ValueError):
    """The network has no infinite-width kernel in closed form."""


def infinite_width_kernel(
    net: nn.Module,
    input_shape: Sequence[int],
    *,
    statistics: str | None = None,
    channels: int | None = None,
    key: jax.Array | None = None,
    normal_kernels: bool = False,
    memory: float = MEMORY,
) -> KernelFn | PropagatedKernel:
    """The exact kernels of one logit of ``net`` in the limit of infinite width; all C logits have the same kernel.

    In the "ntk" parametrisation the empirical kernel (``logits="trace"``, divided by C) converges to it. In the "standard"
    parametrisation a layer's share of the tangent kernel grows with its fan_in; the result is then the leading term, with the
    fan_ins of ``net``. But "standard" draws weights from a uniform distribution, so the pre-activations of the *first*
    layer, sums over as few terms as it has inputs, are not Gaussian at any width. The result is then the kernel for
    normal weights of the same variance, and only with ``normal_kernels=True``.

    With batch statistics it is the limit of ``empirical_ntk(models.with_batch_statistics(net), ..., coupled=True)``. The tangent kernel
    of a chain with BatchNorm and without shortcuts grows by up to pi / (pi - 1) = 1.467 a layer (Yang et al., ICLR 2019).

    Args:
      net: an `MLP`; a `ConvNet` or `VGG` without max-pooling; a `ResNet` with any norm but "fixup"; a `DenseNet`. Widths matter in the
        "standard" parametrisation only; ``dtype`` is ignored: the limit is that of exact arithmetic.
      input_shape: of one example, (H, W, C); any shape for an MLP.
      statistics: for networks with BatchNorm: "batch", those of the batch; "frozen", the same, held constant in the derivative; "stored",
        those that are stored at initialisation, mean 0 and variance 1. None for networks without.
      channels, key: for sums without a closed form, which are identity shortcuts, and any shortcut with statistics of the batch: a power
        of 2, and the random key, of channels that are drawn (`jaxbp.ntk.batch_norm.sums`). The error, about channels^(-1/2), is part of
        the report.
      normal_kernels: accept, for "standard", the kernel of normal weights. The error is about 5 % / n in a first layer of n inputs.
      memory: bytes that a kernel by propagation may hold, that is one with ``statistics`` or ``channels``.

    Returns:
      ``kernel_fn(x1, x2=None, get="ntk")`` with ``get`` one of `KERNELS`, from (N, ...) and (M, ...), default the
      same, to (N, M), in the precision of the inputs. Memory of networks that pool grows with N M (H W)^2. With ``statistics`` or where
      channels are drawn it is a `PropagatedKernel`: NumPy arrays of float64, not to be called under jit, memory (N + M)^2 (H W)^2; with
      statistics of the batch without x2. Its ``report(x)`` has both kernels and estimates of their errors.

    Raises:
      NoExactKernelError: the network has no exact kernel; the message names a similar network that has one.
      ValueError: arguments that do not suit the network; when called, inputs of another shape or an unknown ``get``.
    """
    _refuse(net, statistics, channels, normal_kernels)
    input_shape = tuple(input_shape)
    sampled = needs_channels(net, statistics)
    if sampled and (key is None or channels is None):
        raise ValueError(f"channels are drawn with a key: give key=jax.random.key(0) and channels, got channels={channels}, key={key}")
    if sampled or statistics is not None:
        return PropagatedKernel(net, input_shape, statistics, channels if sampled else None, key, memory)
    layers = _Layers(net.parametrisation)
    builders: dict[type, Callable[..., list]] = {MLP: _mlp, ConvNet: _plain, VGG: _plain, ResNet: _resnet}
    kernels = layers.stax.serial(*builders[type(net)](layers, net, input_shape))[2]

    def kernel_fn(x1: jax.Array, x2: jax.Array | None = None, get: str = "ntk") -> jax.Array:
        if get not in KERNELS:
            raise ValueError(f"get must be one of {KERNELS}, got {get!r}")
        for x in (x1,) if x2 is None else (x1, x2):
            if x.shape[1:] != input_shape:
                raise ValueError(f"this kernel takes inputs of shape (N, {', '.join(map(str, input_shape))}), got {x.shape}")
        return kernels(x1, x2, get)

    return kernel_fn


def _refuse(net: nn.Module, statistics: str | None, channels: int | None, normal_kernels: bool) -> None:
    """Raise `NoExactKernelError` for networks without an exact kernel, naming a similar network or an argument with which there is one."""
    known = isinstance(net, MLP | ConvNet | VGG | ResNet | MobileNet | DenseNet)
    normalised = isinstance(net, DenseNet) or getattr(net, "norm", "") == "batch"
    if statistics not in (None, *STATISTICS):
        raise ValueError(f"statistics must be None or one of {STATISTICS}, got {statistics!r}")
    if statistics is not None and known and not normalised and not isinstance(net, MobileNet):
        raise ValueError(f"statistics are those of BatchNorm, which this {type(net).__name__} does not have: leave them out")
    reasons = {
        "max-pooling has no kernel in closed form: choose pool='average'": getattr(net, "pool", "") == "max",
        "Fixup starts with branches and logits of 0: choose norm='none' (or 'layer')": getattr(net, "norm", "") == "fixup",
        "BatchNorm has one kernel for each kind of statistics: say statistics='batch', 'frozen' or 'stored', or choose norm='none'": (
            normalised and statistics is None
        ),
        "the stem for large images pools by maxima: choose stem='small'": getattr(net, "stem", "") == "large",
        "depthwise convolutions sum over too few terms: take a ResNet": isinstance(net, MobileNet),
        "only MLP, ConvNet, VGG, ResNet and DenseNet are known here: build it with neural_tangents.stax": not known,
    }
    obstacles = [reason for reason, holds in reasons.items() if holds]
    if not obstacles and channels is None and needs_channels(net, statistics):
        carried = net.shortcut == "identity"
        obstacles = [
            ("an identity shortcut carries a rectified map" if carried else "its shortcuts add two normalised maps")
            + ", and the sum is not Gaussian: draw its channels with channels=8192 and key=jax.random.key(0), or choose "
            + ("shortcut='projection' or skip=False" if carried and statistics in (None, "stored") else "skip=False")
        ]
    if not obstacles and net.parametrisation == "standard" and not normal_kernels:
        obstacles = [
            "its first layer's uniform kernels make no Gaussian pre-activations: choose parametrisation='ntk', or accept the kernel of "
            "normal weights with normal_kernels=True"
        ]
    if obstacles:
        raise NoExactKernelError(f"{type(net).__name__} has no exact infinite-width kernel: {'; '.join(obstacles)}")


class _Layers:
    """neural-tangents' layers, with the conventions of `jaxbp.models.layers`."""

    def __init__(self, parametrisation: str):
        self.stax = compat.load().stax
        self._law = {"W_std": math.sqrt(2), "b_std": None, "parameterization": parametrisation}

    def dense(self, features: int) -> Any:
        return self._biased(self.stax.Dense(features, **self._law))

    def conv(self, features: int, spatial: tuple[int, ...], *, kernel_size: int = 3, stride: int = 1) -> Any:
        extents, strides = window(kernel_size, spatial), window(stride, spatial)
        return self._biased(self.stax.Conv(features, extents, strides, "SAME", **self._law))

    def normalised(self, layer: Any, norm: str) -> Any:
        return self.stax.serial(layer, self.stax.LayerNorm(eps=EPSILON)) if norm == "layer" else layer

    def _biased(self, layer: Any) -> Any:
        """The layer with a learned bias that starts at 0: d output / d bias = 1 at every pixel, for every input."""

        @self.stax.layer
        def learned_bias() -> Any:
            def add_one(kernel: Any, **_: Any) -> Any:
                return kernel if kernel.ntk is None else kernel.replace(ntk=kernel.ntk + 1)

            return lambda key, shape: (shape, ()), lambda params, inputs, **_: inputs, add_one

        return self.stax.serial(layer, learned_bias())


def _mlp(layers: _Layers, net: MLP, input_shape: tuple[int, ...]) -> list[Any]:
    hidden = [layers.stax.serial(layers.dense(width), layers.stax.Relu()) for width in net.widths]
    return [layers.stax.Flatten(), *hidden, layers.dense(net.num_classes)]


def _plain(layers: _Layers, net: ConvNet | VGG, input_shape: tuple[int, ...]) -> list[Any]:
    stack, spatial = [], input_shape[:2]
    for step in net.steps():
        stack += [layers.conv(step.channels, spatial, stride=step.stride), layers.stax.Relu()]
        spatial = _strided(spatial, step.stride)
        extents = pool_window(step.pool, spatial)
        if max(extents) > 1:
            stack.append(layers.stax.AvgPool(extents, extents, "VALID"))
            spatial = tuple(extent // pixels for extent, pixels in zip(spatial, extents, strict=True))
    return [*stack, layers.stax.Flatten(), layers.dense(net.num_classes)]


def _resnet(layers: _Layers, net: ResNet, input_shape: tuple[int, ...]) -> list[Any]:
    stax, spatial = layers.stax, input_shape[:2]
    stack = [layers.normalised(layers.conv(net.width, spatial), net.norm), stax.Relu()]
    for channels, stride in net.blocks():
        after = _strided(spatial, stride)
        first = layers.normalised(layers.conv(channels, spatial, stride=stride), net.norm)
        second = layers.normalised(layers.conv(channels, after), net.norm)
        block = stax.serial(first, stax.Relu(), second)
        if net.skip:
            shortcut = layers.normalised(layers.conv(channels, spatial, kernel_size=1, stride=stride), net.norm)
            block = stax.serial(stax.FanOut(2), stax.parallel(block, shortcut), stax.FanInSum())
        stack += [block, stax.Relu()]
        spatial = after
    return [*stack, stax.GlobalAvgPool(), layers.dense(net.num_classes)]


def _strided(spatial: tuple[int, ...], stride: int) -> tuple[int, ...]:
    """Extents of a map after a convolution with padding SAME."""
    return tuple(-(-extent // step) for extent, step in zip(spatial, window(stride, spatial), strict=True))
