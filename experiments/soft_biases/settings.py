"""Cases, presets and command line of the study of soft inductive biases.

The paper states neither penalties nor sample sizes nor noise. Those of S10.a are chosen on seeds that are not used again, to favour the
claim. Thresholds were set with pilots of one to twenty seeds in view, and are fixed.
"""

import dataclasses
from typing import ClassVar

from jaxbp import lab

POLYNOMIAL, FEATURES, ISOTROPIC, WIDTHS, CODE = "polynomials", "random features", "isotropic model", "widths", "code lengths"
EVIDENCE = "evidence"
FIRST_TUNING_SEED = 1000


@dataclasses.dataclass(frozen=True)
class Case:
    """One of six kinds of measurements.

    Attributes:
      kind: one of the names above.
      dataset: "" for what has no data.
      noise: share of labels that are drawn anew.
      design, target: of polynomials: "grid" or "random" points, "smooth" or "waves".
      model: whose widths are swept, or whose code lengths are counted, there also "module:function" of the user's own.
    """

    kind: str
    dataset: str = ""
    noise: float = 0.0
    design: str = ""
    target: str = ""
    model: str = "mlp"

    @property
    def name(self) -> str:
        """For instance "digits, 20 % noise" or "code lengths, digits, mine:make"."""
        if self.kind == POLYNOMIAL:
            return f"{self.target}, {self.design} points"
        if self.kind == ISOTROPIC:
            return ISOTROPIC
        prefix = "" if self.kind == FEATURES else f"{self.kind}, "
        noise, model = f", {100 * self.noise:g} % noise" * bool(self.noise), f", {self.model}" * (self.model != "mlp")
        return f"{prefix}{self.dataset}{noise}{model}"


@dataclasses.dataclass(frozen=True)
class Settings(lab.Settings):
    """Everything that decides the numbers of a run.

    Attributes:
      degree, num_points, noise_sd: of polynomials and their data.
      gammas, ridges: among which penalties gamma^j and their strength are chosen.
      num_tuning_seeds: on which they are chosen.
      num_train, counts: examples and numbers of random features.
      feature_ridges: among which validation data choose.
      widths, width_train, width_epochs, learning_rate: of the networks of S10.d.
      exponents: alpha = 10^exponent of the effective dimensionality.
      evidence_train, evidence_noises, evidence_ridges: of the Gaussian process: examples, shares of labels that are drawn anew, variances
        of the noise relative to the kernel's, among which the evidence chooses.
      dimensions, hidden, code_epochs, code_rate: of the subspaces and network of S10.e, and their training by Adam; several dimensions are
        paid for.
      prior_share, prior_rate: share of the examples on which a start of the subspaces is trained, an arm of its own, and the rate; 0 for no
        such arm.
      steps: of the quantiser.
      delta: with which a bound may fail.
    """

    own_networks: ClassVar[str] = ""

    cases: tuple[Case, ...]
    degree: int = 150
    num_points: int = 40
    noise_sd: float = 0.1
    gammas: tuple[float, ...] = (1.02, 1.05, 1.1, 1.2, 1.5, 2.0)
    ridges: tuple[float, ...] = (0.0, 1e-10, 1e-8, 1e-6)
    num_tuning_seeds: int = 20
    num_train: int = 200
    counts: tuple[int, ...] = (20, 50, 100, 150, 180, 200, 220, 260, 400, 800, 2000)
    feature_ridges: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0)
    widths: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256, 512)
    width_train: int = 300
    width_epochs: int = 400
    learning_rate: float = 0.02
    exponents: tuple[int, ...] = (-4, -3, -2, -1, 0, 1, 2)
    evidence_train: int = 200
    evidence_noises: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    evidence_ridges: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
    dimensions: tuple[int, ...] = (100,)
    hidden: tuple[int, ...] = (64, 64)
    code_epochs: int = 60
    code_rate: float = 0.05
    prior_share: float = 0.0
    prior_rate: float = 1e-3
    steps: tuple[float, ...] = (4.0, 2.0, 1.0, 0.5, 0.35, 0.25, 0.18, 0.12, 0.06, 0.03)
    delta: float = 0.05

    def validate(self) -> None:
        """As `lab.Settings.validate`."""
        super().validate()
        if not self.dimensions or len(set(self.dimensions)) < len(self.dimensions) or min(self.dimensions) < 1:
            raise lab.SettingsError(f"dimensions must be different numbers of at least 1, one or more of them, got {self.dimensions}")
        if not 0 <= self.prior_share < 1:
            raise lab.SettingsError(f"prior_share must be at least 0 and below 1, so that examples are left, got {self.prior_share:g}")

    def with_network(self, name: str) -> "Settings":
        """The settings with a network of the user's own where code lengths are counted; S10.d keeps its own, and the rest has none."""
        cases = [dataclasses.replace(case, model=name) if case.kind == CODE else case for case in self.cases]
        return dataclasses.replace(self, cases=tuple(cases))


