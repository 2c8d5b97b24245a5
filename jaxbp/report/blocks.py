"""What a study's sections are made of: text, tables, pictures, and sections within.

They hold what is shown; `jaxbp.report.rendering` writes them as HTML.
"""

import base64
import math
import os
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxbp import stats
from jaxbp.report.text import format_interval, format_number

MAX_SVG_BYTES = 250_000  # a figure beyond this goes into the page as PNG


def mean_cell(values: ArrayLike, otherwise: str) -> stats.Interval | str:
    """The mean over seeds with its 95 % t interval, for a table; or how many of ``values`` are not finite, called ``otherwise``."""
    values = np.asarray(values)
    if num_bad := np.count_nonzero(~np.isfinite(values)):
        return f"{num_bad} of {len(values)} {otherwise}"
    if len(values) < 2:
        return f"{format_number(float(values[0]))} (1 seed)" if len(values) else "no seeds"
    return stats.t_interval(values)


def geometric_mean_cell(values: ArrayLike, otherwise: str) -> stats.Interval | str:
    """As `mean_cell`, but the mean of the logarithms, and the ends taken back: for losses and others that spread over decades.

    Values that are not all positive have their `mean_cell`.
    """
    values = np.asarray(values)
    if not (np.isfinite(values).all() and (values > 0).all() and len(values) > 1):
        return mean_cell(values, otherwise)
    interval = stats.t_interval(np.log(values))
    estimate, low, high = map(math.exp, (interval.estimate, interval.low, interval.high))
    return stats.Interval(estimate, low, high, interval.confidence, interval.num_seeds, "t over logarithms")


@dataclass(frozen=True)
class Table:
    """Rows under named columns. Numbers are written to three digits, an Interval as such, None as a dash."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str

    def __post_init__(self):
        lengths = {len(row) for row in self.rows} - {len(self.columns)}
        if lengths:
            raise ValueError(f"every row needs {len(self.columns)} cells, one per column, got {sorted(lengths)}")

    def numeric_columns(self) -> list[bool]:
        """Which columns hold mostly numbers."""
        by_column = list(zip(*self.rows, strict=True)) or [()] * len(self.columns)
        return [_mostly_numbers(cells) for cells in by_column]


def _mostly_numbers(cells: Sequence[Any]) -> bool:
    filled = [cell for cell in cells if cell is not None]
    return 2 * sum(map(_is_number, filled)) > len(filled)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real | stats.Interval) and not isinstance(value, bool)


def cell_text(value: Any) -> str:
    """A table's cell as text."""
    if isinstance(value, stats.Interval):
        return format_interval(value)
    return format_number(value) if value is None or _is_number(value) else str(value)


@dataclass(frozen=True)
class Picture:
    """A saved figure (a path of `save_figure`), ``alt`` for those who cannot see it, and a caption."""

    path: str | os.PathLike
    alt: str
    caption: str

    def read_image(self) -> "Image":
        """Read the file as an image that a page can embed.

        Raises:
          ValueError: the file is neither SVG nor PNG.
        """
        path, bitmap = Path(self.path), Path(self.path).with_suffix(".png")
        if path.suffix == ".svg" and path.stat().st_size > MAX_SVG_BYTES and bitmap.exists():
            path = bitmap
        kind = {".svg": "svg+xml", ".png": "png"}.get(path.suffix)
        if kind is None:
            raise ValueError(f"a picture is a .svg or .png file, got {path}")
        content = path.read_bytes()
        return Image(f"data:image/{kind};base64,{base64.b64encode(content).decode()}", _size(content))


class Image(NamedTuple):
    """A figure's file for a page.

    Attributes:
      uri: the file as a data URI.
      size: width and height in CSS pixels (96 an inch), which keep its place until it is decoded; None where the file does not tell.
    """

    uri: str
    size: tuple[int, int] | None


def _size(content: bytes) -> tuple[int, int] | None:
    if content.startswith(b"\x89PNG"):
        ends: Iterable[float] = struct.unpack(">II", content[16:24])
        at = content.find(b"pHYs", 0, 1000)
        per_metre = struct.unpack(">I", content[at + 4 : at + 8])[0] if at > 0 else 96 / 0.0254
        scale = 96 / 0.0254 / per_metre
    elif attributes := re.search(rb'<svg[^>]* width="([\d.]+)pt" height="([\d.]+)pt"', content[:5000]):
        ends, scale = map(float, attributes.groups()), 96 / 72
    else:
        return None
    width, height = (round(end * scale) for end in ends)
    return width, height


@dataclass(frozen=True)
class Section:
    """A heading over ``blocks``: text (a paragraph each), Table, Picture, or Sections one level down."""

    title: str
    blocks: "Sequence[str | Table | Picture | Section]"

    def __post_init__(self):
        if isinstance(self.blocks, str):
            raise TypeError(f"blocks is a list, got the text {self.blocks[:30]!r}: put brackets around it")
