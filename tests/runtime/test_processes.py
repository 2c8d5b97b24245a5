import signal
import time

import jax
import pytest

from jaxbp.runtime import processes
from jaxbp.runtime.processes import DistributedError
from tests.helpers import run_processes

TOGETHER = """
import pathlib, sys, time
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tests.helpers import run_processes
from jaxbp.runtime import processes

coordinator, num_processes, process_id = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
port = int(coordinator.split(":")[1])


def error_of(fn, *arguments, **options):
    start = time.monotonic()
    try:
        fn(*arguments, **options)
    except processes.DistributedError as error:
        return str(error), time.monotonic() - start
    raise AssertionError("no error")


def listening(own):
    # (address, port) of each listening socket; those of this process's file descriptors only if `own`
    inodes = {str(link.readlink()) for link in pathlib.Path("/proc/self/fd").iterdir() if link.is_symlink()}
    found = set()
    for name in ("tcp", "tcp6"):
        for line in pathlib.Path("/proc/net", name).read_text().splitlines()[1:]:
            fields = line.split()
            address, number = fields[1].split(":")
            if fields[3] == "0A" and (not own or f"socket:[{fields[9]}]" in inodes):
                found.add((address, int(number, 16)))
    return found


# One process: no device is touched, or the real start below would fail.
processes.initialize()
processes.initialize(num_processes=1)
processes.initialize("host:1", 1, 0)
with processes.session(num_processes=1):
    processes.barrier("alone")
assert processes.is_first() and processes.any_process(True) and not processes.any_process(False)
assert processes.from_first({"a": (1, None)}) == {"a": [1, None]}
processes.all_agree([process_id])
processes.shutdown()

# Each at a port of its own: process 0 where nobody comes, process 1 where nobody is.
elsewhere = f"127.0.0.1:{run_processes.free_port()}"
message, seconds = error_of(processes.initialize, elsewhere, 2, process_id, timeout=0.8)
assert "within 0.8 s" in message and 0.7 < seconds < 3, (message, seconds)
assert ("process 1 of 2 did not come" if process_id == 0 else "did not hear from process 0") in message, message

# Both learn that they disagree.
message, _ = error_of(processes.initialize, coordinator, 2 + process_id, process_id, timeout=20)
assert "process 1 expects 3 processes, process 0 expects 2" in message, message

processes.initialize(coordinator, num_processes, process_id, timeout=20)
processes.initialize(coordinator, num_processes, process_id, timeout=20)
assert "joins others once" in error_of(processes.initialize, coordinator, 3, process_id)[0]
assert (jax.process_count(), jax.device_count(), jax.local_device_count()) == (2, 8, 4)
assert processes.is_first() == (process_id == 0) == (jax.process_index() == 0)

# Process 1 is late at the barrier; process 0 leaves it after that.
start = time.time()
if process_id == 1:
    time.sleep(0.5)
came = time.time()
processes.barrier("late")
assert time.time() >= processes.from_first(came) and (process_id == 1 or time.time() - start > 0.4)
assert "process 1 differs" in error_of(processes.barrier, f"of {process_id}")[0]

assert [processes.any_process(flag) for flag in (False, process_id == 1, process_id == 0, True)] == [False, True, True, True]
assert processes.any_process([process_id == 0, False, process_id == 1]).tolist() == [True, False, True]
for value in (None, "ä\\n" * 999, {"seeds": [1, 2.5], "process": process_id}, ""):
    got = processes.from_first(value)
    assert got == (value | {"process": 0} if isinstance(value, dict) else value), got
processes.all_agree({"a": 1, "b": 2} if process_id else {"b": 2, "a": 1})
message, _ = error_of(processes.all_agree, ["own", process_id], "plan")
assert "the plan must be the same in all 2 processes, but process 1 differs" in message and f'["own", {process_id}]' in message

numbers = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
sharding = NamedSharding(Mesh(np.array(jax.devices()), ("all",)), PartitionSpec("all"))
array = jax.make_array_from_callback(numbers.shape, sharding, lambda index: numbers[index])
assert len(array.sharding.device_set) == 8 and len(array.addressable_shards) == 4
np.testing.assert_allclose(float(jax.jit(lambda a: (a * a).sum())(array)), (numbers.astype(np.float64) ** 2).sum(), rtol=1e-5)

loopback = {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1, also as an IPv6 socket shows it
at_port = {address for address, number in listening(own=False) if number == port}
assert at_port and at_port <= loopback, at_port
everywhere = {"00000000", "0" * 32}
assert (port in {number for _, number in listening(own=True)}) == (process_id == 0)
assert not {address for address, _ in listening(own=True)} & everywhere

with processes.session(coordinator, num_processes, process_id):
    print("done", jax.process_index())
assert "joins others once" in error_of(processes.initialize, coordinator, num_processes, process_id)[0]
sys.exit(0 if process_id == 0 else "ended by itself")
"""

