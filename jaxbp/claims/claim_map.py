"""Where a claim holds: its outcome in every cell of a grid of settings, and what the cells say together.

A cell is one choice of the settings; the cases of the claim within the cell are specifications of their own, told apart by the axis
"case". See Simonsohn, Simmons and Nelson, "Specification curve analysis", Nature Human Behaviour 4, 2020.
"""

import collections
import functools
import importlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import scipy

from jaxbp import stats
from jaxbp.claims.claim import Claim
from jaxbp.claims.verdicts import Outcome, Verdict
from jaxbp.stats import Boundary, Component, Interval

if TYPE_CHECKING:
    import xarray as xr

CASE = "case"
FAILED = "failed"
_LOG_RATIO = 8.0  # a numeric axis that spans more is read on a logarithmic scale


@dataclass(frozen=True)
class Axis:
    """A setting that varies.

    Attributes:
      name: of the setting.
      values: that it takes, at least one, all different.
      when: the axis applies only where these axes have these values; empty: everywhere. Elsewhere the setting stays as it is.
    """

    name: str
    values: tuple[Any, ...]
    when: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError(f"the axis {self.name} needs a value")
        if len({repr(value) for value in self.values}) < len(self.values):
            raise ValueError(f"the values of the axis {self.name} must differ, got {list(self.values)}")

    @property
    def is_numeric(self) -> bool:
        """Whether the values are numbers, which have an order."""
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values)

    @property
    def is_log(self) -> bool:
        """Whether the values are read on a logarithmic scale."""
        return self.is_numeric and min(self.values) > 0 and max(self.values) / min(self.values) >= _LOG_RATIO

    def applies(self, point: Mapping[str, Any]) -> bool:
        """Whether the axis has a say at a point of the other axes."""
        return all(name in point and point[name] == value for name, value in self.when.items())


@dataclass(frozen=True)
class MapCell:
    """One choice of the settings and what came out.

    Attributes:
      point: the value of every axis that applies.
      verdict: None if the cell failed.
      failure: why the cell failed, or "".
      case_names: the names that the verdict's cases have in other cells, too; None where they are the cases' own.
    """

    point: Mapping[str, Any]
    verdict: Verdict | None
    failure: str = ""
    case_names: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """The settings in words."""
        return name_of(self.point)


def name_of(point: Mapping[str, Any]) -> str:
    """A point in words, such as "learning_rate 0.003, num_epochs 5"."""
    return ", ".join(f"{name} {value_text(value)}" for name, value in point.items()) or "as set"


def value_text(value: Any) -> str:
    """A value of an axis in words."""
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


@dataclass(frozen=True)
class Specification:
    """A case within a cell.

    Attributes:
      point: the value of every axis that applies, and of the axis "case" if the claim has several.
      outcome: of the case, or "failed".
      interval: of the effect; None where there is none.
      num_seeds: the number of seeds.
      cell: the number of the cell.
      by_seed: the value of the measure for each seed, as `jaxbp.claims.CaseVerdict` has it.
    """

    point: Mapping[str, Any]
    outcome: str
    interval: Interval | None
    num_seeds: int
    cell: int
    by_seed: tuple[tuple[int, float | None], ...] = ()


@dataclass(frozen=True)
class AlongAxis:
    """How an outcome changes along an axis.

    Attributes:
      axis: the axis.
      lines: the number of lines of the grid along the axis (one for each choice of the other settings) by what the effect does there:
        "flips" (once), "holds" (everywhere), "fails" (everywhere), "goes back and forth".
      boundaries: of the lines that flip, by the other settings in words.
      of_mean: the boundary of the mean effect over all complete lines; None where the mean does not flip.
    """

    axis: Axis
    lines: Mapping[str, int]
    boundaries: Mapping[str, Boundary]
    of_mean: Boundary | None


