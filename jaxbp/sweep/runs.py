"""`run`: settings times seeds of a function on the available devices, with a folder that survives kills."""

import functools
import shutil
import socket
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxbp.ops import dtypes
from jaxbp.runtime import device_memory, jax_setup, preemption, processes
from jaxbp.runtime.fingerprint import explain
from jaxbp.runtime.progress import Progress, Work
from jaxbp.runtime.shared_store import open_together
from jaxbp.runtime.store import Memory, Store, StoreError
from jaxbp.sweep import plans, results, scheduler
from jaxbp.sweep._engine import Engine, Options
from jaxbp.sweep._recorder import NOT_FINITE, Recorder
from jaxbp.sweep._tasks import Task, tasks_of
from jaxbp.sweep.segments import Segments
from jaxbp.sweep.spec import FUNCTIONS, RunLabels, SweepSpec, code_of

_TABLE = "results.parquet"
_CODE, _EARLIER_CODE = "code", "code_changes"  # entries of config.json
_EXIT_MESSAGE = "Finished runs are in {}; the same call goes on from there."


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
    mixed: bool = False,
    quiet: bool = False,
) -> results.Results:
    """Compute a pure function for every setting of a grid and every seed. On the same machine a rerun gives the same bits.

    Args:
      fn: ``fn(key, *shared, **setting) -> results``, a pytree of arrays; or `Segments`, a run in parts that can be saved in between.
      grid: values by name, of which every combination is a setting, or a list of settings. Names with a float among their values, or
        given as arrays, are inputs of one program, as float32 arrays (float64 where enabled); every value of another name has a program
        of its own: see `jaxbp.sweep.grid`.
      seeds: a number of seeds, counted from 0, or a list of seeds. The key of a run is ``jax.random.key(seed)`` in every setting.
      out: folder for results, checkpoints, log and status; call again with the same arguments to compute the missing runs. None keeps
        the results in memory; each of several processes then returns its own runs only.
      shared: arguments of all runs, for instance the data; copied to the devices once.
      static: names that have a program for each value although the values are floats.
      plan: one of `PLANS`; "loop" is "map" with one device. The choice of "auto" is logged and stored in the folder.
      mesh: from `make_mesh`; default all devices of all processes. With several devices on the axis "batch", each run may split its
        batches with `jaxbp.training.parallel.data_parallel`.
      memory: bytes that a device may use; a device takes as many runs at once as fit. Default: 90 % of the free memory of an
        accelerator, or a share of half of the memory of the host.
      checkpoint_every: seconds between checkpoints of runs in segments.
      keep: number of checkpoints of a group of runs.
      diverged_fn: ``results by name -> True if the run diverged``; default: any number is not finite. A diverged run is recorded as
        such. A run in segments stops after the first segment with measures that are not finite.
      tensorboard: write the measures of segments as TensorBoard event files; needs tensorboardX.
      identity: further facts that identify the sweep (names, versions of data), as JSON. A folder with other facts is refused.
      mixed: go on in a folder whose runs other code, bound values or versions of packages computed, and note the change there. Without
        it such a folder is refused, with what changed.
      quiet: no display; log and status are written to the folder all the same.

    Returns:
      The records of all runs.

    Raises:
      ValueError, TypeError: a grid, seeds or functions that cannot be a sweep; any error of tracing ``fn``, with the setting.
      SweepError: the device refused some settings, for instance for lack of memory; all other settings are finished.
      jaxbp.runtime.store.StoreError: the folder is in use, holds another sweep, is damaged or not writable, or a checkpoint is damaged.
      jaxbp.runtime.progress.MissingTensorBoardError: ``tensorboard`` without tensorboardX.
      jaxbp.runtime.preemption.Terminated: SIGTERM; finished runs and segments are saved, a segment that takes more than 8 seconds is
        lost. Exit code 143.
    """
    _check(shared, keep, checkpoint_every, memory, mesh)
    spec = SweepSpec.create(fn, grid, seeds=seeds, shared=shared, static=static, identity=identity)
    tasks = tasks_of(spec)
    code = code_of(fn) if out is not None else {}  # before the function is traced, which may fill what the function holds
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
    for position, leaf in enumerate(jax.tree.leaves(tuple(shared))):
        dtypes.check_range(f"array {position} of shared", leaf)
    shared_on_devices = jax.device_put(tuple(shared), NamedSharding(mesh, PartitionSpec()))
    for task in tasks:
        task.cost_per_run(shared_on_devices)  # traces the function: errors appear before any work
    with _store(out, spec.identity) as store:
        if isinstance(store, Store):
            _compare_code(store, code, mixed=mixed)
        exit_message = _EXIT_MESSAGE.format(out) if out else ""
        with (
            _progress(out, spec.runs, store, tensorboard=tensorboard, quiet=quiet) as progress,
            preemption.guard(log=progress.log, exit_message=exit_message) as guard,
        ):
            if taken := sum(name in store for name in spec.runs):
                progress.log(f"{taken} of {len(spec.runs)} runs are taken from {out}")
            recorder = Recorder(store, progress, guard, {name: labels.label for name, labels in spec.runs.items()}, diverged_fn)
            errors = _compute(Engine(options, shared_on_devices, recorder), tasks)
        records = results.collect(store, spec.settings, spec.seeds)
        if isinstance(store, Store) and processes.is_first():
            if options.checkpoints and not errors:
                shutil.rmtree(options.checkpoints, ignore_errors=True)  # left by plans that were abandoned
            num_failed = sum(len(task.names) for task in tasks if task.label in errors)
            _check_shared_folder(records, len(spec.runs) - num_failed, store.folder)
            store.write(_TABLE, results.to_parquet(records))
    if errors:
        lines = "\n  ".join(f"{label}: {error}" for label, error in errors.items())
        raise SweepError(f"some settings could not be computed; the others are done, and kept:\n  {lines}")
    return records


