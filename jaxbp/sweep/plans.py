"""Plans: a stack of runs is computed one after another, vectorised, or spread over devices.

`evaluate` computes a pure function for every entry of the leading axis of ``runs`` (keys, initial parameters, learning rates, data of
single runs); further arguments are shared by all runs. The runs share one compiled program, and equal calls reuse the program. All plans
give the same numbers up to rounding:

- ``loop``        one call after another, from Python;
- ``map``         one run after another inside one program;
- ``vmap``        all runs at once (`jax.vmap`);
- ``shard-map``   split over devices, each of which computes its runs one after another;
- ``shard-vmap``  split over devices, each of which computes its runs at once; ``pmap`` is a synonym;
- ``auto``        chosen by the rule of `choose`.

>>> import jax
>>> from jaxbp import sweep
>>> def run_fn(key, scale):
...     return scale * jax.random.normal(key, (3,))
>>> sweep.evaluate(run_fn, sweep.keys(range(4)), 10.0).shape
(4, 3)
"""

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxbp.jaxprs import op_count
from jaxbp.ops import platform
from jaxbp.runtime import device_memory
from jaxbp.runtime.program_cache import program_cache
from jaxbp.sweep import _memory

PLANS = ("auto", "loop", "map", "vmap", "shard-map", "shard-vmap", "pmap")
SEEDS, BATCH = "seeds", "batch"  # axes of a mesh

_SMALL = 2**17  # multiply-adds; see `choose`
_CACHED = 32  # functions whose compiled programs are cached
_CONTEXT = (  # options that change what JAX traces
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_numpy_dtype_promotion",
    "jax_numpy_rank_promotion",
    "jax_debug_nans",
    "jax_disable_jit",
)


def keys(seeds: Iterable[int]) -> jax.Array:
    """Stack the random keys of ``seeds``: shape (S,)."""
    return jax.vmap(jax.random.key)(jnp.asarray(list(seeds), jnp.uint32))


