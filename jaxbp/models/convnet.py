"""The ConvNet of "Truth or Backpropaganda?", section 4: convolutions of width w, 2w, 2w, 4w, 4w, ReLUs, a pooled map and a linear head.

The paper max-pools by 3 after each of the last two convolutions. Max-pooling is neither affine nor differentiable
everywhere, so two relatives are kept beside it: average pooling, and strides of 2 in the last two convolutions, which
lose no information if the layers are wide.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax

from jaxbp.models.layers import check_choice, check_images, conv, dense, normalise

POOLS = ("max", "average", "stride")
_MULTIPLIERS = (1, 2, 2, 4, 4)
_NUM_SHRUNK = 2  # of the last convolutions
_POOL_WINDOW = 3


class Step(NamedTuple):
    """A convolution of 3 pixels with what follows it in a plain network."""

    channels: int
    stride: int = 1
    pool: int = 1  # pixels of the pooling window, 1 for none


class ConvNet(nn.Module):
    """A ConvNet from images (N, H, W, C), or signals (N, L, 1, C), to logits (N, num_classes).

    ``width``: channels of the first convolution; ``depth``: number of convolutions (beyond 5 the last width repeats);
    ``pool``: one of `POOLS`; ``parametrisation``, ``dtype``: of the layers, see `jaxbp.models.layers`; ``formulation``: of the
    convolutions, see `jaxbp.ops.convolution`.
    """

    num_classes: int
    width: int
    depth: int = len(_MULTIPLIERS)
    pool: str = "max"
    parametrisation: str = "standard"
    formulation: str = "auto"
    dtype: str = "float32"

    def steps(self) -> list[Step]:
        """The convolutions, first to last."""
        widths = [self.width * _MULTIPLIERS[min(layer, len(_MULTIPLIERS) - 1)] for layer in range(self.depth)]
        shrink = {"stride": 2} if self.pool == "stride" else {"pool": _POOL_WINDOW}
        return [Step(width) for width in widths[:-_NUM_SHRUNK]] + [Step(width, **shrink) for width in widths[-_NUM_SHRUNK:]]

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits of ``inputs`` (N, H, W, C); the same whether ``train`` or not."""
        check_choice("pool", self.pool, POOLS)
        check_images(inputs)
        options: dict[str, Any] = {
            "parametrisation": self.parametrisation,
            "formulation": self.formulation,
            "dtype": self.dtype,
        }
        features = plain_features(inputs, self.steps(), pool=self.pool, **options)
        self.sow("intermediates", "features", features)
        return dense(self.num_classes, parametrisation=self.parametrisation)(features)


def plain_features(
    inputs: jax.Array,
    steps: list[Step],
    *,
    pool: str,
    norm: str = "none",
    train: bool = False,
    **options: Any,
) -> jax.Array:
    """The flattened map (N, F) after convolutions, each with its norm, ReLU and pooling, of the module that calls this.

    ``options``: of every convolution.
    """
    features = inputs
    for step in steps:
        layer = conv(step.channels, features.shape[1:3], stride=step.stride, use_bias=norm != "batch", **options)
        features = nn.relu(normalise(layer(features), norm, train=train))
        extents = pool_window(step.pool, features.shape[1:3])
        if max(extents) > 1:
            features = (nn.max_pool if pool == "max" else nn.avg_pool)(features, extents, extents)
    return features.reshape(len(inputs), -1)


def pool_window(size: int, spatial: tuple[int, ...]) -> tuple[int, ...]:
    """Pool by ``size`` where the map has as many pixels, by what there is where it has fewer."""
    return tuple(min(size, extent) for extent in spatial)
