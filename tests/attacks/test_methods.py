"""Attacks against closed forms on linear models, brute force, each other and foolbox; contracts by a table of variants."""

import functools
import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxbp import attacks, data, metrics, models, training
from jaxbp.attacks import losses
from jaxbp.attacks.square import _mass, bumps, shares, windows

FREE = (-np.inf, np.inf)
MAKERS = {
    "fgsm": attacks.fgsm,
    "fgsm-rs": functools.partial(attacks.fgsm, random_start=True),
    "pgd": functools.partial(attacks.pgd, num_steps=4),
    "pgd-last-cosine": functools.partial(attacks.pgd, num_steps=4, keep="last", step_rule="cosine", num_restarts=2),
    "pgd-batch": functools.partial(attacks.pgd, num_steps=3, num_restarts=3, runs="batch"),
    "pgd-targets": functools.partial(attacks.pgd, num_steps=3, targets=2, loss="dlr"),
    "apgd": functools.partial(attacks.apgd, num_steps=8),
    "apgd-dlr-targets": functools.partial(attacks.apgd, num_steps=5, loss="dlr", targets=2, num_restarts=2),
    "square": functools.partial(attacks.square, num_queries=12),
    "fab": functools.partial(attacks.fab, num_steps=4),
    "fab-targets": functools.partial(attacks.fab, num_steps=3, num_restarts=2, targets=2),
    "pgd-given": functools.partial(attacks.pgd, num_steps=3, targets="given"),
}
TABLE = [(name, "linf") for name in MAKERS if name != "fab"] + [(name, "l2") for name in ("fgsm-rs", "pgd", "apgd", "square")]
TABLE += [
    ("apgd", "l1"),
    ("square", "l1"),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (("fab", "linf"), ("pgd", "l1"), ("fab", "l1"))),
]
ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}


def linear(params, inputs):
    weights, bias = params
    return inputs.reshape(len(inputs), -1) @ weights + bias


def mlp(params, inputs):
    hidden = inputs.reshape(len(inputs), -1)
    for weights, bias in params[:-1]:
        hidden = jax.nn.relu(hidden @ weights + bias)
    return hidden @ params[-1][0] + params[-1][1]


def random_mlp(key, sizes, scale=1.0):
    keys = jax.random.split(key, 2 * len(sizes))
    pairs = enumerate(itertools.pairwise(sizes))
    return [
        (
            scale * jax.random.normal(keys[2 * i], (a, b)) * (2 / a) ** 0.5,
            scale * 0.1 * jax.random.normal(keys[2 * i + 1], (b,)),
        )
        for i, (a, b) in pairs
    ]


def partial(function, params):
    return jax.tree_util.Partial(function, params)


@jax.jit
def run(attack, *args):
    return attack(*args)


@pytest.fixture(scope="module")
def trained():
    """A small network on digits that plain training leaves vulnerable: logits function, 200 test inputs, labels."""
    digits = data.load("digits")
    start = random_mlp(jax.random.key(0), (64, 32, 10))
    end = jax.jit(
        lambda params: (
            training.train(
                models.from_functions(mlp),
                training.sgd(0.1, momentum=0.9),
                tuple(digits.train),
                jax.random.key(1),
                training.Settings(num_epochs=8, batch_size=64, measure_epochs=[8]),
                start=(params, {}),
            ).params
        )
    )(start)
    return partial(mlp, end), jnp.asarray(digits.test.inputs[:200]), jnp.asarray(digits.test.labels[:200])


# Contracts of every attack.


@pytest.mark.first_cases(2)
@pytest.mark.parametrize("name, norm", TABLE)
def test_what_an_attack_returns_is_true(name, norm):
    """Success and loss are those of the inputs returned, these are within reach, and eager equals jit."""
    network = partial(mlp, random_mlp(jax.random.key(1), (24, 16, 4)))
    inputs = jax.random.uniform(jax.random.key(2), (6, 4, 3, 2))
    labels = jnp.arange(6) % 4
    attack = MAKERS[name](attacks.Threat(norm, 0.2))
    result = run(attack, network, jax.random.key(3), inputs, labels)
    assert result.adversarial.shape == inputs.shape
    assert result.adversarial.dtype == inputs.dtype
    check_within(attack.threat, result.adversarial, inputs)
    logits = network(result.adversarial)
    right = metrics.accuracy(logits, labels) > 0
    np.testing.assert_array_equal(result.success, right if name == "pgd-given" else ~right)
    if name in ("fgsm", "pgd", "apgd"):
        np.testing.assert_allclose(result.loss, losses.cross_entropy(logits, labels), rtol=1e-5)
    if name == "square":
        np.testing.assert_allclose(result.loss, losses.margin(logits, labels), rtol=1e-4, atol=1e-6)
    expected = {
        "fgsm": 2,
        "fgsm-rs": 2,
        "pgd": 5,
        "pgd-last-cosine": 10,
        "pgd-batch": 12,
        "pgd-targets": 9,
        "apgd": 9,
        "apgd-dlr-targets": 25,
        "fab": (4 + 3) * 5 + 10,
        "fab-targets": 2 * ((2 * 3 + 3) * 2 + 10) + 1,
        "pgd-given": 4,
    }
    if name == "square":  # it ends when all are broken
        assert 1 <= int(result.num_evaluations) <= 12
    else:
        assert int(result.num_evaluations) == expected[name]


