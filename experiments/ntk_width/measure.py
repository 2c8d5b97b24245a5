"""The stages of the study: what is trained, and how kernels are measured.

``train`` trains a group of seeds as one compiled program, then measures the kernels at the measured epochs and everything that compares
them. ``compare_with_exact`` compares kernels of fresh networks in the NTK parametrisation with the exact one; ``regress`` predicts with
both. Kernels themselves are kept for one seed only.
"""

import functools
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

from experiments.ntk_width.settings import BATCH, CALIBRATED, Case, Settings
from jaxbp import data, lab, models, ntk, sweep, training
from jaxbp.ntk import infinite_width, measures, regression

_EXACT_BLOCK = 5  # examples a side for which an exact kernel is computed at a time
_RIDGES = (1e-6, 1e-4, 1e-2, 1e-1, 1.0)
_KERNELS = ["kernel_at_start", "kernel_at_end"]
WIDEST = "NTK, empirical, widest"


def load(settings: Settings, seed: int) -> data.Dataset:
    """The seed's own data, normalised by its training statistics."""
    return _load(settings.dataset, settings.num_train, settings.data_dir, seed)


@functools.lru_cache(maxsize=8)
def _load(dataset: str, num_train: int | None, data_dir: Path | None, seed: int) -> data.Dataset:
    return data.load(dataset, seed=seed, num_train=num_train, normalise=True, data_dir=data_dir)


def probe_images(settings: Settings, seed: int, num_probes: int) -> jax.Array:
    """Class-balanced training images (N, H, W, C)."""
    return jnp.asarray(data.balanced_subset(load(settings, seed).train, num_probes, seed=seed).inputs)


def create(case: Case, settings: Settings, width: int, **changes: Any) -> models.Network:
    """The network of a width; ``changes`` replace some of its options."""
    return models.create(case.model, num_classes=load(settings, 0).num_classes, width=width, **dict(case.options) | changes)


def random_key(seed: int, *purpose: Any) -> jax.Array:
    """A random key of its own for each purpose."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(repr(purpose).encode()))


def train(case: Case, settings: Settings, width: int, seed: Sequence[int]) -> xr.Dataset:
    """Train the seeds ``seed`` together, then measure.

    The kernel against that before training has the axes (statistics, seed, epoch); between the first epoch and the last it is measured
    with stored statistics alone, and other entries are NaN.
    """
    net = create(case, settings, width)
    splits = [load(settings, number) for number in seed]
    runs = {
        "key": jnp.stack([random_key(number, case.name, width) for number in seed]),
        "train": _stacked(split.train for split in splits),
        "test": _stacked(split.test for split in splits),
    }
    plan = "map" if lab.device().platform == "cpu" else "vmap"
    result = sweep.evaluate(_training_program(net, settings), runs, plan=plan, devices=[lab.device()])
    measured = []
    for row, number in enumerate(seed):
        points = [jax.tree.map(lambda leaf, at=(row, epoch): leaf[at], result.measured) for epoch in range(len(settings.measure_epochs))]
        measured.append(_measured(net, case, settings, number, points))
    dataset = xr.concat([results.drop_vars(_KERNELS) for results in measured], xr.DataArray(list(seed), dims="seed", name="seed"))
    dataset = dataset.assign({name: (("seed", "epoch"), np.asarray(curve)) for name, curve in result.history.items()})
    return dataset.assign(measured[0][_KERNELS]) if 0 in seed else dataset


def _stacked(splits: Iterable[Any]) -> tuple[jax.Array, jax.Array]:
    inputs, labels = zip(*((split.inputs, split.labels) for split in splits), strict=True)
    return jnp.stack(inputs), jnp.stack(labels)


@functools.cache
def _training_program(net: models.Network, settings: Settings) -> Callable[[dict[str, Any]], training.TrainResult]:
    """One training as a pure function, which keeps parameters and state; the same object for equal arguments."""
    epochs = training.Settings(settings.num_epochs, settings.batch_size, measure_epochs=settings.measure_epochs)
    rates = {"momentum": settings.momentum, "weight_decay": settings.weight_decay}

    def run(values: dict[str, Any]) -> training.TrainResult:
        steps = training.num_steps(values["train"][0].shape[0], settings.num_epochs, settings.batch_size)
        schedule = optax.piecewise_constant_schedule(1.0, {int(m * steps): settings.decay for m in settings.milestones})
        optimizer = training.sgd(settings.learning_rate, **rates, schedule=schedule)
        options = {"test_data": values["test"], "measure_fn": lambda state: (state.params, state.model_state)}
        return training.train(net, optimizer, values["train"], values["key"], epochs, **options)

    return run


def _measured(net: models.Network, case: Case, settings: Settings, seed: int, points: Sequence[tuple]) -> xr.Dataset:
    """Everything about one seed's kernels, features and parameters; ``points``: parameters and state at the measured epochs."""
    probes = probe_images(settings, seed, settings.num_probes)
    inputs = jnp.asarray(load(settings, seed).train.inputs)
    epochs = np.array(settings.measure_epochs)
    stored, *others = case.statistics
    kernels = jnp.stack([kernel_of(net, settings, *point, probes, stored, inputs) for point in points])
    compared = [_compared(kernels, epochs)]
    for statistics in others:
        ends = jnp.stack([kernel_of(net, settings, *points[end], probes, statistics, inputs) for end in (0, -1)])
        compared.append(_compared(ends, epochs[[0, -1]]))
    velocity = measures.velocity(kernels, jnp.array(settings.measure_epochs, float))
    moved, features = jax.device_get(_movement(net, points[0], points[-1], probes))
    leaves = {path: value for path, value in moved.pop("leaves").items() if "kernel" in path}
    axis = xr.DataArray(list(case.statistics), dims="statistics", name="statistics")
    return xr.concat(compared, axis, join="outer").assign(
        velocity=xr.DataArray(np.asarray(velocity), {"until_epoch": epochs[1:]}, "until_epoch"),
        **{name: float(value) for name, value in moved.items()},
        relative_l2_of_layer=xr.DataArray(np.array([*leaves.values()], float), {"layer": list(leaves)}, "layer"),
        feature_correlation=xr.DataArray(np.array([*features.values()], float), {"map": list(features)}, "map"),
        **{name: (("image", "other_image"), _trace(kernels[end])) for name, end in zip(_KERNELS, (0, -1), strict=True)},
    )


