"""Robust accuracy against closed forms, its intervals against the literature, and masking against networks built to mask."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import attacks, stats


def linear(params, inputs):
    return inputs @ params


def disguised(params, inputs):
    """The linear network, its logits times ``scale``, or rounded to multiples of 1/4 if ``steps``; one program for all."""
    weights, scale, steps = params
    logits = linear(weights, inputs)
    return scale * jnp.where(steps, jnp.round(4 * logits) / 4, logits)


WEIGHTS = jax.random.normal(jax.random.key(0), (8, 4))
INPUTS = jax.random.uniform(jax.random.key(1), (90, 8))
LABELS = linear(WEIGHTS, INPUTS).argmax(-1).at[:9].add(1) % 4  # nine that the network gets wrong
THREAT = attacks.Threat("linf", 0.08, (-np.inf, np.inf))


def network(function):
    return jax.tree_util.Partial(function, WEIGHTS)


NETWORKS = {
    name: jax.tree_util.Partial(disguised, (WEIGHTS, scale, steps))
    for name, scale, steps in (("plain", 1.0, False), ("quantised", 1.0, True), ("saturated", 1e5, False))
}


def broken_by_theory():
    """A linear classifier errs within reach where some margin is below epsilon times the l1 norm of its weights."""
    logits = np.asarray(linear(WEIGHTS, INPUTS), float)
    weights = np.asarray(WEIGHTS, float)
    found = np.zeros(len(logits), bool)
    for other in range(4):
        gap = logits[np.arange(90), LABELS] - logits[:, other]
        reach = 0.08 * np.abs(weights[:, np.asarray(LABELS)] - weights[:, [other]]).sum(0)
        found |= (gap < reach) & (np.asarray(LABELS) != other)
    return found


@pytest.mark.parametrize("only_survivors, batch_size", [(True, 32), (False, 90)])
@pytest.mark.first_cases(1)
def test_robust_accuracy_of_a_linear_network_is_its_closed_form(only_survivors, batch_size):
    suite = {"fgsm": attacks.fgsm(THREAT), "targeted": attacks.pgd(THREAT, num_steps=3, targets=3, loss="margin")}
    found = attacks.robust_accuracy(
        network(linear),
        jax.random.key(2),
        INPUTS,
        LABELS,
        suite,
        batch_size=batch_size,
        only_survivors=only_survivors,
        check_masking=False,
    )
    broken = broken_by_theory()
    assert 15 < broken.sum() < 85
    np.testing.assert_array_equal(found.correct, np.arange(90) >= 9)
    assert found.clean.estimate == pytest.approx(0.9)
    np.testing.assert_array_equal(found.correct & ~found.broken["fgsm"] & ~found.broken["targeted"], ~broken)
    assert found.worst_case.estimate == pytest.approx(1 - broken.mean())
    alone = np.asarray(suite["fgsm"](network(linear), jax.random.key(2), INPUTS, LABELS).success)
    np.testing.assert_array_equal(found.broken["fgsm"], alone & found.correct)
    assert found.accuracy["targeted"].estimate == pytest.approx(1 - broken.mean())
    np.testing.assert_array_equal(found.robust, ~broken)
    wrong = np.asarray(linear(WEIGHTS, found.adversarial).argmax(-1) != LABELS)
    np.testing.assert_array_equal(wrong, broken)  # the examples themselves where none was broken, or where the network errs
    np.testing.assert_array_equal(found.adversarial[~broken], INPUTS[~broken])
    assert np.abs(found.adversarial - INPUTS).max() <= np.float32(0.08)
    record = found.record()
    assert record == json.loads(json.dumps(record))
    assert {name: record[name] for name in ("clean_acc", "norm", "eps")} == {"clean_acc": pytest.approx(90), "norm": "Linf", "eps": 0.08}
    assert record["robust_acc"] == pytest.approx(100 * (1 - broken.mean()))
    tried = found.correct & ~alone if only_survivors else found.correct
    np.testing.assert_array_equal(found.tried["targeted"], tried)
    assert found.num_evaluations == {"fgsm": 2 * 81, "targeted": (3 * 4 + 1) * tried.sum()}
    assert found.gradient_masking_checks == ()
    assert found.warning == ""


def test_an_attack_that_claims_too_much_is_not_believed():
    def boast(threat, step_size, logits_fn, key, inputs, labels):
        return attacks.AttackResult(inputs, labels == labels, jnp.zeros(len(inputs)), jnp.int32(1))

    found = attacks.robust_accuracy(
        network(linear),
        jax.random.key(2),
        INPUTS,
        LABELS,
        {"boast": attacks.Attack(boast, THREAT)},
        check_masking=False,
    )
    assert found.worst_case == found.clean


@pytest.mark.slow
def test_radii_and_networks_share_programs():
    traces = []

    def counted(params, inputs):
        traces.append(1)
        return linear(params, inputs)

    def evaluate(seed, epsilon):
        weights = jax.random.normal(jax.random.key(seed), (8, 4))
        suite = {"pgd": attacks.pgd(attacks.Threat("linf", epsilon), num_steps=2)}
        logits_fn = jax.tree_util.Partial(counted, weights)
        return attacks.robust_accuracy(logits_fn, jax.random.key(0), INPUTS, LABELS, suite)

    evaluate(0, 0.1)
    before = len(traces)
    evaluate(1, 0.2)
    assert len(traces) == before


@pytest.mark.slow
def test_plain_networks_are_not_suspected_and_masking_ones_are():
    """One linear classifier: as it is, rounded to steps, and so steep that float32 has no gradient of its loss."""
    threat = attacks.Threat("linf", 0.08)
    suite = {"pgd": attacks.pgd(threat, num_steps=10), "square": attacks.square(threat, num_queries=200)}
    sound = {"apgd": attacks.apgd(threat, num_steps=20, targets=3, loss="dlr"), **suite}  # PGD leaves 3 of 90 to Square
    found = {
        name: attacks.robust_accuracy(NETWORKS[name], jax.random.key(3), INPUTS, LABELS, attempts)
        for name, attempts in (("plain", sound), ("quantised", suite), ("saturated", suite))
    }
    assert not found["plain"].masking_suspected
    assert found["plain"].warning == ""
    assert [check.name for check in found["plain"].gradient_masking_checks] == [
        "gradient_free",
        "zero_gradients",
        "huge_radius",
        "one_step",
        "probabilities",
        "randomness",
    ]
    for name in ("quantised", "saturated"):
        checks = {check.name: check for check in found[name].gradient_masking_checks}
        assert checks["gradient_free"].suspicious, name
        assert checks["zero_gradients"].suspicious, name
        assert checks["huge_radius"].suspicious, name
        assert "Gradients may be masked" in found[name].warning
        assert "gradient-free attack alone breaks" in found[name].warning
    assert {check.name: check.value for check in found["quantised"].gradient_masking_checks}["zero_gradients"] == 1.0


@pytest.mark.slow
def test_the_huge_radius_holds_every_image_in_l2_too():
    """Only images brighter than 0.9 throughout are taken for the other class: from black, a distance of almost 4."""

    def bright(params, inputs):
        total = inputs.sum(-1) - 14.4
        return jnp.stack([-total, total], -1)

    checks = attacks.gradient_masking_checks(
        jax.tree_util.Partial(bright, None), jax.random.key(0), jnp.zeros((5, 16)), jnp.zeros(5, int), attacks.Threat("l2", 0.1)
    )
    assert {check.name: check.value for check in checks}["huge_radius"] == 0


@pytest.mark.slow
def test_one_step_that_beats_many_is_suspicious():
    """The loss rises from the input for as long as the step of FGSM, and falls back at every shorter one."""

    def bumpy(params, inputs):
        far = jnp.abs(inputs - 0.5).max(-1)
        away = jnp.where(far > 0.0999, 3.0, -jnp.abs(far - 0.03))  # PGD settles at 0.03; the edge is beyond a ridge
        return jnp.stack([jnp.zeros_like(away), away - 1], -1)

    inputs = jnp.full((20, 4), 0.5).at[:, 0].add(1e-4)
    checks = attacks.gradient_masking_checks(
        jax.tree_util.Partial(bumpy, None), jax.random.key(0), inputs, jnp.zeros(20, int), attacks.Threat("linf", 0.1)
    )
    found = {check.name: check for check in checks}
    assert "gradient_free" not in found
    assert found["one_step"].suspicious
    assert "under one step is" in str(found["one_step"])


@pytest.mark.slow
def test_autoattack_sees_through_saturation():
    """Ratios of logits have gradients where the cross-entropy has none, so the worst case is the plain network's."""
    suite = attacks.autoattack(attacks.Threat("linf", 0.08), num_steps=10, num_targets=3, num_queries=60)
    assert list(suite) == ["apgd_ce", "apgd_t", "fab_t", "square"]
    plain, steep = (
        attacks.robust_accuracy(NETWORKS[name], jax.random.key(3), INPUTS, LABELS, suite, check_masking=False)
        for name in ("plain", "saturated")
    )
    assert steep.accuracy["apgd_ce"].estimate > plain.accuracy["apgd_ce"].estimate + 0.1
    assert steep.worst_case.estimate <= plain.worst_case.estimate + 0.012  # one of 90


