"""The stages: build minima, certify them, train from them and from other inits, certify where that ends.

``embed`` fits the affine minimiser of the seed's own training data, embeds it in the deep network and certifies it there, beside points
that are no minima. ``tune`` tries learning rates on each seed, ``train`` trains with the best. ``stay`` trains from the minimum below the
limit of linear stability, ``perturb`` from points around the minimum. ``certify_end`` and ``certify_start`` certify end points and
starting points; ``density`` and ``loss_slice`` look at the loss around them. All trainings of a case with one batch size are one compiled
program, whose runs differ in start, data, order, learning rate and momentum.
"""

import functools
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jax.flatten_util import ravel_pytree

from experiments.local_minima.settings import EMBEDDED, LIMIT_SHARES, NO_MOMENTUM, RATES, SMALL, SMALL_LR, Case, Settings
from jaxbp import data, lab, landscape, losses, models, sweep, training

NEAR_GLOBAL = 0.1  # share of the affine minimum's loss up to which an end point counts as near-global
STATIONARY = 0.06  # gradient norm up to which a trained network counts as converged: the largest at the end points of the paper
MOVED = 1e-3  # a control's distance from the minimum, relative to the parameters' norm
_SALT = zlib.crc32(b"local_minima, gap to the median of default training")  # random numbers that no earlier run has used
_NUM_MEASURED = 10  # times along a training when the loss is evaluated
_PROBES = {"num_directions": 1, "num_steps": 5}
_END_PRODUCTS = 40  # of points of which nothing is to be proven
_DENSITY = {"num_probes": 2, "num_steps": 80}
_AFFINE = ("loss", "gradient_norm", "accuracy", "rank", "lower_bound")
_CERTIFICATE = ("status", "loss", "gradient_norm", "radius", "gap")

Split = tuple[np.ndarray, np.ndarray, int]


def load(case: Case, settings: Settings, seed: int) -> Split:
    """The seed's training inputs (N, H, W, C), labels (N,) and the number of classes."""
    return _load(case.dataset, seed + _SALT % 2**31, case.num_train, settings.data_dir)


@functools.lru_cache(maxsize=4)
def _load(name: str, seed: int, num_train: int | None, data_dir: Path | None) -> Split:
    dataset = data.load(name, seed=seed, validation=0, num_train=num_train, data_dir=data_dir)
    return dataset.train.inputs, dataset.train.labels, dataset.num_classes


