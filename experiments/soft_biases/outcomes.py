"""What claims and controls are judged by: numbers of every seed, from the stages of one case, `jaxbp.lab.CaseResults`, here ``m``."""

import functools
import math
from typing import Any

import numpy as np
import xarray as xr

from experiments.soft_biases.measure import FITS_NOISE, NO_RIDGE, RIDGE, SOFT
from experiments.soft_biases.trainings import CHANCE, SEED_ALONE
from jaxbp import stats


def benign(m: Any) -> xr.DataArray:
    """1 where the preference by order fits noise and overfits benignly."""
    chosen = m.polynomials.sel(arm=SOFT, drop=True)
    return ((chosen.noise_error < FITS_NOISE) & (chosen.risk < m.settings.noise_sd**2)).astype(float)


def second_descent(m: Any) -> xr.DataArray:
    """Least error before the threshold over the error at 10 n, log2."""
    error = m.random_features.error.sel(arm=NO_RIDGE, drop=True)
    first = error.sel(features=[p for p in m.settings.counts if p <= 0.9 * m.settings.num_train]).min("features")
    return np.log2(first / error.sel(features=10 * m.settings.num_train, drop=True))


def rise(m: Any) -> xr.DataArray:
    """Largest rise of the error with ridge from one number of features to a larger one, log2."""
    error = np.log2(m.random_features.error.sel(arm=RIDGE, drop=True))
    least = xr.apply_ufunc(
        functools.partial(np.minimum.accumulate, axis=-1), error, input_core_dims=[["features"]], output_core_dims=[["features"]]
    )
    return (error - least).max("features")


def tracking(m: Any) -> xr.DataArray:
    """Kendall's tau of effective dimensionality and test loss, over widths from the first that interpolates, largest over alpha."""
    results = m.width_sweep

    def tau(accuracy: np.ndarray, loss: np.ndarray, dimensions: np.ndarray) -> float:
        fits = np.flatnonzero(accuracy >= 0.99)
        if not len(fits) or len(loss) - fits[0] < 3:
            return math.nan
        taus = [stats.kendall(row[fits[0] :], loss[fits[0] :]) for row in dimensions]
        return float(np.nanmax(taus))

    core = [["width"], ["width"], ["exponent", "width"]]
    return xr.apply_ufunc(tau, results.train_accuracy, results.test_loss, results.effective_dimension, input_core_dims=core, vectorize=True)


def best_codes(m: Any) -> xr.Dataset:
    """Bits, errors and bound at the dimension of the least bound, (seed, labels, prior)."""
    results = m.code_lengths
    return results.isel(dimension=results.bound.argmin("dimension")).drop_vars("dimension")


def informative(m: Any) -> xr.DataArray:
    """The smaller of two distances from chance, of the start that the seed alone decides; NaN where no code was had."""
    codes = best_codes(m).sel(prior=SEED_ALONE, drop=True)
    bound = codes.bound.where(np.isfinite(codes.train_error))  # of coordinates that could be sent
    return np.minimum(CHANCE - bound.sel(labels="true", drop=True), bound.sel(labels="random", drop=True) - CHANCE)


def least_slack(m: Any) -> xr.DataArray:
    """Test error minus bound, true labels, the largest over dimensions and starts."""
    results = m.code_lengths.sel(labels="true", drop=True)
    return (results.test_error - results.bound).max(("dimension", "prior"))


def peak(m: Any) -> xr.DataArray:
    """Risk just beyond the threshold over the risk of the largest model, log2."""
    error, n = m.isotropic_model.error.sel(arm=NO_RIDGE, drop=True), m.settings.num_train
    beyond = min(p for p in m.settings.counts if p > n)
    return np.log2(error.sel(features=beyond, drop=True) / error.sel(features=max(m.settings.counts), drop=True))
