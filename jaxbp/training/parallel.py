"""One training run on several devices, or on data that do not fit into one: both around `jaxbp.training`.

*Several devices*: `data_parallel` turns a network's functions into ones that split each batch over the devices of a mesh;
`training.train` takes them as it takes any others. Parameters stay replicated. The compiler (GSPMD, Xu et al., 2021) makes
of one program for the whole batch one program a device, so gradients are those of the whole batch; sums over a batch are
taken in another order, and nothing else differs from one device. What a batch is to BatchNorm is a choice:

- ``global``  statistics of the whole batch, those of one device;
- ``device``  each device normalises its share by the statistics of its share, running statistics being averaged over devices,
              as `torch.nn.parallel.DistributedDataParallel` and Goyal et al. (2017, section 4) do: the batch size that BatchNorm sees is
              the share's.

*Large data*: `stream` is `training.train` with data that stay on the host. Chunks of whole batches, in the order of the
resident run, go to the device two at a time: one trains while the next arrives.

>>> import jax, jax.numpy as jnp, numpy as np
>>> from jaxbp import training
>>> from jaxbp import losses
>>> from jaxbp.training import parallel
>>> x = np.random.default_rng(0).normal(size=(64, 2)).astype("float32"); y = (x[:, 0] > 0).astype("int32")
>>> def apply_fn(params, inputs):
...     return inputs @ params
>>> options = {"loss_fn": losses.cross_entropy, "num_epochs": 5, "batch_size": 16}
>>> start = jnp.zeros((2, 2)), training.sgd(0.5), (x, y), jax.random.key(1)
>>> mesh = parallel.make_mesh(16)
>>> split_fn, _ = parallel.data_parallel(apply_fn, mesh=mesh)
>>> split = training.train(split_fn, *start, **options).history["train_loss"]
>>> streamed = parallel.stream(apply_fn, *start, memory=500, **options).history["train_loss"]
>>> np.allclose(split, streamed), bool(split[-1] < 0.3)
(True, True)
"""

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

from jaxbp import losses, metrics, training

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


@functools.cache  # equal ones are one object, so that a training is traced once
def data_parallel(
    apply_fn: Callable[..., jax.Array],
    train_fn: Callable[..., tuple[jax.Array, Any]] | None = None,
    *,
    mesh: Mesh,
    plan: str = "shard",
    batch_statistics: str = "global",
) -> tuple[Callable[..., jax.Array], Callable[..., tuple[jax.Array, Any]] | None]:
    """``apply_fn`` and ``train_fn`` of `training.train`, made to split the examples over the devices of ``mesh``.

    Evaluation is split too, evenly or not.

    Args:
      apply_fn: ``(params, inputs) -> logits``, or with a state ``(params, inputs, state) -> logits``.
      train_fn: ``(params, inputs, state) -> (logits, new_state)``, or None for a network without state.
      mesh: of `make_mesh`.
      plan: "shard"; "pmap", another spelling; or "single": the functions as they are, on one device.
      batch_statistics: "global" or "device", see above; the latter averages ``new_state``, so it has to be numbers of which the
        mean makes sense. Without ``train_fn`` there are none.

    Raises:
      ValueError: an unknown name; when traced, a batch that "device" cannot split evenly.
    """
    for name, value, choices in (("plan", plan, PLANS), ("batch_statistics", batch_statistics, BATCH_STATISTICS)):
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    if plan == "single" or mesh.shape[_AXIS] == 1:
        return apply_fn, train_fn
    wrap = _by_share if batch_statistics == "device" else _together
    return _together(apply_fn, mesh), train_fn and wrap(train_fn, mesh)


def _together(fn: Callable, mesh: Mesh) -> Callable:
    def together(params: Any, inputs: jax.Array, *state: Any) -> Any:
        params, state = _constrain((params, state), mesh, _WHOLE)
        return fn(params, _constrain(inputs, mesh, _SPLIT), *state)

    return together