def kernel_of(
    net: models.Network, settings: Settings, params: Any, state: Any, probes: jax.Array, statistics: str, inputs: jax.Array
) -> jax.Array:
    """The full kernel (N, N, C, C) of the images ``probes`` with one kind of statistics, if need be calibrated on ``inputs``."""
    if statistics == CALIBRATED:
        state = _calibrated(net, params, state, inputs, batch_size=settings.batch_size, num_epochs=settings.calibration_epochs)
    fn = models.with_batch_statistics(net) if statistics == BATCH else net.apply
    options = {"coupled": statistics == BATCH, "memory": settings.memory, "compiler_options": ntk.FAST_COMPILE_OPTIONS}
    return ntk.empirical_ntk(fn, params, probes, state=state, **options)


_CALIBRATION = ("net", "batch_size", "num_epochs")
_calibrated = jax.jit(models.calibrate_batch_norm, static_argnames=_CALIBRATION, compiler_options=ntk.FAST_COMPILE_OPTIONS)


def _trace(kernel: jax.Array) -> np.ndarray:
    """Mean over the logits of a full kernel, (N, N)."""
    return np.asarray(jnp.einsum("ijkk->ij", kernel) / kernel.shape[-1])


def _compared(kernels: jax.Array, epochs: np.ndarray) -> xr.Dataset:
    """Each kernel (E, N, N, C, C) against the first; variables (epoch,)."""
    rows = [_comparison(kernels[0], kernel) for kernel in kernels]
    return xr.Dataset({name: ("epoch", np.array([row[name] for row in rows], float)) for name in rows[0]}, {"epoch": epochs})


@jax.jit
def _comparison(before: jax.Array, after: jax.Array) -> dict[str, jax.Array]:
    change = measures.relative_change(before, after)
    rescaled = measures.rescaled_change(before, after)
    norms = jnp.linalg.norm(before), jnp.linalg.norm(after)
    return {
        "relative_change": change,
        "share_of_rescaling": 1 - (rescaled.change * norms[1] / (change * norms[0])) ** 2,
        "correlation": measures.correlation(before, after),
        "cosine": measures.cosine(before, after),
        "centred_alignment": measures.centred_alignment(before, after),
        "kernel_norm": norms[1],
        "entropy_rank": measures.spectral_ranks(measures.spectrum(after)).entropy_rank,
    }


@functools.partial(jax.jit, static_argnums=0, compiler_options=ntk.FAST_COMPILE_OPTIONS)
def _movement(net: models.Network, before: tuple, after: tuple, probes: jax.Array) -> tuple[dict, dict]:
    """How far parameters moved, and how alike the maps of features are."""
    maps = [measures.feature_maps(net.features(params, probes, state)) for params, state in (before, after)]
    return measures.parameter_movement(before[0], after[0]), measures.compare_feature_maps(*maps)


@functools.partial(jax.jit, static_argnums=0, compiler_options=ntk.FAST_COMPILE_OPTIONS)
def _initialised(net: models.Network, key: jax.Array, inputs: jax.Array) -> tuple[Any, Any]:
    return net.init(key, inputs)


