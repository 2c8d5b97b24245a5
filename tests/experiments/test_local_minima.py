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

from experiments.local_minima import measure, outcomes, study
from experiments.local_minima.settings import (
    DEFAULT,
    EMBEDDED,
    FULL,
    LIMIT_SHARES,
    MOMENTUM_INIT,
    PLAIN,
    PRESETS,
    RATES,
    SMALL,
    SMALL_LR,
    Arguments,
    Case,
    Settings,
)
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


@pytest.mark.first_cases(3)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "num_epochs must be at least 1, got 0"),
        (["--num-train", "3"], "num_train must be at least the batch size"),
        (["--dataset", "cifar"], "cifar"),
        (["--dataset", "file:/nowhere/x.npz"], "/nowhere/x.npz"),
        (["--dataset", "digits", "--loss", "cross_entropy", "--num-train", "300"], "separable"),
        (["--out", "/proc/x"], "cannot write to /proc/x"),
    ],
)
def test_bad_input_is_named(tmp_path, arguments, message):
    assert message in studies.error_of("local_minima", tmp_path, *arguments)


@pytest.mark.parametrize(("arguments", "message"), [(["--seeds", "1"], "at least 2 seeds, got 1"), (["--preset", "huge"], "huge")])
def test_bad_input_ends_with_one_clear_line(tmp_path, arguments, message):
    ended = run("--preset", "smoke", "--out", tmp_path, *arguments, check=False)
    assert ended.returncode == 2
    assert message in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr


# Settings and measures


def test_presets_keep_their_promises():
    for preset in PRESETS.values():
        preset.validate()
    for name in ("quick", "standard"):
        assert PRESETS[name].num_seeds >= 10
        trained = [case for case in PRESETS[name].cases if case.arms]
        assert {case.model for case in trained} == {"mlp", "convnet"}
        assert any(case.explore for case in trained)  # the control that must leave
    assert PRESETS["paper"].cases[0].width == (2048, 2048, 1024)
    assert PRESETS["paper"].cases[0].tuned[0] == DEFAULT


def test_arguments_change_every_case():
    settings = Arguments(preset="quick", dataset="digits", loss="squared_error", epochs=2, seeds=3).settings()
    assert {(c.dataset, c.loss, c.num_epochs) for c in settings.cases} == {("digits", "squared_error", 2)}
    assert settings.num_seeds == 3
    assert len({c.name for c in settings.cases}) == len(settings.cases)


def test_unequal_widths_need_one_each():
    with pytest.raises(lab.SettingsError, match="3 hidden layers need as many widths"):
        dataclasses.replace(PRESETS["paper"].cases[0], width=(8, 8)).validate()


def made_up(case, embedded, ends, starts=3.0, gradients=0.01, **stages):
    """Results of three seeds: the fields of the embedding, and the loss at the end of each arm."""
    seeds, curves = {"seed": range(3)}, [[[starts, loss] for loss in losses] for losses in ends.values()]
    arms = {"arm": list(ends), **seeds}
    norms = np.broadcast_to(gradients, (len(ends), 3))
    return studies.made_up(
        case,
        Settings("x", 3, (case,)),
        embed=xr.Dataset({name: ("seed", values) for name, values in embedded.items()}, seeds),
        train=xr.Dataset({"train_loss": (("arm", "seed", "epoch"), curves), "gradient_norm": (("arm", "seed"), norms)}, arms),
        **stages,
    )


@pytest.fixture
def by_hand():
    """Default training at 0.1, 0.1 and diverged; the embedded minimum at 1, the best constant at 2."""
    case = Case("digits", "mlp", 4, 1, "cross_entropy", 100, arms=(DEFAULT, EMBEDDED, "bias +20"))
    embedded = {"loss": [1.0] * 3, "constant_loss": [2.0] * 3, "status": ["proven", "proven", "supported"]}
    ends = {DEFAULT: [0.1, 0.1, np.nan], EMBEDDED: [0.90, 1.0, 1.0], "bias +20": [0.28, np.inf, 0.5]}
    return made_up(case, embedded, ends)


def measure_of(claim):
    (measured,) = [each for each in study.STUDY.measures if each.claim.id == claim]
    return measured


