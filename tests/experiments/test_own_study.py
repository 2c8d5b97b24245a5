"""The study that the guide shows: it is as short as it says, and runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.map import study_of
from jaxbp import claims, lab

GUIDE = Path(__file__).parents[2] / "experiments" / "guide" / "own_study.md"


@pytest.fixture
def study(tmp_path):
    code, *_ = re.findall(r"```python\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)
    path = tmp_path / "wider.py"
    path.write_text(code)
    return path


def test_it_is_short(study):
    assert sum(bool(line.strip()) for line in study.read_text().splitlines()) <= 92


@pytest.mark.slow
def test_it_runs_and_goes_on(study):
    def run(*arguments):
        return subprocess.run([sys.executable, study, *arguments], check=True, capture_output=True, text=True, cwd=study.parent).stdout

    assert "Claim W.a." in run("--help")
    said = run("--preset", "smoke")
    folder = study.parent / "runs" / "wider-smoke"
    premise, verdict = claims.read_verdicts(folder / "verdicts.json")
    assert (premise.claim.id, verdict.claim.id, premise.num_seeds) == ("W.p", "W.a", 3)
    assert "W.a" in said
    assert (folder / "report.html").exists()
    assert "2 of 2 jobs are in" in run("--preset", "smoke")


def test_the_command_for_maps_points_to_the_section_on_maps_of_ones_own():
    with pytest.raises(lab.SettingsError, match=r'"Where does it hold\?" in experiments/guide/own_study.md'):
        study_of("wider.a")
    assert "\n## Where does it hold?\n" in GUIDE.read_text("utf-8")
