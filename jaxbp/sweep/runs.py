"""`run`: a grid of settings times seeds, on whatever devices there are, into a folder that survives anything."""

import functools
import hashlib
import operator
import shutil
import socket
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxbp.runtime import preemption, processes
from jaxbp.runtime.progress import Progress, Work
from jaxbp.runtime.shared_store import open_together
from jaxbp.runtime.store import Memory, Store
from jaxbp.sweep import grid as grids
from jaxbp.sweep import memory as memories
from jaxbp.sweep import plans, results, tasks
from jaxbp.sweep._engine import Engine, Options
from jaxbp.sweep._recorder import NOT_FINITE, Recorder
from jaxbp.sweep.segments import Segments

_TABLE = "results.parquet"
_MOST_SEEDS = 10**6
_LAST_WORDS = "Finished runs are in {}; the same call goes on from there."


class SweepError(RuntimeError):
    """Some runs could not be computed; the same call tries them again."""


def run(
    fn: Callable[..., Any] | Segments,
    grid: Mapping[str, Iterable] | Sequence[Mapping[str, Any]] | None = None,
    *,
    seeds: int | Iterable[int],
    out: str | Path | None = None,
    shared: Sequence[Any] = (),
    static: Iterable[str] = (),
    plan: str = "auto",
    mesh: Mesh | None = None,
    memory: int | None = None,
    checkpoint_every: float = 60.0,
    keep: int = 2,
    diverged_fn: Callable[[Mapping[str, np.ndarray]], bool] | None = None,
    tensorboard: bool = False,
    identity: Mapping[str, Any] = types.MappingProxyType({}),
    quiet: bool = False,
) -> results.Results:
    """Compute a pure function for every setting of a grid and every seed; on the same machine a rerun gives the same bits.

    Args:
      fn: ``fn(key, *shared, **setting) -> results``, a pytree of arrays; or the same in parts, `Segments`, which can be saved in between.
      grid: values by name, of which all combinations count, or a list of settings. Names with a float among their values, or
        that come as arrays, are inputs of one program, arrays of float32 (of float64 where that is enabled); others get a program for
        each value: see `jaxbp.sweep.grid`.
      seeds: how many, from 0 on, or which; the key of a run is ``jax.random.key(seed)``, the same for all settings.
      out: folder for results, checkpoints, log and status; call again with the same arguments to go on with what is missing. None
        keeps results in memory, of this process's runs only if there are several.
      shared: what all runs get, for instance the data; on the devices once.
      static: names that get a program for each value though they are floats.
      plan: one of `PLANS`; "loop" is "map" with one device. What "auto" chose is shown, and noted in the folder.
      mesh: of `make_mesh`, default all devices of all processes. With more than one device on its axis "batch" each run may split
        its batches with `jaxbp.training.parallel.data_parallel`.
      memory: bytes that a device may use; as many runs as fit go to it at once. Default: most of what an accelerator has free, or a share
        of half of the host's memory.
      checkpoint_every: seconds between checkpoints of runs in segments.
      keep: how many checkpoints of a group of runs.
      diverged_fn: ``results by name -> whether the run diverged``; default, that any number is not finite. It is recorded as
        such, and a run in segments rests from the segment on whose measures are not finite.
      tensorboard: write the measures of segments as event files.
      identity: what else makes this sweep this one (names, versions of data); anything JSON can write. A folder of another is refused.
      quiet: show no progress; log and status in the folder are written all the same.

    Returns:
      The records of all runs.

    Raises:
      ValueError, TypeError: a grid, seeds or functions that make no sense; whatever tracing ``fn`` raises, with the setting.
      SweepError: settings that the device refused, for want of memory for instance, once all others are done.
      jaxbp.runtime.store.StoreError: the folder is in use, of another sweep, damaged or not writable, or a checkpoint is damaged.
      jaxbp.runtime.preemption.Terminated: SIGTERM; finished runs and segments are saved; a segment that takes
        more than 8 seconds is lost. Exit code 143.
    """
    settings, seeds = grids.expand({} if grid is None else grid), _checked_seeds(seeds)
    _check(shared, keep, checkpoint_every, memory, mesh)
    todo = tasks.of_programs(fn, grids.programs(settings, static), seeds)
    mesh = mesh or _default_mesh(plan)
    options = Options(
        plan=plan,
        mesh=mesh,
        memory=_agreed_memory(memory, mesh),
        checkpoints=None if out is None else Path(out) / "checkpoints",
        checkpoint_every=checkpoint_every,
        keep=keep,
        scalars=tensorboard,
    )
    placed = jax.device_put(tuple(shared), NamedSharding(mesh, PartitionSpec()))
    for task in todo:
        task.products(placed)  # traces it: what is wrong with a setting is told before any work is done
    with _store(out, _identity(fn, settings, seeds, shared, identity)) as store:
        words = _words(settings, seeds)
        with (
            _progress(out, words, store, tensorboard=tensorboard, quiet=quiet) as progress,
            preemption.guard(log=progress.say, exit_message=_LAST_WORDS.format(out) if out else "") as watch,
        ):
            recorder = Recorder(store, progress, watch, {k: label for k, (label, _) in words.items()}, diverged_fn)
            errors = _compute(Engine(options, placed, recorder), todo)
        found = results.collect(store, settings, seeds)
        if isinstance(store, Store) and processes.is_first():
            if options.checkpoints and not errors:
                shutil.rmtree(options.checkpoints, ignore_errors=True)  # of plans that were given up
            _check_shared(found, len(words) - sum(len(task.names) for task in todo if task.label in errors), store.folder)
            store.write(_TABLE, results.to_parquet(found))
    if errors:
        told = "\n  ".join(f"{label}: {error}" for label, error in errors.items())
        raise SweepError(f"some settings could not be computed; the others are done, and kept:\n  {told}")
    return found


