"""Time averages and coefficients against noisy SGD on a quadratic, enumeration, NumPy, and known correlation times."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from jaxbp import stability, stats
from tests.helpers.typechecked import check_fields, typechecked

RATE, NOISE = 0.1, 0.5
DATA, NEW = np.array([0.0, 1.0, 2.0, 3.0, 9.0]), -6.0  # means 3 and 1.2 where the last example is replaced by NEW
POINTS = np.array([-1.0, 2.0, 4.0])


@functools.partial(jax.jit, static_argnums=(2, 3))
def quadratic_sgd(key, mean, num_steps=20_000, run_up=200):
    """w' = (1 - a) w + a mean + sigma xi: the time averages of (w - z)^2 / 2 at POINTS, and the weights."""

    def step(carry, draw):
        weight, average = carry
        index, xi = draw
        weight = (1 - RATE) * weight + RATE * mean + NOISE * xi
        return (weight, average.update((weight - POINTS) ** 2 / 2, index, run_up=run_up, num_steps=num_steps)), weight

    draws = jnp.arange(num_steps), jax.random.normal(key, (num_steps,))
    (_, average), weights = jax.lax.scan(step, (jnp.zeros(()), stability.TimeAverage.init((3,))), draws)
    return average, weights


def test_noisy_sgd_on_a_quadratic_has_the_coefficients_of_the_closed_form():
    changed = np.append(DATA[:-1], NEW)
    variance = NOISE**2 / (1 - (1 - RATE) ** 2)
    expected = [((data.mean() - POINTS) ** 2 + variance) / 2 for data in (DATA, changed)]
    keys = jax.random.split(jax.random.key(0), 8)
    runs = [jax.vmap(quadratic_sgd, (0, None))(keys, data.mean())[0].mean for data in (DATA, changed)]
    # The mean of w over T steps has the standard deviation sigma / (a sqrt(T)) = 0.035; losses move by |m - z| <= 5 times as much.
    for run, truth in zip(runs, expected, strict=True):
        np.testing.assert_allclose(run.mean(0), truth, atol=4 * 0.035 * 5 / math.sqrt(8))
    # Runs that share noise differ by the closed form alone but for (w - z)'s cross terms, whose mean has that error too.
    measured = jnp.stack([stability.coefficients(*pair).mean for pair in zip(runs[0], runs[1][:, None], strict=True)])
    np.testing.assert_allclose(measured.mean(), np.abs(expected[1] - expected[0]).mean(), atol=4 * 0.035 * 1.8 / math.sqrt(8))


def test_runs_that_share_their_noise_part_as_the_closed_form_says():
    key, others = jax.random.key(1), np.append(DATA[:-1], NEW)
    first, second = (quadratic_sgd(key, data.mean(), 200, 100)[1] for data in (DATA, others))
    steps = np.arange(1, 201)
    np.testing.assert_allclose(first - second, (DATA.mean() - others.mean()) * (1 - (1 - RATE) ** steps), atol=1e-5)


@pytest.mark.parametrize("run_up, num_steps", [(0, 9), (3, 10), (4, 6)])
def test_time_averages_are_those_of_the_stored_series(run_up, num_steps):
    series = 100 + np.random.default_rng(0).normal(size=(num_steps, 2, 3)).astype(np.float32)
    average = stability.TimeAverage.init((2, 3))
    for step, value in enumerate(series):
        average = average.update(value, step, run_up=run_up, num_steps=num_steps)
    used, middle = series[run_up:].astype(float), (num_steps - run_up) // 2
    np.testing.assert_allclose(average.mean, used.mean(0), rtol=1e-6)
    np.testing.assert_allclose(average.halves, [used[:middle].mean(0), used[middle:].mean(0)], rtol=1e-6)
    np.testing.assert_allclose(average.variance, used.var(0), atol=1e-4)  # eps of float32 times 100 times a deviation
    assert average.counts.tolist() == [middle, num_steps - run_up - middle]


