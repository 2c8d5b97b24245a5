"""Randomised smoothing against the exact radius of a linear classifier, and its coverage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxbp import attacks

WEIGHTS = jnp.array([[1.0, -2.0, 0.5]])
KEY = jax.random.key(0)


def halves(params, inputs):
    """Two classes, apart at w . x = 0.25: the smoothed radius is the distance from the plane."""
    value = inputs @ params[0] - 0.25
    return jnp.stack([jnp.zeros_like(value), value], -1)


NETWORK = jax.tree_util.Partial(halves, WEIGHTS)


def distances(inputs):
    return np.abs(np.asarray(inputs, float) @ np.asarray(WEIGHTS[0], float) - 0.25) / np.linalg.norm(WEIGHTS[0])


def test_radii_of_a_linear_classifier_are_its_distances():
    inputs = jax.random.normal(KEY, (12, 3)).at[0].set(jnp.array([0.25, 0.0, 0.0]))  # the first is on the plane
    result = attacks.smoothed_radii(NETWORK, KEY, inputs, sigma=0.5, num_estimation=20_000, batch_size=4096)
    exact = distances(inputs)
    assert result.classes[0] == attacks.ABSTAINED
    assert result.radii[0] == 0
    labels = np.asarray(NETWORK(inputs)).argmax(-1)
    answered = result.classes != attacks.ABSTAINED
    np.testing.assert_array_equal(result.classes[answered], labels[answered])
    assert answered[exact > 0.05].all()
    assert (result.radii <= exact).mean() == 1  # each with a probability of 0.999
    probability = scipy.stats.norm.cdf(exact[1:] / 0.5)
    error = (probability * (1 - probability) / 20_000) ** 0.5
    # Four errors of the count, and three for the end of its interval.
    assert (result.probabilities[1:] >= probability - 8 * error - 7 / 20_000)[exact[1:] > 0.05].all()
    np.testing.assert_allclose(result.radii, np.where(answered, 0.5 * scipy.stats.norm.ppf(result.probabilities), 0), rtol=1e-12)
    labels[1] = 1 - labels[1]
    curve = [interval.estimate for interval in result.accuracy(labels, [0.0, 0.3])]
    assert curve == [(answered.sum() - 1) / 12, (np.delete(result.radii, 1) >= 0.3).sum() / 12]


@pytest.mark.slow
def test_radii_are_too_large_no_more_often_than_said():
    """500 certificates of one input with failure 0.1: at most 0.1 of them above the exact radius, plus three errors, and not far fewer."""
    inputs = jnp.tile(jnp.array([[0.9, -0.2, 0.1]]), (500, 1))
    result = attacks.smoothed_radii(NETWORK, KEY, inputs, sigma=1.0, num_selection=20, num_estimation=1000, failure=0.1, batch_size=1000)
    share = (result.radii > distances(inputs)).mean()
    error = (0.1 * 0.9 / 500) ** 0.5
    assert 0.03 < share <= 0.1 + 3 * error


def test_draws_beyond_the_last_batch_do_not_count_and_nan_is_no_class():
    def certain(inputs):
        return jnp.stack([jnp.zeros(len(inputs)), jnp.ones(len(inputs))], -1)

    result = attacks.smoothed_radii(certain, KEY, jnp.zeros((1, 2)), sigma=1.0, num_estimation=105, failure=0.01, batch_size=50)
    assert result.probabilities[0] == pytest.approx(0.01 ** (1 / 105))  # all of 105
    nothing = attacks.smoothed_radii(lambda x: jnp.log(-jnp.abs(x) - 1), KEY, jnp.zeros((1, 2)), sigma=1.0, num_estimation=50)
    assert (nothing.classes[0], nothing.radii[0]) == (attacks.ABSTAINED, 0)


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("sigma must be one positive finite number, got 0", {"sigma": 0.0}),
        ("failure must be below 0.5", {"failure": 0.5}),
        ("num_estimation must be at least 1, got 0", {"num_estimation": 0}),
        ("inputs must be of a floating dtype", {"inputs": np.zeros((2, 3), int)}),
        (r"logits_fn must return logits \(N, C\)", {"logits_fn": lambda x: x[0]}),
    ],
)
def test_misuse_is_named(message, options):
    arguments = {"logits_fn": NETWORK, "key": KEY, "inputs": jnp.zeros((2, 3)), "sigma": 1.0} | options
    with pytest.raises(ValueError, match=message):
        attacks.smoothed_radii(**arguments)
