"""The page of a map: where a claim holds, as heat maps, as a specification curve, by axes, and along axes.

Everything is HTML and inline SVG, which scale with the screen, follow a dark one, and can be read aloud.
"""

import os
from dataclasses import dataclass

from jaxbp.claims import ClaimMap
from jaxbp.report import claim_maps, rendering, reproduce
from jaxbp.report.page import POLICY
from jaxbp.runtime import files


@dataclass(frozen=True)
class _Repeated:
    """What the section on how to reproduce asks of a study."""

    id: str
    known: reproduce.Recipe

    def recipe(self) -> reproduce.Recipe:
        """How to repeat the map."""
        return self.known


def write_map_page(path: str | os.PathLike, found: ClaimMap) -> None:
    """Write the page of a map, a file without script that opens without a network; at once or not at all."""
    facts = dict(found.facts)
    command = str(facts.pop("command", ""))
    done = claim_maps.work_sentence(facts.pop("work"), facts.pop("earlier_jobs", 0))
    call = str(facts.pop("call", ""))
    for told_elsewhere in ("title", "module", "controls", "notes"):
        facts.pop(told_elsewhere, None)
    text = rendering.render_map(
        policy=POLICY,
        found=found,
        title=f"Where {found.claim.id} holds",
        maps=claim_maps.heat_maps(found),
        curve=claim_maps.curve(found),
        explained=claim_maps.explained_rows(found),
        reasons=claim_maps.reasons(found),
        done=done,
        smoke=facts.get("settings", {}).get("preset") == "smoke",
        repeated=_Repeated("map", reproduce.recipe(facts, command, call)),
    )
    files.write_atomically(path, text.encode("utf-8", "replace"))
