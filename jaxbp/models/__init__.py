"""Flax networks, a file a family, and the one registry that names them.

>>> import jax, jax.numpy as jnp
>>> from jaxbp import models
>>> net = models.create("mlp", num_classes=10, width=32, depth=2)
>>> params = net.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
>>> models.apply_fn(net)(params, jnp.zeros((5, 8, 8, 1))).shape
(5, 10)
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax

from jaxbp.models.convnet import ConvNet
from jaxbp.models.mlp import MLP

Width = int | Sequence[int]


def _mlp(num_classes: int, width: Width, depth: int | None = None, **options: Any) -> MLP:
    if not isinstance(width, tuple):
        width = (width,) * (2 if depth is None else depth)
    elif depth not in (None, len(width)):
        raise ValueError(f"depth must be left out or be the number of widths {len(width)}, got {depth}")
    return MLP(num_classes, width, **options)


def _convnet(num_classes: int, width: Width, depth: int | None = None, **options: Any) -> ConvNet:
    if isinstance(width, tuple):
        raise ValueError(f"the convnet takes one width, of its first convolution, got {width}")
    return ConvNet(num_classes, width, **({} if depth is None else {"depth": depth}), **options)


REGISTRY: dict[str, Callable[..., nn.Module]] = {"mlp": _mlp, "convnet": _convnet}


def create(name: str, *, num_classes: int, width: Width, depth: int | None = None, **options: Any) -> nn.Module:
    """The network ``name`` of `REGISTRY`.

    Args:
      name: a family.
      num_classes: logits.
      width: hidden units, of every layer or of each ("mlp": ``(2048, 2048, 1024)`` is the paper's in Study 1); channels of
        the first convolution ("convnet").
      depth: hidden layers ("mlp", default 2, or as many as there are widths); convolutions ("convnet", default 5).
      options: ``parametrisation`` and the family's own fields.

    Raises:
      ValueError: an unknown family, a width or depth below 1, or widths that do not suit the family or the depth.
    """
    if name not in REGISTRY:
        raise ValueError(f"there is no model {name!r}: choose one of {', '.join(REGISTRY)}")
    width = tuple(width) if isinstance(width, Sequence) else width
    smallest = min(width, default=0) if isinstance(width, tuple) else width
    for label, value, least in (("width", width, smallest), ("depth", depth, 1 if depth is None else depth)):
        if least < 1:
            raise ValueError(f"{label} must be at least 1, got {value}")
    return REGISTRY[name](num_classes, width, depth, **options)


@functools.cache
def apply_fn(net: nn.Module) -> Callable[[Any, jax.Array], jax.Array]:
    """``(params, inputs) -> logits`` of a network without state; the same object for equal networks, so jit traces once."""
    return lambda params, inputs: net.apply({"params": params}, inputs)
