"""The study of unlearnable data: one small seed against trainings made one by one, and verdicts from made-up measurements."""

import dataclasses
import functools
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from experiments.unlearnable import arms, study, trainings
from experiments.unlearnable.settings import FIRST_SEED, Arguments, Case, Poison, Settings
from jaxbp import data, lab, training, unlearnable
from jaxbp.lab import archive
from tests.helpers import run_processes, studies

LSP, WAVES = Poison("LSP", "patches", 0.3, 2), Poison("waves", "waves", 0.3)
CASE = Case("digits", (LSP, WAVES), "mlp", 16, (), num_epochs=4)
SMALL = Settings("small", 2, (CASE,), num_train=200, batch_size=20)


@pytest.fixture(scope="module")
def results():
    return study.learn(CASE, SMALL, 0)


@pytest.mark.slow
def test_perturbations_are_proven_one_way_and_the_other(results):
    assert results.separable.values.tolist() == [1, 0]
    assert results.inseparable.values.tolist() == [0, 1]
    assert results.linear_accuracy.sel(poison="LSP") == 100
    assert results.linear_accuracy.sel(poison="waves") < 50
    assert (results.clipped == 0).all()


@pytest.mark.slow
def test_arms_are_trainings_on_the_sets_that_they_name(results):
    """The clean arm by the functions of the library, and what the sets of the others have to be."""
    split, net = data.load("digits", seed=FIRST_SEED, num_train=200), trainings.network(CASE, 10)
    made = {arm.name: arm for arm in (*arms.of_clean(split, CASE, SMALL, 0), *arms.of_poison(LSP, split, CASE, SMALL, 0))}
    run = training.train(
        net,
        training.sgd(0.05, momentum=0.9, weight_decay=5e-4, decay_steps=40),
        (split.train.inputs, split.train.labels),
        arms.keys_of(CASE, 0).train,
        training.Settings(num_epochs=4, batch_size=20, measure_epochs=(4,)),
        test_data=(split.test.inputs, split.test.labels),
    )
    assert results.clean == pytest.approx(100 * float(run.history["test_accuracy"][-1]), abs=0.6)  # 2 of 359: rounding
    np.testing.assert_array_equal(made["subset"].inputs[20:40], split.train.inputs[:20])
    assert sorted(np.bincount(made["subset"].labels[:20], minlength=10)) == [2] * 10
    perturbation = made["LSP"].inputs - split.train.inputs
    np.testing.assert_allclose(perturbation, np.repeat(np.repeat(perturbation[:, ::2, ::2], 2, 1), 2, 2), atol=1e-6)  # patches
    Q = unlearnable.projection(np.linalg.svd((split.train.inputs - made["clean, projected"].inputs).reshape(200, -1))[2][:10].T)
    assert np.abs(made["clean, projected"].inputs.reshape(200, -1) @ Q).max() < 1e-5


def test_arms_in_turn_have_the_numbers_of_arms_together(results):
    """A poison alone, its data sent from the host; and the same as one program, with heads on the way."""
    streamed = dataclasses.replace(CASE, streamed=True, refit_every=2)
    alone = study.learn(streamed, SMALL, 0, ("waves",))
    assert not {"clean", "subset", "shuffled"} & set(alone)
    two = 0.6  # examples of 359, in per cent: rounding
    for name in ("perturbed", "projected", "clean_projected", "refitted", "train_accuracy"):
        np.testing.assert_allclose(alone[name], results[name].sel(poison=["waves"]), atol=two)
    split, fixed = data.load("digits", seed=FIRST_SEED, num_train=200), (arms.keys_of(CASE, 0).train, streamed, SMALL, 10)
    ((_, trained),) = trainings.together([next(arms.of_poison(WAVES, split, CASE, SMALL, 0))], *fixed)
    along = study.refitted(trained.along, split, CASE, SMALL)
    assert alone.epoch.values.tolist() == [2, 4]
    assert along[0] != along[1]
    np.testing.assert_allclose(alone.refitted_along, [along], atol=two)
    np.testing.assert_array_equal(alone.refitted_along[:, -1], alone.refitted)


def test_data_of_one_arm_are_in_memory_and_jobs_of_single_poisons_make_a_whole(monkeypatch):
    alive = []

    def stream(net, optimizer, arrays, key, options, *, measure_fn, check=True, **_):
        """No training; the sets of earlier arms have to be gone."""
        alive.append(weakref.ref(arrays[0]))
        sets = {id(array) for ref in alive if ref is not alive[0] and (array := ref()) is not None}  # the first is clean
        assert len(sets) <= 1 or not check, len(alive)
        params, state = net.init(key, arrays[0][:1])
        measured = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), (params, state)) if measure_fn else None
        return training.TrainResult(params, state, {"train_accuracy": np.ones(1)}, measured)

    monkeypatch.setattr(trainings.parallel, "stream", stream)
    case = dataclasses.replace(CASE, streamed=True, refit_every=2, cutmix=True)
    whole = study.learn(case, SMALL, 0)
    assert len(alive) == 4 + 2 * 5
    jobs = [(name,) for name in case.names]
    assert study.STUDY.stages[0].over(case, SMALL)["poison"] == jobs
    monkeypatch.setattr(trainings.parallel, "stream", functools.partial(stream, check=False))
    parts = archive.combine([({"seed": 0, "poison": job}, study.learn(case, SMALL, 0, job)) for job in jobs]).isel(seed=0, drop=True)
    xr.testing.assert_identical(parts[sorted(whole)], whole[sorted(whole)])


