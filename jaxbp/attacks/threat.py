"""The threat model: an adversary moves an input by at most epsilon in a norm, inside the box of valid inputs.

A `Threat` holds the whole constraint. It projects, draws a random start and turns a gradient into the steepest step
of length 1 in its norm, so that the code of an attack is the same for every norm.

In the norm "l1" the box matters more than elsewhere: few entries carry the whole budget, and most of them end at the box. The projection
is therefore onto the intersection of ball and box (Croce & Hein, "Mind the box", ICML 2021, proposition 2.1), not onto one after the other.

Rounding. Projected inputs are in [low, high] exactly. For "linf" the difference to the input, computed in the dtype of
the inputs, never exceeds epsilon in that dtype, not by one bit. For "l2" and "l1" the radius is reduced by the rounding
of one subtraction, the machine epsilon times (||x|| + epsilon), so the distance exceeds epsilon at most by the rounding of
the sum, some 1e-6 of it in float32.

>>> import jax.numpy as jnp
>>> from jaxbp import attacks
>>> threat = attacks.Threat("linf", 0.25)
>>> threat.project(jnp.array([[-3.0, 0.6, 1.5]]), jnp.array([[0.1, 0.5, 0.5]])).tolist()
[[0.0, 0.6000000238418579, 0.75]]
>>> threat.steepest_ascent(jnp.array([[2e-20, 0.0, -7.0]])).tolist()
[[1.0, 0.0, -1.0]]
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxbp import checks

NORMS = ("linf", "l2", "l1")

Batch = Float[Array, "N ..."]
Bound = float | tuple[float, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Threat:
    """A ball around each input, cut with a box. A pytree: ``epsilon`` is data, so radii share one compiled program.

    Attributes:
      norm: one of `NORMS`, over all entries of an example.
      epsilon: the radius, in units of the inputs, at least 0; one number, may be traced.
      bounds: the box (low, high) of valid inputs, which must hold the inputs; ``(-inf, inf)`` for none. Each is one number, or (C,)
        numbers, one for each entry of the inputs' last axis, as where each channel is normalised on its own; kept as tuples.

    Raises:
      ValueError: an unknown norm, an epsilon that is negative or text, bounds not in order; when used, an epsilon that is not
        one number, inputs of another number of channels than the bounds.
    """

    norm: str = dataclasses.field(metadata={"static": True})
    epsilon: Any
    bounds: tuple[Bound, Bound] = dataclasses.field(default=(0.0, 1.0), metadata={"static": True})

    def __post_init__(self):
        if self.norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {self.norm!r}")
        object.__setattr__(self, "bounds", _ordered(self.bounds))
        # JAX builds threats of placeholders, and of many radii at once: only what can be no radius is refused here.
        is_number = isinstance(self.epsilon, jax.Array | np.ndarray) and self.epsilon.ndim == 0
        if is_number or isinstance(self.epsilon, str | bytes | int | float | complex | np.generic):
            self.check_epsilon()

    def check_epsilon(self) -> Any:
        """The radius as a number, a tracer as it is; ValueError for anything else."""
        return checks.number(self.epsilon, "epsilon", least=0)

    def box(self, inputs: Batch | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The bounds (low, high) in the dtype of ``inputs`` (N, ..., C), of shape () or (C,); ValueError if C differs."""
        low, high = (np.asarray(bound, inputs.dtype) for bound in self.bounds)
        for bound in (low, high):
            if bound.ndim and bound.shape != inputs.shape[-1:]:
                raise ValueError(f"bounds of {len(bound)} channels need inputs (N, ..., {len(bound)}), got shape {inputs.shape}")
        return low, high

    def projection(self, inputs: Batch) -> Callable[[jax.Array], jax.Array]:
        """The map of candidates (N, ...) to points within reach of ``inputs`` (N, ...), with its constants computed once.

        For "linf" and "l1" it is the nearest point in the Euclidean sense. For "l2" the candidate is drawn along its ray into the ball and
        then clipped to the box, which keeps it in the ball; that is not the nearest point where both constraints bind. Where an input
        lies outside the box, the box is widened up to it, so that epsilon holds in any case.
        """
        lowest, highest = self.reach(inputs)
        epsilon = jnp.asarray(self.check_epsilon(), inputs.dtype)
        if self.norm == "linf":
            lower, upper = inputs - epsilon, inputs + epsilon
            # Where rounding moved these outwards, the next number inwards is within reach.
            lower = jnp.where(inputs - lower > epsilon, jnp.nextafter(lower, inputs), lower)
            upper = jnp.where(upper - inputs > epsilon, jnp.nextafter(upper, inputs), upper)
            lower, upper = jnp.clip(lower, lowest, highest), jnp.clip(upper, lowest, highest)
            return lambda candidates: jnp.clip(candidates, lower, upper)
        size = _length if self.norm == "l2" else _total
        radius = jnp.maximum(epsilon - jnp.finfo(inputs.dtype).eps * (size(inputs) + epsilon), 0)

        def along_the_ray(candidates: jax.Array) -> jax.Array:
            step = candidates - inputs
            length = _length(step)
            shorter = inputs + step * (radius / jnp.where(length > 0, length, 1))
            return jnp.clip(jnp.where(length > radius, shorter, candidates), lowest, highest)

        def shrunken(candidates: jax.Array) -> jax.Array:
            step = jnp.nan_to_num(candidates - inputs)
            room = jnp.where(step > 0, highest - inputs, inputs - lowest)
            moved = jnp.sign(step) * _within_total(jnp.abs(step), room, radius)
            inside = _total(jnp.clip(candidates, lowest, highest) - inputs) <= radius
            return jnp.clip(jnp.where(inside, candidates, inputs + moved), lowest, highest)

        return along_the_ray if self.norm == "l2" else shrunken

    def reach(self, inputs: Batch) -> tuple[jax.Array, jax.Array]:
        """The box (lowest, highest) as arrays (N, ...), widened up to ``inputs`` (N, ...) that lie outside."""
        low, high = self.box(inputs)
        return jnp.minimum(low, inputs), jnp.maximum(high, inputs)

    def diameter(self, inputs: np.ndarray) -> float:
        """A radius around any of ``inputs`` (N, ...) that holds the box, or, where it is infinite, 100 times the extent of the inputs."""
        extents = np.subtract(self.bounds[1], self.bounds[0])
        if not np.isfinite(extents).all():
            extents = 100 * max(np.ptp(inputs), np.abs(inputs).max(initial=0), 1)
        entries = np.broadcast_to(extents, inputs.shape[1:]).ravel()
        orders = {"linf": np.inf, "l2": 2, "l1": 1}
        return float(np.linalg.norm(entries, orders[self.norm]))

    def project(self, candidates: Batch, inputs: Batch) -> Batch:
        """Points within reach of ``inputs`` for ``candidates``, both (N, ...); see `projection`."""
        return self.projection(inputs)(candidates)

    def random_start(self, key: PRNGKeyArray, inputs: Batch) -> Batch:
        """Inputs (N, ...) moved to a point drawn uniformly from the ball, then clipped to the box."""
        if self.norm == "linf":
            step = jax.random.uniform(key, inputs.shape, inputs.dtype, -1, 1)
        else:
            direction_key, length_key = jax.random.split(key)
            draw, size = (jax.random.normal, _length) if self.norm == "l2" else (jax.random.laplace, _total)
            direction = draw(direction_key, inputs.shape, inputs.dtype)
            direction = direction / jnp.maximum(size(direction), jnp.finfo(inputs.dtype).tiny)
            volume = jax.random.uniform(length_key, (len(inputs),) + (1,) * (inputs.ndim - 1), inputs.dtype)
            step = direction * volume ** (1 / max(math.prod(inputs.shape[1:]), 1))
        return self.project(inputs + jnp.asarray(self.epsilon, inputs.dtype) * step, inputs)

    def steepest_ascent(self, gradient: Batch) -> Batch:
        """The step of length 1 in the norm with the largest inner product with the ``gradient`` (N, ...).

        Zero where the gradient is zero; NaN entries count as 0. Gradients may be as small as the dtype holds. In the norm "l1" one entry
        has the whole step: hand in the entries that the box leaves free (`open_entries`), or use `jaxbp.attacks.apgd`.
        """
        if self.norm == "linf":
            return (gradient > 0).astype(gradient.dtype) - (gradient < 0).astype(gradient.dtype)
        if self.norm == "l1":
            return self.sparse_ascent(gradient, jnp.ones(len(gradient), gradient.dtype))
        gradient = jnp.nan_to_num(gradient)
        largest = jnp.max(jnp.abs(gradient), _axes(gradient), keepdims=True, initial=0)
        scaled = gradient / jnp.where(largest > 0, largest, 1)  # squares of a small gradient would vanish
        return scaled / jnp.maximum(_length(scaled), 1)  # at least 1 unless all are 0

    def sparse_ascent(self, gradient: Batch, num_entries: Float[Array, " N"]) -> Batch:
        """The step of length 1 in "l1" that moves the largest ``num_entries`` (N,), rounded down, of the ``gradient`` (N, ...) equally.

        Zeros of the gradient do not move, and entries beyond ``num_entries`` are left out by their order where several are equal.
        """
        flat = jnp.nan_to_num(gradient).reshape(len(gradient), -1)
        order = jnp.argsort(-jnp.abs(flat), axis=1)
        rank = jnp.argsort(order, axis=1)
        step = jnp.where(rank + 1 <= num_entries[:, None], jnp.sign(flat), 0)
        return (step / jnp.maximum(jnp.abs(step).sum(1, keepdims=True), 1)).reshape(gradient.shape)

    def open_entries(self, gradient: Batch, candidates: Batch) -> Batch:
        """The ``gradient`` (N, ...) without entries that would push ``candidates`` (N, ...), which lie at the box's edge there, out."""
        low, high = self.box(candidates)
        return jnp.where(((candidates >= high) & (gradient > 0)) | ((candidates <= low) & (gradient < 0)), 0, gradient)

    def distance(self, adversarial: Batch, inputs: Batch) -> Float[Array, " N"]:
        """The distance (N,) of ``adversarial`` from ``inputs``, both (N, ...), in the norm."""
        step = adversarial - inputs
        if self.norm == "linf":
            return jnp.max(jnp.abs(step), _axes(step), initial=0)
        return (_length if self.norm == "l2" else _total)(step).reshape(len(step))