@pytest.mark.slow
def test_jit_equals_eager(x64):
    network = partial(mlp, random_mlp(jax.random.key(1), (6, 8, 4)))
    inputs = jax.random.uniform(jax.random.key(2), (4, 6))
    labels = jnp.arange(4)
    attack = MAKERS["apgd-dlr-targets"](attacks.Threat("l2", 0.2))
    args = (network, jax.random.key(3), inputs, labels)
    eager = attack(*args)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), eager, run(attack, *args))


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("apgd", marks=pytest.mark.slow), "square"])
def test_seeds_under_vmap_equal_a_loop(name, x64):
    keys = jax.random.split(jax.random.key(1), 3)
    params = jax.vmap(lambda key: random_mlp(key, (6, 8, 4)))(keys)
    inputs = jax.random.uniform(jax.random.key(2), (5, 6))
    labels = jnp.arange(5) % 4
    attack = MAKERS[name](attacks.Threat("linf", 0.1))
    together = jax.jit(jax.vmap(lambda p, key: attack(partial(mlp, p), key, inputs, labels)))(params, keys)
    for seed in range(3):
        alone = run(attack, partial(mlp, jax.tree.map(lambda p, s=seed: p[s], params)), keys[seed], inputs, labels)
        np.testing.assert_allclose(together.adversarial[seed], alone.adversarial, atol=1e-10)
        np.testing.assert_array_equal(together.success[seed], alone.success)


@pytest.mark.slow
def test_restarts_in_a_loop_and_in_a_batch_are_the_same(x64):
    network = partial(mlp, random_mlp(jax.random.key(1), (6, 8, 4)))
    inputs = jax.random.uniform(jax.random.key(2), (30, 6))
    labels = network(inputs).argmax(-1)
    found = [
        run(attack, network, jax.random.key(0), inputs, labels)
        for runs in ("loop", "batch")
        for attack in [attacks.pgd(attacks.Threat("linf", 0.06), num_steps=3, num_restarts=3, runs=runs)]
    ]
    assert 0 < found[0].success.sum() < 30
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), *found)
    alone = run(attacks.pgd(attacks.Threat("linf", 0.06), num_steps=3), network, jax.random.key(0), inputs, labels)
    assert (found[0].success >= alone.success).all()


def test_radii_step_sizes_and_networks_share_a_program():
    traces = []

    @jax.jit
    def count(attack, *args):
        traces.append(1)
        return attack(*args)

    inputs, labels = jnp.full((2, 4), 0.5), jnp.array([0, 1])
    for seed, (epsilon, size) in enumerate(((0.1, 0.01), (0.2, 0.01), (0.3, 0.05))):
        params = random_mlp(jax.random.key(seed), (4, 3))
        attack = attacks.pgd(attacks.Threat("linf", epsilon), step_size=size)
        result = count(attack, partial(mlp, params), jax.random.key(0), inputs, labels)
        assert float(attack.threat.distance(result.adversarial, inputs).max()) <= np.float32(epsilon)
    assert len(traces) == 1


# The ball and the box.


def check_within(threat, adversarial, inputs):
    """In the box exactly; in the ball exactly as float32 subtracts (linf), or up to the rounding of a sum (l2, l1)."""
    adversarial, inputs = np.asarray(adversarial), np.asarray(inputs)
    assert np.isfinite(adversarial).all()
    assert adversarial.min() >= threat.bounds[0]
    assert adversarial.max() <= threat.bounds[1]
    if threat.norm == "linf":
        assert np.abs(adversarial - inputs).max() <= inputs.dtype.type(threat.epsilon)
    else:
        exact = np.linalg.norm((adversarial.astype(float) - inputs.astype(float)).reshape(len(inputs), -1), ORDERS[threat.norm], axis=1)
        assert exact.max() <= threat.epsilon * (1 + 2e-6)


BOUNDS = {"linf": (-0.3, 0.7), "l2": (0.0, 1.0), "l1": (-0.2, 0.9)}


@functools.cache
def program(name, norm):
    """One program for all networks, radii and inputs."""
    return jax.jit(lambda epsilon, *args: MAKERS[name](attacks.Threat(norm, epsilon, BOUNDS[norm]))(*args).adversarial)


