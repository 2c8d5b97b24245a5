"""What a rehearsal (`experiments.rehearsal`) runs: settings cut short, the heaviest job of each stage and case; and what they took."""

import collections
import dataclasses
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from jaxbp.lab import job_times, output
from jaxbp.lab.archive import Archive
from jaxbp.lab.jobs import Job, compute_missing, plan
from jaxbp.lab.settings import as_json
from jaxbp.lab.study import Study
from jaxbp.runtime import jax_setup
from jaxbp.runtime.files import write_atomically
from jaxbp.runtime.progress import format_seconds
from jaxbp.runtime.shared_store import open_together

_SHAPES = {
    "mnist": (28, 1, 10),
    "fashion_mnist": (28, 1, 10),
    "svhn_cropped": (32, 3, 10),
    "cifar10": (32, 3, 10),
    "cifar100": (32, 3, 100),
}
_BLOCK = 4  # pixels a side that are equal, so that few patterns span many images, and an affine classifier does not fit all labels
_EPOCHS = 2
_SERIES = 8  # epochs where time averages are taken
_TRAIN, _TEST = 0.8, 0.25  # shares of the made images that a study may train on, and as many again for tests
_CUT = {  # what is long, by the names of the settings' fields
    "num_seeds": 1,
    "run_up": 0,
    "refit_every": 1,
    "project_epochs": (1,),
    "num_fine_tuning": 1,
    "measure_epochs": (0, 1, _EPOCHS),
    "rate_drops": (1,),
    "num_settings": 1,
    "attack_steps": 2,
    "num_targets": 1,
    "num_queries": 4,
    "looks": None,
}
_MOST = {"width_train": 250}  # numbers that are large in one study's stage alone: a part of a product with the Hessian


class Limits(NamedTuple):
    """What a processor that is not up to a preset may have less of; None leaves it as it is.

    Attributes:
      max_width: of a range of widths.
      attack_batch: images that are attacked at a time.
    """

    max_width: int | None = None
    attack_batch: int | None = None


UNLIMITED = Limits()


def shortened(settings: Any, num_examples: int, folder: Path, limits: Limits = UNLIMITED) -> Any:
    """The settings with all that makes a run long cut, and made images in ``folder`` in the place of sets of TFDS."""
    cases = tuple(_shortened(case, num_examples, folder, limits) for case in settings.cases)
    return dataclasses.replace(_shortened(settings, num_examples, folder, limits), cases=cases)


def _shortened(owner: Any, num_examples: int, folder: Path, limits: Limits) -> Any:
    changes = {}
    for field in dataclasses.fields(owner):
        name, value = field.name, getattr(owner, field.name)
        if name in _CUT:
            changes[name] = _CUT[name]
        elif name == "dataset" and value.startswith("tfds:"):
            changes[name] = f"file:{_made(value, num_examples, folder)}"
        elif name.endswith("widths"):
            changes[name] = tuple(width for width in value if limits.max_width is None or width <= limits.max_width)
        elif name == "attack_batch":
            changes[name] = min(value, limits.attack_batch or value)
        elif name == "curve":
            changes[name] = value[-1:]  # one radius
        elif isinstance(value, int) and name.endswith("epochs"):
            changes[name] = min(value, _SERIES if hasattr(owner, "run_up") else _EPOCHS)
        elif isinstance(value, int) and name.endswith("train"):
            changes[name] = min(value, _MOST.get(name, int(_TRAIN * num_examples)))
        elif isinstance(value, int) and name == "num_test":
            changes[name] = min(value, int(_TEST * num_examples))
    return dataclasses.replace(owner, **changes)


