"""verdicts.json: written whole or not at all, and refused where a verdict and the numbers beside it disagree.

The file is a list. An entry of a claim has the keys of `entry_of`; an entry of a control has ``kind`` ("positive control", "negative
control"), ``passed``, ``reason`` and ``hangs_on_it`` (the ids of claims, none for all) besides. ``ci95`` are the ends of a 95 %
interval; a verdict by looks has ``ci`` and ``confidence`` in its place, with ``look`` and ``schedule``. A case's ``judged_at`` is the
confidence at which its outcome was judged, ``by_seed`` the measure's value for each seed (null: not finite). Entries of older versions lack
what was added later.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from jaxbp.claims.claim import Claim
from jaxbp.claims.controls import Control, ControlVerdict
from jaxbp.claims.rules import Rule, rule_from_text
from jaxbp.claims.verdicts import CaseVerdict, Outcome, Power, Verdict
from jaxbp.runtime.files import write_atomically
from jaxbp.runtime.outside_text import plain_text
from jaxbp.stats import CONFIDENCE, Interval, Looks, RandomEffects, SampleError

_SPENDING = "geometric: look k has error x 2^-(k+1)"


class VerdictFileError(ValueError):
    """The file holds no verdicts, or verdicts that the numbers beside them contradict."""


def write_verdicts(path: str | os.PathLike, verdicts: Iterable[Verdict], controls: Iterable[ControlVerdict] = ()) -> None:
    """Write verdicts.json, controls first: strict JSON (no NaN), in one step, so that no reader sees half a file."""
    entries = [_control_entry(control) for control in controls] + [entry_of(verdict) for verdict in verdicts]
    ids = [entry["id"] for entry in entries]
    if len(set(ids)) < len(ids):
        raise ValueError(f"claim ids must differ within a file, got {ids}")
    text = json.dumps(entries, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, (text + "\n").encode())


def entry_of(verdict: Verdict) -> dict[str, Any]:
    """A verdict's entry; without an interval, ``estimate`` and both ends of the interval are None."""
    claim = verdict.claim
    return {
        "id": claim.id,
        "statement": claim.statement,
        "source": claim.source,
        "measure": claim.measure,
        "holds_if": claim.rule.text(claim.measure),
        **_result_entry(verdict.interval, verdict.num_seeds, verdict.verdict, verdict.note),
        "paper_value": claim.paper_value,
        "belief": claim.belief,
        "premises": [premise.claim for premise in claim.premises],
        "counts": verdict.counts,
        "over_cases": verdict.summary and _summary_entry(verdict.summary),
        "power": verdict.power and dataclasses.asdict(verdict.power),
        "schedule": verdict.looks and {**dataclasses.asdict(verdict.looks), "spending": _SPENDING},
        "look": verdict.look,
        "cases": [_case_entry(case) for case in verdict.cases],
    }


def _result_entry(interval: Interval | None, num_seeds: int, outcome: str, note: str) -> dict[str, Any]:
    ends: list[float | None] = [None, None] if interval is None else [float(interval.low), float(interval.high)]
    entry: dict[str, Any] = {"estimate": None if interval is None else float(interval.estimate)}
    entry |= {"ci95": ends} if interval is None or interval.confidence == CONFIDENCE else {"ci": ends, "confidence": interval.confidence}
    return entry | {"seeds": num_seeds, "verdict": outcome} | ({"note": note} if note else {})


def _case_entry(case: CaseVerdict) -> dict[str, Any]:
    entry = {"case": case.case, **_result_entry(case.interval, case.num_seeds, case.verdict, case.note), "judged_at": case.confidence}
    by_seed = {str(seed): value for seed, value in case.by_seed} or None
    more = {"look": case.look, "on_the_line_within": case.within, "by_seed": by_seed}
    return entry | {name: value for name, value in more.items() if value is not None}


def _summary_entry(summary: RandomEffects) -> dict[str, Any]:
    new = summary.prediction
    mean = {"estimate": summary.mean.estimate, "ci95": [summary.mean.low, summary.mean.high], "tau": summary.tau}
    return mean | {"new_case": [new.low, new.high] if new else None} | ({"scale": summary.scale} if summary.scale else {})


def _control_entry(result: ControlVerdict) -> dict[str, Any]:
    control = result.control
    kind = {"kind": f"{control.kind} control", "passed": result.passed, "reason": result.reason, "hangs_on_it": list(control.claims)}
    return kind | entry_of(result.verdict)


def read_verdicts(path: str | os.PathLike) -> list[Verdict]:
    """Read the claims that `write_verdicts` wrote, rules included; the ``method`` of each interval is not stored.

    Raises:
      VerdictFileError: an entry is malformed, or its verdict is not what its interval and rule say.
    """
    return [_verdict(entry) for entry in _entries(path) if "kind" not in entry]


def read_controls(path: str | os.PathLike) -> list[ControlVerdict]:
    """Read the controls that `write_verdicts` wrote.

    Raises:
      VerdictFileError: as `read_verdicts`.
    """
    return [_control(entry) for entry in _entries(path) if "kind" in entry]


