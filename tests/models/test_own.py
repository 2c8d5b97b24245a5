"""Networks of the user's own by name: in `models.create`, in studies that take them, and refused where not."""

import dataclasses
import importlib
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from experiments.__main__ import STUDIES
from jaxbp import lab, models

HERE = __name__


class Small(nn.Module):
    num_classes: int
    width: int = 4

    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(self.num_classes)(nn.relu(nn.Dense(self.width)(inputs.reshape(len(inputs), -1))))


class Nnx(nnx.Module):
    def __init__(self, *, rngs):
        self.dense = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, inputs):
        return self.dense(inputs)


def linen(num_classes, width=4):
    return Small(num_classes, width)


def with_nnx():
    return Nnx


def network(num_classes):
    return models.create("mlp", num_classes=num_classes, width=4)


def nothing(num_classes):
    return None


def greedy(num_classes, secret):
    return None


@pytest.mark.parametrize("make", [linen, with_nnx, network])
def test_a_name_makes_a_network_once(make):
    name = f"{HERE}:{make.__name__}"
    net = models.create(name, num_classes=3, width=4)
    params, state = net.init(jax.random.key(0), jnp.ones((1, 6)))
    assert net.apply(params, jnp.ones((2, 6)), state).shape == (2, 3)
    assert models.create(name, num_classes=3, width=4) is net


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:make", "cannot import 'no_such_module'"),
        (f"{HERE}:no_such", "MODULE:FUNCTION"),
        (f"{HERE}:HERE", "must be a function"),
        (f"{HERE}:nothing", "must return"),
        (f"{HERE}:greedy", "does not fit .*secret"),
    ],
)
def test_what_makes_no_network_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        models.create(name, num_classes=3, width=4)


@pytest.mark.parametrize("package", STUDIES, ids=lambda package: package.ID)
def test_a_study_takes_the_network_or_says_why_not(package):
    arguments = package.Arguments(preset="smoke", network=f"{HERE}:linen")
    if arguments.presets["smoke"].own_networks:
        with pytest.raises(lab.SettingsError, match=r"takes no network of your own: .*Leave --network out"):
            arguments.settings()
        return
    settings = arguments.settings()
    own = [case for case in settings.cases if getattr(case, "model", "") == f"{HERE}:linen"]
    assert own
    assert all(getattr(case, "options", ()) == () for case in own)
    assert len(settings.cases) <= len(arguments.presets["smoke"].cases)
    with pytest.raises(lab.SettingsError, match="cannot import"):
        dataclasses.replace(arguments, network="no_such_module:make").settings()


def test_a_changed_function_is_another_network(tmp_path, monkeypatch):
    settings = importlib.import_module("experiments.unlearnable").Arguments(preset="smoke").settings()
    monkeypatch.syspath_prepend(tmp_path)
    identities = []
    for number in range(2):
        (tmp_path / "mine_own.py").write_text(f"def make(num_classes):\n    return num_classes + {number}\n")
        sys.modules.pop("mine_own", None)
        importlib.invalidate_caches()
        (case,) = (dataclasses.replace(case, model="mine_own:make") for case in settings.cases[:1])
        identities.append(settings.data_identity(case)["mine_own:make"])
        for cached in tmp_path.glob("__pycache__/*"):
            cached.unlink()
    assert identities[0] != identities[1]