def key_of(seed: int, use: str) -> jax.Array:
    """The random key of a seed for one use."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(use.encode()) ^ _SALT)


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
    """Fit the affine map to the seed's data, embed it, certify the deep network there and at points that are no minima, in float64.

    Squared error has an exact best map of half the rank, which makes a saddle.
    """
    inputs, labels, num_classes = load(case, settings, seed)
    net, key = network(case, num_classes), key_of(seed, "embed")
    best_map = functools.partial(landscape.fit_affine, inputs.reshape(len(inputs), -1), labels, num_classes, loss=case.loss)
    fit, points = best_map(), {}
    with jax.enable_x64(True):
        embedding = functools.partial(landscape.embed_affine, net.module, inputs=inputs, key=key, margin=settings.margin)
        params = embedding(fit)
        flat, unflatten = ravel_pytree(params)
        flat, direction = np.asarray(flat), np.random.default_rng([seed, _SALT]).normal(size=len(flat))
        points["moved"] = unflatten(jnp.asarray(flat + MOVED * np.linalg.norm(flat) * direction / np.linalg.norm(direction)))
        if case.has_saddle:
            points["saddle"] = embedding(best_map(max_rank=max(fit.rank // 2, 1)))
    certify = functools.partial(
        landscape.certify, net.apply, inputs=inputs, labels=labels, loss=case.loss, key=key, fit=fit, chunk_size=case.chunk_size, **_PROBES
    )
    affine = {f"affine_{name}": getattr(fit, name) for name in _AFFINE}
    affine["affine_kernel"] = lab.along(("feature", "logit"), fit.kernel)
    affine["affine_bias"] = lab.along("logit", fit.bias)
    others = {f"{name}_status": certify(point, max_products=_END_PRODUCTS).status for name, point in points.items()}
    constant = {"constant_loss": landscape.best_constant_loss(labels, num_classes, case.loss)[0]}
    return {**constant, **affine, **as_numbers(certify(params)), **others, "params": lab.along("parameter", flat)}


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
    return EMBEDDED if arm == SMALL_LR else arm.removesuffix(f", {NO_MOMENTUM}")


def momentum_of(arm: str, settings: Settings) -> float:
    """The momentum of an arm."""
    return 0.0 if arm.endswith(f", {NO_MOMENTUM}") else settings.momentum


def draw(case: Case, settings: Settings, init: str, seeds: Sequence[int], use: str = "train") -> np.ndarray:
    """Flat float32 parameters (S, P) of all seeds, drawn and changed as ``init`` says; ``use`` tells draws apart."""
    inputs, _, num_classes = load(case, settings, seeds[0])
    salt = zlib.crc32(init.encode())

    def start(params: Any, key: jax.Array) -> jax.Array:
        return ravel_pytree(landscape.perturb_init(init, params, jax.random.fold_in(key, salt)))[0]

    keys = jnp.stack([key_of(seed, use) for seed in seeds])
    return np.asarray(jax.vmap(start)(_drawing(network(case, num_classes), inputs.shape[1:])(keys), keys))


@functools.lru_cache(maxsize=8)
def _drawing(net: models.Network, shape: tuple[int, ...]) -> Callable[[jax.Array], Any]:
    """From keys to fresh parameters; compiled once, which takes longer than what inits make of them."""
    example = jnp.zeros((1, *shape), jnp.float32)
    return jax.jit(jax.vmap(lambda key: net.init(key, example)[0]))


def tune(case: Case, settings: Settings, trained: str, seed: tuple[int, ...]) -> xr.Dataset:
    """Loss at the end of training an arm with each rate, (rate, seed), and the rate that came lowest on each seed, (seed,).

    Data are the seed's; initial parameters and order are other ones than in ``train``. A run that diverges is no choice.
    """
    starts = np.tile(draw(case, settings, init_of(trained), seed, "tune"), (len(RATES), 1))
    rates, momentum = np.repeat(RATES, len(seed)), momentum_of(trained, settings)
    result = train_from(starts, list(seed) * len(RATES), rates, momentum, case, settings, use="tune")
    ends = result["train_loss"][:, -1].reshape(len(RATES), len(seed))
    best = np.where(np.isfinite(ends), ends, np.inf).argmin(0)
    return xr.Dataset({"end_loss": (("rate", "seed"), ends), "best": ("seed", np.array(RATES)[best])}, {"rate": list(RATES)})


def train(case: Case, settings: Settings, embedded: xr.Dataset, tuned: xr.Dataset, arm: str, seed: tuple[int, ...]) -> xr.Dataset:
    """Train an arm: losses and accuracies along training, (seed, epoch), and at its end parameters and gradient norm."""
    if arm in case.tuned:
        starts, rates = draw(case, settings, init_of(arm), seed), tuned.best.sel(trained=arm).values
    else:
        starts, rates = embedded_params(embedded), settings.small_learning_rate if arm == SMALL_LR else settings.learning_rate
    result = train_from(starts, seed, rates, momentum_of(arm, settings), case, settings)
    curves = {name: (("seed", "epoch"), result[name]) for name in ("train_loss", "train_accuracy")}
    ends = {"params": (("seed", "parameter"), result["params"]), "gradient_norm": ("seed", result["gradient_norm"])}
    return xr.Dataset({**curves, **ends}, {"epoch": list(measured_epochs(case.num_epochs))})


def embedded_params(embedded: xr.Dataset) -> np.ndarray:
    """The embedded minima in float32, (S, P), or (P,) of a single seed."""
    return embedded.params.values.astype(np.float32)


def measured_epochs(num_epochs: int) -> tuple[int, ...]:
    """When a training's loss is evaluated, from before training to its end."""
    return tuple(np.unique(np.linspace(0, num_epochs, _NUM_MEASURED + 1).round().astype(int)).tolist())


