"""Figures that are drawn by hand, and the values of one that is declared."""

from typing import Any

import xarray as xr

from experiments.soft_biases.measure import FLAT, SOFT, SQUARES
from experiments.soft_biases.outcomes import best_codes, tracking
from experiments.soft_biases.settings import POLYNOMIAL, WIDTHS
from experiments.soft_biases.trainings import SEED_ALONE
from jaxbp import report

TEST_ERROR = "test error"


def draw_polynomials(run: Any) -> Any:
    """The fits of the first seed, with and without a preference, structured data above and noise below."""
    cases = [m for m in run.cases if m.case.kind == POLYNOMIAL]
    if not cases:
        return None
    fig, axes = report.figure(len(cases), 2, width=7.0, height=2.0 * len(cases), squeeze=False)
    with report.style():
        for row, m in zip(axes, cases, strict=True):
            results = m.polynomials
            for ax, kind in zip(row, ("structured", "noise"), strict=True):
                points = results.points.isel(arm=0)
                for arm in (FLAT, SQUARES, SOFT):
                    ax.plot(results.x, results.curve.sel(arm=arm, data=kind), linewidth=0.9, label=arm)
                ax.plot(points.sel(column="x"), points.sel(column=kind), "k.", markersize=4)
                ax.set_ylim(-3.5, 3.5)
                ax.set_title(f"{m.name}: {kind}", fontsize=9)
        fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return fig


def draw_widths(run: Any) -> Any:
    """Test loss on the left axis, effective dimensionality on the right one, over widths; a panel a case."""
    cases = [m for m in run.cases if m.case.kind == WIDTHS]
    if not cases:
        return None
    fig, axes = report.figure(len(cases), 1, squeeze=False)
    for ax, m in zip(axes[:, 0], cases, strict=True):
        results = m.width_sweep.transpose("seed", "exponent", "width")
        with report.style():
            right = ax.twinx()
        exponents = results.exponent.values
        report.curve(ax, results.width, results.test_loss, label="test loss")
        right.set_prop_cycle(color=report.PALETTE[1:])
        for exponent in dict.fromkeys((exponents[0], exponents[len(exponents) // 2], exponents[-1])):
            report.curve(right, results.width, results.effective_dimension.sel(exponent=exponent), label=f"alpha = 1e{exponent}", log=True)
        taus = tracking(m)
        with report.style():
            ax.set_xscale("log", base=2)
            ax.set_xticks(results.width, [f"{width}" for width in results.width.values])
            ax.set(xlabel="width", ylabel="test loss")
            right.set_ylabel("effective dimensionality")
            right.grid(False)
            right.spines["right"].set_visible(True)
            ax.set_title(f"{m.name}: tau {float(taus.mean()):.2f}" if taus.notnull().any() else f"{m.name}: too few widths fit for a tau")
            handles, labels = (ours + theirs for ours, theirs in zip(*(a.get_legend_handles_labels() for a in (ax, right)), strict=True))
            ax.legend(handles, labels, fontsize=8, loc="upper center")
    return fig


def error_and_bits(m: Any) -> xr.DataArray:
    """The bound at its best dimension as training error and price of the bits, and the test error, (seed, labels, part)."""
    results = best_codes(m)
    parts = {"training error": results.train_error, "price of the bits": results.bound - results.train_error}
    values = xr.concat((parts | {TEST_ERROR: results.test_error}).values(), xr.IndexVariable("part", [*parts, TEST_ERROR]))
    arms = [values.sel(prior=prior, drop=True) for prior in values.prior.values]
    names = [[f"{label}, {prior}" * (prior != SEED_ALONE) or label for label in values.labels.values] for prior in values.prior.values]
    return xr.concat([arm.assign_coords(labels=of_arm) for arm, of_arm in zip(arms, names, strict=True)], "labels")
