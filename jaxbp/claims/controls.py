"""Controls: what a study's design must find, and what it must not, for its verdicts to mean anything.

>>> from jaxbp import claims
>>> sham = claims.Control("negative", "Arms that differ in name only are alike.", "gain", claims.Within(0.5), id="S2.negative")
>>> verdict = claims.judge_control(sham, {"mlp": [0.1, -0.2, 0.0, 0.1], "resnet": [2.1, 1.9, 2.0, 2.2]})
>>> verdict.passed, verdict.reason
(False, 'something was found where there is nothing, in resnet')
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from numpy.typing import ArrayLike

from jaxbp.claims.claim import Claim
from jaxbp.claims.judging import judge
from jaxbp.claims.rules import Rule
from jaxbp.claims.verdicts import Verdict
from jaxbp.stats import IntervalFn, Looks, t_interval

Kind = Literal["positive", "negative"]


@dataclass(frozen=True)
class Control:
    """A control of a study.

    Attributes:
      kind: "positive", an effect that is known to be there: it passes only if every case is supported. "negative", no effect by
        construction: it passes unless some case is contradicted.
      statement: what must come out, in a sentence.
      measure: the name of the measured quantity.
      rule: the region in which the measure lies if the design works.
      id: unique within a file of verdicts.
      claims: the ids of the claims that hang on the control; none stands for all of the study.
      smallest_effect: the smallest effect that a positive control is to find, as a distance from the threshold.
    """

    kind: Kind
    statement: str
    measure: str
    rule: Rule
    id: str
    claims: tuple[str, ...] = ()
    smallest_effect: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"a control is one of {list(get_args(Kind))}, got {self.kind!r}")

    @property
    def claim(self) -> Claim:
        """The control as a claim, for what judges and writes claims."""
        return Claim(self.id, self.statement, f"{self.kind} control", self.measure, self.rule, smallest_effect=self.smallest_effect)


@dataclass(frozen=True)
class ControlVerdict:
    """What came out of a control.

    Attributes:
      control: the control.
      verdict: of its measure.
    """

    control: Control
    verdict: Verdict

    @property
    def passed(self) -> bool:
        """Whether the control came out as it must."""
        return not self.reason

    @property
    def reason(self) -> str:
        """Why the control failed; "" if it passed."""
        bad = [case for case in self.verdict.cases if case.verdict != "supported"]
        if self.control.kind == "negative":
            bad = [case for case in bad if case.verdict == "contradicted"]
            return f"something was found where there is nothing, in {_names(bad)}" if bad else ""
        if not self.verdict.cases:
            return "no case of it was run"
        return f"what is there was not found in {_names(bad)}" if bad else ""

    def void(self, verdict: Verdict) -> Verdict:
        """A verdict of the study as the control leaves it: void if the control failed and the claim hangs on it."""
        if self.passed or (self.control.claims and verdict.claim.id not in self.control.claims):
            return verdict
        note = f"Void: the {self.control.kind} control {self.control.id} failed, {self.reason}. {verdict.note}".strip()
        return dataclasses.replace(verdict, verdict="void", note=note)


def _names(cases: list) -> str:
    return ", ".join(case.case for case in cases)


def judge_control(
    control: Control, values_by_case: Mapping[str, ArrayLike], *, interval_fn: IntervalFn = t_interval, looks: Looks | None = None
) -> ControlVerdict:
    """Judge a control as `jaxbp.claims.judge` does a claim."""
    return ControlVerdict(control, judge(control.claim, values_by_case, interval_fn=interval_fn, looks=looks))
