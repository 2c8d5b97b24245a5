"""Several processes, on one host or on many, as one JAX program; the same program runs in one process.

Each process calls `initialize` before JAX computes anything, does the same work in the same order and ends with `shutdown`; the outermost
level of a program uses `session`, which is both. Afterwards `jax.devices` lists the devices of all processes. Work of a single process
(files, reports) belongs to the process with `is_first`. `barrier`, `any_process`, `from_first` and `all_agree` synchronise the processes
and are free in a single process. Every process must call each of them, or the others wait.

*Rendezvous*: processes with explicit arguments meet at the coordinator, HOST:PORT of process 0, over a socket of this module, before JAX's
own service takes the same port. `jax.distributed.initialize` alone aborts the interpreter from C++, past any ``except``, when a process is
missing (tests/runtime/test_processes.py: test_jax_alone_aborts_a_process_whose_partner_is_missing); the rendezvous raises a
`DistributedError` that names the missing process. Under SLURM, Open MPI and on Cloud TPUs JAX detects the processes and they meet through
JAX alone. JAX's service and the sockets between CPU devices (gloo) authenticate nobody: use a trusted network. With explicit arguments the
service listens on the address of the coordinator only; gloo listens, in every process, on the address of the host name.

*Early ends*: JAX ends computing processes together. Measured with JAX 0.10.2 on CPUs: a collective with a process that is gone raises at
once; otherwise the other processes are aborted (exit code 134), at once if process 0 is gone, else within ``heartbeat`` seconds and about
two more. A failed process that leaves Python the usual way waits up to ``heartbeat`` seconds for the others and is then aborted, which
loses its exit code; `session` leaves at once with the right code.

*SIGTERM*: JAX's preemption service, on by default, replaces the action of SIGTERM when `jax.distributed.initialize` is called. The process
then survives SIGTERM, even after `jax.distributed.shutdown`. A Python handler installed before is never called, although
`signal.getsignal` still returns it; a handler installed after is called and hides the signal from JAX. `initialize` therefore turns the
service off (option ``jax_enable_preemption_service``): SIGTERM acts as without JAX, and
`jax.experimental.multihost_utils.reached_preemption_sync_point` is unavailable.

>>> from jaxbp.runtime import processes
>>> processes.initialize(num_processes=1)
>>> processes.is_first(), bool(processes.any_process(False)), processes.from_first({"seeds": 3})
(True, False, {'seeds': 3})
"""

import contextlib
import hashlib
import ipaddress
import json
import math
import os
import re
import select
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from numpy.typing import ArrayLike

from jaxbp.runtime import preemption

_Arguments = tuple[str | None, int | None, int | None]
_joined: _Arguments | None = None  # arguments of the call of `initialize` that joined several processes
_MAX_LINE = 65536  # bytes of a message of the rendezvous


class DistributedError(RuntimeError):
    """The processes cannot work together: wrong arguments, a missing process, or a disagreement."""


