import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbp import models, sweep, training
from jaxbp.jaxprs import op_count
from jaxbp.ops import convolution
from jaxbp.sweep import plans

REAL_PLANS = [plan for plan in sweep.PLANS if plan != "loop"]


def train_fn(one, inputs, labels):
    net = models.create("mlp", num_classes=3, width=8, depth=2)
    start, optimizer = net.init(one["key"], inputs[:1]), training.sgd(one["learning_rate"], momentum=0.9)
    return training.train(net, optimizer, (inputs, labels), one["key"], training.Settings(num_epochs=3, batch_size=16), start=start)


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


@pytest.mark.first_cases(1)
@pytest.mark.parametrize("plan", sweep.PLANS)
@pytest.mark.parametrize("num_runs", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_every_plan_gives_the_runs_one_by_one(problem, reference, plan, num_runs):
    given = {"key": sweep.keys(range(num_runs)), "learning_rate": runs(5)["learning_rate"][:num_runs]}
    found = sweep.evaluate(train_fn, given, *problem, plan=plan)
    assert found.history["train_loss"].shape == (num_runs, 4)
    for i in range(num_runs):
        one = jax.tree.map(lambda a: a[i], found)  # noqa: B023
        # 9 steps of float32 in other orders of summation: some 1e-7 a step, amplified by momentum.
        for ours, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(reference[i]), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5)


def test_seeds_differ_and_match_their_keys():
    draws = np.asarray(sweep.evaluate(lambda key: jax.random.normal(key, (2,)), sweep.keys([3, 1])))
    expected = [jax.random.normal(jax.random.key(s), (2,)) for s in (3, 1)]
    np.testing.assert_array_equal(draws, np.stack(expected))


@pytest.mark.parametrize("plan", REAL_PLANS)
def test_one_trace_serves_all_seeds_and_later_sweeps(plan):
    traces = []

    def counted(key):
        traces.append(key)
        return jax.random.normal(key)

    sweep.evaluate(counted, sweep.keys(range(4)), plan=plan)
    first = len(traces)
    sweep.evaluate(counted, sweep.keys(range(4, 8)), plan=plan)
    assert len(traces) == first <= 3  # `auto` looks once, and a loop may look at its body twice


def test_a_loop_has_as_many_programs_for_many_runs_as_for_one(caplog):
    def run_fn(one):
        return {"double": 2 * one["value"], "key": jax.random.fold_in(one["key"], 1)}

    runs = {"value": jnp.arange(5.0), "key": sweep.keys(range(5))}
    with jax.log_compiles(), caplog.at_level("WARNING"):
        found = sweep.evaluate(run_fn, runs, plan="loop")
    compiled = re.findall(r"Finished XLA compilation of jit\((\w+)\)", caplog.text)
    assert "run_fn" in compiled
    assert len(compiled) == len(set(compiled))
    at_once = sweep.evaluate(run_fn, runs, plan="vmap")
    np.testing.assert_array_equal(found["double"], at_once["double"])
    np.testing.assert_array_equal(jax.random.key_data(found["key"]), jax.random.key_data(at_once["key"]))


def test_settings_share_one_program_with_the_seeds():
    traces = []

    def step(one):
        traces.append(one)
        return one["rate"] * jax.random.normal(one["key"])

    for rate in (0.1, 0.2):
        found = sweep.evaluate(step, {"key": sweep.keys(range(3)), "rate": jnp.full(3, rate)}, plan="vmap")
        np.testing.assert_allclose(found, [rate * jax.random.normal(jax.random.key(s)) for s in range(3)], rtol=1e-6)
    assert len(traces) == 1


def test_shards_use_all_devices_and_no_more_than_there_are_runs():
    devices = jax.local_devices()
    assert len(devices) == 2
    both = sweep.evaluate(lambda key: jax.random.normal(key), sweep.keys(range(4)), plan="shard-map")
    assert both.sharding.device_set == set(devices)
    single = sweep.evaluate(lambda key: jax.random.normal(key), sweep.keys(range(1)), plan="shard-map")
    assert len(single.sharding.device_set) == 1


