"""What every study shares: pieces of work with progress, a folder that survives a kill, and an orderly end.

A study is a package with modules of fixed names, which `run_study` runs one after another: ``settings`` (the command line),
``measure.pieces`` (the work), ``results.Results``, ``results.verdicts`` and ``results.rows``, ``figures.draw``, ``page.sections``.
The work is a list of named `Piece` objects. `run_pieces` computes those that the folder does not hold yet, shows how far it is and how
long it may take, in ``log.txt`` and ``status.json`` too (`jaxbp.progress`), and writes each one before it says so. `guarded` turns
what can go wrong for a user into one clear line and an exit code: 2 for bad input, 130 for Ctrl-C, 143 for SIGTERM; what is finished
stays on disk and the same command goes on from there.

JAX is imported by `start_jax`, after the arguments have been parsed, so that ``--help`` is instant.
"""

import contextlib
import dataclasses
import importlib
import importlib.metadata
import itertools
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PACKAGES = ("jaxbp", "jax", "jaxlib", "flax", "optax", "numpy", "scipy")


@dataclass(frozen=True)
class Piece:
    """A named piece of work.

    ``compute`` returns arrays; ``weight`` is its share of the time, in any unit that all pieces use; neighbours of one ``group``
    may run beside each other in threads.
    """

    name: str
    compute: Callable[[], Mapping[str, Any]]
    weight: float = 1.0
    group: str | None = None


@dataclass(frozen=True)
class Cluster:
    """Several processes as one: started with the same command each, all but the last option being the same.

    Under SLURM and on TPU VMs nothing need be said.
    """

    coordinator: str | None = None
    """HOST:PORT of process 0, to run in several processes."""
    num_processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """Number of this one, from 0."""


ONE_PROCESS = Cluster()


class SettingsError(ValueError):
    """The arguments do not make a runnable study."""


def run_study(package: str, arguments: Any, *, title: str, lead: str) -> None:
    """Do the work that is not done yet, judge, draw, and write the page; then end the program in an orderly way.

    ``arguments``: with ``folder``, ``data_dir`` and ``settings()``; ``title`` and ``lead`` head the page.
    """
    with guarded(arguments.folder):
        settings = arguments.settings()
        devices = start_jax(arguments.cluster)
        began = time.monotonic()
        measure, results, figures, page = (
            importlib.import_module(f"{package}.{name}") for name in ("measure", "results", "figures", "page")
        )
        from jaxbp import distributed, report
        from jaxbp.sweep import folder

        with folder.open_together(arguments.folder, dataclasses.asdict(settings), facts(devices)) as store:
            run_pieces(store, measure.pieces(settings, store, arguments.data_dir), num_workers=len(devices))
            if not distributed.is_first():
                return
            found = results.Results(settings, store)
            verdicts = results.verdicts(found)
            write_results(store, results.rows(found), verdicts)
            pictures = figures.draw(found, arguments.folder / "figures")
            wall = store.config.get("wall_seconds", 0) + round(time.monotonic() - began, 1)
            peak = max(store.config.get("peak_memory_mib", 0), _peak_memory_mib())
            store.note(wall_seconds=wall, peak_memory_mib=peak)
            path = arguments.folder / "report.html"
            sections = page.sections(found, pictures)
            report.write_page(path, title=title, lead=lead, verdicts=verdicts, sections=sections, settings=store.config)
        print_verdicts(verdicts, path)
        print(f"wall time {wall:.0f} s, peak memory {peak} MiB")


def start_jax(cluster: Cluster | None = None) -> list[str]:
    """Import JAX with its persistent compilation cache on and each CPU core a device, and join other processes if there are any.

    Returns:
      The names of this process's devices.
    """
    import jax

    from jaxbp import distributed, sweep

    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jaxbp" / "xla"
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    if cluster is not None:  # before anything lists devices
        distributed.initialize(**dataclasses.asdict(cluster))
    if "cpu" in (jax.config.jax_platforms or "cpu"):
        with contextlib.suppress(RuntimeError):  # a notebook may have started JAX already: its devices will do
            sweep.use_all_cores()
    return [str(device.device_kind) for device in jax.local_devices()]


def facts(devices: Sequence[str]) -> dict[str, Any]:
    """What is worth knowing about where and with what a run was started."""
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": " ".join(sys.argv),
        "python": platform.python_version(),
        "packages": versions,
        "devices": list(devices),
        "git_commit": _git_commit(),
    }


def _peak_memory_mib() -> int:
    """The most main memory that this process has held."""
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib // (2**20 if sys.platform == "darwin" else 2**10)  # macOS counts bytes


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    with contextlib.suppress(OSError):
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        return found.stdout.strip() or None
    return None


