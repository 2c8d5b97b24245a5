"""Settings of a sweep, and their grouping into compiled programs.

A grid maps names to values, and every combination of values is a setting; or a grid is a list of settings. A name is *traced* if its
values are numbers with a float among them (learning rates, coefficients), or arrays: the values are inputs of one shared program. Any
other name (widths, depths, epochs, names of models) is *static*: it may determine shapes, so each value has a program of its own.

>>> from jaxbp.sweep import grid
>>> settings = grid.expand({"learning_rate": [0.1, 0.01], "width": [64, 256]})
>>> len(settings), settings[1]
(4, {'learning_rate': 0.1, 'width': 256})
>>> [(program.static, program.rows) for program in grid.programs(settings)]
[({'width': 64}, (0, 2)), ({'width': 256}, (1, 3))]
"""

import itertools
import json
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxbp.ops import dtypes

Setting = dict[str, Any]

_MAX_SETTINGS = 10**6


class Program(NamedTuple):
    """Settings that share a compiled program.

    Attributes:
      static: static values by name.
      rows: indices of the settings.
      traced: traced values by name, each (rows, ...).
    """

    static: Setting
    rows: tuple[int, ...]
    traced: dict[str, np.ndarray]


def expand(grid: Mapping[str, Iterable] | Sequence[Mapping[str, Any]]) -> list[Setting]:
    """List the settings of ``grid``, the last name varying fastest; NumPy scalars become Python numbers, lists become tuples.

    Raises:
      ValueError: no values for a name, settings with different names, or the same setting twice.
    """
    if isinstance(grid, Mapping):
        columns = {}
        for name, values in grid.items():
            if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
                raise ValueError(f"{name} must have a list of values, one at least, got {values!r}")
            if not (column := list(itertools.islice(_elements(values), _MAX_SETTINGS + 1))):
                raise ValueError(f"{name} must have a list of values, one at least, got none")
            columns[name] = column
        if math.prod(map(len, columns.values())) > _MAX_SETTINGS:
            raise ValueError(f"the grid has more than {_MAX_SETTINGS} settings, got {' x '.join(str(len(c)) for c in columns.values())}")
        grid = [dict(zip(columns, values, strict=True)) for values in itertools.product(*columns.values())]
    if not isinstance(grid, Iterable) or isinstance(grid, str | bytes):
        raise ValueError(f"a grid maps names to lists of values, or is a list of settings, got {grid!r}")
    listed = list(itertools.islice(grid, _MAX_SETTINGS + 1))
    if odd := [setting for setting in listed if not isinstance(setting, Mapping)]:
        raise ValueError(f"a setting maps names to values, got {odd[0]!r}")
    if len(listed) > _MAX_SETTINGS:
        raise ValueError(f"the grid has more than {_MAX_SETTINGS} settings")
    settings = [{name: fixed(value) for name, value in setting.items()} for setting in listed]
    if not settings:
        raise ValueError("the grid must have one setting at least, got none; {} is a grid of one without names")
    if other := next((s for s in settings if s.keys() != settings[0].keys()), None):
        raise ValueError(f"settings must have the same names, got {sorted(settings[0])} and {sorted(other)}")
    if taken := {"seed", "status"} & settings[0].keys():
        raise ValueError(f"a setting must not be called {sorted(taken)[0]!r}: results have a column of that name")
    seen: set[str] = set()
    for setting in settings:
        if (text := _as_text(setting)) in seen:
            raise ValueError(f"settings must differ, got twice: {label(setting)}")
        seen.add(text)
    return settings


def _elements(values: Iterable) -> Iterable:
    """The values of a name; elements of an array stay arrays, which marks them as traced."""
    return (np.asarray(value) for value in np.asarray(values)) if _is_array(values) else values


def label(setting: Setting) -> str:
    """Text of a setting."""
    return ", ".join(f"{name}={plain(value)}" for name, value in setting.items()) or "default"


def programs(settings: Sequence[Setting], static: Iterable[str] = ()) -> list[Program]:
    """Group ``settings`` by their static values; ``static``: names that are static even if their values are floats.

    Raises:
      ValueError: an unknown name, a static value that is an array, or traced ones of different shapes.
    """
    names = list(settings[0])
    try:
        static = {static} if isinstance(static, str) else set(static)
    except TypeError as error:
        raise ValueError(f"static must name some of {names}, got {static!r}") from error
    if unknown := static - set(names):
        raise ValueError(f"static must name some of {names}, got {sorted(unknown)}")
    traced = [name for name in names if name not in static and _is_traced([s[name] for s in settings])]
    if wrong := next((name for name in static if any(_is_array(s[name]) for s in settings)), None):
        raise ValueError(f"{wrong} comes as an array, and arrays are traced: leave it out of static, or give a list")
    groups: dict[str, list[int]] = {}
    for row, setting in enumerate(settings):
        groups.setdefault(_as_text({k: v for k, v in setting.items() if k not in traced}), []).append(row)
    return [_program([settings[row] for row in rows], rows, traced) for rows in groups.values()]


def as_json(settings: Sequence[Setting]) -> dict[str, list]:
    """Return the values of each name over the settings, as JSON."""
    return {name: [plain(setting[name]) for setting in settings] for name in settings[0]}


def run_name(row: int, seed: int) -> str:
    """Name of a run in the store: the index of its setting, and its seed."""
    return f"setting{row:04d}-seed{seed}"


def fixed(value: Any) -> Any:
    """Convert a value to its form in settings: lists become tuples, NumPy scalars Python numbers; arrays stay."""
    if isinstance(value, np.generic):
        return value.item()
    return tuple(map(fixed, value)) if isinstance(value, list | tuple) else value


def plain(value: Any) -> Any:
    """Convert arrays to nested tuples."""
    return fixed(np.asarray(value).tolist()) if _is_array(value) else value


def _program(settings: Sequence[Setting], rows: Sequence[int], traced: Sequence[str]) -> Program:
    values = {}
    for name in traced:
        arrays = [np.asarray(setting[name]) for setting in settings]
        for array in arrays:
            if array.dtype.kind not in "biufcV":
                raise ValueError(
                    f"values of {name} must be numbers, got {array.tolist()!r}: a larger integer than int64 is none to a device"
                )
            dtypes.check_range(f"the setting {name}", array)
        if len({array.shape for array in arrays}) > 1:
            raise ValueError(f"values of {name} must have one shape, got {sorted({a.shape for a in arrays})}")
        values[name] = np.stack(arrays)
    return Program({k: v for k, v in settings[0].items() if k not in traced}, tuple(rows), values)


def _is_traced(values: Sequence[Any]) -> bool:
    if any(_is_array(value) for value in values):
        return True
    are_numbers = all(isinstance(value, numbers.Real) and not isinstance(value, bool) for value in values)
    return are_numbers and any(isinstance(value, float) for value in values)


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _as_text(setting: Setting) -> str:
    for name, value in setting.items():
        try:
            json.dumps({name: plain(value)})
            hash(plain(value))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"settings must be numbers, strings, booleans, None, arrays, lists of them, got {value!r} for {name!r}: give a name or a "
                "number, and let the function look up what belongs to it"
            ) from error
    return json.dumps({name: plain(value) for name, value in setting.items()}, sort_keys=True)
