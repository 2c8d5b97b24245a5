"""Empirical tangent kernels against neural-tangents, PyTorch and the paper's loop over pairs.

``python -m experiments.benchmarks ntk [--quick] [--out FILE.json]``. Each peer has a process of its own, with the
same weights and images, so that its peak memory can be told (the device's on a GPU, else the process's); the processes take
turns. Full kernels (N, N, C, C) of a ResNet-18 with BatchNorm's stored statistics, N = 25 images of 32x32x3, C = 10, at two widths,
of an MLP and of the paper's ConvNet, and of a small ResNet on few images; trace kernels against one Jacobian a class; growth with N and
with width. The paper's loop, two backward passes for each of the (N C)^2 entries, is timed on a few entries and extrapolated.
"""

import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import harness
from experiments.benchmarks.settings import Ntk
from jaxbp import lab, models, ntk

_SMALL = "ResNet, width 8, 8x8"  # as the quick preset of Study 3 has it
_CASES = {  # name: (model, options, image shape)
    "ResNet-18, width 16": ("resnet18", {"width": 16}, (32, 32, 3)),
    "ResNet-18, width 64": ("resnet18", {"width": 64}, (32, 32, 3)),
    "MLP of 4 layers, width 2048": ("mlp", {"width": 2048, "depth": 3}, (32, 32, 3)),
    "ConvNet, width 16": ("convnet", {"width": 16, "pool": "stride"}, (32, 32, 3)),
    _SMALL: ("resnet", {"width": 8, "stages": 2, "depth": 1}, (8, 8, 1)),
}
OURS = "ours"
_PEERS = ("neural-tangents 1", "neural-tangents 2", "torch.func Jacobians", "the paper's loop")
_TRACE_PEER = "one Jacobian a class"
_IMAGES, _FEW = 25, (6, 12)  # images of a kernel
_PAIRS = 20  # entries of the paper's loop that are timed
_LEAST_BYTES = 1e7  # less cannot be told from what the process held before
_JACOBIAN_BYTES = 6e9  # a larger one is not formed by a peer that would have to


def run(arguments: Ntk) -> None:
    """Run all cases and print the table; or be one of the peers."""
    if arguments.worker:
        serve(**json.loads(arguments.worker))
        return
    known = [_SMALL] if arguments.quick else list(_CASES)
    names = [name for name in known if not arguments.cases or any(part in name for part in arguments.cases)]
    if not names:
        raise lab.SettingsError(f"no case is named {', '.join(arguments.cases)}: there are {'; '.join(known)}")
    rows: list[dict[str, Any]] = []
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share a GPU
    harness.start()
    runs = 2 if arguments.quick else arguments.runs
    for name in names:
        for number in _FEW[: 1 if arguments.quick else None] if name == _SMALL else (_IMAGES,):
            rows += compare(name, number, "full", _PEERS, runs)
    if arguments.cases:
        harness.finish(rows, arguments.out)
        return
    for name, number in ((_SMALL, _FEW[-1]), ("ResNet-18, width 16", 256))[: 1 if arguments.quick else None]:
        rows += compare(name, number, "trace", (_TRACE_PEER,), max(runs - 2, 2))
    rows += growth(quick=arguments.quick)
    harness.finish(rows, arguments.out)


class PeerEndedError(RuntimeError):
    """A peer's process is no more."""


