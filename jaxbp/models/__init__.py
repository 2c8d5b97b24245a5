"""Flax networks, a file a family, and the one registry that names them.

>>> import jax, jax.numpy as jnp
>>> from jaxbp import models
>>> net = models.create("mlp", num_classes=10, width=32, depth=2)
>>> params = net.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
>>> models.apply_fn(net)(params, jnp.zeros((5, 8, 8, 1))).shape
(5, 10)
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from jaxbp.models.convnet import ConvNet
from jaxbp.models.mlp import MLP

REGISTRY: dict[str, Callable[..., nn.Module]] = {
    "mlp": lambda num_classes, width, depth=2, **options: MLP(num_classes, (width,) * depth, **options),
    "convnet": lambda num_classes, width, depth=5, **options: ConvNet(num_classes, width, depth, **options),
}


def create(name: str, *, num_classes: int, width: int, **options: Any) -> nn.Module:
    """The network ``name`` of `REGISTRY`.

    Args:
      name: a family.
      num_classes: logits.
      width: hidden units ("mlp"), channels of the first convolution ("convnet").
      options: ``depth`` (hidden layers; convolutions), ``parametrisation``, and the family's own fields.

    Raises:
      ValueError: an unknown family, or a width or depth below 1.
    """
    if name not in REGISTRY:
        raise ValueError(f"there is no model {name!r}: choose one of {', '.join(REGISTRY)}")
    for label, value in (("width", width), ("depth", options.get("depth", 1))):
        if value < 1:
            raise ValueError(f"{label} must be at least 1, got {value}")
    return REGISTRY[name](num_classes, width, **options)


@functools.cache
def apply_fn(net: nn.Module) -> Callable[[Any, jax.Array], jax.Array]:
    """``(params, inputs) -> logits`` of a network without state; the same object for equal networks, so jit traces once."""
    return lambda params, inputs: net.apply({"params": params}, inputs)
