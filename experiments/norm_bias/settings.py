"""Cases, presets and command line of the study of norm-bias.

Every seed is an experiment of its own: a split, a tuning, a comparison. Each regulariser is tuned on the seed's validation data over
``num_settings`` settings: weight decay's coefficient over `DECAYS`, norm-bias's coefficient and norm over `BIASES` and `NORM_RATIOS`, as
evenly spread draws. All arms share the learning rate. The test set is part of no choice. A preset may let groups of
``seeds_per_tuning`` seeds share a tuning; the group is then the unit of replication. Label noise replaces a share of the training and
validation labels by other classes; test labels are clean. The paper preset adds, as arms of their own, the paper's norms and
coefficients of norm-bias, and each network's usual weight decay.
"""

import dataclasses
from typing import ClassVar

from jaxbp import lab

NONE, DECAY, BIAS = "none", "weight decay", "norm-bias"
ARMS = (NONE, DECAY, BIAS)
OTHER_ORDER, FIXED_DECAY = "none, another order", "weight decay, fixed"  # arms of the controls
KNOWN_DECAY = 0.03  # gains about 7 points in an MLP on data with 30 % label noise
DECAYS = (1e-3, 0.1)  # in a pilot no network learnt at 0.3, and 1e-4 was none
BIASES = (1e-3, 0.1)
NORM_RATIOS = (0.2, 1.5)  # norms to pull to, relative to the initial norm


@dataclasses.dataclass(frozen=True)
class Case:
    """A network on a data set.

    Attributes:
      label_noise: share of the training and validation labels that are replaced by another class.
      options: of `jaxbp.models.create`, as pairs.
      published: the paper's norm mu^2 and coefficient of norm-bias, and the usual coefficient of weight decay, for arms of their own.
      paper: the paper's accuracies by arm.
    """

    network: str
    dataset: str
    model: str
    width: int
    learning_rate: float
    label_noise: float = 0.0
    normalise: bool = True
    batch_norm: bool = False
    options: tuple[tuple[str, object], ...] = ()
    published: tuple[float, float, float] | None = None
    paper: tuple[float, float, float] | None = None

    @property
    def name(self) -> str:
        """The case in words."""
        inputs = "" if self.normalise else ", raw inputs"
        return f"{self.network}, {self.dataset}{inputs}" + (f", {100 * self.label_noise:g} % label noise" if self.label_noise else "")

    @property
    def cost(self) -> float:
        """A rough guess of the time of a run, good enough for the time left."""
        return 1.0 if self.model == "mlp" else 8.0


@dataclasses.dataclass(frozen=True)
class Settings(lab.Settings):
    """Everything that decides the numbers of a run.

    Attributes:
      num_train: examples that each seed draws from the training part, None for all.
      num_settings: settings that each regulariser is tuned over.
      seeds_per_tuning: seeds that share a split and a tuning.
      crop, flip: augmentation.
      num_pauses: times along a run at which norms are measured.
      validation: share of the training data.
    """

    own_networks: ClassVar[str] = ""

    cases: tuple[Case, ...]
    num_train: int | None
    num_epochs: int
    batch_size: int
    num_settings: int
    seeds_per_tuning: int = 1
    momentum: float = 0.9
    crop: int = 0
    flip: bool = False
    num_pauses: int = 10
    validation: float = 0.25

    @property
    def measure_epochs(self) -> tuple[int, ...]:
        """When norms are measured, from before training to its end."""
        return tuple(sorted({round(self.num_epochs * i / self.num_pauses) for i in range(self.num_pauses + 1)}))

    def leader(self, seed: int) -> int:
        """The seed whose split and tuning a seed uses."""
        return seed - seed % self.seeds_per_tuning

    def with_network(self, name: str) -> "Settings":
        """As `lab.Settings.with_network`; the positive control keeps its MLP."""
        return lab.with_networks(self, name, keep=lambda case: case.label_noise > 0 and case.model == "mlp")

    def validate(self) -> None:
        """Raise `lab.SettingsError` where the study cannot run as set."""
        super().validate()
        if self.num_settings < 2:
            raise lab.SettingsError(f"tuning needs at least 2 settings, got {self.num_settings}")
        if self.num_seeds < 2 * self.seeds_per_tuning:
            raise lab.SettingsError(f"{self.seeds_per_tuning} seeds share a tuning: give at least twice as many, got {self.num_seeds}")
        if self.first_seed % self.seeds_per_tuning:
            raise lab.SettingsError(
                f"{self.seeds_per_tuning} seeds share a tuning: give a --first-seed that this number divides, got {self.first_seed}"
            )


