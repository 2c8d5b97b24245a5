"""Pieces of work: named, safe on disk before the program says so, with progress and an estimate of the time left."""

import itertools
import queue
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

_MOST_ON_CPU = 16  # threads beside an accelerator: each holds data of its own


@dataclass(frozen=True)
class Piece:
    """A named piece of work.

    ``compute`` returns arrays; ``weight`` is its share of the time, in any unit that all pieces use; neighbours of one ``group``
    may run beside each other in threads, on a `device` each. Pieces ``on_cpu`` compute on the host whatever else there is (certificates,
    in float64); beside an accelerator they then run on as many threads as the host has cores, up to 16.
    """

    name: str
    compute: Callable[[], Mapping[str, Any]]
    weight: float = 1.0
    group: str | None = None
    on_cpu: bool = False


def run_pieces(store: Any, pieces: Sequence[Piece], *, num_workers: int = 1) -> None:
    """Compute the pieces that ``store`` lacks, in order; neighbours of one group share ``num_workers`` threads and all processes.

    BLAS gets one thread throughout. Threads of several workers would wait for one another, spinning (a fit of 0.4 s took 20 s on a
    busy machine), and their number decides the last bits, which must not depend on where a run was stopped.
    """
    import jax
    import threadpoolctl

    from jaxbp.runtime import processes
    from jaxbp.runtime.progress import Progress

    missing = processes.from_first([number for number, piece in enumerate(pieces) if piece.name not in store])
    if done := len(pieces) - len(missing):
        print(f"{done} of {len(pieces)} pieces of work are in {store.folder} already")
    units = {piece.name: (None, piece.weight) for piece in pieces}
    there = units.keys() - {pieces[number].name for number in missing}
    index, count = jax.process_index(), jax.process_count()
    with (
        threadpoolctl.threadpool_limits(1),
        Progress(units, store.folder, process=index, num_processes=count, done_before=there) as progress,
    ):
        for group, members in itertools.groupby(missing, key=lambda number: pieces[number].group or number):
            together = list(members)
            mine = [pieces[number] for number in together if together.index(number) % count == index]
            _run_together(store, mine, progress, num_workers)
            processes.barrier(f"pieces of {group}")  # later ones may read them


def _run_together(store: Any, pieces: Sequence[Piece], progress: Any, num_workers: int) -> None:
    def compute(piece: Piece) -> Mapping[str, Any]:
        progress.start(piece.name)
        try:
            return piece.compute()
        except Exception as error:
            progress.failed(piece.name, error)
            raise

    from jaxbp.runtime.program_cache import evict_compiled_programs

    free = _free_devices(num_workers, on_cpu=any(piece.on_cpu for piece in pieces))
    alone = free[True] is free[False] and (num_workers == 1 or len(pieces) == 1)
    if alone:
        for piece in pieces:
            store.put(piece.name, compute(piece))
            progress.done(piece.name)
            evict_compiled_programs()
        return
    pools = {kind: ThreadPoolExecutor(max(devices.qsize(), 1)) for kind, devices in free.items()}
    if free[True] is free[False]:
        pools[True] = pools[False]
    try:
        futures = {pools[piece.on_cpu].submit(_on_free_device, free[piece.on_cpu], compute, piece): piece for piece in pieces}
        while futures:
            finished, _ = wait(futures, return_when=FIRST_COMPLETED)
            for future in finished:
                piece = futures.pop(future)
                store.put(piece.name, future.result())
                progress.done(piece.name)
            evict_compiled_programs()
    finally:
        for pool in pools.values():
            pool.shutdown(wait=False, cancel_futures=True)


def device() -> Any:
    """The device of the piece that is being computed."""
    import jax

    return jax.config.jax_default_device or jax.local_devices()[0]


def _free_devices(num_workers: int, *, on_cpu: bool) -> dict[bool, queue.SimpleQueue]:
    """The devices for pieces of either kind, by `Piece.on_cpu`; one queue for both where there are CPUs alone.

    A device for each worker, or one CPU for all: it serves several threads, and programs are compiled for each device anew.
    """
    import jax

    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        shared = _queue(devices[:1] * num_workers)
        return {False: shared, True: shared}
    cpus = jax.local_devices(backend="cpu") if on_cpu else []
    return {
        False: _queue([devices[worker % len(devices)] for worker in range(num_workers)]),
        True: _queue(cpus[:1] * min(len(cpus), _MOST_ON_CPU)),
    }


def _queue(devices: Sequence[Any]) -> queue.SimpleQueue:
    free = queue.SimpleQueue()
    for one in devices:
        free.put(one)
    return free


def _on_free_device(free: queue.SimpleQueue, compute: Callable, piece: Piece) -> Mapping[str, Any]:
    import jax

    one = free.get()
    try:
        with jax.default_device(one):
            return compute(piece)
    finally:
        free.put(one)
