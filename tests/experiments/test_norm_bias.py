"""The study of norm-bias as its users run it, its jobs in one process, and its verdicts from made-up measurements."""

import dataclasses
import functools
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from experiments.norm_bias import study
from experiments.norm_bias.settings import ARMS, BIAS, DECAY, NONE, PRESETS, Arguments, Case
from jaxbp import claims, data
from tests.helpers import run_processes, studies

COMMAND = [sys.executable, "-m", "experiments.norm_bias"]


run = functools.partial(run_processes.study, "norm_bias")


@pytest.mark.slow
def test_a_run_leaves_what_the_contract_says(smoke_folder):
    folder = smoke_folder("norm_bias")
    said = run("--preset", "smoke", "--out", folder).stdout
    verdicts = claims.read_verdicts(folder / "verdicts.json")
    assert [v.claim.id for v in verdicts] == ["S2.a", "S2.b", "S2.c", "S2.d", "S2.e"]
    rows = pd.read_parquet(folder / "measurements.parquet")
    assert {"case", "stage", "arm", "seed", "epoch", "measure", "value"} <= set(rows.columns)
    assert {path.stem for path in (folder / "figures").iterdir()} == {
        "accuracy",
        "target_norm",
        "norm",
        "effective_rate",
        "angle",
    }
    assert "<h2>Verdicts</h2>" in (folder / "report.html").read_text()
    config = json.loads((folder / "config.json").read_text())
    assert config["settings"]["num_seeds"] == 3
    assert 100 < config["peak_memory_mib"] < 24_000
    assert str(folder / "report.html") in said
    assert "6 of 6 jobs are in" in run("--preset", "smoke", "--out", folder).stdout


SMALL = dataclasses.replace(
    PRESETS["smoke"],
    cases=(Case("MLP", "digits@4", "mlp", 8, True, False, 0.05),),
    num_epochs=6,
    decay_grid=(5.0, 1e-2),
    bias_grid=(5.0, 1e-2),
    norm_ratios=(0.01,),
)  # the first setting of each grid kills the network


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of one small case; the test set may be read in the last stage only."""
    patch = pytest.MonkeyPatch()
    train_all, load = study.train_all, study.load

    def hides_the_test_set(case, settings, arms, seeds, part):
        patch.setattr(study, "load", lambda *args: dataclasses.replace(load(*args), **({} if part == "test" else {"test": None})))
        return train_all(case, settings, arms, seeds, part)

    patch.setattr(study, "train_all", hides_the_test_set)
    with patch.context():
        (results,) = studies.compute(study.STUDY, SMALL, tmp_path_factory.mktemp("run")).cases
    patch.undo()
    return results


def test_tuning_tries_both_grids_and_takes_the_best(finished):
    tuned = finished.tune
    unit = float(tuned.none_norm)
    means = tuned.accuracy.mean("tuning_seed").values
    assert means[1] > means[0] + 5  # so that the choice can be seen
    assert means[3] > means[2] + 5
    assert tuned.coefficient.values.tolist() == [SMALL.decay_grid[1], SMALL.bias_grid[1]]
    assert tuned.mu.values.tolist() == [0.0, 0.01 * unit]
    assert tuned.best_accuracy.values.tolist() == pytest.approx([means[1], means[3]])
    assert np.ptp(tuned.final_norm.values) > 0


def test_arms_are_paired_and_do_what_they_say(finished):
    norm = {arm: finished.compare.norm.sel(arm=arm).values for arm in ARMS}
    for arm in (DECAY, BIAS):
        np.testing.assert_array_equal(norm[arm][:, 0], norm[NONE][:, 0])  # one initialisation
        assert (norm[arm][:, -1] != norm[NONE][:, -1]).all()
    assert (norm[DECAY][:, -1] < norm[NONE][:, -1]).all()
    assert len(np.unique(norm[NONE][:, 0])) == SMALL.num_seeds
    assert finished.compare.accuracy.sel(arm=NONE).max() > 15  # of 10 for chance
    assert (finished.compare.angle.sel(arm=NONE)[:, 1:] > 0).all()


def test_the_effective_rate_is_the_learning_rate_over_the_kernels_squared_norm(finished):
    compared = finished.compare.sel(arm=NONE)
    rate = compared.effective_learning_rate.values
    cosine = finished.case.learning_rate * (1 + np.cos(np.pi * compared.epoch.values / SMALL.num_epochs)) / 2
    # The geometric mean over the MLP's two kernels, whose squared norms add up to that of all kernels.
    squares = compared.kernel_norm.values**2
    assert (rate >= 2 * cosine / squares * (1 - 1e-5)).all()
    assert (rate[:, :-1] < 4 * (2 * cosine / squares)[:, :-1]).all()
    np.testing.assert_allclose(rate[:, -1], 0, atol=1e-7)


def test_the_seeds_of_tuning_are_not_those_of_the_comparison(finished):
    assert set(finished.tune.tuning_seed.values) == set(finished.scan.seed.values) == set(SMALL.tuning_seeds)
    assert set(finished.compare.seed.values) == set(SMALL.seeds)
    assert not set(SMALL.seeds) & set(SMALL.tuning_seeds)
    assert finished.compare.epoch.values.tolist() == list(SMALL.measure_epochs)


def made_up(gains):
    """Verdicts where each case gains so many points by weight decay, and by norm-bias over it."""
    settings = PRESETS["quick"]
    noise = np.linspace(-0.2, 0.2, settings.num_seeds)
    results = []
    for case in settings.cases:
        decay, bias = gains(case)
        accuracy = 90 + np.stack([0 * noise, decay + noise, decay + bias + 2 * noise])
        norms = np.broadcast_to(np.array([2.0, 1.0, 3.0])[:, None, None], (3, settings.num_seeds, 2))
        variables = {"accuracy": (("arm", "seed"), accuracy), "norm": (("arm", "seed", "epoch"), norms)}
        results.append(studies.made_up(case, settings, compare=xr.Dataset(variables, {"arm": list(ARMS)})))
    return studies.verdicts(study.STUDY, results, settings)


def test_verdicts_follow_the_rules():
    assert made_up(lambda case: (1.0, 0.4)) == {
        "S2.a": "supported",
        "S2.b": "supported",
        "S2.c": "supported",
        "S2.d": "supported",
        "S2.e": "supported",
    }
    assert made_up(lambda case: (0.05, -0.3)) == {
        "S2.a": "undecided",
        "S2.b": "supported",
        "S2.c": "contradicted",
        "S2.d": "supported",
        "S2.e": "supported",
    }
    mixed = made_up(lambda case: (-1.0, -2.0 if case.batch_norm else 0.0))
    assert (mixed["S2.a"], mixed["S2.b"]) == ("contradicted", "mixed")
    assert mixed["S2.d"] == "supported"


def test_budgets_are_equal_and_seeds_disjoint():
    for settings in PRESETS.values():
        assert len(settings.decay_grid) == len(settings.bias_grid) * len(settings.norm_ratios)
        assert not set(settings.seeds) & set(settings.tuning_seeds)
        assert len({case.name for case in settings.cases}) == len(settings.cases)
    assert len(Arguments(preset="quick", dataset="digits").settings().cases) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "nothing"], "no data set is named 'nothing'"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, message, tmp_path):
    done = run("--preset", "smoke", "--out", tmp_path / "new", *arguments, check=False)
    assert done.returncode == 2
    assert message in done.stderr


def write_cifar10(folder, seed=0):
    """Files in the format of CIFAR-10's binary version: records of a label and 3 x 32 x 32 bytes, 100 a file."""
    rng = np.random.default_rng(seed)
    inside = folder / "cifar-10-batches-bin"
    inside.mkdir(parents=True)
    (inside / "batches.meta.txt").write_text(
        "\n".join(["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"])
    )
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        labels = np.arange(100, dtype=np.uint8)[:, None] % 10
        (inside / name).write_bytes(np.hstack([labels, rng.integers(0, 256, (100, 3072), np.uint8)]).tobytes())


