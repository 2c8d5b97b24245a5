"""One process, two CPU devices, no network; float64 by the fixture `x64`, never toggled by hand.

Most tests compile far longer than they compute, so XLA optimises little here, compiles a program in one thread (each worker of pytest has
a core), and JAX lowers all programs in one MLIR context.
"""

import collections
import contextlib
import ctypes
import functools
import gc
import os
import shutil
import signal
import threading
import zlib
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
    os.environ["XLA_FLAGS"] += " --xla_cpu_parallel_codegen_split_count=1"
    jax_setup.compile_quickly(level=0)


def lower_in_one_context():
    """Give each thread one MLIR context. To make another for each program, as JAX does, takes as long as to trace a small program."""
    mlir = jax._src.interpreters.mlir
    make, own = mlir.make_ir_context, threading.local()

    @functools.wraps(make)
    def shared():
        if not hasattr(own, "context"):
            own.context = make()
        return own.context

    mlir.make_ir_context = shared


def keep_freed_memory():
    """Have the C library keep the memory that compilers free and take again, rather than return it to the system each time."""
    trim_threshold, top_pad = -1, -2
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, 2**29)
        libc.mallopt(top_pad, 2**26)


with contextlib.suppress(AttributeError):  # a JAX that has no such function
    lower_in_one_context()
keep_freed_memory()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of a test with the marker ``first_cases(n)`` all cases but the first n, of those that are not slow anyway, are slow."""
    seen = collections.Counter()
    for item in items:
        if (marker := item.get_closest_marker("first_cases")) and not item.get_closest_marker("slow"):
            test = item.nodeid.partition("[")[0]
            seen[test] += 1
            if seen[test] > marker.args[0]:
                item.add_marker("slow")


def pytest_configure(config):
    """JAXBP_PART=1/3 runs the first of three parts of what is selected, file by file."""
    if part := os.environ.get("JAXBP_PART"):
        config.pluginmanager.register(Part(*map(int, part.split("/"))), "jaxbp-part")


class Part:
    """One of several parts of the tests, together all."""

    def __init__(self, number: int, of: int):
        self.number, self.of = number, of

    def pytest_collection_modifyitems(self, config, items):
        """Leave out the files of the other parts."""
        mine = [item for item in items if zlib.crc32(item.nodeid.partition("::")[0].encode()) % self.of == self.number - 1]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(mine)])
        items[:] = mine


@pytest.hookimpl(trylast=True)
def pytest_collection_finish():
    """Spare the garbage collector what the collection made: it lives until the end."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


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
