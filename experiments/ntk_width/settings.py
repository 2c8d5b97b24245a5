"""Cases, presets and command line of the study of tangent kernels over width.

Weight decay is set by its time, learning rate x coefficient x steps / (1 - momentum) over the whole training: the share of the weights'
logarithm that it takes where no gradient works against it. The paper's is about 1.5 (SGD, learning rate 0.01, momentum 0.9, weight decay
5e-4, x0.2 at 10, 20 and 27 % of 600 epochs; no augmentation).

No setting was chosen by a verdict. The quick preset has three widths at its cost because its images are of 4x4 pixels: of 8x8, ResNets of
width 32 would take as long as all of it, and of width 4, without BatchNorm and with the paper's weight decay, 4 to 9 of 10 never reach the
target loss, at learning rates 0.02 and 0.03. Its learning rates are from a pilot of ten seeds on random numbers that no run uses, with
equal budgets (0.03 and 0.05 for ResNets, 0.01 and 0.02 for ConvNets, 0.02 and 0.05 for MLPs): the larger, since with it every network of
the least width reached the target loss, with either weight decay; one rate for all four ResNets. The last reached it at epoch 20 of 24.

The standard preset's epochs are from a pilot of training losses alone, on seeds 100 and 101, which the run of ten seeds does not use: of 20
ResNets of the least width and of width 16 (no skips, no BatchNorm), with either weight decay, all reached the target loss within 120
epochs, the last at epoch 50. Trainings of 60 epochs, whose weight decay is stronger by the step, were too few for one of four without
BatchNorm, and 20, as the preset had it, for most.
"""

import dataclasses
from typing import Any, ClassVar

from jaxbp import lab

STORED, BATCH = "stored", "batch"  # statistics that BatchNorm uses when a kernel is measured
SMALL_DECAY, PAPER_DECAY = 0.005, 1.5  # weight-decay times
ASYMPTOTIC = 16  # narrower networks are no part of exponents
Options = tuple[tuple[str, object], ...]


@dataclasses.dataclass(frozen=True)
class Case:
    """A network over a range of widths.

    Attributes:
      widths: of networks that are trained.
      exact_widths: of fresh ones that are compared with the exact kernel; none: no such comparison.
      options: of `jaxbp.models.create`, as pairs.
      skip, batch_norm: the place of a ResNet in the factorial; None: no ResNet.
      decays: weight-decay times; none: nothing is trained.
      learning_rate: of its trainings, at every width.
      regression: training images, and as many test images, for regression with the kernels; 0: none.
    """

    name: str
    model: str
    widths: tuple[int, ...]
    exact_widths: tuple[int, ...] = ()
    options: Options = ()
    skip: bool | None = None
    batch_norm: bool | None = None
    decays: tuple[float, ...] = (SMALL_DECAY,)
    learning_rate: float = 0.02
    regression: int = 0

    @property
    def statistics(self) -> tuple[str, ...]:
        """The statistics with which kernels are measured; they are all one without BatchNorm."""
        return (STORED, BATCH) if self.batch_norm else (STORED,)

    def cost(self, width: int) -> float:
        """A rough guess of the time for one seed and epoch; compilation counts as much as training."""
        return 2 + (width**2) / 3e5 if self.model == "mlp" else (8 if self.batch_norm else 5) + width / 4


