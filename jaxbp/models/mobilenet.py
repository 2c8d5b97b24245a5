"""MobileNetV2 with strides for CIFAR (paper, Studies 2 and 3): inverted residuals around depthwise convolutions.

After Sandler et al. (CVPR 2018), Table 2. For images of 32 pixels the stem and the first two stages keep the full
resolution. Differs from the source in that every layer scales with the width, the last one too, and channels
are rounded to whole numbers rather than to multiples of 8, so that narrow versions are narrow throughout.

>>> import jax, jax.numpy as jnp
>>> from jaxbp.models.mobilenet import MobileNet
>>> variables = jax.eval_shape(MobileNet(10).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
>>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
2236682
"""

from typing import Any

import flax.linen as nn
import jax

from jaxbp.models.layers import check_images, conv, dense, normalise

_STEM = 32
_LAST = 1280
# expansion, channels, blocks, stride of the first block
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class InvertedResidual(nn.Module):
    """Widen by ``expansion``, convolve each channel alone, project to ``channels`` without activation; add where shapes agree."""

    channels: int
    expansion: int
    stride: int
    options: Any  # of every convolution, as pairs

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """The next map, (N, H / stride, W / stride, channels) of one (N, H, W, C)."""
        options = dict(self.options)
        wide = inputs.shape[-1] * self.expansion
        features = inputs
        if self.expansion > 1:
            features = _conv_norm(features, wide, kernel_size=1, train=train, **options)
            features = nn.relu6(features)
        features = nn.relu6(_conv_norm(features, wide, stride=self.stride, groups=wide, train=train, **options))
        features = _conv_norm(features, self.channels, kernel_size=1, train=train, **options)
        return features + inputs if self.stride == 1 and inputs.shape == features.shape else features


class MobileNet(nn.Module):
    """MobileNetV2 from images (N, H, W, C), or signals (N, L, 1, C), to logits (N, num_classes).

    ``width``: channels of the stem, 32 in the source, with which all others scale; ``stages``: how many of the seven
    stages to keep, from the first; ``parametrisation``, ``formulation``, ``dtype``: of the layers, see `jaxbp.models.layers`.

    Raises:
      ValueError: at construction, a number of stages that is not from 1 to 7.
    """

    num_classes: int
    width: int = _STEM
    stages: int = len(_STAGES)
    parametrisation: str = "standard"
    formulation: str = "auto"
    dtype: str = "float32"

    def __post_init__(self):
        if not 1 <= self.stages <= len(_STAGES):
            raise ValueError(f"stages must be from 1 to {len(_STAGES)}, got {self.stages}")
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits of ``inputs`` (N, H, W, C), with batch statistics if ``train``, else with the stored ones."""
        check_images(inputs)
        options = {"parametrisation": self.parametrisation, "formulation": self.formulation, "dtype": self.dtype}
        features = nn.relu6(_conv_norm(inputs, self.width, train=train, **options))
        for expansion, channels, num_blocks, stride in _STAGES[: self.stages]:
            for block in range(num_blocks):
                residual = InvertedResidual(self._scaled(channels), expansion, stride if block == 0 else 1, tuple(options.items()))
                features = residual(features, train=train)
        features = nn.relu6(_conv_norm(features, self._scaled(_LAST), kernel_size=1, train=train, **options))
        features = features.mean((1, 2))
        self.sow("intermediates", "features", features)
        return dense(self.num_classes, parametrisation=self.parametrisation)(features)

    def _scaled(self, channels: int) -> int:
        return max(1, round(channels * self.width / _STEM))


def _conv_norm(features: jax.Array, channels: int, *, train: bool, **options) -> jax.Array:
    features = conv(channels, features.shape[1:3], use_bias=False, **options)(features)
    return normalise(features, "batch", train=train)
