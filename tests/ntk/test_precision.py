"""Kernels by short numbers, and their errors, against the dense kernel in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import ntk
from jaxbp.jaxprs import linear_layers
from jaxbp.ntk import _blocks, precision

RNG = np.random.default_rng(0)
X = RNG.normal(size=(7, 6)).astype(np.float32)
PARAMS = {"w": RNG.normal(size=(6, 32)), "b": RNG.normal(size=32), "v": RNG.normal(size=(32, 3)) / 6}
PARAMS = jax.tree.map(np.float32, PARAMS)


def apply_fn(params, x):
    return jnp.tanh(x @ params["w"] + params["b"]) @ params["v"]


@functools.cache
def truth():
    with jax.enable_x64(True):
        wide = jax.tree.map(np.float64, (PARAMS, X))
        jacobian = jax.jit(jax.jacrev(apply_fn))(*wide)
        flat = np.concatenate([np.reshape(leaf, (7, 3, -1)) for leaf in jax.tree.leaves(jacobian)], -1)
    return np.einsum("ikp,jlp->ijkl", flat, flat)


def test_errors_are_those_against_float64():
    errors = {}
    for dtype in (None, jnp.float16, "bfloat16"):
        kernel = ntk.empirical_ntk(apply_fn, PARAMS, X, compute_dtype=dtype)
        assert kernel.dtype == jnp.float32
        error = precision.kernel_error(kernel, apply_fn, PARAMS, X, key=jax.random.key(0), num_rows=100)  # all pairs
        difference = np.asarray(kernel, np.float64) - truth()
        assert error.relative == pytest.approx(np.linalg.norm(difference) / np.linalg.norm(truth()), rel=1e-6)
        assert error.largest == pytest.approx(np.abs(difference).max() / np.sqrt((truth() ** 2).mean()), rel=1e-6)
        errors[dtype] = error.relative
        unit = float(jnp.finfo(dtype or jnp.float32).eps) / 2  # of rounding
        assert unit / 10 < error.relative < 10 * unit
    part = precision.kernel_error(kernel, apply_fn, PARAMS, X, key=jax.random.key(1), num_rows=4)
    assert part.num_entries == 4 * 4 * 9
    assert errors["bfloat16"] / 3 < part.relative < 3 * errors["bfloat16"]


def test_wide_sums_of_short_passes(x64):
    wide = jax.tree.map(np.float64, (PARAMS, X))
    kernel = ntk.empirical_ntk(apply_fn, *wide, compute_dtype=jnp.float32)
    assert kernel.dtype == jnp.float64
    assert 1e-9 < np.abs(kernel - truth()).max() < 1e-4


def test_short_passes_keep_the_layers():
    short = _blocks.InPrecision(apply_fn, "bfloat16")
    layers = linear_layers.find(short, jax.tree.map(jnp.asarray, PARAMS), jax.ShapeDtypeStruct((1, 6), jnp.float32))
    assert sorted(layer.leaf for layer in layers.layers) == [1, 2]
    assert layers.others == (0,)  # the bias


def test_misuse_is_named():
    with pytest.raises(ValueError, match="compute_dtype must be a type of real floating-point numbers"):
        ntk.empirical_ntk(apply_fn, PARAMS, X, compute_dtype="int32")
    kernel = np.zeros((7, 7))
    with pytest.raises(ValueError, match=r"kernel must be \(7, 7, 3, 3\) for logits='full'"):
        precision.kernel_error(kernel, apply_fn, PARAMS, X, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"kernel must be \(6, 6\) for these examples"):
        precision.kernel_error(kernel, apply_fn, PARAMS, X[:6], key=jax.random.key(0))
