"""Kernels of functions whose inputs are trees of arrays: tokens with masks through attention, a table used twice, images with metadata."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import ntk
from jaxbp.jaxprs import linear_layers

N, T, C = 4, 5, 2


class Reader(nn.Module):
    """Tokens and their mask; one attention block used twice, and the table of tokens used to embed and to read out."""

    @nn.compact
    def __call__(self, batch):
        embed, attention = nn.Embed(7, 4), nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=4)
        mask = batch["mask"]
        x = embed(batch["tokens"])
        for _ in range(2):
            x = x + attention(x, mask=mask[:, None, None, :])
        x = (jnp.tanh(x) * mask[:, :, None]).sum(1)
        return nn.Dense(C)(jnp.tanh(embed.attend(x)))


@functools.cache
def problem():
    rng = np.random.default_rng(0)
    batch = {"tokens": rng.integers(0, 7, (N, T)), "mask": np.arange(T) < np.array([[5], [3], [4], [2]])}
    shapes = jax.eval_shape(Reader().init, jax.random.key(0), batch)["params"]
    params = jax.tree.map(lambda like: rng.normal(size=like.shape), shapes)
    return lambda p, b: Reader().apply({"params": p}, b), params, batch


@functools.cache
def dense_kernel():
    fn, params, batch = problem()
    with jax.enable_x64(True):
        jacobian = jax.jit(jax.jacrev(fn))(params, batch)
        flat = np.concatenate([np.reshape(leaf, (N, C, -1)) for leaf in jax.tree.leaves(jacobian)], -1)
    return np.einsum("ikp,jlp->ijkl", flat, flat)


@pytest.mark.slow
def test_tokens_and_masks_through_attention(x64):
    fn, params, batch = problem()
    np.testing.assert_allclose(ntk.empirical_ntk(fn, params, batch), dense_kernel(), rtol=1e-9, atol=1e-9)


def test_weights_of_attention_are_layers_and_a_table_with_two_uses_is_not():
    fn, params, batch = problem()
    example = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), jax.dtypes.canonicalize_dtype(leaf.dtype)), batch)
    found = linear_layers.find(fn, params, example)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    kernels = {name for name in names if name.endswith("kernel")}
    assert {names[layer.leaf] for layer in found.layers} == kernels
    assert {names[leaf] for leaf in found.others} == set(names) - kernels  # biases, and the table, which is gathered and multiplied


@pytest.mark.slow
def test_images_with_metadata_and_blocks(x64):
    rng = np.random.default_rng(2)
    inputs, other = ((rng.normal(size=(n, 3, 3)), rng.normal(size=(n, 2))) for n in (6, 3))
    params = (rng.normal(size=(9, 4)), rng.normal(size=(2, 4)), rng.normal(size=(4, C)))

    def fn(params, inputs):
        images, metadata = inputs
        return jnp.tanh(images.reshape(-1, 9) @ params[0] + metadata @ params[1]) @ params[2]

    def kernel(x1, x2):
        jacobians = (jax.jit(jax.jacrev(fn))(params, x) for x in (x1, x2))
        first, second = (np.concatenate([np.reshape(leaf, (*leaf.shape[:2], -1)) for leaf in leaves], -1) for leaves in jacobians)
        return np.einsum("ikp,jlp->ijkl", first, second)

    truth, vector = kernel(inputs, other), rng.normal(size=(3, C))
    np.testing.assert_allclose(ntk.empirical_ntk(fn, params, inputs, other), truth, rtol=1e-10)
    for build in (ntk.ntk_vector_product, ntk.streamed_product):
        product = build(fn, params, inputs, other, chunk_size=2)(vector)
        np.testing.assert_allclose(product, np.einsum("ijkl,jl->ik", truth, vector), rtol=1e-10, atol=1e-12)


def test_trees_that_do_not_fit_are_named():
    fn, params, batch = problem()
    params = jax.tree.map(np.float32, params)
    short = batch | {"mask": batch["mask"][:2]}
    for call in (ntk.empirical_ntk, ntk.ntk_vector_product, ntk.streamed_product):
        with pytest.raises(
            ValueError, match=r"same number of examples in each array, got \[2, 5\] at \['mask'\], \[4, 5\] at \['tokens'\]"
        ):
            call(fn, params, short)
    with pytest.raises(ValueError, match="x1 and x2 must have one structure"):
        ntk.empirical_ntk(fn, params, batch, {"tokens": batch["tokens"]})
    with pytest.raises(ValueError, match=r"x1\['mask'\] must be one array, got str 'x'"):
        ntk.empirical_ntk(fn, params, batch | {"mask": "x"})
    with pytest.raises(ntk.BatchCouplingError):
        ntk.empirical_ntk(lambda p, b: fn(p, b) - fn(p, b).mean(0), params, batch)
