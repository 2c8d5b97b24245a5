"""Train one of `jaxbp.models` over a grid of settings and many seeds: is an effect real, or one seed's luck?

``python -m experiments.train --dataset digits --model resnet --width 8 16 --learning-rate 0.1 0.03 --seeds 16``. Every combination of the
values given is a setting; each is trained with every seed, which decides initialisation and the order of the data. Losses and accuracies
after every epoch, and the table of final ones, go to the folder of the run, from which the same command goes on if it was stopped.
With ``--num-batch`` each run is split over several devices, and started in several processes the sweep is split among them.
"""

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import tyro

from jaxbp import lab

_SETTINGS = ("width", "depth", "learning_rate", "momentum", "weight_decay", "batch_size")
_MOST_SEEDS = 10**6


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Train a network over a grid of settings and many seeds.

    Options that take several values make a grid: every combination is trained with every seed. A run that was stopped goes on when
    the same command is given again.
    """

    dataset: str = "digits"
    """digits, mnist1d, mnist5k, mnist5k@7, tfds:NAME, file:PATH."""
    model: str = "mlp"
    """A name of jaxbp.models: mlp, convnet, resnet, resnet18, densenet, vgg11, mobilenetv2, ..."""
    width: tuple[int, ...] = (64,)
    """Hidden units, or channels of the first convolution."""
    depth: tuple[int, ...] = ()
    """Hidden layers, or blocks of a stage; default the model's."""
    learning_rate: tuple[float, ...] = (0.1,)
    """Of SGD, decaying to 0 along a cosine."""
    momentum: tuple[float, ...] = (0.9,)
    """Heavy-ball momentum."""
    weight_decay: tuple[float, ...] = (0.0,)
    """Coefficient."""
    batch_size: tuple[int, ...] = (64,)
    """Examples in a step."""
    epochs: int = 20
    """Passes over the training data."""
    seeds: int = 8
    """Seeds 0, 1, ... of every setting; of the first look with --until-decided."""
    until_decided: bool = False
    """Add seeds, at looks, until it is decided for every setting whether it tests better or worse than the first."""
    most_seeds: int = 160
    """Seeds of the last look of --until-decided."""
    num_train: int | None = None
    """Training examples, default all; the same for all seeds."""
    plan: str = "auto"
    """How runs are computed: auto, loop, map, vmap, shard-map, shard-vmap (or pmap)."""
    memory_mib: int | None = None
    """What a device may use; default most of an accelerator's, a share of half of the host's."""
    num_batch: int = 1
    """Devices that share the batches of a run."""
    checkpoint_every: float = 60.0
    """Seconds between checkpoints."""
    keep: int = 2
    """Checkpoints to keep."""
    tensorboard: bool = False
    """Write the curves as event files for TensorBoard, too."""
    cluster: tyro.conf.OmitArgPrefixes[lab.Cluster] = lab.ONE_PROCESS
    out: Path = Path("runs/train")
    """Folder of the run."""
    data_dir: Path | None = None
    """Where TFDS data sets are, or are to be prepared."""

    @property
    def folder(self) -> Path:
        """Where the results go."""
        return self.out

    def grid(self) -> dict[str, list]:
        """The grid of the sweep, without a depth if none was given."""
        return {name: list(values) for name in _SETTINGS if (values := getattr(self, name))}

    def validate(self) -> None:
        """Raise `lab.SettingsError` where the sweep cannot run as set."""
        for name in ("epochs", "seeds", "num_batch", "keep", "memory_mib"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise lab.SettingsError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.checkpoint_every >= 0:
            raise lab.SettingsError(f"checkpoint_every must be 0 or more seconds, got {self.checkpoint_every}")
        if self.seeds > _MOST_SEEDS:
            raise lab.SettingsError(f"seeds must be at most {_MOST_SEEDS}, got {self.seeds}")
        if empty := [name for name in _SETTINGS if name != "depth" and not getattr(self, name)]:
            raise lab.SettingsError(f"{empty[0]} must have a value: give one, or leave the option out")
        for name, values in self.grid().items():
            if len(set(values)) < len(values):
                raise lab.SettingsError(f"{name} must have different values, got {values}")
            if not all(math.isfinite(value) and value >= 0 for value in values):
                raise lab.SettingsError(f"{name} must be 0 or more, got {values}")


def main() -> None:
    """Run the sweep and print the table of final results."""
    arguments = tyro.cli(Arguments, prog="python -m experiments.train")
    with lab.guarded(arguments.folder):
        lab.start_jax(arguments.cluster)
        from jaxbp.runtime import processes

        found, verdict = train_until_decided(arguments) if arguments.until_decided else (train_all(arguments), None)
        if processes.is_first():
            print_table(found)
            for case in verdict.cases if verdict else ():
                print(f"{case.case}: {_WORDS[case.verdict]} than the first setting, {case.num_seeds} seeds; {case.note}".rstrip("; "))
            print(f"results: {arguments.folder}")


def train_until_decided(arguments: Arguments) -> tuple[Any, Any]:
    """As `train_all`, look by look, each look's seeds in a folder of its own; also the verdict, a case for each setting but the first.

    Raises:
      SettingsError: there is one setting, or the numbers of seeds make no schedule.
    """
    import numpy as np
    import xarray as xr

    from jaxbp import sweep
    from jaxbp.claims import Above, Claim

    _checked(arguments)
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


_WORDS = {"supported": "better", "contradicted": "worse", "undecided": "not known to be better or worse"}


def train_all(arguments: Arguments, *, seeds: Any = None, out: Path | None = None) -> Any:
    """The records of all runs, or of some ``seeds`` in a folder ``out``.

    Their results are "train_loss", "train_accuracy", "test_loss" and "test_accuracy", (epochs,).
    """
    from jaxbp import sweep

    dataset, mesh = _checked(arguments)
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


def _checked(arguments: Arguments) -> tuple[Any, Any]:
    """Data set and mesh of a sweep that can run as set, before anything is written.

    Raises:
      SettingsError: it cannot.
    """
    arguments.validate()
    from jaxbp import data, models, sweep, training

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


def segments(arguments: Arguments, num_classes: int, mesh: Any = None) -> Any:
    """A training as `jaxbp.sweep.Segments`, one for each epoch, of ``(training data, test data)``."""
    from jaxbp import models, sweep, training
    from jaxbp.training import parallel

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
    from rich.console import Console

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
    from rich.table import Table

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
    from jaxbp import report, stats

    if len(values) < 2:
        return ", ".join(f"{value:.4g}" for value in values) or "-"
    return report.format_interval(stats.t_interval(values))


if __name__ == "__main__":
    main()
