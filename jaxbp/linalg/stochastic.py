"""Trace, diagonal and log-determinant of a symmetric operator by random vectors, each with its standard error.

>>> import jax, jax.numpy as jnp
>>> from jaxbp.linalg import stochastic
>>> spectrum = 2.0 ** -jnp.arange(40.0)
>>> estimate = stochastic.trace(lambda v: spectrum * v, 40, jax.random.key(0), num_products=32)
>>> abs(estimate.value - 2) < 0.001
True
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Float, Key

from jaxbp import checks
from jaxbp.linalg.lanczos import Matvec, known, spectral_density


class Estimate(NamedTuple):
    """A number, or an array of them, with its standard error.

    Attributes:
      value: the estimate.
      error: standard error of ``value``, 0 where it is exact up to rounding.
      num_products: operator products that it took.
    """

    value: Any
    error: Any
    num_products: int


class NotPositiveError(ValueError):
    """The operator has an eigenvalue of at most 0, of which there is no logarithm."""


def trace(matvec: Matvec, dimension: int, key: Key[jax.Array, ""], *, num_products: int = 32, dtype: Any = jnp.float32) -> Estimate:
    """The trace by XTrace (Epperly, Tropp and Webber, SIAM J. Matrix Anal. 45, 2024, section 2.2): exchangeable low-rank deflation.

    Half of the products find the operator's range Q. For each random sign vector, the trace on the range that the other vectors found is
    exact, and the vector itself estimates the rest; the estimate is the mean over vectors. The error falls as the tail of the spectrum
    does, where Hutchinson's falls as 1 / sqrt(products). The single estimates share most of their range, so that the standard error is
    itself rough: 5 of 100 runs with 8 vectors were off by more than 4.4 of it. Operators of at most ``num_products`` rows are
    multiplied out.

    Args:
      matvec: the operator, which must be symmetric.
      dimension: P.
      key: for the random signs.
      num_products: even, at least 4.
      dtype: of the vectors.

    Raises:
      ValueError: another number of products.
    """
    if num_products < 4 or num_products % 2:
        raise ValueError(f"num_products must be even and at least 4, got {num_products}")
    if dimension <= num_products:
        return Estimate(float(np.trace(_products(matvec, np.eye(dimension), dtype))), 0.0, dimension)
    signs = np.asarray(_signs(checks.prng_key(key), num_products // 2, dimension, dtype), float)
    images = _products(matvec, signs, dtype)
    basis, factor, rank = _range(images)
    projected = _products(matvec, basis, dtype) @ basis.T  # (r, r), symmetric up to rounding
    projected = (projected + projected.T) / 2
    left_out = _left_out(factor, rank)  # (r, k): what each vector alone adds to the range
    inside = basis @ signs.T  # (r, k)
    kept = inside - left_out * (left_out * inside).sum(0)
    on_range = np.trace(projected) - np.einsum("ik,ij,jk->k", left_out, projected, left_out)
    rest = (signs * images).sum(1) - 2 * ((basis @ images.T) * kept).sum(0) + np.einsum("ik,ij,jk->k", kept, projected, kept)
    free = dimension - rank + np.abs(left_out).max(0, initial=0).astype(bool)  # dimensions outside of the range of the other vectors
    values = on_range + rest * free / (dimension - (kept**2).sum(0))  # as for vectors of fixed length outside of the range
    return Estimate(float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))), len(signs) + len(basis))


def diagonal(matvec: Matvec, dimension: int, key: Key[jax.Array, ""], *, num_products: int = 32, dtype: Any = jnp.float32) -> Estimate:
    """The diagonal (P,) by random signs (Bekas, Kokiopoulou and Saad, Appl. Numer. Math. 57, 2007), with a standard error an entry.

    Raises:
      ValueError: fewer than 2 products.
    """
    if num_products < 2:
        raise ValueError(f"num_products must be at least 2 for a standard error, got {num_products}")
    signs = np.asarray(_signs(checks.prng_key(key), num_products, dimension, dtype), float)
    values = signs * _products(matvec, signs, dtype)
    return Estimate(values.mean(0), values.std(0, ddof=1) / math.sqrt(num_products), num_products)


def log_determinant(
    matvec: Matvec,
    dimension: int,
    key: Key[jax.Array, ""],
    *,
    shift: float = 0.0,
    num_probes: int = 8,
    num_steps: int = 40,
    dtype: Any = jnp.float32,
) -> Estimate:
    """log det (A + shift I) by stochastic Lanczos quadrature (Ubaru, Chen and Saad, SIAM J. Matrix Anal. 38, 2017).

    The error is that over probes; the quadrature's own, which falls exponentially in ``num_steps``, is not in it.

    Raises:
      NotPositiveError: an eigenvalue of A + shift I of at most 0 was met.
      ValueError: fewer than 2 probes, or 1 step.
    """
    if num_probes < 2:
        raise ValueError(f"num_probes must be at least 2 for a standard error, got {num_probes}")
    density = spectral_density(matvec, dimension, key, num_probes=num_probes, num_steps=num_steps, dtype=dtype)
    nodes = np.where(density.weights > 0, density.nodes + shift, 1.0)
    if not (nodes > 0).all():
        raise NotPositiveError(
            f"the smallest eigenvalue met is {nodes.min() - shift:.3g}: give a shift larger than {shift - nodes.min():.3g}"
        )
    values = dimension * (density.weights * np.log(nodes)).sum(-1)
    return Estimate(float(values.mean()), float(values.std(ddof=1) / math.sqrt(num_probes)), num_probes * density.nodes.shape[1])


def _signs(key: jax.Array, count: int, dimension: int, dtype: Any) -> jax.Array:
    return known(jax.random.rademacher(key, (count, dimension), dtype), "random signs")


def _products(matvec: Matvec, rows: Float[np.ndarray, "k p"], dtype: Any) -> Float[np.ndarray, "k p"]:
    """The operator's products with each row."""
    return np.stack([np.asarray(known(matvec(jnp.asarray(row, dtype))), float) for row in rows])


def _range(images: Float[np.ndarray, "k p"]) -> tuple[np.ndarray, np.ndarray, int]:
    """Orthonormal rows (r, P) that span the images, the factor (r, k) with images.T = rows.T factor, and the rank r."""
    left, values, right = scipy.linalg.svd(images, full_matrices=False)
    rank = int((values > values[0] * len(images) * np.finfo(np.float32).eps).sum()) if values[0] > 0 else 0
    return right[:rank], (left[:, :rank] * values[:rank]).T, rank


def _left_out(factor: Float[np.ndarray, "r k"], rank: int) -> Float[np.ndarray, "r k"]:
    """For each image the unit vector of the range that the other images do not reach; zero where the others reach all of it."""
    if rank < factor.shape[1]:
        return np.zeros_like(factor)
    dual = np.linalg.inv(factor).T  # column i is orthogonal to all images but i
    return dual / np.linalg.norm(dual, axis=0)
