"""From measurements over seeds to verdicts, by rules that are fixed before the run.

A claim names a measure and a `Rule`, an open region in which the measure must lie; seeds give an `Interval`
for it. An interval inside the region makes the claim *supported*, one wholly outside *contradicted*;
otherwise this many seeds leave it *undecided*. "No difference" is a region around zero (`Within`) and so has
to be shown: a test that missed significance shows nothing. An interval that only touches an end of the region
decides nothing.

Every seed is one independent observation, so average over examples or epochs first. Intervals are two-sided
at 95 %: a one-sided rule errs in at most 2.5 % of runs. Each claim stands by itself; for tests that must hold
together see `holm`.

>>> from jaxbp import evidence
>>> claim = evidence.Claim("S2.a", "Weight decay beats none.", "Table 2", "gain", evidence.Above(0.0), 0.6)
>>> verdict = evidence.judge(claim, {"digits/mlp": [0.4, 0.7, 0.5, 0.9, 0.6]})
>>> print(verdict.verdict, f"{verdict.interval.low:.3f} {verdict.interval.high:.3f}")
supported 0.381 0.859
"""

import dataclasses
import json
import math
import os
import re
import secrets
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

CONFIDENCE = 0.95
Outcome = Literal["supported", "contradicted", "undecided"]


class DataError(ValueError):
    """The measurements allow no interval: too few seeds, not finite, or outside the measure's domain."""


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval for ``estimate``, from ``num_seeds`` independent runs.

    ``low`` equals ``high`` where all seeds agree to the last bit. That is right for a deterministic measure;
    for a random one it says only that these seeds show no spread.
    """

    estimate: float
    low: float
    high: float
    confidence: float
    num_seeds: int
    method: str

    def __post_init__(self):
        ends = (self.estimate, self.low, self.high)
        if not (np.isfinite(ends).all() and self.low <= self.high):
            raise DataError(f"an interval needs finite ends in order, got estimate, low, high = {ends}")


IntervalFn = Callable[..., Interval]


def _checked(values: ArrayLike, confidence: float = CONFIDENCE, *, least: int = 2, ndim: int = 1) -> np.ndarray:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is a fraction between 0 and 1, got {confidence}: write 0.95 for 95 %")
    values = np.asarray(values, np.float64)
    if values.ndim != ndim and values.size:  # no seeds at all may come without the other axes
        raise ValueError(f"values need {ndim} axes, the first over seeds, got shape {values.shape}")
    if len(values) < least:
        raise DataError(f"an interval needs at least {least} seeds, got {len(values)}")
    num_bad = len(values) - np.count_nonzero(np.isfinite(values).reshape(len(values), -1).all(1))
    if num_bad:
        raise DataError(f"{num_bad} of {len(values)} seeds are not finite: settle what that means, then pass the rest")
    return values


def t_interval(values: ArrayLike, *, confidence: float = CONFIDENCE) -> Interval:
    """Student's interval for the mean of ``values`` (num_seeds,).

    Exact for normal values at any number of seeds, good for roughly symmetric ones. The default everywhere,
    as the bootstrap covers too little with few seeds. DataError below two seeds or for values that are not
    finite.
    """
    from scipy import special  # what scipy needs a third of a second for, no command line waits for

    values = _checked(values, confidence)
    n = len(values)
    if np.ptp(values) == 0:  # the computed mean of equal numbers may differ from them in the last bit
        mean, half = float(values[0]), 0.0
    else:
        mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(n)
        half = float(special.stdtrit(n - 1, (1 + confidence) / 2)) * error
    return Interval(mean, mean - half, mean + half, confidence, n, "t")


def bootstrap_interval(
    values: ArrayLike,
    *,
    statistic: Callable = np.mean,
    confidence: float = CONFIDENCE,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Bias-corrected accelerated bootstrap (Efron, JASA 82, 1987) for any ``statistic`` of the seeds.

    For statistics without a formula, such as a median, and 20 seeds or more: of nominal 95 % it covers 93 %
    with 20 normal values, 90 % with ten, 84 % with five. Equal values give an interval of width zero. Where
    BCa is undefined (a median under ties may ignore every single seed) percentiles of the same resamples are
    taken, and ``method`` tells.
    """
    values = _checked(values, confidence)
    estimate = float(statistic(values))
    if np.ptp(values) == 0:
        return Interval(estimate, estimate, estimate, confidence, len(values), "bootstrap, no spread")
    from scipy import stats

    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # SciPy's DegenerateDataWarning is one
        result = stats.bootstrap(
            (values,),
            statistic,
            n_resamples=num_resamples,
            confidence_level=confidence,
            method="BCa",
            random_state=np.random.default_rng(seed),  # SciPy 1.14 has no other name for it
        )
    ends, method = np.asarray(result.confidence_interval), "bootstrap BCa"
    if not np.isfinite(ends).all():
        tail = (1 - confidence) / 2
        ends, method = np.quantile(result.bootstrap_distribution, [tail, 1 - tail]), "bootstrap percentile"
    return Interval(estimate, float(ends[0]), float(ends[1]), confidence, len(values), method)


