"""A rehearsal runs every stage and case of a preset, at its shapes, on made images, and tells what failed."""

import dataclasses
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import algorithmic_stability, rank_robustness, rehearsal, rehearsal_runs, soft_biases
from experiments.__main__ import STUDIES, Arguments, settings_of
from experiments.ntk_width import settings as ntk_width
from jaxbp import data, lab
from jaxbp.lab.jobs import plan


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    num_epochs: int = 30


@dataclasses.dataclass(frozen=True)
class Settings(lab.Settings):
    cases: tuple[Case, ...] = (Case("narrow"), Case("wide"))


def train(case, settings, width):
    return {"epochs": np.array(case.num_epochs)}


def probe(case, settings, trained, width):
    if case.name == "wide":
        raise MemoryError("no room")
    return {"sum": jnp.sum(jnp.ones(int(trained.epochs)))}


def over_widths(case, settings):
    return {"width": [2, 8, 4]}


STAGES = (
    lab.Stage(train, over=over_widths, cost=lambda case, settings, width: width),
    lab.Stage(probe, over=over_widths, needs=(train,), cost=lambda case, settings, width: 1 / width),
)
STUDY = lab.Study("T", "Title", "Lead", "tests.toy", STAGES, (), (), (), (), ())


@pytest.mark.parametrize("package", STUDIES, ids=lambda package: package.ID)
def test_paper_presets_are_cut_short_and_keep_every_stage_and_case(package, tmp_path):
    preset = settings_of(package, Arguments(preset="paper"))
    settings = rehearsal_runs.shortened(preset, 1024, tmp_path)
    assert len(settings.cases) == len(preset.cases)
    for owner in (settings, *settings.cases):
        values = {field.name: getattr(owner, field.name) for field in dataclasses.fields(owner)}
        most = 8 if "run_up" in values else 2  # a series of averages
        assert all(value <= most for name, value in values.items() if name.endswith("epochs") and isinstance(value, int))
        assert not str(values.get("dataset", "")).startswith("tfds:")
    jobs = plan(lab.load(package.DOOR), settings)
    heaviest = rehearsal_runs.heaviest(jobs)
    assert {(job.stage.name, job.case.name) for job in heaviest} == {(job.stage.name, job.case.name) for job in jobs}


def test_made_images_have_the_shape_of_the_set_and_no_affine_classifier_fits_their_labels(tmp_path):
    case = dataclasses.make_dataclass("Case", [("dataset", str)])
    for name, shape, num_classes in (
        ("cifar100", (32, 32, 3), 100),
        ("fashion_mnist", (28, 28, 1), 10),
        ("fashion_mnist@14", (14, 14, 1), 10),
    ):
        settings = dataclasses.make_dataclass("Settings", [("cases", tuple)])((case(f"tfds:{name}"),))
        made = data.load(rehearsal_runs.shortened(settings, 1000, tmp_path).cases[0].dataset)
        assert (made.input_shape, made.num_classes, len(made.test.labels)) == (shape, num_classes, 250)
        images = made.train.inputs.reshape(len(made.train.labels), -1)
        assert np.linalg.matrix_rank(images) <= 64 < len(images) / 5


def test_wider_networks_are_left_out_where_that_is_asked_for(tmp_path):
    cases = rehearsal_runs.shortened(ntk_width.PRESETS["paper"], 256, tmp_path, rehearsal_runs.Limits(max_width=16)).cases
    convnet = next(case for case in cases if case.name == "ConvNet")
    assert convnet.widths == (8, 16)
    assert all(max(case.widths + case.exact_widths, default=0) <= 16 for case in cases)


def test_what_is_long_in_one_stage_alone_is_cut_by_its_name(tmp_path):
    widths = rehearsal_runs.shortened(settings_of(soft_biases, Arguments(preset="paper")), 2600, tmp_path)
    assert (widths.num_train, widths.width_train) == (2000, 250)
    attacked = rehearsal_runs.shortened(settings_of(rank_robustness, Arguments(preset="paper")), 256, tmp_path)
    assert (attacked.curve, attacked.num_targets, attacked.attack_batch) == ((16 / 255,), 1, 500)


