"""What a sweep found: one record for each setting and seed, as a table and as stacked arrays."""

import dataclasses
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.store import CONFIG, Reader, StoreError
from jaxbp.sweep import grid

FINISHED, DIVERGED = "finished", "diverged"
_VALUE = "values/"  # before the names of results in a piece of the store


class Values(Mapping):
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
class Results(Sequence):
    """The records of a sweep, all seeds of a setting after each other; those of other processes may be missing.

    Nested results have names like ``params/kernel``.
    """

    records: tuple[Record, ...]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    @property
    def settings(self) -> list[dict[str, Any]]:
        """The settings, in the order of the grid."""
        return list({grid.label(record.setting): record.setting for record in self.records}.values())

    @property
    def diverged(self) -> list[Record]:
        """The runs that ended without a finite result."""
        return [record for record in self.records if record.status == DIVERGED]

    def where(self, **setting: Any) -> "Results":
        """The records of which the setting has these values.

        Raises:
          KeyError: a name that the settings do not have.
        """
        if self.records and (unknown := setting.keys() - self.records[0].setting.keys()):
            raise KeyError(f"settings have {sorted(self.records[0].setting)}, got {sorted(unknown)}")
        return Results(tuple(r for r in self.records if all(r.setting[k] == v for k, v in setting.items())))

    def stack(self, name: str) -> np.ndarray:
        """One result of all records, (settings, seeds, ...).

        Raises:
          KeyError: no such result.
          ValueError: its shape differs between settings, or records are missing.
        """
        values = [record.values[name] for record in self.records]
        if len(shapes := {value.shape for value in values}) > 1:
            raise ValueError(f"{name} must have one shape, got {sorted(shapes)}: choose settings with `where`")
        num_settings = len(self.settings)
        if not num_settings or len(values) % num_settings:
            raise ValueError(f"every setting must have all seeds, got {len(values)} records of {num_settings} settings")
        return np.stack(values).reshape(num_settings, -1, *values[0].shape)

    def frame(self) -> Any:
        """A pandas table: a row for each run, with its setting, seed, status and every result that is one number."""
        import pandas as pd

        return pd.DataFrame(
            [
                {**record.setting, "seed": record.seed, "status": record.status, **record.values.numbers()}
                for record in self.records
            ]
        )


def flat(tree: Any) -> dict[str, jax.Array]:
    """Results by name, nested ones joined by "/", in types that files hold."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        value = jnp.asarray(leaf)
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(value)
        if value.dtype == jnp.bfloat16:
            value = value.astype(jnp.float32)
        found[jax.tree_util.keystr(path, simple=True, separator="/") or "value"] = value
    return found


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
    return Results(tuple(records))


def to_parquet(found: Results) -> bytes:
    """`Results.frame` as a file; values of static settings that no column holds as they are become text."""
    frame = found.frame()
    for name in found.records[0].setting if found.records else ():
        if not all(isinstance(value, bool | int | float | str) for value in frame[name]):
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
        rows = [dict(zip(by_name, values, strict=True)) for values in zip(*by_name.values(), strict=True)] or [{}]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{folder} holds no sweep that can be read ({error!r}): give the folder of one") from error
    return collect(Reader(folder), rows, seeds)
