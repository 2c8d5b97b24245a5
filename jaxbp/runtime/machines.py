"""Accelerators by name, and the time that work would take on them: an estimate from peak figures, the roofline.

A job takes at least as long as its operations at the device's peak, its bytes at the memory's bandwidth, and its launches one after another
(Williams, Waterman and Patterson, Communications of the ACM 52, 2009). Real programs reach a share of that, the efficiency, which is
measured with jobs or stated: no figure of it holds for all programs.
"""

import dataclasses
import re
from typing import NamedTuple

from jaxbp.runtime.program_cost import ProgramCost

_GPU_LAUNCH, _TPU_LAUNCH = 3e-6, 1e-6  # seconds between operations that follow each other: assumed, of the order that profiles show
_TPU = re.compile(r"(v2|v3|v4|v5e|v5litepod|v5p|v6e)-(\d+)")
_CORES_A_CHIP = {"v2": 2, "v3": 2, "v4": 2, "v5p": 2}  # of the kinds whose slices are named after cores


class MachineError(ValueError):
    """There is no such machine."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """A machine of equal devices.

    Attributes:
      name: such as "h100" or "v4-8".
      num_devices: GPUs, or TPU chips.
      flops: peak operations a second of a device, in the arithmetic that JAX uses for float32: on GPUs float32 without tensor cores, on
        TPUs the bfloat16 passes of matrix products.
      bandwidth: bytes a second of a device's memory.
      memory: bytes of a device.
      launch: seconds that an operation takes at least.
      source: of the figures.
    """

    name: str
    num_devices: int
    flops: float
    bandwidth: float
    memory: float
    launch: float
    source: str


@dataclasses.dataclass(frozen=True)
class Elsewhere:
    """Another machine for which a cost is estimated."""

    on: str | None = None
    """Also say the time on this machine: h100, 8xh100, a100, v4-8, v5e-8, ...; nothing is computed."""
    efficiency: float | None = None
    """Share of that machine's peaks that is taken as reached; default the share that the timed jobs reached of this machine's."""

    @property
    def machine(self) -> Machine | None:
        """The machine, None if none is named.

        Raises:
          MachineError: there are no figures of it, or the efficiency is no share.
        """
        if self.efficiency is not None and not 0 < self.efficiency <= 1:
            raise MachineError(f"efficiency must be above 0 and up to 1, got {self.efficiency}: give 0.1 for a tenth of the peak")
        return named(self.on) if self.on is not None else None


NOWHERE_ELSE = Elsewhere()


class Roofline(NamedTuple):
    """An estimated time, and what it is bound by: "arithmetic", "memory" or "launches"."""

    seconds: float
    bound_by: str


def _gpu(name: str, teraflops: float, gigabytes_a_second: float, gigabytes: float, source: str) -> Machine:
    return Machine(name, 1, teraflops * 1e12, gigabytes_a_second * 1e9, gigabytes * 1e9, _GPU_LAUNCH, f"NVIDIA, {source}")


def _tpu(name: str, teraflops: float, gigabytes_a_second: float, gigabytes: float) -> Machine:
    source = "Google Cloud, TPU documentation, system architecture"
    return Machine(name, 1, teraflops * 1e12, gigabytes_a_second * 1e9, gigabytes * 1e9, _TPU_LAUNCH, source)


_GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("t4", 8.1, 320, 16, "T4 data sheet"),
        _gpu("v100", 15.7, 900, 32, "V100 data sheet, SXM2"),
        _gpu("a100", 19.5, 2039, 80, "A100 80 GB data sheet, SXM"),
        _gpu("l4", 30.3, 300, 24, "L4 data sheet"),
        _gpu("rtx4090", 82.6, 1008, 24, "Ada architecture white paper"),
        _gpu("h100", 67, 3350, 80, "H100 data sheet, SXM"),
        _gpu("h200", 67, 4800, 141, "H200 data sheet, SXM"),
    )
}
_TPUS = {
    tpu.name: tpu
    for tpu in (
        _tpu("v2", 46, 700, 16),
        _tpu("v3", 123, 900, 32),
        _tpu("v4", 275, 1228, 32),
        _tpu("v5e", 197, 819, 16),
        _tpu("v5p", 459, 2765, 95),
        _tpu("v6e", 918, 1640, 32),
    )
}


def named(name: str) -> Machine:
    """The machine of a name: a GPU such as "h100", several such as "8xh100", a TPU slice such as "v4-8" (8 cores, 4 chips) or "v5e-8".

    Raises:
      MachineError: there is none, or a slice of no such size.
    """
    several = re.fullmatch(r"(?:(\d+)x)?(\w+)", name)
    if several and several[2] in _GPUS and int(several[1] or 1) > 0:
        return dataclasses.replace(_GPUS[several[2]], name=name, num_devices=int(several[1] or 1))
    if piece := _TPU.fullmatch(name):
        kind = piece[1].replace("v5litepod", "v5e")
        chips = int(piece[2]) / _CORES_A_CHIP.get(kind, 1)
        if chips >= 1 and chips == int(chips):
            return dataclasses.replace(_TPUS[kind], name=name, num_devices=int(chips))
    slices = ", ".join(f"{kind}-{8}" for kind in _TPUS)
    raise MachineError(f"there are no peak figures of {name!r}: choose one of {', '.join(_GPUS)}, 8xh100, ..., or a slice such as {slices}")


def roofline(cost: ProgramCost, machine: Machine, efficiency: float) -> Roofline:
    """The time that work takes on one device of a machine.

    Args:
      cost: of the work.
      machine: whose peak figures count.
      efficiency: share of the peaks that is reached, above 0 and up to 1; launches take their time whatever it is.
    """
    parts = {
        "arithmetic": cost.flops / machine.flops / efficiency,
        "memory": cost.bytes_accessed / machine.bandwidth / efficiency,
        "launches": cost.launches * machine.launch,
    }
    longest = max(parts, key=lambda name: parts[name])
    return Roofline(parts[longest], longest)
