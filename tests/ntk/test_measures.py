"""Kernel, feature and parameter measures against NumPy by hand, brute force, and the identities that define them."""

import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxbp import models, ntk, training
from jaxbp.ntk import measures

N, C = 5, 3
RTOL = 1e-12  # a few hundred operations in float64


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def gram(n=N, seed=0):
    jacobian = gaussian(n, 2 * n, seed=seed)
    return jacobian @ jacobian.T


def full(seed=0):
    """A semidefinite kernel (N, N, C, C)."""
    jacobian = gaussian(N, C, 40, seed=seed)
    return np.einsum("ikp,jlp->ijkl", jacobian, jacobian)


KERNELS = {"square": gram, "full": full, "rectangular": lambda seed=0: gaussian(4, 7, seed=seed)}
PAIRED = {
    "relative_change": measures.relative_change,
    "rescaled_change": lambda a, b: measures.rescaled_change(a, b).change,
    "cosine": measures.cosine,
    "correlation": measures.correlation,
    "centred_alignment": measures.centred_alignment,
}


def squares(name):
    return name != "centred_alignment"


def pairs_of(name):
    return [(before(seed=1), before(seed=2)) for kind, before in KERNELS.items() if squares(name) or kind != "rectangular"]


def hand(name, before, after):
    a, b = before.ravel(), after.ravel()
    if name == "relative_change":
        return np.linalg.norm(b - a) / np.linalg.norm(a)
    if name == "rescaled_change":
        least = scipy.optimize.minimize_scalar(lambda s: np.linalg.norm(b - s * a) / np.linalg.norm(b))
        return least.fun
    if name == "cosine":
        return a @ b / math.sqrt((a @ a) * (b @ b))
    if name == "correlation":
        return np.corrcoef(a, b)[0, 1]
    n = len(before) * (before.shape[2] if before.ndim == 4 else 1)
    centre = np.eye(n) - 1 / n
    k, m = (centre @ (x.swapaxes(1, 2).reshape(n, n) if x.ndim == 4 else x) @ centre for x in (before, after))
    return np.trace(k @ m) / math.sqrt(np.trace(k @ k) * np.trace(m @ m))


@pytest.mark.parametrize("name", PAIRED)
def test_measures_by_hand(x64, name):
    for before, after in pairs_of(name):
        assert float(PAIRED[name](before, after)) == pytest.approx(hand(name, before, after), rel=RTOL)


@pytest.mark.parametrize("name", PAIRED)
def test_compiled_and_vectorised_measures_are_the_same(x64, name):
    stack = np.stack([full(seed) for seed in range(4)])
    loop = [float(PAIRED[name](a, b)) for a, b in itertools.pairwise(stack)]
    np.testing.assert_allclose(jax.jit(jax.vmap(PAIRED[name]))(stack[:3], stack[1:]), loop, rtol=RTOL)


@pytest.mark.parametrize("name", [name for name in PAIRED if name != "relative_change"])
def test_scale_does_not_matter(x64, name):
    for before, after in pairs_of(name):
        value = float(PAIRED[name](before, after))
        assert float(PAIRED[name](7 * before, after)) == pytest.approx(value, rel=RTOL)
        assert float(PAIRED[name](before, 1e-3 * after)) == pytest.approx(value, rel=RTOL)


@pytest.mark.parametrize("name", PAIRED)
def test_the_order_of_examples_and_logits_does_not_matter(x64, name):
    before, after = full(1), full(2)
    examples, logits = np.array([3, 0, 4, 1, 2]), np.array([2, 0, 1])

    def permuted(kernel):
        return kernel[np.ix_(examples, examples, logits, logits)]

    value = float(PAIRED[name](before, after))
    assert float(PAIRED[name](permuted(before), permuted(after))) == pytest.approx(value, rel=RTOL)


