"""DenseNet-BC for CIFAR ("Truth or Backpropaganda?", Table 2): each layer reads the maps of all layers before it in its block.

Huang et al. (CVPR 2017), section 3: a layer adds k channels, the growth rate, to those it reads, by a 1x1 convolution to 4k
channels (B, the bottleneck) and one of 3 pixels, each behind BatchNorm and ReLU; between blocks a transition halves
the channels (C, the compression) and pools by 2. Three blocks of six layers are DenseNet-40, with one convolution
before, two transitions and a linear head. Pooling is left out along an axis that has come down to one pixel, so
smaller images and signals pass.

With the growth rate of 12 and 10 classes it has 176,122 parameters; the plain DenseNet-40 of the source's Table 2, without
B and C, has 1.0M.

>>> import jax, jax.numpy as jnp
>>> from jaxbp.models.densenet import DenseNet
>>> variables = jax.eval_shape(DenseNet(10).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
>>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
176122
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxbp.models.layers import conv, dense, normalise, window

BOTTLENECK = 4  # channels between a layer's two convolutions, in growth rates
_STEM = 2  # channels of the stem, in growth rates
COMPRESSION = 2  # by which a transition divides channels
POOL_WINDOW = 2


class DenseLayer(nn.Module):
    """A bottleneck and a convolution, whose ``growth_rate`` channels are appended to what came in."""

    growth_rate: int
    options: Any  # of every convolution, as pairs

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """The next map, (N, H, W, C + growth_rate) of one (N, H, W, C)."""
        options = {"train": train} | dict(self.options)
        features = _norm_relu_conv(inputs, BOTTLENECK * self.growth_rate, kernel_size=1, **options)
        return jnp.concatenate([inputs, _norm_relu_conv(features, self.growth_rate, **options)], axis=-1)


class DenseNet(nn.Module):
    """A DenseNet-BC from images (N, H, W, C), or signals (N, L, 1, C), to logits (N, num_classes).

    ``width``: channels of the stem, 24 in the source, twice the growth rate; ``block_sizes``: layers of each block, six in
    each of three in DenseNet-40; ``parametrisation``, ``formulation``, ``dtype``: of the layers, see `jaxbp.models.layers`.

    Raises:
      ValueError: at construction, no or empty blocks.
    """

    num_classes: int
    width: int = 24
    block_sizes: tuple[int, ...] = (6, 6, 6)
    parametrisation: str = "standard"
    formulation: str = "auto"
    dtype: str = "float32"

    def __post_init__(self):
        if min(self.block_sizes, default=0) < 1:
            raise ValueError(f"block_sizes must name at least one block, each of at least 1 layer, got {self.block_sizes}")
        super().__post_init__()

    @property
    def growth_rate(self) -> int:
        """Channels that each layer adds."""
        return max(1, round(self.width / _STEM))

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits of ``inputs`` (N, H, W, C), with batch statistics if ``train``, else with the stored ones."""
        options: dict[str, Any] = {
            "parametrisation": self.parametrisation,
            "formulation": self.formulation,
            "dtype": self.dtype,
        }
        features = conv(self.width, inputs.shape[1:3], use_bias=False, **options)(inputs)
        for block, num_layers in enumerate(self.block_sizes):
            if block > 0:
                features = _transition(features, train=train, **options)
            for _ in range(num_layers):
                features = DenseLayer(self.growth_rate, tuple(options.items()))(features, train=train)
        features = nn.relu(normalise(features, "batch", train=train)).mean((1, 2))
        self.sow("intermediates", "features", features)
        return dense(self.num_classes, parametrisation=self.parametrisation)(features)


def _transition(features: jax.Array, **options: Any) -> jax.Array:
    features = _norm_relu_conv(features, features.shape[-1] // COMPRESSION, kernel_size=1, **options)
    extents = window(POOL_WINDOW, features.shape[1:3])
    return nn.avg_pool(features, extents, extents)


def _norm_relu_conv(features: jax.Array, channels: int, *, train: bool, **options: Any) -> jax.Array:
    features = nn.relu(normalise(features, "batch", train=train))
    return conv(channels, features.shape[1:3], use_bias=False, **options)(features)
