"""The study of rank and robustness as its users run it, its natural training in one process, and its verdicts from made-up measurements."""

import dataclasses
import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from experiments.rank_robustness import measure, study
from experiments.rank_robustness.settings import (
    ADVERSARIAL,
    ALL_ARMS,
    ARMS,
    CONTROL,
    NATURAL,
    OTHER_WAY,
    PRESETS,
    RANK_MAX,
    RANK_MIN,
    ROTATED,
    TRAININGS,
    UNTRAINED,
    Arguments,
    Case,
)
from jaxbp import attacks, claims, spectra
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
    assert not rows[rows.measure != "pgd_accuracy"].value.isna().any()
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
    assert "4 of 4 jobs are in" in run("--preset", "smoke", "--out", folder).stdout


SMALL = dataclasses.replace(
    PRESETS["smoke"],
    cases=(Case("ConvNet", "digits@4", "convnet", 8, (("depth", 3),)),),
    num_epochs=25,
    num_fine_tuning=3,
    project_epochs=(1, 3),
    radius=0.2,
    curve=(0.05, 0.2),
    lower=("threshold", 0.6),
    upper=("ceiling", 0.9),
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
    control, lower, higher, rotated, _ = (study.log_rank(finished.cases[0], arm) for arm in ALL_ARMS)
    assert (lower < control).all()
    assert (higher > control).all()
    assert (abs(rotated - control) < 0.1).all()
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
    clean, strongest = natural.test_accuracy.sel(arm=list(ARMS)), natural.robust_accuracy.sel(arm=list(ARMS))
    pgd = natural.pgd_accuracy.sel(arm=list(ARMS)).transpose(..., "radius")
    assert clean.min() > 40  # of 10 for chance
    assert (pgd[..., 0] <= clean).all()
    assert (np.diff(pgd, axis=-1) <= 0).all()
    assert SMALL.judged_radius(NATURAL) == pgd.radius[0]
    assert (strongest <= pgd[..., 0] + 100 * 2 / SMALL.num_test).all()  # PGD may find two more


@pytest.mark.slow
def test_rows_hold_everything(finished, natural):
    rows = finished.table()
    assert set(rows.training) == {NATURAL}
    assert set(rows.weights.dropna()) == {UNTRAINED, *ALL_ARMS}
    of_run = rows[(rows.arm == RANK_MIN) & (rows.seed == 1)]
    assert of_run[of_run.measure == "test_accuracy"].value.item() == natural.test_accuracy.sel(arm=RANK_MIN, seed=1)
    layer = natural.layer.values[0]
    assert of_run[(of_run.measure == "effective_rank_along") & (of_run.layer == layer)].epoch.tolist() == [0, 1, 3]
    assert of_run[of_run.measure == "robust_accuracy"].value.item() == natural.robust_accuracy.sel(arm=RANK_MIN, seed=1)


@pytest.mark.slow
def test_projections_keep_norms_and_rotations_keep_ranks():
    net, (inputs, _) = measure.network(SMALL.cases[0], SMALL), measure.examples(SMALL.cases[0], SMALL, "train", 10, 0)
    params, state = measure.initialise(net, jax.random.key(0), inputs)

    @jax.jit
    def changed(params):
        settings = dataclasses.replace(SMALL, lower=("relative_rank", 0.7))
        return [fn(params) for fn in measure.projections(functools.partial(net.apply, state=state), params, inputs[:1], settings)]

    @jax.jit
    @jax.vmap
    def ranks_of(params):
        return jnp.stack([spectra.nuclear_rank(spectrum) for spectrum in measure.layer_spectra(net, params, inputs, state).values()])

    kept, *others = results = jax.tree.map(np.asarray, changed(params))
    jax.tree.map(np.testing.assert_array_equal, kept, params)
    ranks = dict(zip(ALL_ARMS, np.asarray(ranks_of(jax.tree.map(lambda *leaves: np.stack(leaves), *results))), strict=False))
    assert (ranks[RANK_MIN] < ranks[CONTROL]).all()
    np.testing.assert_allclose(ranks[ROTATED], ranks[CONTROL], rtol=1e-5)
    for result in others:
        for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(result), strict=True):
            np.testing.assert_allclose(np.linalg.norm(new), np.linalg.norm(old), rtol=1e-5, err_msg=str(path))
    pairs = zip(jax.tree.leaves(kept), jax.tree.leaves(others[2]), strict=True)
    assert sum((old != new).any() for old, new in pairs) == 2  # the kernels of the treated layers alone


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


@pytest.mark.slow
def test_more_seeds_need_no_job_anew():
    few, more = (jobs.plan(study.STUDY, dataclasses.replace(SMALL, num_seeds=number)) for number in (2, 3))
    assert {job.digest for job in few} < {job.digest for job in more}


