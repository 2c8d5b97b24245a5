"""What a run has measured: the stages' labelled arrays, for measures, figures, tables and notebooks."""

import functools
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from jaxbp.claims import Claim, ControlVerdict, Verdict, judge_all, judge_control
from jaxbp.lab import archive
from jaxbp.lab.archive import Archive
from jaxbp.lab.jobs import Job, gather
from jaxbp.lab.study import Study
from jaxbp.runtime.store import StoreError


class CaseResults:
    """The results of one case; a stage is an attribute, such as ``results.train``, and an xarray.Dataset.

    Attributes:
      case, name, settings: the case, its name and the settings of the run.
    """

    def __init__(self, case: Any, settings: Any, stages: Mapping[str, Sequence[Job]], finished: Archive):
        self.case, self.name, self.settings = case, case.name, settings
        self._stages, self._archive = stages, finished

    def __getattr__(self, stage: str) -> xr.Dataset:
        stages = self.__dict__.get("_stages", {})
        if stages and stage not in stages and not stage.startswith("_"):
            raise AttributeError(f"the study has no stage {stage!r}, it has {', '.join(stages)}")  # a misspelt name, not a case without it
        jobs = stages.get(stage)
        if not jobs:
            raise AttributeError(f"{self.__dict__.get('name')} has no stage {stage!r}", name=stage, obj=self)
        dataset = gather(self._archive, jobs)
        self.__dict__[stage] = dataset
        return dataset

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the stages that this case has."""
        return tuple(name for name, jobs in self._stages.items() if jobs)


class Run:
    """A run whose jobs are all there.

    Attributes:
      study, settings: what was run.
      cases: the results of every case.
    """

    def __init__(self, study: Study, settings: Any, jobs: Sequence[Job], finished: Archive):
        self.study, self.settings = study, settings
        self._jobs, self._archive = jobs, finished
        self.cases = [
            CaseResults(case, settings, {stage.name: _of(jobs, stage, case) for stage in study.stages}, finished) for case in settings.cases
        ]

    @property
    def files(self) -> list[str]:
        """The names of the files of all jobs."""
        return [self._archive.path(job.name, job.digest).name for job in self._jobs]

    @functools.cached_property
    def measurements(self) -> dict[Claim, dict[str, Any]]:
        """For each claim the values of every case by its name, (S,) each."""
        return {measure.claim: measure.values(self) for measure in self.study.measures}

    @functools.cached_property
    def controls(self) -> list[ControlVerdict]:
        """What came out of every control."""
        results = []
        for name, control in self.study.named_controls.items():
            measure = control.measured(name)
            interval_fn, looks = measure.resolved_interval_fn, self.settings.looks
            results.append(judge_control(control.named(name), measure.values(self), interval_fn=interval_fn, looks=looks))
        return results

    def verdicts(self) -> list[Verdict]:
        """Judge every claim; those that hang on a failed control are void."""
        interval_fns = {measure.claim: measure.resolved_interval_fn for measure in self.study.measures}
        verdicts = judge_all(self.measurements, interval_fns=interval_fns, looks=self.settings.looks, seeds=self.settings.seeds)
        for control in self.controls:
            verdicts = [control.void(verdict) for verdict in verdicts]
        return verdicts

    @property
    def is_open(self) -> bool:
        """Whether seeds of the schedule that are still to come may change an outcome."""
        return any(verdict.is_open for verdict in [*(control.verdict for control in self.controls), *self.verdicts()])

    def table(self) -> pd.DataFrame:
        """Every number that was measured, a row each: case, stage, measure, value, and a column for each named axis."""
        frames = [tidy(m.name, stage, getattr(m, stage)) for m in self.cases for stage in m.stages]
        return pd.concat([frame for frame in frames if len(frame)], ignore_index=True)

    def parquet(self) -> bytes:
        """`table` as a Parquet file."""
        buffer = io.BytesIO()
        self.table().to_parquet(buffer, index=False)
        return buffer.getvalue()


def _of(jobs: Sequence[Job], stage: Any, case: Any) -> list[Job]:
    return [job for job in jobs if job.stage is stage and job.case == case]


def tidy(case: str, stage: str, dataset: xr.Dataset) -> pd.DataFrame:
    """A row for each number of the variables whose axes all have coordinates; a word becomes a measure of value 1."""
    frames = []
    for name, values in dataset.data_vars.items():
        if any(axis not in dataset.coords for axis in values.dims):
            continue
        axes = list(values.dims)
        table = values.rename("value").to_dataframe().reset_index()[[*axes, "value"]] if axes else pd.DataFrame({"value": [values.item()]})
        measure: Any = str(name)
        if values.dtype.kind not in "iufb":
            measure = [f"{name}: {word}" for word in table["value"]]
            table["value"] = 1.0
        table["value"] = table["value"].astype(float)
        for axis in set(axes) - {"seed", "epoch"}:
            table[axis] = table[axis].astype(str)
        frames.append(table.assign(measure=measure))
    return pd.concat(frames, ignore_index=True).assign(case=case, stage=stage) if frames else pd.DataFrame()


def open_run(folder: str | Path) -> xr.DataTree:
    """The results in the folder of a run, finished or not, as a DataTree with a node for each case and in it one for each stage.

    Of the folder of a map, its arrays (`jaxbp.claims.ClaimMap.to_dataset`) are at the root; ``tree.value`` is the measure of each seed.

    Raises:
      StoreError: a file is damaged, or the files do not fit together.
      FileNotFoundError: the folder holds no results.
    """
    groups: dict[str, list] = {}
    for attributes, dataset in archive.all_in(Path(folder)):
        case = attributes["case"].replace("/", "-")
        groups.setdefault(f"/{case}/{attributes['stage']}", []).append((attributes["point"], dataset))
    if not groups:
        if (Path(folder) / archive.MAP).exists():
            return xr.DataTree(archive.read(Path(folder) / archive.MAP))
        raise FileNotFoundError(f"{folder} holds no results: name the folder of a run, or of a map that is finished")
    try:
        return xr.DataTree.from_dict({path: archive.combine(results) for path, results in groups.items()})
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise StoreError(
            f"the results in {folder} do not fit together ({error}): start the run again, which computes what is lost"
        ) from error
