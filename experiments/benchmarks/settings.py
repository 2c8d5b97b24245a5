"""The options of each benchmark. Imports nothing slow: they are parsed before JAX and the peers are imported."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Arguments:
    """What every benchmark takes."""

    quick: bool = False
    """The smallest cases and few runs, to see that it works."""
    out: Path | None = None
    """Write the rows here as JSON."""


@dataclass(frozen=True)
class Timed(Arguments):
    """What benchmarks that alternate with peers take."""

    runs: int = 5
    """Interleaved runs."""


@dataclass(frozen=True)
class Attacks(Timed):
    """Attacks: seconds of PGD in training and in evaluation, and robust accuracy, against PyTorch, foolbox and torchattacks."""


@dataclass(frozen=True)
class BatchNormKernel(Timed):
    """Kernels with BatchNorm: seconds of a layer, NNGP and tangent kernel, over its size."""

    largest: int = 1600
    """Numbers a channel of the largest layer."""


@dataclass(frozen=True)
class BatchNormNetworks(Arguments):
    """Finite networks with BatchNorm and their exact kernels: distances, and their exponents over width."""

    copies: int = 300
    """Finite networks of each width."""


@dataclass(frozen=True)
class Curvature(Arguments):
    """Curvature: time of one Hessian product, and products for the extreme eigenvalues."""


@dataclass(frozen=True)
class Ntk(Timed):
    """Tangent kernels: seconds and peak memory, against every peer that runs."""

    cases: tuple[str, ...] = ()
    """Networks whose name contains one of these, and these full kernels alone; default all."""
    worker: str | None = None
    """Used by the benchmark itself: be this peer, as JSON."""


@dataclass(frozen=True)
class Scaling(Arguments):
    """Coordination: training runs a second by number of devices and processes."""

    devices: tuple[int, ...] = (1, 2, 4, 8)
    """Virtual devices in all; with an even number there is a row for two processes, too."""
    runs: int = 3
    """Turns that each layout takes."""
    worker: str | None = None
    """Used by the benchmark itself: what one process is to do, as JSON."""


@dataclass(frozen=True)
class Spectra(Timed):
    """Singular values of convolutions, and RankMin: seconds against NumPy, PyTorch and the paper's route."""

    width: int = 64
    """Channels of the network's first stage."""
    threads: int = 1
    """BLAS threads of everyone."""


@dataclass(frozen=True)
class Sweep(Timed):
    """Seed sweeps: seconds of a whole sweep of training runs, by plan and against PyTorch."""

    seeds: tuple[int, ...] = (8, 32)
    """Networks in a sweep; several make a row each."""
    cases: tuple[str, ...] = ()
    """Cases whose name contains one of these; default all."""


@dataclass(frozen=True)
class Training(Timed):
    """Training: seconds of a step and of an epoch, against PyTorch."""


BENCHMARKS: dict[str, type[Arguments]] = {
    "attacks": Attacks,
    "batch_norm_kernel": BatchNormKernel,
    "batch_norm_networks": BatchNormNetworks,
    "curvature": Curvature,
    "ntk": Ntk,
    "scaling": Scaling,
    "spectra": Spectra,
    "sweep": Sweep,
    "training": Training,
}
