"""What a device of this machine reaches, measured in a second: the figures against which timed jobs are held."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxbp.runtime.machines import Machine

_SIZE = 1024  # rows of the matrices that are multiplied
_ENTRIES = 2**24  # of the array that is copied, beyond any cache
_ROUNDS = 20_000
_REPEATS = 3


@functools.cache
def measured() -> Machine:
    """Operations a second of a matrix product, bytes a second of a copy, and seconds a round of a loop that does next to nothing.

    The best of a few repeats counts: other programs on the machine slow the rest. All float32, on one device.
    """
    square, array = jnp.ones((_SIZE, _SIZE), jnp.float32), jnp.ones(_ENTRIES, jnp.float32)
    flops = 2.0 * _SIZE**3 / _seconds(jax.jit(jnp.matmul), square, square)
    bandwidth = 2.0 * array.nbytes / _seconds(jax.jit(lambda x: x + 1), array)
    launch = _seconds(jax.jit(lambda x: lax.fori_loop(0, _ROUNDS, lambda i, x: jnp.sin(x) + i, x)), jnp.float32(1)) / _ROUNDS
    memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)
    return Machine("this machine", jax.local_device_count(), flops, bandwidth, memory, launch, "measured")


def _seconds(fn: Callable, *arguments: Any) -> float:
    """The shortest time of a call, compilation apart."""
    jax.block_until_ready(fn(*arguments))
    times = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        jax.block_until_ready(fn(*arguments))
        times.append(time.perf_counter() - began)
    return min(times)
