"""A certificate that a point is, or is not, a local minimum, and the name of the kind of point.

Grades:

- *proven*: a theorem (`proofs`) shows that no point within the stable radius has a lower loss, up to float64 rounding, and that no
  infimum is taken for a minimum;
- *supported*: the point is stationary, its smallest eigenvalue has converged and is not negative, all kinks are followed and away, and no
  probe had a lower loss. This is evidence, no proof; ``reasons`` lists what a proof lacks, and how much negative curvature may have been
  missed;
- *undecided*: nothing speaks against a minimum, but not enough is known for support: ``reasons`` lists what;
- *near*: the point is not stationary, but a proven or supported minimum, ``nearby``, lies at ``distance``: a rounded minimum, say;
- *refuted*: the loss has a slope, negative curvature, or lower values at every distance; or a theorem excludes a minimum.

Nothing depends on units: a gradient counts against loss and curvature (the Newton decrement), an eigenvalue against the largest one, loss
differences against the loss. Curvature alone cannot prove minima of networks. They are degenerate (layers can be rescaled against each
other), so the smallest eigenvalue is exactly 0, and a computation can only show that it is not below -tolerance.

>>> import jax, jax.numpy as jnp
>>> from jaxbp import landscape
>>> x, y = jax.random.normal(jax.random.key(0), (100, 3)), jnp.arange(100) % 2
>>> def apply_fn(params, x):
...     return x @ params
>>> landscape.certify(apply_fn, jnp.ones((3, 2)), x, y, loss="squared_error", key=jax.random.key(1)).status
'refuted'
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, Num, PyTree

from jaxbp import checks
from jaxbp.landscape import dense_chain, descents, operations, proofs
from jaxbp.landscape.activation import ActivationReport, UnsupportedOperationError, analyse, stable_radius
from jaxbp.landscape.affine import AffineFit
from jaxbp.landscape.hessian import Hessian, LossFn, hessian
from jaxbp.landscape.nearby import stationary_point
from jaxbp.landscape.probes import ProbeReport, losses_at, probe
from jaxbp.linalg.lanczos import Extremes, extreme_eigenvalues
from jaxbp.losses import LOSSES

GRADES = ("proven", "supported", "undecided", "near", "refuted")
CLASSES = ("near-global", "suboptimal minimum", "saddle", "not converged", "diverged")
CONFIDENCE = 0.999  # of what is said about negative curvature that may have been missed
_MISSED_DIRECTIONS = (1, 10, 100)
_SHARES = (0.01, 0.1, 0.9)  # of the largest distance that is probed
_NEAR = 1e-4  # a Newton decrement up to this share of the loss is worth a search for a minimum nearby
_NEAR_DISTANCE = 1e-2  # relative to the parameters' norm: largest distance from a supported minimum that counts as near


class Certificate(NamedTuple):
    """What is known of a point.

    Where the loss or a derivative is not finite, the fields that could not be computed are None.

    Attributes:
      status: one of `GRADES`, see the module.
      reasons: what a proof or support lacks, or why the point is refuted.
      loss: mean loss.
      gradient_norm: Euclidean norm of the gradient.
      extremes: ends of the Hessian's spectrum.
      activations: margins of the ReLUs; None where the network has operations that `analyse` does not know.
      radius: `stable_radius`; 0 where ``activations`` is None.
      gap: loss minus the lower bound of ``fit`` for the rank that the network reaches; infinite without a fit.
      probes: losses around the point.
      distance: from a "near" point to the minimum ``nearby``; 0 of other points.
      nearby: the certificate of the minimum beside a "near" point; None of other points.
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
    distance: float = 0.0
    nearby: "Certificate | None" = None

    @property
    def is_minimum(self) -> bool:
        """Whether the point is a local minimum, proven or supported."""
        return self.status in ("proven", "supported")

    @property
    def missed(self) -> tuple[tuple[int, float], ...]:
        """Pairs (k, c): with a probability of `CONFIDENCE` each, fewer than k orthogonal directions have a curvature below c."""
        if self.extremes is None:
            return ()
        counts = [k for k in _MISSED_DIRECTIONS if k <= self.extremes.dimension]
        return tuple((k, self.extremes.excluded_below(k, CONFIDENCE)) for k in counts)


class _Facts(NamedTuple):
    """What a network's program tells: number of logits, kinks, floats shorter than float64, their epsilon, layers of a dense chain."""

    num_classes: int
    kinks: frozenset[str]
    short: tuple[str, ...]
    epsilon: float
    chain: tuple[dense_chain.Dense, ...] | None


