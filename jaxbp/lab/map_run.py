"""Where does a claim hold? A study at every point of a grid of settings, computed as one run.

All cells share one folder, in which results are addressed by their content: what two cells have in common is computed once, an earlier
map or run nearby is used, and the same command goes on from where it was stopped.
"""

import collections
import dataclasses
import fnmatch
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from jaxbp import data, report
from jaxbp.claims import Axis, ClaimMap, write_verdicts
from jaxbp.claims.claim_map import value_text
from jaxbp.lab import map_axes, output, own_files, recorded_rules, taken_over
from jaxbp.lab.archive import MAP, Archive, Results, read, to_bytes
from jaxbp.lab.cli import load
from jaxbp.lab.cost_plan import StageCost, estimate
from jaxbp.lab.jobs import Job, compute_missing, take_over
from jaxbp.lab.map_cells import CellState, Question, shared_case_names
from jaxbp.lab.recorded_rules import Change
from jaxbp.lab.settings import OPTION_FIELDS, Arguments, SettingsError, as_json
from jaxbp.lab.study import Stage
from jaxbp.runtime import jax_setup, processes
from jaxbp.runtime.fingerprint import Fingerprint
from jaxbp.runtime.shared_store import open_together
from jaxbp.runtime.store import StoreError

PAGE = "map.html"


@dataclasses.dataclass(frozen=True)
class MapOptions:
    """How a map is computed.

    Attributes:
      num_cells: cells that are drawn from the grid; None for all.
      sampling: how they are drawn.
      seed: of the draw.
      only_cases: patterns of the names of the study's cases in which the claim is judged, as `fnmatch` has them; none keeps all. A control
        that has none of these is judged in its own.
      with_controls: whether the controls that the claim hangs on are computed in every cell, and may void its verdict.
      reuse: take over equal results from the runs in the folders nearby.
      devices: the names of those that compute, a job each beside each other; None for all of this process, on CPUs a job a core.
      command: what to type to repeat the map.
    """

    num_cells: int | None = None
    sampling: map_axes.Sampling = "sobol"
    seed: int = 0
    only_cases: tuple[str, ...] = ()
    with_controls: bool = True
    reuse: bool = True
    devices: Sequence[str] | None = None
    command: str = ""


def map_claim(
    study: Any,
    claim: str,
    axes: Mapping[str, Sequence[Any]] | Sequence[Axis],
    *,
    settings: Any,
    out: str | Path | None = None,
    options: MapOptions = MapOptions(),
) -> ClaimMap:
    """Find where a claim holds: judge it at every point of a grid of settings.

    Each cell is the study with those settings, and only the stages that the claim, its premises and its controls ask for. A cell that
    fails says why, and the others go on.

    Args:
      study: a `jaxbp.lab.Study`, or the door to one.
      claim: the id of a claim.
      axes: values by the name of a setting, or `jaxbp.claims.Axis`, which may apply under a condition alone. A name is a field of the
        settings or of their cases, an option of the study's command line, or an entry of a field of pairs, such as "options.norm".
      settings: the settings from which the cells differ: `jaxbp.lab.Settings`, or the study's `jaxbp.lab.Arguments`, whose options know
        what else a change entails.
      out: folder of the map, to which map.nc and map.html are written and in which results are kept; default runs/map-CLAIM.
      options: how the map is computed.

    Raises:
      SettingsError: there is no such claim or axis, or no cell can run.
      jaxbp.runtime.store.StoreError: the folder is in use, or belongs to another claim.
    """
    study, varied = load(study), map_axes.as_axes(axes)
    question = Question(study, claim, options.with_controls)
    cells = _cells(question, varied, settings, options)
    folder = Path(out or Path("runs") / f"map-{claim}")
    devices = jax_setup.workers() if options.devices is None else options.devices
    with open_together(folder, {"map": study.id, "claim": claim}, jax_setup.provenance(devices)) as store:
        archive, present = Archive(store, keeps_others=True), recorded_rules.of_study(study)
        if processes.is_first():
            own_files.keep(store, study)
        changed = recorded_rules.note(store, present)
        began = time.monotonic()
        done = _compute(cells, archive, num_workers=len(devices), reuse=options.reuse)
        wall = round(time.monotonic() - began, 1)
        files = [archive.path(*key.rsplit(" #", 1)).name for key in dict.fromkeys(key for cell in cells for key in cell.used_with_needs())]
        notes = [
            *taken_over.sentences(folder, files),
            *_changed_rules(question, changed, taken_over.changes(folder, files, present, study.id)),
        ]
        facts = _facts(question, varied, _settings(cells, varied, settings), options, done, wall, store.config) | {"notes": notes}
        result = ClaimMap(question.claim, varied, tuple(shared_case_names([cell.result() for cell in cells])), facts)
        if processes.is_first():
            store.add_metadata(
                axes=[as_json(axis) for axis in varied],
                maps=[*store.config.get("maps", []), {**facts["work"], "wall_seconds": facts["wall_seconds"]}],
            )
            write(result, store)
            output.print_reasons(result)
    return result