def test_rescaling_leaves_the_sine(x64):
    before, after = gram(seed=1), gram(seed=2)
    change, scale = measures.rescaled_change(before, after)
    assert float(change) == pytest.approx(math.sqrt(1 - float(measures.cosine(before, after)) ** 2), rel=RTOL)
    assert float(scale) == pytest.approx(np.sum(before * after) / np.sum(before**2), rel=RTOL)
    # by Pythagoras, what a rescaling explains and what it leaves
    explained = np.linalg.norm((float(scale) - 1) * before)
    left = float(change) * np.linalg.norm(after)
    total = float(measures.relative_change(before, after)) * np.linalg.norm(before)
    assert math.hypot(explained, left) == pytest.approx(total, rel=RTOL)


def test_a_small_turn_keeps_its_digits_in_float32():
    before = np.zeros((30, 30), np.float32)
    before[0, 0], after = 1, np.zeros((30, 30), np.float32)
    after[0, 0], after[0, 1] = 1, 1e-5  # 1 - cosine = 5e-11, below float32's epsilon
    assert float(measures.rescaled_change(before, after).change) == pytest.approx(1e-5, rel=1e-5)
    speed = measures.velocity(np.stack([before, after]), np.array([0.0, 0.5], np.float32))
    assert float(speed[0]) == pytest.approx(0.5e-10 / 0.5, rel=1e-5)


def test_alignment_ignores_what_all_examples_share(x64):
    before, after = gram(seed=1), gram(seed=2)
    shifts = gaussian(N)
    value = float(measures.centred_alignment(before, after))
    assert float(measures.centred_alignment(before + shifts + shifts[:, None], after)) == pytest.approx(value, rel=RTOL)
    assert float(measures.centred_alignment(before, before)) == pytest.approx(1, rel=RTOL)
    assert 0 < value < 1


def test_matrix_layout_is_example_then_logit(x64):
    jacobian, others = gaussian(N, C, 11), gaussian(4, 2, 11, seed=1)
    kernel = np.einsum("ikp,jlp->ijkl", jacobian, others)
    np.testing.assert_allclose(measures.as_matrix(kernel), jacobian.reshape(-1, 11) @ others.reshape(-1, 11).T, rtol=RTOL)
    np.testing.assert_array_equal(measures.as_matrix(gram()), gram())


def test_spectrum_and_effective_ranks(x64):
    values = np.array([4.0, 2.0, 1.0, 1.0, 0.0])
    basis = np.linalg.qr(gaussian(N, N))[0]
    np.testing.assert_allclose(measures.spectrum((basis * values[::-1]) @ basis.T), values, atol=1e-14)
    jacobian = gaussian(N, C, 40)
    singular = np.linalg.svd(jacobian.reshape(N * C, 40), compute_uv=False)
    np.testing.assert_allclose(measures.spectrum(full()), singular**2, rtol=1e-11)
    found = measures.spectral_ranks(values)
    # shares 1/2, 1/4, 1/8, 1/8: entropy 7/4 ln 2; sum 8, sum of squares 22
    assert (float(found.entropy_rank), float(found.participation_ratio)) == pytest.approx((2**1.75, 64 / 22), rel=RTOL)
    for equal, rank in ((np.ones(6), 6), (np.array([3.0, 0.0, -0.5]), 1)):
        assert [float(r) for r in measures.spectral_ranks(equal)] == pytest.approx([rank] * 2, rel=RTOL)


def test_velocity_by_hand(x64):
    kernels, times = np.stack([gram(seed=s) for s in range(4)]), np.array([0.0, 1.0, 3.0, 3.5])
    flat = kernels.reshape(4, -1)
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in itertools.pairwise(flat)]
    np.testing.assert_allclose(measures.velocity(kernels, times), (1 - np.array(cosines)) / [1, 2, 0.5], rtol=1e-12)
    scaled = kernels * np.array([1.0, 5.0, 0.1, 2.0])[:, None, None]
    np.testing.assert_allclose(jax.jit(measures.velocity)(scaled, times), measures.velocity(kernels, times), rtol=1e-12)