@dataclasses.dataclass(frozen=True)
class _Problem:
    """The mean loss of a network on data, tolerances, and the arguments of the probes."""

    apply_fn: Callable[[Any, jax.Array], jax.Array]
    facts: _Facts
    inputs: jax.Array
    labels: jax.Array
    loss: str
    fit: AffineFit | None
    gradient_tolerance: float
    curvature_tolerance: float
    max_products: int
    effort: dict[str, Any]

    @property
    def loss_fn(self) -> LossFn:
        return per_example_loss(self.apply_fn, self.loss)

    @property
    def data(self) -> tuple[jax.Array, jax.Array]:
        return self.inputs, self.labels

    @property
    def chunk_size(self) -> int | None:
        return self.effort["chunk_size"]

    @property
    def flat_inputs(self) -> np.ndarray:
        return np.asarray(self.inputs, float).reshape(len(self.inputs), -1)

    def logits(self, params: Any) -> np.ndarray:
        size = self.chunk_size or len(self.inputs)
        chunks = [self.inputs[i : i + size] for i in range(0, len(self.inputs), size)]
        return np.concatenate([np.asarray(_apply(self.apply_fn, params, chunk), float) for chunk in chunks])


@dataclasses.dataclass(frozen=True)
class _Point:
    """What was measured at a point, beside what its certificate holds.

    Attributes:
      noise: loss differences that rounding hides.
      slope: with respect to the affine map, where all ReLUs are active; else None.
      bound: lower bound of the loss of affine maps.
      is_ranked: whether the bound holds under a constraint on the rank only.
      unfollowed: why the kinks are not followed; "" if they are, or if there are none.
      steepness: why the point is not stationary; "" if it is.
      decrement: gain of a step down the gradient, relative to the loss.
      lower: what was found of lower losses, and whether they lie at every distance.
    """

    params: Any
    operator: Hessian
    noise: float
    slope: proofs.MapSlope | None
    bound: float
    is_ranked: bool
    unfollowed: str
    steepness: str
    decrement: float
    lower: tuple[str, bool]