class Place(NamedTuple):
    """A process among others.

    Attributes:
      coordinator: HOST:PORT of process 0.
      num_processes: number of processes.
      process_id: number of this process, from 0.
    """

    coordinator: str
    num_processes: int
    process_id: int


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: float = 60.0,
    heartbeat: int = 100,
) -> None:
    """Join the other processes. Call this before JAX computes anything or lists devices.

    Without the first three arguments JAX detects the processes that srun (SLURM), mpirun (Open MPI) or Cloud TPUs started; without such a
    launcher, or with a single process, the call does nothing. Under a launcher JAX's service listens on all addresses of process 0 unless
    ``JAX_COORDINATOR_BIND_ADDRESS`` is set, and a missing process aborts the others. Tested with the variables of SLURM on one host, not on
    a cluster and not on a TPU.

    With the arguments, each process sees all GPUs of its host: for several processes on one host set ``JAX_LOCAL_DEVICE_IDS`` in each.
    Under a launcher JAX gives each process the GPU of its number on the host, unless that variable is set.

    Devices start at their first use; on CPUs all processes must reach it within two minutes of each other (option
    ``jax_cpu_get_local_topology_timeout_minutes``). A second call with the same arguments does nothing.

    Args:
      coordinator: HOST:PORT of process 0, the same for all processes; an IPv6 address in brackets. HOST must be an address of process 0's
        host; if the other processes reach it by another address, set ``JAX_COORDINATOR_BIND_ADDRESS`` in process 0.
      num_processes: number of processes.
      process_id: number of this process, 0 to num_processes - 1.
      timeout: seconds to wait for the other processes.
      heartbeat: seconds after which a silent process counts as gone, and limit of the wait at the end of a process; JAX's default.

    Raises:
      DistributedError: arguments are missing or malformed, JAX has started already, a process is missing after ``timeout``, two processes
        have the same number, or they expect different numbers of processes. A process that dies during JAX's own initialisation, after
        the rendezvous, still aborts the others.
    """
    global _joined
    given = (coordinator, num_processes, process_id)
    if _joined is not None:
        if given == _joined and jax.distributed.is_initialized():
            return
        raise DistributedError(
            f"initialize was called before with {_joined}, got {given}: a process joins others once, start a new one to join again"
        )
    detects = given == (None, None, None)
    place = None if detects else _check_arguments(*given)
    if place is None and not (detects and _launcher_started_several(os.environ)):
        return
    if jax.distributed.is_initialized() or _has_started():
        raise DistributedError(
            "JAX has already started in this process: call initialize before anything that computes or lists devices, "
            "and do not call jax.distributed.initialize"
        )
    jax.config.update("jax_enable_preemption_service", False)  # the service would swallow SIGTERM: see the module
    arguments = {} if place is None else _meet(place, timeout)
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=math.ceil(timeout),
            heartbeat_timeout_seconds=heartbeat,
            shutdown_timeout_seconds=heartbeat,
        )
    except (RuntimeError, ValueError) as error:
        raise DistributedError(f"JAX could not join the processes ({error}): start them all again") from error
    _joined = given


def shutdown() -> None:
    """Wait for all processes, then leave JAX's service; afterwards each process ends with its own exit code.

    The call waits as long as the others compute, and does nothing in a single process. A failed process must not call it, since the others
    would not call it either: use `session`.
    """
    if _joined is not None and jax.distributed.is_initialized():
        barrier("shutdown")  # JAX's own wait aborts the process after `heartbeat` seconds
        jax.distributed.shutdown()


@contextlib.contextmanager
def session(*arguments: Any, **options: Any) -> Iterator[None]:
    """Run the body between `initialize`, which takes the arguments, and `shutdown`.

    A body that fails ends the process at once with its own exit code: `os._exit` follows the traceback and the ``finally`` clauses of the
    body, and code outside the session is not reached. Make the session the outermost level of a program. In a single process errors
    propagate as usual.

    Raises:
      DistributedError: as `initialize` does.
    """
    initialize(*arguments, **options)
    try:
        yield
        shutdown()
    except BaseException as error:
        if _joined is None:
            raise
        if isinstance(error, SystemExit) and not error.code:
            shutdown()
            raise
        _leave(error)


def _leave(error: BaseException) -> None:
    """End the process as Python does, without JAX's wait for the others."""
    code = 130 if isinstance(error, KeyboardInterrupt) else 1
    if not isinstance(error, SystemExit):
        sys.excepthook(type(error), error, error.__traceback__)
    elif isinstance(error.code, int):
        code = error.code
    else:
        print(error.code, file=sys.stderr)
    preemption.leave(code)


