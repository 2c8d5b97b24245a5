"""Public functions keep to the shapes of their annotations, and the annotations tell right from wrong ones."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.linalg import golub_kahan, lanczos, newton_cg
from tests.helpers.typechecked import check_fields, refuses_shapes, typechecked

SCALES = jnp.linspace(1, 2, 12)


def test_lanczos():
    extremes = typechecked(lanczos.extreme_eigenvalues)(lambda v: SCALES * v, jnp.ones(12))
    check_fields(check_fields(extremes).smallest)
    density = typechecked(lanczos.spectral_density)(lambda v: SCALES * v, 12, jax.random.key(0), num_probes=2, num_steps=3)
    assert check_fields(density).nodes.shape == (2, 3)
    trace = typechecked(lanczos.hutchinson_trace)(lambda v: SCALES * v, 12, jax.random.key(0))
    assert np.isclose(trace[0], 18)
    for start in (jnp.ones((12, 1)), jnp.arange(12)):
        with refuses_shapes():
            typechecked(lanczos.extreme_eigenvalues)(lambda v: SCALES * v, start)


def test_golub_kahan():
    scales = SCALES.reshape(3, 4)
    triplets = typechecked(golub_kahan.golub_kahan)(lambda x: (scales * x).T, jnp.ones((3, 4)), num_steps=3)
    check_fields(triplets)
    assert (triplets.left.shape, triplets.right.shape) == ((2, 4, 3), (2, 3, 4))
    with refuses_shapes():
        typechecked(golub_kahan.golub_kahan)(lambda x: x, jnp.arange(12))


def test_newton_cg():
    def derivatives_fn(x):
        return float((x**2).sum()), 2 * x, lambda direction: 2 * direction

    result = typechecked(newton_cg.minimise)(lambda x: float((x**2).sum()), derivatives_fn, np.ones((2, 3)))
    assert check_fields(result).position.shape == (2, 3)
    with refuses_shapes():
        typechecked(newton_cg.minimise)(lambda x: float((x**2).sum()), derivatives_fn, np.ones(3, np.float32))
