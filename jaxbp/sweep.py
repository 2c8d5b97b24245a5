"""One pure run, many seeds and settings: one after another, vectorised, or spread over devices.

A *run* is a pure function of (what differs between runs, what they share). `run` evaluates it for every entry of the leading axis
of what differs: keys, initial parameters, learning rates, data of their own. All of them share one compiled program, and equal
calls reuse it. The plans give the same numbers up to rounding:

``loop``        one call after another, from Python;
``map``         one after another inside one program (`jax.lax.map`);
``vmap``        all at once (`jax.vmap`);
``shard-map``   split over devices, each doing its share one after another;
``shard-vmap``  split over devices, each doing its share at once; ``pmap`` is another spelling;
``auto``        the rule of `choose`, which states the measurements it rests on.

>>> import jax
>>> from jaxbp import sweep
>>> def run_fn(key, scale):
...     return scale * jax.random.normal(key, (3,))
>>> sweep.run(run_fn, sweep.keys(range(4)), 10.0).shape
(4, 3)
"""

import functools
import operator
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

PLANS = ("auto", "loop", "map", "vmap", "shard-map", "shard-vmap", "pmap")


def use_all_cores() -> int:
    """Make each CPU core a JAX device of its own; returns the number of CPU devices.

    Call it before JAX computes anything. Small networks leave most of a core's partners idle: two devices with a seed each are
    1.2-2 times faster than one device with two cores (see `choose`).

    Raises:
      RuntimeError: JAX has already started with fewer devices.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not forced and jax.config.jax_num_cpu_devices < cores:
        jax.config.update("jax_num_cpu_devices", cores)  # JAX itself raises RuntimeError once its backends have started
    return jax.local_device_count("cpu")


def keys(seeds: Iterable[int]) -> jax.Array:
    """Stack the random keys of ``seeds``, shape (S,)."""
    return jax.vmap(jax.random.key)(jnp.asarray(list(seeds), jnp.uint32))


def choose(backend: str, num_devices: int, num_runs: int) -> str:
    """Return the plan that ``auto`` takes.

    On a CPU runs go one after another on each device: matrices of one run fill a core, and convolutions over a stack of kernels
    would become loops anyway. Measured on two cores (JAX 0.10.2, 8 seeds, whole runs, times of one call after another / ours):
    MLP 40-64-64-64-10 2.0, MLP 784-256-256-10 1.4, ConvNet on signals 1.4, on 7x7 images 1.6, where ``shard-vmap`` gave
    2.0, 1.2, 1.5 and 1.3. Accelerators are filled by running all seeds at once.

    Args:
      backend: as `jax.default_backend` names it.
      num_devices: devices at hand.
      num_runs: how many runs there are.
    """
    within = "map" if backend == "cpu" else "vmap"
    return f"shard-{within}" if min(num_devices, num_runs) > 1 else within


def run(fn: Callable, runs: Any, *shared: Any, plan: str = "auto", devices: Sequence[Any] | None = None) -> Any:
    """Evaluate ``fn(one, *shared)`` for every ``one`` along the leading axis of ``runs``.

    Args:
      fn: a pure function; pass the same object again to reuse what was compiled.
      runs: pytree of arrays with one leading axis R.
      shared: pytrees that all runs share, for instance the data.
      plan: one of `PLANS`.
      devices: to spread over; default all local devices of the default backend.

    Returns:
      The results of ``fn``, stacked along a leading axis R.

    Raises:
      ValueError: an unknown plan, or ``runs`` without a common leading axis.
    """
    num_runs = _num_runs(runs)
    devices = tuple(devices or jax.local_devices())
    if plan not in PLANS:
        raise ValueError(f"plan must be one of {', '.join(PLANS)}, got {plan!r}")
    if plan == "auto":
        plan = choose(devices[0].platform, len(devices), num_runs)
    plan = "shard-vmap" if plan == "pmap" else plan
    if plan == "loop":
        program = _program(fn, plan, devices[:1])
        outputs = [program(jax.tree.map(operator.itemgetter(i), runs), *shared) for i in range(num_runs)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)
    devices = devices[: min(num_runs, len(devices)) if plan.startswith("shard") else 1]
    surplus = -num_runs % len(devices)  # a device without work repeats the last run
    if surplus:
        runs = jax.tree.map(lambda a: jnp.concatenate([a, jnp.repeat(a[-1:], surplus, 0)]), runs)
    outputs = _program(fn, plan, devices)(runs, *shared)
    return jax.tree.map(lambda a: a[:num_runs], outputs) if surplus else outputs


def _num_runs(runs: Any) -> int:
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(runs)}
    if len(lengths) != 1 or lengths <= {(), (0,)}:
        raise ValueError(
            f"runs must be arrays with a common leading axis of 1 or more, got leading axes {sorted(lengths)}"
        )
    return lengths.pop()[0]


@functools.cache
def _program(fn: Callable, plan: str, devices: tuple) -> Callable:
    """The compiled program; one for each function object, plan and set of devices."""
    if plan == "loop":
        return jax.jit(fn)

    def one_by_one(runs: Any, *shared: Any) -> Any:
        return jax.lax.map(lambda one: fn(one, *shared), runs)

    def at_once(runs: Any, *shared: Any) -> Any:
        return jax.vmap(lambda one: fn(one, *shared))(runs)

    share = one_by_one if plan.endswith("map") and not plan.endswith("vmap") else at_once
    if not plan.startswith("shard"):
        return jax.jit(share)
    mesh = Mesh(np.array(devices), ("seeds",), axis_types=(AxisType.Auto,))

    def spread(runs: Any, *shared: Any) -> Any:
        specs = (PartitionSpec("seeds"), *[PartitionSpec()] * len(shared))
        # Runs do not communicate, so there is nothing for the check of replicated values to find.
        return jax.shard_map(share, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("seeds"), check_vma=False)(
            runs, *shared
        )

    return jax.jit(spread)
