"""The measurements of Study 1, as named pieces of work.

For each case and seed: the affine minimiser of the seed's own training data, embedded in the deep network and certified. For each case and
arm: one training of all seeds in one compiled program. For each end point: a certificate. For cases that `explore`: kicks off the
embedded minimum, spectral densities and a slice of the loss.
"""

import functools
import itertools
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from experiments.local_minima.settings import (
    BOLD,
    DEFAULT,
    EMBEDDED,
    GENTLE,
    NEAR_GLOBAL,
    PLAIN,
    STATIONARY,
    Case,
    Settings,
)
from jaxbp import data, lab, landscape, losses, models, sweep, training
from jaxbp.lab import Piece
from jaxbp.runtime.store import Store

_NUM_MEASURED = 10  # times along a training when the loss is evaluated
_PROBES = {"num_directions": 1, "num_steps": 5}
_END_PRODUCTS = 40  # of end points nothing is to be proven
_DENSITY = {"num_probes": 2, "num_steps": 80}


def pieces(settings: Settings, store: Store, data_dir: Path | None) -> list[Piece]:
    """All the work of the study, in an order in which everything needed is there.

    The embeddings come first: data that have no affine minimiser are refused before any training. They go seed by seed, and
    trainings arm by arm, so that workers beside each other compile the programs of different cases.
    """
    problems = [Problem(case, settings, store, data_dir) for case in settings.cases]
    todo = [p.piece(embed_name(p.case, s), p.embed, s, group="all") for s in settings.seeds for p in problems]
    todo += [p.piece(kick_name(p.case), p.kick, group="train") for p in problems if p.case.explore and settings.kicks]
    trainings = [[(p, arm) for arm in p.case.arms] for p in problems]
    for p, arm in filter(None, itertools.chain(*itertools.zip_longest(*trainings))):
        todo.append(p.piece(train_name(p.case, arm), p.train, arm, group="train"))
    for problem in problems:
        case = problem.case
        ends = [(arm, s) for arm in case.arms for s in settings.certified_seeds(case)]
        todo += [problem.piece(end_name(case, *end), problem.certify_end, *end, group="all") for end in ends]
        if case.explore and settings.num_densities:
            starts = [(arm, s) for arm in case.arms for s in range(settings.num_densities)]
            todo += [problem.piece(start_name(case, *p), problem.certify_start, *p, group="all") for p in starts]
            points = [(arm, s) for arm in (EMBEDDED, DEFAULT) for s in range(settings.num_densities)]
            todo += [problem.piece(density_name(case, *p), problem.density, *p, group="all") for p in points]
        if case.explore and settings.slice_points:
            todo.append(problem.piece(slice_name(case), problem.slice, group="all"))
    return todo


def embed_name(case: Case, seed: int) -> str:
    """Name of the piece that embeds and certifies."""
    return f"{case.name}; embed; {seed}"


def train_name(case: Case, arm: str) -> str:
    """Name of the piece that trains all seeds of an arm."""
    return f"{case.name}; train; {arm}"


def end_name(case: Case, arm: str, seed: int) -> str:
    """Name of the piece that certifies an end point."""
    return f"{case.name}; certify; {arm}; {seed}"


def start_name(case: Case, arm: str, seed: int) -> str:
    """Name of the piece that certifies a starting point."""
    return f"{case.name}; start; {arm}; {seed}"


def kick_name(case: Case) -> str:
    """Name of the piece that trains from kicked minima."""
    return f"{case.name}; kick"


def density_name(case: Case, arm: str, seed: int) -> str:
    """Name of the piece that measures a spectral density."""
    return f"{case.name}; density; {arm}; {seed}"


def slice_name(case: Case) -> str:
    """Name of the piece that cuts the loss in two dimensions."""
    return f"{case.name}; slice"


def best_constant_loss(labels: np.ndarray, num_classes: int, loss: str) -> float:
    """The loss of the best constant logits: the labels' entropy, or half one minus the sum of squared frequencies."""
    share = np.bincount(labels, minlength=num_classes) / len(labels)
    if loss == "squared_error":
        return float(0.5 * (1 - (share**2).sum()))
    return float(-(share[share > 0] * np.log(share[share > 0])).sum())


