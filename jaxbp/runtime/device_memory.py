"""How much memory a program may take on a device: the bound of a sweep, and of a study's instruments."""

import contextlib
import os
from pathlib import Path
from typing import Any

_SHARE_OF_HOST, _SHARE_OF_DEVICE = 0.5, 0.9


def default_bound(device: Any, num_sharing: int) -> int:
    """Bytes that a device may use.

    An accelerator may use 90 % of its free memory; ``num_sharing`` CPU devices of a host share half of the memory of the host.
    """
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(_SHARE_OF_DEVICE * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # free memory would differ when the sweep resumes
    with contextlib.suppress(OSError, ValueError):  # "max" without a limit
        installed = min(installed, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return int(_SHARE_OF_HOST * installed / num_sharing)