@pytest.mark.slow
@hypothesis.settings(max_examples=30, deadline=None, derandomize=True)
@hypothesis.given(
    case=st.sampled_from([*itertools.product(("fgsm-rs", "pgd", "apgd", "square"), ("linf", "l2")), ("apgd", "l1"), ("square", "l1")]),
    seed=st.integers(0, 2**20),
    epsilon=st.one_of(st.sampled_from([0.0, 8 / 255, 1e-6, 3.0]), st.floats(1e-4, 1.0)),
    scale=st.sampled_from([1e-12, 1.0, 1e4]),
)
def test_every_adversarial_example_is_in_its_ball_and_box(case, seed, epsilon, scale):
    bounds = BOUNDS[case[1]]
    key = jax.random.key(seed)
    network = partial(mlp, random_mlp(key, (12, 8, 4), scale))
    inputs = jax.random.uniform(key, (6, 12), minval=bounds[0], maxval=bounds[1])
    ends = jax.random.randint(jax.random.fold_in(key, 1), inputs.shape, 0, 3)  # a third at each end of the box
    inputs = jnp.where(ends == 0, bounds[0], jnp.where(ends == 1, bounds[1], inputs))
    labels = jax.random.randint(key, (6,), 0, 4)
    found = program(*case)(epsilon, network, key, inputs, labels)
    check_within(attacks.Threat(case[1], epsilon, bounds), found, inputs)


@pytest.mark.slow
def test_a_network_that_returns_nan_does_no_harm():
    inputs, labels = jnp.full((3, 8), 0.5), jnp.array([0, 1, 2])
    for name, norm in (("pgd", "linf"), ("apgd", "l2"), ("square", "l2")):
        attack = MAKERS[name](attacks.Threat(norm, 0.1))
        result = run(attack, partial(_nan, None), jax.random.key(0), inputs, labels)
        check_within(attack.threat, result.adversarial, inputs)
        assert result.success.all()


def _nan(_, inputs):
    return jnp.log(-inputs[:, :4] - 1)


def test_projections_are_right(x64):
    inputs = jnp.array([[0.5, 0.5, 0.5], [0.0, 0.9, 0.5], [0.2, 0.2, 0.2]])
    outside = jnp.array([[0.9, 0.2, 0.5], [-3.0, 0.95, 0.7], [0.2, 0.2, 0.2]])
    found = attacks.Threat("linf", 0.25).project(outside, inputs)
    np.testing.assert_allclose(found, [[0.75, 0.25, 0.5], [0.0, 0.95, 0.7], [0.2, 0.2, 0.2]])
    found = attacks.Threat("l2", 0.25).project(outside, inputs)
    np.testing.assert_allclose(found[0], [0.7, 0.35, 0.5], rtol=1e-12)
    np.testing.assert_array_equal(found[2], inputs[2])
    assert float(found[1, 0]) == 0
    inside = inputs + 0.01
    np.testing.assert_array_equal(attacks.Threat("l2", 0.25).project(inside, inputs), inside)


def test_the_projection_in_l1_is_the_nearest_point(x64):
    """Against SciPy's quadratic programme, on 12 points of which some bind the ball, some the box, and most both."""
    rng = np.random.default_rng(0)
    inputs, outside = np.clip(rng.uniform(-0.3, 1.3, (12, 5)), 0, 1), rng.normal(0.5, 1.5, (12, 5))
    outside[0] = inputs[0]  # stays
    threat = attacks.Threat("l1", 0.8)
    found = np.asarray(jax.jit(threat.project)(outside, inputs))
    assert ((found >= 0) & (found <= 1)).all()
    distance = np.abs(found - inputs).sum(1)
    assert (distance <= 0.8).all()
    assert (distance > 0.8 - 1e-12).sum() > 6
    np.testing.assert_array_equal(found[0], inputs[0])
    plane = {"type": "ineq", "fun": lambda parts: 0.8 - parts.sum()}
    for x, z, y in zip(inputs, outside, found, strict=True):  # steps in ways up and ways down, each of at least 0
        room = [(0, end) for end in 1 - x] + [(0, end) for end in x]
        value = scipy.optimize.minimize(
            lambda parts, x=x, z=z: ((x + parts[:5] - parts[5:] - z) ** 2).sum(),
            np.zeros(10),
            bounds=room,
            constraints=[plane],
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        ).fun
        assert ((y - z) ** 2).sum() == pytest.approx(value, rel=1e-7, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["apgd", "square"])
def test_l1_attacks_come_close_to_the_linear_programme(method):
    """Two classes: the worst point of ball and box moves the largest weights to the edge until the budget is spent."""
    weights = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    inputs = np.clip(np.random.default_rng(1).uniform(-0.5, 1.5, (30, 20)), 0, 1).astype(np.float32)
    labels, radius, direction = np.arange(30) % 2, 3.0, weights[:, 1] - weights[:, 0]
    for label in (0, 1):
        rows = labels == label
        slope = direction if label == 0 else -direction
        room = np.where(slope > 0, 1 - inputs[rows], inputs[rows])
        order = np.argsort(-np.abs(slope))
        before = np.cumsum(room[:, order], 1) - room[:, order]
        spent = np.clip(radius - before, 0, room[:, order])
        worst = (spent * np.abs(slope)[order]).sum(1)
        make = functools.partial(attacks.apgd, num_steps=100) if method == "apgd" else functools.partial(attacks.square, num_queries=600)
        attack = make(attacks.Threat("l1", radius), **({"loss": "margin"} if method == "apgd" else {}))
        # The label's logit is 100 larger, so that no example is broken on the way, which would end the search of Square.
        network = partial(_shifted, (jnp.asarray(weights), jnp.float32(100.0) * (jnp.arange(2) == label)))
        result = run(attack, network, jax.random.key(0), inputs[rows], labels[rows])
        reached = result.loss + 100 - (inputs[rows] @ slope)
        assert (reached <= worst * (1 + 1e-4) + 1e-4).all()
        assert (reached >= (0.97 if method == "apgd" else 0.5) * worst).all()


