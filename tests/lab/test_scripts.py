"""A study in a file of its own: run as a script or imported, it is the same study."""

import hashlib
import importlib
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from jaxbp import lab
from jaxbp.lab import cli, cost_plan, jobs, own_files
from jaxbp.lab.archive import Results

SCRIPT = '''
"""A toy."""

import dataclasses

import numpy as np
from jaxbp import claims, lab

RATE = claims.Claim("T.a", "Small rates help.", "made up", "effect", claims.Above(0.0))
SCALES = {"noise": 0.1}


@dataclasses.dataclass(frozen=True)
class Case:
    name: str


@dataclasses.dataclass(frozen=True)
class Settings(lab.Settings):
    cases: tuple[Case, ...] = (Case("one"),)
    rate: float = 0.01


class Arguments(lab.Arguments):
    """Toy."""

    presets = {"smoke": Settings("smoke", 3), "quick": Settings("quick", 8)}


@dataclasses.dataclass(frozen=True)
class Noise:
    scale: float

    def of(self, size):
        return scaled(self.scale, np.random.default_rng(0).standard_normal(size))


def scaled(scale, values):
    return scale * values


def train(case, settings):
    noise = Noise(SCALES["noise"]).of(settings.num_seeds)
    return {"effect": lab.along("seed", np.log10(0.03 / settings.rate) + noise)}


STUDY = lab.Study(
    "T", "Toy", "Lead", __name__, (lab.Stage(train),), (lab.Measure(RATE, lambda m: m.train.effect),), (), (), (), ()
)
if __name__ == "__main__":
    lab.main(Arguments, STUDY)
'''


def run(folder, *words):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, *words], check=True, capture_output=True, text=True, cwd=folder, env=environment).stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of two scripts, of which the first was run."""
    folder = tmp_path_factory.mktemp("mine")
    for name in ("toy_rates", "toy_others"):
        (folder / f"{name}.py").write_text(SCRIPT)
    run(folder, "toy_rates.py", "--preset", "smoke")
    return folder


@pytest.fixture
def imported(folder, monkeypatch):
    """A function that imports the script of the folder, which is the working folder."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    yield importlib.import_module
    sys.modules.pop("toy_rates", None)


@pytest.mark.slow
def test_the_page_of_a_script_names_the_file_and_the_folder_keeps_it(folder):
    run_folder = folder / "runs" / "toy_rates-smoke"
    digest = hashlib.sha256((folder / "toy_rates.py").read_bytes()).hexdigest()
    (entry,) = json.loads((run_folder / "config.json").read_text())["own_files"]
    assert entry == {"path": "toy_rates.py", "sha256": digest, "kept": "code/toy_rates.py"}
    assert (run_folder / entry["kept"]).read_text() == SCRIPT
    page = (run_folder / "report.html").read_text()
    assert f"toy_rates.py is not in the commit, or not as it was run: sha256 {digest}." in page
    assert "with the files named below in their places, these commands repeat the run" in page
    assert "python toy_rates.py --preset smoke</code>" in page


def test_a_file_of_the_commit_is_not_kept():
    study = lab.load("experiments.power_iteration.study:STUDY")
    paths = {path.name: path for path in own_files.files_of(study)}
    assert {"__init__.py", "study.py"} <= paths.keys()
    assert b"STUDY" in own_files.committed(paths["study.py"])
    assert own_files.committed(paths["study.py"].with_name("nothing.py")) is None


@pytest.mark.parametrize(
    ("spec", "file", "told"),
    [
        ("mine.toy.__main__", "/there/mine/toy/__main__.py", "python -m mine.toy"),
        (None, os.path.abspath("a folder/toy.py"), "python 'a folder/toy.py'"),
        (None, None, ""),  # python -c
    ],
)
def test_the_command_of_a_program(spec, file, told, monkeypatch):
    program = types.SimpleNamespace(__spec__=spec and types.SimpleNamespace(name=spec), __file__=file)
    monkeypatch.setitem(sys.modules, "__main__", program)
    assert cli._command("__main__") == told
    assert cli._command("mine.other") == "python -m mine.other"


def test_a_map_of_the_imported_study_takes_over_what_the_script_has_computed(imported):
    toy = imported("toy_rates")
    found = lab.map(toy.STUDY, "T.a", {"rate": (0.01,)}, settings=toy.Arguments(preset="smoke"), out="runs/map-shared")
    assert found.facts["work"] == {"cells": 1, "cells_computed": 0, "cells_failed": 0, "jobs": 0}
    found = lab.map(toy.STUDY, "T.a", {"rate": (0.01, 0.1)}, settings=toy.Arguments(preset="smoke"), out="runs/map-more")
    assert found.facts["work"]["jobs"] == 1
    page = Path("runs/map-more/map.html").read_text()
    assert "<code>lab.map(study, &#34;T.a&#34;, {&#39;rate&#39;: (0.01, 0.1)}, settings=settings)</code>" in page
    assert "toy_rates.py is not in the commit" in page


def test_the_times_of_a_script_are_the_basis_of_its_own_stages_alone(imported, folder):
    toy, results = imported("toy_rates"), Results(Path("runs/new"))
    planned = jobs.plan(toy.STUDY, toy.Arguments(preset="quick").settings())
    (cost,) = cost_plan.estimate(planned, results.paths, results.folders)
    assert "1 of 1 of a case that was timed" in cost.basis
    assert "basis of train: no job of this stage was ever timed here" in run(folder, "toy_others.py", "--preset", "quick", "--plan")
