"""Cases, presets and command line of the study of bounds for sparse networks.

Images are raw, as the networks are trained on them, so that a bound's data term and the network agree. The thresholds of the rules were
set with pilots of one to three seeds in view, and are fixed. The hyperparameters of S9.d are varied one at a time around a network that
fits noisy labels.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from jaxbp import lab

NOISE, DECAY, DEPTH, WIDTH, EXAMPLES = "label noise", "weight decay", "depth", "width", "examples"


@dataclasses.dataclass(frozen=True)
class Case:
    """A network on a data set.

    Attributes:
      depth, width: L and H of CONV-L-H.
      stride: 1, or 2 for a tree, whose last layer reads one pixel.
      varied: whether S9.d and S9.e are measured here.
      normalised: whether convolutions are trained with weight normalisation.
    """

    dataset: str
    depth: int
    width: int
    stride: int = 1
    varied: bool = False
    normalised: bool = False

    @property
    def name(self) -> str:
        """For instance "digits, CONV-2-12"."""
        name = f"{self.dataset}, {'tree' if self.stride > 1 else 'CONV'}-{self.depth}-{self.width}"
        return f"{name}, weight normalisation" if self.normalised else name


@dataclasses.dataclass(frozen=True)
class Settings(lab.Settings):
    """Everything that decides the numbers of a run.

    Attributes:
      num_train: examples that each seed draws.
      num_epochs, batch_size, learning_rate, momentum: of all trainings.
      varied_width, varied_train, varied_epochs: of the network around which S9.d varies; its depth is the case's.
      levels: of each hyperparameter of S9.d.
      mse_epochs, mse_decays: of the trainings by squared error on one-hot targets, S9.e.
      rate_drops: epochs at which the learning rate falls tenfold.
      num_draws: of signs, for a witness.
      delta: with which a bound may fail.
      chunk_size: examples whose feature maps are held at a time when a network is judged; None holds all.
    """

    own_networks: ClassVar[str] = (
        "its bounds and lower bounds are those of ReLU networks without biases, padding and normalisation, of every depth, width and "
        "stride that is varied. jaxbp.bounds.anatomy and jaxbp.bounds.sparse bound yours, if it is such a network"
    )

    cases: tuple[Case, ...]
    num_train: int
    num_epochs: int
    varied_width: int
    varied_train: int
    varied_epochs: int
    levels: Mapping[str, tuple[float, ...]] = dataclasses.field(hash=False)
    mse_epochs: int
    mse_decays: tuple[float, ...]
    batch_size: int = 50
    learning_rate: float = 0.02
    momentum: float = 0.9
    rate_drops: tuple[int, ...] = ()
    num_draws: int = 32
    delta: float = 0.05
    chunk_size: int | None = None


_LEVELS = {
    NOISE: (0.0, 0.1, 0.2, 0.4),
    DECAY: (0.0, 2e-4, 5e-4, 1e-3),
    DEPTH: (1, 2, 3, 4),
    WIDTH: (8, 12, 20, 32),
    EXAMPLES: (150, 250, 400, 600),
}
_FASHION = "tfds:fashion_mnist@14"
QUICK = Settings(
    "quick",
    5,
    cases=(
        Case("digits", 2, 12, varied=True),
        Case("digits", 3, 16),
        Case("digits", 3, 16, stride=2),
        Case("mnist5k@14", 2, 12),
        Case("mnist5k@14", 3, 16),
    ),
    num_train=1000,
    num_epochs=60,
    varied_width=32,
    varied_train=500,
    varied_epochs=150,
    levels=_LEVELS,
    mse_epochs=200,
    mse_decays=(1e-3, 3e-3, 1e-2),
)
_SMOKE_LEVELS = {NOISE: (0.0, 0.2, 0.4), DEPTH: (1, 2, 3)}
_PAPER_LEVELS = {
    NOISE: (*_LEVELS[NOISE], 0.5, 1.0),
    DECAY: _LEVELS[DECAY],
    DEPTH: (3, 4, 5, 8),
    WIDTH: (100, 200, 400, 600),
    EXAMPLES: (5400, 13_500, 27_000, 54_000),  # 10, 25, 50 and 100 % of what the validation split leaves of 60,000
}
PRESETS = {
    "smoke": dataclasses.replace(
        QUICK,
        preset="smoke",
        num_seeds=2,
        cases=(Case("digits", 2, 6, varied=True), Case("digits", 3, 6, stride=2)),
        num_train=300,
        num_epochs=10,
        varied_width=8,
        varied_train=200,
        varied_epochs=20,
        levels=_SMOKE_LEVELS,
        mse_epochs=10,
        mse_decays=(3e-3,),
    ),
    "quick": QUICK,
    "standard": dataclasses.replace(
        QUICK,
        preset="standard",
        num_seeds=10,
        cases=(Case(_FASHION, 2, 12, varied=True), Case(_FASHION, 3, 16), Case(_FASHION, 3, 16, stride=2)),
        num_train=2000,
        mse_epochs=100,
    ),
    "paper": dataclasses.replace(
        QUICK,
        preset="paper",
        cases=tuple(
            Case(f"tfds:{name}", depth, width, varied=(depth, width) == (3, 200), normalised=normalised)
            for name in ("mnist", "fashion_mnist", "svhn_cropped")
            for depth in (3, 4, 5, 8)
            for width in (200, 600)
            for normalised in (True, False)
            if normalised or (depth, width) == (3, 200)  # without weight normalisation for comparison
        ),
        num_train=54_000,
        num_epochs=500,
        varied_width=200,
        varied_train=54_000,
        varied_epochs=500,
        levels=_PAPER_LEVELS,
        mse_epochs=500,
        batch_size=32,
        learning_rate=0.01,
        rate_drops=(60, 120, 160),
        delta=0.001,
        chunk_size=500,
    ),
}


class Arguments(lab.Arguments):
    """Bounds of the complexity and the test error of convolutional networks, held between a lower bound and the truth.

    Claims S9.a to S9.e: whether the published formula is a bound, what filter norms gain over operator norms, and whether the bound
    is the smallest, ranks networks by their gap, and is nearly informative.
    """

    presets = PRESETS