def test_parameter_movement_by_hand(x64):
    before = {"a": {"kernel": np.array([3.0, 4.0]), "bias": np.zeros(1)}, "b": [np.array([[2.0]])]}
    after = {"a": {"kernel": np.array([3.0, 1.0]), "bias": np.array([0.5])}, "b": [np.array([[-2.0]])]}
    moved = jax.jit(measures.parameter_movement)(before, after)
    l2 = math.sqrt(9 + 0.25 + 16)
    assert {k: float(v) for k, v in moved.items() if k != "leaves"} == pytest.approx(
        {
            "norm_before": math.sqrt(29),
            "norm_after": math.sqrt(14.25),
            "l2": l2,
            "relative_l2": l2 / math.sqrt(29),
            "l_inf": 4,
        },
        rel=RTOL,
    )
    leaves = {"a/kernel": 0.6, "a/bias": math.inf, "b/0": 2}
    assert {k: float(v) for k, v in moved["leaves"].items()} == pytest.approx(leaves, rel=RTOL)
    still = measures.parameter_movement(before, before)
    assert (float(still["l2"]), float(still["leaves"]["a/kernel"])) == (0, 0)
    assert math.isnan(float(still["leaves"]["a/bias"]))


def test_feature_maps_by_brute_force(x64):
    features = gaussian(6, 2, 4)
    found = jax.jit(measures.feature_maps)(features)
    flat = features.reshape(6, -1)
    for i in range(6):
        for j in range(6):
            dot = sum(a * b for a, b in zip(flat[i], flat[j], strict=True))
            assert float(found["inner_product"][i, j]) == pytest.approx(dot, abs=1e-13)
            assert float(found["distance"][i, j]) == pytest.approx(math.dist(flat[i], flat[j]), abs=1e-13)
            sizes = math.hypot(*flat[i]) * math.hypot(*flat[j])
            assert float(found["cosine"][i, j]) == pytest.approx(dot / sizes, abs=1e-13)


def test_close_features_keep_their_distance_in_float32():
    features = np.full((3, 4), 100, np.float32)
    features[1, 0] += 2**-10
    assert float(measures.feature_maps(features)["distance"][0, 1]) == 2**-10


def test_feature_maps_are_compared_off_the_diagonal(x64):
    before, after = (measures.feature_maps(gaussian(6, 8, seed=seed)) for seed in (1, 2))
    found = measures.compare_feature_maps(before, after)
    assert set(found) == {"distance", "cosine", "inner_product"}
    pairs = [(i, j) for i in range(6) for j in range(6) if i != j]
    for name, value in found.items():
        a, b = ([float(maps[name][pair]) for pair in pairs] for maps in (before, after))
        assert float(value) == pytest.approx(np.corrcoef(a, b)[0, 1], rel=1e-11)
    rotation = np.linalg.qr(gaussian(8, 8, seed=3))[0]  # of the features leaves all maps
    rotated = measures.feature_maps(gaussian(6, 8, seed=1) @ rotation)
    for value in measures.compare_feature_maps(before, rotated).values():
        assert float(value) == pytest.approx(1, rel=RTOL)


def test_what_has_no_value_is_nan_and_raises_nothing():
    zero, one = np.zeros((3, 3), np.float32), np.eye(3, dtype=np.float32)
    for name in ("cosine", "correlation", "centred_alignment", "rescaled_change"):
        assert math.isnan(float(PAIRED[name](zero, one))), name
        assert math.isnan(float(PAIRED[name](one, zero))), name
    assert math.isinf(float(measures.relative_change(zero, one)))
    assert all(math.isnan(float(rank)) for rank in measures.spectral_ranks(measures.spectrum(zero)))
    assert all(math.isnan(float(rank)) for rank in measures.spectral_ranks(np.array([1.0, np.nan])))
    assert np.isnan(measures.velocity(np.stack([zero, one]), np.arange(2.0))).all()
    assert np.isnan(measures.feature_maps(zero)["cosine"]).all()


