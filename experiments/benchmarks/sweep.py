"""Seed sweeps: whole training runs by ``auto``, against one seed after another in JAX, and against PyTorch in three ways.

``python -m experiments.benchmarks sweep [--seeds 8 32] [--cases MLP ResNet] [--quick] [--out FILE.json]``. Each run trains S networks of
one kind on the same images with batches of 64, from parameters and in orders of their own, and evaluates the training loss. The peers do
the same work from the same parameters in the same orders, and their losses are compared with ours before anything is timed. A second
table times the plans of `jaxbp.sweep` beside each other, and says what ``auto`` chose and what the best choice would have been.
"""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import harness
from experiments.benchmarks.settings import Sweep
from jaxbp import data, lab, models, sweep, training

_BATCH, _RATE, _MOMENTUM = 64, 0.01, 0.9
_PLANS = ("loop", "map", "vmap", "shard-map", "shard-vmap")
_TOO_SLOW = 3.0  # times what auto takes: such a plan is not timed again with more seeds


class _Case(NamedTuple):
    dataset: str
    model: str
    options: dict[str, Any]
    num_examples: int
    num_epochs: int


_CASES = {
    "MLP 784-256-256-10": _Case("mnist5k", "mlp", {"width": 256, "depth": 2}, 2048, 3),
    "MLP 64-16-16-10": _Case("digits", "mlp", {"width": 16, "depth": 2}, 1024, 5),
    "MLP 40-64-64-64-64-10": _Case("mnist1d", "mlp", {"width": 64, "depth": 4}, 2048, 5),
    "ConvNet, width 8, signals of 40": _Case("mnist1d", "convnet", {"width": 8, "pool": "stride"}, 1024, 2),
    "ConvNet, width 8, 8x8": _Case("digits", "convnet", {"width": 8, "pool": "stride"}, 1024, 2),
    "ConvNet, width 8, 28x28": _Case("mnist5k", "convnet", {"width": 8, "pool": "stride"}, 512, 1),
    "ResNet, width 8, 8x8": _Case("digits", "resnet", {"width": 8, "stages": 2, "depth": 1}, 1024, 2),
    "ResNet, width 16, 28x28": _Case("mnist5k", "resnet", {"width": 16, "stages": 2, "depth": 1}, 512, 1),
}
_QUICK = ("MLP 64-16-16-10", "ResNet, width 8, 8x8")


def run(arguments: Sweep) -> None:
    """Run all cases and print the tables."""
    names = chosen(arguments)
    harness.start()
    peers, plans = [], []
    for name in names:
        slow: set[str] = set()
        for num_seeds in (2,) if arguments.quick else arguments.seeds:
            rows = one_case(name, num_seeds, num_runs=2 if arguments.quick else arguments.runs, slow=slow)
            peers, plans = peers + rows[0], plans + rows[1]
    harness.finish(plans, None)
    harness.finish(peers, arguments.out)


def chosen(arguments: Sweep) -> list[str]:
    """The names of the cases to run.

    Raises:
      lab.SettingsError: none, or fewer than one seed or run.
    """
    names = [name for name in _CASES if not arguments.cases or any(part in name for part in arguments.cases)]
    if not names:
        raise lab.SettingsError(f"no case is named {', '.join(arguments.cases)}: there are {'; '.join(_CASES)}")
    if min(*arguments.seeds, arguments.runs, 1) < 1:
        raise lab.SettingsError(f"seeds and runs must be at least 1, got {arguments.seeds} and {arguments.runs}")
    return list(_QUICK) if arguments.quick else names