def certify(
    apply_fn: Callable[[Any, jax.Array], jax.Array],
    params: PyTree,
    inputs: Num[jax.Array | np.ndarray, "n ..."],
    labels: Int[jax.Array | np.ndarray, " n"],
    *,
    loss: str,
    key: jax.Array,
    fit: AffineFit | None = None,
    gradient_tolerance: float = 1e-10,
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
      inputs: (N, ...); integers, such as tokens, stay integers.
      labels: (N,) integers.
      loss: a name in `losses.LOSSES`.
      key: for the Lanczos start and the probes.
      fit: the best affine map of these inputs by this loss (`fit_affine`), with its lower bound; without it, points with all ReLUs active
        are not proven.
      gradient_tolerance: relative: a point is stationary up to a gradient norm of this share of sqrt(2 lambda_max loss) (so that a step
        down the gradient gains at most the squared share of the loss), if also a step of gradient / lambda_max is at most a hundred
        times this share of the parameters' norm.
      curvature_tolerance: accuracy of the smallest eigenvalue, relative to the largest absolute one.
      max_products: of the Lanczos iteration.
      num_directions, num_steps: of the probes, see `probe`.
      chunk_size: number of examples held at a time, see `hessian`.

    Raises:
      ValueError: for arguments that `jaxbp.checks` refuses, an unknown loss, a fit of other data, logits that are not float64, or
        parameters or constants with an entry for each example.
      BatchCouplingError: as `hessian`.
    """
    per_example_loss(apply_fn, loss)
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), checks.parameters(params, half=True))
        examples = checks.examples(inputs)
        examples = jnp.asarray(np.asarray(examples), jnp.float64 if jnp.issubdtype(examples.dtype, jnp.floating) else None)
        facts = _facts(apply_fn, params, examples)
        targets = checks.labels(labels, facts.num_classes, len(examples))
        if fit is not None:
            fit.check(np.asarray(examples, float).reshape(len(examples), -1), np.asarray(targets), loss)
        problem = _Problem(
            apply_fn=apply_fn,
            facts=facts,
            inputs=examples,
            labels=jnp.asarray(np.asarray(targets)),
            loss=loss,
            fit=fit,
            gradient_tolerance=max(gradient_tolerance, 100 * facts.epsilon),
            curvature_tolerance=curvature_tolerance,
            max_products=max_products,
            effort={"num_directions": num_directions, "num_steps": num_steps, "chunk_size": chunk_size},
        )
        return _certified(problem, params, _on_device(checks.prng_key(key)), search=True)


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


# What the program tells


def _facts(apply_fn: Callable, params: Any, inputs: jax.Array) -> _Facts:
    leaves, tree = jax.tree.flatten((params, inputs))
    return _traced_facts(apply_fn, tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves))


@functools.lru_cache(maxsize=64)
def _traced_facts(apply_fn: Callable, tree: Any, kinds: tuple) -> _Facts:
    """Traced once for each function object and shapes."""
    params, inputs = jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(*kind) for kind in kinds])
    num_examples, num_classes = checks.logits_shape(apply_fn, params, inputs)
    if num_examples != inputs.shape[0]:
        raise ValueError(f"apply_fn must return logits for each of {inputs.shape[0]} examples, got {num_examples} rows")
    if (dtype := jax.eval_shape(apply_fn, params, inputs).dtype) != jnp.float64:
        raise ValueError(
            f"the network computes logits in {dtype} from float64 parameters and inputs, too coarse for a certificate: "
            "build it without a dtype of its own (dtype=None)"
        )
    _refuse_per_example(apply_fn, params, inputs, num_classes)
    program = apply_fn, params, inputs
    short, epsilon = operations.short_floats(*program)
    return _Facts(num_classes, operations.kinks(*program), short, epsilon, dense_chain.read(*program))


def _refuse_per_example(apply_fn: Callable, params: Any, inputs: Any, num_classes: int) -> None:
    """Raise ValueError for a network that takes these examples only: parameters or constants hold an entry for each of them."""
    more = jax.ShapeDtypeStruct((inputs.shape[0] + 1, *inputs.shape[1:]), inputs.dtype)
    try:
        is_free = checks.logits_shape(apply_fn, params, more) == (inputs.shape[0] + 1, num_classes)
    except (TypeError, ValueError):
        is_free = False
    if not is_free:
        raise ValueError(
            f"the network takes {inputs.shape[0]} examples and no other number: parameters or constants have an entry for each example, or "
            "the number is fixed in a shape. Pass what belongs to an example as part of inputs"
        )


# What is measured at a point


def _certified(problem: _Problem, params: Any, key: jax.Array, *, search: bool) -> Certificate:
    """The certificate of one point; ``search``: for a minimum beside points with a small slope."""
    operator = hessian(problem.loss_fn, params, problem.data, chunk_size=problem.chunk_size)
    value, gradient_norm = float(operator.loss), float(jnp.linalg.norm(operator.gradient))
    start_key, probe_key = jax.random.split(key)
    extremes = _finite_extremes(operator, start_key, problem)
    if extremes is None:
        status, what = ("undecided", "the gradient or the curvature") if math.isfinite(value) else ("refuted", "the loss")
        return Certificate(status, (f"{what} is not finite",), value, gradient_norm, None, None, 0.0, math.inf, None)
    activations, radius, unknown = _activations(problem, params)
    point, probes = _measured(problem, params, operator, extremes, activations, radius, unknown, probe_key)
    fields = value, gradient_norm, extremes, activations, radius, value - point.bound, probes
    certificate = _graded(problem, point, Certificate("undecided", (), *fields))
    if search and point.steepness and point.decrement <= _NEAR and not problem.facts.short:
        return _searched(problem, point, certificate, key)
    return certificate


def _measured(
    problem: _Problem,
    params: Any,
    operator: Hessian,
    extremes: Extremes,
    activations: ActivationReport | None,
    radius: float,
    unknown: str,
    key: jax.Array,
) -> tuple[_Point, ProbeReport]:
    value, size = float(operator.loss), float(jnp.linalg.norm(operator.position))
    logits, labels = problem.logits(params), np.asarray(problem.labels)
    noise = proofs.resolution(value, logits, problem.loss, problem.facts.epsilon)
    is_affine = activations is not None and activations.all_active
    slope = proofs.map_slope(problem.flat_inputs, logits, labels, problem.loss) if is_affine else None
    bound, is_ranked = -math.inf, False
    if problem.fit is not None:
        rank = activations.max_rank if activations is not None and activations.all_active else min(problem.fit.kernel.shape)
        bound = proofs.affine_bound(problem.fit, rank, problem.flat_inputs, labels, problem.loss)
        is_ranked = bound > problem.fit.lower_bound
    steepness, decrement = _steepness(problem, value, float(jnp.linalg.norm(operator.gradient)), _scale(extremes), size, noise)
    point = _Point(
        params=params,
        operator=operator,
        noise=noise,
        slope=slope,
        bound=bound,
        is_ranked=is_ranked,
        unfollowed=unknown if problem.facts.kinks else "",
        steepness=steepness,
        decrement=decrement,
        lower=("", False),
    )
    probes, lower = _probed(problem, point, extremes, activations, radius, key)
    return dataclasses.replace(point, lower=lower), probes


def _steepness(problem: _Problem, value: float, gradient_norm: float, scale: float, size: float, noise: float) -> tuple[str, float]:
    """Why the point is not stationary ("" if it is), and the gain of a step down the gradient as a share of the loss."""
    if gradient_norm == 0 or (problem.loss == "squared_error" and value <= noise):
        return "", 0.0
    step = gradient_norm / scale if scale > 0 else math.inf
    decrement = 0.5 * gradient_norm * step / value if value > 0 else math.inf
    tolerance = problem.gradient_tolerance
    if decrement <= tolerance**2 and (size == 0 or step <= 100 * tolerance * size):
        return "", decrement
    return (
        f"not stationary: the gradient's norm is {gradient_norm:.2g}, a step down it gains {decrement:.2g} of the loss in {step:.2g}",
        decrement,
    )


def _finite_extremes(operator: Hessian, key: jax.Array, problem: _Problem) -> Extremes | None:
    """Ends of the Hessian's spectrum; None where the loss, the gradient or the curvature is not finite."""
    if not (jnp.isfinite(operator.loss) and jnp.isfinite(jnp.linalg.norm(operator.gradient))):
        return None
    start = jax.random.normal(key, (operator.dimension,), jnp.float64)
    extremes = extreme_eigenvalues(operator.matvec, start, atol=problem.curvature_tolerance, max_products=problem.max_products)
    return extremes if math.isfinite(_scale(extremes)) else None


def _activations(problem: _Problem, params: Any) -> tuple[ActivationReport | None, float, str]:
    """Margins, stable radius, and the reason why they are unknown."""
    arguments = problem.apply_fn, params, problem.inputs
    try:
        report = analyse(*arguments, chunk_size=problem.chunk_size)
        return report, stable_radius(*arguments, chunk_size=problem.chunk_size), ""
    except UnsupportedOperationError as error:
        return None, 0.0, str(error)


def _probed(
    problem: _Problem, point: _Point, extremes: Extremes, activations: ActivationReport | None, radius: float, key: jax.Array
) -> tuple[ProbeReport, tuple[str, bool]]:
    """Probes, and what they and flat paths tell of lower losses."""
    value, scale = float(point.operator.loss), _scale(extremes)
    size = float(jnp.linalg.norm(point.operator.position)) or 1.0
    # The distance at which the steepest curvature changes the loss by as much as the loss.
    reach = max(math.sqrt(2 * max(value, point.noise) / scale), 1e-6 * size) if scale > 0 else size
    is_stable = 0 < radius < math.inf
    limit = min(0.9 * radius, reach) if is_stable else 0.1 * reach
    radii = tuple(share * limit for share in _SHARES)
    step_size = 0.5 / scale if scale > 0 else 0.0
    arguments = problem.loss_fn, point.params, problem.data
    probes = probe(*arguments, key, radii=radii, step_size=step_size, direction=extremes.smallest.vector, **problem.effort)
    drop = probes.lowest_change_within(2 * limit)
    steps = {"step_size": step_size, "num_steps": problem.effort["num_steps"], "chunk_size": problem.chunk_size}
    if _gradient_decides(point, activations):
        if point.steepness:
            return probes, ("", False)
        suspects = [probes.lowest_offset] if drop < -point.noise else []
    else:
        gradient = np.asarray(point.operator.gradient)
        suspects = [-limit * gradient / np.linalg.norm(gradient)] if point.steepness else []
        suspects += [probes.lowest_offset] if drop < -point.noise else []
    for offset in suspects:
        if descents.falls_towards(descents.approach(*arguments, offset, **steps), point.noise):
            return probes, (f"lower losses at every distance up to {np.linalg.norm(offset):.2g}, down to rounding", True)
    far = f"a point at most {2 * limit:.2g} away has a loss lower by {-drop:.2g}" if drop < -point.noise else ""
    if is_stable and not point.steepness:
        change, falls = _along_flat_paths(problem, point, extremes, activations, 0.9 * radius)
        if falls:
            return probes, (f"a path along which the loss is flat up to second order or higher lowers it by {-change:.2g}", True)
        far = far or (f"a point at most {radius:.2g} away has a loss lower by {-change:.2g}" if change < -point.noise else "")
    return probes, (far, False)


def _along_flat_paths(
    problem: _Problem, point: _Point, extremes: Extremes, activations: ActivationReport | None, limit: float
) -> tuple[float, bool]:
    """The lowest loss change along the least curved direction and along idle units, up to a distance; whether it is lower all the way."""
    sizes = descents.halvings(limit)
    vector = np.asarray(extremes.smallest.vector)
    ladders = []
    if abs(extremes.smallest.value) <= problem.curvature_tolerance * _scale(extremes):
        ladders += [sign * sizes[:, None] * vector for sign in (1.0, -1.0)]
    if point.slope is not None and problem.facts.chain is not None:
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(point.params)]
        path = dense_chain.idle_path(problem.facts.chain, leaves, point.slope.kernel, problem.flat_inputs.mean(0), sizes)
        ladders += [] if path is None else [path * np.minimum(1, sizes / np.linalg.norm(path, axis=1))[:, None]]
    if not ladders:
        return 0.0, False
    losses = losses_at(problem.loss_fn, point.params, problem.data, np.concatenate(ladders), chunk_size=problem.chunk_size)
    changes = np.asarray(losses).reshape(len(ladders), -1) - float(point.operator.loss)
    return float(np.nanmin(changes)), any(descents.falls_towards(row, point.noise) for row in changes)