def train_from(
    starts: np.ndarray,
    seeds: Sequence[int],
    rates: Any,
    momentum: float,
    case: Case,
    settings: Settings,
    *,
    batch_size: int | None = None,
    num_epochs: int | None = None,
    num_steps: Any = None,
    use: str = "train",
) -> dict[str, np.ndarray]:
    """Train from ``starts`` (R, P), run r on the data of ``seeds[r]``, with shuffles by seed and ``use``.

    ``rates`` and ``num_steps`` are (R,) or one for all. The rate decays along a cosine and is 0 after ``num_steps``, by default at the
    end. Returns curves (R, measured epochs), parameters (R, P) and gradient norms (R,) at the end.
    """
    by_seed = {seed: load(case, settings, seed) for seed in dict.fromkeys(seeds)}  # runs share the data of a seed
    splits = [by_seed[seed] for seed in seeds]
    num_epochs, batch_size = num_epochs or case.num_epochs, batch_size or case.batch_size
    steps = num_steps if num_steps is not None else training.num_steps(len(splits[0][1]), num_epochs, batch_size)
    runs = {
        "params": jnp.asarray(starts),
        "key": jnp.stack([jax.random.fold_in(key_of(seed, use), 1) for seed in seeds]),
        "learning_rate": jnp.broadcast_to(jnp.asarray(rates, jnp.float32), len(starts)),
        "momentum": jnp.full(len(starts), momentum, jnp.float32),
        "steps": jnp.broadcast_to(jnp.asarray(steps, jnp.float32), len(starts)),
        "inputs": np.stack([inputs for inputs, _, _ in splits]),
        "labels": np.stack([labels for _, labels, _ in splits]),
    }
    program = _program(network(case, splits[0][2]), case.loss, num_epochs, batch_size)
    return jax.tree.map(np.asarray, sweep.evaluate(program, runs, devices=[lab.device()]))


@functools.lru_cache(maxsize=8)
def _program(net: models.Network, loss: str, num_epochs: int, batch_size: int) -> Callable[[dict[str, jax.Array]], dict[str, jax.Array]]:
    """A training from flat parameters; one object, so that all arms and perturbations share one compiled program."""
    options = training.Settings(num_epochs, batch_size, losses.LOSSES[loss], measured_epochs(num_epochs))

    def run(values: dict[str, jax.Array]) -> dict[str, jax.Array]:
        inputs, labels = values["inputs"], values["labels"]

        def decay(step: jax.Array) -> jax.Array:
            return 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(step / values["steps"], 1)))

        optimizer = training.sgd(values["learning_rate"], momentum=values["momentum"], schedule=decay)
        start = unravel(net, inputs)(values["params"]), {}
        result = training.train(net, optimizer, (inputs, labels), values["key"], options, start=start)
        gradient = jax.grad(lambda params: losses.LOSSES[loss](net.apply(params, inputs), labels).mean())(result.params)
        return {**result.history, "params": ravel_pytree(result.params)[0], "gradient_norm": optax.tree.norm(gradient)}

    return run


def stability_limit(largest: Any, momentum: float) -> Any:
    """The learning rate above which heavy-ball gradient descent leaves a quadratic with this largest eigenvalue: 2 (1 + m) / lambda_max."""
    return 2 * (1 + momentum) / largest


def stay(case: Case, settings: Settings, embedded: xr.Dataset, batches: str, seed: tuple[int, ...]) -> xr.Dataset:
    """Train from the embedded minimum at shares of the limit of linear stability: losses at the end, (share, seed).

    A run makes as many steps as give the sum of learning rates of default training at the paper's rate, or as many as fit into
    ``settings.stay_passes`` trainings. ``travel`` is the sum that it reached, relative to that.
    """
    size = len(load(case, settings, seed[0])[1])
    batch_size, num_epochs = case.batch_size if batches == SMALL else size, settings.stay_passes * case.num_epochs
    rates = np.outer(LIMIT_SHARES, stability_limit(embedded.largest.values, settings.momentum))
    wanted = settings.learning_rate * training.num_steps(size, case.num_epochs, case.batch_size)
    steps = np.clip(np.round(wanted / rates), 1, training.num_steps(size, num_epochs, batch_size))
    starts = np.tile(embedded_params(embedded), (len(LIMIT_SHARES), 1))
    result = train_from(
        starts,
        list(seed) * len(LIMIT_SHARES),
        rates.ravel(),
        settings.momentum,
        case,
        settings,
        batch_size=batch_size,
        num_epochs=num_epochs,
        num_steps=steps.ravel(),
        use=f"stay, {batches}",
    )
    axes = ("share", "seed")
    ends = {"end_loss": (axes, result["train_loss"][:, -1].reshape(rates.shape)), "travel": (axes, rates * steps / wanted)}
    return xr.Dataset(ends, {"share": list(LIMIT_SHARES)})


