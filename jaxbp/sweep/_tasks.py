"""The runs of a sweep grouped by compiled program, and the functions that compute one run.

A run is a dictionary of its "seed" and of the "traced" values of its setting; static values are closed over.
"""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.jaxprs import op_count
from jaxbp.sweep import grid, plans, results, segments
from jaxbp.sweep.spec import SweepSpec


@dataclass(frozen=True)
class Task:
    """The runs of one program.

    Attributes:
      fn: function of a run.
      program: static and traced values of the settings.
      names: names of the runs in the store.
      runs: the runs, stacked along a leading axis.
    """

    fn: Callable | segments.Segments
    program: grid.Program
    names: tuple[str, ...]
    runs: dict[str, Any]

    @property
    def label(self) -> str:
        """Text of the static values."""
        return grid.label(self.program.static) if self.program.static else "all settings"

    @functools.cached_property
    def functions(self) -> Any:
        """``(run, *shared) -> results by name``, or `segments.Phases`; equal tasks share the same objects."""
        static = self.program.static
        # 1, 1.0 and True are equal as keys, but not as text; and JAX's own caches ignore the kind of random bits.
        return _functions(self.fn, json.dumps(static), tuple(static.items()), jax.config.jax_default_prng_impl)

    @property
    def in_segments(self) -> bool:
        """True if the runs come in segments."""
        return isinstance(self.fn, segments.Segments)

    def cost_per_run(self, shared: tuple) -> op_count.OpCount:
        """Count the multiplications of a run, or of one segment of a run.

        Raises:
          Exception: any error of tracing ``fn``, with a note that names the setting.
        """
        run = jax.eval_shape(lambda runs: jax.tree.map(lambda a: a[0], runs), self.runs)
        setting = self.program.static | self.program.traced
        try:
            if not self.in_segments:
                results.check_names(jax.eval_shape(plans.jitted(self.functions), run, *shared), setting)
                return op_count.count(plans.jitted(self.functions), run, *shared)
            init, segment, finish = self.functions
            carry = jax.eval_shape(init, run, *shared)
            results.check_names(jax.eval_shape(finish, carry, *shared), setting)
            return op_count.count(plans.jitted(segment), carry, jnp.int32(0), *shared)
        except Exception as error:
            error.add_note(f"while tracing the function of the sweep with {self.label}")
            if isinstance(error, jax.errors.ConcretizationTypeError):
                error.add_note(
                    f"the values of {', '.join(self.program.traced) or 'the seed'} are inputs of one program, which cannot branch on them: "
                    "name those that decide what is computed in static=, such as static=['rate'], or use jnp.where"
                )
            raise


def tasks_of(spec: SweepSpec) -> list[Task]:
    """Build the task of every program, with all seeds of a setting after each other."""
    tasks = []
    for program in spec.programs:
        traced = {
            name: np.repeat(values.astype(jax.dtypes.canonicalize_dtype(values.dtype)), len(spec.seeds), axis=0)
            for name, values in program.traced.items()
        }
        runs = {"seed": np.tile(np.array(spec.seeds, np.uint32), len(program.rows)), "traced": traced}
        names = tuple(grid.run_name(row, seed) for row in program.rows for seed in spec.seeds)
        tasks.append(Task(spec.fn, program, names, runs))
    return tasks


@functools.lru_cache(32)  # few entries: each keeps its function and the closure of the function
def _functions(fn: Any, _: str, static: tuple, __: str) -> Any:
    def bind(fn: Callable) -> Callable:
        return lambda run, *arguments: fn(*arguments, **dict(static), **run["traced"])

    if isinstance(fn, segments.Segments):
        return segments.phases(fn, bind)
    return lambda run, *shared: results.flat(bind(fn)(run, jax.random.key(run["seed"]), *shared))
