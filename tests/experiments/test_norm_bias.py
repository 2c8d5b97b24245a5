"""Study 2 as its users run it, its pieces in one process, and its verdicts from made-up measurements."""

import dataclasses
import functools
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from experiments.norm_bias import measure, results
from experiments.norm_bias.settings import ARMS, BIAS, DECAY, NONE, PRESETS, Arguments, Case
from jaxbp import claims, data
from jaxbp.runtime.store import Store
from tests.helpers import run_processes

COMMAND = [sys.executable, "-m", "experiments.norm_bias"]


run = functools.partial(run_processes.study, "norm_bias")


@pytest.mark.slow
def test_a_run_leaves_what_the_contract_says(smoke_folder):
    folder = smoke_folder("norm_bias")
    said = run("--preset", "smoke", "--out", folder).stdout
    verdicts = claims.read_verdicts(folder / "verdicts.json")
    assert [v.claim.id for v in verdicts] == ["S2.a", "S2.b", "S2.c", "S2.d", "S2.e"]
    rows = pd.read_parquet(folder / "measurements.parquet")
    assert list(rows.columns) == ["case", "arm", "seed", "step", "measure", "value"]
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
    assert "6 of 6 pieces of work are in" in run("--preset", "smoke", "--out", folder).stdout


SMALL = dataclasses.replace(
    PRESETS["smoke"], cases=(Case("MLP", "digits@4", "mlp", 8, True, False, 0.05),), num_epochs=6,
    decay_grid=(5.0, 1e-2), bias_grid=(5.0, 1e-2), norm_ratios=(0.01,),
)  # fmt: skip  # the first setting of each grid kills the network


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of one small case, stage by stage; the test set may be read in the last stage only."""
    with Store(tmp_path_factory.mktemp("run"), {"settings": 1}, {}) as store:
        lab, (case,) = measure.Lab(SMALL, store, None), SMALL.cases
        whole = lab.dataset(case)
        hidden = dataclasses.replace(whole, test=None)
        for stage in ("tune", "scan", "compare"):
            lab.dataset = lambda _, stage=stage: whole if stage == "compare" else hidden
            store.put(measure.piece_name(case, stage), getattr(lab, stage)(case))
        yield results.Results(SMALL, store), case


def test_tuning_tries_both_grids_and_takes_the_best(finished):
    found, case = finished
    tuned = found.get(case, "tune")
    unit = float(tuned["plain norm"])
    assert tuned["arms"].tolist() == [[c, 0.0] for c in SMALL.decay_grid] + [[c, 0.01 * unit] for c in SMALL.bias_grid]
    means = tuned["accuracy"].mean(1)
    assert means[1] > means[0] + 5  # so that the choice can be seen
    assert means[3] > means[2] + 5
    for chosen, rows in zip(tuned["chosen"], (slice(0, 2), slice(2, 4)), strict=True):
        assert chosen.tolist() == tuned["arms"][rows][np.argmax(means[rows])].tolist()
    assert np.ptp(tuned["final norm"]) > 0


def test_arms_are_paired_and_do_what_they_say(finished):
    found, case = finished
    norm = {arm: found.compared(case, arm, "norm") for arm in ARMS}
    for arm in (DECAY, BIAS):
        np.testing.assert_array_equal(norm[arm][:, 0], norm[NONE][:, 0])  # one initialisation
        assert (norm[arm][:, -1] != norm[NONE][:, -1]).all()
    assert (norm[DECAY][:, -1] < norm[NONE][:, -1]).all()
    assert len(np.unique(norm[NONE][:, 0])) == SMALL.num_seeds
    accuracy = found.compared(case, NONE, "test_accuracy")
    assert accuracy.max() > 15  # of 10 for chance
    assert (found.compared(case, NONE, "angle")[:, 1:] > 0).all()


def test_the_effective_rate_is_the_learning_rate_over_the_kernels_squared_norm(finished):
    found, case = finished
    store = found.get(case, "compare")
    epochs = np.array(SMALL.measure_epochs)
    rate = store["effective_learning_rate"][ARMS.index(NONE)]
    cosine = case.learning_rate * (1 + np.cos(np.pi * epochs / SMALL.num_epochs)) / 2
    # The geometric mean over the MLP's two kernels, whose squared norms add up to that of all kernels.
    squares = found.compared(case, NONE, "kernel_norm") ** 2
    assert (rate >= 2 * cosine / squares * (1 - 1e-5)).all()
    assert (rate[:, :-1] < 4 * (2 * cosine / squares)[:, :-1]).all()
    np.testing.assert_allclose(rate[:, -1], 0, atol=1e-7)


def test_rows_hold_everything(finished):
    found, case = finished
    rows = pd.DataFrame(list(results.rows(found)), columns=["case", "arm", "seed", "step", "measure", "value"])
    assert set(rows[rows.measure == "test_accuracy"].arm) == set(ARMS)
    assert set(rows[rows.measure == "validation_accuracy"].seed) == set(SMALL.tuning_seeds)
    assert not set(rows[rows.measure == "test_accuracy"].seed) & set(SMALL.tuning_seeds)
    curves = rows[(rows.measure == "norm") & (rows.arm == DECAY) & (rows.seed == 1)]
    np.testing.assert_array_equal(curves.value, found.compared(case, DECAY, "norm")[1])
    assert curves.step.tolist() == list(SMALL.measure_epochs)


def made_up(tmp_path, gains):
    """Results in which each case gains so many points by weight decay, and by norm-bias over it."""
    settings = PRESETS["quick"]
    store = Store(tmp_path / "made", {"settings": 1}, {})
    noise = np.linspace(-0.2, 0.2, settings.num_seeds)
    for case in settings.cases:
        decay, bias = gains(case)
        accuracy = 90 + np.stack([0 * noise, decay + noise, decay + bias + 2 * noise])
        norms = np.broadcast_to(np.array([2.0, 1.0, 3.0])[:, None, None], (3, settings.num_seeds, 2))
        store.put(measure.piece_name(case, "compare"), {"test_accuracy": accuracy, "norm": norms})
    return {v.claim.id: v.verdict for v in results.verdicts(results.Results(settings, store))}


def test_verdicts_follow_the_rules(tmp_path):
    assert made_up(tmp_path / "a", lambda case: (1.0, 0.4)) == {
        "S2.a": "supported", "S2.b": "supported", "S2.c": "supported", "S2.d": "supported", "S2.e": "supported",
    }  # fmt: skip
    assert made_up(tmp_path / "b", lambda case: (0.05, -0.3)) == {
        "S2.a": "undecided", "S2.b": "supported", "S2.c": "contradicted", "S2.d": "supported", "S2.e": "supported",
    }  # fmt: skip
    mixed = made_up(tmp_path / "c", lambda case: (-1.0, -2.0 if case.batch_norm else 0.0))
    assert mixed["S2.a"] == mixed["S2.b"] == "contradicted"
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
    assert len(rows[rows.measure == "test_accuracy"]) == 2 * 3 * 3


@pytest.mark.slow
def test_two_processes_share_the_work_and_find_what_one_finds(smoke_folder, tmp_path):
    alone = smoke_folder("norm_bias")
    run("--preset", "smoke", "--out", alone)
    place = ["--coordinator", f"127.0.0.1:{run_processes.free_port()}", "--num-processes", "2"]
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
