"""A certificate that a point is, or is not, a local minimum, and the name of what it is.

Three grades. *proven*: every ReLU is strictly active on every example, so within `stable_radius` the network computes
only affine maps of its input; no affine map has a smaller loss than ``lower_bound``; and the point attains it. Then no
point within the radius has a lower loss (paper, Theorem 1), beyond what float64 rounds. *supported*: stationary, no
negative curvature, no kink and no probe that found less; evidence, no proof, and ``reasons`` says what a proof lacks. *refuted*: one of
these failed, and ``reasons`` says which. Curvature alone cannot prove these minima: they are degenerate
(layers can be rescaled against each other), so the smallest eigenvalue is exactly 0 and only "not below -tolerance" can be checked.

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

from jaxbp.landscape.activation import ActivationReport, UnsupportedOperationError, analyse, stable_radius
from jaxbp.landscape.hessian import LossFn, hessian
from jaxbp.landscape.probes import ProbeReport, probe
from jaxbp.linalg.lanczos import Extremes, extreme_eigenvalues
from jaxbp.losses import LOSSES

ROUNDING = 1e-12  # relative loss differences below this are float64 noise
_PROBE_RADII = (1e-4, 1e-3, 1e-2)  # relative to the parameters' norm, where no radius is proven
_PROVEN_RADII = (0.01, 0.1, 0.9)  # relative to the stable radius
CLASSES = ("near-global", "suboptimal minimum", "saddle", "not converged", "diverged")


class Certificate(NamedTuple):
    """What is known of a point; see the module's text for ``status``.

    ``activations`` is None and ``radius`` 0 where the network has operations that `analyse` cannot follow. ``gap``: loss above
    ``lower_bound``, inf where none was given. Where the loss or a derivative is not finite, the status is refuted and
    what could not be computed None.
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
        """Whether the point passed as a local minimum, proven or supported."""
        return self.status != "refuted"


def certify(
    apply_fn: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    inputs: Any,
    labels: Any,
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
    """Certify the point ``params`` of the mean loss of ``apply_fn(params, inputs)`` over all examples, in float64 on the CPU.

    Args:
      apply_fn: logits (N, C) from parameters and inputs; pass the same object again to reuse what was compiled.
      params: any floating pytree; inputs: (N, ...); labels: (N,) integers.
      loss: a name in `losses.LOSSES`.
      key: for the Lanczos start and the probes.
      lower_bound: of the loss over all affine maps of the input (`AffineFit.lower_bound`); without one nothing can be *proven*.
      max_rank: the rank up to which ``lower_bound`` holds (with `AffineFit.rank_lower_bound`); None if for all affine maps.
      gradient_tolerance: largest Euclidean norm of the gradient of a stationary point.
      curvature_tolerance: the smallest eigenvalue may be this times the largest absolute one below 0.
      max_products: of the Lanczos iteration.
      num_directions, num_steps: of the probes, see `probe`.
      chunk_size: examples held at a time, see `hessian`.

    Raises:
      ValueError: for an unknown loss, or a network that does not compute in float64.
    """
    loss_fn = per_example_loss(apply_fn, loss)
    cpu = jax.local_devices(backend="cpu")[0]
    with jax.enable_x64(True), jax.default_device(cpu):
        params, inputs = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), (params, inputs))
        data = (inputs, jnp.asarray(np.asarray(labels), jnp.int32))
        _refuse_short_floats(apply_fn, params, inputs)
        operator = hessian(loss_fn, params, data, chunk_size=chunk_size)
        value, gradient_norm = float(operator.loss), float(jnp.linalg.norm(operator.gradient))
        start_key, probe_key = jax.random.split(_on_device(key))
        extremes = None
        if math.isfinite(value) and math.isfinite(gradient_norm):
            start = jax.random.normal(start_key, (operator.dimension,), jnp.float64)
            extremes = extreme_eigenvalues(operator.matvec, start, atol=curvature_tolerance, max_products=max_products)
        if extremes is None or not math.isfinite(_scale(extremes)):
            reason = "the loss, its gradient or its curvature is not finite"
            return Certificate("refuted", (reason,), value, gradient_norm, None, None, 0.0, math.inf, None)
        activations, radius, unknown = _activations(apply_fn, params, inputs, chunk_size)
        proven_radius = 0 < radius < math.inf
        unit = radius if proven_radius else float(jnp.linalg.norm(operator.position)) or 1.0
        radii = tuple(unit * r for r in (_PROVEN_RADII if proven_radius else _PROBE_RADII))
        probes = probe(
            loss_fn, params, data, probe_key, radii=radii, step_size=0.5 / max(_scale(extremes), 1e-12),
            num_directions=num_directions, num_steps=num_steps, direction=extremes.smallest.vector, chunk_size=chunk_size,
        )  # fmt: skip
    local = radius if proven_radius else max(radii)
    against = _against(value, gradient_norm, extremes, activations, probes, local, gradient_tolerance, curvature_tolerance)
    gap = value - lower_bound
    lacking = _missing_for_proof(value, gap, max_rank, activations, radius, unknown)
    if lacking and not extremes.smallest.converged:  # a proof does not rest on it
        lacking += (f"the smallest eigenvalue is not converged (residual {extremes.smallest.residual:.2g}): raise max_products",)
    status = "refuted" if against else "supported" if lacking else "proven"
    return Certificate(status, against or lacking, value, gradient_norm, extremes, activations, radius, gap, probes)


