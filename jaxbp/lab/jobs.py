"""From a study's stages to jobs with an identity, of which a run computes those that the folder lacks.

A job is a stage of a case at one point of the stage's axes. Its digest is a hash of all that its result depends on: the code of the
stage and of what that code calls (`jaxbp.runtime.fingerprint`), the case, the settings that the stage reads, the data, and the digests of
the jobs that it needs. Two jobs of one digest have one result, in whatever run.
"""

import collections
import contextlib
import dataclasses
import errno
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import threadpoolctl
import xarray as xr

from jaxbp.lab import job_times, taken_over
from jaxbp.lab.archive import Archive, combine, parts_of, read
from jaxbp.lab.arms import to_dataset
from jaxbp.lab.job_times import JobTime
from jaxbp.lab.settings import SettingsError, View, as_json
from jaxbp.lab.study import Stage, Study
from jaxbp.runtime import processes
from jaxbp.runtime.fingerprint import Fingerprint, explain, fingerprint
from jaxbp.runtime.progress import Progress
from jaxbp.runtime.store import StoreError
from jaxbp.sweep import scheduler

_SIZES = ("num_epochs", "num_train")  # to which the time of a job is about proportional
_NOT_DECISIVE = ("cost", "seed_blocks")  # properties that decide no number by themselves
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)  # every other job would fail, too
_FRAME = (
    *("adaptive", "archive", "cli", "compare", "cost_plan", "execute", "job_times", "jobs", "map_axes", "map_cells", "map_run"),
    *("outline", "output", "own_files", "recorded_rules", "run", "settings", "status", "study", "taken_over", "this_machine"),
    "verdict_pairs",
)
_INFRASTRUCTURE = (
    *(f"jaxbp.lab.{name}" for name in (*_FRAME, "verdict_changes")),
    "jaxbp.sweep.scheduler",
    "jaxbp.runtime",
    "jaxbp.report",
)  # results do not depend on them


@dataclass(frozen=True)
class Job:
    """A stage of a case at a point.

    Attributes:
      needs: for each needed stage the jobs whose results the stage gets.
      digest: of everything that the result depends on.
      parts: digests by name of what goes into ``digest``, from which a difference is explained.
    """

    stage: Stage
    case: Any
    point: Mapping[str, Any]
    settings: Any
    needs: tuple[tuple["Job", ...], ...]
    digest: str
    parts: Mapping[str, str] = field(repr=False)

    @property
    def name(self) -> str:
        """The job in words, such as "ResNet, digits; train; default; 3"."""
        return "; ".join([self.case.name, self.stage.name, *map(str, self.point.values())])

    @property
    def key(self) -> str:
        """What tells the job from all others: jobs of two stages may compute the same, and have one digest."""
        return f"{self.name} #{self.digest}"

    @property
    def weight(self) -> float:
        """The job's share of the time."""
        return self.stage.cost(self.case, self.settings, **self.point)

    @property
    def scale(self) -> dict[str, float]:
        """The sizes that decide the job's time and of which the cost of its stage knows nothing."""
        sizes = {}
        for name in _SIZES:
            owner = self.case if name in _fields(self.case) else self.settings
            value = getattr(owner, name, None) if name in _fields(owner) else None
            if isinstance(value, int) and not self._cost_knows(owner, name, value):
                sizes[name] = float(value)
        return sizes

    def _cost_knows(self, owner: Any, name: str, value: int) -> bool:
        """Whether the cost of the stage changes with a size."""
        try:
            other = dataclasses.replace(owner, **{name: 2 * value})
            case, settings = (other, self.settings) if owner is self.case else (self.case, other)
            return self.stage.cost(case, settings, **self.point) != self.weight
        except (ValueError, LookupError, ArithmeticError):  # no such case can be: an estimate is made without the size
            return True

    def compute(self, archive: Archive) -> xr.Dataset:
        """The result."""
        needed = [_at(self.point, gather(archive, jobs)) for jobs in self.needs]
        settings = View(self.settings, self.stage.reads, over_seeds=_over_seeds(self.point, self.settings))
        dataset = self._with_point(to_dataset(self.stage.fn(self.case, settings, *needed, **self.point)))
        if "seed" not in dataset.coords and dataset.sizes.get("seed") == self.settings.num_seeds:
            dataset = dataset.assign_coords(seed=list(self.settings.seeds))
        return dataset

    def _with_point(self, dataset: xr.Dataset) -> xr.Dataset:
        """The result, refused if its axes do not fit the point."""
        for axis, value in self.point.items():
            size = dataset.sizes.get(axis)
            if isinstance(value, tuple):
                if size != len(value):
                    raise ValueError(f"the result of {self.name} needs the axis {axis!r} of length {len(value)}, got {size}")
                dataset = dataset.assign_coords({axis: list(value)})
            elif size is not None:
                raise ValueError(f"{self.name} is one {axis}, so its result must not have the axis {axis!r}")
        return dataset