def _gradient_decides(point: _Point, activations: ActivationReport | None) -> bool:
    """Whether derivatives are those of both sides: no kink at the point, or within what is not followed."""
    return not point.unfollowed and (activations is None or activations.smallest_margin > 0)


# What follows


def _graded(problem: _Problem, point: _Point, certificate: Certificate) -> Certificate:
    if refutations := _refutations(problem, point, certificate):
        return certificate._replace(status="refuted", reasons=refutations)
    if problem.loss == "squared_error" and certificate.loss <= point.noise:
        return certificate._replace(status="proven")  # no squared error is lower
    doubts, lacking = _doubts(problem, point, certificate), _missing(problem, point, certificate)
    if not lacking and not point.steepness and not problem.facts.short and certificate.activations is not None:
        return certificate._replace(status="proven")
    return certificate._replace(status="undecided" if doubts else "supported", reasons=(*doubts, *lacking, _undetected(certificate)))


def _refutations(problem: _Problem, point: _Point, certificate: Certificate) -> tuple[str, ...]:
    """Reasons why the point is no local minimum."""
    reasons = []
    lower, falls = point.lower
    extremes, decides = certificate.extremes, _gradient_decides(point, certificate.activations)
    assert extremes is not None
    if point.steepness and (decides or falls):
        reasons.append(point.steepness)
    # Rounding of the product, and the curvature that a gradient turns into over distances like the parameters' norm.
    size = float(jnp.linalg.norm(point.operator.position))
    rounding = 64 * problem.facts.epsilon * _scale(extremes) + (100 * certificate.gradient_norm / size if size else 0.0)
    least = extremes.smallest
    if decides and (least.value + least.residual < -rounding or least.value < -rounding - problem.curvature_tolerance * _scale(extremes)):
        reasons.append(f"negative curvature {least.value:.2g} (largest {extremes.largest.value:.2g}, rounding {rounding:.1g})")
    if not point.steepness and _excluded_by_theorem(problem, point, certificate):
        assert point.slope is not None
        reasons.append(
            f"all ReLUs are active and the affine map could be better (relative slope {point.slope.relative:.2g}): such dense chains have "
            "no local minimum but the global one of affine maps (Laurent and von Brecht, ICML 2018)"
        )
    if falls:
        reasons.append(lower)
    return tuple(reasons)