@pytest.mark.parametrize("plan", sweep.PLANS)
def test_a_single_device_computes_what_it_is_given(plan):
    last = jax.devices()[-1]
    assert last != jax.devices()[0]
    sums = sweep.evaluate(lambda run, shared: run + shared, jnp.arange(3.0), jnp.ones(2), plan=plan, devices=[last])
    assert sums.devices() == {last}
    np.testing.assert_array_equal(sums, [[1, 1], [2, 2], [3, 3]])


@pytest.mark.slow
def test_a_diverged_seed_leaves_the_others_alone(problem):
    given = {"key": sweep.keys(range(3)), "learning_rate": jnp.array([0.05, 1e30, 0.05])}
    losses = np.asarray(sweep.evaluate(train_fn, given, *problem).history["train_loss"])[:, -1]
    assert np.isfinite(losses).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("backend", "num_devices", "num_runs", "cost_per_run", "plan"),
    [
        ("cpu", 2, 8, (10, 10 * 2**20, False), "shard-map"),
        ("cpu", 2, 8, (10, 10 * 2**12, True), "shard-map"),
        ("cpu", 2, 8, (10, 10 * 2**12, False), "shard-vmap"),
        ("cpu", 1, 8, (10, 10 * 2**12, False), "vmap"),
        ("cpu", 2, 8, (0, 0, False), "shard-map"),
        ("cpu", 1, 8, (1, 2**20, False), "map"),
        ("cpu", 2, 1, (1, 2**12, False), "map"),
        ("gpu", 1, 8, (1, 2**20, True), "vmap"),
        ("gpu", 8, 64, (1, 2**20, True), "shard-vmap"),
        ("tpu", 4, 1, (1, 1, False), "map"),
    ],
)
def test_the_rule_of_auto(backend, num_devices, num_runs, cost_per_run, plan):
    assert sweep.choose(backend, num_devices, num_runs, op_count.OpCount(*cost_per_run)) == plan


def test_auto_looks_at_what_a_run_multiplies():
    def fn(matrix):
        return matrix @ matrix

    assert sweep.plan_of(fn, jnp.ones((4, 16, 16))) == "shard-vmap"
    assert sweep.plan_of(fn, jnp.ones((4, 64, 64))) == "shard-map"


def test_products_are_counted_through_loops_branches_and_convolutions():
    def fn(a, b, flag, image, kernel):
        loop = jax.lax.fori_loop(0, 7, lambda _, x: x @ b, a)  # a scan, as its length is known
        branch = jax.lax.cond(flag, lambda: a @ b, lambda: (a @ b) @ b)
        nested = jax.lax.scan(lambda x, _: (jax.jit(lambda y: y @ b)(x), None), a, length=3)[0]
        while_loop = jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ b, a)
        return loop + branch + nested + while_loop

    a, b, image, kernel = jnp.ones((2, 5)), jnp.ones((5, 5)), jnp.ones((1, 8, 8, 1)), jnp.ones((3, 3, 1, 1))
    arguments = (a, b, True, image, kernel)
    assert op_count.count(fn, *arguments) == op_count.OpCount(7 + 2 + 3 + 1, 13 * 50, False)
    assert op_count.count(lambda x, y: jnp.einsum("bij,bjk->bik", x, y), jnp.ones((3, 2, 4)), jnp.ones((3, 4, 5))).mean == 3 * 2 * 4 * 5
    for conv in (jax.lax.conv_general_dilated, convolution.conv_general_dilated):
        found = op_count.count(
            lambda x, k, conv=conv: jax.vmap(lambda k: conv(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))(k),
            image,
            jnp.ones((2, 3, 3, 1, 1)),
        )
        assert found.convolutional
    net = models.create("resnet", num_classes=2, width=4, stages=1, depth=1)
    params, state = net.init(jax.random.key(0), image)
    loss = lambda params: net.apply(params, image, state).sum()  # noqa: E731
    assert op_count.count(jax.grad(loss), params).convolutional


