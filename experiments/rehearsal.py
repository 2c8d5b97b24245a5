"""Every stage of a preset once, at its full shape, on made images: what would fail after days on an accelerator fails early.

``python -m experiments.rehearsal`` takes the preset ``paper`` of each study and keeps its networks, widths, batches, kernels and attacks.
What makes it long is cut: few images in the place of CIFAR and MNIST, of their size; two epochs; one seed; few steps and targets of
attacks. Of each stage and case the heaviest job runs, with the jobs that it needs. Each study runs in a process of its own, so that one
that is killed for its memory ends alone, and its peak is its own. It decides nothing, and judges nothing.
"""

import dataclasses
import importlib
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import tyro

from experiments.__main__ import Arguments as LabArguments
from experiments.__main__ import choose, name_of, settings_of
from jaxbp import lab

_LEAST = 200  # images: a batch of the paper presets has 128
_EXAMPLES = {"S1": 1024, "S10": 2600}  # at least: an affine classifier must not fit all labels; two thousand features


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Run every stage of a preset once, at full shape, on made images, and say what time and memory each takes."""

    preset: Literal["smoke", "quick", "standard", "paper"] = "paper"
    """Whose shapes; data sets of TFDS alone are replaced."""
    only: str | None = None
    """Run these studies alone: ids with commas between, such as S1,S3."""
    examples: int = 256
    """Made images for training and validation, beside a quarter as many for tests; some studies take more."""
    cases: str = ""
    """Run these cases alone: those with this text in their name."""
    max_width: int | None = None
    """Leave out wider networks of a range of widths, for processors that are not up to them."""
    attack_batch: int | None = None
    """Attack at most so many images at a time, for processors that are not up to the preset's batches."""
    all_arms: bool = False
    """Of each stage and case also run the arms that words tell apart, such as each perturbation, not the heaviest alone."""
    out: Path | None = None
    """Folder; default runs/rehearsal-PRESET. Jobs that it holds are not run again."""


def main() -> None:
    """Parse the command line, rehearse each study, print a line a stage; ends with 2 if a stage failed."""
    arguments = tyro.cli(Arguments, prog="python -m experiments.rehearsal")
    folder = arguments.out or Path("runs") / f"rehearsal-{arguments.preset}"
    with lab.guarded(folder):
        if arguments.examples < _LEAST:
            raise lab.SettingsError(f"--examples must be at least {_LEAST}, since batches have up to 128, got {arguments.examples}")
        for option, limit in (("--max-width", arguments.max_width), ("--attack-batch", arguments.attack_batch)):
            if limit is not None and limit < 1:
                raise lab.SettingsError(f"{option} must be at least 1, got {limit}: leave it out for no limit")
        chosen = choose(arguments.only)
        failed = not _rehearse(chosen[0], arguments, folder) if len(chosen) == 1 else _each_in_a_process(chosen, arguments, folder)
    if failed:
        sys.exit(2)


def _each_in_a_process(packages: Iterable[Any], arguments: Arguments, folder: Path) -> list[str]:
    """The studies that failed."""
    options = [f"--preset={arguments.preset}", f"--examples={arguments.examples}", f"--out={folder}"]
    options += [f"--cases={arguments.cases}"] if arguments.cases else []
    options += [f"--max-width={arguments.max_width}"] if arguments.max_width else []
    options += [f"--attack-batch={arguments.attack_batch}"] if arguments.attack_batch else []
    options += ["--all-arms"] if arguments.all_arms else []
    failed = []
    for package in packages:
        ended = subprocess.run([sys.executable, "-m", "experiments.rehearsal", f"--only={package.ID}", *options], check=False).returncode
        if ended == -9:
            print(f"{package.ID} was killed, for the memory it took most likely: give --examples fewer", flush=True)
        if ended:
            failed.append(package.ID)
    if failed:
        print(f"\nerror: {', '.join(failed)} did not come to an end, see above", file=sys.stderr)
    return failed


def _rehearse(package: Any, arguments: Arguments, folder: Path) -> bool:
    """Whether all jobs of a study came to an end."""
    devices = lab.start_jax(lab.ONE_PROCESS)
    runs = importlib.import_module("experiments.rehearsal_runs")  # after parsing, so that help is instant
    preset = settings_of(package, LabArguments(preset=arguments.preset))
    examples = max(arguments.examples, _EXAMPLES.get(package.ID, 0))
    settings = runs.shortened(preset, examples, folder / "data", runs.Limits(arguments.max_width, arguments.attack_batch))
    if not (cases := tuple(case for case in settings.cases if arguments.cases in case.name)):
        names = "; ".join(case.name for case in settings.cases)
        raise lab.SettingsError(f"no case of {package.ID} has {arguments.cases!r} in its name: there are {names}")
    settings = dataclasses.replace(settings, cases=cases)
    return runs.rehearse(lab.load(package.DOOR), settings, folder / name_of(package), devices, all_arms=arguments.all_arms)


if __name__ == "__main__":
    main()
