"""From a complexity to an error: what a bound says about test examples, with everything that was chosen after a look at the data paid for.

With probability 1 - delta over N examples, for all networks of a class at once, with err_gamma the share of training examples of margin
below gamma (Lipschitz constant of the margin sqrt 2, vector contraction (Maurer 2016) sqrt 2, symmetrisation 2),

    err <= err_gamma + 4 R / gamma + 3 sqrt(log(2 / delta') / (2 N)),

or 2 sqrt(pi) G / gamma with a Gaussian complexity. A homogeneous network counts by q = rho / gamma alone, rho the product of its norms:
it is judged in the class of q' = ceil(q), with delta' = delta / (q' (q' + 1)). That pays for rho and for every gamma at once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxbp import checks
from jaxbp.bounds._bound import Bound, exp

_NUM_GAMMAS = 40
_LARGEST_EXACT = 53 * math.log(2)  # larger numbers are whole already


@dataclass(frozen=True)
class Risk:
    """A bound of the test error.

    Attributes:
      log_value: logarithm of the sum of the three terms, not capped at 1.
      gamma: the margin at which the bound is smallest.
      margin_error: share of training examples with a margin below gamma.
      log_complexity: logarithm of the complexity's term.
      deviation: the confidence's term.
      note: "not fitted" where no training example has a positive margin.
    """

    log_value: float
    gamma: float
    margin_error: float
    log_complexity: float
    deviation: float
    note: str = ""

    @property
    def value(self) -> float:
        """The bound; vacuous from 1 on, infinite past the range of float64."""
        return exp(self.log_value)

    @property
    def log_inflation(self) -> float:
        """Logarithm of the terms that fall with the root of the number of examples, over what the training error leaves below 1."""
        left = 1 - self.margin_error
        return math.inf if left == 0 else float(np.logaddexp(self.log_complexity, math.log(self.deviation))) - math.log(left)


def margins(logits: Any, labels: Any) -> np.ndarray:
    """f_y - max_{j != y} f_j of logits (N, C) and labels (N,): (N,), Lipschitz in f with the constant sqrt 2."""
    logits = checks.host_values(logits, "logits", shape=(None, None))
    labels = checks.host_labels(labels, logits.shape[1], len(logits))
    own = np.take_along_axis(logits, labels[:, None], 1)[:, 0]
    return own - np.where(np.arange(logits.shape[1]) == labels[:, None], -np.inf, logits).max(1)


def risk(bound: Bound, margins: Any, *, delta: float = 0.05, margin_grid: Sequence[float] | None = None) -> Risk:
    """The smallest bound of the test error over margins gamma.

    Args:
      bound: of the network's class on its training inputs.
      margins: (N,) of the training examples.
      delta: the probability with which the bound may fail.
      margin_grid: positive gammas; default 40 quantiles of the positive margins.

    Raises:
      ValueError: numbers out of range, or another number of margins than the bound's examples.
    """
    return min(_by_gamma(bound, margins, delta, margin_grid), key=lambda candidate: candidate.log_value)


def log_examples_needed(bound: Bound, margins: Any, *, delta: float = 0.05, margin_grid: Sequence[float] | None = None) -> float:
    """Logarithm of the number of examples from which on the bound of the test error would say something, all else as it is.

    Norms, margins and the mean square of the inputs stay; a complexity falls with the root of the number of examples, as the confidence's
    term does. Bounds by covering numbers also grow with its logarithm, which is left out. Arguments and errors are those of `risk`.

    Returns:
      infinity where every margin's training error is 1.
    """
    candidates = _by_gamma(bound, margins, delta, margin_grid)
    return min(math.log(bound.num_examples) + 2 * candidate.log_inflation for candidate in candidates)


def _by_gamma(bound: Bound, margins: Any, delta: float, margin_grid: Sequence[float] | None) -> list[Risk]:
    values = checks.host_values(margins, "margins")
    if values.shape != (bound.num_examples,):
        raise ValueError(f"margins must be ({bound.num_examples},), one for each example of the bound, got {values.shape}")
    if not 0 < checks.number(delta, "delta", known=True) < 1:
        raise ValueError(f"delta must lie between 0 and 1, got {delta}")
    note = "" if (values > 0).any() else "not fitted"
    grid = _quantiles(values) if margin_grid is None else [float(gamma) for gamma in margin_grid]
    if min(grid) <= 0:
        raise ValueError(f"margin_grid must be positive, got {min(grid)}")
    return [_at(bound, values, gamma, delta, note) for gamma in grid]


def _quantiles(margins: np.ndarray) -> list[float]:
    positive = margins[margins > 0]
    return np.unique(np.quantile(positive, np.linspace(0, 1, _NUM_GAMMAS))).tolist() if len(positive) else [1.0]


def _at(bound: Bound, margins: np.ndarray, gamma: float, delta: float, note: str) -> Risk:
    log_q = bound.factors["norms"] - math.log(gamma)
    if math.isnan(log_q):
        return Risk(math.nan, gamma, math.nan, math.nan, math.nan, bound.note)
    log_whole = math.log(max(math.ceil(math.exp(log_q)), 1)) if log_q < _LARGEST_EXACT else log_q
    per_norm = sum(factor for name, factor in bound.factors.items() if name != "norms")
    constant = 4.0 if bound.complexity == "rademacher" else 2 * math.sqrt(math.pi)
    log_complexity = math.log(constant) + per_norm + log_whole
    # log(q' + 1) = log q' + log(1 + 1 / q')
    log_inverse_delta = math.log(2 / delta) + 2 * log_whole + math.log1p(math.exp(-log_whole)) + bound.log_choices
    deviation = 3 * math.sqrt(log_inverse_delta / (2 * len(margins)))
    error = float(np.mean(~(margins >= gamma)))  # a margin that is NaN counts as an error
    log_value = float(np.logaddexp(log_complexity, np.log(error + deviation)))
    return Risk(log_value, gamma, error, log_complexity, deviation, note)