def wide(values: jax.Array, array: jax.Array) -> jax.Array:
    """``values`` (N,) as (N, 1, ...), to broadcast with ``array`` (N, ...)."""
    return values.reshape(-1, *(1,) * (array.ndim - 1))


def checked_radii(radii: Any) -> list[float]:
    """Radii of a curve; ValueError for anything but a list of finite numbers of at least 0."""
    return [checks.number(radius, "radii", least=0) for radius in checks.host_values(radii, "radii", shape=(None,))]


def multiple_of_epsilon(threat: Threat, factor: float) -> Any:
    """``factor`` epsilon, the size of a step; of several radii, which come by vmap over attacks, several sizes.

    Raises:
      ValueError: no threat, or a radius that is none.
    """
    if not isinstance(threat, Threat):
        raise ValueError(f"threat must be an attacks.Threat, such as Threat('linf', 8 / 255), got {type(threat).__name__}")
    several = isinstance(threat.epsilon, jax.Array | np.ndarray) and threat.epsilon.ndim > 0
    return factor * (threat.epsilon if several else threat.check_epsilon())


def _ordered(bounds: Any) -> tuple[Bound, Bound]:
    """Bounds as numbers or tuples of numbers, which are hashable.

    Raises:
      ValueError: bounds that are no pair of numbers or of (C,) numbers, or not in order.
    """
    try:
        low, high = (np.asarray(bound) for bound in bounds)
        low, high = (bound.astype(float, casting="safe") for bound in (low, high))  # no text, no complex numbers
        right = max(low.ndim, high.ndim) <= 1 and bool(np.size(low < high)) and bool((low < high).all())
    except (TypeError, ValueError):  # a pair of something else, traced values among them, or of unequal lengths
        right = False
    if not right:
        raise ValueError(f"bounds must be (low, high) with low < high, numbers or (C,) for C channels, got {bounds!r}")
    return tuple(bound.item() if bound.ndim == 0 else tuple(bound.tolist()) for bound in (low, high))  # type: ignore[return-value]


