"""Arguments, settings, and the view of the settings that a stage gets."""

import dataclasses
from pathlib import Path

import pytest

from experiments import low_rank_bounds, soft_biases
from jaxbp import data, lab
from jaxbp.lab.settings import View, as_json


@dataclasses.dataclass(frozen=True)
class Case:
    dataset: str
    width: int

    @property
    def name(self):
        return f"{self.dataset}, wide" if self.width > 2 else self.dataset


@dataclasses.dataclass(frozen=True)
class Settings(lab.Settings):
    cases: tuple[Case, ...]
    num_epochs: int = 3
    batch_size: int = 8
    num_train: int | None = None


@dataclasses.dataclass(frozen=True)
class Arguments(lab.Arguments):
    presets = {"quick": Settings("quick", 4, (Case("a", 1), Case("b", 1), Case("a", 5)))}  # noqa: RUF012
    width: int | None = None


def test_arguments_change_settings_or_every_case():
    assert Arguments().settings() == Arguments.presets["quick"]
    found = Arguments(epochs=7, seeds=3, num_train=9).settings()
    assert (found.num_epochs, list(found.seeds), found.num_train) == (7, [0, 1, 2], 9)
    found = Arguments(dataset="digits").settings()
    assert found.cases == (Case("digits", 1), Case("digits", 5))  # two of three have become one
    assert [case.width for case in Arguments(width=2).settings().cases] == [2, 2]


def test_data_are_looked_at_once_and_told_by_run(monkeypatch):
    looked = []

    def check(name, data_dir):
        looked.append((name, data_dir))
        if name != "a":
            raise data.DataError("no network")

    monkeypatch.setattr(data, "check", check)
    three = dataclasses.replace(
        Arguments.presets["quick"], cases=(Case("a", 1), Case("b", 1), Case("c", 1), Case("", 1)), data_dir=Path("there")
    )
    with pytest.raises(lab.SettingsError, match=r"^S1, S2: no network$"):
        lab.check_data({"S1": three, "S2": three})
    assert looked == [(name, Path("there")) for name in "abc"]
    with pytest.raises(lab.SettingsError, match=r"^no network$"):
        lab.check_data({"S1": three})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "paper"}, "this study has no preset 'paper': choose one of quick"),
        ({"seeds": 1}, "an interval needs at least 2 seeds, got 1: give --seeds 5 or more"),
        ({"dataset": "digitz"}, "no data set is named 'digitz': did you mean digits?"),
        ({"dataset": "file:no/such.npz"}, "no/such.npz does not exist"),
        ({"first_seed": -1}, "seeds are numbers from 0 to 2,000,000,000, got 4 from -1 on"),
        ({"first_seed": 2_000_000_000}, "give another --first-seed"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"num_train": 7}, "num_train must be at least the batch size 8, got 7"),
    ],
)
def test_settings_that_cannot_run_are_refused(arguments, message):
    with pytest.raises(lab.SettingsError, match=message):
        Arguments(**arguments).settings()


def test_a_stage_reads_the_fields_that_it_declares_and_no_other():
    settings = Arguments().settings()
    view = View(settings, ("num_epochs",))
    assert view.num_epochs == 3
    assert view.values() == {"num_epochs": 3}
    with pytest.raises(AttributeError, match="does not declare that it reads 'batch_size'"):
        _ = view.batch_size
    with pytest.raises(AttributeError, match="does not declare that it reads 'num_seeds'"):
        _ = view.seeds  # a property reads fields, too
    with pytest.raises(AttributeError, match="do not change"):
        view.num_epochs = 4
    assert "cases" not in View(settings).values()
    assert View(settings).seeds == range(4)


def test_a_first_seed_moves_all_seeds_and_is_nothing_while_it_is_0():
    plain, fresh = Arguments().settings(), Arguments(first_seed=100).settings()
    assert (list(fresh.seeds), fresh.seed_blocks) == ([100, 101, 102, 103], [(100, 101, 102, 103)])
    looked = Arguments(first_seed=7, seeds=2, until_decided=True, most_seeds=4).settings()
    assert dataclasses.replace(looked, num_seeds=4).seed_blocks == [(7, 8), (9, 10)]
    for owner in (as_json(plain), View(plain).values(), View(plain, ("num_seeds",)).values()):
        assert "first_seed" not in owner  # keys of files and of jobs stay what they were before there was the field
    assert as_json(fresh)["first_seed"] == 100
    reads_seeds = View(fresh, ("num_seeds",))
    assert reads_seeds.values() == {"num_seeds": 4, "first_seed": 100}
    assert list(reads_seeds.seeds) == [100, 101, 102, 103]
    assert "first_seed" not in View(fresh, over_seeds=True).values()  # a job of its own seeds is the same in every run
    with pytest.raises(AttributeError, match="does not declare that it reads 'num_seeds': put"):
        _ = View(fresh, ("num_epochs",)).first_seed


@pytest.mark.parametrize("package", [low_rank_bounds, soft_biases])
@pytest.mark.parametrize(("first_seed", "seeds"), [(995, 6), (1000, 2), (0, 1001)])
def test_seeds_of_tuning_are_refused(package, first_seed, seeds):
    with pytest.raises(
        lab.SettingsError, match=rf"{first_seed} to {first_seed + seeds - 1} overlap those on which this study tunes, 1000 to"
    ):
        package.Arguments(preset="quick", first_seed=first_seed, seeds=seeds).settings()
    package.Arguments(preset="quick", first_seed=2000).settings()


def test_looks_may_not_reach_seeds_of_tuning():
    settings = soft_biases.Arguments(preset="smoke", until_decided=True).settings()
    assert settings.num_seeds < 100 < settings.looks.most
    with pytest.raises(lab.SettingsError, match=r"900 to 10\d\d overlap those on which"):
        dataclasses.replace(settings, first_seed=900).validate()


def test_where_data_are_identifies_nothing(tmp_path):
    here, there = (dataclasses.replace(Arguments().settings(), data_dir=Path(place)) for place in ("/a", "/b"))
    assert as_json(here) == as_json(there)
    assert here == there


def test_a_file_is_known_by_its_content(tmp_path):
    file = tmp_path / "mine.npz"
    case = Case(f"file:{file}", 1)
    identities = []
    for content in (b"a", b"b", b"a"):
        file.write_bytes(content)
        identities.append(Arguments().settings().data_identity(case)[case.dataset])
    assert identities[0] == identities[2] != identities[1]
