"""Norm-bias, a regulariser that pulls the parameter norm to a chosen value, and measurements of the role of norms in training.

Weight decay pulls parameters to zero. If weight decay helped because small norms generalise, a pull to a large norm would hurt; section 3
of "Truth or Backpropaganda?" (Goldblum et al., ICLR 2020) tests this with norm-bias, which penalises

    R_mu(theta) = | ||theta||^2 - mu^2 |        ("absolute", the paper's), or its square ("squared"),

over all parameters, including normalisation and biases, or over those of a mask. mu = 0 is weight decay. The paper's text adds
lambda R_mu to the loss, with gradient 2 lambda sign(||theta||^2 - mu^2) theta; the paper's code adds half of this. ``convention`` selects
between them: "code" (default) multiplies the penalty by lambda / 2, so that mu = 0 is an optimiser's weight decay of lambda; "text"
multiplies it by lambda.

A layer that a normalisation follows does not change when its weights are scaled. The norm of its weights then acts through the step size
alone: the effective learning rate is the learning rate over the squared norm (van Laarhoven, arXiv 1706.05350), and the angle by which a
step turns the weights measures the speed of learning (Wan et al., arXiv 2006.08419). `track_angular_updates` and
`effective_learning_rates` measure both during a run.

Parameters are real floating-point arrays; squares of float16 and bfloat16 are summed in float32, which they would overflow.

>>> import jax.numpy as jnp, optax
>>> from jaxbp import norms
>>> params = {"kernel": jnp.full((4,), 3.0), "bias": jnp.zeros(2)}
>>> float(norms.squared_norm(params)), float(norms.norm_penalty(params, 5.0, 0.5))  # 0.5 / 2 * |36 - 25|
(36.0, 2.75)
>>> towards_5 = norms.norm_bias(0.5, 5.0)  # in a chain before momentum (coupled) or after it (decoupled)
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
from jaxtyping import Float, PyTree

from jaxbp import checks

FORMS = ("absolute", "squared")
CONVENTIONS = ("code", "text")
Scalar = float | Float[jax.Array, ""] | Float[np.ndarray, ""] | np.floating
Mask = Any | Callable[[Any], Any] | None  # booleans in the structure of the parameters, or a function from parameters to such booleans


def squared_norm(params: PyTree, mask: Mask = None) -> Float[jax.Array, ""]:
    """Sum of squares of all parameters, or of those of the mask; a scalar, float32 for shorter parameters.

    Raises:
      ValueError: parameters of the mask that are no real floating-point arrays, or a mask that does not fit them.
    """
    return functools.reduce(jnp.add, [_square(leaf) for leaf in _masked(params, mask)])


def norm_penalty(
    params: PyTree,
    mu: Any,
    coefficient: Scalar,
    *,
    form: str = "absolute",
    convention: str = "code",
    mask: Mask = None,
    per_layer: bool = False,
) -> Float[jax.Array, ""]:
    """The penalty whose gradient `norm_bias` adds, a scalar for a loss; arguments as in `norm_bias`."""
    _check(form, convention)
    gaps = [gap for gap in _gaps(params, mu, mask, per_layer) if gap is not None]
    if not per_layer:
        gaps = gaps[:1]  # the same for all parameters
    total = functools.reduce(jnp.add, [jnp.abs(gap) if form == "absolute" else gap**2 for gap in gaps])
    return jnp.asarray(coefficient * total / (2 if convention == "code" else 1))


def norm_bias(
    coefficient: Scalar,
    mu: Any,
    *,
    form: str = "absolute",
    convention: str = "code",
    mask: Mask = None,
    per_layer: bool = False,
) -> optax.GradientTransformation:
    """Add the gradient of the norm-bias penalty to the updates.

    Before momentum in a chain, the penalty is part of the gradient, as in the paper ("coupled"). After momentum and before the learning
    rate, it acts on the parameters directly ("decoupled", as AdamW's weight decay). At ||theta|| = mu the absolute penalty has a kink; its
    gradient is taken as 0. mu = 0 equals `optax.add_decayed_weights` to the last bit. An update that is None, of a frozen parameter, stays
    None; the parameter counts in the norm all the same.

    Args:
      coefficient: lambda; may be traced.
      mu: target norm (not its square); may be traced. With ``per_layer`` one number for all arrays, or a tree with a number for each.
      form: of `FORMS`, see the module.
      convention: of `CONVENTIONS`, see the module.
      mask: selects the penalised arrays; see `kernels_only`.
      per_layer: penalise each array separately instead of all together.

    Raises:
      ValueError: for an unknown form or convention; by ``update``, for missing parameters, or penalised ones that are no real
        floating-point arrays.
    """
    _check(form, convention)
    strength = coefficient * (1 if convention == "code" else 2)

    def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        if params is None:
            raise ValueError("norm-bias needs the parameters: call update(updates, state, params)")
        gaps, targets = _gaps(params, mu, mask, per_layer), _targets(params, mu, per_layer)
        pulls = [None if gap is None else strength * _pull(gap, target, form) for gap, target in zip(gaps, targets, strict=True)]

        def regularise(step: Any, leaf: Any, pull: Any) -> Any:
            return step if step is None or pull is None else step + pull.astype(leaf.dtype) * leaf

        pulls = jax.tree.unflatten(jax.tree.structure(params), pulls)
        shapes, steps = jax.tree.structure(params), jax.tree.structure(updates, is_leaf=_is_none)
        if steps != shapes and steps != jax.tree.structure(params, is_leaf=_is_none):
            raise ValueError(f"updates must have the structure of the parameters {shapes}, got {steps}")
        return jax.tree.map(regularise, updates, params, pulls, is_leaf=_is_none), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def kernels_only(params: PyTree) -> PyTree:
    """A mask that selects the weights of dense and convolution layers, the leaves named ``kernel``."""
    return jax.tree_util.tree_map_with_path(lambda path, _: bool(path) and _name(path[-1]) == "kernel", params)


class AngularUpdates(NamedTuple):
    """Optimiser state of `track_angular_updates`.

    Attributes:
      last: (A,) angles in radians by which the last step turned each array of the mask, in the order of the leaves.
    """

    last: Float[jax.Array, " a"]


def track_angular_updates(mask: Mask = kernels_only) -> optax.GradientTransformation:
    """Leave the updates unchanged and keep the angle (radians) by which each step turns each array of the mask; 0 for an update of None.

    Use it as the last link of a chain; `angular_updates` reads the angles from the optimiser's state.
    """

    def init(params: Any) -> AngularUpdates:
        return AngularUpdates(jnp.zeros(sum(_flags(params, mask))))

    def update(updates: Any, state: AngularUpdates, params: Any = None) -> tuple[Any, AngularUpdates]:
        steps = jax.tree.structure(params).flatten_up_to(updates)
        steps = [step for step, flag in zip(steps, _flags(params, mask), strict=True) if flag]
        pairs = zip(_masked(params, mask), steps, strict=True)
        angles = [jnp.zeros(()) if step is None else _angle(leaf, step) for leaf, step in pairs]
        return updates, AngularUpdates(jnp.stack(angles).astype(state.last.dtype))

    return optax.GradientTransformation(init, update)


def angular_updates(opt_state: PyTree) -> Float[jax.Array, " a"]:
    """The angles (radians) that `track_angular_updates` kept in an optimiser's state.

    Raises:
      ValueError: if `track_angular_updates` is not part of the optimiser.
    """
    for part in jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, AngularUpdates)):
        if isinstance(part, AngularUpdates):
            return part.last
    raise ValueError("the optimiser does not track angular updates: end its chain with norms.track_angular_updates()")


def effective_learning_rates(params: PyTree, learning_rate: Scalar, mask: Mask = kernels_only) -> Float[jax.Array, " a"]:
    """Learning rate over the squared norm of each array of the mask, in the order of the leaves.

    For a scale-invariant array it is the learning rate of the direction on the unit sphere; for other arrays it has no such meaning.
    """
    rate = checks.number(learning_rate, "learning_rate")
    return jnp.stack([rate / _square(leaf) for leaf in _masked(params, mask)])


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


def _masked(params: Any, mask: Mask) -> list[jax.Array]:
    """The parameters of the mask, as real floating-point arrays."""
    flags = _flags(params, mask)
    if not any(flags):
        raise ValueError("the mask leaves no parameter: its flags are all false")
    chosen = [leaf if flag else None for leaf, flag in zip(jax.tree.leaves(params), flags, strict=True)]
    return jax.tree.leaves(checks.parameters(jax.tree.unflatten(jax.tree.structure(params), chosen), half=True))


def _is_none(node: Any) -> bool:
    return node is None


def _square(leaf: jax.Array) -> jax.Array:
    """Sum of squares, of short floats in float32."""
    return jnp.sum(_widened(leaf) ** 2)


def _widened(value: Any) -> Any:
    """A short float as float32; other values as they are."""
    dtype = getattr(value, "dtype", None)
    return value.astype(jnp.float32) if dtype is not None and jnp.finfo(dtype).bits < 32 else value


def _targets(params: Any, mu: Any, per_layer: bool) -> list[Any]:
    """mu for each leaf."""
    if per_layer and jax.tree.structure(mu) == jax.tree.structure(params):
        return jax.tree.leaves(mu)
    if np.ndim(mu):
        raise ValueError(f"mu must be one number, or with per_layer a tree of them, got shape {np.shape(mu)}")
    return [mu] * len(jax.tree.leaves(params))


def _gaps(params: Any, mu: Any, mask: Mask, per_layer: bool) -> list[jax.Array | None]:
    """||theta||^2 - mu^2 for each leaf, over all parameters of the mask or over the leaf alone; None outside the mask."""
    squares = [_square(leaf) for leaf in _masked(params, mask)]
    shared = None if per_layer else functools.reduce(jnp.add, squares)
    left = iter(squares)
    flags = zip(_targets(params, mu, per_layer), _flags(params, mask), strict=True)
    return [(next(left) if shared is None else shared) - _widened(target) ** 2 if flag else None for target, flag in flags]


def _pull(gap: jax.Array, target: Any, form: str) -> jax.Array:
    """The factor of lambda theta in the gradient."""
    if form == "squared":
        return 2 * gap
    return jnp.where(target == 0, 1.0, jnp.sign(gap))  # 1 also where the square of a tiny norm underflows to 0


def _name(key: Any) -> Any:
    """The name in an entry of a path through dictionaries, dataclasses or sequences."""
    return getattr(key, "key", getattr(key, "name", getattr(key, "idx", None)))


def _angle(leaf: jax.Array, step: jax.Array) -> jax.Array:
    """Angle between ``leaf`` and ``leaf + step``; accurate for small steps, unlike the arc cosine."""
    leaf, step = _widened(leaf), _widened(step)
    length = jnp.linalg.norm(leaf.ravel())
    unit = leaf.ravel() / jnp.maximum(length, jnp.finfo(leaf.dtype).tiny)
    along = unit @ step.ravel()
    across = jnp.linalg.norm(step.ravel() - along * unit)
    return jnp.arctan2(across, length + along)
