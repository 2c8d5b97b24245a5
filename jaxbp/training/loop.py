"""A whole training run as one pure function: all epochs, shuffling and evaluation in one compiled scan.

`train` is meant to be jitted, vmapped and mapped as it is; data stay on the device and no Python runs between steps.
Divergence is a value (losses that are NaN or inf from some epoch on), never an exception.

>>> import functools
>>> import jax, jax.numpy as jnp, optax
>>> from jaxbp import training
>>> from jaxbp import losses
>>> x = jax.random.normal(jax.random.key(0), (64, 2)); y = (x[:, 0] > 0).astype(int)
>>> run = training.train(
...     lambda params, inputs: inputs @ params, jnp.zeros((2, 2)), optax.sgd(0.5), (x, y), jax.random.key(1),
...     loss_fn=losses.cross_entropy, num_epochs=5, batch_size=16)
>>> run.history["train_loss"].shape, bool(run.history["train_accuracy"][-1] > 0.9)
((6,), True)
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxbp import losses, metrics

Arrays = tuple[jax.Array, jax.Array]  # inputs (N, ...) and labels (N,)


class TrainState(NamedTuple):
    """What the next step needs: parameters, the optimiser's state, and the model's own (batch statistics; None if it has none)."""

    params: Any
    opt_state: Any
    model_state: Any


Perturbation = Callable[[jax.Array, TrainState, jax.Array, jax.Array], jax.Array]


class TrainResult(NamedTuple):
    """A finished run.

    ``params`` and ``state``: at the end; ``history``: "train_loss", "train_accuracy" and, with evaluation data,
    "test_loss" and "test_accuracy", each (E,) for the E measured epochs, epoch 0 being before training; ``measured``:
    what
    ``measure_fn`` returned, stacked along a leading axis E.
    """

    params: Any
    state: Any
    history: dict[str, jax.Array]
    measured: Any


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


def num_steps(num_examples: int, num_epochs: int, batch_size: int) -> int:
    """Steps of a run: whole batches only, examples left over wait for the next epoch's shuffle."""
    if not 1 <= batch_size <= num_examples:
        raise ValueError(f"batch_size must be from 1 to the number of training examples {num_examples}, got {batch_size}")
    return num_epochs * (num_examples // batch_size)


def train(
    apply_fn: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    optimizer: optax.GradientTransformation,
    data: Arrays,
    key: jax.Array,
    *,
    loss_fn: losses.Loss,
    num_epochs: int,
    batch_size: int,
    test_data: Arrays | None = None,
    measure_epochs: Sequence[int] | None = None,
    measure_fn: Callable[..., Any] | None = None,
    state: Any = None,
    train_fn: Callable[..., tuple[jax.Array, Any]] | None = None,
    augment_fn: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    perturb_fn: Perturbation | None = None,
    project_fn: Callable[[Any], Any] | None = None,
    project_epochs: Sequence[int] = (),
) -> TrainResult:
    """Minimise the mean loss by minibatches, a fresh shuffle each epoch.

    Args:
      apply_fn: logits (N, C) from parameters and inputs, and from the state, if one is given.
      params, optimizer: where to start and how to step, for instance `sgd`.
      data: training inputs and labels.
      key: of the shuffles.
      loss_fn: per-example loss from `jaxbp.losses`.
      num_epochs, batch_size: see `num_steps`.
      test_data: evaluated beside the training data.
      measure_epochs: when to evaluate and measure; default all, from 0 (before training) to ``num_epochs``.
      measure_fn: any further measurement, of the `TrainState`.
      state: what the model carries along beside parameters (batch statistics).
      train_fn: ``(params, inputs, state) -> (logits, new state)``, the network in training; needed with a state.
      augment_fn: ``(key, inputs) -> inputs`` for each batch to train on, for instance `jaxbp.data.augment.crop_and_flip`.
      perturb_fn: ``(key, now, inputs, labels) -> inputs``, what each batch, once augmented, is replaced by against the network
        as it stands: adversarial training (Madry et al., ICLR 2018). It acts between gradients and is not differentiated.
      project_fn: ``params -> params``, applied at the end of each of ``project_epochs`` (from 1 to ``num_epochs``), before
        anything is measured there, for instance RankMin of `jaxbp.spectra`; the optimiser's state stays as it is.
    """
    if (state is None) != (train_fn is None):
        raise ValueError("state and train_fn go together: a model with a state is trained by train_fn and evaluated by apply_fn")
    data = _checked_split("data", data)
    test_data = None if test_data is None else _checked_split("test_data", test_data)
    epochs = _checked_epochs(measure_epochs, num_epochs)
    projects = _checked_projections(project_fn, project_epochs, num_epochs)
    on_batch = step_fn(apply_fn, train_fn, optimizer, loss_fn, augment_fn, perturb_fn)
    train_epoch = epoch_fn(on_batch, data, batch_size, draws_keys=bool(augment_fn or perturb_fn))

    def epoch(now: TrainState, plan: tuple[jax.Array, jax.Array]) -> TrainState:
        epoch_key, projected = plan
        now = train_epoch(now, epoch_key)
        if project_fn is None:
            return now
        return now._replace(params=jax.lax.cond(projected, project_fn, lambda params: params, now.params))

    def measure(now: TrainState) -> tuple[dict[str, jax.Array], Any]:
        extra = () if state is None else (now.model_state,)
        history = evaluate(lambda inputs: apply_fn(now.params, inputs, *extra), loss_fn, train=data, test=test_data)
        return history, measure_fn(now) if measure_fn else None

    keys = jax.random.split(key, num_epochs)
    start = TrainState(params, optimizer.init(params), state)
    end, (history, measured) = _scan_with_pauses(epoch, measure, start, (keys, projects), epochs)
    return TrainResult(end.params, end.model_state, history, measured)


def step_fn(
    apply_fn: Callable[..., jax.Array],
    train_fn: Callable[..., tuple[jax.Array, Any]] | None,
    optimizer: optax.GradientTransformation,
    loss_fn: losses.Loss,
    augment_fn: Callable[[jax.Array, jax.Array], jax.Array] | None,
    perturb_fn: Perturbation | None = None,
) -> Callable[[TrainState, tuple], tuple[TrainState, None]]:
    """One step of `train` on a batch, as `jax.lax.scan` takes it: ``(now, ((inputs, labels), batch_key)) -> (next, None)``."""
    forward = train_fn or (lambda p, inputs, _: (apply_fn(p, inputs), None))

    def step(now: TrainState, draw: tuple[Arrays, Any]) -> tuple[TrainState, None]:
        (inputs, labels), batch_key = draw  # no key, but None, where nothing is drawn
        if augment_fn:
            inputs = augment_fn(batch_key, inputs)
        if perturb_fn:
            inputs = jax.lax.stop_gradient(perturb_fn(jax.random.fold_in(batch_key, 1), now, inputs, labels))

        def mean_loss(current: Any) -> tuple[jax.Array, Any]:
            logits, model_state = forward(current, inputs, now.model_state)
            return loss_fn(logits, labels).mean(), model_state

        gradient, model_state = jax.grad(mean_loss, has_aux=True)(now.params)
        updates, opt_state = optimizer.update(gradient, now.opt_state, now.params)
        opt_state = jax.tree.map(in_dtype_of, now.opt_state, opt_state)
        return TrainState(optax.apply_updates(now.params, updates), opt_state, model_state), None

    return step


def epoch_fn(
    on_batch: Callable[[TrainState, tuple], tuple[TrainState, None]],
    data: Arrays,
    batch_size: int,
    *,
    draws_keys: bool = False,
) -> Callable[[TrainState, jax.Array], TrainState]:
    """One epoch of `train`, ``(now, key) -> next``: all whole batches of a fresh shuffle.

    ``on_batch`` is that of `step_fn`, and ``draws_keys`` says whether it augments or perturbs. `train` gives epoch e the key
    ``jax.random.split(key, num_epochs)[e]``.
    """
    num_examples = data[0].shape[0]
    steps_per_epoch = num_steps(num_examples, 1, batch_size)

    def step(now: TrainState, draw: tuple[jax.Array, jax.Array | None]) -> tuple[TrainState, None]:
        batch, batch_key = draw
        return on_batch(now, ((data[0][batch], data[1][batch]), batch_key))

    def epoch(now: TrainState, key: jax.Array) -> TrainState:
        order = jax.random.permutation(key, num_examples)
        batches = order[: steps_per_epoch * batch_size].reshape(steps_per_epoch, batch_size)
        keys = jax.random.split(jax.random.fold_in(key, 1), steps_per_epoch) if draws_keys else None
        return jax.lax.scan(step, now, (batches, keys))[0]

    return epoch


def _checked_split(name: str, split: Arrays) -> Arrays:
    inputs, labels = map(jnp.asarray, split)
    if inputs.shape[:1] != labels.shape[:1]:  # batches are gathered, and gathers past the end are silently clipped
        raise ValueError(f"{name} must have one label per input, got shapes {inputs.shape} and {labels.shape}")
    return inputs, labels


def in_dtype_of(old: jax.Array, new: jax.Array) -> jax.Array:
    """``new`` in the type of ``old``, which a loop carries: traced settings may have widened it."""
    return new if new.dtype == old.dtype else new.astype(old.dtype)


def _checked_epochs(measure_epochs: Sequence[int] | None, num_epochs: int) -> np.ndarray:
    if num_epochs < 0:
        raise ValueError(f"num_epochs must be at least 0, got {num_epochs}")
    epochs = np.unique(range(num_epochs + 1) if measure_epochs is None else list(measure_epochs))
    if not np.issubdtype(epochs.dtype, np.integer) or epochs[0] < 0 or epochs[-1] > num_epochs:  # [] is of floats
        raise ValueError(f"measure_epochs must be some of 0 to {num_epochs}, got {measure_epochs}")
    return epochs


def _checked_projections(project_fn: Callable | None, project_epochs: Sequence[int], num_epochs: int) -> np.ndarray:
    """Whether each epoch, (num_epochs,), ends in a projection."""
    if (project_fn is None) != (len(project_epochs) == 0):
        raise ValueError(f"project_fn and project_epochs go together, got {project_fn} and {list(project_epochs)}")
    if not set(project_epochs) <= set(range(1, num_epochs + 1)):
        raise ValueError(f"project_epochs must be some of 1 to {num_epochs}, got {list(project_epochs)}")
    return np.isin(np.arange(1, num_epochs + 1), list(project_epochs))


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

    def record(now: TrainState, buffer: Any, row: jax.Array) -> Any:
        return jax.tree.map(lambda b, value: b.at[row].set(value), buffer, measure(now))

    def body(carry: tuple[TrainState, Any], inputs: tuple) -> tuple[tuple[TrainState, Any], None]:
        now, buffer = carry
        one, wanted, row, goes_on = inputs
        buffer = jax.lax.cond(wanted, lambda: record(now, buffer, row), lambda: buffer)
        return (jax.lax.cond(goes_on, lambda: epoch(now, one), lambda: now), buffer), None

    shapes = jax.eval_shape(measure, state)
    buffer = jax.tree.map(lambda s: jnp.zeros((len(pauses), *s.shape), s.dtype), shapes)
    (state, buffer), _ = jax.lax.scan(body, (state, buffer), ((keys, flags), wanted, rows, trains))
    return state, buffer


def evaluate(logits_fn: Callable[[jax.Array], jax.Array], loss_fn: losses.Loss, **splits: Arrays | None) -> dict[str, jax.Array]:
    """Mean loss and accuracy of each split, as "NAME_loss" and "NAME_accuracy", from one pass over all of them together."""
    given = {name: split for name, split in splits.items() if split is not None}
    logits = logits_fn(jnp.concatenate([inputs for inputs, _ in given.values()]))
    measures, start = {}, 0
    for name, (_, labels) in given.items():
        part = logits[start : start + len(labels)]
        start += len(labels)
        measures[f"{name}_loss"] = loss_fn(part, labels).mean()
        measures[f"{name}_accuracy"] = metrics.accuracy(part, labels).mean()
    return measures
