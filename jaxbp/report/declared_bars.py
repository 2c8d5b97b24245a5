"""What a value is made of: bars of parts that add up.

>>> from jaxbp import report
>>> factors = report.StackedBars("compare.log_factors", parts="factor", by=report.CASES, caption="Logarithms of the factors of the bound.")
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxbp.report import figures
from jaxbp.report.declared_figures import Panel, PanelFigure
from jaxbp.report.labelled_values import quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NUM_COLUMNS = 4  # of the legend


@dataclass(frozen=True)
class StackedBars(PanelFigure):
    """A bar for each coordinate of ``by``: means of the parts end to end, those below 0 to the left, and the sum of every seed as a dot.

    Each array has the dimensions seed and ``parts``. Seeds with a part that is not finite are left out,
    and counted beside the name. Attributes are those of
    `PanelFigure`, ``log`` left aside, and:

    Attributes:
      parts: dimension whose coordinates are the parts.
      mark: a coordinate of ``parts`` that is no part but drawn as a line across the bar, such as a lower bound of the sum.
    """

    _: KW_ONLY
    parts: str
    mark: str | None = None
    by: str | None = "arm"
    stacked: bool = True

    def _stacked_height(self, panels: Sequence[Panel]) -> float:
        return 0.42 * sum(len(panel.arrays) for panel in panels) + 0.7 * len(panels) + 0.9

    def _fill(self, ax: "Axes", panel: Panel) -> None:
        with figures.style():
            labels = []
            for row, (label, array) in enumerate(panel.arrays.items()):
                names = [str(name) for name in array[self.parts].values]
                table = np.asarray(array.transpose(..., self.parts), np.float64).reshape(-1, len(names))
                shown = table[np.isfinite(table).all(1)]
                if len(shown):
                    self._bar(ax, row, dict(zip(names, shown.T, strict=True)))
                missing = len(table) - len(shown)
                labels.append(f"{label}\n({missing} of {len(table)} not shown)" if missing else label)
            ax.set_yticks(range(len(labels)), labels)
            ax.set_ylim(len(panel.arrays) - 0.4, -0.6)  # first bar on top
            ax.grid(False, axis="y")

    def _bar(self, ax: "Axes", row: int, values: dict[str, np.ndarray]) -> None:
        marked = values.pop(self.mark) if self.mark is not None else None
        ends = {True: 0.0, False: 0.0}  # of the bar, upwards and downwards
        for index, (name, of_seeds) in enumerate(values.items()):
            mean = float(of_seeds.mean())
            colour = figures.PALETTE[index % len(figures.PALETTE)]
            ax.barh(row, mean, left=ends[mean > 0], height=0.5, color=colour, alpha=0.75, label=name)
            ends[mean > 0] += mean
        sums = np.sum(list(values.values()), axis=0)
        ax.plot(sums, row + figures.seed_offsets(len(sums)), "o", color="black", markersize=3, alpha=0.7, label="sum")
        if marked is not None:
            ax.plot([marked.mean()] * 2, [row - 0.36, row + 0.36], color="black", linewidth=2, label=self.mark)

    def _finish(self, ax: "Axes", panel: Panel, *, bottom: bool, legend: bool) -> None:
        ax.axvline(0, color="#444444", linewidth=0.8)
        self._draw_upright_lines(ax, panel, label_on_top=True)
        if self.limits:
            ax.set_xlim(self.limits)
        if bottom or not self.stacked:
            label: Any = quantity(self.values, panel.arrays.values()) if self.xlabel is None else self.xlabel
            ax.set_xlabel(figures.fitting(label, ax))
        if bottom:
            handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))  # one entry for all rows
            ax.figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=_NUM_COLUMNS, fontsize=8)
