"""What is claimed: a statement, the rule that decides it, what it presupposes, and the effect that would be worth finding."""

from collections.abc import Callable
from dataclasses import dataclass, field

from jaxbp.claims.rules import Rule

CaseOf = Callable[[str], str]
CLEAR_MAJORITY = 0.45  # smallest effect for a share of seeds: 95 % where the rule asks for more than a half


@dataclass(frozen=True)
class Premise:
    """A claim that another one presupposes, case by case.

    Without ``case_of`` a case's premise is judged in the case of the same name, in the case of which it is a part, or in all of its parts:
    "ResNet: RankMin" is a part of "ResNet".

    Attributes:
      claim: the id of the claim that is presupposed.
      case_of: from the name of a case to that of the premise's case.
    """

    claim: str
    case_of: CaseOf | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Claim:
    """A statement to test, with the rule that decides it.

    Attributes:
      id: unique within a file of verdicts, such as "S2.a".
      statement: the claim, in a sentence.
      source: the place in the paper.
      measure: the name of the measured quantity.
      rule: the region in which the measure must lie.
      paper_value: the value that the paper reports, None if it did not test the claim.
      belief: the opinion of theory or folklore, a short sentence with its source.
      premise: what the claim presupposes: the id of a claim, a `Premise`, or several. Where a premise is not supported the claim is not
        tested.
      smallest_effect: the smallest effect worth finding, as a distance from the threshold into the region; None if it is not stated.
      no_value: why a seed may have no value of the measure, such as "default training diverged".
    """

    id: str
    statement: str
    source: str
    measure: str
    rule: Rule
    paper_value: str | float | None = None
    belief: str = field(default="", kw_only=True)
    premise: str | Premise | tuple[str | Premise, ...] = field(default=(), kw_only=True)
    smallest_effect: float | None = field(default=None, kw_only=True)
    no_value: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        if self.smallest_effect is not None and not 0 < self.smallest_effect < float("inf"):
            raise ValueError(f"the smallest effect worth finding is a distance above 0, got {self.smallest_effect} for {self.id}")

    @property
    def premises(self) -> tuple[Premise, ...]:
        """The premises, each as a `Premise`."""
        several = self.premise if isinstance(self.premise, tuple) else (self.premise,)
        return tuple(Premise(one) if isinstance(one, str) else one for one in several)
