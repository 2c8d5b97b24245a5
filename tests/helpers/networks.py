"""Networks without the compilation that `init` costs, and the plain operations that they are compared with."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def shapes_of(net, input_shape):
    """Parameters as shapes, nothing computed."""
    return jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *input_shape)))[0]


def num_parameters(net, input_shape):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes_of(net, input_shape)))


def drawn(net, input_shape, *, spread=0.3):
    """Normal parameters and a state like that of a trained network, without the compilation that `init` costs."""
    rng = np.random.default_rng(0)
    params, state = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *input_shape)))
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * spread), params)
    state = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.5, 1.5, size=leaf.shape)), state)
    return params, state


def inputs_of(num, *shape):
    return jax.random.normal(jax.random.key(1), (num, *shape))


def convolve(x, layer, stride=1):
    """Zeros on both sides alike, as PyTorch's padding=1 around a window of 3."""
    pads = [(extent // 2, extent // 2) for extent in layer["kernel"].shape[:2]]
    y = jax.lax.conv_general_dilated(x, layer["kernel"], (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y + layer.get("bias", 0)
