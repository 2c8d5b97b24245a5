"""What is measured at a point: slope, curvature, margins of ReLUs, losses around it, and the size of what rounding hides.

All measures are relative, so that units of parameters, logits and losses do not matter. A gradient counts by what a step down it gains, as
a share of the loss (half the squared Newton decrement along the gradient), and by the length of the step. Probes stay within the distance
at which the steepest curvature would change the loss by as much as the loss, and within the stable radius; only where the loss is flat
they go further.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxbp.landscape import dense_chain, descents, proofs
from jaxbp.landscape.activation import ActivationReport, UnsupportedOperationError, analyse, stable_radius
from jaxbp.landscape.affine import AffineFit
from jaxbp.landscape.hessian import Hessian, LossFn, hessian
from jaxbp.landscape.operations import Facts
from jaxbp.landscape.probes import ProbeReport, losses_at, probe
from jaxbp.linalg.lanczos import Extremes, extreme_eigenvalues

_SHARES = (0.01, 0.1, 1.0)  # of the largest distance that is probed
_FLAT_REACH = 1e6  # how much further flat directions are followed where no stable radius is known


@dataclasses.dataclass(frozen=True)
class Problem:
    """The mean loss of a network on data, tolerances, and the arguments of the probes.

    Attributes:
      apply_fn: logits (N, C) from parameters and inputs.
      loss_fn: per-example losses (N,) from parameters, inputs and labels.
      facts: of the network's program.
      inputs: (N, ...), float64 or integers.
      labels: (N,).
      loss: name of the loss.
      fit: the best affine map, if it is known.
      gradient_tolerance, curvature_tolerance, max_products: as in `certify`.
      effort: num_directions, num_steps and chunk_size of `probe`.
    """

    apply_fn: Callable[[Any, jax.Array], jax.Array]
    loss_fn: LossFn
    facts: Facts
    inputs: jax.Array
    labels: jax.Array
    loss: str
    fit: AffineFit | None
    gradient_tolerance: float
    curvature_tolerance: float
    max_products: int
    effort: dict[str, Any]

    @property
    def data(self) -> tuple[jax.Array, jax.Array]:
        """What the loss takes beside the parameters."""
        return self.inputs, self.labels

    @property
    def chunk_size(self) -> int | None:
        """Number of examples held at a time."""
        return self.effort["chunk_size"]

    @functools.cached_property
    def flat_inputs(self) -> Float[np.ndarray, "n d"]:
        """The inputs as vectors."""
        return np.asarray(self.inputs, float).reshape(len(self.inputs), -1)

    def logits(self, params: Any) -> Float[np.ndarray, "n c"]:
        """The logits of all examples."""
        size = self.chunk_size or len(self.inputs)
        chunks = [self.inputs[i : i + size] for i in range(0, len(self.inputs), size)]
        return np.concatenate([np.asarray(_apply(self.apply_fn, params, chunk), float) for chunk in chunks])


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What was measured at a point.

    Attributes:
      params: the point.
      operator: loss, gradient and curvature.
      extremes: ends of the spectrum; None where the loss or a derivative is not finite, and then nothing below was measured.
      activations: margins of the ReLUs; None where the network has operations that `analyse` does not know.
      radius: `stable_radius`; 0 where ``activations`` is None.
      unfollowed: why kinks are not followed; "" if they are, or if there are none.
      noise: loss differences that rounding hides.
      slope: with respect to the affine map, where all ReLUs are active; else None.
      bound: lower bound of the loss of affine maps; -inf without a fit.
      is_ranked: whether the bound holds under a constraint on the rank only.
      steepness: why the point is not stationary; "" if it is.
      decrement: gain of a step down the gradient, relative to the loss.
      probes: losses around the point.
      lower: what was found of lower losses; "" if nothing was.
      falls: whether there are lower losses at every distance, down to rounding.
    """

    params: Any
    operator: Hessian
    extremes: Extremes | None = None
    activations: ActivationReport | None = None
    radius: float = 0.0
    unfollowed: str = ""
    noise: float = 0.0
    slope: proofs.MapSlope | None = None
    bound: float = -math.inf
    is_ranked: bool = False
    steepness: str = ""
    decrement: float = 0.0
    probes: ProbeReport | None = None
    lower: str = ""
    falls: bool = False

    @functools.cached_property
    def value(self) -> float:
        """The mean loss."""
        return float(self.operator.loss)

    @functools.cached_property
    def gradient_norm(self) -> float:
        """Euclidean norm of the gradient."""
        return float(jnp.linalg.norm(self.operator.gradient))

    @functools.cached_property
    def size(self) -> float:
        """Euclidean norm of the parameters."""
        return float(jnp.linalg.norm(self.operator.position))

    @property
    def scale(self) -> float:
        """Largest absolute eigenvalue of the Hessian; NaN where it is not known."""
        return scale_of(self.extremes) if self.extremes else math.nan

    @property
    def gradient_decides(self) -> bool:
        """Whether derivatives are those of all sides: no kink at the point, nor any that is not followed."""
        return not self.unfollowed and (self.activations is None or self.activations.smallest_margin > 0)


