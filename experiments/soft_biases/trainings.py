"""The stages that train networks: the Hessian's effective dimensionality over widths, and descriptions of networks in a random subspace."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

from experiments.soft_biases.measure import load, redrawn
from experiments.soft_biases.settings import Case, Settings
from jaxbp import data, descent, lab, landscape, models, pac_bayes, training

CHANCE = 0.9  # error of guessing one of ten classes
EXACT_SPECTRUM = 1000  # parameters up to which all eigenvalues are computed
_CHUNK = 250  # images whose activations are held at a time for a product with the Hessian
SEED_ALONE, TRAINED_START = "seed alone", "trained start"
_SPLIT = 1  # the stream of random numbers that decides which examples train a start
_BATCH_SIZE = 100  # of the trainings whose bits are counted


def width_sweep(case: Case, settings: Settings, width: int) -> xr.Dataset:
    """Test loss and effective dimensionality of trained networks of one width on noisy labels; MLPs have one hidden layer."""
    dataset, seeds = load(case, settings), settings.seeds
    rows = [data.stratified_indices(dataset.train.labels, settings.width_train, seed=seed) for seed in seeds]
    labels = np.stack([_noisy(dataset, rows_of_seed, case.noise, seed) for rows_of_seed, seed in zip(rows, seeds, strict=True)])
    inputs = np.stack([dataset.train.inputs[r] for r in rows])
    net = models.create(case.model, num_classes=dataset.num_classes, width=width, depth=1 if case.model == "mlp" else None)
    fn = functools.partial(_train_width, net=net, settings=settings)
    results, ends = lab.sweep(
        fn,
        seeds=seeds,
        per_seed={"inputs": inputs, "labels": labels},
        shared=(jnp.asarray(dataset.test.inputs), jnp.asarray(dataset.test.labels)),
        plan="auto" if case.model == "mlp" else "map",  # the images of all seeds at once fill an accelerator
    )
    dimensions = [
        effective_dimensions(net, *jax.tree.map(lambda leaf, s=s: leaf[s], ends), (inputs[s], labels[s]), settings, seed)
        for s, seed in enumerate(seeds)
    ]
    return results.assign(effective_dimension=(("seed", "exponent"), dimensions)).assign_coords(exponent=list(settings.exponents))


def _noisy(dataset: data.Dataset, rows: np.ndarray, noise: float, seed: int) -> np.ndarray:
    return redrawn(dataset.train.labels[rows], noise, dataset.num_classes, np.random.default_rng(seed))


def _train_width(
    key: jax.Array, *test_data: jax.Array, inputs: jax.Array, labels: jax.Array, net: models.Network, settings: Settings
) -> tuple[dict[str, jax.Array], tuple[Any, Any]]:
    options = training.Settings(num_epochs=settings.width_epochs, batch_size=50, measure_epochs=[settings.width_epochs])
    optimizer = training.sgd(settings.learning_rate, momentum=0.9)
    result = training.train(net, optimizer, (inputs, labels), key, options, test_data=test_data)
    names = ("train_accuracy", "test_loss", "test_accuracy")
    return {name: result.history[name][-1] for name in names}, (result.params, result.state)


def effective_dimensions(net: models.Network, params: Any, state: Any, examples: tuple, settings: Settings, seed: int) -> list[float]:
    """Of the Hessian of the summed training loss by the parameters, BatchNorm's stored statistics held constant, for each alpha."""
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((params, state))):
        return [math.nan] * len(settings.exponents)  # it diverged
    operator, count = _curvature(net, params, state, tuple(map(jnp.asarray, examples))), len(examples[1])
    dimension = operator.dimension
    if dimension <= EXACT_SPECTRUM:
        values = np.linalg.eigvalsh(np.asarray(jax.vmap(operator.matvec)(jnp.eye(dimension)), np.float64)) * count
        return [descent.effective_dimension(values, 10.0**exponent) for exponent in settings.exponents]
    density = landscape.spectral_density(operator.matvec, dimension, jax.random.key(seed), num_probes=2, num_steps=60)
    values = np.maximum(density.nodes * count, 0)
    return [float(dimension * np.mean(np.sum(density.weights * values / (values + 10.0**e), 1))) for e in settings.exponents]


def _curvature(net: models.Network, params: Any, state: Any, examples: tuple) -> landscape.Hessian:
    if not state:
        return landscape.hessian(landscape.per_example_loss(net.apply, "cross_entropy"), params, examples)
    point = {"params": params, "state": state}  # as one tree, so that the states of all seeds share a program
    operator = landscape.hessian(_stateful_loss(net), point, examples, chunk_size=_CHUNK)
    return landscape.restrict(operator, point, "^params/")


@functools.cache
def _stateful_loss(net: models.Network) -> Any:
    return landscape.per_example_loss(lambda point, inputs: net.apply(point["params"], inputs, point["state"]), "cross_entropy")