# The handler of SIGTERM was there before JAX; it ends process 1, which leaves process 0 alone in a collective.
EARLY = """
import os, signal, sys, time
from jaxbp.runtime import processes

def stop(*_):
    sys.exit(3)

signal.signal(signal.SIGTERM, stop)
with processes.session(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])):
    processes.barrier("all here")
    if not processes.is_first():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(90)
        finally:
            print("cleaned up")
    processes.barrier("never")
"""

# JAX's own wait at the end is not for those who fail, SIGTERM's default is to kill, and process 0 takes the others along.
KILLED = """
import os, signal, sys, time
from jaxbp.runtime import processes

processes.initialize(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
processes.barrier("all here")
if processes.is_first():
    os.kill(os.getpid(), signal.SIGTERM)
time.sleep(90)
"""


@pytest.mark.slow
def test_two_processes_meet_work_and_leave():
    done = run_processes.run(TOGETHER, 2, num_devices=4, check=False)
    assert done[0].returncode == 0, done
    assert done[1].returncode == 1, done
    first, second = done
    assert first.stdout.splitlines()[-1] == "done 0", first
    assert second.stderr.splitlines()[-1] == "ended by itself", second


@pytest.mark.slow
def test_a_process_that_ends_early_keeps_its_exit_code_and_ends_the_others():
    start = time.monotonic()
    first, second = run_processes.run(EARLY, 2, timeout=80, check=False)
    assert time.monotonic() - start < 60  # not heartbeat's 100 s
    assert (second.returncode, second.stdout.splitlines()[-1]) == (3, "cleaned up"), second
    assert first.returncode not in (0, None)
    assert "Gloo" in first.stderr, first


@pytest.mark.slow
def test_sigterm_kills_and_a_dead_process_0_ends_the_others():
    first, second = run_processes.run(KILLED, 2, timeout=80, check=False)
    assert first.returncode == -signal.SIGTERM, first
    assert second.returncode == -signal.SIGABRT, second


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("127.0.0.1:1234",), "go together"),
        (("127.0.0.1:1234", 2), "go together"),
        ((None, 2, 0), "go together"),
        (("127.0.0.1", 2, 0), "HOST:PORT"),
        (("fd00::1:80", 2, 0), "HOST:PORT"),
        (("127.0.0.1:0", 2, 0), "HOST:PORT"),
        (("127.0.0.1:70000", 2, 0), "HOST:PORT"),
        (("127.0.0.1:1234", 2, 2), "process_id must be one of 0 to num_processes - 1, got process_id 2"),
        (("127.0.0.1:1234", 2, -1), "process_id must be"),
        (("127.0.0.1:1234", 0, 0), "process_id must be"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(DistributedError, match=message):
        processes.initialize(*arguments)


def test_a_process_where_jax_has_started_is_refused():
    jax.devices()
    with pytest.raises(DistributedError, match="already started"):
        processes.initialize("127.0.0.1:1234", 2, 0)


# What srun sets for two tasks on a host; JAX finds the rest by itself.
SRUN = """
import os, sys
port, num_processes, process_id = sys.argv[1].split(":")[1], sys.argv[2], sys.argv[3]
os.environ |= {"SLURM_JOB_ID": "4099", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": num_processes,
               "SLURM_STEP_NUM_TASKS": num_processes, "SLURM_PROCID": process_id, "SLURM_LOCALID": process_id, "JAX_COORDINATOR_PORT": port}
import jax
from jaxbp.runtime import processes

with processes.session():
    assert (jax.process_count(), jax.process_index()) == (2, int(process_id))
    assert processes.gather(int(process_id)) == [0, 1]
"""


@pytest.mark.slow
def test_processes_of_srun_find_each_other():
    run_processes.run(SRUN, 2)


@pytest.mark.parametrize(
    "environ, several",
    [
        ({}, False),
        ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, False),  # a batch script, outside srun
        ({"SLURM_STEP_NODELIST": "n1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, False),  # a shell
        ({"SLURM_STEP_NODELIST": "node[1-4]", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}, True),
        ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.96.0.1:34911", "OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.96.0.1:34911", "OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "a.svc,b.svc"}, True),
        ({"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "a.svc", "MEGASCALE_NUM_SLICES": "3"}, True),
        ({"TPU_ML_PLATFORM": "JAX"}, True),
        ({"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1"}, False),
    ],
)
def test_launchers_of_several_processes_are_recognised(environ, several):
    assert processes._launcher_started_several(environ) == several


@pytest.mark.parametrize("process_id", [0, 1])
@pytest.mark.slow
def test_jax_alone_aborts_a_process_whose_partner_is_missing(process_id):
    """Why `processes` has a rendezvous of its own, whose error names the missing process: once this fails, it can go."""
    script = f"""
import jax, sys
jax.distributed.initialize(sys.argv[1], 2, {process_id}, initialization_timeout=1, coordinator_bind_address=sys.argv[1])
"""
    (done,) = run_processes.run(script, 1, check=False)
    assert done.returncode == -signal.SIGABRT, done
