"""Spectra of attention heads against dense matrices and the scores that Flax's layer computes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import spectra


def params_of(features, heads, head_dim, outputs, lead=(), seed=0):
    rng = np.random.default_rng(seed)
    shapes = dict.fromkeys(("query", "key", "value"), (features, heads, head_dim)) | {"out": (heads, head_dim, outputs)}
    return {name: {"kernel": jnp.asarray(rng.normal(size=(*lead, *shape)), jnp.float32)} for name, shape in shapes.items()}


@pytest.mark.parametrize(("features", "head_dim", "outputs"), [(12, 3, 12), (4, 6, 5)])
def test_values_are_those_of_the_dense_products(features, head_dim, outputs):
    params = params_of(features, 2, head_dim, outputs)
    scale = jnp.linspace(0.5, 2, features)
    q, k, v, o = (np.asarray(params[name]["kernel"], np.float64) for name in ("query", "key", "value", "out"))
    for layer_norm, d in ((None, np.eye(features)), ({"scale": scale, "bias": scale}, np.diag(scale))):
        heads = spectra.attention_heads(params, layer_norm=layer_norm)
        for h in range(2):
            for values, dense in (
                (heads.query_key[h], d @ q[:, h] @ k[:, h].T @ d / np.sqrt(head_dim)),
                (heads.value_output[h], d @ v[:, h] @ o[h]),
            ):
                expected = np.linalg.svd(dense, compute_uv=False)
                np.testing.assert_allclose(values, expected[: len(values)], rtol=1e-4, atol=1e-5)
                np.testing.assert_allclose(expected[len(values) :], 0, atol=1e-10)


def test_the_forms_are_those_of_flaxs_layer():
    """With one key in reach attention is linear in it: what the layer writes is V O. Scores at unit vectors are Q K^T."""
    layer = nn.MultiHeadDotProductAttention(num_heads=1, qkv_features=3, use_bias=False)
    params = params_of(6, 1, 3, 6)
    basis = jnp.eye(6)[:, None]  # six examples of one token each
    written = np.asarray(layer.apply({"params": params}, basis)).reshape(6, 6)
    heads = spectra.attention_heads(params)
    np.testing.assert_allclose(heads.value_output[0], np.linalg.svd(written, compute_uv=False)[:3], rtol=1e-4)
    _, kept = layer.apply({"params": params}, jnp.eye(6)[None], sow_weights=True, mutable=["intermediates"])
    logs = np.log(np.asarray(jax.tree.leaves(kept)[0], np.float64)[0, 0])  # scores up to a number for each query
    q, k = (np.asarray(params[name]["kernel"], np.float64)[:, 0] for name in ("query", "key"))
    scores = q @ k.T / np.sqrt(3)
    np.testing.assert_allclose(logs - logs[:, :1], scores - scores[:, :1], atol=1e-4)
    np.testing.assert_allclose(heads.query_key[0], np.linalg.svd(scores, compute_uv=False)[:3], rtol=1e-4)


def test_stacked_layers_and_wrong_parameters():
    stacked = params_of(5, 2, 3, 5, lead=(4,))
    heads = spectra.attention_heads(stacked)
    assert heads.query_key.shape == (4, 2, 3)
    third = spectra.attention_heads(jax.tree.map(lambda kernel: kernel[2], stacked))
    np.testing.assert_allclose(heads.value_output[2], third.value_output, rtol=1e-5)
    params = params_of(5, 2, 3, 5)
    for bad, match in (
        ({}, "must hold query/kernel"),
        (params | {"out": params["key"]}, "kernels must be"),
        (params | {"key": {"kernel": np.ones(3)}}, "three axes"),
    ):
        with pytest.raises(ValueError, match=match):
            spectra.attention_heads(bad)
    for layer_norm, match in (({"bias": np.ones(5)}, "with a 'scale'"), ({"scale": np.ones(4)}, "one entry per feature")):
        with pytest.raises(ValueError, match=match):
            spectra.attention_heads(params, layer_norm=layer_norm)