def _made(name: str, num_examples: int, folder: Path) -> Path:
    """A file of random images and labels in the shape of a set of TFDS, "tfds:cifar10" or "tfds:fashion_mnist@14"."""
    kind, _, resized = name.removeprefix("tfds:").partition("@")
    side, channels, num_classes = _SHAPES[kind]
    side = int(resized.partition(",")[0] or side)
    path = folder / f"{name.removeprefix('tfds:')}-{num_examples}.npz"
    if not path.exists():
        rng = np.random.default_rng(0)
        arrays: dict[str, np.ndarray] = {}
        for part, count in (("train", num_examples), ("test", int(_TEST * num_examples))):
            blocks = rng.integers(0, 256, (count, -(-side // _BLOCK), -(-side // _BLOCK), 1), dtype=np.uint8)
            images = blocks.repeat(_BLOCK, 1).repeat(_BLOCK, 2)[:, :side, :side].repeat(channels, 3)
            arrays |= {f"x_{part}": images, f"y_{part}": rng.permutation(np.arange(count) % num_classes)}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        write_atomically(path, buffer.getvalue())
    return path


def rehearse(study: Study, settings: Any, folder: Path, devices: list[str], *, all_arms: bool = False) -> bool:
    """Run the heaviest job of each stage and case (and arm), and those that it needs; whether all came to an end.

    One job runs at a time, so that memory is that of a job. Jobs go on after one that fails.
    """
    print(f"{study.id}: {study.title}", flush=True)
    with open_together(folder, {"study": study.id, **as_json(settings)}, jax_setup.provenance(devices)) as store:
        jobs = {job.name: job for job in heaviest(plan(study, settings), all_arms=all_arms)}
        errors = compute_missing(Archive(store), jobs, tolerant=True)
        print_stages(job_times.read([folder]), {name: jobs[name] for name in errors})
    return not errors


def heaviest(jobs: Iterable[Job], *, all_arms: bool = False) -> list[Job]:
    """The heaviest job of each stage and case, and all that they need, directly or not, in the order of ``jobs``.

    With ``all_arms`` also the heaviest of each arm: of jobs whose points differ in words.
    """
    jobs = list(jobs)
    of_stage: dict[tuple, Job] = {}
    for job in jobs:
        place = job.stage.qualified_name, job.case.name, *(_words(job) if all_arms else ())
        if place not in of_stage or job.weight > of_stage[place].weight:
            of_stage[place] = job
    wanted, kept = collections.deque(of_stage.values()), set()
    while wanted:
        job = wanted.popleft()
        if job.key not in kept:
            kept.add(job.key)
            wanted.extend(needed for group in job.needs for needed in group)
    return [job for job in jobs if job.key in kept]


def _words(job: Job) -> list[Any]:
    """What of a job's point is text, alone or in a tuple."""
    return [value for value in job.point.values() if isinstance(value[0] if isinstance(value, tuple) and value else value, str)]


def print_stages(records: Iterable[job_times.JobTime], failed: Mapping[str, Job]) -> None:
    """A line a stage: its jobs, the time of the longest and its share of compilation, memory of the process and of the programs."""
    table = Table(title="What the longest job of each stage took", title_justify="left")
    for column in ("stage", "jobs", "failed", "time", "of it compiling", "peak of the process", "largest program"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    by_stage = collections.defaultdict(list)
    for record in records:
        by_stage[record.stage].append(record)
    num_failed = collections.Counter(job.stage.qualified_name for job in failed.values())
    for stage in dict.fromkeys((*by_stage, *num_failed)):
        of_stage = by_stage[stage]
        cells = ["-"] * 4
        if of_stage:
            longest = max(of_stage, key=lambda record: record.seconds)
            peak, program = (max(getattr(record, name) for record in of_stage) for name in ("peak_mib", "program_bytes"))
            cells = [
                format_seconds(longest.seconds),
                format_seconds(longest.compile_seconds),
                f"{peak:,} MiB",
                f"{program / 2**20:,.0f} MiB",
            ]
        table.add_row(stage.rpartition(".")[2], str(len(of_stage)), str(num_failed[stage] or ""), *cells)
    output.print_table(table)