def made_up(change):
    """Verdicts where each arm differs from the control by ``change(training, arm)``: log2 of rank, clean, share withstood."""
    settings = PRESETS["quick"]
    noise = 0.02 * (np.arange(settings.num_seeds) - 4.5)
    of_training = []
    for training in TRAININGS:
        changes = np.array([change(training, arm) if arm in (RANK_MIN, RANK_MAX) else (0.0, 0.0, 0.0) for arm in ALL_ARMS])
        by_arm = changes[:, :, None] + noise * np.arange(3)[:, None]  # arm, quantity, seed
        ranks = np.stack([3 + noise, *((2.0 if training == NATURAL else 2.3) + by_arm[:, 0])])
        clean = 90 + by_arm[:, 1]
        variables = {
            "effective_rank": (("weights", "seed", "layer"), 2 ** np.repeat(ranks[..., None], 4, axis=-1)),
            "train_loss": (("arm", "seed"), by_arm.sum(1)),
            "test_accuracy": (("arm", "seed"), clean),
            "robust_accuracy": (("arm", "seed"), clean * (50 + by_arm[:, 2]) / 100),
        }
        of_training.append(xr.Dataset(variables, {"arm": list(ALL_ARMS), "weights": [UNTRAINED, *ALL_ARMS]}))
    compared = xr.concat(of_training, xr.DataArray(list(TRAININGS), dims="training", name="training"))
    return studies.verdicts(study.STUDY, [studies.made_up(case, settings, compare=compared) for case in settings.cases], settings)


def test_verdicts_follow_the_rules():
    as_in_the_paper = made_up(lambda training, arm: (-0.5 if arm == RANK_MIN else 0.5, 0.3, -1.0))
    assert set(as_in_the_paper.values()) == {"supported"}
    harmed = made_up(lambda training, arm: (-0.5 if arm == RANK_MIN else 0.5, -2.0 if arm == RANK_MAX else 0.0, -4.0))
    assert (harmed["S4.b"], harmed["S4.c"]) == ("mixed", "contradicted")  # less robust is no more "as robust" than more is
    unmoved = made_up(lambda training, arm: (-0.1 if arm == RANK_MIN else 0.1, 5.0, 5.0))
    assert unmoved["S4.a"] == "contradicted"
    assert (unmoved["S4.b"], unmoved["S4.c"]) == ("not tested",) * 2
    half = made_up(lambda training, arm: (-0.5 if arm == RANK_MIN else 0.1, 0.0 if arm == RANK_MIN else 5.0, 0.0))
    assert (half["S4.a"], half["S4.b"], half["S4.c"]) == ("mixed", "supported", "supported")  # judged where the rank moved


def test_a_network_that_diverged_decides_nothing():
    verdicts = made_up(lambda training, arm: (np.nan if arm == RANK_MIN else 1.0, 0.0, 0.0))
    assert verdicts["S4.a"] == "undecided"
    assert verdicts["S4.c"] == "not tested"


def test_the_control_of_robustness_asks_for_the_right_sign():
    settings = PRESETS["quick"]
    arrays = {name: xr.DataArray(np.zeros((2, 5, 3)), dims=("training", "arm", "seed")) for name in ("train_loss", "robust_accuracy")}
    arrays["robust_accuracy"].loc[{"arm": 4, "training": 0}] += 10  # adversarial fine-tuning of a natural network
    arrays["robust_accuracy"].loc[{"arm": 4, "training": 1}] -= 7
    compared = xr.Dataset(arrays).assign_coords(arm=list(ALL_ARMS), training=list(TRAININGS))
    change = study.intended_robustness(studies.made_up(settings.cases[0], settings, compare=compared))
    assert change.sel(training=NATURAL, arm=OTHER_WAY).values.tolist() == [10.0] * 3
    assert change.sel(training=ADVERSARIAL, arm=OTHER_WAY).values.tolist() == [7.0] * 3


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
        (["--num-projections", "0"], "num_projections must be at least 1, got 0"),
        (["--dataset", "nothing"], "no data set is named 'nothing'"),
        (["--dataset", "mnist1d"], "inputs must lie from 0 to 1 to be attacked, got"),
    ],
)
@pytest.mark.first_cases(2)
def test_bad_input_is_named(arguments, message, tmp_path):
    assert message in studies.error_of("rank_robustness", tmp_path / "new", *arguments)


def test_bad_input_is_one_clear_line(tmp_path):
    done = run("--preset", "smoke", "--out", tmp_path / "new", "--radius", "0.01", check=False)
    assert done.returncode == 2
    assert "radii must be 0 < small < large <= 1, for inputs from 0 to 1, got 0.05 and 0.01" in done.stderr
