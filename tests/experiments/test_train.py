"""The command that trains a network over a grid of settings and seeds."""

import dataclasses
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import train, train_cost, train_sweep
from jaxbp import data, lab, models, training
from jaxbp.runtime.store import StoreError

SMALL = train.Arguments(
    dataset="digits@4", width=(4,), depth=(1,), learning_rate=(0.1, 0.02), weight_decay=(1e-3,), epochs=3, seeds=2, num_train=200
)


def command(folder, *more):
    options = [f"--{name}" for name in more]
    return [
        sys.executable,
        "-m",
        "experiments.train",
        "--dataset",
        "digits@4",
        "--width",
        "4",
        "--seeds",
        "4",
        "--num-train",
        "200",
        "--out",
        str(folder),
        *options,
    ]


@pytest.mark.slow
def test_it_trains_as_training_does(tmp_path):
    found = train_sweep.train_all(dataclasses.replace(SMALL, model="resnet", learning_rate=(0.1,), out=tmp_path))
    split = data.load("digits@4", num_train=200)
    net = models.create("resnet", num_classes=10, width=4, depth=1)
    assert len(found) == 2
    for record in list(found)[:1]:
        expected = training.train(
            net,
            training.sgd(record.setting["learning_rate"], momentum=0.9, weight_decay=1e-3, decay_steps=9),
            (jnp.asarray(split.train.inputs), jnp.asarray(split.train.labels)),
            jax.random.key(record.seed),
            training.Settings(num_epochs=3, batch_size=64),
            test_data=(split.test.inputs, split.test.labels),
        ).history
        for name, curve in expected.items():
            np.testing.assert_allclose(record.values[name], curve[1:], rtol=2e-4, atol=2e-4)


@pytest.mark.slow
def test_the_table_has_a_line_for_each_setting(tmp_path, capsys):
    found = train_sweep.train_all(dataclasses.replace(SMALL, learning_rate=(0.1, 1e30), out=tmp_path))
    capsys.readouterr()
    train_sweep.print_table(found)
    said = capsys.readouterr().out
    assert "all settings: width 4, depth 1, momentum 0.9, weight_decay 0.001, batch_size 64\n" in said
    assert max(map(len, said.splitlines())) <= 80  # no terminal
    lines = [line for line in said.splitlines() if "│" in line]
    cells = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in lines]
    assert [(row[0], row[-2], row[-1]) for row in cells] == [("0.1", "2", "0"), ("1e+30", "0", "2")]
    accuracies = found.where(learning_rate=0.1).stack("test_accuracy")[0, :, -1]
    assert cells[0][-4].startswith(f"{accuracies.mean():.2f}"[:3])
    assert cells[1][-4] == "-"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"learning_rate": (0.1, 0.1)}, "learning_rate must have different values"),
        ({"learning_rate": (float("nan"),)}, "learning_rate must be 0 or more"),
        ({"weight_decay": (-1.0,)}, "weight_decay must be 0 or more"),
        ({"width": (0,)}, "width must be at least 1"),
        ({"model": "mpl"}, "there is no model 'mpl': choose one of mlp, convnet"),
        ({"model": "resnet18", "depth": (2,)}, "the depth of resnet18 is part of its name"),
        ({"batch_size": (300,)}, "batch_size must be from 1 to the number of training examples 200, got 300"),
        ({"plan": "fastest"}, "plan must be one of auto"),
        ({"checkpoint_every": float("nan")}, "checkpoint_every must be 0 or more seconds"),
        ({"memory_mib": 0}, "memory_mib must be at least 1"),
    ],
)
def test_bad_arguments_are_told_before_anything_is_written(tmp_path, change, told):
    arguments = dataclasses.replace(SMALL, **change, out=tmp_path / "run")
    with pytest.raises(lab.SettingsError, match=told):
        train_sweep.train_all(arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [None, b"no archive"], ids=["missing", "damaged"])
@pytest.mark.parametrize("until_decided", [False, True])
def test_missing_and_damaged_data_leave_nothing_behind(tmp_path, content, until_decided):
    if content:
        (tmp_path / "mine.npz").write_bytes(content)
    few = dataclasses.replace(SMALL, dataset=f"file:{tmp_path}/mine.npz", until_decided=until_decided, out=tmp_path / "run")
    with pytest.raises(lab.SettingsError, match=r"mine\.npz"):
        (train_sweep.train_until_decided if until_decided else train_sweep.train_all)(few)
    assert not (tmp_path / "run").exists()


def test_help_is_instant_and_errors_are_one_line(tmp_path):
    script = "import sys; from experiments import train; print('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False\n"
    done = subprocess.run([*command(tmp_path), "--epochs", "0"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "\nerror: epochs must be at least 1, got 0\n")


@pytest.mark.slow
def test_sigterm_saves_and_ends_within_ten_seconds(tmp_path):
    many = [*command(tmp_path), "--epochs", "100000", "--checkpoint-every", "3600"]
    with subprocess.Popen(many, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        while "%" not in running.stdout.readline():
            pass
        asked = time.monotonic()
        running.send_signal(signal.SIGTERM)
        out, err = running.communicate(timeout=30)
        took = time.monotonic() - asked
    assert running.returncode == 143
    assert took < 10
    assert err == f"\nterminated. Finished jobs are in {tmp_path}; the same command goes on from there.\n"
    assert "asked to stop: saving what there is" in out
    (digests,) = (tmp_path / "checkpoints").glob("*/*/digests.json")
    assert int(digests.parent.name) > 1


@pytest.mark.slow
def test_seeds_are_added_until_settings_are_told_apart(tmp_path, capsys):
    few = dataclasses.replace(
        SMALL, width=(32,), num_train=800, learning_rate=(0.1, 0.0), epochs=8, seeds=4, most_seeds=8, until_decided=True, out=tmp_path
    )
    found, verdict = train_sweep.train_until_decided(few)
    assert [(case.case, case.verdict, case.num_seeds) for case in verdict.cases] == [("learning_rate 0.0", "contradicted", 4)]
    assert (len(found), found.seeds) == (8, (0, 1, 2, 3))
    assert (tmp_path / "seeds-0-3/results.parquet").exists()
    assert train_sweep.train_until_decided(few)[1] == verdict
    with pytest.raises(lab.SettingsError, match="give an option several values"):
        train_sweep.train_until_decided(dataclasses.replace(few, learning_rate=(0.1,)))
    with pytest.raises(StoreError, match="other settings"):
        train_sweep.train_until_decided(dataclasses.replace(few, most_seeds=12))


def test_the_price_comes_before_the_work(tmp_path, capsys):
    arguments = dataclasses.replace(SMALL, learning_rate=(0.1,), out=tmp_path / "run", elsewhere=lab.Elsewhere("v4-8"), num_train=128)
    train_cost.print_cost(arguments)
    said = capsys.readouterr().out
    hidden, inputs, classes, test = 4, 16, 10, 360
    products = 2 * hidden * (inputs + classes)
    steps = 128 * 3 * products - 128 * 2 * hidden * inputs  # forward, both gradients, but for that of the inputs
    least = 2 * 3 * (steps + (128 + test) * products)  # seeds, epochs, evaluation after each
    (row,) = [line for line in said.splitlines() if "│ all " in line]
    assert least < float(row.split("│")[7]) < 4 * least
    assert "on v4-8, an estimate without compilation" in said
    assert "an epoch timed at" in said
    assert not (tmp_path / "run").exists()
