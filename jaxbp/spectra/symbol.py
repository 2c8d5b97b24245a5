"""The symbol of a circular convolution: one small matrix a frequency, which together are the operator.

Cut the input map into the s^d coarse maps of pixels that agree modulo the stride s (its *phases*). A circular convolution of stride s
then is one of stride 1 from all coarse maps to the output, and the Fourier transform makes it block-diagonal: at frequency g of
the output torus stands H(g) of shape (phases inputs, outputs), H_p(g) = sum over taps t in phase p of K_t exp(2 pi i g . q_t / M), q_t
being the tap's place on the coarse map (for s = 1: Sedghi, Gupta, Long, arXiv 1805.10408). Rearranging pixels is unitary, so
the union of the singular values of all H(g) is exactly the operator's. This is the folding of s x s frequencies in other coordinates,
which leave out the phases that no tap meets (three of four for a shortcut of 1x1 and stride 2).

The kernel is real: H(-g) is the conjugate of H(g). So of each pair one is formed, and those that are their own partner are
real. That is 7 matrices' work on a map of 4x4 where a half spectrum (`rfft2`) has 12 and a full one 16; 31, 40 and 64 for 8x8. A window
has few taps, so a product with a (frequencies, taps) matrix replaces the fast transform, for any dilation, window and extent.

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
    """exp(2 pi i g . q) of real (R, P, T) and of paired frequencies (C, P, T); how many taps fall on each one's place (T,)."""
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
    """Kernels to symbols and back, on the torus of a geometry; a zero-padded layer is taken for the circular one there."""

    def __init__(self, geometry: Geometry):
        self.geometry = geometry
        self.own, self.pairs, self.crowd = _phases(geometry)
        self.num_frequencies = len(self.own) + 2 * len(self.pairs)

    def symbols(self, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Kernels (..., \\*window, inputs / groups, outputs) to real (..., groups, R, rows, outputs / groups) and complex (C)."""
        taps = self._grouped(kernel)
        own, real, imag = (
            jnp.einsum("gpt,...tiho->...hgpio", jnp.asarray(waves, kernel.dtype), taps, precision="highest")
            for waves in (self.own, self.pairs.real, self.pairs.imag)
        )

        def joined(a: jax.Array) -> jax.Array:
            return a.reshape(*a.shape[:-3], math.prod(a.shape[-3:-1]), a.shape[-1])

        return joined(own), joined(lax.complex(real, imag))

    def kernel(self, own: jax.Array, paired: jax.Array) -> jax.Array:
        """The kernel of the window (..., \\*window, inputs / groups, outputs) whose symbols are closest to those given."""
        phases = self.own.shape[1]
        own, paired = (a.reshape(*a.shape[:-2], phases, a.shape[-2] // phases, a.shape[-1]) for a in (own, paired))
        # Taps that fall on one place of a small torus share what belongs there; the window keeps its few taps of all places.
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
