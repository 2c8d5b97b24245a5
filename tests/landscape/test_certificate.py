"""Certificates on points whose nature is known beforehand: minima by construction, saddles, points beside them."""

import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxbp import landscape, models
from jaxbp.landscape import Certificate, ProbeReport

NUM_EXAMPLES, NUM_FEATURES, NUM_CLASSES = 60, 5, 3
KEY = jax.random.key(0)


@functools.cache
def data(loss="cross_entropy", max_rank=None):
    """Inputs, labels and the best affine map."""
    rng = np.random.default_rng(0)
    labels = np.arange(NUM_EXAMPLES) % NUM_CLASSES  # balanced
    inputs = rng.normal(size=(NUM_EXAMPLES, NUM_FEATURES)) + 0.7 * np.eye(NUM_CLASSES, NUM_FEATURES)[labels]
    return inputs, labels, landscape.fit_affine(inputs, labels, NUM_CLASSES, loss=loss, max_rank=max_rank)


@functools.cache
def embedded(depth=2, width=6, loss="cross_entropy", max_rank=None):
    """An MLP and parameters with which it computes the best affine map."""
    inputs, _, fit = data(loss, max_rank)
    net = models.create("mlp", num_classes=NUM_CLASSES, width=width, depth=depth)
    return net, landscape.embed_affine(net.module, fit, inputs, key=jax.random.key(1))


def certify(net, params, loss="cross_entropy", *, fit_rank=None, **options):
    """By default with the best affine map by this loss."""
    inputs, labels, fit = data(loss, fit_rank)
    apply_fn = net.apply if isinstance(net, models.Network) else net
    options = {"fit": fit, "num_directions": 2, "num_steps": 5, "key": KEY, **options}
    return landscape.certify(apply_fn, params, inputs, labels, loss=loss, **options)


def shifted(params, size, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: np.asarray(p) + size * rng.normal(size=p.shape), params)


# Proven


@pytest.mark.parametrize(
    "depth,loss",
    [
        pytest.param(2, "cross_entropy", marks=pytest.mark.slow),
        (3, "squared_error"),  # with the program of the saddles below
        pytest.param(4, "cross_entropy", marks=pytest.mark.slow),
        pytest.param(8, "squared_error", marks=pytest.mark.slow),
    ],
)
def test_embedded_minimisers_are_proven(depth, loss):
    net, params = embedded(depth, loss=loss)
    certificate = certify(net, params, loss)
    _, _, fit = data(loss)
    assert (certificate.status, certificate.reasons) == ("proven", ())
    assert certificate.is_minimum
    assert abs(certificate.loss - fit.loss) <= 1e-12 * fit.loss
    assert certificate.gradient_norm <= 1e-8
    assert certificate.gap <= 1e-12 * fit.loss
    assert certificate.activations.all_active
    assert certificate.activations.smallest_margin == pytest.approx(1.0)
    assert 0 < certificate.radius < 1  # less than the margin
    # The minimum is degenerate, so that the smallest eigenvalue is 0: below by rounding, above by less than Lanczos asks.
    scale = certificate.extremes.largest.value
    assert -1e-13 * scale < certificate.extremes.smallest.value < 1e-5 * scale


@pytest.mark.slow
def test_nothing_within_a_proven_radius_has_a_lower_loss():
    net, params = embedded()
    certificate = certify(net, params)
    inputs, labels, _ = data()
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        offsets = rng.normal(size=(200, size))
        offsets *= certificate.radius * rng.uniform(size=(200, 1)) ** (1 / 10) / np.linalg.norm(offsets, axis=1, keepdims=True)
        loss_fn = landscape.per_example_loss(net.apply, "cross_entropy")
        losses = landscape.losses_at(loss_fn, params, (jnp.asarray(inputs), jnp.asarray(labels)), jnp.asarray(offsets))
    assert (np.asarray(losses) >= certificate.loss - 1e-14).all()
    assert certificate.probes.lowest_change_within(certificate.radius) >= -1e-14


