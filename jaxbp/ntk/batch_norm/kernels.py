"""Kernels of whole batches of examples, by propagation through an infinitely wide network, with what their layers report."""

import dataclasses
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxbp import checks
from jaxbp.ntk.batch_norm import networks
from jaxbp.ntk.batch_norm.layers import COUPLED
from jaxbp.ntk.empirical import InsufficientMemoryError
from jaxbp.ops import dtypes

KERNELS = ("ntk", "nngp")
MEMORY = 4 * 2**30

_MATRICES = {True: 28, False: 14}  # (D, D), held at once, with and without tangent kernels, as the compiler reports
_CHANNEL_MAPS = 5  # (channels, D), held at once, beside one a block of a stage


class Report(NamedTuple):
    """Both kernels of a batch, and how far to trust them; arrays are float64.

    Attributes:
      nngp, ntk: (N, N), of one logit; logits are independent and alike.
      quadrature_error: largest estimate of a layer, relative; very generous, about the root of the error.
      tail: largest of a layer: (tr S)^2 E[1 / r^4] of the norm r of a normalised channel, 1 if it does not fluctuate. The variance of a
        finite network's kernel goes like tail / width.
      sampling_error: of both kernels the larger, relative in the Frobenius norm: half the distance of two independent samples of
        channels, whose mean the kernels are; 0 where all sums have closed forms.
    """

    nngp: Float[np.ndarray, "N N"]
    ntk: Float[np.ndarray, "N N"]
    quadrature_error: float
    tail: float
    sampling_error: float


@dataclasses.dataclass(frozen=True)
class PropagatedKernel:
    """Exact kernels of one logit of an infinitely wide network; see `jaxbp.ntk.infinite_width.infinite_width_kernel`.

    Attributes:
      net: the finite network.
      input_shape: of one example, (H, W, C).
      statistics: of BatchNorm: "batch", "frozen", "stored"; None for a network without.
      channels, key: drawn for sums without a closed form; None if there are none.
      memory: bytes that may be held at once.
    """

    net: nn.Module
    input_shape: tuple[int, ...]
    statistics: str | None
    channels: int | None
    key: jax.Array | None
    memory: float = MEMORY

    def __call__(self, x1: ArrayLike, x2: ArrayLike | None = None, get: str = "ntk") -> Float[np.ndarray, "N M"]:
        """The kernel ``get`` of examples (N, ...) and (M, ...), default the same: (N, M), float64.

        Raises:
          ValueError: inputs of another shape, an unknown ``get``, or ``x2`` where the statistics are those of a batch.
          InsufficientMemoryError, DegenerateBatchError, InaccurateQuadratureError: see `jaxbp.ntk.batch_norm`.
        """
        if get not in KERNELS:
            raise ValueError(f"get must be one of {KERNELS}, got {get!r}")
        if x2 is None:
            return self._estimate(self._checked(x1), tangent=get == "ntk")[0][get]
        if self.statistics in COUPLED:
            raise ValueError(
                f"{self.statistics} statistics couple all examples of a batch: give them all as x1, and cut the blocks out of the kernel"
            )
        first, second = self._checked(x1), self._checked(x2)
        kernel = self._estimate(np.concatenate([first, second]), tangent=get == "ntk")[0][get]
        return kernel[: len(first), len(first) :]

    def report(self, inputs: ArrayLike) -> Report:
        """Both kernels of a batch (N, ...), (N, N), with estimates of their errors."""
        kernels, reports, error = self._estimate(self._checked(inputs), tangent=True)
        errors, tails = zip(*reports, strict=True)
        return Report(kernels["nngp"], kernels["ntk"], max(errors), max(tails), error)

    def _estimate(self, images: np.ndarray, *, tangent: bool) -> tuple[dict[str, np.ndarray], list[tuple[float, float]], float]:
        """Kernels, (error, tail) of the layers, and the sampling error: of one pass, or of the mean of two with keys of their own."""
        self._check_memory(len(images), tangent)
        keys = [None] if self.key is None or self.channels is None else list(jax.random.split(self.key))
        passes = [self._propagated(images, key, tangent) for key in keys]
        kernels = {name: np.mean([result[name] for result, _ in passes], 0) for name in passes[0][0]}
        errors = [
            np.linalg.norm(passes[0][0][name] - passes[-1][0][name]) / (2 * np.linalg.norm(kernel)) for name, kernel in kernels.items()
        ]
        return kernels, passes[0][1], float(max(errors))

    def _propagated(self, images: np.ndarray, key: jax.Array | None, tangent: bool) -> tuple[dict[str, np.ndarray], list]:
        walk = networks.Propagation(self.net.parametrisation, self.statistics, tangent=tangent, key=key, channels=self.channels)
        logits = networks.propagate(walk, self.net, images)
        kernels = {"nngp": logits.covariance} | ({"ntk": logits.tangent} if tangent else {})
        return {name: np.asarray(kernel).reshape(len(images), len(images)) for name, kernel in kernels.items()}, walk.reports

    def _checked(self, inputs: ArrayLike) -> np.ndarray:
        if isinstance(inputs, jax.core.Tracer):
            raise ValueError("this kernel is decomposed on the host, layer by layer: call it outside of jax.jit and other transformations")
        with dtypes.float64():
            images = np.asarray(checks.examples(inputs), np.float64)
        if images.shape[1:] != self.input_shape:
            raise ValueError(f"this kernel takes inputs of shape (N, {', '.join(map(str, self.input_shape))}), got {images.shape}")
        return images

    def _check_memory(self, num_examples: int, tangent: bool) -> None:
        size = num_examples * math.prod(self.input_shape[:2])
        held = _MATRICES[tangent] * size**2
        if self.channels is not None:
            held += (max(self.net.stage_sizes) + _CHANNEL_MAPS) * self.channels * size
        if 8 * held > self.memory:
            raise InsufficientMemoryError(
                f"{num_examples} examples of {math.prod(self.input_shape[:2])} pixels take about {8 * held / 2**30:.3g} GiB, which memory="
                f"{self.memory / 2**30:.3g} GiB does not allow: give fewer examples or channels, or allow more memory"
            )
