"""What came out: the outcome in each case, of the claim, with counts, a summary over cases, and power."""

import collections
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from jaxbp.claims.claim import Claim
from jaxbp.stats import CONFIDENCE, Interval, Looks, RandomEffects

Outcome = Literal["supported", "contradicted", "mixed", "undecided", "not tested", "void"]


@dataclass(frozen=True)
class Power:
    """What the seeds could find.

    Attributes:
      effect: the smallest effect worth finding, as a distance from the threshold.
      chance: of *supported*, were every case's effect that large; cases count as independent, their spreads as those measured.
      seeds_needed: for a chance of 80 %; None if 2,000 are too few.
    """

    effect: float
    chance: float
    seeds_needed: int | None


@dataclass(frozen=True)
class CaseVerdict:
    """The outcome for a claim in one case.

    Attributes:
      case: the name of the setting (data set, model, ...).
      interval: the interval of the measure, at 95 % or at the confidence of the look; None if the seeds allow none.
      num_seeds: the number of seeds.
      verdict: the outcome for this case alone: supported, contradicted, undecided, not tested, or void.
      note: the reason for a missing interval, or why the case was not tested.
      confidence: at which the outcome was judged: 1 - error / number of cases, 1 - error where no correction is needed.
      look: the look, counted from 0, at which the case was decided or looked at last; None for a fixed number of seeds.
      within: how far the interval reaches from the limit, where more seeds are not likely to decide: the case is on the line.
      by_seed: the value of the measure for each seed, in pairs; None stands for a value that is not finite. Empty where it is not known
        which seeds the values are of.
    """

    case: str
    interval: Interval | None
    num_seeds: int
    verdict: Outcome
    note: str = ""
    confidence: float = CONFIDENCE
    look: int | None = None
    within: float | None = None
    by_seed: tuple[tuple[int, float | None], ...] = ()


@dataclass(frozen=True)
class Verdict:
    """The outcome for a claim over all cases.

    Attributes:
      claim: the claim.
      interval: the interval of the least favourable deciding case; None if no case has an interval.
      num_seeds: the number of seeds of that case.
      verdict: the outcome.
      cases: the outcome in each case.
      note: sentences on missing intervals and on the choice of the interval.
      summary: the effect over cases as random effects; None with one case.
      power: None where the claim states no smallest effect, or the interval has no formula for it.
      looks: the schedule of the seeds; None for a fixed number of seeds.
    """

    claim: Claim
    interval: Interval | None
    num_seeds: int
    verdict: Outcome
    cases: tuple[CaseVerdict, ...]
    note: str = ""
    summary: RandomEffects | None = None
    power: Power | None = None
    looks: Looks | None = None

    @property
    def look(self) -> int | None:
        """The last look at any case."""
        return max((case.look for case in self.cases if case.look is not None), default=None)

    @property
    def counts(self) -> dict[Outcome, int]:
        """The number of cases of each outcome that some case has."""
        return count_outcomes(case.verdict for case in self.cases)

    @property
    def headline(self) -> str:
        """The outcome with the counts of the cases, as in "mixed: supported in 4 of 7 cases, contradicted in 1"."""
        if len(self.cases) < 2 or self.verdict == "void":
            return self.verdict
        total = f" of {len(self.cases)} cases"
        told = [f"{outcome} in {count}" for outcome, count in self.counts.items()]
        return f"{self.verdict}: {', '.join([told[0] + total, *told[1:]])}"

    @property
    def is_open(self) -> bool:
        """Whether more seeds of the schedule may change the outcome."""
        return self.verdict in ("undecided", "contradicted", "not tested") and any(_is_open(case, self.looks) for case in self.cases)


def count_outcomes(outcomes: Iterable[Outcome]) -> dict[Outcome, int]:
    """The number of each outcome that is there, in the order of `Outcome`."""
    counts = collections.Counter(outcomes)
    return {outcome: counts[outcome] for outcome in get_args(Outcome) if counts[outcome]}


def _is_open(case: CaseVerdict, looks: Looks | None) -> bool:
    if looks is None or case.look is None or case.verdict != "undecided":
        return False
    return case.interval is not None and case.within is None and case.num_seeds < looks.most
