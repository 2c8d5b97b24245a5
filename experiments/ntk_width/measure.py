"""The stages of the study: what is trained, and how kernels are measured.

``train`` trains all seeds with each weight decay as one compiled program and compares kernels before training, at the target loss and at
the end, and those of unrelated networks. ``limits`` computes exact kernels; ``compare_with_exact`` compares kernels of fresh networks in
the NTK parametrisation with them; ``regress`` predicts with both. ``keep_kernel`` and ``explode`` are controls.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

from experiments.ntk_width import kernels
from experiments.ntk_width.kernels import BEFORE, END, KERNELS, TARGET, create, kernel_of, load, probe_images, random_key
from experiments.ntk_width.settings import BATCH, STORED, Case, Settings
from jaxbp import lab, models, ntk, sweep, training
from jaxbp.ntk import measures, regression
from jaxbp.ntk.infinite_width import KernelFn, PropagatedKernel, infinite_width_kernel

_RIDGES = (1e-6, 1e-4, 1e-2, 1e-1, 1.0)
_NUM_TEST = 1000  # test images at most, looked at along training
_FEW_EPOCHS = 100  # of all trainings of a program together, which then wait for the compiler above all
_TINY = 1e-3  # the sum of all learning rates, for a kernel that stays
WIDEST = "NTK, empirical, widest"


def train(case: Case, settings: Settings, width: int, decay: tuple[float, ...], seed: tuple[int, ...]) -> xr.Dataset:
    """Kernels before training against those at the target loss and at the end, (statistics, decay, seed, point), and curves.

    What is measured at the target loss is NaN for a network that never reaches it; ``reached`` says which do. ``floor`` is the
    correlation of the kernels of the network and of another initialisation, ``unrelated`` with a third one. Of a network that has an
    exact kernel there are ``trace`` and ``norm`` of its kernel in the NTK parametrisation, (statistics, decay, seed, time), as
    `experiments.ntk_width.departure.distance` takes them.
    """
    net = create(case, settings, width)
    points, history = _trained(net, case, settings, width, decay, seed)
    below = history["train_loss"][..., 1:] <= settings.target_loss  # before training nothing has been reached
    reached = below.any(-1)
    rows = [_of_seed(net, case, settings, number, points[row]) for row, number in enumerate(seed)]
    if case.exact_widths:
        rows = [
            row.assign(_limiting(net, case, settings, *of_seed)) for row, of_seed in zip(rows, zip(seed, points, strict=True), strict=True)
        ]
    epochs = np.array(settings.measure_epochs)
    dataset = xr.concat(rows, xr.DataArray(list(seed), dims="seed", name="seed")).assign_coords(decay=list(decay))
    known = xr.DataArray(reached, dims=("seed", "decay"))
    axes = ("seed", "decay")
    variables = {
        name: dataset[name].where(known | (dataset[axis] != TARGET))
        for axis in ("point", "time")
        for name in dataset
        if axis in dataset[name].dims
    }
    variables |= {name: ((*axes, "epoch"), np.asarray(curve)) for name, curve in history.items()}
    variables |= {
        "reached": (axes, reached.astype(float)),
        "epoch_at_target": (axes, np.where(reached, epochs[1 + below.argmax(-1)], np.nan)),
    }
    return dataset.assign(variables).assign_coords(epoch=epochs)


def _trained(
    net: models.Network, case: Case, settings: Settings, width: int, decay: Sequence[float], seed: Sequence[int], pace: float = 1.0
) -> tuple[list[list[tuple]], dict[str, np.ndarray]]:
    """For each seed and weight decay: parameters and state before training, at the target loss and at the end; curves (S, D, E)."""
    splits = [load(settings, number) for number in seed for _ in decay]
    steps = training.num_steps(len(splits[0].train.labels), settings.num_epochs, settings.batch_size)
    rate = case.learning_rate * pace
    coefficients = np.array(decay) * (1 - settings.momentum) / (rate * steps * _mean_rate(settings))
    runs = {
        "key": jnp.stack([random_key(number, case.name, width) for number in seed for _ in decay]),
        "train": _stacked(split.train for split in splits),
        "test": _stacked((split.test for split in splits), _NUM_TEST),
        "rates": jnp.asarray([[rate, coefficient] for _ in seed for coefficient in coefficients]),
    }
    in_turn, quickly = lab.device().platform == "cpu", len(splits) * settings.num_epochs < _FEW_EPOCHS
    points, history = _training_program(net, settings, in_turn, quickly)(runs)
    shape = (len(seed), len(decay))
    rows = [[kernels.at(points, row * shape[1] + i) for i in range(shape[1])] for row in range(shape[0])]
    return rows, {name: np.reshape(curve, (*shape, -1)) for name, curve in history.items()}


def _mean_rate(settings: Settings) -> float:
    """The mean over training of what the schedule multiplies the learning rate by."""
    lengths = np.diff((0.0, *settings.milestones, 1.0))
    return float(sum(settings.decay**i * part for i, part in enumerate(lengths)))


def _stacked(splits: Iterable[Any], most: int | None = None) -> tuple[jax.Array, jax.Array]:
    inputs, labels = zip(*((split.inputs[:most], split.labels[:most]) for split in splits), strict=True)
    return jnp.stack(inputs), jnp.stack(labels)


@functools.cache
def _training_program(net: models.Network, settings: Settings, in_turn: bool, quickly: bool) -> Callable[[dict[str, Any]], tuple]:
    """Trainings as one program, with parameters and state at three points.

    Either in turn, compiled fast if ``quickly``; or as many side by side as the device's memory allows.
    """
    epochs = training.Settings(settings.num_epochs, settings.batch_size, measure_epochs=settings.measure_epochs)

    def run(values: dict[str, Any]) -> tuple:
        steps = training.num_steps(values["train"][0].shape[0], settings.num_epochs, settings.batch_size)
        schedule = optax.piecewise_constant_schedule(1.0, {int(m * steps): settings.decay for m in settings.milestones})
        learning_rate, weight_decay = values["rates"]
        optimizer = training.sgd(learning_rate, momentum=settings.momentum, weight_decay=weight_decay, schedule=schedule)
        options = {"test_data": values["test"], "measure_fn": lambda state: (state.params, state.model_state)}
        result = training.train(net, optimizer, values["train"], values["key"], epochs, **options)
        reached = 1 + jnp.argmax(result.history["train_loss"][1:] <= settings.target_loss)
        return tuple(jax.tree.map(lambda leaf, at=at: leaf[at], result.measured) for at in (0, reached, -1)), result.history

    if in_turn:
        return jax.jit(functools.partial(jax.lax.map, run), compiler_options=ntk.FAST_COMPILE_OPTIONS if quickly else None)
    return lambda runs: sweep.evaluate(run, runs, plan="vmap", devices=[lab.device()])


def _of_seed(net: models.Network, case: Case, settings: Settings, seed: int, points: Sequence[tuple]) -> xr.Dataset:
    """Everything about one seed's kernels; ``points``: for each weight decay, parameters and state at the three points."""
    probes = probe_images(settings, seed, settings.num_probes)
    others = [kernels.initialised(net, random_key(seed, case.name, "unrelated", number), probes) for number in range(2)]
    compared, unrelated = [], []
    for statistics in case.statistics:
        before, *strangers = (kernel_of(net, settings, *state, probes, statistics) for state in (points[0][0], *others))
        afters = [[kernel_of(net, settings, *state, probes, statistics) for state in states[1:]] for states in points]
        compared.append([[kernels.comparison(before, after) for after in row] for row in afters])
        unrelated.append([kernels.correlations(before, stranger) for stranger in strangers])
    axes = ("statistics", "decay", "point")
    columns = jax.tree.map(lambda *leaves: np.array(leaves), *[cell for rows in compared for row in rows for cell in row])
    shape = (len(case.statistics), len(points), 2)
    variables = {
        name: ((*axes, *("kernel",) * (column.ndim - 1)), column.reshape(*shape, *column.shape[1:])) for name, column in columns.items()
    }
    floor, other = np.moveaxis(np.array(unrelated), 1, 0)
    moved = [float(kernels.movement(states[0][0], states[-1][0])) for states in points]
    return xr.Dataset(
        {
            **variables,
            "floor": (("statistics", "kernel"), floor),
            "unrelated": (("statistics", "kernel"), other),
            "relative_l2": ("decay", moved),
        },
        {"statistics": list(case.statistics), "point": [TARGET, END], "kernel": list(KERNELS)},
    )


