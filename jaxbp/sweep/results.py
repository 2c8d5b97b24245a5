"""Results of a sweep: a record for each setting and seed, as a table, as labelled arrays and as stacked arrays."""

import dataclasses
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from jaxbp.ops import dtypes
from jaxbp.runtime.store import CONFIG, Reader, StoreError
from jaxbp.sweep import grid

FINISHED, DIVERGED, MISSING = "finished", "diverged", "missing"
_VALUE = "values/"  # prefix of the names of results in a piece of the store


class Values(Mapping[str, np.ndarray]):
    """Results of a run by name; results in a folder are read at every access, since those of all runs may exceed the memory."""

    def __init__(self, piece: Mapping[str, np.ndarray]):
        self._piece = piece

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            return self._piece[_VALUE + name]
        except KeyError:
            raise KeyError(f"a run has {', '.join(self)}, got {name!r}") from None

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(_VALUE) for name in self._piece if name.startswith(_VALUE))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def numbers(self) -> dict[str, Any]:
        """Return the results that are a single number."""
        small = getattr(self._piece, "small", self._piece.keys())
        arrays = {name: self[name] for name in self if _VALUE + name in small}
        return {name: value.item() for name, value in arrays.items() if value.ndim == 0}


@dataclasses.dataclass(frozen=True)
class Record:
    """One run.

    Attributes:
      setting: values by name.
      seed: the seed.
      status: "finished" or "diverged".
      values: results by name.
    """

    setting: dict[str, Any]
    seed: int
    status: str
    values: Values


