"""The stages: build minima, certify them, train from them and from other inits, certify where that ends.

``embed`` fits the affine minimiser of the seed's own training data, embeds it in the deep network and certifies it there. ``train`` trains
all seeds of an arm in one compiled program, ``perturb`` from points around the embedded minimum. ``certify_end`` and ``certify_start``
certify end points and starting points; ``density`` and ``loss_slice`` look at the loss around them.
"""

import functools
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.flatten_util import ravel_pytree

from experiments.local_minima.settings import EMBEDDED, NO_MOMENTUM, RESCALED_LR, SMALL_LR, Case, Settings
from jaxbp import data, lab, landscape, losses, models, sweep, training

NEAR_GLOBAL = 0.1  # share of the affine minimum's loss up to which an end point counts as near-global
STATIONARY = 1e-2  # gradient norm up to which a trained network counts as converged; the paper's ended at 0.005 to 0.06
_NUM_MEASURED = 10  # times along a training when the loss is evaluated
_PROBES = {"num_directions": 1, "num_steps": 5}
_END_PRODUCTS = 40  # of end points nothing is to be proven
_DENSITY = {"num_probes": 2, "num_steps": 80}
_AFFINE = ("loss", "gradient_norm", "accuracy", "rank", "lower_bound")
_CERTIFICATE = ("status", "loss", "gradient_norm", "radius", "gap")

Split = tuple[np.ndarray, np.ndarray, int]


def load(case: Case, settings: Settings, seed: int) -> Split:
    """The seed's training inputs (N, H, W, C), labels (N,) and the number of classes."""
    return _load(case.dataset, seed, case.num_train, settings.data_dir)


@functools.lru_cache(maxsize=4)  # a TFDS set takes seconds to read and hundreds of megabytes to hold
def _load(name: str, seed: int, num_train: int | None, data_dir: Path | None) -> Split:
    dataset = data.load(name, seed=seed, validation=0, num_train=num_train, data_dir=data_dir)
    return dataset.train.inputs, dataset.train.labels, dataset.num_classes


def network(case: Case, num_classes: int) -> models.Network:
    """The deep network; ConvNets pool by strides, so that the affine map can be carried through."""
    options = {"pool": "stride"} if case.model == "convnet" else {}
    return models.create(case.model, num_classes=num_classes, width=case.width, depth=case.depth, **options)


def unravel(net: models.Network, inputs: Any, dtype: Any = np.float32) -> Callable[[Any], Any]:
    """Flat vectors to parameter trees; only the shape of ``inputs`` matters."""
    example = jax.ShapeDtypeStruct((1, *inputs.shape[1:]), jnp.float32)
    params, _ = jax.eval_shape(net.init, jax.random.key(0), example)
    return ravel_pytree(jax.tree.map(lambda leaf: np.zeros(leaf.shape, dtype), params))[1]


def embed(case: Case, settings: Settings, seed: int) -> dict[str, Any]:
    """Fit the affine map to the seed's data, embed it, certify the deep network there, in float64."""
    inputs, labels, num_classes = load(case, settings, seed)
    net, key = network(case, num_classes), jax.random.key(seed)
    fit = landscape.fit_affine(inputs.reshape(len(inputs), -1), labels, num_classes, loss=case.loss)
    with jax.enable_x64(True):
        wide = jnp.asarray(inputs, jnp.float64)
        params = landscape.embed_affine(net.module, fit, wide, key=key, margin=settings.margin)
        flat = np.asarray(ravel_pytree(params)[0])
    certificate = landscape.certify(
        net.apply, params, inputs, labels, loss=case.loss, key=key, fit=fit, chunk_size=case.chunk_size, **_PROBES
    )
    affine = {f"affine_{name}": getattr(fit, name) for name in _AFFINE}
    affine["affine_kernel"] = lab.along(("feature", "logit"), fit.kernel)
    affine["affine_bias"] = lab.along("logit", fit.bias)
    constant = {"constant_loss": landscape.best_constant_loss(labels, num_classes, case.loss)[0]}
    return {**constant, **affine, **as_numbers(certificate), "params": lab.along("parameter", flat)}


