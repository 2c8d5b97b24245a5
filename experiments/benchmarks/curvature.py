"""Hessian products and extreme eigenvalues against PyTorch, SciPy and the paper's shifted power iteration.

``python -m experiments.benchmarks curvature [--quick] [--out FILE.json]``. Cases: one Hessian-vector product of the MLP
784-256-256-10 on 2,000 images and of a ConvNet on 250, float32, against PyTorch's double backward and `torch.func` (forward over
reverse); the number of products for both ends of the spectrum to 1e-3, at trained networks of 2,410 to 1.2 million parameters, against
SciPy's `eigsh`; the smallest eigenvalue against 1,000 power steps, at the smaller networks.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse.linalg
from jax.flatten_util import ravel_pytree

from experiments.benchmarks import harness
from experiments.benchmarks.settings import Curvature
from jaxbp import data, landscape, models, training

_EXAMPLES = 2000, 250  # for the MLP, for the ConvNet
_TRAINED = ("digits", 500, 24, 10), ("digits", 500, 100, 20), ("mnist5k", 1000, 128, 10), ("mnist5k", 500, 768, 5)
_LARGEST_DENSE = 5000  # parameters, of matrices whose ends are the truth
_LARGEST_FOR_POWER_STEPS = 20_000  # parameters
_STARTS = 3
_POWER_STEPS = 1000  # 500 to shift and 500 on the shifted operator, as the authors' code does


def run(arguments: Curvature) -> None:
    """Run all cases and print the table."""
    harness.start()
    examples, fewer, runs = (200, 50, 3) if arguments.quick else (*_EXAMPLES, 7)
    rows = products("MLP 784-256-256-10", "mlp", {"width": 256, "depth": 2}, examples, runs)
    rows += products("ConvNet, width 8, 28x28", "convnet", {"width": 8, "pool": "stride"}, fewer, runs)
    rows += eigenvalues(quick=arguments.quick)
    harness.finish(rows, arguments.out)


def images(num_examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Real images (N, 28, 28, 1) and labels (N,)."""
    train = data.load("mnist5k", num_train=num_examples).train
    return train.inputs, train.labels


def products(case: str, model: str, options: dict[str, Any], num_examples: int, runs: int) -> list[dict[str, Any]]:
    """One product with the Hessian of the mean cross-entropy, on the same weights and images."""
    inputs, labels = images(num_examples)
    net = models.create(model, num_classes=10, **options)
    params = net.init(jax.random.key(0), jnp.asarray(inputs[:1]))[0]
    vector = jax.random.normal(jax.random.key(1), ravel_pytree(params)[0].shape)
    loss_fn = landscape.per_example_loss(net.apply, "cross_entropy")
    batch = (jnp.asarray(inputs), jnp.asarray(labels))
    operator = landscape.hessian(loss_fn, params, batch)

    def ours() -> Any:
        return jax.block_until_ready(operator.matvec(vector))

    def with_set_up() -> Any:
        return jax.block_until_ready(landscape.hessian(loss_fn, params, batch).matvec(vector))

    @jax.jit
    def plain(params: Any, batch: tuple, tangent: Any) -> Any:
        return jax.jvp(jax.grad(lambda p: loss_fn(p, *batch).mean()), (params,), (tangent,))[1]

    tangent = operator.unravel(vector)
    peers: dict[str, Callable[[], Any]] = {
        "JAX, jvp of grad": lambda: jax.block_until_ready(plain(params, batch, tangent)),
        "ours, set-up included": with_set_up,
    }
    if harness.missing_peer("torch") is None:
        from experiments.benchmarks import torch_peers

        twin = torch_peers.Twin(params, net.module, inputs, labels)
        expected = np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(operator.unravel(ours()))])
        direction = torch_peers.from_flax(tangent)
        twin.check(direction, expected)
        peers["PyTorch, double backward"] = lambda: twin.double_backward(direction)
        peers["PyTorch, torch.func"] = lambda: twin.forward_over_reverse(direction)
    return harness.compare(f"Hessian product, {case}, {num_examples} images", ours, peers, num_runs=runs)


def eigenvalues(*, quick: bool) -> list[dict[str, Any]]:
    """Products until both ends are right to 1e-3 of themselves, in float64, at trained MLPs and on the paper's kind of spectrum."""
    rows = []
    with jax.enable_x64(True):
        for case, matvec, dimension, truth in _operators(quick):
            keys = jax.random.split(jax.random.key(3), 1 if quick else _STARTS)
            starts = [jax.random.normal(key, (dimension,), jnp.float64) for key in keys]
            rows += _one_spectrum(case, matvec, truth, starts)
    return rows


