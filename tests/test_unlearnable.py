"""Separability by theorems, projections by linear algebra, heads against scikit-learn."""

import jax
import numpy as np
import pytest

from jaxbp import unlearnable
from jaxbp.data import poisons
from tests.helpers.typechecked import check_fields

RNG = np.random.default_rng(0)
LABELS = np.arange(60) % 3
FEATURES = RNG.normal(size=(60, 5)) * [1, 2, 3, 0.5, 1] + 0.4 * LABELS[:, None] + 3


def test_reweighing_is_scikit_learns_logistic_regression():
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    for standardise in (False, True):
        l2 = 0.05
        head = check_fields(unlearnable.reweigh(FEATURES, LABELS, 3, l2=l2, standardise=standardise))
        inputs = StandardScaler().fit_transform(FEATURES) if standardise else FEATURES
        peer = LogisticRegression(C=1 / (len(LABELS) * l2), solver="newton-cg", tol=1e-12, max_iter=1000).fit(inputs, LABELS)
        np.testing.assert_allclose(head.accuracy(FEATURES, LABELS), peer.score(inputs, LABELS))
        logits = FEATURES @ head.kernel + head.bias
        np.testing.assert_allclose(logits - logits.mean(1, keepdims=True), peer.decision_function(inputs), atol=1e-6)
        assert head.gradient_norm < 1e-9


def test_a_head_is_stationary_and_turns_with_the_features():
    head = unlearnable.reweigh(FEATURES, LABELS, 3, l2=0.1, standardise=False)

    def loss(kernel, bias):
        logits = FEATURES @ kernel + bias
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        return -log_p[np.arange(60), LABELS].mean() + 0.05 * (kernel**2).sum()

    for step in 1e-5 * RNG.normal(size=(4, 6, 3)):
        up, down = (loss(head.kernel + s * step[:5], head.bias + s * step[5]) for s in (1, -1))
        assert abs(up - down) / 2e-5 < 1e-5
    rotation, _ = np.linalg.qr(RNG.normal(size=(5, 5)))
    turned = unlearnable.reweigh(FEATURES @ rotation, LABELS, 3, l2=0.1, standardise=False)
    np.testing.assert_allclose(turned.kernel, rotation.T @ head.kernel, atol=1e-8)


def test_a_constant_feature_gets_no_weight():
    head = unlearnable.reweigh(np.column_stack([FEATURES, np.full(60, 7.1)]), LABELS, 3, l2=0.1)
    assert not head.kernel[-1].any()
    np.testing.assert_allclose(head.kernel[:-1], unlearnable.reweigh(FEATURES, LABELS, 3, l2=0.1).kernel, atol=1e-9)


def test_antithetic_signals_are_inseparable_whatever_their_number():
    frequencies = np.array([[0.4, 0.0], [1.3, 0.7], [0.2, 2.1]])
    for count in (6, 60):  # fewer, or more, than the 64 entries
        labels = np.arange(count) % 3
        draws = [poisons.waves(jax.random.key(seed), labels, (8, 8, 1), frequencies, rms=0.2) for seed in (0, 1)]
        result = unlearnable.separability(draws[0], labels, 3, fresh=(draws[1], labels))
        assert result.status == "inseparable"
        assert result.train_accuracy < 1
        assert result.fresh_accuracy < 0.6  # symmetric: a bias-free linear classifier is right half of the time at most
    one_sided = poisons.waves(jax.random.key(0), LABELS[:6], (8, 8, 1), frequencies, rms=0.2, antithetic=False)
    assert unlearnable.separability(one_sided, LABELS[:6], 3).status == "separable"  # two signals a class are independent


def test_patches_are_separable_with_a_certificate_that_holds_for_fresh_ones():
    labels = np.arange(90) % 3
    draw = poisons.class_patches(jax.random.key(0), np.tile(labels, 2), (8, 8, 1), 3, rms=0.2, patch=4)
    result = unlearnable.separability(draw[:90], labels, 3, fresh=(draw[90:], labels))
    assert result[:3] == ("separable", 1.0, 1.0)


def test_random_labels_of_few_examples_are_separable_and_teach_nothing():
    """The trap of a training accuracy: no more examples than dimensions."""
    inputs, fresh = RNG.normal(size=(40, 64)), RNG.normal(size=(2000, 64))
    labels = RNG.integers(0, 2, 2040)
    result = unlearnable.separability(inputs, labels[:40], 2, fresh=(fresh, labels[40:]))
    assert result.status == "separable"
    assert abs(result.fresh_accuracy - 0.5) < 4 * 0.5 / np.sqrt(2000)


