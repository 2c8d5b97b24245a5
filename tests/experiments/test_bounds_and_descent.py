"""The studies of sparse networks and low-rank layers: parts of them on small or made-up measurements. Whole runs of S6, S9 and S10."""

import dataclasses
import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from experiments.low_rank_bounds import study as low_rank
from experiments.low_rank_bounds.settings import PRESETS as LOW_RANK_PRESETS
from experiments.sparse_bounds import nets
from experiments.sparse_bounds import study as sparse
from experiments.sparse_bounds.settings import PRESETS as SPARSE_PRESETS
from experiments.sparse_bounds.settings import Case as SparseCase
from jaxbp import bounds, claims
from tests.helpers import run_processes


def test_networks_of_the_sparse_study_are_chains_that_bounds_accept():
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 8, 8, 1)))
    for stride, side in ((1, 5), (2, 1)):
        net = nets.network(3, 4, stride, 10)
        params, _ = net.init(jax.random.key(0), images)
        anatomy = bounds.anatomy(net.apply, params, images)
        assert (anatomy.depth, anatomy.layers[-1].num_read) == (4, side * side)
        units = bounds.lower.unit_frobenius(params[:-1])
        assert nets.maps([*units, None], images, stride=stride).shape == (4, side, side, 4)
    assert all(float(jnp.linalg.norm(kernel.ravel())) == pytest.approx(1) for kernel in (*nets.averages(3), *nets.averages(3, 3)))


def test_weight_normalisation_starts_as_the_network_and_moves_directions_at_right_angles():
    """From the same start; a direction's gradient is orthogonal to it, whatever the loss; filters alone decide the logits."""
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 6, 6, 3)))
    net = nets.network(2, 4, 1, 5)
    normalised = nets.with_weight_normalisation(net)
    (plain, _), (params, _) = (network.init(jax.random.key(0), images) for network in (net, normalised))
    for kernel, filters in zip(plain, nets.kernels(params), strict=True):
        np.testing.assert_allclose(kernel, filters, rtol=1e-6)
    gradient = jax.grad(lambda params: (normalised.apply(params, images) ** 2).sum())(params)
    for (_, direction), (_, slope) in zip(params[:-1], gradient[:-1], strict=True):
        assert abs(float(jnp.vdot(direction, slope))) < 1e-5 * float(jnp.linalg.norm(direction.ravel()) * jnp.linalg.norm(slope.ravel()))
    params[0] = (2 * params[0][0], 7 * params[0][1])  # the direction's length says nothing
    np.testing.assert_allclose(normalised.apply(params, images), 2 * net.apply(plain, images), rtol=1e-4)


@pytest.mark.slow
def test_the_sparse_study_takes_colours_weight_normalisation_and_random_labels(tmp_path):
    """The paper's arms at small size: images of three channels, noise of 100 %, and a rate that falls."""
    draw = np.random.default_rng(0)
    arrays = {"x_train": draw.uniform(size=(70, 6, 6, 3)), "x_test": draw.uniform(size=(20, 6, 6, 3))}
    np.savez(tmp_path / "colours.npz", y_train=np.arange(70) % 2, y_test=np.arange(20) % 2, **arrays)
    case = SparseCase(f"file:{tmp_path / 'colours.npz'}", 2, 3, varied=True, normalised=True)
    changes = {"cases": (case,), "num_epochs": 2, "num_train": 50, "varied_train": 50, "varied_width": 3, "varied_epochs": 2}
    settings = dataclasses.replace(SPARSE_PRESETS["paper"], num_seeds=2, rate_drops=(1,), batch_size=10, chunk_size=20, **changes)
    results = sparse.compare(case, settings)
    assert np.isfinite(results.complexity).all()
    assert (results.path_over_witness > 0).all()
    varied = sparse.vary(case, settings, "label noise")
    assert varied.log_risk.shape == (6, 2)
    assert np.isfinite(varied.log_risk).all()
    assert all(max(preset.levels.get("examples", (0,))) <= 54_000 for preset in SPARSE_PRESETS.values())