def map_cost(study: Any, claim: str, axes: Sequence[Axis], *, settings: Any, out: Path, options: MapOptions) -> list[StageCost]:
    """What a map would cost by stage, at least: what the claim asks for first in each cell, and what that needs.

    Raises:
      SettingsError: as `map_claim`.
    """
    question, results = Question(load(study), claim, options.with_controls), Results(out)
    jobs: dict[str, Job] = {}
    for cell in _cells(question, map_axes.as_axes(axes), settings, options):
        jobs |= {job.key: job for job in cell.advance(results, {})}
    return estimate(list(jobs.values()), results.paths, results.folders)


def _cells(question: Question, axes: Sequence[Axis], settings: Any, options: MapOptions) -> list[CellState]:
    map_axes.check_known(settings, axes)
    points = map_axes.points(axes, options.num_cells, options.sampling, options.seed)
    codes: dict[Callable, Fingerprint] = {}
    kept = functools.partial(_kept, options.only_cases)
    cells = [CellState(question, point, functools.partial(map_axes.settings_at, settings, point), kept, codes) for point in points]
    if all(cell.failure for cell in cells):
        raise SettingsError(f"no cell of the map can run; the first, {cells[0].result().name}: {cells[0].failure}")
    return cells


def _kept(only_cases: Sequence[str], settings: Any) -> Any:
    """The settings with the cases in which the claim is judged."""
    if not only_cases:
        return settings
    kept = tuple(case for case in settings.cases if any(fnmatch.fnmatchcase(case.name, pattern) for pattern in only_cases))
    if not kept:
        names = ", ".join(case.name for case in settings.cases)
        raise SettingsError(f"no case matches {', '.join(only_cases)}: the cases are {names}")
    return dataclasses.replace(settings, cases=kept)


def _compute(cells: Sequence[CellState], archive: Archive, *, num_workers: int, reuse: bool) -> dict[str, int]:
    """Ask every cell, compute what they need together, and ask again, until all are done; returns what it took."""
    errors: dict[str, str] = {}
    computed: set[str] = set()
    problem_fn = functools.cache(_data_problem)
    if processes.is_first():
        archive.tidy()
    processes.barrier("map begins")
    while True:
        missing: dict[str, tuple[str, Job]] = {}
        for cell in cells:
            for job in cell.advance(archive, errors):
                missing.setdefault(job.key, (cell.result().name, job))
        processes.all_agree(list(missing), "code, data and settings")
        if not missing:
            break
        problems = {key: problem_fn(*_data_of(job)) for key, (_, job) in missing.items()}
        if any(problems.values()):
            errors |= {key: problem for key, problem in problems.items() if problem}  # such cells have failed before any is computed
            continue
        jobs = [job for _, job in missing.values()]
        if reuse and processes.is_first():
            take_over(archive, jobs)
        processes.barrier("results are taken over")
        ordered = _by_stage([pair for pair in missing.values() if not archive.contains(pair[1].name, pair[1].digest)], cells[0].stages)
        processes.barrier("work begins")  # all have seen what is there
        failures = compute_missing(archive, ordered, num_workers=num_workers, tolerant=True)
        told = {ordered[name].key: str(error) for name, error in failures.items()}
        for others in processes.gather(told):
            errors |= others
        computed |= {job.key for job in ordered.values()}
    of_computed = sum(not computed.isdisjoint(cell.used) for cell in cells)
    failed = sum(bool(cell.failure) for cell in cells)
    return {"cells": len(cells), "cells_computed": of_computed, "cells_failed": failed, "jobs": len(computed - errors.keys())}


def _data_of(job: Job) -> tuple[str | None, Path | None]:
    """The name of a job's data set, and where those of TFDS are."""
    names = [name for owner in (job.case, job.settings) if isinstance(name := getattr(owner, "dataset", None), str)]
    return (names[0] if names else None), job.settings.data_dir


