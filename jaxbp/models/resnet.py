"""ResNets of basic blocks with what "Truth or Backpropaganda?", section 4, takes apart: normalisation, skip connections, width.

He et al. (CVPR 2016) as used on CIFAR: a stem of 3 pixels and stride 1, blocks conv - norm - relu - conv - norm, plus
the shortcut, relu; a global average; a linear head. Four stages of two blocks are ResNet-18 (width 64) and, with stages 2
to 4 widened, the paper's WideResNet; 3, 4, 6 and 3 blocks are ResNet-34; three stages of three blocks, width 16, are
ResNet-20 (section 4.2; the source pads its shortcuts with zeros there, here they are 1x1 convolutions). Pre-activation blocks (He et
al., ECCV 2016; Zagoruyko & Komodakis, BMVC 2016) normalise and rectify before each convolution, so that shortcuts are never
rectified. Between BatchNorm and nothing stand LayerNorm over channels, whose wide limit is known, and Fixup (Zhang, Dauphin, Ma, ICLR
2019), which trains deep ResNets by initialisation alone. The stem for large images (7 pixels of stride 2, a maximum over 3 of stride
2) is that of the ImageNet networks.

>>> import jax, jax.numpy as jnp
>>> from jaxbp.models.resnet import ResNet
>>> variables = jax.eval_shape(ResNet(10, 64).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
>>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
11173962
"""

from typing import Any

import flax.linen as nn
import jax
from flax.linen import initializers

from jaxbp.models import layers
from jaxbp.models.layers import conv, dense, normalise

NORMS = (*layers.NORMS, "fixup")
SHORTCUTS = ("identity", "projection")
STEMS = ("small", "large")


class BasicBlock(nn.Module):
    """Two convolutions, each normalised, beside a shortcut or (``shortcut`` None) none."""

    channels: int
    stride: int
    norm: str
    shortcut: str | None
    options: Any  # of every convolution, as pairs

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """The next map, (N, H / stride, W / stride, channels) of one (N, H, W, C)."""

        def conv_norm(features: jax.Array, **options: Any) -> jax.Array:
            layer = conv(self.channels, features.shape[1:3], use_bias=self.norm != "batch", **options, **dict(self.options))
            return normalise(layer(features), self.norm, train=train)

        features = conv_norm(nn.relu(conv_norm(inputs, stride=self.stride)))
        if projects(self, inputs.shape[-1]):
            features += conv_norm(inputs, kernel_size=1, stride=self.stride)
        elif self.shortcut:
            features += inputs
        return nn.relu(features)


class PreActivationBlock(nn.Module):
    """Norm - relu - conv, twice, beside a shortcut that nothing rectifies; a convolution in it reads what the branch reads."""

    channels: int
    stride: int
    norm: str
    shortcut: str | None
    options: Any

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """The next map, (N, H / stride, W / stride, channels) of one (N, H, W, C)."""

        def convolve(features: jax.Array, **options: Any) -> jax.Array:
            layer = conv(self.channels, features.shape[1:3], use_bias=self.norm != "batch", **options, **dict(self.options))
            return layer(features)

        rectified = nn.relu(normalise(inputs, self.norm, train=train))
        features = convolve(rectified, stride=self.stride)
        features = convolve(nn.relu(normalise(features, self.norm, train=train)))
        if projects(self, inputs.shape[-1]):
            return features + convolve(rectified, kernel_size=1, stride=self.stride)
        return features + inputs if self.shortcut else features


class FixupBlock(nn.Module):
    """A block without normalisation that starts as its shortcut; ``gain`` is that of its first kernel.

    A scalar bias stands before each convolution and activation, a scalar multiplier ends the branch (rule 3 of the source).
    """

    channels: int
    stride: int
    shortcut: str
    gain: float
    options: Any

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """The next map, (N, H / stride, W / stride, channels) of one (N, H, W, C)."""

        def convolve(features: jax.Array, **options: Any) -> jax.Array:
            return conv(self.channels, features.shape[1:3], use_bias=False, **options, **dict(self.options))(features)

        bias = [scalar(self, f"bias_{place}", inputs) for place in range(4)]
        shifted = inputs + bias[0]
        features = nn.relu(convolve(shifted, stride=self.stride, gain=self.gain) + bias[1])
        multiplier = scalar(self, "multiplier", inputs, 1.0)
        features = convolve(features + bias[2], gain=0.0) * multiplier + bias[3]
        if projects(self, inputs.shape[-1]):
            return nn.relu(features + convolve(shifted, kernel_size=1, stride=self.stride))
        return nn.relu(features + inputs)


