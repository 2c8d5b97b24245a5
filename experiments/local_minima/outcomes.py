"""What the claims are judged by: numbers of every seed, from the stages of one case, `jaxbp.lab.CaseResults`, here ``m``."""

from typing import Any

import numpy as np
import xarray as xr

from experiments.local_minima import measure
from experiments.local_minima.settings import DEFAULT, FULL, LIMIT_SHARES, MOMENTUM_INIT, PLAIN, SMALL

_TENTH = 0.1  # of a gap: what counts as having moved (S1.c), or as ending higher (S1.d)


def final_losses(m: Any) -> xr.DataArray:
    """Training loss at the end, (arm, seed)."""
    return m.train.train_loss.isel(epoch=-1, drop=True).astype(float)


def final_loss(m: Any, arm: str) -> xr.DataArray:
    """Training loss at the end of an arm, (S,); not finite where the arm diverged."""
    return final_losses(m).sel(arm=arm, drop=True)


def loss_ratio(m: Any) -> xr.DataArray:
    """log2 of the embedded minimum's loss over default training's, (S,)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.log2(m.embed.loss / final_loss(m, DEFAULT))


def stays(m: Any, end_loss: xr.DataArray) -> xr.DataArray:
    """1 where a training from the embedded minimum ended within a tenth of the gap to default training, below or above it.

    A run that diverged did not stay. The gap is that to the median of default training over seeds, since default training diverges or
    dies on some seeds of ConvNets; NaN where that median is not below the minimum.
    """
    reached = final_loss(m, DEFAULT)
    gap = m.embed.loss - reached.where(np.isfinite(reached), np.inf).median()
    moved = np.abs(m.embed.loss - end_loss.where(np.isfinite(end_loss)))
    return (moved < _TENTH * gap).astype(float).where(gap > 0)


def stays_below_limit(m: Any) -> dict[str, xr.DataArray]:
    """Whether runs stay, for each share of the limit of linear stability and each batch size."""
    kept = stays(m, m.stay.end_loss.astype(float))
    points = [(share, batches) for share in LIMIT_SHARES for batches in (SMALL, FULL)]
    return {f"{share:g} of the limit, {batches}": kept.sel(share=share, batches=batches, drop=True) for share, batches in points}


def kinds_of_end(m: Any, arm: str) -> xr.DataArray:
    """What the end of an arm is, seed by seed, beside default training: "diverged", "low", "moving" or "suboptimal"."""
    final, reference = final_loss(m, arm), final_loss(m, DEFAULT)
    low = final - reference <= _TENTH * (m.embed.constant_loss - reference)
    still = m.train.gradient_norm.sel(arm=arm, drop=True) <= measure.STATIONARY
    kinds = xr.where(low, "low", xr.where(still, "suboptimal", "moving"))
    return xr.where(np.isfinite(final), kinds, "diverged").where(np.isfinite(reference), "no default")


def ends_badly(m: Any, arm: str) -> xr.DataArray:
    """1 where an arm ended at a suboptimal point, NaN where default training diverged."""
    kinds = kinds_of_end(m, arm)
    return (kinds == "suboptimal").astype(float).where(kinds != "no default")


def momentum_gain(m: Any) -> xr.DataArray:
    """log2 of the final loss without momentum over that with momentum; a run that diverged counts as one that stayed at its start."""
    curves = m.train.train_loss.astype(float)
    ends, starts = curves.isel(epoch=-1, drop=True), curves.isel(epoch=0, drop=True)
    ends = ends.where(np.isfinite(ends), starts)
    return np.log2(ends.sel(arm=PLAIN, drop=True) / ends.sel(arm=MOMENTUM_INIT, drop=True))


def not_minima(m: Any) -> dict[str, xr.DataArray]:
    """Whether points that are no minima were proven to be some."""
    points = {"moved": m.embed.moved_status} | ({"half the rank": m.embed.saddle_status} if m.case.has_saddle else {})
    if DEFAULT in m.case.arms:
        points["end of default training"] = m.certify_end.status.sel(arm=DEFAULT, drop=True)
    return {name: (status == "proven").astype(float) for name, status in points.items()}


def of_arms(fn: Any, *arms: str) -> Any:
    """A measure of each of these arms that a case has."""
    return lambda m: {arm: fn(m, arm) for arm in arms if arm in m.case.arms}
