"""Points whose nature is known beforehand, as one table: degenerate directions, kinks, plateaux, barriers, scales, dead networks.

A network of two parameters (t, u) has a loss of (1 + h) / 2, with h a polynomial whose coefficients come as its input, so that all points
share one compiled program; a second program has the kinks.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxbp import landscape, models
from jaxbp.landscape import dense_chain, descents, operations, proofs

KEY = jax.random.key(0)
TERMS = ("t", "t2", "u2", "u3", "u4", "tu2", "t4", "exp -u", "|u|", "u+", "u-")
LABELS = np.ones(2, int)


def smooth(p, x):
    t, u = p["t"], p["u"]
    terms = jnp.stack([t, t**2, u**2, u**3, u**4, t * u**2, t**4, jnp.exp(-u)])
    return of_height(x[:, :8] @ terms)


def kinked(p, x):
    u = p["u"]
    terms = jnp.stack([p["t"] ** 2, jnp.abs(u), jnp.maximum(u, 0.0), jnp.maximum(-u, 0.0)])
    return of_height(x[:, np.array([1, 8, 9, 10])] @ terms)


def of_height(h):
    return jnp.stack([jnp.sqrt(1 + h), jnp.ones_like(h)], 1)  # half the squared distance to (0, 1): (1 + h) / 2


def certify(apply_fn, terms, t=0.0, u=0.0, **options):
    inputs = np.tile([float(terms.get(name, 0.0)) for name in TERMS], (2, 1))
    options = {"num_directions": 1, "num_steps": 5, "loss": "squared_error", "key": KEY, **options}
    return landscape.certify(apply_fn, {"t": t, "u": u}, inputs, LABELS, **options)


MINIMUM, SADDLE, SLOPE = "supported", "refuted", "refuted"


@pytest.mark.first_cases(4)
@pytest.mark.parametrize(
    ("terms", "status"),
    [
        ({"t2": 1, "u2": 1}, MINIMUM),
        ({"t2": 1e12, "u2": 1e12}, MINIMUM),
        ({"t2": 1e-12, "u2": 1e-12}, MINIMUM),
        ({"t2": 1, "u4": 1}, MINIMUM),  # flat to third order
        ({"t2": 1}, MINIMUM),  # a valley
        ({}, MINIMUM),  # a plateau
        ({"t2": 1, "u2": -1}, SADDLE),
        ({"t2": 1, "u2": -1e-8}, SADDLE),
        ({"t2": 1, "u3": 1}, SADDLE),
        ({"t2": 1, "u4": -1}, SADDLE),
        ({"t2": 1, "u4": -1e-12}, SADDLE),  # in another unit of u
        ({"t2": 1e12, "u4": -1}, SADDLE),
        ({"u3": 1}, SADDLE),
        ({"u3": -1}, SADDLE),
        ({"u4": -1}, SADDLE),
        ({"t2": 1, "u2": 1, "t": 1}, SLOPE),
        ({"u2": 1, "t": 1e-6}, SLOPE),
        ({"t": 1e-12}, SLOPE),
    ],
)
def test_smooth_points(terms, status):
    certificate = certify(smooth, terms)
    assert certificate.status == status, certificate.reasons


def test_the_distance_of_a_minimum_nearby():
    certificate = certify(smooth, {"t2": 1, "t": -2 + 1e-4}, t=1.0)  # the minimum lies at t = 1 - 5e-5
    assert (certificate.status, certificate.nearby.status) == ("near", "supported")
    assert certificate.distance == pytest.approx(5e-5, rel=1e-6)
    assert certificate.nearby.gradient_norm < 1e-12


@pytest.mark.parametrize(
    ("terms", "truth"),
    [
        ({"t2": 1, "t4": -1e4, "u2": 1}, "minimum"),  # with a barrier
        ({"t2": 1, "tu2": -4, "u4": 3}, "saddle"),  # (t - u^2)(t - 3 u^2), higher along every straight line (Peano)
    ],
)
def test_lower_losses_at_a_distance_decide_nothing(terms, truth):
    certificate = certify(smooth, terms)
    assert certificate.status == "undecided", truth
    assert "but losses are not lower at every distance" in certificate.reasons[0]


def test_a_minimum_beside_an_idle_parameter_of_any_size():
    left, _, right = sorted(np.roots([2e-4, 0, -2e-2, 5e-4]).real.tolist())
    deep, shallow = (certify(smooth, {"t2": -1e-2, "t4": 5e-5, "t": 5e-4}, t, 1000.0) for t in (left, right))
    assert shallow.loss - deep.loss == pytest.approx(5e-3, rel=1e-2)  # 20 away
    assert (deep.status, shallow.status) == ("supported", "supported")


def test_the_tail_of_an_exponential_is_no_minimum():
    assert certify(smooth, {"exp -u": 1}, u=50.0).status == "refuted"  # a slope of 1e-22


@pytest.mark.parametrize(
    ("terms", "status"),
    [
        ({"t2": 1, "|u|": 1}, "undecided"),  # a minimum
        ({"t2": 1, "u+": 2, "u-": 1}, "undecided"),  # a minimum at which the derivative is not 0
        ({"t2": 1, "u+": 1}, "undecided"),  # the edge of a plateau
        ({"t2": 1, "|u|": -1e-6}, "refuted"),
        ({"t2": 1, "u+": -1e-6}, "refuted"),
        ({"t2": 1, "u+": 1, "u-": -1e-6}, "refuted"),
    ],
)
def test_kinks(terms, status):
    certificate = certify(kinked, terms)
    assert certificate.status == status, certificate.reasons
    assert any("kinks are not followed" in reason for reason in certificate.reasons) == (status == "undecided")


# Softmax regression: no minimum where classes are separable


def logits_fn(weights, x):
    return x[:, 1:] * x[:, :1] @ weights  # the first feature scales the logits


@pytest.mark.parametrize(("scale", "size", "status"), [(1.0, 15.0, "refuted"), (1.0, 400.0, "undecided"), (1e-9, 1.0, "refuted")])
@pytest.mark.parametrize("bound", [None, 0.0])
def test_where_no_minimum_exists_none_is_seen(scale, size, status, bound):
    x = np.array([[scale, -2.0], [scale, -1.0], [scale, 1.0], [scale, 2.0]])
    labels = (x[:, 1] > 0).astype(int)
    fit = None
    if bound is not None:  # the infimum, which is a valid bound, in the guise of a fit
        kernel = np.array([[0.0, 0.0], [-size * scale, size * scale]])
        loss = float(np.mean(scipy.special.logsumexp(x @ kernel, axis=1) - (x @ kernel)[np.arange(4), labels]))
        fit = landscape.AffineFit(kernel, np.zeros(2), 1, loss, 0.0, bound, None, 1.0, bound)
    options = {"loss": "cross_entropy", "key": KEY, "num_directions": 1, "num_steps": 2}
    certificate = landscape.certify(logits_fn, np.array([[-size, size]]), x, labels, fit=fit, **options)
    assert certificate.status == status, certificate.reasons


# What may have been missed


def spectral(p, x):
    return of_height(x[:, :1][:, 0] * jnp.sum(jnp.asarray(EIGENVALUES) * p**2))


EIGENVALUES = (np.arange(301) / 300) ** 4
EIGENVALUES[150] = -1e-4


@pytest.mark.slow
def test_curvature_that_is_missed_is_bounded():
    inputs, options = np.ones((2, 1)), {"loss": "squared_error", "key": KEY, "num_directions": 1, "num_steps": 1}
    certificate = landscape.certify(spectral, np.zeros(301), inputs, LABELS, max_products=16, **options)
    assert certificate.status == "undecided"
    assert certificate.extremes.smallest.value > 0  # of which nothing negative was seen
    (_, one), (_, ten), (_, hundred) = certificate.missed
    assert one < -1e-4 < 0
    assert one < ten < hundred
    assert f"1 below {one:.2g}, 10 below {ten:.2g}" in certificate.reasons[-1]
    certificate = landscape.certify(spectral, np.zeros(301), inputs, LABELS, max_products=300, **options)
    assert certificate.status == "refuted"
    assert certificate.extremes.smallest.value == pytest.approx(-1e-4, rel=1e-2)


# ReLU networks

NET = models.create("mlp", num_classes=3, width=6, depth=2)
INPUTS = np.random.default_rng(0).normal(size=(30, 4))
CLASSES = np.arange(30) % 3


def dead_params(output_bias):
    rng = np.random.default_rng(1)
    shapes = {"Dense_0": (4, 6), "Dense_1": (6, 6), "Dense_2": (6, 3)}
    params = {name: {"kernel": rng.normal(size=shape), "bias": np.zeros(shape[1])} for name, shape in shapes.items()}
    params["Dense_0"]["bias"] -= 50.0  # dead on every example
    params["Dense_1"]["bias"] += 1.0
    params["Dense_2"]["bias"] = np.asarray(output_bias) - params["Dense_2"]["kernel"].sum(0)
    return params


@pytest.mark.slow
@pytest.mark.parametrize(
    ("logits", "labels", "status"),
    [
        ([0.0, 0.0, 0.0], CLASSES, "proven"),
        (np.log([15, 8, 7]), np.array([0, 1, 0, 2] * 7 + [0, 1]), "proven"),
        ([0.0, 0.0, 0.5], CLASSES, "refuted"),
    ],
)
def test_dead_networks_are_as_good_as_their_output_bias(logits, labels, status):
    options = {"loss": "cross_entropy", "key": KEY, "num_directions": 1, "num_steps": 2}
    certificate = landscape.certify(NET.apply, dead_params(logits), INPUTS, labels, **options)
    assert certificate.activations.is_constant
    assert certificate.status == status, certificate.reasons
    share = np.bincount(labels) / 30
    if status == "proven":
        assert certificate.loss == pytest.approx(-(share * np.log(share)).sum(), rel=1e-14)
        assert 0 < certificate.radius < 50


def test_the_loss_of_constants_by_hand():
    labels = np.array([0, 0, 1, 2])
    assert proofs.best_constant_loss(labels, 3, "cross_entropy") == (pytest.approx(1.5 * np.log(2)), True)
    assert proofs.best_constant_loss(labels, 4, "cross_entropy") == (pytest.approx(1.5 * np.log(2)), False)
    assert proofs.best_constant_loss(labels, 4, "squared_error") == (pytest.approx(0.5 * (1 - 6 / 16)), True)


# Parts


def test_the_slope_of_the_map_is_its_gradient(x64):
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(4, 3)), rng.normal(size=3)

    def loss(kernel, bias):
        z = INPUTS @ kernel + bias
        return (jax.nn.logsumexp(z, 1) - z[np.arange(30), CLASSES]).mean()

    by_kernel = jax.grad(loss)(jnp.asarray(kernel), jnp.asarray(bias))
    slope = proofs.map_slope(INPUTS, INPUTS @ kernel + bias, CLASSES, "cross_entropy")
    np.testing.assert_allclose(slope.kernel, by_kernel, rtol=1e-12)
    assert 0.01 < slope.relative < 1
    fit = landscape.fit_affine(INPUTS, CLASSES, 3, loss="cross_entropy")
    assert proofs.map_slope(INPUTS, INPUTS @ fit.kernel + fit.bias, CLASSES, "cross_entropy").relative < 1e-13


def test_chains_are_told_from_other_networks():
    params = jax.tree.map(np.asarray, dead_params(np.zeros(3)))
    chain = dense_chain.read(NET.apply, params, INPUTS)
    assert chain == (dense_chain.Dense(1, 0), dense_chain.Dense(3, 2), dense_chain.Dense(5, 4))
    assert dense_chain.reaches_every_map(chain, jax.tree.leaves(params))
    assert not dense_chain.reaches_every_map((*chain[:-1], dense_chain.Dense(5, None)), jax.tree.leaves(params))
    square, x = jnp.ones((4, 4)), jnp.ones((5, 4))
    for other in (
        lambda p, x: x @ p @ p,  # a shared weight
        lambda p, x: x + x @ p,  # a skip
        lambda p, x: jnp.tanh(x @ p) @ jnp.ones((4, 2)),
        lambda p, x: x @ p.T,
        lambda p, x: jax.nn.relu(x) @ p,  # the inputs are not reached
        lambda p, x: x @ jax.nn.relu(p),
    ):
        assert dense_chain.read(other, square, x) is None
    assert dense_chain.read(lambda p, x: x.reshape(5, -1) @ (p / 2.0), square, jnp.ones((5, 2, 2))) == (dense_chain.Dense(0, None),)


def test_idle_paths_add_a_map_of_rank_one(x64):
    rng = np.random.default_rng(0)
    fit = landscape.fit_affine(INPUTS, CLASSES, 3, loss="squared_error", max_rank=1)
    params = jax.tree.map(np.asarray, landscape.embed_affine(NET.module, fit, INPUTS, key=jax.random.key(1)))
    chain, leaves = dense_chain.read(NET.apply, params, INPUTS), jax.tree.leaves(params)
    gradient = rng.normal(size=(4, 3))
    sizes = np.array([0.05, 0.1])
    offsets = dense_chain.idle_path(chain, leaves, gradient, INPUTS.mean(0), sizes)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    left, _, right = np.linalg.svd(-gradient)
    for size, offset in zip(sizes, offsets, strict=True):
        logits = NET.apply(unravel(flat + offset), INPUTS)
        change = np.asarray(logits) - (INPUTS @ fit.kernel + fit.bias)
        step = (size / np.sqrt(3)) ** 3 * np.outer(left[:, 0], right[0])  # three layers
        np.testing.assert_allclose(change, (INPUTS - INPUTS.mean(0)) @ step, atol=1e-14)
    assert dense_chain.idle_path(chain, [rng.normal(size=leaf.shape) for leaf in leaves], gradient, INPUTS.mean(0), sizes) is None


def test_losses_that_fall_at_every_distance():
    distances = descents.halvings(0.1)
    for order in (1, 2, 3, 4):
        assert descents.falls_towards(-(distances**order), 1e-13)
        assert not descents.falls_towards(distances**order, 1e-13)
    assert not descents.falls_towards(distances**2 - 1e4 * distances**4, 1e-13)  # behind a barrier
    assert descents.falls_towards(distances**6 - distances**4, 1e-13)
    assert not descents.falls_towards(0 * distances, 1e-13)
    assert not descents.falls_towards(np.where(distances > 0.05, -1.0, 0.0), 1e-13)
    assert not descents.falls_towards(np.full(14, np.nan), 1e-13)


def test_kinks_and_short_floats_of_programs():
    p, x = jnp.ones((3, 3)), jnp.ones((4, 3))
    for fn, names in (
        (lambda p, x: jax.nn.relu(x @ p), {"max"}),
        (lambda p, x: jax.nn.softmax(x @ p), set()),
        (lambda p, x: jax.nn.log_softmax(x @ p), set()),
        (lambda p, x: jax.nn.leaky_relu(x @ p), {"select_n"}),
        (lambda p, x: jnp.where(x > 0, x @ p, 0.0), set()),  # a mask
        (lambda p, x: jnp.abs(x) @ p, set()),
        (lambda p, x: jax.lax.scan(lambda h, _: (jnp.abs(h @ p), None), x, length=2)[0], {"abs"}),
        (lambda p, x: jnp.tanh(jnp.max(x @ p, 1, keepdims=True)), {"reduce_max"}),
    ):
        assert operations.kinks(fn, p, x) == names
    with jax.enable_x64(True):
        p, x = jnp.ones((3, 3)), jnp.ones((4, 3))
        assert operations.short_floats(lambda p, x: jax.nn.softmax(x @ p), p, x) == ((), 2.0**-52)
        short, epsilon = operations.short_floats(lambda p, x: jax.nn.softmax((x @ p).astype(jnp.float32)).astype(float) @ p, p, x)
        assert short == ("float32 in 'reduce_max'",)  # of the softmax
        assert epsilon == 2.0**-23
