"""Arms times seeds of a pure function inside a stage, as labelled arrays.

>>> import jax
>>> from jaxbp import lab
>>> def measure(key, *, scale):
...     curve = scale * jax.random.normal(key, (3,))
...     return {"curve": lab.along("epoch", curve), "last": curve[-1]}
>>> results = lab.sweep(measure, arms={"small": {"scale": 1.0}, "large": {"scale": 100.0}}, seeds=range(4))
>>> dict(results.sizes)
{'arm': 2, 'seed': 4, 'epoch': 3}
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from jaxbp import sweep as sweeps
from jaxbp.ops import platform

_KEPT = 32  # functions whose programs are kept


@jax.tree_util.register_pytree_node_class
class NamedArray:
    """An array with names for its axes, which jit and vmap carry along; made by `along`."""

    def __init__(self, axes: tuple[str, ...], values: Any):
        self.axes, self.values = axes, values

    def tree_flatten(self) -> tuple[tuple[Any], tuple[str, ...]]:
        """The values, and the names as static data."""
        return (self.values,), self.axes

    @classmethod
    def tree_unflatten(cls, axes: tuple[str, ...], children: tuple[Any]) -> "NamedArray":
        """The inverse of `tree_flatten`."""
        return cls(axes, children[0])


def along(axes: str | Sequence[str], values: Any) -> NamedArray:
    """``values`` with names for their axes, one name or a sequence."""
    return NamedArray((axes,) if isinstance(axes, str) else tuple(axes), values)


def device() -> Any:
    """The device of the job that is being computed."""
    return platform.default_device()


def sweep(
    fn: Callable[..., Mapping[str, Any]],
    *,
    seeds: Iterable[int],
    arms: Mapping[Any, Mapping[str, Any]] | None = None,
    keys: jax.Array | None = None,
    per_seed: Mapping[str, Any] | None = None,
    shared: Sequence[Any] = (),
    axis: str = "arm",
    plan: str = "auto",
) -> Any:
    """Compute ``fn(key, *shared, **per_seed, **arm)`` for every arm and seed as one compiled program; all arms of a seed are paired.

    Args:
      fn: a pure function that returns a mapping of arrays by name; the name of a further axis is given with `along`. The function may
        return a pair of such a mapping and a pytree, for instance the trained parameters.
      seeds: S seeds.
      arms: for each name of an arm the values of the arguments by which arms differ, such as ``{"slow": {"learning_rate": 0.01}, ...}``;
        the values are traced, so all arms share a program. Default: no arms, and no axis for them.
      keys: a random key for each seed, (S,); default ``jax.random.key(seed)``.
      per_seed: arguments with a leading axis S, such as the seed's own data.
      shared: arguments that all runs share.
      axis: the name of the arms' axis.
      plan: of `jaxbp.sweep.evaluate`, on the device of the job.

    Returns:
      A Dataset with the axes (``axis``, seed, ...), or (seed, ...) without arms; or a pair of the Dataset and the pytree, whose leaves
      have the same leading axes
      (arms, seeds).
    """
    seeds = list(seeds)
    keys = sweeps.keys(seeds) if keys is None else keys
    names_of_arms = list(arms or {"": {}})
    arguments = list((arms or {"": {}}).values())
    pairs = list(itertools.product(range(len(arguments)), range(len(seeds))))
    of_arm, of_seed = (np.array(numbers) for numbers in zip(*pairs, strict=True))
    names = list(arguments[0])
    if odd := [arm for arm, values in (arms or {}).items() if set(values) != set(names)]:
        raise ValueError(f"all arms need the arguments {names}, and {odd[0]!r} has {sorted((arms or {})[odd[0]])}")
    runs = {
        "key": keys[of_seed],
        "arm": {name: jnp.asarray([arm[name] for arm in arguments])[of_arm] for name in names},
        "seed": jax.tree.map(lambda values: jnp.asarray(values)[of_seed], dict(per_seed or {})),
    }
    result = sweeps.evaluate(program(fn), runs, *shared, plan=plan, devices=[device()])
    shape = (len(arguments), len(seeds)) if arms else (len(seeds),)
    result = jax.tree.map(lambda values: np.asarray(values).reshape(*shape, *values.shape[1:]), result)
    measured, end = result if isinstance(result, tuple) else (result, None)
    leading = {axis: names_of_arms, "seed": seeds} if arms else {"seed": seeds}
    dataset = to_dataset(measured, leading=tuple(leading)).assign_coords(leading)
    return dataset if end is None else (dataset, end)


def program(fn: Callable) -> Callable:
    """``(run, *shared) -> results`` as `jaxbp.sweep.evaluate` takes it; one object for equal functions, so that it is compiled once."""
    if isinstance(fn, functools.partial):
        return _program(fn.func, fn.args, tuple(sorted(fn.keywords.items())))
    return _program(fn, (), ())


@functools.lru_cache(_KEPT)
def _program(fn: Callable, args: tuple, keywords: tuple[tuple[str, Any], ...]) -> Callable:
    def run(values: Mapping[str, Any], *shared: Any) -> Mapping[str, Any]:
        return fn(*args, values["key"], *shared, **values["seed"], **values["arm"], **dict(keywords))

    return run


def to_dataset(results: xr.Dataset | Mapping[str, Any], leading: Sequence[str] = ()) -> xr.Dataset:
    """Arrays by name as a Dataset; axes without a name are called after their array."""
    if isinstance(results, xr.Dataset):
        return results
    variables: dict[Any, Any] = {}
    for name, value in results.items():
        if isinstance(value, xr.DataArray):
            variables[name] = value
            continue
        axes, array = (value.axes, np.asarray(value.values)) if isinstance(value, NamedArray) else ((), np.asarray(value))
        axes = (*leading, *axes)
        variables[name] = ((*axes, *(f"{name}_{i}" for i in range(len(axes), array.ndim))), array)
    return xr.Dataset(variables)