def _fields(owner: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(owner)} if dataclasses.is_dataclass(owner) else set()


def gather(archive: Archive, jobs: Sequence[Job]) -> xr.Dataset:
    """The results of one stage of one case as one Dataset."""
    return combine([(dict(job.point), archive.get(job.name, job.digest)) for job in jobs])


def _at(point: Mapping[str, Any], dataset: xr.Dataset) -> xr.Dataset:
    shared = {axis: value for axis, value in point.items() if axis in dataset.dims and axis in dataset.coords}
    return dataset.sel({axis: list(value) if isinstance(value, tuple) else value for axis, value in shared.items()}, drop=True)


def plan(study: Study, settings: Any, codes: dict[Callable, Fingerprint] | None = None) -> list[Job]:
    """Every job of a run, needed ones first; those of a stage in the order of the cases and of the axes' coordinates.

    ``codes`` keeps the fingerprints of the stages from one plan to the next.
    """
    codes = {} if codes is None else codes
    jobs: list[Job] = []
    by_stage: dict[tuple[Callable, str], list[Job]] = {}
    for stage in study.stages:
        if settings.looks and "num_seeds" in (stage.reads or ()):
            raise SettingsError(
                f"seeds cannot be added to stage {stage.name} of {study.id}, which reads num_seeds: put `settings.seed_blocks` "
                "on the axis seed of its `over`, or run a fixed number of seeds"
            )
        if stage.fn not in codes:
            codes[stage.fn] = fingerprint(stage.fn, ignore=_INFRASTRUCTURE)
        code = codes[stage.fn]
        of_stage: list[Job] = []
        for case in settings.cases:
            if not stage.where(case, settings):
                continue
            axes = {axis: list(values) for axis, values in stage.over(case, settings).items()}
            data = settings.data_identity(case)
            needed = [by_stage.get((fn, case.name), []) for fn in stage.needs]
            own = [
                _job(stage, case, dict(zip(axes, values, strict=True)), settings, needed, {"data": data, "code": code})
                for values in itertools.product(*axes.values())
            ]
            by_stage[stage.fn, case.name] = own
            of_stage += own
        jobs += of_stage
    return jobs


def _in_groups(jobs: Sequence[Job]) -> list[Job]:
    """Stages of one group that follow each other become neighbours, the jobs with the most weight first.

    Jobs of a stage and case mostly share a program, so cases take turns: workers beside each other then compile different programs.
    """
    ordered: list[Job] = []
    for _, members in itertools.groupby(jobs, key=lambda job: job.stage.group or job.stage.name):
        heaviest_first = sorted(members, key=lambda job: -job.weight)
        turns: dict[Any, Iterator[int]] = collections.defaultdict(itertools.count)
        ordered += sorted(heaviest_first, key=lambda job: next(turns[job.stage.name, job.case.name]))
    return ordered


