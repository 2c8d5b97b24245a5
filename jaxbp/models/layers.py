"""Dense and convolution layers in the two parametrisations of wide-network theory, and what stands between them.

*standard*: kernels are drawn with variance 2 / fan_in (He et al., ICCV 2015; uniform, as in the paper's code) and used as they are.
*ntk*: kernels are drawn with variance 1 and multiplied by sqrt(2 / fan_in) when used (Jacot et al., NeurIPS 2018, with He's gain).
Both give functions of the same mean and variance at initialisation, and of one law as the width grows; they differ in
how far one gradient step moves a wide layer. Biases start at 0.

Two precisions. *float32* casts nothing: a float64 session computes in float64. *bfloat16* is mixed precision (Micikevicius et al.,
ICLR 2018): layers compute in it on inputs and parameters cast to it; parameters, their gradients and the statistics of
normalisations stay in float32, and so does the head, whence logits are float32.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers

from jaxbp import checks
from jaxbp.ops import convolution

PARAMETRISATIONS = ("standard", "ntk")
NORMS = ("batch", "none", "layer")
DTYPES = ("float32", "bfloat16")

EPSILON = 1e-5  # under the root of both normalisations
_MOMENTUM = 0.9  # of the stored batch statistics: how much of the old ones a step keeps


def dense(features: int, *, gain: float = 1.0, parametrisation: str = "standard", dtype: str = "float32") -> nn.Dense:
    """An `nn.Dense` whose parameters are ``kernel`` (fan_in, features), at first times ``gain``, and ``bias`` (features,).

    ``dtype``: one of `DTYPES`, of the computation.
    """
    return nn.Dense(
        features,
        kernel_init=_initialiser(parametrisation, gain),
        dtype=_computed_in(dtype),
        dot_general=_ntk_dot_general if parametrisation == "ntk" else None,
    )


def conv(
    features: int,
    spatial: tuple[int, ...],
    *,
    kernel_size: int = 3,
    stride: int = 1,
    groups: int = 1,
    use_bias: bool = True,
    gain: float = 1.0,
    parametrisation: str = "standard",
    formulation: str = "auto",
    dtype: str = "float32",
) -> nn.Conv:
    """An `nn.Conv` for maps of extents ``spatial``, through `jaxbp.ops.convolution`; ``kernel_size`` is odd.

    Zeros stand around the map on both sides alike, half a window deep, as in He's, PyTorch's and the paper's networks: output j of a
    stride of 2 is centred on pixel 2j, which a 1x1 convolution of the same stride reads. JAX's SAME pads even maps (0, 1) there. An
    axis of extent 1 (signals are laid out (N, L, 1, C)) gets kernel and stride 1: anything more would see padding only.
    ``gain`` multiplies the kernel as it is drawn. With ``groups`` the formulation is "auto", unless it is "xla".
    ``dtype``: one of `DTYPES`, of the computation.
    """
    convolve = convolution.conv_with(formulation if groups == 1 or formulation == "xla" else "auto")
    extents = window(kernel_size, spatial)
    if parametrisation == "ntk":
        convolve = _NtkConvolution(convolve)
    return nn.Conv(
        features,
        extents,
        window(stride, spatial),
        padding=tuple((extent // 2, extent // 2) for extent in extents),
        feature_group_count=groups,
        use_bias=use_bias,
        dtype=_computed_in(dtype),
        kernel_init=_initialiser(parametrisation, gain),
        conv_general_dilated=convolve,
    )


def window(size: int, spatial: tuple[int, ...]) -> tuple[int, ...]:
    """A window of ``size`` pixels along each axis that has more than one."""
    return tuple(size if extent > 1 else 1 for extent in spatial)


def normalise(features: jax.Array, norm: str, *, train: bool) -> jax.Array:
    """Normalise a map (N, H, W, C), into one of its dtype; called in the body of a module, to which the layer then belongs.

    ``norm``: "batch", over batch and pixels by channel, with scale and bias (Ioffe & Szegedy, ICML 2015), by the
    batch's own statistics if ``train`` and else by those stored in the collection ``batch_stats``; "layer", over the
    channels of each pixel, without scale and bias, so that the wide limit is known; "none". Means and variances are
    taken in float32 at least, whatever the map's dtype.
    """
    options = {"epsilon": EPSILON, "dtype": dtype_beside(features)}
    if norm == "batch":
        return nn.BatchNorm(use_running_average=not train, momentum=_MOMENTUM, **options)(features)
    if norm == "layer":
        return nn.LayerNorm(use_bias=False, use_scale=False, **options)(features)
    return features


def dtype_beside(features: jax.Array) -> Any:
    """Flax's ``dtype`` for what meets a map: bfloat16 beside such a map, else None, the result's inferred from all operands."""
    return jnp.bfloat16 if features.dtype == jnp.bfloat16 else None


def check_images(inputs: jax.Array) -> None:
    """Raise a ValueError for inputs that are no images (N, H, W, C) of real numbers."""
    if checks.examples(inputs).ndim != 4:
        raise ValueError(f"inputs must be images (N, H, W, C) or signals (N, L, 1, C), got shape {inputs.shape}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise a ValueError for a field of a network that is none of its choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")


def _computed_in(dtype: str) -> Any:
    """Flax's ``dtype`` for one of `DTYPES`."""
    check_choice("dtype", dtype, DTYPES)
    return None if dtype == "float32" else jnp.bfloat16


@functools.cache  # equal layers must hold equal initialisers, or each new network is traced anew
def _initialiser(parametrisation: str, gain: float) -> initializers.Initializer:
    check_choice("parametrisation", parametrisation, PARAMETRISATIONS)
    if gain == 0:
        return initializers.zeros_init()
    if parametrisation == "ntk":
        return initializers.normal(gain)
    return initializers.variance_scaling(2.0 * gain**2, "fan_in", "uniform")


def _ntk_dot_general(inputs: jax.Array, kernel: jax.Array, *args, **kwargs) -> jax.Array:
    return jax.lax.dot_general(inputs, kernel * math.sqrt(2 / kernel.shape[0]), *args, **kwargs)


@dataclasses.dataclass(frozen=True)
class _NtkConvolution:
    """A convolution that rescales its kernel; equal ones compare equal, so that models stay hashable and are not retraced."""

    convolve: Callable[..., jax.Array]

    def __call__(self, inputs: jax.Array, kernel: jax.Array, *args, **kwargs) -> jax.Array:
        return self.convolve(inputs, kernel * math.sqrt(2 * kernel.shape[-1] / kernel.size), *args, **kwargs)
