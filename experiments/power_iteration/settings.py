"""Settings of the study of power iteration."""

import dataclasses
from typing import ClassVar

from jaxbp import lab


@dataclasses.dataclass(frozen=True)
class Case:
    """A network at a point: trained, or an MLP at an embedded minimum.

    Attributes:
      dataset: the name of the data set.
      num_train: training examples that each seed draws.
      num_epochs: epochs of the training; None for the affine minimiser of squared error, embedded, whose Hessian has no negative
        eigenvalue.
      near_convergence: whether training has all but ended, so that the smallest eigenvalue decides what the point is.
      width: of the two hidden layers.
      model: the trained network's name, or "module:function" of the user's own.
    """

    dataset: str
    num_train: int
    num_epochs: int | None = None
    near_convergence: bool = False
    width: int = 24
    model: str = "mlp"

    @property
    def name(self) -> str:
        """For instance "digits, 50 epochs" or "digits, mine:make, 50 epochs"."""
        epochs, data_and_model = self.num_epochs, self.dataset + f", {self.model}" * (self.model != "mlp")
        return f"{data_and_model}, embedded minimum" if epochs is None else f"{data_and_model}, {epochs} epoch{'s' * (epochs > 1)}"

    @property
    def loss(self) -> str:
        """The loss, by name."""
        return "squared_error" if self.num_epochs is None else "cross_entropy"


@dataclasses.dataclass(frozen=True)
class Settings(lab.Settings):
    """Everything that decides the numbers of a run.

    Attributes:
      cases: networks and data.
      num_steps: steps of power iteration for the shift, and as many on the shifted operator.
      learning_rate: of SGD with momentum 0.9.
    """

    own_networks: ClassVar[str] = ""

    cases: tuple[Case, ...]
    num_steps: int = 500
    learning_rate: float = 0.05

    def with_network(self, name: str) -> "Settings":
        """The settings with a network of the user's own where networks are trained; minima by construction keep their MLP."""
        cases = [case if case.num_epochs is None else dataclasses.replace(case, model=name) for case in self.cases]
        return dataclasses.replace(self, cases=tuple(cases))


_SMOKE = (Case("digits", 200, 2), Case("digits", 200, 20, near_convergence=True), Case("digits", 200))
_LONG = (Case("digits", 500, 500, near_convergence=True), Case("mnist1d", 500, 500, near_convergence=True))
_QUICK = (Case("digits", 500, 5), *_LONG, Case("digits", 500), Case("mnist1d", 500))
_FASHION = ("tfds:fashion_mnist@7", 2000)


class Arguments(lab.Arguments):
    """Compare the paper's power iteration with Lanczos' method on Hessians of trained networks and of minima. Claims S5.a, S5.b."""

    presets: ClassVar = {
        "smoke": Settings("smoke", 2, _SMOKE, num_steps=100),
        "quick": Settings("quick", 10, _QUICK),
        "standard": Settings("standard", 20, (*_QUICK, Case(*_FASHION, 5), Case(*_FASHION, 500, near_convergence=True), Case(*_FASHION))),
    }