def _shifted(params, inputs):
    return inputs @ params[0] + params[1]


def test_steps_are_the_steepest(x64):
    gradient = jnp.array([[3.0, -4.0], [0.0, 0.0], [3e-200, -4e-200], [jnp.nan, 2.0]])
    np.testing.assert_array_equal(attacks.Threat("linf", 1.0).steepest_ascent(gradient), [[1, -1], [0, 0], [1, -1], [0, 1]])
    wanted = [[0.6, -0.8], [0, 0], [0.6, -0.8], [0, 1]]
    np.testing.assert_allclose(attacks.Threat("l2", 1.0).steepest_ascent(gradient), wanted, rtol=1e-15)
    sparse = attacks.Threat("l1", 1.0)
    np.testing.assert_array_equal(sparse.steepest_ascent(gradient), [[0, -1], [0, 0], [0, -1], [0, 1]])
    both = sparse.sparse_ascent(jnp.array([[3.0, -4.0, 1.0], [2.0, 2.0, 0.0]]), jnp.array([2.0, 5.0]))
    np.testing.assert_array_equal(both, [[0.5, -0.5, 0], [0.5, 0.5, 0]])
    np.testing.assert_array_equal(sparse.open_entries(gradient[:1], jnp.array([[1.0, 0.5]])), [[0, -4]])
    np.testing.assert_array_equal(sparse.open_entries(gradient[:1], jnp.array([[0.0, 0.0]])), [[3, 0]])


@pytest.mark.slow
def test_random_starts_fill_the_ball_uniformly():
    inputs = jnp.zeros((4000, 3))
    far = {}
    for norm in attacks.NORMS:
        threat = attacks.Threat(norm, 2.0, FREE)
        far[norm] = np.asarray(threat.distance(threat.random_start(jax.random.key(0), inputs), inputs)) / 2
        # The share of a ball in three dimensions within r is r^3, in either norm; 0.031 is the 0.1 % point for 4000.
        assert np.abs(np.sort(far[norm]) ** 3 - np.linspace(0, 1, 4000)).max() < 0.031


# Strength against independent truth.


@pytest.mark.first_cases(3)
@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd"])
@pytest.mark.parametrize("norm", ["linf", "l2", pytest.param("l1", marks=pytest.mark.slow)])
def test_linear_classifiers_have_their_closed_form(name, norm, x64):
    """Two classes: the margin falls by epsilon times the dual norm of the difference of weights, and by no more."""
    key = jax.random.key(0)
    weights, bias = jax.random.normal(key, (10, 2)), jnp.array([0.3, -0.2])
    inputs = jax.random.normal(jax.random.key(1), (40, 10))
    labels = linear((weights, bias), inputs).argmax(-1)
    radius = {"linf": 0.2, "l2": 0.5, "l1": 1.0}[norm]
    dual = jnp.linalg.norm(weights[:, 0] - weights[:, 1], {"linf": 1, "l2": 2, "l1": np.inf}[norm])
    worst = -losses.margin(linear((weights, bias), inputs), labels) - radius * dual
    assert 5 < int((worst < 0).sum()) < 35
    attack = MAKERS[name](attacks.Threat(norm, radius, FREE))
    if name != "fgsm":
        attack = attacks.pgd(attack.threat, num_steps=40, step_rule="cosine", step_size=radius / 4, keep="last")
        if name == "apgd":
            attack = attacks.apgd(attack.threat, num_steps=40)
    result = run(attack, partial(linear, (weights, bias)), jax.random.key(2), inputs, labels)
    found = -losses.margin(linear((weights, bias), result.adversarial), labels)
    # The end of a turn of the ray; in l1 the entries that APGD moves beside the largest.
    slack = {"linf": 1e-9, "l2": 1e-3, "l1": 0.02}[norm] * radius * float(dual) if name != "fgsm" else 1e-9
    assert (found >= worst - 1e-9).all()
    assert (found <= worst + slack).all()
    np.testing.assert_array_equal(result.success, found < 0)


RULES = [("linf", "constant", 4), ("l2", "linear", 2.5), ("l2", "cosine", 2.5), ("linf", lambda done: done, 1.5)]


