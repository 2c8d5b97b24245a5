"""Cases, presets and command line of the study of algorithmic stability.

An arm is a share of wrong labels and a learning rate. Each arm has a base run, runs with one training example replaced, and a run in
another order with other augmentation; a seed's runs share all else. The run-up is half of the epochs: in the pilot the test loss still
fell after a quarter.
"""

import dataclasses
from typing import ClassVar

from jaxbp import lab

FIRST_SEED = 7000  # of data and keys: no pilot's


@dataclasses.dataclass(frozen=True)
class Case:
    """A network on a data set.

    Attributes:
      shift: pixels by which each image of a batch is moved at random, so that the noise of training never dies.
      flip: also mirror images.
      apart: whether each arm is a job of its own, for runs that take hours.
    """

    dataset: str
    model: str = "mlp"
    width: int = 24
    shift: int = 0
    flip: bool = False
    apart: bool = False

    @property
    def name(self) -> str:
        """For instance "digits, shifts"."""
        network = "" if self.model == "mlp" else f"{self.model}, "
        return f"{network}{self.dataset}, {'shifts' if self.shift else 'plain'}"


@dataclasses.dataclass(frozen=True)
class Settings(lab.Settings):
    """Everything that decides the numbers of a run.

    Attributes:
      shares: of wrong labels, the first 0.
      num_replaced: runs with one example replaced, K.
      num_test: test examples.
      run_up: epochs before time averages begin.
    """

    own_networks: ClassVar[str] = ""

    cases: tuple[Case, ...]
    num_epochs: int
    run_up: int
    num_train: int | None = 200
    num_test: int = 200
    batch_size: int = 50
    shares: tuple[float, ...] = (0.0, 0.5)
    learning_rates: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2)
    num_replaced: int = 3
    momentum: float = 0.9
    weight_decay: float = 1e-3

    def validate(self) -> None:
        """Raise `lab.SettingsError` where the study cannot run as set."""
        super().validate()
        if self.num_epochs - self.run_up < 8:
            raise lab.SettingsError(f"times need 8 epochs after the run-up of {self.run_up}, got {self.num_epochs} epochs in all")
        if self.num_replaced < 1 or len(self.shares) < 2 or self.shares[0] != 0:
            raise lab.SettingsError(f"give a replaced example and noise from 0 upwards, got {self.num_replaced} and {self.shares}")


_FASHION = "tfds:fashion_mnist@14"
_SMALL = (Case("digits"), Case("digits", shift=1), Case("mnist1d", shift=1))


@dataclasses.dataclass(frozen=True)
class Arguments(lab.Arguments):
    """Measure how one example changes time-averaged losses, over label noise and learning rates. Claims S7.a to S7.g."""

    presets: ClassVar = {
        "smoke": Settings("smoke", 2, _SMALL[1:2], num_epochs=20, run_up=10),
        "quick": Settings("quick", 10, _SMALL, num_epochs=240, run_up=120),
        "standard": Settings(
            "standard",
            10,
            (Case(_FASHION, width=32), Case(_FASHION, width=32, shift=1)),
            num_epochs=240,
            run_up=120,
            num_train=1000,
            num_test=500,
        ),
        "paper": Settings(
            "paper",
            5,
            tuple(Case("tfds:cifar10", model, 64, 4, True, True) for model in ("resnet18", "vgg11")),
            num_epochs=600,
            run_up=300,
            num_train=None,
            num_test=10_000,
            batch_size=128,
            shares=(0.0, 0.25, 0.5),
            learning_rates=(0.01, 0.1),
        ),
    }
    run_up: int | None = None
    """Epochs before time averages begin."""
