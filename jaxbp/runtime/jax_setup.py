"""The machine of a run: JAX started after the arguments are parsed, and what is worth knowing about where it ran."""

import contextlib
import dataclasses
import importlib.util
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_PACKAGES = ("jaxbp", "jax", "jaxlib", "flax", "optax", "numpy", "scipy")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Several processes as one: started with the same command each, all but the last option being the same.

    Under SLURM and on TPU VMs nothing need be said.
    """

    coordinator: str | None = None
    """HOST:PORT of process 0, to run in several processes."""
    num_processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """Number of this one, from 0."""


ONE_PROCESS = Cluster()


def start_jax(cluster: Cluster | None = None) -> list[str]:
    """Import JAX with its persistent compilation cache on and each CPU core a device, and join other processes if there are any.

    Where there are CPUs alone, programs are compiled quickly rather than well: see `compile_quickly`.

    Returns:
      The names of this process's devices.
    """
    import jax

    from jaxbp.runtime import processes

    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jaxbp" / "xla"
    if _has_cpus_alone(jax.config.jax_platforms):
        compile_quickly()
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    if cluster is not None:  # before anything lists devices
        processes.initialize(**dataclasses.asdict(cluster))
    if "cpu" in (jax.config.jax_platforms or "cpu"):
        with contextlib.suppress(RuntimeError):  # a notebook may have started JAX already: its devices will do
            use_all_cores()
    return [str(device.device_kind) for device in jax.local_devices()]


def use_all_cores() -> int:
    """Make each CPU core a JAX device of its own; returns the number of CPU devices.

    Call it before JAX computes anything. Small networks leave most of a core's partners idle: two devices with a seed each are
    1.2-2 times faster than one device with two cores (see `choose`).

    Raises:
      RuntimeError: JAX has already started with fewer devices.
    """
    import jax

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not forced and jax.config.jax_num_cpu_devices < cores:
        jax.config.update("jax_num_cpu_devices", cores)  # JAX itself raises RuntimeError once its backends have started
    return jax.local_device_count("cpu")


def _has_cpus_alone(platforms: str | None) -> bool:
    """Whether JAX can find no accelerator; asking JAX itself would start it, and what XLA is to do is settled by then."""
    if platforms:
        return platforms == "cpu"
    return not any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))


def compile_quickly(level: int = 1) -> None:
    """Have XLA spend less on what it compiles for a CPU, unless XLA_FLAGS says otherwise; before JAX lists devices.

    LLVM optimises at level 1. On two cores a training program of a small ResNet is then compiled in 0.4 of the time that level 3, XLA's own
    choice, takes, and is as fast within the noise, since what takes time in it, sums of products, comes compiled with XLA. Level 0 makes
    it four times as slow. Fused loops are written as jaxlib 0.9 wrote them, where that is still to be had (up to 0.10; later ones end
    at a flag that they do not know): 0.55 of the time again, and trainings as fast, attacks about a fifth slower.
    """
    import jaxlib

    wanted = {"xla_backend_optimization_level": str(level)}
    if jaxlib.__version__.startswith("0.10."):
        wanted["xla_cpu_use_fusion_emitters"] = "false"
    given = os.environ.get("XLA_FLAGS", "")
    added = [f"--{name}={value}" for name, value in wanted.items() if name not in given]
    os.environ["XLA_FLAGS"] = " ".join([given, *added]).strip()


def facts(devices: Sequence[str]) -> dict[str, Any]:
    """What is worth knowing about where and with what a run was started."""
    import importlib.metadata  # slow to import

    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": " ".join(sys.argv),
        "python": platform.python_version(),
        "packages": versions,
        "devices": list(devices),
        "git_commit": _git_commit(),
    }


def peak_memory_mib() -> int:
    """The most main memory that this process has held."""
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib // (2**20 if sys.platform == "darwin" else 2**10)  # macOS counts bytes


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    with contextlib.suppress(OSError):
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        return found.stdout.strip() or None
    return None