def _limiting(net: models.Network, case: Case, settings: Settings, seed: int, points: Sequence[tuple]) -> xr.Dataset:
    """Trace and norm of one seed's kernels in the NTK parametrisation, which have a limit, before training and at the target loss."""
    twin = models.from_linen(net.module.clone(parametrisation="ntk"))
    probes = probe_images(settings, seed, settings.exact_probes)

    def full(params: Any, state: Any, statistics: str) -> jax.Array:
        return kernel_of(twin, settings, kernels.in_ntk_parametrisation(params), state, probes, statistics)

    traces, norms = [], []
    for statistics in case.statistics:
        before = full(*points[0][0], statistics)
        pairs = [(before, full(*states[1], statistics)) for states in points]
        traces.append([[kernels.trace(kernel) for kernel in pair] for pair in pairs])
        norms.append([[jnp.linalg.norm(kernel) / kernel.shape[-1] ** 0.5 for kernel in pair] for pair in pairs])
    axes = ("statistics", "decay", "time")
    variables = {"trace": ((*axes, "image", "other_image"), np.array(traces)), "norm": (axes, np.array(norms))}
    return xr.Dataset(variables, {"statistics": list(case.statistics), "time": [BEFORE, TARGET]})


def keep_kernel(case: Case, settings: Settings, seed: tuple[int, ...]) -> xr.Dataset:
    """The widest network in the NTK parametrisation after training with a tiny learning rate; as `train` at the end."""
    width = max(case.widths)
    net = create(case, settings, width, parametrisation="ntk")
    steps = training.num_steps(len(load(settings, 0).train.labels), settings.num_epochs, settings.batch_size)
    points, _ = _trained(net, case, settings, width, [0.0], seed, pace=_TINY / (steps * case.learning_rate))
    rows = [_of_seed(net, case, settings, number, points[row]) for row, number in enumerate(seed)]
    dataset = xr.concat(rows, xr.DataArray(list(seed), dims="seed", name="seed"))
    return dataset[["correlation", "floor"]].sel(point=END, drop=True).isel(decay=0, statistics=0, drop=True)


