"""Arguments and settings that all studies share.

A study's ``Settings`` hold everything that decides its numbers; its presets are such objects, and its ``Arguments``, the command line,
change some of their fields. An argument changes the field of its name in the settings or, where they have none, in each of their cases.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from jaxbp.runtime.jax_setup import ONE_PROCESS, Cluster

_FIELDS = {"epochs": "num_epochs", "seeds": "num_seeds"}  # arguments whose field has a longer name
_NO_SETTINGS = ("preset", "cluster", "out", "data_dir")


class SettingsError(ValueError):
    """The arguments do not make a runnable study."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides the numbers of a run; each study adds its own."""

    preset: str
    num_seeds: int

    @property
    def seeds(self) -> range:
        """The seeds of the run."""
        return range(self.num_seeds)

    def validate(self) -> None:
        """Raise `SettingsError` where the study cannot run as set."""
        if self.num_seeds < 2:
            raise SettingsError(f"an interval needs at least 2 seeds, got {self.num_seeds}: give --seeds 5 or more")
        num_epochs = getattr(self, "num_epochs", 1)
        if num_epochs < 1:
            raise SettingsError(f"epochs must be at least 1, got {num_epochs}")
        num_train, batch_size = (getattr(self, name, None) for name in ("num_train", "batch_size"))
        if num_train is not None and batch_size is not None and num_train < batch_size:
            raise SettingsError(f"num_train must be at least the batch size {batch_size}, got {num_train}")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The command line of a study; each study adds its own options, and its ``presets``."""

    presets: ClassVar[Mapping[str, Any]]

    preset: Literal["smoke", "quick", "paper"] = "quick"
    """smoke: a minute, to see it run. quick: minutes on two CPU cores, embedded data. paper: the paper's scale, CIFAR-10, accelerators."""
    dataset: str | None = None
    """Use this data set instead: digits, mnist1d, mnist5k, mnist5k@7, tfds:NAME, file:PATH."""
    num_train: int | None = None
    """Training examples that each seed draws."""
    epochs: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Epochs of every training."""
    seeds: int | None = None
    """Number of seeds."""
    cluster: tyro.conf.OmitArgPrefixes[Cluster] = ONE_PROCESS
    out: Path | None = None
    """Folder of the run; default runs/STUDY-PRESET."""
    data_dir: Path | None = None
    """Where TFDS data sets are, or are to be prepared."""

    def changes(self) -> dict[str, Any]:
        """What the arguments replace, by the names of fields of the settings or of their cases."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in _NO_SETTINGS]
        return {_FIELDS.get(name, name): value for name in names if (value := getattr(self, name)) is not None}

    def settings(self) -> Any:
        """The preset with the arguments' changes, validated.

        Raises:
          SettingsError: there is no such preset, or the study cannot run so.
        """
        if self.preset not in self.presets:
            raise SettingsError(f"this study has no preset {self.preset!r}: choose one of {', '.join(self.presets)}")
        settings = _changed(self.presets[self.preset], self.changes())
        settings.validate()
        return settings


def _changed(settings: Any, changes: Mapping[str, Any]) -> Any:
    """``settings`` with some fields replaced; the fields that they lack are replaced in each case, and cases made equal become one."""
    own = {field.name for field in dataclasses.fields(settings)}
    mine = {name: value for name, value in changes.items() if name in own}
    if of_cases := {name: value for name, value in changes.items() if name not in own}:
        cases = [dataclasses.replace(case, **of_cases) for case in settings.cases]
        first = {case.name: case for case in reversed(cases)}
        mine["cases"] = tuple(first[name] for name in dict.fromkeys(case.name for case in cases))
    return dataclasses.replace(settings, **mine)