def _by_share(train_fn: Callable, mesh: Mesh) -> Callable:
    def share(params: Any, inputs: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        logits, state = train_fn(params, inputs, state)
        return logits, jax.lax.pmean(state, _AXIS)

    def train(params: Any, inputs: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        _check_even(len(inputs), mesh)
        within_a_sweep = not jax.sharding.get_abstract_mesh().empty  # which is split over this mesh's other axis already
        return jax.shard_map(
            share, mesh=None if within_a_sweep else mesh, in_specs=(_WHOLE, _SPLIT, _WHOLE), out_specs=(_SPLIT, _WHOLE),
            axis_names={_AXIS},
        )(params, inputs, state)  # fmt: skip

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
    apply_fn: Callable[..., jax.Array],
    params: Any,
    optimizer: optax.GradientTransformation,
    data: HostArrays,
    key: jax.Array,
    *,
    memory: int,
    loss_fn: losses.Loss,
    num_epochs: int,
    batch_size: int,
    test_data: HostArrays | None = None,
    measure_epochs: Sequence[int] | None = None,
    measure_fn: Callable[[training.TrainState], Any] | None = None,
    state: Any = None,
    train_fn: Callable[..., tuple[jax.Array, Any]] | None = None,
    augment_fn: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    mesh: Mesh | None = None,
) -> training.TrainResult:
    """`training.train` on data that stay on the host: the same order of examples, so the same result up to rounding.

    Not to be jitted: Python runs between chunks. All chunks share one program, or two if those of an epoch differ by a batch.
    Evaluation goes batch by batch.

    Args:
      data, test_data: NumPy's arrays or memory maps, inputs (N, ...) and labels (N,).
      memory: bytes that the examples on a device may take at any time, two chunks together. Data that take less are better
        left to `training.train`, which moves them once.
      mesh: of `make_mesh`, with the functions of `data_parallel`; each device gets its share of a batch. Default one device.
      apply_fn, params, optimizer, key and the others: of `training.train`.

    Raises:
      ValueError: ``memory`` is less than two batches take, and whatever `training.train` refuses.
    """
    given = {"train": data} | ({"test": test_data} if test_data else {})
    splits = {name: (np.asarray(inputs), np.asarray(labels)) for name, (inputs, labels) in given.items()}
    _check_as_resident(
        apply_fn, params, optimizer, splits, key, loss_fn=loss_fn, num_epochs=num_epochs, batch_size=batch_size,
        measure_epochs=measure_epochs, measure_fn=measure_fn, state=state, train_fn=train_fn, augment_fn=augment_fn,
    )  # fmt: skip
    mesh = mesh or make_mesh(batch_size, jax.local_devices()[:1])
    sizes = (batch_size, _batches_in_chunk(memory, batch_size, splits, mesh))
    step = training.step_fn(apply_fn, train_fn, optimizer, loss_fn, augment_fn)
    train_chunk = jax.jit(lambda now, chunk: jax.lax.scan(step, now, chunk)[0])
    sums_of_chunk = _evaluation_program(apply_fn, loss_fn)
    measure_fn = jax.jit(measure_fn or (lambda now: None))

    def train(now: training.TrainState, keys: jax.Array) -> training.TrainState:
        return _fold(train_chunk, now, _training_chunks(splits["train"], keys, *sizes, augment_fn is not None), mesh)

    def measure(now: training.TrainState) -> tuple[dict[str, jax.Array], Any]:
        history: dict[str, jax.Array] = {}
        for name, split in splits.items():
            sums = _fold(
                lambda sums, chunk: jax.tree.map(operator.add, sums, sums_of_chunk(now, chunk)),
                (0.0, 0.0),
                _evaluation_chunks(split, *sizes),
                mesh,
            )
            history |= {f"{name}_{what}": total / len(split[1]) for what, total in zip(_MEASURES, sums, strict=True)}
        return history, measure_fn(now)

    keys = jax.random.split(jax.device_put(key, jax.local_devices(backend="cpu")[0]), num_epochs)
    now, done, rows = training.TrainState(params, optimizer.init(params), state), 0, []
    for epoch in np.unique(range(num_epochs + 1) if measure_epochs is None else list(measure_epochs)):
        now, done = train(now, keys[done:epoch]), epoch
        rows.append(measure(now))
    now = train(now, keys[done:])
    history, measured = jax.tree.map(lambda *values: jnp.stack(values), *rows)
    return training.TrainResult(now.params, now.model_state, history, measured)


def _check_as_resident(
    apply_fn: Callable, params: Any, optimizer: Any, splits: dict[str, HostArrays], key: jax.Array, **options: Any
) -> None:
    """Raise what `training.train` raises: it is traced, shapes standing for the data, and never compiled."""

    def resident(params: Any, key: jax.Array, train: Any, test: Any = None) -> Any:
        return training.train(apply_fn, params, optimizer, train, key, test_data=test, **options)

    jax.eval_shape(resident, params, key, **jax.tree.map(_on_device, splits))


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


def _evaluation_program(apply_fn: Callable, loss_fn: losses.Loss) -> Callable:
    """``(TrainState, ((inputs (K, B, ...), labels (K, B)), count)) -> `` sums of loss and accuracy over ``count`` examples."""

    @jax.jit
    def sums_of_chunk(now: training.TrainState, chunk: tuple) -> tuple[jax.Array, jax.Array]:
        (inputs, labels), count = chunk
        extra = () if now.model_state is None else (now.model_state,)
        counted = (jnp.arange(labels.size) < count).reshape(labels.shape)

        def sums_of_batch(batch: tuple) -> tuple[jax.Array, jax.Array]:
            inputs, labels, counted = batch
            logits = apply_fn(now.params, inputs, *extra)
            values = loss_fn(logits, labels), metrics.accuracy(logits, labels)
            loss, accuracy = (jnp.where(counted, value, 0).sum() for value in values)
            return loss, accuracy

        return jax.tree.map(jnp.sum, jax.lax.map(sums_of_batch, (inputs, labels, counted)))

    return sums_of_chunk


def _training_chunks(
    split: HostArrays, keys: jax.Array, batch_size: int, most: int, augments: bool
) -> Iterator[tuple[tuple, jax.Array | None]]:
    """Examples in the order of `training.train`, of one epoch for each key, with the keys of the augmentation."""
    num_examples = len(split[1])
    num_batches = training.num_steps(num_examples, 1, batch_size)
    for key in keys:
        order = np.asarray(jax.random.permutation(key, num_examples))
        batches = order[: num_batches * batch_size].reshape(num_batches, batch_size)
        batch_keys = jax.random.split(jax.random.fold_in(key, 1), num_batches) if augments else None
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
