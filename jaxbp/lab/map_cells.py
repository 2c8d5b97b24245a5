"""A cell of a map: the study at one choice of its settings, of which only what one claim needs is computed.

What a claim needs is found by asking for its values: a stage whose result is not there yet becomes a demand, and the claim is asked
again once the demand is met. So a measure that reads two stages of three cases costs these alone, whatever else the study has.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import xarray as xr

from jaxbp.claims import Claim, MapCell, Verdict, judge_all, judge_control
from jaxbp.claims.claim_map import name_of
from jaxbp.lab.archive import Archive, Results
from jaxbp.lab.jobs import Job, plan
from jaxbp.lab.run import Run
from jaxbp.lab.settings import SettingsError
from jaxbp.lab.study import Measure, Stage, Study
from jaxbp.runtime.fingerprint import Fingerprint


class NeededError(LookupError):
    """A measure has asked for the result of a job that is not there."""

    def __init__(self, name: str, digest: str):
        super().__init__(f"{name} is not computed yet")
        self.key = f"{name} #{digest}"


class _Asking:
    """An `Archive` that says what it lacks, and notes the keys of what it is asked for."""

    def __init__(self, archive: Archive | Results, asked: dict[str, None]):
        self._archive, self._asked = archive, asked

    def get(self, name: str, digest: str) -> xr.Dataset:
        self._asked[f"{name} #{digest}"] = None
        if not self._archive.contains(name, digest):
            raise NeededError(name, digest)
        return self._archive.get(name, digest)


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked of every cell.

    Attributes:
      study: the study.
      claim_id: of the claim.
      with_controls: whether the controls that the claim hangs on are computed and may void it.
    """

    study: Study
    claim_id: str
    with_controls: bool = True

    def __post_init__(self) -> None:
        known = [measure.claim.id for measure in self.study.measures]
        if self.claim_id not in known:
            raise SettingsError(f"{self.study.id} has no claim {self.claim_id!r}: choose one of {', '.join(known)}")

    @functools.cached_property
    def measures(self) -> list[Measure]:
        """The measures of the claim and of its premises."""
        by_id = {measure.claim.id: measure for measure in self.study.measures}
        wanted, waiting = {}, [self.claim_id]
        while waiting:
            measure = by_id[waiting.pop()]
            wanted[measure.claim.id] = measure
            waiting += [premise.claim for premise in measure.claim.premises if premise.claim not in wanted]
        return [measure for measure in self.study.measures if measure.claim.id in wanted]

    @functools.cached_property
    def controls(self) -> dict[str, Any]:
        """The controls that the claim hangs on, by id."""
        mine = {id_: c for id_, c in self.study.named_controls.items() if not c.claims or self.claim_id in c.claims}
        return mine if self.with_controls else {}

    @property
    def judged(self) -> set[str]:
        """The ids of the claim, its premises and its controls."""
        return {measure.claim.id for measure in self.measures} | set(self.controls)

    @property
    def claim(self) -> Claim:
        """The claim."""
        return next(measure.claim for measure in self.measures if measure.claim.id == self.claim_id)


