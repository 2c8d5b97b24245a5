"""Cases, presets and command line of the study of local minima.

No setting was chosen by a verdict. The learning rate is the paper's; momentum is 0.9, since the paper's 0.4 differs little from
none. The quick preset's share of the whole lab's twenty minutes allows these examples, widths and epochs: default training then ends
near zero loss on mnist1d (0.004 and 0.014), and well above it on mnist5k (0.33 of 0.76 and 0.07 of 0.19 at the embedded minimum). A
cut for cost, to 8 seeds and 30 epochs on mnist5k@4, was undone when S1.b showed that default training then is none.
"""

import dataclasses
from typing import Literal

from jaxbp import lab

DEFAULT, EMBEDDED, SMALL_LR = "default", "embedded", "embedded, gentle"
NO_MOMENTUM, RESCALED_LR = "no momentum", "no momentum, large steps"  # suffixes of arms
SHIFTED = ("bias +20", "bias U(-10, 10)", "bias U(-50, 50)")  # the inits that Table 1 of the paper says end badly
CONTROLS = ("bias -20", "bias U(-2, 2)", "zero", "constant 0.001")
MOMENTUM_INIT = "bias U(-10, 10)"  # the init that Table 1 shows without momentum


@dataclasses.dataclass(frozen=True)
class Case:
    """A data set, network and loss.

    Attributes:
      num_train: training examples that a seed draws, None for all.
      arms: the trainings; empty for a case that only certifies.
      certify_ends: of how many seeds the end points are certified and classified, None for all.
      explore: whether to perturb the embedded minimum, and to measure spectral densities and a slice of the loss.
      chunk_size: examples that a Hessian product holds.
    """

    dataset: str
    model: Literal["mlp", "convnet"]
    width: int | tuple[int, ...]
    depth: int
    loss: Literal["cross_entropy", "squared_error"]
    num_train: int | None
    arms: tuple[str, ...] = ()
    num_epochs: int = 1
    batch_size: int = 32
    certify_ends: int | None = None
    explore: bool = False
    chunk_size: int | None = None

    @property
    def name(self) -> str:
        """For instance "mnist1d, MLP 4, cross-entropy"."""
        model = {"mlp": "MLP", "convnet": "ConvNet"}[self.model]
        return f"{self.dataset}, {model} {self.depth}, {self.loss.replace('_', '-')}"

    @property
    def cost(self) -> float:
        """A rough guess of the time of a pass over the data, good enough for the time left."""
        return (self.num_train or 50_000) * self.depth * (10 if self.model == "convnet" else 1) / 1e5

    def validate(self) -> None:
        """Raise `lab.SettingsError` for what can be known before anything is loaded."""
        for field in ("depth", "num_epochs", "batch_size"):
            if getattr(self, field) < 1:
                raise lab.SettingsError(f"{field} must be at least 1, got {getattr(self, field)}")
        if self.num_train is not None and self.num_train < self.batch_size:
            raise lab.SettingsError(f"num_train must be at least the batch size {self.batch_size}, got {self.num_train}")
        if min(self.width if isinstance(self.width, tuple) else (self.width,), default=0) < 1:
            raise lab.SettingsError(f"width must be at least 1, got {self.width}")
        if isinstance(self.width, tuple) and len(self.width) != self.depth:
            raise lab.SettingsError(f"{self.depth} hidden layers need as many widths, got {self.width}")


@dataclasses.dataclass(frozen=True)
class Settings(lab.Settings):
    """Everything that decides the numbers of a run.

    Attributes:
      small_learning_rate: of the arm that leaves the embedded minimum by small steps.
      margin: least input of every ReLU at the embedded minimum.
      perturbations: norms of random steps off the embedded minimum, relative to its parameters' norm.
      num_densities: seeds of which starting points are certified and spectral densities measured.
      slice_points: points a side of the two-dimensional slice of the loss, 0 for none.
    """

    cases: tuple[Case, ...]
    learning_rate: float = 0.01
    small_learning_rate: float = 1e-4
    momentum: float = 0.9
    margin: float = 1.0
    perturbations: tuple[float, ...] = (1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
    num_densities: int = 1
    slice_points: int = 25

    def certified_seeds(self, case: Case) -> range:
        """The seeds whose end points are certified."""
        return self.seeds if case.certify_ends is None else self.seeds[: case.certify_ends]

    def validate(self) -> None:
        """Raise `lab.SettingsError` where the study cannot run as set."""
        super().validate()
        names = [case.name for case in self.cases]
        if len(set(names)) < len(names):
            raise lab.SettingsError(f"cases must differ in more than their width, got {names}")
        for case in self.cases:
            case.validate()


_FEW_ARMS = (DEFAULT, EMBEDDED, SMALL_LR)
_MOMENTUM_ARMS = (f"{MOMENTUM_INIT}, {NO_MOMENTUM}", f"{MOMENTUM_INIT}, {RESCALED_LR}")
_MAIN_ARMS = (*_FEW_ARMS, *SHIFTED, *_MOMENTUM_ARMS)
_ALL_ARMS = (*_FEW_ARMS, *SHIFTED, *CONTROLS, *_MOMENTUM_ARMS, f"{DEFAULT}, {NO_MOMENTUM}")
_MLP = Case("mnist1d", "mlp", 64, 4, "cross_entropy", 1000)
_CONVNET = Case("mnist1d", "convnet", 6, 5, "cross_entropy", 500)

QUICK = Settings(
    preset="quick",
    num_seeds=10,
    cases=(
        dataclasses.replace(_MLP, arms=_ALL_ARMS, num_epochs=100, certify_ends=3, explore=True),
        dataclasses.replace(_CONVNET, arms=_MAIN_ARMS, num_epochs=60, certify_ends=2),
        dataclasses.replace(_MLP, dataset="mnist5k@4", num_train=4000, arms=(*_FEW_ARMS, *SHIFTED), num_epochs=60, certify_ends=2),
        Case("mnist5k@7", "convnet", 4, 5, "squared_error", 300, _FEW_ARMS, num_epochs=100, batch_size=16, certify_ends=0),
        dataclasses.replace(_MLP, depth=2),
        dataclasses.replace(_MLP, depth=8),
        Case("mnist5k", "mlp", 32, 4, "squared_error", 1000),
    ),
)
_SMOKE_CASES = (
    Case("mnist1d", "mlp", 32, 2, "cross_entropy", 500, _MAIN_ARMS, num_epochs=200, explore=True),
    Case("digits", "convnet", 8, 3, "squared_error", 300),
)
_PAPER_MLP = Case(
    "tfds:cifar10", "mlp", (2048, 2048, 1024), 3, "cross_entropy", None, _ALL_ARMS, 450, batch_size=128, explore=True, chunk_size=2500
)
PRESETS = {
    "smoke": dataclasses.replace(QUICK, preset="smoke", cases=_SMOKE_CASES, num_seeds=2, perturbations=(0.01, 1.0), slice_points=5),
    "quick": QUICK,
    "paper": dataclasses.replace(QUICK, preset="paper", cases=(_PAPER_MLP,)),
}


@dataclasses.dataclass(frozen=True)
class Arguments(lab.Arguments):
    """Build suboptimal local minima of deep networks, certify them, and see what training makes of them.

    Claims S1.a to S1.e over many seeds, each with an interval and a verdict, tables, figures and a page. A run that was stopped goes on
    when the same command is given again.
    """

    presets = PRESETS

    loss: Literal["cross_entropy", "squared_error"] | None = None
    """Use this loss in every case. Cross-entropy has no minimiser where classes are linearly separable; squared error always has."""
    width: int | None = None
    """Width of every network."""
