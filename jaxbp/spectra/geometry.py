"""Geometry of a linear layer as an operator: window, map, strides, padding, dilation, groups and channels.

A convolution maps (\\*spatial, inputs) to (\\*output_spatial, outputs). As a matrix it has the shape `Geometry.shape`, which is far too
large to form. Tap t of the window connects output o and input i if i = o strides + t dilation - padding, along each axis. With circular
padding, indices are taken modulo the map and the matrix is block-circulant; with zero padding, taps outside the map are dropped.
`Geometry.torus` is the torus of a circular convolution that contains a zero-padded one, and `Geometry.changed_rank` bounds the rank of
their difference. A dense layer is a convolution without axes.

>>> from jaxbp.spectra import Geometry
>>> layer = Geometry.of((3, 3, 64, 128), (32, 32), strides=2, padding="zero")
>>> layer.output_spatial, layer.shape, layer.torus
((16, 16), (32768, 65536), (16, 16))
"""

import dataclasses
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
    """Geometry of a linear layer with kernels (\\*window, inputs / groups, outputs).

    Attributes:
      window: extents of the window, one an axis.
      spatial: extents of the input map.
      strides: of the window.
      padding: "circular", or (low, high) zeros for each axis.
      dilation: of the window.
      groups: groups of channels.
      inputs: input channels of all groups.
      outputs: output channels of all groups.
      pixels: for each axis, the pixel of the map that each pixel of the padded map copies, -1 for zeros; None where ``padding`` says all.
    """

    window: tuple[int, ...]
    spatial: tuple[int, ...]
    strides: tuple[int, ...]
    padding: Literal["circular"] | tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    inputs: int
    outputs: int
    pixels: tuple[tuple[int, ...], ...] | None = None

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
        """Check a layer's description and return its geometry.

        Args:
          kernel_shape: (\\*window, inputs / groups, outputs).
          spatial: the extents of the input map, one for each axis of the window; () for a dense layer.
          strides, dilation: of the window, one number for all axes or one for each.
          padding: "circular", "zero" (or "SAME"), "VALID", or numbers (low, high) of zeros before and after each axis.
          groups: groups of channels, as in ``feature_group_count``.

        Raises:
          ValueError: for shapes that do not fit together, or a circular map whose extent is no multiple of the stride.
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
        geometry = cls(
            window=tuple(window),
            spatial=spatial,
            strides=strides,
            padding=_pads(padding, spatial, reach, strides),
            dilation=dilation,
            groups=groups,
            inputs=inputs * groups,
            outputs=outputs,
        )
        if geometry.padding == "circular" and any(n % s for n, s in zip(spatial, strides, strict=True)):
            raise ValueError(
                f"with circular padding the strides {strides} must divide the map {spatial}: the operator has no frequencies "
                "otherwise; pad the map, or ask for padding='zero'"
            )
        if min(geometry.output_spatial, default=1) < 1:
            raise ValueError(f"the window reaches over {reach} pixels, more than the padded map {spatial} has")
        return geometry

    def padded_by(self, pixels: Sequence[Sequence[int]]) -> "Geometry":
        """This layer on a map that is padded by copies of its pixels; where that is the same, a circular layer or one padded with zeros.

        Raises:
          ValueError: the window reaches over the padded map.
        """
        lines = [np.asarray(line) for line in pixels]
        if all(np.array_equal(line[line >= 0], np.arange(n)) and _contiguous(line) for line, n in zip(lines, self.spatial, strict=True)):
            ends = [(int(np.argmax(line >= 0)), len(line) - n) for line, n in zip(lines, self.spatial, strict=True)]
            return self._checked(padding=tuple((low, both - low) for low, both in ends), pixels=None)
        copied = self._checked(padding=((0, 0),) * len(lines), pixels=tuple(tuple(line.tolist()) for line in lines))
        axes = zip(copied.sights(), self.spatial, self.strides, copied.output_spatial, strict=True)
        if all(n == m * s and _wrapped(sight, n, s, self.dilation[axis]) for axis, (sight, n, s, m) in enumerate(axes)):
            return dataclasses.replace(copied, padding="circular", pixels=None)
        return copied

    def _checked(self, **changes: Any) -> "Geometry":
        geometry = dataclasses.replace(self, **changes)
        if min(geometry.output_spatial, default=1) < 1:
            raise ValueError(f"the window reaches over {geometry.reach} pixels, more than the padded map {geometry.spatial} has")
        return geometry

    @property
    def circular(self) -> bool:
        """Whether indices are taken modulo the map; also True for a layer whose taps never leave the map."""
        if self.pixels is not None:
            return False
        return self.padding == "circular" or all(pads == (0, 0) and w == 1 for pads, w in zip(self.zeros, self.window, strict=True))

    @property
    def zeros(self) -> tuple[tuple[int, int], ...]:
        """Numbers of zeros before and after each axis; 0 for circular padding."""
        return ((0, 0),) * len(self.spatial) if self.padding == "circular" else self.padding

    @property
    def reach(self) -> tuple[int, ...]:
        """Number of pixels from the first to the last tap, along each axis."""
        return tuple((w - 1) * d + 1 for w, d in zip(self.window, self.dilation, strict=True))

    @property
    def output_spatial(self) -> tuple[int, ...]:
        """The extents of the output map."""
        if self.padding == "circular":
            return tuple(n // s for n, s in zip(self.spatial, self.strides, strict=True))
        if self.pixels is not None:
            lengths = zip(self.pixels, self.reach, self.strides, strict=True)
            return tuple((len(line) - reach) // s + 1 for line, reach, s in lengths)
        sizes = zip(self.spatial, self.zeros, self.reach, self.strides, strict=True)
        return tuple((n + sum(pads) - reach) // s + 1 for n, pads, reach, s in sizes)

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs) of the operator as a matrix."""
        return self.outputs * math.prod(self.output_spatial), self.inputs * math.prod(self.spatial)

    @property
    def torus(self) -> tuple[int, ...]:
        """Output extents of the circular convolution that equals this layer, or that contains it as a submatrix."""
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
        for axis, line in enumerate(self.pixels or (), start=1):
            places = np.where(np.asarray(line) < 0, batch.shape[axis], line)  # beyond the map: zeros
            batch = jnp.take(batch, places, axis, mode="fill", fill_value=0)
        last = (0, axes + 1, *range(1, axes + 1))
        return lax.conv_general_dilated(
            batch,
            kernel,
            self.strides,
            self.zeros,
            rhs_dilation=self.dilation,
            feature_group_count=self.groups,
            dimension_numbers=lax.ConvDimensionNumbers(last, (axes + 1, axes, *range(axes)), last),
            precision="highest",
        )[0]

    def tap_counts(self) -> np.ndarray:
        """(\\*window) number of outputs that see the map through each tap: the tap's weight in the squared Frobenius norm."""
        if self.circular:
            return np.full(self.window, float(math.prod(self.output_spatial)))
        sights = zip(self.sights(), self.spatial, strict=True)
        counts = [np.sum((sight >= 0) & (sight < n), axis=0, dtype=float) for sight, n in sights]
        return functools.reduce(np.multiply, np.ix_(*counts))

    def shared_sights(self) -> np.ndarray:
        """(taps, taps) number of outputs that see one pixel through both taps; the diagonal is `tap_counts`."""
        counts = [
            np.sum((sight[:, :, None] == sight[:, None, :]) & (sight >= 0)[:, :, None] & (sight < n)[:, :, None], axis=0, dtype=float)
            for sight, n in zip(self.sights(), self.spatial, strict=True)
        ]
        return functools.reduce(np.kron, counts)

    def changed_rank(self) -> int:
        """Upper bound on the rank of the circular convolution on `torus` minus this layer, extended by zeros."""
        if self.circular:
            return 0
        rows, columns = [], []
        for n, m, taps, stride, reach, dilation, pads in zip(
            self.spatial, self.torus, self.window, self.strides, self.reach, self.dilation, self.zeros, strict=True
        ):
            sight = np.arange(m)[:, None] * stride + np.arange(taps) * dilation - pads[0]
            kept = (sight >= 0) & (sight < n) & (np.arange(m)[:, None] < (n + sum(pads) - reach) // stride + 1)
            rows.append(int(kept.all(1).sum()))
            changed = np.unique((sight % (m * stride))[~kept])
            columns.append(m * stride - len(changed))
        whole = math.prod(self.torus)
        by_rows = (whole - math.prod(rows)) * self.outputs
        by_columns = (whole * math.prod(self.strides) - math.prod(columns)) * self.inputs
        return min(by_rows, by_columns)

    def overshoot(self) -> float:
        """Upper bound on the symbol's largest value between the frequencies of the torus, relative to that at them; infinite if unknown.

        An entry of the symbol whose taps lie within q coarse pixels is a function of exponential type q / 2. It falls from a maximum no
        faster than a cosine, and the next frequency is at most pi / M away.
        """
        factor = 1.0
        for reach, stride, m in zip(self.reach, self.strides, self.torus, strict=True):
            apart = (reach - 1) // stride
            if apart >= m:
                return math.inf
            factor /= math.cos(math.pi * apart / (2 * m))
        return factor

    def sights(self) -> list[np.ndarray]:
        """For each axis (outputs, taps): the pixel that an output sees through a tap, on the map or outside."""
        if self.pixels is not None:
            places = zip(self.pixels, self.output_spatial, self.window, self.strides, self.dilation, strict=True)
            return [np.asarray(line)[np.arange(m)[:, None] * s + np.arange(w) * d] for line, m, w, s, d in places]
        sizes = zip(self.output_spatial, self.window, self.strides, self.dilation, self.zeros, strict=True)
        return [np.arange(m)[:, None] * s + np.arange(w) * d - low for m, w, s, d, (low, _) in sizes]


def _contiguous(line: np.ndarray) -> bool:
    """Whether zeros (-1) stand at the ends of a line only."""
    inside = np.flatnonzero(line >= 0)
    return len(inside) == inside[-1] - inside[0] + 1


def _wrapped(sight: np.ndarray, extent: int, stride: int, dilation: int) -> bool:
    """Whether pixels (outputs, taps) are those of a circular convolution, from any start."""
    outputs, taps = (np.arange(count) for count in sight.shape)
    return np.array_equal(sight, (sight[0, 0] + outputs[:, None] * stride + taps * dilation) % extent)


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

    A real kernel's symbol at -g is the conjugate of the symbol at g; it is real where g = -g.
    """
    every = list(itertools.product(*map(range, extents)))
    negative = [tuple((-g) % m for g, m in zip(f, extents, strict=True)) for f in every]
    axes = len(extents)
    own = [f for f, n in zip(every, negative, strict=True) if f == n]
    pairs = [f for f, n in zip(every, negative, strict=True) if f < n]
    return np.array(own, int).reshape(len(own), axes), np.array(pairs, int).reshape(len(pairs), axes)
