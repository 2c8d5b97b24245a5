"""The study of soft biases: its stages at small size, its measures on made-up results."""

import dataclasses
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import xarray as xr

from experiments.soft_biases import measure, outcomes, trainings
from experiments.soft_biases.settings import CODE, EVIDENCE, POLYNOMIAL, PRESETS, WIDTHS, Case
from experiments.soft_biases.study import STUDY
from jaxbp import data, lab, losses, models, pac_bayes
from jaxbp.lab import jobs
from jaxbp.ntk.infinite_width import infinite_width_kernel


def test_the_largest_rise_is_from_any_number_to_a_larger_one():
    error = xr.DataArray(2.0 ** np.array([[3.0, 1.0, 0.5, 2.0, 1.75]]), {"seed": [0], "features": range(5)}, ("seed", "features"))
    m = types.SimpleNamespace(random_features=xr.Dataset({"error": error.expand_dims(arm=[measure.RIDGE])}))
    assert outcomes.rise(m).item() == pytest.approx(1.5)


def test_widths_before_the_first_that_fits_do_not_count():
    axes = ("seed", "width")
    results = xr.Dataset(
        {
            "train_accuracy": (axes, [[0.5, 1.0, 0.98, 1.0]]),
            "test_loss": (axes, [[0.1, 3.0, 2.0, 1.0]]),
            "effective_dimension": (("seed", "exponent", "width"), [[[9.0, 1, 2, 3], [9.0, 3, 2, 1]]]),
        }
    )
    assert outcomes.tracking(types.SimpleNamespace(width_sweep=results)).item() == 1  # of the two alphas the one that favours the claim
    fits_late = results.assign(train_accuracy=(axes, [[0.5, 0.5, 1.0, 1.0]]))
    assert math.isnan(outcomes.tracking(types.SimpleNamespace(width_sweep=fits_late)).item())


def test_polynomials_without_a_preference_fit_noise_and_overfit():
    settings = dataclasses.replace(PRESETS["smoke"], degree=60, num_points=20, gammas=(1.1,))
    results = measure.polynomials(Case(POLYNOMIAL, design="grid", target="smooth"), settings)
    flat, soft_arm = (results.sel(arm=arm) for arm in (measure.FLAT, measure.SOFT))
    assert (flat.noise_error < measure.FITS_NOISE).all()
    assert float(flat.risk.mean()) > 3 * float(soft_arm.risk.mean())
    assert float(results.curve.sel(arm=measure.FLAT, data="noise").isel(x=0)) == pytest.approx(  # the fit goes through the first point
        float(results.points.sel(arm=measure.FLAT, column="noise").isel(point=0)), abs=1e-3
    )


def test_the_evidence_of_a_seed_is_the_best_density_of_the_grid_and_falls_with_label_noise():
    settings = dataclasses.replace(PRESETS["smoke"], num_seeds=2, evidence_train=40, evidence_noises=(0.0, 1.0))
    case = Case(EVIDENCE, "digits@4")
    results = measure.evidence(case, settings)
    assert (results.log_evidence.sel(noise=0.0) > results.log_evidence.sel(noise=1.0)).all()
    assert (results.ridge.sel(noise=0.0) < results.ridge.sel(noise=1.0)).all()
    dataset = measure.load(case, settings)
    chosen = data.stratified_indices(dataset.train.labels, 40, seed=1)
    net = models.create("mlp", num_classes=10, width=1, parametrisation="ntk")
    kernel = np.asarray(infinite_width_kernel(net.module, (4, 4, 1))(dataset.train.inputs[chosen], get="nngp"), float)
    targets = np.eye(10)[dataset.train.labels[chosen]] - 0.1
    densities = []
    for ridge in settings.evidence_ridges:
        covariance = kernel + ridge * np.trace(kernel) / 40 * np.eye(40)
        scale = np.sum(targets * np.linalg.solve(covariance, targets)) / targets.size
        densities.append(scipy.stats.multivariate_normal.logpdf(targets.T, cov=scale * covariance).sum() / 40)
    assert float(results.log_evidence.sel(seed=1, noise=0.0)) == pytest.approx(max(densities), rel=1e-6)  # this kernel is float32
    assert float(results.ridge.sel(seed=1, noise=0.0)) == settings.evidence_ridges[int(np.argmax(densities))]


