"""The grade of a point from what was measured there: refuted, proven, supported or undecided, with reasons.

What speaks against a minimum comes first; then the proofs (`proofs`); then what support lacks.
"""

from jax import tree

from jaxbp.landscape import dense_chain, operations, proofs
from jaxbp.landscape.evidence import Evidence, Problem


def grade(problem: Problem, evidence: Evidence) -> tuple[str, tuple[str, ...]]:
    """The grade and its reasons."""
    if refutations := _refutations(problem, evidence):
        return "refuted", (*refutations, *_short_floats(problem))
    doubts, lacking = _doubts(problem, evidence), _missing(problem, evidence)
    is_zero = problem.loss == "squared_error" and evidence.value <= evidence.noise  # no squared error is lower
    if not (evidence.steepness or problem.facts.short or _is_saturated(problem, evidence)) and (is_zero or not lacking):
        return "proven", ()
    return "undecided" if doubts else "supported", (*doubts, *lacking)


def _refutations(problem: Problem, evidence: Evidence) -> tuple[str, ...]:
    """Reasons why the point is no local minimum."""
    reasons = []
    if evidence.steepness and (evidence.gradient_decides or evidence.falls):
        reasons.append(evidence.steepness)
    if evidence.gradient_decides and (curvature := _negative_curvature(problem, evidence)):
        reasons.append(curvature)
    if not evidence.steepness and evidence.slope is not None and _excluded_by_theorem(problem, evidence):
        reasons.append(
            f"all ReLUs are active and the affine map could be better (relative slope {evidence.slope.relative:.2g}): dense chains have "
            "no local minimum but the global one of affine maps (Laurent and von Brecht, ICML 2018)"
        )
    if evidence.falls:
        reasons.append(evidence.lower)
    return tuple(reasons)


def _negative_curvature(problem: Problem, evidence: Evidence) -> str:
    """A Ritz value that is clearly negative, which bounds the smallest eigenvalue from above; "" if there is none.

    Within rounding lie the errors of a product, and the curvature into which a gradient turns over distances like the parameters' norm.
    """
    assert evidence.extremes is not None
    least = evidence.extremes.smallest
    rounding = 64 * problem.facts.epsilon * evidence.scale + (100 * evidence.gradient_norm / evidence.size if evidence.size else 0.0)
    is_clear = least.value + least.residual < -rounding or least.value < -rounding - problem.curvature_tolerance * evidence.scale
    return f"negative curvature {least.value:.2g} (largest {evidence.extremes.largest.value:.2g})" if is_clear else ""


def _excluded_by_theorem(problem: Problem, evidence: Evidence) -> bool:
    chain = problem.facts.chain
    is_inside = evidence.radius > 0 and chain is not None and _is_improvable(problem, evidence)
    return is_inside and chain is not None and dense_chain.reaches_every_map(chain, tree.leaves(evidence.params))


def _is_improvable(problem: Problem, evidence: Evidence) -> bool:
    """Whether the network computes an affine map that is not the best one, though it has room for any rank."""
    if evidence.slope is None or evidence.activations is None or evidence.slope.relative <= proofs.STEEP:
        return False
    has_room = evidence.activations.max_rank >= min(problem.flat_inputs.shape[1], problem.facts.num_classes)
    return has_room and not evidence.value - evidence.bound <= 1e3 * evidence.noise


def _short_floats(problem: Problem) -> tuple[str, ...]:
    """That derivatives are coarse, whatever the grade."""
    if not (short := problem.facts.short):
        return ()
    coarse = f"the network computes partly in short floats ({', '.join(short)}), so its derivatives are coarse"
    return (f"{coarse}: {operations.IN_FLOAT64}",)


def _is_saturated(problem: Problem, evidence: Evidence) -> bool:
    """Whether rounding hides what is left of a cross-entropy, which no finite logits bring to its infimum 0."""
    return problem.loss == "cross_entropy" and evidence.value <= 10 * evidence.noise


def _doubts(problem: Problem, evidence: Evidence) -> tuple[str, ...]:
    """What support lacks."""
    assert evidence.extremes is not None
    doubts, least = [*_short_floats(problem)], evidence.extremes.smallest
    if evidence.unfollowed:
        doubts.append(f"kinks are not followed: {evidence.unfollowed}")
    if evidence.activations is not None and not evidence.activations.smallest_margin > 0:
        doubts.append("a ReLU is exactly at its kink on some example, where no derivative decides")
    if evidence.steepness:
        doubts.append(f"{evidence.steepness}, which losses beside the point do not confirm")
    if not least.converged:
        doubts.append(f"the smallest eigenvalue is not converged (residual {least.residual:.2g}): raise max_products")
    if evidence.lower:
        doubts.append(f"{evidence.lower}, but losses are not lower at every distance")
    if _is_saturated(problem, evidence):
        doubts.append(f"the cross-entropy {evidence.value:.2g} is within rounding of its infimum 0, which no logits attain")
    elif _is_improvable(problem, evidence) and evidence.slope is not None:
        doubts.append(f"all ReLUs are active and the affine map could be better (relative slope {evidence.slope.relative:.2g})")
    return tuple(doubts)


def _missing(problem: Problem, evidence: Evidence) -> tuple[str, ...]:
    """What a proof lacks."""
    activations, value, noise = evidence.activations, evidence.value, evidence.noise
    if activations is None:  # never empty, or the point would count as proven
        return ("a proof follows affine layers and ReLUs only",)
    if activations.is_constant:
        return proofs.missing_for_constant(value, problem.labels, problem.facts.num_classes, problem.loss, evidence.radius, noise)
    bound, slope = evidence.bound, evidence.slope
    return proofs.missing_for_proof(value, bound, evidence.is_ranked, slope, activations, evidence.radius, noise)
