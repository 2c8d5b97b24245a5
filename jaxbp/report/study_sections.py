"""The sections of a study's page, from what the study declares: its figures, its tables, and how it was measured."""

import os
from collections.abc import Sequence
from typing import Any

from jaxbp.report.blocks import Picture, Section
from jaxbp.report.declared_figures import DeclaredFigure
from jaxbp.report.declared_tables import DeclaredTable


def draw_figures(run: Any, figures: Sequence[DeclaredFigure], folder: str | os.PathLike) -> list[Picture]:
    """Draw all declared figures that the run has data for, in their order.

    Raises:
      ValueError: two figures have the same file name.
    """
    pictures = [picture for figure in figures for picture in figure.pictures(run, folder)]
    paths = [str(picture.path) for picture in pictures]
    if twice := sorted({path for path in paths if paths.count(path) > 1}):
        raise ValueError(f"each figure needs a file name of its own, got {twice} twice: give a name=")
    return pictures


def build_sections(
    run: Any,
    folder: str | os.PathLike,
    *,
    figures: Sequence[DeclaredFigure] = (),
    tables: Sequence[DeclaredTable] = (),
    method: Sequence[str] = (),
) -> list[Section]:
    """Draw and list everything declared: figures first, the tables by their headings, then the method, a paragraph an item."""
    by_heading: dict[str, list] = {}
    if pictures := draw_figures(run, figures, folder):
        by_heading["Figures"] = list(pictures)
    for table in tables:
        for section in table.sections(run):
            by_heading.setdefault(section.title, []).extend(section.blocks)
    if method:
        by_heading.setdefault("Method", []).extend(method)
    return [Section(heading, blocks) for heading, blocks in by_heading.items()]
