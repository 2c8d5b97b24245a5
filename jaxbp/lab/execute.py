"""From a study and its settings to verdicts and a page."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from jaxbp import claims, report
from jaxbp.lab import own_files, recorded_rules, taken_over
from jaxbp.lab.archive import Archive, Results
from jaxbp.lab.cost_plan import estimate
from jaxbp.lab.jobs import Job, plan, run_jobs
from jaxbp.lab.outline import Outline
from jaxbp.lab.output import print_plan, print_verdicts
from jaxbp.lab.recorded_rules import Change
from jaxbp.lab.run import Run
from jaxbp.lab.settings import as_json, check_data
from jaxbp.lab.study import Study
from jaxbp.runtime import jax_setup, processes
from jaxbp.runtime.machines import NOWHERE_ELSE, Elsewhere
from jaxbp.runtime.shared_store import open_together
from jaxbp.runtime.store import StoreError

DATA = ("measurements.parquet", "verdicts.json", "config.json", "jobs")  # of a run's folder, to which its page has links
_NOTE_EVERY = 30.0  # seconds
_MOST = 1e12  # seconds or MiB, beyond which a file is damaged


def run(study: Study, settings: Any, folder: Path, *, devices: Sequence[str], command: str, **flags: bool) -> Any:
    """Compute what the folder lacks, judge, draw, write everything; ``command`` says on the page how to repeat the run; ``flags`` are
    those of `jaxbp.lab.jobs.run_jobs`.

    Returns:
      The study's section of the page, in the first process; None in the others.

    Raises:
      SettingsError, jaxbp.runtime.store.StoreError: the study cannot run so, or not there.
    """
    began = time.monotonic()
    if not (folder / "verdicts.json").exists():  # a finished run needs its data no more
        check_data({study.id: settings})
    with open_together(folder, {"study": study.id, **_identity(settings)}, jax_setup.provenance(devices)) as store:
        archive = Archive(store)
        if processes.is_first():
            own_files.keep(store, study)
        changed_rules = recorded_rules.note(store, recorded_rules.of_study(study))
        clock = _Clock(store, began)
        with clock.noted_if_stopped():
            results = _compute(study, settings, archive, clock, num_workers=len(devices), **flags)
        if not processes.is_first():
            return None
        verdicts, controls = results.verdicts(), results.controls
        store.write("measurements.parquet", results.parquet())
        claims.write_verdicts(folder / "verdicts.json", verdicts, controls)
        method = [*study.method, *_rules_told(store, results, changed_rules)]
        sections = report.build_sections(results, folder / "figures", figures=study.figures, tables=study.tables, method=method)
        clock.note()
        files = {name: name for name in DATA}
        section = report.StudySection(
            study.id, study.title, study.lead, verdicts, sections, store.config, command, controls, study.paper, files
        )
        report.write_page(folder / "report.html", title=study.title, lead=study.lead, studies=[section])
    return section


def _identity(settings: Any) -> dict[str, Any]:
    """The settings as config.json holds them; with a schedule of looks it stands for the number of seeds."""
    values = as_json(settings)
    del values["num_seeds" if settings.looks else "looks"]
    return values


class _Clock:
    """Wall time and peak memory of a run in its config.json, those of earlier starts included, however these ended.

    Args:
      store: of the run.
      began: when this start did, on the monotonic clock.
    """

    def __init__(self, store: Any, began: float):
        self._store, self._began, self._noted = store, began, began
        values = [store.config.get(name, 0) for name in ("wall_seconds", "peak_memory_mib")]
        if not all(isinstance(value, int | float) and abs(value) < _MOST for value in values):
            raise StoreError(
                f"{store.folder}/config.json is damaged: wall_seconds and peak_memory_mib are numbers, got {values}: remove them"
            )
        self._seconds, self._peak = values

    def note(self) -> None:
        """Write them, in the first process."""
        self._noted = time.monotonic()
        if processes.is_first():
            wall = round(self._seconds + self._noted - self._began, 1)
            self._store.add_metadata(wall_seconds=wall, peak_memory_mib=max(self._peak, jax_setup.peak_memory_mib()))

    def tick(self) -> None:
        """Write them once in a while: a kill leaves no time to."""
        if time.monotonic() - self._noted > _NOTE_EVERY:
            self.note()

    @contextlib.contextmanager
    def noted_if_stopped(self) -> Iterator[None]:
        """Write them if an error, Ctrl-C or SIGTERM ends the body."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(StoreError):  # of the two errors the first is told
                self.note()
            raise