def test_the_mean_over_seeds_has_students_interval():
    def evaluate(seed):
        weights = jax.tree_util.Partial(linear, WEIGHTS + 0.3 * jax.random.normal(jax.random.key(seed), WEIGHTS.shape))
        return attacks.robust_accuracy(weights, jax.random.key(seed), INPUTS, LABELS, {"fgsm": attacks.fgsm(THREAT)}, check_masking=False)

    seeds = [evaluate(seed) for seed in range(4)]
    found = attacks.mean_over_seeds(seeds)
    assert list(found) == ["clean", "fgsm", "worst_case"]
    assert found["worst_case"] == stats.t_interval([seed.worst_case.estimate for seed in seeds])
    assert found["worst_case"].low < found["worst_case"].high
    with pytest.raises(stats.SampleError, match="at least 2 seeds"):
        attacks.mean_over_seeds(seeds[:1])
    with pytest.raises(ValueError, match="all seeds must have the same attacks"):
        attacks.mean_over_seeds([seeds[0], attacks.RobustEvaluation(seeds[0].correct, {}, {}, {})])


@pytest.mark.parametrize(
    "message, wrong",
    list(
        {
            r"lie in the bounds \(0.0, 1.0\) of 'fgsm'": lambda: evaluate_on(INPUTS * 255),
            r"labels must be class indices \(5,\), one per example": lambda: evaluate_on(INPUTS[:5]),
            "batch_size must be at least 1": lambda: evaluate_on(INPUTS, batch_size=0),
        }.items()
    ),
)
def test_misuse_is_named(message, wrong):
    with pytest.raises(ValueError, match=message):
        wrong()


