"""The study of power iteration: its rules from made-up eigenvalues, and both methods on spectra that are known."""

import dataclasses
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from experiments.power_iteration import study
from experiments.power_iteration.settings import Arguments, Case, Settings
from tests.helpers import studies

TRAINED = Case("digits", 100, 500, near_convergence=True)


def made_up(case, estimates, eigenvalues, called):
    values = {"estimate": ("seed", estimates), "eigenvalue": ("seed", eigenvalues), "called_negative": ("seed", called)}
    return studies.made_up(case, Settings("x", 4, (case,)), smallest_eigenvalue=xr.Dataset(values), stages=("smallest_eigenvalue",))


def values_of(m):
    return {each.claim.id: [list(v) for v in each.values(SimpleNamespace(cases=[m])).values()] for each in study.STUDY.measures}


def test_measures_by_hand():
    estimates, eigenvalues = [-1.0, -0.3, 0.1, -1.0, -1.0], [-1.5, -1.0, -1.0, np.nan, 0.5]
    called = [True, True, False, True, True]
    values = values_of(made_up(TRAINED, estimates, eigenvalues, called))
    np.testing.assert_array_equal(values["S5.a"], [[1, 1, 0, np.nan, np.nan]])
    np.testing.assert_array_equal(values["S5.b"], [[1, 0, 0, np.nan, np.nan]])
    assert values["S5.c"] == []
    values = values_of(made_up(dataclasses.replace(TRAINED, near_convergence=False), estimates, eigenvalues, called))
    assert values["S5.b"] == []
    values = values_of(made_up(Case("digits", 100), [1e-9, -1.0, 0.0, -1e-9], [0.0] * 4, [False, True, False, False]))
    assert values == {"S5.a": [], "S5.b": [], "S5.c": [[1, 0, 1, 1]]}


@pytest.mark.slow
def test_planted_spectra():
    """After 500 steps -5 beside 50 has outgrown the rest by (55 / 50)^500, -0.05 by (50.05 / 50)^500 = 1.6: no more than nothing."""
    case = Case("digits", 100)
    results = study.planted(case, Settings("x", 2, (case,)), seed=0)
    np.testing.assert_allclose(results.eigenvalue, [0.0, -0.05, -5.0], rtol=0.01, atol=1e-10)
    np.testing.assert_allclose(results.estimate[2], -5.0, rtol=0.01)
    assert results.estimate[1] > -0.03
    m = studies.made_up(case, None, planted=results.expand_dims("seed"), stages=("planted",))
    errors = [value.item() for control in study.STUDY.controls for value in control.fn(m).values()]
    assert (np.abs(errors) < [1e-3, 1e-2, 1e-9]).all()


def test_shifted_power_iteration_by_hand():
    spectrum = jnp.array([-1.0, 2.0, 4.0])
    estimate, shift = study.shifted_power(lambda v: spectrum * v, jnp.ones(3), 60)
    np.testing.assert_allclose([estimate, shift], [-1.0, 4.0], rtol=1e-5)


@pytest.mark.slow
def test_the_affine_minimiser_is_a_point_without_slope():
    case = Case("digits@4", 60, width=16)
    settings = Settings("x", 2, (case,), num_steps=3)
    results = study.smallest_eigenvalue(case, settings, seed=0)
    assert abs(results["eigenvalue"]) < 1e-9


def test_presets_hold_minima_and_networks_near_convergence():
    for name, settings in Arguments.presets.items():
        settings.validate()
        assert any(study.is_minimum(case) for case in settings.cases), name
        assert any(case.near_convergence for case in settings.cases), name
