"""One process, two CPU devices, no network; float64 by the fixture `x64`, never toggled by hand.

XLA optimises little here: most tests compile far longer than they compute.
"""

import os
import shutil
import signal
from pathlib import Path

os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")

import jax
import pytest

from jaxbp.runtime import jax_setup
from jaxbp.runtime.program_cache import evict_compiled_programs

# A shell that starts the tests in the background has them ignore SIGINT, and what they start, too; tests of stopped runs rely on it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if jax.config.jax_platforms == "cpu":
    jax_setup.compile_quickly(level=0)


@pytest.fixture(autouse=True, scope="module")
def room():
    yield
    evict_compiled_programs()


@pytest.fixture(scope="session")
def smoke_folder(tmp_path_factory):
    """``(study) -> folder`` for a smoke run: a copy of what the lab at JAXBP_SMOKE_LAB has found, if that is given, else empty."""

    def make(study):
        folder = tmp_path_factory.mktemp(study)
        if lab := os.environ.get("JAXBP_SMOKE_LAB"):
            shutil.copytree(Path(lab) / study, folder, dirs_exist_ok=True)
        return folder

    return make


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
