import dataclasses
import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbp import models, training
from jaxbp.data import augment
from jaxbp.training import parallel
from tests.helpers import run_processes

NUM_EXAMPLES, BATCH_SIZE = 40, 16  # leaves 8 examples over in each epoch, and 40 + 21 to evaluate
OPTIONS = {"num_epochs": 3, "batch_size": BATCH_SIZE}


def images(num_examples, seed=0, dtype="float32"):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num_examples, 6, 6, 2)).astype(dtype), rng.integers(3, size=num_examples)


@functools.cache
def resnet():
    return models.create("resnet", num_classes=3, width=4, stage_sizes=(1,))


@functools.cache
def start(dtype="float32"):
    drawn = jax.jit(resnet().init)(jax.random.key(0), np.zeros((1, 6, 6, 2), "float32"))
    return jax.tree.map(lambda leaf: np.asarray(leaf, dtype), drawn)


def train(net, dtype="float32", mesh=None, measure_fn=None, **options):
    """The ResNet on images, compiled; on one device, or from copies on each device of the mesh."""
    data, test_data = images(NUM_EXAMPLES, 0, dtype), images(21, 1, dtype)
    arguments = (*start(dtype), data, test_data)
    params, state, data, test_data = parallel.replicate(arguments, mesh) if mesh else arguments

    @jax.jit
    def run(params, state, data, test_data):
        return training.train(
            net,
            training.sgd(0.1, momentum=0.9),
            data,
            jax.random.key(5),
            training.Settings(**OPTIONS | options),
            start=(params, state),
            test_data=test_data,
            measure_fn=measure_fn,
        )

    return run(params, state, data, test_data)


def stream(net, memory, dtype="float64", mesh=None, measure_fn=None, **options):
    return parallel.stream(
        net,
        training.sgd(0.1, momentum=0.9),
        images(NUM_EXAMPLES, 0, dtype),
        jax.random.key(5),
        training.Settings(**OPTIONS | options),
        memory=memory,
        start=start(dtype),
        test_data=images(21, 1, dtype),
        measure_fn=measure_fn,
        mesh=mesh,
    )


def assert_close(found, expected, rtol, atol):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol), found, expected)


def by_parts(num_devices):
    """The network, in training each of ``num_devices`` parts of the batch on its own, in a Python loop on one device."""

    def update(params, inputs, state):
        parts = [resnet().update(params, part, state) for part in jnp.split(inputs, num_devices)]
        states = jax.tree.map(lambda *leaves: sum(leaves) / num_devices, *(each for _, each in parts))
        return jnp.concatenate([logits for logits, _ in parts]), states

    return dataclasses.replace(resnet(), update=update)


# Several devices


def check_devices(num_devices, modes=("global", "device")):
    """Whole runs on several devices against the same on one; float64 (called in a process of its own for more than two)."""
    mesh = parallel.make_mesh(BATCH_SIZE, jax.local_devices()[:num_devices])
    assert mesh.size == num_devices
    for statistics in modes:
        expected = train(resnet() if statistics == "global" else by_parts(num_devices), "float64")
        split = parallel.data_parallel(resnet(), mesh=mesh, batch_statistics=statistics)
        found = train(split, "float64", mesh)
        # 6 steps whose sums over examples are taken in another order: 1e-16 each, grown by the curvature.
        assert_close(found, expected, rtol=1e-10, atol=1e-12)
        assert found.history["train_loss"][-1] < found.history["train_loss"][0] - 0.05
        for leaf in jax.tree.leaves((found.params, found.state)):
            assert leaf.sharding.is_fully_replicated
            assert len(leaf.sharding.device_set) == num_devices


@pytest.mark.parametrize("statistics", ["global", pytest.param("device", marks=pytest.mark.slow)])
def test_two_devices_train_as_one(statistics, x64):
    check_devices(2, (statistics,))


