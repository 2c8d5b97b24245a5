"""Long runs in segments: between segments a run can be saved, stopped, monitored, and retired when it is not finite.

>>> import jax, jax.numpy as jnp
>>> from jaxbp import sweep
>>> def init_fn(key, *, rate):
...     return jax.random.normal(key)
>>> def segment_fn(state, index, *, rate):
...     state = (1 - rate) * state
...     return state, {"size": jnp.abs(state)}
>>> walk = sweep.Segments(init_fn, segment_fn, num_segments=3)
>>> sweep.run(walk, {"rate": [0.5, 0.25]}, seeds=2, quiet=True).stack("size").shape
(2, 2, 3)
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxbp.ops.dtypes import in_dtype_of
from jaxbp.sweep import results


@dataclass(frozen=True)
class Segments:
    """A run in segments; all functions are pure and take the setting by keywords.

    Attributes:
      init_fn: ``(key, *shared, **setting) -> state``, any pytree of arrays, including random keys.
      segment_fn: ``(state, index, *shared, **setting) -> (state, measures)``: a state of the same shapes, and a dictionary of arrays. The
        results of a run are the measures, stacked along a leading axis of segments. A measure that is not finite retires the run.
      num_segments: number of segments.
      finish_fn: ``(state, *shared, **setting) -> results``: further results from the last state; None for none.

    Raises:
      ValueError: ``num_segments`` is less than 1.
    """

    init_fn: Callable[..., Any]
    segment_fn: Callable[..., tuple[Any, Mapping[str, jax.Array]]]
    num_segments: int
    finish_fn: Callable[..., Any] | None = None

    def __post_init__(self):
        if self.num_segments < 1:
            raise ValueError(f"num_segments must be at least 1, got {self.num_segments}")


class Carry(NamedTuple):
    """State of a run between segments.

    Attributes:
      run: seed and traced values of the run.
      state: state of the functions of `Segments`.
      history: measures by name, (segments, ...); NaN or 0 for segments to come.
      alive: (), True while all measures are finite.
      num_done: (), number of computed segments.
    """

    run: Any
    state: Any
    history: dict[str, jax.Array]
    alive: jax.Array
    num_done: jax.Array


class Phases(NamedTuple):
    """Programs of one run.

    Attributes:
      init: ``(run, *shared) -> carry``.
      segment: ``(carry, index, *shared) -> carry``.
      finish: ``(carry, *shared) -> results by name``.
    """

    init: Callable[..., Carry]
    segment: Callable[..., Carry]
    finish: Callable[..., dict[str, jax.Array]]


def phases(parts: Segments, bind: Callable[[Callable], Callable]) -> Phases:
    """Build the programs of a run; ``bind(fn)(run, *arguments)`` calls a function with the setting of the run.

    Raises (when traced):
      TypeError: a segment changes the shapes of the state, or its measures are not a dictionary of arrays.
    """
    segment_fn = bind(parts.segment_fn)

    def init(run: Any, *shared: Any) -> Carry:
        state = jax.tree.map(jnp.asarray, bind(parts.init_fn)(run, jax.random.key(run["seed"]), *shared))
        after, measures = jax.eval_shape(functools.partial(segment_fn, run), state, jnp.int32(0), *shared)
        _check(state, after, measures)
        shapes = jax.eval_shape(results.flat, measures)
        history = {name: _blank((parts.num_segments, *m.shape), m.dtype) for name, m in shapes.items()}
        return Carry(run, state, history, jnp.bool_(True), jnp.int32(0))

    def segment(carry: Carry, index: jax.Array, *shared: Any) -> Carry:
        def advance() -> Carry:
            state, measures = segment_fn(carry.run, carry.state, index, *shared)
            measures = results.flat(measures)
            history = {name: carry.history[name].at[index].set(value) for name, value in measures.items()}
            state = jax.tree.map(in_dtype_of, carry.state, state)
            return Carry(carry.run, state, history, finite(measures), carry.num_done + 1)

        return jax.lax.cond(carry.alive, advance, lambda: carry)

    def finish(carry: Carry, *shared: Any) -> dict[str, jax.Array]:
        ends = results.flat(bind(parts.finish_fn)(carry.run, carry.state, *shared)) if parts.finish_fn else {}
        measured = {**carry.history, "segments": carry.num_done}
        if both := measured.keys() & ends.keys():
            raise ValueError(f"results of finish_fn must not have the names of measures or 'segments', got {sorted(both)}")
        return measured | ends

    return Phases(init, segment, finish)


def finite(tree: Any) -> jax.Array:
    """True if every number of the tree is finite."""
    numbers = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)]
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in numbers])) if numbers else jnp.bool_(True)


def _blank(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jnp.full(shape, jnp.nan if jnp.issubdtype(dtype, jnp.inexact) else 0, dtype)


def _check(before: Any, after: Any, measures: Any) -> None:
    if not isinstance(measures, Mapping):
        raise TypeError(f"segment_fn must return (state, measures), measures a dictionary, got {measures}")
    structures = jax.tree.structure(before), jax.tree.structure(after)
    if structures[0] != structures[1]:
        raise TypeError(f"segment_fn must return a state like the one it got, {structures[0]}, got {structures[1]}")
    pairs = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
    for (path, old), new in pairs:
        kinds = [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in (old, new)]
        if old.shape != new.shape or kinds[0] != kinds[1]:
            raise TypeError(
                f"segment_fn must return a state of the shapes and kinds it got: {jax.tree_util.keystr(path)} was "
                f"{old.dtype}{list(old.shape)}, became {new.dtype}{list(new.shape)}"
            )
