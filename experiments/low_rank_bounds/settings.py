"""Cases, presets and command line of the study of low-rank layers.

Arms are compared at equal training loss, each with the learning rate that validation data prefer on seeds that are not used again. The
thresholds of the rules were set with pilots of one or two seeds in view, and are fixed.
"""

import dataclasses
from typing import ClassVar

from jaxbp import lab

FULL = "full rank"
FIRST_TUNING_SEED = 1000


@dataclasses.dataclass(frozen=True)
class Case:
    """A data set, and the widths of the hidden layers of the MLP on it.

    Attributes:
      dataset: the name of the data set.
      width: of each hidden layer.
      depth: number of layers L.
    """

    dataset: str
    width: int = 64
    depth: int = 4

    @property
    def name(self) -> str:
        """For instance "digits", or with another number of layers than four "tfds:cifar10, 10 layers"."""
        return self.dataset + f", {self.depth} layers" * (self.depth != 4)


@dataclasses.dataclass(frozen=True)
class Settings(lab.Settings):
    """Everything that decides the numbers of a run.

    Attributes:
      ranks: of the hidden layers of the low-rank arms.
      num_train, batch_size, momentum, weight_decay: of all trainings.
      num_epochs, target_loss: an arm trains until the target or for so many epochs.
      learning_rates: among which validation data choose.
      num_tuning_seeds: on which they are chosen.
      decays, decay_epochs, decay_rate: of the trainings towards collapse.
      every: epochs between measurements.
      delta: with which a bound may fail.
    """

    own_networks: ClassVar[str] = (
        "each network is compared with twins whose hidden layers are products of two factors, and what makes yours makes no such twins. "
        "jaxbp.bounds.anatomy and jaxbp.bounds.low_rank bound yours as it is, if it is a chain of layers without biases and normalisation"
    )

    cases: tuple[Case, ...]
    ranks: tuple[int, ...] = (16, 8)
    num_train: int = 1000
    batch_size: int = 50
    momentum: float = 0.9
    weight_decay: float = 1e-4
    num_epochs: int = 120
    target_loss: float = 0.01
    learning_rates: tuple[float, ...] = (0.003, 0.01, 0.03)
    num_tuning_seeds: int = 2
    decays: tuple[float, ...] = (0.0, 2e-3, 5e-3)
    decay_epochs: int = 200
    decay_rate: float = 0.02
    every: int = 4
    delta: float = 0.05

    @property
    def arms(self) -> dict[str, int]:
        """The rank of the hidden layers by arm; 0 for full rank."""
        return {FULL: 0} | {f"rank {rank}": rank for rank in self.ranks}

    @property
    def tuning_seeds(self) -> range:
        """The seeds on which learning rates are chosen."""
        return range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + self.num_tuning_seeds)


QUICK = Settings("quick", 10, (Case("digits"), Case("mnist1d"), Case("mnist5k@7")))
PRESETS = {
    "smoke": dataclasses.replace(
        QUICK,
        preset="smoke",
        num_seeds=3,
        cases=(Case("digits", 32),),
        ranks=(8,),
        num_train=300,
        num_epochs=40,
        target_loss=0.3,
        learning_rates=(0.03,),
        num_tuning_seeds=1,
        decays=(0.0, 5e-3),
        decay_epochs=40,
    ),
    "quick": QUICK,
    "standard": dataclasses.replace(
        QUICK,
        preset="standard",
        cases=(Case("tfds:fashion_mnist@14", 96),),
        ranks=(24, 12),
        num_train=2000,
        num_epochs=200,
        every=5,
    ),
    "paper": dataclasses.replace(
        QUICK,
        preset="paper",
        cases=tuple(Case(f"tfds:{name}", 512, depth) for name in ("cifar10", "fashion_mnist") for depth in (2, 4, 6, 10)),
        ranks=(128, 32, 8),
        num_train=40_000,
        batch_size=128,
        num_epochs=300,
        decay_epochs=300,
        every=10,
    ),
}


class Arguments(lab.Arguments):
    """Networks with factored layers against their full-rank twins, at equal loss: bounds, margins, test accuracy, and neural collapse.

    Claims S6.a to S6.e. A run that was stopped goes on when the same command is given again.
    """

    presets = PRESETS