@pytest.mark.slow
def test_eight_devices_train_as_one():
    env = os.environ | {
        "XLA_FLAGS": run_processes.flags_for(8),
        "JAX_ENABLE_X64": "1",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(run_processes.ROOT),
    }
    subprocess.run([sys.executable, "-c", "from tests.training import test_parallel\ntest_parallel.check_devices(8)"], check=True, env=env)


@pytest.mark.slow
def test_pmap_is_a_spelling_and_float32_loses_little():
    mesh = parallel.make_mesh(BATCH_SIZE)
    expected = train(resnet())
    for plan in ("pmap", "single"):
        found = train(parallel.data_parallel(resnet(), mesh=mesh, plan=plan))
        # BatchNorm amplifies roundings of 6e-8: its variance is a difference of squares.
        assert_close(found.history, expected.history, rtol=1e-4, atol=1e-5)
    assert parallel.data_parallel(resnet(), mesh=mesh, plan="single") is resnet()


def test_statistics_of_devices_by_hand(x64):
    """BatchNorm alone: four numbers, two devices, worked out on paper."""

    def train_fn(params, inputs, state):
        mean = inputs.mean()
        return params * (inputs - mean), {"mean": 0.5 * state["mean"] + 0.5 * mean**2}

    mesh, inputs = parallel.make_mesh(4, jax.local_devices()[:2]), jnp.array([[1.0], [3.0], [10.0], [30.0]])
    expected = {
        "global": ([-10.0, -8.0, -1.0, 19.0], 0.5 * 11**2),
        "device": ([-1.0, 1.0, -10.0, 10.0], 0.5 * (2**2 + 20**2) / 2),
    }
    for statistics, (logits, mean) in expected.items():
        net = models.from_functions(train_fn, update=train_fn)
        split_fn = parallel.data_parallel(net, mesh=mesh, batch_statistics=statistics).update
        found, state = jax.jit(split_fn)(2.0, inputs, {"mean": jnp.array(0.0)})
        np.testing.assert_allclose(found[:, 0], 2 * np.array(logits), rtol=1e-14)
        np.testing.assert_allclose(state["mean"], mean, rtol=1e-14)
        slope = jax.jit(jax.grad(lambda params, fn: (fn(params, inputs, {"mean": 0.0})[0] ** 2).sum(), 0), static_argnums=1)
        np.testing.assert_allclose(slope(2.0, split_fn), 4 * np.square(logits).sum(), rtol=1e-14)


MLP = models.from_functions(lambda params, inputs: jax.nn.relu(inputs.reshape(len(inputs), -1) @ params["w"]) @ params["v"])


def mlp_params():
    rng = np.random.default_rng(3)
    return {"w": jnp.asarray(rng.normal(size=(72, 8)) / 6), "v": jnp.asarray(rng.normal(size=(8, 3)) / 2)}


def mlp_run(net, num_examples=NUM_EXAMPLES, **options):
    settings = training.Settings(**OPTIONS | options)

    def run(params, data):
        return training.train(net, optax.adam(0.01), data, jax.random.key(2), settings, start=(params, {}))

    return jax.jit(run)(mlp_params(), images(num_examples, 0, "float64"))


@pytest.mark.parametrize("num_examples", [pytest.param(BATCH_SIZE, marks=pytest.mark.slow), NUM_EXAMPLES + 1], ids=["even", "odd"])
@pytest.mark.slow
def test_a_network_without_state_and_augmented_batches(num_examples, x64):
    options = {"augment_fn": augment.crop_and_flip(1)}
    split = parallel.data_parallel(MLP, mesh=parallel.make_mesh(BATCH_SIZE))
    found, expected = (mlp_run(net, num_examples, **options) for net in (split, MLP))
    assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_devices_hold_a_share_of_a_batch_and_no_more():
    mesh = parallel.make_mesh(BATCH_SIZE)
    split, settings = parallel.data_parallel(MLP, mesh=mesh), training.Settings(**OPTIONS)

    def run(params, data):
        return training.train(split, optax.sgd(0.1), data, jax.random.key(2), settings, start=(params, {}))

    text = jax.jit(run).lower(*parallel.replicate((mlp_params(), images(NUM_EXAMPLES)), mesh)).compile().as_text()
    for rows in (BATCH_SIZE, NUM_EXAMPLES):  # hidden layers, in training and in evaluation
        assert f"f32[{rows // mesh.size},8]" in text
        assert f"f32[{rows},8]" not in text
    assert "all-reduce" in text


