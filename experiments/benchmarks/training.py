"""Training: one step, and a whole epoch as one program, against PyTorch with the same network and batch.

``python -m experiments.benchmarks training [--quick] [--out FILE.json]``. ResNets with BatchNorm in training mode, SGD with
momentum, batches of 64, a CPU's cores shared by one run. An epoch of ours draws its batches and trains inside one compiled
scan; PyTorch's is a loop over the same number of batches, contiguous and channels last. Before anything is timed, both
must give the same loss.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.benchmarks import harness
from experiments.benchmarks.settings import Training
from jaxbp import models, training

_BATCH = 64
_CASES = {  # name: (model, its options, image shape, examples)
    "ResNet, width 8, 8x8": ("resnet", {"width": 8, "stages": 2, "depth": 1}, (8, 8, 1), 1024),
    "ResNet, width 16, 28x28": ("resnet", {"width": 16, "stages": 2, "depth": 1}, (28, 28, 1), 512),
    "ResNet-18, width 16, 32x32": ("resnet18", {"width": 16}, (32, 32, 3), 512),
    "ResNet-18, width 64, 32x32": ("resnet18", {"width": 64}, (32, 32, 3), 384),
}


def run(arguments: Training) -> None:
    """Run all cases and print the table."""
    harness.start()
    rows: list[dict[str, Any]] = []
    for name in list(_CASES)[:1] if arguments.quick else _CASES:
        rows += one_case(name, num_runs=2 if arguments.quick else arguments.runs)
    harness.finish(rows, arguments.out)


def one_case(name: str, *, num_runs: int) -> list[dict[str, Any]]:
    """Time a step and an epoch of one network."""
    model, options, shape, num_examples = _CASES[name]
    net = models.create(model, num_classes=10, **options)
    images = jax.random.normal(jax.random.key(1), (num_examples, *shape))
    labels = jax.random.randint(jax.random.key(2), (num_examples,), 0, 10)
    params, state = net.init(jax.random.key(0), images[:1])
    step, epoch, loss = _ours(net, params, state, images, labels)
    peers = {} if harness.missing_peer("torch") else _torch(net, params, images, labels, loss)
    rows = []
    for what, ours, num_images in (
        ("step", step, _BATCH),
        ("epoch", epoch, training.num_steps(num_examples, 1, _BATCH) * _BATCH),
    ):
        theirs = {title: fn for (title, of), fn in peers.items() if of == what}
        rows += harness.compare(f"{name}, one {what}", ours, theirs, num_runs=num_runs)
        for row in rows[len(rows) - len(theirs) :]:
            print(
                f"{row['case']}: {num_images / row['ours']:.0f} images a second, {row['peer_name']} {num_images / row['peer']:.0f}",
                flush=True,
            )
    return rows


def _ours(net: Any, params: Any, state: Any, images: Any, labels: Any) -> tuple[Callable[[], Any], Callable[[], Any], float]:
    """A step on the first batch, an epoch as `training.train` has it but for the evaluation, and the first batch's loss."""
    optimizer, settings = training.sgd(0.1, momentum=0.9), training.Settings(num_epochs=1, batch_size=_BATCH)
    step_fn = training.step_fn(net, optimizer, settings)
    start = training.TrainState(params, optimizer.init(params), state)

    def on(now: training.TrainState, batch: Any) -> tuple[training.TrainState, None]:
        return step_fn(now, ((images[batch], labels[batch]), None))

    @jax.jit
    def epoch(now: training.TrainState, key: jax.Array) -> training.TrainState:
        order = jax.random.permutation(key, len(images) // _BATCH * _BATCH)
        return jax.lax.scan(on, now, order.reshape(-1, _BATCH))[0]

    step, first, key = jax.jit(lambda now: on(now, np.arange(_BATCH))[0]), slice(_BATCH), jax.random.key(3)
    loss = settings.loss_fn(net.update(params, images[first], state)[0], labels[first]).mean()
    return lambda: jax.block_until_ready(step(start)), lambda: jax.block_until_ready(epoch(start, key)), float(loss)


def _torch(net: Any, params: Any, images: Any, labels: Any, expected: float) -> dict[tuple[str, str], Callable[[], Any]]:
    """A step and an epoch in both memory formats; AssertionError if the first loss is another."""
    import torch

    from experiments.benchmarks import torch_peers

    order = torch.randperm(len(images) // _BATCH * _BATCH).reshape(-1, _BATCH)
    first = torch.arange(_BATCH)[None]
    peers = {}
    for title, last in {"PyTorch": False, "PyTorch, channels last": True}.items():
        twin = torch_peers.Twin(params, net.module, np.asarray(images), np.asarray(labels), channels_last=last)
        if not np.isclose(loss := twin.train(first, 0.1, 0.9), expected, rtol=1e-4):
            raise AssertionError(f"the PyTorch twin has another loss: {loss} against {expected}")
        peers[title, "step"] = functools.partial(twin.train, first, 0.1, 0.9)
        peers[title, "epoch"] = functools.partial(twin.train, order, 0.1, 0.9)
    return peers
