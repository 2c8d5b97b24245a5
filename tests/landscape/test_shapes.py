"""Public functions keep to the shapes of their annotations, and the annotations tell right from wrong ones."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import landscape
from jaxbp.landscape import softmax_regression
from tests.helpers.typechecked import check_fields, refuses_shapes, typechecked

RNG = np.random.default_rng(0)
INPUTS, LABELS = RNG.normal(size=(30, 4)), RNG.integers(0, 3, 30)
NET = nn.Sequential([nn.Dense(5), nn.relu, nn.Dense(3)])


def apply_fn(params, inputs):
    return NET.apply({"params": params}, inputs)


def loss_fn(params, inputs):
    return jnp.sum(inputs @ params, -1) ** 2


@pytest.fixture(scope="module")
def fit():
    return landscape.fit_affine(INPUTS, LABELS, 3, loss="squared_error")


def test_fits():
    for result in (
        typechecked(landscape.fit_affine)(INPUTS, LABELS, 3, loss="squared_error"),
        typechecked(softmax_regression.minimise_cross_entropy)(INPUTS, LABELS, 3),
    ):
        check_fields(result)
    for inputs, labels in ((INPUTS[0], LABELS), (INPUTS, LABELS[:-1]), (INPUTS, LABELS * 1.0), (INPUTS, INPUTS)):
        with refuses_shapes():
            typechecked(landscape.fit_affine)(inputs, labels, 3, loss="squared_error")


def test_curvature_and_probes(x64):
    params, data = jnp.ones((4, 2)), (jnp.asarray(INPUTS),)
    check_fields(typechecked(landscape.hessian)(loss_fn, params, data))
    loss, gradient = typechecked(landscape.loss_and_gradient)(loss_fn, params, data)
    assert (loss.shape, gradient.shape) == ((), (8,))
    assert typechecked(landscape.losses_at)(loss_fn, params, data, jnp.ones((3, 8))).shape == (3,)
    options = {"radii": (0.1, 1.0), "step_size": 0.1, "num_steps": 1}
    check_fields(typechecked(landscape.probe)(loss_fn, params, data, jax.random.key(0), direction=jnp.ones(8), **options))
    with refuses_shapes():
        typechecked(landscape.hessian)(loss_fn, params, (jnp.float32(1),))
    with refuses_shapes():
        typechecked(landscape.losses_at)(loss_fn, params, data, jnp.ones(8))
    for shape in ((7,), (1, 1, 8)):
        with pytest.raises(ValueError, match=r"direction must be \(8,\) or \(k, 8\)"):
            landscape.probe(loss_fn, params, data, jax.random.key(0), direction=jnp.ones(shape), **options)


@pytest.mark.slow
def test_activations_embedding_and_certificate(fit):
    params = typechecked(landscape.embed_affine)(NET, fit, INPUTS)
    with jax.enable_x64(True):
        check_fields(typechecked(landscape.analyse)(apply_fn, params, jnp.asarray(INPUTS)))
        assert typechecked(landscape.stable_radius)(apply_fn, params, jnp.asarray(INPUTS)) > 0
    certify = typechecked(landscape.certify)
    certificate = certify(apply_fn, params, INPUTS, LABELS, loss="squared_error", key=jax.random.key(0), num_steps=1)
    check_fields(certificate)
    check_fields(certificate.extremes.smallest)
    check_fields(certificate.probes)
    with refuses_shapes():
        certify(apply_fn, params, INPUTS, LABELS[:-1], loss="squared_error", key=jax.random.key(0))
    for function in (landscape.analyse, landscape.stable_radius):
        with refuses_shapes():
            typechecked(function)(apply_fn, params, jnp.float32(1))
    layers = [(np.ones((4, 5)), np.ones(5)), (np.ones((5, 3)), np.ones(3))]
    assert len(typechecked(landscape.embed_mlp)(layers, [5, 4], INPUTS)) == 3
    for wrong_layers, inputs in ((layers, INPUTS[0]), ([(np.ones(5), np.ones(5))], INPUTS), ([(np.ones((4, 5)), np.ones((5, 1)))], INPUTS)):
        with refuses_shapes():
            typechecked(landscape.embed_mlp)(wrong_layers, [5, 4], inputs)


def test_initialisations():
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    assert typechecked(landscape.perturb_init)("bias +1", params, jax.random.key(0))["bias"].tolist() == [2.0] * 3
    with refuses_shapes():
        typechecked(landscape.perturb_init)("bias +1", params, 0)