def test_a_stage_of_the_soft_biases_is_left_as_it_is_by_settings_of_others():
    settings = PRESETS["smoke"]
    before, after = (
        {job.key: job.stage.name for job in jobs.plan(STUDY, given)}
        for given in (settings, dataclasses.replace(settings, evidence_train=9))
    )
    assert {before[key] for key in before.keys() - after.keys()} == {"evidence"}


def test_the_bound_counts_at_its_best_dimension_and_with_the_start_of_the_seed_alone():
    axes = ("seed", "dimension", "labels", "prior")
    true, random = [[0.5, 0.1], [0.3, 0.2]], [[1.0, 0.1], [0.95, 0.1]]  # (dimension, prior)
    bound = np.stack([true, random], 1)[None]
    coordinates = {"dimension": [500, 1000], "labels": ["true", "random"], "prior": [trainings.SEED_ALONE, trainings.TRAINED_START]}
    errors = {name: (axes, np.full_like(bound, 0.15)) for name in ("train_error", "test_error")}
    m = types.SimpleNamespace(code_lengths=xr.Dataset({"bound": (axes, bound)} | errors, coordinates))
    assert outcomes.informative(m).item() == pytest.approx(0.05)  # of 0.9 - 0.3 and 0.95 - 0.9
    assert outcomes.least_slack(m).item() == pytest.approx(0.05)  # a bound of 0.1 and a test error of 0.15


def test_a_start_is_trained_on_examples_that_its_bound_leaves_out():
    """No label that the bound counts moves the start; which examples these are is the same whatever the labels."""
    net = models.create("mlp", num_classes=10, width=4, depth=1)
    settings = dataclasses.replace(PRESETS["smoke"], prior_share=0.25, code_epochs=1)
    inputs, labels = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32), np.arange(40, dtype=np.int32) % 10
    start, _ = net.init(jax.random.key(0), jnp.asarray(inputs[:1]))
    left, trained = trainings.trained_start(net, settings, data.Split(inputs, labels), start, 5)
    rows = np.flatnonzero((inputs[:, None] == left.inputs).all(-1).any(1))
    assert (len(rows), len(left.labels)) == (30, 30)  # each of them once

    def distance(changed):
        other, again = trainings.trained_start(net, settings, data.Split(inputs, changed), start, 5)
        np.testing.assert_array_equal(other.inputs, left.inputs)
        return max(float(jnp.abs(a - b).max()) for a, b in zip(jax.tree.leaves(trained), jax.tree.leaves(again), strict=True))

    counted = labels.copy()
    counted[rows] = (labels[rows] + 3) % 10
    assert distance(counted) == 0
    seen = np.setdiff1d(np.arange(40), rows)
    assert distance(np.where(np.arange(40) == seen[0], 9 - labels, labels)) > 0


@pytest.mark.slow
def test_bounds_pay_for_the_dimensions_and_are_on_the_examples_that_are_left(monkeypatch):
    calls = []

    def certify(predict_fn, z, labels, *, steps, delta, name_bits):
        calls.append((len(z), name_bits))
        return pac_bayes.Certificate(0.5, 0.1, {"examples": float(len(labels))}, np.zeros(len(z), int), 1.0)

    monkeypatch.setattr(pac_bayes, "certify", certify)
    monkeypatch.setattr(trainings, "_train_code", lambda matrix, *rest: jnp.zeros(len(matrix)))  # programs that decide nothing here
    changes = {"dimensions": (3, 6), "prior_share": 0.5, "hidden": (4,), "code_epochs": 1, "num_seeds": 1}
    settings, case = dataclasses.replace(PRESETS["smoke"], **changes), Case(CODE, "digits@4")
    results = trainings.code_lengths(case, settings)
    assert calls == [(dimension, 1.0) for dimension in (3, 6) for _ in range(4)]  # one bit names one of two
    num_examples = len(measure.load(case, settings).train.labels)
    assert (results.bits.sel(prior=trainings.SEED_ALONE) == num_examples).all()
    assert (results.bits.sel(prior=trainings.TRAINED_START) == num_examples - round(num_examples / 2)).all()
    assert (results.test_error.sel(labels="random") == trainings.CHANCE).all()


