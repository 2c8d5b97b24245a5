"""Attacks on the expectation of a network that draws random numbers, against closed forms; and the check that asks for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxbp import attacks

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
    np.testing.assert_allclose(many(INPUTS), 0.1 * INPUTS @ WEIGHTS, atol=0.15 * float(jnp.abs(INPUTS @ WEIGHTS).max()))
    gradient = jax.grad(lambda x: many(x)[:, 0].sum())(INPUTS)
    np.testing.assert_allclose(gradient, many(INPUTS)[:1, :1] / (INPUTS @ WEIGHTS)[:1, :1] * WEIGHTS[:, 0][None].repeat(60, 0), rtol=1e-3)
    assert not jnp.array_equal(one(INPUTS), many(INPUTS))
    np.testing.assert_array_equal(many(INPUTS), many(INPUTS))  # pure
    draws = attacks.expectation(jax.tree_util.Partial(noisy, WEIGHTS), KEY, num_samples=1)
    moved = INPUTS.at[3, 2].set(jnp.nextafter(INPUTS[3, 2], jnp.float32(2)))
    assert float(jnp.abs(draws(moved) - draws(INPUTS)).max()) > 0.5  # fresh noise at the next number


def _suspected(network, key=KEY):
    found = attacks.gradient_masking_checks(network, key, INPUTS, LABELS, attacks.Threat("linf", 0.1))
    return {check.name: check for check in found if check.suspicious}


def test_a_randomised_network_under_a_deterministic_attack_is_named():
    fixed = jax.tree_util.Partial(noisy, WEIGHTS, jax.random.key(3))
    suite = {"fgsm": attacks.fgsm(attacks.Threat("linf", 0.1))}
    result = attacks.robust_accuracy(fixed, KEY, INPUTS, LABELS, suite)
    assert result.masking_suspected
    assert "the network draws random numbers" in result.warning
    assert "attacks.expectation" in result.warning
    generator = np.random.default_rng(0)
    assert "randomness" in _suspected(lambda x: x @ WEIGHTS + generator.normal(size=(60, 2)))  # outside of JAX
    assert "randomness" in _suspected(lambda x: x @ WEIGHTS * generator.uniform())
    assert "randomness" not in _suspected(attacks.expectation(jax.tree_util.Partial(noisy, WEIGHTS), KEY, num_samples=2))
    assert "randomness" not in _suspected(jax.tree_util.Partial(lambda w, x: x @ w, WEIGHTS))


def test_probabilities_in_place_of_logits_are_named():
    found = _suspected(lambda x: jax.nn.softmax(x @ WEIGHTS))
    assert "sum to 1 like probabilities" in str(found["probabilities"])


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
