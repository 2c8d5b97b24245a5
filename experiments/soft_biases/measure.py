"""The stages that fit in closed form.

Polynomials with penalties by order, random features without and with ridge, the isotropic model whose risk is known, and the evidence of
the Gaussian process that an infinitely wide network is.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from experiments.soft_biases.settings import FIRST_TUNING_SEED, Case, Settings
from jaxbp import data, descent, models
from jaxbp.ntk import regression
from jaxbp.ntk.infinite_width import infinite_width_kernel

FLAT, SOFT, SQUARES = "no preference", "gamma^j", "(1 + j)^2"
NO_RIDGE, RIDGE, EXACT = "smallest norm", "ridge", "exact"
FITS_NOISE = 1e-3  # relative training error
_NUM_TEST = 1000  # test images at most, of the Gaussian process
TARGETS = {
    "smooth": lambda x: 1 - x + x**3 / 2,
    "waves": lambda x: 0.7 * np.cos(3 * np.pi * x) + 0.5 * np.sin(2.5 * np.pi * x),
}


@functools.lru_cache(maxsize=2)
def load(case: Case, settings: Settings) -> data.Dataset:
    """Normalised inputs, split alike for all seeds."""
    return data.load(case.dataset, seed=0, normalise=True, data_dir=settings.data_dir)


def redrawn(labels: np.ndarray, noise: float, num_classes: int, rng: np.random.Generator) -> np.ndarray:
    """Labels, a share of which is drawn anew from all classes."""
    return np.where(rng.uniform(size=len(labels)) < noise, rng.integers(0, num_classes, len(labels)), labels)


def polynomials(case: Case, settings: Settings) -> xr.Dataset:
    """Errors of polynomials with three penalties, their strength chosen on other seeds to favour the claim; the fits of the first seed."""
    grid = np.linspace(-1, 1, 2001)
    truth = TARGETS[case.target](grid)
    shift, scale = truth.mean(), truth.std()
    basis = descent.legendre(grid, settings.degree)
    orders = np.arange(settings.degree + 1)
    penalties = {FLAT: [np.zeros_like(orders, float)], SQUARES: [2 * np.log1p(orders)], SOFT: [np.log(g) * orders for g in settings.gammas]}

    def errors(seed: int, penalty: np.ndarray) -> tuple[np.ndarray, ...]:
        rng = np.random.default_rng(seed)
        x = np.linspace(-1, 1, settings.num_points) if case.design == "grid" else rng.uniform(-1, 1, settings.num_points)
        structured = (TARGETS[case.target](x) - shift) / scale + settings.noise_sd * rng.normal(size=len(x))
        y = np.stack([structured, rng.normal(size=len(x))], 1)
        weights = np.exp(-penalty / 2)
        fits = descent.ridge_path(
            descent.legendre(x, settings.degree) * weights,
            y,
            settings.ridges,
            np.concatenate([descent.legendre(x, settings.degree), basis]) * weights,
        )
        noise_error = np.mean((fits[:, : len(x), 1] - y[:, 1]) ** 2, 1) / y[:, 1].var()
        risk = np.mean((fits[:, len(x) :, 0] - (truth - shift) / scale) ** 2, 1)
        return noise_error, risk, fits, np.concatenate([x[:, None], y], 1)

    results = []
    for arm, candidates in penalties.items():
        tuning = [[errors(FIRST_TUNING_SEED + t, c)[:2] for t in range(settings.num_tuning_seeds)] for c in candidates]
        noise_error, risk = np.moveaxis(np.array(tuning), 2, 0)  # (candidate, seed, ridge)
        benign = ((noise_error < FITS_NOISE) & (risk < settings.noise_sd**2)).mean(1)
        which, ridge = np.unravel_index(np.lexsort((risk.mean(1).ravel(), -benign.ravel()))[0], benign.shape)
        rows = [errors(seed, candidates[which]) for seed in settings.seeds]
        first, points = rows[0][2][ridge], rows[0][3]
        results.append(
            xr.Dataset(
                {
                    "noise_error": ("seed", [row[0][ridge] for row in rows]),
                    "risk": ("seed", [row[1][ridge] for row in rows]),
                    "gamma": settings.gammas[which] if arm == SOFT else math.nan,
                    "ridge": settings.ridges[ridge],
                    "curve": (("x", "data"), first[settings.num_points :]),
                    "points": (("point", "column"), points),
                },
                {"seed": list(settings.seeds), "x": grid, "data": ["structured", "noise"], "column": ["x", "structured", "noise"]},
            )
        )
    return xr.concat(results, xr.IndexVariable("arm", list(penalties)))


def random_features(case: Case, settings: Settings) -> xr.Dataset:
    """Test error over numbers of features, by the fit of smallest norm and by ridge chosen on validation data."""
    dataset, table = load(case, settings), []
    one_hot = np.eye(dataset.num_classes)
    parts = [(part.inputs.reshape(len(part.labels), -1), part.labels) for part in (dataset.train, dataset.validation, dataset.test)]
    for seed in settings.seeds:
        rng = np.random.default_rng(seed)
        rows = data.stratified_indices(dataset.train.labels, settings.num_train, seed=seed)
        inputs = jnp.concatenate([parts[0][0][rows], parts[1][0], parts[2][0]])
        every = np.asarray(descent.random_features(jax.random.key(seed), inputs, max(settings.counts)), np.float64)
        ends = np.cumsum([len(rows), len(parts[1][1])])
        train, other = every[: ends[0]], every[ends[0] :]
        noisy = [one_hot[redrawn(labels, case.noise, dataset.num_classes, rng)] for labels in (parts[0][1][rows], parts[1][1])]
        table.append([_feature_errors(train[:, :p], other[:, :p], noisy, one_hot[parts[2][1]], settings) for p in settings.counts])
    coordinates = {"seed": list(settings.seeds), "features": list(settings.counts), "arm": [NO_RIDGE, RIDGE]}
    return xr.Dataset({"error": (list(coordinates), np.array(table))}, coordinates)


def _feature_errors(
    train: np.ndarray, other: np.ndarray, noisy: Sequence[np.ndarray], truth: np.ndarray, settings: Settings
) -> tuple[float, float]:
    fits = descent.ridge_path(train, noisy[0], [0.0, *settings.feature_ridges], other)
    validation, test = fits[:, : len(noisy[1])], fits[:, len(noisy[1]) :]
    chosen = 1 + np.argmin(np.mean((validation[1:] - noisy[1]) ** 2, (1, 2)))
    errors = np.mean((test - truth) ** 2, (1, 2))
    return errors[0], errors[chosen]


def isotropic_model(case: Case, settings: Settings) -> xr.Dataset:
    """Excess risk of fits to isotropic normal inputs, simulated and exact, and of the best ridge."""
    n, noise, table = settings.num_train, 0.5, []
    for seed in settings.seeds:
        rng, row = np.random.default_rng(seed), []
        for p in settings.counts:
            X, beta = rng.normal(size=(n, p)), np.full(p, 1 / math.sqrt(p))
            y = X @ beta + noise * rng.normal(size=n)
            fits = descent.ridge_path(X, y, [0.0, noise**2 * p], np.eye(p))  # the best ridge, n s^2 (p / n) / r^2
            risks = np.sum((fits - beta) ** 2, 1)
            exact = descent.isotropic_risk(n, p, 1.0, noise)
            row.append([*risks, exact if math.isfinite(exact) else math.nan])
        table.append(row)
    coordinates = {"seed": list(settings.seeds), "features": list(settings.counts), "arm": [NO_RIDGE, RIDGE, EXACT]}
    return xr.Dataset({"error": (list(coordinates), np.array(table))}, coordinates)


def evidence(case: Case, settings: Settings) -> xr.Dataset:
    """Log evidence per example of the Gaussian process of an infinitely wide MLP, over shares of noisy labels, (seed, noise).

    Targets are centred and one-hot. The variance of the noise is the one of largest evidence, and so is the kernel's scale, in closed form;
    ``train_accuracy`` is on the noisy labels, ``test_accuracy`` on true ones. A seed's labels that are drawn anew are drawn anew at every
    larger share.
    """
    dataset, rows = load(case, settings), []
    net = models.create("mlp", num_classes=dataset.num_classes, width=1, depth=len(settings.hidden), parametrisation="ntk")
    kernel_fn = jax.jit(functools.partial(infinite_width_kernel(net.module, dataset.input_shape), get="nngp"))
    for seed in settings.seeds:
        chosen = data.stratified_indices(dataset.train.labels, settings.evidence_train, seed=seed)
        inputs, labels = dataset.train.inputs[chosen], dataset.train.labels[chosen]
        everything = np.concatenate([inputs, dataset.test.inputs[:_NUM_TEST]])
        with jax.enable_x64(True):  # the smallest ridge is as small as float32's rounding of a kernel
            kernels = np.split(np.asarray(kernel_fn(*(jnp.asarray(images, jnp.float64) for images in (everything, inputs)))), [len(inputs)])
        noisy = [redrawn(labels, noise, dataset.num_classes, np.random.default_rng(seed)) for noise in settings.evidence_noises]
        rows.append([_evidence(*kernels, given, dataset, settings) for given in noisy])
    coordinates = {"seed": list(settings.seeds), "noise": list(settings.evidence_noises)}
    names = ("log_evidence", "ridge", "train_accuracy", "test_accuracy")
    return xr.Dataset({name: (list(coordinates), np.array(rows)[..., i]) for i, name in enumerate(names)}, coordinates)


def _evidence(
    k_train_train: np.ndarray, k_test_train: np.ndarray, labels: np.ndarray, dataset: data.Dataset, settings: Settings
) -> tuple[float, float, float, float]:
    """Log evidence per example, the ridge of the largest one, accuracies on the given training labels and on the test labels."""
    targets = np.asarray(regression.centred_one_hot(labels, dataset.num_classes))
    evidences = regression.log_evidence(k_train_train, targets, settings.evidence_ridges, best_scale=True)
    best = int(np.nanargmax(evidences))
    ridge = settings.evidence_ridges[best]
    predicted = regression.kernel_regression(k_train_train, np.concatenate([k_train_train, k_test_train]), targets, ridge=ridge)
    right = predicted.argmax(1) == np.concatenate([labels, dataset.test.labels[:_NUM_TEST]])
    return evidences[best] / len(labels), ridge, right[: len(labels)].mean(), right[len(labels) :].mean()
