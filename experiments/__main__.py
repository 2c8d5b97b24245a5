"""The whole lab: all studies, one table of verdicts, one page.

``python -m experiments`` runs every study at the quick preset in one process, each in a folder of its own under ``runs/lab-quick``, and
writes ``verdicts.json`` and ``report.html`` of all of them there. A run that was stopped goes on when the same command is given again.
"""

import dataclasses
import importlib
import sys
import time
from pathlib import Path
from typing import Any, Literal

import tyro

from experiments import (
    algorithmic_stability,
    local_minima,
    low_rank_bounds,
    norm_bias,
    ntk_width,
    power_iteration,
    rank_robustness,
    soft_biases,
    sparse_bounds,
    unlearnable,
)
from jaxbp import lab

STUDIES = (  # in the order of the page
    local_minima,
    norm_bias,
    ntk_width,
    rank_robustness,
    power_iteration,
    low_rank_bounds,
    algorithmic_stability,
    unlearnable,
    sparse_bounds,
    soft_biases,
)

SHORTEST_FIRST = (  # in the order of the run, by the time of the preset quick, so that first outcomes come soon
    algorithmic_stability,
    unlearnable,
    power_iteration,
    soft_biases,
    low_rank_bounds,
    norm_bias,
    local_minima,
    sparse_bounds,
    rank_robustness,
    ntk_width,
)


def name_of(package: Any) -> str:
    """The name of a study's folder."""
    return package.__name__.rpartition(".")[2]


NAMES = tuple(map(name_of, STUDIES))
TITLE = "Truth or backpropaganda?"
LEAD = (
    "Beliefs about deep learning, put as claims that a measurement can support or contradict, and measured over many seeds. A claim "
    "is supported or contradicted only if a whole interval says so, by a rule fixed before the run; else it stays undecided."
)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Run all studies of the lab, or some, and write one page with every verdict."""

    preset: Literal["smoke", "quick", "standard", "paper"] = "quick"
    """smoke: minutes, to see it run. quick: embedded data, half an hour to an hour on two CPU cores. standard:
    Fashion-MNIST, for the studies that have it. paper: the paper's scale, accelerators."""
    only: str | None = None
    """Run these studies alone: ids with commas between, such as S1,S3."""
    seeds: int | None = None
    """Number of seeds of every study; default its preset's, 5 or 10. Of the first look with --until-decided."""
    first_seed: int = 0
    """First of the seeds, which follow each other."""
    until_decided: bool = False
    """Add seeds, at looks of 10, 20, 40, ..., until every claim of a study is decided or on the line."""
    most_seeds: int = 160
    """Seeds of the last look of --until-decided."""
    cluster: tyro.conf.OmitArgPrefixes[lab.Cluster] = lab.ONE_PROCESS
    out: Path | None = None
    """Folder of the run; default runs/lab-PRESET."""
    data_dir: Path | None = None
    """Where TFDS data sets are, or are to be prepared."""
    plan: bool = False
    """Say what the run would cost, from the times of jobs that this machine has computed, and compute nothing."""
    elsewhere: tyro.conf.OmitArgPrefixes[lab.Elsewhere] = lab.NOWHERE_ELSE
    recompute: bool = False
    """Compute anew what the folder holds from other code."""
    reuse: bool = True
    """Take over equal results from the runs in the folders nearby."""


def main() -> None:
    """Parse the command line, run the studies, and print all verdicts."""
    arguments = tyro.cli(Arguments, prog="python -m experiments")
    folder = arguments.out or Path("runs") / f"lab-{arguments.preset}"
    with lab.guarded(folder):
        began, machine = time.monotonic(), arguments.elsewhere.machine
        chosen = choose(arguments.only)
        settings = [settings_of(study, arguments) for study in chosen]  # wrong arguments are told before any work
        unfinished = {
            package.ID: its
            for package, its in zip(chosen, settings, strict=True)
            if not (folder / name_of(package) / "verdicts.json").exists()
        }
        lab.check_data(unfinished)
        devices = lab.start_jax(arguments.cluster, for_hours=lab.takes_hours(arguments.preset))
        execute = importlib.import_module("jaxbp.lab.execute")  # the one door to JAX
        sections: dict[str, Any] = {}
        failures: list[str] = []
        for package, its in sorted(zip(chosen, settings, strict=True), key=lambda pair: SHORTEST_FIRST.index(pair[0])):
            study = lab.load(package.DOOR)
            print(f"{study.id}: {study.title}", flush=True)
            if arguments.plan or machine:
                execute.print_cost(study, its, folder / study.name, num_workers=len(devices), elsewhere=arguments.elsewhere)
                continue
            more = f" --first-seed {arguments.first_seed}" * bool(arguments.first_seed)
            more += f" --until-decided --most-seeds {arguments.most_seeds}" * arguments.until_decided
            command = f"python -m {study.module} --preset {arguments.preset} --seeds {its.num_seeds}{more}"
            options = {"devices": devices, "command": command, "recompute": arguments.recompute, "reuse": arguments.reuse}
            try:
                section = execute.run(study, its, folder / study.name, **options)
            except Exception as error:
                if not lab.report_failure(error, study.id):
                    raise
                failures.append(study.id)
                continue
            if section:  # in the first process
                sections[study.name] = section
                sections = {name: sections[name] for name in NAMES if name in sections}  # in the page's order
                execute.write_page(folder, TITLE, LEAD, sections)
        if sections:
            execute.print_verdicts([verdict for section in sections.values() for verdict in section.verdicts], folder / "report.html")
            print(f"wall time {time.monotonic() - began:.0f} s")
        if failures:
            print(f"\nerror: {', '.join(failures)} failed, see above; the page lacks what failed", file=sys.stderr)
            sys.exit(2)


def choose(only: str | None) -> list[Any]:
    """The packages of the studies with the ids in ``only``, all if it is None, in the page's order.

    Raises:
      SettingsError: it names a study that is not there, or none.
    """
    if only is None:
        return list(STUDIES)
    ids = {part.strip().upper() for part in only.split(",") if part.strip()}
    known = [package.ID for package in STUDIES]
    if not ids or ids - set(known):
        raise lab.SettingsError(f"--only takes ids out of {','.join(known)}, got {only!r}")
    return [package for package in STUDIES if package.ID in ids]


def settings_of(package: Any, arguments: Arguments) -> Any:
    """A study's settings; one that has no preset of the scale asked for runs at its largest."""
    presets = package.Arguments.presets
    preset = arguments.preset if arguments.preset in presets else list(presets)[-1]
    names = ("seeds", "first_seed", "until_decided", "most_seeds", "data_dir")
    return package.Arguments(preset=preset, **{name: getattr(arguments, name) for name in names}).settings()


if __name__ == "__main__":
    main()
