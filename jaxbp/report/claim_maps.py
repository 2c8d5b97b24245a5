"""What the page of a map shows: heat maps for pairs of axes, the specification curve, and what axes explain, in numbers and words."""

import collections
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxbp import stats
from jaxbp.claims import AlongAxis, Axis, ClaimMap, Specification
from jaxbp.claims.claim_map import value_text
from jaxbp.report.text import format_interval, format_number, plural

_STRONGEST = 55  # per cent of an outcome's colour in the ground of a cell: letters stay readable
_ROW, _HEIGHT = 16, 190  # pixels of the specification curve: a row of settings, the drawing of effects
_WIDEST_STEP, _NARROWEST_STEP, _WANTED = 18.0, 4.0, 780.0  # pixels from one specification to the next; of the curve
_MARKS = {"supported": "disc", "contradicted": "square"}  # others are rings


class HeatCell(NamedTuple):
    """A field of a heat map: the specifications that share two settings.

    Attributes:
      number: their mean effect in words, or a dash.
      outcome: what all of them came out as; "" if they differ or there are none.
      told: how many hold, in words.
      ground: the outcome whose colour lies under it, or "".
      strength: of the colour, per cent.
    """

    number: str
    outcome: str
    told: str
    ground: str
    strength: int


@dataclass(frozen=True)
class HeatMap:
    """Effects and outcomes over a pair of axes; ``rows`` is None where there is one axis alone."""

    rows: Axis | None
    columns: Axis
    cells: Sequence[Sequence[HeatCell]]

    @property
    def title(self) -> str:
        """The axes in words."""
        return f"{self.rows.name} and {self.columns.name}" if self.rows else self.columns.name


def heat_maps(found: ClaimMap) -> list[HeatMap]:
    """A heat map for each pair of axes with several values; the axis with fewer values makes the columns."""
    axes = [axis for axis in found.all_axes if len(axis.values) > 1] or list(found.all_axes[:1])
    pairs: list[tuple[Axis | None, Axis]] = list(itertools.combinations(axes, 2)) if len(axes) > 1 else [(None, axes[0])]
    slacks = [abs(_slack(found, spec.interval.estimate)) for spec in found.specifications if spec.interval]
    scale = float(np.quantile(slacks, 0.9)) if slacks else 1.0
    maps = []
    for first, second in pairs:
        rows, columns = (second, first) if first and len(second.values) > len(first.values) else (first, second)
        assert columns is not None
        at = collections.defaultdict(list)
        for spec in found.specifications:
            for row, column in itertools.product(_numbers(rows, spec), _numbers(columns, spec)):
                at[row, column].append(spec)
        size = len(rows.values) if rows else 1
        cells = [[_heat_cell(found, at[row, column], scale) for column in range(len(columns.values))] for row in range(size)]
        maps.append(HeatMap(rows, columns, cells))
    return maps


def _numbers(axis: Axis | None, spec: Specification) -> Sequence[int]:
    """Where a specification stands on an axis: everywhere on one that does not apply to it."""
    if axis is None:
        return [0]
    return [axis.values.index(spec.point[axis.name])] if axis.name in spec.point else range(len(axis.values))


def _heat_cell(found: ClaimMap, specs: Sequence[Specification], scale: float) -> HeatCell:
    effects = [spec.interval.estimate for spec in specs if spec.interval]
    outcomes = {spec.outcome for spec in specs}
    common = outcomes.pop() if len(outcomes) == 1 else ""
    holding = sum(spec.outcome == "supported" for spec in specs)
    told = common or f"{holding} of {len(specs)} hold" if specs else "not tried"
    if len(specs) > 1 and common:
        told = f"all {len(specs)} {'hold' if common == 'supported' else common}"
    if not effects:
        return HeatCell("–", common, told, "", 0)
    slack = float(np.mean([_slack(found, effect) for effect in effects])) / (scale or 1.0)
    strength = round(_STRONGEST * min(abs(slack), 1.0) ** 0.7)
    return HeatCell(format_number(float(np.mean(effects))), common, told, "supported" if slack > 0 else "contradicted", strength)


def _slack(found: ClaimMap, effect: float) -> float:
    low, high = found.claim.rule.region
    return min(effect - low, high - effect)


class Mark(NamedTuple):
    """A specification in the curve: its middle, estimate and ends in pixels, its outcome, and itself in words."""

    x: float
    y: float
    low: float
    high: float
    outcome: str
    shape: str
    told: str


@dataclass(frozen=True)
class Curve:
    """The specification curve in pixels.

    Attributes:
      width, step: of the drawing, and of a specification in it.
      marks: the specifications, sorted by effect.
      region: top and height of the region in which the claim holds.
      limits: heights of its ends, with their numbers.
      rows: for each axis its name and for each value its text and the middles of the specifications that have it.
      left_out: specifications without an effect.
    """

    width: float
    step: float
    marks: Sequence[Mark]
    region: tuple[float, float]
    limits: Sequence[tuple[float, str]]
    rows: Sequence[tuple[str, Sequence[tuple[str, Sequence[float]]]]]
    left_out: int

    height = _HEIGHT
    row = _ROW

    @property
    def num_rows(self) -> int:
        """The rows of the settings, the names of axes included."""
        return sum(1 + len(values) for _, values in self.rows)


