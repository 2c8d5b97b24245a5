"""Several processes as one run, as the command line says it; imports no JAX."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Place of this process among several that run as one program; start each with the same command and its own ``process_id``.

    Under SLURM, Open MPI and on TPU VMs leave all fields None: JAX detects them.
    """

    coordinator: str | None = None
    """HOST:PORT of process 0."""
    num_processes: int | None = None
    """Number of processes."""
    process_id: int | None = None
    """Number of this process, from 0."""


ONE_PROCESS = Cluster()