_POLYNOMIALS = tuple(Case(POLYNOMIAL, design=design, target=target) for design in ("grid", "random") for target in ("smooth", "waves"))
_FEATURES = tuple(Case(FEATURES, dataset, noise) for dataset in ("digits", "mnist1d", "mnist5k@7") for noise in (0.0, 0.2))
QUICK = Settings(
    "quick",
    10,
    cases=(
        *_POLYNOMIALS,
        *_FEATURES,
        Case(ISOTROPIC),
        Case(EVIDENCE, "digits"),
        Case(WIDTHS, "digits@4", 0.2),
        Case(CODE, "digits"),
        Case(CODE, "mnist5k@7"),
    ),
)
PRESETS = {
    "smoke": dataclasses.replace(
        QUICK,
        preset="smoke",
        num_seeds=3,
        cases=(
            _POLYNOMIALS[0],
            _FEATURES[0],
            Case(ISOTROPIC),
            Case(EVIDENCE, "digits"),
            Case(WIDTHS, "digits@4", 0.2),
            Case(CODE, "digits"),
        ),
        num_tuning_seeds=3,
        evidence_train=60,
        counts=(20, 100, 180, 200, 220, 400, 2000),
        widths=(4, 16, 32, 64),
        width_epochs=100,
        dimensions=(32,),
        code_epochs=10,
    ),
    "quick": QUICK,
    "standard": dataclasses.replace(
        QUICK,
        preset="standard",
        cases=(
            *_POLYNOMIALS,
            *(Case(FEATURES, "tfds:fashion_mnist@14", noise) for noise in (0.0, 0.2)),
            Case(ISOTROPIC),
            Case(EVIDENCE, "tfds:fashion_mnist@14"),
            Case(WIDTHS, "tfds:fashion_mnist@7", 0.2),
            Case(CODE, "tfds:fashion_mnist@14"),
        ),
        num_train=400,
        counts=(40, 100, 200, 300, 360, 400, 440, 520, 800, 1600, 4000),
        evidence_train=400,
        width_train=600,
        code_epochs=20,
    ),
    "paper": dataclasses.replace(
        QUICK,
        preset="paper",
        num_seeds=20,
        cases=(
            *_POLYNOMIALS,
            *(Case(FEATURES, "tfds:cifar10", noise) for noise in (0.0, 0.2)),
            Case(ISOTROPIC),
            Case(EVIDENCE, "tfds:cifar10"),
            Case(WIDTHS, "tfds:cifar100", 0.1, model="resnet18"),
            Case(CODE, "tfds:cifar10"),
        ),
        num_train=2000,
        counts=(200, 500, 1000, 1500, 1800, 2000, 2200, 2600, 4000, 8000, 20_000),
        evidence_train=2000,
        widths=(1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64),
        width_train=10_000,
        width_epochs=100,
        dimensions=(500, 1000, 2000),
        prior_share=0.5,
        hidden=(512, 512),
    ),
}


class Arguments(lab.Arguments):
    """Polynomials of high degree, double descent, evidence, effective dimensionality, and bounds that count bits.

    Claims S10.a to S10.e. A run that was stopped goes on when the same command is given again.
    """

    presets = PRESETS
