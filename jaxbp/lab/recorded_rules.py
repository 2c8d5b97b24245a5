"""Rules of claims as config.json holds them from before the first job, and what was changed since."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxbp.claims import Claim
from jaxbp.lab.study import Study
from jaxbp.runtime import processes
from jaxbp.runtime.outside_text import plain_text
from jaxbp.runtime.store import Store, StoreError


class Rules(NamedTuple):
    """What was written down.

    Attributes:
      rules: the rule of each claim and control by id, in words.
      premises: the ids of what each claim presupposes, by id; None where they were not noted.
    """

    rules: Mapping[str, str]
    premises: Mapping[str, list[str]] | None


class Change(NamedTuple):
    """A claim or control whose rule is not the one that was written down, and what happened to the rule in a sentence."""

    claim: str
    sentence: str


def of(claims: Iterable[Claim]) -> Rules:
    """The rules of claims as they are now."""
    listed = list(claims)
    premises = {claim.id: [premise.claim for premise in claim.premises] for claim in listed if claim.premises}
    return Rules({claim.id: claim.rule.text(claim.measure) for claim in listed}, premises)


def of_study(study: Study) -> Rules:
    """The rules of a study's claims and controls as they are now."""
    controls = [control.named(name).claim for name, control in study.named_controls.items()]
    return of([*(measure.claim for measure in study.measures), *controls])


def read(config: Mapping[str, Any], folder: Path) -> Rules | None:
    """The rules in the config.json of a folder; None if it holds none.

    Raises:
      StoreError: what it holds are no rules.
    """
    rules, premises = config.get("rules"), config.get("premises")
    if rules is None:
        return None
    if not (isinstance(rules, dict) and _are_texts(rules)) or not (
        premises is None or (isinstance(premises, dict) and all(map(_are_texts, premises.values())))
    ):
        raise StoreError(f"{folder}/config.json is damaged: rules are texts by claim, got {rules!r} and {premises!r}: remove the entries")
    return Rules({plain_text(claim): plain_text(rule) for claim, rule in rules.items()}, premises)


def _are_texts(entry: Any) -> bool:
    listed = entry.values() if isinstance(entry, dict) else entry
    return isinstance(entry, dict | list) and all(isinstance(text, str) for text in listed)


def note(store: Store, present: Rules) -> list[Change]:
    """Write the rules into config.json before the first job; returns what was changed since an earlier start, and says so."""
    first = read(store.config, store.folder)
    if first is None:
        if processes.is_first():
            store.add_metadata(**present._asdict())
        return []
    changed = changes(first, present, "this run")
    for change in changed if processes.is_first() else ():
        print(change.sentence)
    return changed


def changes(then: Rules, now: Rules, run: str, *, subset: bool = False) -> list[Change]:
    """How the rules differ from those that were written down when ``run`` began; ``subset`` allows that rules are there no more."""
    since = f"after {run} had begun"
    told = [
        Change(claim, f"The rule of {claim} was changed {since}. Then: {then.rules[claim]}. Now: {rule}.")
        for claim, rule in now.rules.items()
        if then.rules.get(claim, rule) != rule
    ]
    told += [
        Change(claim, f"The rule of {claim} was added {since}: {rule}.") for claim, rule in now.rules.items() if claim not in then.rules
    ]
    gone = [] if subset else [claim for claim in then.rules if claim not in now.rules]
    told += [Change(claim, f"The rule of {claim} was dropped {since}: {then.rules[claim]}.") for claim in gone]
    for claim in now.rules if then.premises is not None and now.premises is not None else ():
        before, after = (", ".join(rules.premises.get(claim, [])) or "none" for rules in (then, now))  # type: ignore[union-attr]
        if claim in then.rules and before != after:
            told.append(Change(claim, f"The premises of {claim} were changed {since}. Then: {before}. Now: {after}."))
    return told
