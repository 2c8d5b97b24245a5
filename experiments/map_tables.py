"""What README and guide show of published maps: where claims hold, in Markdown, from the arrays under version control."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from scipy.special import stdtrit

from jaxbp import lab, stats
from jaxbp.claims.claim_map import CASE, value_text
from jaxbp.report.text import format_number

MAPS = Path(__file__).parent / "published" / "maps"
_FILES = ("map.html", "map.nc")
_MOST_PARTS = 2  # that are named as explaining the effect


def is_map(run: Path) -> bool:
    """Whether a folder is that of a map."""
    return (run / _FILES[1]).exists()


def take(run: Path) -> None:
    """Copy the page and the arrays of a map to the published ones, in place of an earlier map of that claim."""
    folder = MAPS / str(lab.open_map(run).attrs["claim"])
    folder.mkdir(parents=True, exist_ok=True)
    for name in _FILES:
        shutil.copyfile(run / name, folder / name)


def published() -> dict[str, xr.Dataset]:
    """The published maps by their claims."""
    return {path.name: lab.open_map(path) for path in sorted(MAPS.iterdir()) if is_map(path)}


def overview(maps: dict[str, xr.Dataset]) -> str:
    """A row a map: the claim, what varied, how often it holds, and what explains the effect."""
    lines = ["| claim | over | result | what explains the effect |", "|---|---|---|---|"]
    for name, result in maps.items():
        over = "; ".join(_told(result, axis) for axis in _varied(result))
        lines.append(f"| {name} {result.attrs['statement']} | {over} | {result.attrs['headline']} | {_explained(result)} |")
    return "\n".join([*lines, "", *(f"- {name}: `{_command(result)}`" for name, result in maps.items())])


def grid(result: xr.Dataset) -> str:
    """A map of two axes as a table: effect and outcome at each point, the axis with more values across."""
    down, across = sorted(_varied(result), key=lambda axis: result.sizes[axis])
    flat = result.squeeze(drop=True).transpose(down, across)
    heads = [f"{across} {value_text(value)}" for value in flat[across].values]
    lines = [f"| {' | '.join([down, *heads])} |", "|---" * (len(heads) + 1) + "|"]
    for place, value in enumerate(flat[down].values):
        row = flat.isel({down: place})
        cells = [f"{format_number(float(e))}, {o}" for e, o in zip(row.effect.values, row.outcome.values, strict=True)]
        lines.append(f"| {' | '.join([value_text(value), *cells])} |")
    return "\n".join([*lines, "", f"{result.attrs['claim']} {result.attrs['headline']}: `{_command(result)}`."])


def _command(result: xr.Dataset) -> str:
    return str(result.attrs["command"]).replace("'", '"')


def _told(result: xr.Dataset, axis: str) -> str:
    values = result[axis].values
    return f"{len(values)} cases" if axis == CASE else f"{axis} {', '.join(value_text(value) for value in values)}"


def _varied(result: xr.Dataset) -> list[str]:
    return [str(axis) for axis in result.effect.dims if result.sizes[axis] > 1]


def _explained(result: xr.Dataset) -> str:
    """The largest parts of the analysis of variance that exceed what the spread of seeds alone would give."""
    effects, counts = result.effect.values.ravel(), result.num_seeds.values.ravel()
    widths = (result.high - result.low).values.ravel()
    known = np.isfinite(effects) & np.isfinite(widths)
    places = np.unravel_index(np.flatnonzero(known), result.effect.shape)
    levels = {str(axis): levels.tolist() for axis, levels in zip(result.effect.dims, places, strict=True)}
    errors = widths[known] / 2 / stdtrit(np.maximum(counts[known] - 1, 1), 0.975)
    parts = stats.functional_anova(levels, effects[known], errors=errors)
    return _named(sorted((part for part in parts if part.axes and part.share > part.noise), key=lambda part: -round(part.share, 9)))


def _named(parts: Sequence[Any]) -> str:
    told = [f"{' and '.join(part.axes)}{' together' * (len(part.axes) > 1)} {100 * part.share:.0f} %" for part in parts[:_MOST_PARTS]]
    return ", ".join(told) or "nothing beyond the spread of seeds"
