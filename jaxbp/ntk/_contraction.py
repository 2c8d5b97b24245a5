"""One layer's share of a tangent kernel, by the order of summation with the fewest operations.

A layer y = a W has n examples with P positions, G groups (1 for most), K inputs and o outputs a position. With data a
(n, P, G, K) and output gradients d (n, C, P, G, o), C of them an example, its share of Theta[i, j, k, l] is the sum over
p, q of (a_ip . a_jq)(d_ikp . d_jlq). Three orders of summation, with the operations for one set of n examples against
another of m:

- ``gradients``   form each weight gradient sum_p a_p (x) d_p, then their Gram matrix: 2 (n + m) C P K o + 2 n m C^2 K o;
- ``positions``   S = a . a' for all pairs of positions, then (S d') . d: S + 2 n m P^2 C o + 2 n m C^2 P o;
- ``products``    S, and d . d' for all pairs of positions, multiplied and summed: S + 2 n m C^2 P^2 o (C in place of C^2
  for a trace).

S costs 2 n m P^2 K from patches. A convolution's patches overlap: computed from the products of the U pixels of a padded image with
c channels, S costs 2 n m U^2 c and one addition for each pair of positions and weight of the window. The orders are
those of Novak et al., "Fast Finite Width Neural Tangent Kernel" (ICML 2022, arXiv 2206.08720); S from pixels is our addition.

Weight gradients that are few are formed as soon as the data and output gradients are there, so that neither is kept, nor copied into
another order of axes.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxbp.jaxprs.linear_layers import WeightUse
from jaxbp.jaxprs.products import Convolution
from jaxbp.ops import platform

LOGITS = ("full", "diagonal", "trace")
METHODS = ("gradients", "positions", "products")

_ADDITION = 8.0  # cost of reading and adding one number, in multiply-adds of a matrix product
PART = 10_000_000  # entries of the weight gradients formed at a time; longer matrix products run at half the speed
_LENGTH = 4608  # of rows whose inner products are formed at a time
_UNROLLED = 16  # outputs whose weight gradients are products of their own; more take long to compile
_NUM_BLOCKS = 5  # of a symmetric kernel; odd, see `symmetric_gram`


class LayerSizes(NamedTuple):
    """A layer's sizes for one example.

    Attributes:
      positions: P.
      groups: G.
      inputs, outputs: K and o, per position and group.
      pixels, channels: U and c of a convolution's padded image; 0 without such an image.
      window: number of positions in a convolution's window; 0 without such an image.
    """

    positions: int
    groups: int
    inputs: int
    outputs: int
    pixels: int
    channels: int
    window: int


def sizes(layer: WeightUse) -> LayerSizes:
    """The sizes on which the choice of a contraction depends."""
    patches = jax.eval_shape(layer.geometry.patches, layer.data)
    deltas = jax.eval_shape(lambda d: layer.geometry.deltas(d, layer.data), layer.output)
    pixels = channels = window = 0
    if isinstance(layer.geometry, Convolution) and layer.geometry.groups == 1:
        image = jax.eval_shape(layer.geometry.image, layer.data)
        if image.shape[0] == 1:  # one image an example
            pixels, channels, window = math.prod(image.shape[1:-1]), image.shape[-1], math.prod(layer.geometry.window)
    positions, groups, inputs = patches.shape
    return LayerSizes(positions, groups, inputs, deltas.shape[-1], pixels, channels, window)


def operations(size: LayerSizes, num_examples: int, num_outputs: int, logits: str) -> dict[str, float]:
    """Multiply-adds by each method for ``num_examples`` against as many, ``num_outputs`` gradients each."""
    n, c, p = num_examples, num_outputs, size.positions
    features = size.inputs * size.outputs * size.groups
    outputs = size.outputs * size.groups
    pairs = c * c if logits == "full" else c
    similarity = n * n * min(_from_patches(size), _from_pixels(size))
    return {
        "gradients": 2 * n * c * p * features + n * n * pairs * features,
        "positions": similarity + n * n * p * p * c * outputs + n * n * pairs * p * outputs,
        "products": similarity + n * n * p * p * (pairs * outputs + _ADDITION * (1 if logits == "trace" else pairs)),
    }


def _from_patches(size: LayerSizes) -> float:
    return size.positions**2 * size.groups * size.inputs


def _from_pixels(size: LayerSizes) -> float:
    return size.pixels**2 * size.channels + size.window * size.positions**2 * _ADDITION if size.pixels else math.inf


class Operand(NamedTuple):
    """The data and output gradients of a layer for n examples, in the form that its contraction needs.

    Attributes:
      data: (n, ...) as the layer receives them for the method "gradients" (a tuple for a weight with several uses); else images
        (n, \\*space, c) or patches (n, P, K).
      deltas: output gradients, (n, P, G, C, o) for the method "gradients", else (n, C, o, P).
    """

    data: jax.Array
    deltas: jax.Array


class Contraction(NamedTuple):
    """The contraction of one layer.

    Attributes:
      layer: the layer.
      method: one of `METHODS`.
      from_pixels: whether S is computed from pixels, or from patches.
      at_once: whether weight gradients are formed as soon as the output gradients are there, which then need not be kept.
    """

    layer: WeightUse
    method: str
    from_pixels: bool
    at_once: bool = False

    def contract(self, rows: Any, columns: Any, logits: str) -> jax.Array:
        """The layer's share for all pairs of ``rows`` and ``columns``, or of rows with themselves; operands are those of `prepare`.

        Shapes (n, m, C, D) for "full" logits, (n, m, C) for the "diagonal", (n, m) for the "trace".
        """
        if self.at_once:
            return gram(rows, rows if columns is None else columns, logits)
        if self.method == "gradients":
            return self._by_gradients(rows, columns, logits)
        by_rows = functools.partial(self._by_rows, logits=logits)
        return symmetric_gram(by_rows, rows) if columns is None else by_rows(rows, columns)

    def prepare(self, data: jax.Array, deltas: jax.Array) -> Operand | jax.Array:
        """The operand of one example (no axis n), from its data and output gradients (C, ...) as `linear_layers.run_fn` leaves them.

        Weight gradients (C, F) if they are formed at once.
        """
        geometry = self.layer.geometry
        deltas = jax.vmap(lambda d: geometry.deltas(d, data))(deltas)  # (C, P, g, o)
        if self.at_once:
            return _example_gradients(geometry.patches(data), deltas)
        if self.method == "gradients":
            return Operand(data, jnp.moveaxis(deltas, 0, 2))
        if self.from_pixels and isinstance(geometry, Convolution):
            return Operand(geometry.image(data)[0], deltas[:, :, 0].swapaxes(1, 2))
        return Operand(geometry.patches(data)[:, 0], deltas[:, :, 0].swapaxes(1, 2))

    def _by_gradients(self, rows: Operand, columns: Operand | None, logits: str) -> jax.Array:
        """Gram matrices of the weight gradients, for a part of the weight's inputs at a time."""
        sides = [side for side in (rows, columns) if side is not None]
        patches = [jax.vmap(self.layer.geometry.patches)(side.data) for side in sides]
        num_inputs = patches[0].shape[-1]
        most = PART / max(math.prod(side.deltas.shape[::2]) * side.deltas.shape[3] for side in sides)
        num_parts = next(n for n in range(1, num_inputs + 1) if num_inputs % n == 0 and num_inputs / n <= max(most, 1))
        parts = [jnp.moveaxis(p.reshape(*p.shape[:-1], num_parts, -1), -2, 0) for p in patches]  # (parts, n, P, g, k)

        def share(part: list[jax.Array]) -> jax.Array:
            gradients = [_weight_gradients(side.deltas, p) for p, side in zip(part, sides, strict=True)]
            return gram(gradients[0], gradients[-1], logits)

        if num_parts == 1:
            return share([part[0] for part in parts])
        start = jnp.zeros_like(jax.eval_shape(share, [part[0] for part in parts]))
        return lax.scan(lambda total, part: (total + share(part), None), start, parts)[0]

    def _by_rows(self, rows: Operand, columns: Operand, *, logits: str) -> jax.Array:
        """Sums over pairs of positions, for one example of the rows at a time, so that the columns stay in the cache."""
        rule = _POSITIONS if self.method == "positions" else _PRODUCTS

        def row(example: Operand) -> jax.Array:
            similarity = self._similarity(example.data, columns.data)
            return rule[logits](similarity, example.deltas, columns.deltas)

        return lax.map(row, rows)

    def _similarity(self, example: jax.Array, columns: jax.Array) -> jax.Array:
        """S (P, m, Q): inner products of the weight's inputs at each position of one example and of the columns."""
        products, geometry = jnp.tensordot(example, columns, (-1, -1)), self.layer.geometry
        if not (self.from_pixels and isinstance(geometry, Convolution)):
            return products
        m, extents = columns.shape[0], example.shape[:-1]
        steps = (*geometry.strides, 1, *geometry.strides)
        cuts = (lax.slice(products, (*start, 0, *start), (*stop, m, *stop), steps) for start, stop in geometry.taps(extents))
        total = functools.reduce(jnp.add, cuts)
        positions = math.prod(total.shape[: len(extents)])
        return total.reshape(positions, m, positions)


