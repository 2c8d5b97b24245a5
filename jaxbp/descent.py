"""Regression whose risk is known: polynomials with soft preferences, random features, ridge paths, exact risks, effective dimension.

The figures of double descent (Belkin et al., PNAS 2019; Wilson, ICML 2025) come from least squares on random features and on polynomials.
Here are the fits, and the exact risks of isotropic models (Hastie, Montanari, Rosset and Tibshirani, Annals of Statistics 2022) to hold
them against. Everything but `random_features` is float64 on the host.

>>> from jaxbp import descent
>>> [round(descent.isotropic_risk(100, p, signal=1.0, noise=0.5), 3) for p in (50, 99, 200)]  # falls again beyond p = n
[0.255, inf, 0.753]
>>> descent.effective_dimension([3.0, 1.0], alpha=1.0)
1.25
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxbp import checks


def legendre(x: Any, degree: int) -> Float[np.ndarray, "N D"]:
    """The Legendre polynomials of degree 0 to ``degree`` at x (N,) in [-1, 1], orthonormal under the uniform law: (N, degree + 1).

    By Bonnet's recurrence, (k + 1) P_{k+1} = (2 k + 1) x P_k - k P_{k-1}, times sqrt(2 k + 1).

    Raises:
      ValueError: a degree that is not positive, or x of another shape or outside [-1, 1].
    """
    x, degree = checks.host_values(x, "x"), checks.count(degree, "degree")
    if x.ndim != 1 or not (np.abs(x) <= 1).all():
        raise ValueError(f"x must be numbers (N,) from -1 to 1, got shape {x.shape}: rescale it")
    columns = [np.ones_like(x), x]
    for k in range(1, degree):
        columns.append(((2 * k + 1) * x * columns[k] - k * columns[k - 1]) / (k + 1))
    return np.stack(columns, 1) * np.sqrt(2 * np.arange(degree + 1) + 1)


def random_features(
    key: jax.Array, inputs: Any, count: int, activation: Callable[[jax.Array], jax.Array] = jax.nn.relu
) -> Float[Array, "N P"]:
    """``activation(x . w_k)`` for directions w_k of unit length, k = 1, ..., ``count``: (N, count).

    The first features of a larger count are those of a smaller one, so that models are nested. Inputs (N, ...) are flattened.

    Raises:
      ValueError: wrong arguments.
    """
    inputs, count = checks.examples(inputs), checks.count(count, "count")
    flat = inputs.reshape(len(inputs), -1)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(checks.prng_key(key), jnp.arange(count))
    directions = jax.vmap(lambda k: jax.random.normal(k, flat.shape[1:]))(keys)
    return activation(flat @ (directions / jnp.linalg.norm(directions, axis=1, keepdims=True)).T)


def min_norm(features: Any, targets: Any) -> np.ndarray:
    """The least-squares weights of smallest norm, (P, ...), for features (N, P) and targets (N, ...).

    Raises:
      ValueError: other shapes, or values that are not finite.
    """
    F, y = _regression(features, targets)
    return np.linalg.lstsq(F, y.reshape(len(y), -1), rcond=None)[0].reshape(F.shape[1], *y.shape[1:])


def _regression(features: Any, targets: Any) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, P) and targets (N, ...) in float64."""
    F = checks.host_values(features, "features", shape=(None, None), finite=True)
    if not F.size:
        raise ValueError(f"features must hold examples (N, P), got shape {F.shape}")
    return F, checks.host_values(targets, "targets", shape=(len(F), ...), finite=True)