@pytest.mark.slow
def test_seeds_vectorised_over_split_batches(x64):
    split = parallel.data_parallel(resnet(), mesh=parallel.make_mesh(BATCH_SIZE))
    beginning, settings = start("float64"), training.Settings(**OPTIONS | {"num_epochs": 1})

    def run(net, seed):
        data = images(NUM_EXAMPLES, 0, "float64")
        return training.train(net, training.sgd(0.1), data, jax.random.key(seed), settings, start=beginning).params

    together = jax.jit(jax.vmap(functools.partial(run, split)))(jnp.arange(2))
    alone = jax.jit(functools.partial(run, resnet()))
    for seed in range(2):
        assert_close(jax.tree.map(lambda leaf: leaf[seed], together), alone(seed), rtol=1e-10, atol=1e-12)  # noqa: B023


def test_misuse_of_devices():
    mesh = parallel.make_mesh(BATCH_SIZE)
    for batch_size in (15, 0):
        with pytest.raises(ValueError, match=rf"multiple of the 2 devices that share a batch, got {batch_size}: choose"):
            parallel.make_mesh(batch_size)
    split = parallel.data_parallel(resnet(), mesh=mesh, batch_statistics="device")
    with pytest.raises(ValueError, match="multiple of the 2 devices that share a batch, got 5"):
        train(split, batch_size=5)
    with pytest.raises(ValueError, match=r"plan must be one of single, shard, pmap, got 'fastest'"):
        parallel.data_parallel(MLP, mesh=mesh, plan="fastest")
    with pytest.raises(ValueError, match=r"batch_statistics must be one of global, device, got 'local'"):
        parallel.data_parallel(MLP, mesh=mesh, batch_statistics="local")


# Streams

EXAMPLE_BYTES = 6 * 6 * 2 * 8 + 8  # of float64 and int64
LEAST = 2 * BATCH_SIZE * EXAMPLE_BYTES  # two chunks of a batch


@functools.cache
def resident(augmented=False):
    """The run in `training.train`; called with float64 enabled."""
    return train(resnet(), "float64", **streamed_options(augmented))


def streamed_options(augmented=False):
    extra = {"augment_fn": augment.crop_and_flip(1)} if augmented else {}
    return extra | {"measure_epochs": [2, 0], "measure_fn": lambda now: now.params}


@pytest.mark.slow
@pytest.mark.parametrize(
    "memory,augmented", [(LEAST, True), pytest.param(1e9, False, marks=pytest.mark.slow)], ids=["least, augmented", "one chunk"]
)
def test_streamed_is_resident(memory, augmented, x64):
    found, expected = stream(resnet(), memory, **streamed_options(augmented)), resident(augmented)
    # 6 steps by two compilations of the same formulas; evaluation sums by batches.
    assert_close(found, expected, rtol=1e-12, atol=1e-13)
    assert found.history["test_loss"].shape == (2,)


