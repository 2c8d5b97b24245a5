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
from experiments.norm_bias.settings import ARMS, BIAS, DECAY, FIXED_DECAY, NONE, OTHER_ORDER, PRESETS, Arguments, Case
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
    assert "4 of 4 jobs are in" in run("--preset", "smoke", "--out", folder).stdout


SMALL = dataclasses.replace(
    PRESETS["smoke"], cases=(Case("MLP", "digits@4", "mlp", 8, 0.05, 0.3),), num_epochs=6, num_seeds=4, seeds_per_tuning=2
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of one small case; test examples may be read in the last stage only."""
    patch = pytest.MonkeyPatch()
    train_all, split = study.train_all, study.split

    def hides_the_test_set(case, settings, arms, seeds, part, *tuned):
        parts = lambda *args: split(*args) if part == "test" else {**split(*args), "test": None}  # noqa: E731
        patch.setattr(study, "split", parts)
        return train_all(case, settings, arms, seeds, part, *tuned)

    patch.setattr(study, "train_all", hides_the_test_set)
    with patch.context():
        (results,) = studies.compute(study.STUDY, SMALL, tmp_path_factory.mktemp("run")).cases
    patch.undo()
    return results


@pytest.mark.slow
def test_every_group_of_seeds_takes_its_own_best_setting(finished):
    tuned = finished.tune
    for name, pairs in study.settings_tried(SMALL.num_settings).items():
        row = tuned.sel(arm=name)
        best = row.accuracy.values.argmax(0)
        np.testing.assert_array_equal(row.chosen.values, np.array(pairs)[best])
        np.testing.assert_array_equal(row.best_accuracy.values, row.accuracy.values.max(0))
    np.testing.assert_array_equal(tuned.accuracy.sel(seed=0), tuned.accuracy.sel(seed=1))  # they share a tuning
    assert (tuned.accuracy.sel(seed=0) != tuned.accuracy.sel(seed=2)).any()
    strong = tuned.reached.sel(arm=DECAY)  # a weight decay of 0.1 against one of 0.001
    assert (strong[1] < strong[0] - 0.02).all()


def test_parts_of_a_split_are_disjoint_and_of_the_seed_alone():
    case, settings = SMALL.cases[0], SMALL
    one, again, other = (study.split(case, settings, seed) for seed in (0, 0, 2))
    for part, rows in one.items():
        np.testing.assert_array_equal(rows, again[part])
        assert set(rows) != set(other[part])
    rows = np.concatenate(list(one.values()))
    assert len(np.unique(rows)) == len(rows)
    assert len(one["train"]) == settings.num_train


def test_label_noise_spares_the_test_labels(finished):
    case, pool = SMALL.cases[0], study.load(SMALL.cases[0], SMALL)[0]
    noisy = study.noisy_labels(case, SMALL, 0)
    assert abs((noisy != pool.labels).mean() - 0.3) < 0.05
    more = study.noisy_labels(dataclasses.replace(case, label_noise=0.6), SMALL, 0)
    assert (more != pool.labels)[noisy != pool.labels].all()
    np.testing.assert_array_equal(study.noisy_labels(dataclasses.replace(case, label_noise=0.0), SMALL, 0), pool.labels)


def test_arms_are_paired_and_do_what_they_say(finished):
    norm = {name: finished.compare.norm.sel(arm=name).values for name in finished.compare.arm.values}
    for name, values in norm.items():
        np.testing.assert_array_equal(values[:, 0], norm[NONE][:, 0])  # one initialisation
        assert name == NONE or (values[:, -1] != norm[NONE][:, -1]).all()
    assert (norm[FIXED_DECAY][:, -1] < norm[NONE][:, -1]).all()
    assert len(np.unique(norm[NONE][:, 0])) == SMALL.num_seeds
    assert finished.compare.accuracy.sel(arm=NONE).max() > 15  # of 10 for chance
    assert (finished.compare.angle.sel(arm=NONE)[:, 1:] > 0).all()


@pytest.mark.slow
def test_a_tuned_arm_runs_with_what_was_chosen_on_its_seed(finished):
    case = SMALL.cases[0]
    ours = finished.compare.norm.sel(arm=BIAS)
    for seed in (0, 2):
        pair = finished.tune.chosen.sel(arm=BIAS, seed=seed).values.tolist()
        alone = study.train_all(case, SMALL, {"alone": study.arm(*pair)}, [seed], "test")
        np.testing.assert_allclose(alone.norm.values[0, 0], ours.sel(seed=seed).values, rtol=1e-5)


def test_seeds_that_share_a_tuning_count_as_one(finished):
    gains = study.gain(DECAY, NONE)(finished)
    assert gains.seed.values.tolist() == [0, 2]
    each = finished.compare.accuracy.sel(arm=DECAY) - finished.compare.accuracy.sel(arm=NONE)
    np.testing.assert_allclose(gains.values, each.values.reshape(2, 2).mean(1))


def test_the_effective_rate_is_the_learning_rate_over_the_kernels_squared_norm(finished):
    compared = finished.compare.sel(arm=NONE)
    rate = compared.effective_learning_rate.values
    cosine = finished.case.learning_rate * (1 + np.cos(np.pi * compared.epoch.values / SMALL.num_epochs)) / 2
    # The geometric mean over the MLP's two kernels, whose squared norms add up to that of all kernels.
    squares = compared.kernel_norm.values**2
    assert (rate >= 2 * cosine / squares * (1 - 1e-5)).all()
    assert (rate[:, :-1] < 4 * (2 * cosine / squares)[:, :-1]).all()
    np.testing.assert_allclose(rate[:, -1], 0, atol=1e-7)


def made_up(gains):
    """Verdicts where each case gains so many points by weight decay, and by norm-bias over it; weight decay in the control gains 5."""
    settings = PRESETS["quick"]
    noise = np.linspace(-0.2, 0.2, settings.num_seeds)
    names = [*ARMS, OTHER_ORDER, FIXED_DECAY]
    results = []
    for case in settings.cases:
        decay, bias = gains(case)
        accuracy = 90 + np.stack([0 * noise, decay + noise, decay + bias + 2 * noise, noise, 5 + noise])
        norms = np.broadcast_to(np.array([2.0, 1.0, 3.0, 2.0, 1.0])[:, None, None], (5, settings.num_seeds, 2))
        variables = {"accuracy": (("arm", "seed"), accuracy), "norm": (("arm", "seed", "epoch"), norms)}
        coordinates = {"arm": names, "seed": list(settings.seeds)}
        results.append(studies.made_up(case, settings, compare=xr.Dataset(variables, coordinates)))
    return studies.verdicts(study.STUDY, results, settings)


def test_verdicts_follow_the_rules():
    assert set(made_up(lambda case: (1.0, 0.4)).values()) == {"supported"}
    untested = made_up(lambda case: (0.05, -0.3))  # where weight decay does not help, nothing is said of its rival
    assert untested == {"S2.a": "undecided"} | dict.fromkeys(["S2.b", "S2.c", "S2.d", "S2.e"], "not tested")
    mixed = made_up(lambda case: (1.0, -2.0 if case.batch_norm else 0.3))
    assert mixed == {"S2.a": "supported", "S2.b": "mixed", "S2.c": "mixed", "S2.d": "supported", "S2.e": "supported"}
    assert made_up(lambda case: (-1.0, 0.0))["S2.a"] == "contradicted"


def test_budgets_are_equal_and_names_differ():
    for settings in PRESETS.values():
        tried = study.settings_tried(settings.num_settings)
        assert len(tried[DECAY]) == len(tried[BIAS]) == settings.num_settings
        assert len({case.name for case in settings.cases}) == len(settings.cases)
    ratios = np.array(study.settings_tried(16)[BIAS])[:, 1]
    assert 0.2 <= ratios.min() < 0.3
    assert 1.2 < ratios.max() <= 1.5
    assert len(Arguments(preset="quick", dataset="digits").settings().cases) == 3  # two become one


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
    archive = tmp_path / "tfds" / "downloads" / "manual" / "cifar-10-binary.tar.gz"  # it is there, so no host is asked
    archive.parent.mkdir(parents=True)
    archive.touch()
    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", lambda self, url: tmp_path / "download")
    loaded = data.load("tfds:cifar10", data_dir=tmp_path / "tfds")
    assert loaded.input_shape == (32, 32, 3)
    assert len(loaded.test.labels) == 100
    out = tmp_path / "run"
    run("--preset", "smoke", "--dataset", "tfds:cifar10", "--data-dir", tmp_path / "tfds", "--out", out)
    rows = pd.read_parquet(out / "measurements.parquet")
    assert set(rows.case) == {"ResNet, tfds:cifar10, 30 % label noise", "MLP, tfds:cifar10, 30 % label noise"}
    assert len(rows[(rows.stage == "compare") & (rows.measure == "accuracy")]) == 2 * 5 * 3


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
