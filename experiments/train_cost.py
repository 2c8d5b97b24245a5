"""What `experiments.train --cost` says: a sweep's programs by the compiler's account, and its time by a timed epoch of each setting."""

import itertools
import time
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from experiments import train_sweep
from jaxbp.lab import output
from jaxbp.lab.cost_plan import StageCost
from jaxbp.runtime import program_cost
from jaxbp.runtime.program_cost import ProgramCost

if TYPE_CHECKING:
    from experiments.train import Arguments


def print_cost(arguments: "Arguments") -> None:
    """Compile the programs of a run of each setting, time an epoch, and say what all seeds and epochs would cost."""
    dataset, _ = train_sweep.checked(arguments)
    shared = [tuple(map(jnp.asarray, split)) for split in (dataset.train, dataset.test)]
    grid = arguments.grid()
    costs = [
        _of_setting(arguments, dict(zip(grid, values, strict=True)), dataset.num_classes, shared)
        for values in itertools.product(*grid.values())
    ]
    output.print_plan(costs, jax.local_device_count(), arguments.elsewhere)


def _of_setting(arguments: "Arguments", setting: dict[str, Any], num_classes: int, shared: list) -> StageCost:
    """A setting's cost, all seeds one after another; its runs are computed as if alone on a device."""
    began = time.monotonic()
    fns = train_sweep.segments(arguments, num_classes)
    key, index = jax.random.key(0), jnp.int32(0)
    start = jax.jit(lambda key, *shared: fns.init_fn(key, *shared, **setting)).lower(key, *shared).compile()
    carry = start(key, *shared)
    epoch = jax.jit(lambda carry, index, *shared: fns.segment_fn(carry, index, *shared, **setting)).lower(carry, index, *shared).compile()
    compiling = time.monotonic() - began
    jax.block_until_ready(epoch(carry, index, *shared))
    began = time.monotonic()
    jax.block_until_ready(epoch(carry, index, *shared))
    seconds = time.monotonic() - began
    steps = program_cost.of_compiled(epoch)
    total: ProgramCost = (program_cost.of_compiled(start) + steps.times(arguments.epochs)).times(arguments.seeds)
    return StageCost(
        stage=", ".join(f"{name.replace('_', ' ')} {value}" for name, value in setting.items() if len(arguments.grid()[name]) > 1) or "all",
        num_jobs=arguments.seeds,
        num_there=0,
        seconds=arguments.seeds * arguments.epochs * seconds + compiling,
        programs=2,
        num_bytes=None,
        peak_mib=None,
        basis=f"an epoch timed at {seconds:.3g} s, {steps.flops:.2e} operations and {steps.bytes_accessed:.2e} bytes",
        flops=total.flops,
        bytes_accessed=total.bytes_accessed,
        launches=total.launches,
        program_mib=total.memory / 2**20,
        compile_seconds=compiling,
    )
