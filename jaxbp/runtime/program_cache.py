"""Caches of compiled programs, and their eviction before a process runs out of memory maps."""

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

_CACHES: list[Any] = []


def program_cache(maxsize: int) -> Callable[[Callable], Any]:
    """`functools.lru_cache` for functions that return compiled programs, emptied by `evict_compiled_programs`."""

    def decorate(fn: Callable) -> Any:
        cached = functools.lru_cache(maxsize)(fn)
        _CACHES.append(cached)
        return cached

    return decorate


def evict_compiled_programs() -> None:
    """Drop all compiled programs if the process holds more than half of the memory maps that Linux allows.

    A program holds hundreds of maps, and XLA crashes without a free map. Dropped programs are reloaded from the compilation cache on disk.
    """
    held, allowed = memory_maps()
    if held > allowed / 2:
        for cache in _CACHES:
            cache.cache_clear()
        jax.clear_caches()


def memory_maps() -> tuple[int, int]:
    """Return the number of memory maps of the process, and its limit; (0, 0) if the system reports neither."""
    with contextlib.suppress(OSError):
        return Path("/proc/self/maps").read_bytes().count(b"\n"), int(Path("/proc/sys/vm/max_map_count").read_text())
    return 0, 0
