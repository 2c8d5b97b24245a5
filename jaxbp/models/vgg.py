"""VGG-11 for images of 32 pixels and less ("Truth or Backpropaganda?", section 4): eight 3x3 convolutions, five poolings, a linear head.

Configuration A of Simonyan & Zisserman (ICLR 2015), with the one linear layer that is usual on CIFAR in place of its
three. A pooling is left out along an axis that has come down to one pixel, so smaller images and signals pass.

>>> import jax, jax.numpy as jnp
>>> from jaxbp.models.vgg import VGG
>>> variables = jax.eval_shape(VGG(10, 64).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
>>> variables["params"]["Dense_0"]["kernel"].shape
(512, 10)
"""

import flax.linen as nn
import jax

from jaxbp.models.convnet import Step, plain_features
from jaxbp.models.layers import check_choice, check_images, dense

NORMS = ("none", "batch")
POOLS = ("max", "average")
_MULTIPLIERS = (1, 2, 4, 4, 8, 8, 8, 8)
_POOLED = (0, 1, 3, 5, 7)  # convolutions that a pooling follows


class VGG(nn.Module):
    """VGG-11 from images (N, H, W, C), or signals (N, L, 1, C), to logits (N, num_classes).

    ``width``: channels of the first convolution, 64 in the paper; ``norm``: one of `NORMS`; ``pool``: one of `POOLS`;
    ``parametrisation``, ``formulation``, ``dtype``: of the layers, see `jaxbp.models.layers`.

    Raises:
      ValueError: at construction, a norm or pool that is none of these.
    """

    num_classes: int
    width: int
    norm: str = "none"
    pool: str = "max"
    parametrisation: str = "standard"
    formulation: str = "auto"
    dtype: str = "float32"

    def __post_init__(self):
        check_choice("norm", self.norm, NORMS)
        check_choice("pool", self.pool, POOLS)
        super().__post_init__()

    def steps(self) -> list[Step]:
        """The convolutions, first to last."""
        return [Step(self.width * multiplier, pool=2 if layer in _POOLED else 1) for layer, multiplier in enumerate(_MULTIPLIERS)]

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits of ``inputs`` (N, H, W, C), with batch statistics if ``train``, else with the stored ones."""
        check_images(inputs)
        options = {"parametrisation": self.parametrisation, "formulation": self.formulation, "dtype": self.dtype}
        features = plain_features(inputs, self.steps(), pool=self.pool, norm=self.norm, train=train, **options)
        self.sow("intermediates", "features", features)
        return dense(self.num_classes, parametrisation=self.parametrisation)(features)
