"""One layer's share of a tangent kernel, by the way that takes the fewest operations.

A layer y = a W has n examples with P positions, G groups (1 for most), K inputs and o outputs a position. With data a
(n, P, G, K) and output gradients d (n, C, P, G, o), C of them an example, its share of Theta[i, j, k, l] is sum over
p, q of (a_ip . a_jq)(d_ikp . d_jlq). Three orders of summation, with the operations for one set of n examples against
another of m:

``gradients``   form each weight gradient sum_p a_p (x) d_p, then their Gram matrix: 2 (n + m) C P K o + 2 n m C^2 K o;
``positions``   S = a . a' for all pairs of positions, then (S d') . d: S + 2 n m P^2 C o + 2 n m C^2 P o;
``products``    S, and d . d' for all pairs of positions, multiplied and summed: S + 2 n m C^2 P^2 o (without C^2 but
C for a trace).

S costs 2 n m P^2 K from patches. A convolution's patches overlap: from the products of pixels, U to a padded image of
c channels, it costs 2 n m U^2 c and one addition for each pair of positions and weight of the window. The orders are
those of Novak et al., "Fast Finite Width Neural Tangent Kernel" (ICML 2022, arXiv 2206.08720); the pixels are ours.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxbp.ntk.layers import Convolution, Layer

LOGITS = ("full", "diagonal", "trace")
METHODS = ("gradients", "positions", "products")

_ADDITION = 8.0  # what reading and adding one number costs, in multiply-adds of a matrix product


class Sizes(NamedTuple):
    """A layer's sizes for one example: positions P, groups G, inputs K and outputs o a position; of a convolution's
    padded image the pixels
    (0 where there is no such image), its channels, and the weights of the window."""

    positions: int
    groups: int
    inputs: int
    outputs: int
    pixels: int
    channels: int
    window: int


def sizes(layer: Layer) -> Sizes:
    """The sizes that decide how a layer is contracted."""
    patches = jax.eval_shape(layer.geometry.patches, layer.data)
    deltas = jax.eval_shape(lambda d: layer.geometry.deltas(d, layer.data), layer.output)
    pixels = channels = window = 0
    if isinstance(layer.geometry, Convolution) and layer.geometry.groups == 1:
        image = jax.eval_shape(layer.geometry.image, layer.data)
        if image.shape[0] == 1:  # one image an example
            pixels, channels, window = math.prod(image.shape[1:-1]), image.shape[-1], math.prod(layer.geometry.window)
    return Sizes(*patches.shape, deltas.shape[-1], pixels, channels, window)


def operations(size: Sizes, num_examples: int, num_outputs: int, logits: str) -> dict[str, float]:
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


def _from_patches(size: Sizes) -> float:
    return size.positions**2 * size.groups * size.inputs


def _from_pixels(size: Sizes) -> float:
    return size.pixels**2 * size.channels + size.window * size.positions**2 * _ADDITION if size.pixels else math.inf


class Operand(NamedTuple):
    """What of one set of examples does not depend on the other set, examples first: weight gradients (n, C, F) alone,
    or what the weight
    sees (patches (n, P, K) or images (n, \\*space, c)) and the deltas (n, C, P, o)."""

    first: jax.Array
    second: jax.Array | None


class Contraction(NamedTuple):
    """How one layer is contracted: ``method`` of `METHODS`, S ``from_pixels`` or from patches."""

    layer: Layer
    method: str
    from_pixels: bool

    def operations(self, num_examples: int, num_outputs: int, logits: str) -> float:
        """Multiply-adds, see `operations`."""
        return operations(sizes(self.layer), num_examples, num_outputs, logits)[self.method]

    def prepare(self, data: jax.Array, deltas: jax.Array) -> Operand:
        """An operand from data (n, ...) and output gradients (n, C, ...) as `layers.run_fn` leaves them."""
        geometry = self.layer.geometry
        deltas = jax.vmap(jax.vmap(lambda d: geometry.deltas(d, self.layer.data)))(deltas)
        if self.method == "gradients":
            patches = jax.vmap(geometry.patches)(data)
            return Operand(jnp.einsum("npgk,ncpgo->ncgko", patches, deltas).reshape(*deltas.shape[:2], -1), None)
        seen = jax.vmap(geometry.image)(data)[:, 0] if self.from_pixels else jax.vmap(geometry.patches)(data)[:, :, 0]
        return Operand(seen, deltas[:, :, :, 0])

    def contract(self, rows: Operand, columns: Operand, logits: str) -> jax.Array:
        """The layer's share for all pairs: (n, m, C, D) for "full" logits, (n, m, C) for the "diagonal", (n, m) for the "trace"."""
        if self.method == "gradients":
            return gram(rows.first, columns.first, logits)
        similarity = self._similarity(rows.first, columns.first)
        d, e = rows.second, columns.second
        if self.method == "positions":
            moved = jnp.einsum("ipjq,jlqo->ijlpo", similarity, e)
            subscripts = {"full": "ikpo,ijlpo->ijkl", "diagonal": "ikpo,ijkpo->ijk", "trace": "ikpo,ijkpo->ij"}
            return jnp.einsum(subscripts[logits], d, moved)
        if logits == "trace":
            return jnp.sum(similarity * jnp.einsum("ikpo,jkqo->ipjq", d, e), (1, 3))
        if logits == "diagonal":
            return jnp.sum(similarity[:, None] * jnp.einsum("ikpo,jkqo->ikpjq", d, e), (2, 4)).transpose(0, 2, 1)
        products = jnp.einsum("ikpo,jlqo->ikpjlq", d, e)
        return jnp.sum(similarity[:, None, :, :, None] * products, (2, 5)).transpose(0, 2, 1, 3)

    def _similarity(self, rows: jax.Array, columns: jax.Array) -> jax.Array:
        """S (n, P, m, Q): inner products of what the weight sees at two positions."""
        products = jnp.tensordot(rows, columns, (-1, -1))
        if not self.from_pixels:
            return products
        n, m, extents = rows.shape[0], columns.shape[0], rows.shape[1:-1]
        steps = (1, *self.layer.geometry.strides) * 2
        total: jax.Array | float = 0.0
        for start, stop in self.layer.geometry.taps(extents):
            total = total + lax.slice(products, (0, *start) * 2, (n, *stop, m, *stop), steps)
        positions = math.prod(total.shape[1 : 1 + len(extents)])
        return total.reshape(n, positions, m, positions)


def plan(layer: Layer, num_examples: int, num_outputs: int, logits: str, method: str = "auto") -> Contraction:
    """The contraction with the fewest operations; layers in groups are always contracted by ``gradients``, which are small there."""
    size = sizes(layer)
    if size.groups > 1:
        method = "gradients"
    elif method == "auto":
        counts = operations(size, num_examples, num_outputs, logits)
        method = min(counts, key=counts.__getitem__)
    return Contraction(layer, method, _from_pixels(size) < _from_patches(size))


def gram(rows: jax.Array, columns: jax.Array, logits: str) -> jax.Array:
    """Inner products of gradients (n, C, F) and (m, D, F)."""
    return jnp.einsum(
        {"full": "ikf,jlf->ijkl", "diagonal": "ikf,jkf->ijk", "trace": "ikf,jkf->ij"}[logits], rows, columns
    )
