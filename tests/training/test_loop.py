import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxbp import losses, models, training

NUM_EXAMPLES, NUM_INPUTS, NUM_HIDDEN, NUM_CLASSES = 11, 3, 4, 3
BATCH_SIZE = 4  # leaves 3 examples over in each epoch


def problem(seed=0):
    """Inputs, labels and the parameters of a network with one hidden layer, as NumPy arrays."""
    rng = np.random.default_rng(seed)
    shapes = {"w": (NUM_INPUTS, NUM_HIDDEN), "b": (NUM_HIDDEN,), "v": (NUM_HIDDEN, NUM_CLASSES), "c": (NUM_CLASSES,)}
    params = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    return (rng.normal(size=(NUM_EXAMPLES, NUM_INPUTS)), rng.integers(NUM_CLASSES, size=NUM_EXAMPLES)), params


def apply(params, inputs):
    return jax.nn.relu(inputs @ params["w"] + params["b"]) @ params["v"] + params["c"]


NET = models.from_functions(apply)


def train(optimizer, data=None, key=None, test_data=None, measure_fn=None, **options):
    """Train on the problem above, compiled."""
    default_data, params = problem()
    arrays = jax.tree.map(jnp.asarray, (params, default_data if data is None else data))
    settings = training.Settings(**{"num_epochs": 3, "batch_size": BATCH_SIZE} | options)

    @jax.jit
    def run(params, data, key):
        start = params, {}
        return training.train(NET, optimizer, data, key, settings, start=start, test_data=test_data, measure_fn=measure_fn)

    return run(*arrays, jax.random.key(5) if key is None else key)


def shuffles(key, num_epochs, num_examples=NUM_EXAMPLES):
    """The order of the examples in each epoch."""
    return [np.asarray(jax.random.permutation(each, num_examples)) for each in jax.random.split(key, num_epochs)]


# An independent run: gradients by hand, SGD as Sutskever et al. (ICML 2013) and PyTorch write it


def forward(params, inputs):
    hidden = np.maximum(inputs @ params["w"] + params["b"], 0)
    return hidden, hidden @ params["v"] + params["c"]


def loss_and_accuracy(params, data):
    logits = forward(params, data[0])[1]
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), data[1]]
    return losses.mean(), (logits.argmax(1) == data[1]).mean()


def gradient(params, inputs, labels):
    hidden, logits = forward(params, inputs)
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    to_logits = (softmax - np.eye(NUM_CLASSES)[labels]) / len(labels)
    to_hidden = to_logits @ params["v"].T * (hidden > 0)
    return {"w": inputs.T @ to_hidden, "b": to_hidden.sum(0), "v": hidden.T @ to_logits, "c": to_logits.sum(0)}


def numpy_sgd(params, data, orders, learning_rates, momentum, weight_decay):
    """Parameters after each epoch, the start first."""
    visited, velocity, rates = [params], dict.fromkeys(params, 0.0), iter(learning_rates)
    for order in orders:
        for start in range(0, NUM_EXAMPLES - BATCH_SIZE + 1, BATCH_SIZE):
            batch, rate = order[start : start + BATCH_SIZE], next(rates)
            grads = gradient(params, data[0][batch], data[1][batch])
            velocity = {n: momentum * velocity[n] + grads[n] + weight_decay * params[n] for n in params}
            params = {n: params[n] - rate * velocity[n] for n in params}
        visited.append(params)
    return visited


