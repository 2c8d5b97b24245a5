"""Two runs side by side: which verdicts moved, and by how much.

A run is the folder of a study or of the whole lab, its ``verdicts.json``, or the word ``paper``, which stands for what the paper found.
Estimates of one case are compared seed by seed where both runs have noted the values of a seed (`jaxbp.lab.verdict_pairs`). The command is
`jaxbp.lab.compare`.
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from rich.markup import escape
from rich.table import Table

from jaxbp import claims, lab
from jaxbp.lab.output import outcome, print_table
from jaxbp.lab.verdict_pairs import compared
from jaxbp.report import format_interval
from jaxbp.runtime.outside_text import DamagedFileError, plain_text, read_json

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


def head(run: str, verdicts: Mapping[str, Any]) -> str:
    """What a run is, such as "quick, 10 seeds, commit 0123456789ab", as far as the files beside its verdicts say."""
    if run == PAPER:
        return "what the paper found"
    folder = Path(run).parent if Path(run).suffix == ".json" else Path(run)
    configs = [_config(path) for path in (folder / "config.json", folder / "facts.json", *sorted(folder.glob("*/config.json")))]
    configs = [config for config in configs if config]
    settings = [config.get("settings", config) for config in configs]
    commits = dict.fromkeys(str(config["git_commit"]) for config in configs if config.get("git_commit"))
    presets = dict.fromkeys(str(each["preset"]) for each in settings if each.get("preset"))
    first = sorted({case.by_seed[0][0] for verdict in verdicts.values() for case in verdict.cases if case.by_seed})
    counts = sorted({verdict.num_seeds for verdict in verdicts.values()})
    seeds = f"{counts[0]} to {counts[-1]} seeds" if len(counts) > 1 else f"{counts[0]} seeds"
    seeds += "".join(f" from {number}" for number in first if number)
    return plain_text(", ".join([*presets, seeds, *(f"commit {commit}" for commit in commits)]))


def _config(path: Path) -> dict[str, Any]:
    """A file's mapping; empty where there is none, since a run is compared without it, too."""
    with contextlib.suppress(DamagedFileError, OSError):
        config = read_json(path)
        if isinstance(config, dict) and isinstance(config.get("settings", {}), dict):
            return config
    return {}


def show(a: Mapping[str, Any], b: Mapping[str, Any], *, every: bool = False) -> int:
    """Print the table of the claims in both runs, or of ``every`` one, and which verdicts moved; returns how many did."""
    table = Table(title="A and B, 95 % intervals", title_justify="left")
    for column in ("id", "case", "A", "B", "B - A", "verdict A", "verdict B"):
        table.add_column(column, no_wrap=column in ("id", "verdict A", "verdict B"))
    moved, alone = [], a.keys() ^ b.keys()
    for id_ in dict.fromkeys([*a, *b]):
        pair: list[Any] = [run.get(id_) for run in (a, b)]
        if id_ in alone and not every:
            continue
        words = [outcome(one.verdict) if one else "not in it" for one in pair]
        change = compared(*pair) if None not in pair else None
        cells = [change.case, *map(_told, pair, (change.a, change.b)), change.told] if change else ["", *map(_told, pair), "-"]
        table.add_row(escape(id_), *map(escape, cells), *words)
        if change and pair[0].verdict != pair[1].verdict:
            moved.append(f"{id_} {pair[0].claim.statement} {pair[0].verdict} -> {pair[1].verdict}")
    print_table(table)
    listed = "" if every or not alone else " (--every lists them)"
    in_one = f"{len(alone)} claim{'s are' if len(alone) != 1 else ' is'} in one run only{listed}"
    print(f"{len(moved)} of {len(a.keys() & b.keys())} verdicts moved; {in_one}")
    for line in moved:
        print(f"  {line}")
    return len(moved)


def _told(verdict: Any, interval: Any = None) -> str:
    if verdict is None:
        return "-"
    shown = interval or verdict.interval
    return format_interval(shown) if shown else "no interval" if verdict.cases else verdict.note