@pytest.mark.parametrize("norm, rule, total", RULES)
@pytest.mark.first_cases(1)
def test_steps_have_the_lengths_of_their_rule(norm, rule, total, x64):
    """On a linear network all steps go one way: four of them add up to the sum of the shares."""
    weights = jax.random.normal(jax.random.key(0), (5, 2))
    threat = attacks.Threat(norm, 9.0, FREE)
    attack = attacks.pgd(threat, num_steps=4, step_size=0.1, step_rule=rule, random_start=False)
    result = run(attack, partial(linear, (weights, 0.0)), jax.random.key(1), jnp.zeros((3, 5)), jnp.array([0, 1, 0]))
    np.testing.assert_allclose(threat.distance(result.adversarial, jnp.zeros((3, 5))), 0.1 * total, rtol=1e-9)


@pytest.mark.slow
def test_brute_force_over_a_grid_finds_no_more(x64):
    """Two inputs, curved network: APGD is within 1 % of the worst of 160,000 points of the ball, with the box binding."""
    params = random_mlp(jax.random.key(4), (2, 12, 3), 1.5)
    inputs = jnp.array([[0.1, 0.8], [0.5, 0.5], [0.95, 0.3], [0.02, 0.02]])
    labels = mlp(params, inputs).argmax(-1)
    attack = attacks.apgd(attacks.Threat("l2", 0.2), num_steps=40, num_restarts=5)
    found = run(attack, partial(mlp, params), jax.random.key(0), inputs, labels).loss
    line = np.linspace(-0.2, 0.2, 400)
    steps = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    steps = steps[np.linalg.norm(steps, axis=1) <= 0.2]
    for index in range(len(inputs)):
        points = np.clip(np.asarray(inputs[index]) + steps, 0, 1)
        loss = losses.cross_entropy(mlp(params, jnp.asarray(points)), jnp.full(len(points), labels[index]))
        assert float(found[index]) >= 0.99 * float(loss.max())


@pytest.mark.slow
def test_the_order_of_strength(trained):
    """FGSM < PGD <= APGD at equal steps; more restarts and the best iterate never do worse; Square is not far behind."""
    network, inputs, labels = trained
    threat = attacks.Threat("linf", 0.1)

    def robust(attack):
        return 1 - float(run(attack, network, jax.random.key(0), inputs, labels).success.mean())

    clean = float(metrics.accuracy(network(inputs), labels).mean())
    assert clean > 0.9
    fgsm, pgd = robust(attacks.fgsm(threat)), robust(attacks.pgd(threat, num_steps=20))
    last = robust(attacks.pgd(threat, num_steps=20, keep="last"))
    apgd = robust(attacks.apgd(threat, num_steps=20))
    targeted = robust(attacks.apgd(threat, num_steps=20, loss="dlr", targets=4))
    square = robust(attacks.square(threat, num_queries=150))
    assert 0 < pgd < fgsm < clean
    assert pgd <= last
    assert apgd <= pgd + 0.011  # two of 200
    assert targeted <= pgd + 0.01
    assert square < fgsm + 0.1
    assert square >= targeted - 0.01


@pytest.mark.slow
@pytest.mark.parametrize("norm, epsilon", [("linf", 0.07), ("l2", 0.4), ("l1", 2.0)])
def test_attacks_that_follow_the_boundary_and_the_loss_agree(trained, norm, epsilon):
    """The curve of minimal norms by FAB meets the robust accuracy under targeted APGD, within 3 % of the examples."""
    network, inputs, labels = trained
    options = {"norm": norm, "num_steps": 50, "targets": 9, "batch_size": 200}
    curve = attacks.minimal_norms(network, jax.random.key(0), inputs, labels, **options).accuracy([epsilon])
    suite = {"apgd": attacks.apgd(attacks.Threat(norm, epsilon), num_steps=50, loss="dlr", targets=9)}
    result = attacks.robust_accuracy(network, jax.random.key(1), inputs, labels, suite, batch_size=200, check_masking=False)
    assert 0.1 < result.worst_case.estimate < 0.8
    assert abs(curve[0].estimate - result.worst_case.estimate) <= 0.03


@pytest.mark.slow
@pytest.mark.parametrize(
    "restarts, norm, epsilon, kind",
    [pytest.param(1, "l2", 0.4, "L2PGD", marks=pytest.mark.slow), (3, "linf", 0.07, "LinfPGD")],
)
def test_foolbox_agrees(trained, restarts, norm, epsilon, kind):
    foolbox = pytest.importorskip("foolbox")
    network, inputs, labels = trained
    model = foolbox.models.JAXModel(jax.jit(network), bounds=(0, 1))
    peer = getattr(foolbox.attacks, kind)(steps=20, rel_stepsize=2.5 / 20).repeat(restarts)
    theirs = 1 - float(np.mean(np.asarray(peer(model, inputs, labels, epsilons=epsilon)[2])))
    threat = attacks.Threat(norm, epsilon)
    attack = attacks.pgd(threat, num_steps=20, num_restarts=restarts, keep="last")
    ours = 1 - float(run(attack, network, jax.random.key(0), inputs, labels).success.mean())
    error = (theirs * (1 - theirs) / len(inputs)) ** 0.5
    assert abs(ours - theirs) <= error
    apgd = attacks.apgd(threat, num_steps=20, num_restarts=restarts)
    assert 1 - float(run(apgd, network, jax.random.key(0), inputs, labels).success.mean()) <= theirs