@pytest.mark.parametrize(
    "momentum,weight_decay,decays",
    [(0.0, 0.0, False), (0.9, 0.01, False), (0.9, 0.01, True)],
    ids=["plain", "momentum and weight decay", "cosine"],
)
def test_sgd_against_numpy(momentum, weight_decay, decays, x64):
    data, params = problem()
    test_data, num_epochs = problem(1)[0], 4
    num_steps = training.num_steps(NUM_EXAMPLES, num_epochs, BATCH_SIZE)
    assert num_steps == 8
    optimizer = training.sgd(0.3, momentum=momentum, weight_decay=weight_decay, decay_steps=num_steps if decays else None)
    found = train(
        optimizer,
        num_epochs=num_epochs,
        test_data=tuple(map(jnp.asarray, test_data)),
        measure_fn=lambda now: (now.params["w"], (now.params["b"] ** 2).sum()),
    )
    rates = [0.3 * (1 + math.cos(math.pi * step / num_steps)) / 2 if decays else 0.3 for step in range(num_steps)]
    orders = shuffles(jax.random.key(5), num_epochs)
    visited = numpy_sgd(params, data, orders, rates, momentum, weight_decay)
    # 8 steps of some ten roundings each, grown by at most the curvature: 1e-12 is far above 1e-15 and below any mistake.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-13)
    jax.tree.map(close, found.params, visited[-1])
    for name, split in (("train", data), ("test", test_data)):
        losses, accuracies = zip(*(loss_and_accuracy(each, split) for each in visited), strict=True)
        close(found.history[f"{name}_loss"], losses)
        close(found.history[f"{name}_accuracy"], accuracies)
    close(found.measured[0], [each["w"] for each in visited])
    close(found.measured[1], [(each["b"] ** 2).sum() for each in visited])


def test_cosine_schedule_ends():
    optimizer = training.sgd(2.0, decay_steps=4)
    params = jnp.array(1.0)
    state, steps = optimizer.init(params), []
    for _ in range(6):
        update, state = optimizer.update(jnp.array(1.0), state, params)
        steps.append(float(update))
    half = math.cos(math.pi / 4)
    expected = [-2.0, -(1 + half), -1.0, -(1 - half), 0.0, 0.0]  # and stays at 0 beyond the end
    np.testing.assert_allclose(steps, expected, atol=1e-6)


def test_adam_and_any_schedule_through_optax(x64):
    data, params = problem()
    schedule = optax.piecewise_constant_schedule(0.1, {3: 0.2})
    found = train(optax.adamw(schedule, weight_decay=0.05), num_epochs=2, measure_epochs=[2])
    first, second = (dict.fromkeys(params, 0.0) for _ in range(2))
    step = 0
    for order in shuffles(jax.random.key(5), 2):
        for batch in (order[:4], order[4:8]):
            grads, rate = gradient(params, data[0][batch], data[1][batch]), 0.1 if step < 3 else 0.02
            step += 1
            for n, g in grads.items():  # Kingma and Ba (ICLR 2015), Algorithm 1; decay by Loshchilov and Hutter (2019)
                first[n], second[n] = 0.9 * first[n] + 0.1 * g, 0.999 * second[n] + 0.001 * g**2
                direction = first[n] / (1 - 0.9**step) / (np.sqrt(second[n] / (1 - 0.999**step)) + 1e-8)
                params[n] = params[n] - rate * (direction + 0.05 * params[n])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), found.params, params)


# Epochs, batches and measurements


@functools.cache
def full_run():
    return train(training.sgd(0.1, momentum=0.5), num_epochs=4, measure_fn=lambda now: now.params)


@pytest.mark.first_cases(1)
@pytest.mark.parametrize("epochs", [[0, 2], [3, 4, 3], range(1, 3)], ids=str)
def test_measuring_at_some_epochs_changes_nothing_else(epochs):
    full = full_run()
    some = train(training.sgd(0.1, momentum=0.5), num_epochs=4, measure_fn=lambda now: now.params, measure_epochs=epochs)
    # Two programs may round differently, by 1e-7 in each of 8 steps.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, some.params, full.params)  # trained to the end, whatever is measured
    rows, found, expected = np.unique(epochs), (some.history, some.measured), (full.history, full.measured)
    jax.tree.map(lambda a, b: close(a, b[rows]), found, expected)
    assert full.measured["w"].shape == (5, NUM_INPUTS, NUM_HIDDEN)
    assert len(np.unique(full.history["train_loss"])) == 5