def test_misuse():
    with pytest.raises(ValueError, match=r"plan must be one of auto.*got 'fastest'"):
        sweep.evaluate(lambda k: k, sweep.keys(range(2)), plan="fastest")
    for bad in ({"a": jnp.ones(2), "b": jnp.ones(3)}, {"a": jnp.float32(1)}, {"a": jnp.ones((0, 2))}, {}):
        with pytest.raises(ValueError, match="common leading axis"):
            sweep.evaluate(lambda one: one, bad)


def test_each_core_becomes_a_device_in_a_fresh_process():
    script = (
        "import os, jax\nfrom jaxbp.runtime import jax_setup\n"
        "n = jax_setup.use_all_cores()\nassert n == len(os.sched_getaffinity(0)) == jax.local_device_count(), n\n"
        "assert jax_setup.use_all_cores() == n\n"
    )
    env = {"PATH": "/usr/bin", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", script], check=True, env=env)


@pytest.mark.slow
def test_optax_state_travels_through_every_plan(problem):
    def adam(key, inputs, labels):
        params = jax.random.normal(key, (5, 3)) * 0.1
        net, settings = models.from_functions(lambda p, x: x @ p), training.Settings(num_epochs=2, batch_size=16)
        return training.train(net, optax.adam(0.01), (inputs, labels), key, settings, start=(params, {})).params

    loop = sweep.evaluate(adam, sweep.keys(range(2)), *problem, plan="loop")
    np.testing.assert_allclose(sweep.evaluate(adam, sweep.keys(range(2)), *problem, plan="pmap"), loop, rtol=1e-4, atol=1e-6)


def wide(run, matrix):
    return jnp.tanh(run * matrix) @ matrix  # 64 KiB between the two


@pytest.mark.parametrize("plan", ["vmap", "shard-vmap"])
@pytest.mark.parametrize(("num_runs", "fitting", "at_once"), [(1, 1, 1), (7, 1, 1), (8, 2, 2), (8, 4, 4), (7, 5, 4), (8, 100, 8)])
def test_as_many_runs_at_once_as_memory_allows(monkeypatch, plan, num_runs, fitting, at_once):
    matrix, given, computed = jax.random.normal(jax.random.key(0), (128, 128)), jnp.linspace(0.5, 2.0, num_runs), []
    real = plans.pad_and_scatter

    def pad_and_scatter(chunk, count, num_devices, capacity):
        computed.append((capacity, count))
        return real(chunk, count, num_devices, capacity)

    monkeypatch.setattr(plans, "pad_and_scatter", pad_and_scatter)
    num_devices = 1 if plan == "vmap" else min(len(jax.devices()), num_runs)
    memory = 2**16 * (1.5 + 2 * fitting)  # the matrix, and of each run two arrays of its size
    found = sweep.evaluate(wide, given, matrix, plan=plan, memory=memory)
    np.testing.assert_allclose(found, [wide(run, matrix) for run in given], rtol=1e-5, atol=1e-4)
    capacities, counts = zip(*computed, strict=True)
    assert set(capacities) == {min(at_once, -(-num_runs // num_devices))}
    assert sum(counts) == num_runs


def test_results_of_one_bound_are_those_of_another(problem):
    given = runs(5)
    whole, parts = (sweep.evaluate(train_fn, given, *problem, plan="vmap", memory=memory) for memory in (None, 1.0))
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("num_runs", [6, 7])
def test_runs_that_are_spread_already_and_keys_are_computed_in_chunks(num_runs):
    given = sweep.evaluate(
        lambda run: {"key": run["key"], "x": 2 * run["x"]}, {"key": sweep.keys(range(num_runs)), "x": jnp.arange(num_runs)}
    )

    def draw(run):
        return run["x"] + jax.random.normal(run["key"], (100,))

    whole, parts = (sweep.evaluate(draw, given, plan="shard-vmap", memory=memory) for memory in (None, 1.0))
    np.testing.assert_allclose(whole, [draw(jax.tree.map(lambda a, i=i: a[i], given)) for i in range(num_runs)], rtol=1e-6)
    np.testing.assert_allclose(parts, whole, rtol=1e-6)