def _axes(array: jax.Array) -> tuple[int, ...]:
    return tuple(range(1, array.ndim))


def _length(array: jax.Array) -> jax.Array:
    """Euclidean norm of each example, (N, 1, ...)."""
    return jnp.sqrt(jnp.sum(array**2, _axes(array), keepdims=True))


def _total(array: jax.Array) -> jax.Array:
    """Sum of absolute values of each example, (N, 1, ...)."""
    return jnp.sum(jnp.abs(array), _axes(array), keepdims=True)


def _within_total(size: jax.Array, room: jax.Array, radius: jax.Array) -> jax.Array:
    """The nearest point to ``size`` (N, ...) >= 0 among those from 0 to ``room`` (N, ...) whose sum is at most ``radius`` (N, 1, ...).

    It is clip(size - shift, 0, room) for the smallest shift >= 0 at which the sum fits. The sum is piecewise linear in the shift: halving
    finds the piece to the precision of the dtype, and the piece gives the shift.
    """

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        few, enough = ends
        middle = (few + enough) / 2
        fits = jnp.clip(size - middle, 0, room).sum(_axes(size), keepdims=True) <= radius
        return jnp.where(fits, few, middle), jnp.where(fits, middle, enough)

    most = jnp.max(size, _axes(size), keepdims=True, initial=0)
    few, enough = jax.lax.fori_loop(0, jnp.finfo(size.dtype).nmant + 3, halve, (jnp.zeros_like(most), most))
    rest = size - enough
    moving = (rest > 0) & (rest < room)
    total = jnp.where(moving, size, jnp.where(rest >= room, room, 0)).sum(_axes(size), keepdims=True)
    exact = (total - radius) / jnp.maximum(moving.sum(_axes(size), keepdims=True), 1)
    shift = jnp.where(moving.any(_axes(size), keepdims=True), jnp.clip(exact, few, enough), enough)
    return jnp.clip(size - shift, 0, room)
