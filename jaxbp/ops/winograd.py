"""The three products of a 3x3 convolution with fewer multiplications: Winograd's F(2x2, 3x3).

Two neighbouring outputs of a filter of three taps need six multiplications directly, and four if data and
filter are first combined (Winograd 1980; Lavin & Gray, CVPR 2016, section 4.1). In two dimensions a tile of 4 x 4 inputs
and a 3 x 3 kernel give 2 x 2 outputs by 16 multiplications for 36: 16 matrix products over the channels, one for each
entry of the transformed tile. As a decomposition of the trilinear form that ties input x, kernel k and output y, with
matrices B, G and A,

    <y, x * k> = sum_ab (B^T x B)_ab (G k G^T)_ab (A y A^T)_ab,

it gives all three products: the gradient of the kernel is G^T [sum over tiles (B^T x B) (A y A^T)] G, that of the input is
again a convolution. The coefficients are 0, 1 and 1/2, so rounding errors are those of the plain sums (F(4x4, 3x3) would be ten
times worse in float32). Tiles are computed in groups of examples that fit the cache.

>>> import jax, jax.numpy as jnp
>>> x = jax.random.normal(jax.random.key(0), (2, 5, 7, 3)); k = jax.random.normal(jax.random.key(1), (3, 3, 3, 4))
>>> plain = jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
>>> bool(jnp.allclose(output(x, k, padding=((1, 1), (1, 1))), plain, atol=1e-5))
True
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Padding = Sequence[tuple[int, int]]

_B = ((1, 0, 0, 0), (0, 1, -1, 1), (-1, 1, 1, 0), (0, 0, 0, -1))
_G = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
_A = ((1, 0), (1, 1), (1, -1), (0, -1))
_GROUP_BYTES = 2**23  # of one group's transformed tiles


def output(x: jax.Array, k: jax.Array, *, padding: Padding, precision: Any = None) -> jax.Array:
    """Convolve x (N, H, W, C) with k (3, 3, C, O), stride 1: (N, H', W', O)."""
    filters = _grid(_transform(_G, _entries(k)))
    return _correlate(x, filters, padding, (((2,), (1,)), ((0,), (0,))), precision)


def input_gradient(y: jax.Array, k: jax.Array, *, padding: Padding, precision: Any = None) -> jax.Array:
    """The product of y (N, H', W', O) and k that returns the shape of x: correlation with the rotated kernel."""
    rotated = [row[::-1] for row in _G]
    filters = _grid(_transform(rotated, _entries(k)))
    return _correlate(y, filters, [(2 - lo, 2 - hi) for lo, hi in padding], (((2,), (2,)), ((0,), (0,))), precision)


def kernel_gradient(x: jax.Array, y: jax.Array, *, padding: Padding, precision: Any = None) -> jax.Array:
    """The product of x (N, H, W, C) and y (N, H', W', O) that returns the shape of k: (3, 3, C, O)."""
    num_tiles = _num_tiles(y.shape[1:3])

    def group(operands: tuple[jax.Array, ...]) -> jax.Array:
        data = _grid(_transform(_columns(_B), _tiles(operands[0], padding, num_tiles, 4)))
        deltas = _grid(_transform(_A, _tiles(operands[1], ((0, 0), (0, 0)), num_tiles, 2)))
        return lax.dot_general(data, deltas, (((1,), (1,)), ((0,), (0,))), precision=precision)

    entry = 16 * x.dtype.itemsize
    limit = max(_GROUP_BYTES, 2 * entry * x.shape[-1] * y.shape[-1])  # each group also reads and writes the sum so far
    parts = _in_groups((x, y), entry * math.prod(num_tiles) * (x.shape[-1] + y.shape[-1]), limit)
    if len(parts[0]) == 1:
        products = group(jax.tree.map(lambda part: part[0], parts))
    else:
        shape = jax.eval_shape(group, jax.tree.map(lambda part: part[0], parts))
        zero = jnp.zeros_like(parts[0], shape=shape.shape) + 0 * parts[0].ravel()[0] * parts[1].ravel()[0]
        products = lax.scan(lambda total, part: (total + group(part), None), zero, parts)[0]
    rows = _transform(_columns(_G), products.reshape(4, 4, *products.shape[1:]))
    return jnp.stack([jnp.stack(row) for row in rows])


def _correlate(x: jax.Array, filters: jax.Array, padding: Padding, contraction: Any, precision: Any) -> jax.Array:
    extents = [size + lo + hi - 2 for size, (lo, hi) in zip(x.shape[1:3], padding, strict=True)]
    num_tiles = _num_tiles(extents)

    def group(part: jax.Array) -> jax.Array:
        data = _grid(_transform(_columns(_B), _tiles(part, padding, num_tiles, 4)))
        products = lax.dot_general(data, filters, contraction, precision=precision)
        tiles = _transform(_columns(_A), products.reshape(4, 4, part.shape[0], *num_tiles, products.shape[-1]))
        joined = jnp.stack([jnp.stack(row, axis=3) for row in tiles], axis=2)  # (n, tiles, 2, tiles, 2, channels)
        return joined.reshape(part.shape[0], 2 * num_tiles[0], 2 * num_tiles[1], joined.shape[-1])[:, : extents[0], : extents[1]]

    (parts,) = _in_groups((x,), 16 * math.prod(num_tiles) * x.shape[-1] * x.dtype.itemsize, _GROUP_BYTES)
    if len(parts) == 1:
        return group(parts[0])
    out = lax.map(group, parts)
    return out.reshape(math.prod(out.shape[:2]), *out.shape[2:])[: len(x)]


def _in_groups(arrays: tuple[jax.Array, ...], bytes_each: int, limit: int) -> tuple[jax.Array, ...]:
    """Examples in groups (groups, n, ...) whose tiles take at most ``limit`` bytes; zeros pad the last group."""
    num_examples = len(arrays[0])
    size = max(1, min(num_examples, limit // max(bytes_each, 1)))
    num_groups = -(-num_examples // size)
    size = -(-num_examples // max(num_groups, 1))  # groups of nearly equal size
    missing = num_groups * size - num_examples
    filled = [jnp.pad(a, [(0, missing)] + [(0, 0)] * (a.ndim - 1)) if missing else a for a in arrays]
    return tuple(a.reshape(num_groups, size, *a.shape[1:]) for a in filled)


def _num_tiles(extents: Sequence[int]) -> tuple[int, int]:
    return -(-extents[0] // 2), -(-extents[1] // 2)


def _tiles(x: jax.Array, padding: Padding, num_tiles: tuple[int, int], size: int) -> list[list[jax.Array]]:
    """Tiles of ``size`` x ``size`` pixels, 2 apart: entry [i][j] holds pixel (i, j) of all tiles (n, tiles, tiles, channels)."""
    reach = [2 * (num - 1) + size for num in num_tiles]
    pads = [(lo, want - extent - lo, 0) for (lo, _), want, extent in zip(padding, reach, x.shape[1:3], strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    stops = [2 * (num - 1) + 1 for num in num_tiles]

    def pixel(i: int, j: int) -> jax.Array:
        return lax.slice(x, (0, i, j, 0), (x.shape[0], i + stops[0], j + stops[1], x.shape[3]), (1, 2, 2, 1))

    return [[pixel(i, j) for j in range(size)] for i in range(size)]


def _entries(k: jax.Array) -> list[list[jax.Array]]:
    return [[k[i, j] for j in range(3)] for i in range(3)]


def _grid(entries: Any) -> jax.Array:
    """A grid of arrays (..., channels) as one array (16, positions, channels)."""
    return jnp.stack([entry.reshape(math.prod(entry.shape[:-1]), entry.shape[-1]) for row in entries for entry in row])


def _columns(matrix: Sequence[Sequence[float]]) -> list[tuple[float, ...]]:
    return list(zip(*matrix, strict=True))


def _transform(matrix: Sequence[Sequence[float]], grid: Any) -> list[list[jax.Array]]:
    """M g M^T for a grid g of arrays, entry by entry."""
    along_rows = [_combine(matrix, [row[j] for row in grid]) for j in range(len(grid[0]))]
    return [_combine(matrix, list(row)) for row in zip(*along_rows, strict=True)]


def _combine(matrix: Sequence[Sequence[float]], terms: Sequence[jax.Array]) -> list[jax.Array]:
    """The linear combination of the terms for each row of a small matrix."""
    return [_sum(row, terms) for row in matrix]


def _sum(row: Sequence[float], terms: Sequence[jax.Array]) -> jax.Array:
    used = [(factor, term) for factor, term in zip(row, terms, strict=True) if factor]
    scaled = [term if factor == 1 else factor * term for factor, term in used]
    total = scaled[0]
    for term in scaled[1:]:
        total = total + term
    return total