def test_a_shorter_run_is_the_beginning_of_a_longer_one():
    short = train(training.sgd(0.1, momentum=0.5), num_epochs=2, measure_fn=lambda now: now.params)
    for name, visited in short.measured.items():
        np.testing.assert_allclose(visited, full_run().measured[name][:3], rtol=1e-5, atol=1e-6)


def test_no_epochs_measure_the_start(x64):
    data, params = problem()
    found = train(training.sgd(0.1), num_epochs=0)
    jax.tree.map(np.testing.assert_array_equal, found.params, params)
    loss, accuracy = loss_and_accuracy(params, data)
    assert set(found.history) == {"train_loss", "train_accuracy"}
    np.testing.assert_allclose(found.history["train_loss"], [loss], rtol=1e-13)
    np.testing.assert_allclose(found.history["train_accuracy"], [accuracy])
    assert found.measured is None


def test_each_epoch_visits_whole_batches_of_a_fresh_shuffle():
    # A loss linear in one parameter an example: each visit moves it by the learning rate / batch size.
    num_examples, num_epochs, batch_size = 10, 12, 4
    data = (jnp.eye(num_examples), jnp.zeros(num_examples, int))
    found = training.train(
        models.from_functions(lambda params, inputs: inputs @ params),
        optax.sgd(float(batch_size)),
        data,
        jax.random.key(2),
        training.Settings(num_epochs, batch_size, loss_fn=lambda logits, labels: -logits[:, 0]),
        start=(jnp.zeros((num_examples, 2)), {}),
        measure_fn=lambda now: now.params[:, 0],
    )
    visits = np.diff(found.measured, axis=0)  # of each example, in each epoch
    assert set(visits.ravel()) == {0.0, 1.0}
    assert (visits.sum(1) == 8).all()  # 2 left over
    assert (visits.sum(0) > 0).all()
    assert len({tuple(row) for row in visits}) > 1
    expected = [np.isin(np.arange(num_examples), order[:8]) for order in shuffles(jax.random.key(2), 12, num_examples)]
    np.testing.assert_array_equal(visits, expected)


def test_batches_of_one_and_of_all():
    for batch_size in (1, NUM_EXAMPLES):
        found = train(training.sgd(0.1), num_epochs=1, batch_size=batch_size)
        assert found.history["train_loss"][1] < found.history["train_loss"][0]
    assert training.num_steps(10, 3, 4) == 6
    assert training.num_steps(8, 5, 8) == 5
    assert training.num_steps(8, 0, 3) == 0


# One program for many seeds


def counted_run(traces, measure_fn=None, **options):
    (inputs, labels), _ = problem()

    def apply_fn(params, inputs):
        traces.append(inputs.shape)
        return inputs @ params

    def run(seed, learning_rate, momentum, weight_decay):
        init_key, key = jax.random.split(jax.random.key(seed))
        params = jax.random.normal(init_key, (NUM_INPUTS, NUM_CLASSES), "float32")
        optimizer = training.sgd(learning_rate, momentum=momentum, weight_decay=weight_decay)
        data = (jnp.asarray(inputs, "float32"), jnp.asarray(labels))
        net, settings = models.from_functions(apply_fn), training.Settings(num_epochs=3, batch_size=4, **options)
        return training.train(net, optimizer, data, key, settings, start=(params, {}), measure_fn=measure_fn)

    return jax.jit(run), run


def test_seeds_and_settings_share_one_trace_and_no_step_runs_in_python():
    traces = []
    run, _ = counted_run(traces, measure_epochs=[0, 3])
    first = run(0, 0.1, 0.0, 0.0)
    num_traces = len(traces)
    assert num_traces <= 5  # the step, and the evaluation: its shape, before training, and in the loop
    others = [run(seed, 0.1 * seed, 0.9, 0.01) for seed in range(1, 4)]
    assert len(traces) == num_traces
    losses = {float(each.history["train_loss"][-1]) for each in (first, *others)}
    assert len(losses) == 4
    jax.tree.map(np.testing.assert_array_equal, run(0, 0.1, 0.0, 0.0), first)


