"""Exact infinite-width kernels with BatchNorm: time and memory of a layer over its size, against NumPy and against sampled channels.

``python -m experiments.benchmarks batch_norm_kernel [--quick] [--out FILE.json]``. The layers are stem and first convolution of a
ResNet on digits (N images of 8x8: D = 64 N numbers a channel). Peers: the same quadrature written plainly in NumPy, full matrices and all
eigenvectors at every node; and the mean over M sampled channels, with the M at which its NNGP and tangent kernel are as far from the exact
ones as stated. Growth exponents of our time over D. Nothing else computes these kernels of convolutional networks.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.benchmarks import harness
from experiments.benchmarks.settings import BatchNormKernel
from jaxbp import data, models
from jaxbp.ntk import batch_norm
from jaxbp.ntk.batch_norm import maps, networks, quadrature
from jaxbp.ops import dtypes

_NUM_NODES = 25
_CHANNELS = 2**13  # of the sampling peer
_EPSILON = 1e-5


def run(arguments: BatchNormKernel) -> None:
    """Run all cases and print the table."""
    harness.start()
    sizes = [128, 192] if arguments.quick else [size for size in (320, 640, 960, 1600, 3200, 6400) if size <= arguments.largest]
    runs = 2 if arguments.quick else arguments.runs
    rows: list[dict[str, Any]] = []
    for size in sizes:
        rows += one_layer(size, runs, compared=size <= 640)
    rows.append(growth(sizes))
    harness.finish(rows, arguments.out)


def second_layer(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Covariance and tangent kernel of the pre-activations after a stem, (D, D), for D / 64 images of digits; full rank."""
    images = np.asarray(data.load("digits", num_train=200).train.inputs[: size // 64], float)
    net = models.ResNet(10, 64, (1,), skip=False, parametrisation="ntk")
    walk = networks.Propagation("ntk", "batch")
    with dtypes.float64():
        stem = walk.activate(walk.convolve(maps.of_images(images), net.width))
        covariance, tangent = walk.convolve(stem, net.width).flat
        return np.asarray(covariance), np.asarray(tangent)


def one_layer(size: int, runs: int, *, compared: bool) -> list[dict[str, Any]]:
    """Time of BatchNorm and ReLU; the peers where they are affordable, after a check that all agree."""
    covariance, tangent = second_layer(size)
    ours = _ours(covariance, tangent)
    if not compared:
        first, seconds = harness.timed(ours), [harness.timed(ours) for _ in range(runs)]
        print(f"D = {size}: first call {first:.3g} s, then {np.median(seconds):.3g} s")
        return [harness.row(f"BatchNorm layer, D = {size}", "time", "s", float(np.median(seconds)), float("nan"), "none", runs=runs)]
    exact = ours()
    plain = in_numpy(covariance, tangent)
    assert max(_distance(a, b) for a, b in zip(plain, exact, strict=True)) < 1e-6
    sampled = _sampled(covariance, tangent)
    errors = [_distance(a, b) for a, b in zip(sampled(), exact, strict=True)]
    peers: dict[str, Callable[[], Any]] = {
        "NumPy, full matrices": lambda: in_numpy(covariance, tangent),
        f"{_CHANNELS} sampled channels (off by {100 * errors[0]:.1g} %, {100 * errors[1]:.1g} %)": sampled,
    }
    return harness.compare(f"BatchNorm layer, D = {size}", ours, peers, num_runs=runs)


def growth(sizes: list[int]) -> dict[str, Any]:
    """Exponent of our time over D, by least squares on logarithms."""
    seconds = []
    for size in sizes:
        ours = _ours(*second_layer(size))
        ours()
        seconds.append(min(harness.timed(ours) for _ in range(3)))
    slope = float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
    print(
        "time over D: "
        + ", ".join(f"{size}: {taken:.3g} s" for size, taken in zip(sizes, seconds, strict=True))
        + f"; exponent {slope:.2f}"
    )
    return harness.row("growth over D", "exponent", "", slope, 3.0, "cubic", runs=3)


def _ours(covariance: np.ndarray, tangent: np.ndarray) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    def compute() -> tuple[np.ndarray, np.ndarray]:
        layer = jax.block_until_ready(batch_norm.batch_norm_relu(covariance, tangent, epsilon=_EPSILON, num_nodes=_NUM_NODES))
        return np.asarray(layer.covariance), np.asarray(layer.tangent)

    return compute


def _sampled(covariance: np.ndarray, tangent: np.ndarray) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    def compute() -> tuple[np.ndarray, np.ndarray]:
        branch = batch_norm.Branch(covariance, tangent)
        layer, _ = jax.block_until_ready(batch_norm.sampled_sum_relu(jax.random.key(0), [branch], channels=_CHANNELS, epsilon=_EPSILON))
        return np.asarray(layer.covariance), np.asarray(layer.tangent)

    return compute


def _distance(kernel: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(kernel - exact) / np.linalg.norm(exact))


def in_numpy(covariance: np.ndarray, tangent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Covariance and tangent kernel of activations, node by node, with the library's rule and nothing else of it."""
    size = len(covariance)
    centre = np.eye(size) - 1 / size
    spread, derivative = centre @ covariance @ centre, centre @ tangent @ centre
    values, vectors = np.linalg.eigh(spread)
    rule = quadrature.nodes(np.maximum(values, 0), size * _EPSILON, _NUM_NODES)
    products, gated = np.zeros_like(spread), np.zeros_like(spread)
    for s, weight in zip(rule.values, rule.weights, strict=True):
        c = (vectors * (values / (1 + 2 * s * values))) @ vectors.T
        tc = derivative @ c
        ctc, variances = c @ tc, np.diagonal(c)
        edges = (s**2 / 2 * np.diagonal(ctc) - s * np.diagonal(tc)) / variances
        density, step, relu = _moments(c)
        products += weight * relu
        gated += weight * ((derivative - s * (tc + tc.T) + s**2 * ctc) * step + np.add.outer(edges, edges) * density)
        gated += weight * s**2 / 2 * np.trace(tc) * relu
    return size * products, size * (gated + products) + _moments(spread)[1]


def _moments(c: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """d, E[step step], E[relu relu] of N(0, C)."""
    variances = np.diagonal(c)
    root = np.sqrt(np.maximum(np.outer(variances, variances) - c * c, 0))
    np.fill_diagonal(root, 0.0)
    step = 0.5 - np.arctan2(root, c) / (2 * np.pi)
    return root / (2 * np.pi), step, root / (2 * np.pi) + c * step
