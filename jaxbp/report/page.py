"""The page: one file without script that opens without a network.

Its order is verdicts, then a section a study. A Content-Security-Policy in the page itself forbids every request, so that none leaves
even if something had got past the escaping.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxbp import claims
from jaxbp.report import citation, outcomes, rendering, reproduce
from jaxbp.report.blocks import Section
from jaxbp.report.text import plural
from jaxbp.runtime import files

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True)
class StudySection:
    """A study on a page.

    Attributes:
      id: such as "S2": links name the study by it. No white space.
      title, lead: its heading and the paragraph under it.
      verdicts: of its claims, in order.
      sections: figures, tables beside the paper's, method.
      settings: what the run's config.json holds, which may nest.
      command: what to type to reproduce it.
      controls: what came out of the study's controls.
      paper: the paper that the study tests.
      data: what the study's data are and where they lie, seen from the page.
    """

    id: str
    title: str
    lead: str
    verdicts: Sequence[claims.Verdict]
    sections: Sequence[Section] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    controls: Sequence[claims.ControlVerdict] = ()
    paper: citation.Publication | None = None
    data: Mapping[str, str] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        """Preset, seeds, date and commits of the run, as far as they are known."""
        settings = self.settings.get("settings", {})
        starts = self.settings.get("starts") or [self.settings]
        parts = [f"Preset {settings['preset']}"] if "preset" in settings else []
        parts += [plural(settings["num_seeds"], "seed")] if "num_seeds" in settings else []
        parts += [str(self.settings["started"])[:10]] if "started" in self.settings else []
        commits = list(dict.fromkeys(str(start["git_commit"]) for start in starts if start.get("git_commit")))
        parts += [f"{'commit' if len(commits) == 1 else 'commits'} {', '.join(commits)}"] if commits else []
        return ", ".join(parts)

    @property
    def is_smoke(self) -> bool:
        """Whether the run only shows that everything works."""
        return self.settings.get("settings", {}).get("preset") == "smoke"

    def anchored_sections(self) -> list[tuple[str, Section]]:
        """The sections and what links to them name."""
        return [(f"{self.id}-{number}", section) for number, section in enumerate(self.sections, 1)]

    @property
    def is_reproducible(self) -> bool:
        """Whether there is anything to tell about how to reproduce the run."""
        return bool(self.command or self.settings)

    def anchors(self) -> dict[str, str]:
        """The anchors within the study and the headings that they lead to."""
        headings = {anchor: section.title for anchor, section in self.anchored_sections()}
        return headings | ({f"{self.id}-reproduce": "How to reproduce"} if self.is_reproducible else {})

    def recipe(self) -> reproduce.Recipe:
        """How to reproduce the run."""
        return reproduce.recipe(self.settings, self.command)

    def methods(self) -> str:
        """A paragraph on the study's methods, for a paper."""
        return citation.methods(self.title, self.settings, self.verdicts, self.controls)

    def bibtex(self) -> str:
        """The entries of a BibTeX file: the software, and the paper that the study tests."""
        return "\n\n".join([citation.software_bibtex(self.settings), *([self.paper.bibtex()] if self.paper else [])])


def write_page(path: str | os.PathLike, *, title: str, lead: str, studies: Sequence[StudySection]) -> None:
    """Write a page with the verdicts of all ``studies`` first, each claim to be linked to by its id, then a section a study.

    One study makes a page whose ``title`` and ``lead`` stand for those of the study; several make the page of the whole laboratory.
    Writes to ``path`` at once or not at all.

    Raises:
      ValueError: ids of studies and claims differ too little, or hold white space.
    """
    studies = list(studies)
    _check_ids(studies)
    single = studies[0] if len(studies) == 1 else None
    verdicts = [verdict for study in studies for verdict in study.verdicts]
    anchors = {"verdicts": "Verdicts"} if verdicts else {}
    anchors |= single.anchors() if single else {study.id: f"{study.id} {study.title}" for study in studies}
    text = rendering.render_page(
        policy=POLICY,
        title=title,
        lead=lead,
        explanation=outcomes.explanation(fixed=not any(study.settings.get("rules_changed") for study in studies)),
        verdicts=verdicts,
        studies=studies,
        single=single,
        page_anchors=anchors,
    )
    files.write_atomically(path, text.encode("utf-8", "replace"))


def _check_ids(studies: Sequence[StudySection]) -> None:
    ids = ["content", "verdicts"]
    for study in studies:
        ids += [study.id, *study.anchors(), *(verdict.claim.id for verdict in study.verdicts)]
    if bad := [name for name in ids if not re.fullmatch(r"\S+", name)]:
        raise ValueError(f"ids of studies and claims name places of a page, so they hold no white space, got {bad}")
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise ValueError(f"ids of studies and claims must differ within a page, and from the page's own, got {twice} twice")
