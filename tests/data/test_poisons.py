"""Makers against a dense linear system, difference equations, brute force, and their budgets."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbp import attacks
from jaxbp.data import poisons
from jaxbp.data.poisons.autoregressive import _scan

KEY, SHAPE = jax.random.key(0), (8, 8, 2)
LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1])
FREQUENCIES = np.array([[0.4, 0.0], [1.3, 0.7], [0.2, 2.1]])


@pytest.fixture(scope="module")
def filters():
    return poisons.ar_coefficients(jax.random.key(3), 3, SHAPE)


def makers(filters):
    return {
        "patches": lambda key: poisons.class_patches(key, LABELS, SHAPE, 3, rms=0.3, patch=4),
        "waves": lambda key: poisons.waves(key, LABELS, SHAPE, FREQUENCIES, rms=0.3),
        "autoregressive": lambda key: poisons.autoregressive(key, LABELS, SHAPE, filters, rms=0.3),
    }


@pytest.mark.parametrize("name", ["patches", "waves", "autoregressive"])
def test_makers_have_the_rms_the_pairs_and_the_bits_that_they_announce(filters, name):
    make = makers(filters)[name]
    result = make(KEY)
    assert (result.shape, result.dtype) == ((len(LABELS), *SHAPE), np.float32)
    np.testing.assert_allclose(np.sqrt((result.astype(float) ** 2).mean((1, 2, 3))), 0.3, rtol=1e-6)
    np.testing.assert_array_equal(result, make(KEY))
    assert (result != make(jax.random.key(1))).any()
    if name != "patches":
        for label in range(3):
            own = result[label == LABELS]
            assert not (own[0] + own[1]).any()
            assert (own[1] + own[2]).any()


def test_an_autoregressive_scan_solves_the_dense_triangular_system():
    size, window = (5, 6), (2, 3)
    rng = np.random.default_rng(0)
    filters, start = 0.3 * rng.normal(size=window), rng.normal(size=size)
    filters[-1, -1] = 0
    system, right, number = np.eye(30), start.ravel().copy(), np.arange(30).reshape(size)
    for row, column in itertools.product(range(1, 5), range(2, 6)):
        here = number[row, column]
        right[here] = 0
        system[here, number[row - 1 : row + 1, column - 2 : column + 1]] -= filters
    np.testing.assert_allclose(_scan(filters, start).ravel(), np.linalg.solve(system, right), atol=1e-14)


def test_filters_predict_their_own_signals_and_no_others(filters):
    signals = poisons.autoregressive(KEY, LABELS, SHAPE, filters, rms=1.0)
    for label, own in enumerate(filters):
        responses = poisons.ar_response(own, signals)
        assert responses[label == LABELS].max() < 1e-5 * np.abs(filters).sum((2, 3)).max()  # rounding to float32
        assert responses[label != LABELS].min() > 0.1


def test_waves_obey_their_difference_equation_along_each_axis():
    signals = poisons.waves(KEY, LABELS, SHAPE, FREQUENCIES, rms=0.3)
    for axis in (1, 2):
        x = np.moveaxis(signals, axis, 1)
        factor = 2 * np.cos(FREQUENCIES[LABELS, axis - 1])[:, None, None, None]
        np.testing.assert_allclose(x[:, 2:], factor * x[:, 1:-1] - x[:, :-2], atol=1e-6)


def test_patches_are_constant_and_classes_have_signs_of_their_own():
    result = poisons.class_patches(KEY, LABELS, (8, 9, 1), 3, rms=0.3, patch=4, jitter=0.0)
    assert result.shape[1:] == (8, 9, 1)
    assert (np.ptp(result[:, :4, 4:8], (1, 2)) == 0).all()
    patterns = {label: np.unique(result[label == LABELS], axis=0) for label in range(3)}
    assert all(len(rows) == 1 for rows in patterns.values())
    assert len(np.unique(np.concatenate(list(patterns.values())), axis=0)) == 3
    for seed in range(20):  # four sign vectors of two patches, for four classes
        signs = poisons.class_patches(jax.random.key(seed), np.arange(4), (8, 1, 1), 4, rms=1.0, patch=4, jitter=0.0)
        assert len(np.unique(signs.round(5), axis=0)) == 4


def test_one_pixel_is_the_best_by_brute_force():
    inputs = np.random.default_rng(0).uniform(size=(len(LABELS), 3, 4, 2)).astype(np.float32)
    result = poisons.one_pixel(inputs, LABELS, 3)
    taken = set()
    for label in range(3):
        own = inputs[label == LABELS].astype(float)
        scores = {}
        for row, column, *colour in itertools.product(range(3), range(4), (0.0, 1.0), (0.0, 1.0)):
            distance = np.abs(np.array(colour) - own[:, row, column]).mean(1)
            scores[row, column, tuple(colour)] = distance.mean() / (distance.std() + 0.01)
        row, column, colour = max(scores.keys() - taken, key=scores.get)
        taken.add((row, column, colour))
        poisoned = (inputs + result)[label == LABELS]
        np.testing.assert_allclose(poisoned[:, row, column], np.tile(colour, (len(own), 1)), atol=1e-6)
        assert (np.argwhere(result[label == LABELS].any(-1))[:, 1:] == (row, column)).all()


def test_one_pixel_gives_equal_classes_pixels_of_their_own():
    result = poisons.one_pixel(np.zeros((6, 2, 2, 1), np.float32), np.arange(6) % 3, 3)
    assert len(np.unique(result, axis=0)) == 3


def test_clipping_and_headroom():
    inputs, noise = np.array([[0.0, 0.5, 1.0, 0.9]]), np.array([[-0.25, 0.25, -0.25, 0.25]])
    poisoned = poisons.apply(inputs, noise, 0, 1)
    np.testing.assert_allclose(poisoned.inputs, [[0, 0.75, 0.75, 1]])
    np.testing.assert_allclose(poisoned.perturbation, [[0, 0.25, -0.25, 0.1]])
    assert poisoned.clipped == 0.5
    image, wave = np.float32(0.7) * np.ones((1, 2), np.float32), np.array([[0.1, -0.1]], np.float32)
    np.testing.assert_array_equal(poisons.apply(image, wave, 0, 1).perturbation, wave)  # pairs of opposite sign stay exact
    assert poisons.apply(poisons.headroom(inputs, 0.25), noise, 0, 1).clipped == 0
    assert poisons.budget(noise) == {"rms": 0.25, "l_inf": 0.25, "l_0": 4.0}


LINEAR = jax.random.normal(jax.random.key(5), (6, 2))
POINTS = jax.random.uniform(jax.random.key(6), (20, 6), minval=0.2, maxval=0.8)
SIDES = jnp.arange(20) % 2


@pytest.mark.parametrize("per_class", [False, True])
def test_error_minimising_noise_of_a_linear_model_ends_at_the_corner_of_its_class(per_class):
    """Down the loss of w1 x - w0 x the sign of the gradient never changes; a learning rate of 0 keeps the weights."""
    threat = attacks.Threat("linf", 0.05)
    options = {"threat": threat, "step_size": 0.02, "batch_size": 5, "max_rounds": 2, "stop_error": -1.0, "per_class": per_class}
    result = poisons.error_minimising(
        KEY,
        lambda key, x: LINEAR,
        lambda weights, x: x @ weights,
        optax.sgd(0.0),
        (POINTS, SIDES),
        train_steps=2,
        attack_steps=3,
        **options,
    )
    towards = jnp.sign(LINEAR[:, 1] - LINEAR[:, 0])
    np.testing.assert_allclose(result.perturbation, 0.05 * jnp.where(SIDES[:, None], towards, -towards), atol=1e-6)
    assert result.num_rounds == 2


def test_error_minimising_stops_when_nothing_is_left_to_learn_and_stays_in_its_budget():
    result = poisons.error_minimising(
        KEY,
        lambda key, x: jnp.zeros((6, 2)),
        lambda weights, x: x @ weights,
        optax.sgd(0.5),
        (POINTS, SIDES),
        threat=attacks.Threat("linf", 0.3),
        step_size=0.1,
        stop_error=0.05,
    )
    assert result.error <= 0.05
    assert result.num_rounds < 100
    assert poisons.budget(result.perturbation)["l_inf"] <= 0.3 + 1e-6


@pytest.mark.first_cases(1)
@pytest.mark.parametrize("shift", [0, 1])
def test_adversarial_noise_goes_to_the_class_aimed_at(shift):
    attack = attacks.pgd(attacks.Threat("linf", 0.05), targets="given", num_steps=5)
    result = poisons.adversarial(KEY, lambda x: x @ LINEAR, POINTS, SIDES, attack, shift=shift)
    towards = jnp.sign(LINEAR[:, 1] - LINEAR[:, 0])
    np.testing.assert_allclose(result, 0.05 * jnp.where(((SIDES + shift) % 2)[:, None] == 1, towards, -towards), atol=1e-6)


def _exploding_filters():
    """Of two classes; the second's signals overflow."""
    filters = np.zeros((2, 2, 3, 3))
    filters[..., 2, 1] = np.array([0.9, 1e60])[:, None]
    return filters


