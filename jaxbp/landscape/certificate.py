"""A certificate that a point is, or is not, a local minimum, and the name of the kind of point.

Three grades:

- *proven*: every ReLU is strictly active on every example, so within `stable_radius` the network computes only affine maps of its input;
  no affine map has a smaller loss than ``lower_bound``; and the point attains this bound. Then no point within the radius has a lower
  loss, up to float64 rounding (Theorem 1 of "Truth or Backpropaganda?", Goldblum et al., ICLR 2020).
- *supported*: the point is stationary, without negative curvature, away from every kink, and no probe had a lower loss. This is evidence,
  no proof; ``reasons`` lists what a proof lacks.
- *refuted*: one of these conditions fails; ``reasons`` lists which.

Curvature alone cannot prove these minima. They are degenerate (layers can be rescaled against each other), so the smallest eigenvalue is
exactly 0, and a computation can only show that it is not below -tolerance.

>>> import jax, jax.numpy as jnp
>>> from jaxbp import landscape
>>> x, y = jax.random.normal(jax.random.key(0), (100, 3)), jnp.arange(100) % 2
>>> def apply_fn(params, x):
...     return x @ params
>>> landscape.certify(apply_fn, jnp.ones((3, 2)), x, y, loss="squared_error", key=jax.random.key(1)).status
'refuted'
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, Num, PyTree

from jaxbp.landscape.activation import ActivationReport, UnsupportedOperationError, analyse, stable_radius
from jaxbp.landscape.hessian import Hessian, LossFn, hessian
from jaxbp.landscape.probes import ProbeReport, probe
from jaxbp.linalg.lanczos import Extremes, extreme_eigenvalues
from jaxbp.losses import LOSSES

ROUNDING = 1e-12  # relative loss differences below this are float64 noise
_NOT_FINITE = "the loss, its gradient or its curvature is not finite"
_PROBE_RADII = (1e-4, 1e-3, 1e-2)  # relative to the parameters' norm, where no radius is proven
_PROVEN_RADII = (0.01, 0.1, 0.9)  # relative to the stable radius
CLASSES = ("near-global", "suboptimal minimum", "saddle", "not converged", "diverged")


class Certificate(NamedTuple):
    """What is known of a point.

    Where the loss or a derivative is not finite, the status is refuted and the fields that could not be computed are None.

    Attributes:
      status: "proven", "supported" or "refuted", see the module.
      reasons: what a proof lacks, or why the point is refuted.
      loss: mean loss.
      gradient_norm: Euclidean norm of the gradient.
      extremes: ends of the Hessian's spectrum.
      activations: margins of the ReLUs; None where the network has operations that `analyse` does not know.
      radius: `stable_radius`; 0 where ``activations`` is None.
      gap: loss minus ``lower_bound``; infinite where no bound was given.
      probes: losses around the point.
    """

    status: str
    reasons: tuple[str, ...]
    loss: float
    gradient_norm: float
    extremes: Extremes | None
    activations: ActivationReport | None
    radius: float
    gap: float
    probes: ProbeReport | None

    @property
    def is_minimum(self) -> bool:
        """Whether the point is a local minimum, proven or supported."""
        return self.status != "refuted"


def certify(
    apply_fn: Callable[[Any, jax.Array], jax.Array],
    params: PyTree,
    inputs: Num[jax.Array | np.ndarray, "n ..."],
    labels: Int[jax.Array | np.ndarray, " n"],
    *,
    loss: str,
    key: jax.Array,
    lower_bound: float = -math.inf,
    max_rank: int | None = None,
    gradient_tolerance: float = 1e-8,
    curvature_tolerance: float = 1e-6,
    max_products: int = 150,
    num_directions: int = 4,
    num_steps: int = 20,
    chunk_size: int | None = None,
) -> Certificate:
    """Certify the point ``params`` of the mean loss over all examples, in float64 on the CPU.

    Args:
      apply_fn: logits (N, C) from parameters and inputs; pass the same object again to reuse the compiled programs.
      params: any floating-point pytree.
      inputs, labels: (N, ...) and (N,) integers.
      loss: a name in `losses.LOSSES`.
      key: for the Lanczos start and the probes.
      lower_bound: of the loss over all affine maps of the input (`AffineFit.lower_bound`); -inf proves nothing.
      max_rank: rank up to which ``lower_bound`` holds (with `AffineFit.rank_lower_bound`); None if it holds for all affine maps.
      gradient_tolerance: largest Euclidean norm of the gradient of a stationary point.
      curvature_tolerance: how far the smallest eigenvalue may lie below 0, relative to the largest absolute one.
      max_products: of the Lanczos iteration.
      num_directions, num_steps: of the probes, see `probe`.
      chunk_size: number of examples held at a time, see `hessian`.

    Raises:
      ValueError: for an unknown loss, or a network that does not compute in float64.
    """
    loss_fn = per_example_loss(apply_fn, loss)
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        params, inputs = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), (params, inputs))
        data = (inputs, jnp.asarray(np.asarray(labels), jnp.int32))
        _refuse_short_floats(apply_fn, params, inputs)
        operator = hessian(loss_fn, params, data, chunk_size=chunk_size)
        value, gradient_norm = float(operator.loss), float(jnp.linalg.norm(operator.gradient))
        start_key, probe_key = jax.random.split(_on_device(key))
        extremes = _finite_extremes(operator, start_key, curvature_tolerance, max_products)
        if extremes is None:
            return Certificate("refuted", (_NOT_FINITE,), value, gradient_norm, None, None, 0.0, math.inf, None)
        activations, radius, unknown = _activations(apply_fn, params, inputs, chunk_size)
        radii = _probe_radii(radius, operator)
        step_size, direction = 0.5 / max(_scale(extremes), 1e-12), extremes.smallest.vector
        counts: dict[str, Any] = {"num_directions": num_directions, "num_steps": num_steps, "chunk_size": chunk_size}
        probes = probe(loss_fn, params, data, probe_key, radii=radii, step_size=step_size, direction=direction, **counts)
    gap = value - lower_bound
    point = Certificate("refuted", (), value, gradient_norm, extremes, activations, radius, gap, probes)
    if refutations := _refutations(point, radius if _is_proven(radius) else max(radii), gradient_tolerance, curvature_tolerance):
        return point._replace(reasons=refutations)
    lacking = _missing_for_proof(value, gap, max_rank, activations, radius, unknown)
    if lacking and not extremes.smallest.converged:  # a proof does not use the eigenvalue
        lacking += (f"the smallest eigenvalue is not converged (residual {extremes.smallest.residual:.2g}): raise max_products",)
    return point._replace(status="supported" if lacking else "proven", reasons=lacking)


def classify(
    certificate: Certificate,
    *,
    near_global_loss: float,
    gradient_tolerance: float,
    curvature_tolerance: float = 1e-3,
    drop: float = 1e-2,
) -> str:
    """Name the kind of a trained network's end point, one of `CLASSES`.

    The first of these that applies:

    - *diverged*: the loss or a derivative is not finite;
    - *near-global*: the loss is at most ``near_global_loss``;
    - *not converged*: the gradient's norm exceeds ``gradient_tolerance``;
    - *saddle*: the smallest eigenvalue is below -``curvature_tolerance`` times the largest absolute one, a ReLU is exactly at its kink on
      some example, or a probe lowered the loss by more than the share ``drop`` of it;
    - *suboptimal minimum*: all other points.

    Stochastic training ends near stationary points, not on them, so these tolerances are coarser than those of `certify`.
    """
    if certificate.extremes is None or certificate.probes is None:
        return "diverged"
    if certificate.loss <= near_global_loss:
        return "near-global"
    if certificate.gradient_norm > gradient_tolerance:
        return "not converged"
    negative = certificate.extremes.smallest.value < -curvature_tolerance * _scale(certificate.extremes)
    escapes = certificate.probes.lowest_change < -drop * abs(certificate.loss)
    kink = certificate.activations is not None and certificate.activations.smallest_margin == 0
    return "saddle" if negative or escapes or kink else "suboptimal minimum"


@functools.cache
def per_example_loss(apply_fn: Callable[[Any, jax.Array], jax.Array], loss: str) -> LossFn:
    """Return ``loss_fn(params, inputs, labels) -> (N,)`` for a name in `jaxbp.losses.LOSSES`; equal arguments give the same object."""
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {sorted(LOSSES)}, got {loss!r}")
    return lambda params, inputs, labels: LOSSES[loss](apply_fn(params, inputs), labels)


def _scale(extremes: Extremes) -> float:
    return max(abs(extremes.smallest.value), abs(extremes.largest.value))


def _finite_extremes(operator: Hessian, key: jax.Array, atol: float, max_products: int) -> Extremes | None:
    """Ends of the Hessian's spectrum; None where the loss, the gradient or the curvature is not finite."""
    if not (jnp.isfinite(operator.loss) and jnp.isfinite(jnp.linalg.norm(operator.gradient))):
        return None
    start = jax.random.normal(key, (operator.dimension,), jnp.float64)
    extremes = extreme_eigenvalues(operator.matvec, start, atol=atol, max_products=max_products)
    return extremes if math.isfinite(_scale(extremes)) else None


