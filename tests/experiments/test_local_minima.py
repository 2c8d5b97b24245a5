"""The study of local minima as its users run it: from the command line, through interruptions, to files and verdicts."""

import dataclasses
import functools
import json
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from experiments.local_minima import measure, study
from experiments.local_minima.settings import DEFAULT, EMBEDDED, PRESETS, Arguments, Case, Settings
from jaxbp import claims, lab
from tests.helpers import run_processes, studies

COMMAND = [sys.executable, "-m", "experiments.local_minima"]
SMOKE = ["--preset", "smoke"]
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": run_processes.as_users()}


run = functools.partial(run_processes.study, "local_minima")


@pytest.fixture(scope="module")
def smoke(smoke_folder):
    folder = smoke_folder("local_minima")
    return folder, run(*SMOKE, "--out", folder).stdout


def measurements(folder):
    return pd.read_parquet(folder / "measurements.parquet")


@pytest.mark.slow
def test_a_run_leaves_what_the_contract_says(smoke):
    folder, said = smoke
    verdicts = claims.read_verdicts(folder / "verdicts.json")
    assert [v.claim.id for v in verdicts] == ["S1.a", "S1.b", "S1.c", "S1.d", "S1.e"]
    assert {"case", "stage", "arm", "seed", "epoch", "relative_norm", "measure", "value"} <= set(measurements(folder).columns)
    config = json.loads((folder / "config.json").read_text())
    assert config["settings"]["num_seeds"] == 2
    assert {"packages", "devices", "wall_seconds", "command", "git_commit"} <= set(config)
    pictures = {path.stem.partition("_")[0] for path in (folder / "figures").iterdir()}
    assert pictures == {"losses", "ends", "curves", "density", "escape", "slice"}
    assert {path.suffix for path in (folder / "figures").iterdir()} == {".png", ".svg"}
    assert "<h2>Verdicts</h2>" in (folder / "report.html").read_text()
    assert " done " in (folder / "log.txt").read_text()
    assert str(folder / "report.html") in said


@pytest.mark.slow
def test_the_embedded_minima_of_the_run_are_proven(smoke):
    rows = measurements(smoke[0])
    embedded = rows[rows.stage == "embed"]
    assert (embedded.measure == "status: proven").sum() == 4  # two cases, two seeds
    table = embedded[~embedded.measure.str.contains(": ")].pivot(index=["case", "seed"], columns="measure", values="value")
    assert (np.abs(table.loss / table.affine_loss - 1) <= 1e-12).all()
    assert (table.gradient_norm <= 1e-8).all()
    assert (table.radius > 0).all()


@pytest.mark.slow
def test_the_same_command_again_has_nothing_to_compute(smoke):
    folder, _ = smoke
    before = (folder / "verdicts.json").read_bytes()
    said = run(*SMOKE, "--out", folder).stdout
    total = len(list((folder / "jobs").glob("*.nc")))
    assert f"{total} of {total} jobs are in" in said
    assert (folder / "verdicts.json").read_bytes() == before


@pytest.mark.slow
def test_other_settings_are_refused(smoke):
    folder, _ = smoke
    refused = run("--preset", "smoke", "--epochs", "31", "--out", folder, check=False)
    assert refused.returncode == 2
    assert "holds a run with other settings" in refused.stderr
    assert "Traceback" not in refused.stderr


