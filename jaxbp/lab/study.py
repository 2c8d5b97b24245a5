"""A study as one value: stages that measure, claims with their measures, figures, tables.

A `Study` says what the study thinks and nothing else. `jaxbp.lab.cli.main` runs it. A field that is forgotten is a TypeError when the
study is imported; no function is looked up by a name.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import xarray as xr

from jaxbp import stats
from jaxbp.claims import Claim, Rule
from jaxbp.claims import Control as JudgedControl
from jaxbp.claims.controls import Kind as ControlKind
from jaxbp.claims.premises import in_order
from jaxbp.lab.cli import folder_name
from jaxbp.report import Publication
from jaxbp.runtime.fingerprint import module_name

if TYPE_CHECKING:
    from jaxbp.lab.run import Run

Axes = Mapping[str, Iterable[Any]]
Values = xr.DataArray | Mapping[str, Any]


def _no_axes(case: Any, settings: Any) -> Axes:
    return {}


def _every_case(case: Any, settings: Any) -> bool:
    return True


def _equal_cost(case: Any, settings: Any, **point: Any) -> float:
    return 1.0


@dataclass(frozen=True)
class Stage:
    """One kind of work of a study; each case, and each point of the stage's axes, is a job of its own.

    Attributes:
      fn: ``fn(case, settings, *needed, **point) -> xarray.Dataset`` or a mapping of arrays. ``needed`` are the Datasets of ``needs``
        for the same case, at the coordinates that they share with the point.
      over: ``(case, settings) -> {axis: coordinates}``; the jobs are the product of the coordinates, and their results become one
        Dataset with these axes. A tuple of coordinates is a job that computes them together: its result has that axis.
      needs: the functions of earlier stages.
      where: ``(case, settings) -> bool``, the cases that have this stage.
      cost: ``(case, settings, **point) -> float``, the job's share of the time in any unit that all stages of the study use.
      reads: the fields of the settings that decide the results; None for all. Reading another field raises AttributeError. A job is
        reused by runs whose other fields differ.
      group: jobs of stages with one group run beside each other; default, the stage alone.
      on_cpu: whether the jobs compute on the host, also beside an accelerator.
    """

    fn: Callable[..., xr.Dataset | Mapping[str, Any]]
    over: Callable[[Any, Any], Axes] = _no_axes
    needs: tuple[Callable, ...] = ()
    where: Callable[[Any, Any], bool] = _every_case
    cost: Callable[..., float] = _equal_cost
    reads: tuple[str, ...] | None = None
    group: str | None = None
    on_cpu: bool = False

    @property
    def name(self) -> str:
        """The stage's name in folders, logs and results: that of its function."""
        return self.fn.__name__

    @property
    def qualified_name(self) -> str:
        """The name with the module of the function, which tells it from stages of other studies."""
        return f"{module_name(self.fn)}.{self.name}"


def _every(case: Any) -> bool:
    return True


@dataclass(frozen=True)
class Measure:
    """The number that a claim is judged by, for each seed.

    Attributes:
      claim: judged by ``fn``'s values.
      fn: ``fn(results) -> values`` of one case (`jaxbp.lab.CaseResults`): a DataArray with the axis ``seed``, of which every
        coordinate of its other axes is a case of its own, or a mapping of names to values, (S,) each. With ``across`` the function
        takes the whole `jaxbp.lab.Run` and returns such a mapping.
      where: the cases that the claim speaks of.
      across: whether ``fn`` compares cases with each other.
      interval_fn: how seeds make an interval; see `jaxbp.stats`.
      resolution: the step between values that the measure can take, such as 100 / 359 for accuracies in per cent on 359 images; see
        `jaxbp.stats.mean_interval`. 0 for a measure without steps.
    """

    claim: Claim
    fn: Callable[[Any], Values]
    where: Callable[[Any], bool] = _every
    across: bool = False
    interval_fn: stats.IntervalFn = stats.t_interval
    resolution: float = 0.0

    def __post_init__(self) -> None:
        if self.resolution and self.interval_fn is not stats.t_interval:
            raise ValueError(f"a resolution goes with the t interval alone, got {self.interval_fn} for {self.claim.id}")

    @property
    def resolved_interval_fn(self) -> stats.IntervalFn:
        """``interval_fn`` with the resolution."""
        return functools.partial(stats.mean_interval, resolution=self.resolution) if self.resolution else self.interval_fn

    def values(self, run: "Run") -> dict[str, Any]:
        """The values of every case by its name, (S,) each."""
        values: dict[str, Any] = {}
        for part in self.parts(run):
            values |= part()
        return values

    def parts(self, run: "Run") -> list[Callable[[], dict[str, Any]]]:
        """What `values` joins, each to be computed by a call: a part for each case, one part of a measure across cases."""
        if self.across:
            return [lambda: dict(self.fn(run))]
        return [functools.partial(self._of_case, results) for results in run.cases if self.where(results.case)]

    def _of_case(self, results: Any) -> dict[str, Any]:
        return by_case(results.name, self.fn(results))


