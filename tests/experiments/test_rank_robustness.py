"""Study 4 as its users run it, a piece of it in one process, and its verdicts from made-up measurements."""

import dataclasses
import functools
import itertools
import json

import jax
import numpy as np
import pandas as pd
import pytest

from experiments.rank_robustness import measure, results
from experiments.rank_robustness.settings import (
    ADVERSARIAL,
    ALONE,
    ARMS,
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
from jaxbp.runtime.store import Store
from tests.helpers import run_processes

run = functools.partial(run_processes.study, "rank_robustness")


@pytest.mark.slow
def test_a_run_leaves_what_the_contract_says(smoke_folder):
    folder = smoke_folder("rank_robustness")
    said = run("--preset", "smoke", "--out", folder).stdout
    verdicts = claims.read_verdicts(folder / "verdicts.json")
    assert [v.claim.id for v in verdicts] == ["S4.a", "S4.b", "S4.c", "S4.d", "S4.e"]
    rows = pd.read_parquet(folder / "measurements.parquet")
    assert list(rows.columns) == ["case", "arm", "seed", "step", "measure", "value"]
    assert not rows.value.isna().any()
    assert {path.stem for path in (folder / "figures").iterdir()} == {
        "rank_by_layer", "accuracy_by_radius", "clean_and_robust", "rank_along", "singular_values",
    }  # fmt: skip
    assert "<h2>Verdicts</h2>" in (folder / "report.html").read_text()
    assert json.loads((folder / "config.json").read_text())["settings"]["num_seeds"] == 2
    assert str(folder / "report.html") in said
    assert "8 of 8 pieces of work are in" in run("--preset", "smoke", "--out", folder).stdout


SMALL = dataclasses.replace(
    PRESETS["smoke"], cases=(Case("ConvNet", "digits@4", "convnet", 8, (("depth", 3),)),), num_epochs=25, num_fine_tuning=3,
    project_epochs=(1, 3), radius=0.2, curve=(0.05, 0.2), threshold=0.6, ceiling=0.9, num_train=400, learning_rate=0.02,
)  # fmt: skip  # projected at the very end, so that what is measured there is what the projection left


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Both seeds of a small network under natural training."""
    with Store(tmp_path_factory.mktemp("run"), {"settings": 1}, {}) as store:
        lab, (case,) = measure.Lab(SMALL, None), SMALL.cases
        for seed in SMALL.seeds:
            store.put(measure.piece_name(case, NATURAL, seed), lab.run(case, NATURAL, seed))
        yield results.Results(SMALL, store), case


@pytest.mark.slow
def test_arms_start_alike_and_end_as_projected(finished):
    found, case = finished
    along = {arm: found.of_arm(case, NATURAL, arm, "ranks along") for arm in ARMS}
    for arm in (RANK_MIN, RANK_MAX):
        np.testing.assert_array_equal(along[arm][:, 0], along[ALONE][:, 0])
    assert (along[RANK_MIN][:, -1] < along[ALONE][:, -1]).any()
    assert (found.log_rank(case, NATURAL, RANK_MIN) < found.log_rank(case, NATURAL, ALONE)).all()
    assert (found.log_rank(case, NATURAL, RANK_MAX) > found.log_rank(case, NATURAL, ALONE)).all()
    assert len(np.unique(along[ALONE][:, 0, 0])) == SMALL.num_seeds


@pytest.mark.slow
def test_ranks_are_those_of_the_values_kept(finished):
    found, case = finished
    assert len(found.layers(case)) == 2  # of three convolutions, all but the first
    for arm, (place, layer) in itertools.product(ARMS, enumerate(found.layers(case))):
        values = found.get(case, NATURAL, f"values; {arm}; {layer}")
        expected = values.sum(1) / np.sqrt((values**2).sum(1))
        np.testing.assert_allclose(found.of_arm(case, NATURAL, arm, "rank")[:, place], expected, rtol=1e-5)
        np.testing.assert_allclose(found.of_arm(case, NATURAL, arm, "ranks along")[:, -1, place], expected, rtol=1e-5)


@pytest.mark.slow
def test_attacks_take_away_and_the_strongest_the_most(finished):
    found, case = finished
    clean, curve, strongest = (found.get(case, NATURAL, name) for name in ("clean", "curve", "strongest"))
    assert clean.min() > 40  # of 10 for chance
    assert (curve[..., 0] <= clean).all()
    assert (np.diff(curve, axis=-1) <= 0).all()
    assert (strongest[..., 0] <= curve[..., 0] + 100 * 2 / SMALL.num_test).all()  # PGD may find two more
    assert (strongest[..., 1] < clean - 10).all()


@pytest.mark.slow
def test_rows_hold_everything(finished, monkeypatch):
    found, case = finished
    monkeypatch.setattr(results, "TRAININGS", (NATURAL,))
    rows = pd.DataFrame(list(results.rows(found)), columns=["case", "arm", "seed", "step", "measure", "value"])
    assert set(rows.arm) == {f"natural, {arm}" for arm in (*ARMS, UNTRAINED)}
    one = rows[(rows.arm == "natural, RankMin") & (rows.seed == 1)]
    assert one[one.measure == "test_accuracy"].value.item() == found.of_arm(case, NATURAL, RANK_MIN, "clean")[1]
    ranks = one[one.measure == f"effective_rank, {found.layers(case)[0]}"]
    assert ranks.step.tolist() == [0, 1, 3]
    strongest = one[one.measure == "accuracy, strongest attack, radius 0.2"].value.item()
    assert strongest == found.of_arm(case, NATURAL, RANK_MIN, "strongest")[1, 1]


@pytest.mark.slow
def test_adversarial_training_trains_on_attacked_batches():
    case, radius = dataclasses.replace(SMALL.cases[0], dataset="digits"), 0.1
    lab = measure.Lab(dataclasses.replace(SMALL, radius=radius), None)
    inputs, labels = lab._rows(case, "train", 400, 0)
    pgd = attacks.pgd(attacks.Threat("linf", radius), num_steps=20)
    robust = {}
    for kind in TRAININGS:
        programs = lab.programs(case, kind)
        end = programs.train(*programs.start(jax.random.key(0), inputs), inputs, labels, jax.random.key(1))
        network = jax.tree_util.Partial(programs.logits, end.params, state=end.state)
        found = attacks.robust_accuracy(network, jax.random.key(2), inputs, labels, {"pgd": pgd}, check_masking=False)
        robust[kind] = found.worst_case.estimate
    assert robust[ADVERSARIAL] > robust[NATURAL] + 0.1


RADIUS_EFFECT = {
    NATURAL: 9.0,
    ADVERSARIAL: -1.0,
}  # on RankMin at the larger radius, which natural training is not judged at


def made_up(tmp_path, change):
    """Results in which each arm differs from the one left alone by ``change(kind, arm)``: log2 of rank, clean, robust."""
    settings = PRESETS["quick"]
    store = Store(tmp_path / "made", {"settings": 1}, {})
    for case, kind, seed in itertools.product(settings.cases, TRAININGS, settings.seeds):
        noise = 0.02 * (seed - 2)
        by_arm = np.array([[0.0, 0.0, 0.0] if arm == ALONE else change(kind, arm) for arm in ARMS]) + noise * np.arange(3)[:, None]
        base = 2.0 if kind == NATURAL else 2.3
        store.put(
            measure.piece_name(case, kind, seed),
            {
                "rank": 2 ** (base + by_arm[:, :1] + np.zeros(4)),
                "untrained rank": 2 ** (3 + noise + np.zeros(4)),
                "loss": by_arm.sum(1),
                "clean": 90 + by_arm[:, 1],
                "strongest": 50 + by_arm[:, 2:] + (RADIUS_EFFECT[kind] * (np.array(ARMS) == RANK_MIN))[:, None] * [0, 1],
            },
        )
    return {v.claim.id: v.verdict for v in results.verdicts(results.Results(settings, store))}


def test_verdicts_follow_the_rules(tmp_path):
    assert made_up(tmp_path / "a", lambda kind, arm: (-0.5 if arm == RANK_MIN else 0.5, 0.3, -1.0)) == {
        "S4.a": "supported", "S4.b": "supported", "S4.c": "supported", "S4.d": "supported", "S4.e": "supported",
    }  # fmt: skip
    other = made_up(tmp_path / "b", lambda kind, arm: (0.5, -2.0 if arm == RANK_MAX else 0.0, 3.0 if kind == NATURAL else 0.0))
    assert (other["S4.a"], other["S4.b"], other["S4.c"]) == ("contradicted",) * 3
    harmless = made_up(tmp_path / "d", lambda kind, arm: (0.1, 0.0, 5.0 if arm == RANK_MAX else 0.0))
    assert harmless["S4.c"] == "supported"  # whatever RankMax does
    near = made_up(tmp_path / "c", lambda kind, arm: (0.01, 1.0, 2.0))
    assert (near["S4.b"], near["S4.c"]) == ("undecided",) * 2


def test_a_network_that_diverged_decides_nothing(tmp_path):
    found = made_up(tmp_path, lambda kind, arm: (np.nan if arm == RANK_MIN else 1.0, 0.0, 0.0))
    assert [found[claim] for claim in ("S4.a", "S4.b", "S4.c")] == ["undecided"] * 3


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
