import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbp import models, objectives, sweep, training

REAL_PLANS = [plan for plan in sweep.PLANS if plan != "loop"]


def train_fn(one, inputs, labels):
    net = models.create("mlp", num_classes=3, width=8, depth=2)
    params = net.init(one["key"], inputs[:1])["params"]
    optimizer = training.sgd(one["learning_rate"], momentum=0.9)
    return training.train(
        models.apply_fn(net), params, optimizer, (inputs, labels), one["key"],
        loss_fn=objectives.cross_entropy, num_epochs=3, batch_size=16,
    )  # fmt: skip


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(48, 5)).astype(np.float32)
    return jnp.asarray(inputs), jnp.asarray(rng.integers(0, 3, 48))


def runs(num_runs):
    return {"key": sweep.keys(range(num_runs)), "learning_rate": jnp.linspace(0.01, 0.1, num_runs)}


@pytest.fixture(scope="module")
def reference(problem):
    """Plain calls, outside the module under test."""
    return [train_fn(jax.tree.map(lambda a: a[i], runs(5)), *problem) for i in range(5)]  # noqa: B023


@pytest.mark.parametrize("plan", sweep.PLANS)
@pytest.mark.parametrize("num_runs", [1, 5])
def test_every_plan_gives_the_runs_one_by_one(problem, reference, plan, num_runs):
    given = {"key": sweep.keys(range(num_runs)), "learning_rate": runs(5)["learning_rate"][:num_runs]}
    found = sweep.run(train_fn, given, *problem, plan=plan)
    assert found.history["train_loss"].shape == (num_runs, 4)
    for i in range(num_runs):
        one = jax.tree.map(lambda a: a[i], found)  # noqa: B023
        # 9 steps of float32 in other orders of summation: some 1e-7 a step, amplified by momentum.
        for ours, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(reference[i]), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5)


def test_seeds_differ_and_match_their_keys():
    draws = np.asarray(sweep.run(lambda key: jax.random.normal(key, (2,)), sweep.keys([3, 1])))
    expected = [jax.random.normal(jax.random.key(s), (2,)) for s in (3, 1)]
    np.testing.assert_array_equal(draws, np.stack(expected))


@pytest.mark.parametrize("plan", REAL_PLANS)
def test_one_trace_serves_all_seeds_and_later_sweeps(plan):
    traces = []

    def counted(key):
        traces.append(key)
        return jax.random.normal(key)

    sweep.run(counted, sweep.keys(range(4)), plan=plan)
    first = len(traces)
    sweep.run(counted, sweep.keys(range(4, 8)), plan=plan)
    assert len(traces) == first <= 2  # lax.map may look at its body twice


def test_settings_share_one_program_with_the_seeds():
    traces = []

    def step(one):
        traces.append(one)
        return one["rate"] * jax.random.normal(one["key"])

    for rate in (0.1, 0.2):
        found = sweep.run(step, {"key": sweep.keys(range(3)), "rate": jnp.full(3, rate)}, plan="vmap")
        np.testing.assert_allclose(found, [rate * jax.random.normal(jax.random.key(s)) for s in range(3)], rtol=1e-6)
    assert len(traces) == 1


def test_shards_use_all_devices_and_no_more_than_there_are_runs():
    devices = jax.local_devices()
    assert len(devices) == 2
    both = sweep.run(lambda key: jax.random.normal(key), sweep.keys(range(4)), plan="shard-map")
    assert both.sharding.device_set == set(devices)
    single = sweep.run(lambda key: jax.random.normal(key), sweep.keys(range(1)), plan="shard-map")
    assert len(single.sharding.device_set) == 1


def test_a_diverged_seed_leaves_the_others_alone(problem):
    given = {"key": sweep.keys(range(3)), "learning_rate": jnp.array([0.05, 1e30, 0.05])}
    losses = np.asarray(sweep.run(train_fn, given, *problem).history["train_loss"])[:, -1]
    assert np.isfinite(losses).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("backend", "num_devices", "num_runs", "plan"),
    [
        ("cpu", 2, 8, "shard-map"), ("cpu", 1, 8, "map"), ("cpu", 2, 1, "map"),
        ("gpu", 1, 8, "vmap"), ("gpu", 8, 64, "shard-vmap"), ("tpu", 4, 1, "vmap"),
    ],
)  # fmt: skip
def test_the_rule_of_auto(backend, num_devices, num_runs, plan):
    assert sweep.choose(backend, num_devices, num_runs) == plan


def test_misuse():
    with pytest.raises(ValueError, match=r"plan must be one of auto.*got 'fastest'"):
        sweep.run(lambda k: k, sweep.keys(range(2)), plan="fastest")
    for bad in ({"a": jnp.ones(2), "b": jnp.ones(3)}, {"a": jnp.float32(1)}, {"a": jnp.ones((0, 2))}, {}):
        with pytest.raises(ValueError, match="common leading axis"):
            sweep.run(lambda one: one, bad)


def test_each_core_becomes_a_device_in_a_fresh_process():
    script = (
        "import os, jax\nfrom jaxbp import sweep\n"
        "n = sweep.use_all_cores()\nassert n == len(os.sched_getaffinity(0)) == jax.local_device_count(), n\n"
        "assert sweep.use_all_cores() == n\n"
    )
    env = {"PATH": "/usr/bin", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", script], check=True, env=env)


def test_optax_state_travels_through_every_plan(problem):
    def adam(key, inputs, labels):
        params = jax.random.normal(key, (5, 3)) * 0.1
        return training.train(
            lambda p, x: x @ p, params, optax.adam(0.01), (inputs, labels), key,
            loss_fn=objectives.cross_entropy, num_epochs=2, batch_size=16,
        ).params  # fmt: skip

    loop = sweep.run(adam, sweep.keys(range(2)), *problem, plan="loop")
    np.testing.assert_allclose(sweep.run(adam, sweep.keys(range(2)), *problem, plan="pmap"), loop, rtol=1e-4, atol=1e-6)