def _probe_radii(radius: float, operator: Hessian) -> tuple[float, ...]:
    """Distances to probe, relative to the stable radius, or to the norm of the parameters where no radius is proven."""
    if _is_proven(radius):
        return tuple(radius * share for share in _PROVEN_RADII)
    unit = float(jnp.linalg.norm(operator.position)) or 1.0
    return tuple(unit * share for share in _PROBE_RADII)


def _is_proven(radius: float) -> bool:
    return 0 < radius < math.inf


def _on_device(key: jax.Array) -> jax.Array:
    """The same key on the default device and in the current precision mode."""
    return jax.random.wrap_key_data(jnp.asarray(np.asarray(jax.random.key_data(key))), impl=jax.random.key_impl(key))


def _refuse_short_floats(apply_fn: Callable, params: Any, inputs: jax.Array | np.ndarray) -> None:
    """Raise ValueError if the logits are not float64."""
    dtype = jax.eval_shape(apply_fn, params, inputs).dtype
    if dtype != jnp.float64:
        raise ValueError(
            f"the network computes logits in {dtype} from float64 parameters and inputs, too coarse for a certificate: "
            "build it without a dtype of its own (dtype=None)"
        )


def _activations(apply_fn: Callable, params: Any, inputs: Any, chunk_size: int | None) -> tuple[ActivationReport | None, float, str]:
    """Margins, stable radius, and the reason why they are unknown."""
    try:
        report = analyse(apply_fn, params, inputs, chunk_size=chunk_size)
        return report, stable_radius(apply_fn, params, inputs, chunk_size=chunk_size), ""
    except UnsupportedOperationError as error:
        return None, 0.0, str(error)


