"""The symbol of a circular convolution: one small matrix for each frequency, which together are the operator.

Divide the input map into the s^d coarse maps of pixels that agree modulo the stride s (its *phases*). A circular convolution of stride s
is then a convolution of stride 1 from all coarse maps to the output, and the Fourier transform makes it block-diagonal. At frequency g of
the output torus the block is H(g), of shape (phases inputs, outputs), with H_p(g) = sum over taps t in phase p of
K_t exp(2 pi i g . q_t / M), where q_t is the tap's place on the coarse map (for s = 1: Sedghi, Gupta, Long, arXiv 1805.10408).
Rearranging pixels is unitary, so the union of the singular values of all H(g) is exactly that of the operator. This equals the folding of
s x s frequencies in other coordinates, and leaves out the phases that no tap meets (three of four for a shortcut of 1x1 and stride 2).

The kernel is real, so H(-g) is the conjugate of H(g). One matrix of each such pair is computed; frequencies that are their own partner
have real matrices. On a map of 4x4 this is the work of 7 matrices, against 12 for a half spectrum (`rfft2`) and 16 for the full one; 31,
40 and 64 for 8x8. A window has few taps, so a product with a (frequencies, taps) matrix replaces the fast Fourier transform, for any
dilation, window and extent.

>>> import jax.numpy as jnp
>>> from jaxbp.spectra import Geometry, symbol
>>> transform = symbol.Transform(Geometry.of((3, 3, 8, 16), (8, 8), strides=2))
>>> real, paired = transform.symbols(jnp.ones((3, 3, 8, 16)))
>>> real.shape, paired.shape, paired.dtype.name     # (groups, frequencies, phases * inputs, outputs)
((1, 4, 32, 16), (1, 6, 32, 16), 'complex64')
"""

import functools
import itertools
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxbp.spectra.geometry import Geometry, symmetric_frequencies


@functools.lru_cache(maxsize=256)
def _phases(geometry: Geometry) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """exp(2 pi i g . q) of real (R, P, T) and paired frequencies (C, P, T), and for each tap the number of taps at its place (T,)."""
    own, pairs = symmetric_frequencies(geometry.torus)
    steps = list(itertools.product(*map(range, geometry.window)))
    positions = np.array(steps, int).reshape(len(steps), -1) * np.array(geometry.dilation, int)
    strides, torus = np.array(geometry.strides, int), np.array(geometry.torus, int)
    coarse, rest = (positions // strides) % torus, positions % strides
    names = [tuple(r) for r in rest]
    phases = sorted(set(names))
    belongs = np.array([[phase == name for name in names] for phase in phases], float)  # (P, T)
    places = [(*name, *q) for name, q in zip(names, coarse.tolist(), strict=True)]
    crowd = np.array([places.count(place) for place in places], float)

    def waves(frequencies: np.ndarray) -> np.ndarray:
        turns = ((frequencies[:, None] * coarse) % torus / torus).sum(-1)  # reduced as integers: exact for large maps
        return np.exp(2j * np.pi * turns)[:, None] * belongs

    return waves(own).real.round(), waves(pairs), crowd


class Transform:
    """Map kernels to symbols and back, on the torus of a geometry; a zero-padded layer is treated as circular on the torus."""

    def __init__(self, geometry: Geometry):
        self.geometry = geometry
        self.own, self.pairs, self.crowd = _phases(geometry)
        self.num_frequencies = len(self.own) + 2 * len(self.pairs)

    def symbols(self, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        """From kernels (..., \\*window, inputs / groups, outputs) to real (..., groups, R, rows, outputs / groups) and complex (C) ones."""
        taps = self._grouped(kernel)
        own, real, imag = (
            jnp.einsum("gpt,...tiho->...hgpio", jnp.asarray(waves, kernel.dtype), taps, precision="highest")
            for waves in (self.own, self.pairs.real, self.pairs.imag)
        )

        def joined(a: jax.Array) -> jax.Array:
            return a.reshape(*a.shape[:-3], math.prod(a.shape[-3:-1]), a.shape[-1])

        return joined(own), joined(lax.complex(real, imag))

    def kernel(self, own: jax.Array, paired: jax.Array) -> jax.Array:
        """The kernel of the window (..., \\*window, inputs / groups, outputs) whose symbols are closest to the given ones."""
        phases = self.own.shape[1]
        own, paired = (a.reshape(*a.shape[:-2], phases, a.shape[-2] // phases, a.shape[-1]) for a in (own, paired))
        # Taps at the same place of a small torus share its value; of all places the window keeps those of its taps.
        waves = [
            jnp.asarray(w / self.crowd / self.num_frequencies, own.dtype) for w in (self.own, 2 * self.pairs.real, 2 * self.pairs.imag)
        ]
        parts = (
            jnp.einsum("gpt,...hgpio->...tiho", w, part, precision="highest")
            for w, part in zip(waves, (own, paired.real, paired.imag), strict=True)
        )
        taps = functools.reduce(operator.add, parts)
        lead, g = taps.shape[:-4], self.geometry
        return taps.reshape(*lead, *g.window, g.inputs // g.groups, g.outputs)

    def _grouped(self, kernel: jax.Array) -> jax.Array:
        g = self.geometry
        lead = kernel.shape[: kernel.ndim - len(g.window) - 2]
        return kernel.reshape(*lead, math.prod(g.window), g.inputs // g.groups, g.groups, g.outputs // g.groups)
