"""Norm-bias: a regulariser that pulls the norm of the parameters to any value wanted, and what norms do in training.

Weight decay pulls parameters to zero. If it helped because small norms generalise, pulling to a large norm should
hurt; norm-bias asks (paper, Study 2). It penalises

    R_mu(theta) = | ||theta||^2 - mu^2 |        ("absolute", the paper's), or its square ("squared"),

over all parameters, normalisation and biases too, or those of a mask. mu = 0 is weight decay. The paper's text adds
lambda R_mu to the loss, whose gradient is 2 lambda sign(||theta||^2 - mu^2) theta; its code adds half of that. The
``convention`` names which is meant: "code" (default) multiplies the penalty by lambda / 2, so that mu = 0 is what every
optimiser calls a weight decay of lambda, "text" by lambda.

Layers that a normalisation follows do not change when their weights are scaled. Their norm then acts through the step
size alone: the effective learning rate is the learning rate over the squared norm (van Laarhoven, arXiv 1706.05350), and
the angle by which a step turns the weights says how fast they learn (Wan et al., arXiv 2006.08419). `track_angular_updates` and
`effective_learning_rates` measure them along a run.

>>> import jax.numpy as jnp, optax
>>> from jaxbp import norms
>>> params = {"kernel": jnp.full((4,), 3.0), "bias": jnp.zeros(2)}
>>> float(norms.squared_norm(params)), float(norms.norm_penalty(params, 5.0, 0.5))  # 0.5 / 2 * |36 - 25|
(36.0, 2.75)
>>> towards_5 = norms.norm_bias(0.5, 5.0)   # chain it before momentum (coupled) or after (decoupled)
>>> updates, _ = towards_5.update({"kernel": jnp.zeros(4), "bias": jnp.zeros(2)}, towards_5.init(params), params)
>>> updates["kernel"].tolist()
[1.5, 1.5, 1.5, 1.5]
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

FORMS = ("absolute", "squared")
CONVENTIONS = ("code", "text")
Mask = Any | Callable[[Any], Any] | None  # booleans in the shape of the parameters, or a function that makes them


def squared_norm(params: Any, mask: Mask = None) -> jax.Array:
    """The sum of squares of all parameters, or of those of the mask; a scalar."""
    return functools.reduce(jnp.add, [jnp.sum(leaf**2) for leaf in _chosen(params, mask)])


def norm_penalty(
    params: Any,
    mu: Any,
    coefficient: Any,
    *,
    form: str = "absolute",
    convention: str = "code",
    mask: Mask = None,
    per_layer: bool = False,
) -> jax.Array:
    """The penalty of which `norm_bias` is the gradient, a scalar to be added to a loss; arguments as there."""
    _check(form, convention)
    gaps = [gap for gap in _gaps(params, mu, mask, per_layer) if gap is not None]
    if not per_layer:
        gaps = gaps[:1]  # one and the same for all
    total = functools.reduce(jnp.add, [jnp.abs(gap) if form == "absolute" else gap**2 for gap in gaps])
    return coefficient * total / (2 if convention == "code" else 1)


def norm_bias(
    coefficient: Any,
    mu: Any,
    *,
    form: str = "absolute",
    convention: str = "code",
    mask: Mask = None,
    per_layer: bool = False,
) -> optax.GradientTransformation:
    """Add the gradient of the norm-bias penalty to the updates.

    Before momentum in a chain it is part of the gradient, as in the paper ("coupled"); after it, and before the
    learning rate, it acts on the parameters directly ("decoupled", as AdamW's weight decay). At ||theta|| = mu the
    absolute penalty has a kink, and its gradient here is 0; mu = 0 is `optax.add_decayed_weights` to the last bit.

    Args:
      coefficient: lambda, may be traced.
      mu: the norm to pull to (not its square), may be traced; with ``per_layer`` one number for every array, or a tree
        of them.
      form, convention: of `FORMS` and `CONVENTIONS`, see the module.
      mask: which arrays are penalised; see `kernels_only`.
      per_layer: a penalty of its own for each array instead of one for all together.

    Raises:
      ValueError: an unknown form or convention; an update without parameters.
    """
    _check(form, convention)
    strength = coefficient * (1 if convention == "code" else 2)

    def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        if params is None:
            raise ValueError("norm-bias needs the parameters: call update(updates, state, params)")
        leaves, tree = jax.tree.flatten(params)
        gaps, targets = _gaps(params, mu, mask, per_layer), _targets(params, mu, per_layer)
        found = [
            step if gap is None else step + (strength * _pull(gap, target, form)).astype(leaf.dtype) * leaf
            for step, leaf, gap, target in zip(jax.tree.leaves(updates), leaves, gaps, targets, strict=True)
        ]
        return jax.tree.unflatten(tree, found), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def kernels_only(params: Any) -> Any:
    """A mask of the weights of dense and convolution layers: leaves named ``kernel``."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _name(path[-1]) == "kernel", params)


class Angles(NamedTuple):
    """By how much the last step turned each array of the mask: radians, in the order of the leaves."""

    last: jax.Array


def track_angular_updates(mask: Mask = kernels_only) -> optax.GradientTransformation:
    """Change nothing, and keep the angle (radians) by which each step turns each array of the mask.

    The last link of a chain; `angular_updates` finds the angles in the optimiser's state.
    """

    def init(params: Any) -> Angles:
        return Angles(jnp.zeros(sum(_flags(params, mask))))

    def update(updates: Any, state: Angles, params: Any = None) -> tuple[Any, Angles]:
        pairs = zip(_chosen(params, mask), _chosen(updates, _flags_tree(params, mask)), strict=True)
        return updates, Angles(jnp.stack([_angle(leaf, step) for leaf, step in pairs]).astype(state.last.dtype))

    return optax.GradientTransformation(init, update)


def angular_updates(opt_state: Any) -> jax.Array:
    """The angles (radians) that `track_angular_updates` has kept; ValueError if it is not part of the optimiser."""
    for part in jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, Angles)):
        if isinstance(part, Angles):
            return part.last
    raise ValueError("the optimiser does not watch angles: end its chain with norms.track_angular_updates()")


