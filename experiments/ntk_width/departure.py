"""How far trained networks stand from exact limits: their own, and another's.

The kernel of a trained network in the NTK parametrisation, before training and at the target loss, against the exact kernels of the four
infinitely wide ResNets at initialisation. Distances are those after the best rescaling, from 0 to 1, since training multiplies kernels.
If skip connections and BatchNorm act through the limit, their interaction shows in the distance to the network's own; if they act
through what training does to a kernel, whatever it starts from, also in the distance to the limit of a network without BatchNorm.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from experiments.ntk_width.kernels import BEFORE, TARGET
from experiments.ntk_width.settings import STORED
from jaxbp import report

Cell = tuple[bool, bool]  # skip connections, BatchNorm
_IMAGES = ("image", "other_image")
NOT_REACHED = "did not reach the loss"
_CAPTION = (
    "Kernels of the trained networks, in the NTK parametrisation, against exact kernels at initialisation, after the best rescaling: 0 "
    "is the same direction, 1 a right angle. Where nothing else is said, at the target loss. The limit with BatchNorm switched is that of "
    "the same network without BatchNorm, or with it; with skips switched, likewise. Means and 95 % intervals over seeds."
)
_INTERACTION_CAPTION = (
    "Difference of differences over the four networks of the factorial, in the quantities of the table above. If a network's departure "
    "from its own limit carries the interaction, an interaction is to be seen in the distance to its own and not in those to others'. "
    "Means and 95 % intervals over seeds; no claim is judged by them."
)


def factorial(run: Any) -> dict[Cell, Any]:
    """The trained ResNets by skip connections and BatchNorm."""
    return {(m.case.skip, m.case.batch_norm): m for m in run.cases if m.case.decays and m.case.skip is not None}


def cells_with_limit(run: Any) -> dict[Cell, Any]:
    """Those of the `factorial` that are compared with exact kernels."""
    return {cell: m for cell, m in factorial(run).items() if m.case.exact_widths}


def distance(trace: xr.DataArray, norm: xr.DataArray, limit: xr.DataArray) -> xr.DataArray:
    """Distance of full kernels to an exact one after the best rescaling, min over s of ||K - s L x I|| / ||K||, from 0 to 1.

    Args:
      trace: mean over the C logits of the full kernels K, (..., image, other_image).
      norm: Frobenius norms of K over C^(1/2), (...).
      limit: exact kernel L of each logit, (..., image, other_image); between different logits it is 0.
    """
    cosine = (trace * limit).sum(_IMAGES, skipna=False) / (norm * np.sqrt((limit**2).sum(_IMAGES)))
    return np.sqrt(np.maximum(1 - cosine**2, 0))


def distances(run: Any, cell: Cell, limit_of: Cell, statistics: str) -> xr.DataArray:
    """Distances of a cell's networks to the limit of another cell, (decay, time, width, seed)."""
    of_networks, of_limit = (place(chosen, statistics) for chosen in (cell, limit_of))
    trained, limit = factorial(run)[cell].train, factorial(run)[limit_of].limits.exact
    return distance(trained.trace.sel(of_networks, drop=True), trained.norm.sel(of_networks, drop=True), limit.sel(of_limit, drop=True))


def place(cell: Cell, statistics: str) -> dict[str, str]:
    """Where a cell's results for one kind of statistics are; it has one kind only without BatchNorm."""
    return {"statistics": statistics if cell[1] else STORED}


def measured(run: Any, cell: Cell, statistics: str) -> dict[str, xr.DataArray]:
    """How far a cell's kernels stand from limits and how much they have changed, by heading, (decay, width, seed)."""
    skip, batch_norm = cell
    limits = {"its own": cell, "BatchNorm switched": (skip, not batch_norm), "skips switched": (not skip, batch_norm)}
    by_limit = {name: distances(run, cell, of_limit, statistics) for name, of_limit in limits.items()}
    change = factorial(run)[cell].train.relative_change.sel(place(cell, statistics) | {"point": TARGET}, drop=True)
    return {
        "to its own limit, before training": by_limit["its own"].sel(time=BEFORE, drop=True),
        **{
            f"to {'its own limit' if name == 'its own' else 'that with ' + name}": values.sel(time=TARGET, drop=True)
            for name, values in by_limit.items()
        },
        "change in training, log2": np.log2(change),
    }


