"""Products of data and a weight: the geometry of matrix products and convolutions in a program.

A product is described by what its primitive does with the axes of data, weight and output, so that both can be arranged as the factors
of one matrix product: positions by inputs for the data, positions by outputs for a gradient of the output.

>>> from jaxbp.jaxprs import interpret, products
>>> import jax.numpy as jnp
>>> (operation,) = interpret.trace(lambda w, x: x @ w, jnp.ones((3, 5)), jnp.ones((4, 3))).operations
>>> products.geometry_of(operation, side=1, weight_shape=(3, 5)).contract
(1,)
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Num

from jaxbp.jaxprs import interpret

BILINEAR = ("dot_general", "conv_general_dilated", "jaxbp_conv")


class Matmul(NamedTuple):
    """A `lax.dot_general` of data and a weight.

    Attributes:
      contract: axes of the data that are summed over.
      batch: axes of the data that the weight shares: each slice has a weight of its own.
      weight_side: 0 if the weight is the first operand, 1 if it is the second.
      weight_contract: axes of the weight that are summed over.
      weight_batch: axes of the weight that the data share.
    """

    contract: tuple[int, ...]
    batch: tuple[int, ...]
    weight_side: int
    weight_contract: tuple[int, ...]
    weight_batch: tuple[int, ...]

    def patches(self, data: Num[jax.Array, "..."]) -> Num[jax.Array, "p g k"]:
        """Arrange data as the factor that multiplies the weight, (positions P, groups g, K)."""
        free = [axis for axis in range(data.ndim) if axis not in (*self.contract, *self.batch)]
        sizes = [math.prod(data.shape[axis] for axis in axes) for axes in (free, self.batch, self.contract)]
        return data.transpose(*free, *self.batch, *self.contract).reshape(sizes)

    def deltas(self, output: Num[jax.Array, "..."], data: Any) -> Num[jax.Array, "p g o"]:
        """Arrange a gradient with respect to the output as (P, g, o)."""
        groups = math.prod(output.shape[: len(self.batch)])
        positions = math.prod(data.shape) // math.prod(data.shape[axis] for axis in (*self.contract, *self.batch))
        if self.weight_side == 1:
            return output.reshape(groups, positions, -1).transpose(1, 0, 2)
        return output.reshape(groups, -1, positions).transpose(2, 0, 1)


class Convolution(NamedTuple):
    """A convolution of data and a weight in any dimensions and layout, without batch groups.

    Attributes:
      strides: of the window, one an axis.
      padding: (low, high) zeros of each axis.
      data_dilation: dilation of the data (transposed convolutions).
      weight_dilation: dilation of the window.
      window: extents of the window.
      groups: groups of channels.
      data_spec: axes of batch, channels and space of the data.
      output_spec: axes of batch, channels and space of the output.
      weight_spec: axes of outputs, inputs and window of the weight.
    """

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    data_dilation: tuple[int, ...]
    weight_dilation: tuple[int, ...]
    window: tuple[int, ...]
    groups: int
    data_spec: tuple[int, ...]
    output_spec: tuple[int, ...]
    weight_spec: tuple[int, ...]

    def image(self, data: Num[jax.Array, "..."]) -> Num[jax.Array, "n ... c"]:
        """Data as (batch, *space, channels), dilated and padded."""
        batch, channels, *space = self.data_spec
        holes = zip(self.padding, self.data_dilation, strict=True)
        pads = [(0, 0, 0), *((low, high, dilation - 1) for (low, high), dilation in holes), (0, 0, 0)]
        return lax.pad(data.transpose(batch, *space, channels), jnp.zeros((), data.dtype), pads)

    def taps(self, extents: Sequence[int]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """For each weight of the window, (start, stop) of the pixels that it sees in a padded image of these extents."""
        sizes = zip(extents, self.window, self.weight_dilation, self.strides, strict=True)
        counts = [(extent - (width - 1) * dilation - 1) // stride + 1 for extent, width, dilation, stride in sizes]
        ranges = []
        for tap in itertools.product(*map(range, self.window)):
            start = tuple(t * d for t, d in zip(tap, self.weight_dilation, strict=True))
            ranges.append((start, tuple(a + (n - 1) * s + 1 for a, n, s in zip(start, counts, self.strides, strict=True))))
        return ranges

    def patches(self, data: Num[jax.Array, "..."]) -> Num[jax.Array, "p g k"]:
        """Arrange data as the factor that multiplies the weight, (P, g, K); the positions P run over batch and space."""
        image = self.image(data)
        steps = (1, *self.strides, 1)
        cut = [
            lax.slice(image, (0, *start, 0), (image.shape[0], *stop, image.shape[-1]), steps)
            for start, stop in self.taps(image.shape[1:-1])
        ]
        stacked = jnp.stack([part.reshape(-1, self.groups, image.shape[-1] // self.groups) for part in cut], axis=2)
        return stacked.reshape(*stacked.shape[:2], -1)

    def deltas(self, output: Num[jax.Array, "..."], data: Any) -> Num[jax.Array, "p g o"]:
        """Arrange a gradient with respect to the output as (P, g, o)."""
        del data
        batch, channels, *space = self.output_spec
        features = output.shape[channels]
        return output.transpose(batch, *space, channels).reshape(-1, self.groups, features // self.groups)


def geometry_of(operation: interpret.Operation, side: int, weight_shape: tuple[int, ...]) -> Matmul | Convolution | None:
    """The geometry of a product (`BILINEAR`) whose operand number ``side`` is the weight; None for a convolution that has no such form."""
    return _GEOMETRIES[operation.name](operation.params, side, weight_shape)


def _matmul(params: dict, side: int, weight_shape: tuple[int, ...]) -> Matmul:
    contract, batch = params["dimension_numbers"]
    return Matmul(tuple(contract[1 - side]), tuple(batch[1 - side]), side, tuple(contract[side]), tuple(batch[side]))


def _convolution(params: dict, side: int, weight_shape: tuple[int, ...]) -> Convolution | None:
    if side == 0 or params["batch_group_count"] != 1:
        return None
    numbers = params["dimension_numbers"]
    return Convolution(
        strides=tuple(params["window_strides"]),
        padding=tuple(params["padding"]),
        data_dilation=tuple(params["lhs_dilation"]),
        weight_dilation=tuple(params["rhs_dilation"]),
        window=tuple(weight_shape[axis] for axis in numbers.rhs_spec[2:]),
        groups=params["feature_group_count"],
        data_spec=tuple(numbers.lhs_spec),
        output_spec=tuple(numbers.out_spec),
        weight_spec=tuple(numbers.rhs_spec),
    )


def _channels_last_convolution(params: dict, side: int, weight_shape: tuple[int, ...]) -> Convolution | None:
    spec = params["spec"]
    if side == 0 or spec.product != "output" or spec.stacked:
        return None
    n = len(spec.spatial)
    last = (0, n + 1, *range(1, n + 1))
    return Convolution(spec.strides, spec.padding, (1,) * n, spec.dilation, spec.window, 1, last, last, (n + 1, n, *range(n)))


_GEOMETRIES = {"dot_general": _matmul, "conv_general_dilated": _convolution, "jaxbp_conv": _channels_last_convolution}
