"""Seed sweeps: whole training runs by each plan, against one seed after another in JAX and in PyTorch.

``python -m experiments.benchmarks.sweep [--quick] [--out FILE.json]``. Each run trains S networks of one kind on the same images with
batches of 64. ``auto`` is timed against one JAX run after another (the same compiled program), every other plan, and PyTorch, one network
after another, contiguous and channels last. The table says what ``auto`` chose and what the best choice would have been.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments import frame
from experiments.benchmarks import harness

_BATCH = 64
_PLANS = ("loop", "map", "vmap", "shard-map", "shard-vmap")
_CASES = {  # name: (data set, model, its options, examples, epochs)
    "MLP 784-256-256-10": ("mnist5k", "mlp", {"width": 256, "depth": 2}, 2048, 3),
    "MLP 40-64-64-64-64-10": ("mnist1d", "mlp", {"width": 64, "depth": 4}, 2048, 5),
    "ConvNet, width 8, signals of 40": ("mnist1d", "convnet", {"width": 8, "pool": "stride"}, 1024, 2),
    "ConvNet, width 8, 8x8": ("digits", "convnet", {"width": 8, "pool": "stride"}, 1024, 2),
    "ConvNet, width 8, 28x28": ("mnist5k", "convnet", {"width": 8, "pool": "stride"}, 512, 1),
}


@dataclass(frozen=True)
class Arguments:
    """Seed sweeps: seconds of a whole sweep of training runs, by plan and against PyTorch."""

    seeds: int = 8
    """Networks in a sweep."""
    quick: bool = False
    """Two small cases, to see that it works."""
    out: Path | None = None
    """Write the rows here as JSON."""


def main() -> None:
    """Run all cases and print the table."""
    arguments = tyro.cli(Arguments, prog="python -m experiments.benchmarks.sweep")
    frame.start_jax()
    if note := harness.missing_peer("torch"):
        print(note)
    names = list(_CASES)[1:3] if arguments.quick else list(_CASES)
    rows: list[dict[str, Any]] = []
    for name in names:
        rows += one_case(name, 2 if arguments.quick else arguments.seeds, num_runs=2 if arguments.quick else 5)
    harness.finish(rows, arguments.out)


def one_case(name: str, num_seeds: int, *, num_runs: int) -> list[dict[str, Any]]:
    """Time a sweep of ``num_seeds`` training runs by every plan and in PyTorch."""
    import jax
    import jax.numpy as jnp

    from jaxbp import data, models, sweep

    dataset, model, options, num_examples, num_epochs = _CASES[name]
    split = data.load(dataset, num_train=num_examples).train
    net = models.create(model, num_classes=10, **options)
    train_fn = _train_fn(net, num_epochs)
    shared = (jnp.asarray(split.inputs), jnp.asarray(split.labels))
    keys = sweep.keys(range(num_seeds))

    def by(plan: str) -> Callable[[], Any]:
        return lambda: jax.block_until_ready(sweep.run(train_fn, keys, *shared, plan=plan))

    peers = {f"JAX, {plan}": by(plan) for plan in _PLANS}
    if harness.missing_peer("torch") is None:
        peers |= _torch(net, split.inputs, split.labels, num_seeds, num_epochs)
    rows = harness.compare(f"{name}, {num_seeds} seeds", by("auto"), peers, num_runs=num_runs)
    chosen = sweep.choose(jax.default_backend(), jax.local_device_count(), num_seeds)
    plans = {row["peer_name"].removeprefix("JAX, "): row["peer"] for row in rows if row["peer_name"].startswith("JAX")}
    print(f"{name}: auto chose {chosen}; the fastest plan was {min(plans, key=plans.__getitem__)}")
    return rows


def _train_fn(net: Any, num_epochs: int) -> Callable:
    import jax

    from jaxbp import models, objectives, training

    def train(key: jax.Array, inputs: jax.Array, labels: jax.Array) -> jax.Array:
        init_key, shuffle_key = jax.random.split(key)
        return training.train(
            models.apply_fn(net), net.init(init_key, inputs[:1])["params"], training.sgd(0.01, momentum=0.9), (inputs, labels), shuffle_key,
            loss_fn=objectives.cross_entropy, num_epochs=num_epochs, batch_size=_BATCH, measure_epochs=[num_epochs],
        ).history["train_loss"]  # fmt: skip

    return train


def _torch(
    net: Any, inputs: np.ndarray, labels: np.ndarray, num_seeds: int, num_epochs: int
) -> dict[str, Callable[[], Any]]:
    """PyTorch, one network after another; convolutions in both memory formats."""
    import jax

    from experiments.benchmarks import torch_peers
    from jaxbp import models

    params = net.init(jax.random.key(0), inputs[:1])["params"]
    rng = np.random.default_rng(0)
    steps = len(inputs) // _BATCH
    order = [
        batch
        for _ in range(num_epochs)
        for batch in rng.permutation(len(inputs))[: steps * _BATCH].reshape(steps, _BATCH)
    ]

    def one_after_another(twin: Any) -> None:
        for _ in range(num_seeds):
            twin.train(order, 0.01, 0.9)

    formats = {"PyTorch": False}
    if isinstance(net, models.ConvNet):
        formats["PyTorch, channels last"] = True
    twins = {name: torch_peers.Twin(params, net, inputs, labels, channels_last=last) for name, last in formats.items()}
    return {name: functools.partial(one_after_another, twin) for name, twin in twins.items()}


if __name__ == "__main__":
    main()