@pytest.mark.slow
def test_a_rescaled_minimum_is_a_minimum():
    net, params = embedded()
    scaled = jax.tree.map(np.array, params)
    scaled["Dense_0"] = {name: 3 * leaf for name, leaf in scaled["Dense_0"].items()}
    scaled["Dense_1"]["kernel"] /= 3
    certificate = certify(net, scaled)
    assert certificate.status == "proven"
    assert certificate.activations.smallest_margin == pytest.approx(1.0)  # of the second layer


@pytest.mark.slow
def test_a_network_without_relus_is_proven_too():
    _, _, fit = data()
    certificate = certify(lambda p, x: x @ p[0] + p[1], (fit.kernel, fit.bias))
    assert (certificate.status, certificate.radius) == ("proven", math.inf)


@pytest.mark.slow
def test_an_embedded_convnet_is_proven():
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(60, 4, 4, 1)), np.arange(60) % 3
    fit = landscape.fit_affine(inputs.reshape(60, -1), labels, 3, loss="cross_entropy")
    net = models.create("convnet", num_classes=3, width=4, depth=1, pool="stride")
    params = landscape.embed_affine(net.module, fit, inputs)
    options = {"loss": "cross_entropy", "key": KEY, "fit": fit, "num_steps": 2}
    certificate = landscape.certify(net.apply, params, inputs, labels, **options)
    assert (certificate.status, certificate.reasons) == ("proven", ())


# What a proof lacks


def test_without_a_fit_nothing_is_proven():
    certificate = certify(*embedded(), fit=None)
    assert (certificate.status, certificate.gap) == ("supported", math.inf)
    assert "pass fit=fit_affine(...)" in certificate.reasons[0]


@pytest.mark.parametrize(
    "offset,reason",
    [
        (-1e-3, "the loss is 0.001 above the lower bound over affine maps"),
        (1e-3, "the loss is 0.001 below the lower bound given, which therefore is none"),
        (-math.inf, "no lower bound of the loss over affine maps was given"),
    ],
)
def test_a_bound_that_is_none_proves_nothing(offset, reason):
    fit = data()[2]
    bound = fit.lower_bound + offset
    certificate = certify(*embedded(), fit=fit._replace(lower_bound=bound, rank_lower_bound=bound))
    assert certificate.status == "supported"
    assert reason in certificate.reasons[0]


def test_a_fit_of_other_data_or_another_loss_is_refused():
    inputs, labels, fit = data()
    other = landscape.fit_affine(inputs, np.roll(labels, 1), NUM_CLASSES, loss="cross_entropy")
    for wrong in (other, data("squared_error")[2], fit._replace(loss=0.5)):
        with pytest.raises(ValueError, match="fit is not of these examples and this loss"):
            certify(*embedded(), fit=wrong)
    with pytest.raises(ValueError, match="fit is of inputs with 4 features, got 5"):
        certify(*embedded(), fit=landscape.fit_affine(inputs[:, :4], labels, NUM_CLASSES, loss="cross_entropy"))