def values_of(claim, m):
    return measure_of(claim).values(SimpleNamespace(cases=[m]))


def test_measures_by_hand(by_hand):
    stays = functools.partial(outcomes.stays, by_hand)
    np.testing.assert_array_equal(stays(outcomes.final_loss(by_hand, EMBEDDED)), [0, 1, 1])  # a tenth of 0.9 is 0.09
    np.testing.assert_array_equal(stays(outcomes.final_loss(by_hand, "bias +20")), [0, 0, 0])  # two fell, one diverged
    (proven,) = values_of("S1.a", by_hand).values()
    np.testing.assert_array_equal(proven, [1, 1, 0])


def test_a_bad_end_is_high_and_stationary():
    case = Case("digits", "mlp", 4, 1, "cross_entropy", 100, arms=(DEFAULT, "bias +20"))
    slopes = [[9.0] * 3, [0.05, 0.07, 0.05]]  # the slope at the end of default training counts for nothing
    m = made_up(case, {"constant_loss": [1.1] * 3}, {DEFAULT: [0.1] * 3, "bias +20": [0.21, 0.21, 0.19]}, gradients=slopes)
    assert outcomes.kinds_of_end(m, "bias +20").values.tolist() == ["suboptimal", "moving", "low"]
    (values,) = values_of("S1.d", m).values()
    np.testing.assert_array_equal(values, [1, 0, 0])
    m = made_up(case, {"constant_loss": [1.1] * 3}, {DEFAULT: [0.1, 0.1, np.nan], "bias +20": [np.inf, 5.0, 0.5]})
    assert outcomes.kinds_of_end(m, "bias +20").values.tolist() == ["diverged", "suboptimal", "no default"]
    (values,) = values_of("S1.d", m).values()
    np.testing.assert_array_equal(values, [0, 1, np.nan])  # one that diverged is no bad end


def test_momentum_is_compared_by_log_losses():
    case = Case("digits", "mlp", 4, 1, "cross_entropy", 100, arms=(DEFAULT, MOMENTUM_INIT, PLAIN))
    ends = ([0.0] * 3, [0.5, 1.0, np.inf], [2.0, 0.5, 4.0])
    m = made_up(case, {"constant_loss": [2.0] * 3}, dict(zip(case.arms, ends, strict=True)), starts=8.0)
    (gains,) = values_of("S1.e", m).values()
    np.testing.assert_allclose(gains, [2.0, -1.0, -1.0])  # the run that diverged stayed at its start, 8
    outlier = [0.5, 1.0, 1.5, 0.7, 0.8, 1.2, 0.9, 1.1, 0.6, -100.0]
    assert claims.judge(measure_of("S1.e").claim, {"a": outlier}, interval_fn=measure_of("S1.e").interval_fn).verdict == "supported"


def test_a_gap_that_default_training_does_not_close_decides_nothing(by_hand):
    level = made_up(by_hand.case, {"loss": [1.0] * 3}, {DEFAULT: [1.0, 1.5, 0.5], EMBEDDED: [1.0, 1.0, np.inf]})
    np.testing.assert_array_equal(outcomes.stays(level, outcomes.final_loss(level, EMBEDDED)), [np.nan] * 3)
    dead = made_up(by_hand.case, {"loss": [1.0] * 3}, {DEFAULT: [1.5, 0.5, 0.5], EMBEDDED: [1.0, 1.04, 1.06]})
    np.testing.assert_array_equal(outcomes.stays(dead, outcomes.final_loss(dead, EMBEDDED)), [1, 1, 0])  # a seed's own dead run is nothing


def test_a_diverged_reference_decides_nothing(by_hand):
    assert "no value: default training diverged" in claims.judge(measure_of("S1.b").claim, values_of("S1.b", by_hand)).note
    part = dataclasses.replace(study.STUDY, measures=tuple(map(measure_of, ("S1.b", "S1.d"))), controls=())
    assert set(studies.verdicts(part, [by_hand], by_hand.settings).values()) == {"undecided"}


