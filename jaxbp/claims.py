"""Claims, the rules that turn intervals into verdicts, and verdicts.json.

A claim names a measure and a `Rule`, an open region in which the measure must lie; seeds give a `jaxbp.stats.Interval` for it. A claim
is *supported* by an interval inside the region, *contradicted* by an interval wholly outside, and otherwise *undecided* with this
number of seeds. "No difference" is a region around zero (`Within`) and must be shown: a test without significance shows nothing.
An interval that only touches an end of the region decides nothing. Intervals are two-sided at 95 %: a one-sided rule errs in at most
2.5 % of runs. Claims are independent of each other; for tests that must hold together see `jaxbp.stats.holm`.

>>> from jaxbp import claims
>>> claim = claims.Claim("S2.a", "Weight decay beats none.", "Table 2", "gain", claims.Above(0.0), 0.6)
>>> verdict = claims.judge(claim, {"digits/mlp": [0.4, 0.7, 0.5, 0.9, 0.6]})
>>> print(verdict.verdict, f"{verdict.interval.low:.3f} {verdict.interval.high:.3f}")
supported 0.381 0.859
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from jaxbp.runtime.files import write_atomically
from jaxbp.stats import CONFIDENCE, Interval, IntervalFn, SampleError, t_interval

Outcome = Literal["supported", "contradicted", "undecided"]


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

    def _where(self) -> str:
        raise NotImplementedError

    def text(self, measure: str) -> str:
        """Say when the claim holds, with every digit, so that `read_verdicts` can restore the rule."""
        return f"the whole 95 % interval of {measure} lies {self._where()}"

    def slack(self, interval: Interval) -> float:
        """Room between the interval and the nearest end of the region; negative if it reaches outside."""
        lower, upper = self.region
        return min(interval.low - lower, upper - interval.high)

    def distance(self, interval: Interval) -> float:
        """Gap between the region and an interval beyond it; negative if they overlap."""
        lower, upper = self.region
        return max(lower - interval.high, interval.low - upper)

    def decide(self, interval: Interval) -> Outcome:
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

    def _where(self) -> str:
        return f"above {_digits(self.threshold)}"


@dataclass(frozen=True)
class Below(Rule):
    """The measure stays under ``threshold``."""

    threshold: float

    region = property(lambda self: (-math.inf, float(self.threshold)))

    def _where(self) -> str:
        return f"below {_digits(self.threshold)}"


@dataclass(frozen=True)
class Within(Rule):
    """The measure differs from ``centre`` by less than ``margin``: equivalence by interval inclusion.

    Two one-sided tests at level alpha (Schuirmann, J. Pharmacokin. Biopharm. 15, 1987) ask for the 1 - 2
    alpha interval inside the margin, 90 % for alpha = 5 %. Here the 95 % interval must lie inside, so alpha is 2.5 %.
    """

    margin: float
    centre: float = 0.0

    region = property(lambda self: (float(self.centre - self.margin), float(self.centre + self.margin)))

    def __post_init__(self):
        super().__post_init__()
        if self.margin <= 0:
            raise ValueError(f"the margin is the largest difference that counts as none, got {self.margin}")

    def _where(self) -> str:
        return f"within {_digits(self.margin)} of {_digits(self.centre)}"


def _rule_from_text(text: str, measure: str) -> Rule:
    where = text.removeprefix(f"the whole 95 % interval of {measure} lies ")
    match = re.fullmatch(r"(above|below|within) (\S+?)(?: of (\S+))?", where)
    if not match:
        raise ValueError(f"holds_if is none of this module's rules about {measure!r}: {text!r}")
    kind = {"above": Above, "below": Below, "within": Within}[match[1]]
    return kind(*(float(number) for number in match.groups()[1:] if number))


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
    """

    id: str
    statement: str
    source: str
    measure: str
    rule: Rule
    paper_value: str | float | None = None
    belief: str = dataclasses.field(default="", kw_only=True)


@dataclass(frozen=True)
class CaseVerdict:
    """The outcome for a claim in one case.

    Attributes:
      case: the name of the setting (data set, model, ...).
      interval: the 95 % interval of the measure; None if the seeds allow none.
      num_seeds: the number of seeds.
      verdict: the outcome for this case alone.
      note: the reason for a missing interval.
    """

    case: str
    interval: Interval | None
    num_seeds: int
    verdict: Outcome
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """The outcome for a claim over all cases.

    Attributes:
      claim: the claim.
      interval: the 95 % interval of the least favourable deciding case; None if no case has an interval.
      num_seeds: the number of seeds of that case.
      verdict: the outcome.
      cases: the outcome in each case.
      note: sentences on missing intervals and on the choice of the interval.
    """

    claim: Claim
    interval: Interval | None
    num_seeds: int
    verdict: Outcome
    cases: tuple[CaseVerdict, ...]
    note: str = ""

    def to_json(self) -> dict:
        """Entry of verdicts.json; without an interval, ``estimate`` and both ends of ``ci95`` are None."""
        claim = self.claim
        return {
            "id": claim.id,
            "statement": claim.statement,
            "source": claim.source,
            "measure": claim.measure,
            "holds_if": claim.rule.text(claim.measure),
            **_result_to_json(self),
            "paper_value": claim.paper_value,
            "belief": claim.belief,
            "cases": [{"case": case.case, **_result_to_json(case)} for case in self.cases],
        }


def _result_to_json(result: CaseVerdict | Verdict) -> dict:
    interval = result.interval
    estimate, *ends = [None] * 3 if interval is None else map(float, (interval.estimate, interval.low, interval.high))
    entry = {"estimate": estimate, "ci95": ends, "seeds": result.num_seeds, "verdict": result.verdict}
    return entry | ({"note": result.note} if result.note else {})


