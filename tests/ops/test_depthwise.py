"""Depthwise convolutions against those of XLA: values, derivatives of any mode, and what a program shows of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxbp import models, spectra
from jaxbp.ops.convolution import conv_general_dilated
from tests.ops.test_convolution import NUMBERS, assert_close, derivatives, products

# name: input (N, *spatial, C), window, strides, padding, dilation of the kernel
GEOMETRIES = {
    "3x3": ((2, 6, 5, 3), (3, 3), (1, 1), "SAME", None),
    "3x3 stride 2, padded alike": ((2, 6, 7, 3), (3, 3), (2, 2), ((1, 1), (1, 1)), None),
    "5x2 strides 1 and 3, pixels left over": ((2, 8, 9, 2), (5, 2), (1, 3), "VALID", None),
    "negative and wide padding": ((2, 7, 4, 2), (3, 2), (1, 2), ((-1, 2), (3, 0)), None),
    "dilated, stride 2": ((2, 9, 8, 2), (3, 3), (2, 2), "SAME", (2, 1)),
    "signal": ((2, 9, 3), (5,), (2,), "SAME", None),
    "volume": ((2, 4, 3, 5, 2), (3, 2, 1), (1, 2, 2), "SAME", None),
}


def bind(geometry, formulation):
    shape, _, strides, padding, dilation = GEOMETRIES[geometry]
    options = {"rhs_dilation": dilation, "dimension_numbers": NUMBERS[len(shape) - 2], "feature_group_count": shape[-1]}
    if formulation == "lax":
        return lambda x, k: lax.conv_general_dilated(x, k, strides, padding, **options)
    return lambda x, k: conv_general_dilated(x, k, strides, padding, **options, formulation=formulation)


def operands(geometry, *leading, seed=0, dtype=float):
    shape, window = GEOMETRIES[geometry][:2]
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=(*leading, *s)), dtype) for s in (shape, (*window, 1, shape[-1])))


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.first_cases(3)
def test_products_and_mixes_of_modes(geometry, x64):
    arrays, tangents = operands(geometry), operands(geometry, seed=1)
    ours, theirs = bind(geometry, "auto"), bind(geometry, "lax")
    assert "custom_jvp_call" in str(jax.make_jaxpr(ours)(*arrays))
    assert_close(jax.jit(functools.partial(products, ours))(*arrays), products(theirs, *arrays))
    assert_close(jax.jit(functools.partial(derivatives, ours))(*arrays, tangents), derivatives(theirs, *arrays, tangents))


def test_kernels_that_are_vmapped_in_a_loop(x64):
    """As in a sweep over seeds."""

    def loop(conv, x, k):
        def step(now, _):
            grads = jax.vmap(jax.grad(lambda k, x: jnp.sin(conv(x, k)).sum()))(now, x)
            return now - 0.1 * grads, None

        return lax.scan(step, k, None, length=3)[0]

    arrays = operands("3x3 stride 2, padded alike", 2)
    found, expected = (jax.jit(functools.partial(loop, bind("3x3 stride 2, padded alike", f)))(*arrays) for f in ("auto", "lax"))
    assert_close(found, expected)


def test_half_precision_sums_in_single():
    arrays = operands("3x3", dtype=jnp.bfloat16)
    found = products(bind("3x3", "auto"), *arrays)
    expected = products(bind("3x3", "lax"), *(a.astype(jnp.float32) for a in arrays))
    assert {leaf.dtype for leaf in found} == {jnp.dtype(jnp.bfloat16)}
    assert_close(found[0], expected[0], tolerance=2**-8)


def test_groups_that_are_not_channels_and_other_layouts_are_those_of_lax():
    inputs = jnp.ones((1, 4, 4, 4))
    convolve = functools.partial(conv_general_dilated, window_strides=(1, 1), padding="SAME")
    of_pairs = functools.partial(convolve, feature_group_count=2, dimension_numbers=NUMBERS[2])
    channels_first = functools.partial(convolve, feature_group_count=4)
    for fn, shape in ((of_pairs, (3, 3, 2, 4)), (channels_first, (4, 1, 3, 3))):
        assert "custom_jvp_call" not in str(jax.make_jaxpr(fn)(inputs, jnp.ones(shape)))


def test_a_network_shows_its_depthwise_layers_and_may_have_them_by_xla():
    inputs, groups = jnp.ones((1, 6, 6, 3)), {}
    for formulation in ("auto", "xla"):
        net = models.create("mobilenetv2", num_classes=3, width=4, stages=1, formulation=formulation)
        params, state = net.init(jax.random.key(0), inputs)
        layers = spectra.layers_of(functools.partial(net.apply, state=state), params, inputs)
        groups[formulation] = {layer.name: layer.geometry.groups for layer in layers}
    assert groups["auto"] == groups["xla"]
    assert 4 in groups["auto"].values()