def _example_gradients(patches: jax.Array, deltas: jax.Array) -> jax.Array:
    """(C, F) gradients of one example from patches (P, G, k) and deltas (C, P, G, o)."""
    transposed = jnp.moveaxis(patches, 0, -1)

    def gradient(delta: jax.Array) -> jax.Array:
        return (transposed @ delta.swapaxes(0, 1)).reshape(-1)

    if platform.current() == "cpu" and len(deltas) <= _UNROLLED:  # one product of all outputs would need a copy of the deltas
        return jnp.stack([gradient(delta) for delta in deltas])
    return jax.vmap(gradient)(deltas)


def _weight_gradients(deltas: jax.Array, patches: jax.Array) -> jax.Array:
    """(n, C, F) gradients from deltas (n, P, G, C, o) and patches (n, P, G, k), by products of matrices, one an example and group."""
    n, positions, groups, num_outputs, _ = deltas.shape
    by_group = [side.swapaxes(1, 2).reshape(n * groups, positions, -1) for side in (deltas, patches)]
    gradients = jnp.einsum("npe,npk->nek", *by_group).reshape(n, groups, num_outputs, -1)
    return gradients.swapaxes(1, 2).reshape(n, num_outputs, -1)


# One example's deltas d (C, o, P) against those of all columns e (m, C, o, Q), given S (P, m, Q). With positions last, neither
# product needs a copy of the columns.


