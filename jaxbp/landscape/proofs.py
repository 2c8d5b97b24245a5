"""Which theorem shows that a point is a local minimum, or none.

While no ReLU changes its sign, a network with all ReLUs active computes affine maps of its input, and one with a layer that is dead on
every example computes constants. The loss is convex in the logits, so the least loss of such maps bounds the loss near the point:

- all active: the least loss of affine maps of the rank that the network can reach (`AffineFit`), Theorem 1 of "Truth or Backpropaganda?"
  (Goldblum et al., ICLR 2020). The bound is attained where the loss has no slope with respect to the map itself, which is measured at the
  point and shows by convexity that no affine map is better. Cross-entropy on separable data has an infimum and such a slope everywhere;
- dead: the least loss of constant logits, the entropy of the labels' frequencies or half of one minus the sum of their squares;
- a squared error of zero: no loss is lower.

Where all ReLUs of a dense chain are active and the map has a slope, the point is no local minimum (`dense_chain`).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxbp.landscape.activation import ActivationReport
from jaxbp.landscape.affine import AffineFit, fit_affine
from jaxbp.losses import LOSSES

ROUNDING = 1e-12  # relative loss differences below this are float64 noise
FLAT = 1e-8  # a slope with respect to the map is zero below this share of what its terms would add up to
STEEP = 1e-6  # and clearly not zero above this one


class MapSlope(NamedTuple):
    """Gradient of the mean loss with respect to the affine map from the flat inputs to the logits.

    Attributes:
      kernel: (d, C).
      relative: Euclidean norm of the gradient with respect to kernel and bias, as a share of the mean of its terms' norms.
    """

    kernel: Float[np.ndarray, "d c"]
    relative: float


def map_slope(inputs: Float[np.ndarray, "n d"], logits: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"], loss: str) -> MapSlope:
    """The slope at the map that has these logits."""
    errors = np.asarray(jax.grad(lambda z: LOSSES[loss](z, jnp.asarray(labels)).sum())(jnp.asarray(logits)))
    kernel, bias = inputs.T @ errors / len(inputs), errors.mean(0)
    terms = float((np.sqrt((inputs**2).sum(1) + 1) * np.linalg.norm(errors, axis=1)).mean())
    return MapSlope(kernel, math.hypot(np.linalg.norm(kernel), np.linalg.norm(bias)) / terms if terms > 0 else 0.0)


def resolution(value: float, logits: Float[np.ndarray, "n c"], loss: str, epsilon: float) -> float:
    """The size of loss differences that rounding hides."""
    largest = float(np.abs(logits).max(initial=1.0))
    relative = max(ROUNDING, 100 * epsilon) * abs(value)
    return relative + (4 * epsilon * largest if loss == "cross_entropy" else (epsilon * largest) ** 2)


def best_constant_loss(labels: Int[np.ndarray, " n"], num_classes: int, loss: str) -> tuple[float, bool]:
    """The least loss of constant logits, and whether some logits attain it."""
    share = np.bincount(labels, minlength=num_classes) / len(labels)
    if loss == "squared_error":
        return float(0.5 * (1 - (share**2).sum())), True
    return float(-(share[share > 0] * np.log(share[share > 0])).sum()), bool((share > 0).all())


def affine_bound(fit: AffineFit, rank: int, inputs: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], loss: str) -> float:
    """The bound of the loss of affine maps of at most this rank; one under a rank constraint is computed again.

    Raises:
      ValueError: for a fit of other examples or another loss.
    """
    fit.check(inputs, labels, loss)
    bound = fit.bound_at(rank)
    if bound <= fit.lower_bound or loss != "squared_error":
        return min(bound, fit.lower_bound)
    again = fit_affine(inputs, labels, len(fit.bias), loss=loss, max_rank=fit.max_rank)
    return min(bound, again.bound_at(rank))


def missing_for_proof(
    value: float,
    bound: float,
    is_ranked: bool,
    slope: MapSlope | None,
    activations: ActivationReport,
    radius: float,
    noise: float,
) -> tuple[str, ...]:
    """Conditions of the proof for all-active networks that do not hold.

    Args:
      value: the loss.
      bound: of affine maps of the rank that the network reaches.
      is_ranked: whether the bound holds under a constraint on the rank only.
      slope: with respect to the map.
      activations, radius: of `analyse` and `stable_radius`.
      noise: see `resolution`.
    """
    if not activations.all_active:
        return (f"only {activations.active_share:.1%} of the ReLUs are active, so the network is not affine near the point",)
    if not radius > 0:
        return ("no radius is known within which the ReLUs stay active",)
    if not math.isfinite(bound):
        return ("no lower bound of the loss over affine maps was given: pass fit=fit_affine(...)",)
    gap = value - bound
    if gap > noise:
        return (f"the loss is {gap:.2g} above the lower bound over affine maps",)
    if gap < -noise:
        return (f"the loss is {-gap:.2g} below the lower bound given, which therefore is none",)
    if not is_ranked and (slope is None or slope.relative > FLAT):
        relative = math.nan if slope is None else slope.relative
        return (f"the lower bound is approached, not attained: better affine maps exist (relative slope {relative:.2g})",)
    return ()


def missing_for_constant(value: float, labels: Any, num_classes: int, loss: str, radius: float, noise: float) -> tuple[str, ...]:
    """Conditions of the proof for dead networks that do not hold."""
    bound, is_attained = best_constant_loss(labels, num_classes, loss)
    if not radius > 0:
        return ("no radius is known within which the ReLUs stay dead",)
    if not is_attained:
        return ("some class has no example, so that no constant logits attain the least loss of constant logits",)
    if value - bound > noise:
        return (f"the loss is {value - bound:.2g} above that of the best constant logits",)
    return ()
