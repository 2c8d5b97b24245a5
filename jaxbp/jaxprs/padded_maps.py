"""Follow a padded map back to the map that was padded, whatever the padding: zeros, wrapped, reflected or repeated pixels.

Flax and others pad by slices and concatenations before a convolution without padding. `Rearranged` holds an array that consists of
entries of another one, and zeros; `pixels_of` tells for each axis which pixel each pixel of the padded map copies.

>>> import jax, jax.numpy as jnp
>>> from jaxbp.jaxprs import interpret, padded_maps
>>> program = interpret.trace(lambda x: jax.lax.pad(x, 0.0, [(1, 2, 0)]), jnp.ones(3))
>>> x = padded_maps.Rearranged((3,))
>>> (move_fn,) = padded_maps.move_fns(program.operations[0])
>>> padded_maps.pixels_of(padded_maps.Rearranged((6,), [x, None], move_fn), x)
((-1, 0, 1, 2, -1, -1),)
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxbp.jaxprs import interpret


class Rearranged:
    """An array of a program, and how it was made from others by an operation that moves entries or adds zeros.

    Attributes:
      shape: of the array.
      parents: the operands; None for one whose entries are constants, which count as zeros.
      move_fn: from the operands, as NumPy arrays, to the array; None for an array that no such operation has made.
    """

    def __init__(self, shape: Sequence[int], parents: Sequence["Rearranged | None"] = (), move_fn: Callable[..., np.ndarray] | None = None):
        self.shape, self.parents, self.move_fn = tuple(shape), tuple(parents), move_fn

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    def origins(self) -> list["Rearranged"]:
        """The arrays of which this one may be a rearrangement, the earliest last, itself first."""
        chain, parents = [self], [parent for parent in self.parents if parent is not None]
        if self.move_fn is not None and parents:
            shared = parents[0].origins()
            for parent in parents[1:]:
                known = parent.origins()
                shared = [origin for origin in shared if origin in known]
            chain += shared
        return chain

    def entries(self, origin: "Rearranged") -> np.ndarray:
        """For each entry of this array, 1 + the flat index of the entry of ``origin`` that it copies; 0 where it is zero."""
        if self is origin:
            return np.arange(1, 1 + self.size, dtype=np.int64).reshape(self.shape)
        assert self.move_fn is not None
        return self.move_fn(*[None if parent is None else parent.entries(origin) for parent in self.parents])


def move_fns(operation: interpret.Operation) -> list[Callable[..., np.ndarray] | None]:
    """For each output of an operation, the function from the `Rearranged.entries` of its operands to its own; None if there is none."""
    if operation.name == "split":
        axis, ends = operation.params["axis"], np.cumsum(operation.params["sizes"])
        ranges = [range(end - size, end) for end, size in zip(ends, operation.params["sizes"], strict=True)]
        return [lambda x, places=places: np.take(x, places, axis) for places in ranges]
    make_fn = _MOVES.get(operation.name)
    return [None if make_fn is None else make_fn(operation) for _ in operation.output_types]


def pixels_of(array: Rearranged, origin: Rearranged) -> tuple[tuple[int, ...], ...] | None:
    """For each axis, the pixel of ``origin`` that each pixel of the array copies, -1 for zeros; None where axes are mixed."""
    if len(array.shape) != len(origin.shape) or 0 in array.shape:
        return None
    entries = array.entries(origin)
    alive = entries > 0
    axes = range(alive.ndim)
    lines = [np.asarray(alive.any(tuple(other for other in axes if other != axis))) for axis in axes]
    if not alive.any() or not np.array_equal(alive, functools.reduce(np.logical_and, _crossed(lines))):
        return None
    corner = [int(np.argmax(line)) for line in lines]
    pixels = []
    for axis in axes:
        line = entries[tuple(slice(None) if other == axis else corner[other] for other in axes)]
        places = np.unravel_index(np.maximum(line - 1, 0), origin.shape)[axis]
        pixels.append(np.where(lines[axis], places, -1))
    rebuilt = 1 + np.ravel_multi_index(_crossed([np.maximum(p, 0) for p in pixels]), origin.shape)
    return tuple(tuple(p.tolist()) for p in pixels) if np.array_equal(np.where(alive, rebuilt, 0), entries) else None


def _crossed(lines: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """One array for each axis, along that axis, to be broadcast against the others."""
    return tuple(line.reshape([-1 if other == axis else 1 for other in range(len(lines))]) for axis, line in enumerate(lines))


def _slice(params: dict) -> Callable[..., np.ndarray]:
    strides = params["strides"] or (1,) * len(params["start_indices"])
    cut = tuple(map(slice, params["start_indices"], params["limit_indices"], strides))
    return lambda x: x[cut]


def _pad(params: dict) -> Callable[..., np.ndarray]:
    def move(x: np.ndarray | None, _: Any) -> np.ndarray:
        assert x is not None
        for axis, (low, high, interior) in enumerate(params["padding_config"]):
            extent = (x.shape[axis] - 1) * (interior + 1) + 1 if x.shape[axis] else 0
            wide = np.zeros((*x.shape[:axis], extent, *x.shape[axis + 1 :]), x.dtype)
            wide[(slice(None),) * axis + (slice(None, None, interior + 1),)] = x
            widths = [(0, 0)] * x.ndim
            widths[axis] = max(low, 0), max(high, 0)
            x = np.pad(wide, widths)[(slice(None),) * axis + (slice(max(-low, 0), -max(-high, 0) or None),)]
        return x

    return move


def _broadcast(params: dict) -> Callable[..., np.ndarray]:
    def move(x: np.ndarray) -> np.ndarray:
        shape = [1] * len(params["shape"])
        for axis, extent in zip(params["broadcast_dimensions"], x.shape, strict=True):
            shape[axis] = extent
        return np.broadcast_to(x.reshape(shape), params["shape"])

    return move


def _concatenate(operation: interpret.Operation) -> Callable[..., np.ndarray]:
    shapes = [like.shape for like in operation.input_types]

    def move(*parts: np.ndarray | None) -> np.ndarray:
        whole = [np.zeros(shape, np.int64) if part is None else part for part, shape in zip(parts, shapes, strict=True)]
        return np.concatenate(whole, operation.params["dimension"])

    return move


def _reshape(operation: interpret.Operation) -> Callable[..., np.ndarray]:
    shape = operation.output_types[0].shape
    return lambda x: x.reshape(shape)


_MOVES: dict[str, Callable[[interpret.Operation], Callable[..., np.ndarray]]] = {
    "slice": lambda operation: _slice(operation.params),
    "pad": lambda operation: _pad(operation.params),
    "rev": lambda operation: lambda x: np.flip(x, operation.params["dimensions"]),
    "transpose": lambda operation: lambda x: x.transpose(operation.params["permutation"]),
    "broadcast_in_dim": lambda operation: _broadcast(operation.params),
    "concatenate": _concatenate,
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "copy": lambda operation: lambda x: x,
    "convert_element_type": lambda operation: lambda x: x,
}