def _excluded_by_theorem(problem: _Problem, point: _Point, certificate: Certificate) -> bool:
    if not _is_improvable(problem, point, certificate) or problem.facts.chain is None or not certificate.radius > 0:
        return False
    return dense_chain.reaches_every_map(problem.facts.chain, jax.tree.leaves(point.params))


def _is_improvable(problem: _Problem, point: _Point, certificate: Certificate) -> bool:
    """Whether the network computes an affine map of any rank that is not the best one."""
    if point.slope is None or certificate.activations is None or point.slope.relative <= proofs.STEEP:
        return False
    is_free = certificate.activations.max_rank >= min(problem.flat_inputs.shape[1], problem.facts.num_classes)
    return is_free and not certificate.gap <= 1e3 * point.noise


def _doubts(problem: _Problem, point: _Point, certificate: Certificate) -> tuple[str, ...]:
    """What support lacks."""
    assert certificate.extremes is not None
    doubts, least = [], certificate.extremes.smallest
    if problem.facts.short:
        doubts.append(f"the network computes partly in short floats ({', '.join(problem.facts.short)}), so derivatives are coarse")
    if point.unfollowed:
        doubts.append(f"kinks are not followed: {point.unfollowed}")
    if certificate.activations is not None and not certificate.activations.smallest_margin > 0:
        doubts.append("a ReLU is exactly at its kink on some example, where no derivative decides")
    if point.steepness:
        doubts.append(f"{point.steepness}, which losses beside the point do not confirm")
    if not least.converged:
        doubts.append(f"the smallest eigenvalue is not converged (residual {least.residual:.2g}): raise max_products")
    if point.lower[0]:
        doubts.append(f"{point.lower[0]}, but not at every distance")
    if problem.loss == "cross_entropy" and certificate.loss <= 10 * point.noise:
        doubts.append(f"the cross-entropy {certificate.loss:.2g} is within rounding of its infimum 0, which no logits attain")
    elif _is_improvable(problem, point, certificate):
        assert point.slope is not None
        doubts.append(f"all ReLUs are active and the affine map could be better (relative slope {point.slope.relative:.2g})")
    return tuple(doubts)