def explode(case: Case, settings: Settings, seed: tuple[int, ...]) -> xr.Dataset:
    """Growth a layer, (seed,), of the exact tangent kernel of deep chains of dense layers with BatchNorm, statistics of the batch."""
    num_examples, blocks = settings.chain
    growths = []
    for number in seed:
        images = probe_images(settings, number, num_examples)
        shallow, deep = (np.trace(_chain_kernel(settings, images, depth, BATCH)) for depth in (blocks, 2 * blocks))
        growths.append((deep / shallow) ** (1 / (2 * blocks)))  # a block has two layers
    return xr.Dataset({"growth": ("seed", growths)}, {"seed": list(seed)})


def _chain_kernel(settings: Settings, images: jax.Array, blocks: int, statistics: str | None) -> np.ndarray:
    """The exact tangent kernel (N, N) of a chain of dense layers; ``statistics`` of its BatchNorm, None: it has none."""
    vectors = images.reshape(len(images), 1, 1, -1)  # pixels are channels of one pixel, so that convolutions are dense
    options = {"norm": "batch" if statistics else "none", "skip": False, "stages": 1, "depth": blocks, "parametrisation": "ntk"}
    net = models.create("resnet", num_classes=load(settings, 0).num_classes, width=1, **options)
    return np.asarray(infinite_width_kernel(net.module, vectors.shape[1:], statistics=statistics)(vectors))


def exact_kernel_fn(case: Case, settings: Settings, statistics: str, *purpose: Any) -> KernelFn | PropagatedKernel:
    """The exact kernel of the infinitely wide network with one kind of statistics."""
    net = create(case, settings, 1, parametrisation="ntk")
    options = {"statistics": statistics if case.batch_norm else None, "memory": settings.memory}
    key = random_key(0, case.name, statistics, *purpose)
    return infinite_width_kernel(net.module, load(settings, 0).train.inputs.shape[1:], channels=settings.channels, key=key, **options)