def evaluate_on(inputs, **options):
    suite = {"fgsm": attacks.fgsm(attacks.Threat("linf", 0.1))}
    return attacks.robust_accuracy(network(linear), jax.random.key(0), inputs, LABELS, suite, **options)


def test_a_record_states_one_threat():
    suite = {name: attacks.fgsm(attacks.Threat("linf", epsilon)) for name, epsilon in (("a", 0.1), ("b", 0.2))}
    evaluation = attacks.robust_accuracy(network(linear), jax.random.key(0), INPUTS, LABELS, suite, check_masking=False)
    with pytest.raises(ValueError, match=r"one norm and one epsilon, got \[\('linf', 0.1\), \('linf', 0.2\)\]: evaluate each threat alone"):
        evaluation.record()


def test_minimal_norms_of_the_linear_network_agree_with_its_robust_accuracy():
    """The curve at the radius of the closed form, and just beside it on either side."""
    result = attacks.minimal_norms(
        network(linear), jax.random.key(0), INPUTS, LABELS, norm="linf", bounds=(-np.inf, np.inf), num_steps=10, batch_size=90
    )
    assert result.accuracy([0.08])[0].estimate == pytest.approx(1 - broken_by_theory().mean())
    np.testing.assert_array_equal(result.distances > 0.08, ~broken_by_theory())