class ResNet(nn.Module):
    """A ResNet from images (N, H, W, C), or signals (N, L, 1, C), to logits (N, num_classes).

    Attributes:
      num_classes: logits.
      width: channels of the stem and of the first stage; stage s = 1, 2, ... has width * widening * 2**s, and its first block stride 2.
      stage_sizes: blocks of each stage.
      norm: one of `NORMS`. Convolutions before BatchNorm have no bias. LayerNorm turns a pixel that sees only black into
        one of infinitesimal scale: its kernel is then dominated by such pixels, so normalise the inputs.
      skip: whether there are shortcuts.
      shortcut: "identity", a 1x1 convolution only where the shape changes (the source's option B), or "projection",
        one in every block (option C): without pre-activation it alone has an infinite-width kernel in closed form.
      widening: how much wider than usual the stages after the first are.
      pre_activation: whether blocks are `PreActivationBlock`s, and a norm and a ReLU follow the last.
      stem: one of `STEMS`: a convolution of 3 pixels, or one of 7 with stride 2 and max-pooling by 3 with stride 2.
      parametrisation, formulation, dtype: of the layers, see `jaxbp.models.layers`.

    Raises:
      ValueError: at construction, an unknown norm, shortcut or stem, no or empty stages, no widening, or Fixup without shortcuts or with
        pre-activation; when called, inputs that are no images.
    """

    num_classes: int
    width: int
    stage_sizes: tuple[int, ...] = (2, 2, 2, 2)
    norm: str = "batch"
    skip: bool = True
    shortcut: str = "identity"
    widening: int = 1
    pre_activation: bool = False
    stem: str = "small"
    parametrisation: str = "standard"
    formulation: str = "auto"
    dtype: str = "float32"

    def __post_init__(self):
        layers.check_choice("norm", self.norm, NORMS)
        layers.check_choice("shortcut", self.shortcut, SHORTCUTS)
        layers.check_choice("stem", self.stem, STEMS)
        if self.widening < 1:
            raise ValueError(f"widening must be at least 1, got {self.widening}")
        if min(self.stage_sizes, default=0) < 1:
            raise ValueError(f"stage_sizes must name at least one stage, each of at least 1 block, got {self.stage_sizes}")
        if self.norm == "fixup" and not self.skip:
            raise ValueError("fixup starts each block as its shortcut, so it needs skip=True: without, choose norm='none'")
        if self.norm == "fixup" and self.pre_activation:
            raise ValueError("fixup has blocks of its own: leave pre_activation out, or choose norm='none'")
        super().__post_init__()

    def blocks(self) -> list[tuple[int, int]]:
        """(channels, stride) of the blocks, first to last."""
        return [
            (self.width * 2**stage * (self.widening if stage > 0 else 1), 2 if stage > 0 and block == 0 else 1)
            for stage, num_blocks in enumerate(self.stage_sizes)
            for block in range(num_blocks)
        ]

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits of ``inputs`` (N, H, W, C); BatchNorm takes batch statistics if ``train``, else the stored ones."""
        layers.check_images(inputs)
        fixup = self.norm == "fixup"
        features = self._stem(inputs, train=train)
        for channels, stride in self.blocks():
            features = self._block(channels, stride)(features, train=train)
        if self.pre_activation:
            features = nn.relu(normalise(features, self.norm, train=train))
        features = features.mean((1, 2))
        self.sow("intermediates", "features", features)
        features = features + scalar(self, "head_bias", features) if fixup else features
        head = dense(self.num_classes, gain=0.0 if fixup else 1.0, parametrisation=self.parametrisation)
        return head(features)

    def _stem(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """The map that the first block reads, of the module that is running."""
        large, biased = self.stem == "large", self.norm in ("none", "layer")
        size: dict[str, Any] = {"kernel_size": 7, "stride": 2} if large else {}
        features = conv(self.width, inputs.shape[1:3], use_bias=biased, **size, **dict(self._options()))(inputs)
        if not self.pre_activation:
            features = normalise(features, self.norm, train=train)
            features = nn.relu(features + scalar(self, "stem_bias", features) if self.norm == "fixup" else features)
        if not large:
            return features
        extents, strides = (layers.window(pixels, features.shape[1:3]) for pixels in (3, 2))
        return nn.max_pool(features, extents, strides, tuple((extent // 2, extent // 2) for extent in extents))

    def _options(self) -> tuple[tuple[str, Any], ...]:
        return (
            ("parametrisation", self.parametrisation),
            ("formulation", self.formulation),
            ("dtype", self.dtype),
        )

    def _block(self, channels: int, stride: int) -> nn.Module:
        if self.norm == "fixup":
            gain = sum(self.stage_sizes) ** -0.5  # num_blocks^(-1 / (2m - 2)) for m = 2 convolutions a block
            return FixupBlock(channels, stride, self.shortcut, gain, self._options())
        kind = PreActivationBlock if self.pre_activation else BasicBlock
        return kind(channels, stride, self.norm, self.shortcut if self.skip else None, self._options())


def projects(block: BasicBlock | PreActivationBlock | FixupBlock, num_inputs: int) -> bool:
    """Whether the block's shortcut is a convolution, given the channels that come in."""
    changed = block.stride > 1 or num_inputs != block.channels
    return block.shortcut == "projection" or (block.shortcut == "identity" and changed)


def scalar(module: nn.Module, name: str, features: jax.Array, start: float = 0.0) -> jax.Array:
    """A scalar parameter of the module that is running, cast to bfloat16 if the map that it meets is."""
    value = module.param(name, initializers.constant(start), ())
    return value.astype(layers.dtype_beside(features) or value.dtype)