def affine_fit(embedded: xr.Dataset) -> landscape.AffineFit:
    """The affine minimiser that ``embed`` stored."""
    numbers = {name: embedded[f"affine_{name}"].item() for name in _AFFINE}
    kernel, bias = embedded.affine_kernel.values, embedded.affine_bias.values
    return landscape.AffineFit(kernel, bias, max_rank=None, rank_lower_bound=numbers["lower_bound"], **numbers)


def as_numbers(certificate: landscape.Certificate) -> dict[str, Any]:
    """A certificate as numbers and words by name; NaN for what it does not hold."""
    numbers: dict[str, Any] = {name: getattr(certificate, name) for name in _CERTIFICATE}
    numbers["reasons"] = "; ".join(certificate.reasons)
    for end in ("smallest", "largest"):
        eigenvalue = certificate.extremes and getattr(certificate.extremes, end)
        numbers[end] = eigenvalue.value if eigenvalue else np.nan
        numbers[f"{end}_residual"] = eigenvalue.residual if eigenvalue else np.nan
        numbers[f"{end}_converged"] = bool(eigenvalue and eigenvalue.converged)
    numbers["num_products"] = certificate.extremes.num_products if certificate.extremes else 0
    activations = certificate.activations
    numbers["margin"] = activations.smallest_margin if activations else np.nan
    numbers["active_share"] = activations.active_share if activations else np.nan
    numbers["lowest_change"] = certificate.probes.lowest_change if certificate.probes else np.nan
    return numbers


def init_of(arm: str) -> str:
    """The init of an arm, without the suffix that names the optimiser."""
    return EMBEDDED if arm == SMALL_LR else arm.removesuffix(f", {RESCALED_LR}").removesuffix(f", {NO_MOMENTUM}")


def optimizer_of(arm: str, settings: Settings) -> tuple[float, float]:
    """Learning rate and momentum of an arm."""
    rate, momentum = settings.learning_rate, settings.momentum
    if arm == SMALL_LR:
        return settings.small_learning_rate, momentum
    if arm.endswith(f", {RESCALED_LR}"):
        return rate / (1 - momentum), 0.0
    return rate, 0.0 if arm.endswith(f", {NO_MOMENTUM}") else momentum


def draw(case: Case, settings: Settings, init: str) -> np.ndarray:
    """Flat float32 parameters (S, P) of all seeds, drawn and changed as ``init`` says."""
    inputs, _, num_classes = load(case, settings, 0)
    salt = zlib.crc32(init.encode())

    def start(params: Any, key: jax.Array) -> jax.Array:
        return ravel_pytree(landscape.perturb_init(init, params, jax.random.fold_in(key, salt)))[0]

    drawn = _draw(network(case, num_classes), inputs.shape[1:], settings.seeds)
    return np.asarray(jax.vmap(start)(drawn, sweep.keys(settings.seeds)))


@functools.lru_cache(maxsize=8)
def _draw(net: models.Network, shape: tuple[int, ...], seeds: range) -> Any:
    """Fresh parameters of all seeds, stacked; drawn once, since compiling that takes longer than what inits make of it."""
    example = jnp.zeros((1, *shape), jnp.float32)
    return jax.jit(jax.vmap(lambda key: net.init(key, example)[0]))(sweep.keys(seeds))


def train(case: Case, settings: Settings, embedded: xr.Dataset, arm: str) -> xr.Dataset:
    """Train all seeds of an arm: losses and accuracies along training, (seed, epoch), and the final parameters."""
    init = init_of(arm)
    starts = embedded_params(embedded) if init == EMBEDDED else draw(case, settings, init)
    result = train_from(starts, settings.seeds, *optimizer_of(arm, settings), case, settings)
    curves = {name: (("seed", "epoch"), curve) for name, curve in result.history.items()}
    coordinates = {"seed": list(settings.seeds), "epoch": list(measured_epochs(case))}
    return xr.Dataset({**curves, "params": (("seed", "parameter"), result.params)}, coordinates)