def test_only_networks_that_fit_are_ranked():
    def results(error):
        axes = ("hyperparameter", "level", "seed")
        values = {"log_risk": [1.0, 2, 3, 4], "gap": [0.1, 0.2, 0.4, 0.3], "train_error": error}
        arrays = {name: (axes, np.reshape(array, (1, 4, 1))) for name, array in values.items()}
        return types.SimpleNamespace(vary=xr.Dataset(arrays, {"hyperparameter": ["depth"], "seed": [0]}))

    assert sparse.ranking(results([0.0] * 4)).item() == pytest.approx(4 / 6)
    assert sparse.ranking(results([0.0, 0, 0, 0.5])).item() == 1
    assert math.isnan(sparse.ranking(results([0.0, 0, 0.5, 0.5])).item())
    assert -1 <= sparse.ranking(results([0.0] * 4), shuffled=True).item() <= 1


def test_factors_multiply_to_kernels_of_exact_rank():
    inputs = jnp.ones((3, 20))
    params, _ = low_rank.init(jax.random.key(0), inputs, width=16, depth=3, rank=4, num_classes=5)
    stacked = jax.tree.map(lambda leaf: np.asarray(leaf)[None], params)
    kernels = low_rank.kernels(stacked, (0,))
    assert [kernel.shape for kernel in kernels] == [(20, 16), (16, 16), (16, 5)]
    assert np.allclose(low_rank.apply(kernels, inputs), low_rank.apply(params, inputs), rtol=1e-4)
    anatomy = bounds.anatomy(low_rank.apply, kernels, np.random.default_rng(0).normal(size=(6, 20)))
    assert [layer.rank for layer in anatomy.layers] == [4, 4, 5]
    many = [low_rank.init(jax.random.key(k), inputs, width=64, depth=2, rank=8, num_classes=5)[0][0] for k in range(20)]
    spread = np.std([left @ right for left, right in many])
    assert spread == pytest.approx(math.sqrt(2 / 20), rel=0.1)  # as He's start has it


def test_networks_that_diverged_say_nothing_and_end_no_run():
    settings = dataclasses.replace(LOW_RANK_PRESETS["smoke"], num_seeds=2, num_epochs=2, decay_epochs=2, decay_rate=1e6, every=1)
    case = settings.cases[0]
    rates = xr.Dataset({"rate": ("arm", [1e6] * len(settings.arms))}, {"arm": list(settings.arms)})
    results = low_rank.compare(case, settings, rates)
    assert results.test_accuracy.isnull().all()
    assert results.complexity.isnull().all()
    assert results.factors.notnull().all()  # the control of covers is asked of every seed
    followed = low_rank.follow_collapse(case, settings)
    assert followed.complexity.isnull().all()
    assert followed.singular_values.isel(drawn_epoch=-1).isnull().all()
    assert followed.singular_values.isel(drawn_epoch=0).notnull().any()


def test_layers_whose_maps_are_zero_give_no_lower_bound():
    inputs = np.random.default_rng(0).uniform(size=(12, 8, 8, 1)).astype(np.float32)
    net = nets.network(2, 4, 1, 3)
    params, _ = net.init(jax.random.key(0), jnp.asarray(inputs))
    settings = dataclasses.replace(SPARSE_PRESETS["smoke"], chunk_size=None)
    dead = [jnp.zeros_like(kernel) for kernel in params]
    found, expected = (
        sparse.witness(types.SimpleNamespace(inputs=inputs, params=layers, num_classes=3), 1, jax.random.key(1), settings)
        for layers in (dead, nets.averages(len(params) - 1) + params[-1:])
    )
    assert 0 < found.value == pytest.approx(expected.value)  # that of averaging filters, which needs no training


@pytest.mark.slow
@pytest.mark.parametrize("study, id_, num_jobs", [("low_rank_bounds", "S6", 3), ("sparse_bounds", "S9", 5), ("soft_biases", "S10", 9)])
def test_a_run_leaves_verdicts_and_a_page(study, id_, num_jobs, smoke_folder):
    run = functools.partial(run_processes.study, study)
    folder = smoke_folder(study)
    run("--preset", "smoke", "--out", folder)
    verdicts = claims.read_verdicts(folder / "verdicts.json")
    assert [v.claim.id for v in verdicts if v.claim.id[-2] == "."] == [f"{id_}.{letter}" for letter in "abcde"]
    assert "<h2>Verdicts</h2>" in (folder / "report.html").read_text()
    assert f"{num_jobs} of {num_jobs} jobs are in" in run("--preset", "smoke", "--out", folder).stdout
