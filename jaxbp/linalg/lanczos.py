"""Extreme eigenvalues, spectral density and trace of a symmetric operator that can only be multiplied with.

Lanczos' method (Golub and Van Loan, Matrix Computations, section 10.1) builds an orthonormal basis of the Krylov space of
a random vector, in which the operator is tridiagonal; the eigenvalues of that small matrix (Ritz values) close in on both ends of the
spectrum at once. Shifted power iteration, the paper's method, sees one end and stalls where eigenvalues crowd. Every new
vector is orthogonalised twice against all earlier ones, without which finite precision brings ghosts. The basis is stored in
a buffer that doubles as it fills, since a buffer of the final size would be read in full at every step.

>>> import jax
>>> import jax.numpy as jnp
>>> from jaxbp import landscape
>>> spectrum = jnp.concatenate([jnp.array([50.0, -0.05]), jnp.linspace(0.0, 1.0, 98)])
>>> extremes = landscape.extreme_eigenvalues(lambda v: spectrum * v, jax.random.normal(jax.random.key(0), (100,)))
>>> print(f"{extremes.smallest.value:.3f} {extremes.largest.value:.1f}")
-0.050 50.0
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.optimize

Matvec = Callable[[jax.Array], jax.Array]

_FIRST_CAPACITY = 16
_CHECK_EVERY = 4  # a check synchronises with the device and solves a small eigenproblem


class Eigenvalue(NamedTuple):
    """One end of a spectrum as Lanczos left it.

    ``value`` is the Ritz value, always inside the true spectrum; ``residual`` is ||A v - value v|| for the unit vector
    ``vector`` (P,), from one more product, so ``interval`` contains an eigenvalue of A (for symmetric A; up to rounding).
    ``bound`` is the side on which the extreme eigenvalue itself lies with probability ``confidence``.
    """

    value: float
    residual: float
    converged: bool
    bound: float
    confidence: float
    vector: jax.Array

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of an interval that contains an eigenvalue."""
        return self.value - self.residual, self.value + self.residual


class Extremes(NamedTuple):
    """Both ends of a spectrum and the number of operator products spent, those for the residuals included."""

    smallest: Eigenvalue
    largest: Eigenvalue
    num_products: int


class SpectralDensity(NamedTuple):
    """Gauss quadrature of the spectral density: nodes and weights (num_probes, num_steps), each probe's weights sum to 1."""

    nodes: np.ndarray
    weights: np.ndarray

    def evaluate(self, grid: np.ndarray, width: float) -> np.ndarray:
        """The density on ``grid`` (G,) smoothed by a Gaussian of standard deviation ``width``; integrates to 1."""
        if not width > 0:
            raise ValueError(f"width must be positive, got {width}")
        bumps = np.exp(-0.5 * ((grid[:, None, None] - self.nodes) / width) ** 2) / (width * math.sqrt(2 * math.pi))
        return (bumps * self.weights).sum(-1).mean(-1)