def curve(found: ClaimMap) -> Curve | None:
    """Effects of all specifications, sorted, with the settings of each beneath; None without an effect."""
    measured = sorted((spec for spec in found.specifications if spec.interval), key=lambda spec: spec.interval.estimate)  # type: ignore[union-attr]
    if not measured:
        return None
    intervals = [spec.interval for spec in measured if spec.interval]
    limits = [end for end in found.claim.rule.region if math.isfinite(end)]
    y = _scale([*limits, *_sensible_ends(intervals)])
    step = min(max(_WANTED / len(measured), _NARROWEST_STEP), _WIDEST_STEP)
    middles = [round(step * (number + 0.5) + 6, 1) for number in range(len(measured))]
    marks = [
        Mark(x, y(i.estimate), y(i.low), y(i.high), s.outcome, _MARKS.get(s.outcome, "ring"), _told(s))
        for x, s, i in zip(middles, measured, intervals, strict=True)
    ]
    top, bottom = (y(end) if math.isfinite(end) else (0.0, float(_HEIGHT))[end < 0] for end in reversed(found.claim.rule.region))
    rows = []
    for axis in (axis for axis in found.all_axes if len(axis.values) > 1):
        having = [
            (value_text(v), [x for x, s in zip(middles, measured, strict=True) if s.point.get(axis.name, _Nothing) == v])
            for v in axis.values
        ]
        rows.append((axis.name, having))
    width = round(step * len(measured) + 12, 1)
    told_limits = [(y(end), f"{end:.4g}") for end in limits]
    return Curve(width, step, marks, (top, bottom - top), told_limits, rows, len(found.specifications) - len(measured))


class _Nothing:
    """No value of any axis."""


def _sensible_ends(intervals: Sequence[stats.Interval]) -> list[float]:
    """What the drawing covers: all estimates, and ends of intervals but for a few wild ones."""
    ends = [end for interval in intervals for end in (interval.low, interval.high)]
    low, high = np.quantile(ends, [0.05, 0.95])
    return [*(interval.estimate for interval in intervals), float(low), float(high)]


def _scale(values: Sequence[float]) -> Any:
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 1.0

    def y(value: float) -> float:
        share = (high + margin - value) / (high - low + 2 * margin)
        return round(_HEIGHT * min(max(share, 0.0), 1.0), 1)

    return y


def _told(spec: Specification) -> str:
    settings = ", ".join(f"{name} {value_text(value)}" for name, value in spec.point.items())
    return f"{settings}: {format_interval(spec.interval)}, {spec.outcome}"


_ALONG = {
    "flips": "crosses the limit in",
    "holds": "lies inside the region all along in",
    "fails": "lies outside all along in",
    "goes back and forth": "is decided both ways more than once in",
}


def along_sentences(along: AlongAxis) -> list[str]:
    """What the effect does along an axis, in sentences."""
    total = sum(along.lines.values())
    if not total:
        return ["No two cells along it have an effect."]
    told = ", ".join(f"{_ALONG[kind]} {count}" for kind, count in along.lines.items())
    sentences = [f"Over {plural(total, 'line')} of the grid along it the effect {told}."]
    if along.of_mean:
        return [*sentences, f"The mean effect of the complete lines {boundary_text(along.of_mean)}."]
    return [*sentences, "The mean effect of the complete lines does not cross the limit within the grid."]


def boundary_text(place: stats.Boundary) -> str:
    """A boundary in words."""
    side = "below" if place.holds_below else "above"
    low = "below the grid" if math.isinf(place.low) else f"{place.low:.4g}"
    high = "above the grid" if math.isinf(place.high) else f"{place.high:.4g}"
    return f"lies inside the region {side} {format_number(place.at)}; it crosses the limit between {low} and {high}"


def reasons(found: ClaimMap) -> dict[str, list[str]]:
    """Why cells failed, are void or were not tested, each reason with the names of its cells."""
    by_reason: dict[str, list[str]] = {}
    for cell in found.cells:
        said = cell.failure
        if cell.verdict and cell.verdict.verdict in ("void", "not tested"):
            said = cell.verdict.note
        if said:
            by_reason.setdefault(said, []).append(cell.name)
    return by_reason


def work_sentence(work: Mapping[str, int], earlier_jobs: int) -> str:
    """How many cells there are, and what the last start and those before it computed for them."""
    cells = plural(work["cells"], "cell")
    before = f"; earlier starts computed {plural(earlier_jobs, 'job')}" if earlier_jobs else ""
    if not work["jobs"]:
        return f"{cells}. The last start found all results there, of earlier starts or of runs nearby{before}."
    others = "; the results of the others were there" if work["cells_computed"] < work["cells"] else ""
    return f"{cells}. The last start computed {plural(work['jobs'], 'job')} for {work['cells_computed']} of them{others}{before}."


def noise_text(noise: float) -> str:
    """The share that noise alone would give, per cent, in words: of more than all the effects' variance there is no share."""
    return f"{noise:.1f} %" if noise <= 100 else "over 100 %"


def explained_rows(found: ClaimMap) -> list[tuple[str, float, float]]:
    """For each part of the analysis of variance its name, its share and that of noise, in per cent, the largest first."""
    parts = [(" × ".join(part.axes) or "of higher order", 100 * part.share, 100 * part.noise) for part in found.explained]
    return sorted(parts, key=lambda part: -part[1])
