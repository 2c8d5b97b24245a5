"""The runs of a sweep by program, and the functions that compute one of them.

A run is a dictionary of its "seed" and of the "traced" values of its setting; static values are closed over.
"""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.jaxprs import op_count
from jaxbp.sweep import grid, plans, results, segments


@dataclass(frozen=True)
class Task:
    """The runs of one program: what to compute, the settings, and seeds, with names of their pieces in the store."""

    fn: Callable | segments.Segments
    program: grid.Program
    names: tuple[str, ...]
    runs: dict[str, Any]

    @property
    def label(self) -> str:
        """The program in words."""
        return grid.label(self.program.static) if self.program.static else "all settings"

    @functools.cached_property
    def functions(self) -> Any:
        """``(run, *shared) -> results by name`` of a run that is one program, or `segments.Phases`; the same objects for equal tasks."""
        static = self.program.static
        # 1, 1.0 and True are one key, but not one text; and JAX itself does not tell programs by the kind of random bits.
        return _functions(self.fn, json.dumps(static), tuple(static.items()), jax.config.jax_default_prng_impl)

    @property
    def in_segments(self) -> bool:
        """Whether a run comes in segments."""
        return isinstance(self.fn, segments.Segments)

    def products(self, shared: tuple) -> op_count.OpCount:
        """What a run, or a segment of one, multiplies; raises what is wrong with the function, telling the setting."""
        one = jax.eval_shape(lambda runs: jax.tree.map(lambda a: a[0], runs), self.runs)
        setting = self.program.static | self.program.traced
        try:
            if not self.in_segments:
                results.check_names(jax.eval_shape(plans.jitted(self.functions), one, *shared), setting)
                return op_count.count(plans.jitted(self.functions), one, *shared)
            init, segment, finish = self.functions
            carry = jax.eval_shape(init, one, *shared)
            results.check_names(jax.eval_shape(finish, carry, *shared), setting)
            return op_count.count(plans.jitted(segment), carry, jnp.int32(0), *shared)
        except Exception as error:
            error.add_note(f"while tracing the function of the sweep with {self.label}")
            raise


def of_programs(fn: Callable | segments.Segments, programs: Sequence[grid.Program], seeds: Sequence[int]) -> list[Task]:
    """The runs of every program, the seeds of a setting after each other."""
    found = []
    for program in programs:
        traced = {
            name: np.repeat(values.astype(jax.dtypes.canonicalize_dtype(values.dtype)), len(seeds), axis=0)
            for name, values in program.traced.items()
        }
        runs = {"seed": np.tile(np.array(seeds, np.uint32), len(program.rows)), "traced": traced}
        names = tuple(results.piece_name(row, seed) for row in program.rows for seed in seeds)
        found.append(Task(fn, program, names, runs))
    return found


@functools.lru_cache(32)  # few: each keeps the function, and what that closes over
def _functions(fn: Any, _: str, static: tuple, __: str) -> Any:
    def bind(fn: Callable) -> Callable:
        return lambda run, *arguments: fn(*arguments, **dict(static), **run["traced"])

    if isinstance(fn, segments.Segments):
        return segments.phases(fn, bind)
    return lambda run, *shared: results.flat(bind(fn)(run, jax.random.key(run["seed"]), *shared))