def test_a_diverged_run_gives_nan_and_one_that_diverges_before_the_run_up_ends_does_not():
    average = stability.TimeAverage.init().update(jnp.nan, 0, run_up=1, num_steps=3).update(2.0, 1, run_up=1, num_steps=3)
    assert average.mean == 2
    assert jnp.isnan(average.update(jnp.nan, 2, run_up=1, num_steps=3).mean)


@pytest.mark.parametrize("name", stability.CLASS_LOSSES)
def test_expected_loss_is_the_mean_over_all_outcomes_of_the_labels(name):
    logits, labels, share = jax.random.normal(jax.random.key(0), (3, 3)), np.array([2, 0, 1]), 0.3
    losses = np.asarray(stability.CLASS_LOSSES[name](logits))
    total = np.zeros(3)
    for outcome in itertools.product(range(3), repeat=3):
        probability = np.prod([1 - share if c == y else share / 2 for c, y in zip(outcome, labels, strict=True)])
        total += probability * losses[np.arange(3), list(outcome)]
    np.testing.assert_allclose(stability.expected_loss(losses, labels, share), total, rtol=1e-5)
    assert name == "cross_entropy" or (name in stability.BOUNDED and (losses >= 0).all() and (losses <= 1).all())


def test_label_noise_has_its_share_is_never_the_true_label_and_is_nested():
    count, num_classes = 100_000, 4
    noise = check_fields(typechecked(stability.draw_label_noise)(jax.random.key(0), count, num_classes))
    labels = jnp.arange(count) % num_classes
    levels = {share: stability.apply_label_noise(noise, labels, share, num_classes) for share in (0.0, 0.2, 0.5, 1.0)}
    changed = {share: np.asarray(noisy != labels) for share, noisy in levels.items()}
    for share, flags in changed.items():
        assert abs(flags.mean() - share) <= 4 * math.sqrt(share * (1 - share) / count)
    assert not (changed[0.2] & (levels[0.2] != levels[0.5])).any()  # what less noise changed stays as it is
    offsets = np.bincount((levels[1.0] - labels) % num_classes, minlength=num_classes) / count
    np.testing.assert_allclose(offsets, [0, 1 / 3, 1 / 3, 1 / 3], atol=4 * math.sqrt(2 / 9 / count))
    losses = jax.random.normal(jax.random.key(1), (num_classes, num_classes))[labels]
    sampled = jnp.take_along_axis(losses, levels[0.5][:, None], 1).mean()
    assert abs(sampled - stability.expected_loss(losses, labels, 0.5).mean()) < 4 * losses.std() / math.sqrt(count)


def test_an_example_replaced_by_itself_changes_nothing_and_other_positions_stay():
    inputs, labels = jnp.arange(12.0).reshape(4, 3), jnp.array([0, 1, 1, 0])
    for position in range(4):
        same = jax.jit(stability.replace_example)(inputs, labels, position, inputs[position], labels[position])
        assert all(jnp.array_equal(*pair) for pair in zip(same, (inputs, labels), strict=True))
    new_inputs, new_labels = stability.replace_example(inputs, labels, 2, jnp.full(3, 7.0), 0)
    assert (new_inputs != inputs).any(1).tolist() == [False, False, True, False]
    assert new_labels.tolist() == [0, 1, 0, 0]


def test_coefficients_by_hand_and_the_pairs_of_normal_runs():
    result = check_fields(stability.coefficients(jnp.array([1.0, 2.0]), jnp.array([[2.0, 1.0], [1.0, 5.0]])))
    assert [x.item() for x in result] == [0.75, 1.25, 3.0]
    assert [x.item() for x in stability.coefficients(jnp.ones(3), jnp.ones((2, 3)))] == [0, 0, 0]
    runs = jax.random.normal(jax.random.key(0), (400, 1))
    # |difference| has the standard deviation 0.85; each run is in 399 pairs, so the mean's is about 0.85 sqrt(2 / 400)
    assert abs(stability.pairwise(runs).of_mean - 2 / math.sqrt(math.pi)) < 4 * 0.85 * math.sqrt(2 / 400)


