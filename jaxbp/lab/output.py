"""Results on disk, and the table of verdicts in the terminal."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

_COLOURS = {"supported": "green", "contradicted": "red", "undecided": "yellow"}


def write_results(store: Any, rows: Iterable[tuple], verdicts: Sequence[Any]) -> None:
    """Write measurements.parquet (tidy: rows of case, arm, seed, step, measure, value) and verdicts.json."""
    import pandas as pd

    from jaxbp import claims
    from jaxbp.runtime import files

    buffer = io.BytesIO()
    frame = pd.DataFrame(list(rows), columns=["case", "arm", "seed", "step", "measure", "value"])
    frame.to_parquet(buffer, index=False)
    files.write_atomically(store.folder / "measurements.parquet", buffer.getvalue())
    claims.write_verdicts(store.folder / "verdicts.json", verdicts)


def outcome(word: str) -> str:
    """A verdict in its colour, for a table of rich."""
    return f"[{_COLOURS[word]}]{word}[/]"


def print_verdicts(verdicts: Sequence[Any], page: Path) -> None:
    """The table of verdicts, and where the page is."""
    from rich.markup import escape
    from rich.table import Table

    from jaxbp.report import format_interval

    table = Table(title="Verdicts (95 % intervals over seeds)", title_justify="left")
    for column in ("id", "claim", "interval", "seeds", "verdict"):
        table.add_column(column, no_wrap=column in ("id", "verdict"))
    for v in verdicts:
        claim, interval = escape(v.claim.statement), escape(format_interval(v.interval))
        table.add_row(v.claim.id, claim, interval, str(v.num_seeds), outcome(v.verdict))
    print_table(table)
    print(f"page: {page}")


def print_table(table: Any) -> None:
    """Print a table of rich, wide enough to be read where the output is no terminal."""
    from rich.console import Console

    console = Console()
    console.width = max(console.width, 110)
    console.print(table)
