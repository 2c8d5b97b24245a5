"""The whole lab as one command."""

import importlib
import re
import subprocess
import sys
import types

import numpy as np
import pytest

from jaxbp import claims, data
from jaxbp.lab import SettingsError, load
from jaxbp.runtime import preemption

main = importlib.import_module("experiments.__main__")


def test_every_study_runs_at_some_place():
    assert sorted(main.SHORTEST_FIRST, key=main.STUDIES.index) == list(main.STUDIES)


def test_studies_are_chosen_by_id_in_the_pages_order():
    ids = ["S1", "S2", "S3", "S4", "S5", "S6", "S7", "S8", "S9", "S10"]
    assert [package.ID for package in main.choose(None)] == ids
    assert [package.ID for package in main.choose("s3, S1")] == ["S1", "S3"]
    for wrong in ("S99", "", "S1,norm_bias"):
        with pytest.raises(SettingsError, match=f"--only takes ids out of {','.join(ids)}, got '{wrong}'"):
            main.choose(wrong)


def test_every_study_names_itself_and_its_claims():
    for package in main.STUDIES:
        study = load(package.DOOR)
        assert (study.id, study.module) == (package.ID, package.__name__)
        assert study.measures
        assert all(measure.claim.id.startswith(f"{study.id}.") and measure.claim.belief for measure in study.measures)
        assert all(measure.claim.smallest_effect for measure in study.measures)  # without it there is no power


@pytest.mark.parametrize("preset", ["smoke", "quick"])
def test_every_stage_computes_the_seeds_that_were_asked_for(preset):
    for package in main.STUDIES:
        settings = package.Arguments(preset=preset, first_seed=200).settings()
        coordinates = [
            coordinate
            for stage in load(package.DOOR).stages
            for case in settings.cases
            if stage.where(case, settings)
            for coordinate in stage.over(case, settings).get("seed", ())
        ]
        seeds = {seed for coordinate in coordinates for seed in (coordinate if isinstance(coordinate, tuple) else (coordinate,))}
        assert seeds <= set(settings.seeds), package.ID


def test_every_verdict_of_the_quick_lab_has_five_seeds():
    arguments = main.Arguments(preset="quick")
    assert all(main.settings_of(package, arguments).num_seeds >= 5 for package in main.STUDIES)


def test_help_of_every_module_comes_without_what_is_slow_to_import():
    names = [f"experiments.{name}" for name in (*main.NAMES, "benchmarks", "map", "publish", "rehearsal", "train")]
    names += ["jaxbp.lab.compare", "jaxbp.lab.status"]
    script = (
        "import runpy, sys, warnings\nwarnings.simplefilter('ignore')\n"
        f"for name in {['experiments', *names]}:\n"
        "    sys.argv = ['x', '--help']\n"
        "    try: runpy.run_module(name, run_name='__main__')\n"
        "    except SystemExit as end: assert end.code in (0, None), name\n"
        "    slow = {'jax', 'matplotlib', 'tensorflow', 'pandas', 'scipy.stats', 'torch'} & set(sys.modules)\n"
        "    assert not slow, (name, slow)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: ") == len(names) + 1


@pytest.mark.slow
def test_the_lab_goes_on_where_it_was_stopped_and_writes_one_page(tmp_path):
    command = [sys.executable, "-m", "experiments", "--preset", "smoke", "--only", "S2,S5", "--out", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        for line in running.stdout:
            if re.match(r"\[[1-9]\d*/", line):  # a job is on disk
                running.kill()
    assert not (tmp_path / "power_iteration" / "report.html").exists()
    done = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "jobs are in" in done
    assert str(tmp_path / "report.html") in done.replace("\n", "")
    page = (tmp_path / "report.html").read_text()
    verdicts = claims.read_verdicts(tmp_path / "verdicts.json")
    assert [v.claim.id for v in verdicts] == ["S2.a", "S2.b", "S2.c", "S2.d", "S2.e", "S5.a", "S5.b", "S5.c"]
    for verdict in verdicts:
        assert f'id="{verdict.claim.id}"' in page
    for study in ("norm_bias", "power_iteration"):
        assert f"python -m experiments.{study} --preset smoke --seeds" in page
        assert (tmp_path / study / "report.html").exists()


def test_a_study_that_fails_leaves_the_others_their_page(tmp_path, monkeypatch, capsys):
    execute = importlib.import_module("jaxbp.lab.execute")
    section = types.SimpleNamespace(verdicts=[])
    written = []

    def run(study, *_, **__):
        if study.id == "S2":
            raise SettingsError("no such data")
        if study.id == "S7":
            raise np.linalg.LinAlgError("no convergence")
        return section

    monkeypatch.setattr(execute, "run", run)
    monkeypatch.setattr(execute, "write_page", lambda *arguments: written.append(list(arguments[3])))
    monkeypatch.setattr(sys, "argv", ["experiments", "--preset", "smoke", "--only", "S1,S2,S5,S7", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        main.main()
    assert written == [["power_iteration"], ["local_minima", "power_iteration"]]  # after each study that ended, the shortest first
    said = capsys.readouterr()
    assert (said.out + said.err).count("no such data") == 1  # told where it happened, and not again at the end
    assert "S2 failed: no such data" in said.err
    assert re.search(r"S7 failed: Traceback .*raise np.linalg.LinAlgError.*no convergence", said.err, re.DOTALL)  # a defect
    assert "error: S7, S2 failed, see above; the page lacks what failed" in said.err


def test_data_that_cannot_be_had_are_told_at_once_and_once(tmp_path, monkeypatch, capsys):
    told = "is not prepared, and its source does not answer"

    def check(name, data_dir):
        raise data.DataError(f"tfds:{name} {told}")

    monkeypatch.setattr(data.loading.tfds, "check", check)
    monkeypatch.setattr(preemption, "leave", sys.exit)  # which ends the process at once
    monkeypatch.setattr(sys, "argv", ["experiments", "--preset", "standard", "--only", "S1,S2,S4", "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit, match="2"):
        main.main()
    said = capsys.readouterr()
    assert said.err == f"\nerror: S1, S2, S4: tfds:fashion_mnist {told}\n"
    assert not said.out
    assert not (tmp_path / "run").exists()