def _bad_filters():
    return np.ones((2, 2, 3, 3))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: poisons.class_patches(KEY, LABELS, SHAPE, 3, rms=0.0, patch=4), "rms must be one positive"),
        (lambda: poisons.class_patches(KEY, LABELS, SHAPE, 3, rms=0.1, patch=9), r"patch must be from 1 to the extents \(8, 8\), got 9"),
        (lambda: poisons.class_patches(KEY, LABELS, (8, 8, 1), 3, rms=0.1, patch=8), "2 sign vectors, fewer than 3 classes"),
        (lambda: poisons.one_pixel(np.ones((2, 3, 3, 1)), [0, 2], 3), "class 1 has none"),
        (lambda: poisons.one_pixel(np.ones((3, 1, 1, 1)), [0, 1, 2], 3), "fewer pairs than 3 classes"),
        (lambda: poisons.waves(KEY, LABELS, SHAPE, FREQUENCIES[[0, 0, 1]], rms=0.1), "a row of its own"),
        (lambda: poisons.waves(KEY, LABELS, SHAPE, FREQUENCIES[:2], rms=0.1), "must lie from 0 to 1"),
        (lambda: poisons.autoregressive(KEY, [0, 1], SHAPE, _bad_filters(), rms=0.1), "a last entry of 0"),
        (lambda: poisons.autoregressive(KEY, [0, 1], (2, 8, 2), np.zeros((2, 2, 3, 3)), rms=0.1), r"window must hold 2 .* got \(3, 3\)"),
        (lambda: poisons.autoregressive(KEY, [0, 1], SHAPE, np.zeros((2, 2, 3, 3)), rms=0.1), "2 of 2 signals are 0 or not finite"),
        (lambda: poisons.autoregressive(KEY, [0, 1], SHAPE, _exploding_filters(), rms=0.1), "1 of 2 signals are 0 or not finite"),
        (lambda: poisons.ar_coefficients(KEY, 3, SHAPE, min_response=1e9, max_draws=5), "1 of 6 filters were found in 30 draws"),
        (lambda: poisons.apply(np.ones((2, 3)), np.ones((2, 2)), 0, 1), "need one shape"),
        (lambda: poisons.headroom(np.ones(2), 0.5), "below 0.5, got 0.5"),
        (
            lambda: poisons.adversarial(KEY, lambda x: x @ LINEAR, POINTS, SIDES, attacks.pgd(attacks.Threat("linf", 0.1))),
            "must aim at given classes",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
