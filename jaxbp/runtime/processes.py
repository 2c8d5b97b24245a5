"""Several processes, on one host or on many, as one JAX program; the same command serves one process.

Each process calls `initialize` before JAX computes anything, does the same work in the same order and ends with `shutdown`; `session`
is both, for the outermost level of a program. Afterwards `jax.devices` are those of all processes. What must be one process's
work (files, reports) belongs to the one that `is_first`; `barrier`, `any_process`, `from_first` and `all_agree` keep the processes
together, and cost nothing where there is only one. Every process must call each of them, or the others wait.

*Who meets*: the processes find each other at the coordinator, HOST:PORT of process 0, first over a socket of this module: JAX aborts
a process, from C++ and past any ``except``, when another does not come; here that is a `DistributedError` that names it. JAX's service
then takes the same port. Neither it nor the sockets between CPU devices (gloo) ask who connects: use a network you trust.
The service listens on the coordinator's address only; gloo listens, in every process, on the address of the host's own name.

*Who ends early*: while processes compute, JAX ends them together. Measured with JAX 0.10.2 on CPUs: a collective with a process
that is gone raises at once; elsewhere the others are aborted (exit code 134) when process 0 is gone at once, otherwise within
``heartbeat`` seconds and about two more. A process that fails but leaves Python the usual way first waits for the others, up to
``heartbeat`` seconds, and is then aborted itself, its exit code lost: `session` leaves at once instead, with the right code.

*SIGTERM*: JAX's preemption service, on by default, replaces what SIGTERM does when `jax.distributed.initialize` is called. A process
then survives SIGTERM, even after `jax.distributed.shutdown`; a Python handler installed before is never called, although
`signal.getsignal` still names it, and one installed after is called but hides the signal from JAX. `initialize` therefore
turns the service off (option ``jax_enable_preemption_service``): SIGTERM does what it does without JAX, and
`jax.experimental.multihost_utils.reached_preemption_sync_point` is not to be had.

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

_Arguments = tuple[str | None, int | None, int | None]
_joined: _Arguments | None = None  # what `initialize` was called with, once it has joined several processes
_LONGEST_LINE = 65536  # bytes of a message between processes that meet


class DistributedError(RuntimeError):
    """The processes cannot work together: wrong arguments, one is missing, or they disagree."""


class Place(NamedTuple):
    """A process among others."""

    coordinator: str  # HOST:PORT of process 0
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
    """Join the other processes; call it before JAX computes anything or lists devices.

    Without the first three arguments the cluster's environment gives them: see `find_place`. Where there is no cluster, or only one
    process, nothing is done. On Cloud TPU VMs outside Kubernetes only a metadata server knows them: JAX asks it, its service
    listens on all addresses of process 0 unless ``JAX_COORDINATOR_BIND_ADDRESS`` says otherwise, and a missing process aborts the
    others. Not tried on a TPU.

    With the arguments given, each process sees all GPUs of its host: for several processes on one host set ``JAX_LOCAL_DEVICE_IDS`` in
    each. Under SLURM JAX gives each task the GPU number ``SLURM_LOCALID``, unless that variable is set.

    Devices start when first used; on CPUs all processes must come to that within two minutes of each other (option
    ``jax_cpu_get_local_topology_timeout_minutes``). Calling it again with the same arguments does nothing.

    Args:
      coordinator: HOST:PORT of process 0, the same for all processes; an IPv6 address in brackets. HOST must be an address that
        process 0's host has; where the others know it by one that it has not, set ``JAX_COORDINATOR_BIND_ADDRESS`` in process 0.
      num_processes: how many processes there are.
      process_id: the number of this one, 0 to num_processes - 1.
      timeout: seconds to wait for the others.
      heartbeat: seconds after which a silent process counts as gone, and that a process waits at its end for the others; JAX's default.

    Raises:
      DistributedError: some arguments are missing or malformed, JAX has already started, a process does not come in time, two have
        the same number, or they expect different numbers of processes. Once all have come, JAX's own start is left: a process
        that dies within that moment aborts the others.
    """
    global _joined
    given = (coordinator, num_processes, process_id)
    if _joined is not None:
        if given == _joined and jax.distributed.is_initialized():
            return
        raise DistributedError(
            f"initialize was called before with {_joined}, got {given}: a process joins others once, start a new one to join again"
        )
    alone = given == (None, None, None)
    place = find_place(os.environ) if alone else _checked(*given)
    if place is None and not (alone and _asks_metadata(os.environ)):
        return
    if jax.distributed.is_initialized() or _has_started():
        raise DistributedError(
            "JAX has already started in this process: call initialize before anything that computes or lists devices, "
            "and do not call jax.distributed.initialize"
        )
    jax.config.update("jax_enable_preemption_service", False)  # or SIGTERM would be swallowed: see the module
    where = {} if place is None else _meet(place, timeout)
    if alone and "SLURM_LOCALID" in os.environ:
        where["cluster_detection_method"] = "slurm"  # leaves the choice of the task's GPU to JAX
    try:
        jax.distributed.initialize(
            **where,
            initialization_timeout=math.ceil(timeout),
            heartbeat_timeout_seconds=heartbeat,
            shutdown_timeout_seconds=heartbeat,
        )
    except RuntimeError as error:
        raise DistributedError(f"JAX could not join the processes ({error}): start them all again") from error
    _joined = given


def shutdown() -> None:
    """Wait for all processes, then leave; afterwards each ends with its own exit code. Nothing to do for one process.

    It waits as long as the others compute. A process that has failed must not call it, since the others do not come: `session`
    takes care of that.
    """
    if _joined is not None and jax.distributed.is_initialized():
        barrier("shutdown")  # JAX's own wait ends after `heartbeat` seconds and aborts
        jax.distributed.shutdown()


@contextlib.contextmanager
def session(*arguments: Any, **options: Any) -> Iterator[None]:
    """`initialize`, with its arguments, the body, and `shutdown`; a body that fails ends the process at once, with its own exit code.

    That is `os._exit`, once the traceback is printed and the body's own ``finally`` clauses have run; nothing outside sees the
    error or cleans up. Make it the outermost thing a program does. With one process errors pass through as usual.

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
    """End the process as Python would, but without JAX's wait for the others."""
    code = 130 if isinstance(error, KeyboardInterrupt) else 1
    if not isinstance(error, SystemExit):
        sys.excepthook(type(error), error, error.__traceback__)
    elif isinstance(error.code, int):
        code = error.code
    else:
        print(error.code, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed before
            stream.flush()
    os._exit(code)


def is_first() -> bool:
    """Whether this is process 0, or the only one."""
    return not _are_several() or jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait, without limit, until every process has come to the barrier ``name``.

    Raises:
      DistributedError: another process is at a barrier of another name.
    """
    all_agree(name, "barrier")


def any_process(flag: ArrayLike) -> np.ndarray:
    """Whether ``flag``, or each of an array of them, holds in at least one process; the same answer in all."""
    flags = np.asarray(flag, bool)
    return flags if not _are_several() else multihost_utils.process_allgather(flags).any(0)


def gather(value: Any) -> list[Any]:
    """Every process's ``value``, by their number, as it comes back from JSON.

    Raises:
      TypeError, ValueError: not a value that JSON can write.
    """
    text = json.dumps(value).encode()
    if not _are_several():
        return [json.loads(text)]
    # Few sizes of messages mean few compilations; JSON ignores spaces at its end.
    room = 1 << int(multihost_utils.process_allgather(np.int32(len(text))).max()).bit_length()
    texts = multihost_utils.process_allgather(np.frombuffer(text.ljust(room), np.uint8))
    return [json.loads(each.tobytes()) for each in texts]


def _are_several() -> bool:
    """Whoever joined them; JAX starts no device to tell."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def from_first(value: Any) -> Any:
    """Return process 0's ``value`` in every process, as it comes back from JSON; the others' is not looked at.

    Raises:
      TypeError, ValueError: process 0's value is not one that JSON can write.
    """
    return gather(value if is_first() else None)[0]


def all_agree(value: Any, what: str = "value") -> None:
    """Raise in every process unless ``value``, as JSON writes it, is the same in all.

    Raises:
      DistributedError: names the processes whose value is not process 0's.
      TypeError, ValueError: not a value that JSON can write.
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


def find_place(environ: Mapping[str, str]) -> Place | None:
    """Read this process's place from a cluster's environment variables; None without a cluster, or for one process.

    *SLURM*, inside ``srun``: ``SLURM_STEP_NUM_TASKS`` and ``SLURM_PROCID``; the coordinator is the first host of
    ``SLURM_STEP_NODELIST``. *Cloud TPU under Kubernetes*: ``TPU_WORKER_HOSTNAMES`` (or ``TPU_PROCESS_ADDRESSES``),
    ``TPU_WORKER_ID`` and, for several slices, ``MEGASCALE_COORDINATOR_ADDRESS``, ``MEGASCALE_NUM_SLICES``,
    ``MEGASCALE_SLICE_ID``. Ports are those that JAX 0.10 chooses (the folder ``clusters`` of its source), unless
    ``JAX_COORDINATOR_PORT`` names one. Not tried on such clusters. Elsewhere, as under Open MPI or Kubernetes without
    TPUs, give `initialize` its arguments.
    """
    if "SLURM_STEP_NODELIST" in environ and "SLURM_PROCID" in environ:
        num_processes, process_id = int(environ.get("SLURM_STEP_NUM_TASKS", "1")), int(environ["SLURM_PROCID"])
        (first, *_) = re.finditer(r"(\[[^]]*\]|[^,\[])*", environ["SLURM_STEP_NODELIST"])  # of a[001-015,020]b,other
        host = re.sub(r"\[([^],-]+)[^]]*\]", r"\1", first.group())
        port = 61440 + int(environ.get("SLURM_JOB_ID", "0")) % 4096
    elif "TPU_WORKER_ID" in environ and (names := _tpu_hosts(environ)):
        num_slices, slice_id = (
            int(environ.get("MEGASCALE_NUM_SLICES", "1")),
            int(environ.get("MEGASCALE_SLICE_ID", "0")),
        )
        num_processes, process_id = len(names) * num_slices, int(environ["TPU_WORKER_ID"]) + slice_id * len(names)
        host = environ.get("MEGASCALE_COORDINATOR_ADDRESS", names[0]).split(":")[0]
        port = 8482
    else:
        return None
    if num_processes == 1:
        return None
    return Place(f"{host}:{environ.get('JAX_COORDINATOR_PORT', port)}", num_processes, process_id)


def _tpu_hosts(environ: Mapping[str, str]) -> list[str]:
    names = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
    return names.split(",") if names else []


def _asks_metadata(environ: Mapping[str, str]) -> bool:
    """Whether only a metadata server knows: JAX, when imported, has left word that it found TPUs and may ask."""
    return "TPU_ML_PLATFORM" in environ and "TPU_SKIP_MDS_QUERY" not in environ and not _tpu_hosts(environ)


def _has_started() -> bool:
    """Whether JAX has its devices: their number can be changed until then, and no public function says so."""
    number = jax.config.jax_num_cpu_devices
    try:
        jax.config.update("jax_num_cpu_devices", number + 1)
    except RuntimeError:
        return True
    jax.config.update("jax_num_cpu_devices", number)
    return False


def _checked(coordinator: str | None, num_processes: int | None, process_id: int | None) -> Place | None:
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
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\s:\[\]]+)):([0-9]{1,5})", address)
    if not found or not 0 < int(found[3]) < 65536:
        raise DistributedError(f"an address must be HOST:PORT, got {address!r}: write for instance 10.0.0.1:1234 or [fd00::1]:1234")
    return found[1] or found[2], int(found[3])


def _join(ids: list[int]) -> str:
    return ", ".join(map(str, ids))


def _meet(place: Place, timeout: float) -> dict[str, Any]:
    """Wait until all processes are there; returns what `jax.distributed.initialize` needs to know of them."""
    address = None  # process 0 alone listens
    if place.process_id == 0:
        address = _gather(place, timeout)
    else:
        _report(place, timeout)
    return {
        "coordinator_address": place.coordinator,
        "num_processes": place.num_processes,
        "process_id": place.process_id,
        "coordinator_bind_address": address,
        "cluster_detection_method": "deactivate",
    }


def _gather(place: Place, timeout: float) -> str:
    """In process 0: wait for the others and tell them the outcome; returns the address it listened on."""
    deadline = time.monotonic() + timeout
    server, host, address = _listen(os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", place.coordinator))
    there: dict[socket.socket, int] = {}
    problem = ""
    with contextlib.ExitStack() as stack:
        stack.enter_context(server)
        while len(there) < place.num_processes - 1 and not problem:
            ready, _, _ = select.select([server, *there], [], [], max(0.0, deadline - time.monotonic()))
            for gone in there.keys() & {*ready}:  # nothing is to come but the end, of one that has waited enough
                del there[gone]
            if server in ready:
                connection = stack.enter_context(server.accept()[0])
                connection.settimeout(1.0)
                num_processes, process_id = _receive(connection, "num_processes", "process_id")
                if num_processes not in (None, place.num_processes):
                    problem = (
                        f"process {process_id} expects {num_processes} processes, process 0 expects "
                        f"{place.num_processes}: give all the same num_processes"
                    )
                elif process_id in there.values():
                    problem = f"two processes have the number {process_id}: give each its own process_id"
                if process_id is not None:  # not a stranger
                    there[connection] = process_id
            elif not ready:
                missing = sorted({*range(1, place.num_processes)} - {*there.values()})
                problem = (
                    f"process {_join(missing)} of {place.num_processes} did not come to process 0 at {address} within "
                    f"{timeout:g} s: see what it printed, start all with the same coordinator, or allow a longer timeout"
                )
                if ipaddress.ip_address(host).is_loopback:
                    problem += "; only processes on process 0's host reach this address"
        for connection in there:
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps({"problem": problem}).encode() + b"\n")
                connection.recv(1)  # it closes first, so that the port is free for JAX at once
    if problem:
        raise DistributedError(problem)
    return address


def _listen(address: str) -> tuple[socket.socket, str, str]:
    """A socket at ``address``; its host as a number; and both, for JAX."""
    host, port = _host_and_port(address)
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        server = socket.create_server(where, family=family)
    except OSError as error:
        raise DistributedError(
            f"process 0 cannot listen on {address} ({error}): name an address of its own host and a free port, and "
            "give only one process the number 0"
        ) from error
    number = str(where[0])
    return server, number, f"[{number}]:{port}" if family == socket.AF_INET6 else f"{number}:{port}"


def _report(place: Place, timeout: float) -> None:
    """In the other processes: tell process 0 that this one is there, and hear from it whether all are."""
    deadline = time.monotonic() + timeout
    refused = "it answered something else"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(_host_and_port(place.coordinator), timeout=left) as connection:
                hello = {"num_processes": place.num_processes, "process_id": place.process_id}
                connection.sendall(json.dumps(hello).encode() + b"\n")
                connection.settimeout(left + 2.0)  # if both began together, process 0 tells first who is missing
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
    """The values of ``keys`` in a line of JSON, None for each unless there is such a line."""
    try:
        with connection.makefile("rb") as lines:
            message = json.loads(lines.readline(_LONGEST_LINE))
        return [message[key] for key in keys]
    except (OSError, ValueError, KeyError, TypeError):
        return [None] * len(keys)
