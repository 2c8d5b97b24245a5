"""Cases, presets and command line of the study of tangent kernels over width.

Optimiser, weight decay and the schedule's milestones are the paper's (SGD, learning rate 0.01, momentum 0.9, weight decay 5e-4; x0.2 at
10, 20 and 27 % of the epochs; no augmentation); no setting was chosen by a verdict. Data, widths and epochs of the quick preset are what
its share of the whole lab's twenty minutes on two cores allows; it leaves the learning rate constant, since 10 epochs are too few to
divide.
"""

import dataclasses
from typing import Any

from jaxbp import lab

STORED, CALIBRATED, BATCH = "stored", "calibrated", "batch"  # statistics that BatchNorm uses when a kernel is measured
Options = tuple[tuple[str, object], ...]


@dataclasses.dataclass(frozen=True)
class Case:
    """A network over a range of widths.

    Attributes:
      options: of `jaxbp.models.create`, as pairs.
      skip, batch_norm: the place of a ResNet in the factorial; None: no ResNet.
      trained: whether kernels before and after training are measured.
      exact: whether kernels at initialisation are compared with the exact one.
      twin: replaces some of ``options`` in the network whose exact kernel is computed, where a network has none of its own.
      regression: training images, and as many test images, for regression with the kernels; 0: none.
    """

    name: str
    model: str
    widths: tuple[int, ...]
    options: Options = ()
    skip: bool | None = None
    batch_norm: bool | None = None
    trained: bool = True
    exact: bool = False
    twin: Options = ()
    regression: int = 0

    @property
    def statistics(self) -> tuple[str, ...]:
        """The statistics with which kernels are measured; they are all one without BatchNorm."""
        return (STORED, CALIBRATED, BATCH) if self.batch_norm else (STORED,)

    def cost(self, width: int) -> float:
        """A rough guess of the time for one seed and epoch; compilation counts as much as training."""
        return 2 + (width**2) / 3e5 if self.model == "mlp" else (8 if self.batch_norm else 5) + width / 4


@dataclasses.dataclass(frozen=True)
class Settings(lab.Settings):
    """Everything that decides the numbers of a run.

    Attributes:
      num_train: training examples that each seed draws, None for all.
      measure_epochs: when kernels are measured, 0 being before training.
      num_probes: class-balanced training images whose kernel is measured.
      exact_probes: those of the comparison with the exact kernel.
      seeds_together: seeds that are trained in one program.
      milestones: shares of the epochs after which the learning rate is multiplied by ``decay``.
      calibration_epochs: passes over the training data that calibrate BatchNorm's statistics.
      memory: bytes that a kernel's temporaries may take.
    """

    dataset: str
    num_train: int | None
    cases: tuple[Case, ...]
    num_epochs: int
    measure_epochs: tuple[int, ...]
    batch_size: int
    num_probes: int
    exact_probes: int
    seeds_together: int
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    milestones: tuple[float, ...] = ()
    decay: float = 0.2
    calibration_epochs: int = 2
    memory: float = 2.0 * 2**30

    @property
    def groups(self) -> list[tuple[int, ...]]:
        """Seeds that are trained together."""
        size = self.seeds_together
        return [block[start : start + size] for block in self.seed_blocks for start in range(0, len(block), size)]

    def validate(self) -> None:
        """Raise `lab.SettingsError` where the study cannot run as set."""
        super().validate()
        if self.num_train is not None and self.num_train < self.num_probes:
            raise lab.SettingsError(f"num_train must be at least the number of probes {self.num_probes}, got {self.num_train}")
        for case in self.cases:
            if len(set(case.widths)) < 2:
                raise lab.SettingsError(f"a trend needs at least 2 widths, got {case.widths} for {case.name}")
            if min(case.widths) < 1:
                raise lab.SettingsError(f"widths must be at least 1, got {case.widths} for {case.name}")


def log_spaced(num_epochs: int) -> tuple[int, ...]:
    """0, then 1, 2, 5, 10, 20, 50, ... up to the last epoch."""
    steps = [digit * 10**power for power in range(6) for digit in (1, 2, 5)]
    return (0, *(step for step in steps if step < num_epochs), num_epochs)


