"""Networks, presets and command line of the study of rank and robustness.

A base network is trained, naturally or adversarially, and then fine-tuned several times from the same parameters, with the same data in
the same order: without a projection (the control), by RankMin, by RankMax, and in two ways that serve as controls of the design. The
projections act at the end of some early epochs of the fine-tuning; kernels keep their norms, and the epochs that follow let the network
recover. Set on pilots of earlier runs, on seeds that are not used again and without a look at accuracies: the radii, where base networks
lose neither all nor none of their accuracy, and the number of projections, as kernels cut back to their window once end with ranks 2 %
lower. The quick preset asks for ranks relative to the start, so that ranks really move; the paper's threshold and ceiling are in its own
preset.
"""

import dataclasses
from typing import Any, ClassVar

from jaxbp import lab

NATURAL, ADVERSARIAL = "natural", "adversarial"
TRAININGS = (NATURAL, ADVERSARIAL)
CONTROL, RANK_MIN, RANK_MAX = "left alone", "RankMin", "RankMax"
ROTATED, OTHER_WAY = "rotated", "trained the other way"  # arms of the design's controls
PROJECTED = (RANK_MIN, RANK_MAX)
ARMS = (CONTROL, *PROJECTED)
ALL_ARMS = (*ARMS, ROTATED, OTHER_WAY)
UNTRAINED = "untrained"


@dataclasses.dataclass(frozen=True)
class Case:
    """A network on a data set.

    Attributes:
      options: of `jaxbp.models.create`, as pairs.
    """

    network: str
    dataset: str
    model: str
    width: int
    options: tuple[tuple[str, object], ...] = ()

    @property
    def name(self) -> str:
        """The case in words."""
        return f"{self.network}, {self.dataset}"


@dataclasses.dataclass(frozen=True)
class Settings(lab.Settings):
    """Everything that decides the numbers of a run.

    Attributes:
      num_train, num_test: examples that a seed draws, to train on and to attack; None for all.
      project_epochs: epochs of fine-tuning at whose end the projections act.
      radius: of adversarial training, and at which adversarially trained networks are judged, in the l_inf norm of inputs in [0, 1].
      small_radius: at which naturally trained networks are judged.
      curve: radii of the figure, under PGD-20.
      lower, upper: the rule of RankMin and of RankMax and its number, as `jaxbp.spectra.rank_min` takes them.
      num_projections: onto these values and back to the window; 1 in the paper.
      training_steps: of the PGD of adversarial training.
      attack_steps, num_targets, num_queries: of the strongest attack.
      crop, flip: augmentation.
    """

    own_networks: ClassVar[str] = ""

    cases: tuple[Case, ...]
    num_train: int | None
    num_test: int | None
    num_epochs: int
    num_fine_tuning: int
    project_epochs: tuple[int, ...]
    batch_size: int
    radius: float
    small_radius: float
    curve: tuple[float, ...]
    lower: tuple[str, float]
    upper: tuple[str, float]
    num_projections: int = 1
    learning_rate: float = 0.1
    fine_tuning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    training_steps: int = 7
    attack_steps: int = 20
    num_targets: int = 3
    num_queries: int = 200
    attack_batch: int = 100
    crop: int = 0
    flip: bool = False

    @property
    def measure_epochs(self) -> tuple[int, ...]:
        """When ranks are measured along fine-tuning: at its start, right after each projection, and at its end."""
        return tuple(sorted({0, *self.project_epochs, self.num_fine_tuning}))

    def judged_radius(self, training: str) -> float:
        """Where robustness is judged: naturally trained networks have nothing left to lose at the larger radius."""
        return self.small_radius if training == NATURAL else self.radius

    def validate(self) -> None:
        """Raise `lab.SettingsError` where the study cannot run as set."""
        super().validate()
        if self.num_projections < 1:
            raise lab.SettingsError(f"num_projections must be at least 1, got {self.num_projections}")
        if not 0 < self.small_radius < self.radius <= 1:
            raise lab.SettingsError(
                f"radii must be 0 < small < large <= 1, for inputs from 0 to 1, got {self.small_radius} and {self.radius}"
            )