def proportion_interval(successes: int, trials: int, *, confidence: float = CONFIDENCE) -> Interval:
    """Exact interval (Clopper and Pearson, Biometrika 26, 1934) for the chance behind ``successes``.

    It covers at least the nominal level whatever the chance, at the price of width. Wilson's and other
    approximate ones fall below it for some (Brown, Cai and DasGupta, Statistical Science 16, 2001); a verdict
    must not.
    """
    from scipy import special

    successes, trials = int(successes), int(trials)
    if not 0 <= successes <= trials:
        raise ValueError(f"successes lie between 0 and trials = {trials}, got {successes}")
    _checked(np.zeros(trials), confidence, least=1)
    tail, failures = (1 - confidence) / 2, trials - successes
    low = float(special.betaincinv(successes, failures + 1, tail)) if successes else 0.0
    high = float(special.betaincinv(successes + 1, failures, 1 - tail)) if failures else 1.0
    return Interval(successes / trials, low, high, confidence, trials, "Clopper-Pearson")


def event_interval(happened: ArrayLike, *, confidence: float = CONFIDENCE) -> Interval:
    """`proportion_interval` of what ``happened`` (1) or not (0) in each seed; made for `judge`."""
    happened = _checked(happened, confidence, least=1)
    if not np.isin(happened, (0, 1)).all():
        raise ValueError(f"events are 0 or 1, got {np.setdiff1d(happened, (0, 1))[0]}: threshold the measure first")
    return proportion_interval(happened.sum(), len(happened), confidence=confidence)


def paired_difference(a: ArrayLike, b: ArrayLike, *, confidence: float = CONFIDENCE) -> Interval:
    """t interval for the mean of a - b, both (num_seeds,), where equal positions share a seed.

    What paired runs share (initialisation, data order) cancels. The p value that belongs to it is `p_value`
    of a - b.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"pairs need the same seeds in the same order, got shapes {a.shape} and {b.shape}")
    return dataclasses.replace(t_interval(a - b, confidence=confidence), method="paired t")


def trend(
    widths: ArrayLike, values: ArrayLike, *, log_values: bool = False, confidence: float = CONFIDENCE
) -> Interval:
    """Mean change of a measure per doubling of width, from ``values`` (num_seeds, num_widths): the t interval of `slopes`."""
    found = slopes(widths, values, log_values=log_values)
    return dataclasses.replace(t_interval(found, confidence=confidence), method="t over slopes")


def slopes(widths: ArrayLike, values: ArrayLike, *, log_values: bool = False) -> np.ndarray:
    """Each seed's change of a measure per doubling of width, (num_seeds,), from ``values`` (num_seeds, num_widths).

    A least-squares line over log2(width) is fitted to each seed, so the widths of one seed may depend on each other. With
    ``log_values`` the slope is that of log2(value), the exponent of a power law. A slope tells a direction; it does
    not show that the measure is monotone. DataError for values that are not finite, or not positive with ``log_values``.
    """
    widths, found = np.asarray(widths, np.float64), _checked(values, ndim=2)
    if widths.shape != found.shape[1:] or len(np.unique(widths)) < 2 or not (widths > 0).all():
        raise ValueError(
            "a trend needs two or more different positive widths, one per column of values: "
            f"got widths {widths.tolist()} and values of shape {found.shape}"
        )
    if log_values:
        if num_bad := np.count_nonzero(found.min(1) <= 0):
            raise DataError(f"{num_bad} of {len(found)} seeds hold values without a logarithm")
        found = np.log2(found)
    x = np.log2(widths)
    x -= x.mean()
    return (found - found.mean(1, keepdims=True)) @ x / (x @ x)


def p_value(
    values: ArrayLike,
    *,
    threshold: float = 0.0,
    alternative: Literal["two-sided", "greater", "less"] = "two-sided",
) -> float:
    """Student's p value against the mean of ``values`` being ``threshold``; paired for differences.

    Values without spread give 0 if they lie on the side of the alternative, else 1.
    """
    from scipy import special

    tests = {"two-sided": abs, "greater": lambda t: t, "less": lambda t: -t}
    if alternative not in tests:
        raise ValueError(f"alternative is one of {list(tests)}, got {alternative!r}")
    mean = t_interval(values)
    gap = tests[alternative](mean.estimate - threshold)
    if mean.low == mean.high:
        return float(gap <= 0)
    t = gap * math.sqrt(mean.num_seeds) / float(np.asarray(values, np.float64).std(ddof=1))
    return float(special.stdtr(mean.num_seeds - 1, -t)) * (2 if alternative == "two-sided" else 1)


def holm(p_values: ArrayLike) -> np.ndarray:
    """Adjust p values (num_tests,) for multiplicity, order kept (Holm, Scand. J. Statist. 6, 1979).

    Rejecting where the result is at most alpha keeps the chance of any false rejection at alpha, however the
    tests depend on each other. Never weaker than Bonferroni.
    """
    p = np.asarray(p_values, np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p values are a list of numbers between 0 and 1, got {p.tolist()}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return adjusted


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
    alpha interval inside the margin, 90 % for alpha = 5 %. Here the 95 % interval has to be, so alpha is 2.5
    %.
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
    """What is tested: ``source`` is where the paper says it, ``paper_value`` what it found, None if it did not test it.

    ``belief``: what theory or folklore says about it, a short sentence with its source.
    """

    id: str
    statement: str
    source: str
    measure: str
    rule: Rule
    paper_value: str | float | None = None
    belief: str = dataclasses.field(default="", kw_only=True)


@dataclass(frozen=True)
class Case:
    """A setting (data set, model, ...) of a claim; where ``interval`` is None, ``note`` says why."""

    case: str
    interval: Interval | None
    num_seeds: int
    verdict: Outcome
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """The outcome for a claim over all ``cases``, with the interval of the least favourable, if any."""

    claim: Claim
    interval: Interval | None
    num_seeds: int
    verdict: Outcome
    cases: tuple[Case, ...]
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


def _result_to_json(result: Case | Verdict) -> dict:
    found = result.interval
    estimate, *ends = [None] * 3 if found is None else map(float, (found.estimate, found.low, found.high))
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
    """Decide a claim that is meant to hold in every case, from values whose first axis is over seeds.

    ``interval_fn(values, confidence=...)`` makes one case's Interval: `t_interval`, `event_interval`,
    `bootstrap_interval`, or a lambda around `trend`. For a paired comparison pass differences. The claim is

    - *supported* if every case is, at 95 %. An intersection-union test needs no correction (Berger and Hsu,
      Statistical Science 11, 1996): to err, the very case that fails must pass for a success.
    - *contradicted* if some case is, at the level 1 - 0.05 / num_cases, since among many cases one strays by
      chance. This is Bonferroni; as Holm's first step is the same, it would not find a failure more often.
    - *undecided* otherwise. A case without interval (DataError; the message becomes its note) stands in the
      way of *supported* and counts in num_cases: seeds that diverged are neither dropped nor guessed.

    Each case keeps its own 95 % interval and verdict. The whole takes the interval of the least favourable
    case among those that made the verdict what it is.
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