def classify(
    certificate: Certificate,
    *,
    near_global_loss: float,
    gradient_tolerance: float,
    curvature_tolerance: float = 1e-3,
    drop: float = 1e-2,
) -> str:
    """Name a trained net's end point, one of `CLASSES`.

    In this order: *diverged* if the loss or a derivative of it is not finite; *near-global* up to ``near_global_loss``; *not
    converged* if the gradient's norm exceeds ``gradient_tolerance``; *saddle* if the smallest eigenvalue is below
    -``curvature_tolerance`` times the largest, a ReLU is exactly at its kink on some example, or a probe lowered the loss by more
    than the share ``drop`` of it; else *suboptimal minimum*. Stochastic training ends near its points, not on them, so these
    tolerances are coarser than a certificate's.
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
    """``loss_fn(params, inputs, labels) -> (N,)`` of the `jaxbp.losses` loss by that name; the same object for the same arguments."""
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {sorted(LOSSES)}, got {loss!r}")
    return lambda params, inputs, labels: LOSSES[loss](apply_fn(params, inputs), labels)


def _scale(extremes: Extremes) -> float:
    return max(abs(extremes.smallest.value), abs(extremes.largest.value))


def _on_device(key: jax.Array) -> jax.Array:
    """The same key, where and in the mode that we compute in."""
    return jax.random.wrap_key_data(jnp.asarray(np.asarray(jax.random.key_data(key))), impl=jax.random.key_impl(key))


def _refuse_short_floats(apply_fn: Callable, params: Any, inputs: jax.Array) -> None:
    dtype = jax.eval_shape(apply_fn, params, inputs).dtype
    if dtype != jnp.float64:
        raise ValueError(
            f"the network computes logits in {dtype} from float64 parameters and inputs, too coarse for a certificate: "
            "build it without a dtype of its own (dtype=None)"
        )


def _activations(apply_fn: Callable, params: Any, inputs: jax.Array, chunk_size: int | None) -> tuple[ActivationReport | None, float, str]:
    try:
        report = analyse(apply_fn, params, inputs, chunk_size=chunk_size)
        return report, stable_radius(apply_fn, params, inputs, chunk_size=chunk_size), ""
    except UnsupportedOperationError as error:
        return None, 0.0, str(error)


def _against(
    value: float, gradient_norm: float, extremes: Extremes, activations: ActivationReport | None, probes: ProbeReport,
    local: float, gradient_tolerance: float, curvature_tolerance: float,
) -> tuple[str, ...]:  # fmt: skip
    """Reasons why the point is no local minimum."""
    reasons = []
    if gradient_norm > gradient_tolerance:
        reasons.append(f"not stationary: gradient norm {gradient_norm:.2g} > {gradient_tolerance:.2g}")
    tolerance = curvature_tolerance * _scale(extremes)
    if extremes.smallest.value < -tolerance:
        reasons.append(f"negative curvature {extremes.smallest.value:.2g} < -{tolerance:.2g}")
    if activations is not None and activations.smallest_margin == 0:
        reasons.append("a ReLU is exactly at its kink on some example, where no derivative decides")
    change = probes.lowest_change_within(local)
    if change < -ROUNDING * max(abs(value), 1.0) - gradient_norm * local:  # what the gradient still explains is judged above
        reasons.append(f"a point at most {local:.2g} away has a loss lower by {-change:.2g}")
    return tuple(reasons)


def _missing_for_proof(
    value: float, gap: float, max_rank: int | None, activations: ActivationReport | None, radius: float, unknown: str
) -> tuple[str, ...]:
    """What keeps the proof from being complete."""
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
