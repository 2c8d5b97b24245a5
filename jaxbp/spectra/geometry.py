"""What a linear layer is as an operator: window, map, strides, padding, dilation, groups, channels.

A convolution takes maps (\\*spatial, inputs) to maps (\\*output_spatial, outputs): a matrix of shape `Geometry.shape`, far too
large to write down. Output o and input i are tied by the tap t of the window with i = o strides + t dilation - padding, along each
axis. With circular padding indices count modulo the map and the matrix is block-circulant; with zeros, taps that fall off the map are
dropped. `Geometry.torus` says in which circular convolution a zero-padded one lies, and `Geometry.gap` how far it is from it. A dense
layer is a convolution without axes.

>>> from jaxbp.spectra import Geometry
>>> layer = Geometry.of((3, 3, 64, 128), (32, 32), strides=2, padding="zero")
>>> layer.output_spatial, layer.shape, layer.torus
((16, 16), (32768, 65536), (16, 16))
"""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Padding = str | Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Geometry:
    """The static side of a linear layer; kernels are (\\*window, inputs / groups, outputs).

    ``padding`` is "circular" or (low, high) zeros for each axis.
    """

    window: tuple[int, ...]
    spatial: tuple[int, ...]
    strides: tuple[int, ...]
    padding: Literal["circular"] | tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    inputs: int
    outputs: int

    @classmethod
    def of(
        cls,
        kernel_shape: Sequence[int],
        spatial: Sequence[int],
        *,
        strides: int | Sequence[int] = 1,
        padding: Padding = "circular",
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> "Geometry":
        """Check and complete a layer's geometry.

        Args:
          kernel_shape: (\\*window, inputs / groups, outputs).
          spatial: the extents of the input map, one an axis of the window; () for a dense layer.
          strides, dilation: of the window, one number or one an axis.
          padding: "circular", "zero" (or "SAME"), "VALID", or pairs of zeros before and behind each axis.
          groups: of channels, as in ``feature_group_count``.

        Raises:
          ValueError: what does not fit together, or a circular map that its stride does not divide.
        """
        spatial = tuple(int(n) for n in spatial)
        axes = len(spatial)
        if len(kernel_shape) != axes + 2:
            raise ValueError(
                f"a kernel on a map of extents {spatial} must have shape (*window, inputs / groups, outputs) with "
                f"{axes} axes of window, got {tuple(kernel_shape)}"
            )
        *window, inputs, outputs = (int(n) for n in kernel_shape)
        if min((*spatial, *window, inputs, outputs, groups), default=1) < 1:
            raise ValueError(f"extents must be at least 1, got map {spatial}, kernel {tuple(kernel_shape)}, groups {groups}")
        if outputs % groups:
            raise ValueError(f"groups must divide the outputs, got {groups} groups and {outputs} outputs")
        strides, dilation = _per_axis("strides", strides, axes), _per_axis("dilation", dilation, axes)
        reach = [(w - 1) * d + 1 for w, d in zip(window, dilation, strict=True)]
        found = cls(
            tuple(window), spatial, strides, _pads(padding, spatial, reach, strides), dilation, groups,
            inputs * groups, outputs,
        )  # fmt: skip
        if found.padding == "circular" and any(n % s for n, s in zip(spatial, strides, strict=True)):
            raise ValueError(
                f"with circular padding the strides {strides} must divide the map {spatial}: the operator has no frequencies "
                "otherwise; pad the map, or ask for padding='zero'"
            )
        if min(found.output_spatial, default=1) < 1:
            raise ValueError(f"the window reaches over {reach} pixels, more than the padded map {spatial} has")
        return found

    @property
    def circular(self) -> bool:
        """Whether indices count modulo the map; also true of a layer whose taps never leave it."""
        return self.padding == "circular" or all(pads == (0, 0) and w == 1 for pads, w in zip(self.zeros, self.window, strict=True))

    @property
    def zeros(self) -> tuple[tuple[int, int], ...]:
        """Zeros before and behind each axis: none where indices count modulo the map."""
        return ((0, 0),) * len(self.spatial) if self.padding == "circular" else self.padding

    @property
    def reach(self) -> tuple[int, ...]:
        """Pixels from the first to the last tap, along each axis."""
        return tuple((w - 1) * d + 1 for w, d in zip(self.window, self.dilation, strict=True))

    @property
    def output_spatial(self) -> tuple[int, ...]:
        """The extents of the output map."""
        if self.padding == "circular":
            return tuple(n // s for n, s in zip(self.spatial, self.strides, strict=True))
        sizes = zip(self.spatial, self.zeros, self.reach, self.strides, strict=True)
        return tuple((n + sum(pads) - reach) // s + 1 for n, pads, reach, s in sizes)

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs) of the operator as a matrix."""
        return self.outputs * math.prod(self.output_spatial), self.inputs * math.prod(self.spatial)

    @property
    def torus(self) -> tuple[int, ...]:
        """Extents of the outputs of the circular convolution that this one is, or out of which it is cut."""
        if self.circular:
            return self.output_spatial
        sizes = zip(self.output_spatial, self.spatial, self.reach, self.strides, strict=True)
        return tuple(max(m, -(-n // s), -(-reach // s)) for m, n, reach, s in sizes)

    def apply(self, kernel: jax.Array, features: jax.Array) -> jax.Array:
        """The operator on one map (\\*spatial, inputs), by `lax.conv_general_dilated`; ``kernel`` without leading axes."""
        axes = len(self.spatial)
        if axes == 0 and self.groups == 1:
            return jnp.matmul(features, kernel, precision="highest")
        batch = features[None]
        if self.padding == "circular":
            batch = jnp.pad(batch, [(0, 0), *((0, reach - 1) for reach in self.reach), (0, 0)], mode="wrap")
        last = (0, axes + 1, *range(1, axes + 1))
        return lax.conv_general_dilated(
            batch, kernel, self.strides, self.zeros, rhs_dilation=self.dilation, feature_group_count=self.groups,
            dimension_numbers=lax.ConvDimensionNumbers(last, (axes + 1, axes, *range(axes)), last), precision="highest",
        )[0]  # fmt: skip

    def tap_counts(self) -> np.ndarray:
        """(\\*window) outputs that see the map through each tap: what its squares count for in the Frobenius norm."""
        if self.circular:
            return np.full(self.window, float(math.prod(self.output_spatial)))
        sights = zip(self.sights(), self.spatial, strict=True)
        counts = [np.sum((sight >= 0) & (sight < n), axis=0, dtype=float) for sight, n in sights]
        return functools.reduce(np.multiply, np.ix_(*counts))

    def changed_rank(self) -> int:
        """A bound on the rank of (the circular convolution on `torus`) - (this one, filled up with zeros)."""
        if self.circular:
            return 0
        rows, columns = [], []
        for n, m, taps, stride, reach, dilation, pads in zip(
            self.spatial, self.torus, self.window, self.strides, self.reach, self.dilation, self.zeros, strict=True
        ):
            sight = np.arange(m)[:, None] * stride + np.arange(taps) * dilation - pads[0]
            kept = (sight >= 0) & (sight < n) & (np.arange(m)[:, None] < (n + sum(pads) - reach) // stride + 1)
            rows.append(int(kept.all(1).sum()))
            spoilt = np.unique((sight % (m * stride))[~kept])
            columns.append(m * stride - len(spoilt))
        whole = math.prod(self.torus)
        by_rows = (whole - math.prod(rows)) * self.outputs
        by_columns = (whole * math.prod(self.strides) - math.prod(columns)) * self.inputs
        return min(by_rows, by_columns)

    def overshoot(self) -> float:
        """By how much at most the symbol exceeds, between the frequencies of the torus, what it is there; infinite if unknown.

        Between its taps' ends q apart on the coarse map an entry is a function of exponential type q / 2, and falls from a maximum no
        faster than a cosine; the next frequency is at most pi / M away.
        """
        factor = 1.0
        for reach, stride, m in zip(self.reach, self.strides, self.torus, strict=True):
            apart = (reach - 1) // stride
            if apart >= m:
                return math.inf
            factor /= math.cos(math.pi * apart / (2 * m))
        return factor

    def sights(self) -> list[np.ndarray]:
        """For each axis (outputs, taps): the pixel that an output sees through a tap, be it on the map or not."""
        sizes = zip(self.output_spatial, self.window, self.strides, self.dilation, self.zeros, strict=True)
        return [np.arange(m)[:, None] * s + np.arange(w) * d - low for m, w, s, d, (low, _) in sizes]


def _per_axis(name: str, value: Any, axes: int) -> tuple[int, ...]:
    values = (value,) * axes if np.ndim(value) == 0 else tuple(value)
    if len(values) != axes or any(int(v) != v or v < 1 for v in values):
        raise ValueError(f"{name} must be a positive integer, or one for each of {axes} axes, got {value!r}")
    return tuple(int(v) for v in values)


def _pads(padding: Padding, spatial: tuple, reach: Sequence[int], strides: tuple) -> Literal["circular"] | tuple:
    if isinstance(padding, str):
        name = {"zero": "SAME"}.get(padding, padding.upper())
        if name == "CIRCULAR":
            return "circular"
        if name not in ("SAME", "VALID"):
            raise ValueError(f"padding must be circular, zero (or SAME), VALID or pairs of numbers for each axis, got {padding!r}")
        return tuple((int(low), int(high)) for low, high in lax.padtype_to_pads(spatial, reach, strides, name))
    pairs = tuple((int(low), int(high)) for low, high in padding)
    if len(pairs) != len(spatial):
        raise ValueError(f"padding must be one pair for each of {len(spatial)} axes, got {padding!r}")
    return pairs


def symmetric_frequencies(extents: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies of a torus up to sign: those equal to their negative (R, axes), and one of each other pair (C, axes).

    A real kernel's symbol at -g is the conjugate of that at g, and real where both are one.
    """
    every = list(itertools.product(*map(range, extents)))
    negative = [tuple((-g) % m for g, m in zip(f, extents, strict=True)) for f in every]
    axes = len(extents)
    own = [f for f, n in zip(every, negative, strict=True) if f == n]
    pairs = [f for f, n in zip(every, negative, strict=True) if f < n]
    return np.array(own, int).reshape(len(own), axes), np.array(pairs, int).reshape(len(pairs), axes)