def effective_learning_rates(params: Any, learning_rate: Any, mask: Mask = kernels_only) -> jax.Array:
    """Learning rate over the squared norm of each array of the mask, in the order of the leaves.

    It is what steps on a scale-invariant array amount to on the unit sphere; of others it says nothing.
    """
    return jnp.stack([learning_rate / jnp.sum(leaf**2) for leaf in _chosen(params, mask)])


def _check(form: str, convention: str) -> None:
    for name, value, choices in (("form", form, FORMS), ("convention", convention, CONVENTIONS)):
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _flags_tree(params: Any, mask: Mask) -> Any:
    if mask is None:
        return jax.tree.map(lambda _: True, params)
    return mask(params) if callable(mask) else mask


def _flags(params: Any, mask: Mask) -> list[bool]:
    flags = _flags_tree(params, mask)
    if jax.tree.structure(flags) != jax.tree.structure(params):
        raise ValueError(f"mask must have the structure of the parameters {jax.tree.structure(params)}, got {jax.tree.structure(flags)}")
    return [bool(flag) for flag in jax.tree.leaves(flags)]


def _chosen(params: Any, mask: Mask) -> list[jax.Array]:
    chosen = [leaf for leaf, flag in zip(jax.tree.leaves(params), _flags(params, mask), strict=True) if flag]
    if not chosen:
        raise ValueError("the mask leaves no parameter: its flags are all false")
    return chosen


def _targets(params: Any, mu: Any, per_layer: bool) -> list[Any]:
    """mu for each leaf."""
    if per_layer and jax.tree.structure(mu) == jax.tree.structure(params):
        return jax.tree.leaves(mu)
    if np.ndim(mu):
        raise ValueError(f"mu must be one number, or with per_layer a tree of them, got shape {np.shape(mu)}")
    return [mu] * len(jax.tree.leaves(params))


def _gaps(params: Any, mu: Any, mask: Mask, per_layer: bool) -> list[jax.Array | None]:
    """||theta||^2 - mu^2 for each leaf, of all parameters of the mask together or of its own; None outside the mask."""
    shared = None if per_layer else squared_norm(params, mask)
    leaves = zip(jax.tree.leaves(params), _targets(params, mu, per_layer), _flags(params, mask), strict=True)
    return [None if not flag else (jnp.sum(leaf**2) if shared is None else shared) - target**2 for leaf, target, flag in leaves]


def _pull(gap: jax.Array, target: Any, form: str) -> jax.Array:
    """What multiplies lambda theta."""
    if form == "squared":
        return 2 * gap
    return jnp.where(target == 0, 1.0, jnp.sign(gap))  # also where the square of a tiny norm is 0 in floating point


def _name(key: Any) -> Any:
    """The name in an entry of a path through dictionaries, dataclasses or sequences."""
    return getattr(key, "key", getattr(key, "name", getattr(key, "idx", None)))


def _angle(leaf: jax.Array, step: jax.Array) -> jax.Array:
    """Between ``leaf`` and ``leaf + step``, accurate for small steps, where the arc cosine is not."""
    length = jnp.linalg.norm(leaf.ravel())
    unit = leaf.ravel() / jnp.maximum(length, jnp.finfo(leaf.dtype).tiny)
    along = unit @ step.ravel()
    across = jnp.linalg.norm(step.ravel() - along * unit)
    return jnp.arctan2(across, length + along)