@pytest.mark.slow
def test_vmap_over_seeds_and_settings_is_one_by_one(x64):
    jitted, run = counted_run([], measure_fn=lambda now: now.params, measure_epochs=[1, 3])
    settings = (jnp.arange(3), jnp.array([0.1, 0.2, 0.1]), jnp.array([0.0, 0.5, 0.9]), jnp.array([0.0, 0.01, 0.1]))
    together = jax.jit(jax.vmap(run))(*settings)
    for index, setting in enumerate(zip(*settings, strict=True)):
        one_of_them, alone = jax.tree.map(lambda leaf, index=index: leaf[index], together), jitted(*setting)
        assert {leaf.dtype for leaf in jax.tree.leaves(alone)} == {jnp.dtype("float32")}  # settings of float64 or not
        # 6 steps with roundings of 1e-7 each, grown a little by the curvature.
        close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
        jax.tree.map(close, one_of_them, alone)


# Divergence and errors


def test_divergence_is_a_value_and_spares_the_other_seeds():
    def run(learning_rate):
        return train(training.sgd(learning_rate, momentum=0.9), num_epochs=6, measure_fn=lambda now: now.params["w"].sum())

    found = jax.jit(jax.vmap(run))(jnp.array([0.05, 1e30]))
    assert np.isfinite(found.history["train_loss"][0]).all()
    bad = np.isfinite(found.history["train_loss"][1])
    assert (bad[0], bad[1:].any()) == (True, False)
    assert not np.isfinite(found.measured[1, 1:]).any()
    np.testing.assert_array_equal(found.history["train_accuracy"][1, 1:], 0.0)
    alone = jax.jit(run)(0.05)
    np.testing.assert_allclose(found.history["train_loss"][0], alone.history["train_loss"], rtol=1e-5)


def test_arrays_of_numpy_serve_as_data():
    data, params = problem()
    settings = training.Settings(num_epochs=1, batch_size=4, loss_fn=losses.squared_error)
    found = training.train(NET, training.sgd(0.1), data, jax.random.key(5), settings, start=(params, {}), test_data=data)
    np.testing.assert_array_equal(found.history["train_loss"], found.history["test_loss"])


@pytest.mark.parametrize(
    "message,options",
    [
        ("batch_size must be from 1 to the number of training examples 11, got 12", {"batch_size": 12}),
        ("batch_size must be from 1 to the number of training examples 11, got 0", {"batch_size": 0}),
        ("num_epochs must be at least 0, got -1", {"num_epochs": -1}),
        (r"measure_epochs must be some of 0 to 3, got \[0, 4\]", {"measure_epochs": [0, 4]}),
        (r"measure_epochs must be some of 0 to 3, got \[-1\]", {"measure_epochs": [-1]}),
        (r"measure_epochs must be some of 0 to 3, got \[\]", {"measure_epochs": []}),
        (r"measure_epochs must be some of 0 to 3, got \[0.5\]", {"measure_epochs": [0.5]}),
        (r"^data must have one label per input, got shapes \(11, 3\) and \(10,\)", {"data": (np.ones((11, 3)), np.ones(10, int))}),
        (r"^test_data must have one label per input, got shapes \(4, 3\) and \(5,\)", {"test_data": (np.ones((4, 3)), np.ones(5, int))}),
    ],
)
def test_errors(message, options):
    with pytest.raises(ValueError, match=message):
        train(training.sgd(0.1), **options)


# A model that carries a state: a running mean of the logits' inputs, updated by hand below


def stateful(params, inputs, state):
    return (inputs - state["mean"]) @ params