def is_first() -> bool:
    """True in process 0, and in a single process."""
    return not _are_several() or jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait, without limit, until every process has reached the barrier ``name``.

    Raises:
      DistributedError: another process is at a barrier with another name.
    """
    all_agree(name, "barrier")


def any_process(flag: ArrayLike) -> np.ndarray:
    """Logical or of ``flag``, a boolean or an array of booleans, over all processes; the same result in every process."""
    flags = np.asarray(flag, bool)
    return flags if not _are_several() else multihost_utils.process_allgather(flags).any(0)


def gather(value: Any) -> list[Any]:
    """Return the ``value`` of every process, in the order of their numbers, after a round trip through JSON.

    Raises:
      TypeError, ValueError: JSON cannot represent the value.
    """
    text = json.dumps(value).encode()
    if not _are_several():
        return [json.loads(text)]
    # Few message sizes mean few compilations; JSON ignores trailing spaces.
    length = 1 << int(multihost_utils.process_allgather(np.int32(len(text))).max()).bit_length()
    texts = multihost_utils.process_allgather(np.frombuffer(text.ljust(length), np.uint8))
    return [json.loads(row.tobytes()) for row in texts]


def _are_several() -> bool:
    """True if several processes were joined, by this module or by JAX. Starts no backend."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def from_first(value: Any) -> Any:
    """Return the ``value`` of process 0 in every process, after a round trip through JSON; other values are ignored.

    Raises:
      TypeError, ValueError: JSON cannot represent the value of process 0.
    """
    return gather(value if is_first() else None)[0]


def all_agree(value: Any, what: str = "value") -> None:
    """Raise in every process unless the JSON of ``value`` is the same in all.

    Raises:
      DistributedError: some values differ from that of process 0; the message names the processes.
      TypeError, ValueError: JSON cannot represent the value.
    """
    text = json.dumps(value, sort_keys=True)
    if not _are_several():
        return
    digests = multihost_utils.process_allgather(np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8))
    if others := np.flatnonzero((digests != digests[0]).any(1)).tolist():
        raise DistributedError(
            f"the {what} must be the same in all {len(digests)} processes, but process {_join(others)} differs from "
            f"process 0; here, in process {jax.process_index()}, it is {text if len(text) <= 500 else text[:500] + ' ...'}: "
            "start all with the same command, code and data"
        )


def _launcher_started_several(environ: Mapping[str, str]) -> bool:
    """True if srun, mpirun or Cloud TPUs started several processes, which `jax.distributed.initialize` detects by itself.

    A shell or a batch script inside a SLURM allocation is a single process, whatever the number of tasks of the allocation. TPU VMs whose
    topology only the metadata server knows count as several (JAX sets TPU_ML_PLATFORM at import).
    """
    if "SLURM_STEP_NODELIST" in environ and "SLURM_PROCID" in environ:
        return int(environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    if "OMPI_MCA_orte_hnp_uri" in environ:
        return int(environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
    if hosts := environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES"):
        return "," in hosts or int(environ.get("MEGASCALE_NUM_SLICES", "1")) > 1
    return "TPU_ML_PLATFORM" in environ and "TPU_SKIP_MDS_QUERY" not in environ


def _has_started() -> bool:
    """True if JAX has started its devices. No public function tells; their number can be changed until then."""
    number = jax.config.jax_num_cpu_devices
    try:
        jax.config.update("jax_num_cpu_devices", number + 1)
    except RuntimeError:
        return True
    jax.config.update("jax_num_cpu_devices", number)
    return False


def _check_arguments(coordinator: str | None, num_processes: int | None, process_id: int | None) -> Place | None:
    if (coordinator, num_processes, process_id) == (None, 1, None):
        return None
    if coordinator is None or num_processes is None or process_id is None:
        raise DistributedError(
            "coordinator, num_processes and process_id go together, "
            f"got {coordinator!r}, {num_processes!r}, {process_id!r}: give all three or none"
        )
    _host_and_port(coordinator)
    if not 0 <= process_id < num_processes:
        raise DistributedError(
            f"process_id must be one of 0 to num_processes - 1, got process_id {process_id} with num_processes "
            f"{num_processes}: count processes from 0"
        )
    return Place(coordinator, num_processes, process_id) if num_processes > 1 else None


def _host_and_port(address: str) -> tuple[str, int]:
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\s:\[\]]+)):([0-9]{1,5})", address)
    if not match or not 0 < int(match[3]) < 65536:
        raise DistributedError(f"an address must be HOST:PORT, got {address!r}: write for instance 10.0.0.1:1234 or [fd00::1]:1234")
    return match[1] or match[2], int(match[3])


def _join(ids: list[int]) -> str:
    return ", ".join(map(str, ids))


