"""Singular values of the bilinear forms of attention heads, and LayerNorm's scale as an operator, without large matrices.

A head reads its inputs through two matrices of low rank: scores are x^T (Q K^T) y / sqrt(head_dim), and what it writes is (V O)^T y (the QK
and OV circuits of Elhage et al., "A Mathematical Framework for Transformer Circuits", 2021). Each is a product A B^T of thin factors, model
size by head_dim: with A = P R and B = S T (QR decompositions) its singular values are those of R T^T, head_dim by head_dim. Biases of
queries, keys, values and outputs add terms that are no bilinear forms; the spectra leave them out.

>>> import flax.linen as nn, jax, jax.numpy as jnp
>>> from jaxbp import spectra
>>> layer = nn.MultiHeadDotProductAttention(num_heads=4)
>>> params = layer.init(jax.random.key(0), jnp.ones((1, 5, 16)))["params"]
>>> heads = spectra.attention_heads(params)
>>> heads.query_key.shape, heads.value_output.shape                                 # heads, min(16, head_dim)
((4, 4), (4, 4))
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, PyTree

from jaxbp import checks
from jaxbp.spectra.spectrum import real_kernel
from jaxbp.spectra.values import matrix_values


class Heads(NamedTuple):
    """Singular values of attention heads, descending; each operator has rank at most head_dim, and further values are 0.

    Attributes:
      query_key: (..., heads, count) of Q K^T / sqrt(head_dim), count = min(head_dim, query's and key's features).
      value_output: (..., heads, count) of V O, count = min(head_dim, value's and output's features).
    """

    query_key: Float[jax.Array, "*batch heads count"]
    value_output: Float[jax.Array, "*batch heads count"]


def attention_heads(params: PyTree, *, layer_norm: PyTree | None = None) -> Heads:
    """Singular values of each head of a `flax.linen.MultiHeadDotProductAttention`.

    Args:
      params: its parameters, with the kernels "query", "key", "value" (..., features, heads, head_dim) and "out"
        (..., heads, head_dim, outputs); leading axes are kept.
      layer_norm: parameters of the `flax.linen.LayerNorm` before it, whose "scale" (features,) all three read as a diagonal operator; the
        standardisation itself is no linear operator and left out. None for no such scale.

    Raises:
      ValueError: other parameters.
    """
    names = ("query", "key", "value", "out")
    query, key, value, out = (_kernel(params, name) for name in names)
    shapes = ", ".join(f"{name} {kernel.shape}" for name, kernel in zip(names, (query, key, value, out), strict=True))
    heads, head_dim = query.shape[-2:]
    fits = key.shape[-2:] == (heads, head_dim) and value.shape[-2] == heads and out.shape[-3:-1] == value.shape[-2:]
    if not fits or len({kernel.shape[:-3] for kernel in (query, key, value, out)}) > 1:
        raise ValueError(f"kernels must be (..., features, heads, head_dim), and of out (..., heads, head_dim, outputs), got {shapes}")
    if layer_norm is not None:
        query, key, value = (layer_norm_operator(layer_norm, kernel) for kernel in (query, key, value))
    query, key, value = (jnp.moveaxis(kernel, -2, -3) for kernel in (query, key, value))  # (..., heads, features, head_dim)
    return Heads(_values_of_product(query, key) / math.sqrt(head_dim), _values_of_product(value, jnp.swapaxes(out, -1, -2)))


def layer_norm_operator(layer_norm: PyTree, kernel: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
    """The kernel (..., features, heads, head_dim), or (features, outputs), that reads inputs through the diagonal of a LayerNorm's scale.

    Raises:
      ValueError: no scale (features,).
    """
    kernel = real_kernel(checks.numbers(kernel, "kernel"))
    if not isinstance(layer_norm, Mapping) or "scale" not in layer_norm:
        raise ValueError("layer_norm must be the parameters of a flax.linen.LayerNorm with a 'scale': without one the operator is 1")
    scale = real_kernel(checks.numbers(layer_norm["scale"], "scale"))
    axis = -2 if kernel.ndim == 2 else -3
    if kernel.ndim < 2 or scale.shape != kernel.shape[axis : kernel.ndim + axis + 1]:
        raise ValueError(f"scale must have one entry per feature that the kernel {kernel.shape} reads, got shape {scale.shape}")
    return kernel * scale.reshape(-1, *[1] * (-axis - 1))


def _kernel(params: PyTree, name: str) -> jax.Array:
    part = params.get(name) if isinstance(params, Mapping) else None
    if not isinstance(part, Mapping) or "kernel" not in part:
        held = ", ".join(map(str, params)) if isinstance(params, Mapping) else type(params).__name__
        raise ValueError(f"params must hold {name}/kernel, as those of flax.linen.MultiHeadDotProductAttention do, got {held}")
    kernel = real_kernel(checks.numbers(part["kernel"], f"{name}/kernel"))
    if kernel.ndim < 3 or kernel.size == 0:
        raise ValueError(f"{name}/kernel must have three axes, one of them heads, got shape {kernel.shape}")
    return kernel


def _values_of_product(left: jax.Array, right: jax.Array) -> jax.Array:
    """Singular values of left right^T for factors (..., rows, k)."""
    outer = (jnp.linalg.qr(left, mode="r"), jnp.linalg.qr(right, mode="r"))
    return matrix_values(jnp.matmul(outer[0], jnp.swapaxes(outer[1], -1, -2), precision="highest"))
