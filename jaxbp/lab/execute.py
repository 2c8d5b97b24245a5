"""From a study and its settings to verdicts and a page."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxbp import claims, report
from jaxbp.lab.archive import Archive
from jaxbp.lab.jobs import plan, run_jobs
from jaxbp.lab.output import print_verdicts
from jaxbp.lab.run import Run
from jaxbp.lab.settings import as_json
from jaxbp.lab.study import Study
from jaxbp.runtime import jax_setup, processes
from jaxbp.runtime.shared_store import open_together


def run(study: Study, settings: Any, folder: Path, *, devices: Sequence[str], command: str, **flags: bool) -> Any:
    """Compute what the folder lacks, judge, draw, write everything; ``command`` says on the page how to repeat the run; ``flags`` are
    those of `jaxbp.lab.jobs.run_jobs`.

    Returns:
      The study's section of the page, in the first process; None in the others.

    Raises:
      SettingsError, jaxbp.runtime.store.StoreError: the study cannot run so, or not there.
    """
    began = time.monotonic()
    with open_together(folder, {"study": study.id, **as_json(settings)}, jax_setup.provenance(devices)) as store:
        archive = Archive(store)
        changed_rules = _note_rules(store, study)
        jobs = plan(study, settings)
        run_jobs(archive, jobs, num_workers=len(devices), **flags)
        if not processes.is_first():
            return None
        results = Run(study, settings, jobs, archive)
        verdicts = results.verdicts()
        store.write("measurements.parquet", results.parquet())
        claims.write_verdicts(folder / "verdicts.json", verdicts)
        sections = report.build_sections(
            results, folder / "figures", figures=study.figures, tables=study.tables, method=[*study.method, *changed_rules]
        )
        wall = store.config.get("wall_seconds", 0) + round(time.monotonic() - began, 1)
        peak = max(store.config.get("peak_memory_mib", 0), jax_setup.peak_memory_mib())
        store.add_metadata(wall_seconds=wall, peak_memory_mib=peak)
        section = report.StudySection(study.id, study.title, study.lead, verdicts, sections, store.config, command)
        report.write_page(folder / "report.html", title=study.title, lead=study.lead, studies=[section])
    return section


def _note_rules(store: Any, study: Study) -> list[str]:
    """Write the rules of the claims into config.json before the first job; returns what was changed since, a sentence each, and says so."""
    rules = {measure.claim.id: measure.claim.rule.text(measure.claim.measure) for measure in study.measures}
    first = store.config.get("rules")
    if first is None:
        if processes.is_first():
            store.add_metadata(rules=rules)
        return []
    changed = [
        f"The rule of {claim} was changed after this run had begun. Then: {first[claim]}. Now: {rule}."
        for claim, rule in rules.items()
        if first.get(claim, rule) != rule
    ]
    for sentence in changed if processes.is_first() else ():
        print(sentence)
    return changed


def print_outcome(section: Any, folder: Path) -> None:
    """The table of verdicts, the place of the page, time and memory."""
    if section.is_smoke:
        print("A smoke run: it decides nothing.")
    print_verdicts(section.verdicts, folder / "report.html")
    print(f"wall time {section.settings['wall_seconds']:.0f} s, peak memory {section.settings['peak_memory_mib']} MiB")


def write_page(folder: Path, title: str, lead: str, sections: Sequence[Any]) -> list[claims.Verdict]:
    """Write verdicts.json and report.html of several studies; returns all verdicts."""
    verdicts = [verdict for section in sections for verdict in section.verdicts]
    claims.write_verdicts(folder / "verdicts.json", verdicts)
    report.write_page(folder / "report.html", title=title, lead=lead, studies=sections)
    return verdicts