class Peer:
    """A process that computes one kernel each time it is asked."""

    def __init__(self, **task: Any):
        command = [sys.executable, "-m", "experiments.benchmarks", "ntk", "--worker", json.dumps(task)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ready = self._answer()

    def run(self) -> dict[str, Any]:
        """Seconds, and the bytes by which the process's peak memory has grown since it was ready."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise PeerEndedError(f"it ended with code {self.process.wait()}" + ", out of memory" * (self.process.wait() == -9))
        return json.loads(line)


def compare(case: str, num_examples: int, logits: str, peers: Sequence[str], runs: int) -> list[dict[str, Any]]:
    """Time ours and the peers in turn, the first call apart; peers that do not run are named, with the reason."""
    torch_missing = harness.missing_peer("torch") is not None
    running: dict[str, Peer] = {}
    first: dict[str, dict[str, Any]] = {}
    for name in (OURS, *peers):
        if torch_missing and name in ("torch.func Jacobians", "the paper's loop"):
            continue
        peer = Peer(case=case, num_examples=num_examples, logits=logits, peer=name)
        try:
            refused = peer.ready.get("refused")
            if not refused:
                first[name] = peer.run()
                running[name] = peer
        except PeerEndedError as error:
            if name == OURS:
                raise
            refused = str(error)
        if refused:
            print(f"{case}: {name} does not run here: {refused}", flush=True)
            peer.close()
    times: dict[str, list[float]] = {name: [] for name in running}
    memory = {name: answer["bytes"] for name, answer in first.items()}
    for _ in range(runs):
        for name, peer in running.items():
            answer = peer.run()
            times[name].append(answer["seconds"])
            memory[name] = max(memory[name], answer["bytes"])
    for peer in running.values():
        peer.close()
    label = f"{case}, N = {num_examples}, {logits}"
    print(label, {name: round(statistics.median(taken), 3) for name, taken in times.items()}, "s", flush=True)
    ours = statistics.median(times[OURS])
    rows = []
    for name in [name for name in running if name != OURS]:
        theirs = statistics.median(times[name])
        told = {"first_ours": first[OURS]["seconds"], "first_peer": first[name]["seconds"]}
        shown = f"{name}, extrapolated from {_PAIRS} entries" if name == "the paper's loop" else name
        rows.append(harness.row(label, "time", "s", ours, theirs, shown, runs=runs, **told))
        if name != "the paper's loop":
            ratio = [told["first_ours"], told["first_peer"]]
            rows.append(harness.row(label, "first call", "s", *ratio, name, runs=1))
            peaks = [max(memory[peer], _LEAST_BYTES) / 1e9 for peer in (OURS, name)]
            rows.append(harness.row(label, "peak memory", "GB", *peaks, name, runs=runs))
    return rows


def growth(*, quick: bool) -> list[dict[str, Any]]:
    """Exponents of our time over the number of examples and over the width, by least squares on logarithms."""
    model, shape = ("resnet", (8, 8, 1)) if quick else ("resnet18", (32, 32, 3))
    options = {"stages": 2, "depth": 1} if quick else {}
    examples, widths = ((2, 4), (2, 4)) if quick else ((8, 16, 32, 64), (8, 16, 32, 64))
    over = {
        "number of examples at width 16": [(n, _our_time(model, options | {"width": 16}, shape, n)) for n in examples],
        "width at N = 16": [(w, _our_time(model, options | {"width": w}, shape, 16)) for w in widths],
    }
    rows = []
    for name, points in over.items():
        slope = float(np.polyfit(*np.log(np.array(points)).T, 1)[0])
        print(f"time over {name}: " + ", ".join(f"{size}: {seconds:.3g} s" for size, seconds in points) + f"; exponent {slope:.2f}")
        rows.append(harness.row(f"growth over {name}", "exponent", "", slope, 2.0, "quadratic", runs=3))
    return rows


def _our_time(model: str, options: dict[str, Any], shape: tuple[int, ...], num_examples: int) -> float:
    compute = _ours(*_problem(model, options, shape, num_examples), "full")
    compute()
    return statistics.median(harness.timed(compute) for _ in range(3))


def serve(case: str, num_examples: int, logits: str, peer: str) -> None:
    """Be a peer: set up, say so, then compute once for every line that comes in."""
    with contextlib.redirect_stdout(sys.stderr):  # the other one is the pipe
        harness.match_torch()
    model, options, shape = _CASES[case]
    compute, scale = _PREPARE[peer](*_problem(model, options, shape, num_examples), logits), 1.0
    if isinstance(compute, str):
        print(json.dumps({"refused": compute}), flush=True)
        return
    if peer == "the paper's loop":
        scale = (num_examples * 10) ** 2 / _PAIRS
    print(json.dumps({"ready": True}), flush=True)
    base = _peak_bytes()
    for _ in sys.stdin:
        print(json.dumps({"seconds": scale * harness.timed(compute), "bytes": _peak_bytes() - base}), flush=True)


def _peak_bytes() -> int:
    if stats := jax.local_devices()[0].memory_stats():
        torch = sys.modules.get("torch")
        return stats["peak_bytes_in_use"] + (torch.cuda.max_memory_allocated() if torch else 0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _problem(model: str, options: dict[str, Any], shape: tuple[int, ...], num_examples: int) -> tuple:
    """(network, parameters, state, images), the same in every process."""
    net = models.create(model, num_classes=10, **options)
    images = jax.random.normal(jax.random.key(1), (num_examples, *shape))
    params, state = jax.jit(lambda key: net.init(key, images[:1]))(jax.random.key(0))
    return net, params, state, images


def _ours(net: Any, params: Any, state: Any, images: Any, logits: str) -> Callable[[], Any]:
    return lambda: jax.block_until_ready(ntk.empirical_ntk(net.apply, params, images, state=state, logits=logits))


def _jacobian_bytes(params: Any, images: Any) -> float:
    return 4.0 * 10 * len(images) * sum(leaf.size for leaf in jax.tree.leaves(params))


def _neural_tangents(implementation: int) -> Callable:
    def prepare(net: Any, params: Any, state: Any, images: Any, logits: str) -> Callable[[], Any] | str:
        warnings.filterwarnings("ignore", "size requires ndarray", DeprecationWarning)
        if implementation == 1 and _jacobian_bytes(params, images) > 3 * _JACOBIAN_BYTES:
            return f"its Jacobians would take {_jacobian_bytes(params, images) / 1e9:.0f} GB"
        if implementation == 2 and _jacobian_bytes(params, images) > _JACOBIAN_BYTES:
            return "it was killed for memory at 24 GB"
        nt = ntk.compat.load()
        kernel_fn = jax.jit(
            nt.empirical_ntk_fn(lambda p, x: net.apply(p, x, state), trace_axes=(), vmap_axes=0, implementation=implementation)
        )
        return lambda: jax.block_until_ready(kernel_fn(images, None, params))

    return prepare


def _one_jacobian_a_class(net: Any, params: Any, state: Any, images: Any, logits: str) -> Callable[[], Any]:
    """The trace kernel as a loop over the logits, holding the Jacobian of one at a time."""

    @jax.jit
    def of_logit(params: Any, images: Any, logit: Any) -> Any:
        gradient = jax.vmap(jax.grad(lambda p, x: net.apply(p, x[None], state)[0, logit]), (None, 0))(params, images)
        flat = [leaf.reshape(len(images), -1) for leaf in jax.tree.leaves(gradient)]
        return sum(jnp.matmul(leaf, leaf.T, precision="highest") for leaf in flat)

    return lambda: jax.block_until_ready(sum(of_logit(params, images, k) for k in range(10)))


def _torch_peer(loop: bool) -> Callable:
    def prepare(net: Any, params: Any, state: Any, images: Any, logits: str) -> Callable[[], Any] | str:
        if not loop and _jacobian_bytes(params, images) > _JACOBIAN_BYTES:
            return f"its Jacobians would take {_jacobian_bytes(params, images) / 1e9:.0f} GB, and twice that to contract"
        from experiments.benchmarks import torch_peers

        peer = torch_peers.Twin(params, net.module, np.asarray(images), np.zeros(len(images)))
        expected = np.asarray(_ours(net, params, state, images[:2], "full")())
        entries = torch_peers.ntk_pairs(peer, peer.params, 2).cpu().numpy()
        if not np.allclose(entries, expected[0, :, 0, 0], rtol=1e-2):
            raise AssertionError(f"the PyTorch twin has another kernel: {entries} against {expected[0, :, 0, 0]}")
        if loop:
            return lambda: torch_peers.ntk_pairs(peer, peer.params, _PAIRS)
        return lambda: torch_peers.ntk(peer, peer.params)

    return prepare


_PREPARE: dict[str, Callable] = {
    OURS: _ours,
    "neural-tangents 1": _neural_tangents(1),
    "neural-tangents 2": _neural_tangents(2),
    "torch.func Jacobians": _torch_peer(loop=False),
    "the paper's loop": _torch_peer(loop=True),
    _TRACE_PEER: _one_jacobian_a_class,
}
