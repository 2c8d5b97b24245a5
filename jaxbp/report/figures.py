"""Figures in one style, with every seed shown.

They are plain `matplotlib.figure.Figure` objects made without pyplot, so no backend is chosen or changed; matplotlib is imported
when the first one is drawn. The same measurements give the same bytes.
"""

import contextlib
import io
import math
import os
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from jaxbp import stats
from jaxbp.report.dark_figures import with_dark_colours
from jaxbp.runtime import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by colour-blind readers; yellow is left out, and sky blue and orange are darker, to be seen on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#439CD0", "#C88700", "#000000")
MARKERS = dict(zip(PALETTE, "os^Dvp*", strict=True))  # shapes tell curves apart where colours do not
_LETTERS = 11  # of a label, an inch

_STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.wspace": 0.06,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.08,
    "savefig.dpi": 170,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana"],  # the first ships with matplotlib, the second is as wide
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "svg.hashsalt": "jaxbp",  # element ids are random without it
    "svg.fonttype": "none",  # words stay words: small files, that can be searched and read aloud
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Draw with the house style inside this context; settings and backend are as before after it."""
    import matplotlib
    from cycler import cycler

    with matplotlib.rc_context({**_STYLE, "axes.prop_cycle": cycler(color=PALETTE)}):
        yield


def figure(num_rows: int = 1, num_cols: int = 1, *, width: float = 6.4, height: float | None = None, **subplots) -> "tuple[Figure, Any]":
    """Make a styled figure of ``width`` inches and its axes; ``subplots`` as for ``plt.subplots``.

    Legends, titles and texts added later follow `style` only inside its context. A phone shrinks figures to
    its width: beyond 7 inches text becomes too small there, so stack panels in rows.
    """
    from matplotlib.figure import Figure

    with style():
        fig = Figure(figsize=(width, height or num_rows * min(4.2, 0.62 * width / num_cols + 0.6)))
        return fig, fig.subplots(num_rows, num_cols, **subplots)


def save_figure(fig: "Figure", folder: str | os.PathLike, name: str) -> tuple[Path, Path]:
    """Write ``folder/name.png`` and ``.svg``, the same bytes for the same figure; close it, return paths."""
    if Path(name).name != name:
        raise ValueError(f"a figure's name is a file name without its ending, got {name!r}")
    paths = []
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        buffer = io.BytesIO()
        with style():
            fig.savefig(buffer, format=kind, metadata=metadata)
            fig.set_layout_engine("none")  # the layout stays, and is not computed a second time
        content = buffer.getvalue()
        paths.append(Path(folder) / f"{name}.{kind}")
        files.write_atomically(paths[-1], with_dark_colours(content) if kind == "svg" else content)
    if pyplot := sys.modules.get("matplotlib.pyplot"):  # a figure of the caller's own may be registered there
        pyplot.close(fig)
    return paths[0], paths[1]


def panels(titles: Sequence[str], **subplots) -> "tuple[Figure, list[Axes]]":
    """A figure of small panels, two a row, one for each title, and their axes; ``subplots`` as for `figure`."""
    fig, axes = figure(-(-len(titles) // 2), 2, width=7.0, squeeze=False, **subplots)
    shown, hidden = list(axes.ravel())[: len(titles)], list(axes.ravel())[len(titles) :]
    for ax in hidden:
        ax.set_visible(False)
    with style():
        for ax, title in zip(shown, titles, strict=True):
            ax.set_title(textwrap.fill(title, 28), fontsize=9)  # letters that fit above the axes
    return fig, shown


def _events(values: np.ndarray, log: bool) -> bool:
    """Whether the values tell what happened, 1, and what did not, 0."""
    return not log and bool(np.isin(values, (0, 1)).all())


def _summary(values: np.ndarray, log: bool, events: bool) -> tuple[float, float, float]:
    """Mean and 95 % t interval, on a log axis those of the logarithms, exact for events; one value has no interval."""
    values = np.log(values) if log else values
    if len(values) > 1 and events:  # a t interval of shares may leave [0, 1]
        interval = stats.event_interval(values)
        return interval.estimate, interval.low, interval.high
    if len(values) < 2:
        ends = [values[0] if len(values) else math.nan] * 3
    else:
        interval = stats.t_interval(values)
        ends = [interval.estimate, interval.low, interval.high]
    return tuple(np.exp(ends) if log else ends)


def _usable(values: np.ndarray, log: bool) -> np.ndarray:
    return np.isfinite(values) & ((values > 0) | (not log))


def num_missing(values: ArrayLike, log: bool = False) -> int:
    """How many values cannot be drawn: not finite, or not positive on a logarithmic axis."""
    return int((~_usable(np.asarray(values, np.float64), log)).sum())


def has_logarithm(values: ArrayLike) -> bool:
    """Whether any value can be drawn on a logarithmic axis, which else has no scale."""
    return num_missing(values, log=True) < np.size(values)


@style()
def strip(ax: "Axes", groups: Mapping[str, ArrayLike], *, log: bool = False) -> None:
    """Draw one row a group: a dot for every seed, the mean and its 95 % t interval (of logs with ``log``).

    Values that cannot be drawn (not finite; not positive with ``log``) are counted beside the group's name.
    """
    names = []
    for row, (label, values) in enumerate(groups.items()):
        values = np.asarray(values, np.float64)
        shown = values[_usable(values, log)]
        colour = PALETTE[row if len(groups) <= len(PALETTE) else 0]  # a colour must not stand for two rows
        ax.scatter(shown, row + seed_offsets(len(values))[_usable(values, log)], s=22, color=colour, alpha=0.7, linewidths=0)
        if len(shown):
            mean, low, high = _summary(shown, log, _events(shown, log))
            ax.plot([low, high], [row + 0.32] * 2, color=colour, linewidth=3, solid_capstyle="butt")
            ax.plot(mean, row + 0.32, "o", color=colour, markeredgecolor="white", markersize=7)
        missing = num_missing(values, log)
        names.append(f"{label}\n({missing} of {len(values)} not shown)" if missing else label)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.5)  # first group on top
    ax.grid(False, axis="y")
    if log and any(map(has_logarithm, groups.values())):
        ax.set_xscale("log")
        label_log_axis(ax.xaxis)
    elif log:
        ax.text(0.5, 0.5, "no value has a logarithm", transform=ax.transAxes, ha="center", va="center", color="#666666")
        ax.set_xticks([])


def seed_offsets(num_seeds: int) -> np.ndarray:
    """Distances (num_seeds,) of the seeds' dots from the middle of their row, spread evenly, the same in every row and run."""
    golden = (np.arange(num_seeds) * 0.618034 + 0.5) % 1
    return 0.3 * (golden - 0.5)