def _compute(study: Study, settings: Any, archive: Archive, clock: _Clock, **options: Any) -> Run:
    """All jobs; with a schedule of looks, those of one look after the other until no claim is open.

    The first process judges, so all stop at the same look.
    """
    for num_seeds in settings.looks.sizes if settings.looks else [settings.num_seeds]:
        at_look = dataclasses.replace(settings, num_seeds=num_seeds)
        jobs = plan(study, at_look)
        outline = Outline(study, at_look, jobs, archive)

        def learn(job: Job, dataset: xr.Dataset, outline: Outline = outline) -> None:
            clock.tick()
            outline.add(job, dataset)

        run_jobs(archive, jobs, result_fn=learn, **options)
        results = Run(study, at_look, jobs, archive)
        if not (settings.looks and processes.from_first(processes.is_first() and _look(results))):
            break
    return results


def _look(results: Run) -> bool:
    """Whether a claim is open; prints what the look shows."""
    print(f"look at {results.settings.num_seeds} seeds: {report.tally(results.verdicts())}", flush=True)
    return results.is_open


def _rules_told(store: Any, results: Run, changed: Sequence[Change]) -> list[str]:
    """Whose results were taken over and which rules were changed, a sentence each; config.json keeps the claims of these rules."""
    study = results.study
    elsewhere = taken_over.changes(store.folder, results.files, recorded_rules.of_study(study), study.id)
    for sentence in dict.fromkeys(change.sentence for change in elsewhere):
        print(sentence)
    every = [*changed, *elsewhere]
    store.add_metadata(rules_changed=list(dict.fromkeys(change.claim for change in every)))
    return [*taken_over.sentences(store.folder, results.files), *dict.fromkeys(change.sentence for change in every)]


def print_cost(study: Study, settings: Any, folder: Path, *, num_workers: int, elsewhere: Elsewhere = NOWHERE_ELSE) -> None:
    """Say what the run would cost, here and elsewhere; with a schedule of looks, its first look."""
    results, jobs = Results(folder), plan(study, settings)
    if settings.looks:
        print(f"the first look, at {settings.num_seeds} seeds:")
    print_plan(estimate(jobs, results.paths, results.folders), num_workers, elsewhere)


def print_outcome(section: Any, folder: Path) -> None:
    """The table of verdicts, the place of the page, time and memory."""
    if section.is_smoke:
        print("A smoke run: it decides nothing.")
    print_verdicts(section.verdicts, folder / "report.html", section.controls)
    print(f"wall time {section.settings['wall_seconds']:.0f} s, peak memory {section.settings['peak_memory_mib']} MiB")


def write_page(folder: Path, title: str, lead: str, sections: Mapping[str, Any]) -> list[claims.Verdict]:
    """Write verdicts.json and report.html of several studies, given by the names of their folders; returns all verdicts."""
    studies = [
        dataclasses.replace(section, data={label: f"{name}/{path}" for label, path in section.data.items()})
        for name, section in sections.items()
    ]
    verdicts = [verdict for section in studies for verdict in section.verdicts]
    controls = [control for section in studies for control in section.controls]
    claims.write_verdicts(folder / "verdicts.json", verdicts, controls)
    report.write_page(folder / "report.html", title=title, lead=lead, studies=studies)
    return verdicts
