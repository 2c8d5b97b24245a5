"""How JAX is started, and what is evicted before memory maps run short."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import jaxlib
import pytest

from jaxbp.runtime import jax_setup, program_cache


@pytest.mark.parametrize("held, forgets", [pytest.param(40, True, marks=pytest.mark.slow), (20, False), (0, False)])
def test_compiled_programs_go_when_memory_maps_run_short(monkeypatch, held, forgets):
    traced = []

    @jax.jit
    def fn(x):
        traced.append(1)
        return x + 1

    fn(jnp.ones(3))
    monkeypatch.setattr(program_cache, "memory_maps", lambda: (held, 65))
    program_cache.evict_compiled_programs()
    fn(jnp.ones(3))
    assert len(traced) == (2 if forgets else 1)


def test_memory_maps_are_counted():
    held, allowed = program_cache.memory_maps()
    assert 0 < held < allowed


def test_small_programs_are_kept_for_the_next_start_wherever_the_cache_is(tmp_path):
    program = "import jax; from jaxbp.runtime import jax_setup; jax_setup.start_jax(); jax.jit(lambda x: x + 1)(1.0)"
    kept = []
    for folder, changes in (
        ("a/jaxbp/xla", {"XDG_CACHE_HOME": str(tmp_path / "a")}),
        ("b", {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "b")}),
    ):
        subprocess.run([sys.executable, "-c", program], check=True, env=_without_cache() | changes)
        kept.append({path.name for path in (tmp_path / folder).glob("jit__lambda*-cache")})  # named by the program's key
    assert kept[0]
    assert kept[0] == kept[1]


def _without_cache():
    return {name: value for name, value in os.environ.items() if not name.startswith(("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE"))}


def test_programs_are_compiled_quickly_where_there_are_cpus_alone(monkeypatch):
    monkeypatch.setattr(jax_setup.importlib.util, "find_spec", lambda name: None)
    assert jax_setup._has_cpus_alone(None)
    monkeypatch.setattr(jax_setup.importlib.util, "find_spec", lambda name: "found" if name == "libtpu" else None)
    assert not jax_setup._has_cpus_alone(None)
    assert jax_setup._has_cpus_alone("cpu")
    assert not jax_setup._has_cpus_alone("cuda,cpu")
    first, second = "--xla_backend_optimization_level=1", "--xla_cpu_use_fusion_emitters=false"
    cases = {
        ("0.10.2", ""): f"{first} {second}",
        ("0.10.0", "--xla_a=1"): f"--xla_a=1 {first} {second}",
        ("0.11.2", ""): first,  # which does not know the second
        ("0.10.2", "--xla_backend_optimization_level=2"): f"--xla_backend_optimization_level=2 {second}",
        ("0.10.2", f"--xla_cpu_use_fusion_emitters=true {first}"): f"--xla_cpu_use_fusion_emitters=true {first}",
    }
    for (version, given), expected in cases.items():
        monkeypatch.setattr(jaxlib, "__version__", version)
        monkeypatch.setenv("XLA_FLAGS", given)
        jax_setup.compile_quickly()
        assert os.environ["XLA_FLAGS"] == expected
    monkeypatch.setattr(jaxlib, "__version__", "0.10.2")
    monkeypatch.setenv("XLA_FLAGS", "")
    jax_setup.compile_quickly(fuse_loops_anew=True)
    assert os.environ["XLA_FLAGS"] == first


@pytest.mark.parametrize(("preset", "fuses_anew"), [("quick", False), ("standard", True)])
def test_programs_of_presets_that_take_hours_keep_the_newer_fusions(preset, fuses_anew):
    program = f"import os; from jaxbp import lab; lab.start_jax(for_hours=lab.takes_hours('{preset}')); print(os.environ['XLA_FLAGS'])"
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    flags = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True).stdout
    expected = not fuses_anew and jaxlib.__version__.startswith("0.10.")
    assert ("xla_cpu_use_fusion_emitters=false" in flags) == expected
    assert "xla_backend_optimization_level=1" in flags
