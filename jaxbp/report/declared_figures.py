"""Figures that a study declares: what to draw from a finished run, not how.

A declaration names a variable of a stage, or a function of a case result ``m`` (see `jaxbp.report.labelled_values`), and the
dimensions that become strips, curves, panels. Its method ``pictures(run, folder)`` draws all cases that have data.

>>> from jaxbp import report
>>> accuracies = report.SeedStrip("compare.test_accuracy", by="arm", joined=True, caption="Test accuracy at the end of training.")
>>> norms = report.SeedCurves("compare.norm", x="epoch", by="arm", log=True, caption="Norm of all parameters along training.")
"""

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jaxbp.report import figures
from jaxbp.report.blocks import Picture
from jaxbp.report.labelled_values import (
    Labels,
    Text,
    Values,
    call_if_measured,
    has_dim,
    labelled_arrays,
    quantity,
    read_values,
    seed_matrix,
    seed_vector,
    selected_cases,
    split_all,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CASES = "case"  # as `by`: a strip or curve a case, all in one panel

_NUM_COLOURS = len(figures.PALETTE)


@dataclass
class Panel:
    """What one pair of axes shows: arrays by label, and the first case result that they come from."""

    title: str
    m: Any
    arrays: dict[str, Any]


@dataclass(frozen=True)
class DeclaredFigure:
    """What all declared figures have in common.

    Attributes:
      caption: the text under the figure, or a function that returns it: of the run, or with ``per_case`` of the case result.
      alt: what the figure shows, for readers who cannot see it; text or function as ``caption``.
      name: of the files, without ending; with ``per_case`` the case's name is appended.
      where: function of a case that selects the cases to draw. Default: all.
      per_case: draw a figure for each case in place of one for all.
    """

    _: KW_ONLY
    caption: Text
    alt: Text = ""
    name: str = ""
    where: Callable[[Any], bool] | None = None
    per_case: bool = False

    def pictures(self, run: Any, folder: str | os.PathLike) -> list[Picture]:
        """Draw what the run has data for, and write it as ``folder/name.png`` and ``.svg``."""
        cases = selected_cases(run, self.where)
        if not self.per_case:
            fig = self._draw(run, cases)
            return [] if fig is None else [self._save(fig, run, folder, self._file_name())]
        drawn = ((m, self._draw(m, [m])) for m in cases)
        return [self._save(fig, m, folder, f"{self._file_name()}_{_slug(m.name)}", m.name) for m, fig in drawn if fig is not None]

    def _draw(self, owner: Any, cases: Sequence[Any]) -> "Figure | None":
        """The figure of the run (or case result) ``owner``, which shows ``cases``; None without data."""
        raise NotImplementedError

    def _save(self, fig: "Figure", owner: Any, folder: str | os.PathLike, name: str, case: str = "") -> Picture:
        alt, caption = (text(owner) if callable(text) else text for text in (self.alt or self._alt(fig), self.caption))
        if case:
            alt, caption = f"{case}: {alt}", f"{case}. {caption}"
        return Picture(figures.save_figure(fig, folder, name)[1], alt, caption)

    def _file_name(self) -> str:
        return self.name

    def _alt(self, fig: "Figure") -> str:
        axes = next((ax for ax in fig.axes if ax.get_visible()), None)
        labels = [axes.get_ylabel(), axes.get_xlabel()] if axes is not None else []
        return " against ".join(filter(None, labels)) or self._file_name().replace("_", " ")


@dataclass(frozen=True)
class PanelFigure(DeclaredFigure):
    """Panels of measured values: a panel a case, or several.

    Attributes:
      values: "stage.variable", or a function of a case result that returns a labelled array, a mapping of labels to arrays, or None.
      by: dimension whose coordinates are strips or curves of a panel; `CASES` ("case"): all cases in one panel. A mapping needs none.
      show: coordinates of ``by`` (keys of a mapping) to draw, in this order; those that a case lacks are left out. Default: all.
      labels: texts in place of coordinates: a mapping, which may lack some, or a function.
      panel_by: further dimension with a panel for each coordinate.
      title: function of a case result that returns the title of its panel; cases of one title share a panel. Default: the case's name.
      stacked: panels one below another in full width, in place of two a row.
      height: of the figure in inches. Default: by what it shows.
      share_x, share_y: all panels have the same axis.
      log: logarithmic axis; means and intervals are those of the logarithms.
      xlabel, ylabel: of the axes. The axis of the values defaults to the array's ``long_name`` and ``units``, or the variable's name.
      limits: lowest and highest of the values' axis.
      lines: reference lines across the values' axis: a number, several, several by the label that is written beside them, or a function
        of a case result that returns them.
      decorate: function of axes and case result that adds to a panel, in the style of the house.
    """

    values: Values
    _: KW_ONLY
    by: str | None = None
    show: Sequence[Any] | None = None
    labels: Labels = None
    panel_by: str | None = None
    title: Callable[[Any], str] | None = None
    stacked: bool = False
    height: float | None = None
    share_x: bool = False
    share_y: bool = False
    log: bool = False
    xlabel: str | None = None
    ylabel: str | None = None
    limits: tuple[float, float] | None = None
    lines: float | Sequence[float] | Mapping[str, float] | Callable[[Any], Any] | None = None
    decorate: Callable[["Axes", Any], None] | None = None

    def __post_init__(self):
        if callable(self.values) and not self.name:
            raise ValueError("a figure whose values are a function needs a name for its files, got none")
        if isinstance(self.values, str) and self.values.count(".") != 1:
            raise ValueError(f'values are "stage.variable" or a function of a case result, got {self.values!r}')

    def _file_name(self) -> str:
        return self.name or str(self.values).rpartition(".")[2]

    def _content(self, m: Any) -> Any:
        return read_values(self.values, m)

    def _panels(self, cases: Sequence[Any]) -> list[Panel]:
        panels: dict[str, Panel] = {}
        for m in cases:
            content = self._content(m)
            if content is None:
                continue
            arrays = labelled_arrays(content, self.by, self.show, self.labels)
            if self.by == CASES:
                arrays = {": ".join(filter(None, (m.name, label))): array for label, array in arrays.items()}
            for coordinate, part in split_all(arrays, self.panel_by):
                title = ", ".join(filter(None, (self._title(m), coordinate)))
                panel = panels.setdefault(title, Panel(title, m, {}))
                if twice := panel.arrays.keys() & part.keys():
                    raise ValueError(f"{self._file_name()}: labels in the panel {title!r} differ, got {sorted(twice)} twice")
                panel.arrays |= part
        return list(panels.values())

    def _title(self, m: Any) -> str:
        if self.title is not None:
            return self.title(m)
        return "" if self.per_case or self.by == CASES else m.name

    def _draw(self, owner: Any, cases: Sequence[Any]) -> "Figure | None":
        panels = self._panels(cases)
        if not panels:
            return None
        fig, axes = self._axes(panels)
        labels = dict.fromkeys(label for panel in panels for label in panel.arrays)
        own_legends = any(set(labels) != set(panel.arrays) for panel in panels)  # then a legend in one panel would not tell all
        colours = dict(zip(labels, itertools.cycle(figures.PALETTE)))
        for index, (ax, panel) in enumerate(zip(axes, panels, strict=True)):
            if len(labels) <= _NUM_COLOURS:
                ax.set_prop_cycle(color=[colours[label] for label in panel.arrays])
            self._fill(ax, panel)
            with figures.style():
                self._finish(ax, panel, bottom=index == len(panels) - 1, legend=not index or own_legends)
                if self.decorate is not None:
                    self.decorate(ax, panel.m)
        if self.stacked or len(panels) == 1:  # others have their titles, two a row
            with figures.style():
                for ax, panel in zip(axes, panels, strict=True):
                    ax.set_title(figures.fitting(panel.title, ax))
        return fig

    def _axes(self, panels: Sequence[Panel]) -> "tuple[Figure, Sequence[Axes]]":
        shared = {"sharex": self.share_x, "sharey": self.share_y}
        if len(panels) > 1 and not self.stacked:
            return figures.panels([panel.title for panel in panels], height=self.height, **shared)
        fig, axes = figures.figure(len(panels), 1, height=self.height or self._stacked_height(panels), squeeze=False, **shared)
        return fig, list(axes[:, 0])

    def _stacked_height(self, panels: Sequence[Panel]) -> float | None:
        raise NotImplementedError

    def _fill(self, ax: "Axes", panel: Panel) -> None:
        """Draw the panel's arrays."""
        raise NotImplementedError

    def _finish(self, ax: "Axes", panel: Panel, *, bottom: bool, legend: bool) -> None:
        """Write labels, scales, reference lines."""
        raise NotImplementedError

    def _reference_lines(self, panel: Panel) -> list[tuple[str, float]]:
        places = self.lines(panel.m) if callable(self.lines) else self.lines
        if isinstance(places, Mapping):
            return [(label, float(place)) for label, place in places.items()]
        return [] if places is None else [("", place) for place in np.asarray(places, np.float64).ravel().tolist()]

    def _draw_upright_lines(self, ax: "Axes", panel: Panel, *, label_on_top: bool = False) -> None:
        for label, place in self._reference_lines(panel):
            ax.axvline(place, color="#444444", linestyle="--", linewidth=1)
            height, end = (0.98, "top") if label_on_top else (0.02, "bottom")
            beside: dict[str, Any] = {"rotation": 90, "ha": "right", "va": end, "fontsize": 7, "color": "#444444"}
            ax.text(place, height, label, transform=ax.get_xaxis_transform(), **beside)


@dataclass(frozen=True)
class SeedStrip(PanelFigure):
    """A row for each coordinate of ``by``: a dot for every seed, the mean, its 95 % t interval.

    Each array has one dimension, the seeds. Attributes are those of `PanelFigure`, and:

    Attributes:
      joined: join the dots of a seed across rows (of paired runs).
    """

    _: KW_ONLY
    by: str | None = "arm"
    joined: bool = False

    def _alt(self, fig: "Figure") -> str:
        labels = [ax.get_xlabel() for ax in fig.axes if ax.get_xlabel()] or [self._file_name().replace("_", " ")]
        return f"{labels[0]} by {self.by}" if self.by else labels[0]

    def _stacked_height(self, panels: Sequence[Panel]) -> float:
        arrays = [array for panel in panels for array in panel.arrays.values() if array is not None]
        rows = 0.42 * sum(len(panel.arrays) for panel in panels)
        rows += 0.16 * sum(figures.num_missing(array, self.log) > 0 for array in arrays)  # their labels have two lines
        return rows + 0.4 + 0.22 * len(panels) if len(panels) > 1 else rows + (1.3 if panels[0].title else 1.1)

    def _fill(self, ax: "Axes", panel: Panel) -> None:
        vectors = {label: seed_vector(array, label) for label, array in panel.arrays.items() if array is not None}
        if self.joined:
            by_seed = list(zip(*vectors.values(), strict=True))
            for values, offset in zip(by_seed, figures.seed_offsets(len(by_seed)), strict=True):
                ax.plot(values, np.arange(len(values)) + offset, color="#999999", linewidth=0.6, alpha=0.6, zorder=0)
        figures.strip(ax, vectors, log=self.log)

    def _finish(self, ax: "Axes", panel: Panel, *, bottom: bool, legend: bool) -> None:
        self._draw_upright_lines(ax, panel)
        if len(panel.arrays) > 6 and not (self.stacked or self.per_case):
            ax.tick_params(axis="y", labelsize=7)
        if self.limits:
            ax.set_xlim(self.limits)
        if bottom or not self.stacked:
            label = quantity(self.values, panel.arrays.values()) if self.xlabel is None else self.xlabel
            ax.set_xlabel(figures.fitting(label, ax))
        ax.set_ylabel(self.ylabel or "")


@dataclass(frozen=True)
class SeedCurves(PanelFigure):
    """A curve over ``x`` for each coordinate of ``by``: a thin line a seed, the mean, its 95 % band.

    Each array has the dimensions seed and ``x``. Coordinates that are text, such as names of layers, are numbered from 1.
    Attributes are those of `PanelFigure`, and:

    Attributes:
      x: dimension along the horizontal axis; its label there defaults to this name.
      x_scale: "log2" writes each point's coordinate, as for widths; "symlog" is linear up to 1, as for epochs spaced by logarithms.
      legend: where labels stand: in the first panel (in each if labels differ), in "each" panel, or "below" the figure.
      mean_only: draw the means alone, without dots, seeds or band, as for curves of many points.
      dashed: labels of curves that are dashed and lie above the others, which shine through.
    """

    _: KW_ONLY
    x: str = "epoch"
    by: str | None = "arm"
    x_scale: Literal["linear", "log", "log2", "symlog"] = "linear"
    legend: Literal["first", "each", "below"] = "first"
    mean_only: bool = False
    dashed: Sequence[str] = ()

    def _stacked_height(self, panels: Sequence[Panel]) -> float | None:
        return 4.4 if len(panels) == 1 and self.legend == "below" else 3.8 * len(panels) if len(panels) > 1 else None

    def _fill(self, ax: "Axes", panel: Panel) -> None:
        for label, array in panel.arrays.items():
            if array is None:
                continue
            matrix, (places, _) = seed_matrix(array, self.x, label), self._places(array)
            if not self.mean_only:
                figures.curve(ax, places, matrix, label=label or None, log=self.log, dashed=label in self.dashed)
                continue
            above: dict[str, Any] = {"linestyle": "--", "zorder": 3} if label in self.dashed else {}
            with figures.style():
                ax.plot(places, matrix.mean(0), label=label or None, alpha=0.9, **above)

    def _places(self, array: Any) -> tuple[np.ndarray, bool]:
        """Where the points lie along the horizontal axis, and whether they are only numbered."""
        numbers = np.asarray(array[self.x].values) if has_dim(array, self.x) else np.arange(1, np.shape(array)[-1] + 1)
        numbered = numbers.dtype.kind not in "iufb"
        return np.arange(1, len(numbers) + 1) if numbered else numbers, numbered

    def _finish(self, ax: "Axes", panel: Panel, *, bottom: bool, legend: bool) -> None:
        for _, place in self._reference_lines(panel):
            ax.axhline(place, color="#888888", linewidth=1, linestyle=":")
        self._scale(ax, panel)
        ax.set_xlabel(self.x.replace("_", " ") if self.xlabel is None else self.xlabel)
        ax.set_ylabel(quantity(self.values, panel.arrays.values()) if self.ylabel is None else self.ylabel)
        if not any(panel.arrays):
            return
        if self.legend == "below":
            if bottom:
                ax.figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        elif legend or self.legend == "each":
            ax.legend(fontsize=7 if self.legend == "each" else 8)

    def _scale(self, ax: "Axes", panel: Panel) -> None:
        located = [self._places(array) for array in panel.arrays.values() if array is not None]
        places = np.unique(np.concatenate([numbers for numbers, _ in located]))
        if any(numbered for _, numbered in located):
            ax.set_xticks(places)
        if self.log and any(figures.has_logarithm(array) for array in panel.arrays.values() if array is not None):
            ax.set_yscale("log")
        if self.limits:
            ax.set_ylim(self.limits)
        if ax.get_yscale() == "log":
            figures.label_log_axis(ax.yaxis)
        if not any(np.isfinite(array).any() for array in panel.arrays.values() if array is not None):
            return  # matplotlib gives no scale to curves without a point
        if self.x_scale == "log2":
            ax.set_xscale("log", base=2)
            ax.set_xticks(places, [f"{place:g}" for place in places])
        elif self.x_scale == "symlog":
            ax.set_xscale("symlog", linthresh=1)
        elif self.x_scale == "log":
            ax.set_xscale("log")


def slope_guide(ax: "Axes", slope: float, label: str) -> None:
    """Add a dotted line of this slope through the middle of a panel with two logarithmic axes."""
    low, high = ax.get_xlim()
    ends = np.array([low, high])
    middle = np.exp(np.mean(np.log(ax.get_ylim())))
    ax.plot(ends, middle * (ends / np.sqrt(low * high)) ** slope, ":", color="#555555", label=label)


@dataclass(frozen=True)
class CustomFigure(DeclaredFigure):
    """A figure that a function of the study draws.

    Attributes:
      draw_fn: function that returns a Figure, or None for nothing to draw: of a case result with ``per_case`` (the default), else of
        the run. A case that lacks a stage which the function reads is left out.
    """

    draw_fn: Callable[[Any], "Figure | None"]
    _: KW_ONLY
    per_case: bool = True

    def __post_init__(self):
        if not self.name:
            raise ValueError("a custom figure needs a name for its files, got none")

    def _draw(self, owner: Any, cases: Sequence[Any]) -> "Figure | None":
        return call_if_measured(self.draw_fn, owner)


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)