def _resnet(dataset: str, width: int, *, model: str = "resnet", options: tuple = ()) -> Case:
    return Case("ResNet", dataset, model, width, options)


def _without_skips(case: Case) -> Case:
    return dataclasses.replace(case, network="ResNet without skips", options=(*case.options, ("skip", False)))


_SMALL = (("stages", 2), ("depth", 1))
_CIFAR = _resnet("tfds:cifar10", 64, model="resnet18")
_FASHION = _resnet("tfds:fashion_mnist@14", 8, options=_SMALL)

QUICK = Settings(
    preset="quick",
    cases=(_resnet("mnist5k@7", 8, options=_SMALL),),
    num_train=500,
    num_test=None,
    num_epochs=20,
    num_fine_tuning=10,
    project_epochs=(1, 2, 3),
    batch_size=50,
    num_seeds=10,
    radius=0.1,
    small_radius=0.025,
    curve=(0.025, 0.1),
    lower=("relative_rank", 0.8),
    upper=("relative_rank", 1.15),
    num_projections=20,
    num_targets=1,
    num_queries=50,
    attack_batch=250,
)
PRESETS = {
    "smoke": dataclasses.replace(
        QUICK,
        preset="smoke",
        cases=(_resnet("digits@4", 4, options=_SMALL),),
        num_train=100,
        num_test=40,
        num_epochs=2,
        num_fine_tuning=2,
        project_epochs=(1,),
        num_seeds=2,
        small_radius=0.05,
        curve=(0.05, 0.1),
        num_projections=1,
        training_steps=2,
        attack_steps=5,
        num_queries=20,
        attack_batch=40,
    ),
    "quick": QUICK,
    "standard": dataclasses.replace(
        QUICK, preset="standard", cases=(_FASHION,), num_train=1000, num_test=1000, curve=(0.0125, 0.025, 0.05, 0.1)
    ),
    "paper": dataclasses.replace(
        QUICK,
        preset="paper",
        cases=(_CIFAR, _without_skips(_CIFAR)),
        num_train=None,
        num_epochs=100,
        num_fine_tuning=20,
        project_epochs=(5, 10),
        batch_size=128,
        num_seeds=5,
        radius=8 / 255,
        small_radius=1 / 255,
        curve=tuple(radius / 255 for radius in (0.5, 1, 2, 4, 8, 16)),
        lower=("threshold", 0.5),
        upper=("ceiling", 1.5),
        num_projections=1,
        attack_steps=100,
        num_targets=9,
        num_queries=5000,
        attack_batch=500,
        crop=4,
        flip=True,
    ),
}


@dataclasses.dataclass(frozen=True)
class Arguments(lab.Arguments):
    """Push the ranks of a network's layers down and up, and see what becomes of its accuracy, attacked and not.

    Claims S4.a to S4.e over paired seeds, each with an interval and a verdict, tables, figures and a page. A run that was
    stopped goes on when the same command is given again.
    """

    presets = PRESETS

    num_test: int | None = None
    """Test examples that are attacked."""
    radius: float | None = None
    """Radius of adversarial training, l_inf, inputs from 0 to 1."""
    small_radius: float | None = None
    """The smaller radius at which robustness is judged."""
    num_projections: int | None = None
    """Projections each time: 1 cuts kernels back to their window once, as in the paper; more alternate until it holds."""

    def changes(self) -> dict[str, Any]:
        """As `lab.Arguments.changes`; radii that are judged belong to the curve of the figure, too."""
        changes = super().changes()
        radii = {changes[name] for name in ("radius", "small_radius") if name in changes}
        return changes | {"curve": tuple(sorted(radii | set(self.presets[self.preset].curve)))}