class Problem:
    """One case: its data, its network, and the pieces of work on it."""

    def __init__(self, case: Case, settings: Settings, store: Store, data_dir: Path | None):
        self.case, self.settings, self.store, self.data_dir = case, settings, store, data_dir

    def piece(self, name: str, compute: Callable, *args: Any, group: str | None = None) -> Piece:
        """Wrap a method; the weight is a rough guess of its time, good enough for the time left."""
        case = self.case
        examples = case.num_train or 50_000
        layers = case.depth * (10 if case.model == "convnet" else 1)
        steps = {
            self.embed: 300,
            self.certify_start: 100,
            self.certify_end: 100,
            self.density: 100,
            self.slice: 300,
        }.get(compute)
        if steps is None:
            runs = len(self.settings.seeds) * (len(self.settings.kicks) if compute == self.kick else 1)
            steps = 3 * runs * case.num_epochs / 4
        on_cpu = compute in (self.embed, self.certify_start, self.certify_end, self.density)
        weight = examples * layers * steps / 1e5
        return Piece(name, functools.partial(compute, *args), weight=weight, group=group, on_cpu=on_cpu)

    def split(self, seed: int) -> tuple[np.ndarray, np.ndarray, int]:
        """The seed's training inputs (N, H, W, C), labels (N,) and the number of classes."""
        return _split(self.case.dataset, seed, self.case.num_train, self.data_dir)

    @functools.cached_property
    def net(self) -> models.Network:
        """The deep network; ConvNets pool by strides, so that the affine map can be carried through."""
        case = self.case
        options = {"pool": "stride"} if case.model == "convnet" else {}
        return models.create(case.model, num_classes=self.split(0)[2], width=case.width, depth=case.depth, **options)

    def unravel(self, dtype: Any) -> Callable[[Any], Any]:
        """Flat vectors to parameter trees."""
        shape = (1, *self.split(0)[0].shape[1:])
        params = jax.eval_shape(self.net.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))[0]
        return ravel_pytree(jax.tree.map(lambda leaf: np.zeros(leaf.shape, dtype), params))[1]

    def embed(self, seed: int) -> dict[str, Any]:
        """Fit the affine map to the seed's data, embed it, certify the deep network there."""
        inputs, labels, num_classes = self.split(seed)
        constant = {"constant_loss": best_constant_loss(labels, num_classes, self.case.loss)}
        fit = landscape.fit_affine(inputs.reshape(len(inputs), -1), labels, num_classes, loss=self.case.loss)
        key = jax.random.key(seed)
        with jax.enable_x64(True):
            wide = jnp.asarray(inputs, jnp.float64)
            params = landscape.embed_affine(self.net.module, fit, wide, key=key, margin=self.settings.margin)
            flat = np.asarray(ravel_pytree(params)[0])
        certificate = landscape.certify(
            self.net.apply, params, inputs, labels, loss=self.case.loss, key=key, lower_bound=fit.lower_bound,
            chunk_size=self.case.chunk_size,
            **_PROBES,
        )  # fmt: skip
        affine = {f"affine_{name}": getattr(fit, name) for name in ("loss", "gradient_norm", "accuracy", "rank", "lower_bound")}
        return {**constant, **affine, **_numbers(certificate), "params": flat}

    def embedded(self, seed: int) -> dict[str, np.ndarray]:
        """What `embed` found."""
        return self.store.get(embed_name(self.case, seed))

    def starts(self, init: str) -> np.ndarray:
        """Flat float32 parameters (S, P) of all seeds."""
        if init == EMBEDDED:
            return np.stack([self.embedded(s)["params"] for s in self.settings.seeds]).astype(np.float32)
        salt = zlib.crc32(init.encode())

        def start(params: Any, key: jax.Array) -> jax.Array:
            return ravel_pytree(landscape.perturb_init(init, params, jax.random.fold_in(key, salt)))[0]

        return np.asarray(jax.vmap(start)(self._drawn, sweep.keys(self.settings.seeds)))

    @functools.cached_property
    def _drawn(self) -> Any:
        """Freshly drawn parameters of all seeds, stacked; drawn once, since compiling that takes longer than what inits make of it."""
        example = jnp.asarray(self.split(0)[0][:1])
        return jax.jit(jax.vmap(lambda key: self.net.init(key, example)[0]))(sweep.keys(self.settings.seeds))

    def recipe(self, arm: str) -> tuple[str, float, float]:
        """Init, learning rate and momentum of an arm."""
        rate, momentum = self.settings.learning_rate, self.settings.momentum
        if arm == GENTLE:
            return EMBEDDED, self.settings.gentle_learning_rate, momentum
        if arm.endswith(f", {BOLD}"):
            return arm.removesuffix(f", {BOLD}"), rate / (1 - momentum), 0.0
        if arm.endswith(f", {PLAIN}"):
            return arm.removesuffix(f", {PLAIN}"), rate, 0.0
        return arm, rate, momentum

    def train(self, arm: str) -> dict[str, Any]:
        """Train all seeds: losses and accuracies (S, E) at ``epochs`` (E,), final ``params`` (S, P)."""
        init, rate, momentum = self.recipe(arm)
        result = self._train(self.starts(init), self.settings.seeds, rate, momentum)
        return {**result.history, "epochs": self.measured_epochs, "params": result.params}

    @property
    def measured_epochs(self) -> np.ndarray:
        """When a training's loss is evaluated, from before it to its end."""
        return np.unique(np.linspace(0, self.case.num_epochs, _NUM_MEASURED + 1).round().astype(int))

    def _train(self, starts: np.ndarray, seeds: Sequence[int], rate: float, momentum: float) -> training.TrainResult:
        """Train from ``starts`` (R, P), run r on the data and with the shuffles of ``seeds[r]``."""
        splits = [self.split(s) for s in seeds]
        runs = {
            "params": jnp.asarray(starts),
            "key": jax.vmap(lambda key: jax.random.fold_in(key, 1))(sweep.keys(seeds)),
            "learning_rate": jnp.full(len(starts), rate, jnp.float32),
            "momentum": jnp.full(len(starts), momentum, jnp.float32),
            "inputs": np.stack([inputs for inputs, _, _ in splits]),
            "labels": np.stack([labels for _, labels, _ in splits]),
        }
        return jax.tree.map(np.asarray, sweep.evaluate(self._run_fn, runs, devices=[lab.device()]))

    @functools.cached_property
    def _run_fn(self) -> Callable:
        """One training from flat parameters; one object, so that all arms and kicks share one compiled program."""
        case, unravel, net = self.case, self.unravel(np.float32), self.net
        settings = training.Settings(case.num_epochs, case.batch_size, losses.LOSSES[case.loss], self.measured_epochs)

        def run(one: dict[str, jax.Array]) -> training.TrainResult:
            steps = training.num_steps(len(one["inputs"]), case.num_epochs, case.batch_size)
            optimizer = training.sgd(one["learning_rate"], momentum=one["momentum"], decay_steps=steps)
            start = unravel(one["params"]), {}
            result = training.train(net, optimizer, (one["inputs"], one["labels"]), one["key"], settings, start=start)
            return result._replace(params=ravel_pytree(result.params)[0])

        return run

    def certify_start(self, arm: str, seed: int) -> dict[str, Any]:
        """Certify the point from which an arm starts."""
        return _numbers(self._certify(self.starts(self.recipe(arm)[0])[seed], seed))

    def certify_end(self, arm: str, seed: int) -> dict[str, Any]:
        """Certify the point at which the training of a seed ended, and name what it is."""
        certificate = self._certify(self.store.get(train_name(self.case, arm))["params"][seed], seed)
        near_global = NEAR_GLOBAL * float(self.embedded(seed)["affine_loss"])
        kind = landscape.classify(certificate, near_global_loss=near_global, gradient_tolerance=STATIONARY)
        return {**_numbers(certificate), "class": kind}

    def _certify(self, flat: np.ndarray, seed: int) -> landscape.Certificate:
        inputs, labels, _ = self.split(seed)
        return landscape.certify(
            self.net.apply, self.unravel(np.float32)(flat), inputs, labels, loss=self.case.loss, key=jax.random.key(seed),
            lower_bound=float(self.embedded(seed)["affine_lower_bound"]), chunk_size=self.case.chunk_size,
            max_products=_END_PRODUCTS,
            **_PROBES,
        )  # fmt: skip

    def kick(self) -> dict[str, Any]:
        """Train from points at given distances from the embedded minimum, in a random direction; final losses (S, R)."""
        kicks, seeds = self.settings.kicks, list(self.settings.seeds)
        centres = self.starts(EMBEDDED)
        directions = np.stack([np.random.default_rng(s).normal(size=centres.shape[1]) for s in seeds])
        directions *= np.linalg.norm(centres, axis=1, keepdims=True) / np.linalg.norm(directions, axis=1, keepdims=True)
        starts = centres[:, None] + np.array(kicks)[:, None] * directions[:, None]
        repeated = [s for s in seeds for _ in kicks]
        flat = starts.reshape(len(repeated), -1).astype(np.float32)
        result = self._train(flat, repeated, self.settings.learning_rate, self.settings.momentum)
        losses = result.history["train_loss"].reshape(len(seeds), len(kicks), -1)
        return {"kicks": kicks, "start_loss": losses[..., 0], "end_loss": losses[..., -1]}

    def density(self, arm: str, seed: int) -> dict[str, Any]:
        """Spectral density of the Hessian at the embedded minimum or at the end of default training, in float64."""
        if arm == EMBEDDED:
            flat = self.embedded(seed)["params"]
        else:
            flat = self.store.get(train_name(self.case, arm))["params"][seed]
        inputs, labels, _ = self.split(seed)
        with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
            params = jax.tree.map(jnp.asarray, self.unravel(np.float64)(np.asarray(flat, np.float64)))
            loss_fn = landscape.per_example_loss(self.net.apply, self.case.loss)
            batch = (jnp.asarray(inputs, jnp.float64), jnp.asarray(labels))
            operator = landscape.hessian(loss_fn, params, batch, chunk_size=self.case.chunk_size)
            found = landscape.spectral_density(operator.matvec, operator.dimension, jax.random.key(seed), dtype=jnp.float64, **_DENSITY)
        return {"nodes": found.nodes, "weights": found.weights}

    def slice(self) -> dict[str, Any]:
        """Loss on a plane through seed 0's embedded minimum (0, 0) and its default-trained point (1, 0)."""
        centre = np.asarray(self.embedded(0)["params"], np.float32)
        towards = self.store.get(train_name(self.case, DEFAULT))["params"][0] - centre
        sideways = np.random.default_rng(0).normal(size=centre.shape).astype(np.float32)
        sideways -= towards * (sideways @ towards) / (towards @ towards)
        sideways *= np.linalg.norm(towards) / np.linalg.norm(sideways)
        along, across = (np.linspace(low, low + 1.5, self.settings.slice_points, dtype=np.float32) for low in (-0.25, -0.75))
        inputs, labels, _ = self.split(0)
        loss_fn = landscape.per_example_loss(self.net.apply, self.case.loss)
        params = jax.tree.map(jnp.asarray, self.unravel(np.float32)(centre))
        batch = (jnp.asarray(inputs), jnp.asarray(labels))
        losses = [landscape.losses_at(loss_fn, params, batch, jnp.asarray(along[:, None] * towards + b * sideways)) for b in across]
        return {"along": along, "across": across, "losses": np.stack(losses), "distance": np.linalg.norm(towards)}


@functools.lru_cache(maxsize=4)  # a TFDS set takes seconds to read and hundreds of megabytes to hold
def _split(name: str, seed: int, num_train: int | None, data_dir: Path | None) -> tuple[np.ndarray, np.ndarray, int]:
    dataset = data.load(name, seed=seed, validation=0, num_train=num_train, data_dir=data_dir)
    return dataset.train.inputs, dataset.train.labels, dataset.num_classes


def _numbers(certificate: landscape.Certificate) -> dict[str, Any]:
    """A certificate as flat arrays; NaN for what it does not hold."""
    numbers: dict[str, Any] = {name: getattr(certificate, name) for name in ("status", "loss", "gradient_norm", "radius", "gap")}
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
