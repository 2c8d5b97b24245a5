"""Cases, presets and command line of the study of local minima.

No setting was chosen by a verdict. Default training and training from other inits take the best of `RATES`, which every seed finds
out by runs with other random numbers. Momentum is 0.9, since the paper's 0.4 differs little from none. Runs that leave the embedded
minimum take fixed rates: the paper's for default training, the paper's for such runs, and shares of the limit of linear stability. Runs
below the limit make as many steps as give default training's sum of learning rates, but no more than ``stay_passes`` times its passes
over the data: the page says how far they come. Images have squared error, since a rare pixel or a class that stands apart leaves
cross-entropy without a minimiser (mnist5k@4 with 2,000 examples, on some seeds); the signals of mnist1d have cross-entropy, on 1,000
examples, since of 40 draws of 500 two were separable, of 1,000 none.
"""

import dataclasses
from typing import ClassVar, Literal

from jaxbp import lab

DEFAULT, EMBEDDED, SMALL_LR = "default", "embedded", "embedded, gentle"
NO_MOMENTUM = "no momentum"  # suffix of arms
SHIFTED = ("bias +20", "bias U(-10, 10)", "bias U(-50, 50)")  # the inits that Table 1 of the paper says end badly
OTHER_INITS = ("bias -20", "bias U(-2, 2)", "zero", "constant 0.001")
MOMENTUM_INIT = "bias U(-10, 10)"  # the init that Table 1 shows without momentum
PLAIN = f"{MOMENTUM_INIT}, {NO_MOMENTUM}"
RATES = (2e-5, 1e-4, 6e-4, 3e-3, 2e-2, 1e-1, 5e-1)  # among which every tuned arm chooses
LIMIT_SHARES = (0.1, 0.5, 0.9)  # learning rates below the limit of linear stability
SMALL, FULL = "small batches", "all examples"


@dataclasses.dataclass(frozen=True)
class Case:
    """A data set, network and loss.

    Attributes:
      model: "mlp", "convnet", or a network of the user's own, "module:function".
      num_train: training examples that a seed draws, None for all.
      arms: the trainings; empty for a case that only certifies.
      explore: whether to perturb the embedded minimum, and to measure spectral densities and a slice of the loss.
      chunk_size: examples that a Hessian product holds.
    """

    dataset: str
    model: str
    width: int | tuple[int, ...]
    depth: int
    loss: Literal["cross_entropy", "squared_error"]
    num_train: int | None
    arms: tuple[str, ...] = ()
    num_epochs: int = 1
    batch_size: int = 32
    explore: bool = False
    chunk_size: int | None = None

    @property
    def name(self) -> str:
        """For instance "mnist1d, MLP 4, cross-entropy"."""
        words = {"mlp": "MLP", "convnet": "ConvNet"}
        model = f"{words[self.model]} {self.depth}" if self.model in words else self.model
        return f"{self.dataset}, {model}, {self.loss.replace('_', '-')}"

    @property
    def tuned(self) -> tuple[str, ...]:
        """The arms whose learning rate is tuned: those that do not start at the embedded minimum."""
        return tuple(arm for arm in self.arms if not arm.startswith(EMBEDDED))

    @property
    def has_saddle(self) -> bool:
        """Whether the best affine map of half the rank is known exactly, so that a saddle can be built from it."""
        return self.loss == "squared_error"

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
      learning_rate, small_learning_rate: the paper's, of default training and of runs from the embedded minimum.
      margin: least input of every ReLU at the embedded minimum.
      stay_passes: longest training below the limit of stability, in trainings.
      perturbations: norms of random steps off the embedded minimum, relative to its parameters' norm; the last is the control.
      num_certified: seeds of which end points are certified and classified.
      num_densities: seeds of which starting points are certified and spectral densities measured.
      slice_points: points a side of the two-dimensional slice of the loss, 0 for none.
    """

    own_networks: ClassVar[str] = ""

    cases: tuple[Case, ...]
    learning_rate: float = 0.01
    small_learning_rate: float = 1e-4
    momentum: float = 0.9
    margin: float = 1.0
    stay_passes: int = 1
    perturbations: tuple[float, ...] = (1e-3, 1e-2, 0.1, 1.0)
    num_certified: int = 2
    num_densities: int = 1
    slice_points: int = 25

    def with_network(self, name: str) -> "Settings":
        """As `lab.Settings.with_network`; the network must be a linen module, in which the affine map is embedded layer by layer."""
        settings = lab.with_networks(self, name)
        for case in settings.cases:
            module = lab.network_module(name, num_classes=2, width=case.width, depth=case.depth)
            if not hasattr(module, "apply"):  # modules of flax.linen have it, and what stands for others does not
                raise lab.SettingsError(
                    f"this study embeds an affine map layer by layer, which it can follow in modules of flax.linen alone, and {name} makes "
                    "none: write the network in flax.linen, without normalisation"
                )
        return settings

    def validate(self) -> None:
        """Raise `lab.SettingsError` where the study cannot run as set."""
        super().validate()
        for case in self.cases:
            case.validate()


_FEW_ARMS = (DEFAULT, EMBEDDED, SMALL_LR)
_MAIN_ARMS = (*_FEW_ARMS, *SHIFTED, PLAIN)
_ALL_ARMS = (*_FEW_ARMS, *SHIFTED, *OTHER_INITS, PLAIN, f"{DEFAULT}, {NO_MOMENTUM}")
_MLP = Case("mnist1d", "mlp", 64, 4, "cross_entropy", 1000, num_epochs=50)

QUICK = Settings(
    preset="quick",
    num_seeds=10,
    cases=(
        dataclasses.replace(_MLP, arms=_MAIN_ARMS, explore=True),
        dataclasses.replace(_MLP, dataset="mnist5k@7", loss="squared_error", num_epochs=60, arms=_MAIN_ARMS),
        Case("mnist5k@7", "convnet", 4, 5, "squared_error", 300, _FEW_ARMS, num_epochs=60, batch_size=16),
        dataclasses.replace(_MLP, depth=8),
    ),
)
_SMOKE_CASES = (
    Case("mnist1d", "mlp", 32, 2, "cross_entropy", 500, _MAIN_ARMS, num_epochs=100, explore=True),
    Case("digits", "convnet", 8, 3, "squared_error", 300),
)
_FASHION_CASES = (
    QUICK.cases[0],
    Case("tfds:fashion_mnist@14", "mlp", 128, 4, "squared_error", 2000, _MAIN_ARMS, 40),
    Case("tfds:fashion_mnist@14", "convnet", 4, 5, "squared_error", 500, _FEW_ARMS, 40, batch_size=16),
)
_PAPER_MLP = Case(
    "tfds:cifar10", "mlp", (2048, 2048, 1024), 3, "cross_entropy", None, _ALL_ARMS, 450, batch_size=128, explore=True, chunk_size=2500
)
PRESETS = {
    "smoke": dataclasses.replace(
        QUICK, preset="smoke", cases=_SMOKE_CASES, num_seeds=2, perturbations=(0.01, 1.0), slice_points=5, num_certified=1
    ),
    "quick": QUICK,
    "standard": dataclasses.replace(QUICK, preset="standard", cases=_FASHION_CASES),
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
