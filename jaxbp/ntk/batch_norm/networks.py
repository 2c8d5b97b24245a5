"""The networks of `jaxbp.models`, layer by layer, in the limit of infinite width.

`Propagation` knows how a network normalises, draws channels where a sum has no closed form, and keeps what its layers report;
`propagate` walks the configuration that builds the finite network. This module alone of the package imports `jaxbp.models`.

>>> import jax.numpy as jnp
>>> from jaxbp import models
>>> from jaxbp.ntk.batch_norm import networks
>>> net = models.ResNet(10, 64, (1,), skip=False, parametrisation="ntk")
>>> networks.propagate(networks.Propagation("ntk", "stored"), net, jnp.ones((2, 3, 3, 1))).spatial
(1, 1)
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxbp.models import densenet
from jaxbp.models import layers as finite
from jaxbp.models.convnet import ConvNet, pool_window
from jaxbp.models.densenet import DenseNet
from jaxbp.models.resnet import ResNet
from jaxbp.models.vgg import VGG
from jaxbp.ntk.batch_norm import layers, maps
from jaxbp.ntk.batch_norm.layers import COUPLED, Layer
from jaxbp.ntk.batch_norm.maps import Convolution, Map
from jaxbp.ntk.batch_norm.sums import Branch, Carried, sampled_sum_relu
from jaxbp.ops import dtypes


def needs_channels(net: nn.Module, statistics: str | None) -> bool:
    """Whether the network has sums without a closed form: identity shortcuts that carry rectified maps, or sums of normalised maps."""
    if not isinstance(net, ResNet) or not net.skip or getattr(net, "pre_activation", False):
        return False
    return net.shortcut == "identity" or statistics in COUPLED


def propagate(walk: "Propagation", net: nn.Module, images: ArrayLike) -> Map:
    """Logits, a map of one pixel, in float64, of ``images`` (N, H, W, C); ``net`` is a ConvNet, VGG, ResNet or DenseNet."""
    walks: dict[type, Callable[..., Map]] = {ConvNet: _plain, VGG: _plain, ResNet: _resnet, DenseNet: _densenet}
    with dtypes.float64():
        features = walks[type(net)](walk, net, maps.of_images(jnp.asarray(images, float), tangent=walk.tangent))
        return maps.dense(features, features=net.num_classes, parametrisation=walk.parametrisation)


def convolution(spatial: tuple[int, int], *, kernel_size: int, stride: int) -> Convolution:
    """The geometry of the finite network's convolution for maps of extents ``spatial``, padding included."""
    window, strides = finite.window(kernel_size, spatial), finite.window(stride, spatial)
    padding: Any = finite.conv(1, spatial, kernel_size=kernel_size, stride=stride).padding
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(spatial, window, strides, padding)
    return Convolution(window, strides, tuple(tuple(pad) for pad in padding))


class Propagation:
    """Layers of a network in one parametrisation and with one kind of statistics.

    Attributes:
      parametrisation: of the network.
      statistics: of BatchNorm, one of "batch", "frozen", "stored"; None for a network without.
      tangent: whether tangent kernels are wanted.
      reports: (error, tail) of the `Layer`s, first to last.
    """

    def __init__(
        self,
        parametrisation: str,
        statistics: str | None,
        *,
        tangent: bool = True,
        key: jax.Array | None = None,
        channels: int | None = None,
    ):
        self.parametrisation, self.statistics, self.tangent = parametrisation, statistics, tangent
        self.reports: list[tuple[float, float]] = []
        self._key, self._channels = key, channels

    def convolve(self, inputs: Map, features: int, *, kernel_size: int = 3, stride: int = 1, bias: bool = False) -> Map:
        """Pre-activations of a convolution, of the finite network's geometry."""
        geometry = convolution(inputs.spatial, kernel_size=kernel_size, stride=stride)
        return maps.convolved(inputs, geometry, features=features, parametrisation=self.parametrisation, bias=bias)

    def activate(self, inputs: Map) -> Map:
        """Normalisation, if any, and ReLU."""
        return self._noted(inputs, self._closed([inputs]))

    def activate_sum(self, branches: Sequence[Map], carried: Carried | None, *, carry: bool) -> tuple[Map, Carried | None]:
        """ReLU of the sum of branches, each normalised, and of what an identity shortcut has ``carried``.

        Returns its channels, too, if the next shortcut is to ``carry`` them.
        """
        closed = carried is None and (self.statistics not in COUPLED or len(branches) == 1)
        if carry or not closed:
            layer, drawn = self._sampled(branches, carried)
        if closed:
            layer = self._closed(branches)
        return self._noted(branches[0], layer), drawn if carry else None

    def _closed(self, branches: Sequence[Map]) -> Layer:
        if self.statistics is not None and self.statistics in COUPLED:
            return layers.batch_norm_relu(*branches[0].flat, statistics=self.statistics)
        if self.statistics == "stored":
            return layers.stored_norm_relu([branch.flat for branch in branches])
        return layers.relu(*maps.added(branches).flat)

    def _sampled(self, branches: Sequence[Map], carried: Carried | None) -> tuple[Layer, Carried]:
        if self._key is None or self._channels is None:
            raise ValueError("a sum without a closed form needs a key and the number of channels to be drawn")
        self._key, key = jax.random.split(self._key)
        terms = [Branch(*branch.flat, self.statistics) for branch in branches]
        return sampled_sum_relu(key, terms, channels=self._channels, carried=carried)

    def _noted(self, like: Map, layer: Layer) -> Map:
        self.reports.append((layer.error, layer.tail))
        return like.replaced(layer.covariance, layer.tangent)


