"""The factors of a layer have the shapes of their annotations, and their product is the gradient of its weight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxbp.jaxprs import linear_layers, weight_uses
from tests.helpers.typechecked import refuses_shapes, typechecked

LAYERS = {
    "dense": (lambda w, x: x @ w, (4, 5), (3, 4)),
    "weight first": (lambda w, x: w @ x, (5, 4), (4, 3)),
    "convolution": (
        lambda w, x: lax.conv_general_dilated(x, w, (2, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")),
        (3, 3, 2, 4),
        (2, 5, 4, 2),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_patches_and_deltas(name):
    fn, weight_shape, data_shape = LAYERS[name]
    data = jax.random.normal(jax.random.key(0), data_shape)
    network = typechecked(linear_layers.find)(fn, jnp.zeros(weight_shape), data)
    (layer,) = network.layers
    (use,) = typechecked(weight_uses.read)(fn, jnp.zeros(weight_shape), data).uses
    assert use.geometry == layer.geometry
    cotangent = jax.random.normal(jax.random.key(1), layer.output.shape)
    patches = typechecked(type(layer.geometry).patches)(layer.geometry, data)
    deltas = typechecked(type(layer.geometry).deltas)(layer.geometry, cotangent, data)
    (gradient,) = jax.vjp(lambda w: fn(w, data), jnp.zeros(weight_shape))[1](cotangent)
    product = np.einsum("pgk,pgo->gko", patches, deltas)[0]
    expected = gradient.T if name == "weight first" else gradient.reshape(-1, weight_shape[-1])
    np.testing.assert_allclose(product, expected, rtol=1e-4, atol=1e-5)
    with refuses_shapes():
        typechecked(type(layer.geometry).patches)(layer.geometry, data > 0)