def stateful_train(params, inputs, state):
    mean = inputs.mean(0)
    return (inputs - mean) @ params, {"mean": 0.9 * state["mean"] + 0.1 * mean}


def stateful_loss(params, inputs, labels, state):
    return losses.cross_entropy(stateful_train(params, inputs, state)[0], labels).mean()


def test_a_state_is_carried_along_and_evaluated():
    data = np.asarray(problem()[0][0], np.float32), problem()[0][1]
    params, state = np.ones((NUM_INPUTS, NUM_CLASSES), np.float32), {"mean": np.full(NUM_INPUTS, 0.5, np.float32)}
    key, rate = jax.random.key(3), np.float32(0.1)

    @jax.jit
    def run_from(params, state):
        return training.train(
            models.from_functions(stateful, update=stateful_train),
            training.sgd(0.1),
            data,
            key,
            training.Settings(num_epochs=2, batch_size=BATCH_SIZE),
            start=(params, state),
            measure_fn=lambda now: (now.params, now.model_state["mean"]),
        )

    @jax.jit
    def step(params, state, inputs, labels):
        return params - rate * jax.grad(stateful_loss)(params, inputs, labels, state), stateful_train(params, inputs, state)[1]

    run, measured = run_from(params, state), [(params, state["mean"])]
    for order in shuffles(key, 2):
        for start in (0, BATCH_SIZE):
            inputs, labels = (part[order[start : start + BATCH_SIZE]] for part in data)
            params, state = step(params, state, inputs, labels)
        measured.append((params, state["mean"]))
    np.testing.assert_allclose(run.state["mean"], state["mean"], rtol=1e-5)
    np.testing.assert_allclose(run.params, params, rtol=1e-5)
    for found, expected in zip(run.measured, zip(*measured, strict=True), strict=True):
        np.testing.assert_allclose(found, np.stack(expected), rtol=1e-5)
    last = jax.jit(lambda params, state: losses.cross_entropy(stateful(params, data[0], state), data[1]).mean())(params, state)
    np.testing.assert_allclose(run.history["train_loss"][-1], last, rtol=1e-5)


@pytest.mark.slow
def test_without_a_start_the_key_is_split_for_the_initialisation_and_the_shuffles():
    net = models.create("resnet", num_classes=NUM_CLASSES, width=2, depth=1, stages=1)
    data = jax.random.normal(jax.random.key(0), (12, 4, 4, 1)), jnp.arange(12) % NUM_CLASSES
    settings, optimizer = training.Settings(num_epochs=2, batch_size=4), training.sgd(0.1, momentum=0.9)

    def by_hand(key):
        init_key, order_key = jax.random.split(key)
        return training.train(net, optimizer, data, order_key, settings, start=net.init(init_key, data[0][:1]))

    fresh = jax.jit(lambda key: training.train(net, optimizer, data, key, settings))(jax.random.key(7))
    jax.tree.map(np.testing.assert_array_equal, fresh, jax.jit(by_hand)(jax.random.key(7)))
    assert jax.tree.leaves(fresh.state)


def test_a_network_without_init_needs_a_start():
    with pytest.raises(ValueError, match=r"this network has no init function: give init to models.from_functions"):
        training.train(NET, training.sgd(0.1), problem()[0], jax.random.key(0), training.Settings(1, 2))


def test_settings_are_hashable_and_their_sequences_tuples():
    first, second = (training.Settings(3, 4, measure_epochs=epochs) for epochs in ([0, 3], np.array([0, 3])))
    assert (first == second, hash(first) == hash(second)) == (True, True)
    assert first.measure_epochs == (0, 3)


# In segments