def wait_for_jobs(process, folder, count):
    deadline = time.monotonic() + 120
    while len(list((folder / "jobs").glob("*.nc"))) < count:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_interrupted_and_killed_it_goes_on_to_the_same_numbers(smoke, tmp_path):
    kept, folder = 0, tmp_path / "apart" / "from" / "run"  # results of runs nearby would be taken over
    for kind, code, finished in ((signal.SIGINT, 130, 3), (signal.SIGTERM, 143, 8), (signal.SIGKILL, -9, 14)):
        command = [*COMMAND, *SMOKE, "--out", str(folder)]
        with subprocess.Popen(command, **PIPES) as process:
            wait_for_jobs(process, folder, finished)
            process.send_signal(kind)
            _, said = process.communicate(timeout=60)
        assert process.returncode == code, said
        if code > 0:
            assert "the same command goes on from there" in said
        present = {path.name: path.stat().st_mtime_ns for path in (folder / "jobs").glob("*.nc")}
        assert len(present) >= max(kept, finished)
        kept = len(present)
    said = run(*SMOKE, "--out", folder).stdout
    assert f"{kept} of {len(list((smoke[0] / 'jobs').glob('*.nc')))} jobs are in" in said
    after = {path.name: path.stat().st_mtime_ns for path in (folder / "jobs").glob("*.nc")}
    assert present.items() <= after.items()  # no finished job was computed again
    pd.testing.assert_frame_equal(measurements(folder), measurements(smoke[0]), check_exact=True)
    assert (folder / "verdicts.json").read_bytes() == (smoke[0] / "verdicts.json").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "1"], "at least 2 seeds, got 1"),
        (["--epochs", "0"], "num_epochs must be at least 1, got 0"),
        (["--num-train", "3"], "num_train must be at least the batch size"),
        (["--dataset", "cifar"], "cifar"),
        (["--dataset", "file:/nowhere/x.npz"], "/nowhere/x.npz"),
        (["--dataset", "digits", "--loss", "cross_entropy", "--num-train", "300"], "separable"),
        (["--preset", "huge"], "huge"),
        (["--out", "/proc/x"], "cannot write to /proc/x"),
    ],
)
def test_bad_input_ends_with_one_clear_line(tmp_path, arguments, message):
    ended = run("--preset", "smoke", "--out", tmp_path, *arguments, check=False)
    assert ended.returncode == 2
    assert message in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr


# Settings and measures


def test_presets_keep_their_promises():
    for preset in PRESETS.values():
        preset.validate()
    quick = PRESETS["quick"]
    assert quick.num_seeds >= 10
    assert {(c.dataset.partition("@")[0], c.model) for c in quick.cases if c.arms} == {
        ("mnist1d", "mlp"),
        ("mnist1d", "convnet"),
        ("mnist5k", "mlp"),
        ("mnist5k", "convnet"),
    }
    assert PRESETS["paper"].cases[0].width == (2048, 2048, 1024)


def test_arguments_change_every_case():
    settings = Arguments(preset="quick", dataset="digits", loss="squared_error", epochs=2, seeds=3).settings()
    assert {(c.dataset, c.loss, c.num_epochs) for c in settings.cases} == {("digits", "squared_error", 2)}
    assert settings.num_seeds == 3
    assert len({c.name for c in settings.cases}) == len(settings.cases)


def test_unequal_widths_need_one_each():
    with pytest.raises(lab.SettingsError, match="3 hidden layers need as many widths"):
        dataclasses.replace(PRESETS["paper"].cases[0], width=(8, 8)).validate()


def made_up(case, embedded, ends):
    """Results of three seeds: the fields of the embedding, and the loss at the end of each arm."""
    seeds, curves = {"seed": range(3)}, [[[3.0, loss] for loss in losses] for losses in ends.values()]
    return studies.made_up(
        case,
        Settings("x", 3, (case,)),
        embed=xr.Dataset({name: ("seed", values) for name, values in embedded.items()}, seeds),
        train=xr.Dataset({"train_loss": (("arm", "seed", "epoch"), curves)}, {"arm": list(ends), **seeds, "epoch": [0, 1]}),
    )


