"""The specification of a sweep, computed once from the arguments of `jaxbp.sweep.run` and handed to everything else.

>>> from jaxbp.sweep.spec import SweepSpec
>>> def train(key, *, learning_rate, width):
...     return learning_rate * width
>>> spec = SweepSpec.create(train, {"learning_rate": [0.1, 0.01], "width": [64]}, seeds=2)
>>> spec.labels, spec.seeds, len(spec.programs)
(('learning_rate=0.1', 'learning_rate=0.01'), (0, 1), 1)
>>> spec.runs["setting0001-seed1"].label
'learning_rate=0.01; seed 1'
"""

import functools
import hashlib
import itertools
import json
import operator
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.runtime.fingerprint import fingerprint, module_name
from jaxbp.sweep import grid as grids
from jaxbp.sweep.segments import Segments

_MAX_SEEDS = 10**6
FUNCTIONS = ("fn", "init_fn", "segment_fn", "finish_fn")  # of a sweep, or of one in segments
_INFRASTRUCTURE = ("jaxbp.runtime", "jaxbp.sweep", "jaxbp.report", "jaxbp.lab")  # results do not depend on them


class RunLabels(NamedTuple):
    """Text for the display.

    Attributes:
      label: setting and seed of the run.
      setting: setting of the run.
    """

    label: str
    setting: str


@dataclass(frozen=True)
class SweepSpec:
    """Settings times seeds of one function.

    Attributes:
      fn: function of a run.
      settings: the settings, in the order of the grid.
      seeds: the seeds; every setting has all of them.
      programs: groups of settings that share a compiled program.
      columns: for each name of the grid its values over the settings, as JSON.
      labels: text of each setting, made of the names whose values differ between settings.
      identity: everything that a folder of this sweep must agree with, as JSON.
    """

    fn: Callable[..., Any] | Segments
    settings: tuple[grids.Setting, ...]
    seeds: tuple[int, ...]
    programs: tuple[grids.Program, ...]
    columns: dict[str, list]
    labels: tuple[str, ...]
    identity: dict[str, Any]

    @classmethod
    def create(
        cls,
        fn: Callable[..., Any] | Segments,
        grid: Mapping[str, Iterable] | Sequence[Mapping[str, Any]] | None = None,
        *,
        seeds: int | Iterable[int],
        shared: Sequence[Any] = (),
        static: Iterable[str] = (),
        identity: Mapping[str, Any] = types.MappingProxyType({}),
    ) -> "SweepSpec":
        """Compute the specification; the arguments are those of `jaxbp.sweep.run`.

        Raises:
          ValueError: a grid or seeds that cannot be a sweep.
        """
        settings = tuple(grids.expand({} if grid is None else grid))
        seeds = _check_seeds(seeds)
        columns = grids.as_json(settings)
        varying = [name for name, values in columns.items() if any(value != values[0] for value in values)]
        return cls(
            fn=fn,
            settings=settings,
            seeds=seeds,
            programs=tuple(grids.programs(settings, static)),
            columns=columns,
            labels=tuple(grids.label({name: setting[name] for name in varying}) for setting in settings),
            identity=_identity(fn, columns, seeds, shared, identity),
        )

    @functools.cached_property
    def runs(self) -> dict[str, RunLabels]:
        """The runs by their names in the store, all seeds of a setting after each other."""
        return {
            grids.run_name(row, seed): RunLabels(f"{label}; seed {seed}", label)
            for row, label in enumerate(self.labels)
            for seed in self.seeds
        }


def _check_seeds(seeds: int | Iterable[int]) -> tuple[int, ...]:
    if isinstance(seeds, int | np.integer) and not isinstance(seeds, bool):
        if not 1 <= seeds <= _MAX_SEEDS:
            raise ValueError(f"seeds must be a number from 1 to {_MAX_SEEDS}, or a list of seeds, got {seeds}")
        return tuple(range(seeds))
    try:
        listed = tuple(map(operator.index, itertools.islice(seeds, _MAX_SEEDS + 1)))  # type: ignore[arg-type]
    except TypeError as error:
        raise ValueError(f"seeds must be a number of them, or a list of whole numbers, got {seeds!r}") from error
    if len(listed) > _MAX_SEEDS:
        raise ValueError(f"seeds must be {_MAX_SEEDS} at most, got more")
    if not listed or len(set(listed)) < len(listed) or min(listed) < 0 or max(listed) >= 2**32:
        raise ValueError(f"seeds must be different numbers from 0 to 2**32 - 1, one at least, got {seeds!r}")
    return listed


def _identity(fn: Any, columns: Mapping[str, list], seeds: Sequence[int], shared: Sequence[Any], more: Mapping[str, Any]) -> dict[str, Any]:
    named = fn.segment_fn if isinstance(fn, Segments) else fn
    while isinstance(named, functools.partial):
        named = named.func
    return {
        "function": f"{module_name(named)}.{named.__qualname__}" if hasattr(named, "__qualname__") else type(named).__qualname__,
        "segments": fn.num_segments if isinstance(fn, Segments) else None,
        "grid": dict(columns),
        "seeds": list(seeds),
        "shared": [_digest(leaf) for leaf in jax.tree.leaves(tuple(shared))],
        "float64": bool(jax.config.jax_enable_x64),
        "random_bits": str(jax.config.jax_default_prng_impl),
        "matmul_precision": str(jax.config.jax_default_matmul_precision),
        "identity": _checked_identity(more),
    }


def _checked_identity(identity: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in identity.items():
        try:
            json.dumps({name: value}, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"identity[{name!r}] must be what JSON can write, got {value!r} ({error}): give a name or version") from error
    return dict(identity)


def code_of(fn: Callable[..., Any] | Segments) -> dict[str, str]:
    """Each function, class, value and package that a sweep's function depends on, with a digest or as it is; `fingerprint`'s parts."""
    if isinstance(fn, Segments):
        fns = {name: part for name in FUNCTIONS[1:] if (part := getattr(fn, name)) is not None}
    else:
        fns = {FUNCTIONS[0]: fn}
    prints = {name: fingerprint(part, _INFRASTRUCTURE) for name, part in fns.items()}
    parts = {name: text for each in prints.values() for name, text in each.parts.items()}
    return parts | {name: f"#{each.digest}" for name, each in prints.items()}


def _digest(leaf: Any) -> str:
    """Type, shape and a hash of the values."""
    if jnp.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.ascontiguousarray(leaf)
    code = hashlib.blake2b(array.reshape(-1).view(np.uint8).data, digest_size=8).hexdigest()
    return f"{array.dtype}{list(array.shape)} {code}"