def limits(case: Case, settings: Settings, seed: tuple[int, ...]) -> xr.Dataset:
    """Exact kernels of each seed's images, (statistics, seed, image, other_image), and how far to trust them."""
    exact = np.empty((len(case.statistics), len(seed), settings.exact_probes, settings.exact_probes))
    errors, tails = np.zeros((2, len(case.statistics), len(seed)))
    for mode, statistics in enumerate(case.statistics):
        for row, number in enumerate(seed):
            kernel_fn, probes = exact_kernel_fn(case, settings, statistics, number), probe_images(settings, number, settings.exact_probes)
            if isinstance(kernel_fn, PropagatedKernel):
                report = kernel_fn.report(probes)
                exact[mode, row], errors[mode, row], tails[mode, row] = report.ntk, report.sampling_error, report.tail
            else:
                exact[mode, row] = jax.jit(kernel_fn, compiler_options=ntk.FAST_COMPILE_OPTIONS)(probes)
    axes = ("statistics", "seed")
    variables = {"exact": ((*axes, "image", "other_image"), exact), "sampling_error": (axes, errors), "tail": (axes, tails)}
    return xr.Dataset(variables, {"statistics": list(case.statistics), "seed": list(seed)})


def compare_with_exact(case: Case, settings: Settings, limit: xr.Dataset, width: int, seed: tuple[int, ...]) -> xr.Dataset:
    """Distances of fresh networks' kernels, NTK parametrisation, to the exact kernel, (statistics, seed)."""
    net = create(case, settings, width, parametrisation="ntk")
    plain, rescaled = np.empty((2, len(case.statistics), len(seed)))
    finite = np.empty(limit.exact.shape)
    for row, number in enumerate(seed):
        probes = probe_images(settings, number, settings.exact_probes)
        params, state = kernels.initialised(net, random_key(number, case.name, width, "exact"), probes)
        for mode, statistics in enumerate(case.statistics):
            exact = jnp.asarray(limit.exact.sel(statistics=statistics, seed=number).values, jnp.float32)
            target = jnp.einsum("ij,kl->ijkl", exact, jnp.eye(load(settings, 0).num_classes))
            kernel = kernel_of(net, settings, params, state, probes, statistics)
            plain[mode, row] = measures.relative_change(target, kernel)
            rescaled[mode, row] = measures.rescaled_change(target, kernel).change
            finite[mode, row] = kernels.trace(kernel)
    axes = ("statistics", "seed")
    variables = {"distance": (axes, plain), "rescaled_distance": (axes, rescaled), "finite": ((*axes, "image", "other_image"), finite)}
    return xr.Dataset(variables, {"statistics": list(case.statistics), "seed": list(seed)})


def regress(case: Case, settings: Settings) -> xr.Dataset:
    """Test accuracy of regression with exact kernels and with the empirical one of the widest network, seed 0; (kernel,).

    The ridge is chosen on half as many validation images, from the same grid for each kernel. The statistics of a batch are those of all
    images, test images included.
    """
    dataset, number = load(settings, 0), case.regression
    parts = [(dataset.train, number), (dataset.validation, number // 2), (dataset.test, number)]
    images = [split.inputs[:n] for split, n in parts]
    labels = [split.labels[:n] for split, n in parts]
    everything, train_images = jnp.concatenate([jnp.asarray(array) for array in images]), jnp.asarray(images[0])
    width = max(case.widths)
    net = create(case, settings, width, parametrisation="ntk")
    params, _ = kernels.initialised(net, random_key(0, case.name, width), train_images)
    empirical = ntk.empirical_ntk(net.apply, params, everything, train_images, logits="trace", memory=kernels.memory_of(settings))
    kernel_fn = exact_kernel_fn(case, settings, case.statistics[0])
    by_name = {
        "NNGP, exact": kernel_fn(everything, train_images, get="nngp"),
        "NTK, exact": kernel_fn(everything, train_images),
        WIDEST: empirical / dataset.num_classes,
    }
    for statistics in (None, STORED, BATCH):
        name = "NTK, exact, dense chain" + (f", BatchNorm, {statistics}" if statistics else "")
        by_name[name] = _chain_kernel(settings, everything, 1, statistics)[:, : len(train_images)]
    accuracies = [_regression_accuracy(np.asarray(kernel, float), labels, dataset.num_classes) for kernel in by_name.values()]
    return xr.Dataset({"test_accuracy": ("kernel", accuracies)}, {"kernel": list(by_name)})


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
