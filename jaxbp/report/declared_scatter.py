"""One measured value of each seed against another.

>>> from jaxbp import report
>>> gaps = report.SeedScatter("train.gap", x="train.bound", by="arm", log_x=True, caption="Gap against bound, a dot a seed.")
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from jaxbp.report import figures
from jaxbp.report.declared_figures import Panel, PanelFigure
from jaxbp.report.labelled_values import Values, quantity, read_values

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_AXIS, _BOTH = "axis of the figure", ("x", "y")


@dataclass(frozen=True)
class SeedScatter(PanelFigure):
    """A dot for every seed, a colour for each coordinate of ``by``: ``values`` upwards against ``x``, arrays of the same dimensions.

    Attributes are those of `PanelFigure`, ``lines`` left aside, and:

    Attributes:
      x: what stands along the horizontal axis, as ``values``.
      joined: dimension along which the dots of a seed are joined; the first is a square.
      log_x: logarithmic horizontal axis.
      diagonal: draw the line on which both values are the same.
    """

    _: KW_ONLY
    by: str | None = "arm"
    x: Values
    joined: str | None = None
    log_x: bool = False
    diagonal: bool = False

    def _content(self, m: Any) -> Any:
        both = [read_values(values, m) for values in (self.x, self.values)]
        return None if any(array is None for array in both) else xr.concat(both, xr.IndexVariable(_AXIS, list(_BOTH)))

    def _stacked_height(self, panels: Sequence[Panel]) -> float | None:
        return None

    def _fill(self, ax: "Axes", panel: Panel) -> None:
        with figures.style():
            for label, array in panel.arrays.items():
                axes = [array.sel({_AXIS: axis}, drop=True).transpose(*([self.joined] if self.joined else []), ...) for axis in _BOTH]
                x, y = (np.asarray(values, np.float64).reshape(len(values) if self.joined else 1, -1) for values in axes)
                look: dict[str, Any] = {"markersize": 3.5, "linewidth": 0.7, "alpha": 0.6}
                (first,) = ax.plot(x[:, 0], y[:, 0], "o-" if self.joined else "o", label=label or None, **look)
                ax.plot(x[:, 1:], y[:, 1:], "o-" if self.joined else "o", color=first.get_color(), **look)
                if self.joined:
                    ax.plot(x[0], y[0], "s", markersize=4, color=first.get_color())

    def _finish(self, ax: "Axes", panel: Panel, *, bottom: bool, legend: bool) -> None:
        drawn = panel.arrays.values()
        logs = [
            log and any(figures.has_logarithm(array.sel({_AXIS: axis})) for array in drawn)
            for log, axis in zip((self.log_x, self.log), _BOTH, strict=True)
        ]
        for log, set_scale in zip(logs, (ax.set_xscale, ax.set_yscale), strict=True):
            set_scale("log" if log else "linear")
        if self.limits:
            ax.set_ylim(self.limits)
        if self.diagonal:
            (left, right), (bottom_end, top) = ax.get_xlim(), ax.get_ylim()
            ends = max(left, bottom_end), min(right, top)
            ax.plot(ends, ends, ":", color="#888888", scalex=False, scaley=False)
        for log, axis in zip(logs, (ax.xaxis, ax.yaxis), strict=True):
            if log:
                figures.label_log_axis(axis)
        ax.set_xlabel(figures.fitting(quantity(self.x, []) if self.xlabel is None else self.xlabel, ax))
        ax.set_ylabel(quantity(self.values, []) if self.ylabel is None else self.ylabel)
        if legend and any(panel.arrays):
            ax.legend(fontsize=7)