@dataclasses.dataclass(frozen=True)
class Settings(lab.Settings):
    """Everything that decides the numbers of a run.

    Attributes:
      num_train: training examples that each seed draws, None for all.
      measure_epochs: when the loss is evaluated, 0 being before training.
      target_loss: kernels are compared where the training loss is first at most this.
      num_probes: class-balanced training images whose kernel is measured.
      exact_probes: those of the comparison with the exact kernel.
      channels: drawn for exact kernels of sums that have no closed form.
      chain: examples and blocks of the control's deep chain with BatchNorm.
      milestones: shares of the epochs after which the learning rate is multiplied by ``decay``.
      memory: bytes that a kernel's temporaries may take.
    """

    own_networks: ClassVar[str] = ""

    dataset: str
    num_train: int | None
    cases: tuple[Case, ...]
    num_epochs: int
    measure_epochs: tuple[int, ...]
    target_loss: float
    batch_size: int
    num_probes: int
    exact_probes: int
    channels: int
    chain: tuple[int, int] = (64, 8)
    momentum: float = 0.9
    milestones: tuple[float, ...] = ()
    decay: float = 0.2
    memory: float = 4.0 * 2**30

    def with_network(self, name: str) -> "Settings":
        """The settings with a network of the user's own in the place of those beside the MLPs, which the controls need.

        It has no exact infinite-width kernel and no place in the factorial of ResNets: its own kernels are compared, before training
        and after, over the widths of the network that it replaces.

        Raises:
          SettingsError: the function that makes it takes no width.
        """
        lab.network_module(name, "width", num_classes=2, width=2)
        kept = tuple(case for case in self.cases if case.model == "mlp")
        replaced = next((case for case in self.cases if case.model != "mlp" and case.decays), None)
        if replaced is None:
            raise lab.SettingsError("there is no network to replace among the cases: leave --network out")
        own = Case(name, name, replaced.widths, decays=(SMALL_DECAY,), learning_rate=replaced.learning_rate)
        return dataclasses.replace(self, cases=(*kept, own))

    def validate(self) -> None:
        """Raise `lab.SettingsError` where the study cannot run as set."""
        super().validate()
        if self.num_train is not None and self.num_train < self.num_probes:
            raise lab.SettingsError(f"num_train must be at least the number of probes {self.num_probes}, got {self.num_train}")
        for case in self.cases:
            fitted = [tuple(width for width in case.exact_widths if width >= ASYMPTOTIC)] if case.exact_widths else []
            for widths in ([case.widths] if case.decays else []) + fitted:
                if len(set(widths)) < 2:
                    raise lab.SettingsError(f"a trend needs at least 2 widths, got {widths} for {case.name}")
            if min((*case.widths, *case.exact_widths), default=1) < 1:
                raise lab.SettingsError(f"widths must be at least 1, got {case.widths} and {case.exact_widths} for {case.name}")


def log_spaced(num_epochs: int) -> tuple[int, ...]:
    """0, every epoch at first, then about every fifth of the time gone, up to the last epoch."""
    epochs = [0]
    while epochs[-1] < num_epochs:
        epochs.append(min(num_epochs, max(epochs[-1] + 1, round(1.2 * epochs[-1]))))
    return tuple(epochs)


def _resnets(widths: tuple[int, ...], exact: tuple[int, ...], decays: tuple[float, ...], **shape: int) -> tuple[Case, ...]:
    """The four cells of the factorial, at one learning rate."""
    cells = []
    for skip, batch_norm in ((True, True), (False, True), (True, False), (False, False)):
        name = f"ResNet, {'skips' if skip else 'no skips'}, {'BatchNorm' if batch_norm else 'no BatchNorm'}"
        options = (*shape.items(), ("norm", "batch" if batch_norm else "none"), ("skip", skip))
        cells.append(Case(name, "resnet", widths, exact, options, skip, batch_norm, decays, learning_rate=0.05))
    return tuple(cells)


def _mlp(depth: int, widths: tuple[int, ...], images: int, learning_rate: float = 0.02) -> Case:
    options = (("depth", depth),)
    return Case(f"MLP, {depth + 1} layers", "mlp", widths, widths, options, learning_rate=learning_rate, regression=images)


