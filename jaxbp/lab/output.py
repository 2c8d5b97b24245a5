"""Verdicts and maps in the terminal."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxbp.claims import ClaimMap
from jaxbp.claims.claim_map import value_text
from jaxbp.lab import this_machine
from jaxbp.lab.cost_plan import StageCost
from jaxbp.report import format_interval
from jaxbp.report.claim_maps import along_sentences, explained_rows, reasons
from jaxbp.report.outcomes import control_caveat
from jaxbp.report.text import plural
from jaxbp.runtime.machines import NOWHERE_ELSE, Elsewhere, Machine
from jaxbp.runtime.progress import format_seconds

_COLOURS = {
    "supported": "green",
    "contradicted": "red",
    "mixed": "magenta",
    "undecided": "yellow",
    "not tested": "bright_black",
    "void": "bright_black",
    "failed": "red",
}


def outcome(word: str) -> str:
    """A verdict in its colour, for a table of rich."""
    return f"[{_COLOURS[word]}]{word}[/]"


def print_verdicts(verdicts: Sequence[Any], page: Path, controls: Sequence[Any] = ()) -> None:
    """What came out of the controls, the table of verdicts, and where the page is."""
    for result in controls:
        caveat = control_caveat(result)
        passed = f"[green]passed[/]{f'. {escape(caveat)}' if caveat else ''}"
        told = passed if result.passed else f"[red]failed[/], {escape(result.reason)}"
        Console().print(f"{result.control.id} {escape(result.control.statement)} {told}", soft_wrap=True)
    levels = "intervals of the looks" if any(verdict.looks for verdict in verdicts) else "95 % intervals"
    table = Table(title=f"Verdicts ({levels} over seeds)", title_justify="left")
    for column in ("id", "claim", "interval", "seeds", "power", "verdict"):
        table.add_column(column, no_wrap=column in ("id", "power"))
    for v in verdicts:
        claim, interval = escape(v.claim.statement), escape(format_interval(v.interval))
        power = f"{100 * v.power.chance:.0f} %" if v.power else "-"
        table.add_row(escape(v.claim.id), claim, interval, str(v.num_seeds), power, outcome(v.verdict) + v.headline.removeprefix(v.verdict))
    print_table(table)
    print(f"page: {page}", flush=True)


def print_reasons(found: ClaimMap) -> None:
    """Why cells say nothing."""
    for reason, names in reasons(found).items():
        print(f"{reason} In {len(names)} of {plural(len(found.cells), 'cell')}: {'; '.join(names)}")


def print_map(found: ClaimMap, folder: Path) -> None:
    """A line for each specification, what explains the effect, where the outcome flips, and the place of the page."""
    table = Table(title=escape(f"{found.claim.id} {found.claim.statement}"), title_justify="left")
    for column in (*(axis.name for axis in found.all_axes), "effect", "seeds", "outcome"):
        table.add_column(escape(column))
    for spec in found.specifications:
        values = [value_text(spec.point[axis.name]) if axis.name in spec.point else "-" for axis in found.all_axes]
        table.add_row(*map(escape, (*values, format_interval(spec.interval), str(spec.num_seeds))), outcome(spec.outcome))
    print_table(table)
    print(f"{found.claim.id} {found.headline}")
    for name, share, noise in explained_rows(found):
        told = "no more than noise alone gives" if share <= noise else f"noise alone {noise:.0f} %"
        print(f"  {name}: {share:.0f} % of the variance of the effect ({told})")
    for along in found.along:
        print(f"  along {along.axis.name}: {' '.join(along_sentences(along))}")
    print(f"page: {folder / 'map.html'}")


def print_plan(costs: Sequence[StageCost], num_workers: int, elsewhere: Elsewhere = NOWHERE_ELSE) -> None:
    """What a run would cost by stage and in all, each number an estimate with its basis; also the time ``elsewhere``."""
    machine, here = elsewhere.machine, this_machine.measured() if elsewhere.machine else None
    there = [f"on {machine.name}"] if machine else []
    table = Table(title="What the run would cost: an estimate", title_justify="left")
    for column in ("stage", "jobs", "there", "time", *there, "programs", "operations", "bytes", "disk"):
        table.add_column(column, justify="left" if column == "stage" else "right", no_wrap=column != "stage")
    for cost in costs:
        seconds, size = _or_dash(cost.seconds, format_seconds), _or_dash(cost.num_bytes, _format_bytes)
        times = [_or_dash(cost.elsewhere(elsewhere, here), lambda part: f"{format_seconds(part.seconds)}, {part.bound_by}")] if here else []
        work = [_or_dash(value, _format_count) for value in (cost.flops, cost.bytes_accessed)]
        counts = (str(cost.num_jobs), str(cost.num_there), seconds, *times, _or_dash(cost.programs, str), *work, size)
        table.add_row(escape(cost.stage), *counts)
    print_table(table)
    for cost in costs:
        print(f"basis of {cost.stage}: {cost.basis}")
    known = [cost.seconds for cost in costs if cost.seconds is not None]
    peaks, programs = [cost.peak_mib for cost in costs if cost.peak_mib], [cost.program_mib for cost in costs if cost.program_mib]
    unknown = ", ".join(cost.stage for cost in costs if cost.seconds is None)
    total = sum(known)
    if known:
        print(f"time, one job after another: {format_seconds(total)}; {num_workers} at once: {format_seconds(total / num_workers)}")
    print(f"peak memory of a process so far: {max(peaks)} MiB" if peaks else "peak memory: not known yet")
    if programs:
        print(f"the largest program that was timed holds {max(programs):.1f} MiB on a device")
        print("operations and bytes: by the compiler's account, loops as often as they run, each program of a job called once")
    if unknown:
        print(f"time not known, for want of timed jobs: {unknown}")
    if here:
        _print_elsewhere(costs, elsewhere, here)


def _print_elsewhere(costs: Sequence[StageCost], elsewhere: Elsewhere, here: Machine) -> None:
    """The time in all on another machine, and what the estimate is made from."""
    machine = elsewhere.machine
    assert machine
    parts = [(cost, cost.elsewhere(elsewhere, here)) for cost in costs]
    known = [part for _, part in parts if part]
    if known:
        total = sum(part.seconds for part in known)
        at_once = f"; {machine.num_devices} at once: {format_seconds(total / machine.num_devices)}" * (machine.num_devices > 1)
        print(f"on {machine.name}, an estimate without compilation: one job after another {format_seconds(total)}{at_once}")
    if lacking := ", ".join(cost.stage for cost, part in parts if not part):
        print(f"on {machine.name} not known, since no timed job noted its programs: {lacking}")
    print(f"basis of {machine.name}: {_basis(elsewhere, here)}")
    largest = max((cost.program_mib or 0 for cost in costs), default=0)
    if largest * 2**20 > machine.memory:
        print(f"a program that was timed holds more than the {machine.memory / 1e9:g} GB of a device")


def _basis(elsewhere: Elsewhere, here: Machine) -> str:
    machine = elsewhere.machine
    assert machine
    figures = f"{_figures(machine)} ({machine.source})"
    if elsewhere.efficiency is None:
        return f"the time here times the ratio of rooflines, the longest of: {figures}; here {_figures(here)} (measured now)"
    return f"the longest of: {figures}; of arithmetic and memory a share of {elsewhere.efficiency:g} is reached"


def _figures(machine: Machine) -> str:
    return f"{machine.flops / 1e12:.3g} Tflop/s, {machine.bandwidth / 1e9:.4g} GB/s, {1e6 * machine.launch:.2g} microseconds a launch"


def _format_count(number: float) -> str:
    """Such as 1.2e9."""
    return f"{number:.1e}".replace("e+0", "e").replace("e+", "e")


def _or_dash(value: Any, form_fn: Callable[[Any], str]) -> str:
    return "-" if value is None else form_fn(value)


def _format_bytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def print_table(table: Any) -> None:
    """Print a table of rich as wide as the terminal, and wide enough to be read where the output is none."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 110)
    console.print(table)
