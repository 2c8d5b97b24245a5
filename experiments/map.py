"""Where does a claim hold? A study at every point of a grid of settings, and the page that shows it.

``python -m experiments.map S3.b --vary learning_rate=0.003,0.01 num_epochs=5,20``. Only what the claim needs is computed, once for all
cells that share it; results of runs and maps nearby are used. A map that was stopped goes on when the same command is given again, and
one with more values computes the new cells. A cell that fails says why, and the others go on.
"""

import dataclasses
import importlib
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from experiments.__main__ import STUDIES
from jaxbp import lab


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Find where a claim holds, over every combination of the values given."""

    claim: Annotated[str, tyro.conf.Positional]
    """Such as S3.b."""
    vary: tuple[str, ...]
    """Settings and their values: num_epochs=5,20 widths=(4,8),(8,16) options.norm=batch,none; one value fixes a setting;
    +options.parametrisation=ntk adds an entry that the cases lack; decay[loss=mse]=0,0.1 varies decay only where loss is mse. A name
    that is unknown is answered by all that there are."""
    preset: Literal["smoke", "quick", "standard", "paper"] = "quick"
    """The settings from which the cells differ."""
    only_cases: tuple[str, ...] = ()
    """Of the study's cases those whose names match, such as "*ResNet*"; default all."""
    cells: int | None = None
    """Draw so many cells from the grid; default all."""
    sampling: Literal["sobol", "random"] = "sobol"
    """How cells are drawn."""
    controls: bool = True
    """Run in every cell the controls that the claim hangs on; a failed one makes the cell void."""
    seeds: int | None = None
    """Number of seeds; of the first look with --until-decided."""
    first_seed: int = 0
    """First of the seeds, which follow each other."""
    until_decided: bool = False
    """Add seeds to a cell, at looks of 10, 20, 40, ..., until it is decided or on the line."""
    most_seeds: int = 160
    """Seeds of the last look of --until-decided."""
    cluster: tyro.conf.OmitArgPrefixes[lab.Cluster] = lab.ONE_PROCESS
    out: Path | None = None
    """Folder of the map; default runs/map-CLAIM-PRESET."""
    data_dir: Path | None = None
    """Where TFDS data sets are, or are to be prepared."""
    plan: bool = False
    """Say what the map would cost at least, from the times of jobs that this machine has computed, and compute nothing."""
    elsewhere: tyro.conf.OmitArgPrefixes[lab.Elsewhere] = lab.NOWHERE_ELSE
    reuse: bool = True
    """Take over equal results from the runs in the folders nearby."""


def main() -> None:
    """Parse the command line, compute the map, and say where the claim holds."""
    arguments = tyro.cli(Arguments, prog="python -m experiments.map")
    folder = arguments.out or Path("runs") / f"map-{arguments.claim}-{arguments.preset}"
    with lab.guarded(folder):
        package, machine = study_of(arguments.claim), arguments.elsewhere.machine
        names = ("preset", "seeds", "first_seed", "until_decided", "most_seeds", "data_dir")
        settings = package.Arguments(**{name: getattr(arguments, name) for name in names})
        settings.settings()  # wrong arguments are told before JAX starts
        devices = lab.start_jax(arguments.cluster, for_hours=lab.takes_hours(arguments.preset))
        options = lab.MapOptions(
            num_cells=arguments.cells,
            sampling=arguments.sampling,
            only_cases=arguments.only_cases,
            with_controls=arguments.controls,
            reuse=arguments.reuse,
            devices=devices,
            command=f"python -m experiments.map {shlex.join(sys.argv[1:])}",
        )
        axes = importlib.import_module("jaxbp.lab.map_axes").parse_axes(arguments.vary)
        if arguments.plan or machine:
            costs = lab.map_cost(package.DOOR, arguments.claim, axes, settings=settings, out=folder, options=options)
            importlib.import_module("jaxbp.lab.output").print_plan(costs, len(devices), arguments.elsewhere)
            return
        found = lab.map(package.DOOR, arguments.claim, axes, settings=settings, out=folder, options=options)
        importlib.import_module("jaxbp.lab.output").print_map(found, folder)


def study_of(claim: str) -> Any:
    """The package of the study of a claim.

    Raises:
      SettingsError: there is none.
    """
    packages = {package.ID: package for package in STUDIES}
    id_ = claim.partition(".")[0]
    if id_ not in packages:
        raise lab.SettingsError(
            f"a claim is one of a study {', '.join(packages)}, such as S3.b, got {claim!r}: lab.map takes a study of your own, see "
            '"Where does it hold?" in experiments/guide/own_study.md'
        )
    return packages[id_]


if __name__ == "__main__":
    main()
