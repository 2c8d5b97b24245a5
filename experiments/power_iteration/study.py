"""Does power iteration show that a point is a minimum?

The paper's Table 1 takes the smallest eigenvalue of the Hessian from 500 steps of shifted power iteration in float32. The Rayleigh
quotient bounds that eigenvalue from above only, so a point with a little negative curvature may pass for a minimum. Here networks are
trained, and the estimate is compared with Lanczos' method in float64, which watches its residual. Claim S5.b was added after a pilot of
two seeds, in which signs were right and sizes were not.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import xarray as xr

from experiments.power_iteration.settings import Case, Settings
from jaxbp import data, lab, landscape, models, report, stats, training
from jaxbp.claims import Above, Claim

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


def smallest_eigenvalue(case: Case, settings: Settings, seed: int) -> dict[str, float]:
    """Train a network; its smallest eigenvalue by power iteration in float32 and by Lanczos' method in float64."""
    split = data.load(case.dataset, seed=seed, num_train=case.num_train, data_dir=settings.data_dir)
    net = models.create("mlp", num_classes=split.num_classes, width=24, depth=2)
    batch = split.train.inputs, split.train.labels
    init_key, order_key, start_key = jax.random.split(jax.random.key(seed), 3)
    options = training.Settings(num_epochs=case.num_epochs, batch_size=50)
    start = net.init(init_key, batch[0][:1])
    trained = training.train(net, training.sgd(settings.learning_rate, momentum=0.9), batch, order_key, options, start=start)
    loss_fn = landscape.per_example_loss(net.apply, "cross_entropy")
    operator = landscape.hessian(loss_fn, trained.params, batch)
    estimate = shifted_power(operator.matvec, jax.random.normal(start_key, (operator.dimension,)), settings.num_steps)
    with jax.enable_x64(True):
        params, inputs = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (trained.params, batch[0]))
        operator = landscape.hessian(loss_fn, params, (inputs, batch[1]))
        start = jax.random.normal(start_key, (operator.dimension,), jnp.float64)
        smallest = landscape.extreme_eigenvalues(operator.matvec, start).smallest
    return {"estimate": estimate, "eigenvalue": smallest.value if smallest.converged else float("nan")}


def shifted_power(matvec: Callable, start: jax.Array, num_steps: int) -> float:
    """The paper's route: power iteration for the eigenvalue of largest size, then on the operator shifted by it; Rayleigh quotient."""
    shift: Any = 0.0
    for _ in range(2):
        vector = start / jnp.linalg.norm(start)
        for _ in range(num_steps):
            product = matvec(vector) - shift * vector
            vector = product / jnp.linalg.norm(product)
        shift = vector @ matvec(vector)
    return float(shift)


def _share(holds: Callable) -> Callable:
    """A measure: 1 where ``holds`` of estimate over eigenvalue, 0 elsewhere, NaN where Lanczos' method did not converge."""

    def values(results: Any) -> xr.DataArray:
        point = results.smallest_eigenvalue
        ratio = point.estimate / point.eigenvalue
        return holds(ratio).where(ratio.notnull())

    return values


STUDY = lab.Study(
    id="S5",
    title="Does power iteration show that a point is a minimum?",
    lead="The smallest eigenvalue of a Hessian is often taken from shifted power iteration, and a point where it comes out above 0 taken "
    "for a minimum. Here that estimate is compared with Lanczos' method, whose residual bounds its error.",
    module="experiments.power_iteration",
    stages=(
        lab.Stage(
            smallest_eigenvalue,
            over=lambda case, settings: {"seed": settings.seeds},
            cost=lambda case, settings, seed: case.num_epochs,
            reads=("num_steps", "learning_rate"),
        ),
    ),
    measures=(
        lab.Measure(SIGN, _share(lambda ratio: ratio > 0), interval_fn=stats.event_interval),
        lab.Measure(SIZE, _share(lambda ratio: (ratio > 0.5) & (ratio < 2)), interval_fn=stats.event_interval),
    ),
    controls=(),
    figures=(report.ClaimStrips(),),
    tables=(report.ClaimMeans(),),
    method=(),
)