@pytest.mark.parametrize("end", [1e9, np.nan])
def test_trainings_that_diverged_have_no_code(end, monkeypatch):
    monkeypatch.setattr(trainings, "_train_code", lambda matrix, *rest: jnp.full(len(matrix), end))
    changes = {"dimensions": (3,), "hidden": (4,), "num_seeds": 1}
    results = trainings.code_lengths(Case(CODE, "digits@4"), dataclasses.replace(PRESETS["smoke"], **changes))
    assert (results.bound == 1).all()
    assert results.train_error.isnull().all()
    m = types.SimpleNamespace(code_lengths=results)
    assert np.isnan(outcomes.informative(m)).all()
    assert np.isnan(outcomes.least_slack(m)).all()


def test_a_network_that_diverged_has_no_effective_dimension():
    net = models.create("mlp", num_classes=3, width=2, depth=1)
    inputs = np.ones((4, 5), np.float32)
    params, state = net.init(jax.random.key(0), jnp.asarray(inputs))
    examples = inputs, np.arange(4, dtype=np.int32) % 3
    assert np.isfinite(trainings.effective_dimensions(net, params, state, examples, PRESETS["smoke"], 0)).all()
    params = jax.tree.map(lambda leaf: leaf.at[0].set(jnp.inf), params)
    assert np.isnan(trainings.effective_dimensions(net, params, state, examples, PRESETS["smoke"], 0)).all()


def test_a_share_or_dimensions_that_leave_nothing_are_refused():
    for message, changes in {
        r"prior_share must be at least 0 and below 1, so that examples are left, got 1": {"prior_share": 1.0},
        r"dimensions must be different numbers of at least 1, one or more of them, got \(5, 5\)": {"dimensions": (5, 5)},
    }.items():
        with pytest.raises(lab.SettingsError, match=message):
            dataclasses.replace(PRESETS["smoke"], **changes).validate()
    for settings in PRESETS.values():
        settings.validate()


@pytest.mark.slow
def test_a_network_with_batch_norm_has_the_curvature_of_its_stored_statistics():
    """Against the eigenvalues of a dense Hessian by the parameters alone."""
    net = models.create("resnet", num_classes=3, width=1, stages=1, depth=1)
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(6, 4, 4, 1)).astype(np.float32), np.arange(6, dtype=np.int32) % 3
    params, state = net.init(jax.random.key(0), jnp.asarray(inputs))
    state = jax.tree.map(lambda leaf: leaf + 0.5, state)
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    @jax.jit
    @jax.hessian
    def dense(flat):
        return losses.cross_entropy(net.apply(unravel(flat), inputs, state), labels).sum()

    values = np.maximum(np.linalg.eigvalsh(np.asarray(dense(flat), np.float64)), 0)
    settings = dataclasses.replace(PRESETS["smoke"], exponents=(-1, 0))
    counted = trainings.effective_dimensions(net, params, state, (inputs, labels), settings, 0)
    expected = [np.sum(values / (values + 10.0**exponent)) for exponent in settings.exponents]
    np.testing.assert_allclose(counted, expected, rtol=1e-3)  # float32 of eigenvalues that differ by many orders


@pytest.mark.slow
def test_widths_of_a_residual_network_are_swept(tmp_path):
    """The paper's case at small size: images of 8 x 8 in three colours, three classes."""
    draw = np.random.default_rng(0)
    arrays = {"x_train": draw.uniform(size=(80, 8, 8, 3)), "x_test": draw.uniform(size=(12, 8, 8, 3))}
    np.savez(tmp_path / "colours.npz", y_train=np.arange(80) % 3, y_test=np.arange(12) % 3, **arrays)
    case = Case(WIDTHS, f"file:{tmp_path / 'colours.npz'}", 0.1, model="resnet18")
    settings = dataclasses.replace(PRESETS["paper"], num_seeds=2, width_train=60, width_epochs=2)
    results = trainings.width_sweep(case, settings, 1)
    assert results.train_accuracy.sizes == {"seed": 2}
    assert (results.effective_dimension > 0).all()
    assert (results.effective_dimension.diff("exponent") < 0).all()
    assert PRESETS["paper"].widths[0] == 1
    assert PRESETS["paper"].widths[-1] == 64
