"""Two runs side by side: which verdicts moved, and by how much.

A run is the folder of a study or of the whole lab, its ``verdicts.json``, or the word ``paper``, which stands for what the paper found.
Estimates are compared where both runs have an interval: the difference is told with a 95 % interval of its own, which supposes that the
two runs are independent (`difference`). The command is `jaxbp.lab.compare`.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from rich.markup import escape
from rich.table import Table

from jaxbp import claims, lab, stats
from jaxbp.lab.output import outcome, print_table
from jaxbp.report import format_interval
from jaxbp.runtime.outside_text import plain_text

PAPER = "paper"
OUTCOMES = get_args(claims.Outcome)


def read_both(run_a: str, run_b: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Verdicts of two runs by claim id, the paper's on the other's claims.

    Raises:
      SettingsError: one cannot be read, both are the paper, or they have no claim in common.
    """
    if run_a == run_b == PAPER:
        raise lab.SettingsError("the paper agrees with itself: name a run to compare it with")
    found = {run: read(run) for run in (run_a, run_b) if run != PAPER}
    a = found[run_a] if run_a != PAPER else of_paper(found[run_b])
    b = found[run_b] if run_b != PAPER else of_paper(found[run_a])
    if not a.keys() & b.keys():
        raise lab.SettingsError(f"no claim is in both: {run_a} has {', '.join(a)}, {run_b} has {', '.join(b)}")
    return a, b


def read(run: str | Path) -> dict[str, Any]:
    """Verdicts of a run by claim id.

    Raises:
      SettingsError: there is no verdicts.json, or it cannot be read.
    """
    path = Path(run) if Path(run).suffix == ".json" else Path(run) / "verdicts.json"
    try:
        return {verdict.claim.id: verdict for verdict in map(_plain, claims.read_verdicts(path))}
    except FileNotFoundError as error:
        raise lab.SettingsError(f"there is no {path}: name the folder of a finished run") from error
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError, OSError) as error:
        reason = plain_text(f"{type(error).__name__}: {error}")
        raise lab.SettingsError(f"{path} cannot be read as verdicts ({reason}): name another run, or run the study again") from error


def _plain(verdict: Any) -> Any:
    """A verdict whose texts, which anybody may have written, are fit for a terminal.

    Raises:
      TypeError: something in its place is no text or number.
    """
    texts = {"id": verdict.claim.id, "statement": verdict.claim.statement, "verdict": verdict.verdict, "note": verdict.note}
    if wrong := [name for name, text in texts.items() if not isinstance(text, str)]:
        raise TypeError(f"{wrong[0]} must be a text, got {texts[wrong[0]]!r}")
    if verdict.verdict not in OUTCOMES:
        raise ValueError(f"a verdict is one of {', '.join(OUTCOMES)}, got {verdict.verdict!r}")
    claim = dataclasses.replace(verdict.claim, id=plain_text(verdict.claim.id), statement=plain_text(verdict.claim.statement))
    return dataclasses.replace(verdict, claim=claim, note=plain_text(verdict.note))


def of_paper(verdicts: Mapping[str, Any]) -> dict[str, Any]:
    """What the paper says of these claims: all that it speaks of are its findings; it gives no intervals."""
    return {
        id_: dataclasses.replace(verdict, interval=None, verdict="supported", cases=(), note=str(verdict.claim.paper_value))
        for id_, verdict in verdicts.items()
        if verdict.claim.paper_value is not None
    }


def difference(a: Any, b: Any) -> Any:
    """b - a of two independent estimates, with an interval whose half width is the root of the sum of both squared ones.

    That is exact for normal means with known variances, and a little too narrow for few seeds. None where one has no interval.
    """
    if a is None or b is None:
        return None
    estimate = b.estimate - a.estimate
    below = math.hypot(b.estimate - b.low, a.high - a.estimate)
    above = math.hypot(b.high - b.estimate, a.estimate - a.low)
    seeds = min(a.num_seeds, b.num_seeds)
    return stats.Interval(estimate, estimate - below, estimate + above, stats.CONFIDENCE, seeds, "independent runs")


def show(a: Mapping[str, Any], b: Mapping[str, Any]) -> int:
    """Print the table, and which verdicts moved; returns how many did."""
    table = Table(title="A and B, 95 % intervals", title_justify="left")
    for column in ("id", "A", "B", "B - A", "verdict A", "verdict B"):
        table.add_column(column, no_wrap=column in ("id", "verdict A", "verdict B"))
    moved = []
    for id_ in dict.fromkeys([*a, *b]):
        pair: list[Any] = [run.get(id_) for run in (a, b)]
        change = format_interval(difference(*(one and one.interval for one in pair)))
        words = [outcome(one.verdict) if one else "not in it" for one in pair]
        table.add_row(escape(id_), *(escape(cell) for cell in (*map(_told, pair), change)), *words)
        if None not in pair and pair[0].verdict != pair[1].verdict:
            moved.append(f"{id_} {pair[0].claim.statement} {pair[0].verdict} -> {pair[1].verdict}")
    print_table(table)
    both, others = len(a.keys() & b.keys()), len(a.keys() ^ b.keys())
    print(f"{len(moved)} of {both} verdicts moved; {others} claim{'s are' if others != 1 else ' is'} in one run only")
    for line in moved:
        print(f"  {line}")
    return len(moved)


def _told(verdict: Any) -> str:
    if verdict is None:
        return "-"
    return format_interval(verdict.interval) if verdict.interval else verdict.note
