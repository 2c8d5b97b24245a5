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

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, Num, PyTree

from jaxbp import checks
from jaxbp.landscape import operations
from jaxbp.landscape.activation import ActivationReport
from jaxbp.landscape.affine import AffineFit
from jaxbp.landscape.evidence import Evidence, Problem, gather, scale_of
from jaxbp.landscape.grades import grade
from jaxbp.landscape.hessian import LossFn
from jaxbp.landscape.nearby import stationary_point
from jaxbp.landscape.probes import ProbeReport
from jaxbp.linalg.lanczos import Extremes
from jaxbp.losses import LOSSES
from jaxbp.runtime.short_repr import short_repr

GRADES = ("proven", "supported", "undecided", "near", "refuted")
CLASSES = ("near-global", "suboptimal minimum", "saddle", "not converged", "diverged")
CONFIDENCE = 0.999  # of what is said about negative curvature that may have been missed
_MISSED_DIRECTIONS = (1, 10, 100)
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
    nearby: Any = None

    def __repr__(self) -> str:
        return short_repr(self)

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
    loss_fn = per_example_loss(apply_fn, loss)
    checks.refuse_traced("params, inputs, labels and key", key, inputs, labels, *jax.tree.leaves(params))
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), checks.parameters(params, half=True))
        examples = checks.examples(inputs)
        examples = jnp.asarray(np.asarray(examples), jnp.float64 if jnp.issubdtype(examples.dtype, jnp.floating) else None)
        facts = operations.facts(apply_fn, params, examples)
        targets = checks.labels(labels, facts.num_classes, len(examples))
        if fit is not None:
            fit.check(np.asarray(examples, float).reshape(len(examples), -1), np.asarray(targets), loss)
        problem = Problem(
            apply_fn=apply_fn,
            loss_fn=loss_fn,
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
    negative = certificate.extremes.smallest.value < -curvature_tolerance * scale_of(certificate.extremes)
    escapes = certificate.probes.lowest_change < -drop * abs(certificate.loss)
    kink = certificate.activations is not None and certificate.activations.smallest_margin == 0
    return "saddle" if negative or escapes or kink else "suboptimal minimum"


@functools.cache
def per_example_loss(apply_fn: Callable[[Any, jax.Array], jax.Array], loss: str) -> LossFn:
    """Return ``loss_fn(params, inputs, labels) -> (N,)`` for a name in `jaxbp.losses.LOSSES`; equal arguments give the same object."""
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {sorted(LOSSES)}, got {loss!r}")
    return lambda params, inputs, labels: LOSSES[loss](apply_fn(params, inputs), labels)


def _certified(problem: Problem, params: Any, key: jax.Array, *, search: bool) -> Certificate:
    """The certificate of one point; ``search``: for a minimum beside points with a small slope."""
    point = gather(problem, params, key)
    if point.extremes is None:
        status, what = ("undecided", "the gradient or the curvature") if math.isfinite(point.value) else ("refuted", "the loss")
        return Certificate(status, (f"{what} is not finite",), point.value, point.gradient_norm, None, None, 0.0, math.inf, None)
    status, reasons = grade(problem, point)
    fields = point.value, point.gradient_norm, point.extremes, point.activations, point.radius, point.value - point.bound, point.probes
    certificate = Certificate(status, reasons, *fields)
    if status in ("supported", "undecided"):
        certificate = certificate._replace(reasons=(*reasons, _undetected(certificate)))
    if search and point.steepness and point.decrement <= _NEAR and not problem.facts.short:
        return _searched(problem, point, certificate, key)
    return certificate


def _searched(problem: Problem, point: Evidence, certificate: Certificate, key: jax.Array) -> Certificate:
    """The certificate of a point with a small slope, "near" if a minimum lies beside it."""
    end = stationary_point(problem.loss_fn, problem.data, point.operator, point.scale, chunk_size=problem.chunk_size)
    if not end.gradient_norm < 0.1 * point.gradient_norm:
        return certificate
    nearby = _certified(problem, end.params, key, search=False)
    limit = _NEAR_DISTANCE * point.size
    limit = min(limit, nearby.radius) if nearby.status == "proven" and nearby.radius > 0 else limit
    if not (nearby.is_minimum and end.distance <= limit):
        return certificate
    reasons = (f"{point.steepness}; a {nearby.status} minimum lies {end.distance:.2g} away", *nearby.reasons)
    return certificate._replace(status="near", reasons=reasons, distance=end.distance, nearby=nearby)


def _undetected(certificate: Certificate) -> str:
    """How much negative curvature may have been missed."""
    counts = ", ".join(f"{count} below {curvature:.2g}" for count, curvature in certificate.missed)
    return f"negative curvature may have been missed: with a probability of {CONFIDENCE:.1%} each, in fewer directions than {counts}"


def _on_device(key: jax.Array) -> jax.Array:
    """The same key on the default device and in the current precision mode."""
    return jax.random.wrap_key_data(jnp.asarray(np.asarray(jax.random.key_data(key))), impl=jax.random.key_impl(key))