@pytest.mark.slow
def test_a_bottleneck_at_the_rank_of_the_bound_is_proven():
    net, params = embedded(2, 1, "squared_error", max_rank=1)
    fit = data("squared_error", 1)[2]
    assert fit.is_attained
    certificate = certify(net, params, "squared_error", fit_rank=1)
    assert (certificate.status, certificate.activations.max_rank) == ("proven", 1)
    assert certificate.gap == pytest.approx(0, abs=1e-12)
    loose = certify(net, params, "squared_error")  # the best map of any rank
    assert (loose.status, loose.gap) == ("supported", pytest.approx(fit.loss - fit.lower_bound))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "with_fit"), [(1, True), (3, False), *(pytest.param(*c, marks=pytest.mark.slow) for c in ((1, False), (3, True)))]
)
def test_a_truncated_map_with_room_for_a_better_one_is_refuted(depth, with_fit):
    # A saddle: with curvature of a net with one hidden layer, flat up to order 4 in one with three.
    net, params = embedded(depth, 6, "squared_error", max_rank=1)
    fit = data("squared_error", 1)[2]
    certificate = certify(net, params, "squared_error", fit=fit if with_fit else None)
    assert certificate.status == "refuted"
    assert any("Laurent and von Brecht" in reason for reason in certificate.reasons)
    assert any("negative curvature" in reason for reason in certificate.reasons) == (depth == 1)
    assert any("flat to second order" in reason for reason in certificate.reasons) == (depth == 3)
    # Nothing that is written into the fit makes a proof of it.
    for lie in (
        fit._replace(lower_bound=fit.loss, max_rank=None),
        fit._replace(max_rank=9),
        fit._replace(max_rank=3, lower_bound=fit.loss),
    ):
        assert certify(net, params, "squared_error", fit=lie).status == "refuted"


@functools.cache
def smooth_minimum():
    """A non-degenerate minimum of a tanh net with one hidden unit, by BFGS and Newton steps on its own formulas."""
    inputs, labels, _ = data("squared_error")
    targets = np.eye(NUM_CLASSES)[labels]

    def apply_fn(p, x):
        return jnp.tanh(x @ p["in"] + p["shift"]) * p["out"] + p["bias"]

    def loss(flat):
        p = unflatten(flat)
        return 0.5 * jnp.mean(jnp.sum((apply_fn(p, inputs) - targets) ** 2, 1))

    def unflatten(flat):
        return {"in": flat[:5, None], "shift": flat[5], "out": flat[6:9], "bias": flat[9:]}

    with jax.enable_x64(True):
        gradient, curvature = jax.jit(jax.grad(loss)), jax.jit(jax.hessian(loss))
        start = np.array([1.0, -0.5, -0.5, 0, 0, 0.1, 0.5, -0.3, -0.2, 0.3, 0.3, 0.3])
        point = scipy.optimize.minimize(jax.jit(loss), start, jac=gradient, method="BFGS", options={"gtol": 1e-7}).x
        for _ in range(5):
            point = point - np.linalg.solve(curvature(point), gradient(point))
        eigenvalues = np.linalg.eigvalsh(curvature(point))
        return apply_fn, jax.tree.map(np.asarray, unflatten(point)), eigenvalues


@pytest.mark.slow
def test_a_smooth_minimum_is_supported():
    apply_fn, params, eigenvalues = smooth_minimum()
    assert eigenvalues[0] > 1e-4  # a minimum indeed
    certificate = certify(apply_fn, params, "squared_error")
    assert certificate.status == "supported"
    assert certificate.is_minimum
    assert (certificate.activations, certificate.radius) == (None, 0.0)
    assert certificate.reasons[0] == "a proof follows affine layers and ReLUs only"
    assert certificate.extremes.smallest.value == pytest.approx(eigenvalues[0], rel=1e-3)
    assert certificate.extremes.largest.value == pytest.approx(eigenvalues[-1], rel=1e-3)


def test_a_curvature_that_is_not_known_is_said():
    certificate = certify(*embedded(), fit=None, max_products=3)
    assert certificate.status == "undecided"
    assert not certificate.is_minimum
    assert "smallest eigenvalue is not converged" in certificate.reasons[0]
    assert certificate.reasons[-1].startswith("negative curvature may have been missed: with a probability of 99.9% each")
    (_, one), (_, ten) = certificate.missed  # of 93 parameters
    assert one < ten < 0
    assert certify(*embedded(), max_products=3).status == "proven"  # a proof does not need it


