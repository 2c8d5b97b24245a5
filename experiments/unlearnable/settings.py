"""Cases, presets and command line of the study of unlearnable data.

Perturbations of the small presets are large beside those of natural images and are not clipped: small digits are easier than CIFAR-10,
and black backgrounds clip away half of every signed perturbation. The penalty of the refitted head is fixed beforehand.
"""

import dataclasses
from typing import ClassVar

from jaxbp import lab

FIRST_SEED = 8000  # of data and keys: no pilot's
LEAST_CLEAN = 20  # two of each of ten classes


@dataclasses.dataclass(frozen=True)
class Poison:
    """A perturbation.

    Attributes:
      name: on the page.
      kind: its maker.
      size: root mean square, or the largest entry for those made by networks.
      patch: side of patches.
    """

    name: str
    kind: str
    size: float = 0.0
    patch: int = 1

    @property
    def antithetic(self) -> bool:
        """Whether each perturbation comes with its negative, so that no linear classifier separates the classes."""
        return self.kind in ("waves", "autoregressive")

    @property
    def class_wise(self) -> bool:
        """Whether the examples of a class share one pattern."""
        return self.kind in ("patches", "one pixel")


@dataclasses.dataclass(frozen=True)
class Case:
    """A network on a data set, and the perturbations.

    Attributes:
      options: of `jaxbp.models.create`, as pairs.
      clip: whether perturbed inputs are clipped to [0, 1].
      crop, flip: augmentation, in all arms.
      cutmix: whether perturbed and projected sets are also trained on with CutMix in half of the batches, which goes into a table.
      streamed: whether arms are made and trained one after another, with data that stay on the host, and each poison is a job of its own.
      refit_every: epochs between the heads that are refitted in the course of training; 0 for the head of the last epoch alone.
    """

    dataset: str
    poisons: tuple[Poison, ...]
    model: str = "convnet"
    width: int = 8
    options: tuple[tuple[str, object], ...] = (("depth", 3), ("pool", "stride"))
    num_epochs: int = 12
    learning_rate: float = 0.05
    clip: bool = False
    crop: int = 0
    flip: bool = False
    cutmix: bool = False
    streamed: bool = False
    refit_every: int = 0

    @property
    def name(self) -> str:
        """The data set, after a network of the user's own."""
        return f"{self.model}, {self.dataset}" if ":" in self.model else self.dataset

    @property
    def names(self) -> tuple[str, ...]:
        """Of the perturbations."""
        return tuple(poison.name for poison in self.poisons)

    @property
    def refit_epochs(self) -> tuple[int, ...]:
        """After which heads are refitted; the last decides."""
        along = range(self.refit_every, self.num_epochs, self.refit_every) if self.refit_every else ()
        return (*along, self.num_epochs)


@dataclasses.dataclass(frozen=True)
class Settings(lab.Settings):
    """Everything that decides the numbers of a run.

    Attributes:
      clean_share: of the training data, clean, on which heads are refitted.
      l2: penalty of the refitted head.
    """

    own_networks: ClassVar[str] = ""

    cases: tuple[Case, ...]
    num_train: int | None = 1000
    batch_size: int = 50
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clean_share: float = 0.1
    l2: float = 0.1

    def validate(self) -> None:
        """Raise `lab.SettingsError` where the study cannot run as set."""
        super().validate()
        if self.num_train is not None and self.num_train * self.clean_share < LEAST_CLEAN:
            raise lab.SettingsError(f"heads need {LEAST_CLEAN} clean examples, got {self.clean_share:g} of {self.num_train}")


_IMAGES = (
    Poison("LSP", "patches", 0.2, 4),
    Poison("OPS", "one pixel"),
    Poison("waves", "waves", 0.2),
    Poison("AR", "autoregressive", 0.4),
)
_SIGNALS = (Poison("LSP", "patches", 0.5, 5), Poison("waves", "waves", 0.5))
_CLOTHES = (Poison("LSP", "patches", 0.2, 7), *_IMAGES[1:])
_PUBLISHED = (
    Poison("LSP", "patches", 6 / 255, 8),
    Poison("OPS", "one pixel"),
    Poison("waves", "waves", 3072**-0.5),
    Poison("AR", "autoregressive", 3072**-0.5),  # of length 1
    Poison("error-minimising", "error-minimising", 8 / 255),
    Poison("error-minimising, class-wise", "error-minimising, class-wise", 8 / 255),
    Poison("error-maximising", "error-maximising", 8 / 255),
)
_CIFAR10 = Case(
    "tfds:cifar10",
    _PUBLISHED,
    "resnet18",
    64,
    (),
    60,
    0.1,
    clip=True,
    crop=4,
    flip=True,
    cutmix=True,
    streamed=True,
    refit_every=10,
)


class Arguments(lab.Arguments):
    """Train on data that were made unlearnable, and see what is left to learn. Claims S8.a to S8.g."""

    presets: ClassVar = {
        "smoke": Settings("smoke", 2, (Case("mnist5k@14", (_IMAGES[0], _IMAGES[2]), num_epochs=3),), num_train=300),
        "quick": Settings("quick", 10, (Case("mnist5k@14", _IMAGES), Case("mnist1d", _SIGNALS, num_epochs=20))),
        "standard": Settings("standard", 10, (Case("tfds:fashion_mnist", _CLOTHES, num_epochs=15),), num_train=2000),
        "paper": Settings("paper", 5, (_CIFAR10,), num_train=None, batch_size=128),
    }
