"""Depthwise convolutions with fast derivatives on the CPU: a sum over the window of shifted inputs, each times one weight a channel.

XLA runs the derivatives of a grouped convolution by naive code inside loops (`jaxbp.ops.convolution`): 27 to 240 times as long as the
same derivatives of shifted inputs in a ``lax.scan`` on two cores, maps of 4x4 to 32x32 with 96 to 960 channels. A program that is not
differentiated keeps XLA's convolution, so that what searches a program for linear layers finds one.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxbp.ops.taps import taps


@dataclasses.dataclass(frozen=True)
class Geometry:
    """What a depthwise convolution is beside its operands; tuples have an entry for each spatial axis.

    Attributes:
      strides, padding: of the convolution; padding as pairs of numbers, which may be negative.
      dilation: of the kernel.
      dimension_numbers: of channels-last arrays, in the form of `jax.lax.conv_dimension_numbers`.
      precision: as in `jax.lax`, of XLA's convolution; shifted inputs are multiplied in full precision.
    """

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    dimension_numbers: lax.ConvDimensionNumbers
    precision: Any = None


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def convolve(
    geometry: Geometry, inputs: Float[Array, "N *spatial C"], kernel: Float[Array, "*window 1 C"]
) -> Float[Array, "N *spatial2 C"]:
    """The convolution of each channel of ``inputs`` with its own part of ``kernel``, in any mode of differentiation."""
    return lax.conv_general_dilated(
        inputs,
        kernel,
        geometry.strides,
        geometry.padding,
        rhs_dilation=geometry.dilation,
        dimension_numbers=geometry.dimension_numbers,
        feature_group_count=inputs.shape[-1],
        precision=geometry.precision,
    )


@convolve.defjvp
def _jvp(geometry: Geometry, primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (inputs, kernel), (of_inputs, of_kernel) = primals, tangents
    return _shifted(geometry, inputs, kernel), _shifted(geometry, of_inputs, kernel) + _shifted(geometry, inputs, of_kernel)


def _shifted(geometry: Geometry, inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution as a sum over the window, in float32 at least."""
    dtype, window = jnp.promote_types(inputs.dtype, jnp.float32), kernel.shape[:-2]
    weights = kernel.astype(dtype).reshape(-1, kernel.shape[-1])
    parts = taps(inputs.astype(dtype), window, strides=geometry.strides, padding=geometry.padding, dilation=geometry.dilation)
    return sum((part * weight for part, weight in zip(parts, weights, strict=True)), jnp.zeros((), dtype)).astype(inputs.dtype)
