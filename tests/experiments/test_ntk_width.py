"""Study 3 as its users run it, and its verdicts from made-up measurements."""

import dataclasses
import functools
import json

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from experiments.ntk_width import measure, results
from experiments.ntk_width.settings import BATCH, CALIBRATED, PRESETS, STORED, Arguments, log_spaced
from jaxbp import claims
from tests.helpers import run_processes

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
    assert list(rows.columns) == ["case", "arm", "seed", "step", "measure", "value"]
    assert {path.suffix for path in (folder / "figures").iterdir()} == {".png", ".svg"}
    assert "<h2>Verdicts</h2>" in (folder / "report.html").read_text()
    assert json.loads((folder / "config.json").read_text())["settings"]["num_seeds"] == 2
    assert " done " in (folder / "log.txt").read_text()
    assert str(folder / "report.html") in said


@pytest.mark.slow
def test_measurements_of_the_run_are_consistent(smoke):
    rows = pd.read_parquet(smoke[0] / "measurements.parquet")
    start = rows[(rows.step == 0) & rows.measure.str.endswith(": correlation")]
    np.testing.assert_allclose(start.value, 1.0, atol=1e-5)  # of the kernel at the start with itself
    shares = rows[rows.measure.str.endswith("share of rescaling") & (rows.step > 0)].value
    assert shares.between(-1e-5, 1 + 1e-5).all()
    norm = rows[rows.measure.str.endswith("BatchNorm") | rows.case.str.contains(", BatchNorm")]
    assert {f"{mode}: correlation" for mode in (STORED, CALIBRATED, BATCH)} <= set(norm.measure)
    plain = rows[rows.case == "ResNet, skips, no BatchNorm"]
    assert not plain.measure.str.startswith(CALIBRATED).any()


@pytest.mark.slow
def test_the_same_command_again_has_nothing_to_compute(smoke):
    folder, _ = smoke
    before = (folder / "measurements.parquet").read_bytes()
    said = run("--preset", "smoke", "--out", folder).stdout
    assert "20 of 20 pieces of work are in" in said
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


class MadeUp:
    """A store whose kernels behave as told: ``slope`` and ``rate`` by network and statistics."""

    def __init__(self, settings, slope, rate):
        self.settings, self.rng, self.pieces = settings, np.random.default_rng(0), {}
        for network in settings.networks:
            for i, width in enumerate(network.widths):
                seeds = settings.num_seeds
                noise = 0.001 * self.rng.normal(size=(2, seeds))
                found = {"epochs": np.array([0, 1])}
                for mode in network.modes:
                    trend = 0.5 + slope(network, mode) * i + noise[0]
                    found[f"{mode}: correlation"] = np.stack([np.ones(seeds), trend], 1)
                    found[f"{mode}: share of rescaling"] = np.stack([np.zeros(seeds), 0.8 + noise[1]], 1)
                self.pieces[measure.train_name(network, width, settings.groups[0])] = found
                self.pieces[measure.exact_name(network, width)] = {
                    f"{mode}: distance": 2.0 ** (rate(network, mode) * i) * (1 + noise[1]) for mode in network.modes
                }

    def get(self, name):
        return self.pieces[name]

    def __contains__(self, name):
        return name in self.pieces


def verdicts_for(slope, rate):
    settings = dataclasses.replace(PRESETS["quick"], num_seeds=5)
    widths = {"mlp": (8, 16, 32), "convnet": (8, 16, 32), "resnet": (8, 16, 32)}
    networks = tuple(dataclasses.replace(n, widths=widths[n.model]) for n in settings.networks)
    settings = dataclasses.replace(settings, networks=networks)
    found = results.verdicts(results.Results(settings, MadeUp(settings, slope, rate)))
    return {v.claim.id: v.verdict for v in found}


def test_the_paper_s_world_supports_every_claim():
    def slope(network, mode):
        return -0.1 if network.skip and network.batch_norm else 0.1

    found = verdicts_for(slope, lambda network, mode: 0.0 if network.batch_norm else -0.5)
    assert set(found.values()) == {"supported"}


def test_a_finding_that_depends_on_the_statistics_is_not_supported():
    def slope(network, mode):
        return (-0.1 if mode == STORED else 0.2) if network.skip and network.batch_norm else 0.1

    found = verdicts_for(slope, lambda network, mode: -0.5)
    assert found["S3.a"] == "supported"
    assert found["S3.b"] == found["S3.c"] == found["S3.f"] == "contradicted"


def test_a_diverged_seed_stands_in_the_way():
    settings = PRESETS["quick"]
    store = MadeUp(settings, lambda *_: 0.1, lambda *_: -0.5)
    network = settings.networks[0]
    store.pieces[measure.train_name(network, network.widths[-1], settings.groups[0])]["stored: correlation"][1, -1] = np.nan
    (first, *_) = results.verdicts(results.Results(settings, store))
    assert first.verdict == "undecided"
    assert "1 of 5 seeds are not finite" in first.note


def test_the_exact_kernel_does_not_depend_on_its_blocks(monkeypatch):
    lab = measure.Lab(PRESETS["smoke"], None)
    network = PRESETS["smoke"].networks[0]
    x = jnp.asarray(lab.probes(0, 10))
    whole = lab.exact_kernel(network, x)
    monkeypatch.setattr(measure, "_EXACT_BLOCK", 4)
    # float32, and the arc cosine of a correlation next to 1 keeps half of its digits
    np.testing.assert_allclose(lab.exact_kernel(network, x), whole, rtol=3e-4)
