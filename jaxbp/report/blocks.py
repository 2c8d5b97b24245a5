"""What a study's sections are made of: text, tables, pictures, and sections within.

Everything that comes from outside is escaped. A table scrolls sideways in a box of its own, which the keyboard reaches.
"""

import base64
import os
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jaxbp import stats
from jaxbp.report.text import escape, format_interval, format_number, prose

MAX_SVG_BYTES = 250_000  # a figure beyond this goes into the page as PNG


def mean_cell(values: ArrayLike, otherwise: str) -> stats.Interval | str:
    """The mean over seeds with its 95 % t interval, for a table; or how many of ``values`` are not finite, called ``otherwise``."""
    values = np.asarray(values)
    if num_bad := np.count_nonzero(~np.isfinite(values)):
        return f"{num_bad} of {len(values)} {otherwise}"
    return stats.t_interval(values)


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

    def to_html(self) -> str:
        """Write the table in a box that scrolls sideways where it does not fit; the first column names the rows."""
        by_column = list(zip(*self.rows, strict=True)) or [()] * len(self.columns)
        kinds = [' class="number"' if _mostly_numbers(cells) else "" for cells in by_column]
        head = _row(self.columns, kinds, head=True)
        body = "".join(_row(map(_written, row), kinds) for row in self.rows)
        caption = escape(self.caption)
        return (
            f"<figure><figcaption>{prose(self.caption)}</figcaption>"
            f'<div class="scroll" role="group" tabindex="0" aria-label="{caption}">'
            f"<table><thead>{head}</thead><tbody>{body}</tbody></table></div></figure>"
        )


def _row(texts: Iterable[str], kinds: Sequence[str], *, head: bool = False) -> str:
    cells = []
    for column, (text, kind) in enumerate(zip(texts, kinds, strict=True)):
        scope = "col" if head else "row"
        tag, attributes = ("th", f' scope="{scope}"{kind}') if head or not column else ("td", kind)
        cells.append(f"<{tag}{attributes}>{escape(text)}</{tag}>")
    return f"<tr>{''.join(cells)}</tr>"


def _mostly_numbers(cells: Sequence[Any]) -> bool:
    filled = [cell for cell in cells if cell is not None]
    return 2 * sum(map(_is_number, filled)) > len(filled)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real | stats.Interval) and not isinstance(value, bool)


def _written(value: Any) -> str:
    if isinstance(value, stats.Interval):
        return format_interval(value)
    return format_number(value) if value is None or _is_number(value) else str(value)


@dataclass(frozen=True)
class Picture:
    """A saved figure (a path of `save_figure`), ``alt`` for those who cannot see it, and a caption."""

    path: str | os.PathLike
    alt: str
    caption: str

    def to_html(self) -> str:
        """Embed the figure as an image: the ids in several inline SVGs of matplotlib would collide. A phone may enlarge it."""
        path, bitmap = Path(self.path), Path(self.path).with_suffix(".png")
        if path.suffix == ".svg" and path.stat().st_size > MAX_SVG_BYTES and bitmap.exists():
            path = bitmap
        kind = {".svg": "svg+xml", ".png": "png"}.get(path.suffix)
        if kind is None:
            raise ValueError(f"a picture is a .svg or .png file, got {path}")
        content = path.read_bytes()
        data, size = base64.b64encode(content).decode(), _size(content)
        return (
            '<figure class="picture"><div class="scroll">'
            f'<img src="data:image/{kind};base64,{data}" alt="{escape(self.alt)}" decoding="async"{size}>'
            '<label class="enlarge"><input type="checkbox"> enlarge the figure</label></div>'
            f"<figcaption>{prose(self.caption)}</figcaption></figure>"
        )


def _size(content: bytes) -> str:
    """Attributes that keep an image's place until it is decoded, in CSS pixels (96 an inch); none where its file does not tell."""
    if content.startswith(b"\x89PNG"):
        ends: Iterable[float] = struct.unpack(">II", content[16:24])
        at = content.find(b"pHYs", 0, 1000)
        per_metre = struct.unpack(">I", content[at + 4 : at + 8])[0] if at > 0 else 96 / 0.0254
        scale = 96 / 0.0254 / per_metre
    elif found := re.search(rb'<svg[^>]* width="([\d.]+)pt" height="([\d.]+)pt"', content[:5000]):
        ends, scale = map(float, found.groups()), 96 / 72
    else:
        return ""
    width, height = (round(end * scale) for end in ends)
    return f' width="{width}" height="{height}"'


@dataclass(frozen=True)
class Section:
    """A heading over ``blocks``: text (a paragraph each), Table, Picture, or Sections one level down."""

    title: str
    blocks: "Sequence[str | Table | Picture | Section]"

    def __post_init__(self):
        if isinstance(self.blocks, str):
            raise TypeError(f"blocks is a list, got the text {self.blocks[:30]!r}: put brackets around it")

    def to_html(self, level: int = 2, anchor: str = "") -> str:
        """Write the section with a heading of ``level``; ``anchor`` is what links to it name."""
        place = f' id="{escape(anchor)}"' if anchor else ""
        parts = [f"<section{place}><h{level}>{escape(self.title)}</h{level}>"]
        for block in self.blocks:
            if isinstance(block, Section):
                parts.append(block.to_html(min(level + 1, 6)))
            else:
                parts.append(f"<p>{prose(block)}</p>" if isinstance(block, str) else block.to_html())
        return "\n".join([*parts, "</section>"])
