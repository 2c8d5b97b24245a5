"""The whole lab: all studies, one table of verdicts, one page.

``python -m experiments`` runs every study at the quick preset in one process, each in a folder of its own under ``runs/lab-quick``, and
writes ``verdicts.json`` and ``report.html`` of all of them there. A run that was stopped goes on when the same command is given again.
"""

import dataclasses
import importlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from jaxbp import lab

STUDIES = (
    "local_minima",
    "norm_bias",
    "ntk_width",
    "rank_robustness",
    "power_iteration",
)  # modules of this package, in order
TITLE = "Truth or backpropaganda?"
LEAD = (
    "Beliefs about deep learning, put as claims that a measurement can support or contradict, and measured over many seeds. A claim "
    "is supported or contradicted only if a whole interval says so, by a rule fixed before the run; else it stays undecided."
)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Run all studies of the lab, or some, and write one page with every verdict."""

    preset: Literal["smoke", "quick", "paper"] = "quick"
    """smoke: minutes, to see it run. quick: twenty minutes on two CPU cores, embedded data. paper: the paper's scale, accelerators."""
    only: str | None = None
    """Run these studies alone: ids with commas between, such as S1,S3."""
    seeds: int | None = None
    """Number of seeds of every study; default its preset's, 5 or 10."""
    cluster: tyro.conf.OmitArgPrefixes[lab.Cluster] = lab.ONE_PROCESS
    out: Path | None = None
    """Folder of the run; default runs/lab-PRESET."""
    data_dir: Path | None = None
    """Where TFDS data sets are, or are to be prepared."""


def main() -> None:
    """Parse the command line, run the studies, and print all verdicts."""
    arguments = tyro.cli(Arguments, prog="python -m experiments")
    folder = arguments.out or Path("runs") / f"lab-{arguments.preset}"
    with lab.guarded(folder):
        began = time.monotonic()
        studies = chosen(arguments.only)
        settings = [_settings(study, arguments) for study in studies]  # wrong arguments are told before any work
        devices = lab.start_jax(arguments.cluster)
        parts = []
        for study, its in zip(studies, settings, strict=True):
            print(f"{study.id}: {study.title}", flush=True)
            command = f"{study.command} --preset {arguments.preset} --seeds {its.num_seeds}"
            parts.append(study.run(its, folder / study.name, arguments.data_dir, devices=devices, command=command))
        if all(parts):  # in the first process
            verdicts = write(folder, parts)
            lab.print_verdicts(verdicts, folder / "report.html")
            print(f"wall time {time.monotonic() - began:.0f} s")


def chosen(only: str | None) -> list[lab.Study]:
    """The studies with the ids in ``only``, all if it is None, in the lab's order.

    Raises:
      SettingsError: it names a study that is not there, or none.
    """
    studies = [importlib.import_module(f"experiments.{name}").STUDY for name in STUDIES]
    if only is None:
        return studies
    ids = {part.strip().upper() for part in only.split(",") if part.strip()}
    known = [study.id for study in studies]
    if not ids or ids - set(known):
        raise lab.SettingsError(f"--only takes ids out of {','.join(known)}, got {only!r}")
    return [study for study in studies if study.id in ids]


def _settings(study: lab.Study, arguments: Arguments) -> Any:
    """A study's settings; one that has no preset of the scale asked for runs at its largest."""
    presets = study.arguments.presets
    preset = arguments.preset if arguments.preset in presets else list(presets)[-1]
    return study.arguments(preset=preset, seeds=arguments.seeds).settings()


def write(folder: Path, parts: Sequence[Any]) -> list[Any]:
    """Write verdicts.json and report.html of several studies (`jaxbp.report.StudySection`); returns all verdicts."""
    from jaxbp import claims, report

    verdicts = [verdict for part in parts for verdict in part.verdicts]
    claims.write_verdicts(folder / "verdicts.json", verdicts)
    report.write_page(folder / "report.html", title=TITLE, lead=LEAD, studies=parts)
    return verdicts


if __name__ == "__main__":
    main()