@pytest.mark.first_cases(1)
@pytest.mark.parametrize("options", [{}, {"augment_fn": lambda key, inputs: inputs + jax.random.normal(key, inputs.shape)}, "project"])
def test_segments_are_the_run_bit_for_bit(options):
    """Operation by operation, since two compiled programs may round differently."""
    if options == "project":
        options = {"project_fn": lambda params: params / 2, "project_epochs": (2,)}

    def init(key, inputs):
        return jax.random.normal(key, (inputs.shape[1], NUM_CLASSES)), {"mean": jnp.full(NUM_INPUTS, 0.5)}

    net = models.from_functions(stateful, init=init, update=stateful_train)
    (inputs, labels), _ = problem()
    data = jnp.asarray(inputs, "float32"), jnp.asarray(labels)
    test_data, optimizer = (2 * data[0][:5], data[1][:5]), training.sgd(0.1, momentum=0.9)
    settings = training.Settings(num_epochs=3, batch_size=BATCH_SIZE, **options)

    def norm(state):
        return {"norm": optax.tree.norm(state.params)}

    parts = training.segmented(lambda num_examples: (net, optimizer, settings), 3, measure_fn=norm)
    with jax.disable_jit():
        expected = training.train(net, optimizer, data, jax.random.key(3), settings, test_data=test_data, measure_fn=norm)
        state = parts.init_fn(jax.random.key(3), data, test_data)
        for index in range(parts.num_segments):
            state, measures = parts.segment_fn(state, index, data, test_data)
            for name, value in measures.items():
                np.testing.assert_array_equal(value, (expected.history | expected.measured)[name][index + 1], err_msg=name)
    assert set(measures) == {"train_loss", "train_accuracy", "test_loss", "test_accuracy", "norm"}
    jax.tree.map(np.testing.assert_array_equal, (state[0].params, state[0].model_state), (expected.params, expected.state))


@pytest.mark.parametrize("settings", [training.Settings(2, 4), training.Settings(3, 4, measure_epochs=[1])])
def test_segments_measure_each_epoch(settings):
    parts = training.segmented(lambda num_examples: (NET, training.sgd(0.1), settings), 3)
    with pytest.raises(ValueError, match=r"measures each of its 3 epochs, got settings of \d epochs that measure"):
        parts.init_fn(jax.random.key(0), problem()[0])


def test_a_schedule_multiplies_the_learning_rate():
    plain = train(training.sgd(0.1), num_epochs=1)
    constant = train(training.sgd(0.2, schedule=lambda step: 0.5), num_epochs=1)
    np.testing.assert_allclose(constant.params["w"], plain.params["w"], rtol=1e-6)
    stopped = train(training.sgd(0.1, schedule=optax.piecewise_constant_schedule(1.0, {2: 0.0})), num_epochs=3)
    np.testing.assert_allclose(stopped.params["w"], plain.params["w"], rtol=1e-6)  # two steps an epoch
    with pytest.raises(ValueError, match=r"decay_steps .* or schedule, not both"):
        training.sgd(0.1, decay_steps=3, schedule=lambda step: 1.0)


def test_batches_are_augmented_with_keys_of_their_own(x64):
    plain = train(training.sgd(0.1), num_epochs=2)
    same = train(training.sgd(0.1), num_epochs=2, augment_fn=lambda key, inputs: inputs)
    jax.tree.map(np.testing.assert_array_equal, plain.params, same.params)
    keys = []

    def noted(key, inputs):
        jax.debug.callback(lambda data: keys.append(tuple(data.tolist())), jax.random.key_data(key))
        return 2 * inputs

    doubled = train(training.sgd(0.1), num_epochs=2, augment_fn=noted)
    jax.effects_barrier()
    assert len(set(keys)) == len(keys) == training.num_steps(NUM_EXAMPLES, 2, BATCH_SIZE)
    data, params = problem()
    visited = numpy_sgd(params, (2 * data[0], data[1]), shuffles(jax.random.key(5), 2), [0.1] * 4, 0.0, 0.0)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-13), doubled.params, visited[-1])
    start = loss_and_accuracy(params, data)[0]
    assert float(doubled.history["train_loss"][0]) == pytest.approx(start)  # evaluated as they are


