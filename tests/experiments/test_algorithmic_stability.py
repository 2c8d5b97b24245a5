"""The study of algorithmic stability: its averages against runs trained one by one, and verdicts from made-up measurements."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from experiments.algorithmic_stability import claims, study
from experiments.algorithmic_stability.settings import FIRST_SEED, Arguments, Case, Settings
from jaxbp import lab, losses, models, stability, training
from tests.helpers import run_processes, studies

SMALL = Settings("small", 2, (Case("digits@4"),), num_epochs=12, run_up=3, num_train=60, num_test=50, batch_size=20, num_replaced=2)
SHARES, RATES = (0.0, 0.5), (0.05, 0.2)


@pytest.fixture(scope="module")
def results():
    return study.train_all(SMALL.cases[0], SMALL, 0, SHARES, RATES)


@pytest.mark.slow
def test_averages_are_those_of_runs_trained_one_by_one(results, monkeypatch):
    """A base run and one with the second example replaced, at half of the labels wrong and the larger rate."""
    case, settings = SMALL.cases[0], SMALL
    split, test = study.load(case, settings, 0)
    captured = {}
    monkeypatch.setattr(lab, "sweep", lambda *args, **options: captured.update(options))
    with pytest.raises(AttributeError):  # of the None in place of results
        study.train_all(case, settings, 0, SHARES, RATES)
    init_key, noise_key, order_key = jax.random.split(captured["keys"][0], 3)
    net = models.create("mlp", num_classes=10, width=24)
    noise = stability.draw_label_noise(noise_key, 60, 10)
    means = []
    for replaced in (False, True):
        inputs, labels = split.train.inputs[:60].copy(), split.train.labels[:60].copy()
        if replaced:
            inputs[1], labels[1] = split.train.inputs[61], split.train.labels[61]
        data = jnp.asarray(inputs), stability.apply_label_noise(noise, labels, 0.5, 10)
        run = training.train(
            net,
            training.sgd(0.2, momentum=0.9, weight_decay=1e-3),
            data,
            jax.random.fold_in(order_key, 0),
            training.Settings(num_epochs=12, batch_size=20),
            start=net.init(init_key, data[0][:1]),
            measure_fn=lambda state: losses.cross_entropy(net.apply(state.params, jnp.asarray(test.inputs)), jnp.asarray(test.labels)),
        )
        means.append(np.asarray(run.measured)[1 + settings.run_up :].mean(0))
    arm = results.sel(share=0.5, learning_rate=0.2)
    np.testing.assert_allclose(arm.average.sel(run=["base", "replaced 2"]), [row.mean() for row in means], rtol=1e-4)
    assert arm.largest >= np.abs(means[1] - means[0]).max() * (1 - 1e-3)


def test_an_example_replaced_by_itself_changes_nothing_and_another_one_or_order_does(results):
    assert results.itself == 0
    assert (results.beta > 0).all()
    assert (results.order > 0).all()


def test_the_closed_form_is_found():
    ratios = study.quadratic(SMALL.cases[0], SMALL, tuple(range(4))).ratio
    assert np.abs(ratios).max() < 0.2


def made_up(**changes):
    """Results of one case in which every claim holds, but for ``changes``, (share, learning_rate)."""
    rising = np.array([[1.0, 2.0, 3.0, 4.0], [8.0, 9.0, 12.0, 14.0]])
    arms = {"beta": rising, "bounded": rising, "order": rising / 2, "loss": np.ones((2, 4)), "gap": rising**2, "time": rising}
    arms |= {"settling": np.zeros((2, 4)), "change": np.zeros((2, 4))} | changes
    noise = np.random.default_rng(0).normal(1, 1e-3, (5, 1, 1))
    values = {name: (("seed", "share", "learning_rate"), array * noise) for name, array in arms.items()}
    dataset = xr.Dataset(values, {"share": [0.0, 0.5], "learning_rate": [0.02, 0.05, 0.1, 0.2]})
    return [studies.made_up(SMALL.cases[0], SMALL, train_all=dataset)]


def outcomes(**changes):
    return {name.removeprefix("S7."): verdict for name, verdict in studies.verdicts(study.STUDY, made_up(**changes), SMALL).items()}


def test_verdicts_follow_the_measurements():
    falling = -np.array([[1.0, 2.0, 3.0, 4.0], [8.0, 9.0, 12.0, 14.0]])
    assert set(outcomes().values()) == {"supported"}
    for letter, changes in {
        "a": {"settling": np.full((2, 4), -2.0)},
        "b": {"change": np.full((2, 4), 0.2)},
        "d": {"loss": np.array([[1.0] * 4, [100.0] * 4])},
        "e": {"gap": falling},
        "f": {"order": 100 * np.ones((2, 4))},
        "g": {"time": falling},
    }.items():
        assert {name for name, outcome in outcomes(**changes).items() if outcome == "contradicted"} == {letter}
    assert outcomes(beta=np.array([[4.0, 3.0, 2.0, 1.0], [1.0, 0.9, 0.8, 0.7]]))["c"] == "contradicted"
    assert outcomes(beta=np.array([[np.nan, 2.0, 3.0, 4.0], [8.0, 9.0, 12.0, 14.0]]))["c"] == "undecided"  # a run diverged


# Coefficient of the mean loss, and the same over the mean test loss, at label noise of 0 and 0.5: from the authors' stored outputs.
STORED = {"VGG16": ((0.0137, 0.0477), (0.031, 0.039)), "ResNet-18": ((0.0130, 0.1704), (0.029, 0.113))}


@pytest.mark.parametrize("name", STORED)
def test_the_papers_values_are_those_of_its_stored_outputs(name):
    """Losses that are as far apart as the stored coefficients say, through the instrument and the measures."""
    coefficient, relative = map(np.array, STORED[name])
    loss = coefficient / relative
    base = loss[:, None] + np.linspace(-0.1, 0.1, 5)  # about that mean, at five test examples
    pairs = [
        stability.coefficients(of_noise, of_noise + np.array([[gap], [-gap]])) for of_noise, gap in zip(base, coefficient, strict=True)
    ]
    np.testing.assert_allclose([pair.of_mean for pair in pairs], coefficient, rtol=1e-4)
    beta = xr.DataArray([[float(pair.of_mean)] for pair in pairs], {"share": [0.0, 0.5]}, ("share", "learning_rate"))
    for claim, rise in (
        (claims.NOISE, study.rise(beta)),
        (claims.BEYOND_LOSS, study.rise(beta / xr.DataArray(base.mean(1), {"share": [0.0, 0.5]}))),
    ):
        assert f"{float(rise):.1f} on {name}" in claim.paper_value


def test_settings_that_leave_too_few_epochs_are_refused():
    with pytest.raises(lab.SettingsError, match="8 epochs after the run-up of 120, got 127"):
        dataclasses.replace(Arguments.presets["quick"], num_epochs=127).validate()
    for preset in Arguments.presets.values():
        preset.validate()
    assert FIRST_SEED > 1000  # the pilot had the first ones


@pytest.mark.slow
def test_a_run_leaves_what_the_contract_says(smoke_folder):
    folder = smoke_folder("algorithmic_stability")
    run_processes.study("algorithmic_stability", "--preset", "smoke", "--out", folder)
    assert {path.stem for path in (folder / "figures").iterdir()} == {"beta", "influence", "runs", "gap", "correlation"}
    assert "S7.negative" in (folder / "report.html").read_text()
