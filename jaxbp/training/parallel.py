"""One training run on several devices, or on data that do not fit into one: both around `jaxbp.training`.

*Several devices*: `data_parallel` turns a network into one that splits each batch over the devices of a mesh;
`training.train` takes it as it takes any other. Parameters stay replicated. The compiler (GSPMD, Xu et al., 2021) makes
of one program for the whole batch one program a device, so gradients are those of the whole batch; sums over a batch are
taken in another order, and nothing else differs from one device. What a batch is to BatchNorm is a choice:

- ``global``  statistics of the whole batch, those of one device;
- ``device``  each device normalises its share by the statistics of its share, running statistics being averaged over devices,
              as `torch.nn.parallel.DistributedDataParallel` and Goyal et al. (2017, section 4) do: the batch size that BatchNorm sees is
              the share's.

*Large data*: `stream` is `training.train` with data that stay on the host. Chunks of whole batches, in the order of the
resident run, go to the device two at a time: one trains while the next arrives.

>>> import jax, jax.numpy as jnp, numpy as np
>>> from jaxbp import models, training
>>> from jaxbp.training import parallel
>>> x = np.random.default_rng(0).normal(size=(64, 2)).astype("float32"); y = (x[:, 0] > 0).astype("int32")
>>> net = models.create("mlp", num_classes=2, width=8)
>>> arguments = training.sgd(0.5), (x, y), jax.random.key(1), training.Settings(num_epochs=5, batch_size=16)
>>> split_net = parallel.data_parallel(net, mesh=parallel.make_mesh(16))
>>> split = training.train(split_net, *arguments).history["train_loss"]
>>> streamed = parallel.stream(net, *arguments, memory=500).history["train_loss"]
>>> np.allclose(split, streamed), bool(split[-1] < 0.3)
(True, True)
"""

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxbp import checks, metrics
from jaxbp.models.network import NO_STATE, Network, State
from jaxbp.training import loop
from jaxbp.training.settings import Settings, num_steps
from jaxbp.training.state import TrainResult, TrainState

HostArrays = tuple[np.ndarray, np.ndarray]  # inputs (N, ...) and labels (N,)

PLANS = ("single", "shard", "pmap")
BATCH_STATISTICS = ("global", "device")

_AXIS = "batch"  # of the mesh
_MEASURES = ("loss", "accuracy")
_WHOLE, _SPLIT = PartitionSpec(), PartitionSpec(_AXIS)


def make_mesh(batch_size: int, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over which batches of ``batch_size`` examples are split evenly.

    Args:
      batch_size: of the training.
      devices: default all local devices of the default backend.

    Raises:
      ValueError: the batch cannot be split evenly.
    """
    mesh = Mesh(np.array(devices or jax.local_devices()), (_AXIS,), axis_types=(AxisType.Auto,))
    _check_even(batch_size, mesh)
    return mesh


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A copy of ``tree`` on every device of the mesh: parameters and data, before the compiled run that takes them."""
    return jax.device_put(tree, NamedSharding(mesh, _WHOLE))


@functools.cache  # equal networks are one object, so that a training is traced once
def data_parallel(net: Network, *, mesh: Mesh, plan: str = "shard", batch_statistics: str = "global") -> Network:
    """``net``, made to split the examples over the devices of ``mesh``.

    Evaluation is split too, evenly or not.

    Args:
      net: the network of one device.
      mesh: of `make_mesh`.
      plan: "shard"; "pmap", another spelling; or "single": the network as it is, on one device.
      batch_statistics: "global" or "device", see above; the latter averages the new state, so it has to be numbers of which the
        mean makes sense.

    Raises:
      ValueError: an unknown name; when traced, a batch that "device" cannot split evenly.
    """
    for name, value, choices in (("plan", plan, PLANS), ("batch_statistics", batch_statistics, BATCH_STATISTICS)):
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    if plan == "single" or mesh.shape[_AXIS] == 1:
        return net
    wrap = _by_share if batch_statistics == "device" else _together
    apply, features = _together(net.apply, mesh), _together(net.features, mesh)
    return dataclasses.replace(net, apply=apply, update=wrap(net.update, mesh), features=features)


def _together(fn: Callable, mesh: Mesh) -> Callable:
    def together(params: Any, inputs: jax.Array, state: State = NO_STATE) -> Any:
        params, state = _constrain((params, state), mesh, _WHOLE)
        return fn(params, _constrain(inputs, mesh, _SPLIT), state)

    return together


def _by_share(update: Callable, mesh: Mesh) -> Callable:
    def share(params: Any, inputs: jax.Array, state: State) -> tuple[jax.Array, State]:
        logits, state = update(params, inputs, state)
        return logits, jax.lax.pmean(state, _AXIS)

    def train(params: Any, inputs: jax.Array, state: State) -> tuple[jax.Array, State]:
        _check_even(len(inputs), mesh)
        within_a_sweep = not jax.sharding.get_abstract_mesh().empty  # which is split over this mesh's other axis already
        return jax.shard_map(
            share,
            mesh=None if within_a_sweep else mesh,
            in_specs=(_WHOLE, _SPLIT, _WHOLE),
            out_specs=(_SPLIT, _WHOLE),
            axis_names={_AXIS},
        )(params, inputs, state)

    return train


def _constrain(tree: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, spec))