@pytest.mark.slow
def test_cifar10_from_tfds_to_the_end_of_a_run(tmp_path, monkeypatch):
    # TFDS's own builder of CIFAR-10 prepares, only the download is replaced; the run then reads what it has prepared.
    import tensorflow_datasets as tfds

    write_cifar10(tmp_path / "download")
    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", lambda self, url: tmp_path / "download")
    loaded = data.load("tfds:cifar10", data_dir=tmp_path / "tfds")
    assert loaded.input_shape == (32, 32, 3)
    assert len(loaded.test.labels) == 100
    out = tmp_path / "run"
    run("--preset", "smoke", "--dataset", "tfds:cifar10", "--data-dir", tmp_path / "tfds", "--out", out)
    rows = pd.read_parquet(out / "measurements.parquet")
    assert set(rows.case) == {"ResNet, tfds:cifar10, normalised inputs", "MLP, tfds:cifar10, normalised inputs"}
    assert len(rows[(rows.stage == "compare") & (rows.measure == "accuracy")]) == 2 * 3 * 3


@pytest.mark.slow
def test_two_processes_share_the_work_and_find_what_one_finds(smoke_folder, tmp_path):
    alone = smoke_folder("norm_bias")
    run("--preset", "smoke", "--out", alone)
    place = ["--coordinator", f"127.0.0.1:{run_processes.free_port()}", "--num-processes", "2", "--no-reuse"]
    two = [*COMMAND, "--preset", "smoke", "--out", tmp_path / "two", *place]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": run_processes.as_users()}
    running = [subprocess.Popen([*two, "--process-id", str(i)], **pipes) for i in range(2)]
    said = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    assert "Verdicts" in said[0][0]
    assert "Verdicts" not in said[1][0]
    for log in ("log-0.txt", "log-1.txt"):  # both worked
        assert " done " in (tmp_path / "two" / log).read_text()
    ours, theirs = (pd.read_parquet(folder / "measurements.parquet") for folder in (tmp_path / "two", alone))
    pd.testing.assert_frame_equal(ours, theirs, check_exact=False, rtol=1e-4, atol=1e-4)
