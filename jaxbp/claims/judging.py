"""From values over seeds to the verdict of one claim, at a fixed number of seeds or look by look."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike

from jaxbp import stats
from jaxbp.claims.claim import Claim
from jaxbp.claims.rules import Decision, Rule
from jaxbp.claims.verdicts import CaseVerdict, Outcome, Power, Verdict, count_outcomes
from jaxbp.stats import CONFIDENCE, Interval, IntervalFn, Looks, SampleError, t_interval

_HOPELESS = 0.05  # the chance of a decision under which a case counts as on the line


@dataclass(frozen=True)
class _Look:
    """One look at a case: ``note`` tells why there is no interval."""

    number: int | None
    num_seeds: int
    error: float
    interval: Interval | None
    note: str = ""


@dataclass(frozen=True)
class _Evidence:
    """What the looks at a case have shown.

    Attributes:
      last: the last look.
      cleared: the first look that supports the case by itself.
      decided: the first look that decides it at the level that all cases share.
      decision: what that look decides.
      suspect: whether the last look contradicts the case by itself.
    """

    last: _Look
    cleared: _Look | None
    decided: _Look | None
    decision: Decision
    suspect: bool


def judge(
    claim: Claim,
    values_by_case: Mapping[str, ArrayLike],
    *,
    interval_fn: IntervalFn = t_interval,
    looks: Looks | None = None,
    untested: Mapping[str, str] = MappingProxyType({}),
    seeds: Sequence[int] = (),
) -> Verdict:
    """Decide a claim that should hold in every case, from values whose first axis is over seeds.

    ``interval_fn(values, confidence=...)`` returns one case's Interval: `t_interval`, `event_interval`,
    `bootstrap_interval`, or a lambda around `trend`. For a paired comparison pass differences. The claim is

    - *supported* if every tested case is, at 95 %. An intersection-union test needs no correction (Berger and Hsu, Statistical
      Science 11, 1996): for an error, the failing case itself must pass. Where a premise has left cases out, the cases that
      are left were chosen by the data, and each must pass at the corrected level.
    - Otherwise each case is judged at the level 1 - 0.05 / num_cases on either side (Bonferroni), because one of many cases may deviate
      by chance: the claim is *contradicted* if some case is and none is supported, *mixed* if some cases are each.
    - *not tested* if no case is left, and *undecided* otherwise. A case without interval (SampleError; the message becomes its note)
      prevents *supported* and counts in num_cases: seeds that diverged are neither dropped nor guessed.

    With ``looks`` the first n_k values are judged at each look with its own error in the place of 0.05; a case keeps the first
    decision, and the interval of that look. A case that no look has decided is on the line where the last look is not likely to.

    The verdict reports the interval of its least favourable deciding case.

    Args:
      claim: the claim.
      values_by_case: (S, ...) for each case. With ``looks``, a seed's value must not depend on other seeds.
      interval_fn: how seeds make an interval.
      looks: the schedule, fixed before the first seed; None judges all values at once.
      untested: why a case is not tested, by its name.
      seeds: the seeds of a run, which are noted beside the values of each case that has a number for each of them.
    """
    values_by_case = {str(name): values for name, values in values_by_case.items()}
    if not values_by_case:
        return Verdict(claim, None, 0, "undecided", (), "No case was run.", looks=looks)
    num_cases, rule = len(values_by_case), claim.rule
    tested = {name: values for name, values in values_by_case.items() if name not in untested}
    evidence = {name: _gather(_known(values), claim, interval_fn, looks, num_cases) for name, values in tested.items()}
    strict = len(tested) < num_cases
    passes = bool(tested) and not strict and all(known.cleared for known in evidence.values())
    judged = [
        _case(name, evidence[name], rule, looks, num_cases, passes=passes)
        if name in evidence
        else CaseVerdict(name, None, len(np.atleast_1d(values)), "not tested", untested[name])
        for name, values in values_by_case.items()
    ]
    cases = tuple(dataclasses.replace(case, by_seed=_by_seed(values_by_case[case.case], seeds)) for case in judged)
    outcome = _outcome(cases)
    worst = _least_favourable(cases, rule, outcome)
    suspects = [name for name, known in evidence.items() if known.suspect and known.decision != "contradicted"]
    shown = (worst.interval, worst.num_seeds) if worst else (None, max(case.num_seeds for case in cases))
    return Verdict(
        claim,
        *shown,
        outcome,
        cases,
        " ".join(_notes(cases, worst, suspects)),
        summary=_summary(cases, interval_fn),
        power=_power(claim, tested, interval_fn, evidence, strict=strict, num_cases=num_cases),
        looks=looks,
    )


def _gather(values: np.ndarray, claim: Claim, interval_fn: IntervalFn, looks: Looks | None, num_cases: int) -> _Evidence:
    cleared = decided = None
    decision: Decision = "undecided"
    suspect = False
    for number, num_seeds, error in _schedule(len(np.atleast_1d(values)), looks):
        part = values[:num_seeds] if values.ndim else values
        last = _look(part, claim, interval_fn, number, num_seeds, error)
        if last.interval is None:
            continue
        outcome = claim.rule.decide(last.interval)
        suspect = outcome == "contradicted"
        if outcome == "supported" and cleared is None:
            cleared = last
        if outcome != "undecided" and decided is None:
            strict = interval_fn(part, confidence=1 - error / num_cases)
            if (decision := claim.rule.decide(strict)) != "undecided":
                decided = last
        if decided is not None:
            break
    return _Evidence(last, cleared, decided, decision, suspect)


def _schedule(num_seeds: int, looks: Looks | None) -> Sequence[tuple[int | None, int, float]]:
    """Number, seeds and error of each look at so many seeds."""
    if looks is None:
        return [(None, num_seeds, 1 - CONFIDENCE)]
    made = [(look, size, looks.error_at(look)) for look, size in enumerate(looks.sizes) if size <= num_seeds]
    return made or [(0, num_seeds, looks.error_at(0))]  # seeds that are missing make no interval narrower than the first look's


def _look(values: np.ndarray, claim: Claim, interval_fn: IntervalFn, number: int | None, num_seeds: int, error: float) -> _Look:
    try:
        return _Look(number, num_seeds, error, interval_fn(values, confidence=1 - error))
    except SampleError as problem:
        return _Look(number, num_seeds, error, None, _seeds_without(values, claim) or str(problem))


def _seeds_without(values: np.ndarray, claim: Claim) -> str:
    """How many seeds have no value, and why, for readers of verdicts; "" if all have one."""
    has = np.isfinite(np.atleast_1d(stats.numbers(values)))
    missing = int((~has.reshape(len(has), -1).all(1)).sum()) if has.size else 0
    why = f": {claim.no_value}" if claim.no_value else ""
    return f"{missing} of {len(has)} seeds {'has' if missing == 1 else 'have'} no value{why}" if missing else ""


def _case(name: str, known: _Evidence, rule: Rule, looks: Looks | None, num_cases: int, *, passes: bool) -> CaseVerdict:
    look = known.cleared if passes else known.decided
    if look is not None:
        outcome: Outcome = "supported" if passes else known.decision
        level = 1 - look.error if passes else 1 - look.error / num_cases
        return CaseVerdict(name, look.interval, look.num_seeds, outcome, confidence=level, look=look.number)
    last = known.last
    within = _within(last.interval, rule, looks) if looks and last.interval else None
    level = 1 - last.error / num_cases
    return CaseVerdict(name, last.interval, last.num_seeds, "undecided", last.note, level, last.number, within)


def _within(interval: Interval, rule: Rule, looks: Looks) -> float | None:
    """How far the interval reaches from the nearest limit, if the looks to come are not likely to decide."""
    limits = tuple(end for end in rule.region if np.isfinite(end))
    if rule.decide(interval) != "undecided":  # decided by itself, and short of the level that all cases share
        return None
    if interval.num_seeds < looks.most and stats.chance_of_deciding(interval, limits, looks) >= _HOPELESS:
        return None
    nearest = min(limits, key=lambda limit: abs(interval.estimate - limit))
    return max(interval.high - nearest, nearest - interval.low)


def _outcome(cases: Sequence[CaseVerdict]) -> Outcome:
    counts = count_outcomes(case.verdict for case in cases)
    if counts.keys() == {"not tested"}:
        return "not tested"
    if "contradicted" in counts:
        return "mixed" if "supported" in counts else "contradicted"
    return "undecided" if "undecided" in counts else "supported"


def _least_favourable(cases: Sequence[CaseVerdict], rule: Rule, outcome: Outcome) -> CaseVerdict | None:
    if outcome in ("contradicted", "mixed"):
        return _worst((case for case in cases if case.verdict == "contradicted"), rule.distance)
    known = [case for case in cases if case.interval]
    return _worst([case for case in known if case.verdict != "supported"] or known, lambda interval: -rule.slack(interval))


def _worst(cases: Iterable[CaseVerdict], badness_fn: Callable[[Interval], float]) -> CaseVerdict | None:
    """The case of greatest badness among those with an interval; the first of equal cases."""
    ranked = [(case, badness_fn(case.interval)) for case in cases if case.interval]
    return max(ranked, key=lambda pair: pair[1], default=(None, 0.0))[0]


def _notes(cases: Sequence[CaseVerdict], worst: CaseVerdict | None, suspects: Sequence[str]) -> list[str]:
    by_note: dict[str, list[str]] = {}
    for case in cases:
        by_note.setdefault(case.note, []).append(case.case)
    notes = [f"{'; '.join(names)}: {note}." for note, names in by_note.items() if note]
    if len(cases) > 1 and worst:
        notes.insert(0, f"Shown is the least favourable of {len(cases)} cases, {worst.case}.")
    if suspects:
        level = {case.case: case.confidence for case in cases}[suspects[0]]
        notes.append(f"Not contradicted at the {100 * level:.4g} % that {len(cases)} cases need: {', '.join(suspects)}.")
    on_the_line = [case for case in cases if case.within is not None]
    notes += [f"{case.case}: on the line, within {case.within:.3g} of the limit." for case in on_the_line]
    return notes


def _summary(cases: Sequence[CaseVerdict], interval_fn: IntervalFn) -> stats.RandomEffects | None:
    intervals = [case.interval for case in cases if case.interval]
    if len(intervals) < 2:
        return None
    is_share = _plain(interval_fn) is stats.event_interval
    return stats.random_effects_of_shares(intervals) if is_share else stats.random_effects(intervals)


def _plain(interval_fn: IntervalFn) -> IntervalFn:
    """The function behind one whose keyword arguments are set."""
    return interval_fn.func if isinstance(interval_fn, partial) else interval_fn


def _by_seed(values: ArrayLike, seeds: Sequence[int]) -> tuple[tuple[int, float | None], ...]:
    if np.shape(values) != (len(seeds),):
        return ()
    return tuple(
        (int(seed), float(value) if np.isfinite(value) else None) for seed, value in zip(seeds, stats.numbers(values), strict=True)
    )


def _known(values: ArrayLike) -> np.ndarray:
    try:
        return np.asarray(values)
    except TypeError as error:
        raise ValueError(f"values must be numbers that are known, got {type(values).__name__}") from error


def _power(
    claim: Claim,
    values_by_case: Mapping[str, ArrayLike],
    interval_fn: IntervalFn,
    evidence: Mapping[str, _Evidence],
    *,
    strict: bool,
    num_cases: int,
) -> Power | None:
    """The chance of *supported* with the seeds of the last look at every tested case."""
    fns = [_chance_fn(claim, stats.numbers(values), interval_fn) for values in values_by_case.values()]
    if claim.smallest_effect is None or not fns or any(fn is None for fn in fns):
        return None
    errors = [known.last.error / (num_cases if strict else 1) for known in evidence.values()]

    def joint(num_seeds: int) -> float:
        chances = [fn(num_seeds, confidence=1 - error) for fn, error in zip(fns, errors, strict=True) if fn]
        return float(np.prod(chances))

    num_seeds = min(known.last.num_seeds for known in evidence.values())
    return Power(float(claim.smallest_effect), joint(num_seeds), stats.seeds_needed(joint))


def _chance_fn(claim: Claim, values: np.ndarray, interval_fn: IntervalFn) -> Callable[..., float] | None:
    """From a number of seeds and a confidence to the chance of *supported*; None where there is no formula."""
    if claim.smallest_effect is None or values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        return None
    given = interval_fn.keywords if isinstance(interval_fn, partial) else {}
    plain = _plain(interval_fn)
    truth = claim.rule.inside(claim.smallest_effect)

    def of_share(num_seeds: int, confidence: float) -> float:
        return stats.event_chance_inside(claim.rule.region, truth=truth, num_seeds=num_seeds, confidence=confidence)

    def of_mean(num_seeds: int, confidence: float) -> float:
        return stats.chance_inside(claim.rule.region, truth=truth, spread=spread, num_seeds=num_seeds, confidence=confidence)

    spread = max(float(values.std(ddof=1)), given.get("resolution", 0.0) / 12**0.5)
    if plain is stats.event_interval:
        return of_share
    return of_mean if plain in (stats.t_interval, stats.mean_interval) else None