def run_pieces(store: Any, pieces: Sequence[Piece], *, num_workers: int = 1) -> None:
    """Compute the pieces that ``store`` lacks, in order; neighbours of one group share ``num_workers`` threads and all processes.

    BLAS gets one thread throughout. Threads of several workers would wait for one another, spinning (a fit of 0.4 s took 20 s on a
    busy machine), and their number decides the last bits, which must not depend on where a run was stopped.
    """
    import jax
    import threadpoolctl

    from jaxbp import distributed
    from jaxbp.progress import Progress

    missing = distributed.from_first([number for number, piece in enumerate(pieces) if piece.name not in store])
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
            distributed.barrier(f"pieces of {group}")  # later ones may read them


def _run_together(store: Any, pieces: Sequence[Piece], progress: Any, num_workers: int) -> None:
    def compute(piece: Piece) -> Mapping[str, Any]:
        progress.start(piece.name)
        try:
            return piece.compute()
        except Exception as error:
            progress.failed(piece.name, error)
            raise

    from jaxbp import sweep

    if num_workers == 1 or len(pieces) == 1:
        for piece in pieces:
            store.put(piece.name, compute(piece))
            progress.done(piece.name)
            sweep.make_room()
        return
    pool = ThreadPoolExecutor(num_workers)
    try:
        futures = {pool.submit(compute, piece): piece for piece in pieces}
        while futures:
            finished, _ = wait(futures, return_when=FIRST_COMPLETED)
            for future in finished:
                piece = futures.pop(future)
                store.put(piece.name, future.result())
                progress.done(piece.name)
            sweep.make_room()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def guarded(folder: str | os.PathLike) -> Iterator[None]:
    """Report a user's errors in one line on stderr, and interruptions with the way to go on; then exit with a code.

    An error class of the project's own is made for users. Anything else is a defect and keeps its traceback. SIGTERM ends the program
    within seconds, whatever it computes.
    """

    from jaxbp import stopping

    again = f"Finished pieces are in {folder}; the same command goes on from there."
    try:
        with stopping.watch(at_once=True, last_words=again):
            yield
            if _several_processes():
                from jaxbp import distributed

                distributed.shutdown()
    except BrokenPipeError:  # whoever read the output has gone, as `head` does
        os._exit(stopping.PIPE_CLOSED)
    except Exception as error:
        if type(error).__module__.partition(".")[0] in ("jaxbp", "experiments"):
            _leave(2, f"error: {error}")
        if not _several_processes():
            raise
        sys.excepthook(type(error), error, error.__traceback__)
        _leave(1, "this process failed, and the others end with it")  # Python's own end would wait for them
    except KeyboardInterrupt:
        _leave(130, f"stopped. {again}")
    except stopping.Terminated:
        _leave(stopping.TERMINATED, f"terminated. {again}")


def _several_processes() -> bool:
    return "jax" in sys.modules and sys.modules["jax"].process_count() > 1


def _leave(code: int, message: str) -> None:
    """End at once: threads that still compute must not keep a stopped program alive."""
    print(f"\n{message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)


def write_results(store: Any, rows: Iterable[tuple], verdicts: Sequence[Any]) -> None:
    """Write measurements.parquet (tidy: rows of case, arm, seed, step, measure, value) and verdicts.json."""
    import io

    import pandas as pd

    from jaxbp import evidence

    buffer = io.BytesIO()
    frame = pd.DataFrame(list(rows), columns=["case", "arm", "seed", "step", "measure", "value"])
    frame.to_parquet(buffer, index=False)
    evidence.write_atomically(store.folder / "measurements.parquet", buffer.getvalue())
    evidence.write_verdicts(store.folder / "verdicts.json", verdicts)


def print_verdicts(verdicts: Sequence[Any], page: Path) -> None:
    """The table of verdicts in the terminal, and where the page is."""
    from rich.console import Console
    from rich.table import Table

    from jaxbp.report import format_interval

    table = Table(title="Verdicts (95 % intervals over seeds)", title_justify="left")
    for column in ("id", "claim", "interval", "seeds", "verdict"):
        table.add_column(column, no_wrap=column in ("id", "verdict"))
    colours = {"supported": "green", "contradicted": "red", "undecided": "yellow"}
    for v in verdicts:
        word = f"[{colours[v.verdict]}]{v.verdict}[/]"
        table.add_row(v.claim.id, v.claim.statement, format_interval(v.interval), str(v.num_seeds), word)
    console = Console()
    console.width = max(console.width, 110)
    console.print(table)
    print(f"page: {page}")