def _moved(similarity: jax.Array, e: jax.Array) -> jax.Array:
    return jnp.einsum("pjq,jloq->jlop", similarity, e)


_POSITIONS = {
    "full": lambda s, d, e: jnp.einsum("kop,jlop->jkl", d, _moved(s, e)),
    "diagonal": lambda s, d, e: jnp.einsum("kop,jkop->jk", d, _moved(s, e)),
    "trace": lambda s, d, e: jnp.einsum("kop,jkop->j", d, _moved(s, e)),
}
_PRODUCTS = {
    "full": lambda s, d, e: jnp.einsum("pjq,kpjlq->jkl", s, jnp.einsum("kop,jloq->kpjlq", d, e)),
    "diagonal": lambda s, d, e: jnp.einsum("pjq,kpjq->jk", s, jnp.einsum("kop,jkoq->kpjq", d, e)),
    "trace": lambda s, d, e: jnp.einsum("pjq,pjq->j", s, jnp.einsum("kop,jkoq->pjq", d, e)),
}


def plan(layer: WeightUse, num_examples: int, num_outputs: int, logits: str, method: str = "auto") -> Contraction:
    """The contraction with the fewest operations; grouped layers always use ``gradients``, which are small there."""
    size = sizes(layer)
    if size.groups > 1:
        method = "gradients"
    elif method == "auto":
        counts = operations(size, num_examples, num_outputs, logits)
        method = min(counts, key=counts.__getitem__)
    return Contraction(layer, method, _from_pixels(size) < _from_patches(size))


