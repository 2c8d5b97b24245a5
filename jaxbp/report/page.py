"""The page: one file without script that opens without a network.

Its order is verdicts, then a section a study. A Content-Security-Policy in the page itself forbids every request, so that none leaves
even if something had got past the escaping.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxbp import claims
from jaxbp.report import outcomes
from jaxbp.report.blocks import Section
from jaxbp.report.reproduce import reproduce
from jaxbp.report.text import escape, link, prose
from jaxbp.runtime import files

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>{title}</title><style>
{style}</style></head>
<body><a class="skip" href="#content">Skip to the content</a>"""


@dataclass(frozen=True)
class Part:
    """A study on a page.

    Attributes:
      id: such as "S2": links name the study by it. No white space.
      title, lead: its heading and the paragraph under it.
      verdicts: of its claims, in order.
      sections: figures, tables beside the paper's, method.
      settings: what the run's config.json holds, which may nest.
      command: what to type to reproduce it.
    """

    id: str
    title: str
    lead: str
    verdicts: Sequence[claims.Verdict]
    sections: Sequence[Section] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""

    def to_html(self, level: int) -> str:
        """Write sections, and how to reproduce them, with headings of ``level``."""
        written = [section.to_html(level, anchor) for anchor, section in self._anchored()]
        if self.command or self.settings:
            title, told = f"<h{level}>How to reproduce</h{level}>", reproduce(self.settings, self.command)
            written.append(f'<section id="{escape(self.id)}-reproduce">{title}{told}</section>')
        return "\n".join(written)

    def anchors(self) -> dict[str, str]:
        """The anchors within the part and what they lead to."""
        found = {anchor: section.title for anchor, section in self._anchored()}
        return found | ({f"{self.id}-reproduce": "How to reproduce"} if self.command or self.settings else {})

    def _anchored(self) -> list[tuple[str, Section]]:
        return [(f"{self.id}-{number}", section) for number, section in enumerate(self.sections, 1)]


def write_page(path: str | os.PathLike, *, title: str, lead: str, parts: Sequence[Part]) -> None:
    """Write a page with the verdicts of all ``parts`` first, each claim to be linked to by its id, then a section a part.

    One part makes a study's page, whose ``title`` and ``lead`` stand for those of the part; several make the page of the whole
    laboratory. Writes to ``path`` at once or not at all.

    Raises:
      ValueError: ids of parts and claims differ too little, or hold white space.
    """
    parts = list(parts)
    _check_ids(parts)
    style = Path(__file__).with_name("page.css").read_text("utf-8")
    head = _HEAD.format(policy=_POLICY, title=escape(title), style=style)
    body = _one(title, lead, parts[0]) if len(parts) == 1 else _several(title, lead, parts)
    files.write_atomically(path, "\n".join([head, *body, "</body></html>\n"]).encode("utf-8", "replace"))


def _check_ids(parts: Sequence[Part]) -> None:
    ids = ["content", "verdicts"]
    for part in parts:
        ids += [part.id, *part.anchors(), *(verdict.claim.id for verdict in part.verdicts)]
    if bad := [name for name in ids if not re.fullmatch(r"\S+", name)]:
        raise ValueError(f"ids of parts and claims name places of a page, so they hold no white space, got {bad}")
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise ValueError(f"ids of parts and claims must differ within a page, and from the page's own, got {twice} twice")


def _one(title: str, lead: str, part: Part) -> list[str]:
    contents = ({"verdicts": "Verdicts"} if part.verdicts else {}) | part.anchors()
    table = [outcomes.table(part.verdicts, "Verdicts")]
    return [
        f'<header><h1 id="{escape(part.id)}">{escape(title)}</h1><p>{prose(lead)}</p></header>',
        _contents("Contents", contents),
        '<main id="content" tabindex="-1">',
        _overview(part.verdicts, table),
        part.to_html(2),
        "</main>",
    ]


def _several(title: str, lead: str, parts: Sequence[Part]) -> list[str]:
    every = [verdict for part in parts for verdict in part.verdicts]
    tables = [
        f'<h3>{link(part.id, part.id)} {escape(part.title)}</h3><p class="small">{outcomes.tally(part.verdicts)}</p>'
        + outcomes.table(part.verdicts, f"Verdicts of {part.id}")
        for part in parts
        if part.verdicts
    ]
    contents = ({"verdicts": "Verdicts"} if every else {}) | {part.id: f"{part.id} {part.title}" for part in parts}
    return [
        f"<header><h1>{escape(title)}</h1><p>{prose(lead)}</p></header>",
        _contents("Contents", contents),
        '<main id="content" tabindex="-1">',
        _overview(every, tables),
        *map(_study, parts),
        "</main>",
    ]


def _overview(verdicts: Sequence[claims.Verdict], tables: Sequence[str]) -> str:
    if not verdicts:
        return ""
    told = f"<p>{outcomes.tally(verdicts)}. {prose(outcomes.EXPLANATION)}</p>"
    return "\n".join(['<section id="verdicts"><h2>Verdicts</h2>', told, *tables, "</section>"])


def _study(part: Part) -> str:
    found = "".join(f"<li>{link(v.claim.id, v.claim.id)} {outcomes.badge(v.verdict)}</li>" for v in part.verdicts)
    return "\n".join([
        f'<section class="study" id="{escape(part.id)}"><h2>{escape(part.id)} {escape(part.title)}</h2><p>{prose(part.lead)}</p>',
        f'<ul class="outcomes" aria-label="Verdicts of {escape(part.id)}">{found}</ul>' if found else "",
        _contents(f"Contents of {part.id}", part.anchors()),
        part.to_html(3),
        "</section>",
    ])  # fmt: skip


def _contents(name: str, anchors: Mapping[str, str]) -> str:
    links = "".join(f"<li>{link(anchor, text)}</li>" for anchor, text in anchors.items())
    return f'<nav aria-label="{escape(name)}"><ul>{links}</ul></nav>' if links else ""
