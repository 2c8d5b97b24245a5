"""Public functions keep to the shapes of their annotations, and the annotations tell right from wrong ones."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import spectra
from jaxbp.spectra import values
from tests.helpers.typechecked import check_fields, refuses_shapes, typechecked

RANKS = (spectra.nuclear_rank, spectra.stable_rank, spectra.entropy_rank, spectra.numerical_rank, spectra.nuclear_norm)


@pytest.mark.parametrize("lead", [(), (2,)])
def test_singular_values(lead):
    kernel = jnp.ones((*lead, 3, 3, 2, 4))
    for options in ({}, {"padding": "zero"}, {"padding": "zero", "method": "extremes", "num_steps": 4}):
        check_fields(typechecked(spectra.singular_values)(kernel, (4, 4), **options))
    geometry = spectra.Geometry.of((3, 3, 2, 4), (4, 4))
    check_fields(typechecked(spectra.of_geometry)(kernel, geometry))
    with refuses_shapes():
        typechecked(spectra.singular_values)([[1.0]])
    with refuses_shapes():
        typechecked(spectra.of_geometry)(kernel > 0, geometry)


def test_values_of_matrices():
    matrix_values = typechecked(values.matrix_values)
    assert matrix_values(jnp.ones((5, 3, 2))).shape == (5, 2)
    assert matrix_values(jnp.ones((2, 3), jnp.complex64)).dtype == jnp.float32
    for wrong in (jnp.ones(3), jnp.ones((2, 2), int)):
        with refuses_shapes():
            matrix_values(wrong)


@pytest.mark.parametrize("rank_fn", RANKS)
def test_ranks(rank_fn):
    assert typechecked(rank_fn)(jnp.ones((5, 3))).shape == (5,)
    assert typechecked(rank_fn)(np.ones(3)).shape == ()
    assert typechecked(rank_fn)(spectra.singular_values(jnp.ones((2, 3)))).shape == ()
    for wrong in (jnp.float32(1), jnp.ones(3, int), "values"):
        with refuses_shapes():
            typechecked(rank_fn)(wrong)
