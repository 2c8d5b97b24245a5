"""How large a rank singular values show: numbers of any spectrum, each differentiable where it is continuous.

All take values (..., count), non-negative, or a `Spectrum`, and reduce the last axis. None changes when the operator is scaled.

- ``nuclear_rank``  ||W||_* / ||W||_F, the paper's (Study 4); between 1 and sqrt(count), reached where all values are equal;
- ``stable_rank``     ||W||_F^2 / ||W||_2^2 (Rudelson and Vershynin, J. ACM 54, 2007);
- ``entropy_rank``    exp of the entropy of values / their sum (Roy and Vetterli, EUSIPCO 2007, there called effective rank);
- ``numerical_rank``  values above a tolerance relative to the largest (Golub and Van Loan, section 5.4.1).

>>> import jax.numpy as jnp
>>> from jaxbp import spectra
>>> values = jnp.array([2.0, 2.0, 2.0, 2.0, 0.0])
>>> [round(float(f(values)), 4) for f in (spectra.nuclear_rank, spectra.stable_rank, spectra.entropy_rank)]
[2.0, 4.0, 4.0]
>>> int(spectra.numerical_rank(values)), float(spectra.nuclear_norm(values))
(4, 8.0)
"""

from typing import Any

import jax
import jax.numpy as jnp


def nuclear_norm(spectrum: Any) -> jax.Array:
    """The sum of the singular values, a penalty whose gradient is finite everywhere."""
    return _of(spectrum).sum(-1)


def frobenius_norm(spectrum: Any) -> jax.Array:
    """The root of the sum of squares, from the values alone; its gradient at 0 is 0."""
    squares = jnp.sum(_of(spectrum) ** 2, -1)
    return jnp.where(squares != 0, jnp.sqrt(jnp.where(squares != 0, squares, 1)), 0)


def nuclear_rank(spectrum: Any) -> jax.Array:
    """Nuclear norm over Frobenius norm; 0 for an operator that is 0."""
    return _ratio(nuclear_norm(spectrum), frobenius_norm(spectrum))


def stable_rank(spectrum: Any) -> jax.Array:
    """Squared Frobenius norm over the square of the largest value; 0 for an operator that is 0."""
    values = _of(spectrum)
    return jnp.sum(_ratio(values, values.max(-1, keepdims=True)) ** 2, -1)


def entropy_rank(spectrum: Any) -> jax.Array:
    """exp(-sum p log p), p = values / their sum; 0 for an operator that is 0."""
    values = _of(spectrum)
    share = _ratio(values, values.sum(-1, keepdims=True))
    positive = share != 0  # NaN stays NaN
    entropy = -jnp.sum(jnp.where(positive, share * jnp.log(jnp.where(positive, share, 1)), 0), -1)
    return jnp.where(values.max(-1) != 0, jnp.exp(entropy), 0)


def numerical_rank(spectrum: Any, tolerance: float | None = None) -> jax.Array:
    """How many values exceed ``tolerance`` times the largest.

    By default count x the dtype's epsilon, about what rounding leaves of a zero.
    """
    values = _of(spectrum)
    tolerance = values.shape[-1] * float(jnp.finfo(values.dtype).eps) if tolerance is None else tolerance
    return jnp.sum(values > tolerance * values.max(-1, keepdims=True), -1)


def _of(spectrum: Any) -> jax.Array:
    return jnp.asarray(getattr(spectrum, "values", spectrum))


def _ratio(above: jax.Array, below: jax.Array) -> jax.Array:
    """above / below, and 0 with a gradient of 0 where below is 0."""
    nonzero = below != 0  # NaN stays NaN
    return jnp.where(nonzero, above / jnp.where(nonzero, below, 1), 0)