def _result_from_json(entry: dict) -> dict:
    estimate, num_seeds, interval = entry["estimate"], entry["seeds"], None
    if estimate is not None:
        low, high = entry["ci95"]
        interval = Interval(estimate, low, high, CONFIDENCE, num_seeds, "as written")
    shared = {"verdict": entry["verdict"], "note": entry.get("note", "")}
    return {"interval": interval, "num_seeds": num_seeds, **shared}


def judge(claim: Claim, values_by_case: Mapping[str, ArrayLike], *, interval_fn: IntervalFn = t_interval) -> Verdict:
    """Decide a claim that should hold in every case, from values whose first axis is over seeds.

    ``interval_fn(values, confidence=...)`` returns one case's Interval: `t_interval`, `event_interval`,
    `bootstrap_interval`, or a lambda around `trend`. For a paired comparison pass differences. The claim is

    - *supported* if every case is supported, at 95 %. An intersection-union test needs no correction (Berger and Hsu,
      Statistical Science 11, 1996): for an error, the failing case itself must pass.
    - *contradicted* if some case is contradicted, at the level 1 - 0.05 / num_cases, because one of many cases may deviate by
      chance. This is Bonferroni's correction; Holm's first step is the same, so it would not detect a failure more often.
    - *undecided* otherwise. A case without interval (SampleError; the message becomes its note) prevents
      *supported* and counts in num_cases: seeds that diverged are neither dropped nor guessed.

    Each case keeps its own 95 % interval and verdict. The verdict reports the interval of its least favourable deciding case.
    """
    values_by_case = {str(name): values for name, values in values_by_case.items()}
    rule, cases = claim.rule, _judge_cases(claim.rule, values_by_case, interval_fn)
    if not cases:
        return Verdict(claim, None, 0, "undecided", (), "No case was run.")
    confidence = 1 - (1 - CONFIDENCE) / len(cases)
    suspects = [case for case in cases if case.verdict == "contradicted"]
    strict = [interval_fn(values_by_case[case.case], confidence=confidence) for case in suspects]
    failed = [case for case, interval in zip(suspects, strict, strict=True) if rule.distance(interval) > 0]
    verdict: Outcome
    if failed:
        verdict, worst = "contradicted", _worst(failed, rule.distance)
    else:
        verdict = "supported" if all(case.verdict == "supported" for case in cases) else "undecided"
        known = [case for case in cases if case.interval]
        open_cases = [case for case in known if case.verdict != "supported"] or known
        worst = _worst(open_cases, lambda interval: -rule.slack(interval))
    notes = [f"{case.case}: {case.note}." for case in cases if case.note]
    if len(cases) > 1 and worst:
        notes.insert(0, f"Shown is the least favourable of {len(cases)} cases, {worst.case}.")
    if suspects and not failed:
        names = ", ".join(case.case for case in suspects)
        notes.append(f"Not contradicted at the {100 * confidence:.4g} % that {len(cases)} cases need: {names}.")
    num_seeds = worst.num_seeds if worst else max(case.num_seeds for case in cases)
    return Verdict(claim, worst.interval if worst else None, num_seeds, verdict, cases, " ".join(notes))


def _worst(cases: Iterable[CaseVerdict], badness_fn: Callable[[Interval], float]) -> CaseVerdict | None:
    """The case of greatest badness among those with an interval; the first of equal cases."""
    ranked = [(case, badness_fn(case.interval)) for case in cases if case.interval]
    return max(ranked, key=lambda pair: pair[1], default=(None, 0.0))[0]


def _judge_cases(rule: Rule, values_by_case: Mapping[str, ArrayLike], interval_fn: IntervalFn) -> tuple[CaseVerdict, ...]:
    cases = []
    for name, values in values_by_case.items():
        num_seeds = len(np.atleast_1d(np.asarray(values)))
        try:
            interval = interval_fn(values, confidence=CONFIDENCE)
        except SampleError as error:
            cases.append(CaseVerdict(name, None, num_seeds, "undecided", str(error)))
        else:
            cases.append(CaseVerdict(name, interval, num_seeds, rule.decide(interval)))
    return tuple(cases)


def write_verdicts(path: str | os.PathLike, verdicts: Iterable[Verdict]) -> None:
    """Write verdicts.json: strict JSON (no NaN), in one step, so that no reader sees half a file."""
    entries = [verdict.to_json() for verdict in verdicts]
    ids = [entry["id"] for entry in entries]
    if len(set(ids)) < len(ids):
        raise ValueError(f"claim ids must differ within a file, got {ids}")
    text = json.dumps(entries, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, (text + "\n").encode())


def read_verdicts(path: str | os.PathLike) -> list[Verdict]:
    """Read what `write_verdicts` wrote, rules included; the ``method`` of each interval is not stored.

    Entries without ``belief``, from older versions, read as "".
    """
    verdicts = []
    for entry in json.loads(Path(path).read_text("utf-8")):
        rule = _rule_from_text(entry["holds_if"], entry["measure"])
        fields = {key: entry[key] for key in ("id", "statement", "source", "measure", "paper_value")}
        claim = Claim(**fields, rule=rule, belief=entry.get("belief", ""))
        cases = tuple(CaseVerdict(case["case"], **_result_from_json(case)) for case in entry["cases"])
        verdicts.append(Verdict(claim, cases=cases, **_result_from_json(entry)))
    return verdicts