_SMALL = (("stages", 2), ("depth", 1))


def _mlp(dataset: str, noise: float, width: int = 64, **options: object) -> Case:
    return Case("MLP", dataset, "mlp", width, 0.02, noise, **options)


def _resnet(dataset: str, noise: float, width: int = 8) -> Case:
    return Case("ResNet", dataset, "resnet", width, 0.1, noise, batch_norm=True, options=_SMALL)


def _fixup(dataset: str, noise: float, width: int = 8) -> Case:
    return Case("ResNet, Fixup", dataset, "resnet", width, 0.05, noise, options=(*_SMALL, ("norm", "fixup")))


def _cifar10() -> tuple[Case, ...]:
    """Tables 2 and 3. Weight decays follow common practice; the paper does not state them."""
    data, fixup = "tfds:cifar10", (("norm", "fixup"),)
    networks = {  # network: model, width, (mu^2, coefficient of norm-bias, usual weight decay), accuracies on raw, on normalised inputs
        "ResNet-18": ("resnet18", 64, (2500, 0.005, 5e-4), (93.46, 94.06, 94.86), (93.40, 94.76, 94.99)),
        "DenseNet-40": ("densenet40", 24, (2500, 0.005, 1e-4), (89.26, 92.27, 92.49), (90.78, 92.26, 92.46)),
        "MobileNetV2": ("mobilenetv2", 32, (5000, 0.001, 4e-5), (92.88, 92.88, 93.50), (92.84, 93.64, 93.64)),
    }
    with_batch_norm = [
        Case(network, data, model, width, 0.1, 0.0, normalise, True, (), published, accuracies[normalise])
        for normalise in (False, True)
        for network, (model, width, published, *accuracies) in networks.items()
    ]
    return (
        *with_batch_norm,
        Case("ResNet-20, Fixup", data, "resnet20", 16, 0.1, options=fixup, published=(1000, 5e-4, 5e-4), paper=(10.0, 91.42, 91.55)),
        Case("MLP", data, "mlp", 2048, 0.01, options=(("depth", 4),), paper=(58.88, 58.95, 59.13)),
    )


QUICK = Settings(
    preset="quick",
    cases=(_mlp("mnist5k@7", 0.0), _mlp("mnist5k@7", 0.3), _mlp("digits", 0.3), _resnet("mnist5k@7", 0.3)),
    num_train=500,
    num_epochs=40,
    batch_size=50,
    num_seeds=10,
    num_settings=6,
)
_FASHION = (
    *(_mlp("tfds:fashion_mnist@14", noise, 256, options=(("depth", 2),)) for noise in (0.0, 0.2)),
    *(make("tfds:fashion_mnist@7", 0.2) for make in (_resnet, _fixup)),
)
PRESETS = {
    "smoke": dataclasses.replace(
        QUICK,
        preset="smoke",
        cases=(_resnet("digits@4", 0.3, 4), _mlp("digits@4", 0.3, 16)),
        num_train=200,
        num_epochs=2,
        num_seeds=3,
        num_settings=2,
    ),
    "quick": QUICK,
    "standard": dataclasses.replace(QUICK, preset="standard", cases=_FASHION, num_train=1000, num_epochs=60, num_settings=8),
    "paper": dataclasses.replace(
        QUICK,
        preset="paper",
        cases=_cifar10(),
        num_train=None,
        num_epochs=200,
        batch_size=128,
        num_settings=9,
        seeds_per_tuning=2,
        crop=4,
        flip=True,
        validation=0.1,
    ),
}


@dataclasses.dataclass(frozen=True)
class Arguments(lab.Arguments):
    """Train with weight decay, with norm-bias and without either, each tuned with the same budget, and compare.

    Claims S2.a to S2.e over paired seeds, each with an interval and a verdict, tables, figures and a page. A run that was
    stopped goes on when the same command is given again.
    """

    presets = PRESETS
