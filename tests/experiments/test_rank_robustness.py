"""The study of rank and robustness as its users run it, its natural training in one process, and its verdicts from made-up measurements."""

import dataclasses
import functools
import itertools
import json

import jax
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from experiments.rank_robustness import measure, study
from experiments.rank_robustness.settings import (
    ADVERSARIAL,
    ARMS,
    CONTROL,
    NATURAL,
    PRESETS,
    RANK_MAX,
    RANK_MIN,
    TRAININGS,
    UNTRAINED,
    Arguments,
    Case,
)
from jaxbp import attacks, claims
from jaxbp.lab import jobs
from tests.helpers import run_processes, studies

run = functools.partial(run_processes.study, "rank_robustness")


@pytest.mark.slow
def test_a_run_leaves_what_the_contract_says(smoke_folder):
    folder = smoke_folder("rank_robustness")
    said = run("--preset", "smoke", "--out", folder).stdout
    verdicts = claims.read_verdicts(folder / "verdicts.json")
    assert [v.claim.id for v in verdicts] == ["S4.a", "S4.b", "S4.c", "S4.d", "S4.e"]
    rows = pd.read_parquet(folder / "measurements.parquet")
    assert {"case", "stage", "training", "arm", "weights", "layer", "radius", "seed", "epoch", "measure", "value"} <= set(rows.columns)
    assert not rows.value.isna().any()
    assert {path.stem for path in (folder / "figures").iterdir()} == {
        "rank_by_layer",
        "accuracy_by_radius",
        "clean_and_robust",
        "rank_along",
        "singular_values",
    }
    assert "<h2>Verdicts</h2>" in (folder / "report.html").read_text()
    assert json.loads((folder / "config.json").read_text())["settings"]["num_seeds"] == 2
    assert str(folder / "report.html") in said
    assert "8 of 8 jobs are in" in run("--preset", "smoke", "--out", folder).stdout


