"""Ranks and norms of a spectrum of singular values; each is differentiable where it is continuous.

All functions take values (..., count), non-negative, or a `Spectrum`, and reduce the last axis. The ranks do not change when the
operator is scaled.

- ``nuclear_rank``    ||W||_* / ||W||_F, the effective rank of "Truth or Backpropaganda?" (Goldblum et al., ICLR 2020, section 5);
                      between 1 and sqrt(count), which equal values reach;
- ``stable_rank``     ||W||_F^2 / ||W||_2^2 (Rudelson and Vershynin, J. ACM 54, 2007);
- ``entropy_rank``    exp of the entropy of values / their sum (Roy and Vetterli, EUSIPCO 2007, there called effective rank);
- ``numerical_rank``  number of values above a tolerance relative to the largest (Golub and Van Loan, section 5.4.1).

>>> import jax.numpy as jnp
>>> from jaxbp import spectra
>>> values = jnp.array([2.0, 2.0, 2.0, 2.0, 0.0])
>>> [round(float(f(values)), 4) for f in (spectra.nuclear_rank, spectra.stable_rank, spectra.entropy_rank)]
[2.0, 4.0, 4.0]
>>> int(spectra.numerical_rank(values)), float(spectra.nuclear_norm(values))
(4, 8.0)
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxbp import checks
from jaxbp.linalg import scaling


@runtime_checkable
class HasValues(Protocol):
    """An object that holds singular values, such as `jaxbp.spectra.Spectrum`."""

    @property
    def values(self) -> Any:
        """(..., count) singular values."""


Values = Float[jax.Array, "*batch count"] | Float[np.ndarray, "*batch count"] | HasValues


def nuclear_norm(spectrum: Values) -> Float[jax.Array, "..."]:
    """Sum of the singular values; as a penalty it has a finite gradient everywhere."""
    return _of(spectrum).sum(-1)


def frobenius_norm(spectrum: Values) -> Float[jax.Array, "..."]:
    """Square root of the sum of squares of the values; the gradient at 0 is 0."""
    return scaling.norm(_of(spectrum), -1)


def nuclear_rank(spectrum: Values) -> Float[jax.Array, "..."]:
    """Nuclear norm over Frobenius norm; 0 for a zero operator."""
    values = _of(spectrum)
    values = values / scaling.power_of_two(values, -1)
    return _ratio(nuclear_norm(values), frobenius_norm(values))


def stable_rank(spectrum: Values) -> Float[jax.Array, "..."]:
    """Squared Frobenius norm over the square of the largest value; 0 for a zero operator."""
    values = _of(spectrum)
    return jnp.sum(_ratio(values, values.max(-1, keepdims=True)) ** 2, -1)


def entropy_rank(spectrum: Values) -> Float[jax.Array, "..."]:
    """exp(-sum p log p) with p = values / their sum; 0 for a zero operator."""
    values = _of(spectrum)
    share = _ratio(values, values.sum(-1, keepdims=True))
    positive = share != 0  # NaN stays NaN
    entropy = -jnp.sum(jnp.where(positive, share * jnp.log(jnp.where(positive, share, 1)), 0), -1)
    return jnp.where(values.max(-1) != 0, jnp.exp(entropy), 0)


def numerical_rank(spectrum: Values, tolerance: float | None = None) -> Int[jax.Array, "..."]:
    """Number of values that exceed ``tolerance`` times the largest.

    The default tolerance is count times the dtype's epsilon, about the rounding error of a zero.
    """
    values = _of(spectrum)
    tolerance = values.shape[-1] * float(jnp.finfo(values.dtype).eps) if tolerance is None else tolerance
    return jnp.sum(values > tolerance * values.max(-1, keepdims=True), -1)


def held_values(spectrum: Any) -> Any:
    """The values that a `Spectrum` or the like holds; anything else as it is."""
    return spectrum.values if isinstance(spectrum, HasValues) and not isinstance(spectrum, Mapping) else spectrum


def _of(spectrum: Values) -> Float[jax.Array, "..."]:
    """The values; integers and booleans as floating-point numbers."""
    values = checks.numbers(held_values(spectrum), "values")
    if values.ndim == 0 or values.shape[-1] == 0:
        raise ValueError(f"values must be (..., count) singular values, at least one, got shape {values.shape}")
    return values if jnp.issubdtype(values.dtype, jnp.floating) else values.astype(jnp.float32)


def _ratio(above: jax.Array, below: jax.Array) -> jax.Array:
    """above / below, and 0 with a gradient of 0 where below is 0."""
    nonzero = below != 0  # NaN stays NaN
    return jnp.where(nonzero, above / jnp.where(nonzero, below, 1), 0)
