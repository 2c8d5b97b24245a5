"""Extreme eigenvalues, spectral density and trace of a symmetric operator that is known by its products.

Lanczos' method (Golub and Van Loan, Matrix Computations, section 10.1) builds an orthonormal basis of the Krylov space of a random
vector, in which the operator is tridiagonal. The eigenvalues of this small matrix (Ritz values) converge to both ends of the spectrum at
once. Shifted power iteration, the method of "Truth or Backpropaganda?" (Goldblum et al., ICLR 2020), sees one end and stalls where
eigenvalues lie close together. Every new vector is orthogonalised twice against all earlier ones; without this, finite precision produces
spurious copies of converged eigenvalues. The basis is stored in a buffer that doubles as it fills, since each step would read a buffer of
the final size in full. Products are divided by their largest entry before anything is squared, and the small matrix is kept in float64 on
the host, so results scale with the operator over the range of the dtype.

>>> import jax
>>> import jax.numpy as jnp
>>> from jaxbp.linalg import lanczos
>>> spectrum = jnp.concatenate([jnp.array([50.0, -0.05]), jnp.linspace(0.0, 1.0, 98)])
>>> extremes = lanczos.extreme_eigenvalues(lambda v: spectrum * v, jax.random.normal(jax.random.key(0), (100,)))
>>> print(f"{extremes.smallest.value:.3f} {extremes.largest.value:.1f}")
-0.050 50.0
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.special
from jaxtyping import Float

from jaxbp import checks
from jaxbp.runtime.short_repr import short_repr

Matvec = Callable[[jax.Array], jax.Array]
Accuracy = Literal["vectors", "values"]

_FIRST_CAPACITY = 16
_INSIDE = "call this outside of jit, vmap and sweeps; inside of them use largest_eigenvalue and trace of jaxbp.landscape.sharpness"
_CHECK_EVERY = 4  # steps; each check synchronises with the device and solves a small eigenproblem
_NEAR = 100  # times the tolerances; from there each step is checked


class Eigenvalue(NamedTuple):
    """One end of a spectrum.

    Attributes:
      value: Ritz value; always inside the true spectrum.
      residual: ||A v - value v|| for the unit vector ``vector``, from one more product, or from Lanczos' recurrence where values alone
        were asked for; some eigenvalue of a symmetric A lies within it of ``value``, up to rounding.
      converged: whether what was asked for, the residual or the error, is within the tolerance.
      bound: limit of the extreme eigenvalue: with probability ``confidence`` the eigenvalue lies between ``value`` and ``bound``.
      confidence: of the bounds at both ends together.
      vector: (P,) Ritz vector of norm 1.
      error: estimate of the distance to the nearest eigenvalue: the residual, or its square over the distance to the next Ritz value
        where that is smaller (Parlett, The Symmetric Eigenvalue Problem, section 11.7), up to rounding.
    """

    value: float
    residual: float
    converged: bool
    bound: float
    confidence: float
    vector: Float[jax.Array, " p"]
    error: float = math.nan

    def __repr__(self) -> str:
        return short_repr(self)

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end of an interval that contains an eigenvalue."""
        return self.value - self.residual, self.value + self.residual


class Extremes(NamedTuple):
    """Both ends of a spectrum.

    Attributes:
      smallest, largest: the ends.
      num_products: number of operator products, those for the residuals included.
      ritz: (k,) Ritz values in ascending order; None where they are not known.
      log_betas: sum of the logarithms of the k off-diagonal entries of Lanczos' matrix; -inf if the Krylov space became invariant.
      dimension: P.
    """

    smallest: Eigenvalue
    largest: Eigenvalue
    num_products: int
    ritz: Float[np.ndarray, " k"] | None = None
    log_betas: float = math.nan
    dimension: int = 0

    def __repr__(self) -> str:
        return short_repr(self)

    def excluded_below(self, num_directions: int = 1, confidence: float = 0.999) -> float:
        """With probability ``confidence`` fewer than ``num_directions`` eigenvalues lie below this value; -inf where nothing is known.

        Several eigenvectors are harder to miss than one. Let S be the span of those with eigenvalues of at most l, below all Ritz values
        t_i, and c the component of the start vector in S. Then |c| prod(t_i - l) <= prod(beta_i), as for one eigenvector in
        `extreme_eigenvalues`, and |c|^2 has the distribution Beta(dim S / 2, (P - dim S) / 2).

        Raises:
          ValueError: no number of directions from 1 to P, or no probability.
        """
        if self.ritz is None:
            return -math.inf
        if not (1 <= num_directions <= self.dimension and 0 < confidence < 1):
            raise ValueError(
                f"num_directions must be from 1 to {self.dimension} and confidence between 0 and 1, got {num_directions} and {confidence}"
            )
        rest = self.dimension - num_directions
        share = scipy.special.betaincinv(num_directions / 2, rest / 2, 1 - confidence) if rest else 1.0
        return -_largest(-self.ritz[::-1], self.log_betas, math.sqrt(share))