_DECAYS = (SMALL_DECAY, PAPER_DECAY)
QUICK = Settings(
    preset="quick",
    dataset="digits@4",
    num_train=200,
    cases=(
        _mlp(3, (16, 64, 256), 200, 0.05),
        Case("ConvNet", "convnet", (4, 8, 16), learning_rate=0.02),
        *_resnets((8, 16, 32), (16, 64), _DECAYS, stages=2, depth=1),
    ),
    num_epochs=24,
    measure_epochs=log_spaced(24),
    target_loss=0.5,
    batch_size=20,
    num_seeds=10,
    num_probes=10,
    exact_probes=5,
    channels=4096,
)
_CIFAR_CASES = (
    _mlp(1, (64, 256, 1024, 4096), 1000),
    _mlp(3, (64, 256, 1024, 4096), 1000),
    Case("ConvNet", "convnet", (8, 16, 32, 64, 128)),
    Case("ConvNet, average pooling", "convnet", (), (8, 16, 32, 64, 128), (("pool", "average"),), decays=()),
    *_resnets((4, 8, 16, 32, 64, 128), (), (PAPER_DECAY,), stages=4, depth=2),
    *(dataclasses.replace(c, name=f"{c.name}, small") for c in _resnets((), (16, 32, 64, 128), (), stages=2, depth=1)),
    Case("MobileNetV2", "mobilenetv2", (8, 16, 32, 64), batch_norm=True, decays=(PAPER_DECAY,)),
    Case("VGG-11", "vgg11", (8, 16, 32, 64, 128), decays=(PAPER_DECAY,)),
)
_SMALLEST = _resnets((16, 32), (16, 32), (SMALL_DECAY,), stages=1, depth=1)
_SHORT = {"num_epochs": 2, "measure_epochs": log_spaced(2), "num_seeds": 2, "exact_probes": 4, "channels": 256}
_LONG = {"num_train": None, "num_epochs": 600, "measure_epochs": log_spaced(600), "batch_size": 128, "num_probes": 25}
PRESETS = {
    "smoke": dataclasses.replace(
        QUICK,
        preset="smoke",
        cases=(_mlp(1, (16, 32), 20), _SMALLEST[0], dataclasses.replace(_SMALLEST[2], decays=())),
        target_loss=2.28,
        **_SHORT,
    ),
    "quick": QUICK,
    "standard": dataclasses.replace(
        QUICK,
        preset="standard",
        dataset="tfds:fashion_mnist@14",
        num_train=500,
        cases=(
            _mlp(3, (64, 256, 1024), 400),
            Case("ConvNet", "convnet", (4, 8), learning_rate=0.01),
            *_resnets((8, 16), (8, 16, 64), _DECAYS, stages=2, depth=1),
        ),
        num_epochs=120,
        measure_epochs=log_spaced(120),
    ),
    "paper": dataclasses.replace(
        QUICK,
        preset="paper",
        dataset="tfds:cifar10",
        cases=tuple(dataclasses.replace(case, learning_rate=0.01) for case in _CIFAR_CASES),
        target_loss=0.01,
        exact_probes=4,
        memory=64.0 * 2**30,
        milestones=(0.1, 0.2, 0.27),
        **_LONG,
    ),
}


@dataclasses.dataclass(frozen=True)
class Arguments(lab.Arguments):
    """Measure tangent kernels of finite networks over widths and training, and compare them with the exact infinite-width ones.

    Claims S3.a to S3.h over many seeds, each with an interval and a verdict, tables, figures and a page. A run that
    was stopped goes on when the same command is given again. Kernels are measured before training, where the training loss first reaches
    its target, and at the end.
    """

    presets = PRESETS

    max_width: int | None = None
    """Leave out wider networks."""
    learning_rate: float | None = None
    """Learning rate of every network."""

    def changes(self) -> dict[str, Any]:
        """As `lab.Arguments.changes`; epochs change when the loss is evaluated, too."""
        changes = super().changes()
        if self.epochs is not None:
            changes["measure_epochs"] = log_spaced(self.epochs)
        most, rate = (changes.pop(name, None) for name in ("max_width", "learning_rate"))
        if most is not None or rate is not None:
            changes["cases"] = tuple(_changed(case, most, rate) for case in self.presets[self.preset].cases)
        return changes


def _changed(case: Case, most: int | None, rate: float | None) -> Case:
    widths = {name: tuple(w for w in getattr(case, name) if most is None or w <= most) for name in ("widths", "exact_widths")}
    return dataclasses.replace(case, learning_rate=case.learning_rate if rate is None else rate, **widths)