def _compute(engine: Engine, todo: Sequence[tasks.Task]) -> dict[str, str]:
    """Compute all tasks; what the device refused (memory, above all), by program. Several processes end together instead."""
    errors = {}
    for task in todo:
        try:
            engine.compute(task)
        except jax.errors.JaxRuntimeError as error:
            if jax.process_count() > 1:
                raise
            errors[task.label] = str(error).splitlines()[0]
            engine.recorder.fail(task.names, errors[task.label])
    return errors


def _check_shared(found: results.Results, expected: int, out: Path) -> None:
    if len(found) < expected and jax.process_count() > 1:
        raise SweepError(
            f"{expected - len(found)} results are not in {out} of the first process: processes must share their folder; copy the "
            "folders pieces of the others into this one, and call again to have the table"
        )


def _check(shared: Any, keep: Any, checkpoint_every: Any, memory: Any, mesh: Mesh | None) -> None:
    if not isinstance(shared, list | tuple):
        raise TypeError(f"shared must be a list of what all runs get, got {type(shared).__name__}: put brackets around it")
    if not isinstance(keep, int) or keep < 1 or not checkpoint_every >= 0:
        raise ValueError(f"keep must be a whole number from 1 on and checkpoint_every 0 or more seconds, got {keep} and {checkpoint_every}")
    if memory is not None and (not isinstance(memory, int) or memory < 1):
        raise ValueError(f"memory must be a number of bytes, got {memory!r}")
    if mesh is not None and set(mesh.axis_names) != {plans.SEEDS, plans.BATCH}:
        raise ValueError(f"mesh must be one of sweep.make_mesh, with the axes 'seeds' and 'batch', got {mesh.axis_names}")


def _agreed_memory(memory: int | None, mesh: Mesh) -> int:
    """What every process has to spare on a device."""
    hosts = processes.gather([socket.gethostname(), jax.local_device_count()])
    on_this_host = sum(count for host, count in hosts if host == socket.gethostname())
    own = memory or memories.default_bound(mesh.local_mesh.devices.flat[0], on_this_host)
    return min(processes.gather(own))


