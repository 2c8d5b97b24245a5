"""What of a study goes into a paper: a paragraph on its methods, and entries for a BibTeX file.

Both are written from what the run knows of itself: settings, seeds, rules, packages, commit. Neither says more than that.

>>> paper = Publication("doe2020", "A title", ("Jane Doe", "Max Mustermann"), 2020, venue="ICLR", arxiv="1234.56789")
>>> print(paper.bibtex())
@inproceedings{doe2020,
  title = {{A title}},
  author = {Jane Doe and Max Mustermann},
  booktitle = {ICLR},
  year = {2020},
  url = {https://arxiv.org/abs/1234.56789},
}
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxbp import claims
from jaxbp.report.text import plural

SOFTWARE_TITLE, SOFTWARE_AUTHORS = "jaxbp", "The jaxbp authors"  # as CITATION.cff has them


@dataclass(frozen=True)
class Publication:
    """The paper that a study tests.

    Attributes:
      key: of the BibTeX entry.
      title: the title.
      authors: given and family name of each, in order.
      year: of the venue.
      venue: the conference with its volume and pages, where there are any.
      arxiv: the number of the preprint, such as "1910.00359"; "" if there is none.
    """

    key: str
    title: str
    authors: tuple[str, ...]
    year: int
    venue: str
    arxiv: str = ""

    def bibtex(self) -> str:
        """The BibTeX entry."""
        fields = {"title": f"{{{self.title}}}", "author": " and ".join(self.authors), "booktitle": self.venue, "year": self.year}
        return _entry("inproceedings", self.key, fields | ({"url": f"https://arxiv.org/abs/{self.arxiv}"} if self.arxiv else {}))


def software_bibtex(config: Mapping[str, Any]) -> str:
    """The BibTeX entry of this package at the version, commit and year of a run, as far as its config.json tells them."""
    fields = {"title": f"{{{SOFTWARE_TITLE}}}", "author": f"{{{SOFTWARE_AUTHORS}}}"}
    fields |= {"version": version} if (version := (config.get("packages") or {}).get("jaxbp")) else {}
    fields |= {"year": str(config["started"])[:4]} if config.get("started") else {}
    fields |= {"note": f"Commit {config['git_commit']}"} if config.get("git_commit") else {}
    return _entry("software", "jaxbp", fields)


def _entry(kind: str, key: str, fields: Mapping[str, Any]) -> str:
    return "\n".join([f"@{kind}{{{key},", *(f"  {name} = {{{value}}}," for name, value in fields.items()), "}"])


def methods(
    title: str, config: Mapping[str, Any], verdicts: Sequence[claims.Verdict], controls: Sequence[claims.ControlVerdict] = ()
) -> str:
    """The paragraph on methods: what was run, on how many seeds, by which rules, with which software."""
    settings = config.get("settings") or {}
    sentences = [_what_was_run(title, config), _cases(settings), _rules(verdicts, config), _controls(controls), _software(config)]
    return " ".join(filter(None, sentences))


def _what_was_run(title: str, config: Mapping[str, Any]) -> str:
    settings, packages = config.get("settings") or {}, config.get("packages") or {}
    commit = f" (commit {config['git_commit']})" if config.get("git_commit") else ""
    preset = f", preset {settings['preset']}" if settings.get("preset") else ""
    return f'We ran the study "{title}" of {" ".join(filter(None, ("jaxbp", packages.get("jaxbp"))))}{commit}{preset}{_seeds(settings)}.'


def _seeds(settings: Mapping[str, Any]) -> str:
    if isinstance(settings.get("num_seeds"), int):
        return f", on {plural(settings['num_seeds'], 'seed')}"
    if isinstance(looks := settings.get("looks"), Mapping):
        names = {"first": "first", "factor": "factor", "most": "last"}
        told = ", ".join(f"{word} {looks[name]}" for name, word in names.items() if name in looks)
        return f", with seeds added at looks until every claim was decided ({told})"
    return ""


def _cases(settings: Mapping[str, Any]) -> str:
    """The networks and data of the cases, and the numbers that all of them share."""
    cases = [case for case in settings.get("cases") or () if isinstance(case, Mapping)]
    names = [", ".join(str(case[name]) for name in ("dataset", "model", "kind") if case.get(name)) for case in cases]
    shared = [f"{name.replace('_', ' ')} {value}" for name, value in settings.items() if name != "num_seeds" and _is_number(value)]
    listed = "; ".join(dict.fromkeys(filter(None, names)))
    told = [f"{plural(len(cases), 'case')}{f' ({listed})' if listed else ''}"] if cases else []
    told += [f"settings of all cases: {', '.join(shared)}"] if shared else []
    return f"There {'was' if len(cases) == 1 else 'were'} {'; '.join(told)}." if cases else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _rules(verdicts: Sequence[claims.Verdict], config: Mapping[str, Any]) -> str:
    if not verdicts:
        return ""
    texts = {verdict.claim.id: verdict.claim.rule.text(verdict.claim.measure) for verdict in verdicts}
    holds = " ".join(f"{name} holds in a case if {text}." for name, text in texts.items())
    first = config.get("rules") or {}
    later = [*(name for name, text in texts.items() if first.get(name, text) != text), *(config.get("rules_changed") or ())]
    changed = ", ".join(dict.fromkeys(later))
    but = f", but for {changed}, changed or added since" if changed else ""
    fixed = f"Each claim was judged by a rule written down before the first seed{but}."
    computed = [case.interval.method for verdict in verdicts for case in verdict.cases if case.interval]
    intervals = f" Kind of the intervals over seeds: {', '.join(dict.fromkeys(computed))}." if computed else ""
    return (
        f"{fixed} {holds} A case is contradicted if the whole interval lies outside that region, else undecided. A claim is supported if "
        "every case that tests it is, contradicted if some case is and none is supported, mixed if some cases are each. Where not all "
        f"cases are supported, each is judged at the level 1 - 0.05 / number of cases.{intervals}"
    )


def _controls(controls: Sequence[claims.ControlVerdict]) -> str:
    if not controls:
        return ""
    passed = sum(control.passed for control in controls)
    return f"Of {plural(len(controls), 'control')} with a known answer {passed} passed."


def _software(config: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in (config.get("packages") or {}).items() if name != "jaxbp")
    parts = [f"Python {config['python']}"] if config.get("python") else []
    parts += [packages] if packages else []
    return f"Software: {', '.join(parts)}." if parts else ""