def perturb(case: Case, settings: Settings, embedded: xr.Dataset, seed: tuple[int, ...]) -> xr.Dataset:
    """Train from points at given distances from the embedded minimum, in a random direction: losses (seed, relative_norm)."""
    norms, centres = settings.perturbations, embedded_params(embedded)
    directions = np.stack([np.random.default_rng([number, _SALT, 1]).normal(size=centres.shape[1]) for number in seed])
    directions *= np.linalg.norm(centres, axis=1, keepdims=True) / np.linalg.norm(directions, axis=1, keepdims=True)
    starts = centres[:, None] + np.array(norms)[:, None] * directions[:, None]
    flat = starts.reshape(-1, centres.shape[1]).astype(np.float32)
    result = train_from(flat, [number for number in seed for _ in norms], settings.learning_rate, settings.momentum, case, settings)
    curves, axes = result["train_loss"].reshape(len(seed), len(norms), -1), ("seed", "relative_norm")
    return xr.Dataset({"start_loss": (axes, curves[..., 0]), "end_loss": (axes, curves[..., -1])}, {"relative_norm": list(norms)})


def certify_start(case: Case, settings: Settings, embedded: xr.Dataset, arm: str, seed: int) -> dict[str, Any]:
    """Certify the point from which an arm starts."""
    init = init_of(arm)
    flat = embedded_params(embedded) if init == EMBEDDED else draw(case, settings, init, (seed,))[0]
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
        net.apply,
        unravel(net, inputs)(flat),
        inputs,
        labels,
        loss=case.loss,
        key=key_of(seed, "certify"),
        fit=affine_fit(embedded),
        chunk_size=case.chunk_size,
        max_products=_END_PRODUCTS,
        **_PROBES,
    )


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
        result = landscape.spectral_density(operator.matvec, operator.dimension, key_of(seed, "density"), dtype=jnp.float64, **_DENSITY)
    quadrature = {name: (("probe", "step"), np.asarray(getattr(result, name))) for name in ("nodes", "weights")}
    num_probes, num_steps = result.nodes.shape
    return xr.Dataset(quadrature, {"probe": range(num_probes), "step": range(num_steps)})


def _grid(low: float, num_points: int, through: Sequence[float]) -> np.ndarray:
    """Evenly spaced numbers from ``low`` over 1.5 units, of which those nearest to the points ``through`` move onto them."""
    grid = np.linspace(low, low + 1.5, num_points, dtype=np.float32)
    for place in through:
        grid[np.abs(grid - place).argmin()] = place
    return grid


def loss_slice(case: Case, settings: Settings, embedded: xr.Dataset, trained: xr.Dataset, arm: str, seed: int) -> xr.Dataset:
    """Loss (across, along) on a plane through the embedded minimum (0, 0) and the trained point (along 1), in their distance."""
    centre = embedded_params(embedded)
    towards = trained.params.values - centre
    sideways = np.random.default_rng(0).normal(size=centre.shape).astype(np.float32)
    sideways -= towards * (sideways @ towards) / (towards @ towards)
    sideways *= np.linalg.norm(towards) / np.linalg.norm(sideways)
    along, across = _grid(-0.25, settings.slice_points, (0, 1)), _grid(-0.75, settings.slice_points, (0,))
    inputs, labels, num_classes = load(case, settings, seed)
    net = network(case, num_classes)
    loss_fn = landscape.per_example_loss(net.apply, case.loss)
    params = jax.tree.map(jnp.asarray, unravel(net, inputs)(centre))
    batch = (jnp.asarray(inputs), jnp.asarray(labels))
    rows = [landscape.losses_at(loss_fn, params, batch, jnp.asarray(along[:, None] * towards + step * sideways)) for step in across]
    values = {"train_loss": (("across", "along"), np.stack(rows)), "distance": np.linalg.norm(towards)}
    return xr.Dataset(values, {"across": across, "along": along})