def extreme_eigenvalues(
    matvec: Matvec,
    start: jax.Array,
    *,
    rtol: float = 1e-3,
    atol: float | None = None,
    max_products: int = 300,
    confidence: float = 0.999,
) -> Extremes:
    """Smallest and largest eigenvalue of a symmetric operator on vectors of shape (P,).

    Stops when both residuals are at most ``rtol`` times their own Ritz value plus ``atol`` times the spectrum's scale, or
    when ``max_products`` are spent: then the end that is not there says ``converged=False`` and keeps its residual.

    Args:
      matvec: the operator; symmetric, or the results mean nothing.
      start: (P,), drawn from an isotropic distribution for ``bound`` to hold.
      rtol: tolerance relative to the eigenvalue.
      atol: tolerance relative to the largest absolute eigenvalue; default 32 epsilon of the dtype, about what rounding leaves.
      max_products: most products in the iteration (two more measure the residuals).
      confidence: of ``bound`` at both ends together. An extreme eigenvalue l outside the Ritz values t_i fulfils
        |c| prod(l - t_i) <= prod(beta_i), c being the start vector's component along its eigenvector, which is small by bad luck
        only (van Dorsselaer, Hochstenbach and van der Vorst, SIAM J. Matrix Anal. 22, 2000). This holds wherever the iteration stops.

    Raises:
      ValueError: for a start vector that is zero, not finite or not a vector, or fewer than 1 product.
    """
    start = jnp.asarray(start)
    dimension = _check_start(start)
    if max_products < 1:
        raise ValueError(f"max_products must be at least 1, got {max_products}")
    epsilon = float(jnp.finfo(start.dtype).eps)
    atol = 32 * epsilon if atol is None else atol
    limit = min(max_products, dimension)
    least_component = 0.5 * (1 - confidence) / math.sqrt(2 * dimension / math.pi)  # smaller: as likely as both ends may fail
    for step, (basis, alphas, betas) in enumerate(_steps(matvec, start), 1):
        if step % _CHECK_EVERY and step != limit:
            continue
        diagonal, off = np.array(jax.device_get(alphas), float), np.array(jax.device_get(betas), float)
        if not (np.isfinite(diagonal).all() and np.isfinite(off).all()):
            return _not_finite(start, step, confidence)
        diagonal, off = _until_breakdown(diagonal, off, 4 * epsilon)
        ritz, vectors = scipy.linalg.eigh_tridiagonal(diagonal, off[:-1])
        estimates = np.abs(off[-1] * vectors[-1, [0, -1]])
        scale = np.abs(ritz).max()
        done = estimates <= rtol * np.abs(ritz[[0, -1]]) + atol * scale
        if done.all() or step >= limit or len(diagonal) < step:
            break
    bounds = -_largest(-ritz[::-1], off, least_component), _largest(ritz, off, least_component)
    smallest, largest = (
        _eigenvalue(matvec, basis, vectors[:, i], bound, rtol, atol * scale, confidence) for i, bound in zip((0, -1), bounds, strict=True)
    )
    return Extremes(smallest, largest, step + 2)


def spectral_density(
    matvec: Matvec, dimension: int, key: jax.Array, *, num_probes: int = 4, num_steps: int = 64, dtype=jnp.float32
) -> SpectralDensity:
    """Spectral density by stochastic Lanczos quadrature (Ubaru, Chen and Saad, SIAM J. Matrix Anal. 38, 2017).

    ``num_probes`` Gaussian start vectors, ``num_steps`` products each (fewer where the Krylov space is exhausted; the
    missing nodes then have weight 0). NaN for a probe whose products are not finite.
    """
    if min(num_probes, num_steps) < 1:
        raise ValueError(f"num_probes and num_steps must be at least 1, got {num_probes} and {num_steps}")
    num_steps = min(num_steps, dimension)
    nodes, weights = np.zeros((2, num_probes, num_steps))
    for i, probe_key in enumerate(jax.random.split(key, num_probes)):
        start = jax.random.normal(probe_key, (dimension,), dtype)
        for _, (_, alphas, betas) in zip(range(num_steps), _steps(matvec, start), strict=False):
            pass
        diagonal, off = np.array(jax.device_get(alphas), float), np.array(jax.device_get(betas), float)
        if not (np.isfinite(diagonal).all() and np.isfinite(off).all()):
            nodes[i], weights[i] = math.nan, math.nan
            continue
        diagonal, off = _until_breakdown(diagonal, off, 64 * float(jnp.finfo(dtype).eps))
        ritz, vectors = scipy.linalg.eigh_tridiagonal(diagonal, off[:-1])
        nodes[i, : len(ritz)], weights[i, : len(ritz)] = ritz, vectors[0] ** 2
    return SpectralDensity(nodes, weights)


def hutchinson_trace(matvec: Matvec, dimension: int, key: jax.Array, *, num_probes: int = 32, dtype=jnp.float32) -> tuple[float, float]:
    """Trace of the operator from random signs (Hutchinson, 1990): the mean over probes and its standard error."""
    if num_probes < 2:
        raise ValueError(f"num_probes must be at least 2 for a standard error, got {num_probes}")
    keys = jax.random.split(key, num_probes)
    probes = (jax.random.rademacher(k, (dimension,), dtype) for k in keys)
    values = np.array([_dot(v, matvec(v)) for v in probes], float)
    with np.errstate(invalid="ignore"):  # an infinite value has no standard error
        return float(values.mean()), float(values.std(ddof=1) / math.sqrt(num_probes))