def _data_problem(name: str | None, data_dir: Path | None) -> str:
    """Why a data set cannot be loaded; "" if it can."""
    try:
        if name:
            data.check(name, data_dir=data_dir)
    except data.DataError as error:
        return str(error)
    return ""


def _by_stage(missing: Sequence[tuple[str, Job]], stages: Sequence[Stage]) -> dict[str, Job]:
    """The jobs by what progress calls them, those of one stage beside each other: groups of all cells are computed together."""
    names = collections.Counter(job.name for _, job in missing)
    order = {stage.name: number for number, stage in enumerate(stages)}
    by_stage = sorted(missing, key=lambda pair: order[pair[1].stage.name])
    return {f"{cell}: {job.name}" if names[job.name] > 1 else job.name: job for cell, job in by_stage}


def _settings(cells: Sequence[CellState], axes: Sequence[Axis], base: Any) -> dict[str, Any]:
    """The settings of the cells as JSON writes them: of axes with one value that value, of the others all of theirs, in words."""
    settings = next(cell.settings for cell in cells if hasattr(cell, "settings"))  # some cell can run
    values = {name: value for name, value in as_json(settings).items() if name != "cases"}
    values["num_seeds"] = (base.unvalidated_settings() if isinstance(base, Arguments) else base).num_seeds  # not those of a later look
    for axis in axes:
        name = OPTION_FIELDS.get(axis.name, axis.name)
        fixed = len(axis.values) == 1 and not axis.when
        values[name] = as_json(axis.values[0]) if fixed else f"varied: {'; '.join(map(value_text, axis.values))}"
    return values


def _facts(
    question: Question,
    axes: Sequence[Axis],
    settings: Mapping[str, Any],
    options: MapOptions,
    done: Mapping[str, int],
    wall: float,
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """What is worth keeping beside the outcomes."""
    return {
        "study": question.study.id,
        "title": question.study.title,
        "module": question.study.module,
        "controls": list(question.controls),
        "sampling": options.sampling if options.num_cells else "every cell",
        "work": done,
        "wall_seconds": wall,
        "command": options.command,
        "earlier_jobs": sum(start.get("jobs", 0) for start in config.get("maps", ())),
        "call": "" if options.command else _call(question, axes, options),
        "settings": dict(settings),
        **{name: config[name] for name in ("started", "packages", "devices", "git_commit", "starts", "own_files") if name in config},
    }


def _changed_rules(question: Question, here: Sequence[Change], elsewhere: Sequence[Change]) -> list[str]:
    """What was changed of the rules that the map is judged by; says what of these was not said when it was noted ``here``."""
    told = [dict.fromkeys(change.sentence for change in changes if change.claim in question.judged) for changes in (here, elsewhere)]
    for sentence in told[1] if processes.is_first() else ():
        print(sentence)
    return [*told[0], *told[1]]


def _call(question: Question, axes: Sequence[Axis], options: MapOptions) -> str:
    """How a map is asked for from Python, with the options that decide what is computed."""
    told: Any = list(axes) if any(axis.when for axis in axes) else {axis.name: axis.values for axis in axes}
    chosen = {name: getattr(options, name) for name in ("num_cells", "sampling", "seed", "only_cases", "with_controls")}
    changed = ", ".join(f"{name}={value!r}" for name, value in chosen.items() if value != getattr(MapOptions, name))
    return f'lab.map(study, "{question.claim_id}", {told!r}, settings=settings{f", options=lab.MapOptions({changed})" * bool(changed)})'


def write(found: ClaimMap, store: Any) -> None:
    """Write map.nc and map.html."""
    dataset = found.to_dataset().assign_attrs({"study": found.facts["study"], "command": found.facts["command"]})
    store.write(MAP, to_bytes(dataset))
    report.write_map_page(store.folder / PAGE, found)
    of_one_cell = store.folder / "verdicts.json"  # for `jaxbp.lab.compare`
    of_one_cell.unlink(missing_ok=True)
    if len(found.cells) == 1 and found.cells[0].verdict:
        write_verdicts(of_one_cell, [found.cells[0].verdict])


def open_map(folder: str | Path) -> xr.Dataset:
    """The labelled arrays of a map, over its axes (`jaxbp.claims.ClaimMap.to_dataset`).

    Raises:
      jaxbp.runtime.store.StoreError: there is no map, or its file is damaged.
    """
    path = Path(folder) / MAP if Path(folder).is_dir() else Path(folder)
    if not path.exists():
        raise StoreError(f"{folder} holds no map: name the folder that a map was written to")
    return read(path)