def _refutations(point: Certificate, radius: float, gradient_tolerance: float, curvature_tolerance: float) -> tuple[str, ...]:
    """Reasons why the point is no local minimum; of the probes, those within ``radius`` count."""
    assert point.extremes is not None
    assert point.probes is not None
    reasons = []
    if point.gradient_norm > gradient_tolerance:
        reasons.append(f"not stationary: gradient norm {point.gradient_norm:.2g} > {gradient_tolerance:.2g}")
    tolerance = curvature_tolerance * _scale(point.extremes)
    if point.extremes.smallest.value < -tolerance:
        reasons.append(f"negative curvature {point.extremes.smallest.value:.2g} < -{tolerance:.2g}")
    if point.activations is not None and point.activations.smallest_margin == 0:
        reasons.append("a ReLU is exactly at its kink on some example, where no derivative decides")
    change = point.probes.lowest_change_within(radius)
    # A change that the gradient explains is judged by gradient_tolerance above.
    if change < -ROUNDING * max(abs(point.loss), 1.0) - point.gradient_norm * radius:
        reasons.append(f"a point at most {radius:.2g} away has a loss lower by {-change:.2g}")
    return tuple(reasons)


def _missing_for_proof(
    value: float, gap: float, max_rank: int | None, activations: ActivationReport | None, radius: float, unknown: str
) -> tuple[str, ...]:
    """Conditions of the proof that do not hold."""
    missing, rounding = [], ROUNDING * max(abs(value), 1.0)
    if activations is None:
        missing.append(unknown)
    elif not activations.all_active:
        missing.append(f"only {activations.active_share:.1%} of the ReLUs are active, so the network is not affine near the point")
    elif not radius > 0:
        missing.append("no radius is known within which the ReLUs stay active")
    elif max_rank is not None and activations.max_rank > max_rank:
        missing.append(f"the lower bound holds up to rank {max_rank}, the network can reach {activations.max_rank}")
    if not math.isfinite(gap):
        missing.append("no lower bound of the loss over affine maps was given")
    elif gap > rounding:
        missing.append(f"the loss is {gap:.2g} above the lower bound over affine maps")
    elif gap < -rounding and activations is not None and activations.all_active:
        missing.append(f"the loss is {-gap:.2g} below the lower bound given, which therefore is none")
    return tuple(missing)