def _check_start(start: jax.Array) -> int:
    if start.ndim != 1 or not start.size:
        raise ValueError(f"start must be a vector, got shape {start.shape}")
    norm = float(jnp.linalg.norm(start))
    if not (math.isfinite(norm) and norm > 0):
        raise ValueError(f"start must be finite and not zero, got norm {norm}")
    return start.size


def _steps(matvec: Matvec, start: jax.Array) -> Iterator[tuple[jax.Array, list[jax.Array], list[jax.Array]]]:
    """Yield (basis, alphas, betas) after each product; rows past the number of steps so far are zero or the next vector."""
    basis, vector = _first(start)
    alphas: list[jax.Array] = []
    betas: list[jax.Array] = []
    while True:
        step = len(alphas) + 1
        if step == basis.shape[0]:
            basis = _doubled(basis)
        basis, vector, alpha, beta = _extend(basis, step, vector, matvec(vector))
        alphas.append(alpha)
        betas.append(beta)
        yield basis, alphas, betas


@jax.jit
def _first(start: jax.Array) -> tuple[jax.Array, jax.Array]:
    vector = start / jnp.linalg.norm(start)
    return jnp.zeros((_FIRST_CAPACITY, start.size), start.dtype).at[0].set(vector), vector


@jax.jit
def _doubled(basis: jax.Array) -> jax.Array:
    return jnp.concatenate([basis, jnp.zeros_like(basis)])


@partial(jax.jit, donate_argnums=0)
def _extend(basis: jax.Array, step: int, vector: jax.Array, product: jax.Array) -> tuple:
    alpha = _dot(vector, product)
    for _ in range(2):  # "twice is enough": Parlett, The Symmetric Eigenvalue Problem, section 6.9
        product = product - _dot(_dot(basis, product), basis)
    beta = jnp.linalg.norm(product)
    following = product / jnp.where(beta > 0, beta, 1)
    return basis.at[step].set(following), following, alpha, beta


_dot = partial(jnp.dot, precision="highest")  # what accelerators prefer for float32 would leave no orthogonality


def _until_breakdown(diagonal: np.ndarray, off: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Cut where the Krylov space became invariant: what follows a vanishing beta starts from rounding noise, or from nothing."""
    scale = max(np.abs(diagonal).max(), off.max(), np.finfo(float).tiny)
    small = np.flatnonzero(off <= tolerance * scale)
    end = small[0] + 1 if small.size else len(off)
    return diagonal[:end], off[:end]


def _largest(ritz: np.ndarray, off: np.ndarray, component: float) -> float:
    """The largest l >= max(ritz) with component x prod(l - ritz) <= prod(off): no larger one is an eigenvalue."""
    if not off.all():
        return float(ritz[-1])
    product = np.log(off).sum() - math.log(component)

    def excess(log_gap: float) -> float:
        return np.log(np.exp(log_gap) + (ritz[-1] - ritz)).sum() - product

    low, high = -700.0, product / len(ritz)  # every factor is at least the gap
    if excess(low) >= 0 or high <= low:
        return float(ritz[-1])
    return float(ritz[-1] + math.exp(scipy.optimize.brentq(excess, low, high + 1e-6)))


def _eigenvalue(
    matvec: Matvec, basis: jax.Array, coefficients: np.ndarray, bound: float,
    rtol: float, atol: float, confidence: float,
) -> Eigenvalue:  # fmt: skip
    padded = np.zeros(basis.shape[0], basis.dtype)  # to the capacity, so that few shapes are compiled
    padded[: len(coefficients)] = coefficients
    vector = _combination(padded, basis)
    value, residual = map(float, _rayleigh(vector, matvec(vector)))
    return Eigenvalue(value, residual, bool(residual <= rtol * abs(value) + atol), float(bound), confidence, vector)


@jax.jit
def _combination(coefficients: jax.Array, basis: jax.Array) -> jax.Array:
    vector = _dot(coefficients, basis)
    return vector / jnp.linalg.norm(vector)


@jax.jit
def _rayleigh(vector: jax.Array, product: jax.Array) -> tuple[jax.Array, jax.Array]:
    value = _dot(vector, product)
    return value, jnp.linalg.norm(product - value * vector)


def _not_finite(start: jax.Array, step: int, confidence: float) -> Extremes:
    end = Eigenvalue(math.nan, math.inf, False, math.nan, confidence, jnp.full_like(start, jnp.nan))
    return Extremes(end, end, step)
