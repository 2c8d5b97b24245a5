"""A bound of a complexity, kept as factors whose logarithms add up."""

import math
from dataclasses import dataclass
from typing import Literal

PROVEN, PUBLISHED = "proven", "as published"


@dataclass(frozen=True)
class Bound:
    """A bound of the Rademacher or Gaussian complexity of a class of networks on given inputs.

    Attributes:
      name: of the bound and its form.
      factors: logarithms of the factors by name; "norms" is the product of the layers' norms, in which the bound is linear.
      num_examples: N.
      status: "proven", where the proof is complete and constants are explicit, else "as published".
      complexity: what is bounded.
      log_choices: logarithm of the number of classes among which the network's own was chosen, of which each takes its share of a
        confidence.
      note: what a reader has to know.
    """

    name: str
    factors: dict[str, float]
    num_examples: int
    status: str = PROVEN
    complexity: Literal["rademacher", "gaussian"] = "rademacher"
    log_choices: float = 0.0
    note: str = ""

    @property
    def log_value(self) -> float:
        """Natural logarithm of the bound; finite where the bound itself would overflow."""
        return sum(self.factors.values())

    @property
    def value(self) -> float:
        """The bound; infinite past the range of float64."""
        return exp(self.log_value)


def exp(logarithm: float) -> float:
    """The exponential, infinite past the range of float64."""
    try:
        return math.exp(logarithm)
    except OverflowError:
        return math.inf


def log(number: float) -> float:
    """The logarithm, minus infinity at 0."""
    return math.log(number) if number != 0 else -math.inf


def note_on(log_norms: float) -> str:
    """A sentence where the norms are not finite."""
    return "" if math.isfinite(log_norms) or log_norms == -math.inf else "parameters are not finite"
