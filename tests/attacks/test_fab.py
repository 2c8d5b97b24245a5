"""FAB against linear and quadratic programmes on affine networks, a dense grid on a curved one, and its own definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxbp import attacks
from jaxbp.attacks import hyperplane
from tests.attacks.test_methods import mlp, partial, random_mlp

ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}


def programme(weights, gap, point, norm):
    """The smallest step in the box [0, 1] with ``weights . step = -gap``, by SciPy's solvers; inf where none exists."""
    size, room = len(point), list(zip(-point, 1 - point, strict=True))
    if norm == "linf":  # the last variable bounds all others
        rows = np.block([[np.eye(size), -np.ones((size, 1))], [-np.eye(size), -np.ones((size, 1))]])
        options = {"A_ub": rows, "b_ub": np.zeros(2 * size), "bounds": [*room, (0, None)]}
        found = scipy.optimize.linprog([0] * size + [1], A_eq=[[*weights, 0]], b_eq=[-gap], **options)
        return found.fun if found.status == 0 else np.inf
    if norm == "l1":  # ways up and ways down
        options = {"bounds": [(0, end) for _, end in room] + [(0, -end) for end, _ in room]}
        found = scipy.optimize.linprog(np.ones(2 * size), A_eq=[[*weights, *-weights]], b_eq=[-gap], **options)
        return found.fun if found.status == 0 else np.inf
    if np.where(weights > 0, weights * (1 - point), -weights * point).sum() < -gap:
        return np.inf
    plane = {"type": "eq", "fun": lambda step: weights @ step + gap, "jac": lambda step: weights}
    options = {"bounds": room, "constraints": [plane], "method": "SLSQP", "options": {"ftol": 1e-15, "maxiter": 500}}
    return scipy.optimize.minimize(lambda step: step @ step, np.zeros(size), jac=lambda step: 2 * step, **options).fun ** 0.5


@pytest.fixture(scope="module")
def affine():
    """Weights (6, 4), biases, and 24 points of which a third of the entries lie at an end of the box."""
    rng = np.random.default_rng(0)
    points = np.clip(rng.uniform(-0.25, 1.25, (24, 6)), 0, 1)
    return rng.normal(size=(6, 4)), 0.3 * rng.normal(size=4), points


@pytest.mark.parametrize("norm", attacks.NORMS)
def test_a_step_to_a_hyperplane_is_the_smallest(norm, affine, x64):
    weights, _, points = affine
    normals, gaps = np.tile(weights[:, 0] - weights[:, 1], (24, 1)), points @ (weights[:, 0] - weights[:, 1]) - 0.5
    normals[0, :2] = 0  # entries without weight stay
    normals[1] *= 1e-180  # squares would vanish
    gaps[1] *= 1e-180
    nearest_step = jax.jit(hyperplane.nearest_step, static_argnums=5)
    steps = np.asarray(nearest_step(points, normals, gaps, 0.0, 1.0, norm))
    assert ((points + steps >= 0) & (points + steps <= 1)).all()
    wanted = np.array([programme(n / np.abs(n).max(), g / np.abs(n).max(), p, norm) for n, g, p in zip(normals, gaps, points, strict=True)])
    assert np.isfinite(wanted).all()
    np.testing.assert_allclose((normals * steps).sum(1), -gaps, rtol=1e-12, atol=1e-200)
    np.testing.assert_allclose(np.linalg.norm(steps, ORDERS[norm], axis=1), wanted, rtol=1e-6)
    assert (steps[0, :2] == 0).all()
    free = nearest_step(points, normals, gaps, -np.inf, np.inf, norm)
    dual = np.linalg.norm(normals[2:], {"linf": 1, "l2": 2, "l1": np.inf}[norm], axis=1)
    np.testing.assert_allclose(np.linalg.norm(free[2:], ORDERS[norm], axis=1), np.abs(gaps[2:]) / dual, rtol=1e-12)


def test_a_hyperplane_out_of_reach_gives_the_corner_that_comes_closest():
    point, weights = jnp.full((1, 3), 0.25), jnp.array([[1.0, -1.0, 0.0]])
    nearest_step = jax.jit(hyperplane.nearest_step, static_argnums=5)
    for norm in attacks.NORMS:
        np.testing.assert_allclose(nearest_step(point, weights, jnp.array([-9.0]), 0.0, 1.0, norm), [[0.75, -0.25, 0]])


