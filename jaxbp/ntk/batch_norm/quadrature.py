"""The integral over the norm of a normalised channel, as a sum over a few nodes; NumPy, float64.

BatchNorm divides a channel y ~ N(0, S) by its norm r, r^2 = |y|^2 + D epsilon. By Laplace's method (Yang et al., ICLR 2019, arXiv
1902.08129) 1/r^2 is an integral over s of exp(-s r^2), under which y is Gaussian again:

    E[exp(-s r^2) g(y)] = w(s) E[g(y)],  y ~ N(0, S (I + 2 s S)^-1),    w(s) = exp(-s D epsilon) det(I + 2 s S)^(-1/2).

In log s the integrands are analytic in a strip, so the trapezoidal rule converges exponentially (Takahasi & Mori, 1974); on the left,
where they decay as s alone, the substitution log s = t - exp(-t) shortens their tail.

>>> import numpy as np
>>> from jaxbp.ntk.batch_norm import quadrature
>>> spectrum = np.ones(10)
>>> rule = quadrature.nodes(spectrum, 0.0, 25)
>>> round(float(np.sum(rule.weights)), 9)  # E[1 / r^2] of 10 standard normals is 1 / (10 - 2)
0.125
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

_TOLERANCE = 1e-10  # of the integrand, relative to its maximum, at the ends of the nodes
_GRID_STEP = 0.1  # of log s, where the right end is looked for
_NEWTON_STEPS = 30


class Nodes(NamedTuple):
    """A rule: the integral over s from 0 to infinity of w(s) f(s) is about the sum of weights f(nodes).

    Attributes:
      values: (num_nodes,), of s.
      weights: (num_nodes,), those of the trapezoidal rule times w(s).
      signed: (num_nodes,), whose sum with f is the difference to the rule of every second node: an error estimate, very generous (about
        the root of the error).
    """

    values: Float[np.ndarray, " n"]
    weights: Float[np.ndarray, " n"]
    signed: Float[np.ndarray, " n"]


def nodes(eigenvalues: Float[np.ndarray, " R"], shift: float, num_nodes: int) -> Nodes:
    """The rule for a channel of covariance S with these ``eigenvalues`` (R,), at least 0, and ``shift`` = D epsilon.

    ``num_nodes`` is odd. 25 suffice for 1e-6 from rank 6 on, 33 for 1e-8 below.
    """
    log_scale = np.log(np.sum(eigenvalues) + shift)
    ends = _solve(np.array([np.log(_TOLERANCE), _right_end(eigenvalues, shift, 1) + log_scale]))
    places = np.linspace(ends[0], ends[1], num_nodes)
    step = places[1] - places[0]
    log_s = places - np.exp(-places) - log_scale
    weights = step * np.exp(log_s + np.log1p(np.exp(-places)) + log_weight(log_s, eigenvalues, shift))
    return Nodes(np.exp(log_s), weights, weights * np.where(np.arange(num_nodes) % 2 == 0, 1.0, -1.0))


def log_weight(log_s: Float[np.ndarray, " n"], eigenvalues: Float[np.ndarray, " R"], shift: float) -> Float[np.ndarray, " n"]:
    """log w(s) at each log s, (n,)."""
    s = np.exp(log_s)
    return -s * shift - 0.5 * np.sum(np.log1p(2 * s[:, None] * eigenvalues), 1)


def tail(eigenvalues: Float[np.ndarray, " R"], shift: float) -> float:
    """(tr S)^2 E[1 / r^4]: 1 for a norm that does not fluctuate; the variance of a finite network's kernel goes like it, over the width."""
    right = _right_end(eigenvalues, shift, 2)
    log_s = np.linspace(-np.log(np.sum(eigenvalues) + shift) + np.log(_TOLERANCE), right, 400)
    integrand = np.exp(2 * log_s + log_weight(log_s, eigenvalues, shift))
    return float(np.sum(eigenvalues) ** 2 * np.trapezoid(integrand, log_s))


def _right_end(eigenvalues: np.ndarray, shift: float, power: int) -> float:
    """The largest log s at which s^power w(s) is above the tolerance; at most 120 above that of the scale, where a tail never ends."""
    start = -np.log(np.sum(eigenvalues) + shift)
    grid = start + np.arange(-5.0, 120.0, _GRID_STEP)
    logs = power * grid + log_weight(grid, eigenvalues[eigenvalues > 0], shift)
    return float(grid[logs > logs.max() + np.log(_TOLERANCE)][-1])


def _solve(ends: np.ndarray) -> np.ndarray:
    """t with t - exp(-t) = ends, by Newton's method from the left, where the function is concave."""
    t = np.where(ends < 0, -np.log(np.maximum(-ends, 1.0)), ends)
    for _ in range(_NEWTON_STEPS):
        t = t - (t - np.exp(-t) - ends) / (1 + np.exp(-t))
    return t
