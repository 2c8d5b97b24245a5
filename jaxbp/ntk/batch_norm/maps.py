"""Linear layers of infinite width on whole maps: what convolutions, pooling and read-outs do to covariance and tangent kernel.

A map of N examples and H x W pixels has arrays (N, H, W, N, H, W): (D, D) matrices over all pixels of all examples, D = N H W, seen
another way. Kernels have the variance 2 / fan_in. In the "standard" parametrisation a layer's own share of the tangent kernel grows
with its fan_in, in the "ntk" parametrisation it does not.

>>> import jax.numpy as jnp
>>> from jaxbp.ntk.batch_norm import maps
>>> images = maps.of_images(jnp.ones((2, 4, 4, 3)))
>>> maps.convolved(images, maps.Convolution((3, 3), (2, 2), ((1, 1), (1, 1))), features=8, parametrisation="ntk").covariance.shape
(2, 2, 2, 2, 2, 2)
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

Kernel = Float[Array, "N H W N H W"]


class Convolution(NamedTuple):
    """The geometry of a convolution.

    Attributes:
      window, strides: pixels, along height and width.
      padding: zeros before and after the map, along height and width.
    """

    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Map:
    """A map in the limit of infinite width; channels are independent and alike.

    Attributes:
      covariance: (N, H, W, N, H, W), mean over channels of products.
      tangent: of the same shape, mean over channels of tangent kernels; None where the NNGP alone is wanted.
      channels: their number in the finite network, which "standard" parametrisation and concatenation ask for.
    """

    covariance: Kernel
    tangent: Kernel | None
    channels: int

    @property
    def spatial(self) -> tuple[int, int]:
        """Height and width."""
        _, height, width = self.covariance.shape[:3]
        return height, width

    @property
    def flat(self) -> tuple[Float[Array, "D D"], Float[Array, "D D"] | None]:
        """Covariance and tangent kernel as matrices."""
        size = math.prod(self.covariance.shape[:3])
        return self.covariance.reshape(size, size), None if self.tangent is None else self.tangent.reshape(size, size)

    def replaced(self, covariance: Float[ArrayLike, "D D"], tangent: Float[ArrayLike, "D D"] | None) -> "Map":
        """The map of other matrices."""
        shape = self.covariance.shape
        return Map(jnp.reshape(covariance, shape), None if tangent is None else jnp.reshape(tangent, shape), self.channels)


def of_images(images: Float[Array, "N H W C"], *, tangent: bool = True) -> Map:
    """Inputs as a map: they have no tangent kernel, which is 0 then, or None without ``tangent``."""
    covariance = jnp.einsum("nhwc,mijc->nhwmij", images, images) / images.shape[-1]
    return Map(covariance, jnp.zeros_like(covariance) if tangent else None, images.shape[-1])


def convolved(inputs: Map, convolution: Convolution, *, features: int, parametrisation: str, bias: bool = False) -> Map:
    """Pre-activations of a convolution to ``features`` channels, with a trained bias or none."""
    covariance = 2 * window_means(inputs.covariance, convolution)
    if inputs.tangent is None:
        return Map(covariance, None, features)
    before = 2 * window_means(inputs.tangent, convolution)
    own = _share(math.prod(convolution.window) * inputs.channels, parametrisation)
    return Map(covariance, own * covariance + before + (1.0 if bias else 0.0), features)


def pooled(inputs: Map, window: tuple[int, ...]) -> Map:
    """Averages over windows that do not overlap; pixels beyond the last whole window are left out, as Flax does."""
    rows, columns = (extent // pixels for extent, pixels in zip(inputs.spatial, window, strict=True))

    def means(kernel: Kernel) -> Kernel:
        """Over both windows independently."""
        down, across = slice(rows * window[0]), slice(columns * window[1])
        cut = kernel[:, down, across, :, down, across]
        return cut.reshape((len(kernel), rows, window[0], columns, window[1]) * 2).mean((2, 4, 7, 9))

    return Map(means(inputs.covariance), None if inputs.tangent is None else means(inputs.tangent), inputs.channels)


def globally_pooled(inputs: Map) -> Map:
    """Averages over all pixels, a map of one."""
    return pooled(inputs, inputs.spatial)


def flattened(inputs: Map) -> Map:
    """The map as features of one pixel, H W as many: products of equal pixels are averaged."""

    def means(kernel: Kernel) -> Kernel:
        return jnp.einsum("nhwmhw->nm", kernel)[:, None, None, :, None, None] / math.prod(inputs.spatial)

    tangent = None if inputs.tangent is None else means(inputs.tangent)
    return Map(means(inputs.covariance), tangent, inputs.channels * math.prod(inputs.spatial))


def dense(inputs: Map, *, features: int, parametrisation: str) -> Map:
    """A dense layer with a trained bias, on a map of one pixel."""
    return convolved(inputs, Convolution((1, 1), (1, 1), ((0, 0), (0, 0))), features=features, parametrisation=parametrisation, bias=True)


def added(terms: Sequence[Map]) -> Map:
    """The sum of independent maps of equal shapes."""
    return _combined(terms, [1.0] * len(terms), terms[0].channels)


def concatenated(parts: Sequence[Map]) -> Map:
    """The map whose channels are those of all parts: means weighted by their numbers, whose ratios stay as the network grows wide."""
    total = sum(part.channels for part in parts)
    return _combined(parts, [part.channels / total for part in parts], total)


def layer_normalised(inputs: Map, epsilon: float) -> Map:
    """LayerNorm over channels, without scale and bias: each pixel's variance over channels is that of the limit."""
    variances = jnp.diagonal(inputs.flat[0]).reshape(inputs.covariance.shape[:3]) + epsilon
    scale = jax.lax.rsqrt(variances[..., None, None, None] * variances)
    return Map(inputs.covariance * scale, None if inputs.tangent is None else inputs.tangent * scale, inputs.channels)


@functools.partial(jax.jit, static_argnames=("convolution",))
def window_means(kernel: Kernel, convolution: Convolution) -> Kernel:
    """Mean of ``kernel`` over pairs of pixels at equal places of the windows of two outputs; outside the map it is 0."""
    padded = jnp.pad(kernel, ((0, 0), *convolution.padding) * 2)
    down, across = (
        _places(extent, size, stride)
        for extent, size, stride in zip(padded.shape[1:3], convolution.window, convolution.strides, strict=True)
    )
    slices = [padded[:, rows, columns, :, rows, columns] for rows in down for columns in across]
    return functools.reduce(jnp.add, slices) / len(slices)


def _places(extent: int, size: int, stride: int) -> list[slice]:
    """For each place of a window, the pixels that outputs see there, along an axis of ``extent`` pixels, padding included."""
    last = (extent - size) // stride * stride
    return [slice(place, place + last + 1, stride) for place in range(size)]


def _combined(terms: Sequence[Map], weights: Sequence[float], channels: int) -> Map:
    def weighted(kernels: list[Kernel]) -> Kernel:
        return functools.reduce(jnp.add, (weight * kernel for weight, kernel in zip(weights, kernels, strict=True)))

    tangents = [term.tangent for term in terms if term.tangent is not None]
    return Map(weighted([term.covariance for term in terms]), weighted(tangents) if tangents else None, channels)


def _share(fan_in: int, parametrisation: str) -> float:
    return fan_in / 2 if parametrisation == "standard" else 1.0