def test_a_net_with_inactive_units_is_not_proven():
    net, _ = embedded()
    params = landscape.embed_affine(net.module, data()[2], data()[0])
    params["Dense_0"]["bias"] = np.array(params["Dense_0"]["bias"])
    params["Dense_0"]["bias"][-1] = -1.0  # of a unit that is not needed: same outputs, same gradient
    certificate = certify(net, params)
    assert certificate.status == "supported"
    assert certificate.reasons[0] == "only 91.7% of the ReLUs are active, so the network is not affine near the point"


# Refuted


def test_a_point_moved_far_off_the_minimum_is_refuted():
    net, params = embedded()
    certificate = certify(net, shifted(params, 1e-2))
    assert certificate.status == "refuted"
    assert not certificate.is_minimum
    assert certificate.reasons[0].startswith("not stationary")
    text = repr(certificate)
    assert text.startswith("Certificate(status='refuted', reasons=(\"not stationary")
    assert re.search(r"smallest=Eigenvalue\(value=-?[\d.e-]+, .*vector=float64\[\d+\], error=[\d.e-]+\)", text)
    assert "\n" not in text
    assert len(text) < 2000


def test_short_floats_are_named_where_a_point_is_refuted_too():
    """The head makes float64 of them, so that the logits do not tell."""
    inputs, labels, _ = data()

    def apply_fn(p, x):
        return jnp.tanh((x @ p["hidden"]).astype(jnp.float32)) @ p["head"]

    params = {"hidden": np.eye(NUM_FEATURES)[:, :2], "head": np.ones((2, NUM_CLASSES))}
    options = {"num_directions": 1, "num_steps": 1, "max_products": 4}
    certificate = landscape.certify(apply_fn, params, inputs, labels, loss="squared_error", key=KEY, **options)
    assert certificate.status == "refuted"
    assert re.match(r"the network computes partly in short floats \(float32 in 'tanh'\).*\(dtype=None\)", certificate.reasons[-1])


@pytest.mark.parametrize("size", [1e-10, 1e-6, "float32"])
def test_a_point_beside_a_minimum_is_told_from_it_and_from_none(size):
    net, params = embedded()
    if size == "float32":
        moved = jax.tree.map(lambda p: np.asarray(p, np.float32), params)
    else:
        moved = shifted(params, size)
    certificate = certify(net, moved)
    offsets = jax.tree.map(lambda a, b: np.sum((np.asarray(a, float) - np.asarray(b)) ** 2), moved, params)
    distance = math.sqrt(sum(jax.tree.leaves(offsets)))  # to a minimum, of which there is a whole manifold: the nearest lies no further
    assert (certificate.status, certificate.is_minimum) == ("near", False)
    assert certificate.nearby.status == "proven"
    assert 0 < certificate.distance < certificate.nearby.radius
    # Newton's steps along the least curved directions end in rounding, which they enlarge by 1 / curvature.
    assert certificate.distance < 2 * distance + 1e-3


def test_zero_parameters_are_a_saddle_behind_kinks():
    net, params = embedded()
    certificate = certify(net, jax.tree.map(np.zeros_like, params))
    assert certificate.status == "refuted"
    assert certificate.gradient_norm < 1e-15
    assert certificate.activations.smallest_margin == 0
    assert certificate.reasons[0].startswith("lower losses at every distance")


def test_a_smooth_saddle_is_refuted_for_its_curvature():
    # Balanced classes and zero kernels: stationary, and by symmetry nothing else distinguishes it from a minimum.
    params = {"in": np.zeros((NUM_FEATURES, 2)), "out": np.zeros((2, NUM_CLASSES))}
    certificate = certify(lambda p, x: x @ p["in"] @ p["out"], params)
    assert certificate.status == "refuted"
    assert certificate.gradient_norm < 1e-15
    assert certificate.reasons[0].startswith("negative curvature")
    assert any("lower losses at every distance" in reason for reason in certificate.reasons)
    inputs, labels, _ = data()
    slope = inputs.T @ (1 / NUM_CLASSES - np.eye(NUM_CLASSES)[labels]) / NUM_EXAMPLES  # Hessian: +- its singular values
    assert certificate.extremes.smallest.value == pytest.approx(-np.linalg.norm(slope, 2), rel=1e-3)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_parameters_that_are_not_finite_are_refuted(value):
    net, params = embedded()
    certificate = certify(net, jax.tree.map(lambda p: np.full_like(p, value), params))
    assert (certificate.status, certificate.extremes, certificate.probes) == ("refuted", None, None)
    assert certificate.reasons == ("the loss is not finite",)


