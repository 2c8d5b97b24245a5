"""One process, two CPU devices, no network; float64 by the fixture `x64`, never toggled by hand.

XLA optimises little here: most tests compile far longer than they compute.
"""

import os

os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")

import jax
import pytest

from experiments.frame import machine
from jaxbp import sweep

if jax.config.jax_platforms == "cpu":
    machine.compile_quickly(level=0)


@pytest.fixture(autouse=True, scope="module")
def room():
    yield
    sweep.make_room()


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
