"""Cases, presets and command line of the study of norm-bias.

Each regulariser is tuned on validation data over the same number of settings, on seeds that are not used again: weight decay over
``decay_grid``, norm-bias over every pair of ``bias_grid`` and ``norm_ratios``. Both grids of coefficients span the same range, the grid
of weight decay more finely. All arms share the learning rate. The test set is part of no choice. The paper preset adds, as arms of
their own, the paper's norms and coefficients of norm-bias, and each network's usual weight decay. A pilot of the quick preset, half as
long and with a narrower grid for norm-bias than for weight decay, served to find the running time and that flaw, not the outcome. The
share of the whole lab's twenty minutes decides the epochs and tuning seeds.
"""

import dataclasses

from jaxbp import lab

NONE, DECAY, BIAS = "none", "weight decay", "norm-bias"
ARMS = (NONE, DECAY, BIAS)
FIRST_TUNING_SEED = 1000


@dataclasses.dataclass(frozen=True)
class Case:
    """A network on a data set.

    Attributes:
      options: of `jaxbp.models.create`, as pairs.
      published: the paper's norm mu^2 and coefficient of norm-bias, and the usual coefficient of weight decay, for arms of their own.
      paper: the paper's accuracies by arm.
    """

    network: str
    dataset: str
    model: str
    width: int
    normalise: bool
    batch_norm: bool
    learning_rate: float
    options: tuple[tuple[str, object], ...] = ()
    published: tuple[float, float, float] | None = None
    paper: tuple[float, float, float] | None = None

    @property
    def name(self) -> str:
        """The case in words."""
        return f"{self.network}, {self.dataset}, {'normalised' if self.normalise else 'raw'} inputs"

    @property
    def cost(self) -> float:
        """A rough guess of the time of a run, good enough for the time left."""
        return 1.0 if self.model == "mlp" else 8.0


@dataclasses.dataclass(frozen=True)
class Settings(lab.Settings):
    """Everything that decides the numbers of a run.

    Attributes:
      num_train: examples that each seed draws from the training part, None for all.
      norm_ratios: norms to tune norm-bias over, relative to the norm at which the unregularised network ends.
      scan_ratios: norms, relative likewise, of the scan over mu with the chosen coefficient.
      crop, flip: augmentation.
      num_pauses: times along a run at which norms are measured.
      validation: share of the training data.
    """

    cases: tuple[Case, ...]
    num_train: int | None
    num_epochs: int
    batch_size: int
    num_tuning_seeds: int
    decay_grid: tuple[float, ...]
    bias_grid: tuple[float, ...]
    norm_ratios: tuple[float, ...]
    scan_ratios: tuple[float, ...]
    momentum: float = 0.9
    crop: int = 0
    flip: bool = False
    num_pauses: int = 10
    validation: float = 0.2

    @property
    def tuning_seeds(self) -> range:
        """The seeds on which regularisers are tuned."""
        return range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + self.num_tuning_seeds)

    @property
    def measure_epochs(self) -> tuple[int, ...]:
        """When norms are measured, from before training to its end."""
        return tuple(sorted({round(self.num_epochs * i / self.num_pauses) for i in range(self.num_pauses + 1)}))

    def validate(self) -> None:
        """Raise `lab.SettingsError` where the study cannot run as set."""
        super().validate()
        if self.num_seeds > FIRST_TUNING_SEED:
            raise lab.SettingsError(f"seeds from {FIRST_TUNING_SEED} on are for tuning, so at most as many, got {self.num_seeds}")
        if len(self.decay_grid) != len(self.bias_grid) * len(self.norm_ratios):
            raise lab.SettingsError(
                f"both regularisers must be tuned over as many settings, got {len(self.decay_grid)} for weight decay and "
                f"{len(self.bias_grid)} x {len(self.norm_ratios)} for norm-bias"
            )


def _log_grid(low: float, high: float, count: int) -> tuple[float, ...]:
    return tuple(float(f"{low * (high / low) ** (i / (count - 1)):.3g}") for i in range(count))


