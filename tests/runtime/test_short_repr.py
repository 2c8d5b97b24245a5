"""Results as a line of text."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import spectra
from jaxbp.runtime.short_repr import short_repr


class Pair(NamedTuple):
    value: float
    vector: jax.Array


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.ones((2, 3), np.float32), "float32[2, 3]"),
        (jnp.zeros(()), "0.0"),
        (np.float64(0.5), "0.5"),
        (Pair(0.5, jnp.ones(4)), "Pair(value=0.5, vector=float32[4])"),
        (({"a": [np.ones(1)]},), "({'a': [float64[1]]},)"),
        (("x", None, ()), "('x', None, ())"),
    ],
)
def test_arrays_are_told_by_dtype_and_shape(value, text):
    assert short_repr(value) == text


def test_a_traced_value_has_a_repr():
    assert jax.make_jaxpr(lambda x: x * len(short_repr(x)))(1.0).jaxpr.eqns[0].invars[1].val == len("float32[]")


def test_a_spectrum_is_a_line():
    text = repr(spectra.singular_values(jnp.ones((300, 200))))
    assert text.startswith("Spectrum(values=float32[200], ")
    assert text.endswith("how='exact', shape=(200, 300))")