def ridge_path(features: Any, targets: Any, ridges: Any, test_features: Any) -> np.ndarray:
    """Predictions at ``test_features`` (M, P) of the minimisers of ||F w - y||^2 + ridge ||w||^2, for each ridge: (R, M, ...).

    One singular value decomposition serves all ridges. A ridge of 0 is the fit of smallest norm; singular values that float64 cannot tell
    from 0 are left out of it.

    Args:
      features: (N, P).
      targets: (N,) or (N, C).
      ridges: (R,), at least 0.
      test_features: (M, P).

    Raises:
      ValueError: negative ridges, other shapes, or values that are not finite.
    """
    F, y = _regression(features, targets)
    T = checks.host_values(test_features, "test_features", shape=(None, F.shape[1]))
    ridges = np.atleast_1d(checks.host_values(ridges, "ridges", finite=True))
    if ridges.ndim != 1 or not ridges.size:
        raise ValueError(f"ridges must be numbers (R,), one at least, got shape {ridges.shape}")
    if not (ridges >= 0).all():
        raise ValueError(f"ridges must be at least 0, got {ridges.min():g}")
    left, s, right = np.linalg.svd(F, full_matrices=False)
    kept = s > max(F.shape) * np.finfo(np.float64).eps * s[0]
    coordinates, directions = np.tensordot(left.T, y, 1), T @ right.T
    shrink = [np.divide(s, s**2 + ridge, out=np.zeros_like(s), where=kept | (ridge > 0)) for ridge in ridges]
    return np.stack([np.tensordot(directions * factors, coordinates, 1) for factors in shrink])


def isotropic_risk(num_examples: int, num_features: int, signal: float, noise: float) -> float:
    """Expected excess risk of the least-squares fit of smallest norm, normal inputs of identity covariance, exact at every size.

    With n examples, p features, signal r = ||beta|| and noise s: s^2 p / (n - p - 1) for p <= n - 2, r^2 (1 - n / p) +
    s^2 n / (p - n - 1) for p >= n + 2, infinite in between (of p = n +- 1 and n the expectation does not exist).

    Raises:
      ValueError: counts below 1, or a negative signal or noise.
    """
    n, p = checks.count(num_examples, "num_examples"), checks.count(num_features, "num_features")
    r2, s2 = (checks.number(value, name, least=0.0, known=True) ** 2 for value, name in ((signal, "signal"), (noise, "noise")))
    if abs(p - n) < 2:
        return math.inf
    return s2 * p / (n - p - 1) if p < n else r2 * (1 - n / p) + s2 * n / (p - n - 1)


def isotropic_ridge_risk(ratio: float, ridge: float, signal: float, noise: float) -> float:
    """Excess risk of ridge regression, normal inputs of identity covariance, in the limit of p / n = ``ratio``.

    The weights are (X^T X / n + ridge)^-1 X^T y / n. With m the Stieltjes transform of the law of Marchenko and Pastur at -ridge and m' its
    derivative by the ridge: s^2 ratio (m + ridge m') - r^2 ridge^2 m'. At ridge = s^2 ratio / r^2 it is smallest, s^2 ratio m.

    Raises:
      ValueError: a ratio or ridge that is not positive.
    """
    g, lam = _positive(ratio, ridge)
    signal, noise = (checks.number(value, name, least=0.0, known=True) for value, name in ((signal, "signal"), (noise, "noise")))
    m = stieltjes(g, lam)
    # m solves g lam m^2 + (1 - g + lam) m - 1 = 0; its derivative by lam follows.
    slope = -(g * m**2 + m) / (2 * g * lam * m + 1 - g + lam)
    return noise**2 * g * (m + lam * slope) - signal**2 * lam**2 * slope


def stieltjes(ratio: float, ridge: float) -> float:
    """The mean of 1 / (eigenvalue + ridge) over the eigenvalues of X^T X / n, in the limit of p / n = ``ratio``.

    Raises:
      ValueError: a ratio or ridge that is not positive.
    """
    ratio, ridge = _positive(ratio, ridge)
    b = 1 - ratio + ridge
    root = math.sqrt(b * b + 4 * ratio * ridge)
    return 2 / (b + root) if b > 0 else (root - b) / (2 * ratio * ridge)  # the form that does not cancel


def _positive(ratio: Any, ridge: Any) -> tuple[float, float]:
    return checks.number(ratio, "ratio", positive=True, known=True), checks.number(ridge, "ridge", positive=True, known=True)


def effective_dimension(eigenvalues: Any, alpha: float) -> float:
    """Sum of lambda / (lambda + alpha); eigenvalues (P,) below 0 count as 0 (MacKay 1992; Maddox, Benton and Wilson 2020).

    Raises:
      ValueError: an alpha that is not positive.
    """
    values = np.maximum(checks.host_values(eigenvalues, "eigenvalues"), 0.0)
    return float(np.sum(values / (values + checks.number(alpha, "alpha", positive=True, known=True))))