def _worst(cases: Iterable[Case], badness_fn: Callable[[Interval], float]) -> Case | None:
    """The case of greatest badness, the first of equals, among those with an interval."""
    found = [(case, badness_fn(case.interval)) for case in cases if case.interval]
    return max(found, key=lambda pair: pair[1], default=(None, 0.0))[0]


def _judge_cases(rule: Rule, values_by_case: Mapping[str, ArrayLike], interval_fn: IntervalFn) -> tuple[Case, ...]:
    cases = []
    for name, values in values_by_case.items():
        num_seeds = len(np.atleast_1d(np.asarray(values)))
        try:
            interval = interval_fn(values, confidence=CONFIDENCE)
        except DataError as error:
            cases.append(Case(name, None, num_seeds, "undecided", str(error)))
        else:
            cases.append(Case(name, interval, num_seeds, rule.decide(interval)))
    return tuple(cases)


def write_verdicts(path: str | os.PathLike, verdicts: Iterable[Verdict]) -> None:
    """Write verdicts.json: strict JSON (no NaN), in one step, so that nobody ever reads half a file."""
    entries = [verdict.to_json() for verdict in verdicts]
    ids = [entry["id"] for entry in entries]
    if len(set(ids)) < len(ids):
        raise ValueError(f"claim ids must differ within a file, got {ids}")
    text = json.dumps(entries, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, (text + "\n").encode())


def read_verdicts(path: str | os.PathLike) -> list[Verdict]:
    """Read what `write_verdicts` wrote, rules included; only the ``method`` of each interval is not kept.

    Entries without ``belief``, which older versions wrote, read as "".
    """
    verdicts = []
    for entry in json.loads(Path(path).read_text("utf-8")):
        rule = _rule_from_text(entry["holds_if"], entry["measure"])
        fields = {key: entry[key] for key in ("id", "statement", "source", "measure", "paper_value")}
        claim = Claim(**fields, rule=rule, belief=entry.get("belief", ""))
        cases = tuple(Case(case["case"], **_result_from_json(case)) for case in entry["cases"])
        verdicts.append(Verdict(claim, cases=cases, **_result_from_json(entry)))
    return verdicts


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Put ``data`` at ``path`` whole or not at all: a file beside it, flushed to disk, then renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # mkstemp's would stay private to the user
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name, too
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)