@dataclass(frozen=True)
class ClaimMap:
    """A claim over a grid of settings.

    Attributes:
      claim: the claim.
      axes: what varies.
      cells: that were tried.
      facts: what else is worth keeping, as JSON writes it: study, preset, settings, command.
    """

    claim: Claim
    axes: tuple[Axis, ...]
    cells: tuple[MapCell, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def specifications(self) -> tuple[Specification, ...]:
        """Every case of every cell."""
        return tuple(self._specifications())

    def _specifications(self) -> Iterator[Specification]:
        several = any(cell.verdict and len(cell.verdict.cases) > 1 for cell in self.cells)
        for number, cell in enumerate(self.cells):
            if cell.verdict is None:
                yield Specification(cell.point, FAILED, None, 0, number)
                continue
            void = cell.verdict.verdict == "void"
            for case, name in zip(cell.verdict.cases, cell.case_names or [case.case for case in cell.verdict.cases], strict=True):
                point = {**cell.point, CASE: name} if several else cell.point
                yield Specification(point, "void" if void else case.verdict, case.interval, case.num_seeds, number, case.by_seed)

    @functools.cached_property
    def all_axes(self) -> tuple[Axis, ...]:
        """The axes, and the axis "case" if the claim has several."""
        names = dict.fromkeys(spec.point[CASE] for spec in self.specifications if CASE in spec.point)
        return (*self.axes, Axis(CASE, tuple(names))) if names else self.axes

    @property
    def counts(self) -> dict[str, int]:
        """The number of specifications of each outcome that is there."""
        counted = collections.Counter(spec.outcome for spec in self.specifications)
        return {outcome: counted[outcome] for outcome in (*get_args(Outcome), FAILED) if counted[outcome]}

    @property
    def headline(self) -> str:
        """As in "holds in 3 of 8 specifications (6 cells), fails in 2"."""
        counts, total = self.counts, len(self.specifications)
        cells = f" ({len(self.cells)} cell{'s' * (len(self.cells) != 1)})" if total != len(self.cells) else ""
        others = "".join(f", {outcome} in {count}" for outcome, count in counts.items() if outcome not in ("supported", "contradicted"))
        noun = "specification" if total == 1 else "specifications"
        return f"holds in {counts.get('supported', 0)} of {total} {noun}{cells}, contradicted in {counts.get('contradicted', 0)}{others}"

    @functools.cached_property
    def explained(self) -> list[Component]:
        """Which axes explain how much of the variance of effects (`jaxbp.stats.functional_anova`)."""
        measured = [spec for spec in self.specifications if spec.interval]
        levels = {
            axis.name: [axis.values.index(spec.point[axis.name]) if axis.name in spec.point else -1 for spec in measured]
            for axis in self.all_axes
        }
        if len(measured) < 2:
            return []
        effects = [spec.interval.estimate for spec in measured if spec.interval]
        return stats.functional_anova(levels, effects, errors=[standard_error(spec.interval) for spec in measured if spec.interval])

    @functools.cached_property
    def along(self) -> list[AlongAxis]:
        """How the outcome changes along every numeric axis with several values."""
        return [self._along(axis) for axis in self.axes if axis.is_numeric and len(axis.values) > 1]

    def _along(self, axis: Axis) -> AlongAxis:
        lines: dict[str, list[Specification]] = {}
        for spec in self.specifications:
            if axis.name in spec.point and spec.interval and spec.outcome not in ("void", "not tested"):
                others = {name: value for name, value in spec.point.items() if name != axis.name}
                lines.setdefault(name_of(others), []).append(spec)
        lines = {name: sorted(line, key=lambda spec: spec.point[axis.name]) for name, line in lines.items() if len(line) > 1}
        kinds: collections.Counter[str] = collections.Counter()
        boundaries: dict[str, Boundary] = {}
        for name, line in lines.items():
            place = self._boundary(axis, line)
            decided = [spec.outcome for spec in line if spec.outcome in ("supported", "contradicted")]
            if sum(a != b for a, b in itertools.pairwise(decided)) > 1:
                kinds["goes back and forth"] += 1
            elif place is not None:
                kinds["flips"] += 1
                boundaries[name] = place
            else:
                inside = [self._inside(spec.interval.estimate) for spec in line if spec.interval]
                kinds["holds" if np.mean(inside) > 0.5 else "fails"] += 1
        complete = [line for line in lines.values() if len(line) == len(axis.values)]
        return AlongAxis(axis, dict(kinds), boundaries, self._boundary(axis, *complete) if complete else None)

    def _inside(self, effect: float) -> bool:
        low, high = self.claim.rule.region
        return low < effect < high

    def _boundary(self, axis: Axis, *lines: Sequence[Specification]) -> Boundary | None:
        """The boundary of the mean effect of lines over the same points."""
        effects = np.array([[spec.interval.estimate for spec in line if spec.interval] for line in lines])
        errors = np.array([[standard_error(spec.interval) for spec in line if spec.interval] for line in lines])
        points = [spec.point[axis.name] for spec in lines[0]]
        of_mean = np.sqrt((errors**2).sum(0)) / len(lines)
        return stats.boundary(points, effects.mean(0), errors=of_mean, region=self.claim.rule.region, log=axis.is_log)

    def to_dataset(self) -> "xr.Dataset":
        """The map as labelled arrays: `jaxbp.claims.map_arrays.to_dataset`."""
        return importlib.import_module("jaxbp.claims.map_arrays").to_dataset(self)  # late: settings of studies wait for no xarray


def standard_error(interval: Interval) -> float:
    """The standard error that a normal law would have with this interval."""
    return (interval.high - interval.low) / 2 / float(scipy.stats.norm.ppf((1 + interval.confidence) / 2))