def test_attacks_of_fewer_images_at_a_time(tmp_path):
    preset, limits = settings_of(rank_robustness, Arguments(preset="paper")), rehearsal_runs.Limits(attack_batch=64)
    assert rehearsal_runs.shortened(preset, 256, tmp_path, limits).attack_batch == 64
    smoke = settings_of(rank_robustness, Arguments(preset="smoke"))
    assert rehearsal_runs.shortened(smoke, 256, tmp_path, limits).attack_batch == min(64, smoke.attack_batch)


def test_series_of_time_averages_are_long_enough(tmp_path):
    settings = rehearsal_runs.shortened(settings_of(algorithmic_stability, Arguments(preset="paper")), 256, tmp_path)
    dataclasses.replace(settings, num_seeds=2).validate()  # one seed has no interval


def test_the_heaviest_job_of_each_stage_and_case_runs_with_what_it_needs():
    jobs = rehearsal_runs.heaviest(plan(STUDY, Settings("quick", 1)))
    trained = [f"{case}; train; {width}" for case in ("narrow", "wide") for width in (2, 8)]  # 2 for the probes
    assert [job.name for job in jobs] == [*trained, "narrow; probe; 2", "wide; probe; 2"]


def test_every_arm_that_words_tell_apart_runs_where_that_is_asked_for():
    points = {"arm": ["plain", "mixed"], "poison": [("LSP",), ("OPS",)], "rate": [(0.1, 0.2), (0.3, 0.4)]}
    stage = lab.Stage(train, over=lambda case, settings: points, cost=lambda case, settings, arm, poison, rate: rate[0])
    jobs = plan(dataclasses.replace(STUDY, stages=(stage,)), Settings("quick", 1, (Case("narrow"),)))
    assert [job.name for job in rehearsal_runs.heaviest(jobs)] == ["narrow; train; plain; ('LSP',); (0.3, 0.4)"]
    of_arms = rehearsal_runs.heaviest(jobs, all_arms=True)
    assert [job.point["rate"] for job in of_arms] == [(0.3, 0.4)] * 4
    assert len({(job.point["arm"], job.point["poison"]) for job in of_arms}) == 4


def test_a_stage_that_fails_is_told_and_leaves_the_others_their_run(tmp_path, capsys):
    settings = rehearsal_runs.shortened(Settings("quick", 10), 100, tmp_path)
    assert not rehearsal_runs.rehearse(STUDY, settings, tmp_path / "run", ["cpu"])
    said = capsys.readouterr().out
    assert "no room" in said
    rows = [[cell.strip() for cell in line.split("│")[1:4]] for line in said.splitlines() if line.startswith("│")]
    assert rows == [["train", "4", ""], ["probe", "1", "1"]]


def test_each_study_has_a_process_of_its_own_and_a_kill_ends_it_alone(tmp_path, monkeypatch, capsys):
    started = []

    def run(command, check):
        started.append(command[3])
        return dataclasses.make_dataclass("Ended", ["returncode"])(-9 if "S2" in command[3] else 0)

    monkeypatch.setattr(rehearsal.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["rehearsal", "--only", "S1,S2,S5", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        rehearsal.main()
    said = capsys.readouterr()
    assert started == ["--only=S1", "--only=S2", "--only=S5"]
    assert "S2 was killed, for the memory it took most likely" in said.out
    assert "error: S2 did not come to an end" in said.err


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--preset", "smoke", "--only", "S2", "--cases", "VGG"], "error: no case of S2 has 'VGG' in its name: there are ResNet, digits@4"),
        (["--examples", "50"], "error: --examples must be at least 200, since batches have up to 128, got 50"),
        (["--preset", "smoke", "--only", "S5", "--max-width", "0"], "error: --max-width must be at least 1, got 0"),
        (["--preset", "smoke", "--only", "S5", "--attack-batch", "-3"], "error: --attack-batch must be at least 1, got -3"),
    ],
)
def test_wrong_arguments_are_told(arguments, told, tmp_path):
    command = [sys.executable, "-m", "experiments.rehearsal", *arguments, "--out", str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert told in done.stderr