def test_a_minimiser_proves_inseparability_and_a_class_that_splits_off_leaves_it_open():
    points = RNG.normal(size=(40, 2))
    labels = RNG.integers(0, 2, 40)
    assert unlearnable.separability(points, labels, 2).status == "inseparable"
    split_off = np.concatenate([points, 100 + RNG.normal(size=(5, 2))])
    assert unlearnable.separability(split_off, np.append(labels, [2] * 5), 3).status == "unknown"
    clusters, sides = np.repeat([[-9.0], [9.0]], 20, 0) + RNG.normal(size=(40, 1)), np.arange(40) // 20
    assert unlearnable.separability(clusters, sides, 2).status == "separable"
    sides[[0, 39]] = 1, 0  # 95 % right is not separable
    assert unlearnable.separability(clusters, sides, 2).status == "inseparable"


def test_nothing_to_separate_and_a_single_clean_example_are_values():
    nothing = unlearnable.separability(np.zeros((6, 8)), np.arange(6) % 3, 3)
    assert (nothing.status, nothing.train_accuracy) == ("inseparable", 1 / 3)  # 0 is its own negative, in every class
    everything = np.eye(5)
    assert (unlearnable.project_out(FEATURES, everything) == 0).all()
    lone = unlearnable.reweigh(FEATURES[:1], LABELS[:1], 3, l2=0.1)
    assert (lone.kernel == 0).all()
    assert lone.accuracy(FEATURES, LABELS) == pytest.approx(np.mean(LABELS[0] == LABELS))


def test_pairs_of_one_class_prove_nothing():
    assert not unlearnable._has_antithetic_witness(np.array([[1.0], [-1.0], [5.0]]), np.array([0, 0, 1]))
    assert unlearnable._has_antithetic_witness(np.array([[1.0], [-1.0], [0.0]]), np.array([0, 0, 1]))  # 0 is its own negative


def test_a_projection_is_orthogonal_of_the_weights_rank_and_forgets_their_span():
    weights = RNG.normal(size=(12, 3))
    repeated = np.column_stack([weights, 2 * weights[:, 0], np.zeros(12)])
    Q = unlearnable.projection(repeated)
    assert Q.shape == (12, 3)
    np.testing.assert_allclose(Q.T @ Q, np.eye(3), atol=1e-14)
    inputs = RNG.normal(size=(7, 3, 4))
    once = unlearnable.project_out(inputs, Q)
    np.testing.assert_allclose(unlearnable.project_out(once, Q), once, atol=1e-13)
    moved = inputs + (RNG.normal(size=(7, 3)) @ weights.T).reshape(inputs.shape)  # class-wise noise in the span, for instance
    np.testing.assert_allclose(unlearnable.project_out(moved, Q), once, atol=1e-12)


def test_linear_weights_follow_the_papers_recipe_step_by_step(x64):
    inputs, labels = RNG.normal(size=(11, 4)), RNG.integers(0, 3, 11)
    key = jax.random.key(0)
    weights = np.asarray(jax.random.uniform(key, (4, 3), float, -0.5, 0.5))
    for epoch in range(8):
        rate = 0.1 * (1 if epoch < 4 else 0.1 if epoch < 6 else 0.01)
        for first in (0, 5):
            x, y = inputs[first : first + 5], labels[first : first + 5]
            p = np.exp(x @ weights)
            weights = weights - rate * x.T @ (p / p.sum(1, keepdims=True) - np.eye(3)[y]) / 5
    result = unlearnable.linear_weights(inputs, labels, 3, key, num_epochs=8, batch_size=5)
    np.testing.assert_allclose(result, weights, atol=1e-12)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: unlearnable.reweigh(FEATURES, LABELS, 3, l2=0.0), "l2 must be one positive"),
        (lambda: unlearnable.separability(FEATURES, LABELS[:-1], 3), r"\(60,\), one per example"),
        (lambda: unlearnable.projection(np.zeros((4, 2))), "not all 0"),
        (lambda: unlearnable.projection(np.ones(4)), r"got shape \(4,\)"),
        (lambda: unlearnable.project_out(FEATURES, np.ones((4, 1))), r"Q must be \(5, r\)"),
        (lambda: unlearnable.linear_weights(FEATURES, LABELS, 3, jax.random.key(0), batch_size=61), "from 1 to 60, got 61"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
