"""What `experiments.train` runs: a sweep of trainings, once or until it is decided which settings are better, and its table."""

import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from rich.console import Console
from rich.table import Table

from jaxbp import data, lab, models, report, stats, sweep, training
from jaxbp.claims import Above, Claim
from jaxbp.runtime import processes
from jaxbp.training import parallel

if TYPE_CHECKING:
    from experiments.train import Arguments

_WORDS = {"supported": "better", "contradicted": "worse", "undecided": "not known to be better or worse"}


def run(arguments: "Arguments") -> None:
    """Train, and print the table of final results."""
    found, verdict = train_until_decided(arguments) if arguments.until_decided else (train_all(arguments), None)
    if processes.is_first():
        print_table(found)
        for case in verdict.cases if verdict else ():
            print(f"{case.case}: {_WORDS[case.verdict]} than the first setting, {case.num_seeds} seeds; {case.note}".rstrip("; "))
        print(f"results: {arguments.folder}")


def train_until_decided(arguments: "Arguments") -> tuple[Any, Any]:
    """As `train_all`, look by look, each look's seeds in a folder of its own; also the verdict, a case for each setting but the first.

    Raises:
      SettingsError: there is one setting, or the numbers of seeds make no schedule.
    """
    checked(arguments)
    looks, blocks = lab.looks_of(arguments.seeds, arguments.most_seeds), []
    if math.prod(map(len, arguments.grid().values())) < 2:
        raise lab.SettingsError("--until-decided compares settings with the first: give an option several values")

    def compute(seeds: tuple[int, ...]) -> Any:
        blocks.append(train_all(arguments, seeds=seeds, out=arguments.out / f"seeds-{seeds[0]}-{seeds[-1]}"))
        varying = [name for name in blocks[0].settings[0] if len({setting[name] for setting in blocks[0].settings}) > 1]
        labels = [", ".join(f"{name} {setting[name]}" for name in varying) for setting in blocks[0].settings]
        last = np.asarray(blocks[-1].stack("test_accuracy"))[..., -1]
        return xr.Dataset({"accuracy": (("setting", "seed"), 100 * last)}, {"setting": labels, "seed": list(seeds)})

    def gain(results: Any) -> Any:
        return results.accuracy.isel(setting=slice(1, None)) - results.accuracy.isel(setting=0, drop=True)

    measure = "test accuracy minus that of the first setting, percentage points"
    claim = Claim("train", "The setting tests better than the first.", "the command", measure, Above(0.0))
    _, (verdict,) = lab.until_decided(compute, {claim: gain}, looks=looks, folder=arguments.out)
    return sweep.Results.joined(blocks), verdict


def train_all(arguments: "Arguments", *, seeds: Any = None, out: Path | None = None) -> Any:
    """The records of all runs, or of some ``seeds`` in a folder ``out``.

    Their results are "train_loss", "train_accuracy", "test_loss" and "test_accuracy", (epochs,).
    """
    dataset, mesh = checked(arguments)
    return sweep.run(
        segments(arguments, dataset.num_classes, mesh),
        arguments.grid(),
        seeds=arguments.seeds if seeds is None else seeds,
        out=out or arguments.out,
        shared=[(split.inputs, split.labels) for split in (dataset.train, dataset.test)],
        plan=arguments.plan,
        mesh=mesh,
        memory=arguments.memory_mib and arguments.memory_mib * 2**20,
        checkpoint_every=arguments.checkpoint_every,
        keep=arguments.keep,
        tensorboard=arguments.tensorboard,
        identity={"model": arguments.model, "dataset": arguments.dataset, "epochs": arguments.epochs},
    )


def checked(arguments: "Arguments") -> tuple[Any, Any]:
    """Data set and mesh of a sweep that can run as set, before anything is written.

    Raises:
      SettingsError: it cannot.
    """
    arguments.validate()
    try:
        dataset = data.load(arguments.dataset, num_train=arguments.num_train, data_dir=arguments.data_dir)
        mesh = sweep.make_mesh(arguments.num_batch) if arguments.num_batch > 1 else None
        for width, depth in itertools.product(arguments.width, arguments.depth or (None,)):
            models.create(arguments.model, num_classes=dataset.num_classes, width=width, depth=depth)
        for batch_size in arguments.batch_size:
            training.num_steps(len(dataset.train.labels), arguments.epochs, batch_size)
        sweep.check_plan(arguments.plan)
    except ValueError as error:
        raise lab.SettingsError(str(error)) from error
    return dataset, mesh


def segments(arguments: "Arguments", num_classes: int, mesh: Any = None) -> Any:
    """A training as `jaxbp.sweep.Segments`, one for each epoch, of ``(training data, test data)``."""
    model, num_epochs = arguments.model, arguments.epochs  # what decides results: a folder with another function is refused

    def recipe_fn(num_examples: int, *, width: int, batch_size: int, depth: int | None = None, **numbers: Any) -> tuple:
        net = models.create(model, num_classes=num_classes, width=width, depth=depth)
        if mesh is not None:
            net = parallel.data_parallel(net, mesh=mesh)
        steps = training.num_steps(num_examples, num_epochs, batch_size)
        settings = training.Settings(num_epochs=num_epochs, batch_size=batch_size)
        return net, training.sgd(**numbers, decay_steps=steps), settings

    return sweep.Segments(*training.segmented(recipe_fn, arguments.epochs))


def print_table(found: Any) -> None:
    """A line for each setting: final test accuracy and training loss over seeds, with 95 % intervals, and how many diverged.

    What all settings share stands above the table, which is as wide as the terminal, or 80 columns.
    """
    names, console = list(found.settings[0]), Console()
    varying = [name for name in names if len({setting[name] for setting in found.settings}) > 1]
    if shared := ", ".join(f"{name} {found.settings[0][name]}" for name in names if name not in varying):
        print(f"all settings: {shared}")
    rows = []
    for setting in found.settings:
        runs = found.where(**setting)
        fine = [run for run in runs if run.status == "finished"]
        cells = [_interval([float(run.values[name][-1]) for run in fine]) for name in ("test_accuracy", "train_loss")]
        rows.append((*(str(setting[name]) for name in varying), *cells, str(len(fine)), str(len(runs.diverged))))
    headers = [*(name.replace("_", " ") for name in varying), "test accuracy", "training loss", "seeds", "diverged"]
    console.print(_table(headers, rows, console.width))


def _table(headers: list[str], rows: list[tuple[str, ...]], width: int) -> Any:
    """The table, with intervals on a line each, or folded at their blanks where ``width`` has no room for them."""
    columns = list(zip(headers, *rows, strict=True))
    whole = [max(map(len, [*header.split(), *cells])) for header, *cells in columns]
    folded = [max(len(word) for text in column for word in text.split()) for column in columns]
    table = Table(title="after the last epoch: mean over seeds [95 % interval]", title_justify="left", padding=(0, 0, 0, 1))
    fits = sum(whole) + 2 * len(headers) + 1 <= width  # a blank and a line for each column
    for header, size in zip(headers, whole if fits else folded, strict=True):
        table.add_column(header, justify="right", width=size, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _interval(values: list[float]) -> str:
    if len(values) < 2:
        return ", ".join(f"{value:.4g}" for value in values) or "-"
    return report.format_interval(stats.t_interval(values))