@dataclasses.dataclass(frozen=True)
class Results(Sequence[Record]):
    """The records of a sweep, all seeds of a setting after each other. Nested results have names like ``params/kernel``.

    Attributes:
      records: the runs that have ended.
      settings: all settings of the sweep.
      seeds: all seeds of the sweep.
    """

    records: tuple[Record, ...]
    settings: tuple[dict[str, Any], ...]
    seeds: tuple[int, ...]

    @classmethod
    def joined(cls, parts: Sequence["Results"]) -> "Results":
        """The records of sweeps of the same settings over different seeds, in the order of settings and then of the parts.

        Raises:
          ValueError: there are no parts, or settings differ.
        """
        if not parts or any(part.settings != parts[0].settings for part in parts):
            raise ValueError(f"sweeps with the same settings can be joined, one at least, got {[part.settings for part in parts]}")
        settings = parts[0].settings
        records = (record for setting in settings for part in parts for record in part.records if record.setting == setting)
        return cls(tuple(records), settings, tuple(seed for part in parts for seed in part.seeds))

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Record, ...]: ...
    def __getitem__(self, index: int | slice) -> Record | tuple[Record, ...]:
        return self.records[index]

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    @property
    def finished(self) -> "Results":
        """The runs with finite results."""
        return dataclasses.replace(self, records=tuple(r for r in self.records if r.status == FINISHED))

    @property
    def diverged(self) -> "Results":
        """The runs that diverged."""
        return dataclasses.replace(self, records=tuple(r for r in self.records if r.status == DIVERGED))

    def where(self, **setting: Any) -> "Results":
        """Select the records and settings with these values.

        Raises:
          KeyError: a name that the settings do not have.
        """
        if unknown := setting.keys() - self.settings[0].keys():
            raise KeyError(f"settings have {sorted(self.settings[0])}, got {sorted(unknown)}")
        wanted = {name: grid.plain(grid.fixed(value)) for name, value in setting.items()}

        def matches(candidate: Mapping[str, Any]) -> bool:
            return all(grid.plain(candidate[name]) == value for name, value in wanted.items())

        records = tuple(record for record in self.records if matches(record.setting))
        return Results(records, tuple(filter(matches, self.settings)), self.seeds)

    def stack(self, name: str) -> np.ndarray:
        """Stack one result of all records: shape (settings, seeds, ...).

        Raises:
          KeyError: the records have no such result.
          ValueError: its shape differs between settings, or records are missing.
        """
        if missing := len(self.settings) * len(self.seeds) - len(self.records):
            raise ValueError(
                f"every setting must have all seeds, {missing} of {missing + len(self.records)} records are missing: "
                "let the sweep end, or look at the records one by one"
            )
        if not self.records:
            raise ValueError("there are no records: no setting has these values")
        values = [record.values[name] for record in self.records]
        if len(shapes := {value.shape for value in values}) > 1:
            raise ValueError(f"{name} must have one shape, got {sorted(shapes)}: choose settings with `where`")
        return np.stack(values).reshape(len(self.settings), len(self.seeds), *values[0].shape)

    def to_dataframe(self) -> Any:
        """Return a pandas table with a row for each run: its setting, seed, status and every result that is a single number."""
        import pandas as pd  # slow to import, and used for tables alone

        return pd.DataFrame(
            [{**record.setting, "seed": record.seed, "status": record.status, **record.values.numbers()} for record in self.records]
        )

    def to_dataset(self, names: Iterable[str] | None = None) -> xr.Dataset:
        """Return the results as labelled arrays, with the variable ``status`` beside them.

        If the settings are a full product of values, every name of the grid is a dimension; otherwise the settings are one dimension
        ``setting``, and every name is a coordinate on it. Values that are not numbers, booleans or strings of one kind appear as text.
        Further dimensions are ``seed`` and, for a result with axes of its own, ``<result>_axis0``, ``<result>_axis1``, ... Runs that have
        not ended have the status "missing" and NaN in place of results; whole numbers and booleans are then floats.

        Args:
          names: results to include; default all.

        Raises:
          KeyError: the records have no such result.
          ValueError: there are no records, or the shape of a result differs between settings.
        """
        if not self.records:
            raise ValueError("there are no records: let the sweep compute some runs first")
        dims, coords, positions = _axes(self.settings)
        axes = (*dims, "seed")
        shape = (*(len(coords[dim][1]) if dim in coords else len(self.settings) for dim in dims), len(self.seeds))
        cell_of = {
            (_key(setting), seed): (*position, index)
            for setting, position in zip(self.settings, positions, strict=True)
            for index, seed in enumerate(self.seeds)
        }
        cells = [cell_of[_key(record.setting), record.seed] for record in self.records]
        status = np.full(shape, MISSING, dtype=f"<U{max(map(len, (FINISHED, DIVERGED, MISSING)))}")
        for cell, record in zip(cells, self.records, strict=True):
            status[cell] = record.status
        variables: dict[str, Any] = {"status": (axes, status)}
        for name in self.records[0].values if names is None else names:
            values = [record.values[name] for record in self.records]
            if len(shapes := {value.shape for value in values}) > 1:
                raise ValueError(
                    f"{name} must have one shape, got {sorted(shapes)}: give the names of other results, or choose settings with `where`"
                )
            array = _blank((*shape, *values[0].shape), values[0].dtype, has_gaps=len(cells) < math.prod(shape))
            for cell, value in zip(cells, values, strict=True):
                array[cell] = value
            own_axes = (f"{name}_axis{number}" for number in range(values[0].ndim))
            variables[name] = ((*axes, *own_axes), array)
        return xr.Dataset(variables, coords={**coords, "seed": list(self.seeds)})


def _axes(settings: Sequence[grid.Setting]) -> tuple[tuple[str, ...], dict[str, tuple[str, Any]], list[tuple[int, ...]]]:
    """Dimensions of the settings, their coordinates, and the position of every setting."""
    columns = grid.as_json(settings)
    texts = {name: [json.dumps(value) for value in values] for name, values in columns.items()}  # Python equates 1, 1.0 and True
    levels = {name: dict(zip(texts[name], values, strict=True)) for name, values in columns.items()}
    if math.prod(map(len, levels.values())) == len(settings):
        index = {name: {text: i for i, text in enumerate(level)} for name, level in levels.items()}
        positions = [tuple(index[name][texts[name][row]] for name in columns) for row in range(len(settings))]
        return tuple(columns), {name: (name, _coordinate(list(level.values()))) for name, level in levels.items()}, positions
    coords = {name: ("setting", _coordinate(values)) for name, values in columns.items()}
    return ("setting",), coords, [(row,) for row in range(len(settings))]


