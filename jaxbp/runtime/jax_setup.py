"""Start JAX after the arguments are parsed, and record the provenance of a run: versions, devices, commit, machine."""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jaxlib

from jaxbp.runtime import processes
from jaxbp.runtime.cluster import Cluster

_PACKAGES = ("jaxbp", "jax", "jaxlib", "flax", "optax", "numpy", "scipy")


def start_jax(cluster: Cluster | None = None, *, for_hours: bool = False) -> list[str]:
    """Enable JAX's persistent compilation cache, make each CPU core a device, and join the other processes of ``cluster``.

    The cache keeps programs of any compile time, unless JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS says otherwise.
    Without an accelerator, XLA compiles with fewer optimisations: see `compile_quickly`. A run ``for_hours`` keeps those that its
    programs gain by.

    Returns:
      The names of the devices of this process.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jaxbp" / "xla"
    if _has_cpus_alone(jax.config.jax_platforms):
        compile_quickly(fuse_loops_anew=for_hours)
        # XLA's own caches serve GPUs. With them the key of a program holds the path of the cache, and a cache that was moved finds nothing.
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # small programs are most of them
    if cluster is not None:  # before anything lists devices
        processes.initialize(**dataclasses.asdict(cluster))
    if "cpu" in (jax.config.jax_platforms or "cpu"):
        with contextlib.suppress(RuntimeError):  # a notebook may have started JAX already: its devices will do
            use_all_cores()
    return [str(device.device_kind) for device in jax.local_devices()]


def workers() -> list[str]:
    """The devices of this process that compute a job each beside each other: its accelerators, or a CPU as often as it has cores."""
    names = [str(device.device_kind) for device in jax.local_devices()]
    return names[:1] * max(len(names), _num_cores()) if jax.local_devices()[0].platform == "cpu" else names


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_all_cores() -> int:
    """Make each CPU core a JAX device; call this before JAX computes anything.

    A small network keeps one core busy: two devices with one seed each are 1.2-2 times faster than one device with two cores.

    Returns:
      The number of CPU devices.

    Raises:
      RuntimeError: JAX has already started with fewer devices.
    """
    cores = _num_cores()
    forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not forced and jax.config.jax_num_cpu_devices < cores:
        jax.config.update("jax_num_cpu_devices", cores)  # JAX itself raises RuntimeError once its backends have started
    return jax.local_device_count("cpu")


def _has_cpus_alone(platforms: str | None) -> bool:
    """True if JAX can find no accelerator. Does not ask JAX: that would start the backends and fix the flags of XLA."""
    if platforms:
        return platforms == "cpu"
    return not any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))


def compile_quickly(level: int = 1, *, fuse_loops_anew: bool = False) -> None:
    """Reduce XLA's compile time on CPUs; flags in XLA_FLAGS take precedence. Call this before JAX lists devices.

    LLVM optimises at ``level``. On two cores, level 1 compiles a training program of a small ResNet in 0.4 of the time of level 3, XLA's
    default, and the program runs equally fast within noise: its matrix products are precompiled. At level 0 the program is four times
    slower. Under jaxlib 0.10 loops are also fused without the newer emitters, unless ``fuse_loops_anew`` (later versions reject the flag):
    compile time falls to 0.55 to 0.81 again, and programs take 0.9 to 1.3 times as long (see the guide to machines).
    """
    wanted = {"xla_backend_optimization_level": str(level)}
    if jaxlib.__version__.startswith("0.10.") and not fuse_loops_anew:
        wanted["xla_cpu_use_fusion_emitters"] = "false"
    given = os.environ.get("XLA_FLAGS", "")
    added = [f"--{name}={value}" for name, value in wanted.items() if name not in given]
    os.environ["XLA_FLAGS"] = " ".join([given, *added]).strip()


def provenance(devices: Sequence[str]) -> dict[str, Any]:
    """Describe this start of a program: time, command, versions, devices, git commit, host and machine."""
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
        "host": socket.gethostname(),
        "machine": platform.platform(),
    }


def peak_memory_mib() -> int:
    """Peak resident memory of this process, in MiB."""
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib // (2**20 if sys.platform == "darwin" else 2**10)  # macOS counts bytes


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    with contextlib.suppress(OSError):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        return result.stdout.strip() or None
    return None