def test_integrated_time_of_ar1_white_noise_and_drift():
    rng, count = np.random.default_rng(0), 100_000
    white = rng.normal(size=count)
    for rho in (0.0, 0.5, 0.9):
        series = scipy.signal.lfilter([1], [1, -rho], white)
        time, window, reliable = stability.integrated_time(series)
        truth = (1 + rho) / (1 - rho)
        assert reliable
        assert abs(time - truth) < 4 * truth * math.sqrt(2 * (2 * window + 1) / count) + truth * math.exp(-4)  # Sokal, eq. 3.19; the tail
    drifting = 1e-3 * np.linspace(-3, 3, 1000) ** 3 * 500 + white[:1000]
    assert stability.integrated_time(drifting).time > 20
    assert abs(stability.integrated_time(stability.detrend(drifting)).time - 1) < 0.3
    assert stability.integrated_time(np.ones(20)) == (1.0, 0, False)
    assert math.isnan(stability.integrated_time([math.nan] * 9).time)


def test_sketches_are_linear_and_keep_lengths():
    key, trees = jax.random.key(0), [{"a": jax.random.normal(jax.random.key(s), (50, 4)), "b": jnp.full(3, float(s))} for s in (1, 2)]
    first, second, both = (stability.sketch(key, tree) for tree in (*trees, jax.tree.map(lambda a, b: 2 * a - b, *trees)))
    np.testing.assert_allclose(both, 2 * first - second, atol=1e-4)
    difference = jax.tree.map(lambda a, b: a - b, *trees)
    length = math.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(difference)))
    assert abs(stability.weight_distances(jnp.stack([first, second]))[0] / length - 1) < 4 / math.sqrt(64)


def test_kendall_is_scipys_with_ties_too():
    rng = np.random.default_rng(0)
    for top in (2, 4, 50):
        x, y = rng.integers(0, top, (2, 12))
        assert stats.kendall(x, y) == pytest.approx(scipy.stats.kendalltau(x, y).statistic, abs=1e-12)
    assert math.isnan(stats.kendall([1, 1], [1, 2]))
    assert math.isnan(stats.kendall([1, math.inf], [1, 2]))


NOISY = stability.draw_label_noise(jax.random.key(0), 3, 2)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: stability.replace_example(jnp.ones((3, 2)), jnp.zeros(3, int), 3, jnp.ones(2), 0), "position must be from 0 to 2, got 3"),
        (lambda: stability.replace_example(jnp.ones((3, 2)), jnp.zeros(3, int), 0, jnp.ones(3), 0), r"got shapes \(3,\)"),
        (lambda: stability.apply_label_noise(NOISY, [0, 1, 0], 1.5, 2), r"from 0 to 1, got 1\.5"),
        (lambda: stability.apply_label_noise(NOISY, [0, 1, 2], 0.5, 2), "must lie from 0 to 1"),
        (lambda: stability.expected_loss(jnp.ones((2, 2)), [0, 1], -0.1), "at least 0"),
        (lambda: stability.draw_label_noise(jax.random.key(0), 3, 1), "2 classes, got 3 and 1"),
        (lambda: stability.coefficients(jnp.ones(3), jnp.ones((0, 3))), "K of at least 1"),
        (lambda: stability.coefficients(jnp.ones(3), jnp.ones((2, 4))), r"got shapes \(3,\) and \(2, 4\)"),
        (lambda: stability.pairwise(jnp.ones((1, 4))), "R of at least 2"),
        (lambda: stability.TimeAverage.init().update(1.0, 0, run_up=9, num_steps=10), "at least 2 of 10 steps, got 9"),
        (lambda: stability.integrated_time([1.0] * 7), "at least 8 values"),
        (lambda: stability.sketch(jax.random.key(0), {"a": jnp.ones(2)}, 0), "num_rows must be at least 1, got 0"),
        (lambda: stats.kendall([1], [1]), "at least 2, got shapes"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
