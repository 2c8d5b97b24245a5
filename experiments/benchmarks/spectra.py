"""Spectra of a ResNet-18's convolutions and RankMin on the whole net, against NumPy, PyTorch and the paper's route.

``python -m experiments.benchmarks spectra [--quick] [--out FILE.json]``. Singular values of all convolutions at their true map
sizes (64 channels at 32x32 to 512 at 4x4), in float64 and float32: NumPy's full FFT and SVD, and PyTorch's rfft2 and svdvals with
the strided layers folded as ours are. RankMin with the paper's threshold and one cut: the paper's route is the full complex FFT of each
kernel at its map size, the SVD of every frequency, threshold, U S V*, inverse FFT, cut; by NumPy and, where it is installed,
by PyTorch. Ours and NumPy's values are compared first. Everyone has one BLAS thread unless ``--threads`` says otherwise.
"""

import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg  # noqa: F401  - its BLAS is what JAX calls; the limit reaches only what is loaded
import threadpoolctl

from experiments.benchmarks import harness
from experiments.benchmarks.settings import Spectra
from jaxbp import models, spectra

_THRESHOLD = 0.5  # the paper's


def run(arguments: Spectra) -> None:
    """Run all cases and print the table."""
    harness.start()
    width, runs = (16, 2) if arguments.quick else (arguments.width, arguments.runs)
    rows: list[dict[str, Any]] = []
    if harness.missing_peer("torch") is None:
        import torch

        torch.set_num_threads(arguments.threads)
    with threadpoolctl.threadpool_limits(arguments.threads):
        for dtype in ("float64", "float32"):
            with jax.enable_x64(dtype == "float64"):
                rows += spectra_case(width, dtype, runs)
        rows += rank_min_case(width, runs)
    harness.finish(rows, arguments.out)


def spectra_case(width: int, dtype: str, runs: int) -> list[dict[str, Any]]:
    """All singular values of all convolutions as circular operators."""
    fn, params, images = _network(width, dtype)
    layers = spectra.layers_of(fn, params, images, pattern=lambda layer: layer.kind == "conv")
    leaves = jax.tree.leaves(params)
    kernels = [np.asarray(leaves[layer.leaf]) for layer in layers]
    sizes = [(layer.geometry.spatial, layer.geometry.strides[0]) for layer in layers]
    compute = jax.jit(lambda p: spectra.of_network(fn, p, images, padding="circular", pattern="Conv"))

    def ours() -> list[Any]:
        found = jax.block_until_ready(compute(params))
        return [found[layer.name].values for layer in layers]

    def numpy_full() -> list[np.ndarray]:
        found = zip(kernels, sizes, strict=True)
        return [np.linalg.svd(_folded(np.fft.fft2(k, n, axes=(0, 1)), s), compute_uv=False) for k, (n, s) in found]

    peers = {"NumPy, full FFT + SVD": numpy_full}
    if harness.missing_peer("torch") is None:
        peers["PyTorch, rfft2 + svdvals"] = _torch_half(kernels, sizes)
    reference = numpy_full()
    for found, expected in zip(ours(), reference, strict=True):
        expected = np.sort(expected.ravel())[::-1]
        np.testing.assert_allclose(found, expected[: len(found)], rtol=1e-2, atol=1e-4 * expected[0])
    return _timed_rows({f"spectra of a ResNet-18, width {width}, {dtype}": ours}, peers, runs)


def rank_min_case(width: int, runs: int) -> list[dict[str, Any]]:
    """RankMin once on all convolutions but the first and the shortcuts, float32, without the report and with it."""
    fn, params, images = _network(width, "float32")
    project = spectra.rank_min(fn, params, images, threshold=_THRESHOLD)
    layers = spectra.layers_of(fn, params, images, pattern=spectra.inner_convolutions)
    leaves = jax.tree.leaves(params)
    kernels = [np.asarray(leaves[layer.leaf]) for layer in layers]
    maps = [layer.geometry.spatial for layer in layers]
    bare, reported = jax.jit(lambda p: project(p)[0]), jax.jit(project)

    def numpy_route() -> list[np.ndarray]:
        return [_paper(kernel, n) for kernel, n in zip(kernels, maps, strict=True)]

    peers = {"the paper's route, NumPy": numpy_route}
    if harness.missing_peer("torch") is None:
        peers["the paper's route, PyTorch"] = _torch_paper(kernels, maps)
    found = jax.tree.leaves(bare(params))
    for layer, expected in zip(layers, numpy_route(), strict=True):
        if max(layer.geometry.strides) == 1:  # the paper's ignores strides
            np.testing.assert_allclose(found[layer.leaf], expected, atol=1e-3 * np.abs(expected).max())
    label = f"RankMin on a ResNet-18, width {width}"
    ours = {
        label: lambda: jax.block_until_ready(bare(params)),
        label + ", with its report": lambda: jax.block_until_ready(reported(params)),
    }
    return _timed_rows(ours, peers, runs)


