"""Seed sweeps in PyTorch, as three kinds of users write them, for `sweep` to be compared with.

One network after another with all threads; the seeds split over processes of one thread each; all networks at once by
`torch.func.vmap`. All three do the same work: plain SGD with momentum over each seed's own batches from its own parameters, then
the mean loss and accuracy over all data in evaluation mode. Each builder prepares what need not be timed and gives a
function that trains all seeds anew and returns their final losses (S,). Imported only where PyTorch is installed.

Check these losses against JAX's over few steps: training can amplify round-off (a ConvNet's from 1e-7 to 1e-1 in 40 steps).
"""

import contextlib
import multiprocessing
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from experiments.benchmarks import torch_peers
from experiments.benchmarks.torch_peers import Statistics, Tensors

Sweep = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Runs:
    """What S runs share, and what each seed has of its own."""

    net: Any  # of Flax, see torch_peers.plan
    inputs: np.ndarray  # (N, H, W, C)
    labels: np.ndarray  # (N,)
    params: Sequence[Any]  # of each seed, a Flax tree
    orders: Sequence[np.ndarray]  # of each seed, (T, B): the examples of every batch
    learning_rate: float
    momentum: float


def one_after_another(runs: Runs, *, channels_last: bool = False) -> Sweep:
    """The usual loop, with as many threads as PyTorch takes."""
    return _prepared(runs, channels_last).train


@contextlib.contextmanager
def two_processes(runs: Runs, *, channels_last: bool = False, num_processes: int = 2) -> Iterator[Sweep]:
    """The usual loop over a share of the seeds in each of some processes; they have started and hold their data when this enters.

    They are spawned, not forked, as threads of JAX and PyTorch may hold locks, and so need a main module that can be imported.
    """
    everything = _prepared(runs, channels_last)
    num_seeds = len(runs.params)
    shares = [slice(first, None, num_processes) for first in range(min(num_processes, num_seeds))]
    with contextlib.ExitStack() as stack:
        pipes = [stack.enter_context(_worker(everything.share(share))) for share in shares]
        with _explained():
            for pipe in pipes:
                pipe.recv()

        @_explained()
        def train() -> np.ndarray:
            losses = np.empty(num_seeds)
            for pipe in pipes:
                pipe.send("train")
            for share, pipe in zip(shares, pipes, strict=True):
                losses[share] = pipe.recv()
            return losses

        yield train


def vmapped(runs: Runs) -> Sweep:
    """All networks at once: parameters stacked, `torch.func.vmap` of the gradient, SGD written out on the stacks.

    Only the evaluation takes one network after another, so that the maps of all data need not fit into memory for all seeds.
    """
    ready = _prepared(runs, channels_last=False)
    twin, num_seeds = ready.twin, len(ready.starts)
    batches = torch.stack(ready.orders, 1)  # (T, S, B)

    def loss(params: Tensors, statistics: Statistics, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        norm_fn = torch_peers.by_batch(statistics)
        return F.cross_entropy(torch_peers.forward(twin.plan, params, inputs, norm_fn), labels)

    gradient_fn = torch.func.vmap(torch.func.grad_and_value(loss))

    def train() -> np.ndarray:
        params = _stacked(ready.starts)
        velocity = {name: torch.zeros_like(value) for name, value in params.items()}
        statistics = {
            layer: (mean.repeat(num_seeds, 1), variance.repeat(num_seeds, 1)) for layer, (mean, variance) in twin.fresh_statistics().items()
        }
        for batch in batches:
            gradient, _ = gradient_fn(params, statistics, twin.inputs[batch], twin.labels[batch])
            for name, value in params.items():
                velocity[name].mul_(ready.momentum).add_(gradient[name])
                value.sub_(velocity[name], alpha=ready.learning_rate)
        losses = np.empty(num_seeds)
        for seed, order in enumerate(ready.orders):
            own = {layer: (mean[seed], variance[seed]) for layer, (mean, variance) in statistics.items()}
            losses[seed] = _final_loss(twin, {name: value[seed] for name, value in params.items()}, own, order)
        return losses

    return train


@dataclass(frozen=True)
class _Prepared:
    """`Runs` in PyTorch, without anything of JAX."""

    twin: torch_peers.Twin
    starts: list[Tensors]
    orders: list[torch.Tensor]
    learning_rate: float
    momentum: float

    def share(self, share: slice) -> "_Prepared":
        """The runs of some of the seeds."""
        return _Prepared(self.twin, self.starts[share], self.orders[share], self.learning_rate, self.momentum)

    def train(self) -> np.ndarray:
        """One network after another."""
        losses = np.empty(len(self.starts))
        for seed, (start, order) in enumerate(zip(self.starts, self.orders, strict=True)):
            statistics = self.twin.fresh_statistics()
            params, _ = self.twin.fit(start, statistics, order, self.learning_rate, self.momentum)
            losses[seed] = _final_loss(self.twin, params, statistics, order)
        return losses


def _prepared(runs: Runs, channels_last: bool) -> _Prepared:
    twin = torch_peers.Twin(runs.params[0], runs.net, runs.inputs, runs.labels, channels_last=channels_last)
    orders = [torch.tensor(np.asarray(order), dtype=torch.long) for order in runs.orders]
    return _Prepared(twin, [twin.adopt(params) for params in runs.params], orders, runs.learning_rate, runs.momentum)


def _final_loss(twin: torch_peers.Twin, params: Tensors, statistics: Statistics, order: torch.Tensor) -> float:
    num_steps, batch_size = order.shape
    return twin.evaluate(params, statistics, num_steps=num_steps, batch_size=batch_size)[0]


def _stacked(trees: Sequence[Tensors]) -> Tensors:
    return {name: torch.stack([tree[name] for tree in trees]) for name in trees[0]}


@contextlib.contextmanager
def _worker(share: _Prepared) -> Iterator[Connection]:
    """A pipe to a process that answers once when it is ready and then to every message; the process ends on leaving."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    # as bytes, since tensors would be passed through /dev/shm, which is small in containers
    process = context.Process(target=_serve, args=(theirs, pickle.dumps(share)), daemon=True)
    process.start()
    theirs.close()  # else a worker that dies would leave the pipe open
    try:
        yield ours
    finally:
        ours.close()
        process.terminate()
        process.join()


def _serve(pipe: Connection, share: bytes) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends its workers
    torch.set_num_threads(1)
    prepared: _Prepared = pickle.loads(share)
    torch_peers.use(prepared.twin.inputs.device)
    pipe.send(None)
    with contextlib.suppress(EOFError):
        while pipe.recv():
            pipe.send(prepared.train())


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (EOFError, ConnectionError) as error:
        raise RuntimeError("a worker process of PyTorch died: what it said of that is above") from error
