"""Rules of RankMin and RankMax: the level of a cut or cap of singular values, from a target and the values at the start.

A rule takes targets (L,) for a stack of L layers and their values (L, count), descending, at the start. It returns a function from the
current values to a `Cut` or a `Cap`. A target that is relative to the start is computed once and holds for all later projections.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbp.spectra.ranks import nuclear_rank


def check_target(name: str, rule: str, value: float) -> None:
    """Raise ValueError unless ``value`` is in the range of the rule of ``rank_min`` or ``rank_max``."""
    ranges = {"energy": (0, 1), "relative_rank": (0, 1) if name == "rank_min" else (1, float("inf"))}
    low, high = ranges.get(rule, (0, float("inf")))
    if not (low <= value <= high):
        raise ValueError(f"{rule} of {name} must lie between {low} and {high}, got {value}")


class Cut(NamedTuple):
    """Set values below ``level`` (L,) to 0."""

    level: jax.Array

    def factor(self, values: jax.Array) -> jax.Array:
        """f(sigma) / sigma - 1 for values (L, ...)."""
        level = self.level.reshape(-1, *[1] * (values.ndim - 1))
        return jnp.where((values < level) & (values > 0), -1.0, 0.0).astype(values.dtype)


class Cap(NamedTuple):
    """Lower values above ``level`` (L,) to the level."""

    level: jax.Array

    def factor(self, values: jax.Array) -> jax.Array:
        """f(sigma) / sigma - 1 for values (L, ...)."""
        level = self.level.reshape(-1, *[1] * (values.ndim - 1))
        above = values > level
        return jnp.where(above, level / jnp.where(above, values, 1) - 1, 0.0).astype(values.dtype)


def _cut_below(target: jax.Array, start: jax.Array) -> Callable:
    return lambda values: Cut(target)


def _cut_to_energy(target: jax.Array, start: jax.Array) -> Callable:
    # The level is fixed at the start: a share of the remaining energy would shrink at every projection.
    squares = jnp.cumsum(start**2, -1)
    needed = jnp.sum(squares < target[:, None] * squares[:, -1:] * (1 - 4 * jnp.finfo(start.dtype).eps), -1)
    level = jnp.take_along_axis(start, jnp.minimum(needed, start.shape[-1] - 1)[:, None], -1)[:, 0]
    return lambda values: Cut(_below(jnp.where(target < 1, level, 0)))


def _cut_to_rank(target: jax.Array, start: jax.Array) -> Callable:
    def goal(values: jax.Array) -> Cut:
        # The nuclear rank of the largest k values rises with k.
        ranks = jnp.cumsum(values, -1) / jnp.sqrt(jnp.maximum(jnp.cumsum(values**2, -1), jnp.finfo(values.dtype).tiny))
        fits = jnp.maximum(jnp.sum(ranks <= target[:, None] * (1 + 1e-6), -1), 1)
        level = jnp.take_along_axis(values, fits[:, None] - 1, -1)[:, 0]
        return Cut(jnp.where(fits < values.shape[-1], _below(level), 0))

    return goal


def _cut_to_share(target: jax.Array, start: jax.Array) -> Callable:
    return _cut_to_rank(target * nuclear_rank(start), start)


def _cap_above(target: jax.Array, start: jax.Array) -> Callable:
    return lambda values: Cap(target)


def _cap_to_rank(target: jax.Array, start: jax.Array) -> Callable:
    def rank_at(values: jax.Array, level: jax.Array) -> jax.Array:
        return nuclear_rank(jnp.minimum(values, level[:, None]))

    def goal(values: jax.Array) -> Cap:
        # Bisection: a lower ceiling gives a higher rank. If no ceiling gives the rank, the values stay unchanged.
        top = values[:, 0]

        def halve(_: int, ends: tuple) -> tuple:
            low, high = ends
            middle = 0.5 * (low + high)
            enough = rank_at(values, middle) >= target
            return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

        low, _ = jax.lax.fori_loop(0, 60, halve, (jnp.zeros_like(top), top))
        done = rank_at(values, top) >= target
        return Cap(jnp.where(done | (low <= 0), top, low))

    return goal


def _cap_to_share(target: jax.Array, start: jax.Array) -> Callable:
    return _cap_to_rank(target * nuclear_rank(start), start)


ABSOLUTE = ("threshold", "ceiling")  # targets in units of the singular values; all others do not change with their scale

RULES: dict[tuple[str, str], Callable] = {
    ("rank_min", "threshold"): _cut_below,
    ("rank_min", "energy"): _cut_to_energy,
    ("rank_min", "target_rank"): _cut_to_rank,
    ("rank_min", "relative_rank"): _cut_to_share,
    ("rank_max", "ceiling"): _cap_above,
    ("rank_max", "target_rank"): _cap_to_rank,
    ("rank_max", "relative_rank"): _cap_to_share,
}


def _below(level: jax.Array) -> jax.Array:
    """A level below a value that stays, by a margin for the rounding of an equal value."""
    return level * (1 - 16 * jnp.finfo(level.dtype).eps)