@pytest.fixture
def by_hand():
    """Default training at 0.1, 0.1 and diverged; the embedded minimum at 1, the best constant at 2."""
    case = Case("digits", "mlp", 4, 1, "cross_entropy", 100, arms=(DEFAULT, EMBEDDED, "bias +20"))
    embedded = {"loss": [1.0] * 3, "constant_loss": [2.0] * 3, "status": ["proven", "proven", "supported"]}
    ends = {DEFAULT: [0.1, 0.1, np.nan], EMBEDDED: [0.90, 1.0, 1.0], "bias +20": [0.19, np.inf, 0.5]}
    return made_up(case, embedded, ends)


def values_of(claim, m):
    (measured,) = [each for each in study.STUDY.measures if each.claim.id == claim]
    return measured.values(SimpleNamespace(cases=[m]))


def test_measures_by_hand(by_hand):
    np.testing.assert_allclose(study.closed_gap(by_hand, EMBEDDED), [0.1 / 0.9, 0.0, np.nan], atol=1e-12)
    np.testing.assert_array_equal(study.stays(by_hand, EMBEDDED), [0, 1, np.nan])
    np.testing.assert_array_equal(study.stays(by_hand, "bias +20"), [0, 0, np.nan])  # one fell, one diverged
    np.testing.assert_array_equal(study.ends_badly(by_hand, "bias +20"), [0, 0, np.nan])  # 0.19 < 2 x 0.1; diverged is no end
    np.testing.assert_allclose(study.progress(by_hand, "bias +20"), [1.81 / 1.9, 0, 0], atol=1e-12)
    (proven,) = values_of("S1.a", by_hand).values()
    np.testing.assert_array_equal(proven, [1, 1, 0])


def test_momentum_is_compared_at_the_same_step_size_and_at_the_same_effective_one():
    arms = (DEFAULT, "bias U(-10, 10)", "bias U(-10, 10), no momentum", "bias U(-10, 10), no momentum, large steps")
    case = Case("digits", "mlp", 4, 1, "cross_entropy", 100, arms=arms)
    ends = ([0.0] * 3, [0.5, 1.0, np.inf], [1.5, 1.5, 2.5], [1.0] * 3)
    m = made_up(case, {"constant_loss": [2.0] * 3}, dict(zip(arms, ends, strict=True)))
    gains = values_of("S1.e", m)
    assert list(gains) == [f"{case.name}: same step size", f"{case.name}: same effective step size"]
    np.testing.assert_allclose(list(gains.values()), [[0.5, 0.25, 0.0], [0.25, 0.0, -0.5]])  # above 2 is no progress


def test_a_gap_that_default_training_does_not_close_decides_nothing(by_hand):
    level = made_up(by_hand.case, {"loss": [1.0] * 3}, {DEFAULT: [1.0, 1.5, 1.0], EMBEDDED: [1.0, 1.0, np.inf]})
    np.testing.assert_array_equal(study.stays(level, EMBEDDED), [np.nan, np.nan, 0])


def test_a_diverged_reference_decides_nothing(by_hand):
    (ratio,) = [each.claim for each in study.STUDY.measures if each.claim.id == "S1.b"]
    assert "not finite" in claims.judge(ratio, values_of("S1.b", by_hand)).note
    measures = tuple(each for each in study.STUDY.measures if each.claim.id in ("S1.b", "S1.c", "S1.d"))
    part = dataclasses.replace(study.STUDY, measures=measures)
    assert set(studies.verdicts(part, [by_hand], by_hand.settings).values()) == {"undecided"}


def test_arms_say_from_where_and_how_they_train():
    settings = PRESETS["quick"]
    recipes = {arm: (measure.init_of(arm), *measure.optimizer_of(arm, settings)) for arm in settings.cases[0].arms}
    assert recipes[DEFAULT] == (DEFAULT, 0.01, 0.9)
    assert recipes["embedded, gentle"] == (EMBEDDED, 1e-4, 0.9)
    assert recipes["bias U(-10, 10), no momentum"] == ("bias U(-10, 10)", 0.01, 0.0)
    assert recipes["bias U(-10, 10), no momentum, large steps"] == ("bias U(-10, 10)", pytest.approx(0.1), 0.0)
