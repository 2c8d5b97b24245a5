"""Rules: open regions in which a measure must lie, and what an interval says about them."""

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxbp.stats import Interval

Decision = Literal["supported", "contradicted", "undecided"]


@dataclass(frozen=True)
class Rule:
    """An open region of the real line in which a measure must lie; made by `Above`, `Below` and `Within`."""

    def __post_init__(self):
        if not np.isfinite(dataclasses.astuple(self)).all():
            raise ValueError(f"a rule needs finite numbers, got {self}")

    @property
    def region(self) -> tuple[float, float]:
        """Lower and upper end of the region, infinite where it has none."""
        raise NotImplementedError

    @property
    def where(self) -> str:
        """Where the region lies, such as "above 0"."""
        raise NotImplementedError

    def text(self, measure: str) -> str:
        """Say when the claim holds, with every digit, so that `read_verdicts` can restore the rule."""
        return f"the whole 95 % interval of {measure} lies {self.where}"

    def slack(self, interval: Interval) -> float:
        """Room between the interval and the nearest end of the region; negative if it reaches outside."""
        lower, upper = self.region
        return min(interval.low - lower, upper - interval.high)

    def distance(self, interval: Interval) -> float:
        """Gap between the region and an interval beyond it; negative if they overlap."""
        lower, upper = self.region
        return max(lower - interval.high, interval.low - upper)

    def inside(self, effect: float) -> float:
        """The value that lies by ``effect`` inside the region, seen from an end; the middle where the region is narrower."""
        raise NotImplementedError

    def decide(self, interval: Interval) -> Decision:
        """Supported inside the region, contradicted wholly outside, undecided on overlap or a mere touch."""
        if self.slack(interval) > 0:
            return "supported"
        return "contradicted" if self.distance(interval) > 0 else "undecided"


def _digits(number: float) -> str:
    return repr(float(number)).removesuffix(".0")


@dataclass(frozen=True)
class Above(Rule):
    """The measure exceeds ``threshold``."""

    threshold: float

    region = property(lambda self: (float(self.threshold), math.inf))
    where = property(lambda self: f"above {_digits(self.threshold)}")

    def inside(self, effect: float) -> float:
        """The threshold plus ``effect``."""
        return self.threshold + effect


@dataclass(frozen=True)
class Below(Rule):
    """The measure stays under ``threshold``."""

    threshold: float

    region = property(lambda self: (-math.inf, float(self.threshold)))
    where = property(lambda self: f"below {_digits(self.threshold)}")

    def inside(self, effect: float) -> float:
        """The threshold minus ``effect``."""
        return self.threshold - effect


@dataclass(frozen=True)
class Within(Rule):
    """The measure differs from ``centre`` by less than ``margin``: equivalence by interval inclusion.

    Two one-sided tests at level alpha (Schuirmann, J. Pharmacokin. Biopharm. 15, 1987) ask for the 1 - 2
    alpha interval inside the margin, 90 % for alpha = 5 %. Here the 95 % interval must lie inside, so alpha is 2.5 %.
    """

    margin: float
    centre: float = 0.0

    region = property(lambda self: (float(self.centre - self.margin), float(self.centre + self.margin)))
    where = property(lambda self: f"within {_digits(self.margin)} of {_digits(self.centre)}")

    def __post_init__(self):
        super().__post_init__()
        if self.margin <= 0:
            raise ValueError(f"the margin is the largest difference that counts as none, got {self.margin}")

    def inside(self, effect: float) -> float:
        """The value ``effect`` below the upper end, the centre at most."""
        return self.centre + max(self.margin - effect, 0.0)


def rule_from_text(text: str, measure: str) -> Rule:
    """The inverse of `Rule.text`.

    Raises:
      ValueError: the text is of no rule.
    """
    where = text.removeprefix(f"the whole 95 % interval of {measure} lies ")
    match = re.fullmatch(r"(above|below|within) (\S+?)(?: of (\S+))?", where)
    if not match:
        raise ValueError(f"holds_if is none of this module's rules about {measure!r}: {text!r}")
    kind = {"above": Above, "below": Below, "within": Within}[match[1]]
    return kind(*(float(number) for number in match.groups()[1:] if number))