def _timed_rows(ours: dict[str, Callable], peers: dict[str, Callable], runs: int) -> list[dict[str, Any]]:
    """As `harness.compare`, for several cases of ours against the same peers."""
    everyone = {**ours, **peers}
    first = {name: harness.timed(fn) for name, fn in everyone.items()}
    taken: dict[str, list[float]] = {name: [] for name in everyone}
    for _ in range(runs):
        for name, fn in everyone.items():
            taken[name].append(harness.timed(fn))
    median = {name: statistics.median(seconds) for name, seconds in taken.items()}
    print({name: round(seconds, 3) for name, seconds in median.items()}, "s", flush=True)
    return [
        harness.row(
            case,
            "time",
            "s",
            median[case],
            median[peer],
            peer,
            runs=runs,
            first_ours=first[case],
            first_peer=first[peer],
        )
        for case in ours
        for peer in peers
    ]


def _network(width: int, dtype: str) -> tuple[Callable, Any, Any]:
    """(function, parameters, shape of an image) of a ResNet-18 for CIFAR-10."""
    net = models.create("resnet18", num_classes=10, width=width)
    images = jnp.zeros((1, 32, 32, 3), dtype)
    params, state = net.init(jax.random.key(0), images)
    params, state = jax.tree.map(lambda leaf: leaf.astype(dtype), (params, state))
    return lambda p, x: net.apply(p, x, state), params, images


def _folded(symbols: Any, stride: int) -> Any:
    """(n, m, inputs, outputs) of stride 1 to (n / s, m / s, s * s * inputs, outputs) of stride s; NumPy or PyTorch."""
    if stride == 1:
        return symbols
    n, m, inputs, outputs = symbols.shape
    parts = symbols.reshape(stride, n // stride, stride, m // stride, inputs, outputs)
    parts = parts.transpose(1, 3, 0, 2, 4, 5) if isinstance(parts, np.ndarray) else parts.permute(1, 3, 0, 2, 4, 5)
    return parts.reshape(n // stride, m // stride, stride * stride * inputs, outputs) / stride


def _torch_half(kernels: list[np.ndarray], sizes: list) -> Callable:
    """Half spectra; of a strided layer the half of the folded frequencies, cut out of a full transform."""
    import torch

    tensors = [torch.tensor(kernel.transpose(2, 3, 0, 1).copy()) for kernel in kernels]

    def compute() -> list[Any]:
        found = []
        for kernel, (n, stride) in zip(tensors, sizes, strict=True):
            if stride == 1:
                symbols = torch.fft.rfft2(kernel, s=n).permute(2, 3, 0, 1)
            else:
                symbols = _folded(torch.fft.fft2(kernel, s=n).permute(2, 3, 0, 1), stride)
                symbols = symbols[:, : n[1] // stride // 2 + 1]
            found.append(torch.linalg.svdvals(symbols))
        return found

    return compute


def _paper(kernel: np.ndarray, n: tuple[int, int]) -> np.ndarray:
    symbols = np.fft.fft2(kernel, n, axes=(0, 1))
    left, values, right = np.linalg.svd(symbols, full_matrices=False)
    values = np.where(values < _THRESHOLD, 0, values)
    back = np.fft.ifft2((left * values[..., None, :]) @ right, axes=(0, 1)).real
    return back[: kernel.shape[0], : kernel.shape[1]]


def _torch_paper(kernels: list[np.ndarray], maps: list[tuple[int, int]]) -> Callable:
    import torch

    tensors = [torch.tensor(kernel) for kernel in kernels]

    def compute() -> list[Any]:
        found = []
        for kernel, n in zip(tensors, maps, strict=True):
            symbols = torch.fft.fft2(kernel, s=n, dim=(0, 1))
            left, values, right = torch.linalg.svd(symbols, full_matrices=False)
            values = torch.where(values < _THRESHOLD, 0, values).to(left.dtype)
            back = torch.fft.ifft2((left * values[..., None, :]) @ right, dim=(0, 1)).real
            found.append(back[: kernel.shape[0], : kernel.shape[1]].contiguous())
        return found

    return compute
