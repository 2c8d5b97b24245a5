"""Affine minimisers against scikit-learn, lstsq, alternating least squares and linear programming."""

import math

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from jaxbp import landscape
from jaxbp.landscape import SeparableError, fit_affine


def blobs(seed=0, num_examples=300, num_features=4, num_classes=3, spread=1.5):
    """Overlapping Gaussian classes, with features of different scale and offset."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num_examples) % num_classes
    centres = rng.normal(size=(num_classes, num_features))
    inputs = centres[labels] + spread * rng.normal(size=(num_examples, num_features))
    return inputs * np.geomspace(0.1, 10, num_features) + np.linspace(-3, 5, num_features), labels


def loss_of(kernel, bias, inputs, labels, loss):
    logits, targets = inputs @ kernel + bias, np.eye(len(bias))[labels]
    if loss == "cross_entropy":
        return -(targets * log_softmax(logits, 1)).sum(1).mean()
    return 0.5 * ((logits - targets) ** 2).sum(1).mean()


def separable(inputs, labels, num_classes):
    """By linear programming (Albert and Anderson, Biometrika 71, 1984): weights that rank no wrong class above the right
    one on any example, and strictly below on one, push cross-entropy down for ever."""
    features = np.column_stack([inputs, np.ones(len(inputs))])
    rows = []
    for x, y in zip(features, labels, strict=True):
        for c in set(range(num_classes)) - {y}:
            row = np.zeros((features.shape[1], num_classes))
            row[:, y], row[:, c] = x, -x
            rows.append(row.ravel())
    rows = np.array(rows)
    result = scipy.optimize.linprog(-rows.sum(0), A_ub=-rows, b_ub=np.zeros(len(rows)), bounds=(-1, 1))
    return -result.fun > 1e-6


# Against independent solvers


@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_cross_entropy_against_scikit_learn(num_classes):
    inputs, labels = blobs(num_classes=num_classes)
    fit = fit_affine(inputs, labels, num_classes, loss="cross_entropy")
    other = LogisticRegression(C=1e12, tol=1e-12, max_iter=10_000, solver="newton-cg").fit(inputs, labels)
    logits = inputs @ fit.kernel + fit.bias
    log_odds = other.decision_function(inputs)
    if num_classes == 2:
        np.testing.assert_allclose(logits[:, 1] - logits[:, 0], log_odds, atol=1e-5)
    else:
        np.testing.assert_allclose(logits - logits.mean(1, keepdims=True), log_odds - log_odds.mean(1, keepdims=True), atol=1e-5)
    assert fit.accuracy == other.score(inputs, labels)
    assert fit.gradient_norm <= 1e-10
    assert fit.loss == pytest.approx(loss_of(fit.kernel, fit.bias, inputs, labels, "cross_entropy"), rel=1e-14)
    assert fit.rank == min(num_classes - 1, 4)


def test_squared_error_against_lstsq():
    inputs, labels = blobs(num_classes=5)
    fit = fit_affine(inputs, labels, 5, loss="squared_error")
    weights = np.linalg.lstsq(np.column_stack([inputs, np.ones(300)]), np.eye(5)[labels])[0]
    np.testing.assert_allclose(fit.kernel, weights[:-1], atol=1e-12)
    np.testing.assert_allclose(fit.bias, weights[-1], atol=1e-12)
    assert fit.loss == pytest.approx(loss_of(weights[:-1], weights[-1], inputs, labels, "squared_error"), rel=1e-14)
    assert fit.gradient_norm < 1e-12
    assert fit.rank == 4  # centred one-hot targets of 5 classes span 4 dimensions


def test_a_case_by_hand():
    # One feature, +-1 and 3:1 odds on either side: logistic regression reproduces the frequencies.
    inputs, labels = np.repeat([-1.0, 1.0], 4)[:, None], np.array([0, 0, 0, 1, 1, 1, 1, 0])
    fit = fit_affine(inputs, labels, 2, loss="cross_entropy")
    np.testing.assert_allclose(fit.kernel[0], [-math.log(3) / 2, math.log(3) / 2], atol=1e-14)
    np.testing.assert_allclose(fit.bias, 0, atol=1e-14)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert fit.loss == pytest.approx(entropy, rel=1e-15)
    assert fit.accuracy == 0.75
    squared = fit_affine(inputs, labels, 2, loss="squared_error")  # logits 1/4, 3/4: error 3/4 a quarter of the time
    np.testing.assert_allclose(squared.kernel[0], [-0.25, 0.25], atol=1e-14)
    assert squared.loss == pytest.approx(0.25 * 0.75**2 + 0.75 * 0.25**2)


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize("seed", range(3))
def test_lower_bound_is_below_every_loss_and_next_to_the_minimum(loss, seed):
    inputs, labels = blobs(seed)
    fit = fit_affine(inputs, labels, 3, loss=loss)
    rounding = 1e-15 * 8  # of a mean of 300 losses near 1
    assert fit.loss - 1e-14 <= fit.lower_bound <= fit.loss + rounding
    assert fit.rank_lower_bound == fit.lower_bound
    rng = np.random.default_rng(seed)
    for size in np.geomspace(1e-8, 1, 60):
        step, shift = size * rng.normal(size=fit.kernel.shape), size * rng.normal(size=3)
        assert loss_of(fit.kernel + step, fit.bias + shift, inputs, labels, loss) >= fit.lower_bound - rounding


def test_newtons_bound_holds_before_it_has_converged():
    # The bound it rests on: f - 0.68 d^2 is below the minimum wherever the decrement d is below 0.367 / M.
    inputs, labels = blobs()
    best = fit_affine(inputs, labels, 3, loss="cross_entropy")
    features = np.column_stack([inputs, np.ones(300)])
    rng, tried = np.random.default_rng(0), 0
    for size in np.geomspace(1e-6, 1e-1, 80):
        weights = np.vstack([best.kernel, best.bias]) * (1 + size * rng.normal(size=(5, 3)))
        p = np.exp(log_softmax(features @ weights, 1))
        gradient = (features.T @ (p - np.eye(3)[labels])).ravel() / 300
        covariance = (np.eye(3) * p[:, None] - p[:, :, None] * p[:, None]) / 300
        curvature = np.einsum("ni,nck,nj->icjk", features, covariance, features).reshape(15, 15)
        decrement = math.sqrt(gradient @ np.linalg.pinv(curvature, rcond=1e-12) @ gradient)
        # range of u'x over classes per unit Hessian norm: maximise (e_c - e_k)'u'x, example by example
        contrast = np.einsum("ni,ck->nick", features, np.eye(3)[:, [0, 0, 1]] - np.eye(3)[:, [1, 2, 2]]).reshape(300, 15, 3)
        ranges = np.einsum("nik,ij,njk->nk", contrast, np.linalg.pinv(curvature, rcond=1e-12), contrast)
        if decrement < 0.367 / math.sqrt(ranges.max()):
            tried += 1
            loss = loss_of(weights[:-1], weights[-1], inputs, labels, "cross_entropy")
            assert loss - 0.68 * decrement**2 <= best.loss
            assert best.loss <= loss
    assert tried > 20


# Rank


def alternating_least_squares(inputs, targets, rank, rng):
    """Minimise over U V + b by turns from a random start."""
    left = rng.normal(size=(inputs.shape[1], rank))
    centred, goal = inputs - inputs.mean(0), targets - targets.mean(0)
    for _ in range(3000):
        right = np.linalg.lstsq(centred @ left, goal)[0]
        left = np.linalg.lstsq(centred, goal @ np.linalg.pinv(right))[0]
    return 0.5 * ((centred @ left @ right - goal) ** 2).sum(1).mean()


@pytest.mark.parametrize("max_rank", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_squared_error_under_a_rank_constraint_is_the_global_minimum(max_rank):
    inputs, labels = blobs(num_classes=5)
    fit = fit_affine(inputs, labels, 5, loss="squared_error", max_rank=max_rank)
    rng = np.random.default_rng(0)
    result = min(alternating_least_squares(inputs, np.eye(5)[labels], max_rank, rng) for _ in range(3))
    assert fit.loss == pytest.approx(result, rel=1e-10)
    assert (fit.rank, fit.max_rank) == (max_rank, max_rank)
    free = fit_affine(inputs, labels, 5, loss="squared_error")
    assert fit.rank_lower_bound == pytest.approx(fit.loss, rel=1e-13)
    assert fit.lower_bound == pytest.approx(free.loss, rel=1e-13)  # no bound at a rank passes for one of all maps
    assert free.loss < fit.loss - 1e-4


def test_cross_entropy_under_a_rank_constraint_against_random_starts():
    inputs, labels = blobs(num_classes=5)
    fit = fit_affine(inputs, labels, 5, loss="cross_entropy", max_rank=1)
    free = fit_affine(inputs, labels, 5, loss="cross_entropy")
    scaled = (inputs - inputs.mean(0)) / inputs.std(0)

    def loss(flat):
        return loss_of(np.outer(flat[:4], flat[4:9]), flat[9:], scaled, labels, "cross_entropy")

    rng = np.random.default_rng(0)
    starts = [scipy.optimize.minimize(loss, rng.normal(size=14), method="BFGS").fun for _ in range(6)]
    assert fit.loss == pytest.approx(min(starts), abs=1e-6)
    assert fit.rank == 1
    assert fit.rank_lower_bound == fit.lower_bound == pytest.approx(free.loss, rel=1e-13)
    error = np.exp(log_softmax(inputs @ fit.kernel + fit.bias, 1)) - np.eye(5)[labels]
    left, _, right = np.linalg.svd(fit.kernel)
    gradient = inputs.T @ error / 300
    assert np.linalg.norm(gradient @ right[0]) < 1e-6  # stationary for both factors, though not for the kernel
    assert np.linalg.norm(left[:, 0] @ gradient) < 1e-6
    assert np.linalg.norm(gradient) > 1e-3


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_a_rank_that_constrains_nothing_is_none(loss):
    inputs, labels = blobs(num_classes=3)
    free, capped = (fit_affine(inputs, labels, 3, loss=loss, max_rank=rank) for rank in (None, 2))
    assert capped.max_rank is None
    np.testing.assert_array_equal(free.kernel, capped.kernel)


# Separable data


def test_two_separable_classes_are_refused():
    inputs, labels = blobs(num_classes=2, spread=0.1)
    with pytest.raises(SeparableError, match=r"linearly separable.*squared_error"):
        fit_affine(inputs, labels, 2, loss="cross_entropy")
    assert fit_affine(inputs, labels, 2, loss="squared_error").accuracy == 1


def test_quasi_separable_classes_are_refused():
    # Touching at 0, where both occur: the infimum is 2/8 log 2, and is not attained.
    inputs, labels = np.array([-3.0, -2, -1, 0, 0, 1, 2, 3])[:, None], np.repeat([0, 1], 4)
    with pytest.raises(SeparableError, match="flat along some direction"):
        fit_affine(inputs, labels, 2, loss="cross_entropy")
    assert separable(inputs, labels, 2)


def test_one_class_separable_from_overlapping_others_is_refused():
    inputs, labels = blobs()
    inputs[labels == 2] += 1000
    assert separable(inputs, labels, 3)
    with pytest.raises(SeparableError, match="some classes are separable"):
        fit_affine(inputs, labels, 3, loss="cross_entropy")


def test_an_interpolated_direction_is_refused():
    inputs, labels = blobs()
    inputs = np.column_stack([inputs, np.zeros(300)])
    inputs[7, -1] = 1  # one example has a feature of its own
    with pytest.raises(SeparableError, match="some classes are separable"):
        fit_affine(inputs, labels, 3, loss="cross_entropy")


def test_a_class_without_examples_is_refused_by_name():
    inputs, labels = blobs()
    with pytest.raises(SeparableError, match=r"classes \[3, 4\] have no example"):
        fit_affine(inputs, labels, 5, loss="cross_entropy")
    fit = fit_affine(inputs, labels, 5, loss="squared_error")
    np.testing.assert_allclose(fit.kernel[:, 3:], 0, atol=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(5, 14), st.integers(1, 2), st.integers(2, 3), st.booleans())
@settings(max_examples=60, deadline=None)
def test_refusal_agrees_with_linear_programming(seed, num_examples, num_features, num_classes, integral):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(num_examples, num_features))
    inputs = np.round(inputs) if integral else inputs  # ties and points shared by classes: quasi-separable cases
    labels = np.concatenate([np.arange(num_classes), rng.integers(0, num_classes, num_examples - num_classes)])
    spread = inputs[:, np.ptp(inputs, 0) > 0]  # constant features make every example a tie
    if np.linalg.matrix_rank(spread - spread.mean(0)) < spread.shape[1]:
        return
    try:
        fit = fit_affine(inputs, labels, num_classes, loss="cross_entropy")
    except SeparableError:
        assert separable(spread, labels, num_classes)
    else:
        assert not separable(spread, labels, num_classes)
        assert fit.gradient_norm < 1e-10


@pytest.mark.parametrize("gap", [1e-1, 1e-5, 1e-9])
def test_hardly_overlapping_classes_are_solved(gap):
    # A single pair on the wrong sides, `gap` apart: the minimiser is large, its curvature down to 1e-7, and rounding felt early.
    rng = np.random.default_rng(0)
    inputs = np.concatenate([rng.uniform(0.5, 1, 50), [-gap], -rng.uniform(0.5, 1, 50), [gap]])[:, None]
    fit = fit_affine(inputs, np.repeat([1, 0], 51), 2, loss="cross_entropy")
    assert fit.gradient_norm < 1e-10
    assert fit.loss - fit.lower_bound < 1e-14
    assert fit.accuracy == 100 / 102


def test_heavy_tails_need_the_line_search():
    # Undamped, Newton's method runs away from this minimum (1 in 300 draws of this kind).
    rng = np.random.default_rng(314)
    num_classes, num_examples, num_features = rng.integers(2, 5), rng.integers(15, 60), rng.integers(1, 4)
    rare = rng.choice(num_classes, num_examples - num_classes, p=rng.dirichlet(np.full(num_classes, 0.3)))
    labels = np.concatenate([np.arange(num_classes), rare])
    inputs = np.exp(rng.choice([1, 2, 3]) * rng.normal(size=(num_examples, num_features)))
    assert not separable(inputs, labels, num_classes)
    fit = fit_affine(inputs, labels, int(num_classes), loss="cross_entropy")
    assert fit.loss - fit.lower_bound < 1e-13  # what rounding leaves of logits of some hundreds
    assert fit.gradient_norm < 1e-10 * np.abs(inputs).max()


# Degenerate features and misuse


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_constant_and_duplicate_columns_get_the_solution_of_least_norm(loss):
    inputs, labels = blobs()
    plain = fit_affine(inputs, labels, 3, loss=loss)
    degenerate = fit_affine(np.column_stack([inputs, inputs[:, 1], np.full(300, 7.3), np.zeros(300)]), labels, 3, loss=loss)
    np.testing.assert_allclose(degenerate.kernel[[1, 4]], np.tile(plain.kernel[1] / 2, (2, 1)), atol=1e-9)
    np.testing.assert_allclose(degenerate.kernel[[0, 2, 3]], plain.kernel[[0, 2, 3]], atol=1e-9)
    np.testing.assert_allclose(degenerate.kernel[5:], 0, atol=1e-12)
    assert degenerate.lower_bound == pytest.approx(plain.loss, rel=1e-13)
    assert degenerate.gradient_norm < 1e-10


def test_only_constant_features_leave_the_class_frequencies():
    labels = np.array([0, 0, 0, 1])
    fit = fit_affine(np.full((4, 2), 0.1), labels, 2, loss="cross_entropy")
    assert fit.bias[0] - fit.bias[1] == pytest.approx(math.log(3), rel=1e-14)
    assert (fit.rank, fit.max_rank) == (0, None)


def test_directions_too_flat_to_use_leave_no_lower_bound():
    # A column that differs from another in the 12th digit may lower the loss by weights of 10^12: nothing is claimed.
    inputs, labels = blobs()
    nearly = inputs[:, :1] + 1e-12 * np.random.default_rng(0).normal(size=(300, 1)) * np.abs(inputs[:, :1]).max()
    fit = fit_affine(np.column_stack([inputs, nearly]), labels, 3, loss="squared_error")
    assert fit.lower_bound == fit.rank_lower_bound == -math.inf
    assert fit.loss == pytest.approx(fit_affine(inputs, labels, 3, loss="squared_error").loss, rel=1e-9)


def test_misuse_is_refused():
    inputs, labels = blobs()
    for message, arguments, options in [
        ("finite .N, d. array, got shape .300, 2, 2.", (inputs.reshape(300, 2, 2), labels, 3), {}),
        ("finite", (inputs * np.nan, labels, 3), {}),
        ("no example", (inputs[:0], labels[:0], 3), {}),
        (r"300 integers in \[0, 2\)", (inputs, labels, 2), {}),
        ("of float64", (inputs, labels + 0.5, 3), {}),
        ("got shape .299,.", (inputs, labels[1:], 3), {}),
        ("loss must be", (inputs, labels, 3), {"loss": "hinge"}),
        ("max_rank must be at least 1, got 0", (inputs, labels, 3), {"max_rank": 0}),
    ]:
        with pytest.raises(ValueError, match=message):
            landscape.fit_affine(*arguments, **{"loss": "cross_entropy", **options})


def test_more_unknowns_than_a_matrix_can_hold_give_the_same(monkeypatch):
    inputs, labels = blobs()
    dense = fit_affine(inputs, labels, 3, loss="cross_entropy")
    monkeypatch.setattr("jaxbp.landscape.affine._MAX_DENSE", 14)  # of 15
    large = fit_affine(inputs, labels, 3, loss="cross_entropy")
    np.testing.assert_allclose(large.kernel, dense.kernel, atol=1e-9)
    assert large.gradient_norm < 1e-10
    assert large.loss - 1e-13 < large.lower_bound < large.loss + 1e-14
    inputs[labels == 2] += 1000
    with pytest.raises(SeparableError):
        fit_affine(inputs, labels, 3, loss="cross_entropy")
