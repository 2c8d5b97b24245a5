"""Study 5: does power iteration show that a point is a minimum?

The paper's Table 1 takes the smallest eigenvalue of the Hessian from 500 steps of shifted power iteration in float32. Its Rayleigh
quotient bounds that eigenvalue from above only, so a point with a little negative curvature may pass for a minimum. Here networks are
trained, and the estimate is compared with Lanczos' method in float64, which watches its residual. A whole study in one file. Claim S5.b
was added after a pilot of two seeds, in which signs were right and sizes were not.
"""

import dataclasses
import functools
from typing import Any, ClassVar

from jaxbp import lab
from jaxbp.claims import Above, Claim
from jaxbp.stats import event_interval

_SOURCE = "Goldblum et al., ICLR 2020, Table 1, where it is the evidence for minima"
_BELIEF = "Folklore: some hundred steps of power iteration give the smallest eigenvalue."
SIGN = Claim(
    "S5.a",
    "Power iteration on the shifted Hessian, 500 steps in float32, tells the sign of a trained network's smallest eigenvalue.",
    _SOURCE,
    "share of seeds whose estimate has the eigenvalue's sign",
    Above(0.5),
    "taken for granted",
    belief=_BELIEF,
)
SIZE = Claim(
    "S5.b",
    "It tells its size, to within a factor of two.",
    _SOURCE,
    "share of seeds whose estimate has the eigenvalue's sign and lies within a factor of two of it",
    Above(0.5),
    "taken for granted, to three digits",
    belief=_BELIEF,
)


@dataclasses.dataclass(frozen=True)
class Case:
    """An MLP of 2 hidden layers on a data set; ``num_train``: examples that each seed draws."""

    dataset: str
    num_train: int
    num_epochs: int

    @property
    def name(self) -> str:
        """For instance "digits, 50 epochs"."""
        return f"{self.dataset}, {self.num_epochs} epoch{'s' * (self.num_epochs > 1)}"


@dataclasses.dataclass(frozen=True)
class Settings(lab.Settings):
    """Everything that decides the numbers of a run; ``num_steps`` of power iteration, twice: for the shift, and shifted."""

    cases: tuple[Case, ...]
    num_steps: int = 500
    learning_rate: float = 0.05


class Arguments(lab.Arguments):
    """Study 5: compare the paper's power iteration with Lanczos' method on Hessians of trained networks. Claims S5.a, S5.b."""

    presets: ClassVar = {
        "smoke": Settings("smoke", 2, (Case("digits", 200, 2),), num_steps=20),
        "quick": Settings("quick", 10, (Case("digits", 500, 5), Case("digits", 500, 50), Case("mnist1d", 500, 50))),
    }  # fmt: skip


def pieces(settings: Settings, store: Any, data_dir: Any) -> list[lab.Piece]:
    """A piece for each case and seed."""
    del store  # nothing builds on earlier pieces
    return [
        lab.Piece(f"{case.name}; {seed}", functools.partial(measure, settings, case, seed, data_dir), case.num_epochs, "all")
        for case in settings.cases
        for seed in settings.seeds
    ]


def measure(settings: Settings, case: Case, seed: int, data_dir: Any) -> dict[str, float]:
    """Train a network; its smallest eigenvalue by power iteration in float32 and by Lanczos' method in float64."""
    import jax
    import jax.numpy as jnp

    from jaxbp import data, landscape, models, training

    split = data.load(case.dataset, seed=seed, num_train=case.num_train, data_dir=data_dir)
    net, batch = (
        models.create("mlp", num_classes=split.num_classes, width=24, depth=2),
        (split.train.inputs, split.train.labels),
    )
    init_key, order_key, start_key = jax.random.split(jax.random.key(seed), 3)
    plan = training.Settings(num_epochs=case.num_epochs, batch_size=50)
    start = net.init(init_key, batch[0][:1])
    trained = training.train(net, training.sgd(settings.learning_rate, momentum=0.9), batch, order_key, plan, start=start)
    loss_fn = landscape.per_example_loss(net.apply, "cross_entropy")
    operator = landscape.hessian(loss_fn, trained.params, batch)
    estimate = shifted_power(operator.matvec, jax.random.normal(start_key, (operator.dimension,)), settings.num_steps)
    with jax.enable_x64(True):
        params, inputs = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (trained.params, batch[0]))
        operator = landscape.hessian(loss_fn, params, (inputs, batch[1]))
        start = jax.random.normal(start_key, (operator.dimension,), jnp.float64)
        smallest = landscape.extreme_eigenvalues(operator.matvec, start).smallest
    return {"estimate": estimate, "eigenvalue": smallest.value if smallest.converged else float("nan")}


def shifted_power(matvec: Any, start: Any, num_steps: int) -> float:
    """The paper's route: power iteration for the eigenvalue of largest size, then on the operator shifted by it; Rayleigh quotient."""
    import jax.numpy as jnp

    shift = 0.0
    for _ in range(2):
        vector = start / jnp.linalg.norm(start)
        for _ in range(num_steps):
            product = matvec(vector) - shift * vector
            vector = product / jnp.linalg.norm(product)
        shift = vector @ matvec(vector)
    return float(shift)


class Results(lab.Results):
    """Reads a finished run."""

    interval_fn = staticmethod(event_interval)

    @property
    def measurements(self) -> dict[Claim, dict[str, list[float]]]:
        """Whether sign and size are right, 0 or 1; NaN where Lanczos' method did not converge."""
        ratios = {case.name: [self._ratio(case, seed) for seed in self.settings.seeds] for case in self.settings.cases}
        right = {SIGN: lambda ratio: ratio > 0, SIZE: lambda ratio: 0.5 < ratio < 2}
        return {
            claim: {name: [float(fn(ratio)) if ratio == ratio else ratio for ratio in found] for name, found in ratios.items()}
            for claim, fn in right.items()
        }

    def _ratio(self, case: Case, seed: int) -> float:
        found = self.store.get(f"{case.name}; {seed}")
        return float(found["estimate"] / found["eigenvalue"])


STUDY = lab.Study(
    "S5",
    "Does power iteration show that a point is a minimum?",
    "The smallest eigenvalue of a Hessian is often taken from shifted power iteration, and a point where it comes out above 0 taken for "
    "a minimum. Here that estimate is compared with Lanczos' method, whose residual bounds its error.",
    Arguments,
    __name__,
)

if __name__ == "__main__":
    STUDY.main()