def scale_of(extremes: Extremes) -> float:
    """The largest absolute eigenvalue."""
    return max(abs(extremes.smallest.value), abs(extremes.largest.value))


def gather(problem: Problem, params: Any, key: jax.Array) -> Evidence:
    """Measure all of `Evidence` at a point; float64 on the default device."""
    operator = hessian(problem.loss_fn, params, problem.data, chunk_size=problem.chunk_size)
    start_key, probe_key = jax.random.split(key)
    evidence = _curvature(problem, Evidence(params, operator), start_key)
    if evidence.extremes is None:
        return evidence
    evidence = _slopes(problem, _activations(problem, evidence))
    return _losses_around(problem, evidence, probe_key)


def _curvature(problem: Problem, evidence: Evidence, key: jax.Array) -> Evidence:
    operator = evidence.operator
    if not (jnp.isfinite(operator.loss) and jnp.isfinite(jnp.linalg.norm(operator.gradient))):
        return evidence
    start = jax.random.normal(key, (operator.dimension,), jnp.float64)
    extremes = extreme_eigenvalues(operator.matvec, start, atol=problem.curvature_tolerance, max_products=problem.max_products)
    return dataclasses.replace(evidence, extremes=extremes) if math.isfinite(scale_of(extremes)) else evidence


def _activations(problem: Problem, evidence: Evidence) -> Evidence:
    arguments = problem.apply_fn, evidence.params, problem.inputs
    try:
        report = analyse(*arguments, chunk_size=problem.chunk_size)
        return dataclasses.replace(evidence, activations=report, radius=stable_radius(*arguments, chunk_size=problem.chunk_size))
    except UnsupportedOperationError as error:
        return dataclasses.replace(evidence, unfollowed=str(error) if problem.facts.kinks else "")


def _slopes(problem: Problem, evidence: Evidence) -> Evidence:
    """The slope of the loss by the parameters and, where all ReLUs are active, by the affine map, with its bound."""
    logits, labels, activations = problem.logits(evidence.params), np.asarray(problem.labels), evidence.activations
    noise = proofs.resolution(evidence.value, logits, problem.loss, problem.facts.epsilon)
    slope, bound, is_ranked = None, -math.inf, False
    is_affine = activations is not None and activations.all_active
    if is_affine:
        slope = proofs.map_slope(problem.flat_inputs, logits, labels, problem.loss)
    if problem.fit is not None:
        rank = activations.max_rank if activations is not None and is_affine else min(problem.fit.kernel.shape)
        bound = proofs.affine_bound(problem.fit, rank, problem.flat_inputs, labels, problem.loss)
        is_ranked = bound > problem.fit.lower_bound
    steepness, decrement = _steepness(problem, evidence, noise)
    return dataclasses.replace(
        evidence, noise=noise, slope=slope, bound=bound, is_ranked=is_ranked, steepness=steepness, decrement=decrement
    )


