"""Tables and pictures of the claims in README and guide, from runs of the lab; never by hand.

``python -m experiments.publish RUN`` copies the verdicts of a finished ``python -m experiments`` and what is worth knowing about it to
``experiments/published``, which is kept under version control, draws the pictures there, and writes the tables between the markers of the
README (a claim a study) and of the guide's page of results (all claims). A run of the preset ``standard`` may hold some studies only, and
fills a table beside the other. RUN may be a map of ``python -m experiments.map``, too. Without RUN tables and pictures are made anew from
what was published last.
"""

import dataclasses
import importlib
from pathlib import Path
from typing import Annotated

import tyro

from jaxbp import lab


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Publish a run of the lab in README and guide, or make tables and pictures anew from what was published."""

    run: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder of a finished `python -m experiments`, or of a map."""


def main() -> None:
    """Parse the command line, publish."""
    arguments = tyro.cli(Arguments, prog="python -m experiments.publish")
    with lab.guarded(Path(__file__).parent):
        pages = importlib.import_module("experiments.results_pages")  # after parsing, so that help is instant
        if arguments.run:
            pages.take(arguments.run)
        pages.write()


if __name__ == "__main__":
    main()
