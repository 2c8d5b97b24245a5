"""What attacks refuse, and what holds where they cannot know: labels that are targets, inputs outside the box, labels that are no class."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import attacks, checks

KEY = jax.random.key(0)
INPUTS = jax.random.uniform(KEY, (16, 6))
WEIGHTS = jax.random.normal(jax.random.key(1), (6, 4))
THREAT = attacks.Threat("linf", 0.3)


def network(inputs):
    return 3 * inputs @ WEIGHTS


LABELS = np.asarray(network(INPUTS).argmax(-1))
FIRST = np.arange(16) == 0
METHODS = {"pgd": attacks.pgd, "apgd": attacks.apgd, "square": attacks.square}


# Labels that are targets


@pytest.mark.parametrize("method", METHODS)
def test_true_labels_are_no_targets(method):
    attack = METHODS[method](THREAT, targets="given")
    with pytest.raises(ValueError, match=r"robust_accuracy hands an attack the true labels, got .*: leave targets out"):
        attacks.robust_accuracy(network, KEY, INPUTS, LABELS, {"a": attack})
    with pytest.raises(ValueError, match="adversarial_batch hands an attack the true labels"):
        attacks.adversarial_batch(attack)


# Inputs outside the box

OUTSIDE = jax.random.normal(KEY, (16, 6))


@pytest.mark.parametrize(
    "inputs", [OUTSIDE, np.asarray(OUTSIDE), OUTSIDE.tolist(), INPUTS.at[0, 0].set(jnp.nan)], ids=["jax", "numpy", "list", "nan"]
)
def test_inputs_outside_the_box_are_refused(inputs):
    attack, training = attacks.pgd(THREAT, num_steps=1), attacks.pgd_training(THREAT, num_steps=1)
    for call in (
        lambda: attack(network, KEY, inputs, LABELS),
        lambda: training(KEY, network, inputs, LABELS),
        lambda: jax.jit(lambda: attack(network, KEY, inputs, LABELS))(),  # inputs are not traced
        lambda: attacks.robust_accuracy(network, KEY, inputs, LABELS, {"a": attack}),
        lambda: attacks.gradient_masking_checks(network, KEY, inputs, LABELS, THREAT),
    ):
        with pytest.raises(ValueError, match=r"inputs must be finite and lie in the bounds \(0.0, 1.0\).*normalise inside logits_fn"):
            call()


@pytest.mark.first_cases(2)
@pytest.mark.parametrize("norm", ["linf", "l2", pytest.param("l1", marks=pytest.mark.slow)])
@pytest.mark.parametrize("epsilon", [0.0, 0.05])
@pytest.mark.parametrize("method", ["pgd", "square"])
def test_traced_inputs_outside_the_box_keep_to_the_ball(norm, epsilon, method):
    threat = attacks.Threat(norm, epsilon)
    attack = attacks.pgd(threat, num_steps=3) if method == "pgd" else attacks.square(threat, num_queries=5)
    adversarial = np.asarray(jax.jit(lambda x: attack(network, KEY, x, LABELS).adversarial)(OUTSIDE))
    assert float(threat.distance(adversarial, OUTSIDE).max()) <= np.float32(epsilon) * (1 + 2e-6)
    inside = (OUTSIDE >= 0) & (OUTSIDE <= 1)
    assert ((adversarial >= 0) & (adversarial <= 1))[inside].all()  # the box holds wherever it can
    assert epsilon == 0 or (adversarial != OUTSIDE).any()


# Labels


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.where(FIRST, 4, LABELS), "labels must lie from 0 to 3, one of 4 logits each, got 4"),
        (np.where(FIRST, 255, LABELS).astype(np.uint8), "got 255"),
        (np.where(FIRST, -1, LABELS), "got -1"),
        (np.where(FIRST, 2**40, LABELS.astype(np.int64)), f"got {2**40}"),
        (LABELS == 0, "labels must be integers, got bool"),
        (LABELS.astype(float), r"labels must be integers, got float64: cast"),
        (np.eye(4)[LABELS], r"of one-hot labels take .argmax\(-1\)"),
    ],
)
def test_labels_that_are_no_class_are_refused(labels, message):
    attack = attacks.pgd(THREAT, num_steps=1)
    for call in (
        lambda: attack(network, KEY, INPUTS, labels),
        lambda: attacks.pgd_training(THREAT)(KEY, network, INPUTS, labels),
        lambda: attacks.robust_accuracy(network, KEY, INPUTS, labels, {"a": attack}),
        lambda: attacks.gradient_masking_checks(network, KEY, INPUTS, labels, THREAT),
    ):
        with pytest.raises(ValueError, match=message):
            call()


# Logits


@pytest.mark.parametrize(
    ("logits_fn", "message"),
    [
        (lambda x: (network(x), x), r"logits_fn must return logits \(N, C\), got tuple.*take the first entry"),
        (lambda x: network(x)[:, 0], r"got shape \(16,\): add an axis"),
        (lambda x: network(x)[:, :1], "at least two classes, and the network has 1 logit"),
        (lambda x: network(x)[:1], r"logits of each example \(16, C\), got shape \(1, 4\)"),
        (None, "logits_fn must be a function"),
    ],
)
def test_logits_of_another_form_are_refused(logits_fn, message):
    attack = attacks.pgd(THREAT, num_steps=1)
    for call in (
        lambda: attack(logits_fn, KEY, INPUTS, LABELS),
        lambda: attacks.robust_accuracy(logits_fn, KEY, INPUTS, LABELS, {"a": attack}),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_networks_that_couple_examples_are_refused():
    """Batch statistics: the accuracy of the same network and images would depend on the batch size."""

    def coupled(weights, x):
        return (x - x.mean(0)) / (x.std(0) + 1e-3) @ weights

    network_fn = jax.tree_util.Partial(coupled, WEIGHTS)
    for call in (
        lambda: attacks.robust_accuracy(network_fn, KEY, INPUTS, LABELS, {"a": attacks.fgsm(THREAT)}, batch_size=1),
        lambda: attacks.minimal_norms(network_fn, KEY, INPUTS, LABELS, norm="l2"),
        lambda: attacks.smoothed_radii(network_fn, KEY, INPUTS, sigma=0.1),
    ):
        with pytest.raises(checks.BatchCouplingError, match=r"Evaluate with stored statistics \(evaluation mode\)"):
            call()


# Attacks


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        (attacks.pgd(THREAT), r"attacks must be a dict by name, such as \{'pgd': attack\}, got an Attack"),
        ([attacks.pgd(THREAT)], "attacks must be a dict by name, .* got list"),
        ({"a": attacks.pgd}, "attacks must be made by pgd, .* got function as 'a'"),
        (attacks.autoattack(THREAT, num_targets=4), "targets must be at most 3, .* got 4: lower targets, or num_targets of autoattack"),
    ],
)
def test_attacks_that_cannot_run_are_refused_at_the_door(suite, message, monkeypatch):
    monkeypatch.setattr(attacks.Attack, "__call__", lambda *_: pytest.fail("an attack ran"))
    with pytest.raises(ValueError, match=message):
        attacks.robust_accuracy(network, KEY, INPUTS, LABELS, suite)
    if isinstance(suite, dict):
        with pytest.raises(ValueError, match=message):
            attacks.randomised_accuracy(lambda key, x: network(x), KEY, INPUTS, LABELS, suite)


def test_the_targeted_ratio_of_three_classes_is_refused_at_the_door():
    with pytest.raises(ValueError, match="targeted dlr needs at least 4 classes"):
        attacks.robust_accuracy(lambda x: x[:, :3], KEY, INPUTS, LABELS % 3, attacks.autoattack(THREAT, num_targets=2))


# Radius and bounds


@pytest.mark.parametrize("epsilon", [np.array([0.1, 0.2]), "8/255", jnp.float32(-0.1), -0.1, np.nan, None, True, 1j, [0.1]], ids=repr)
@pytest.mark.parametrize("make", [attacks.fgsm, attacks.pgd, attacks.apgd, attacks.square])
def test_an_epsilon_is_one_number_of_at_least_0(epsilon, make):
    with pytest.raises(ValueError, match="epsilon must be one finite number, at least 0, got"):
        make(attacks.Threat("linf", epsilon))(network, KEY, INPUTS, LABELS)


def test_many_radii_come_by_vmap():
    radii = jnp.array([0.0, 0.2])
    attack = attacks.fgsm(attacks.Threat("linf", radii))
    results = jax.vmap(lambda a: a(network, KEY, INPUTS, LABELS).adversarial)(attack)
    np.testing.assert_allclose(jnp.abs(results - INPUTS).max((1, 2)), radii, rtol=1e-6)


@pytest.mark.parametrize(
    "bounds",
    [
        (0.0,),
        (1, 0),
        (np.zeros(3), np.zeros(3)),
        (np.zeros(3), np.ones(2)),
        ("a", "b"),
        None,
        (None, 1),
        (0, np.nan),
        (np.zeros((2, 2)), 1),
    ],
    ids=repr,
)
def test_bounds_that_are_none_are_refused(bounds):
    with pytest.raises(ValueError, match=r"bounds must be \(low, high\) with low < high, numbers or \(C,\) for C channels, got"):
        attacks.Threat("linf", 0.1, bounds)


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "norm"), [((4, 3, 3), "linf"), ((3,), "l2")], ids=["images", "vectors"])
def test_each_channel_may_have_its_bounds(shape, norm):
    low, high = np.array([-1.0, -2.0, 0.0]), np.array([1.0, 3.0, 0.5])
    threat = attacks.Threat(norm, 0.4, (low, high))
    assert hash(threat.bounds) == hash(attacks.Threat(norm, 0.4, (tuple(low), tuple(high))).bounds)
    inputs = low + (high - low) * jax.random.uniform(KEY, (5, *shape))
    weights = jax.random.normal(KEY, (int(np.prod(shape)), 4))
    for attack in (attacks.pgd(threat, num_steps=2), attacks.square(threat, num_queries=3)):
        adversarial = jax.jit(lambda x, a=attack: a(lambda z: z.reshape(5, -1) @ weights, KEY, x, np.arange(5) % 4).adversarial)(inputs)
        assert ((adversarial >= low) & (adversarial <= high)).all()
        assert float(threat.distance(adversarial, inputs).max()) <= 0.4 * (1 + 2e-6)
        assert (adversarial != inputs).any()
    with pytest.raises(ValueError, match=r"bounds of 3 channels need inputs \(N, ..., 3\), got shape \(16, 6\)"):
        attacks.pgd(threat)(network, KEY, INPUTS, LABELS)
    with pytest.raises(ValueError, match=r"lie in the bounds .* got"):
        attacks.pgd(threat)(lambda z: z.reshape(5, -1) @ weights, KEY, inputs * 3, np.arange(5) % 4)
