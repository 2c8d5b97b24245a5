"""CONV-L-H: L convolutions of H channels without padding or biases, ReLU, and a linear layer that reads every pixel.

With weight normalisation (Salimans and Kingma, NeurIPS 2016) a filter is trained as its norm, that of the whole filter as in the authors'
code, and a direction; decay acts on both. `kernels` gives the filters, with which the network is one without normalisation.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxbp import models
from jaxbp.ops import convolution

Params = list[jax.Array]
NormalisedParams = list[Any]  # a pair of norm () and direction for each convolution, and the last layer
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


def kernels(params: NormalisedParams) -> Params:
    """The filters and the last layer of a network with weight normalisation."""
    return [norm * direction / jnp.linalg.norm(direction.ravel()) for norm, direction in params[:-1]] + params[-1:]


def _init_normalised(init_fn: Callable, key: jax.Array, images: jax.Array) -> tuple[NormalisedParams, dict]:
    *filters, last = init_fn(key, images)[0]
    return [*((jnp.linalg.norm(kernel.ravel()), kernel) for kernel in filters), last], {}


def _apply_normalised(apply_fn: Callable, params: NormalisedParams, images: jax.Array) -> jax.Array:
    return apply_fn(kernels(params), images)


@functools.cache
def with_weight_normalisation(net: models.Network) -> models.Network:
    """The same network, from the same start, trained by norms and directions."""
    return models.from_functions(functools.partial(_apply_normalised, net.apply), init=functools.partial(_init_normalised, net.init))


@functools.cache
def network(depth: int, width: int, stride: int, num_classes: int) -> models.Network:
    """The network; the same object for the same arguments."""
    options = {"depth": depth, "width": width, "stride": stride, "num_classes": num_classes}
    return models.from_functions(functools.partial(apply, stride=stride), init=functools.partial(init, **options))


def averages(depth: int, channels: int = 1) -> Params:
    """Filters of norm 1 that average their window and the channels of the images, members of the class of norms 1; no last layer."""
    first = jnp.full((WINDOW, WINDOW, channels, 1), 1 / (WINDOW * math.sqrt(channels)))
    return [first, *[jnp.full((WINDOW, WINDOW, 1, 1), 1 / WINDOW)] * (depth - 1)]
