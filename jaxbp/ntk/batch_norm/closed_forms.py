"""Expectations of steps and ReLUs of Gaussians, entry by entry, for covariance matrices or blocks of their rows.

For (y_i, y_j) of covariance C with v_i = C_ii and root_ij = sqrt(v_i v_j - C_ij^2), as in Cho & Saul (NeurIPS 2009):

    E[step step] = 1/2 - atan2(root_ij, C_ij) / (2 pi),    E[relu relu] = root_ij / (2 pi) + C_ij E[step step].

>>> import jax.numpy as jnp
>>> from jaxbp.ntk.batch_norm import closed_forms
>>> closed_forms.relu_moments(jnp.eye(2)).step.tolist()
[[0.5, 0.25], [0.25, 0.5]]
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.polynomial import Polynomial, chebyshev

_LARGEST = math.tan(math.pi / 8)  # of the numbers whose arctangent the polynomial gives
_COLLINEAR = 1e-12  # root^2 / (v_i v_j) below which two pixels count as one


class ReluMoments(NamedTuple):
    """What `relu_moments` returns, each of the shape of the covariances.

    Attributes:
      density: root_ij / (2 pi); divided by v_i it is E[delta(y_i) relu(y_j)].
      step: E[step(y_i) step(y_j)].
      relu: E[relu(y_i) relu(y_j)].
    """

    density: Float[Array, "R D"]
    step: Float[Array, "R D"]
    relu: Float[Array, "R D"]


def relu_moments(
    covariance: Float[Array, "R D"], row_variances: Float[Array, " R"] | None = None, variances: Float[Array, " D"] | None = None
) -> ReluMoments:
    """Moments of the steps and ReLUs of Gaussians of mean 0; those of a pixel without variance are 0.

    Args:
      covariance: the whole matrix (D, D), or R rows and the columns from the first of these rows on, so that the entry (k, k) is the
        variance of row k.
      row_variances, variances: (R,) and (D,), default the diagonal.
    """
    variances = jnp.diagonal(covariance) if variances is None else variances
    row_variances = variances[: len(covariance)] if row_variances is None else row_variances
    products = row_variances[:, None] * variances[None, :]
    # On the diagonal rounding would leave a root of 1e-8.
    root = jnp.sqrt(jnp.where(_diagonal(covariance), 0.0, jnp.maximum(products - covariance**2, 0.0)))
    density = root / (2 * math.pi)
    step = jnp.where(products > 0, 0.5 - _angle(root, covariance) / (2 * math.pi), 0.0)
    return ReluMoments(density, step, density + covariance * step)


def gated_products(part: Float[Array, "D D"], covariance: Float[Array, "D D"], step: Float[Array, "D D"]) -> Float[Array, "D D"]:
    """E[u_i u_j step(h_i) step(h_j)] for a sum h of covariance (D, D) one of whose independent terms, u, has the covariance ``part``.

    This is the share of BatchNorm's trained scale in a tangent kernel: the scale's gradient is u, gated by the steps, with which u is
    correlated. For u = h it is E[relu relu]. ``step``: of `relu_moments` of ``covariance``.
    """
    variances, own = jnp.diagonal(covariance), jnp.diagonal(part)
    products = variances[:, None] * variances[None, :]
    determinant = products - covariance**2
    distinct = (determinant > _COLLINEAR * products) & ~_diagonal(covariance)
    ratios = jnp.where(variances > 0, own / jnp.where(variances > 0, variances, 1.0), 0.0)
    slope = own[:, None] * own[None, :] + part**2 - part * covariance * (ratios[:, None] + ratios[None, :])
    return part * step + jnp.where(distinct, slope / (2 * math.pi * jnp.sqrt(jnp.where(distinct, determinant, 1.0))), 0.0)


def _diagonal(block: jax.Array) -> jax.Array:
    return jnp.eye(block.shape[0], block.shape[1], dtype=bool)


def _angle(y: jax.Array, x: jax.Array) -> jax.Array:
    """``arctan2(y, x)`` for y >= 0, to 2 units in the last place of pi; without a call per entry, so that loops are vectorised."""
    size = jnp.abs(x)
    larger, smaller = jnp.maximum(size, y), jnp.minimum(size, y)
    beyond = smaller > _LARGEST * larger
    # arctan(a) = pi/4 + arctan((a - 1) / (a + 1))
    numerator = jnp.where(beyond, smaller - larger, smaller)
    denominator = jnp.where(beyond, smaller + larger, larger)
    ratio = numerator / jnp.where(denominator > 0, denominator, 1.0)
    square = ratio * ratio
    series = jnp.full_like(square, _ARCTAN[-1])
    for coefficient in _ARCTAN[-2::-1]:
        series = series * square + coefficient
    angle = ratio * series + jnp.where(beyond, math.pi / 4, 0.0)
    angle = jnp.where(y > size, math.pi / 2 - angle, angle)
    return jnp.where(x < 0, math.pi - angle, angle)


def _arctan_coefficients() -> list[float]:
    """Of arctan(a) / a in powers of a^2, up to `_LARGEST`: by interpolation at 13 Chebyshev points, whose error is below 1e-16.

    arctan(a) / a has its nearest singularity at a^2 = -1, whence the error falls as 25^-degree.
    """
    end = _LARGEST**2
    places = chebyshev.chebpts1(13)
    roots = np.sqrt((places + 1) / 2 * end)
    series = chebyshev.cheb2poly(chebyshev.chebfit(places, np.arctan(roots) / roots, 12))
    return Polynomial(series)(Polynomial([-1, 2 / end])).coef.tolist()


_ARCTAN = _arctan_coefficients()