@pytest.mark.slow
def test_targets_are_reached(trained):
    network, inputs, labels = trained
    wanted = (labels + 1) % 10
    attack = attacks.apgd(attacks.Threat("linf", 0.3), num_steps=30, targets="given", loss="dlr")
    result = run(attack, network, jax.random.key(0), inputs, wanted)
    reached = network(result.adversarial).argmax(-1) == wanted
    np.testing.assert_array_equal(result.success, reached)
    assert float(reached.mean()) > 0.8
    assert float((network(inputs).argmax(-1) == wanted).mean()) < 0.1


@pytest.mark.slow
def test_apgd_needs_no_step_size_where_pgd_with_a_bad_one_fails(trained):
    """Its checkpoints are the source's, and its steps get shorter: with steps of 2 epsilon throughout PGD is worse."""
    assert attacks.step_size_checkpoints(100) == (22, 41, 57, 70, 80, 87, 93, 99)
    assert attacks.step_size_checkpoints(1) == ()
    network, inputs, labels = trained
    threat = attacks.Threat("l2", 0.3)
    rough = run(attacks.pgd(threat, num_steps=30, step_size=0.6), network, jax.random.key(0), inputs, labels)
    apgd = run(attacks.apgd(threat, num_steps=30), network, jax.random.key(0), inputs, labels)
    assert float((apgd.loss > rough.loss).mean()) > 0.9


def apgd_by_the_book(loss, slope, project, ascent, start, epsilon, num_steps):
    """Algorithm 1 for one example, in a plain loop, checks before the step; also whether condition 2 alone ever decided."""
    marks, shares = [0], [0.0, 0.22]
    while shares[-1] < 1:
        marks.append(int(np.ceil(round(shares[-1] * num_steps, 9))))
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    x, before, eta, alone = start, start, 2 * epsilon, False
    trail, best, best_loss = [], None, -np.inf
    eta_at, best_at = {}, {}
    for k in range(num_steps):
        here = loss(x)
        trail.append(here)
        if here > best_loss:
            best, best_loss = x, here
        if k in marks:
            eta_at[k], best_at[k] = eta, best_loss
            if k > 0:
                last = marks[marks.index(k) - 1]
                rises = sum(trail[i + 1] > trail[i] for i in range(last, k))
                first, second = rises < 0.75 * (k - last), eta_at[last] == eta and best_at[last] == best_loss
                alone |= second and not first
                if first or second:
                    eta, x = eta / 2, best
                    trail[k] = best_loss
        z = project(x + eta * ascent(slope(x)))
        alpha = 1 if k == 0 else 0.75
        x, before = project(x + alpha * (z - x) + (1 - alpha) * (x - before)), x
    return max(best_loss, loss(x)), alone


@pytest.mark.parametrize("num_steps", [20, 50])
@pytest.mark.first_cases(1)
def test_apgd_is_algorithm_1(num_steps, x64):
    """Against a loop by the book, on a wavy landscape where either condition decides for some of 80 examples."""
    slant, waves = np.array([1.0, -0.4]), np.array([17.7, 35.9])

    def wavy(_, inputs):
        height = jnp.sin(inputs * waves).sum(-1) + inputs @ slant
        return jnp.stack([-height, height], -1) / 2

    threat = attacks.Threat("l2", 0.3, FREE)
    inputs, labels = jax.random.uniform(jax.random.key(2), (80, 2)), jnp.zeros(80, int)
    attack = attacks.apgd(threat, num_steps=num_steps, loss="margin")
    found = run(attack, partial(wavy, None), jax.random.key(0), inputs, labels).loss
    starts = np.asarray(threat.random_start(jax.random.split(jax.random.key(0), 1)[0], inputs))
    decided = []
    for centre, start, value in zip(np.asarray(inputs), starts, found, strict=True):

        def project(x, centre=centre):
            return centre + (x - centre) * min(1, 0.3 / max(np.linalg.norm(x - centre), 1e-300))

        wanted, alone = apgd_by_the_book(
            lambda x: float(np.sin(x * waves).sum() + x @ slant),
            lambda x: waves * np.cos(x * waves) + slant,
            project,
            lambda g: g / np.linalg.norm(g),
            start,
            0.3,
            num_steps,
        )
        decided.append(alone)
        assert float(value) == pytest.approx(wanted, rel=1e-6, abs=1e-6)
    assert 0 < sum(decided) < 80


# Losses.


