"""Measures tried on an outline of the results, so that a misspelt stage or variable is told before hours of work and not after them.

An outline of a stage's results takes any operation that results take, and knows names alone: those of the stages from the start, those of
a stage's variables once its first job is done. Whatever else a measure does with an outline is not judged.
"""

import collections
from collections.abc import Collection, Iterable
from types import SimpleNamespace
from typing import Any

import xarray as xr

from jaxbp.lab.archive import Archive
from jaxbp.lab.jobs import Job
from jaxbp.lab.settings import SettingsError
from jaxbp.lab.study import Control, Measure, Stage, Study

_KEEPING = ("sel", "isel", "mean", "std", "median", "min", "max", "sum", "where", "squeeze", "transpose", "sortby", "dropna", "load")


class _UnknownNameError(AttributeError):
    """A measure reads what there is not."""


class _Anything:
    """Takes part in any expression, whose value it is."""

    def __getattr__(self, name: str) -> "_Anything":
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything()

    def _value(self, *args: Any, **options: Any) -> "_Anything":
        return _Anything()

    __iter__ = None  # else the items would be taken one after another, without an end
    __call__ = __getitem__ = __neg__ = __abs__ = _value
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __pow__ = __rpow__ = _value
    __lt__ = __le__ = __gt__ = __ge__ = __and__ = __rand__ = __or__ = __ror__ = _value


class _StageOutline(_Anything):
    """The Dataset of a stage, of which ``known`` are the names of all arrays; None if nothing is known."""

    def __init__(self, stage: str, known: Collection[str] | None):
        self._stage, self._known = stage, known

    def __getattr__(self, name: str) -> Any:
        if name in _KEEPING:
            return lambda *args, **options: self
        if not hasattr(xr.Dataset, name):
            self._check(name)
        return super().__getattr__(name)

    def __getitem__(self, names: Any) -> Any:
        listed = [names] if isinstance(names, str) else names if isinstance(names, list) else []
        for name in listed:
            self._check(name)
        return self if isinstance(names, list) else _Anything()

    def _check(self, name: str) -> None:
        if self._known is not None and name not in self._known and not name.startswith("_"):
            raise _UnknownNameError(f"{name!r} of stage {self._stage}, which gives {', '.join(sorted(self._known))}")


class _CaseOutline:
    """`jaxbp.lab.CaseResults` of which nothing is there yet."""

    def __init__(self, case: Any, settings: Any, stages: dict[str, Collection[str] | None]):
        self.case, self.name, self.settings, self._stages = case, case.name, settings, stages

    def __getattr__(self, stage: str) -> _StageOutline:
        if stage.startswith("_"):
            raise AttributeError(stage)
        if stage not in self._stages:
            raise _UnknownNameError(f"the stage {stage!r}, and the study has {', '.join(self._stages)}")
        return _StageOutline(stage, self._stages[stage])

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the stages."""
        return tuple(self._stages)


class Outline:
    """What is known of a run's results, to which each job adds.

    The names of a stage's arrays are known once a job of each of its points is done, seeds aside: arms may differ in what they measure.

    Args:
      study, settings: of the run.
      jobs: of the run.
      finished: results that are there already; one of each point is read.
    """

    def __init__(self, study: Study, settings: Any, jobs: Iterable[Job], finished: Archive):
        self._study, self._settings = study, settings
        self._names: dict[tuple[str, str], set[str]] = collections.defaultdict(set)
        self._open: dict[tuple[str, str], set[str]] = collections.defaultdict(set)  # points of which no result was seen
        jobs = list(jobs)
        for job in jobs:
            self._open[_stage_of(job)].add(_point_of(job))
        for job in jobs:
            if _point_of(job) in self._open[_stage_of(job)] and finished.contains(job.name, job.digest):
                self._learn(job, finished.get(job.name, job.digest))
        self.check()

    def add(self, job: Job, dataset: xr.Dataset) -> None:
        """Learn the names of a job's arrays; `check` where they complete those of the stage and case."""
        if _point_of(job) in self._open[_stage_of(job)]:
            self._learn(job, dataset)
            if not self._open[_stage_of(job)]:
                self.check()

    def _learn(self, job: Job, dataset: xr.Dataset) -> None:
        self._names[_stage_of(job)] |= {*map(str, dataset.variables), *map(str, dataset.dims), *job.point}
        self._open[_stage_of(job)].remove(_point_of(job))

    def _known(self, case: Any, stage: Stage) -> set[str] | None:
        key = (case.name, stage.name)
        return None if self._open[key] else self._names.get(key)

    def check(self) -> None:
        """Try every measure of claims and controls.

        Raises:
          SettingsError: one reads what no stage gives.
        """
        cases = [
            _CaseOutline(case, self._settings, {stage.name: self._known(case, stage) for stage in self._study.stages})
            for case in self._settings.cases
        ]
        measures: dict[str, Measure | Control] = {measure.claim.id: measure for measure in self._study.measures}
        for name, measure in (measures | dict(self._study.named_controls)).items():
            run = SimpleNamespace(study=self._study, settings=self._settings, cases=cases)
            for results in [run] if measure.across else [outline for outline in cases if measure.where(outline.case)]:
                try:
                    measure.fn(results)
                except _UnknownNameError as error:
                    raise SettingsError(f"the measure of {name} reads {error}: correct it; what is finished is kept") from error
                except Exception:  # noqa: BLE001 - an outline is no array, which says nothing about the measure
                    continue


def _stage_of(job: Job) -> tuple[str, str]:
    return job.case.name, job.stage.name


def _point_of(job: Job) -> str:
    return repr({axis: value for axis, value in job.point.items() if axis != "seed"})