def _one_spectrum(case: str, matvec: Callable, truth: tuple[float, float], starts: Sequence[Any]) -> list[dict[str, Any]]:
    """Mean numbers of products over start vectors; errors are those of the worst start."""
    print(f"{case}: ends {truth[0]:.6g}, {truth[1]:.6g}")
    scale = max(abs(truth[0]), 1e-12)

    def error(smallest: Sequence[float]) -> float:
        return max(abs(value - truth[0]) for value in smallest) / scale

    runs = [_extremes(matvec, start) for start in starts]
    scipys, counts = zip(*(_eigsh(matvec, start, 1e-3) for start in starts), strict=True)
    rows = []
    for name in runs[0]:
        products = np.mean([ends[name].num_products for ends in runs])
        rows.append(
            harness.row(case, f"both ends to 1e-3, {name}", "products", float(products), float(np.mean(counts)), "SciPy eigsh", runs=1)
        )
    ours = error([ends["values alone"].smallest.value for ends in runs])
    peers = {"SciPy eigsh": error([ends[0] for ends in scipys])}
    peers["what it says itself"] = max(ends["values alone"].smallest.error for ends in runs) / scale
    if starts[0].size <= _LARGEST_FOR_POWER_STEPS:
        peers[f"{_POWER_STEPS} power steps"] = error([_power_iteration(matvec, starts[0])])
    return rows + [harness.row(case, "smallest: relative error", "", ours, theirs, peer, runs=1) for peer, theirs in peers.items()]


def _extremes(matvec: Callable, start: Any) -> dict[str, landscape.Extremes]:
    """Both ends to 1e-3, with vectors and without."""
    options = {"rtol": 1e-3, "max_products": min(start.size, 600)}
    return {
        "with vectors": landscape.extreme_eigenvalues(matvec, start, **options),
        "values alone": landscape.extreme_eigenvalues(matvec, start, accuracy="values", **options),
    }


def _eigsh(matvec: Callable, start: Any, tolerance: float) -> tuple[np.ndarray, int]:
    """Both ends by SciPy, and the number of products."""
    count = 0

    def counted(vector: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        return np.asarray(matvec(jnp.asarray(vector.ravel())))

    linear = scipy.sparse.linalg.LinearOperator((start.size, start.size), matvec=counted, dtype=np.float64)
    ends = scipy.sparse.linalg.eigsh(linear, k=2, which="BE", tol=tolerance, v0=np.asarray(start), return_eigenvectors=False)
    return ends, count


def _power_iteration(matvec: Callable, start: Any) -> float:
    """The paper's route: the largest absolute eigenvalue, then power iteration on the operator shifted by it; Rayleigh quotient."""
    vector = start / jnp.linalg.norm(start)
    for _ in range(_POWER_STEPS // 2):
        product = matvec(vector)
        vector = product / jnp.linalg.norm(product)
    shift = vector @ matvec(vector)
    vector = start / jnp.linalg.norm(start)
    for _ in range(_POWER_STEPS // 2):
        product = matvec(vector) - shift * vector
        vector = product / jnp.linalg.norm(product)
    return float(vector @ matvec(vector))


def _operators(quick: bool) -> Iterator[tuple[str, Callable, int, tuple[float, float]]]:
    """(name, product, dimension, true ends): a diagonal spectrum as in the paper's failure, and the Hessians of trained MLPs."""
    spectrum = jnp.concatenate([jnp.array([50.0, -0.05]), jnp.linspace(0.0, 1.0, 998)])
    yield "spectrum from -0.05 to 50, P = 1000", jax.jit(lambda v: spectrum * v), 1000, (-0.05, 50.0)
    for dataset, num_train, width, epochs in _TRAINED[: 1 if quick else None]:
        operator = _at_trained_mlp(dataset, num_train, width, 2 if quick else epochs)
        if operator.dimension <= _LARGEST_DENSE:
            dense = np.asarray(jax.lax.map(operator.matvec, jnp.eye(operator.dimension)))
            ends = np.linalg.eigvalsh(0.5 * (dense + dense.T))[[0, -1]]
        else:
            ends, _ = _eigsh(operator.matvec, jax.random.normal(jax.random.key(4), (operator.dimension,), jnp.float64), 1e-7)
        name = f"trained MLP of width {width}, {dataset}, P = {operator.dimension:,}"
        yield name, operator.matvec, operator.dimension, (float(ends[0]), float(ends[1]))


def _at_trained_mlp(dataset: str, num_train: int, width: int, num_epochs: int) -> landscape.Hessian:
    """The Hessian of the mean cross-entropy at an MLP of two hidden layers after training."""
    split = data.load(dataset, num_train=num_train).train
    inputs, labels = jnp.asarray(split.inputs, jnp.float64), jnp.asarray(split.labels)
    net = models.create("mlp", num_classes=10, width=width, depth=2)
    start = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), net.init(jax.random.key(0), inputs[:1]))
    settings = training.Settings(num_epochs=num_epochs, batch_size=50)
    optimizer, key = training.sgd(0.05, momentum=0.9), jax.random.key(1)
    params = training.train(net, optimizer, (inputs, labels), key, settings, start=start).params
    return landscape.hessian(landscape.per_example_loss(net.apply, "cross_entropy"), params, (inputs, labels))