@pytest.mark.parametrize("power", [0.5, 1.5])  # the gradient, the curvature is infinite at 0
def test_derivatives_that_are_not_finite_decide_nothing(power):
    certificate = certify(lambda p, x: x @ p + jnp.sum(p**2) ** power, np.zeros((NUM_FEATURES, NUM_CLASSES)))
    assert math.isfinite(certificate.loss)
    assert certificate.status == "undecided"
    assert certificate.reasons == ("the gradient or the curvature is not finite",)
    assert landscape.classify(certificate, near_global_loss=0.0, gradient_tolerance=1.0) == "diverged"


# Modes, types and misuse


def test_the_callers_mode_and_dtypes_do_not_matter():
    net, params = embedded()
    outside = certify(net, params)
    with jax.enable_x64(True):
        inside = certify(net, jax.tree.map(jnp.asarray, params))
    for field in ("status", "loss", "gradient_norm", "radius", "gap"):
        assert getattr(inside, field) == getattr(outside, field)
    assert outside.probes.lowest_change == inside.probes.lowest_change  # can be read in either mode


@pytest.mark.slow
def test_chunks_change_nothing():
    net, params = embedded()
    whole, chunked = (certify(net, params, chunk_size=size) for size in (None, 25))
    assert chunked.status == "proven"
    assert chunked.loss == pytest.approx(whole.loss, rel=1e-14)
    assert chunked.radius == pytest.approx(whole.radius, rel=1e-9)
    assert chunked.activations.num_units == whole.activations.num_units
    np.testing.assert_allclose(chunked.probes.line_changes, whole.probes.line_changes, rtol=1e-6, atol=1e-14)


@pytest.mark.parametrize("key", [jax.random.PRNGKey(0), jax.random.key(0, impl="rbg")], ids=["raw", "rbg"])
def test_keys_of_every_kind(key):
    assert certify(*embedded(), key=key).status == "proven"


@pytest.mark.slow
def test_a_second_point_reuses_what_was_compiled():
    net, params = embedded()
    traces = 0

    def apply_fn(params, x):
        nonlocal traces
        traces += 1
        return net.apply(params, x)

    counts = []
    for size in (0, 1e-2):
        certify(apply_fn, shifted(params, size))
        counts.append(traces)
    assert counts[1] == counts[0]


@pytest.mark.slow
def test_short_floats_are_refused_or_named():
    _, params = embedded()
    whole, inner = (
        nn.Sequential([nn.Dense(6, dtype=jnp.float32), nn.relu, nn.Dense(6), nn.relu, nn.Dense(NUM_CLASSES, dtype=dtype)])
        for dtype in (jnp.float32, None)
    )
    params = {f"layers_{2 * i}": params[f"Dense_{i}"] for i in range(3)}
    with pytest.raises(ValueError, match=r"computes logits in float32.*dtype=None"):
        certify(lambda p, x: whole.apply({"params": p}, x), params)
    certificate = certify(lambda p, x: inner.apply({"params": p}, x), params)
    assert (certificate.status, certificate.activations) == ("undecided", None)
    assert "partly in short floats (float32 in 'dot_general')" in certificate.reasons[0]
    with pytest.raises(ValueError, match=r"loss must be one of \['cross_entropy', 'squared_error'\], got 'hinge'"):
        landscape.per_example_loss(embedded()[0].apply, "hinge")


