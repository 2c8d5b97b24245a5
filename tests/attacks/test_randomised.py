"""Attacks on the expectation of a network that draws random numbers, against closed forms; and the check that asks for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxbp import attacks
from jaxbp.attacks.randomised import is_random

KEY = jax.random.key(0)
WEIGHTS = jax.random.normal(jax.random.key(1), (6, 2))
INPUTS = jax.random.uniform(jax.random.key(2), (60, 6))
LABELS = (INPUTS @ WEIGHTS).argmax(-1)
THREAT = attacks.Threat("linf", 0.1, (-np.inf, np.inf))


def noisy(weights, key, inputs):
    """Independent normal noise on each logit: right with the probability Phi(margin / sqrt(2))."""
    logits = inputs @ weights
    return logits + jax.random.normal(key, logits.shape)


def turning(weights, key, inputs):
    """The network, or, in 45 % of the draws, its opposite: single gradients often point the wrong way."""
    return jnp.where(jax.random.uniform(key) < 0.55, 1, -1) * (inputs @ weights)


@pytest.mark.slow
def test_the_accuracy_of_noisy_logits_is_its_closed_form():
    """FGSM is the worst case of a linear network; the share of right draws follows from its margin."""
    suite = {"zero": attacks.pgd(attacks.Threat("linf", 0.0, THREAT.bounds), num_steps=1), "fgsm": attacks.fgsm(THREAT)}
    network = jax.tree_util.Partial(noisy, WEIGHTS)
    result = attacks.randomised_accuracy(network, KEY, INPUTS, LABELS, suite, num_samples=5, num_draws=400, batch_size=32)
    margin = np.abs(np.asarray(INPUTS @ (WEIGHTS[:, 0] - WEIGHTS[:, 1])))
    attacked = margin - 0.1 * float(jnp.abs(WEIGHTS[:, 0] - WEIGHTS[:, 1]).sum())
    for share, gap in ((result.clean_share, margin), (result.robust_share, attacked), (result.shares["fgsm"], attacked)):
        probability = scipy.stats.norm.cdf(gap / 2**0.5)
        error = (probability * (1 - probability) / 400) ** 0.5
        assert (np.abs(share - probability) <= 4.5 * error + 1 / 400).all()  # 60 examples, each within 4.5 errors
    assert result.worst_case.estimate < result.clean.estimate - 0.05
    assert f"{result.worst_case.estimate:.3f}, 95 % interval" in result.statement
    assert "60 examples, 400 draws each; attacks averaged 5 draws" in result.statement
    np.testing.assert_allclose(np.abs(result.adversarial - INPUTS), 0.1, rtol=1e-4)


def test_the_gradient_of_the_expectation_is_the_mean_gradient():
    """Averaged draws break what one draw does not: the mean network is 0.1 of the linear one."""
    one, many = (attacks.expectation(jax.tree_util.Partial(turning, WEIGHTS), KEY, num_samples=n) for n in (1, 801))
    value, gradient = jax.jit(lambda x: (many(x), jax.grad(lambda y: many(y)[:, 0].sum())(x)))(INPUTS)
    np.testing.assert_allclose(value, 0.1 * INPUTS @ WEIGHTS, atol=0.15 * float(jnp.abs(INPUTS @ WEIGHTS).max()))
    factor = value[0, 0] / (INPUTS @ WEIGHTS)[0, 0]
    np.testing.assert_allclose(gradient, factor * WEIGHTS[:, 0][None].repeat(60, 0), rtol=1e-3)
    assert abs(float(jnp.abs(one(INPUTS) / (INPUTS @ WEIGHTS))[0, 0]) - 1) < 1e-3  # a single draw is the network or its opposite
    draws = attacks.expectation(jax.tree_util.Partial(noisy, WEIGHTS), KEY, num_samples=1)
    np.testing.assert_array_equal(draws(INPUTS), draws(INPUTS))  # pure
    moved = INPUTS.at[3, 2].set(jnp.nextafter(INPUTS[3, 2], jnp.float32(2)))
    assert float(jnp.abs(draws(moved) - draws(INPUTS)).max()) > 0.5  # fresh noise at the next number


@pytest.mark.slow
def test_a_randomised_network_under_a_deterministic_attack_is_named():
    """And probabilities in place of logits are, in the same program."""

    def fixed_draw(weights, key, inputs):
        return jax.nn.softmax(noisy(weights, key, inputs))

    suite = {"fgsm": attacks.fgsm(attacks.Threat("linf", 0.1))}
    result = attacks.robust_accuracy(jax.tree_util.Partial(fixed_draw, WEIGHTS, jax.random.key(3)), KEY, INPUTS, LABELS, suite)
    assert result.masking_suspected
    assert "the network draws random numbers" in result.warning
    assert "attacks.expectation" in result.warning
    assert "outputs of 100% of the examples sum to 1 like probabilities" in result.warning


def test_random_networks_are_told_from_others():
    generator = np.random.default_rng(0)
    for function, wanted in (
        (lambda x: x @ WEIGHTS + generator.normal(size=(60, 2)), True),  # outside of JAX
        (lambda x: x @ WEIGHTS * generator.uniform(), True),
        (lambda x: jax.lax.map(lambda row: row @ WEIGHTS + jax.random.normal(KEY, (2,)), x), True),  # within a loop
        (lambda x: x @ WEIGHTS + np.ones(2), False),
    ):
        assert is_random(jax.tree_util.Partial(function), INPUTS) == wanted
    assert not is_random(attacks.expectation(jax.tree_util.Partial(noisy, WEIGHTS), KEY, num_samples=2), INPUTS)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("num_samples must be at least 1, got 0", lambda: attacks.expectation(noisy, KEY, num_samples=0)),
        ("key must be one random key", lambda: attacks.expectation(noisy, 3)),
        ("num_draws must be at least 1", lambda: attacks.randomised_accuracy(turning, KEY, INPUTS, LABELS, {}, num_draws=0)),
        (
            "randomised_accuracy hands an attack the true labels",
            lambda: attacks.randomised_accuracy(
                jax.tree_util.Partial(noisy, WEIGHTS), KEY, INPUTS, LABELS, {"a": attacks.pgd(THREAT, targets="given")}
            ),
        ),
    ],
)
def test_misuse_is_named(message, call):
    with pytest.raises(ValueError, match=message):
        call()