def _compare_code(store: Store, code: dict[str, str], *, mixed: bool) -> None:
    """Refuse a folder whose runs another function computed, or note the new one."""
    before = store.config.get(_CODE, code)
    changes = explain(before, code) if isinstance(before, dict) else []
    named = [line for line in changes if line.removesuffix(" changed") not in FUNCTIONS]
    changes = named or changes  # that a function changed is said by what changed in it
    if changes and not mixed:
        raise StoreError(
            f"{store.folder} holds runs that other code computed:\n  " + "\n  ".join(changes) + "\n"
            "name another folder, go back to that code, or give mixed=True to put runs of both into one folder"
        )
    if processes.is_first() and store.config.get(_CODE) != code:
        earlier = [*store.config.get(_EARLIER_CODE, []), changes] if changes else store.config.get(_EARLIER_CODE, [])
        store.add_metadata(**{_CODE: code, _EARLIER_CODE: earlier})


def _compute(engine: Engine, tasks: Sequence[Task]) -> dict[str, str]:
    """Compute all tasks; returns the errors of the device (above all, lack of memory) by task. Several processes end together instead."""
    tolerated = (jax.errors.JaxRuntimeError,) if jax.process_count() == 1 else ()
    work = [scheduler.Work(task.label, compute=functools.partial(engine.compute, task), keep=lambda _: None) for task in tasks]
    errors = {label: str(error).splitlines()[0] for label, error in scheduler.run(work, together=True, tolerated=tolerated).items()}
    for task in tasks:
        if task.label in errors:
            engine.recorder.fail(task.names, errors[task.label])
    return errors


def _check_shared_folder(records: results.Results, expected: int, out: Path) -> None:
    if len(records) < expected and jax.process_count() > 1:
        raise SweepError(
            f"{expected - len(records)} results are not in {out} of the first process: processes must share their folder; copy the "
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
    """The smallest number of bytes that a process can spare on a device."""
    hosts = processes.gather([socket.gethostname(), jax.local_device_count()])
    on_this_host = sum(count for host, count in hosts if host == socket.gethostname())
    own = memory or device_memory.default_bound(mesh.local_mesh.devices.flat[0], on_this_host)
    return min(processes.gather(own))


def _default_mesh(plan: str) -> Mesh:
    """All devices; the first device of each process for a plan that uses one device."""
    plans.check_plan(plan)
    if plan in ("auto", "pmap") or plan.startswith("shard"):
        return plans.make_mesh()
    return plans.make_mesh(devices=list({device.process_index: device for device in reversed(jax.devices())}.values()))


def _progress(out: str | Path | None, runs: Mapping[str, RunLabels], store: Any, *, tensorboard: bool, quiet: bool) -> Progress:
    statuses = {labels.label: str(store.lazy(name)["status"]) for name, labels in runs.items() if name in store}
    return Progress(
        {labels.label: Work(labels.setting, 1.0) for labels in runs.values()},
        out,
        process=jax.process_index(),
        num_processes=jax.process_count(),
        done_before=[label for label, status in statuses.items() if status == results.FINISHED],
        diverged_before={label: NOT_FINITE for label, status in statuses.items() if status == results.DIVERGED},
        tensorboard=tensorboard,
        print_fn=(lambda line: None) if quiet else None,
    )


def _store(out: str | Path | None, settings: Mapping[str, Any]) -> Store | Memory:
    if out is None:
        return Memory()
    return open_together(out, settings, jax_setup.provenance([device.device_kind for device in jax.local_devices()]))
