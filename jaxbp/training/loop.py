"""A whole training run as one pure function: all epochs, shuffling and evaluation in one compiled scan.

`train` is meant to be jitted, vmapped and mapped as it is; data stay on the device and no Python runs between steps.
Divergence is a value (losses that are NaN or inf from some epoch on), never an exception.

>>> import jax, jax.numpy as jnp
>>> from jaxbp import models, training
>>> x = jax.random.normal(jax.random.key(0), (64, 2)); y = (x[:, 0] > 0).astype(int)
>>> net = models.create("mlp", num_classes=2, width=8)
>>> settings = training.Settings(num_epochs=5, batch_size=16)
>>> run = training.train(net, training.sgd(0.5), (x, y), jax.random.key(1), settings)
>>> run.history["train_loss"].shape, bool(run.history["train_accuracy"][-1] > 0.9)
((6,), True)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxbp import checks
from jaxbp.models.network import Network, State
from jaxbp.ops.dtypes import in_dtype_of
from jaxbp.training.evaluation import evaluate
from jaxbp.training.settings import Settings, num_steps
from jaxbp.training.state import TrainResult, TrainState

Arrays = tuple[jax.Array, jax.Array]  # inputs (N, ...) and labels (N,)


def sgd(
    learning_rate: Any,
    *,
    momentum: Any = 0.0,
    weight_decay: Any = 0.0,
    regulariser: optax.GradientTransformation | None = None,
    decoupled: bool = False,
    decay_steps: int | None = None,
    schedule: Callable[[jax.Array], Any] | None = None,
) -> optax.GradientTransformation:
    """SGD with heavy-ball momentum and a regulariser; every number may be traced, so settings share one program.

    The regulariser is ``weight_decay`` or another one (`jaxbp.norms.norm_bias`). It is part of the gradient, or, if
    ``decoupled``, acts after the momentum. The learning rate decays to 0 along a cosine over ``decay_steps`` steps if
    given, or is multiplied by ``schedule(step)``, for instance an `optax.piecewise_constant_schedule` from 1.
    """
    if decay_steps and schedule:
        raise ValueError("give decay_steps (a cosine) or schedule, not both")
    if regulariser and not (isinstance(weight_decay, float) and weight_decay == 0):
        raise ValueError(f"give regulariser or weight_decay, not both; weight_decay is {weight_decay}")
    decay = schedule or (optax.cosine_decay_schedule(1.0, decay_steps) if decay_steps else lambda _: 1.0)
    links = [regulariser or optax.add_decayed_weights(weight_decay), optax.trace(decay=momentum)]
    return optax.chain(*(reversed(links) if decoupled else links), optax.scale_by_schedule(lambda step: -learning_rate * decay(step)))


def train(
    net: Network,
    optimizer: optax.GradientTransformation,
    data: Arrays,
    key: jax.Array,
    settings: Settings,
    *,
    start: tuple[Any, State] | None = None,
    test_data: Arrays | None = None,
    measure_fn: Callable[[TrainState], Any] | None = None,
) -> TrainResult:
    """Minimise the mean loss by minibatches, a fresh shuffle each epoch.

    Args:
      net: the network; plain functions become one by `jaxbp.models.from_functions`.
      optimizer: how to step, for instance `sgd`.
      data: training inputs (N, ...) and labels (N,).
      key: of the shuffles; without a ``start`` it is split into a key of the initialisation and one of the shuffles.
      settings: see `Settings`.
      start: parameters and state to start from; default fresh ones.
      test_data: evaluated beside the training data.
      measure_fn: any further measurement, of the `TrainState`.

    Raises:
      ValueError: labels that do not fit the inputs or are no class, logits that are not (N, C), or a batch larger than the data.
    """
    data = checks.labelled_examples(data)
    state, order_key = begin(net, optimizer, data[0][:1], key, start)
    data = checked_labels(net, state, data)
    if test_data is not None:
        test_data = checked_labels(net, state, checks.labelled_examples(test_data, "test_data"), "test_data")
    train_epoch = epoch_fn(step_fn(net, optimizer, settings), data, settings)

    def epoch(state: TrainState, plan: tuple[jax.Array, jax.Array]) -> TrainState:
        epoch_key, projects = plan
        return project(settings, train_epoch(state, epoch_key), projects)

    def measure(state: TrainState) -> tuple[dict[str, jax.Array], Any]:
        history = evaluate(network_at(net, state), settings.loss_fn, train=data, test=test_data)
        return history, measure_fn(state) if measure_fn else None

    plan = jax.random.split(order_key, settings.num_epochs), settings.projects
    end, (history, measured) = _scan_with_pauses(epoch, measure, state, plan, settings.measured_epochs)
    return TrainResult(end.params, end.model_state, history, measured)


def begin(
    net: Network, optimizer: optax.GradientTransformation, inputs: jax.Array, key: jax.Array, start: tuple[Any, State] | None
) -> tuple[TrainState, jax.Array]:
    """Where `train` starts, and the key of its shuffles; of ``inputs`` (N, ...) only the shape matters."""
    checks.prng_key(key)
    if start is None:
        init_key, key = jax.random.split(key)
        start = net.init(init_key, inputs)
    params, state = start
    return TrainState(params, optimizer.init(params), state), key


def network_at(net: Network, state: TrainState) -> Callable[[jax.Array], jax.Array]:
    """``inputs -> logits`` of the network as it stands, in evaluation."""
    return lambda inputs: net.apply(state.params, inputs, state.model_state)


def step_fn(
    net: Network, optimizer: optax.GradientTransformation, settings: Settings
) -> Callable[[TrainState, tuple], tuple[TrainState, None]]:
    """One step of `train` on a batch, as `jax.lax.scan` takes it: ``(state, ((inputs, labels), batch_key)) -> (next, None)``.

    ``batch_key`` is None where ``settings.draws_keys`` is False.
    """

    def prepared(state: TrainState, batch: Arrays, batch_key: Any) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
        """Inputs, and the per-example loss of their logits."""
        inputs, labels = batch

        def per_example(logits: jax.Array) -> jax.Array:
            return settings.loss_fn(logits, labels)

        loss_of = per_example
        if settings.augment_fn:
            inputs = settings.augment_fn(batch_key, inputs)
        if settings.mix_fn:
            inputs, others, share = settings.mix_fn(jax.random.fold_in(batch_key, 2), inputs, labels)

            def loss_of(logits: jax.Array) -> jax.Array:
                return share * per_example(logits) + (1 - share) * settings.loss_fn(logits, others)

        if settings.perturb_fn:
            perturbed = settings.perturb_fn(jax.random.fold_in(batch_key, 1), state, inputs, labels)
            inputs = jax.lax.stop_gradient(perturbed)
        return inputs, loss_of

    def step(state: TrainState, draw: tuple[Arrays, Any]) -> tuple[TrainState, None]:
        batch, batch_key = draw
        inputs, loss_of = prepared(state, batch, batch_key)

        def mean_loss(params: Any) -> tuple[jax.Array, State]:
            logits, model_state = net.update(params, inputs, state.model_state)
            return loss_of(logits).mean(), jax.tree.map(in_dtype_of, state.model_state, model_state)

        gradient, model_state = jax.grad(mean_loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        opt_state = jax.tree.map(in_dtype_of, state.opt_state, opt_state)
        return TrainState(optax.apply_updates(state.params, updates), opt_state, model_state), None

    return step


def epoch_fn(
    on_batch: Callable[[TrainState, tuple], tuple[TrainState, None]], data: Arrays, settings: Settings
) -> Callable[[TrainState, jax.Array], TrainState]:
    """One epoch of `train`, ``(state, key) -> next``: all whole batches of a fresh shuffle.

    ``on_batch`` is that of `step_fn`. `train` gives epoch e the key ``jax.random.split(order_key, num_epochs)[e]``.
    """
    num_examples = data[0].shape[0]
    steps_per_epoch = num_steps(num_examples, 1, settings.batch_size)

    def step(state: TrainState, draw: tuple[jax.Array, jax.Array | None]) -> tuple[TrainState, None]:
        batch, batch_key = draw
        return on_batch(state, ((data[0][batch], data[1][batch]), batch_key))

    def epoch(state: TrainState, key: jax.Array) -> TrainState:
        order = jax.random.permutation(key, num_examples)
        batches = order[: steps_per_epoch * settings.batch_size].reshape(steps_per_epoch, settings.batch_size)
        keys = jax.random.split(jax.random.fold_in(key, 1), steps_per_epoch) if settings.draws_keys else None
        return jax.lax.scan(step, state, (batches, keys))[0]

    return epoch


def project(settings: Settings, state: TrainState, projects: jax.Array | bool) -> TrainState:
    """The state at the end of an epoch, its parameters projected where ``projects``, a flag that may be traced."""
    if settings.project_fn is None:
        return state
    return state._replace(params=jax.lax.cond(projects, settings.project_fn, lambda params: params, state.params))


def checked_labels(net: Network, state: TrainState, data: tuple[jax.Array, Any], name: str = "data") -> Arrays:
    """Inputs (N, ...), and labels (N,) that are classes of the network; their range is checked unless they are traced.

    Raises:
      ValueError: other labels, or logits that are not (N, C).
    """
    inputs, labels = data
    _, num_classes = checks.logits_shape(net.apply, state.params, inputs[:1], state.model_state, name="the network", num_examples=1)
    return inputs, checks.labels(labels, num_classes, len(inputs), f"{name}'s labels")


def _scan_with_pauses(
    epoch: Callable, measure: Callable, state: TrainState, plan: tuple[jax.Array, np.ndarray], pauses: np.ndarray
) -> tuple[TrainState, Any]:
    """Scan ``epoch`` over the plan (a key and a flag for each), measuring the state after each number of epochs in ``pauses``.

    Each pass of the loop measures, if wanted, and then trains, but for the last one, so that both are compiled once.
    Measurements go into rows of a buffer in the carry: epochs without one cost nothing, in time or in memory.
    """
    keys, flags = plan
    num_epochs = len(keys)
    wanted = np.isin(np.arange(num_epochs + 1), pauses)
    rows = np.cumsum(wanted) - 1
    trains = np.arange(num_epochs + 1) < num_epochs
    keys = jnp.concatenate([keys, keys[-1:] if num_epochs else jax.random.split(jax.random.key(0), 1)])  # never used
    flags = np.append(flags, False)

    def record(state: TrainState, buffer: Any, row: jax.Array) -> Any:
        return jax.tree.map(lambda b, value: b.at[row].set(value), buffer, measure(state))

    def body(carry: tuple[TrainState, Any], inputs: tuple) -> tuple[tuple[TrainState, Any], None]:
        state, buffer = carry
        epoch_plan, measures, row, trains = inputs
        buffer = jax.lax.cond(measures, lambda: record(state, buffer, row), lambda: buffer)
        return (jax.lax.cond(trains, lambda: epoch(state, epoch_plan), lambda: state), buffer), None

    shapes = jax.eval_shape(measure, state)
    buffer = jax.tree.map(lambda s: jnp.zeros((len(pauses), *s.shape), s.dtype), shapes)
    (state, buffer), _ = jax.lax.scan(body, (state, buffer), ((keys, flags), wanted, rows, trains))
    return state, buffer
