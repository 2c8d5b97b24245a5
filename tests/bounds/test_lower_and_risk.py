"""Lower bounds by their laws; risks by simulated coverage and by the price of choices."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import bounds
from jaxbp.bounds import Bound, lower


def test_exact_lists_every_sign_once():
    inputs = np.array([1.0, 2.0, 4.0])
    listed = [abs(np.dot(signs, inputs)) for signs in itertools.product((-1, 1), repeat=3)]
    assert lower.exact(lambda signs: np.abs(signs[:, :, 0] @ inputs), 3) == pytest.approx(np.mean(listed) / 3)
    with pytest.raises(ValueError, match="all signs can be listed up to N C = 20, got 21: use top_layer or search"):
        lower.exact(lambda signs: signs.sum((1, 2)), 7, 3)


def test_the_witness_agrees_with_the_exact_value_and_its_standard_error_with_more_draws():
    features = np.random.default_rng(0).normal(size=(5, 3))
    truth = lower.exact(lambda signs: np.linalg.norm(np.einsum("bic,id->bcd", signs, features), axis=(1, 2)), 5, 4)
    few = lower.top_layer(features, 1.0, 4, jax.random.key(0), num_draws=100)
    many = lower.top_layer(features, 1.0, 4, jax.random.key(1), num_draws=10_000)
    assert abs(few.value - truth) < 4 * few.standard_error
    assert abs(many.value - truth) < 4 * many.standard_error
    assert few.standard_error == pytest.approx(10 * many.standard_error, rel=0.3)
    single, triple = (lower.top_layer(features, norm, 4, jax.random.key(0)).value for norm in (1.0, 3.0))
    assert triple == pytest.approx(3 * single)
    for wrong, message in (({"num_draws": 1}, "num_draws must be at least 2"), ({"top_norm": -1.0}, "top_norm must be one positive")):
        with pytest.raises(ValueError, match=message):
            lower.top_layer(features, **{"top_norm": 1.0, "num_outputs": 4, "key": jax.random.key(0)} | wrong)


def test_the_witness_is_the_same_whole_and_in_chunks():
    images, key = np.random.default_rng(0).normal(size=(11, 4, 3)), jax.random.key(0)
    whole = lower.top_layer(np.maximum(images, 0), 1.0, 2, key, num_draws=5)
    parts = lower.top_layer(images, 1.0, 2, key, num_draws=5, features_fn=lambda chunk: np.maximum(chunk[:4], 0), chunk_size=4)
    assert parts.value == pytest.approx(whole.value, rel=1e-12)
    assert parts.standard_error == pytest.approx(whole.standard_error, rel=1e-9)
    with pytest.raises(ValueError, match="a row for each example, got 22 for 11 examples"):
        lower.top_layer(images, 1.0, 2, key, features_fn=lambda chunk: np.concatenate([chunk, chunk]))
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        lower.top_layer(images, 1.0, 2, key, chunk_size=0)


def test_ascent_finds_the_supremum_where_it_is_known():
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)))
    truth = lower.exact(lambda signs: np.linalg.norm(np.einsum("bic,id->bcd", signs, inputs), axis=(1, 2)), 6)
    reached = lower.search(lambda p, x: x @ p, jnp.ones((3, 1)), inputs, jax.random.key(0), num_draws=64)
    assert abs(reached.value - truth) < 4 * reached.standard_error


def test_margins_and_their_lipschitz_constant():
    assert bounds.margins([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0]], np.array([0, 2])).tolist() == [1.0, -4.0]
    # a change by t (1, -1, 0) / sqrt 2 moves the margin by sqrt 2 t: the constant is attained
    logits, change = np.array([[2.0, 1.0, -5.0]]), np.array([[1.0, -1.0, 0.0]]) / math.sqrt(2)
    moved = bounds.margins(logits + 0.1 * change, np.array([0])) - bounds.margins(logits, np.array([0]))
    assert moved[0] == pytest.approx(0.1 * math.sqrt(2))


BOUND = Bound("made", {"norms": math.log(9.0), "rest": math.log(1e-3)}, 1000)


def test_a_risk_is_its_three_terms():
    values = np.r_[np.full(100, -1.0), np.full(900, 2.0)]
    result = bounds.risk(BOUND, values, delta=0.05, margin_grid=[2.0])
    assert (result.margin_error, result.gamma, result.note) == (0.1, 2.0, "")
    assert math.exp(result.log_complexity) == pytest.approx(4 * 5 * 1e-3)  # q = 9 / 2 rounds up
    assert result.deviation == pytest.approx(3 * math.sqrt(math.log(2 * 5 * 6 / 0.05) / 2000))
    assert result.value == pytest.approx(0.1 + 0.02 + result.deviation)
    gaussian = bounds.risk(Bound("made", BOUND.factors, 1000, complexity="gaussian"), values, margin_grid=[2.0])
    assert math.exp(gaussian.log_complexity - result.log_complexity) == pytest.approx(math.sqrt(math.pi) / 2)
    choices = bounds.risk(Bound("made", BOUND.factors, 1000, log_choices=math.log(64)), values, margin_grid=[2.0])
    assert choices.deviation == pytest.approx(3 * math.sqrt(math.log(64 * 2 * 5 * 6 / 0.05) / 2000))


def test_scaling_a_network_changes_nothing():
    values = np.random.default_rng(0).normal(2, 1, 1000)
    scaled = Bound("made", BOUND.factors | {"norms": math.log(9.0 * 7)}, 1000)
    assert bounds.risk(scaled, 7 * values).log_value == pytest.approx(bounds.risk(BOUND, values).log_value)


def test_a_risk_past_the_range_and_a_network_that_does_not_fit():
    result = bounds.risk(Bound("made", {"norms": 2000.0, "rest": 0.0}, 10), -np.ones(10))
    assert (result.value, result.note, result.margin_error) == (math.inf, "not fitted", 1.0)
    assert 2000 < result.log_value < 2010
    assert bounds.risk(Bound("made", {"norms": -math.inf, "rest": 0.0}, 10), np.zeros(10)).value > 1


def test_the_examples_needed_are_those_at_which_the_bound_reaches_1():
    values = np.r_[np.full(1, -1.0), np.full(4, 2.0)]

    def value(num_examples: int) -> float:  # as many of each margin, and a complexity that falls with the root
        rest = math.log(0.1) - 0.5 * math.log(num_examples / 5)
        bound = Bound("made", {"norms": math.log(9.0), "rest": rest}, num_examples)
        return bounds.risk(bound, np.repeat(values, num_examples // 5), margin_grid=[2.0]).value

    bound = Bound("made", {"norms": math.log(9.0), "rest": math.log(0.1)}, 5)
    needed = math.exp(bounds.log_examples_needed(bound, values, margin_grid=[2.0]))
    assert value(5 * math.ceil(needed / 5)) <= 1 < value(5 * math.floor(needed / 5))
    assert bounds.log_examples_needed(bound, values, margin_grid=[2.0, 3.0]) == pytest.approx(math.log(needed))  # no margin reaches 3
    assert bounds.log_examples_needed(bound, -values.clip(0.1), margin_grid=[2.0]) == math.inf


@pytest.mark.parametrize(
    "options, message",
    [
        ({"delta": 0.0}, "delta must lie between 0 and 1"),
        ({"margin_grid": [0.0]}, "margin_grid must be positive"),
        ({"margins": np.ones(3)}, r"margins must be \(1000,\)"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        bounds.risk(BOUND, **{"margins": np.ones(1000)} | options)


@pytest.mark.slow
def test_the_bound_holds_in_simulated_samples():
    """Linear classifiers of two classes fitted to 400 examples of a known law, 50 samples: at most delta may violate the bound."""
    rng, violations, bound_values = np.random.default_rng(0), 0, []
    for _ in range(50):
        labels = rng.integers(0, 2, 400)
        inputs = rng.normal(size=(400, 2)) + np.where(labels[:, None] == 1, 1.5, -1.5) * np.array([1.0, 0.0])
        direction = (inputs * (2 * labels[:, None] - 1)).mean(0)
        kernel = np.stack([-direction, direction], 1) / np.linalg.norm(direction) / math.sqrt(2)
        net = bounds.anatomy(lambda p, x: x @ p, jnp.asarray(kernel), inputs)
        result = bounds.risk(bounds.peeling(net, inputs), bounds.margins(inputs @ kernel, labels))
        truth = 0.5 * math.erfc(1.5 * direction[0] / np.linalg.norm(direction) / math.sqrt(2))
        violations += truth > result.value
        bound_values.append(result.value)
    assert violations == 0
    assert np.mean(bound_values) < 1.2  # informative in order: capped at 1 it would hold for nothing