def _meet(place: Place, timeout: float) -> dict[str, Any]:
    """Wait for all processes; returns the arguments of `jax.distributed.initialize`."""
    address = None  # only process 0 listens
    if place.process_id == 0:
        address = _wait_for_others(place, timeout)
    else:
        _report(place, timeout)
    return {
        "coordinator_address": place.coordinator,
        "num_processes": place.num_processes,
        "process_id": place.process_id,
        "coordinator_bind_address": address,
        "cluster_detection_method": "deactivate",
    }


def _wait_for_others(place: Place, timeout: float) -> str:
    """In process 0: wait for the others and send them the outcome; returns the address of the socket."""
    deadline = time.monotonic() + timeout
    server, host, address = _listen(os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", place.coordinator))
    present: dict[socket.socket, int] = {}
    problem = ""
    with contextlib.ExitStack() as stack:
        stack.enter_context(server)
        while len(present) < place.num_processes - 1 and not problem:
            ready, _, _ = select.select([server, *present], [], [], max(0.0, deadline - time.monotonic()))
            for gone in present.keys() & {*ready}:  # it sends nothing more: it has closed after its own timeout
                del present[gone]
            if server in ready:
                connection = stack.enter_context(server.accept()[0])
                connection.settimeout(1.0)
                num_processes, process_id = _receive(connection, "num_processes", "process_id")
                if num_processes not in (None, place.num_processes):
                    problem = (
                        f"process {process_id} expects {num_processes} processes, process 0 expects "
                        f"{place.num_processes}: give all the same num_processes"
                    )
                elif process_id in present.values():
                    problem = f"two processes have the number {process_id}: give each its own process_id"
                if process_id is not None:  # not a stranger
                    present[connection] = process_id
            elif not ready:
                missing = sorted({*range(1, place.num_processes)} - {*present.values()})
                problem = (
                    f"process {_join(missing)} of {place.num_processes} did not come to process 0 at {address} within "
                    f"{timeout:g} s: see what it printed, start all with the same coordinator, or allow a longer timeout"
                )
                if ipaddress.ip_address(host).is_loopback:
                    problem += "; only processes on process 0's host reach this address"
        for connection in present:
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps({"problem": problem}).encode() + b"\n")
                connection.recv(1)  # the other side closes first, so that the port is free for JAX at once
    if problem:
        raise DistributedError(problem)
    return address


def _listen(address: str) -> tuple[socket.socket, str, str]:
    """Return a socket at ``address``, its numeric host, and HOST:PORT for JAX."""
    host, port = _host_and_port(address)
    try:
        family, _, _, _, socket_address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        server = socket.create_server(socket_address, family=family)
    except OSError as error:
        raise DistributedError(
            f"process 0 cannot listen on {address} ({error}): name an address of its own host and a free port, and "
            "give only one process the number 0"
        ) from error
    number = str(socket_address[0])
    return server, number, f"[{number}]:{port}" if family == socket.AF_INET6 else f"{number}:{port}"


def _report(place: Place, timeout: float) -> None:
    """In the other processes: report to process 0 and receive the outcome."""
    deadline = time.monotonic() + timeout
    refused = "it answered something else"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(_host_and_port(place.coordinator), timeout=left) as connection:
                hello = {"num_processes": place.num_processes, "process_id": place.process_id}
                connection.sendall(json.dumps(hello).encode() + b"\n")
                connection.settimeout(left + 2.0)  # if both started together, process 0 reports the missing process first
                (problem,) = _receive(connection, "problem")
        except OSError as error:
            problem, refused = None, str(error)
        if problem:
            raise DistributedError(problem)
        if problem is not None:
            return
        time.sleep(0.1)
    raise DistributedError(
        f"process {place.process_id} did not hear from process 0 at {place.coordinator} within {timeout:g} s ({refused}): "
        "see what process 0 printed, start all with the same coordinator, or allow a longer timeout"
    )


def _receive(connection: socket.socket, *keys: str) -> list[Any]:
    """Values of ``keys`` in a line of JSON; None for each if the line is missing or malformed."""
    try:
        with connection.makefile("rb") as lines:
            message = json.loads(lines.readline(_MAX_LINE))
        return [message[key] for key in keys]
    except (OSError, ValueError, KeyError, TypeError):
        return [None] * len(keys)