def _default_mesh(plan: str) -> Mesh:
    """All devices, or, for a plan that does not spread runs over them, the first of each process."""
    plans.check_plan(plan)
    if plan in ("auto", "pmap") or plan.startswith("shard"):
        return plans.make_mesh()
    return plans.make_mesh(devices=list({device.process_index: device for device in reversed(jax.devices())}.values()))


def _progress(out: str | Path | None, words: Mapping[str, tuple[str, str]], store: Any, *, tensorboard: bool, quiet: bool) -> Progress:
    there = {label: str(store.lazy(name)["status"]) for name, (label, _) in words.items() if name in store}
    return Progress(
        {label: Work(setting, 1.0) for label, setting in words.values()},
        out,
        process=jax.process_index(),
        num_processes=jax.process_count(),
        done_before=[label for label, status in there.items() if status == results.FINISHED],
        diverged_before={label: NOT_FINITE for label, status in there.items() if status == results.DIVERGED},
        tensorboard=tensorboard,
        log=(lambda line: None) if quiet else None,
    )


def _store(out: str | Path | None, settings: Mapping[str, Any]) -> Store | Memory:
    if out is None:
        return Memory()
    facts = {"packages": {"jax": jax.__version__}, "devices": sorted({d.device_kind for d in jax.devices()})}
    return open_together(out, settings, facts)


def _checked_seeds(seeds: int | Iterable[int]) -> tuple[int, ...]:
    if isinstance(seeds, int | np.integer) and not isinstance(seeds, bool):
        if not 1 <= seeds <= _MOST_SEEDS:
            raise ValueError(f"seeds must be a number from 1 to {_MOST_SEEDS}, or a list of seeds, got {seeds}")
        return tuple(range(seeds))
    if not isinstance(seeds, Iterable):
        raise ValueError(f"seeds must be a number of them, or a list, got {seeds!r}")
    found = tuple(map(operator.index, seeds))
    if not found or len(set(found)) < len(found) or min(found) < 0 or max(found) >= 2**32:
        raise ValueError(f"seeds must be different numbers from 0 to 2**32 - 1, one at least, got {seeds!r}")
    return found


def _words(settings: Sequence[grids.Setting], seeds: Sequence[int]) -> dict[str, tuple[str, str]]:
    """For each piece, its run and its setting in words: those of its names that differ between settings."""
    written = grids.as_json(settings)
    varying = [name for name, values in written.items() if any(value != values[0] for value in values)]
    labels = [grids.label({name: setting[name] for name in varying}) for setting in settings]
    return {results.piece_name(row, seed): (f"{label}; seed {seed}", label) for row, label in enumerate(labels) for seed in seeds}


def _identity(
    fn: Any, settings: Sequence[grids.Setting], seeds: Sequence[int], shared: Sequence[Any], more: Mapping[str, Any]
) -> dict[str, Any]:
    """What makes a sweep this one, as its folder keeps it."""
    named = fn.segment_fn if isinstance(fn, Segments) else fn
    while isinstance(named, functools.partial):
        named = named.func
    return {
        "function": f"{named.__module__}.{named.__qualname__}" if hasattr(named, "__qualname__") else type(named).__qualname__,
        "segments": fn.num_segments if isinstance(fn, Segments) else None,
        "grid": grids.as_json(settings),
        "seeds": list(seeds),
        "shared": [_digest(leaf) for leaf in jax.tree.leaves(tuple(shared))],
        "float64": bool(jax.config.jax_enable_x64),
        "random_bits": str(jax.config.jax_default_prng_impl),
        "matmul_precision": str(jax.config.jax_default_matmul_precision),
        "identity": dict(more),
    }


def _digest(leaf: Any) -> str:
    """Shape, type and a hash of the values."""
    if jnp.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.ascontiguousarray(leaf)
    code = hashlib.blake2b(array.reshape(-1).view(np.uint8).data, digest_size=8).hexdigest()
    return f"{array.dtype}{list(array.shape)} {code}"