def _embedded(dataset: str, width: int, hidden: int) -> tuple[Case, ...]:
    """The small networks on a small data set."""
    small = (("stages", 2), ("depth", 1))
    return (
        Case("ResNet", dataset, "resnet", width, True, True, 0.1, small),
        Case("ResNet, Fixup", dataset, "resnet", width, True, False, 0.05, (*small, ("norm", "fixup"))),
        Case("MLP", dataset, "mlp", hidden, True, False, 0.02),
    )


def _cifar10() -> tuple[Case, ...]:
    """Tables 2 and 3. Weight decays follow common practice; the paper does not state them."""
    data, fixup = "tfds:cifar10", (("norm", "fixup"),)
    networks = {  # network: model, width, (mu^2, coefficient of norm-bias, usual weight decay), accuracies on raw, on normalised inputs
        "ResNet-18": ("resnet18", 64, (2500, 0.005, 5e-4), (93.46, 94.06, 94.86), (93.40, 94.76, 94.99)),
        "DenseNet-40": ("densenet40", 24, (2500, 0.005, 1e-4), (89.26, 92.27, 92.49), (90.78, 92.26, 92.46)),
        "MobileNetV2": ("mobilenetv2", 32, (5000, 0.001, 4e-5), (92.88, 92.88, 93.50), (92.84, 93.64, 93.64)),
    }
    with_batch_norm = [
        Case(network, data, model, width, normalise, True, 0.1, (), published, accuracies[normalise])
        for normalise in (False, True)
        for network, (model, width, published, *accuracies) in networks.items()
    ]
    return (
        *with_batch_norm,
        Case("ResNet-20, Fixup", data, "resnet20", 16, True, False, 0.1, fixup, (1000, 5e-4, 5e-4), (10.0, 91.42, 91.55)),
        Case("MLP", data, "mlp", 2048, True, False, 0.01, (("depth", 4),), None, (58.88, 58.95, 59.13)),
    )


_DIGITS = _embedded("digits", 8, 64)
QUICK = Settings(
    preset="quick",
    cases=(*_DIGITS, dataclasses.replace(_DIGITS[0], normalise=False), *_embedded("mnist5k@7", 8, 64)),
    num_train=500,
    num_epochs=20,
    batch_size=50,
    num_seeds=10,
    num_tuning_seeds=2,
    decay_grid=_log_grid(1e-4, 1e-1, 9),
    bias_grid=_log_grid(1e-4, 1e-1, 3),
    norm_ratios=(0.75, 1.0, 1.5),
    scan_ratios=(0.25, 0.5, 1.0, 2.0),
)
_SMOKE_GRIDS = {"decay_grid": (1e-3, 1e-2), "bias_grid": (1e-3, 1e-2), "norm_ratios": (1.0,), "scan_ratios": (0.5, 1.5)}
_PAPER_GRIDS = {"decay_grid": _log_grid(3e-5, 1e-2, 9), "bias_grid": _log_grid(3e-5, 1e-2, 3)}
PRESETS = {
    "smoke": dataclasses.replace(
        QUICK, preset="smoke", cases=_embedded("digits@4", 4, 16)[::2], num_train=200, num_epochs=2, num_seeds=3, num_tuning_seeds=1,
        **_SMOKE_GRIDS,
    ),
    "quick": QUICK,
    "paper": dataclasses.replace(
        QUICK, preset="paper", cases=_cifar10(), num_train=None, num_epochs=200, batch_size=128, num_tuning_seeds=1, **_PAPER_GRIDS,
        scan_ratios=(0.25, 0.5, 0.75, 1.0, 1.5, 2.0), crop=4, flip=True, validation=0.1,
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Arguments(lab.Arguments):
    """Train with weight decay, with norm-bias and without either, each tuned with the same budget, and compare.

    Claims S2.a to S2.e over paired seeds, each with an interval and a verdict, tables, figures and a page. A run that was
    stopped goes on when the same command is given again.
    """

    presets = PRESETS