def test_the_dlr_loss_ignores_shift_and_scale(x64):
    logits = jax.random.normal(jax.random.key(0), (20, 5))
    labels, targets = jnp.arange(20) % 5, (jnp.arange(20) + 1) % 5
    other = 1e5 * logits - 30
    np.testing.assert_allclose(losses.dlr(logits, labels), losses.dlr(other, labels), rtol=1e-9)
    for known in (labels, None):
        both = [losses.targeted_dlr(z, known, targets) for z in (logits, other)]
        np.testing.assert_allclose(*both, rtol=1e-9)
    z = np.sort(np.asarray(logits), -1)[:, ::-1]
    y, t = (np.take_along_axis(np.asarray(logits), np.asarray(c)[:, None], 1)[:, 0] for c in (labels, targets))
    rest = np.where(y == z[:, 0], z[:, 1], z[:, 0])
    np.testing.assert_allclose(losses.dlr(logits, labels), -(y - rest) / (z[:, 0] - z[:, 2]), rtol=1e-12)
    eq6 = -(y - t) / (z[:, 0] - (z[:, 2] + z[:, 3]) / 2)
    np.testing.assert_allclose(losses.targeted_dlr(logits, labels, targets), eq6, rtol=1e-12)
    assert ((losses.dlr(logits, labels) > 0) == (logits.argmax(-1) != labels)).all()


def test_losses_of_equal_logits_are_finite_with_finite_gradients():
    logits, labels, targets = jnp.zeros((3, 5)), jnp.arange(3), jnp.arange(1, 4)

    def total(z):
        found = [loss(z, labels) for loss in losses.LOSSES.values()]
        found += [loss(z, labels, targets) for loss in losses.TARGETED.values()]
        return sum(value.sum() for value in found)

    value, gradient = jax.jit(jax.value_and_grad(total))(logits)
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()


@pytest.mark.slow
def test_dlr_sees_through_saturation(trained):
    """The cross-entropy of logits times 10^4 has no gradient in float32; the ratio does not care."""
    network, inputs, labels = trained
    sharp = partial(_times, (network, 1e4))
    threat = attacks.Threat("linf", 0.1)
    broken = {
        loss: float(run(attacks.apgd(threat, num_steps=20, loss=loss), sharp, jax.random.key(0), inputs, labels).success.mean())
        for loss in ("cross_entropy", "dlr")
    }
    assert broken["dlr"] > broken["cross_entropy"] + 0.2


def _times(pair, inputs):
    network, factor = pair
    return factor * network(inputs)


# Square's own parts.


def test_the_schedule_of_squares_is_the_sources():
    found = shares(0.8, 10_000)
    assert [float(found[i]) for i in (0, 10, 11, 50, 51, 8001, 9999)] == [0.8, 0.8, 0.4, 0.4, 0.2, 0.8 / 2**8, 0.8 / 2**8]


