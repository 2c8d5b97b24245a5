"""The scheduler of all work: pieces of work in groups, shared among processes, on the free devices of each.

`jaxbp.sweep.run` schedules programs, each of which all devices compute together, and `jaxbp.lab` schedules jobs, of which each worker
computes its own. What is done is kept at once, by one thread.

>>> from jaxbp.sweep import scheduler
>>> kept = []
>>> scheduler.run([scheduler.Work(name, compute=lambda n=name: n.upper(), keep=kept.append) for name in "ab"])
{}
>>> kept
['A', 'B']
"""

import itertools
import queue
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import jax

from jaxbp.runtime import processes
from jaxbp.runtime.program_cache import evict_compiled_programs

_MOST_ON_CPU = 16  # threads beside an accelerator: each holds data of its own


@dataclass(frozen=True)
class Work:
    """A piece of work.

    Attributes:
      name: unique among the pieces.
      compute: computes the result; several workers compute beside each other.
      keep: takes the result, in the thread of the scheduler.
      group: neighbours with one group are computed beside each other; a group begins when the one before is done in all processes.
      on_cpu: whether the piece computes on the host, also beside an accelerator.
    """

    name: str
    compute: Callable[[], Any]
    keep: Callable[[Any], None]
    group: str = ""
    on_cpu: bool = False


def run(
    pieces: Sequence[Work], *, num_workers: int = 1, together: bool = False, tolerated: tuple[type[Exception], ...] = ()
) -> dict[str, Exception]:
    """Compute and keep every piece, group after group.

    Args:
      pieces: the same in all processes.
      num_workers: pieces that a process computes beside each other.
      together: all processes compute each piece together, instead of sharing the pieces.
      tolerated: errors after which the other pieces go on. Any other error ends the work, once what was done is kept.

    Returns:
      The tolerated errors by the name of the piece.
    """
    first, step = (0, 1) if together else (jax.process_index(), jax.process_count())
    errors: dict[str, Exception] = {}
    for group, members in itertools.groupby(pieces, key=lambda piece: piece.group):
        errors |= _run_group(list(members)[first::step], num_workers, tolerated)
        if not together:
            processes.barrier(f"work of {group}")  # later pieces may read the results
    return errors


def _run_group(pieces: Sequence[Work], num_workers: int, tolerated: tuple[type[Exception], ...]) -> dict[str, Exception]:
    free = _free_devices(num_workers, on_cpu=any(piece.on_cpu for piece in pieces))
    errors: dict[str, Exception] = {}

    def keep(piece: Work, result_fn: Callable[[], Any]) -> None:
        try:
            piece.keep(result_fn())
        except tolerated as error:
            errors[piece.name] = error

    if free[True] is free[False] and (num_workers == 1 or len(pieces) == 1):
        for piece in pieces:
            keep(piece, piece.compute)
            evict_compiled_programs()
        return errors
    pools = {on_cpu: ThreadPoolExecutor(max(devices.qsize(), 1)) for on_cpu, devices in free.items()}
    if free[True] is free[False]:
        pools[True] = pools[False]
    try:
        futures = {pools[piece.on_cpu].submit(_on_free_device, free[piece.on_cpu], piece.compute): piece for piece in pieces}
        while futures:
            finished, _ = wait(futures, return_when=FIRST_COMPLETED)
            for future in sorted(finished, key=lambda future: future.exception() is not None):  # results are kept before a failure ends all
                keep(futures.pop(future), future.result)
            evict_compiled_programs()
    finally:
        for pool in pools.values():
            pool.shutdown(wait=False, cancel_futures=True)
    return errors


def _free_devices(num_workers: int, *, on_cpu: bool) -> dict[bool, queue.SimpleQueue]:
    """The devices for pieces of either kind, by `Work.on_cpu`; one queue for both where there are CPUs alone.

    Each worker has an accelerator of its own. On a host without accelerators all workers share the first CPU device, which serves
    several threads: programs are compiled for each device anew.
    """
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        shared = _queue(devices[:1] * num_workers)
        return {False: shared, True: shared}
    cpus = jax.local_devices(backend="cpu") if on_cpu else []
    return {
        False: _queue([devices[worker % len(devices)] for worker in range(num_workers)]),
        True: _queue(cpus[:1] * min(len(cpus), _MOST_ON_CPU)),
    }


def _queue(devices: Iterable[Any]) -> queue.SimpleQueue:
    free: queue.SimpleQueue = queue.SimpleQueue()
    for device in devices:
        free.put(device)
    return free


def _on_free_device(free: queue.SimpleQueue, compute: Callable[[], Any]) -> Any:
    device = free.get()
    try:
        with jax.default_device(device):
            return compute()
    finally:
        free.put(device)