def _key(setting: grid.Setting) -> str:
    return json.dumps(grid.as_json([setting]))


def _coordinate(values: Sequence[Any]) -> np.ndarray:
    kinds = {type(value) for value in values}
    if kinds <= {int, float} or kinds in ({bool}, {str}):
        return np.array(values)
    return np.array([str(value) for value in values])


def _blank(shape: tuple[int, ...], dtype: np.dtype, *, has_gaps: bool) -> np.ndarray:
    if has_gaps and not np.issubdtype(dtype, np.inexact):
        dtype = np.dtype(np.float64)
    return np.full(shape, np.nan, dtype) if has_gaps else np.empty(shape, dtype)


def flat(tree: Any) -> dict[str, jax.Array]:
    """Flatten results to a dictionary, names of nested results joined by "/", in types that NumPy files support."""
    named: dict[str, jax.Array] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "value"
        if name in named:
            raise ValueError(f"two results are called {name!r}: rename one")
        dtypes.check_range(f"the result {name!r}", leaf)
        named[name] = _to_file_dtype(jnp.asarray(leaf))
    return named


def _to_file_dtype(value: jax.Array) -> jax.Array:
    """Convert random keys to their data, and types that NumPy lacks (bfloat16, float8, int4) to float32 and int32."""
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(value)
    if value.dtype.kind == "V":
        return value.astype(jnp.float32 if jnp.issubdtype(value.dtype, jnp.inexact) else jnp.int32)
    return value


def check_names(names: Iterable[str], setting: Mapping[str, Any]) -> None:
    """Check the names of the results of a run.

    Raises:
      TypeError: there are no results.
      ValueError: a result has the name of another column of the table.
    """
    names = set(names)
    if not names:
        raise TypeError("the function must return an array, or a dictionary or another tree of arrays, got none")
    if taken := names & {"seed", "status", *setting}:
        raise ValueError(f"a result must not be called {sorted(taken)[0]!r}, as the seed, status or a setting is: rename it")


def to_piece(status: str, values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Arrays of a run as the store keeps them."""
    return {"status": status, **{_VALUE + name: value for name, value in values.items()}}


def collect(store: Any, settings: Sequence[grid.Setting], seeds: Sequence[int]) -> Results:
    """Collect the records of ``store``."""
    records = []
    for row, setting in enumerate(settings):
        for seed in seeds:
            if (name := grid.run_name(row, seed)) in store:
                piece = store.lazy(name)
                records.append(Record(setting, seed, str(piece["status"]), Values(piece)))
    return Results(tuple(records), tuple(settings), tuple(seeds))


def to_parquet(results: Results) -> bytes:
    """Write `Results.to_dataframe` as a parquet file; columns other than numbers, booleans or strings of one kind become text."""
    frame = results.to_dataframe()
    for name in frame.columns:
        kinds = {type(value) for value in frame[name]}
        if not (kinds <= {int, float} or kinds in ({bool}, {str})):
            frame[name] = frame[name].map(str)
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()


def _from_json(value: Any) -> Any:
    """A value of a setting from config.json, which holds infinite numbers as text."""
    return float(value) if value in ("inf", "-inf", "nan") else grid.fixed(value)


def load(folder: str | Path) -> Results:
    """Load the results of a sweep's folder, also while the sweep runs.

    Raises:
      StoreError: the folder holds no sweep, or a damaged one.
    """
    path = Path(folder) / CONFIG
    try:
        settings = json.loads(path.read_text("utf-8"))["settings"]
        by_name, seeds = settings["grid"], settings["seeds"]
        rows = [
            {name: _from_json(value) for name, value in zip(by_name, values, strict=True)} for values in zip(*by_name.values(), strict=True)
        ] or [{}]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{folder} holds no sweep that can be read ({error!r}): give the folder of one") from error
    return collect(Reader(folder), rows, seeds)