SEEDS = np.random.default_rng(0).normal(0, 0.1, 10)


def made_up(**changes):
    """Results of one case in which every claim holds, but for ``changes``."""
    values = {"clean": 90.0, "subset": 50.0, "refitted_untrained": 40.0, "refitted": [60.0, 60.0], "perturbed": [20.0, 30.0]}
    values |= {"inseparable": [0.0, 1.0], "projected": [[85.0, 85.0], [31.0, 32.0]], "clean_projected": [[88.0, 88.0]] * 2}
    values |= {"own_projected": [90.5, 89.5]} | changes
    axes = {0: (), 1: ("poison",), 2: ("poison", "test")}
    variables = {}
    for name, value in values.items():
        array = np.asarray(value, float)
        dims = ("test",) if name == "own_projected" else axes[array.ndim]
        noise = 0 if name == "inseparable" else SEEDS
        variables[name] = ((*dims, "seed"), array[..., None] + noise * np.ones(10) * (1 + 0.1 * len(name)))
    dataset = xr.Dataset(variables, {"poison": ["LSP", "waves"], "test": list(study.TESTS)})
    return [studies.made_up(CASE, SMALL, learn=dataset)]


def outcomes(**changes):
    return {name.removeprefix("S8."): verdict for name, verdict in studies.verdicts(study.STUDY, made_up(**changes), SMALL).items()}


def test_verdicts_follow_the_measurements():
    assert set(outcomes().values()) == {"supported"}
    for letter, changes in {
        "b": {"refitted_untrained": 70.0},
        "c": {"subset": 70.0},
        "d": {"inseparable": [0.0, 0.0]},
        "e": {"projected": [[60.0, 60.0], [31.0, 32.0]]},
        "f": {"projected": [[85.0, 85.0], [60.0, 60.0]]},
        "g": {"own_projected": [80.0, 80.0]},
    }.items():
        assert {name for name, outcome in outcomes(**changes).items() if outcome != "supported"} == {letter}, letter


def test_poisons_too_weak_to_matter_leave_the_claims_untested():
    weak = outcomes(perturbed=[89.0, 89.0])
    assert weak["a"] == "contradicted"
    assert {weak[letter] for letter in "bcdef"} == {"not tested"}
    assert weak["g"] == "supported"  # clean data have no premise


def test_networks_that_diverged_decide_nothing():
    net = trainings.network(CASE, 10)
    inputs, labels = np.zeros((5, 8, 8, 1), np.float32), np.arange(5)
    params, state = net.init(jax.random.key(0), inputs)
    assert trainings.accuracy(CASE, 10, (params, state), inputs, labels) == pytest.approx(20)  # one class for all
    diverged = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), params), state
    assert np.isnan(trainings.accuracy(CASE, 10, diverged, inputs, labels))
    untested = dict.fromkeys("bcdef", "not tested")
    assert outcomes(clean=np.nan) == {"a": "undecided", "g": "undecided"} | untested
    assert outcomes(perturbed=[np.nan, np.nan]) == {"a": "undecided", "g": "supported"} | untested
    (measured,) = made_up(perturbed=[np.nan, np.nan])
    assert study.proven_failures(measured).isnull().all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["error-minimising", "error-minimising, class-wise", "error-maximising"])
def test_perturbations_by_networks_stay_within_their_budget(kind, monkeypatch):
    monkeypatch.setattr(arms, "ROUNDS", 2)
    monkeypatch.setattr(arms, "ATTACK_STEPS", 3)
    case = Case("digits", (Poison(kind, kind, 0.05),), "resnet", 4, (("stages", 2), ("depth", 1)), num_epochs=2)
    split = data.load("digits", seed=0, num_train=100)
    result = arms.perturb(case.poisons[0], jax.random.key(0), split, split.train.labels, case, SMALL)
    assert result.shape == split.train.inputs.shape
    assert 0.01 < np.abs(result).max() <= 0.05 + 1e-6


@pytest.mark.slow
def test_a_run_leaves_what_the_contract_says(smoke_folder):
    folder = smoke_folder("unlearnable")
    run_processes.study("unlearnable", "--preset", "smoke", "--out", folder)
    names = {path.stem for path in (folder / "figures").iterdir()}
    assert names == {"accuracy", "pictures_mnist5k_14", "separability", "heads", "projection"}
    assert "S8.positive" in (folder / "report.html").read_text()


def test_presets_are_valid_and_too_few_clean_examples_are_not():
    for preset in Arguments.presets.values():
        preset.validate()
    with pytest.raises(lab.SettingsError, match=r"20 clean examples, got 0\.1 of 190"):
        dataclasses.replace(SMALL, num_train=190).validate()