def make_mesh(num_batch: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Make a mesh with the axes "seeds" and "batch": runs are split over the first, the batches of each run over the second.

    Args:
      num_batch: number of devices, neighbours in ``devices``, among which `jaxbp.training.parallel.data_parallel` splits each batch.
      devices: default the devices of all processes.

    Raises:
      ValueError: ``num_batch`` does not divide the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    if num_batch < 1 or len(devices) % num_batch:
        raise ValueError(f"num_batch must divide the number of devices {len(devices)}, got {num_batch}: give a divisor, or more devices")
    return Mesh(np.array(devices).reshape(-1, num_batch), (SEEDS, BATCH), axis_types=(AxisType.Auto, AxisType.Auto))


def choose(backend: str, num_devices: int, num_runs: int, cost_per_run: op_count.OpCount) -> str:
    """Return the plan of ``auto``, from the cost of a run and the devices.

    An accelerator computes all seeds at once. A CPU computes the runs of a device one after another: the matrices of one run occupy a
    core, and XLA turns convolutions over a stack of kernels into loops. Runs without convolutions whose average matrix product has fewer
    than 131,000 multiply-adds are computed at once, since the overhead of calls dominates. Measured on two cores (JAX 0.10.2, whole
    trainings, 8 and 32 seeds, time of ``shard-vmap`` over that of ``shard-map``): MLPs with batches of 16: 16-8-10 0.86 and 0.71,
    64-16-10 0.99 and 0.75; with batches of 64: 64-16-16-10 0.86 and 0.88, 64-64-64-10 1.1 and 0.94, 784-256-256-10 1.2 and 1.8,
    784-1024-1024-10 1.4 and 1.6.

    Args:
      backend: name of the backend, as `jax.default_backend` returns it.
      num_devices: number of devices.
      num_runs: number of runs.
      cost_per_run: multiplications of a run.
    """
    vectorise = backend != "cpu" or (not cost_per_run.convolutional and 0 < cost_per_run.mean < _SMALL)
    within = "vmap" if vectorise and num_runs > 1 else "map"
    return f"shard-{within}" if min(num_devices, num_runs) > 1 else within


def evaluate(
    fn: Callable, runs: Any, *shared: Any, plan: str = "auto", devices: Sequence[Any] | None = None, memory: float | None = None
) -> Any:
    """Evaluate ``fn(run, *shared)`` for every ``run`` along the leading axis of ``runs``.

    Args:
      fn: a pure function; the same object reuses its compiled programs.
      runs: pytree of arrays with a common leading axis R.
      shared: pytrees that all runs share, for instance the data.
      plan: one of `PLANS`.
      devices: devices to use; default all local devices of the default backend.
      memory: bytes of a device that runs which are computed at once may use, as the compiler reports them; as many are computed at once as
        fit, one at least. Results of earlier runs stay beside them. Default: 90 % of what an accelerator has free, and no bound on a CPU.

    Returns:
      The results of ``fn``, stacked along a leading axis R.

    Raises:
      ValueError: an unknown plan, or ``runs`` without a common leading axis.
    """
    num_runs, are_given = _num_runs(runs), bool(devices)
    devices = tuple(devices or jax.local_devices())
    plan = plan_of(fn, runs, *shared, plan=plan, devices=devices)
    devices = devices[: min(num_runs, len(devices)) if plan.startswith("shard") else 1]
    if are_given and len(devices) == 1 and devices[0] != platform.default_device():
        with jax.default_device(devices[0]):
            runs, shared = jax.device_put((runs, shared), devices[0])
            return evaluate(fn, runs, *shared, plan=plan, devices=devices, memory=memory)
    if plan == "loop":
        return _loop(jitted(fn), runs, num_runs, shared)
    within = plan.removeprefix("shard-")
    mesh = make_mesh(devices=devices) if len(devices) > 1 else None
    share = -(-num_runs // len(devices))
    if memory is None and devices[0].platform != "cpu":
        memory = device_memory.default_bound(devices[0], 1)
    capacity = share if within == "map" or memory is None else _capacity(fn, mesh, runs, shared, len(devices), share, memory)
    chunks = []
    for start in range(0, num_runs, capacity * len(devices)):
        chunk = runs if capacity == share else jax.tree.map(lambda a, start=start: a[start : start + capacity * len(devices)], runs)
        placed, counts, places = pad_and_scatter(chunk, _num_runs(chunk), len(devices), capacity)
        if mesh is not None and placed is not runs:  # what was cut is no longer spread as the program takes it
            placed = jax.device_put(placed, NamedSharding(mesh, PartitionSpec(SEEDS)))
        outputs = program(fn, within, mesh)(counts, placed, shared)
        is_full = len(places) == capacity * len(devices)
        chunks.append(outputs if is_full else jax.tree.map(lambda a, places=places: a[places], outputs))
    return chunks[0] if len(chunks) == 1 else jax.tree.map(lambda *parts: jnp.concatenate(parts), *chunks)


def _capacity(fn: Callable, mesh: Mesh | None, runs: Any, shared: tuple, num_devices: int, share: int, memory: float) -> int:
    """How many of the ``share`` runs of a device are computed at once within ``memory`` bytes, in chunks of even size."""

    def compile_fn(number: int) -> list[jax.stages.Compiled]:
        places = jax.tree.map(lambda a: jax.ShapeDtypeStruct((number * num_devices, *a.shape[1:]), a.dtype), runs)
        return [compiled(fn, "vmap", mesh, False, num_devices, places, shared)]

    _, capacity, _ = _memory.fit(compile_fn, share, memory)
    return _memory.evenly(share, capacity)


def _loop(single: Callable, runs: Any, num_runs: int, shared: tuple) -> Any:
    """Call after call. Besides the program of a run, three small programs are compiled, whatever the number of runs."""
    outputs = None
    for index in range(num_runs):
        output = single(_index(runs, index), *shared)
        outputs = _allocate(output, num_runs) if outputs is None else outputs
        outputs = _set_row(outputs, output, index)
    return outputs


@jax.jit
def _index(runs: Any, index: int) -> Any:
    return jax.tree.map(lambda a: a[index], runs)


@functools.partial(jax.jit, static_argnums=1)
def _allocate(output: Any, number: int) -> Any:
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (number, *a.shape)), output)


@functools.partial(jax.jit, donate_argnums=0)
def _set_row(outputs: Any, output: Any, index: int) -> Any:
    return jax.tree.map(lambda rows, row: rows.at[index].set(row), outputs, output)


def check_plan(plan: str) -> None:
    """Raise ValueError unless ``plan`` is one of `PLANS`."""
    if plan not in PLANS:
        raise ValueError(f"plan must be one of {', '.join(PLANS)}, got {plan!r}")


def plan_of(fn: Callable, runs: Any, *shared: Any, plan: str = "auto", devices: Sequence[Any] | None = None) -> str:
    """Return the plan by which `evaluate` computes these runs."""

    def cost_per_run() -> op_count.OpCount:
        run = jax.eval_shape(lambda runs: jax.tree.map(operator.itemgetter(0), runs), runs)
        return _count_ops(fn, *_shapes((run, *shared)))

    return resolve(plan, cost_per_run, num_runs=_num_runs(runs), devices=devices or jax.local_devices())


@program_cache(_CACHED)
def _count_ops(fn: Callable, shapes: tuple, structure: Any, _: tuple) -> op_count.OpCount:
    return op_count.count(jitted(fn), *structure.unflatten(shapes))


