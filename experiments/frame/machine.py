"""The machine of a run: JAX started after the arguments are parsed, and what is worth knowing about where it ran."""

import contextlib
import dataclasses
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.frame.settings import Cluster

_PACKAGES = ("jaxbp", "jax", "jaxlib", "flax", "optax", "numpy", "scipy")


def start_jax(cluster: Cluster | None = None) -> list[str]:
    """Import JAX with its persistent compilation cache on and each CPU core a device, and join other processes if there are any.

    Returns:
      The names of this process's devices.
    """
    import jax

    from jaxbp import distributed, sweep

    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jaxbp" / "xla"
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    if cluster is not None:  # before anything lists devices
        distributed.initialize(**dataclasses.asdict(cluster))
    if "cpu" in (jax.config.jax_platforms or "cpu"):
        with contextlib.suppress(RuntimeError):  # a notebook may have started JAX already: its devices will do
            sweep.use_all_cores()
    return [str(device.device_kind) for device in jax.local_devices()]


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
