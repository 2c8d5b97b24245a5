"""CONV-L-H: L convolutions of H channels without padding or biases, ReLU, and a linear layer that reads every pixel."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp

from jaxbp import models
from jaxbp.ops import convolution

Params = list[jax.Array]
WINDOW = 2


def maps(params: Params, images: jax.Array, *, stride: int) -> jax.Array:
    """What the last layer reads: (N, height, width, H)."""
    for kernel in params[:-1]:
        labels = ("NHWC", "HWIO", "NHWC")
        images = jax.nn.relu(convolution.conv_general_dilated(images, kernel, (stride, stride), "VALID", dimension_numbers=labels))
    return images


def apply(params: Params, images: jax.Array, *, stride: int) -> jax.Array:
    """Logits (N, C)."""
    features = maps(params, images, stride=stride)
    return features.reshape(len(features), -1) @ params[-1]


def init(key: jax.Array, images: jax.Array, *, depth: int, width: int, stride: int, num_classes: int) -> tuple[Params, dict]:
    """He's normal start, and no state."""
    side = images.shape[1]
    for _ in range(depth):
        side = (side - WINDOW) // stride + 1
    channels = [images.shape[-1], *[width] * depth]
    shapes = [(WINDOW, WINDOW, inner, outer) for inner, outer in itertools.pairwise(channels)] + [(side * side * width, num_classes)]
    keys = jax.random.split(key, len(shapes))
    params = [jax.random.normal(k, shape) * math.sqrt(2 / math.prod(shape[:-1])) for k, shape in zip(keys, shapes, strict=True)]
    return params, {}


@functools.cache
def network(depth: int, width: int, stride: int, num_classes: int) -> models.Network:
    """The network; the same object for the same arguments."""
    options = {"depth": depth, "width": width, "stride": stride, "num_classes": num_classes}
    return models.from_functions(functools.partial(apply, stride=stride), init=functools.partial(init, **options))


def averages(depth: int) -> Params:
    """Filters of norm 1 that average their window, members of the class of norms 1; no last layer."""
    return [jnp.full((WINDOW, WINDOW, 1, 1), 1 / WINDOW)] * depth