def test_the_loss_of_mixed_examples_is_shared_between_two_labels(x64):
    data, params = problem()
    mixed = train(training.sgd(0.1), num_epochs=1, mix_fn=lambda key, inputs, labels: (3 * inputs, (labels + 1) % NUM_CLASSES, 0.3))
    (order,) = shuffles(jax.random.key(5), 1)
    for first in (0, BATCH_SIZE):
        inputs, labels = data[0][order[first : first + BATCH_SIZE]], data[1][order[first : first + BATCH_SIZE]]
        own, other = (gradient(params, 3 * inputs, given) for given in (labels, (labels + 1) % NUM_CLASSES))
        params = {name: params[name] - 0.1 * (0.3 * own[name] + 0.7 * other[name]) for name in params}
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-13), mixed.params, params)


def test_what_augments_mixes_and_perturbs_draws_apart():
    keys = {"augment": [], "mix": [], "perturb": []}

    def noted(who, key):
        jax.debug.callback(lambda data: keys[who].append(tuple(data.tolist())), jax.random.key_data(key))

    train(
        training.sgd(0.1),
        num_epochs=2,
        augment_fn=lambda key, inputs: (noted("augment", key), inputs)[1],
        mix_fn=lambda key, inputs, labels: (noted("mix", key), (inputs, labels, 1.0))[1],
        perturb_fn=lambda key, now, inputs, labels: (noted("perturb", key), inputs)[1],
    )
    jax.effects_barrier()
    assert len({*keys["augment"], *keys["mix"], *keys["perturb"]}) == 3 * training.num_steps(NUM_EXAMPLES, 2, BATCH_SIZE)


def test_batches_are_perturbed_against_the_network_as_it_stands(x64):
    def away(key, now, inputs, labels):  # a step up the loss, by hand
        return inputs + 0.1 * jnp.sign(jax.grad(lambda x: losses.cross_entropy(apply(now.params, x), labels).sum())(inputs))

    found = train(training.sgd(0.1), num_epochs=1, perturb_fn=away)
    data, params = problem()
    for batch in shuffles(jax.random.key(5), 1)[0][:8].reshape(2, BATCH_SIZE):
        inputs, labels = data[0][batch], data[1][batch]
        hidden, logits = forward(params, inputs)
        delta = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - np.eye(NUM_CLASSES)[labels]
        inputs = inputs + 0.1 * np.sign((delta @ params["v"].T * (hidden > 0)) @ params["w"].T)
        params = {name: value - 0.1 * gradient(params, inputs, labels)[name] for name, value in params.items()}
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), found.params, params)


def test_parameters_are_projected_at_the_end_of_the_epochs_named(x64):
    def norm(now):
        return optax.tree.norm(now.params)

    def halve(params):
        return jax.tree.map(lambda p: p / 2, params)

    plain = train(training.sgd(0.1), num_epochs=1)
    found = train(training.sgd(0.1), num_epochs=4, measure_fn=norm, project_fn=halve, project_epochs=(1, 4))
    again = {name: np.asarray(value) / 2 for name, value in plain.params.items()}
    assert float(found.measured[1]) == pytest.approx(np.sqrt(sum((value**2).sum() for value in again.values())), rel=1e-12)
    visited = numpy_sgd(again, problem()[0], shuffles(jax.random.key(5), 4)[1:], [0.1] * 6, 0.0, 0.0)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), found.params, halve(visited[-1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"project_fn": lambda p: p}, "project_fn and project_epochs go together"),
        ({"project_epochs": (1,)}, "project_fn and project_epochs go together"),
        ({"project_fn": lambda p: p, "project_epochs": (0, 1)}, r"project_epochs must be some of 1 to 3, got \[0, 1\]"),
    ],
)
def test_projections_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        train(training.sgd(0.1), **options)