def compare_with_exact(case: Case, settings: Settings, width: int, seed: tuple[int, ...]) -> xr.Dataset:
    """Distances of fresh networks' kernels, NTK parametrisation, to the exact kernel, (statistics, seed)."""
    probes = probe_images(settings, 0, settings.exact_probes)  # alike for all seeds: one exact kernel
    inputs = jnp.asarray(load(settings, 0).train.inputs)
    net = create(case, settings, width, parametrisation="ntk")
    exact = exact_kernel(case, settings, probes)
    target = jnp.einsum("ij,kl->ijkl", exact, jnp.eye(load(settings, 0).num_classes))
    plain, rescaled = np.empty((2, len(case.statistics), len(seed)))
    for row, number in enumerate(seed):
        params, state = _initialised(net, random_key(number, case.name, width, "exact"), probes)
        for mode, statistics in enumerate(case.statistics):
            kernel = kernel_of(net, settings, params, state, probes, statistics, inputs)
            plain[mode, row] = measures.relative_change(target, kernel)
            rescaled[mode, row] = measures.rescaled_change(target, kernel).change
    axes, images = ("statistics", "seed"), ("image", "other_image")
    return xr.Dataset(
        {
            "distance": (axes, plain),
            "rescaled_distance": (axes, rescaled),
            "exact": (images, np.asarray(exact)),
            "finite": (images, _trace(kernel)),
        },
        {"statistics": list(case.statistics), "seed": list(seed)},
    )


def exact_kernel(case: Case, settings: Settings, x1: jax.Array, x2: jax.Array | None = None, get: str = "ntk") -> jax.Array:
    """The kernel (N, M) of the infinitely wide network, in blocks, since pooled kernels hold all pairs of pixels."""
    net = create(case, settings, 1, **{"parametrisation": "ntk", **dict(case.twin)})
    infinite = functools.partial(infinite_width.infinite_width_kernel(net.module, x1.shape[1:]), get=get)
    kernel_fn = jax.jit(infinite, compiler_options=ntk.FAST_COMPILE_OPTIONS)
    x2 = x1 if x2 is None else x2
    rows = [x1[i : i + _EXACT_BLOCK] for i in range(0, len(x1), _EXACT_BLOCK)]
    columns = [x2[j : j + _EXACT_BLOCK] for j in range(0, len(x2), _EXACT_BLOCK)]
    return jnp.concatenate([jnp.concatenate([kernel_fn(a, b) for b in columns], 1) for a in rows])


def regress(case: Case, settings: Settings) -> xr.Dataset:
    """Test accuracy of regression with the exact kernels and with the empirical one of the widest network, seed 0; (kernel,).

    The ridge is chosen on half as many validation images, from the same grid for each kernel.
    """
    dataset, number = load(settings, 0), case.regression
    parts = [(dataset.train, number), (dataset.validation, number // 2), (dataset.test, number)]
    images = [split.inputs[:n] for split, n in parts]
    labels = [split.labels[:n] for split, n in parts]
    everything, train_images = jnp.concatenate([jnp.asarray(array) for array in images]), jnp.asarray(images[0])
    width = max(case.widths)
    net = create(case, settings, width, parametrisation="ntk")
    params, _ = _initialised(net, random_key(0, case.name, width), train_images)
    empirical = ntk.empirical_ntk(net.apply, params, everything, train_images, logits="trace", memory=settings.memory)
    kernels = {
        "NNGP, exact": exact_kernel(case, settings, everything, train_images, "nngp"),
        "NTK, exact": exact_kernel(case, settings, everything, train_images),
        WIDEST: empirical / dataset.num_classes,
    }
    accuracies = [_regression_accuracy(np.asarray(kernel, float), labels, dataset.num_classes) for kernel in kernels.values()]
    return xr.Dataset({"test_accuracy": ("kernel", accuracies)}, {"kernel": list(kernels)})


def _regression_accuracy(kernel: np.ndarray, labels: Sequence[np.ndarray], num_classes: int) -> float:
    """Test accuracy, the ridge chosen on validation images.

    Args:
      kernel: a row for each training, validation and test image, a column for each training image.
      labels: of the three parts.
    """
    k_train, k_valid, k_test = np.split(kernel, np.cumsum([len(part) for part in labels])[:-1])
    targets, valid_targets = (np.asarray(regression.centred_one_hot(jnp.asarray(part), num_classes)) for part in labels[:2])
    ridge = regression.choose_ridge(k_train, k_valid, targets, valid_targets, _RIDGES).ridge
    predicted = regression.kernel_regression(k_train, k_test, targets, ridge=ridge)
    return float((predicted.argmax(-1) == labels[2]).mean())