def _entries(path: str | os.PathLike) -> list[dict[str, Any]]:
    try:
        entries = json.loads(Path(path).read_text("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise VerdictFileError(f"{path} is no JSON ({error})") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise VerdictFileError(f"{path} is no list of verdicts")
    return entries


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _take(entry: Mapping[str, Any], name: str, kind: type | tuple[type, ...], default: Any = ...) -> Any:
    """A field of an entry, of a type, without control characters."""
    value = entry.get(name, default)
    if value is ...:
        raise VerdictFileError(f"a verdict lacks {name!r}, it has {', '.join(entry)}")
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise VerdictFileError(f"{name!r} is of the wrong type: {value!r}")
    if isinstance(value, str) and plain_text(value, keep="\t\n") != value:
        raise VerdictFileError(f"{name!r} holds control characters, or marks that turn the direction of text: {value!r}")
    return value


_NUMBER: tuple[type, ...] = (int, float)
_OPTIONAL_NUMBER: tuple[type, ...] = (int, float, type(None))


def _verdict(entry: Mapping[str, Any]) -> Verdict:
    name = _take(entry, "id", str)
    try:
        claim = _claim(entry)
        cases = tuple(_case(case, claim.rule) for case in _take(entry, "cases", list))
        verdict = Verdict(claim, cases=cases, **_result(entry), **_more(entry))
        _check(verdict.verdict, verdict.interval, claim.rule, alone=len(cases) < 2)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise VerdictFileError(f"{name}: {error}") from error
    return verdict


def _claim(entry: Mapping[str, Any]) -> Claim:
    texts = {name: _take(entry, name, str) for name in ("id", "statement", "source", "measure")}
    rule = rule_from_text(_take(entry, "holds_if", str), texts["measure"])
    return Claim(
        **texts,
        rule=rule,
        paper_value=_take(entry, "paper_value", (str, int, float, type(None))),
        belief=_take(entry, "belief", str, ""),
        premise=tuple(_take(entry, "premises", list, [])),
        smallest_effect=(_take(entry, "power", (dict, type(None)), None) or {}).get("effect"),
    )


def _case(entry: Any, rule: Rule) -> CaseVerdict:
    if not isinstance(entry, dict):
        raise VerdictFileError(f"a case is a mapping, got {entry!r}")
    by_seed = _take(entry, "by_seed", dict, {})
    case = CaseVerdict(
        _take(entry, "case", str),
        **_result(entry),
        confidence=_take(entry, "judged_at", _NUMBER, CONFIDENCE),
        look=_take(entry, "look", (int, type(None)), None),
        within=_take(entry, "on_the_line_within", _OPTIONAL_NUMBER, None),
        by_seed=tuple((int(seed), _take(by_seed, seed, _OPTIONAL_NUMBER)) for seed in by_seed),
    )
    _check(case.verdict, case.interval, rule, alone=case.confidence == CONFIDENCE)
    return case


def _result(entry: Mapping[str, Any]) -> dict[str, Any]:
    outcome = _take(entry, "verdict", str)
    if outcome not in get_args(Outcome):
        raise VerdictFileError(f"a verdict is one of {', '.join(get_args(Outcome))}, got {outcome!r}")
    num_seeds = _take(entry, "seeds", int)
    if num_seeds < 0:
        raise VerdictFileError(f"seeds are counted from 0, got {num_seeds}")
    return {"interval": _interval(entry, num_seeds), "num_seeds": num_seeds, "verdict": outcome, "note": _take(entry, "note", str, "")}


def _interval(entry: Mapping[str, Any], num_seeds: int) -> Interval | None:
    estimate = _take(entry, "estimate", _OPTIONAL_NUMBER)
    if estimate is None:
        return None
    low, high = _take(entry, "ci" if "ci" in entry else "ci95", list)
    confidence = _take(entry, "confidence", _NUMBER, CONFIDENCE)
    if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high)):
        raise VerdictFileError(f"the ends of an interval are numbers, got {low!r} and {high!r}")
    try:
        return Interval(estimate, low, high, confidence, num_seeds, "as written")
    except SampleError as error:
        raise VerdictFileError(str(error)) from error


def _more(entry: Mapping[str, Any]) -> dict[str, Any]:
    schedule, power, over = (_take(entry, name, (dict, type(None)), None) for name in ("schedule", "power", "over_cases"))
    return {
        "looks": schedule and Looks(**{name: schedule[name] for name in ("first", "factor", "most", "error")}),
        "power": power and Power(**power),
        "summary": over and _summary(over, len(entry["cases"])),
    }


def _summary(entry: Mapping[str, Any], num_cases: int) -> RandomEffects:
    mean, ends = _take(entry, "estimate", _NUMBER), [_take(entry, "ci95", list), _take(entry, "new_case", (list, type(None)))]
    made = [Interval(mean, low, high, CONFIDENCE, num_cases, "as written") for low, high in filter(None, ends)]
    return RandomEffects(made[0], _take(entry, "tau", _NUMBER), made[1] if len(made) > 1 else None, _take(entry, "scale", str, ""))


def _check(outcome: Outcome, interval: Interval | None, rule: Rule, *, alone: bool) -> None:
    """Refuse an outcome that the interval and the rule contradict; undecided needs a look only where no correction was made."""
    wanted = {"supported": "supported", "contradicted": "contradicted", "mixed": "contradicted"}.get(outcome)
    said = "undecided" if interval is None else rule.decide(interval)
    if (wanted and said != wanted) or (outcome == "undecided" and alone and said != "undecided"):
        ends = "no interval" if interval is None else f"the interval [{interval.low:g}, {interval.high:g}]"
        raise VerdictFileError(f"the verdict is {outcome!r}, and {ends} with the rule {rule} says {said!r}")


def _control(entry: Mapping[str, Any]) -> ControlVerdict:
    kind = _take(entry, "kind", str).removesuffix(" control")
    plain = {name: value for name, value in entry.items() if name != "kind"}
    verdict = _verdict(plain)
    claim, hangs = verdict.claim, tuple(_take(entry, "hangs_on_it", list))
    try:
        control = Control(kind, claim.statement, claim.measure, claim.rule, claim.id, hangs, claim.smallest_effect)  # type: ignore[arg-type]
    except ValueError as error:
        raise VerdictFileError(f"{claim.id}: {error}") from error
    return ControlVerdict(control, verdict)