class CellState:
    """A cell on its way to a verdict.

    Attributes:
      point: the values of the axes.
      settings: of the study there, at the present look, with the cases of the controls.
      verdict: None until it is known.
      failure: why there will be none, or "".
      used: the keys of all jobs that the cell has asked for.
    """

    def __init__(
        self,
        question: Question,
        point: Mapping[str, Any],
        settings_fn: Callable[[], Any],
        kept_fn: Callable[[Any], Any],
        codes: dict[Callable, Fingerprint],
    ):
        """``kept_fn`` leaves of settings the cases in which the claim is judged."""
        self.point, self.failure = point, ""
        self.verdict: Verdict | None = None
        self.used: dict[str, None] = {}
        self._question, self._kept_fn, self._codes = question, kept_fn, codes
        try:
            self.settings = settings_fn()
            kept_fn(self.settings)  # which says now if there is no such case
            self._jobs = self._plan()
        except Exception as error:  # noqa: BLE001 - this cell cannot be, and others can
            self._fail(error)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the study, in order."""
        return self._question.study.stages

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to compute or judge."""
        return self.verdict is not None or bool(self.failure)

    def advance(self, archive: Archive | Results, errors: Mapping[str, str]) -> list[Job]:
        """Judge the claim if all is there; else return the jobs that are needed for it, needed ones first.

        Args:
          archive: of the results.
          errors: of the jobs that have failed, by key.
        """
        while not self.is_done:
            try:
                needed, verdicts = self._ask(archive)
            except Exception as error:  # noqa: BLE001 - a measure that cannot be taken at these settings
                self._fail(error)
                return []
            if needed:
                failed = [f"{job.name}: {errors[job.key]}" for job in needed if job.key in errors]
                self.failure = failed[0] if failed else ""
                return [] if failed else needed
            self._judged(*verdicts)
        return []

    def result(self) -> MapCell:
        """The cell as it is now."""
        return MapCell(self.point, self.verdict, "" if self.verdict else self.failure or "not computed")

    def used_with_needs(self) -> list[str]:
        """The keys of all jobs that the cell has asked for, and of what they need."""
        keys: dict[str, None] = {}
        waiting = [self._jobs[key] for key in self.used if key in self._jobs]
        while waiting:
            job = waiting.pop()
            keys[job.key] = None
            waiting += [other for others in job.needs for other in others if other.key not in keys]
        return list(keys | self.used)

    def _run(self, settings: Any, archive: Archive | Results) -> Run:
        return Run(self._question.study, settings, list(self._jobs.values()), _Asking(archive, self.used))  # type: ignore[arg-type]

    def _plan(self) -> dict[str, Job]:
        return {job.key: job for job in plan(self._question.study, self.settings, self._codes)}

    def _fail(self, error: Exception) -> None:
        kind = "" if isinstance(error, SettingsError) else f"{type(error).__name__}: "
        self.failure = f"{kind}{error}" or type(error).__name__

    def _ask(self, archive: Archive | Results) -> tuple[list[Job], tuple[Verdict, bool]]:
        """What is missing, and otherwise the verdict and whether more seeds may change it."""
        question = self._question
        asked: dict[str, None] = {}
        run, every = (self._run(settings, archive) for settings in (self._kept_fn(self.settings), self.settings))
        values = {measure.claim: _values(measure, run, asked) for measure in question.measures}
        controls = {id_: control.measured(id_) for id_, control in question.controls.items()}
        of_controls = {id_: _of_control(measure, run, every, asked) for id_, measure in controls.items()}
        if asked:
            return self._with_needs(archive, asked), (None, False)  # type: ignore[return-value]
        looks = self.settings.looks
        interval_fns = {measure.claim: measure.resolved_interval_fn for measure in question.measures}
        verdicts = judge_all(values, interval_fns=interval_fns, looks=looks, seeds=self.settings.seeds)
        results = [
            judge_control(question.controls[id_].named(id_), of_controls[id_], interval_fn=measure.resolved_interval_fn, looks=looks)
            for id_, measure in controls.items()
        ]
        is_open = any(verdict.is_open for verdict in [*verdicts, *(result.verdict for result in results)])
        verdict = next(verdict for verdict in verdicts if verdict.claim.id == question.claim_id)
        for result in results:
            verdict = result.void(verdict)
        return [], (verdict, is_open)

    def _judged(self, verdict: Verdict, is_open: bool) -> None:
        """Keep a verdict, or go on to the next look."""
        looks, num_seeds = self.settings.looks, self.settings.num_seeds
        later = [size for size in looks.sizes if size > num_seeds] if looks and is_open else []
        if not verdict.cases:
            self.failure = "the claim has no case at these settings"
        elif later:
            self.settings = dataclasses.replace(self.settings, num_seeds=later[0])
            self._jobs = self._plan()
        else:
            self.verdict = verdict

    def _with_needs(self, archive: Archive | Results, asked: Iterable[str]) -> list[Job]:
        """The jobs asked for, with all others of their stage and case and what they need, as far as the archive lacks them."""
        stages = {(self._jobs[key].stage.fn, self._jobs[key].case) for key in asked}
        wanted: dict[str, None] = {}

        def want(job: Job) -> None:
            for others in job.needs:
                for other in others:
                    want(other)
            wanted[job.key] = None

        for job in self._jobs.values():
            if (job.stage.fn, job.case) in stages:
                want(job)
        self.used |= wanted
        jobs = [self._jobs[key] for key in wanted]
        return [job for job in jobs if not archive.contains(job.name, job.digest)]


def _values(measure: Measure, run: Run, asked: dict[str, None]) -> dict[str, Any]:
    """The values that can be had; keys of what is missing for the others go to ``asked``."""
    values: dict[str, Any] = {}
    for part in measure.parts(run):
        try:
            values |= part()
        except NeededError as error:
            asked[error.key] = None
    return values


def _of_control(measure: Measure, run: Run, every: Run, asked: dict[str, None]) -> dict[str, Any]:
    """The values of a control in the cases in which the claim is judged or, if it has none there, in all of its own."""
    of_run: dict[str, None] = {}
    values = _values(measure, run, of_run)
    asked |= of_run
    return values if values or of_run else _values(measure, every, asked)


def shared_case_names(cells: Sequence[MapCell]) -> list[MapCell]:
    """Give each cell's cases names without what the axes say, such as "ResNet" for "ResNet, digits" where data sets vary.

    Cases keep their names in a cell where two of them would be called the same.
    """
    named = []
    for cell in cells:
        if cell.verdict is None:
            named.append(cell)
            continue
        said = {str(value) for value in cell.point.values()} | {name_of({name: value}) for name, value in cell.point.items()}
        full = [case.case for case in cell.verdict.cases]
        short = [", ".join(part for part in name.split(", ") if part not in said) or name for name in full]
        names = short if len(set(short)) == len(short) else full
        named.append(dataclasses.replace(cell, case_names=tuple(names)))
    return named
