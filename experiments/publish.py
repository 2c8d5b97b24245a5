"""Tables and pictures of the claims in README and guide, from runs of the lab; never by hand.

``python -m experiments.publish RUN`` copies the verdicts of a finished ``python -m experiments`` and what is worth knowing about it to
``experiments/published``, which is kept under version control, draws the pictures there, and writes the tables between the markers of the
README (a claim a study) and of the guide's page of results (all claims). A run of the preset ``standard`` may hold some studies only, and
fills a table beside the other. RUN may be a map of ``python -m experiments.map``, too. Without RUN tables and pictures are made anew from what was published last.
"""

import dataclasses
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
        from experiments import map_tables, results_pages  # after parsing, so that help is instant

        if arguments.run:
            source = map_tables if map_tables.is_map(arguments.run) else results_pages
            source.take(arguments.run)
        results_pages.write()


if __name__ == "__main__":
    main()