def _job(stage: Stage, case: Any, point: dict[str, Any], settings: Any, needed: Sequence[Sequence[Job]], basis: Mapping[str, Any]) -> Job:
    needs = tuple(tuple(job for job in jobs if _agree(job.point, point)) for jobs in needed)
    view = View(settings, stage.reads, over_seeds=_over_seeds(point, settings))
    parts = dict(basis["code"].parts)
    parts["case"] = _text([as_json(case), _properties(case, case)])
    parts["point"] = _text(as_json(point))
    parts["arithmetic"] = _text(_arithmetic(stage))
    parts |= {f"setting {name}": _text(value) for name, value in view.values().items()}
    parts["properties of the settings"] = _text(_properties(view, settings))
    parts |= {f"data {name}": identity for name, identity in basis["data"].items()}
    for job in itertools.chain(*needs):
        parts[f"result of {job.name}"] = f"#{job.digest}"
    return Job(stage, case, point, settings, needs, _digest({"code": basis["code"].digest, **parts}), parts)


def _over_seeds(point: Mapping[str, Any], settings: Any) -> bool:
    """Whether a job must not know how many seeds there are: its seeds are its own, or more of them may be added."""
    return "seed" in point or settings.looks is not None


def _properties(readable: Any, owner: Any) -> dict[str, Any]:
    """The values of an owner's properties, through which code of a case or of settings decides results; costs decide none."""
    values: dict[str, Any] = {}
    for cls in type(owner).__mro__:
        for name, member in vars(cls).items():
            if isinstance(member, property) and name not in (*_NOT_DECISIVE, *values):
                with contextlib.suppress(AttributeError, TypeError):  # reads what the stage does not read, or is nothing that JSON writes
                    values[name] = json.loads(json.dumps(as_json(member.__get__(readable))))
    return values


def _arithmetic(stage: Stage) -> list[Any]:
    """The kind of device and the precisions by which JAX computes."""
    platform = "cpu" if stage.on_cpu else jax.local_devices()[0].platform
    return [platform, str(jax.config.jax_default_matmul_precision), bool(jax.config.jax_enable_x64)]


def _agree(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return all(not _coordinates(a[axis]).isdisjoint(_coordinates(b[axis])) for axis in a.keys() & b.keys())


def _coordinates(value: Any) -> set[Any]:
    return set(value) if isinstance(value, tuple) else {value}


def _text(value: Any) -> str:
    """A small value as it is, a large one by its digest."""
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 60 else f"#{_digest(value)}"


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=10).hexdigest()


def run_jobs(
    archive: Archive,
    jobs: Sequence[Job],
    *,
    num_workers: int = 1,
    recompute: bool = False,
    reuse: bool = True,
    result_fn: Callable[[Job, xr.Dataset], None] = lambda job, dataset: None,
) -> None:
    """Compute the jobs that the folder and the runs beside it lack; ``result_fn`` is shown each result.

    Raises:
      StoreError: the folder holds results of other code; ``recompute`` replaces them.
    """
    processes.all_agree([job.digest for job in jobs], "code, data and settings")
    if processes.is_first():
        archive.tidy()
        changes = [] if recompute else _changes(archive, jobs)
        if changes:
            raise StoreError(
                f"{archive.store.folder} holds results that other code computed:\n  " + "\n  ".join(changes) + "\n"
                "give --recompute to compute them anew, or name another folder"
            )
        archive.write_index([(job.name, job.digest) for job in jobs])  # the order of coordinates, not that of the work
        if reuse:
            take_over(archive, jobs)
    compute_missing(archive, {job.name: job for job in jobs}, num_workers=num_workers, result_fn=result_fn)


class JobError(RuntimeError):
    """A job failed; the message is that of its error."""