def code_lengths(case: Case, settings: Settings) -> xr.Dataset:
    """Networks trained in random subspaces on true and on random labels: bits, training and test errors, and the bound.

    The axes are (seed, dimension, labels, prior). The start of the subspaces, which costs no bits, comes from the seed alone; with a
    ``prior_share`` it is also one trained on that share of the examples. Its bound is on the other examples alone: given the first ones, it
    is the same bound. The choice among several dimensions is paid for.

    Raises:
      SettingsError: the network has a state, such as BatchNorm's statistics, which a code of its parameters leaves out.
    """
    dataset = load(case, settings)
    net = models.create(case.model, num_classes=dataset.num_classes, width=settings.hidden[0], depth=len(settings.hidden))
    names, table = ("bound", "train_error", "test_error", "bits", "step"), []
    for seed in settings.seeds:
        start_key, plane_key, order_key = jax.random.split(jax.random.key(seed), 3)
        start, state = net.init(start_key, jnp.asarray(dataset.train.inputs[:1]))
        if jax.tree.leaves(state):
            raise lab.SettingsError(
                f"S10 counts the bits of parameters, and {case.model} has a state beside them ({', '.join(state)}), which the count would "
                "leave out: give a network without BatchNorm"
            )
        random = redrawn(dataset.train.labels, 1.0, dataset.num_classes, np.random.default_rng(seed))
        problems = [[(dataset.train._replace(labels=labels), start)] for labels in (dataset.train.labels, random)]
        if settings.prior_share:
            problems = [[plain, trained_start(net, settings, *plain, seed)] for (plain,) in problems]
        subspaces = [pac_bayes.Subspace(plane_key, start, dimension) for dimension in settings.dimensions]
        table.append([_codes(net, settings, subspace, problems, dataset.test, order_key) for subspace in subspaces])
    coordinates = {
        "seed": list(settings.seeds),
        "dimension": list(settings.dimensions),
        "labels": ["true", "random"],
        "prior": [SEED_ALONE, TRAINED_START][: len(problems[0])],
    }
    results = xr.Dataset({name: (list(coordinates), np.array(table)[..., i]) for i, name in enumerate(names)}, coordinates)
    return results.assign(test_error=results.test_error.where(results.labels == "true", CHANCE))


def trained_start(net: models.Network, settings: Settings, examples: data.Split, start: Any, seed: int) -> tuple[data.Split, Any]:
    """The examples that are left for a bound, and parameters trained on the others, of which a bound may know everything.

    Which examples are left depends on the seed alone, not on labels.
    """
    order = np.random.default_rng([seed, _SPLIT]).permutation(len(examples.labels))
    first, left = (
        data.Split(examples.inputs[rows], examples.labels[rows]) for rows in np.split(order, [round(settings.prior_share * len(order))])
    )
    key = jax.random.fold_in(jax.random.key(seed), _SPLIT)
    return left, _train_start(start, jnp.asarray(first.inputs), jnp.asarray(first.labels), key, net, settings)


def _codes(
    net: models.Network, settings: Settings, subspace: pac_bayes.Subspace, problems: Sequence, test: data.Split, key: jax.Array
) -> list[list[list[float]]]:
    """What `_code` gives in one subspace for examples and starts ``problems``, which share its columns."""
    matrix = subspace.columns()
    return [[_code(net, settings, matrix, start, examples, test, key) for examples, start in of_labels] for of_labels in problems]


def _code(
    net: models.Network, settings: Settings, matrix: jax.Array, start: Any, examples: data.Split, test: data.Split, key: jax.Array
) -> list[float]:
    """Bound, training and test error, bits and step of the quantiser, after training in the subspace on ``examples``.

    The bound is 1 and all else NaN of coordinates that no step of the quantiser reaches, such as those of a training that diverged.
    """
    coordinates = _train_code(matrix, start, jnp.asarray(examples.inputs), jnp.asarray(examples.labels), key, net, settings)
    if not pac_bayes.usable_steps(coordinates, settings.steps):
        return [1.0, *[math.nan] * 4]
    certificate = pac_bayes.certify(
        lambda z: _logits(net, matrix, start, z, examples.inputs),
        coordinates,
        examples.labels,
        steps=settings.steps,
        delta=settings.delta,
        name_bits=math.log2(len(settings.dimensions)),
    )
    logits = _logits(net, matrix, start, jnp.asarray(certificate.coordinates, jnp.float32), test.inputs)
    test_error = float(np.mean(np.asarray(logits).argmax(1) != test.labels))
    return [certificate.bound, certificate.error, test_error, sum(certificate.bits.values()), certificate.step]


@functools.partial(jax.jit, static_argnames="net")
def _logits(net: models.Network, matrix: jax.Array, start: Any, z: jax.Array, inputs: jax.Array) -> jax.Array:
    """Of the network at coordinates z, by the columns of the subspace that are at hand."""
    flat, unravel = jax.flatten_util.ravel_pytree(start)
    return net.apply(unravel(flat + z @ matrix), inputs)


@functools.partial(jax.jit, static_argnames=("net", "settings"))
def _train_code(
    matrix: jax.Array, start: Any, inputs: jax.Array, labels: jax.Array, key: jax.Array, net: models.Network, settings: Settings
) -> jax.Array:
    """Coordinates after training by Adam."""
    plane = models.from_functions(lambda z, x: _logits(net, matrix, start, z, x))
    begin = (jnp.zeros(len(matrix)), {})
    return training.train(plane, optax.adam(settings.code_rate), (inputs, labels), key, _epochs(settings, labels), start=begin).params


@functools.partial(jax.jit, static_argnames=("net", "settings"))
def _train_start(start: Any, inputs: jax.Array, labels: jax.Array, key: jax.Array, net: models.Network, settings: Settings) -> Any:
    """All parameters after training by Adam."""
    return training.train(net, optax.adam(settings.prior_rate), (inputs, labels), key, _epochs(settings, labels), start=(start, {})).params


def _epochs(settings: Settings, labels: jax.Array) -> training.Settings:
    return training.Settings(settings.code_epochs, min(_BATCH_SIZE, len(labels)), measure_epochs=[settings.code_epochs])
