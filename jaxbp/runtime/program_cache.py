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
    """Drop all compiled programs if they hold more than half of the memory maps that Linux allows a process.

    A program holds some hundreds of maps, and XLA crashes when none is left. Programs come back from the compilation cache on disk.
    """
    held, allowed = memory_maps()
    if held > allowed / 2:
        for cache in _CACHES:
            cache.cache_clear()
        jax.clear_caches()


def memory_maps() -> tuple[int, int]:
    """The numbers of memory maps that the process holds and may hold; (0, 0) where the system does not say."""
    with contextlib.suppress(OSError):
        return Path("/proc/self/maps").read_bytes().count(b"\n"), int(Path("/proc/sys/vm/max_map_count").read_text())
    return 0, 0
