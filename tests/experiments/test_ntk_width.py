"""The study of tangent kernels as its users run it, and its verdicts from made-up measurements."""

import dataclasses
import functools
import itertools
import json
from types import SimpleNamespace

import jax
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from experiments.ntk_width import departure, kernels, measure
from experiments.ntk_width.settings import BATCH, PAPER_DECAY, PRESETS, STORED, Arguments, log_spaced
from experiments.ntk_width.study import STUDY, difference_of_limits, has_controls, interaction, kept, plain_slopes, slopes
from jaxbp import claims, lab
from jaxbp.ntk import measures
from jaxbp.runtime import device_memory
from tests.helpers import run_processes, studies

run = functools.partial(run_processes.study, "ntk_width")


@pytest.mark.parametrize(("own", "free", "wanted"), [(64.0, 16, 16), (4.0, 16, 4)])
def test_a_kernel_keeps_to_the_smaller_bound_on_the_device_of_its_job(own, free, wanted, monkeypatch):
    asked = jax.local_devices()[-1]
    kernels._memory_of.cache_clear()
    monkeypatch.setattr(device_memory, "default_bound", lambda device, num_sharing: free if device == asked else 0)
    with jax.default_device(asked):
        assert kernels.memory_of(dataclasses.replace(PRESETS["quick"], memory=own)) == wanted
    kernels._memory_of.cache_clear()


@pytest.fixture(scope="module")
def smoke(smoke_folder):
    folder = smoke_folder("ntk_width")
    return folder, run("--preset", "smoke", "--out", folder).stdout


