"""Several processes of one program, on this host and over loopback only."""

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def as_users() -> dict[str, str]:
    """The environment without conftest's XLA_FLAGS: programs, and numbers to the last bit, are then those of a user's run."""
    return {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}


def study(name: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess:
    """``python -m experiments.NAME arguments`` in the environment of `as_users`, with what it printed."""
    command = [sys.executable, "-m", f"experiments.{name}", *map(str, arguments)]
    return subprocess.run(command, check=check, capture_output=True, text=True, env=as_users())


def flags_for(num_devices: int) -> str:
    """What conftest has put into XLA_FLAGS, with another number of CPU devices."""
    others = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ["XLA_FLAGS"])
    return f"{others} --xla_force_host_platform_device_count={num_devices}"


def run(
    script: str, num_processes: int, num_devices: int = 1, timeout: float = 60.0, *, check: bool = True
) -> list[subprocess.CompletedProcess]:
    """Run ``script`` in ``num_processes`` processes of ``num_devices`` CPU devices each; returns their exit codes and outputs.

    Its arguments are what `jaxbp.runtime.processes.initialize` takes: coordinator, number of processes, number of this process. The
    environment has nothing of the caller's but its search paths. No process outlives the call.

    Raises:
      AssertionError: the processes did not end in time or, with ``check``, one failed; it carries what all have printed.
    """
    env = {key: os.environ[key] for key in ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH") if key in os.environ}
    env |= {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags_for(num_devices),
        "PYTHONPATH": str(ROOT),
    }
    where = [f"127.0.0.1:{free_port()}", str(num_processes)]
    files = [[tempfile.TemporaryFile("w+") for _ in range(2)] for _ in range(num_processes)]  # noqa: SIM115 - closed below
    processes = [
        subprocess.Popen([sys.executable, "-c", script, *where, str(i)], env=env, stdout=out, stderr=err)
        for i, (out, err) in enumerate(files)
    ]
    end = time.monotonic() + timeout
    try:
        while any(each.poll() is None for each in processes) and time.monotonic() < end:
            if check and any(each.returncode for each in processes):
                end = min(end, time.monotonic() + 2)  # the others may yet print why
            time.sleep(0.02)
        in_time = all(each.poll() is not None for each in processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    done = []
    for process, pair in zip(processes, files, strict=True):
        printed = []
        for file in pair:
            with file:
                file.seek(0)
                printed.append(file.read())
        done.append(subprocess.CompletedProcess(process.args, process.returncode, *printed))
    if not in_time or (check and any(each.returncode for each in done)):
        said = [f"process {i}, exit code {e.returncode}:\n{e.stdout}\n{e.stderr}" for i, e in enumerate(done)]
        raise AssertionError(f"{'a process failed' if in_time else f'not done in {timeout:g} s'}\n" + "\n".join(said))
    return done
