"""What Study 3 runs: its networks, its presets, and the command line that chooses among them.

Optimiser, weight decay and the schedule's milestones are the paper's (SGD, learning rate 0.01, momentum 0.9, weight
decay 5e-4; x0.2 at 10, 20 and 27 % of the epochs; no augmentation); no setting was chosen by a verdict. Data, widths
and epochs of the quick preset are what its share of the whole lab's twenty minutes on two cores allows; it leaves the
learning rate constant, since 10 epochs are too few to divide.
"""

import dataclasses
from typing import Any

from jaxbp import lab

STORED, CALIBRATED, BATCH = "stored", "calibrated", "batch"  # statistics that BatchNorm uses when a kernel is measured


@dataclasses.dataclass(frozen=True)
class Network:
    """A network over a range of widths.

    ``options`` are those of `jaxbp.models.create`, as pairs; ``skip`` and ``batch_norm`` place a ResNet in the
    factorial (None: no ResNet); ``trained``: kernels before and after training; ``exact``: kernels at initialisation
    against the exact one of ``twin``, options that replace some of ``options`` where the network has no twin of its
    own; ``regression``: training and as many test images for regression with the kernels (0: none).
    """

    name: str
    model: str
    widths: tuple[int, ...]
    options: tuple[tuple[str, object], ...] = ()
    skip: bool | None = None
    batch_norm: bool | None = None
    trained: bool = True
    exact: bool = False
    twin: tuple[tuple[str, object], ...] = ()
    regression: int = 0

    @property
    def modes(self) -> tuple[str, ...]:
        """Statistics with which kernels are measured; they are all one without BatchNorm."""
        return (STORED, CALIBRATED, BATCH) if self.batch_norm else (STORED,)


@dataclasses.dataclass(frozen=True)
class Settings(lab.Settings):
    """Everything that decides the numbers of a run.

    ``num_probes``: class-balanced training images whose kernel is measured, ``exact_probes`` those of the comparison with
    the exact kernel; ``measure_epochs``: when, 0 being before training; ``seeds_per_piece``: seeds trained together;
    ``milestones``: shares of the epochs after which the learning rate is multiplied by ``decay``; ``memory``: bytes that a
    kernel's temporaries may take.
    """

    dataset: str
    num_train: int | None
    networks: tuple[Network, ...]
    num_epochs: int
    measure_epochs: tuple[int, ...]
    batch_size: int
    num_probes: int
    exact_probes: int
    seeds_per_piece: int
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    milestones: tuple[float, ...] = ()
    decay: float = 0.2
    calibration_epochs: int = 2
    memory: float = 2.0 * 2**30

    @property
    def groups(self) -> list[range]:
        """Seeds that are trained together."""
        size = self.seeds_per_piece
        return [self.seeds[start : start + size] for start in range(0, self.num_seeds, size)]

    def validate(self) -> None:
        """Raise `lab.SettingsError` where the study cannot run as set."""
        super().validate()
        if self.num_train is not None and self.num_train < self.num_probes:
            raise lab.SettingsError(f"num_train must be at least the number of probes {self.num_probes}, got {self.num_train}")
        for network in self.networks:
            if len(set(network.widths)) < 2:
                raise lab.SettingsError(f"a trend needs at least 2 widths, got {network.widths} for {network.name}")
            if min(network.widths) < 1:
                raise lab.SettingsError(f"widths must be at least 1, got {network.widths} for {network.name}")


def log_spaced(num_epochs: int) -> tuple[int, ...]:
    """0, then 1, 2, 5, 10, 20, 50, ... up to the last epoch."""
    steps = [digit * 10**power for power in range(6) for digit in (1, 2, 5)]
    return (0, *(step for step in steps if step < num_epochs), num_epochs)


