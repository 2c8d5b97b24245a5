"""Arguments, settings, and the view of the settings that a stage gets."""

import dataclasses
from pathlib import Path

import pytest

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