def _missing(problem: _Problem, point: _Point, certificate: Certificate) -> tuple[str, ...]:
    """What a proof lacks."""
    activations, radius = certificate.activations, certificate.radius
    if activations is None:
        return () if point.unfollowed else ("a proof follows affine layers and ReLUs only",)
    if activations.is_constant:
        labels, num_classes = np.asarray(problem.labels), problem.facts.num_classes
        return proofs.missing_for_constant(certificate.loss, labels, num_classes, problem.loss, radius, point.noise)
    return proofs.missing_for_proof(certificate.loss, point.bound, point.is_ranked, point.slope, activations, radius, point.noise)


def _undetected(certificate: Certificate) -> str:
    """How much negative curvature may have been missed."""
    counts = ", ".join(f"{count} below {curvature:.2g}" for count, curvature in certificate.missed)
    return f"negative curvature may have been missed: with a probability of {CONFIDENCE:.1%} each, in fewer directions than {counts}"


def _searched(problem: _Problem, point: _Point, certificate: Certificate, key: jax.Array) -> Certificate:
    """The certificate of a point with a small slope, "near" if a minimum lies beside it."""
    assert certificate.extremes is not None
    end = stationary_point(problem.loss_fn, problem.data, point.operator, _scale(certificate.extremes), chunk_size=problem.chunk_size)
    if not end.gradient_norm < 0.1 * certificate.gradient_norm:
        return certificate
    nearby = _certified(problem, end.params, key, search=False)
    limit = _NEAR_DISTANCE * float(jnp.linalg.norm(point.operator.position))
    limit = min(limit, nearby.radius) if nearby.status == "proven" and nearby.radius > 0 else limit
    if not (nearby.is_minimum and end.distance <= limit):
        return certificate
    reasons = (f"{point.steepness}; a {nearby.status} minimum lies {end.distance:.2g} away", *nearby.reasons)
    return certificate._replace(status="near", reasons=reasons, distance=end.distance, nearby=nearby)


def _scale(extremes: Extremes) -> float:
    return max(abs(extremes.smallest.value), abs(extremes.largest.value))


def _on_device(key: jax.Array) -> jax.Array:
    """The same key on the default device and in the current precision mode."""
    return jax.random.wrap_key_data(jnp.asarray(np.asarray(jax.random.key_data(key))), impl=jax.random.key_impl(key))


@functools.partial(jax.jit, static_argnums=0)
def _apply(apply_fn: Callable, params: Any, inputs: jax.Array) -> jax.Array:
    return apply_fn(params, inputs)
