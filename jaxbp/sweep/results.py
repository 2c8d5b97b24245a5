"""What a sweep found: one record for each setting and seed, as a table and as stacked arrays."""

import dataclasses
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.runtime.store import CONFIG, Reader, StoreError
from jaxbp.sweep import grid

FINISHED, DIVERGED = "finished", "diverged"
_VALUE = "values/"  # before the names of results in a piece of the store


class Values(Mapping[str, np.ndarray]):
    """Results of a run by name; in a folder they are read when they are asked for, as those of all runs may be large."""

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
        """The results that are one number."""
        small = getattr(self._piece, "small", self._piece.keys())
        arrays = {name: self[name] for name in self if _VALUE + name in small}
        return {name: value.item() for name, value in arrays.items() if value.ndim == 0}


@dataclasses.dataclass(frozen=True)
class Record:
    """One run: its setting and seed, "finished" or "diverged", and its results by name."""

    setting: dict[str, Any]
    seed: int
    status: str
    values: Values


@dataclasses.dataclass(frozen=True)
class Results(Sequence[Record]):
    """The records of a sweep, all seeds of a setting after each other; those that are not finished yet are missing.

    ``settings`` and ``seeds``: all of the sweep. Nested results have names like ``params/kernel``.
    """

    records: tuple[Record, ...]
    settings: tuple[dict[str, Any], ...]
    seeds: tuple[int, ...]

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
        """The runs that ended with finite results."""
        return dataclasses.replace(self, records=tuple(r for r in self.records if r.status == FINISHED))

    @property
    def diverged(self) -> "Results":
        """The runs that did not."""
        return dataclasses.replace(self, records=tuple(r for r in self.records if r.status == DIVERGED))

    def where(self, **setting: Any) -> "Results":
        """The records, and settings, that have these values.

        Raises:
          KeyError: a name that the settings do not have.
        """
        if unknown := setting.keys() - self.settings[0].keys():
            raise KeyError(f"settings have {sorted(self.settings[0])}, got {sorted(unknown)}")
        wanted = {name: grid.plain(grid.fixed(value)) for name, value in setting.items()}

        def fits(other: Mapping[str, Any]) -> bool:
            return all(grid.plain(other[name]) == value for name, value in wanted.items())

        records = tuple(record for record in self.records if fits(record.setting))
        return Results(records, tuple(filter(fits, self.settings)), self.seeds)

    def stack(self, name: str) -> np.ndarray:
        """One result of all records, (settings, seeds, ...).

        Raises:
          KeyError: no such result.
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
        """A pandas table: a row for each run, with its setting, seed, status and every result that is one number."""
        import pandas as pd

        return pd.DataFrame(
            [{**record.setting, "seed": record.seed, "status": record.status, **record.values.numbers()} for record in self.records]
        )


def flat(tree: Any) -> dict[str, jax.Array]:
    """Results by name, nested ones joined by "/", in types that files hold."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "value"
        if name in found:
            raise ValueError(f"two results are called {name!r}: rename one")
        found[name] = _in_type_of_files(jnp.asarray(leaf))
    return found


def _in_type_of_files(value: jax.Array) -> jax.Array:
    """Random keys as their data, and numbers that NumPy has not (bfloat16, float8, int4) as longer ones."""
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(value)
    if value.dtype.kind == "V":
        return value.astype(jnp.float32 if jnp.issubdtype(value.dtype, jnp.inexact) else jnp.int32)
    return value


def check_names(names: Iterable[str], setting: Mapping[str, Any]) -> None:
    """Raise where the results of a run are none, or are called what a column of the table is called already."""
    names = set(names)
    if not names:
        raise TypeError("the function must return an array, or a dictionary or another tree of arrays, got none")
    if taken := names & {"seed", "status", *setting}:
        raise ValueError(f"a result must not be called {sorted(taken)[0]!r}, as the seed, status or a setting is: rename it")


def piece_name(row: int, seed: int) -> str:
    """The name of a run in the store: the number of its setting, and its seed."""
    return f"setting{row:04d}-seed{seed}"


def to_piece(status: str, values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What the store keeps of a run."""
    return {"status": status, **{_VALUE + name: value for name, value in values.items()}}


def collect(store: Any, settings: Sequence[grid.Setting], seeds: Sequence[int]) -> Results:
    """The records that ``store`` holds."""
    records = []
    for row, setting in enumerate(settings):
        for seed in seeds:
            if (name := piece_name(row, seed)) in store:
                piece = store.lazy(name)
                records.append(Record(setting, seed, str(piece["status"]), Values(piece)))
    return Results(tuple(records), tuple(settings), tuple(seeds))


def to_parquet(found: Results) -> bytes:
    """`Results.to_dataframe` as a file; a column that is not of numbers of one kind, or of words, becomes text."""
    frame = found.to_dataframe()
    for name in frame.columns:
        kinds = {type(value) for value in frame[name]}
        if not (kinds <= {int, float} or kinds in ({bool}, {str})):
            frame[name] = frame[name].map(str)
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()


def load(folder: str | Path) -> Results:
    """The results that a sweep's folder holds so far, whoever is writing to it.

    Raises:
      StoreError: the folder holds no sweep, or is damaged.
    """
    path = Path(folder) / CONFIG
    try:
        settings = json.loads(path.read_text("utf-8"))["settings"]
        by_name, seeds = settings["grid"], settings["seeds"]
        rows = [
            {name: grid.fixed(value) for name, value in zip(by_name, values, strict=True)} for values in zip(*by_name.values(), strict=True)
        ] or [{}]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{folder} holds no sweep that can be read ({error!r}): give the folder of one") from error
    return collect(Reader(folder), rows, seeds)