@pytest.mark.slow
def test_streams_initialise_perturb_and_project_as_resident_runs_do(x64):
    settings = training.Settings(
        **OPTIONS,
        measure_epochs=[1, 3],
        perturb_fn=lambda key, state, inputs, labels: inputs + 0.1 * jax.random.normal(key, inputs.shape),
        project_fn=lambda params: jax.tree.map(lambda leaf: 0.5 * leaf, params),
        project_epochs=(2, 3),
    )
    arguments = resnet(), training.sgd(0.1), images(NUM_EXAMPLES, 0, "float64"), jax.random.key(5), settings
    streamed = parallel.stream(*arguments, memory=LEAST)
    expected = jax.jit(functools.partial(training.train, *arguments[:2], settings=settings))(*arguments[2:4])
    # Parameters are drawn in float32, and so is all that follows: 6 steps of two compilations.
    assert_close(streamed, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_streamed_over_two_devices_is_resident(x64):
    mesh = parallel.make_mesh(BATCH_SIZE)
    split = parallel.data_parallel(resnet(), mesh=mesh)
    found = stream(split, LEAST // 2, mesh=mesh, **streamed_options())
    assert_close(found, resident(), rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match=f"{LEAST // 2} bytes on each device, got {LEAST // 2 - 1}"):
        stream(split, LEAST // 2 - 1, mesh=mesh)


@pytest.mark.slow
@pytest.mark.parametrize(
    "num_examples,batches", [pytest.param(50, 1, marks=pytest.mark.slow), (50, 2), (7, 1)], ids=["tail", "uneven chunks", "tiny"]
)
def test_a_streamed_network_without_state(num_examples, batches, x64):
    data, options = images(num_examples, 0, "float64"), {"batch_size": 7, "num_epochs": 2, "measure_epochs": [1]}
    settings, memory = training.Settings(**OPTIONS | options), batches * 2 * 7 * EXAMPLE_BYTES
    found = parallel.stream(MLP, optax.adam(0.01), data, jax.random.key(2), settings, memory=memory, start=(mlp_params(), {}))
    assert_close(found, mlp_run(MLP, num_examples, **options), rtol=1e-12, atol=1e-13)
    assert found.measured is None


@pytest.mark.slow
@pytest.mark.parametrize("batches", [1, 2])
def test_two_chunks_at_most_are_on_the_device(batches, monkeypatch):
    alive, put = [], jax.device_put

    def counted_put(tree, place):
        placed = put(tree, place)
        chunks = [array for array in jax.live_arrays() if array.shape[2:] == (6, 6, 2)]
        alive.append((len(chunks), sum(array.nbytes for array in chunks)))
        return placed

    monkeypatch.setattr(jax, "device_put", counted_put)
    memory = 2 * batches * BATCH_SIZE * (6 * 6 * 2 * 4 + 4)  # of float32 and int32: the host's int64 never arrives
    settings = training.Settings(**OPTIONS)
    parallel.stream(MLP, optax.sgd(0.1), images(200), jax.random.key(2), settings, memory=memory, start=(mlp_params(), {}))
    assert max(number for number, _ in alive) == 2  # one to train on, one arriving
    assert max(size for _, size in alive) == memory - 2 * batches * BATCH_SIZE * 4  # without the labels
    steps_and_batches = 3 * 12 + 4 * 13
    assert sum(number > 0 for number, _ in alive) >= steps_and_batches // batches


@pytest.mark.slow
def test_a_chunk_arrives_during_the_one_before_and_waits_for_the_one_before_that():
    @jax.jit
    def slow(carry, chunk):
        return jax.lax.fori_loop(0, 400, lambda _, a: jnp.tanh(a @ a), carry + chunk[0][0].sum())

    carries, ready = [], []

    def work(carry, chunk):
        carries.append(slow(carry, chunk))
        return carries[-1]

    def chunks():
        for number in range(5):
            ready.append([carry.is_ready() for carry in carries])
            yield (np.full((1, 4), number),), None

    warm, mesh = np.eye(200), parallel.make_mesh(4, jax.local_devices()[:1])
    work(warm, next(chunks()))
    carries.clear(), ready.clear()
    parallel._fold(work, warm, chunks(), mesh)
    assert all(all(row[:-1]) for row in ready)
    assert not any(row[-1] for row in ready[1:])


def test_misuse_of_streams():
    message = r"memory must hold two batches of 16 examples, 9344 bytes on each device, got 9343: give more, or choose a smaller"
    with pytest.raises(ValueError, match=message):
        stream(resnet(), 9343, "float32")
    with pytest.raises(ValueError, match="batch_size must be from 1 to the number of training examples 40, got 41"):
        stream(resnet(), 10**6, "float32", batch_size=41)
    with pytest.raises(ValueError, match=r"measure_epochs must be some of 0 to 3, got \[4\]"):
        stream(resnet(), 10**6, "float32", measure_epochs=[4])