@pytest.mark.slow
def test_tokens_stay_integers():
    tokens = np.random.default_rng(0).integers(0, 7, (NUM_EXAMPLES, 4))

    def apply_fn(p, x):
        return p["embed"][x].mean(1)

    counts = np.zeros((NUM_EXAMPLES, 7))
    np.add.at(counts, (np.arange(NUM_EXAMPLES)[:, None], tokens), 0.25)
    targets = np.eye(NUM_CLASSES)[data()[1]]
    best = np.linalg.lstsq(counts, targets)[0]  # linear in the embedding
    options = {"loss": "squared_error", "key": KEY, "num_steps": 2}
    certificate = landscape.certify(apply_fn, {"embed": best}, tokens, data()[1], **options)
    assert certificate.status == "supported"
    assert certificate.loss == pytest.approx(0.5 * ((counts @ best - targets) ** 2).sum(1).mean(), rel=1e-12)
    assert landscape.certify(apply_fn, {"embed": best + 1}, tokens, data()[1], **options).status == "refuted"


def test_arguments_of_other_kinds_are_refused():
    inputs, labels, _ = data()
    params, options = np.zeros((NUM_FEATURES, NUM_CLASSES)), {"loss": "squared_error", "key": KEY}

    def apply_fn(p, x):
        return x @ p

    for message, call in {
        r"params .* got int\d+ at \['step'\]": lambda: certify(lambda p, x: x @ p["w"], {"w": params, "step": np.int32(7)}),
        "got complex128": lambda: certify(apply_fn, params * 1j),
        "labels must lie from 0 to 2": lambda: landscape.certify(apply_fn, params, inputs, labels + 1, **options),
        "inputs must be one array, got dict": lambda: landscape.certify(apply_fn, params, {"x": inputs}, labels, **options),
        "key must be one random key": lambda: landscape.certify(apply_fn, params, inputs, labels, loss="squared_error", key=0),
        "take the first entry": lambda: certify(lambda p, x: (x @ p, x), params),
        "an entry for each example": lambda: certify(lambda p, x: x @ p["w"] + p["b"], {"w": params, "b": np.zeros((NUM_EXAMPLES, 3))}),
        "60 examples and no other number": lambda: certify(lambda p, x: jnp.asarray(inputs) @ p, params),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


# Names of end points


def outcome(loss=1.0, gradient_norm=0.0, smallest=0.0, largest=1.0, margin=0.5, lowest=0.0):
    """A certificate with what `classify` looks at."""
    ends = [landscape.Eigenvalue(value, 0.0, True, value, 0.999, jnp.ones(1)) for value in (smallest, largest)]
    activations = None if margin is None else landscape.ActivationReport(margin, 1.0, True, 1, 1)
    probes = ProbeReport(np.ones(1), np.array([[lowest]]), np.array([[1.0]]), np.ones((1, 1)))
    extremes = landscape.Extremes(*ends, 0)
    return Certificate("supported", (), loss, gradient_norm, extremes, activations, 0.0, 0.0, probes)


@pytest.mark.parametrize(
    "certificate,name",
    [
        (outcome(), "suboptimal minimum"),
        (outcome(margin=None), "suboptimal minimum"),
        (outcome(loss=0.1, smallest=-1.0, gradient_norm=1.0), "near-global"),
        (outcome(gradient_norm=0.2, smallest=-1.0), "not converged"),
        (outcome(gradient_norm=0.1, smallest=-9e-4), "suboptimal minimum"),
        (outcome(smallest=-2e-3), "saddle"),
        (outcome(smallest=-2e-3, largest=10.0), "suboptimal minimum"),
        (outcome(smallest=-1.0, largest=0.5), "saddle"),
        (outcome(margin=0.0), "saddle"),
        (outcome(lowest=-0.02), "saddle"),
        (outcome(lowest=-0.005), "suboptimal minimum"),
        (outcome(lowest=-0.005, loss=0.3), "saddle"),
        (Certificate("refuted", (), math.nan, math.nan, None, None, 0.0, math.inf, None), "diverged"),
    ],
)
def test_every_class_has_its_reason(certificate, name):
    assert name in landscape.CLASSES
    assert landscape.classify(certificate, near_global_loss=0.15, gradient_tolerance=0.1) == name


# Probes


def bowl(params, x):
    return x * ((params["a"] ** 2).sum() + 3 * params["b"].sum())


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_losses_at_against_direct_evaluation(x64, chunk_size):
    params, x = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([0.5])}, jnp.arange(1.0, 8.0)
    offsets = np.random.default_rng(0).normal(size=(6, 3))
    certificate = landscape.losses_at(bowl, params, (x,), jnp.asarray(offsets), chunk_size=chunk_size)
    points = np.array([1.0, -2.0, 0.5]) + offsets
    np.testing.assert_allclose(certificate, 4 * ((points[:, :2] ** 2).sum(1) + 3 * points[:, 2]), rtol=1e-13)