def test_points_that_are_no_minima_must_not_be_proven(by_hand):
    positive, negative = study.STUDY.controls[1:]
    wrong = by_hand.embed.assign(saddle_status=("seed", ["proven"] * 3), moved_status=("seed", ["refuted"] * 3))
    m = studies.made_up(dataclasses.replace(by_hand.case, arms=(), loss="squared_error"), by_hand.settings, embed=wrong)
    values = negative.fn(m)
    np.testing.assert_array_equal(values["half the rank"], [1, 1, 1])
    np.testing.assert_array_equal(values["moved"], [0, 0, 0])
    np.testing.assert_array_equal(positive.fn(m), [0, 0, 0])


# A tiny case through its trainings

TINY = Case("digits@4", "mlp", 12, 1, "squared_error", 100, arms=(DEFAULT, EMBEDDED, SMALL_LR), num_epochs=2, batch_size=25)
SEEDS = (0, 1)


@pytest.fixture(scope="module")
def tiny():
    settings = Settings("x", 2, (TINY,), perturbations=(1e-3, 1.0))
    embedded = xr.concat([lab.to_dataset(measure.embed(TINY, settings, seed)) for seed in SEEDS], "seed")
    return settings, embedded


@pytest.mark.slow
def test_the_embedded_point_is_proven_and_its_neighbours_are_not(tiny):
    _, embedded = tiny
    assert (embedded.status == "proven").all()
    assert (embedded.saddle_status == "refuted").all()
    assert not (embedded.moved_status == "proven").any()


@pytest.mark.slow
def test_tuning_takes_the_rate_of_the_lowest_loss(tiny):
    settings, _ = tiny
    tuned = measure.tune(TINY, settings, DEFAULT, SEEDS)
    np.testing.assert_array_equal(tuned.best, np.array(RATES)[np.nanargmin(tuned.end_loss.values, 0)])
    assert len(np.unique(tuned.end_loss)) > len(RATES)
    alone = measure.tune(TINY, settings, DEFAULT, (1,))
    np.testing.assert_allclose(alone.end_loss.values[:, 0], tuned.end_loss.values[:, 1], rtol=1e-5)  # a seed knows not of others


@pytest.mark.slow
def test_below_the_limit_a_run_takes_its_share_and_as_many_steps_as_fit(tiny):
    settings, embedded = tiny
    wanted, limit = settings.learning_rate * 8, 2 * 1.9 / embedded.largest.values  # two epochs of four batches
    rates = np.outer(LIMIT_SHARES, limit)
    for batches, most in ((SMALL, 8), (FULL, 2)):
        results = measure.stay(TINY, settings, embedded, batches, SEEDS)
        np.testing.assert_allclose(results.travel, rates * np.clip(np.round(wanted / rates), 1, most) / wanted, rtol=1e-6)
        moved = np.abs(results.end_loss / embedded.loss - 1)
        assert (moved < 1e-3).all() if batches == FULL else (moved[0] < 0.05).all()  # noise of batches drives it off near the limit
    results = measure.perturb(TINY, settings, embedded, SEEDS)
    assert (results.start_loss[:, 1] > 1.5 * results.start_loss[:, 0]).all()


@pytest.mark.slow
def test_a_run_that_needs_few_steps_stops_there(tiny):
    settings, _ = tiny
    starts = measure.draw(TINY, settings, DEFAULT, SEEDS)
    whole, early = (measure.train_from(starts, SEEDS, 0.1, 0.9, TINY, settings, num_steps=steps)["train_loss"] for steps in (8, 1))
    assert (whole[:, -1] < whole[:, 1]).all()
    assert (early[:, 1] != early[:, 0]).all()
    np.testing.assert_array_equal(early[:, 2], early[:, 1])  # one step was made in the first epoch, none in the second


def test_arms_say_from_where_and_how_they_train():
    settings = PRESETS["quick"]
    case = settings.cases[0]
    assert case.tuned == tuple(arm for arm in case.arms if arm not in (EMBEDDED, SMALL_LR))
    recipes = {arm: (measure.init_of(arm), measure.momentum_of(arm, settings)) for arm in case.arms}
    assert recipes[DEFAULT] == (DEFAULT, 0.9)
    assert recipes[SMALL_LR] == recipes[EMBEDDED] == (EMBEDDED, 0.9)
    assert recipes[PLAIN] == (MOMENTUM_INIT, 0.0)
