"""Build a deep ReLU network that computes a shallow minimiser exactly, with every added ReLU strictly active.

Lemma 1 of "Truth or Backpropaganda?" (Goldblum et al., ICLR 2020): an affine map of rank s passes unchanged through hidden layers of
width s or more, if the singular value decomposition of its kernel is divided among the layers and every bias is so large that no
pre-activation is below ``margin`` on any training input. By Theorem 1 a minimum of the affine map then is a local minimum of the deep
network.

Convolutions before the dense layers carry the image: each output channel copies one input channel at one offset, so a strided convolution
with enough channels loses no pixel. Operations that lose pixels (pooling, too few channels) lead to logits that differ from the affine
map, and the network is refused. Surplus units get no weight and a bias of ``margin``; with a ``key`` a random rotation spreads the map over
all units of a layer.

>>> import flax.linen as nn
>>> import jax, jax.numpy as jnp, numpy as np
>>> from jaxbp import landscape
>>> rng = np.random.default_rng(0)
>>> x, y = rng.normal(size=(200, 5)), rng.integers(0, 3, 200)
>>> fit = landscape.fit_affine(x, y, 3, loss="cross_entropy")
>>> net = nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(3)])
>>> params = landscape.embed_affine(net, fit, x)  # in float64: use them with 64-bit types enabled
>>> with jax.enable_x64(True):
...     logits = np.asarray(net.apply({"params": params}, x))
>>> bool(np.abs(logits - (x @ fit.kernel + fit.bias)).max() < 1e-12)
True
"""

from collections.abc import Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num, PyTree

from jaxbp import stats
from jaxbp.landscape.activation import UnsupportedOperationError, analyse
from jaxbp.landscape.affine import AffineFit

AffineLayer = tuple[Float[np.ndarray, "_ _"], Float[np.ndarray, " _"]]  # kernel (fan_in, fan_out), bias (fan_out,)


class NotRepresentableError(ValueError):
    """The network cannot compute the shallow map with all ReLUs active."""


def embed_affine(
    module: nn.Module,
    fit: AffineFit,
    inputs: Num[jax.Array | np.ndarray, "n ..."],
    *,
    key: jax.Array | None = None,
    margin: float = 1.0,
) -> PyTree:
    """Parameters with which ``module`` computes ``inputs (N, ...) -> flat inputs @ fit.kernel + fit.bias``.

    The parameters are float64, whatever the module's ``param_dtype`` and the caller's precision mode; apply them with 64-bit types
    enabled.

    Args:
      module: a linen network without normalisation: convolutions (`nn.Conv`), ReLUs, residual sums, then a chain of one or
        more `nn.Dense`, of which the last gives the logits. Layers may rescale their kernels (the NTK parametrisation).
      fit: the affine map; dense layers must be at least as wide as its rank.
      inputs: all training inputs, (N, ...); every ReLU will be active on them.
      key: rotates the hidden layers at random; None gives the factors of the decomposition, with idle surplus units.
      margin: smallest pre-activation of every hidden layer over ``inputs``.

    Raises:
      NotRepresentableError: for a dense layer narrower than the rank, an image that loses pixels before the dense layers, a ReLU that
        no bias can keep active, or another operation than those above.
      ValueError: for a margin that is not positive.
    """
    inputs = _checked_inputs(inputs)
    with jax.enable_x64(True):
        inputs = jnp.asarray(inputs)
        if inputs[0].size != fit.kernel.shape[0]:
            raise ValueError(f"inputs must have the {fit.kernel.shape[0]} entries an example that the fit has, got shape {inputs.shape}")
        variables = jax.eval_shape(module.init, jax.random.key(0), inputs[:1])
        if extra := sorted(set(variables) - {"params"}):
            raise NotRepresentableError(f"the network has state beside its parameters ({', '.join(extra)}): use it without normalisation")
        params = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float64), variables["params"])
        builder = _Builder(module, fit, inputs, key, margin)
        with nn.intercept_methods(builder.intercept):
            module.apply({"params": params}, inputs)
        params = builder.merged(params)
        _verify(module, params, inputs, builder.logits)
    return params


def _checked_inputs(inputs: Any) -> np.ndarray:
    """Finite inputs (N, ...) in float64, N >= 1."""
    array = stats.numbers(inputs, "inputs")
    if array.ndim < 2 or not array.size or not np.isfinite(array).all():
        raise ValueError(f"inputs must be finite numbers (N, ...) with the examples first, got shape {array.shape}")
    return array


def _verify(module: nn.Module, params: Any, inputs: jax.Array, expected: np.ndarray) -> None:
    """Raise NotRepresentableError if a ReLU is inactive or the logits differ from the affine map's."""

    def apply_fn(params: Any, inputs: jax.Array) -> jax.Array:
        return cast(jax.Array, module.apply({"params": params}, inputs))

    try:
        report = analyse(apply_fn, params, inputs)
    except UnsupportedOperationError as error:
        raise NotRepresentableError(f"the network is not affine between its ReLUs: {error}") from error
    if not report.all_active:
        raise NotRepresentableError(
            f"only {report.active_share:.1%} of the ReLUs are active: some act on the image itself, or on a sum with it, before any bias"
        )
    logits = apply_fn(params, inputs)
    gap = float(jnp.abs(logits - expected).max() / (1 + jnp.abs(expected).max()))
    if logits.dtype != jnp.float64 or not gap < 1e-10:
        raise NotRepresentableError(
            f"the network's logits ({logits.dtype}) differ from the affine map's by {gap:.1g} (relative): the image does not reach "
            "the dense layers whole. Convolutions need at least (product of strides) x input channels, kernels as wide as their "
            "strides, padding SAME, no pooling between, and no dtype of their own"
        )


def embed_mlp(
    layers: Sequence[AffineLayer],
    widths: Sequence[int],
    inputs: Num[jax.Array | np.ndarray, "n d"],
    *,
    key: jax.Array | None = None,
    margin: float = 1.0,
) -> list[AffineLayer]:
    """A deeper or wider ReLU MLP that computes what the MLP of ``layers`` computes on ``inputs`` (N, d).

    The first hidden layers keep the units of the shallow network. The added layers carry its last, affine layer, strictly active
    (Theorem 1, applied from the last hidden layer on).

    Args:
      layers: (kernel, bias) of the shallow network's layers.
      widths: hidden widths of the new network.
      inputs: (N, d) training inputs.
      key, margin: as in `embed_affine`.

    Returns:
      len(widths) + 1 layers (kernel, bias), float64.

    Raises:
      NotRepresentableError: for fewer or narrower hidden layers than the shallow network has, or for added layers narrower than the rank
        of its last layer.
      ValueError: for a margin that is not positive.
    """
    _check_margin(margin)
    old_widths = [kernel.shape[1] for kernel, _ in layers[:-1]]
    if len(widths) < len(old_widths) or any(new < old for new, old in zip(widths, old_widths, strict=False)):
        raise NotRepresentableError(f"hidden widths {list(widths)} cannot hold an MLP of hidden widths {old_widths}")
    features, new_layers = _checked_inputs(inputs), []
    if features.ndim != 2 or features.shape[1] != layers[0][0].shape[0]:
        raise ValueError(f"inputs must be (N, {layers[0][0].shape[0]}) for the first layer, got shape {features.shape}")
    layers = [(np.asarray(kernel, np.float64), np.asarray(bias, np.float64)) for kernel, bias in layers]
    for (kernel, bias), width in zip(layers[:-1], widths, strict=False):
        wide = np.zeros((features.shape[1], width))
        wide[: kernel.shape[0], : kernel.shape[1]] = kernel
        bias = np.concatenate([bias, np.full(width - len(bias), margin)])
        new_layers.append((wide, bias))
        features = np.maximum(features @ wide + bias, 0)
    kernel, bias = layers[-1]
    head = np.zeros((features.shape[1], kernel.shape[1]))
    head[: kernel.shape[0]] = kernel
    return new_layers + _dense_chain(head, bias, list(widths[len(old_widths) :]), features, key, margin)


def _check_margin(margin: float) -> None:
    if not margin > 0:
        raise ValueError(f"margin must be positive, or units would sit at their kink, got {margin}")


def _dense_chain(
    kernel: np.ndarray, bias: np.ndarray, widths: list[int], inputs: np.ndarray, key: jax.Array | None, margin: float
) -> list[AffineLayer]:
    """Lemma 1: the affine map (kernel, bias) as len(widths) + 1 dense layers, active on ``inputs`` (N, d)."""
    left, singular, right = np.linalg.svd(kernel, full_matrices=False)
    rank = int((singular > 1e-12 * max(singular.max(), 1e-300)).sum())
    if widths and min(widths) < rank:
        raise NotRepresentableError(f"a hidden layer of width {min(widths)} cannot carry a map of rank {rank}: widen it to {rank} or more")
    left, right = left[:, :rank], right[:rank]
    share = np.diag(singular[:rank] ** (1 / (len(widths) + 1)))
    keys = [None] * len(widths) if key is None else jax.random.split(key, max(len(widths), 1))
    layers, features, carried = [], inputs, left
    offset = np.zeros(rank)  # of the carried coordinates, by the biases of the earlier layers
    for width, layer_key in zip(widths, keys, strict=False):
        rotation = _orthonormal(width, rank, layer_key)
        weights = carried @ share @ rotation.T
        pre = features @ weights
        shift = margin - pre.min(0)
        layers.append((weights, shift))
        features, carried = pre + shift, rotation
        offset = offset @ share + shift @ rotation
    layers.append((carried @ share @ right, bias - offset @ share @ right))
    return layers


def _orthonormal(rows: int, columns: int, key: jax.Array | None) -> np.ndarray:
    if key is None:
        return np.eye(rows, columns)
    normal = jax.random.normal(key, (rows, columns), jnp.float32)  # orthonormal in float64, whatever the mode
    return np.linalg.qr(np.asarray(normal, np.float64))[0]


class _Builder:
    """Choose each layer's parameters when the forward pass reaches the layer, from the features that arrive there."""

    def __init__(self, module: nn.Module, fit: AffineFit, inputs: jax.Array, key: jax.Array | None, margin: float):
        _check_margin(margin)
        self.fit, self.key, self.margin = fit, key, margin
        self.inputs = np.asarray(inputs, np.float64).reshape(len(inputs), -1)
        self.logits = self.inputs @ fit.kernel + fit.bias
        self.params_of: dict[tuple[str, ...], dict[str, jax.Array]] = {}
        self.dense_widths = _dense_widths(module, inputs[:1])
        self.dense_layers: list[AffineLayer] | None = None
        self.applying = False  # True while a layer's own call, which is intercepted again, must pass

    def intercept(self, next_fn: Any, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        layer = context.module
        if self.applying or context.method_name != "__call__" or not isinstance(layer, nn.Dense | nn.Conv):
            return next_fn(*args, **kwargs)
        if not layer.use_bias:
            raise NotRepresentableError(f"layer {'/'.join(layer.path)} has no bias, so its ReLUs cannot be kept active")
        features = args[0]
        if isinstance(layer, nn.Conv):
            params = self._carry(layer, features)
        else:
            params = self._next_dense(layer, np.asarray(features))
        self.params_of[layer.path] = params
        return self._apply(layer, params, features)

    def _apply(self, layer: nn.Module, params: dict[str, jax.Array], features: jax.Array) -> jax.Array:
        self.applying = True
        try:
            return cast(jax.Array, layer.clone(parent=None, name=None).apply({"params": params}, features))
        finally:
            self.applying = False

    def _gain(self, layer: nn.Module, kernel: np.ndarray, features: Any) -> float:
        """The factor by which the layer multiplies its kernel, 1 in the standard parametrisation; ``kernel`` copies inputs to outputs."""
        params = {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(kernel.shape[-1])}
        return float(np.max(self._apply(layer, params, jnp.ones(features.shape)))) or 1.0  # 1 if the kernel copies no input

    def _next_dense(self, layer: nn.Dense, features: np.ndarray) -> dict[str, jax.Array]:
        if features.ndim != 2:
            raise NotRepresentableError(
                f"layer {'/'.join(layer.path)} acts on features of shape {features.shape}: only flat ones are handled"
            )
        if self.dense_layers is None:
            kernel, bias = self._head(features)
            self.dense_layers = _dense_chain(kernel, bias, self.dense_widths[:-1], features, self.key, self.margin)
        kernel, bias = self.dense_layers.pop(0)
        gain = self._gain(layer, np.eye(*kernel.shape), features)
        return {"kernel": jnp.asarray(kernel / gain), "bias": jnp.asarray(bias)}

    def _head(self, features: np.ndarray) -> AffineLayer:
        """The affine map from the features that reach the first dense layer to the logits."""
        if features.shape == self.inputs.shape and np.array_equal(features, self.inputs):
            return self.fit.kernel, self.fit.bias
        mean = features.mean(0)
        kernel = np.linalg.lstsq(features - mean, self.logits - self.logits.mean(0), rcond=1e-12)[0]
        return kernel, self.logits.mean(0) - mean @ kernel

    def _carry(self, layer: nn.Conv, features: jax.Array) -> dict[str, jax.Array]:
        kernel = _copying_kernel(layer, np.asarray(features))
        kernel /= self._gain(layer, kernel, features)
        params = {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(layer.features)}
        carried = np.asarray(self._apply(layer, params, features))
        return {**params, "bias": jnp.asarray(self.margin - carried.min(tuple(range(carried.ndim - 1))))}

    def merged(self, params: Any) -> Any:
        """The module's parameter tree with the parameters of the built layers in place."""
        for path, layer_params in self.params_of.items():
            node = params
            for name in path[:-1]:
                node = node[name]
            node[path[-1]] = layer_params
        return params


def _dense_widths(module: nn.Module, example: jax.Array) -> list[int]:
    widths: list[int] = []

    def record(next_fn: Any, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        if context.method_name == "__call__" and isinstance(context.module, nn.Dense):
            widths.append(context.module.features)
        return next_fn(*args, **kwargs)

    with nn.intercept_methods(record):  # a fresh function, since a trace from JAX's cache would skip the interceptor
        jax.eval_shape(lambda *arguments: module.init(*arguments), jax.random.key(0), example)
    if not widths:
        raise NotRepresentableError("the network has no nn.Dense layer to give the logits")
    return widths


def _copying_kernel(layer: nn.Conv, features: np.ndarray) -> np.ndarray:
    """A kernel whose output channels copy (offset, input channel) pairs, as many as channels and window allow."""
    if layer.feature_group_count != 1:
        raise NotRepresentableError(f"layer {'/'.join(layer.path)} is a grouped convolution, which cannot carry the image")
    window = (layer.kernel_size,) if isinstance(layer.kernel_size, int) else tuple(layer.kernel_size)
    strides, dilation = (_per_axis(v, len(window)) for v in (layer.strides, layer.kernel_dilation))
    reach = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
    padding = _leading_padding(layer, features.shape[1:-1], reach, strides)
    varying = np.flatnonzero(np.ptp(features, axis=tuple(range(features.ndim - 1))) > 0)
    kernel = np.zeros((*window, features.shape[-1], layer.features))
    for out, (*offset, channel) in enumerate(np.ndindex(*strides, varying.size)):
        place = [p + o for p, o in zip(padding, offset, strict=True)]  # position in the window of the pixel to copy
        if out < layer.features and all(p < r for p, r in zip(place, reach, strict=True)):
            tap = tuple(p // d for p, d in zip(place, dilation, strict=True))
            kernel[(*tap, varying[channel], out)] = 1.0
    return kernel


def _per_axis(value: Any, rank: int) -> tuple[int, ...]:
    return (value or 1,) * rank if value is None or isinstance(value, int) else tuple(value)


def _leading_padding(layer: nn.Conv, sizes: tuple[int, ...], reach: list[int], strides: tuple[int, ...]) -> list[int]:
    """Number of zeros before the first pixel of each axis."""
    if isinstance(layer.padding, str):
        if layer.padding not in ("SAME", "SAME_LOWER", "VALID"):
            raise NotRepresentableError(f"layer {'/'.join(layer.path)} has padding {layer.padding!r}: use SAME")
        return [int(low) for low, _ in jax.lax.padtype_to_pads(sizes, reach, strides, layer.padding)]
    if isinstance(layer.padding, int):
        return [layer.padding] * len(sizes)
    return [low if isinstance(low, int) else low[0] for low in layer.padding]
