"""The largest number of runs whose compiled program stays within a bound on the memory of a device."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any


def needed(programs: Iterable[Any]) -> int:
    """Largest number of bytes that one of the compiled programs needs on a device; 0 if the backend does not report memory."""
    return max(map(_needed, programs))


def _needed(compiled: Any) -> int:
    """Arguments, results and temporaries."""
    stats = compiled.memory_analysis()
    if stats is None:
        return 0
    parts = (stats.argument_size_in_bytes, stats.output_size_in_bytes, stats.temp_size_in_bytes)
    return sum(parts) - stats.alias_size_in_bytes


def evenly(num_runs: int, most: int) -> int:
    """The size of the fewest chunks of at most ``most`` runs, as even as can be."""
    return -(-num_runs // -(-num_runs // most))


def fit(compile_fn: Callable[[int], Sequence[Any]], most: int, bound: float) -> tuple[Sequence[Any], int, int]:
    """Compile for the largest number of runs, 1 to ``most``, that needs at most ``bound`` bytes; memory is assumed linear in the number.

    Args:
      compile_fn: ``number of runs -> compiled programs``.
      most: largest number of runs, tried first.
      bound: bytes.

    Returns:
      The programs, their number of runs and the bytes they need. A single run is accepted even above the bound.
    """
    seen: dict[int, tuple[Sequence[Any], int]] = {}

    def size(number: int) -> int:
        if number not in seen:
            compiled = compile_fn(number)
            seen[number] = compiled, needed(compiled)
        return seen[number][1]

    if size(most) > bound and most > 1:
        fewer = max(1, min(most - 1, int(most * bound / size(most))))
        slope = (size(most) - size(fewer)) / (most - fewer)
        best = int((bound - size(fewer)) / slope) + fewer if slope > 0 else fewer
        best = max(1, min(best, most - 1))
        while size(best) > bound and best > 1:
            best -= max(1, best // 8)
    best = max((number for number in seen if size(number) <= bound), default=min(seen))
    return seen[best][0], best, size(best)
