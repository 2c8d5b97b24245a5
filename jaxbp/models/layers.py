"""Dense and convolution layers in the two parametrisations of wide-network theory.

*standard*: kernels are drawn with variance 2 / fan_in (He et al., ICCV 2015; uniform, as in the paper's code) and used as they are.
*ntk*: kernels are drawn with variance 1 and multiplied by sqrt(2 / fan_in) when used (Jacot et al., NeurIPS 2018, with He's gain).
Both give functions of the same mean and variance at initialisation, and of one law as the width grows; they differ in
how far one gradient step moves a wide layer. Biases start at 0.
"""

import dataclasses
import math
from collections.abc import Callable

import flax.linen as nn
import jax
from flax.linen import initializers

from jaxbp import convolution

PARAMETRISATIONS = ("standard", "ntk")

_INITIALISERS = {
    "standard": initializers.variance_scaling(2.0, "fan_in", "uniform"),
    "ntk": initializers.normal(1.0),
}


def dense(features: int, *, parametrisation: str = "standard") -> nn.Dense:
    """An `nn.Dense` whose parameters are ``kernel`` (fan_in, features) and ``bias`` (features,)."""
    scaled = {"dot_general": _ntk_dot_general} if parametrisation == "ntk" else {}
    return nn.Dense(features, kernel_init=_initialiser(parametrisation), **scaled)


def conv(
    features: int,
    spatial: tuple[int, ...],
    *,
    kernel_size: int = 3,
    stride: int = 1,
    parametrisation: str = "standard",
    formulation: str = "auto",
) -> nn.Conv:
    """An `nn.Conv`, padding SAME, for maps of extents ``spatial``, through `jaxbp.convolution`.

    An axis of extent 1 (signals are laid out (N, L, 1, C)) gets kernel and stride 1: anything more would see padding only.
    """
    kernel = tuple(kernel_size if extent > 1 else 1 for extent in spatial)
    strides = tuple(stride if extent > 1 else 1 for extent in spatial)
    convolve = convolution.conv_with(formulation)
    if parametrisation == "ntk":
        convolve = _NtkConvolution(convolve)
    return nn.Conv(features, kernel, strides, kernel_init=_initialiser(parametrisation), conv_general_dilated=convolve)


def _initialiser(parametrisation: str) -> initializers.Initializer:
    if parametrisation not in PARAMETRISATIONS:
        raise ValueError(f"parametrisation must be one of {PARAMETRISATIONS}, got {parametrisation!r}")
    return _INITIALISERS[parametrisation]


def _ntk_dot_general(inputs: jax.Array, kernel: jax.Array, *args, **kwargs) -> jax.Array:
    return jax.lax.dot_general(inputs, kernel * math.sqrt(2 / kernel.shape[0]), *args, **kwargs)


@dataclasses.dataclass(frozen=True)
class _NtkConvolution:
    """A convolution that rescales its kernel; equal ones compare equal, so that models stay hashable and are not retraced."""

    convolve: Callable[..., jax.Array]

    def __call__(self, inputs: jax.Array, kernel: jax.Array, *args, **kwargs) -> jax.Array:
        return self.convolve(inputs, kernel * math.sqrt(2 * kernel.shape[-1] / kernel.size), *args, **kwargs)
