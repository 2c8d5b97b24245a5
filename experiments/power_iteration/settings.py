"""Settings of the study of power iteration."""

import dataclasses
from typing import ClassVar

from jaxbp import lab


@dataclasses.dataclass(frozen=True)
class Case:
    """An MLP of two hidden layers on a data set.

    Attributes:
      dataset: the name of the data set.
      num_train: training examples that each seed draws.
      num_epochs: epochs of the training.
    """

    dataset: str
    num_train: int
    num_epochs: int

    @property
    def name(self) -> str:
        """For instance "digits, 50 epochs"."""
        return f"{self.dataset}, {self.num_epochs} epoch{'s' * (self.num_epochs > 1)}"


@dataclasses.dataclass(frozen=True)
class Settings(lab.Settings):
    """Everything that decides the numbers of a run.

    Attributes:
      cases: networks and data.
      num_steps: steps of power iteration for the shift, and as many on the shifted operator.
      learning_rate: of SGD with momentum 0.9.
    """

    cases: tuple[Case, ...]
    num_steps: int = 500
    learning_rate: float = 0.05


class Arguments(lab.Arguments):
    """Compare the paper's power iteration with Lanczos' method on Hessians of trained networks. Claims S5.a, S5.b."""

    presets: ClassVar = {
        "smoke": Settings("smoke", 2, (Case("digits", 200, 2),), num_steps=20),
        "quick": Settings("quick", 10, (Case("digits", 500, 5), Case("digits", 500, 50), Case("mnist1d", 500, 50))),
    }
