"""A network of the user's own in the studies: what takes it, what is refused and why, and what the guide says of both."""

import dataclasses
import functools
import re
from pathlib import Path

import flax.linen as nn
import numpy as np
import pytest
from flax import nnx

from experiments import local_minima, ntk_width, power_iteration, rank_robustness, soft_biases
from experiments.__main__ import STUDIES
from experiments.power_iteration.settings import Case
from jaxbp import lab
from jaxbp.lab import execute
from tests.helpers import studies

GUIDE = Path(__file__).parents[2] / "experiments/guide/maps.md"
HERE = __name__


class Linen(nn.Module):
    """The network of the guide."""

    num_classes: int
    width: int

    @nn.compact
    def __call__(self, inputs):
        hidden = inputs.reshape(len(inputs), -1)
        for _ in range(2):
            hidden = nn.relu(nn.Dense(2 * self.width)(hidden))
        self.sow("intermediates", "features", hidden)
        return nn.Dense(self.num_classes)(hidden)


class Convolutional(nn.Module):
    """With a convolution after the first, as S4 needs it."""

    num_classes: int

    @nn.compact
    def __call__(self, inputs):
        for _ in range(2):
            inputs = nn.relu(nn.Conv(4, (3, 3))(inputs))
        return nn.Dense(self.num_classes)(inputs.reshape(len(inputs), -1))


class Normalised(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(self.num_classes)(nn.relu(nn.BatchNorm()(nn.Dense(4)(inputs.reshape(len(inputs), -1)))))


class Nnx(nnx.Module):
    def __init__(self, *, num_classes, width, rngs):
        self.dense = nnx.Linear(16, width, rngs=rngs)
        self.head = nnx.Linear(width, num_classes, rngs=rngs)

    def __call__(self, inputs):
        return self.head(nnx.relu(self.dense(inputs.reshape(len(inputs), -1))))


def linen(num_classes, width=16):
    return Linen(num_classes, width)


def convolutional(num_classes):
    return Convolutional(num_classes)


def normalised(num_classes):
    return Normalised(num_classes)


def of_nnx(num_classes, width=8):
    return build(num_classes, width)


@functools.cache
def build(num_classes, width):
    return lambda rngs: Nnx(num_classes=num_classes, width=width, rngs=rngs)


def named(make):
    return f"{HERE}:{make.__name__}"


def settings_of(package, make, **changes):
    return dataclasses.replace(package.Arguments(preset="smoke", network=named(make)).settings(), **changes)


@pytest.mark.parametrize("make", [of_nnx, pytest.param(normalised, marks=pytest.mark.slow)])
def test_eigenvalues_of_a_foreign_network_are_compared(make, tmp_path):
    case = Case("digits@4", 50, 1, width=4, model=named(make))
    settings = settings_of(power_iteration, linen, cases=(case,), num_steps=100, num_seeds=1)
    study = lab.load(power_iteration.DOOR)
    (m,) = studies.compute(dataclasses.replace(study, stages=study.stages[:1]), settings, tmp_path).cases
    point = m.smallest_eigenvalue
    assert (point.eigenvalue < 0).all()
    assert (point.estimate >= point.eigenvalue - 1e-4).all()  # a Rayleigh quotient lies above the smallest eigenvalue
    assert m.name == f"digits@4, {named(make)}, 1 epoch"


def bits(make, folder):
    """What S10 counts of a network, one seed."""
    settings = settings_of(soft_biases, make, num_seeds=1, dimensions=(8,), code_epochs=1, steps=(1.0, 0.1))
    case = dataclasses.replace(settings.cases[-1], dataset="digits@4")
    settings = dataclasses.replace(settings, cases=(case,))
    return studies.compute(lab.load(soft_biases.DOOR), settings, folder).cases[0].code_lengths


@pytest.mark.slow
def test_the_bits_of_a_foreign_network_are_counted(tmp_path):
    counted = bits(linen, tmp_path)
    assert (counted.bits > 0).all()
    assert (counted.bound >= counted.train_error).all()
    assert (counted.test_error.sel(labels="random") == 0.9).all()


def test_a_network_with_a_state_has_bits_that_are_not_counted(tmp_path):
    with pytest.raises(lab.SettingsError, match=r"has a state beside them \(batch_stats\).*give a network without BatchNorm"):
        bits(normalised, tmp_path)


@pytest.mark.parametrize(
    ("package", "make", "message"),
    [
        (local_minima, of_nnx, "embeds an affine map layer by layer.*modules of flax.linen alone"),
        (ntk_width, normalised, "makes networks by width, which .*normalised does not take: give it the argument"),
    ],
)
def test_premises_are_checked_before_anything_runs(package, make, message):
    with pytest.raises(lab.SettingsError, match=message):
        settings_of(package, make)


def test_kernels_of_a_foreign_network_are_compared_over_its_widths_beside_the_mlps_of_the_controls():
    settings = settings_of(ntk_width, linen)
    *kept, own = settings.cases
    assert {case.model for case in kept} == {"mlp"}
    assert (own.name, own.widths, own.exact_widths, own.statistics) == (named(linen), (16, 32), (), ("stored",))
    measures = {measure.claim.id: measure for measure in lab.load(ntk_width.DOOR).measures}
    assert measures["S3.a"].where(own)
    assert not measures["S3.e"].where(own)


def test_the_guide_says_which_studies_take_a_network():
    rows = re.findall(r"^\| (S\d+) \| (yes|no) \| (.+) \|$", GUIDE.read_text(), re.MULTILINE)
    assert [row[0] for row in rows] == [package.ID for package in STUDIES]
    for package, (_, taken, told) in zip(STUDIES, rows, strict=True):
        reason = package.Arguments.presets["smoke"].own_networks
        assert taken == ("no" if reason else "yes")
        for instrument in re.findall(r"jaxbp\.\w+\.\w+", reason):
            assert f"`{instrument}`" in told
        if not reason:
            assert package.Arguments(preset="smoke", network=named(linen)).settings()


TAKEN = [package for package in STUDIES if not package.Arguments.presets["smoke"].own_networks]
RUNS = [
    *((package, convolutional if package.ID == "S4" else linen) for package in TAKEN),
    *((package, of_nnx) for package in TAKEN if package.ID in ("S2", "S7")),  # S5 has a test of its own
]


@pytest.mark.slow
@pytest.mark.parametrize(("package", "make"), RUNS, ids=lambda value: getattr(value, "ID", None) or value.__name__)
def test_every_study_that_takes_networks_runs_with_one(package, make, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "mine.npz", x=rng.integers(0, 256, (900, 4, 4, 1), dtype=np.uint8), y=np.arange(900) % 3)
    dataset = f"file:{tmp_path / 'mine.npz'}" if make is of_nnx else None
    settings = package.Arguments(preset="smoke", network=named(make), dataset=dataset).settings()
    section = execute.run(lab.load(package.DOOR), settings, tmp_path / "run", devices=["cpu"], command="")
    assert section.verdicts
    assert any(named(make) in case.case for verdict in section.verdicts for case in verdict.cases)


@pytest.mark.slow
def test_a_network_without_convolutions_has_no_rank_to_move(tmp_path):
    settings = settings_of(rank_robustness, linen)
    with pytest.raises(Exception, match="has no convolution after the first whose rank could be moved"):
        studies.compute(lab.load(rank_robustness.DOOR), settings, tmp_path)