def _check_even(batch_size: int, mesh: Mesh) -> None:
    if batch_size < 1 or batch_size % mesh.shape[_AXIS]:
        raise ValueError(
            f"batch_size must be a multiple of the {mesh.shape[_AXIS]} devices that share a batch, got {batch_size}: choose another, "
            "or fewer devices"
        )


def stream(
    net: Network,
    optimizer: optax.GradientTransformation,
    data: HostArrays,
    key: jax.Array,
    settings: Settings,
    *,
    memory: int,
    start: tuple[Any, State] | None = None,
    test_data: HostArrays | None = None,
    measure_fn: Callable[[TrainState], Any] | None = None,
    mesh: Mesh | None = None,
) -> TrainResult:
    """`training.train` on data that stay on the host: the same order of examples, so the same result up to rounding.

    Not to be jitted: Python runs between chunks. All chunks share one program, or two if those of an epoch differ by a batch.
    Evaluation goes batch by batch.

    Args:
      net, optimizer, key, settings, start, measure_fn: of `training.train`.
      data, test_data: NumPy's arrays or memory maps, inputs (N, ...) and labels (N,).
      memory: bytes that the examples on a device may take at any time, two chunks together. Data that take less are better
        left to `training.train`, which moves them once.
      mesh: of `make_mesh`, with a network of `data_parallel`; each device gets its share of a batch. Default one device.

    Raises:
      ValueError: ``memory`` is less than two batches take, and whatever `training.train` refuses.
    """
    given = {"train": data} | ({"test": test_data} if test_data else {})
    splits = {name: checks.on_host(split, name) for name, split in given.items()}
    _check_as_resident(net, optimizer, splits, key, settings, start, measure_fn)
    mesh = mesh or make_mesh(settings.batch_size, jax.local_devices()[:1])
    most = _batches_in_chunk(memory, settings.batch_size, splits, mesh)
    step = loop.step_fn(net, optimizer, settings)
    train_chunk = jax.jit(lambda state, chunk: jax.lax.scan(step, state, chunk)[0])
    project = jax.jit(lambda state: loop.project(settings, state, True))
    measure = _measurement(net, settings, splits, most, mesh, measure_fn)

    state, key = loop.begin(net, optimizer, jnp.asarray(splits["train"][0][:1]), key, start)
    keys = jax.random.split(jax.device_put(key, jax.local_devices(backend="cpu")[0]), settings.num_epochs)
    done, rows = 0, []
    for epoch in sorted({*settings.measured_epochs.tolist(), *settings.project_epochs, settings.num_epochs}):
        chunks = _training_chunks(splits["train"], keys[done:epoch], settings, most)
        state, done = _fold(train_chunk, state, chunks, mesh), epoch
        if epoch in settings.project_epochs:
            state = project(state)
        if epoch in settings.measured_epochs:
            rows.append(measure(state))
    history, measured = jax.tree.map(lambda *values: jnp.stack(values), *rows)
    return TrainResult(state.params, state.model_state, history, measured)


def _check_as_resident(
    net: Network,
    optimizer: optax.GradientTransformation,
    splits: dict[str, HostArrays],
    key: jax.Array,
    settings: Settings,
    start: Any,
    measure_fn: Callable | None,
) -> None:
    """Raise what `training.train` raises: it is traced, shapes standing for the inputs, and never compiled."""
    checks.prng_key(key)
    train_labels, test_labels = splits["train"][1], splits.get("test", (None, None))[1]

    def resident(key: jax.Array, start: Any, train: Any, test: Any = None) -> Any:
        data: Any = (train, train_labels)  # labels are on the host, so that their values are checked
        test_data: Any = None if test is None else (test, test_labels)
        return loop.train(net, optimizer, data, key, settings, start=start, test_data=test_data, measure_fn=measure_fn)

    jax.eval_shape(resident, key, start, **{name: _on_device(inputs) for name, (inputs, _) in splits.items()})


def _measurement(
    net: Network, settings: Settings, splits: dict[str, HostArrays], most: int, mesh: Mesh, measure_fn: Callable | None
) -> Callable[[TrainState], tuple[dict[str, jax.Array], Any]]:
    """``state -> (history, measured)``, chunk by chunk."""
    sums_of_chunk = _evaluation_program(net, settings)
    measure_fn = jax.jit(measure_fn or (lambda state: None))

    def measure(state: TrainState) -> tuple[dict[str, jax.Array], Any]:
        history: dict[str, jax.Array] = {}
        for name, split in splits.items():
            sums = _fold(
                lambda sums, chunk: jax.tree.map(operator.add, sums, sums_of_chunk(state, chunk)),
                (0.0, 0.0),
                _evaluation_chunks(split, settings.batch_size, most),
                mesh,
            )
            history |= {f"{name}_{what}": total / len(split[1]) for what, total in zip(_MEASURES, sums, strict=True)}
        return history, measure_fn(state)

    return measure


