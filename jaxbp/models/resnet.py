"""ResNets of basic blocks with what "Truth or Backpropaganda?", section 4, takes apart: normalisation, skip connections, width.

He et al. (CVPR 2016) as used on CIFAR: a stem of 3 pixels and stride 1, blocks conv - norm - relu - conv - norm, plus
the shortcut, relu; a global average; a linear head. Four stages of two blocks are ResNet-18 (width 64) and, at any
other width, the paper's WideResNet; 3, 4, 6 and 3 blocks are ResNet-34; three stages of three blocks, width 16, are
ResNet-20 (section 4.2; the source pads its shortcuts with zeros there, here they are 1x1 convolutions). Between
BatchNorm and nothing stand LayerNorm over channels, whose wide limit is known, and Fixup (Zhang, Dauphin, Ma, ICLR
2019), which trains deep ResNets by initialisation alone.

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
      width: channels of the first stage; stage s has width * 2**s, and stride 2 from the second stage on.
      stage_sizes: blocks of each stage.
      norm: one of `NORMS`. Convolutions before BatchNorm have no bias. LayerNorm turns a pixel that sees only black into
        one of infinitesimal scale: its kernel is then dominated by such pixels, so normalise the inputs.
      skip: whether there are shortcuts.
      shortcut: "identity", a 1x1 convolution only where the shape changes (the source's option B), or "projection",
        one in every block (option C), which alone has an exact infinite-width twin.
      parametrisation, formulation, dtype: of the layers, see `jaxbp.models.layers`.

    Raises:
      ValueError: at construction, an unknown norm or shortcut, no or empty stages, or Fixup without shortcuts.
    """

    num_classes: int
    width: int
    stage_sizes: tuple[int, ...] = (2, 2, 2, 2)
    norm: str = "batch"
    skip: bool = True
    shortcut: str = "identity"
    parametrisation: str = "standard"
    formulation: str = "auto"
    dtype: str = "float32"

    def __post_init__(self):
        layers.check_choice("norm", self.norm, NORMS)
        layers.check_choice("shortcut", self.shortcut, SHORTCUTS)
        if min(self.stage_sizes, default=0) < 1:
            raise ValueError(f"stage_sizes must name at least one stage, each of at least 1 block, got {self.stage_sizes}")
        if self.norm == "fixup" and not self.skip:
            raise ValueError("fixup starts each block as its shortcut, so it needs skip=True: without, choose norm='none'")
        super().__post_init__()

    def blocks(self) -> list[tuple[int, int]]:
        """(channels, stride) of the blocks, first to last."""
        return [
            (self.width * 2**stage, 2 if stage > 0 and block == 0 else 1)
            for stage, num_blocks in enumerate(self.stage_sizes)
            for block in range(num_blocks)
        ]

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits of ``inputs`` (N, H, W, C); BatchNorm takes batch statistics if ``train``, else the stored ones."""
        fixup, biased = self.norm == "fixup", self.norm in ("none", "layer")
        stem = conv(self.width, inputs.shape[1:3], use_bias=biased, **dict(self._options()))
        features = normalise(stem(inputs), self.norm, train=train)
        features = nn.relu(features + scalar(self, "stem_bias", features) if fixup else features)
        for channels, stride in self.blocks():
            features = self._block(channels, stride)(features, train=train)
        features = features.mean((1, 2))
        self.sow("intermediates", "features", features)
        features = features + scalar(self, "head_bias", features) if fixup else features
        head = dense(self.num_classes, gain=0.0 if fixup else 1.0, parametrisation=self.parametrisation)
        return head(features)

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
        return BasicBlock(channels, stride, self.norm, self.shortcut if self.skip else None, self._options())


def projects(block: BasicBlock | FixupBlock, num_inputs: int) -> bool:
    """Whether the block's shortcut is a convolution, given the channels that come in."""
    changed = block.stride > 1 or num_inputs != block.channels
    return block.shortcut == "projection" or (block.shortcut == "identity" and changed)


def scalar(module: nn.Module, name: str, features: jax.Array, start: float = 0.0) -> jax.Array:
    """A scalar parameter of the module that is running, cast to bfloat16 if the map that it meets is."""
    value = module.param(name, initializers.constant(start), ())
    return value.astype(layers.dtype_beside(features) or value.dtype)
