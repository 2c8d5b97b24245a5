"""Winograd's three products against `jax.lax`, alone and as a formulation of the house's convolution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxbp.ops import winograd
from jaxbp.ops.convolution import conv_general_dilated

NUMBERS = ("NHWC", "HWIO", "NHWC")
SAME = ((1, 1), (1, 1))
CASES = {  # input, output channels, padding
    "even map": ((2, 6, 8, 3), 4, SAME),
    "odd map": ((3, 5, 7, 3), 2, SAME),
    "one pixel out": ((2, 3, 3, 2), 3, ((0, 0), (0, 0))),
    "one pixel in": ((2, 1, 1, 2), 3, SAME),
    "one row": ((2, 1, 6, 2), 3, SAME),
    "asymmetric": ((1, 6, 5, 2), 2, ((2, 0), (0, 3))),
    "wider than the window": ((2, 4, 4, 2), 2, ((3, 4), (5, 0))),
    "cut": ((2, 8, 9, 2), 3, ((-1, 0), (-2, -1))),
}


def operands(case, seed=0, dtype=float):
    shape, c_out, padding = CASES[case]
    rng = np.random.default_rng(seed)
    arrays = [rng.normal(size=each).astype(dtype) for each in (shape, (3, 3, shape[-1], c_out))]
    return *arrays, padding


def plain(padding):
    return lambda x, k: lax.conv_general_dilated(x, k, (1, 1), padding, dimension_numbers=NUMBERS)


def house(padding):
    return functools.partial(
        conv_general_dilated, window_strides=(1, 1), padding=padding, dimension_numbers=NUMBERS, formulation="winograd"
    )


def assert_close(found, expected, tolerance=1e-13):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


@pytest.mark.first_cases(2)
@pytest.mark.parametrize("group_bytes", [2**23, 2000, 1])
@pytest.mark.parametrize("case", CASES)
def test_products_in_groups_of_any_size(case, group_bytes, x64, monkeypatch):
    monkeypatch.setattr(winograd, "_GROUP_BYTES", group_bytes)
    x, k, padding = operands(case)

    @jax.jit
    def products(x, k):
        """The three by `jax.lax` and by Winograd, in one program."""
        value, pullback = jax.vjp(plain(padding), x, k)
        y = jnp.cos(value)
        names = {"output": (x, k), "input_gradient": (y, k), "kernel_gradient": (x, y)}
        return (value, *pullback(y)), tuple(getattr(winograd, name)(*pair, padding=padding) for name, pair in names.items())

    expected, result = products(x, k)
    assert_close(result, expected)


@pytest.mark.parametrize("num_examples,bytes_each,shape", [(6, 2**21, (2, 3)), (7, 2**21, (2, 4)), (3, 2**25, (3, 1))])
def test_groups_fit_the_bound_and_lose_no_example(num_examples, bytes_each, shape):
    (parts,) = winograd._in_groups((jnp.arange(1.0, num_examples + 1),), bytes_each, 2**23)
    assert parts.shape == shape
    assert list(parts.ravel()) == [*range(1, num_examples + 1), *[0] * (parts.size - num_examples)]


def test_rounding_is_that_of_a_plain_convolution():
    rng = np.random.default_rng(0)
    x, k = (rng.normal(size=shape).astype(np.float32) for shape in ((4, 12, 12, 64), (3, 3, 64, 64)))
    found = {form: np.asarray(conv(SAME)(x, k), float) for form, conv in (("plain", plain), ("winograd", house))}
    with jax.enable_x64(True):
        exact = np.asarray(plain(SAME)(*(np.asarray(each, float) for each in (x, k))))
    error = {form: np.abs(value - exact).mean() for form, value in found.items()}
    assert error["winograd"] < 4 * error["plain"]  # F(4x4, 3x3) would give 10 to 20


@pytest.mark.slow
def test_curvature_and_maps_over_kernels(x64):
    x, k, padding = operands("odd map")
    tangents = operands("odd map", seed=1)[:2]

    def product(conv, x, k):
        gradient = jax.grad(lambda x, k: jnp.sin(conv(x, k)).sum(), (0, 1))
        return jax.jvp(gradient, (x, k), tangents)[1]

    kernels = np.stack([k, 2 * k, k[::-1]])
    by_house = functools.partial(product, house(padding))
    assert_close(jax.jit(by_house)(x, k), jax.jit(functools.partial(product, plain(padding)))(x, k))
    for f in (house(padding), by_house):
        alone = jax.jit(f)
        expected = [alone(x, each) for each in kernels]
        together = jax.jit(jax.vmap(f, (None, 0)))(x, kernels)
        assert_close(together, jax.tree.map(lambda *each: np.stack(each), *expected))


def test_a_shard_of_the_batch_in_several_groups(x64, monkeypatch):
    monkeypatch.setattr(winograd, "_GROUP_BYTES", 1)
    x, k, padding = operands("even map")
    x = np.concatenate([x, 2 * x])

    def gradients(conv, x, k):
        return jax.grad(lambda x, k: jnp.sin(conv(padding)(x, k)).sum(), (0, 1))(x, k)

    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))
    specs = (P("batch"), P())
    shard = jax.shard_map(functools.partial(gradients, house), mesh=mesh, in_specs=specs, out_specs=specs)
    assert_close(jax.jit(shard)(x, k), jax.jit(functools.partial(gradients, plain))(x, k))


@pytest.mark.parametrize("window,strides,dilation", [((5, 5), (1, 1), None), ((3, 3), (2, 1), None), ((3, 3), (1, 1), (1, 2))])
def test_asked_for_by_name_where_it_does_not_apply(window, strides, dilation):
    x, k = jnp.ones((2, 8, 8, 3)), jnp.ones((*window, 3, 4))
    with pytest.raises(ValueError, match="'winograd' does not apply: it takes 3x3 kernels of stride and dilation 1, got"):
        conv_general_dilated(x, k, strides, "SAME", rhs_dilation=dilation, dimension_numbers=NUMBERS, formulation="winograd")
