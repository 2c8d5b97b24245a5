"""What every study shares: pieces of work with progress, a folder that survives a kill, and an orderly end.

A study is a package with modules of fixed names, which `run_study` runs one after another: ``settings`` (the command line),
``measure.pieces`` (the work), ``results.Results``, ``results.verdicts`` and ``results.rows``, ``figures.draw``, ``page.sections``.
The work is a list of named `Piece` objects. `run_pieces` computes those that the folder does not hold yet, shows how far it is and how
long it may take, and writes each one before it says so. `guarded` turns what can go wrong for a user into one clear line and an
exit code: 2 for bad input, 130 for Ctrl-C, 143 for SIGTERM; what is finished stays on disk and the same command goes on from there.

JAX is imported by `start_jax`, after the arguments have been parsed, so that ``--help`` is instant.
"""

import contextlib
import dataclasses
import importlib
import importlib.metadata
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PACKAGES = ("jaxbp", "jax", "jaxlib", "flax", "optax", "numpy", "scipy")
_ESTIMATE_FROM = 0.05  # share of the work; before it, compilation dominates
_LINE_EVERY = 2.0  # seconds between progress lines where there is no terminal to redraw


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


class SettingsError(ValueError):
    """The arguments do not make a runnable study."""


class Stopped(BaseException):
    """SIGTERM arrived."""


def run_study(package: str, arguments: Any, *, title: str, lead: str) -> None:
    """Do the work that is not done yet, judge, draw, and write the page; then end the program in an orderly way.

    ``arguments``: with ``folder``, ``data_dir`` and ``settings()``; ``title`` and ``lead`` head the page.
    """
    with guarded(arguments.folder):
        settings = arguments.settings()
        devices = start_jax()
        began = time.monotonic()
        measure, results, figures, page = (
            importlib.import_module(f"{package}.{name}") for name in ("measure", "results", "figures", "page")
        )
        from jaxbp import report
        from jaxbp.store import Store

        with Store(arguments.folder, dataclasses.asdict(settings), facts(devices)) as store:
            run_pieces(store, measure.pieces(settings, store, arguments.data_dir), num_workers=len(devices))
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


def start_jax() -> list[str]:
    """Import JAX with its persistent compilation cache on and each CPU core a device; returns the devices' names."""
    import jax

    from jaxbp import sweep

    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jaxbp" / "xla"
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    if "cpu" in (jax.config.jax_platforms or "cpu"):
        with contextlib.suppress(RuntimeError):  # a notebook may have started JAX already: its devices will do
            sweep.use_all_cores()
    return [str(device.device_kind) for device in jax.devices()]


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
    """Compute the pieces that ``store`` lacks, in order; neighbours of one group share ``num_workers`` threads.

    BLAS gets one thread throughout. Threads of several workers would wait for one another, spinning (a fit of 0.4 s took 20 s on a
    busy machine), and their number decides the last bits, which must not depend on where a run was stopped.
    """
    import threadpoolctl

    missing = [piece for piece in pieces if piece.name not in store]
    if done := len(pieces) - len(missing):
        print(f"{done} of {len(pieces)} pieces of work are in {store.folder} already")
    with threadpoolctl.threadpool_limits(1), _progress(sum(p.weight for p in missing), len(missing)) as advance:
        position = 0
        while position < len(missing):
            end = position + 1
            while missing[position].group and end < len(missing) and missing[end].group == missing[position].group:
                end += 1
            _run_together(store, missing[position:end], advance, num_workers)
            position = end


def make_room() -> None:
    """Drop JAX's compiled programs once they hold half of the memory maps that Linux allows a process.

    Each holds a thousand or two, and with none left XLA crashes. They come back from the compilation cache on disk.
    """
    held, allowed = _memory_maps()
    if held > allowed / 2:
        import jax

        jax.clear_caches()


def _memory_maps() -> tuple[int, int]:
    """How many the process holds, and may; (0, 0) where the system does not say."""
    with contextlib.suppress(OSError):
        return Path("/proc/self/maps").read_bytes().count(b"\n"), int(Path("/proc/sys/vm/max_map_count").read_text())
    return 0, 0


def _run_together(store: Any, pieces: Sequence[Piece], advance: Callable[[Piece], None], num_workers: int) -> None:
    if num_workers == 1 or len(pieces) == 1:
        for piece in pieces:
            store.put(piece.name, piece.compute())
            advance(piece)
            make_room()
        return
    pool = ThreadPoolExecutor(num_workers)
    try:
        futures = {pool.submit(piece.compute): piece for piece in pieces}
        while futures:
            finished, _ = wait(futures, return_when=FIRST_COMPLETED)
            for future in finished:
                piece = futures.pop(future)
                store.put(piece.name, future.result())
                advance(piece)
            make_room()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def _progress(total: float, count: int) -> Iterator[Callable[[Piece], None]]:
    """Yields the function to call with each finished piece: a bar in a terminal or notebook, else now and then a line."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console()
    if console.is_terminal or console.is_jupyter:
        columns = (
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, TextColumn("{task.description}"), console=console) as bar:
            task = bar.add_task("starting", total=total)
            yield lambda piece: bar.update(task, advance=piece.weight, description=piece.name)
        return
    start = last = time.monotonic()
    share, number = 0.0, 0

    def advance(piece: Piece) -> None:
        nonlocal share, number, last
        share, number = share + piece.weight / total, number + 1
        now = time.monotonic()
        if now - last > _LINE_EVERY or number == count:
            left = (now - start) * max(1 - share, 0.0) / share
            estimate = f", about {left:.0f} s left" if share > _ESTIMATE_FROM else ""
            print(f"[{number}/{count}] {piece.name}, {now - start:.0f} s{estimate}", flush=True)
            last = now

    yield advance


@contextlib.contextmanager
def guarded(folder: str | os.PathLike) -> Iterator[None]:
    """Report a user's errors in one line on stderr, and interruptions with the way to go on; then exit with a code.

    An error class of the project's own is made for users. Anything else is a defect and keeps its traceback.
    """

    def stop(*_: Any) -> None:
        raise Stopped

    previous = signal.signal(signal.SIGTERM, stop)
    again = f"Finished pieces are in {folder}; the same command goes on from there."
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("jaxbp", "experiments"):
            raise
        _leave(2, f"error: {error}")
    except KeyboardInterrupt:
        _leave(130, f"stopped. {again}")
    except Stopped:
        _leave(143, f"terminated. {again}")
    finally:
        signal.signal(signal.SIGTERM, previous)


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