def _on_device(array: np.ndarray) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, jax.dtypes.canonicalize_dtype(array.dtype))  # no float64 unless enabled


def _batches_in_chunk(memory: int, batch_size: int, splits: dict[str, HostArrays], mesh: Mesh) -> int:
    """How many batches a chunk may have, two of which share ``memory``."""
    _check_even(batch_size, mesh)
    shapes = [[_on_device(array) for array in split] for split in splits.values()]
    example = max(sum(math.prod(each.shape[1:]) * each.dtype.itemsize for each in split) for split in shapes)
    needed = 2 * example * batch_size // mesh.shape[_AXIS]
    if memory < needed:
        raise ValueError(
            f"memory must hold two batches of {batch_size} examples, {needed} bytes on each device, got {memory}: "
            "give more, or choose a smaller batch_size"
        )
    return int(memory // needed)


def _evaluation_program(net: Network, settings: Settings) -> Callable:
    """``(TrainState, ((inputs (K, B, ...), labels (K, B)), count)) -> `` sums of loss and accuracy over ``count`` examples."""

    @jax.jit
    def sums_of_chunk(state: TrainState, chunk: tuple) -> tuple[jax.Array, jax.Array]:
        (inputs, labels), count = chunk
        counted = (jnp.arange(labels.size) < count).reshape(labels.shape)

        def sums_of_batch(batch: tuple) -> tuple[jax.Array, jax.Array]:
            inputs, labels, counted = batch
            logits = loop.network_at(net, state)(inputs)
            values = settings.loss_fn(logits, labels), metrics.accuracy(logits, labels)
            loss, accuracy = (jnp.where(counted, value, 0).sum() for value in values)
            return loss, accuracy

        return jax.tree.map(jnp.sum, jax.lax.map(sums_of_batch, (inputs, labels, counted)))

    return sums_of_chunk


def _training_chunks(split: HostArrays, keys: jax.Array, settings: Settings, most: int) -> Iterator[tuple[tuple, jax.Array | None]]:
    """Examples in the order of `training.train`, of one epoch for each key, with a key for each batch if any are drawn."""
    num_examples = len(split[1])
    num_batches = num_steps(num_examples, 1, settings.batch_size)
    for key in keys:
        order = np.asarray(jax.random.permutation(key, num_examples))
        batches = order[: num_batches * settings.batch_size].reshape(num_batches, settings.batch_size)
        batch_keys = jax.random.split(jax.random.fold_in(key, 1), num_batches) if settings.draws_keys else None
        for start, stop in _cuts(num_batches, most):
            yield (
                tuple(array[batches[start:stop]] for array in split),
                None if batch_keys is None else batch_keys[start:stop],
            )


def _evaluation_chunks(split: HostArrays, batch_size: int, most: int) -> Iterator[tuple[tuple, np.int32]]:
    """All examples as they come and how many of a chunk's and all later ones count; copies of the last fill the last batch."""
    num_examples = len(split[1])
    num_batches = -(-num_examples // batch_size)
    batches = np.minimum(np.arange(num_batches * batch_size), num_examples - 1).reshape(num_batches, batch_size)
    for start, stop in _cuts(num_batches, most):
        yield tuple(array[batches[start:stop]] for array in split), np.int32(num_examples - start * batch_size)


def _cuts(num_batches: int, most: int) -> Iterator[tuple[int, int]]:
    """Bounds of the fewest chunks of at most ``most`` batches each, as even as can be."""
    num_chunks = -(-num_batches // most)
    return itertools.pairwise(num_batches * chunk // num_chunks for chunk in range(num_chunks + 1))


def _fold(fn: Callable[[Any, tuple], Any], carry: Any, chunks: Iterator[tuple], mesh: Mesh) -> Any:
    """``carry = fn(carry, chunk)`` for chunk after chunk, the next one arriving on the devices while ``fn`` works."""
    placed = (_place(chunk, mesh) for chunk in chunks)
    ahead = next(placed, None)
    while ahead is not None:
        chunk = ahead
        carry = fn(carry, chunk)  # returns before it is done
        ahead = next(placed, None)
        jax.block_until_ready(carry)  # or a third chunk would come while it works on the first
    return carry


def _place(chunk: tuple, mesh: Mesh) -> tuple:
    batches, extra = chunk
    by_example = NamedSharding(mesh, PartitionSpec(None, _AXIS))
    return jax.device_put(batches, by_example), jax.device_put(extra, NamedSharding(mesh, _WHOLE))