def departure_table(run: Any) -> report.Table | None:
    """`measured` for each cell, kind of statistics, weight decay and width."""
    cells = cells_with_limit(run)
    if len(cells) < 4:
        return None
    rows, headings = [], []
    for cell, m in cells.items():
        for statistics in m.case.statistics:
            by_heading = measured(run, cell, statistics)
            name = f"{m.name}, {statistics}" if cell[1] else m.name
            headings = list(by_heading)
            rows += _rows((name,), by_heading)
    return report.Table(["network", "weight-decay time", "width", *headings], rows, _CAPTION)


def interaction_table(run: Any) -> report.Table | None:
    """The interaction of skip connections and BatchNorm in each of `measured`, for each kind of statistics, weight decay and width."""
    if len(cells_with_limit(run)) < 4:
        return None
    rows, headings = [], []
    for statistics in factorial(run)[True, True].case.statistics:
        by_cell = {cell: measured(run, cell, statistics) for cell in factorial(run)}
        headings = list(by_cell[True, True])
        rows += _rows((statistics,), {name: interaction({cell: of_cell[name] for cell, of_cell in by_cell.items()}) for name in headings})
    return report.Table(["statistics", "weight-decay time", "width", *headings], rows, _INTERACTION_CAPTION)


def interaction(by_cell: Mapping[Cell, xr.DataArray]) -> xr.DataArray:
    """The difference of differences over the four cells of the factorial."""
    return by_cell[True, True] - by_cell[False, True] - by_cell[True, False] + by_cell[False, False]


def _rows(name: tuple[str, ...], by_heading: Mapping[str, xr.DataArray]) -> list[tuple[Any, ...]]:
    first = next(iter(by_heading.values()))
    return [
        (
            *name,
            decay,
            width,
            *(report.mean_cell(values.sel(decay=decay, width=width).values, NOT_REACHED) for values in by_heading.values()),
        )
        for decay in first.decay.values.tolist()
        for width in first.width.values.tolist()
    ]


def draw_change_and_distance(run: Any) -> Any:
    """Change in training over the distance to the network's own limit: a path over widths for each cell, before training and after."""
    cells = cells_with_limit(run)
    decays = sorted({decay for m in cells.values() for decay in m.case.decays})
    if not decays:
        return None
    panels = [(decay, time) for decay in decays for time in (BEFORE, TARGET)]
    fig, axes = report.panels(
        [f"weight-decay time {decay:g}, {time}" for decay, time in panels], sharex=True, sharey=True, height=1.5 + 3 * len(decays)
    )
    for ax, (decay, time) in zip(axes, panels, strict=True):
        with report.style():
            for colour, (cell, m) in zip(report.PALETTE, cells.items(), strict=False):
                change = m.train.relative_change.sel(statistics=STORED, decay=decay, point=TARGET)
                far = distances(run, cell, cell, STORED).sel(decay=decay, time=time)
                x, y = far.mean("seed"), np.exp(np.log(change).mean("seed"))
                look = {"linestyle": "-" if cell[1] else "--", "marker": "o" if cell[0] else "s"}
                ax.plot(x, y, **look, color=colour, label=m.name.replace("ResNet, ", ""))
                for spot in zip(x.values, y.values, x.width.values, strict=True):
                    ax.annotate(str(spot[2]), spot[:2], fontsize=7, xytext=(3, 3), textcoords="offset points")
            ax.set(yscale="log", xlabel="distance to its own limit", ylabel="change in training")
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter("")
    with report.style():
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig
