"""The layers of a network as bounds see them, and the proof that the network is of the kind that bounds speak of.

The theorems hold for chains f = W_L phi(W_{L-1} ... phi(W_1 x)) without biases, skips or normalisation, with a positively homogeneous phi
of Lipschitz constant at most 1. `anatomy` does not trust the caller: it evaluates the network on some inputs and compares what each layer
reads with what the layer before it puts out.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxbp import checks
from jaxbp.jaxprs import linear_layers
from jaxbp.spectra.geometry import Geometry
from jaxbp.spectra.network import Layer as Operator
from jaxbp.spectra.network import layers_of
from jaxbp.spectra.spectrum import of_geometry

_NUM_CHECKED = 16  # examples on which the chain is verified
_TOLERANCE = 1e-9  # of float64, relative to the largest output
_ADVICE = "bounds speak of chains of layers with ReLU or the like between them: use a network without biases, skips, norms, max pooling"


@dataclass(frozen=True, eq=False)
class Layer:
    """One linear layer. Its nodes are the pixels of its output map; a dense layer has one.

    Attributes:
      name: the path of the parameter.
      kind: "conv" or "dense".
      geometry: the layer as an operator.
      kernel: (\\*window, inputs / groups, outputs), float64.
      num_read: nodes of the layer below that a dense layer reads.
      pooled: whether the layer reads the mean of these nodes in place of all of them.
    """

    name: str
    kind: str
    geometry: Geometry
    kernel: np.ndarray
    num_read: int
    pooled: bool

    @property
    def frobenius(self) -> float:
        """Frobenius norm of the kernel."""
        return float(np.sqrt(np.sum(self.kernel**2)))

    @property
    def operator_frobenius(self) -> float:
        """Frobenius norm of the operator, in which each weight counts as often as an output sees the map through it."""
        return float(np.sqrt(np.sum(self.kernel**2 * self.geometry.tap_counts()[..., None, None])))

    @functools.cached_property
    def values(self) -> np.ndarray:
        """Singular values of the operator, descending; upper bounds of them where the operator is too large to decompose."""
        if not np.isfinite(self.kernel).all():
            return np.full(min(self.geometry.shape), np.nan)
        if self.kind == "dense":
            return np.linalg.svd(self.kernel, compute_uv=False)
        with jax.enable_x64(True):
            return np.asarray(_upper_values(self.geometry)(jnp.asarray(self.kernel)))

    @property
    def spectral(self) -> float:
        """Spectral norm of the operator, or an upper bound of it; see `values`."""
        return float(self.values[0])

    @property
    def rank(self) -> int:
        """Rank of the operator in float64: values that rounding alone makes count as 0. Small values count as what they are."""
        if np.isnan(self.values).any():
            return len(self.values)
        return int(np.sum(self.values > max(self.geometry.shape) * np.finfo(np.float64).eps * self.values[0]))

    @property
    def in_degree(self) -> np.ndarray:
        """(\\*output_spatial) nodes of the layer below that each node reads; windows at the border of a padded map read fewer."""
        if self.kind == "dense":
            return np.asarray(float(self.num_read))
        return self._over_windows(np.ones(self.geometry.spatial), np.sum, 0.0)

    def window_sum(self, nodes: np.ndarray) -> np.ndarray:
        """From a number for each node below to the sum over each node's window: (\\*output_spatial). Pooling takes the mean."""
        if self.kind == "dense":
            return np.asarray(nodes.mean() if self.pooled else nodes.sum())
        return self._over_windows(nodes, np.sum, 0.0)

    def window_max(self, nodes: np.ndarray) -> np.ndarray:
        """From a number for each node below to the largest in each node's window: (\\*output_spatial)."""
        return np.asarray(nodes.max()) if self.kind == "dense" else self._over_windows(nodes, np.max, -np.inf)

    def _over_windows(self, nodes: np.ndarray, reduce_fn: Callable, outside: float) -> np.ndarray:
        for axis, (sight, extent) in enumerate(zip(self.geometry.sights(), self.geometry.spatial, strict=True)):
            first = np.moveaxis(nodes, axis, 0)
            padded = np.concatenate([first, np.full((1, *first.shape[1:]), outside)])
            seen = padded[np.where((sight >= 0) & (sight < extent), sight, extent)]
            nodes = np.moveaxis(reduce_fn(seen, axis=1), 0, axis)
        return nodes


@dataclass(frozen=True, eq=False)
class Anatomy:
    """A chain of linear layers, verified.

    Attributes:
      layers: from the inputs to the logits.
      input_shape: of one example.
      num_outputs: number of logits C.
    """

    layers: tuple[Layer, ...]
    input_shape: tuple[int, ...]
    num_outputs: int

    @property
    def depth(self) -> int:
        """Number of layers L."""
        return len(self.layers)

    @property
    def num_parameters(self) -> int:
        """Number of weights of all kernels."""
        return sum(layer.kernel.size for layer in self.layers)

    @property
    def log_pooling(self) -> float:
        """Logarithm of the spectral norms of the average poolings: 1 / sqrt(K) for the mean of K nodes."""
        return -0.5 * sum(math.log(layer.num_read) for layer in self.layers if layer.pooled)

    def log_norms(self, kind: str) -> float:
        """Logarithm of the product over layers of ``frobenius``, ``operator_frobenius`` or ``spectral``."""
        with np.errstate(divide="ignore"):
            return float(np.sum(np.log([getattr(layer, kind) for layer in self.layers])))

    def energies(self, inputs: Any) -> np.ndarray:
        """Squared norm of each node of the inputs (N, \\*input_shape), summed over examples: (\\*spatial); () if the first layer is dense.

        Raises:
          ValueError: inputs of another shape than those of the network.
        """
        inputs = np.asarray(checks.host_examples(inputs), np.float64)
        if inputs.shape[1:] != self.input_shape:
            raise ValueError(f"inputs must be (N, {', '.join(map(str, self.input_shape))}), as the network takes them, got {inputs.shape}")
        squares = np.sum(inputs**2, axis=0)
        return np.asarray(squares.sum()) if self.layers[0].kind == "dense" else squares.sum(-1)


def anatomy(apply_fn: Callable, params: PyTree, inputs: Any) -> Anatomy:
    """The layers of ``apply_fn(params, inputs) -> logits (N, C)``, once the network is shown to be a chain of them.

    Verified on the first inputs, in float64: each layer reads a phi of what the layer below puts out, phi(z) = a z for z > 0 and b z
    for z < 0 with \\|a\\|, \\|b\\| <= 1, or the mean of phi over all pixels (global average pooling), and the logits are what the last
    layer puts out. Parameters that are not finite are taken as 1 for this, and give bounds that are NaN.

    Args:
      apply_fn: any function, for instance a closure over a Flax model's `apply`.
      params: kernels of dense layers and convolutions, also rearranged or rescaled inside ``apply_fn`` (see `jaxbp.spectra.layers_of`).
      inputs: (N, ...) of the shape that the network was trained on.

    Raises:
      ValueError: a network that is no such chain; the message names the first layer at which the chain breaks.
    """
    checks.refuse_traced("params", *jax.tree.leaves(params))
    first = checks.host_examples(inputs)[:_NUM_CHECKED]
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), checks.parameters(params))
        leaves = jax.tree.leaves(params)
        examples = jnp.asarray(first, jnp.float64)
        _, num_outputs = checks.logits_shape(apply_fn, params, examples)
        network = linear_layers.find(apply_fn, params, examples)
        if network.others:
            paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(params)]
            raise ValueError(f"{paths[network.others[0]]} is not the weight of one linear layer: {_ADVICE}")
        operators = layers_of(apply_fn, params, examples)
        kernels = [np.asarray(operator.kernel_fn(leaves[operator.leaf])) for operator in operators]
        finite = [jnp.where(jnp.isfinite(leaf), leaf, 1.0) for leaf in leaves]
        logits, features, outputs = jax.tree.map(np.asarray, jax.jit(_evaluation(network, operators))(finite, examples))
    reads = _verified(operators, np.asarray(examples), features, outputs, logits)
    layers = tuple(
        Layer(operator.name, operator.kind, operator.geometry, kernel, *read)
        for operator, kernel, read in zip(operators, kernels, reads, strict=True)
    )
    return Anatomy(layers, examples.shape[1:], num_outputs)


@functools.lru_cache(maxsize=64)
def _upper_values(geometry: Geometry) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda kernel: of_geometry(kernel, geometry).upper)


def _evaluation(network: linear_layers.LinearLayers, operators: Sequence[Operator]) -> Callable:
    """``(leaves, inputs) -> (logits, what each layer reads, what it puts out)``, channels last."""

    def evaluate(leaves: Sequence[jax.Array], inputs: jax.Array) -> tuple[jax.Array, list[jax.Array], list[jax.Array]]:
        taps = [jnp.zeros(use.output.shape, use.output.dtype) for use in network.layers]
        logits, data = linear_layers.run_fn(network)(taps, [], leaves, [inputs])
        features, outputs = [], []
        for operator, use, read in zip(operators, network.layers, data, strict=True):
            geometry, leaf = operator.geometry, leaves[operator.leaf]
            scale = operator.kernel_fn(jnp.ones_like(leaf)).ravel()[0]  # it multiplies the data, see run_fn
            features.append(_features(use, read / scale))
            if features[-1].size != len(inputs) * geometry.shape[1]:
                raise ValueError(f"{operator.name} is applied at every position: write it as a convolution with a 1 x 1 window")
            maps = features[-1].reshape(len(inputs), *geometry.spatial, geometry.inputs)
            outputs.append(jax.vmap(geometry.apply, (None, 0))(operator.kernel_fn(leaf), maps))
        return logits, features, outputs

    return evaluate


def _verified(
    operators: Sequence[Operator], inputs: np.ndarray, features: Sequence[np.ndarray], outputs: Sequence[np.ndarray], logits: np.ndarray
) -> list[tuple[int, bool]]:
    """For each layer the number of nodes that it reads, and whether it reads their mean; ValueError where the chain breaks."""
    before, reads = inputs, []
    for index, (operator, read, output) in enumerate(zip(operators, features, outputs, strict=True)):
        if operator.geometry.groups > 1 and operator.kind == "dense":
            raise ValueError(f"{operator.name} multiplies groups of channels, which a bound does not know: {_ADVICE}")
        if index == 0 and (read.size != before.size or np.abs(read.ravel() - before.ravel()).max() > _TOLERANCE):
            raise ValueError(f"{operator.name}, the first layer, does not read the inputs as they are: {_ADVICE}")
        pooled = index > 0 and before.ndim > 2 and read.shape == (len(inputs), before.shape[-1]) and before.size > read.size
        if index and not _is_activation(before, read, pooled=pooled):
            raise ValueError(f"{operator.name} does not read an activation of what {operators[index - 1].name} puts out: {_ADVICE}")
        reads.append((math.prod(before.shape[1:-1]) if operator.kind == "dense" else math.prod(operator.geometry.window), pooled))
        before = output
    if before.size != logits.size or np.abs(before.ravel() - logits.ravel()).max() > _TOLERANCE * np.abs(before).max():
        raise ValueError(f"the logits are not what {operators[-1].name}, the last layer, puts out: {_ADVICE}")
    return reads


def _features(use: linear_layers.WeightUse, data: jax.Array) -> jax.Array:
    """What a layer reads, channels last."""
    if isinstance(use.geometry, linear_layers.Convolution):
        batch, channels, *space = use.geometry.data_spec
        if max(use.geometry.data_dilation, default=1) > 1:
            raise ValueError(f"a transposed convolution is no layer of a chain: {_ADVICE}")
        return data.transpose(batch, *space, channels)
    return data


def _is_activation(before: np.ndarray, features: np.ndarray, *, pooled: bool) -> bool:
    """Whether ``features`` are a phi of ``before``, see `anatomy`, or its mean over pixels."""
    if not pooled and before.size != features.size:
        return False
    parts = np.stack([np.maximum(before, 0), np.minimum(before, 0)], axis=-1)
    if pooled:
        parts = parts.mean(axis=tuple(range(1, before.ndim - 1)))
    parts, features = parts.reshape(-1, 2), features.ravel()
    slopes = np.linalg.lstsq(parts, features, rcond=None)[0]
    close = np.abs(parts @ slopes - features).max() <= _TOLERANCE * max(np.abs(before).max(), 1e-300)
    return bool(close and np.abs(slopes).max() <= 1 + _TOLERANCE)
