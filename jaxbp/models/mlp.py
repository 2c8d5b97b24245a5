"""Multi-layer perceptrons: flatten, hidden ReLU layers of any widths, logits (paper, Studies 1 to 3)."""

import flax.linen as nn
import jax

from jaxbp.models.layers import dense


class MLP(nn.Module):
    """A ReLU MLP from (N, ...) to logits (N, num_classes).

    ``widths`` are those of the hidden layers; ``parametrisation``, ``dtype``: of the layers, see `jaxbp.models.layers`.
    """

    num_classes: int
    widths: tuple[int, ...]
    parametrisation: str = "standard"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits of ``inputs`` (N, ...); the same whether ``train`` or not."""
        features = inputs.reshape(inputs.shape[0], -1)
        for width in self.widths:
            features = nn.relu(dense(width, parametrisation=self.parametrisation, dtype=self.dtype)(features))
        self.sow("intermediates", "features", features)
        return dense(self.num_classes, parametrisation=self.parametrisation)(features)