def embedded_params(embedded: xr.Dataset) -> np.ndarray:
    """The embedded minima in float32, (S, P), or (P,) of a single seed."""
    return embedded.params.values.astype(np.float32)


def measured_epochs(case: Case) -> tuple[int, ...]:
    """When a training's loss is evaluated, from before training to its end."""
    return tuple(np.unique(np.linspace(0, case.num_epochs, _NUM_MEASURED + 1).round().astype(int)).tolist())


def train_from(
    starts: np.ndarray, seeds: Sequence[int], rate: float, momentum: float, case: Case, settings: Settings
) -> training.TrainResult:
    """Train from ``starts`` (R, P), run r on the data and with the shuffles of ``seeds[r]``."""
    splits = [load(case, settings, seed) for seed in seeds]
    runs = {
        "params": jnp.asarray(starts),
        "key": jax.vmap(lambda key: jax.random.fold_in(key, 1))(sweep.keys(seeds)),
        "learning_rate": jnp.full(len(starts), rate, jnp.float32),
        "momentum": jnp.full(len(starts), momentum, jnp.float32),
        "inputs": np.stack([inputs for inputs, _, _ in splits]),
        "labels": np.stack([labels for _, labels, _ in splits]),
    }
    return jax.tree.map(np.asarray, sweep.evaluate(_program(case, splits[0][2]), runs, devices=[lab.device()]))


@functools.lru_cache(maxsize=8)
def _program(case: Case, num_classes: int) -> Callable[[dict[str, jax.Array]], training.TrainResult]:
    """A training from flat parameters; one object, so that all arms and perturbations share one compiled program."""
    net = network(case, num_classes)
    options = training.Settings(case.num_epochs, case.batch_size, losses.LOSSES[case.loss], measured_epochs(case))

    def run(values: dict[str, jax.Array]) -> training.TrainResult:
        inputs, labels = values["inputs"], values["labels"]
        steps = training.num_steps(len(inputs), case.num_epochs, case.batch_size)
        optimizer = training.sgd(values["learning_rate"], momentum=values["momentum"], decay_steps=steps)
        start = unravel(net, inputs)(values["params"]), {}
        result = training.train(net, optimizer, (inputs, labels), values["key"], options, start=start)
        return result._replace(params=ravel_pytree(result.params)[0])

    return run


def perturb(case: Case, settings: Settings, embedded: xr.Dataset) -> xr.Dataset:
    """Train from points at given distances from the embedded minimum, in a random direction: losses (seed, relative_norm)."""
    norms, seeds, centres = settings.perturbations, list(settings.seeds), embedded_params(embedded)
    directions = np.stack([np.random.default_rng(seed).normal(size=centres.shape[1]) for seed in seeds])
    directions *= np.linalg.norm(centres, axis=1, keepdims=True) / np.linalg.norm(directions, axis=1, keepdims=True)
    starts = centres[:, None] + np.array(norms)[:, None] * directions[:, None]
    repeated = [seed for seed in seeds for _ in norms]
    flat = starts.reshape(len(repeated), -1).astype(np.float32)
    result = train_from(flat, repeated, settings.learning_rate, settings.momentum, case, settings)
    curves = result.history["train_loss"].reshape(len(seeds), len(norms), -1)
    axes = ("seed", "relative_norm")
    ends = {"start_loss": (axes, curves[..., 0]), "end_loss": (axes, curves[..., -1])}
    return xr.Dataset(ends, {"seed": seeds, "relative_norm": list(norms)})


