"""The command that shows two runs side by side; imports little, so that ``--help`` is instant.

``python -m jaxbp.lab.compare RUN_A RUN_B`` takes folders of studies or of the whole lab, their ``verdicts.json``, or the word
``paper``, which stands for what the paper found. Exit code 0 if no verdict moved, 1 if one did. The work is in `jaxbp.lab.verdict_changes`.
"""

import dataclasses
import importlib
import sys
from typing import Annotated

import tyro

from jaxbp.lab.cli import guarded


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Show which verdicts moved between two runs, and by how much. Exit code 0 if none did, 1 if one did, 2 for bad input."""

    run_a: Annotated[str, tyro.conf.Positional]
    """Folder of a study or of the whole lab, or its verdicts.json, or the word paper."""
    run_b: Annotated[str, tyro.conf.Positional]
    """What to compare it with, likewise."""
    every: bool = False
    """List claims that are in one run only, too."""


def main() -> None:
    """Parse the command line, compare, print."""
    arguments = tyro.cli(Arguments, prog="python -m jaxbp.lab.compare")
    with guarded("no folder: nothing is written"):
        changes = importlib.import_module("jaxbp.lab.verdict_changes")  # the door to what is slow to import
        both = changes.read_both(arguments.run_a, arguments.run_b)
        heads = map(changes.head, (arguments.run_a, arguments.run_b), both)
        print("; ".join(f"{name}: {head}" for name, head in zip("AB", heads, strict=True)))
        moved = changes.show(*both, every=arguments.every)
    sys.exit(1 if moved else 0)


if __name__ == "__main__":
    main()