def _cases(
    mlp: tuple[int, ...], convnet: tuple[int, ...], resnet: tuple[int, ...], *, stages: int, depth: int, images: int, few_images: int
) -> tuple[Case, ...]:
    """Cases by widths; ``images`` for regression, ``few_images`` for networks whose exact kernels need all pairs of pixels."""
    deep = Case("MLP, 4 layers", "mlp", mlp, (("depth", 3),), exact=True, regression=images)
    pooled = {"options": (("pool", "average"),), "trained": False, "exact": True, "regression": few_images}
    cases = [
        dataclasses.replace(deep, name="MLP, 2 layers", options=(("depth", 1),)),
        deep,
        Case("ConvNet", "convnet", convnet),
        Case("ConvNet, average pooling", "convnet", convnet, **pooled),
    ]
    for skip, batch_norm in ((True, True), (False, True), (True, False), (False, False)):
        name = f"ResNet, {'skips' if skip else 'no skips'}, {'BatchNorm' if batch_norm else 'no BatchNorm'}"
        options = (("stages", stages), ("depth", depth), ("norm", "batch" if batch_norm else "none"), ("skip", skip))
        cell = Case(name, "resnet", resnet, options, skip, batch_norm)
        cases.append(cell)
        if skip or not batch_norm:  # one network with BatchNorm is enough to ask whether it approaches the exact kernel
            twin, number = ((("norm", "none"),), 0) if batch_norm else ((), few_images)
            projections = {"name": f"{name}, projections", "options": (*options, ("shortcut", "projection"))}
            cases.append(dataclasses.replace(cell, **projections, trained=False, exact=True, twin=twin, regression=number))
    return tuple(cases)


def _without(cases: tuple[Case, ...], *names: str) -> tuple[Case, ...]:
    return tuple(
        case for case in cases if case.name not in (*names, "ConvNet, average pooling", "ResNet, no skips, no BatchNorm, projections")
    )


_QUICK = _cases((16, 128, 1024), (2, 6, 16), (4, 12, 32), stages=2, depth=1, images=200, few_images=30)
_SMOKE = _cases((8, 32), (2, 4), (2, 4), stages=1, depth=1, images=20, few_images=10)
_PAPER = (
    *_cases((64, 256, 1024, 4096), (8, 16, 32, 64, 128), (4, 8, 16, 32, 64, 128), stages=4, depth=2, images=1000, few_images=0),
    Case("MobileNetV2", "mobilenetv2", (8, 16, 32, 64), batch_norm=True),
    Case("VGG-11", "vgg11", (8, 16, 32, 64, 128)),
)
QUICK = Settings(
    preset="quick",
    dataset="digits",
    num_train=500,
    cases=_without(_QUICK, "MLP, 2 layers"),
    num_epochs=10,
    measure_epochs=log_spaced(10),
    batch_size=50,
    num_seeds=5,
    num_probes=10,
    exact_probes=10,
    seeds_together=5,
)
_SHORT = {"num_train": 200, "num_epochs": 2, "measure_epochs": log_spaced(2), "num_seeds": 2, "exact_probes": 6, "seeds_together": 2}
_LONG = {"num_train": None, "num_epochs": 600, "measure_epochs": log_spaced(600), "batch_size": 128, "num_probes": 25, "seeds_together": 1}
PRESETS = {
    "smoke": dataclasses.replace(QUICK, preset="smoke", cases=_without(_SMOKE, "MLP, 4 layers"), **_SHORT),
    "quick": QUICK,
    "paper": dataclasses.replace(QUICK, preset="paper", dataset="tfds:cifar10", cases=_PAPER, milestones=(0.1, 0.2, 0.27), **_LONG),
}


@dataclasses.dataclass(frozen=True)
class Arguments(lab.Arguments):
    """Measure tangent kernels of finite networks over widths and training, and compare them with the exact infinite-width ones.

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
            cases = self.presets[self.preset].cases
            changes["cases"] = tuple(dataclasses.replace(c, widths=tuple(width for width in c.widths if width <= most)) for c in cases)
        return changes
