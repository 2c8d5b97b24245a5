"""The table of verdicts in the terminal."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxbp.report import format_interval

_COLOURS = {"supported": "green", "contradicted": "red", "undecided": "yellow"}


def outcome(word: str) -> str:
    """A verdict in its colour, for a table of rich."""
    return f"[{_COLOURS[word]}]{word}[/]"


def print_verdicts(verdicts: Sequence[Any], page: Path) -> None:
    """The table of verdicts, and where the page is."""
    table = Table(title="Verdicts (95 % intervals over seeds)", title_justify="left")
    for column in ("id", "claim", "interval", "seeds", "verdict"):
        table.add_column(column, no_wrap=column in ("id", "verdict"))
    for v in verdicts:
        claim, interval = escape(v.claim.statement), escape(format_interval(v.interval))
        table.add_row(escape(v.claim.id), claim, interval, str(v.num_seeds), outcome(v.verdict))
    print_table(table)
    print(f"page: {page}")


def print_table(table: Any) -> None:
    """Print a table of rich as wide as the terminal, and wide enough to be read where the output is none."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 110)
    console.print(table)