def fitting(label: str, ax: "Axes") -> str:
    """A title or a label of the x axis, broken into lines that are no wider than the figure leaves room for.

    Call this when the ticks are labelled: layouts make room for tick labels, and none for what is wider than the axis.
    """
    place, fig = ax.get_subplotspec(), ax.get_figure(root=True)
    if place is None or fig is None:
        return label
    letters = _LETTERS * fig.get_size_inches()[0] / place.get_gridspec().ncols - 6
    if place.get_gridspec().ncols == 1:
        fig.draw_without_rendering()  # which lays the figure out
        letters = min(letters, _LETTERS * (fig.get_size_inches()[0] * ax.get_position().width + 0.15))
    return textwrap.fill(label, max(int(letters), 12))


def label_log_axis(axis: Any) -> None:
    """Label decades only, or, within less than one and a half, also twos and fives: never labels that overlap."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    low, high = sorted(axis.get_view_interval())
    if low > 0 and high / low < 10**1.5:
        narrow = high / low < 2  # between two and five there may be no label at all
        axis.set_major_locator(MaxNLocator(4) if narrow else LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


@style()
def curve(ax: "Axes", x: ArrayLike, values: ArrayLike, *, label: str | None = None, log: bool = False, dashed: bool = False) -> None:
    """Draw ``values`` (num_seeds, num_points) over ``x``: a thin line a seed, the mean, its 95 % band.

    Seeds that are missing at a point (not finite; not positive with ``log``) are left out there. Two seeds have no band: it would be
    13 times as wide as the lines are apart, and hide them. The colour is the next of the axes' cycle.
    """
    x, values = np.asarray(x, np.float64), np.asarray(values, np.float64)
    usable = _usable(values, log)
    events = _events(values[usable], log)  # of the whole curve: one that starts at 0 tells no events
    points = [_summary(column[keep], log, events) for column, keep in zip(values.T, usable.T, strict=True)]
    mean, low, high = np.array(points).T
    low[usable.sum(0) < 3] = np.nan
    above: dict[str, Any] = {"linestyle": "--", "zorder": 3} if dashed else {}  # what lies under a dashed line shines through
    (line,) = ax.plot(x, mean, label=label, markersize=4, **above)
    line.set_marker(MARKERS.get(str(line.get_color()), "o"))
    ax.fill_between(x, low, high, color=line.get_color(), alpha=0.18, linewidth=0)
    lines = np.where(usable, values, np.nan).T
    ax.plot(x, lines, color=line.get_color(), linewidth=0.7, alpha=0.35)
    if log and has_logarithm(values):
        ax.set_yscale("log")