@given(st.integers(0, 99), st.integers(0, 8))
@settings(max_examples=8, deadline=None)
@pytest.mark.slow
def test_probes_of_a_quadratic_by_hand(seed, num_steps):
    # On x'x / 2 + y, a descent of n steps of size s shrinks x by (1 - s)^n and lowers y by n s.
    def loss_fn(params, x):
        return x * (0.5 * params["x"] @ params["x"] + params["y"])

    with jax.enable_x64(True):
        params, radii = {"x": jnp.zeros(2), "y": jnp.zeros(())}, (0.1, 0.9)
        certificate = landscape.probe(
            loss_fn,
            params,
            (jnp.ones(4),),
            jax.random.key(seed),
            radii=radii,
            step_size=0.25,
            num_directions=3,
            num_steps=num_steps,
            direction=jnp.array([0.0, 0.0, 5.0]),
        )
    assert all(type(field) is np.ndarray for field in certificate)  # to be read in any mode
    radii, fallen = np.array(radii), 0.25 * num_steps
    assert certificate.line_changes.shape == certificate.descent_changes.shape == certificate.descent_distances.shape == (5, 2)
    np.testing.assert_allclose(certificate.line_changes[3:], [radii, -radii], atol=1e-12)
    np.testing.assert_allclose(certificate.descent_changes[3:], [radii - fallen, -radii - fallen], atol=1e-12)
    np.testing.assert_allclose(certificate.descent_distances[3:], np.abs([radii - fallen, -radii - fallen]), atol=1e-12)
    # line = x^2 / 2 + y with x^2 + y^2 = r^2
    y = 1 - np.sqrt(1 + radii**2 - 2 * certificate.line_changes[:3])
    x = np.sqrt(np.maximum(radii**2 - y**2, 0))
    left = x * 0.75**num_steps
    np.testing.assert_allclose(certificate.descent_changes[:3], left**2 / 2 + y - fallen, atol=1e-6)
    np.testing.assert_allclose(certificate.descent_distances[:3], np.hypot(left, y - fallen), atol=1e-6)


def test_the_lowest_change_counts_what_is_near_and_finite():
    report = ProbeReport(
        np.array([0.1, 1.0]),
        np.array([[0.5, -3.0], [math.nan, 2.0]]),
        np.array([[-0.2, -4.0], [0.3, -math.inf]]),
        np.array([[0.05, 7.0], [math.nan, 0.01]]),
    )
    assert report.lowest_change == -4.0
    assert report.lowest_change_within(1.0) == -3.0
    assert report.lowest_change_within(0.1) == -0.2
    assert report.lowest_change_within(0.01) == math.inf


@pytest.mark.parametrize("radii", [(), (0.1, 0.0), (-1.0,)])
def test_radii_that_are_not_positive_are_refused(radii):
    with pytest.raises(ValueError, match="radii must be positive"):
        landscape.probe(bowl, {"a": jnp.ones(2), "b": jnp.ones(1)}, (jnp.ones(2),), KEY, radii=radii, step_size=0.1)