class SpectralDensity(NamedTuple):
    """Gauss quadrature of the spectral density.

    Attributes:
      nodes: (num_probes, num_steps).
      weights: (num_probes, num_steps); the weights of each probe sum to 1.
    """

    nodes: Float[np.ndarray, "probes steps"]
    weights: Float[np.ndarray, "probes steps"]

    def evaluate(self, grid: np.ndarray, width: float) -> np.ndarray:
        """The density on ``grid`` (G,) smoothed by a Gaussian of standard deviation ``width``; integrates to 1."""
        if not width > 0:
            raise ValueError(f"width must be positive, got {width}")
        grid = np.asarray(grid, float)
        if grid.ndim != 1:
            raise ValueError(f"grid must be a vector of points, got shape {grid.shape}")
        bumps = np.exp(-0.5 * ((grid[:, None, None] - self.nodes) / width) ** 2) / (width * math.sqrt(2 * math.pi))
        return (bumps * self.weights).sum(-1).mean(-1)

    def band(self, grid: np.ndarray, width: float, *, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper ends (G,) of t intervals of the smoothed density over probes; 0 is the least that a density can be.

        Raises:
          ValueError: a single probe, which tells nothing about the spread.
        """
        if len(self.nodes) < 2:
            raise ValueError("a band needs at least 2 probes, got 1: raise num_probes")
        by_probe = np.stack([SpectralDensity(self.nodes[[i]], self.weights[[i]]).evaluate(grid, width) for i in range(len(self.nodes))])
        half = scipy.special.stdtrit(len(by_probe) - 1, (1 + confidence) / 2) * by_probe.std(0, ddof=1) / math.sqrt(len(by_probe))
        return np.maximum(by_probe.mean(0) - half, 0), by_probe.mean(0) + half


def extreme_eigenvalues(
    matvec: Matvec,
    start: Float[jax.Array, " p"],
    *,
    rtol: float = 1e-3,
    atol: float | None = None,
    accuracy: Accuracy = "vectors",
    max_products: int = 300,
    confidence: float = 0.999,
) -> Extremes:
    """Smallest and largest eigenvalue of a symmetric operator on vectors of shape (P,).

    The iteration stops when both residuals are at most ``rtol`` times their Ritz value plus ``atol`` times the largest absolute Ritz
    value, or after ``max_products`` products. An end that has not converged has ``converged=False`` and its residual. Since the error
    of a value is of the order of the squared residual, ``accuracy="values"`` asks the same of `Eigenvalue.error` and needs fewer
    products, none of them to measure residuals. Where eigenvalues lie close together at an end, that is met by the second of them
    more often before the first shows: in 15 of 800 ends of random spectra, by residuals in 1. The bounds hold all the same.

    The bounds: an extreme eigenvalue l outside the Ritz values t_i satisfies |c| prod(l - t_i) <= prod(beta_i), with c the component of the
    start vector along the eigenvector, and c is small with small probability only (van Dorsselaer, Hochstenbach and van der Vorst, SIAM J.
    Matrix Anal. 22, 2000). The bounds hold wherever the iteration stops.

    Args:
      matvec: the operator, which must be symmetric.
      start: (P,), drawn from an isotropic distribution for ``bound`` to hold.
      rtol: tolerance relative to the eigenvalue.
      atol: tolerance relative to the largest absolute eigenvalue; default 32 epsilon of the dtype, about the rounding error.
      accuracy: what has to be within the tolerances: "vectors", the residuals, for eigenvectors too, or "values", the errors of the two
        eigenvalues alone.
      max_products: largest number of products in the iteration; for vectors two more measure the residuals.
      confidence: probability with which ``bound`` holds at both ends together.

    Raises:
      ValueError: for a start vector that is zero, not finite or not a vector, fewer than 1 product, or an unknown accuracy.
    """
    start = _checked_start(start)
    dimension = start.size
    if max_products < 1:
        raise ValueError(f"max_products must be at least 1, got {max_products}")
    if accuracy not in get_args(Accuracy):
        raise ValueError(f"accuracy must be one of {', '.join(get_args(Accuracy))}, got {accuracy!r}")
    epsilon = float(jnp.finfo(start.dtype).eps)
    atol = 32 * epsilon if atol is None else atol
    limit = min(max_products, dimension)
    least_component = (
        0.5 * (1 - confidence) / math.sqrt(2 * dimension / math.pi)
    )  # smaller with the probability that the two bounds may fail
    wanted = _Wanted(accuracy, rtol, atol)
    found = _until_found(matvec, start, wanted, limit, 4 * epsilon)
    if isinstance(found, int):
        return _not_finite(start, found, confidence)
    bounds = -_largest(-found.ritz[::-1], found.log_betas, least_component), _largest(found.ritz, found.log_betas, least_component)
    ends = []
    for i, bound, gap in zip((0, -1), bounds, found.gaps, strict=True):
        value, residual, vector = float(found.ritz[i]), float(found.residuals[i]), _ritz_vector(found.basis, found.vectors[:, i])
        if accuracy == "vectors":
            value, residual = _measured(matvec, vector)
        converged = bool(wanted.errors(residual, gap) <= wanted.tolerances(value, found.scale))
        ends.append(Eigenvalue(value, residual, converged, float(bound), confidence, vector, float(_errors(residual, gap))))
    num_products = found.num_products + (2 if accuracy == "vectors" else 0)
    smallest, largest = ends
    return Extremes(smallest, largest, num_products, found.ritz, found.log_betas, dimension)


def spectral_density(
    matvec: Matvec, dimension: int, key: jax.Array, *, num_probes: int = 4, num_steps: int = 64, dtype: Any = jnp.float32
) -> SpectralDensity:
    """Spectral density by stochastic Lanczos quadrature (Ubaru, Chen and Saad, SIAM J. Matrix Anal. 38, 2017).

    A probe whose products are not finite has NaN nodes and weights. If the Krylov space is exhausted early, the missing nodes have
    weight 0.

    Args:
      matvec: the operator, which must be symmetric.
      dimension: P.
      key: for the Gaussian start vectors.
      num_probes: number of start vectors.
      num_steps: number of products for each start vector.
      dtype: of the vectors.
    """
    if min(num_probes, num_steps) < 1:
        raise ValueError(f"num_probes and num_steps must be at least 1, got {num_probes} and {num_steps}")
    num_steps = min(num_steps, dimension)
    nodes, weights = np.zeros((2, num_probes, num_steps))
    for i, probe_key in enumerate(jax.random.split(checks.prng_key(key), num_probes)):
        start = jax.random.normal(probe_key, (dimension,), dtype)
        for _, (_, entries) in zip(range(num_steps), _steps(matvec, start), strict=False):
            pass
        diagonal, off = _on_host(entries)
        if not (np.isfinite(diagonal).all() and np.isfinite(off).all()):
            nodes[i], weights[i] = math.nan, math.nan
            continue
        diagonal, off = _until_breakdown(diagonal, off, 64 * float(jnp.finfo(dtype).eps))
        ritz, vectors = scipy.linalg.eigh_tridiagonal(diagonal, off[:-1])
        nodes[i, : len(ritz)], weights[i, : len(ritz)] = ritz, vectors[0] ** 2
    return SpectralDensity(nodes, weights)


def hutchinson_trace(
    matvec: Matvec, dimension: int, key: jax.Array, *, num_probes: int = 32, dtype: Any = jnp.float32
) -> tuple[float, float]:
    """Trace of an operator on (dimension,) by random signs (Hutchinson, 1990): mean over probes and standard error of the mean."""
    if num_probes < 2:
        raise ValueError(f"num_probes must be at least 2 for a standard error, got {num_probes}")
    keys = jax.random.split(checks.prng_key(key), num_probes)
    probes = (jax.random.rademacher(k, (dimension,), dtype) for k in keys)
    values = np.array([_dot(v, known(matvec(v))) for v in probes], float)
    with np.errstate(invalid="ignore"):  # an infinite value has no standard error
        return float(values.mean()), float(values.std(ddof=1) / math.sqrt(num_probes))


def known(array: jax.Array, name: str = "products of the operator") -> jax.Array:
    """The array, whose values the host needs: spectra are measured step by step.

    Raises:
      ValueError: it is traced; the message names what serves inside compiled code, where even random vectors of a known key are traced.
    """
    checks.refuse_traced(name, array, advice=_INSIDE)
    return array


def _checked_start(start: Any) -> jax.Array:
    """A vector (P,) to start from; messages tell P where a number was given in its place."""
    is_number = isinstance(start, int | np.integer) and not isinstance(start, bool)
    advice = f"draw one: jax.random.normal(key, ({f'{start:d}' if is_number else 'P'},))"
    try:
        vector = jnp.asarray(checks.numbers(start, "start"))
    except ValueError as error:
        raise ValueError(f"{error}: {advice}") from error
    if vector.ndim != 1 or not vector.size:
        raise ValueError(f"start must be a vector (P,), got shape {vector.shape}: {advice}")
    if not jnp.issubdtype(vector.dtype, jnp.floating) or jnp.finfo(vector.dtype).bits < 32:
        raise ValueError(f"start must be real floating-point numbers of 32 bits or more, got {vector.dtype}: {advice}")
    largest = float(known(jnp.abs(vector).max(), "start"))
    if not (math.isfinite(largest) and largest > 0):
        raise ValueError(f"start must be finite and not zero, got a largest entry of {largest}")
    return vector


def _steps(matvec: Matvec, start: jax.Array) -> Iterator[tuple[jax.Array, list[tuple[jax.Array, jax.Array, jax.Array]]]]:
    """Yield (basis, entries) after each product; rows of the basis after the number of steps are the next vector, then zeros.

    The entries are (scale, alpha, beta) for each step: the diagonal of Lanczos' matrix is scale alpha, the off-diagonal scale beta.
    """
    basis, vector = _first(start)
    entries: list[tuple[jax.Array, jax.Array, jax.Array]] = []
    while True:
        step = len(entries) + 1
        if step == basis.shape[0]:
            basis = _doubled(basis)
        basis, vector, entry = _extend(basis, step, vector, known(matvec(vector)))
        entries.append(entry)
        yield basis, entries


def _on_host(entries: list[tuple[jax.Array, jax.Array, jax.Array]]) -> tuple[np.ndarray, np.ndarray]:
    """Diagonal and off-diagonal of Lanczos' matrix in float64."""
    scales, alphas, betas = np.array(jax.device_get(entries), float).T
    return scales * alphas, scales * betas


class _Wanted(NamedTuple):
    """What has to be within the tolerances; see `extreme_eigenvalues`."""

    accuracy: Accuracy
    rtol: float
    atol: float

    def errors(self, residuals: Any, gaps: Any) -> Any:
        return residuals if self.accuracy == "vectors" else _errors(residuals, gaps)

    def tolerances(self, values: Any, scale: float) -> Any:
        return self.rtol * np.abs(values) + self.atol * scale


class _Found(NamedTuple):
    """Lanczos' iteration where it stopped: k Ritz values, vectors in the basis and residuals, and `_gaps`."""

    num_products: int
    basis: jax.Array
    ritz: np.ndarray
    vectors: np.ndarray
    residuals: np.ndarray
    gaps: np.ndarray
    log_betas: float

    @property
    def scale(self) -> float:
        return float(np.abs(self.ritz).max())


def _until_found(matvec: Matvec, start: jax.Array, wanted: _Wanted, limit: int, breakdown: float) -> _Found | int:
    """Iterate until both ends are as wanted, or for ``limit`` products; the number of products where one is not finite."""
    near = False
    for step, (basis, entries) in enumerate(_steps(matvec, start), 1):
        if not near and step % _CHECK_EVERY and step != limit:
            continue
        diagonal, off = _on_host(entries)
        if not (np.isfinite(diagonal).all() and np.isfinite(off).all()):
            return step
        diagonal, off = _until_breakdown(diagonal, off, breakdown)
        ritz, vectors = scipy.linalg.eigh_tridiagonal(diagonal, off[:-1])
        residuals = np.abs(off[-1] * vectors[-1])
        gaps = _gaps(ritz, residuals)
        errors, tolerances = wanted.errors(residuals[[0, -1]], gaps), wanted.tolerances(ritz[[0, -1]], np.abs(ritz).max())
        near = bool((errors <= _NEAR * tolerances).all())
        if (errors <= tolerances).all() or step >= limit or len(diagonal) < step:
            break
    with np.errstate(divide="ignore"):
        log_betas = float(np.log(off).sum())
    return _Found(step, basis, ritz, vectors, residuals, gaps, log_betas)


@jax.jit
def _first(start: jax.Array) -> tuple[jax.Array, jax.Array]:
    start = start / jnp.abs(start).max()
    vector = start / jnp.linalg.norm(start)
    return jnp.zeros((_FIRST_CAPACITY, start.size), start.dtype).at[0].set(vector), vector


@jax.jit
def _doubled(basis: jax.Array) -> jax.Array:
    return jnp.concatenate([basis, jnp.zeros_like(basis)])


def _scaled(product: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The product with entries of at most 1, and its largest entry, 1 if all are zero."""
    largest = jnp.abs(product).max()
    scale = jnp.where(largest > 0, largest, jnp.ones_like(largest))
    return product / scale, scale


@partial(jax.jit, donate_argnums=0)
def _extend(basis: jax.Array, step: int, vector: jax.Array, product: jax.Array) -> tuple:
    product, scale = _scaled(product)
    alpha = _dot(vector, product)
    for _ in range(2):  # "twice is enough": Parlett, The Symmetric Eigenvalue Problem, section 6.9
        product = product - _dot(_dot(basis, product), basis)
    beta = jnp.linalg.norm(product)
    following = product / jnp.where(beta > 0, beta, 1)
    return basis.at[step].set(following), following, (scale, alpha, beta)


_dot = partial(jnp.dot, precision="highest")  # the reduced precision that accelerators prefer for float32 loses orthogonality


def _until_breakdown(diagonal: np.ndarray, off: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Cut where the Krylov space became invariant: vectors after a vanishing beta start from rounding noise or from zero."""
    scale = max(np.abs(diagonal).max(), off.max(), np.finfo(float).tiny)
    small = np.flatnonzero(off <= tolerance * scale)
    end = small[0] + 1 if small.size else len(off)
    return diagonal[:end], off[:end]


def _largest(ritz: np.ndarray, log_betas: float, component: float) -> float:
    """The largest l >= max(ritz) with component x prod(l - ritz) <= prod(betas): no larger one is an eigenvalue."""
    if log_betas == -math.inf:
        return float(ritz[-1])
    product = log_betas - math.log(component)

    def excess(log_gap: float) -> float:
        return np.log(np.exp(log_gap) + (ritz[-1] - ritz)).sum() - product

    low, high = -700.0, product / len(ritz)  # every factor is at least the gap
    if excess(low) >= 0 or high <= low:
        return float(ritz[-1])
    return float(ritz[-1] + math.exp(scipy.optimize.brentq(excess, low, high + 1e-6)))


def _gaps(ritz: np.ndarray, residuals: np.ndarray) -> np.ndarray:
    """How far the rest of the spectrum is at least from the Ritz values at both ends, (2,), by the neighbours and their residuals."""
    if len(ritz) < 2:
        return np.zeros(2)  # nothing is known of the rest
    return np.array([ritz[1] - residuals[1] - ritz[0], ritz[-1] - ritz[-2] - residuals[-2]])


def _errors(residuals: Any, gaps: Any) -> np.ndarray:
    """Estimates of the errors of Ritz values: residuals, or their squares over the gaps where those are smaller."""
    return residuals * (residuals / np.maximum(np.maximum(gaps, residuals), np.finfo(float).tiny))


def _ritz_vector(basis: jax.Array, coefficients: np.ndarray) -> jax.Array:
    padded = np.zeros(basis.shape[0], basis.dtype)  # padding to the capacity keeps the number of compiled shapes small
    padded[: len(coefficients)] = coefficients
    return _combination(padded, basis)


def _measured(matvec: Matvec, vector: jax.Array) -> tuple[float, float]:
    """Rayleigh quotient of a unit vector and its residual, by one product."""
    scale, value, residual = map(float, _rayleigh(vector, matvec(vector)))
    return scale * value, scale * residual


@jax.jit
def _combination(coefficients: jax.Array, basis: jax.Array) -> jax.Array:
    vector = _dot(coefficients, basis)
    return vector / jnp.linalg.norm(vector)


@jax.jit
def _rayleigh(vector: jax.Array, product: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    product, scale = _scaled(product)
    value = _dot(vector, product)
    return scale, value, jnp.linalg.norm(product - value * vector)


def _not_finite(start: jax.Array, step: int, confidence: float) -> Extremes:
    end = Eigenvalue(math.nan, math.inf, False, math.nan, confidence, jnp.full_like(start, jnp.nan))
    return Extremes(end, end, step)