def _steepness(problem: Problem, evidence: Evidence, noise: float) -> tuple[str, float]:
    value, norm, scale = evidence.value, evidence.gradient_norm, evidence.scale
    if norm == 0 or (problem.loss == "squared_error" and value <= noise):
        return "", 0.0
    step = norm / scale if scale > 0 else math.inf
    decrement = 0.5 * norm * step / value if value > 0 else math.inf
    tolerance = problem.gradient_tolerance
    if decrement <= tolerance**2 and (evidence.size == 0 or step <= 100 * tolerance * evidence.size):
        return "", decrement
    gain = f"a step down it gains {decrement:.2g} of the loss in {step:.2g}" if scale > 0 else "without any curvature"
    return f"not stationary: the gradient's norm is {norm:.2g}, {gain}", decrement


def _losses_around(problem: Problem, evidence: Evidence, key: jax.Array) -> Evidence:
    """Probes, and whether lower losses lie at every distance; they need not be asked where the gradient decides."""
    assert evidence.extremes is not None
    scale, size = evidence.scale, evidence.size or 1.0
    reach = max(math.sqrt(2 * max(evidence.value, evidence.noise) / scale), 1e-6 * size) if scale > 0 else size
    is_stable = 0 < evidence.radius < math.inf
    limit = min(0.9 * evidence.radius, reach) if is_stable else 0.1 * reach
    step_size, radii = 0.5 / scale if scale > 0 else 0.0, tuple(share * limit for share in _SHARES)
    arguments, direction = (problem.loss_fn, evidence.params, problem.data), evidence.extremes.smallest.vector
    probes = probe(*arguments, key, radii=radii, step_size=step_size, direction=direction, **problem.effort)
    evidence = dataclasses.replace(evidence, probes=probes)
    if evidence.steepness and evidence.gradient_decides:
        return evidence
    change = probes.lowest_change_within(2 * limit)
    suspects = [] if probes.lowest_offset is None or change >= -evidence.noise else [probes.lowest_offset]
    if evidence.steepness:
        suspects.append(-limit / evidence.gradient_norm * np.asarray(evidence.operator.gradient))
    effort = {"step_size": step_size, "num_steps": problem.effort["num_steps"], "chunk_size": problem.chunk_size}
    for offset in suspects:
        if descents.falls_towards(descents.approach(*arguments, offset, **effort), evidence.noise):
            lower = f"lower losses at every distance up to {np.linalg.norm(offset):.2g}, down to rounding"
            return dataclasses.replace(evidence, lower=lower, falls=True)
    sizes = descents.halvings(0.9 * evidence.radius, 16) if is_stable else descents.halvings(_FLAT_REACH * reach, 40)
    flat = _along_flat_paths(problem, evidence, sizes)
    if flat < 0:
        lower = f"lower losses (by up to {-flat:.2g}) at every distance along a path on which the loss is flat to second order"
        return dataclasses.replace(evidence, lower=lower, falls=True)
    lower = f"a point at most {2 * limit:.2g} away has a loss lower by {-change:.2g}" if change < -evidence.noise else ""
    return dataclasses.replace(evidence, lower=lower)


def _along_flat_paths(problem: Problem, evidence: Evidence, sizes: Float[np.ndarray, " stages"]) -> float:
    """The lowest loss change along the least curved direction and along idle units, where the losses fall from the point on; else 0."""
    assert evidence.extremes is not None
    least, ladders = evidence.extremes.smallest, []
    if abs(least.value) <= problem.curvature_tolerance * evidence.scale:
        ladders += [sign * sizes[:, None] * np.asarray(least.vector) for sign in (1.0, -1.0)]
    if evidence.slope is not None and problem.facts.chain is not None:
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(evidence.params)]
        path = dense_chain.idle_path(problem.facts.chain, leaves, evidence.slope.kernel, problem.flat_inputs.mean(0), sizes)
        ladders += [] if path is None else [path]
    if not ladders:
        return 0.0
    losses = losses_at(problem.loss_fn, evidence.params, problem.data, np.concatenate(ladders), chunk_size=problem.chunk_size)
    changes = np.asarray(losses).reshape(len(ladders), -1) - evidence.value
    return min((float(np.nanmin(row)) for row in changes if descents.falls_towards(row, evidence.noise)), default=0.0)


@functools.partial(jax.jit, static_argnums=0)
def _apply(apply_fn: Callable, params: Any, inputs: jax.Array) -> jax.Array:
    return apply_fn(params, inputs)
