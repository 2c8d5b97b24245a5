"""The measurements of Study 3, as named pieces of work.

For each trained network, width and group of seeds: one compiled training of all seeds, then the kernels at the
measured epochs and everything that compares them. For each network with an exact twin: kernels of fresh networks in
the NTK parametrisation against the exact one, and regression with both. Kernels themselves are kept for the first
seed only.
"""

import functools
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.ntk_width.settings import BATCH, CALIBRATED, STORED, Network, Settings
from jaxbp import data, lab, models, ntk, sweep, training
from jaxbp.lab import Piece
from jaxbp.ntk import infinite_width, measures, regression
from jaxbp.runtime.store import Store

_EXACT_BLOCK = 5  # examples a side for which an exact kernel is computed at a time
_RIDGES = (1e-6, 1e-4, 1e-2, 1e-1, 1.0)
MAPS = ("distance", "cosine", "inner_product")


def pieces(settings: Settings, store: Store, data_dir: Path | None) -> list[Piece]:
    """All the work of the study; independent pieces, spread over the devices."""
    del store  # nothing builds on earlier pieces
    lab = Lab(settings, data_dir)
    todo = []
    for network in settings.networks:
        for width in network.widths:
            cost = _cost(network, width)
            for group in settings.groups if network.trained else ():
                name = train_name(network, width, group)
                compute = functools.partial(lab.train, network, width, group)
                todo.append(Piece(name, compute, weight=cost * max(settings.num_epochs * len(group), 30), group="all"))
            if network.exact:
                compute = functools.partial(lab.compare_with_exact, network, width)
                todo.append(Piece(exact_name(network, width), compute, weight=15 * cost, group="all"))
        if network.regression:
            compute = functools.partial(lab.regress, network)
            todo.append(Piece(regression_name(network), compute, weight=20 * cost, group="all"))
    return sorted(todo, key=lambda piece: -piece.weight)  # long ones first, so that no device is left with one


def train_name(network: Network, width: int, group: range) -> str:
    """Name of the piece that trains a group of seeds."""
    return f"{network.name}; width {width}; train; {group[0]}"


def exact_name(network: Network, width: int) -> str:
    """Name of the piece that compares fresh networks with the exact kernel."""
    return f"{network.name}; width {width}; exact"


def regression_name(network: Network) -> str:
    """Name of the piece that regresses with kernels."""
    return f"{network.name}; regression"


def _cost(network: Network, width: int) -> float:
    """A rough guess of the time for one seed and epoch, good enough for the time left; compilation counts as much as training."""
    return 2 + (width**2) / 3e5 if network.model == "mlp" else (8 if network.batch_norm else 5) + width / 4


def create(network: Network, width: int, num_classes: int, **changes: Any) -> models.Network:
    """The network of a width; ``changes`` replace some of its options."""
    options = dict(network.options) | changes
    return models.create(network.model, num_classes=num_classes, width=width, **options)


