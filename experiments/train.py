"""Train one of `jaxbp.models` over a grid of settings and many seeds: is an effect real, or one seed's luck?

``python -m experiments.train --dataset digits --model resnet --width 8 16 --learning-rate 0.1 0.03 --seeds 16``. Every combination of the
values given is a setting; each is trained with every seed, which decides initialisation and the order of the data. Losses and accuracies
after every epoch, and the table of final ones, go to the folder of the run, from which the same command goes on if it was stopped.
With ``--num-batch`` each run is split over several devices, and started in several processes the sweep is split among them.
"""

import dataclasses
import importlib
import math
from pathlib import Path

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
    cost: bool = False
    """Say what the sweep would cost, from its compiled programs and an epoch of each setting, and train nothing."""
    elsewhere: tyro.conf.OmitArgPrefixes[lab.Elsewhere] = lab.NOWHERE_ELSE
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
        machine = arguments.elsewhere.machine
        lab.start_jax(arguments.cluster)
        if arguments.cost or machine:
            importlib.import_module("experiments.train_cost").print_cost(arguments)  # after parsing, so that help is instant
            return
        importlib.import_module("experiments.train_sweep").run(arguments)


if __name__ == "__main__":
    main()
