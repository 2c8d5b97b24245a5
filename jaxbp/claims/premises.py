"""Claims that presuppose others: judged in order, and only in the cases in which what they presuppose is supported."""

from collections.abc import Iterable, Mapping, Sequence

from numpy.typing import ArrayLike

from jaxbp.claims.claim import Claim, Premise
from jaxbp.claims.judging import judge
from jaxbp.claims.verdicts import CaseVerdict, Verdict
from jaxbp.stats import IntervalFn, Looks, t_interval

_PART = ": "  # between a case and a part of the case, as `jaxbp.lab.Measure` names them


def judge_all(
    measurements: Mapping[Claim, Mapping[str, ArrayLike]],
    *,
    interval_fns: Mapping[Claim, IntervalFn] | None = None,
    looks: Looks | None = None,
    seeds: Sequence[int] = (),
) -> list[Verdict]:
    """Judge claims, premises before what presupposes them; returns the verdicts in the order of ``measurements``.

    The other arguments are those of `jaxbp.claims.judge`.

    >>> from jaxbp import claims
    >>> helps = claims.Claim("S2.a", "Weight decay helps.", "Table 2", "gain", claims.Above(0.0))
    >>> better = claims.Claim("S2.b", "Norm-bias helps more.", "Table 2", "gain", claims.Above(0.0), premise="S2.a")
    >>> gains = {"mlp": [-0.1, 0.1, 0.0, 0.2], "resnet": [1.1, 0.9, 1.0, 1.2]}
    >>> [verdict.headline for verdict in claims.judge_all({helps: gains, better: gains})]
    ['undecided: supported in 1 of 2 cases, undecided in 1', 'supported: supported in 1 of 2 cases, not tested in 1']

    Raises:
      ValueError: a premise is none of the claims, or claims presuppose each other.
    """
    by_id: dict[str, Verdict] = {}
    for claim in in_order(measurements):
        values = measurements[claim]
        reasons = {case: reason for case in map(str, values) if (reason := why_untested(claim, case, by_id))}
        interval_fn = (interval_fns or {}).get(claim, t_interval)
        by_id[claim.id] = judge(claim, values, interval_fn=interval_fn, looks=looks, untested=reasons, seeds=seeds)
    return [by_id[claim.id] for claim in measurements]


def in_order(claims: Iterable[Claim]) -> list[Claim]:
    """The claims, each after its premises.

    Raises:
      ValueError: a premise is none of the claims, or claims presuppose each other.
    """
    waiting, done = {claim.id: claim for claim in claims}, dict[str, Claim]()
    known = set(waiting)
    for claim in waiting.values():
        if unknown := [premise.claim for premise in claim.premises if premise.claim not in known]:
            raise ValueError(f"{claim.id} presupposes {', '.join(unknown)}, which is not among the claims {', '.join(sorted(known))}")
    while waiting:
        ready = [claim for claim in waiting.values() if all(premise.claim in done for premise in claim.premises)]
        if not ready:
            raise ValueError(f"the claims {', '.join(waiting)} presuppose each other: a premise must stand by itself")
        done |= {claim.id: waiting.pop(claim.id) for claim in ready}
    return list(done.values())


def why_untested(claim: Claim, case: str, verdicts: Mapping[str, Verdict]) -> str:
    """The premise that is not supported in a case, in words; "" if all are."""
    for premise in claim.premises:
        outcomes = _premise_cases(premise, case, verdicts[premise.claim].cases)
        if not outcomes:
            return f"the premise {premise.claim} was not judged here"
        for outcome in outcomes:
            if outcome.verdict != "supported":
                return f"the premise {premise.claim} is {outcome.verdict} in {outcome.case}"
    return ""


def _premise_cases(premise: Premise, case: str, cases: Sequence[CaseVerdict]) -> list[CaseVerdict]:
    by_name = {verdict.case: verdict for verdict in cases}
    if premise.case_of is not None:
        name = premise.case_of(case)
        return [by_name[name]] if name in by_name else []
    if case in by_name:
        return [by_name[case]]
    wholes = [name for name in by_name if case.startswith(name + _PART)]
    if wholes:
        return [by_name[max(wholes, key=len)]]
    return [verdict for name, verdict in by_name.items() if name.startswith(case + _PART)]