def gram(rows: jax.Array, columns: jax.Array, logits: str) -> jax.Array:
    """Inner products of gradients (n, C, F) and (m, D, F)."""
    if logits == "diagonal":
        return jnp.einsum("ikf,jkf->ijk", rows, columns)
    if logits == "trace":
        return _inner_products(rows.reshape(len(rows), -1), columns.reshape(len(columns), -1))
    flat = [side.reshape(-1, side.shape[-1]) for side in (rows, columns)]  # with the axes apart a product takes twice as long
    return _inner_products(*flat).reshape(*rows.shape[:2], *columns.shape[:2]).swapaxes(1, 2)


def _inner_products(first: jax.Array, second: jax.Array) -> jax.Array:
    """The inner products of rows (n, F) and (m, F); on a CPU of long rows by parts, in as little as an eighth of the time."""
    length = first.shape[1]
    size = next((size for size in range(_LENGTH, _LENGTH // 4, -1) if length % size == 0), length)
    if size == length or length <= 2 * _LENGTH or platform.current() != "cpu":
        return first @ second.T

    def part(start: jax.Array | int) -> jax.Array:
        f, s = (lax.dynamic_slice_in_dim(side, start, size, axis=1) for side in (first, second))
        return f @ s.T

    return lax.scan(lambda total, start: (total + part(start), None), part(0), jnp.arange(size, length, size))[0]


def symmetric_gram(contract: Callable[[Any, Any], jax.Array], operand: Any) -> jax.Array:
    """``contract(rows, columns)`` of a set with itself; each pair of blocks is computed once and mirrored.

    With B (odd) blocks in cyclic order, block b is contracted with b, ..., b + (B - 1) / 2; the rest follows by symmetry.
    """
    num_examples = jax.tree.leaves(operand)[0].shape[0]
    if num_examples < 2 * _NUM_BLOCKS:
        return contract(operand, operand)
    size, half = -(-num_examples // _NUM_BLOCKS), _NUM_BLOCKS // 2
    order = np.arange((_NUM_BLOCKS + half) * size) % (_NUM_BLOCKS * size)
    cyclic = jax.tree.map(lambda a: a[np.minimum(order, num_examples - 1)], operand)

    def block_row(block: jax.Array) -> jax.Array:
        rows, columns = (
            jax.tree.map(lambda a, n=n: lax.dynamic_slice_in_dim(a, block * size, n), cyclic) for n in (size, (half + 1) * size)
        )
        return contract(rows, columns)

    computed = lax.map(block_row, jnp.arange(_NUM_BLOCKS))  # (B, rows, (half + 1) columns, ...)
    computed = jnp.moveaxis(computed.reshape(_NUM_BLOCKS, size, half + 1, size, *computed.shape[3:]), 2, 1)
    both = jnp.stack([computed, jax.vmap(jax.vmap(swap_examples))(computed)])
    i, j = np.indices((_NUM_BLOCKS, _NUM_BLOCKS))
    ahead = (j - i) % _NUM_BLOCKS
    mirrored = ahead > half
    blocks = both[mirrored.astype(int), np.where(mirrored, j, i), np.where(mirrored, _NUM_BLOCKS - ahead, ahead)]
    whole = jnp.moveaxis(blocks, 2, 1).reshape(_NUM_BLOCKS * size, _NUM_BLOCKS * size, *computed.shape[4:])
    return whole[:num_examples, :num_examples]


def swap_examples(kernel: jax.Array) -> jax.Array:
    """Theta[j, i, l, k]: the two examples, and their logits, swapped."""
    kernel = kernel.swapaxes(0, 1)
    return kernel.swapaxes(2, 3) if kernel.ndim == 4 else kernel