def one_case(name: str, num_seeds: int, *, num_runs: int, slow: set[str]) -> tuple[list[dict], list[dict]]:
    """Rows against the peers and rows of plans; plans in ``slow`` are left out, and those that turn out to be so are added to it."""
    case = _CASES[name]
    split = data.load(case.dataset, num_train=case.num_examples).train
    net = models.create(case.model, num_classes=10, **case.options)
    train_fn = _train_fn(net, case.num_epochs)
    shared = (jnp.asarray(split.inputs), jnp.asarray(split.labels))
    keys = sweep.keys(range(num_seeds))
    title = f"{name}, {num_seeds} seeds"

    def by(plan: str) -> Callable[[], Any]:
        return lambda: jax.block_until_ready(sweep.evaluate(train_fn, keys, *shared, plan=plan))

    with contextlib.ExitStack() as stack:
        peers = {"JAX, one after another": by("loop")}
        if harness.missing_peer("torch") is None:
            peers |= _torch(stack, net, split.inputs, split.labels, num_seeds, case.num_epochs, np.asarray(by("auto")()))
        against_peers = harness.compare(title, by("auto"), peers, num_runs=num_runs)
    among_plans = harness.compare(title, by("auto"), {plan: by(plan) for plan in _PLANS if plan not in slow}, num_runs=2)
    slow |= {row["peer_name"] for row in among_plans if row["ratio"] > _TOO_SLOW}
    took = sweep.plan_of(train_fn, keys, *shared)
    best = min(among_plans, key=lambda row: row["peer"])
    others = f"; not timed, since slow with fewer seeds: {', '.join(sorted(slow))}" if slow else ""
    print(
        f"{title}: auto chose {took}, the fastest was {best['peer_name']} ({best['ratio']:.2f} of auto's time){others}",
        flush=True,
    )
    return against_peers, among_plans


def _train_fn(net: Any, num_epochs: int) -> Callable:
    def train(key: jax.Array, inputs: jax.Array, labels: jax.Array) -> jax.Array:
        settings = training.Settings(num_epochs=num_epochs, batch_size=_BATCH, measure_epochs=(num_epochs,))
        return training.train(net, training.sgd(_RATE, momentum=_MOMENTUM), (inputs, labels), key, settings).history["train_loss"][0]

    return train


def _torch(
    stack: contextlib.ExitStack,
    net: Any,
    inputs: np.ndarray,
    labels: np.ndarray,
    num_seeds: int,
    num_epochs: int,
    expected: np.ndarray,
) -> dict[str, Callable[[], Any]]:
    """The peers, those with convolutions in both memory formats; AssertionError if their losses are not ``expected``, (S,)."""
    from experiments.benchmarks import torch_sweeps

    params, orders = [], []
    for seed in range(num_seeds):  # as `_train_fn` and `jaxbp.training.train` draw them
        init_key, shuffle_key = jax.random.split(jax.random.key(seed))
        params.append(net.init(init_key, inputs[:1])[0])
        epochs = [np.asarray(jax.random.permutation(key, len(inputs))) for key in jax.random.split(shuffle_key, num_epochs)]
        orders.append(np.concatenate([order[: len(order) // _BATCH * _BATCH].reshape(-1, _BATCH) for order in epochs]))
    runs = torch_sweeps.Runs(net.module, inputs, labels, params, orders, _RATE, _MOMENTUM)
    peers = {}
    formats = {"": False} if isinstance(net.module, models.MLP) else {"": False, ", channels last": True}
    for title, last in formats.items():
        peers[f"PyTorch, one after another{title}"] = torch_sweeps.one_after_another(runs, channels_last=last)
        peers[f"PyTorch, two processes{title}"] = stack.enter_context(torch_sweeps.two_processes(runs, channels_last=last))
    peers["PyTorch, torch.func.vmap"] = torch_sweeps.vmapped(runs)
    for title, peer in peers.items():
        # Training can amplify round-off in a seed or two (a ConvNet's from 1e-7 to 1e-1): most of them must agree.
        if not (error := np.median(np.abs(peer() / expected - 1))) < 1e-2:
            raise AssertionError(f"{title} ends with other losses: half of the seeds differ by more than {error:.1e}")
    return peers