def _plain(walk: Propagation, net: ConvNet | VGG, features: Map) -> Map:
    bias = walk.statistics is None
    for step in net.steps():
        features = walk.activate(walk.convolve(features, step.channels, stride=step.stride, bias=bias))
        extents = pool_window(step.pool, features.spatial)
        if max(extents) > 1:
            features = maps.pooled(features, extents)
    return maps.flattened(features)


def _resnet(walk: Propagation, net: ResNet, images: Map) -> Map:
    def normalised(features: Map) -> Map:
        """By LayerNorm; BatchNorm is part of an activation."""
        return maps.layer_normalised(features, finite.EPSILON) if net.norm == "layer" else features

    def convolve(features: Map, channels: int, **options: int) -> Map:
        return walk.convolve(features, channels, bias=net.norm != "batch", **options)

    if getattr(net, "pre_activation", False):
        return _pre_activation(walk, net, images, convolve, normalised)
    carries = [*_carries(net), False]
    features, carried = walk.activate_sum([normalised(convolve(images, net.width))], None, carry=carries[0])
    for place, (channels, stride) in enumerate(net.blocks()):
        inner = walk.activate(normalised(convolve(features, channels, stride=stride)))
        branches = [normalised(convolve(inner, channels))]
        if net.skip and not carries[place]:
            branches.append(normalised(convolve(features, channels, kernel_size=1, stride=stride)))
        features, carried = walk.activate_sum(branches, carried, carry=carries[place + 1])
    return maps.globally_pooled(features)


def _pre_activation(walk: Propagation, net: ResNet, images: Map, convolve: Callable[..., Map], normalised: Callable[[Map], Map]) -> Map:
    """Shortcuts carry sums of convolutions, which are Gaussian, so that all is in closed form."""
    features = convolve(images, net.width)
    for (channels, stride), identity in zip(net.blocks(), _carries(net), strict=True):
        active = walk.activate(normalised(features))
        branch = convolve(walk.activate(normalised(convolve(active, channels, stride=stride))), channels)
        if net.skip:
            shortcut = features if identity else convolve(active, channels, kernel_size=1, stride=stride)
            branch = maps.added([branch, shortcut])
        features = branch
    return maps.globally_pooled(walk.activate(normalised(features)))


def _carries(net: ResNet) -> list[bool]:
    """Of each block whether its shortcut is the identity."""
    widths = [net.width, *(channels for channels, _ in net.blocks())]
    identity = net.skip and net.shortcut == "identity"
    return [identity and stride == 1 and channels == before for (channels, stride), before in zip(net.blocks(), widths, strict=False)]


def _densenet(walk: Propagation, net: DenseNet, images: Map) -> Map:
    active = [walk.activate(walk.convolve(images, net.width))]  # of the convolutions whose channels stand side by side
    for block, num_layers in enumerate(net.block_sizes):
        if block > 0:
            features = maps.concatenated(active)
            features = walk.convolve(features, features.channels // densenet.COMPRESSION, kernel_size=1)
            active = [walk.activate(maps.pooled(features, finite.window(densenet.POOL_WINDOW, features.spatial)))]
        for _ in range(num_layers):
            bottleneck = walk.convolve(maps.concatenated(active), densenet.BOTTLENECK * net.growth_rate, kernel_size=1)
            active.append(walk.activate(walk.convolve(walk.activate(bottleneck), net.growth_rate)))
    return maps.globally_pooled(maps.concatenated(active))