@pytest.mark.parametrize(
    ("norm", "targets"),
    [
        ("linf", None),
        *(pytest.param(n, t, marks=pytest.mark.slow) for n, t in (("l2", 3), ("l2", None), ("l1", None), ("linf", 3), ("l1", 3))),
    ],
)
def test_minimal_norms_of_an_affine_network_are_exact(norm, targets, affine):
    weights, biases, points = affine
    labels = (points @ weights + biases).argmax(-1)
    labels[:2] = (labels[:2] + 1) % 4  # two mistakes
    wanted = np.zeros(24)
    for index in range(2, 24):
        point, label = points[index], labels[index]
        others = [other for other in range(4) if other != label]
        gap = point @ weights + biases
        wanted[index] = min(programme(weights[:, o] - weights[:, label], gap[o] - gap[label], point, norm) for o in others)
    points = points.astype(np.float32)
    network = partial(lambda p, x: x @ p[0] + p[1], (jnp.asarray(weights, jnp.float32), jnp.asarray(biases, jnp.float32)))
    options = {"norm": norm, "num_steps": 20, "targets": targets, "batch_size": 16}
    result = attacks.minimal_norms(network, jax.random.key(0), points, labels, **options)
    np.testing.assert_array_equal(result.distances[:2], 0)
    assert (result.distances >= wanted * (1 - 1e-5) - 1e-7).all()
    assert (result.distances <= wanted * 1.0001 + 1e-6).all()
    exact = result.adversarial.astype(float) - points
    np.testing.assert_allclose(np.linalg.norm(exact, ORDERS[norm], axis=1), result.distances, rtol=1e-5, atol=1e-7)
    assert (network(result.adversarial).argmax(-1) != labels).all()
    assert ((result.adversarial >= 0) & (result.adversarial <= 1)).all()
    runs, per_step = (1, 5) if targets is None else (3, 2)
    assert result.num_evaluations == 22 * (runs * (23 * per_step + 10) + (targets is not None))
    curve = [interval.estimate for interval in result.accuracy([0.0, 0.1, 9.0])]
    assert curve == [22 / 24, (wanted > 0.1).mean(), 0]


def centred(params, inputs):
    return mlp(params, 6 * inputs - 3)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", pytest.param("l2", marks=pytest.mark.slow), pytest.param("l1", marks=pytest.mark.slow)])
def test_minimal_norms_of_a_curved_network_are_those_of_a_dense_grid(norm):
    """Two inputs, three classes, the box binding: no distance is below the grid's, and few are above."""
    params = random_mlp(jax.random.key(3), (2, 16, 3), 1.5)
    inputs = jax.random.uniform(jax.random.key(1), (24, 2))
    labels = np.asarray(centred(params, inputs).argmax(-1))
    line = np.linspace(0, 1, 801)
    grid = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    classes = np.asarray(centred(params, jnp.asarray(grid, jnp.float32)).argmax(-1))
    wanted = np.array(
        [np.linalg.norm((grid - x)[classes != y], ORDERS[norm], axis=1).min() for x, y in zip(np.asarray(inputs), labels, strict=True)]
    )
    cell = np.linalg.norm(np.full(2, line[1]), ORDERS[norm])
    options = {"norm": norm, "num_steps": 30, "num_restarts": 3, "targets": 2, "batch_size": 24}
    result = attacks.minimal_norms(partial(centred, params), jax.random.key(0), inputs, labels, **options)
    assert (result.distances >= wanted - cell).all()
    assert (result.distances <= wanted * 1.02 + 1e-3).mean() >= 0.95
    assert len(np.unique(classes)) == 3
    assert len(np.unique(labels)) > 1


@pytest.mark.slow
def test_targets_are_reached_and_the_ball_decides():
    """On two classes apart: with targets="given" success is the class asked for, and only within the ball."""
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(5, 3)), jnp.float32)
    inputs = jax.random.uniform(jax.random.key(0), (12, 5))
    wanted = jax.lax.top_k((inputs - 0.5) @ weights, 2)[1][:, 1]

    @jax.jit
    def run(epsilon):
        attack = attacks.fab(attacks.Threat("l2", epsilon), num_steps=20, targets="given")
        return attack(lambda x: (x - 0.5) @ weights, jax.random.key(1), inputs, wanted)

    wide, tight = run(3.0), run(0.3)
    reached = ((wide.adversarial - 0.5) @ weights).argmax(-1) == wanted
    np.testing.assert_array_equal(wide.success, reached)
    assert reached.mean() > 0.6
    np.testing.assert_array_equal(tight.success, reached & (-wide.loss <= 0.3))
    assert 0 < tight.success.sum() < reached.sum()