class Lab:
    """The data, and the pieces of work on them."""

    def __init__(self, settings: Settings, data_dir: Path | None):
        self.settings, self.data_dir = settings, data_dir

    @functools.cache  # noqa: B019 - lives as long as the program
    def dataset(self, seed: int) -> data.Dataset:
        """The seed's own data, normalised by its training statistics."""
        settings = self.settings
        return data.load(settings.dataset, seed=seed, num_train=settings.num_train, normalise=True, data_dir=self.data_dir)

    def probes(self, seed: int, num_probes: int) -> np.ndarray:
        """Class-balanced training images (N, H, W, C)."""
        return data.balanced_subset(self.dataset(seed).train, num_probes, seed=seed).inputs

    def key(self, seed: int, *purpose: Any) -> jax.Array:
        """A random key of its own for each purpose."""
        return jax.random.fold_in(jax.random.key(seed), zlib.crc32(repr(purpose).encode()))

    def train(self, network: Network, width: int, group: range) -> Mapping[str, Any]:
        """Train the seeds of a group, then measure: arrays with the seeds first."""
        net = create(network, width, self.dataset(0).num_classes)
        run = self._trained(net, network, width, group)
        rows = [self._measured(net, network, seed, i, run.measured) for i, seed in enumerate(group)]
        found = {name: np.stack([row[name] for row in rows]) for name in rows[0] if not name.startswith("kernel")}
        if group[0] == 0:
            found |= {name: value for name, value in rows[0].items() if name.startswith("kernel")}
        history = {name: np.asarray(curve) for name, curve in run.history.items()}
        return found | history | {"epochs": np.array(self.settings.measure_epochs)}

    def _trained(self, net: Any, network: Network, width: int, group: range) -> training.TrainResult:
        """The run of all seeds; ``measured``: parameters and state at the measured epochs, with axes (S, E)."""
        splits = [self.dataset(seed) for seed in group]
        runs = {
            "key": jnp.stack([self.key(seed, network.name, width) for seed in group]),
            "train": _stacked(split.train for split in splits),
            "test": _stacked(split.test for split in splits),
        }
        program = _training_program(net, self.settings)
        plan = "map" if lab.device().platform == "cpu" else "vmap"
        return sweep.evaluate(program, runs, plan=plan, devices=[lab.device()])

    def _measured(self, net: Any, network: Network, seed: int, row: int, snapshots: tuple) -> dict[str, np.ndarray]:
        """Everything about one seed's kernels, features and parameters."""
        probes = jnp.asarray(self.probes(seed, self.settings.num_probes))
        train = jnp.asarray(self.dataset(seed).train.inputs)
        num_epochs = len(self.settings.measure_epochs)
        points = [jax.tree.map(lambda leaf, e=epoch: leaf[row, e], snapshots) for epoch in range(num_epochs)]
        kernels = jnp.stack([self._kernel(net, *point, probes, STORED, train) for point in points])
        found = {f"{STORED}: {name}": value for name, value in _compared(kernels).items()}
        found["kernel before"], found["kernel after"] = (_trace(kernels[e]) for e in (0, -1))
        found["velocity"] = np.asarray(measures.velocity(kernels, jnp.array(self.settings.measure_epochs, float)))
        for mode in network.modes[1:]:
            ends = jnp.stack([self._kernel(net, *points[e], probes, mode, train) for e in (0, -1)])
            found |= {f"{mode}: {name}": value for name, value in _compared(ends).items()}
        return found | _moved(net, points[0], points[-1], probes)

    def _kernel(self, net: Any, params: Any, state: Any, probes: jax.Array, mode: str, train: jax.Array) -> jax.Array:
        """The full kernel (N, N, C, C) with one kind of statistics."""
        if mode == CALIBRATED:
            passes = {"batch_size": self.settings.batch_size, "num_epochs": self.settings.calibration_epochs}
            state = _calibrated(net, params, state, train, **passes)
        fn = models.with_batch_statistics(net) if mode == BATCH else net.apply
        options = {"coupled": mode == BATCH, "memory": self.settings.memory, "compiler_options": ntk.FAST_COMPILE_OPTIONS}
        return ntk.empirical_ntk(fn, params, probes, state=state, **options)

    def compare_with_exact(self, network: Network, width: int) -> Mapping[str, Any]:
        """Distances of fresh networks' kernels, NTK parametrisation, to the exact kernel; (S,) for each kind of statistics."""
        dataset = self.dataset(0)
        probes = jnp.asarray(self.probes(0, self.settings.exact_probes))  # alike for all seeds: one exact kernel
        net = create(network, width, dataset.num_classes, parametrisation="ntk")
        exact = self.exact_kernel(network, probes)
        target = jnp.einsum("ij,kl->ijkl", exact, jnp.eye(dataset.num_classes))
        found: dict[str, list] = {}
        for seed in self.settings.seeds:
            params, state = _initialised(net, self.key(seed, network.name, width, "exact"), probes)
            for mode in network.modes:
                kernel = self._kernel(net, params, state, probes, mode, jnp.asarray(dataset.train.inputs))
                found.setdefault(f"{mode}: distance", []).append(measures.relative_change(target, kernel))
                found.setdefault(f"{mode}: rescaled distance", []).append(measures.rescaled_change(target, kernel).change)
        arrays = {name: np.array(values, float) for name, values in found.items()}
        return arrays | {"kernel exact": np.asarray(exact), "kernel finite": _trace(kernel)}

    def exact_kernel(self, network: Network, x1: jax.Array, x2: jax.Array | None = None, get: str = "ntk") -> jax.Array:
        """The twin's kernel (N, M), in blocks, since pooled kernels hold all pairs of pixels."""
        options = {"parametrisation": "ntk", **dict(network.twin)}
        net = create(network, 1, self.dataset(0).num_classes, **options)
        infinite = functools.partial(infinite_width.infinite_width_kernel(net.module, x1.shape[1:]), get=get)
        kernel_fn = jax.jit(infinite, compiler_options=ntk.FAST_COMPILE_OPTIONS)
        x2 = x1 if x2 is None else x2
        rows = [x1[i : i + _EXACT_BLOCK] for i in range(0, len(x1), _EXACT_BLOCK)]
        columns = [x2[j : j + _EXACT_BLOCK] for j in range(0, len(x2), _EXACT_BLOCK)]
        return jnp.concatenate([jnp.concatenate([kernel_fn(a, b) for b in columns], 1) for a in rows])

    def regress(self, network: Network) -> Mapping[str, Any]:
        """Test accuracy of regression with the exact kernels and with the empirical one of the widest network, seed 0.

        The ridge is chosen on half as many validation images, from the same grid for each kernel.
        """
        dataset, number = self.dataset(0), network.regression
        splits = {
            "train": (dataset.train, number),
            "valid": (dataset.validation, number // 2),
            "test": (dataset.test, number),
        }
        parts = {name: (split.inputs[:n], split.labels[:n]) for name, (split, n) in splits.items()}
        everything = jnp.concatenate([jnp.asarray(inputs) for inputs, _ in parts.values()])
        train = jnp.asarray(parts["train"][0])
        width = max(network.widths)
        net = create(network, width, dataset.num_classes, parametrisation="ntk")
        params, _ = _initialised(net, self.key(0, network.name, width), train)
        empirical = ntk.empirical_ntk(net.apply, params, everything, train, logits="trace", memory=self.settings.memory)
        kernels = {
            "NNGP, exact": self.exact_kernel(network, everything, train, "nngp"),
            "NTK, exact": self.exact_kernel(network, everything, train),
            f"NTK, empirical at width {width}": empirical / dataset.num_classes,
        }
        accuracies = [_regression_accuracy(np.asarray(k, float), parts, dataset.num_classes) for k in kernels.values()]
        return {"names": np.array(list(kernels)), "accuracies": np.array(accuracies)}


def _stacked(splits: Any) -> tuple[jax.Array, jax.Array]:
    inputs, labels = zip(*((split.inputs, split.labels) for split in splits), strict=True)
    return jnp.stack(inputs), jnp.stack(labels)


@functools.partial(jax.jit, static_argnums=0, compiler_options=ntk.FAST_COMPILE_OPTIONS)
def _initialised(net: models.Network, key: jax.Array, inputs: jax.Array) -> tuple[Any, Any]:
    return net.init(key, inputs)


_calibrated = jax.jit(
    models.calibrate_batch_norm, static_argnames=("net", "batch_size", "num_epochs"), compiler_options=ntk.FAST_COMPILE_OPTIONS
)


@functools.cache
def _training_program(net: Any, settings: Settings) -> Callable:
    """One training as a pure function; the same object for equal arguments."""

    def train(one: dict[str, Any]) -> training.TrainResult:
        steps = training.num_steps(one["train"][0].shape[0], settings.num_epochs, settings.batch_size)
        schedule = optax.piecewise_constant_schedule(1.0, {int(m * steps): settings.decay for m in settings.milestones})
        return training.train(
            net,
            training.sgd(settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay, schedule=schedule),
            one["train"],
            one["key"],
            training.Settings(settings.num_epochs, settings.batch_size, measure_epochs=settings.measure_epochs),
            test_data=one["test"],
            measure_fn=lambda state: (state.params, state.model_state),
        )

    return train


def _trace(kernel: jax.Array) -> np.ndarray:
    """Mean over the logits of a full kernel, (N, N)."""
    return np.asarray(jnp.einsum("ijkk->ij", kernel) / kernel.shape[-1])


@jax.jit
def _comparison(before: jax.Array, after: jax.Array) -> dict[str, jax.Array]:
    change = measures.relative_change(before, after)
    rescaled = measures.rescaled_change(before, after)
    norms = jnp.linalg.norm(before), jnp.linalg.norm(after)
    return {
        "relative change": change,
        "share of rescaling": 1 - (rescaled.change * norms[1] / (change * norms[0])) ** 2,
        "correlation": measures.correlation(before, after),
        "cosine": measures.cosine(before, after),
        "centred alignment": measures.centred_alignment(before, after),
        "norm": norms[1],
        "effective rank": measures.spectral_ranks(measures.spectrum(after)).entropy_rank,
    }


def _compared(kernels: jax.Array) -> dict[str, np.ndarray]:
    """Each kernel (E, N, N, C, C) against the first; values (E,)."""
    rows = [_comparison(kernels[0], kernel) for kernel in kernels]
    return {name: np.array([row[name] for row in rows], float) for name in rows[0]}


def _moved(net: Any, before: tuple, after: tuple, probes: jax.Array) -> dict[str, np.ndarray]:
    """How far parameters and features moved."""
    moved, features = jax.device_get(_movement(net, before, after, probes))
    found = {f"parameters: {name}": np.array(value, float) for name, value in moved.items() if name != "leaves"}
    layers = [value for path, value in moved["leaves"].items() if "kernel" in path]
    found["parameters: relative_l2 of each layer"] = np.array(layers, float)
    return found | {f"features: {name}": np.array(features[name], float) for name in MAPS}


@functools.partial(jax.jit, static_argnums=0, compiler_options=ntk.FAST_COMPILE_OPTIONS)
def _movement(net: Any, before: tuple, after: tuple, probes: jax.Array) -> tuple[dict, dict]:
    maps = [measures.feature_maps(net.features(params, probes, state)) for params, state in (before, after)]
    return measures.parameter_movement(before[0], after[0]), measures.compare_feature_maps(*maps)


def _regression_accuracy(kernel: np.ndarray, parts: dict[str, tuple], num_classes: int) -> float:
    """Test accuracy, the ridge chosen on the validation images; ``kernel``: rows of all parts against the training images."""
    rows = np.split(kernel, np.cumsum([len(labels) for _, labels in parts.values()])[:-1])
    k_train, k_valid, k_test = rows
    targets, valid_targets = (
        np.asarray(regression.centred_one_hot(jnp.asarray(parts[name][1]), num_classes)) for name in ("train", "valid")
    )
    ridge = regression.choose_ridge(k_train, k_valid, targets, valid_targets, _RIDGES).ridge
    predicted = regression.kernel_regression(k_train, k_test, targets, ridge=ridge)
    return float((predicted.argmax(-1) == parts["test"][1]).mean())