def _networks(
    mlp: tuple[int, ...],
    convnet: tuple[int, ...],
    resnet: tuple[int, ...],
    stages: tuple[tuple[str, object], ...],
    regression: tuple[int, int],
) -> tuple[Network, ...]:
    """The study's networks; ``regression``: images for MLPs, and for networks whose exact kernels need all pairs of pixels."""
    cells = []
    for skip, batch_norm in ((True, True), (False, True), (True, False), (False, False)):
        norm = (("norm", "batch" if batch_norm else "none"),)
        name = f"ResNet, {'skips' if skip else 'no skips'}, {'BatchNorm' if batch_norm else 'no BatchNorm'}"
        options = (*stages, *norm, ("skip", skip))
        cells.append(Network(name, "resnet", resnet, options, skip, batch_norm))
        if batch_norm and not skip:  # one network with BatchNorm is enough to ask whether it approaches the exact kernel
            continue
        projection = (*options, ("shortcut", "projection"))
        cells.append(
            Network(
                f"{name}, projections", "resnet", resnet, projection, skip, batch_norm, trained=False, exact=True,
                twin=(("norm", "none"),) if batch_norm else (), regression=0 if batch_norm else regression[1],
            )
        )  # fmt: skip
    return (
        Network("MLP, 2 layers", "mlp", mlp, (("depth", 1),), exact=True, regression=regression[0]),
        Network("MLP, 4 layers", "mlp", mlp, (("depth", 3),), exact=True, regression=regression[0]),
        Network("ConvNet", "convnet", convnet),
        Network(
            "ConvNet, average pooling",
            "convnet",
            convnet,
            (("pool", "average"),),
            trained=False,
            exact=True,
            regression=regression[1],
        ),
        *cells,
    )


def _without(networks: tuple[Network, ...], *names: str) -> tuple[Network, ...]:
    return tuple(network for network in networks if network.name not in names)


PRESETS = {
    "smoke": Settings(
        preset="smoke",
        dataset="digits",
        num_train=200,
        networks=_without(
            _networks((8, 32), (2, 4), (2, 4), (("stages", 1), ("depth", 1)), (20, 10)),
            "MLP, 4 layers", "ConvNet, average pooling", "ResNet, no skips, no BatchNorm, projections",
        ),
        num_epochs=2,
        measure_epochs=(0, 1, 2),
        batch_size=50,
        num_seeds=2,
        num_probes=10,
        exact_probes=6,
        seeds_per_piece=2,
    ),
    "quick": Settings(
        preset="quick",
        dataset="digits",
        num_train=500,
        networks=_without(
            _networks((16, 128, 1024), (2, 6, 16), (4, 12, 32), (("stages", 2), ("depth", 1)), (200, 30)),
            "MLP, 2 layers", "ConvNet, average pooling", "ResNet, no skips, no BatchNorm, projections",
        ),
        num_epochs=10,
        measure_epochs=log_spaced(10),
        batch_size=50,
        num_seeds=5,
        num_probes=10,
        exact_probes=10,
        seeds_per_piece=5,
    ),
    "paper": Settings(
        preset="paper",
        dataset="tfds:cifar10",
        num_train=None,
        networks=(
            *_networks((64, 256, 1024, 4096), (8, 16, 32, 64, 128), (4, 8, 16, 32, 64, 128), (("stages", 4), ("depth", 2)), (1000, 0)),
            Network("MobileNetV2", "mobilenetv2", (8, 16, 32, 64), batch_norm=True),
            Network("VGG-11", "vgg11", (8, 16, 32, 64, 128)),
        ),
        num_epochs=600,
        measure_epochs=log_spaced(600),
        batch_size=128,
        num_seeds=5,
        num_probes=25,
        exact_probes=10,
        seeds_per_piece=1,
        milestones=(0.1, 0.2, 0.27),
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Arguments(lab.Arguments):
    """Study 3: measure tangent kernels of finite networks over widths and training, and compare them with the exact
    infinite-width ones.

    Claims S3.a to S3.f over many seeds, each with an interval and a verdict, tables, figures and a page. A run that
    was stopped goes on when the same command is given again. Kernels are measured before training and at epochs 1, 2, 5, 10, 20, ...
    """

    presets = PRESETS

    max_width: int | None = None
    """Leave out wider networks."""
    learning_rate: float | None = None
    """Learning rate of every training."""

    def changes(self) -> dict[str, Any]:
        """As `lab.Arguments.changes`; epochs change when kernels are measured, too."""
        changes = super().changes()
        if self.epochs is not None:
            changes["measure_epochs"] = log_spaced(self.epochs)
        if (most := changes.pop("max_width", None)) is not None:
            changes["networks"] = tuple(
                dataclasses.replace(network, widths=tuple(width for width in network.widths if width <= most))
                for network in self.presets[self.preset].networks
            )
        return changes