def test_misuse_is_refused():
    square, wide = jnp.ones((3, 3)), jnp.ones((3, 4))
    for message, call in {
        "one shape, got (3, 3) and (3, 4)": lambda: measures.cosine(square, wide),
        "one shape, got (3, 3) and ()": lambda: measures.relative_change(square, 1.0),
        "set with itself, (N, N) or (N, N, C, C), got (3, 4)": lambda: measures.centred_alignment(wide, wide),
        "set with itself, (N, N) or (N, N, C, C), got (3, 3, 1, 2)": lambda: measures.spectrum(jnp.ones((3, 3, 1, 2))),
        "got shape (3, 3, 2)": lambda: measures.as_matrix(jnp.ones((3, 3, 2))),
        "eigenvalues must be (n,), got shape (3, 3)": lambda: measures.spectral_ranks(square),
        "got shapes (3, 3) and (2,)": lambda: measures.velocity(square, jnp.arange(2.0)),
        "T at least 2, got shapes (1, 3) and (1,)": lambda: measures.velocity(square[:1], jnp.arange(1.0)),
        "equal structure with at least one leaf, got": lambda: measures.parameter_movement({"a": square}, {"b": square}),
        "got shapes ({'a': (3, 3)}, {'a': (3, 4)})": lambda: measures.parameter_movement({"a": square}, {"a": wide}),
        "at least one leaf, got shapes ({}, {})": lambda: measures.parameter_movement({}, {}),
        "features must be (N, ...), got shape (3,)": lambda: measures.feature_maps(jnp.ones(3)),
        "same names, got ['a'] and ['b']": lambda: measures.compare_feature_maps({"a": square}, {"b": square}),
        "at least 3 examples, got shape (2, 2)": lambda: measures.compare_feature_maps({"a": jnp.eye(2)}, {"a": jnp.eye(2)}),
    }.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            call()


def test_label_alignment_by_hand():
    """Four examples of two classes: H L H has entries 1/2 within classes and -1/2 between them."""
    labels = np.array([0, 0, 1, 1])
    target = np.where(labels[:, None] == labels, 0.5, -0.5)
    kernel = np.array([[4.0, 1, 0, 0], [1, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 3]])
    centred = kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean()
    expected = (centred * target).sum() / (np.linalg.norm(centred) * 2)
    assert float(measures.label_alignment(kernel, labels, 2)) == pytest.approx(expected, rel=1e-6)
    assert float(measures.label_alignment(target + 7, labels, 3)) == pytest.approx(1, rel=1e-6)
    logits = np.stack([np.stack([kernel / 2, kernel], -1), np.stack([kernel, kernel / 2], -1)], -1)
    assert float(measures.label_alignment(logits, labels, 2)) == pytest.approx(expected, rel=1e-6)
    assert np.isnan(measures.label_alignment(kernel, np.zeros(4, int), 2))
    with pytest.raises(ValueError, match="labels must lie from 0 to 1"):
        measures.label_alignment(kernel, labels + 1, 2)


@pytest.mark.slow
def test_label_alignment_along_a_training():
    x, labels = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32), np.array([0, 1] * 4)

    def apply_fn(params, inputs):
        return jnp.tanh(inputs @ params["w"]) @ params["v"]

    params = {"w": jnp.ones((3, 4)) + jnp.arange(4.0) / 4, "v": jnp.ones((4, 2))}

    def align(params):
        return measures.label_alignment(ntk.empirical_ntk(apply_fn, params, x, logits="trace"), labels, 2)

    settings = training.Settings(num_epochs=2, batch_size=8)
    net, key = models.from_functions(apply_fn), jax.random.key(0)
    options = {"start": (params, {}), "measure_fn": lambda state: align(state.params)}
    result = training.train(net, training.sgd(0.5), (x, labels), key, settings, **options)
    measured = np.asarray(result.measured)
    assert measured[-1] == pytest.approx(float(align(result.params)), rel=1e-4)
    assert np.ptp(measured) > 1e-4