def test_trainings_side_by_side_are_those_in_turn():
    """As accelerators compute them, and as CPUs do."""
    settings = PRESETS["smoke"]
    case = settings.cases[0]
    net, splits = measure.create(case, settings, case.widths[0]), [measure.load(settings, seed) for seed in (0, 1)]
    values = {
        "key": jax.random.split(jax.random.key(0)),
        "train": measure._stacked(split.train for split in splits),
        "test": measure._stacked(split.test for split in splits),
        "rates": np.array([[0.1, 0.0], [0.05, 0.001]], np.float32),
    }
    in_turn, at_once = (measure._training_program(net, settings, turn, False)(values) for turn in (True, False))
    for one, other in zip(jax.tree.leaves(in_turn), jax.tree.leaves(at_once), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_run_leaves_what_the_contract_says(smoke):
    folder, said = smoke
    verdicts = claims.read_verdicts(folder / "verdicts.json")
    assert [v.claim.id for v in verdicts] == [f"S3.{letter}" for letter in "abcdefgh"]
    rows = pd.read_parquet(folder / "measurements.parquet")
    assert {"case", "stage", "measure", "value", "width", "statistics", "seed", "epoch"} <= set(rows.columns)
    assert {path.suffix for path in (folder / "figures").iterdir()} == {".png", ".svg"}
    assert "<h2>Verdicts</h2>" in (folder / "report.html").read_text()
    assert json.loads((folder / "config.json").read_text())["settings"]["num_seeds"] == 2
    assert " done " in (folder / "log.txt").read_text()
    assert str(folder / "report.html") in said


@pytest.mark.slow
def test_measurements_of_the_run_are_consistent(smoke):
    tree = lab.open(smoke[0])
    trained = {name: case["train"] for name, case in tree.children.items() if "train" in case}
    assert len(trained) == 2
    for name, of_case in trained.items():
        assert of_case.statistics.values.tolist() == ([STORED, BATCH] if ", BatchNorm" in name else [STORED])
        at_target = of_case.share_of_rescaling.sel(point=kernels.TARGET)
        assert bool((at_target.isnull().all("statistics") == (of_case.reached == 0)).all())
        assert bool((of_case.norm.sel(time=kernels.TARGET).isnull().all("statistics") == (of_case.reached == 0)).all())
        assert bool((of_case.norm.sel(time=kernels.BEFORE) > 0).all())
        share = of_case.share_of_rescaling.sel(point=kernels.END)
        assert ((share > -1e-5) & (share < 1 + 1e-5)).all()
        reached = of_case.train_loss.where(of_case.epoch == of_case.epoch_at_target).max("epoch")
        assert float(reached.max()) <= PRESETS["smoke"].target_loss
    accuracy = tree["MLP, 2 layers"]["regress"].test_accuracy
    assert [name for name in accuracy.kernel.values if "BatchNorm" in name] == [
        f"NTK, exact, dense chain, BatchNorm, {s}" for s in (STORED, BATCH)
    ]
    assert (accuracy > 0.3).all()  # of ten classes


@pytest.mark.slow
def test_the_same_command_again_has_nothing_to_compute(smoke):
    folder, _ = smoke
    before = (folder / "measurements.parquet").read_bytes()
    said = run("--preset", "smoke", "--out", folder).stdout
    assert "16 of 16 jobs are in" in said
    assert (folder / "measurements.parquet").read_bytes() == before


def test_a_data_set_that_is_unknown_is_named(tmp_path):
    assert "no data set is named 'nothing'" in studies.error_of("ntk_width", tmp_path / "new", "--dataset", "nothing")


def test_bad_input_is_one_clear_line(tmp_path):
    done = run("--preset", "smoke", "--out", tmp_path / "new", "--max-width", "8", check=False)
    assert done.returncode == 2
    assert "a trend needs at least 2 widths, got () for MLP, 2 layers" in done.stderr
    assert "Traceback" not in done.stderr


def test_epochs_are_dense_first():
    assert log_spaced(15) == (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 15)
    assert log_spaced(1) == (0, 1)
    assert len(log_spaced(600)) < 40
    assert Arguments(preset="smoke", epochs=3).settings().measure_epochs == (0, 1, 2, 3)


def test_weight_decay_has_the_time_that_is_asked_for(monkeypatch):
    settings = dataclasses.replace(PRESETS["smoke"], num_train=40, num_epochs=5, measure_epochs=(0, 5), milestones=(0.2, 0.6))
    given = {}
    monkeypatch.setattr(measure, "_training_program", lambda *_: lambda runs: given.update(runs) or ([], {}))
    case = settings.cases[0]
    measure._trained(measure.create(case, settings, 4), case, settings, 4, [PAPER_DECAY], [0])
    rate, coefficient = np.asarray(given["rates"][0], float)
    shrinking = sum(rate * scale * coefficient * steps for scale, steps in ((1, 2), (0.2, 4), (0.04, 4)))  # 10 steps of two batches
    np.testing.assert_allclose(shrinking / (1 - settings.momentum), PAPER_DECAY, rtol=1e-5)


def made_up(slope, rate, *, apart=0.5, floor=0.2):
    """Results of the quick preset whose kernels behave as told: ``slope``, of the excess, and ``rate`` by case, statistics and decay."""
    rng, settings = np.random.default_rng(0), PRESETS["quick"]
    noise = 0.001 * rng.normal(size=(3, 2, settings.num_seeds))
    points, seeds = [kernels.TARGET, kernels.END], list(settings.seeds)
    cases = []
    for case in settings.cases:
        steps = np.arange(len(case.widths))[:, None, None]
        axes = ("statistics", "decay", "width", "kernel", "seed", "point")
        shape = (len(case.statistics), len(case.decays), len(case.widths), 2, settings.num_seeds)
        excess = np.empty(shape)
        for index, (statistics, decay) in enumerate(itertools.product(case.statistics, case.decays)):
            excess[divmod(index, len(case.decays))] = 0.5 + slope(case, statistics, decay) * steps + noise[0]
        excess[:, :, :, 1] = 0.5  # pairs of images, which judge nothing
        floors = np.broadcast_to(floor * (1 + steps), shape[2:])  # rises with width, as that of unrelated networks does
        correlation = floors + (1 - floors) * excess
        train = xr.Dataset(
            {
                "correlation": (axes, np.stack([correlation, 0 * correlation], -1)),
                "floor": (axes[2:5], floors),
                "unrelated": (axes[2:5], floors),
                "share_of_rescaling": ((*axes[:3], *axes[4:]), np.full((*shape[:3], shape[4], 2), 0.8) + noise[1, 0][:, None]),
            },
            {"statistics": list(case.statistics), "decay": list(case.decays), "width": list(case.widths)}
            | {"kernel": list(kernels.KERNELS), "seed": seeds, "point": points},
        )
        doublings = np.log2(np.array(case.exact_widths or (1,)))[:, None]
        far = [2.0 ** (rate(case, s) * doublings) * (1 + noise[2, 0]) for s in case.statistics]
        places = {"statistics": list(case.statistics), "width": list(case.exact_widths or (1,)), "seed": seeds}
        exact = np.broadcast_to(np.eye(2) + (apart if case.batch_norm else 0) * (1 - np.eye(2)), (len(case.statistics), len(seeds), 2, 2))
        exact = exact + noise[2, 1][:, None, None]
        limits = xr.Dataset(
            {"exact": (("statistics", "seed", "image", "other_image"), exact)}, {k: places[k] for k in ("statistics", "seed")}
        )
        distances = xr.Dataset({"distance": (("statistics", "width", "seed"), far)}, places)
        cases.append(studies.made_up(case, settings, train=train, compare_with_exact=distances, limits=limits))
    return SimpleNamespace(cases=cases, settings=settings)


def words_for(*arguments, **options):
    results = made_up(*arguments, **options)
    return studies.verdicts(STUDY, results.cases, results.settings)


def test_the_paper_s_world_supports_what_it_claims():
    def slope(case, statistics, decay):
        return -0.1 if case.skip and case.batch_norm else 0.1

    words = words_for(slope, lambda case, statistics: -0.5)
    assert len(words) == 8
    assert set(words.values()) == {"supported"}


def test_a_floor_that_rises_alone_is_no_trend():
    results = made_up(lambda *_: 0.0, lambda *_: -0.5, floor=0.3)
    case = next(m for m in results.cases if m.case.model == "convnet")
    rising = slopes(case.train.correlation.sel(point=kernels.TARGET))
    assert float(rising.min()) > 0.1  # what would be judged without the floor
    np.testing.assert_allclose(plain_slopes(case), 0.0, atol=0.005)


def test_a_finding_that_depends_on_the_regime_is_mixed():
    def slope(case, statistics, decay):
        return (-0.1 if decay == PAPER_DECAY else 0.2) if case.skip and case.batch_norm else 0.1

    words = words_for(slope, lambda case, statistics: -0.5)
    assert words["S3.a"] == "supported"
    assert words["S3.b"] == "mixed"
    assert words["S3.c"] == "supported"  # tested where the correlation does fall alone


def test_what_does_not_fall_has_no_cause():
    words = words_for(lambda *_: 0.1, lambda *_: 0.0, apart=0.0)
    assert words["S3.b"] == "contradicted"
    assert words["S3.c"] == "not tested"
    assert words["S3.e"] == words["S3.f"] == "contradicted"
    assert words["S3.g"] == "contradicted"


def test_the_interaction_is_the_difference_of_differences_of_slopes():
    def slope(case, statistics, decay):
        return {(True, True): 0.05, (False, True): 0.02, (True, False): 0.01, (False, False): 0.0}.get((case.skip, case.batch_norm), 0.1)

    values = interaction(made_up(slope, lambda *_: -0.5))
    assert len(values) == 4  # weight decays x statistics
    for seeds in values.values():
        np.testing.assert_allclose(seeds, 0.05 - 0.02 - 0.01, atol=1e-6)


def test_a_network_that_never_reaches_the_loss_stands_in_the_way():
    results = made_up(lambda *_: 0.1, lambda *_: -0.5)
    results.cases[0].train.correlation.loc[{"point": kernels.TARGET, "width": 16, "seed": 1}] = np.nan
    run = SimpleNamespace(settings=results.settings, cases=results.cases)
    verdict = claims.judge_all({m.claim: m.values(run) for m in STUDY.measures})[0]
    assert verdict.verdict == "undecided"
    assert "1 of 10 seeds has no value" in verdict.note


@functools.cache
def trained_function():
    """A ResNet with BatchNorm in both parametrisations, and its parameters, moved at random so that no bias or scale is as at the start."""
    settings, case = PRESETS["smoke"], PRESETS["smoke"].cases[1]
    images = kernels.probe_images(settings, 0, 4)
    nets = [kernels.create(case, settings, 4, parametrisation=name) for name in ("standard", "ntk")]
    params, state = nets[0].init(jax.random.key(0), images)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return nets, jax.tree.unflatten(tree, moved), state, images


@pytest.mark.slow
def test_a_trained_network_is_the_same_function_in_the_ntk_parametrisation():
    (standard, ntk), params, state, images = trained_function()
    same = ntk.apply(kernels.in_ntk_parametrisation(params), images, state)
    np.testing.assert_allclose(same, standard.apply(params, images, state), rtol=1e-5, atol=1e-5)


def test_distance_is_that_of_the_full_kernels():
    rng = np.random.default_rng(0)
    limit, full = (root @ root.T for root in (rng.normal(size=(3, 5)), rng.normal(size=(6, 8))))
    full = full.reshape(3, 2, 3, 2).transpose(0, 2, 1, 3)  # two logits
    images = ("image", "other_image")
    arrays = (np.einsum("ijkk->ij", full) / 2, np.linalg.norm(full) / 2**0.5, limit)
    trace, norm, exact = (xr.DataArray(array, dims=images[: np.ndim(array)]) for array in arrays)
    expected = measures.rescaled_change(np.einsum("ij,kl->ijkl", limit, np.eye(2)), full).change
    np.testing.assert_allclose(departure.distance(trace, norm, exact), expected, rtol=1e-5)
    assert float(departure.distance(3 * exact, 3 * np.sqrt((exact**2).sum()), exact)) < 1e-7
    assert np.isnan(departure.distance(np.nan * trace, np.nan * norm, exact))  # a network that did not reach the loss


def four_cells(angle):
    """Trained ResNets whose kernels stand ``angle`` by cell from their own limit at the target loss; all limits are at right angles."""
    images, seeds, widths = ("image", "other_image"), [0, 1, 2], [8, 16]
    cases = []
    for index, cell in enumerate(itertools.product((True, False), repeat=2)):
        statistics = [STORED, BATCH] if cell[1] else [STORED]
        limits = np.eye(7)[[index, 4 + index // 2][: len(statistics)], :, None]  # kernels of a column, so that they are vectors
        after = np.cos(angle[cell]) * limits + np.sin(angle[cell]) * np.eye(7)[6, :, None]
        at_times = xr.DataArray(
            np.stack([limits, after], 1),
            {"statistics": statistics, "time": [kernels.BEFORE, kernels.TARGET]},
            ("statistics", "time", *images),
        )
        trace = at_times.expand_dims(decay=[PAPER_DECAY], width=widths, seed=seeds)
        change = xr.ones_like(trace.isel(image=0, other_image=0, time=[1], drop=True)).rename(time="point")
        train = xr.Dataset({"trace": trace, "norm": np.sqrt((trace**2).sum(images)), "relative_change": 2 * change})
        exact = xr.DataArray(limits, {"statistics": statistics}, ("statistics", *images)).expand_dims(seed=seeds)
        case = SimpleNamespace(skip=cell[0], batch_norm=cell[1], decays=(PAPER_DECAY,), exact_widths=widths, statistics=statistics)
        cases.append(SimpleNamespace(case=case, name=f"net {index}", train=train, limits=xr.Dataset({"exact": exact})))
    return SimpleNamespace(cases=cases)


def test_an_interaction_in_the_departure_from_a_network_s_own_limit_is_found_there_alone():
    angle = {(True, True): 0.6, (False, True): 0.3, (True, False): 0.2, (False, False): 0.1}
    run = four_cells(angle)
    for statistics in (STORED, BATCH):
        by_cell = {cell: departure.measured(run, cell, statistics) for cell in angle}
        for cell, values in by_cell.items():
            before, own, *others, change = values.values()
            assert own.sizes == {"decay": 1, "width": 2, "seed": 3}
            np.testing.assert_allclose(before, 0.0, atol=1e-7)
            np.testing.assert_allclose(own, np.sin(angle[cell]), atol=1e-7)
            np.testing.assert_allclose(others, 1.0)
            np.testing.assert_allclose(change, 1.0)
        crossed = [departure.interaction({cell: values[name] for cell, values in by_cell.items()}) for name in by_cell[True, True]]
        expected = np.sin(0.6) - np.sin(0.3) - np.sin(0.2) + np.sin(0.1)
        np.testing.assert_allclose([float(values.mean()) for values in crossed], [0.0, expected, 0.0, 0.0, 0.0], atol=1e-7)


def test_the_figure_has_a_path_over_widths_for_each_cell_before_training_and_after():
    angle = {(True, True): 0.6, (False, True): 0.3, (True, False): 0.2, (False, False): 0.1}
    before, after = departure.draw_change_and_distance(four_cells(angle)).axes
    assert [line.get_xdata().tolist() for line in before.lines] == [[0.0, 0.0]] * 4
    for line, cell in zip(after.lines, itertools.product((True, False), repeat=2), strict=True):
        np.testing.assert_allclose(line.get_xdata(), np.sin(angle[cell]), atol=1e-7)
        np.testing.assert_allclose(line.get_ydata(), 2.0)
    assert {text.get_text() for text in after.texts} == {"8", "16"}


def test_tables_of_departures_list_every_network_and_say_which_did_not_reach_the_loss():
    run = four_cells(dict.fromkeys(itertools.product((True, False), repeat=2), 0.3))
    run.cases[0].train = run.cases[0].train.copy(deep=True)
    run.cases[0].train.trace.loc[{"time": kernels.TARGET, "width": 8, "seed": 1}] = np.nan
    table = departure.departure_table(run)
    assert len(table.rows) == 6 * 2  # networks and statistics, widths
    assert [row[:3] for row in table.rows[:2]] == [("net 0, stored", PAPER_DECAY, 8), ("net 0, stored", PAPER_DECAY, 16)]
    assert table.rows[0][4] == "1 of 3 did not reach the loss"
    assert len(departure.interaction_table(run).rows) == 2 * 2
    run.cases.pop()
    assert departure.departure_table(run) is None


def test_limits_that_differ_by_scale_alone_are_the_same():
    results = made_up(lambda *_: 0.1, lambda *_: -0.5, apart=0.0)
    for m in results.cases:
        m.limits = 3 * m.limits if m.case.batch_norm else m.limits
    assert max(float(values.max()) for values in difference_of_limits(results).values()) < 1e-6


@pytest.mark.slow
def test_a_network_that_hardly_learns_keeps_its_kernel_and_a_deep_chain_explodes():
    settings = PRESETS["smoke"]
    mlp = next(case for case in settings.cases if has_controls(case))
    still = SimpleNamespace(keep_kernel=measure.keep_kernel(mlp, settings, (0, 1)))
    assert float(kept(still).min()) > 0.95
    np.testing.assert_allclose(measure.explode(mlp, settings, (0,)).growth, 1.467, atol=0.1)