def _shapes(tree: Any) -> tuple[tuple, Any, tuple]:
    """Key of the cached programs for ``tree``: shapes, structure and tracing options."""
    leaves, structure = jax.tree.flatten(tree)
    shapes = tuple(jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    return shapes, structure, tuple(getattr(jax.config, name) for name in _CONTEXT)


def resolve(plan: str, cost_per_run: Callable[[], op_count.OpCount], *, num_runs: int, devices: Sequence[Any]) -> str:
    """Resolve ``auto`` by the rule of `choose`, and ``pmap`` to its synonym.

    Raises:
      ValueError: ``plan`` is not one of `PLANS`.
    """
    check_plan(plan)
    if plan == "auto":
        return choose(devices[0].platform, len(devices), num_runs, cost_per_run())
    return "shard-vmap" if plan == "pmap" else plan


def pad_and_scatter(runs: Any, num_runs: int, num_devices: int, capacity: int | None = None) -> tuple[Any, np.ndarray, np.ndarray]:
    """Spread runs evenly over ``capacity`` places on every device; default the smallest sufficient capacity.

    Returns:
      The runs with a leading axis of all places, unused places repeating a run; the number of used places of each device, (D,); and the
      place of every run, (R,).
    """
    share = -(-num_runs // num_devices)
    capacity = capacity or share
    starts, offsets = share * np.arange(num_devices), np.arange(capacity)
    counts = np.clip(num_runs - starts, 0, share).astype(np.int32)
    sources = np.minimum(starts[:, None] + np.minimum(offsets, share - 1), num_runs - 1).reshape(-1)
    places = np.arange(num_runs) // share * capacity + np.arange(num_runs) % share
    if not np.array_equal(sources, np.arange(num_runs)):
        runs = jax.tree.map(lambda a: a[sources], runs)
    return runs, counts, places


# One jitted object a function: counting and compiling trace the function once. Few entries: each keeps the closure of its function.
jitted = program_cache(_CACHED)(jax.jit)


@program_cache(_CACHED)
def program(fn: Callable, within: str, mesh: Mesh | None, donate: bool = False) -> jax.stages.Wrapped:
    """Return the jitted ``(counts, runs, shared) -> results``, cached by function object, plan and mesh.

    Args:
      fn: function of a run.
      within: "map" or "vmap".
      mesh: the devices; None for one device.
      donate: give the memory of ``runs`` to the results.

    Returns:
      A function whose ``counts``, (D,), is the number of runs that each device computes under "map".
    """

    def share(counts: jax.Array, runs: Any, shared: tuple) -> Any:
        def compute(run: Any) -> Any:
            return jitted(fn)(run, *shared)

        return jax.vmap(compute)(runs) if within == "vmap" else _one_by_one(compute, counts[0], runs)

    donated = (1,) if donate else ()
    if mesh is None:
        return jax.jit(share, donate_argnums=donated)
    by_run, whole = NamedSharding(mesh, PartitionSpec(SEEDS)), NamedSharding(mesh, PartitionSpec())
    manual = {SEEDS} if mesh.shape[BATCH] > 1 else {SEEDS, BATCH}  # host callbacks need all axes to be manual

    def spread(counts: jax.Array, runs: Any, shared: tuple) -> Any:
        # Runs do not communicate: a check of replicated values would have nothing to check.
        specs = (by_run.spec, by_run.spec, whole.spec)
        mapped = jax.shard_map(share, mesh=mesh, in_specs=specs, out_specs=by_run.spec, axis_names=manual, check_vma=False)
        return mapped(counts, runs, shared)

    shardings = (by_run, by_run, whole)
    return jax.jit(spread, in_shardings=shardings, out_shardings=by_run, donate_argnums=donated)


def compiled(
    fn: Callable, within: str, mesh: Mesh | None, donate: bool, num_devices: int, places: Any, shared: tuple
) -> jax.stages.Compiled:
    """Compile `program` ahead of time for runs of the shapes of ``places``, which tells its memory; cached for equal calls."""
    return _compiled(fn, within, mesh, donate, num_devices, *_shapes((places, shared)))


@program_cache(_CACHED)
def _compiled(
    fn: Callable, within: str, mesh: Mesh | None, donate: bool, num_devices: int, shapes: tuple, structure: Any, _: tuple
) -> jax.stages.Compiled:
    counts = jax.ShapeDtypeStruct((num_devices,), np.int32)
    return program(fn, within, mesh, donate).lower(counts, *structure.unflatten(shapes)).compile()


def _one_by_one(fn: Callable, count: jax.Array, runs: Any) -> Any:
    """Results of the first ``count`` runs, then zeros; ``count`` is a traced value."""
    capacity = jax.tree.leaves(runs)[0].shape[0]

    def nth(i: jax.Array) -> Any:
        return fn(jax.tree.map(lambda a: a[i], runs))

    def body(i: jax.Array, places: Any) -> Any:
        return jax.tree.map(lambda place, value: place.at[i].set(value), places, nth(i))

    places = jax.tree.map(lambda s: jnp.zeros((capacity, *s.shape), s.dtype), jax.eval_shape(nth, 0))
    return jax.lax.fori_loop(0, count, body, places)


def _num_runs(runs: Any) -> int:
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(runs)}
    if len(lengths) != 1 or lengths <= {(), (0,)}:
        raise ValueError(f"runs must be arrays with a common leading axis of 1 or more, got leading axes {sorted(lengths)}")
    return lengths.pop()[0]