def test_bumps_are_equation_2():
    side = 5  # two halves, of 2 and of 3 columns, n = 2 by the rows
    rows, columns = jnp.arange(side)[:, None], jnp.arange(side)[None]
    found = np.asarray(bumps(rows, columns, jnp.int32(side), jnp.int32(side)))

    def pyramid(height, width):
        n = max(height, width) // 2
        return [
            [sum(1 / (n + 1 - k) ** 2 for k in range(n - max(abs(r - height // 2), abs(c - width // 2)) + 1)) for c in range(width)]
            for r in range(height)
        ]

    np.testing.assert_allclose(found, np.hstack([pyramid(5, 2), -np.array(pyramid(5, 3))]), rtol=1e-6)


def test_a_proposal_in_l2_moves_mass_between_its_windows_and_adds_what_was_unused():
    """What lies outside both windows stays, and the whole step has the length epsilon: each channel has its part of the rest."""
    key, maps = jax.random.key(0), jnp.zeros((3, 8, 8, 2))
    threat = attacks.Threat("l2", 1.0, FREE)
    step = np.random.default_rng(0).normal(size=maps.shape).astype(np.float32)
    best = 0.6 * step / np.linalg.norm(step.reshape(3, -1), axis=1).reshape(3, 1, 1, 1)  # 0.64 of 1 is unused

    @jax.jit
    def proposed(best, side):
        from_key, to_key, *_ = jax.random.split(key, 4)
        inside = windows(from_key, maps.shape, *side).inside | windows(to_key, maps.shape, *side).inside
        return _mass(threat, maps, threat.projection(maps))[1](key, best, side), inside

    result, inside = map(np.asarray, proposed(best, np.array([3, 3])))
    np.testing.assert_allclose(np.linalg.norm(result.reshape(3, -1), axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.where(inside, 0, result), np.where(inside, 0, best), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "norm, shape",
    [
        ("l2", (9,)),
        pytest.param("l1", (5, 4), marks=pytest.mark.slow),
        pytest.param("linf", (5, 4), marks=pytest.mark.slow),
        pytest.param("l2", (5, 4, 2), marks=pytest.mark.slow),
        ("linf", (9, 1, 3)),
    ],
)
def test_square_takes_images_signals_and_vectors(norm, shape):
    inputs = jax.random.uniform(jax.random.key(0), (4, *shape), minval=0.2, maxval=0.8)
    network = partial(mlp, random_mlp(jax.random.key(1), (int(np.prod(shape)), 3)))
    labels = network(inputs).argmax(-1)
    attack = attacks.square(attacks.Threat(norm, 0.1), num_queries=10)
    result = run(attack, network, jax.random.key(2), inputs, labels)
    assert result.adversarial.shape == inputs.shape
    check_within(attack.threat, result.adversarial, inputs)
    far = np.asarray(attack.threat.distance(result.adversarial, inputs))
    np.testing.assert_allclose(far, 0.1, rtol=1e-4)  # it uses the whole of its budget while the box allows


# Training.


@pytest.mark.parametrize("make", [attacks.pgd_training, attacks.fgsm_training])
def test_training_perturbs_within_the_ball_and_raises_the_loss(trained, make):
    network, inputs, labels = trained
    threat = attacks.Threat("linf", 0.05)
    found = jax.jit(make(threat))(jax.random.key(0), network, inputs, labels)
    check_within(threat, found, inputs)
    clean, attacked = (losses.cross_entropy(network(x), labels).mean() for x in (inputs, found))
    assert float(attacked) > 2 * float(clean)


def test_no_gradient_passes_through_a_training_batch():
    inputs, labels = jnp.full((2, 3), 0.5), jnp.array([0, 1])
    perturb = attacks.fgsm_training(attacks.Threat("l2", 0.1))  # signs have no gradient anyway

    def total(params):
        return perturb(jax.random.key(0), partial(mlp, params), inputs, labels).sum()

    assert not any(leaf.any() for leaf in jax.tree.leaves(jax.jit(jax.grad(total))(random_mlp(jax.random.key(0), (3, 3)))))


def test_the_attack_in_training_computes_no_gradient_of_the_parameters():
    """In the compiled program there is no product with the shape of a kernel's gradient, nor a last evaluation."""
    params = random_mlp(jax.random.key(0), (7, 11, 3))
    inputs, labels = jnp.full((5, 7), 0.5), jnp.arange(5) % 3
    perturb = attacks.pgd_training(attacks.Threat("linf", 0.1))
    text = jax.jit(lambda p: perturb(jax.random.key(0), partial(mlp, p), inputs, labels)).lower(params).compile().as_text()
    dots = [line for line in text.splitlines() if " dot(" in line]
    assert len(dots) == 4  # two layers, forward and back to the inputs
    assert not [line for line in dots if "f32[7,11]{1,0} dot(" in line or "f32[11,3]{1,0} dot(" in line]


@pytest.mark.parametrize(
    "message, wrong",
    list(
        {
            "norm must be one of linf, l2, l1, got 'l0'": lambda t: attacks.Threat("l0", 0.1),
            "epsilon must be one finite number, at least 0, got -1": lambda t: attacks.Threat("l2", -1),
            "epsilon must be one finite number, at least 0, got an array": lambda t: call(attacks.fgsm(attacks.Threat("linf", np.ones(2)))),
            r"low < high, numbers or \(C,\) for C channels, got": lambda t: attacks.Threat("l2", 0.1, (1.0, 0.0)),
            "loss must be one of cross_entropy, dlr, margin, got 'ce'": lambda t: attacks.pgd(t, loss="ce"),
            "targets must be None, 'given' or a number": lambda t: attacks.apgd(t, targets=0),
            "targets must be at most 3": lambda t: call(attacks.pgd(t, targets=4)),
            "num_restarts must be at least 1": lambda t: attacks.pgd(t, num_restarts=0),
            "num_steps must be at least 1": lambda t: attacks.apgd(t, num_steps=0),
            "step_rule must be a function or one of constant": lambda t: attacks.pgd(t, step_rule="sqrt"),
            "keep must be one of best, last": lambda t: attacks.pgd(t, keep="first"),
            "runs must be one of auto, loop, batch": lambda t: attacks.pgd(t, runs="vmap"),
            "num_steps must be a whole number": lambda t: attacks.fab(t, num_steps=2.5),
            "num_queries must be at least 1": lambda t: attacks.square(t, num_queries=0),
            "share must be above 0": lambda t: attacks.square(t, share=0.0),
            "inputs of shape": lambda t: call(attacks.square(t), jnp.zeros((2, 2, 1, 1, 1))),
            "inputs must be of a floating dtype": lambda t: call(attacks.pgd(t), jnp.zeros((2, 4), int)),
            r"labels must be class indices \(3,\), one per example": lambda t: call(attacks.pgd(t), jnp.zeros((3, 4))),
            "dlr needs at least 3 classes": lambda t: call(attacks.pgd(t, loss="dlr"), jnp.zeros((2, 2))),
        }.items()
    ),
)
def test_misuse_is_named(message, wrong):
    with pytest.raises(ValueError, match=message):
        wrong(attacks.Threat("linf", 0.1))


def call(attack, inputs=None):
    inputs = jnp.zeros((2, 4)) if inputs is None else inputs
    return attack(lambda x: x.reshape(len(x), -1), jax.random.key(0), inputs, jnp.array([0, 1]))