def certify_start(case: Case, settings: Settings, embedded: xr.Dataset, arm: str, seed: int) -> dict[str, Any]:
    """Certify the point from which an arm starts."""
    init = init_of(arm)
    flat = embedded_params(embedded) if init == EMBEDDED else draw(case, settings, init)[seed]
    return as_numbers(_certify(flat, case, settings, embedded, seed))


def certify_end(case: Case, settings: Settings, embedded: xr.Dataset, trained: xr.Dataset, arm: str, seed: int) -> dict[str, Any]:
    """Certify the point at which the training of a seed ended, and name what it is."""
    certificate = _certify(trained.params.values, case, settings, embedded, seed)
    near_global = NEAR_GLOBAL * float(embedded.affine_loss)
    kind = landscape.classify(certificate, near_global_loss=near_global, gradient_tolerance=STATIONARY)
    return {**as_numbers(certificate), "class": kind}


def _certify(flat: np.ndarray, case: Case, settings: Settings, embedded: xr.Dataset, seed: int) -> landscape.Certificate:
    inputs, labels, num_classes = load(case, settings, seed)
    net = network(case, num_classes)
    return landscape.certify(
        net.apply, unravel(net, inputs)(flat), inputs, labels, loss=case.loss, key=jax.random.key(seed),
        fit=affine_fit(embedded), chunk_size=case.chunk_size, max_products=_END_PRODUCTS, **_PROBES,
    )  # fmt: skip


def density(case: Case, settings: Settings, embedded: xr.Dataset, trained: xr.Dataset, arm: str, seed: int) -> xr.Dataset:
    """Spectral density of the Hessian at the embedded minimum or at the end of default training, in float64: (probe, step)."""
    flat = (embedded if arm == EMBEDDED else trained).params.values.astype(np.float64)
    inputs, labels, num_classes = load(case, settings, seed)
    net = network(case, num_classes)
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        params = jax.tree.map(jnp.asarray, unravel(net, inputs, np.float64)(flat))
        loss_fn = landscape.per_example_loss(net.apply, case.loss)
        batch = (jnp.asarray(inputs, jnp.float64), jnp.asarray(labels))
        operator = landscape.hessian(loss_fn, params, batch, chunk_size=case.chunk_size)
        result = landscape.spectral_density(operator.matvec, operator.dimension, jax.random.key(seed), dtype=jnp.float64, **_DENSITY)
    quadrature = {name: (("probe", "step"), np.asarray(getattr(result, name))) for name in ("nodes", "weights")}
    num_probes, num_steps = result.nodes.shape
    return xr.Dataset(quadrature, {"probe": range(num_probes), "step": range(num_steps)})


def loss_slice(case: Case, settings: Settings, embedded: xr.Dataset, trained: xr.Dataset, arm: str, seed: int) -> xr.Dataset:
    """Loss (across, along) on a plane through the embedded minimum (0, 0) and the trained point (along 1), in their distance."""
    centre = embedded_params(embedded)
    towards = trained.params.values - centre
    sideways = np.random.default_rng(0).normal(size=centre.shape).astype(np.float32)
    sideways -= towards * (sideways @ towards) / (towards @ towards)
    sideways *= np.linalg.norm(towards) / np.linalg.norm(sideways)
    along, across = (np.linspace(low, low + 1.5, settings.slice_points, dtype=np.float32) for low in (-0.25, -0.75))
    inputs, labels, num_classes = load(case, settings, seed)
    net = network(case, num_classes)
    loss_fn = landscape.per_example_loss(net.apply, case.loss)
    params = jax.tree.map(jnp.asarray, unravel(net, inputs)(centre))
    batch = (jnp.asarray(inputs), jnp.asarray(labels))
    rows = [landscape.losses_at(loss_fn, params, batch, jnp.asarray(along[:, None] * towards + step * sideways)) for step in across]
    values = {"train_loss": (("across", "along"), np.stack(rows)), "distance": np.linalg.norm(towards)}
    return xr.Dataset(values, {"across": across, "along": along})
