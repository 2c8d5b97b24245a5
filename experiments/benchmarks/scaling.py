"""What coordination costs: one sweep on 1, 2, 4 and 8 devices and in 1 or 2 processes, with the same work for each device.

``python -m experiments.benchmarks scaling [--devices 1 2 4 8] [--quick] [--out FILE.json]``. Devices are virtual ones on the cores of this
machine, so with more devices than cores a perfect system keeps the number of training runs a second, and does not raise it. Each row
compares that number with the one of as many devices as there are cores, in one process; every measurement is a program of its own, the
layouts taking turns. Results go to a folder, as in use, so that writing and agreeing are part of what is timed.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from experiments.benchmarks import harness
from experiments.benchmarks.settings import Scaling
from jaxbp import data, lab, models, sweep, training
from jaxbp.runtime.processes import barrier, shutdown

_CASES = {  # model, data set, its options, epochs, runs for each device
    "MLP 64-64-64-10": ("mlp", "digits", {"width": 64, "depth": 2}, 100, 8),
    "ResNet, width 8, 8x8": ("resnet", "digits", {"width": 8, "stages": 2, "depth": 1}, 6, 4),
}


def run(arguments: Scaling) -> None:
    """Measure all layouts and print the table."""
    if arguments.worker:
        work(**json.loads(arguments.worker))
        return
    if min(*arguments.devices, arguments.runs, 1) < 1:
        raise lab.SettingsError(f"devices and runs must be at least 1, got {arguments.devices}, {arguments.runs}")
    rows: list[dict[str, Any]] = []
    for name in list(_CASES)[:1] if arguments.quick else _CASES:
        devices = (1, 2) if arguments.quick else arguments.devices
        rows += one_case(name, devices, num_turns=1 if arguments.quick else arguments.runs)
    harness.finish(rows, arguments.out)


def one_case(name: str, devices: tuple[int, ...], *, num_turns: int) -> list[dict[str, Any]]:
    """Rows of all layouts, in seconds of one core for one training run."""
    layouts = [(number, processes) for number in devices for processes in (1, 2) if number % processes == 0]
    cores = len(os.sched_getaffinity(0))
    base = (min(cores, max(devices)), 1)
    layouts += [base] if base not in layouts else []
    seconds: dict[tuple[int, int], list[float]] = {layout: [] for layout in layouts}
    for _ in range(num_turns):
        for layout in layouts:
            seconds[layout].append(measure(name, *layout))
            print(f"{name}: {layout[0]} devices in {layout[1]} processes, {seconds[layout][-1]:.2f} s", flush=True)
    each = {}
    for (number, processes), found in seconds.items():
        busy = min(number, cores)  # cores that this layout can use
        each[number, processes] = statistics.median(found) * busy / (number * _CASES[name][-1])
    return [
        harness.row(
            name,
            f"{number} devices, {processes} processes: core time of a run",
            "s",
            each[number, processes],
            each[base],
            f"{base[0]} devices, 1 process",
            runs=num_turns,
        )
        for number, processes in layouts
    ]


def measure(name: str, devices: int, processes: int) -> float:
    """Seconds of a sweep that is compiled already, the slowest process counting."""
    with tempfile.TemporaryDirectory() as folder:
        coordinator = f"127.0.0.1:{_free_port()}"
        running = []
        for process in range(processes):
            place = {"coordinator": coordinator, "num_processes": processes, "process_id": process}
            work = json.dumps({"name": name, "folder": folder, "place": place if processes > 1 else {}})
            flags = f"--xla_force_host_platform_device_count={devices // processes}"
            env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
            command = [sys.executable, "-m", "experiments.benchmarks", "scaling", "--worker", work]
            running.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True))
        found = [process.communicate()[0] for process in running]
        if any(process.returncode for process in running):
            raise RuntimeError(f"a process of {devices} devices in {processes} processes failed; see above")
        return max(float(out.split()[-1]) for out in found)


def work(name: str, folder: str, place: dict[str, Any]) -> None:
    """What one process does: the sweep twice, the first time to compile it; prints the seconds of the second."""
    lab.start_jax(lab.Cluster(**place))

    model, dataset, options, num_epochs, share = _CASES[name]
    net = models.create(model, num_classes=10, **options)
    split = data.load(dataset, num_train=1024).train

    def train(key: jax.Array, inputs: jax.Array, labels: jax.Array) -> jax.Array:
        settings = training.Settings(num_epochs=num_epochs, batch_size=64, measure_epochs=(num_epochs,))
        return training.train(net, training.sgd(0.01, momentum=0.9), (inputs, labels), key, settings).history["train_loss"][0]

    def run(title: str) -> float:
        began = time.perf_counter()
        seeds, shared = share * jax.device_count(), [split.inputs, split.labels]
        sweep.run(train, seeds=seeds, shared=shared, out=Path(folder) / title, plan="shard-map", quiet=True)
        return time.perf_counter() - began

    run("compile")
    barrier("compiled")
    print(run("time"))
    shutdown()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