SMALL = dataclasses.replace(
    PRESETS["smoke"],
    cases=(Case("ConvNet", "digits@4", "convnet", 8, (("depth", 3),)),),
    num_epochs=25,
    num_fine_tuning=3,
    project_epochs=(1, 3),
    radius=0.2,
    curve=(0.05, 0.2),
    threshold=0.6,
    ceiling=0.9,
    num_train=400,
    learning_rate=0.02,
)  # projected at the very end, so that what is measured there is what the projection left


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of both seeds of a small network under natural training."""
    (stage,) = study.STUDY.stages
    stage = dataclasses.replace(stage, over=lambda case, settings: {"training": (NATURAL,), "seed": settings.seeds})
    return studies.compute(dataclasses.replace(study.STUDY, stages=(stage,)), SMALL, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def natural(finished):
    """The measurements of the run."""
    return finished.cases[0].compare.sel(training=NATURAL)


@pytest.mark.slow
def test_arms_start_alike_and_end_as_projected(finished, natural):
    along = {arm: natural.effective_rank_along.sel(arm=arm).values for arm in ARMS}
    for arm in (RANK_MIN, RANK_MAX):
        np.testing.assert_array_equal(along[arm][:, 0], along[CONTROL][:, 0])
    assert (along[RANK_MIN][:, -1] < along[CONTROL][:, -1]).any()
    control, lower, higher = (study.log_rank(finished.cases[0], arm) for arm in ARMS)
    assert (lower < control).all()
    assert (higher > control).all()
    assert len(np.unique(along[CONTROL][:, 0, 0])) == SMALL.num_seeds


@pytest.mark.slow
def test_ranks_are_those_of_the_values_kept(natural):
    assert natural.sizes["layer"] == 2  # of three convolutions, all but the first
    for arm, layer in itertools.product(ARMS, natural.layer.values):
        values = natural.singular_values.sel(arm=arm, layer=layer).dropna("index", how="all").values
        assert (np.diff(values) <= 0).all()
        expected = values.sum(1) / np.sqrt((values**2).sum(1))
        np.testing.assert_allclose(natural.effective_rank.sel(weights=arm, layer=layer), expected, rtol=1e-5)
        np.testing.assert_allclose(natural.effective_rank_along.sel(arm=arm, layer=layer).isel(epoch=-1), expected, rtol=1e-5)


@pytest.mark.slow
def test_attacks_take_away_and_the_strongest_the_most(natural):
    clean = natural.test_accuracy
    pgd, strongest = (
        natural[name].transpose(..., axis) for name, axis in (("pgd_accuracy", "radius"), ("robust_accuracy", "judged_radius"))
    )
    assert clean.min() > 40  # of 10 for chance
    assert (pgd[..., 0] <= clean).all()
    assert (np.diff(pgd, axis=-1) <= 0).all()
    assert (strongest[..., 0] <= pgd[..., 0] + 100 * 2 / SMALL.num_test).all()  # PGD may find two more
    assert (strongest[..., 1] < clean - 10).all()


@pytest.mark.slow
def test_rows_hold_everything(finished, natural):
    rows = finished.table()
    assert not rows.value.isna().any()
    assert set(rows.training) == {NATURAL}
    assert set(rows.weights.dropna()) == {UNTRAINED, *ARMS}
    of_run = rows[(rows.arm == RANK_MIN) & (rows.seed == 1)]
    assert of_run[of_run.measure == "test_accuracy"].value.item() == natural.test_accuracy.sel(arm=RANK_MIN, seed=1)
    layer = natural.layer.values[0]
    assert of_run[(of_run.measure == "effective_rank_along") & (of_run.layer == layer)].epoch.tolist() == [0, 1, 3]
    strongest = of_run[(of_run.measure == "robust_accuracy") & (of_run.judged_radius == "0.2")].value.item()
    assert strongest == natural.robust_accuracy.sel(arm=RANK_MIN, seed=1, judged_radius=0.2)


@pytest.mark.slow
def test_adversarial_training_trains_on_attacked_batches():
    case, radius = dataclasses.replace(SMALL.cases[0], dataset="digits"), 0.1
    settings = dataclasses.replace(SMALL, radius=radius)
    net, split = measure.network(case, settings), measure.examples(case, settings, "train", 400, 0)
    pgd = attacks.pgd(attacks.Threat("linf", radius), num_steps=20)
    robust = {}
    for kind in TRAININGS:
        start = measure.initialise(net, jax.random.key(0), split[0])
        end = measure.train_base(net, settings, kind == ADVERSARIAL, start, split, jax.random.key(1))
        network_fn = jax.tree_util.Partial(net.apply, end.params, state=end.state)
        evaluation = attacks.robust_accuracy(network_fn, jax.random.key(2), *split, {"pgd": pgd}, check_masking=False)
        robust[kind] = evaluation.worst_case.estimate
    assert robust[ADVERSARIAL] > robust[NATURAL] + 0.1


def test_more_seeds_need_no_job_anew():
    few, more = (jobs.plan(study.STUDY, dataclasses.replace(SMALL, num_seeds=number)) for number in (2, 3))
    assert {job.digest for job in few} < {job.digest for job in more}


RADIUS_EFFECT = {
    NATURAL: 9.0,
    ADVERSARIAL: -1.0,
}  # on RankMin at the larger radius, which natural training is not judged at


def made_up(change):
    """Verdicts where each arm differs from the control by ``change(training, arm)``: log2 of rank, clean, robust."""
    settings = PRESETS["quick"]
    noise = 0.02 * (np.arange(settings.num_seeds) - 2)
    of_training = []
    for training in TRAININGS:
        changes = np.array([[0.0, 0.0, 0.0] if arm == CONTROL else change(training, arm) for arm in ARMS])
        by_arm = changes[:, :, None] + noise * np.arange(3)[:, None]  # arm, quantity, seed
        ranks = np.stack([3 + noise, *((2.0 if training == NATURAL else 2.3) + by_arm[:, 0])])
        radius_effect = RADIUS_EFFECT[training] * (np.array(ARMS) == RANK_MIN)[:, None, None] * np.array([0, 1])
        variables = {
            "effective_rank": (("weights", "seed", "layer"), 2 ** np.repeat(ranks[..., None], 4, axis=-1)),
            "train_loss": (("arm", "seed"), by_arm.sum(1)),
            "test_accuracy": (("arm", "seed"), 90 + by_arm[:, 1]),
            "robust_accuracy": (("arm", "seed", "judged_radius"), 50 + by_arm[:, 2][..., None] + radius_effect),
        }
        radii = [settings.small_radius, settings.radius]
        of_training.append(xr.Dataset(variables, {"arm": list(ARMS), "weights": [UNTRAINED, *ARMS], "judged_radius": radii}))
    compared = xr.concat(of_training, xr.DataArray(list(TRAININGS), dims="training", name="training"))
    return studies.verdicts(study.STUDY, [studies.made_up(case, settings, compare=compared) for case in settings.cases], settings)


def test_verdicts_follow_the_rules():
    assert made_up(lambda training, arm: (-0.5 if arm == RANK_MIN else 0.5, 0.3, -1.0)) == {
        "S4.a": "supported",
        "S4.b": "supported",
        "S4.c": "supported",
        "S4.d": "supported",
        "S4.e": "supported",
    }
    other = made_up(lambda training, arm: (0.5, -2.0 if arm == RANK_MAX else 0.0, 3.0 if training == NATURAL else 0.0))
    assert (other["S4.a"], other["S4.b"], other["S4.c"]) == ("mixed",) * 3
    harmless = made_up(lambda training, arm: (0.1, 0.0, 5.0 if arm == RANK_MAX else 0.0))
    assert harmless["S4.c"] == "supported"  # whatever RankMax does
    near = made_up(lambda training, arm: (0.01, 1.0, 2.0))
    assert (near["S4.b"], near["S4.c"]) == ("undecided",) * 2


def test_a_network_that_diverged_decides_nothing():
    verdicts = made_up(lambda training, arm: (np.nan if arm == RANK_MIN else 1.0, 0.0, 0.0))
    assert [verdicts[claim] for claim in ("S4.a", "S4.b", "S4.c")] == ["undecided"] * 3


def test_presets_are_consistent():
    for settings in PRESETS.values():
        assert {settings.small_radius, settings.radius} <= set(settings.curve)
        assert set(settings.project_epochs) <= set(range(1, settings.num_fine_tuning))  # the last epoch is without
        settings.validate()
    changed = Arguments(preset="quick", dataset="digits", radius=0.3, num_projections=5).settings()
    assert {case.dataset for case in changed.cases} == {"digits"}
    assert 0.3 in changed.curve
    assert changed.num_projections == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--radius", "0.01"], "radii must be 0 < small < large <= 1, for inputs from 0 to 1, got 0.05 and 0.01"),
        (["--num-projections", "0"], "num_projections must be at least 1, got 0"),
        (["--dataset", "nothing"], "no data set is named 'nothing'"),
        (["--dataset", "mnist1d"], "inputs must lie from 0 to 1 to be attacked, got"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, message, tmp_path):
    done = run("--preset", "smoke", "--out", tmp_path / "new", *arguments, check=False)
    assert done.returncode == 2
    assert message in done.stderr
