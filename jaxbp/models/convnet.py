"""The paper's plain ConvNet (Study 3): convolutions of width w, 2w, 2w, 4w, 4w, ReLUs, a pooled map and a linear head.

The paper max-pools by 3 after each of the last two convolutions. Max-pooling is neither affine nor differentiable
everywhere, so two relatives are kept beside it: average pooling, and strides of 2 in the last two convolutions, which
lose no information if the layers are wide.
"""

import flax.linen as nn
import jax

from jaxbp.models.layers import conv, dense

POOLS = ("max", "average", "stride")
_MULTIPLIERS = (1, 2, 2, 4, 4)
_NUM_POOLED = 2  # of the last convolutions
_POOL_WINDOW = 3


class ConvNet(nn.Module):
    """A ConvNet from images (N, H, W, C), or signals (N, L, 1, C), to logits (N, num_classes).

    ``width``: channels of the first convolution; ``depth``: number of convolutions (beyond 5 the last width repeats);
    ``pool``: one of `POOLS`; ``formulation``: of the convolutions, see `jaxbp.convolution`.
    """

    num_classes: int
    width: int
    depth: int = len(_MULTIPLIERS)
    pool: str = "max"
    parametrisation: str = "standard"
    formulation: str = "auto"

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Logits of ``inputs`` (N, H, W, C)."""
        if self.pool not in POOLS:
            raise ValueError(f"pool must be one of {POOLS}, got {self.pool!r}")
        features = inputs
        for layer in range(self.depth):
            pooled = layer >= self.depth - _NUM_POOLED
            features = conv(
                self.width * _MULTIPLIERS[min(layer, len(_MULTIPLIERS) - 1)],
                features.shape[1:3],
                stride=2 if pooled and self.pool == "stride" else 1,
                parametrisation=self.parametrisation,
                formulation=self.formulation,
            )(features)
            features = nn.relu(features)
            if pooled and self.pool != "stride":
                features = _pool(features, self.pool)
        return dense(self.num_classes, parametrisation=self.parametrisation)(features.reshape(len(inputs), -1))


def _pool(features: jax.Array, kind: str) -> jax.Array:
    """Pool by 3 where the map has 3 pixels, by what there is where it has fewer."""
    window = tuple(min(_POOL_WINDOW, extent) for extent in features.shape[1:3])
    return (nn.max_pool if kind == "max" else nn.avg_pool)(features, window, window)
