import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp import models, training
from jaxbp.training import evaluation


@pytest.mark.parametrize(("chunk_size", "seen"), [(4, [4, 4, 3]), (11, [11]), (20, [11]), (None, [11])])
def test_a_function_of_the_examples_in_chunks(chunk_size, seen):
    inputs, labels, sizes = np.arange(33.0).reshape(11, 3), np.arange(11), []

    def fn(part, indices):
        sizes.append(len(part))
        return jnp.asarray(part).sum(1) + indices

    found = training.in_chunks(fn, inputs, labels, chunk_size=chunk_size)
    assert sizes == seen
    np.testing.assert_allclose(found, inputs.sum(1) + labels, rtol=1e-6)


def network(num_inputs=6, width=64):
    first, second = jax.random.normal(jax.random.key(0), (num_inputs, width)), jax.random.normal(jax.random.key(1), (width, 3))
    return lambda scale, inputs: jax.jit(jax.nn.relu)(scale * inputs @ first) @ second


@pytest.mark.parametrize("count", [1, 40, 41, 97])
def test_parts_of_the_examples_give_the_whole(count):
    fn, inputs = functools.partial(network(), 2.0), jax.random.normal(jax.random.key(2), (count, 6))
    whole = fn(inputs)
    for memory in (10, 64 * 4 * 10, 64 * 4 * 40, 2**30):  # one example at a time (10), ten, forty, all
        for compiled in (False, True):
            run = functools.partial(training.within_memory, fn, memory=memory)
            assert ("scan" in str(jax.make_jaxpr(run)(inputs))) == (count * 64 * 4 > memory)
            np.testing.assert_allclose((jax.jit(run) if compiled else run)(inputs), whole, rtol=1e-5, atol=1e-5)


def test_parts_keep_to_the_memory_also_of_many_functions():
    net, inputs, scales = network(), jax.random.normal(jax.random.key(2), (1000, 6)), jnp.array([0.5, 2.0])

    def run(memory, scale, inputs):
        return training.within_memory(functools.partial(net, scale), inputs, memory=memory)

    def needed(memory):
        return jax.jit(functools.partial(run, memory)).lower(2.0, inputs).compile().memory_analysis().temp_size_in_bytes

    assert needed(2**30) > 1000 * 64 * 4
    assert needed(64 * 4 * 50) < 2 * 1000 * 3 * 4 + 4 * 64 * 4 * 50  # outputs, and a few arrays of a part
    both = jax.vmap(functools.partial(run, 64 * 4 * 50), (0, None))(scales, inputs)
    np.testing.assert_allclose(both, jnp.stack([net(scale, inputs) for scale in scales]), rtol=1e-5, atol=1e-5)


def test_a_training_evaluates_in_parts(monkeypatch):
    """The histories of all examples at once and of parts are the same."""
    net = models.create("convnet", num_classes=3, width=4)
    data = jax.random.normal(jax.random.key(0), (50, 8, 8, 1)), jnp.arange(50) % 3
    test_data = jax.random.normal(jax.random.key(1), (23, 8, 8, 1)), jnp.arange(23) % 3
    settings = training.Settings(num_epochs=2, batch_size=10)

    def history():
        run = jax.jit(lambda key: training.train(net, training.sgd(0.05), data, key, settings, test_data=test_data).history)
        return run(jax.random.key(2))

    def num_loops():
        traced = jax.make_jaxpr(lambda key: training.train(net, training.sgd(0.05), data, key, settings).history)(jax.random.key(2))
        return str(traced).count("scan")

    whole, loops = history(), num_loops()
    monkeypatch.setattr(evaluation, "MEMORY", 4 * 8 * 8 * 4 * 20)  # twenty examples
    assert num_loops() > loops
    parts = history()
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-5, atol=1e-6)


def test_tokens_on_the_host_are_looked_up_in_parts():
    table, tokens = jax.random.normal(jax.random.key(0), (20, 300)), np.arange(40).reshape(10, 4) % 20
    fn = lambda ids: table[ids].mean(1)  # noqa: E731
    np.testing.assert_allclose(training.within_memory(fn, tokens, memory=3 * 4 * 300 * 4.0), fn(tokens), rtol=1e-6)
