"""Tables that a study declares: what to list from a finished run, not how.

A declaration's method ``tables(run)`` returns the tables of all cases that have data; ``sections(run)`` puts them under their headings.

>>> from types import SimpleNamespace
>>> import xarray as xr
>>> from jaxbp import report
>>> accuracy = xr.DataArray([[91.0, 92.0], [93.0, 95.0]], dims=("arm", "seed"), coords={"arm": ["none", "weight decay"]})
>>> run = SimpleNamespace(cases=[SimpleNamespace(case=None, name="MLP", compare=xr.Dataset({"test_accuracy": accuracy}))])
>>> (table,) = report.MeanTable("compare.test_accuracy", columns="arm", caption="Test accuracy in per cent.").tables(run)
>>> table.columns
['case', 'none', 'weight decay']
>>> [report.format_interval(interval) for interval in table.rows[0][1:]]
['91.5 [85.1, 97.9]', '94 [81, 107]']
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from jaxbp import stats
from jaxbp.report.blocks import Section, Table, mean_cell
from jaxbp.report.labelled_values import (
    Labels,
    Text,
    Values,
    at,
    call_if_measured,
    coordinates,
    has_dim,
    labelled_arrays,
    quantity,
    read_values,
    selected_cases,
)


@dataclass(frozen=True)
class DeclaredTable:
    """What all declared tables have in common.

    Attributes:
      section: heading under which the table stands, or a function that returns it: of the run, or with ``per_case`` of the case
        result. Tables of one heading stand together.
      where: function of a case that selects the cases to list. Default: all.
      per_case: make a table for each case in place of one for all.
    """

    _: KW_ONLY
    section: Text = "Measured"
    where: Callable[[Any], bool] | None = None
    per_case: bool = False

    def tables(self, run: Any) -> list[Table]:
        """The tables that the run has data for."""
        return [table for _, table in self._owned_tables(run)]

    def sections(self, run: Any) -> list[Section]:
        """A section for each heading, with its tables."""
        by_heading: dict[str, list[Table]] = {}
        for owner, table in self._owned_tables(run):
            by_heading.setdefault(self.section(owner) if callable(self.section) else self.section, []).append(table)
        return [Section(heading, tables) for heading, tables in by_heading.items()]

    def _owned_tables(self, run: Any) -> list[tuple[Any, Table]]:
        cases = selected_cases(run, self.where)
        owners = [(m, [m]) for m in cases] if self.per_case else [(run, cases)]
        built = [(owner, self._build(owner, of_owner)) for owner, of_owner in owners]
        return [(owner, table) for owner, table in built if table is not None]

    def _build(self, owner: Any, cases: Sequence[Any]) -> Table | None:
        """The table of the run (or case result) ``owner``, which lists ``cases``; None without data."""
        raise NotImplementedError


@dataclass(frozen=True)
class MeanTable(DeclaredTable):
    """Means over seeds with 95 % t intervals, a row a case (and coordinate of ``rows``), beside other values such as a paper's.

    Attributes:
      values: "stage.variable", or a function of a case result that returns a labelled array, a mapping of headings to arrays, numbers,
        texts or None, or None. An array over seeds becomes mean and interval; an array without dimensions, and anything else, is
        written as it is.
      columns: dimension whose coordinates are columns. A mapping needs none.
      rows: further dimensions with a row for each coordinate, the last one fastest.
      show: coordinates of ``columns`` (keys of a mapping) to list, in this order. Default: all.
      labels: headings in place of coordinates: a mapping, which may lack some, or a function.
      beside: further columns: by heading a function of the case result and a row's coordinates, in the order of ``rows``.
      headings: of the columns that name a row. Default: "case" (not with ``per_case``) and the names of ``rows``.
      row_names: function of the case result and a row's coordinates that returns the cells under ``headings``.
      p_values: after each column of means the two-sided p value of a mean of 0, adjusted over the rows of the column by Holm.
      cell_fn: what becomes of an array over seeds. Default: `mean_cell` with ``not_finite``.
      not_finite: word for seeds without a finite value, as in "2 of 5 diverged".
      caption: the text above the table, or a function that returns it, as for ``section``.
    """

    values: Values
    _: KW_ONLY
    caption: Text
    columns: str | None = None
    rows: Sequence[str] = ()
    show: Sequence[Any] | None = None
    labels: Labels = None
    beside: "Mapping[str, Callable[..., Any]] | None" = None
    headings: Sequence[str] | None = None
    row_names: "Callable[..., Sequence[Any]] | None" = None
    p_values: bool = False
    cell_fn: Callable[[np.ndarray], Any] | None = None
    not_finite: str = "not finite"

    def __post_init__(self):
        if isinstance(self.rows, str):
            raise TypeError(f"rows is a list of dimensions, got the text {self.rows!r}: put brackets around it")

    def _build(self, owner: Any, cases: Sequence[Any]) -> Table | None:
        read = [(m, read_values(self.values, m)) for m in cases]
        by_case = [(m, labelled_arrays(content, self.columns, self.show, self.labels)) for m, content in read if content is not None]
        rows = [(m, *row) for m, cells in by_case if cells for row in self._rows(cells)]
        if not rows:
            return None
        measured = list(dict.fromkeys(label for _, cells in by_case for label in cells))
        names = [self._row_name(m, place) for m, place, _ in rows]
        columns = {label: [cells.get(label) for _, _, cells in rows] for label in measured}
        beside = {label: [value_fn(m, *place) for m, place, _ in rows] for label, value_fn in (self.beside or {}).items()}
        table: list[tuple[str, Sequence[Any]]] = []
        for label, values in columns.items():
            table.append((label or quantity(self.values, values), [self._cell(value) for value in values]))
            if self.p_values:
                table.append(("p (Holm)", _adjusted_p_values(values)))
        table += beside.items()
        caption = self.caption(owner) if callable(self.caption) else self.caption
        headings = [*self._headings(), *(label for label, _ in table)]
        return Table(headings, [(*name, *cells) for name, *cells in zip(names, *(cells for _, cells in table), strict=True)], caption)

    def _rows(self, cells: Mapping[str, Any]) -> list[tuple[tuple, dict[str, Any]]]:
        """Coordinates of each row and its cells, still arrays."""
        axes = []
        for dim in self.rows:
            labelled = next((cell for cell in cells.values() if has_dim(cell, dim)), None)
            if labelled is None:
                raise ValueError(f"no array has the dimension {dim!r} that rows names; the columns are {list(cells)}")
            axes.append(coordinates(labelled, dim))
        places = itertools.product(*axes)
        return [(place, {label: at(cell, dict(zip(self.rows, place, strict=True))) for label, cell in cells.items()}) for place in places]

    def _headings(self) -> list[str]:
        if self.headings is not None:
            return list(self.headings)
        return [*([] if self.per_case else ["case"]), *self.rows]

    def _row_name(self, m: Any, place: tuple) -> Sequence[Any]:
        if self.row_names is not None:
            return self.row_names(m, *place)
        return [*([] if self.per_case else [m.name]), *place]

    def _cell(self, value: Any) -> Any:
        array = value if isinstance(value, np.ndarray) or hasattr(value, "dims") else None
        if array is None:
            return value
        if not array.ndim:
            return array.item()
        if array.ndim > 1:
            shape = getattr(array, "dims", array.shape)
            raise ValueError(f"a cell is one number a seed, got an array over {shape}; name its dimensions in `columns` or `rows`")
        return self.cell_fn(np.asarray(array)) if self.cell_fn else mean_cell(np.asarray(array, np.float64), self.not_finite)


def _adjusted_p_values(values: Sequence[Any]) -> list[float | None]:
    """Holm's p values of the columns' arrays that are finite, in their order; None for the others."""
    usable = [value is not None and np.size(value) > 1 and bool(np.isfinite(np.asarray(value, np.float64)).all()) for value in values]
    adjusted = iter(stats.holm([stats.p_value(np.asarray(value)) for value, use in zip(values, usable, strict=True) if use]))
    return [float(next(adjusted)) if use else None for use in usable]


@dataclass(frozen=True)
class CustomTable(DeclaredTable):
    """A table that a function of the study builds.

    Attributes:
      build_fn: function that returns a `Table`, or None for nothing to list: of the run, or with ``per_case`` of a case result. A
        case that lacks a stage which the function reads is left out.
    """

    build_fn: Callable[[Any], Table | None]

    def _build(self, owner: Any, cases: Sequence[Any]) -> Table | None:
        return call_if_measured(self.build_fn, owner)