@dataclass(frozen=True)
class Control:
    """A control of a study: what its design must find ("positive"), or must not ("negative").

    It is run with the study and shown before the claims; one that fails voids the verdicts of the claims that hang on it.

    Attributes:
      kind: "positive", an effect that is known to be there: it passes if every case is supported. "negative", no effect by
        construction: it passes unless some case is contradicted.
      statement: what must come out, in a sentence.
      measure: the name of the measured quantity.
      rule: the region in which the measure lies if the design works.
      fn, where, across, interval_fn, resolution: as in `Measure`.
      claims: the ids of the claims that hang on the control; none stands for all of the study.
      smallest_effect: the smallest effect that a positive control is to find, as a distance from the threshold.
    """

    kind: ControlKind
    statement: str
    measure: str
    rule: Rule
    fn: Callable[[Any], Values]
    where: Callable[[Any], bool] = _every
    across: bool = False
    interval_fn: stats.IntervalFn = stats.t_interval
    resolution: float = 0.0
    claims: tuple[str, ...] = ()
    smallest_effect: float | None = None

    def __post_init__(self) -> None:
        self.named("")

    def named(self, id_: str) -> JudgedControl:
        """What is judged, under an id."""
        return JudgedControl(self.kind, self.statement, self.measure, self.rule, id_, self.claims, self.smallest_effect)

    def measured(self, id_: str) -> Measure:
        """How it is measured."""
        return Measure(self.named(id_).claim, self.fn, self.where, self.across, self.interval_fn, self.resolution)


def by_case(name: str, values: Values) -> dict[str, Any]:
    """The values (S,) of each case: ``name`` with the labels of a mapping, or the coordinates of the axes beside ``seed``."""
    if isinstance(values, Mapping):
        return {_label(name, label): array for label, array in values.items()}
    others = [axis for axis in values.dims if axis != "seed"]
    if not others:
        return {name: values.values}
    stacked = values.stack(case=others)
    labels = [_label(name, *point) for point in stacked["case"].values]
    return {label: stacked.isel(case=i).values for i, label in enumerate(labels)}


def _label(*parts: Any) -> str:
    return ": ".join(filter(None, map(str, parts)))


@dataclass(frozen=True)
class Study:
    """A question with claims.

    Attributes:
      id: such as "S2".
      title, lead: the heading of the study's page and the paragraph under the heading.
      module: what ``python -m`` runs.
      stages: the work, earlier stages first.
      measures: a measure for each claim, in the order of the verdicts.
      controls: what the design must find and must not find, one of each at least.
      figures: elements with ``pictures(run, folder)``, such as `jaxbp.report.SeedStrip`.
      tables: elements with ``sections(run)``, such as `jaxbp.report.MeanTable`.
      method: paragraphs that say how the measurements were made.
      paper: the paper that the study tests.
    """

    id: str
    title: str
    lead: str
    module: str
    stages: tuple[Stage, ...]
    measures: tuple[Measure, ...]
    controls: tuple[Control, ...]
    figures: Sequence[Any]
    tables: Sequence[Any]
    method: Sequence[str]
    paper: Publication | None = None

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages of {self.id} need functions with names of their own, got {names}")
        groups: dict[Callable, str] = {}
        for stage in self.stages:
            group = stage.group or stage.name
            if missing := [fn.__name__ for fn in stage.needs if fn not in groups]:
                raise ValueError(f"stage {stage.name} of {self.id} needs {', '.join(missing)}: put the needed stages before it")
            if beside := [fn.__name__ for fn in stage.needs if groups[fn] == group]:
                raise ValueError(f"stage {stage.name} of {self.id} is in the group of {beside[0]}, which it needs: give it another group")
            groups[stage.fn] = group
        kinds = {control.kind for control in self.controls}
        if self.controls and len(kinds) < 2:
            raise ValueError(f"{self.id} has {kinds.pop()} controls alone: state what must be found and what must not")
        known = [measure.claim.id for measure in self.measures]
        if unknown := sorted({name for control in self.controls for name in control.claims} - set(known)):
            raise ValueError(f"controls of {self.id} name {', '.join(unknown)}, and its claims are {', '.join(known)}")
        in_order(measure.claim for measure in self.measures)  # refuses premises that are no claims of the study

    @property
    def named_controls(self) -> dict[str, Control]:
        """The controls by their ids, such as "S2.positive" or, with several of a kind, "S2.positive2"."""
        names: dict[str, Control] = {}
        for control in self.controls:
            number = 1 + sum(other.kind == control.kind for other in names.values())
            names[f"{self.id}.{control.kind}{number if number > 1 else ''}"] = control
        return names

    @property
    def name(self) -> str:
        """The name of the study's folder."""
        return folder_name(self.module)