def compute_missing(
    archive: Archive,
    jobs: Mapping[str, Job],
    *,
    num_workers: int = 1,
    tolerant: bool = False,
    result_fn: Callable[[Job, xr.Dataset], None] = lambda job, dataset: None,
) -> dict[str, Exception]:
    """Compute the jobs, given by what progress calls them, whose results the archive lacks, by `jaxbp.sweep.scheduler`.

    BLAS gets one thread throughout. Threads of several workers would wait for one another, spinning (a fit of 0.4 s took 20 s on a
    busy machine), and their number decides the last bits, which must not depend on where a run was stopped.

    Args:
      archive: in which all results are kept.
      jobs: needed ones first.
      num_workers: jobs that this process computes beside each other.
      tolerant: the other jobs go on after one that fails; a job that needs its result fails, too.
      result_fn: is shown each result.

    Returns:
      The errors of the jobs that failed, in this process.
    """
    names = {job.key: name for name, job in jobs.items()}
    ordered = _in_groups(list(jobs.values()))
    missing = processes.from_first([number for number, job in enumerate(ordered) if not archive.contains(job.name, job.digest)])
    if done := len(ordered) - len(missing):
        print(f"{done} of {len(ordered)} jobs are in {archive.store.folder} already")
    units = {name: (None, job.weight) for name, job in jobs.items()}
    finished = units.keys() - {names[ordered[number].key] for number in missing}
    index, count = jax.process_index(), jax.process_count()
    with (
        threadpoolctl.threadpool_limits(1),
        Progress(units, archive.store.folder, process=index, num_processes=count, done_before=finished) as progress,
    ):
        work = [
            _work(names[job.key], job, archive, progress, result_fn, tolerant=tolerant) for job in (ordered[number] for number in missing)
        ]
        return scheduler.run(work, num_workers=num_workers, tolerated=(JobError,) if tolerant else ())


def _work(
    name: str, job: Job, archive: Archive, progress: Progress, result_fn: Callable[[Job, xr.Dataset], None], *, tolerant: bool
) -> scheduler.Work:
    took = JobTime(job.stage.qualified_name, job.case.name, "", job.weight, job.scale)

    def compute() -> xr.Dataset:
        progress.start(name)
        try:
            with job_times.timed(took):
                return job.compute(archive)
        except Exception as error:
            progress.failed(name, error, raised=not tolerant)  # the command tells what ends it, once
            if tolerant and not isinstance(error, StoreError) and getattr(error, "errno", None) not in _DISK_FULL:
                raise JobError(f"{type(error).__name__}: {error}") from error
            raise

    def keep(dataset: xr.Dataset) -> None:
        facts = {"stage": job.stage.name, "case": job.case.name, "point": json.dumps(as_json(job.point))}
        archive.put(job.name, job.digest, dataset, **facts, parts=json.dumps(dict(job.parts)))
        took.num_bytes = archive.path(job.name, job.digest).stat().st_size
        job_times.write(archive.store.folder, took)
        progress.done(name)
        result_fn(job, dataset)

    return scheduler.Work(name, compute, keep, job.stage.group or job.stage.name, job.stage.on_cpu)


def take_over(archive: Archive, jobs: Sequence[Job]) -> None:
    """Copy results of equal jobs from the runs beside this one, and note and say from where they are."""
    missing = [job for job in jobs if not archive.contains(job.name, job.digest)]
    nearby = {job.key: folder for job in missing if (folder := archive.nearby(job.digest))}
    taken_over.note(archive.store, {archive.path(job.name, job.digest).name: nearby[job.key] for job in missing if job.key in nearby})
    copied = [job for job in missing if job.key in nearby and archive.reuse(job.name, job.digest)]
    taken_over.forget(
        archive.store, [archive.path(job.name, job.digest).name for job in missing if job.key not in {each.key for each in copied}]
    )
    for folder in sorted({nearby[job.key] for job in copied}):
        count = sum(nearby[job.key] == folder for job in copied)
        print(taken_over.sentence(count, len(jobs), str(folder), taken_over.source_at(folder).started))


def _changes(archive: Archive, jobs: Sequence[Job]) -> list[str]:
    """What differs between the missing jobs and the results that the folder holds of them."""
    lines: dict[str, None] = {}
    for job in jobs:
        if archive.contains(job.name, job.digest):
            continue
        for path in archive.others(job.name, job.digest):
            before = parts_of(read(path), path)
            lines |= dict.fromkeys(line for line in explain(before, dict(job.parts)) if not line.startswith("result of "))
    return list(lines)
