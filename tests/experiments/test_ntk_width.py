"""The study of tangent kernels as its users run it, and its verdicts from made-up measurements."""

import functools
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from experiments.ntk_width import measure
from experiments.ntk_width.settings import BATCH, CALIBRATED, PRESETS, STORED, Arguments, log_spaced
from experiments.ntk_width.study import STUDY
from jaxbp import claims, lab
from tests.helpers import run_processes, studies

run = functools.partial(run_processes.study, "ntk_width")


@pytest.fixture(scope="module")
def smoke(smoke_folder):
    folder = smoke_folder("ntk_width")
    return folder, run("--preset", "smoke", "--out", folder).stdout


@pytest.mark.slow
def test_a_run_leaves_what_the_contract_says(smoke):
    folder, said = smoke
    verdicts = claims.read_verdicts(folder / "verdicts.json")
    assert [v.claim.id for v in verdicts] == ["S3.a", "S3.b", "S3.c", "S3.d", "S3.e", "S3.f"]
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
    for name, of_case in trained.items():
        np.testing.assert_allclose(of_case.correlation.sel(epoch=0), 1.0, atol=1e-5)  # of the kernel at the start with itself
        share = of_case.share_of_rescaling.sel(epoch=2)
        assert ((share > -1e-5) & (share < 1 + 1e-5)).all()
        modes = [STORED] if ", BatchNorm" not in name else [STORED, CALIBRATED, BATCH]
        assert of_case.statistics.values.tolist() == modes
        missing = of_case.correlation.isnull()
        assert bool(missing.sel(statistics=modes[1:], epoch=1).all())
        assert int(missing.sum()) == missing.sel(statistics=modes[1:], epoch=1).size
    assert {of_case.kernel_at_start.dims for of_case in trained.values()} == {("width", "image", "other_image")}


@pytest.mark.slow
def test_the_same_command_again_has_nothing_to_compute(smoke):
    folder, _ = smoke
    before = (folder / "measurements.parquet").read_bytes()
    said = run("--preset", "smoke", "--out", folder).stdout
    assert "20 of 20 jobs are in" in said
    assert (folder / "measurements.parquet").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-width", "8"], "a trend needs at least 2 widths, got (8,) for MLP, 2 layers"),
        (["--dataset", "nothing"], "nothing"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, message, tmp_path):
    done = run("--preset", "smoke", "--out", tmp_path / "new", *arguments, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_epochs_are_log_spaced():
    assert log_spaced(15) == (0, 1, 2, 5, 10, 15)
    assert log_spaced(1) == (0, 1)
    assert Arguments(preset="smoke", epochs=3).settings().measure_epochs == (0, 1, 2, 3)


def made_up(slope, rate):
    """Results of the quick preset whose kernels behave as told: ``slope`` and ``rate`` by case and statistics."""
    rng, settings = np.random.default_rng(0), PRESETS["quick"]
    noise = 0.001 * rng.normal(size=(2, 3, settings.num_seeds))
    steps, start = np.arange(3)[:, None], np.ones((3, settings.num_seeds))
    cases = []
    for case in settings.cases:
        trends = [0.5 + slope(case, s) * steps + noise[0] for s in case.statistics]
        shares = [0.8 + noise[1] for _ in case.statistics]
        distances = [2.0 ** (rate(case, s) * steps) * (1 + noise[1]) for s in case.statistics]
        axes = ("statistics", "epoch", "width", "seed")
        coordinates = {"statistics": list(case.statistics), "width": [8, 16, 32], "seed": list(settings.seeds)}
        compared = {
            "correlation": (axes, [[start, trend] for trend in trends]),
            "share_of_rescaling": (axes, [[0 * start, share] for share in shares]),
        }
        stages = {
            "train": xr.Dataset(compared, coordinates),
            "compare_with_exact": xr.Dataset({"distance": (("statistics", "width", "seed"), distances)}, coordinates),
        }
        cases.append(studies.made_up(case, settings, **stages))
    return SimpleNamespace(cases=cases, settings=settings)


def verdicts_for(results):
    return {m.claim.id: claims.judge(m.claim, m.values(results), interval_fn=m.interval_fn) for m in STUDY.measures}


def words_for(slope, rate):
    return {name: verdict.verdict for name, verdict in verdicts_for(made_up(slope, rate)).items()}


def test_the_paper_s_world_supports_every_claim():
    def slope(case, statistics):
        return -0.1 if case.skip and case.batch_norm else 0.1

    words = words_for(slope, lambda case, statistics: 0.0 if case.batch_norm else -0.5)
    assert len(words) == 6
    assert set(words.values()) == {"supported"}


def test_a_finding_that_depends_on_the_statistics_is_not_supported():
    def slope(case, statistics):
        return (-0.1 if statistics == STORED else 0.2) if case.skip and case.batch_norm else 0.1

    words = words_for(slope, lambda case, statistics: -0.5)
    assert words["S3.a"] == "supported"
    assert words["S3.b"] == words["S3.c"] == "mixed"
    assert words["S3.f"] == "contradicted"


def test_the_interaction_is_the_difference_of_differences_of_slopes():
    def slope(case, statistics):
        return {(True, True): 0.5, (False, True): 0.2, (True, False): 0.1, (False, False): 0.0}.get((case.skip, case.batch_norm), 0.1)

    verdict = verdicts_for(made_up(slope, lambda *_: -0.5))["S3.c"]
    np.testing.assert_allclose(verdict.interval.estimate, 0.5 - 0.2 - 0.1 + 0.0, atol=1e-6)


def test_a_diverged_seed_stands_in_the_way():
    results = made_up(lambda *_: 0.1, lambda *_: -0.5)
    results.cases[0].train.correlation.loc[{"epoch": 1, "width": 32, "seed": 1}] = np.nan
    verdict = verdicts_for(results)["S3.a"]
    assert verdict.verdict == "undecided"
    assert "1 of 5 seeds are not finite" in verdict.note


def test_the_exact_kernel_does_not_depend_on_its_blocks(monkeypatch):
    settings = PRESETS["smoke"]
    probes = measure.probe_images(settings, 0, 10)
    whole = measure.exact_kernel(settings.cases[0], settings, probes)
    monkeypatch.setattr(measure, "_EXACT_BLOCK", 4)
    # float32, and the arc cosine of a correlation next to 1 keeps half of its digits
    np.testing.assert_allclose(measure.exact_kernel(settings.cases[0], settings, probes), whole, rtol=3e-4)
