"""The linear layers of a network as operators, at the map sizes that occur in the network, and the spectra of all layers.

`jaxbp.jaxprs.weight_uses` traces the function and finds each place where a kernel multiplies data, with window, strides, padding,
dilation, groups and the extents of the map, in any Flax model or plain function. The kernel may be a parameter, rearranged or scaled (the
NTK parametrisation), a slice of a stack, or a function of several parameters (weight normalisation, masks): the spectrum is that of the
effective operator, on the map before padding. A parameter that multiplies data in a way that cannot be followed is an error, unless a
pattern leaves it out. Layers of equal geometry are stacked and decomposed together.

>>> import jax, jax.numpy as jnp
>>> from jax import lax
>>> from jaxbp import spectra
>>> def net(params, images):
...     labels = ("NHWC", "HWIO", "NHWC")
...     maps = lax.conv_general_dilated(images, params["first"], (1, 1), "SAME", dimension_numbers=labels)
...     maps = lax.conv_general_dilated(maps, params["second"], (2, 2), "SAME", dimension_numbers=labels)
...     return maps.mean((1, 2)) @ params["head"]
>>> params = {"first": jnp.ones((3, 3, 3, 8)), "second": jnp.ones((3, 3, 8, 16)), "head": jnp.ones((16, 10))}
>>> layers = spectra.layers_of(net, params, jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
>>> [(layer.name, layer.kind, layer.geometry.spatial, layer.geometry.strides) for layer in layers]
[('first', 'conv', (32, 32), (1, 1)), ('second', 'conv', (32, 32), (2, 2)), ('head', 'dense', (), ())]
"""

import collections
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxbp.jaxprs import expressions, products, weight_uses
from jaxbp.spectra.geometry import Geometry
from jaxbp.spectra.spectrum import Spectrum, of_geometry

KINDS = ("conv", "dense")


@dataclass(frozen=True)
class Layer:
    """One linear layer of a network.

    Attributes:
      name: path of the parameter, joined by "/"; "...[2]" for the third kernel of a stack, "a + b" for a kernel of several parameters with
        two or more axes; a further use of the same parameter as another operator is "... (use 2)".
      kind: "conv" or "dense".
      geometry: the layer as an operator.
      leaf: index of the first parameter of ``leaves``.
      first: whether the layer is the first of its kind.
      shortcut: whether the layer is a convolution that reads the same map as another convolution, with a smaller window, or with an equal
        window and more outputs.
      kernel_fn: from the parameters ``leaves`` to the kernel (\\*window, inputs / groups, outputs) of the geometry.
      leaves: indices of the parameters of the kernel among the leaves of the parameters, the ones with most entries first.
      part: where the kernel is one parameter, or a slice of a stack, rearranged and multiplied by a number: the indices of the slice along
        the leading axes; None for a kernel that is another function of its parameters.
    """

    name: str
    kind: str
    geometry: Geometry
    leaf: int
    first: bool
    shortcut: bool
    kernel_fn: Callable[..., jax.Array]
    leaves: tuple[int, ...] = ()
    part: tuple[int, ...] | None = ()

    def kernel(self, leaves: Sequence[jax.Array]) -> jax.Array:
        """The kernel for all ``leaves`` of the network's parameters."""
        return self.kernel_fn(*(leaves[index] for index in self.leaves))

    def changed(self, parameter: jax.Array, change: jax.Array) -> jax.Array:
        """The parameter whose kernel is the kernel of ``parameter`` plus ``change``; for a ``part`` that is not None."""
        kernel, pullback = jax.vjp(self.kernel_fn, parameter)
        (pulled_back,) = pullback(change.astype(kernel.dtype))
        # kernel_fn picks entries and multiplies them by a number, so its adjoint is scale^2 times its inverse.
        (squared_scale,) = pullback(self.kernel_fn(jnp.ones_like(parameter)))
        return parameter + pulled_back / jnp.where(squared_scale == 0, 1, squared_scale)


Pattern = str | Callable[[Layer], bool] | None


def _shape_of(path: tuple, leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an array of (params, inputs)."""
    if not hasattr(leaf, "shape") and not isinstance(leaf, bool | int | float | complex):
        place = jax.tree_util.keystr(path)
        raise ValueError(f"params and inputs must be arrays, got {type(leaf).__name__} at {place} of (params, inputs)")
    shape = jnp.shape(leaf)
    if 0 in shape:
        raise ValueError(f"params and inputs must hold numbers, got shape {shape} at {jax.tree_util.keystr(path)} of (params, inputs)")
    return jax.ShapeDtypeStruct(shape, jnp.result_type(leaf))


def layers_of(fn: Callable, params: PyTree, inputs: PyTree, *, pattern: Pattern = None) -> tuple[Layer, ...]:
    """The linear layers of ``fn(params, inputs)`` in the order of their use.

    Args:
      fn: any function, for instance a closure over a Flax model's `apply` and state; it may return anything.
      params, inputs: arrays or `jax.ShapeDtypeStruct` of one network, not of a stack of seeds; only shapes matter.
      pattern: a regular expression that is searched in the names, or a function of a `Layer`; None selects all layers.

    Raises:
      ValueError: if no layer fits the pattern, or if the pattern fits a parameter of two or more axes that multiplies data and is no fixed
        operator: it is multiplied by a number known only at run time, picked by the inputs, multiplies data entry by entry, enters an
        operation that is not followed, or belongs to a layer with both strides and input dilation. A function of a `Layer` is asked with
        a stand-in that has the parameter's name and shape.
    """
    shapes = jax.tree_util.tree_map_with_path(_shape_of, (params, inputs))
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(shapes[0])]
    reading, parameters = weight_uses.read(fn, *shapes), jax.tree.leaves(shapes[0])
    readers: dict[int, list[_Reader]] = collections.defaultdict(list)
    for use in reading.uses:
        if isinstance(use.geometry, products.Convolution):
            readers[use.source].append(_Reader(use, use.geometry))
    layers: list[Layer] = []
    refused = [(paths[leaf], parameters[leaf].shape, reason) for leaf, reason in reading.refused.items()]
    for use in reading.uses:
        kind = "conv" if isinstance(use.geometry, products.Convolution) else "dense"
        leaves = tuple(sorted(use.kernel.leaves, key=lambda leaf: (-parameters[leaf].size, leaf)))
        name = _name(use.kernel, leaves, paths, parameters)
        try:
            geometry, arrange_fn = operator_of(use)
        except NotFixedError as reason:
            refused.append((name, use.kernel.shape, str(reason)))
            continue
        if math.prod(geometry.window) * geometry.inputs * geometry.outputs == 0:
            continue
        earlier = sum(layer.name.split(" (use ")[0] == name for layer in layers)
        name += f" (use {earlier + 1})" if earlier else ""
        shortcut = kind == "conv" and _is_shortcut(use, readers[use.source])
        first = all(layer.kind != kind for layer in layers)
        kernel_fn = _kernel_fn(use.kernel, leaves, arrange_fn)
        layers.append(Layer(name, kind, geometry, leaves[0], first, shortcut, kernel_fn, leaves, use.kernel.part))
    named = [(name, reason) for name, shape, reason in refused if _fits(_stand_in(name, shape), pattern)]
    if named:
        names = ", ".join(name for name, _ in named)
        raise ValueError(
            f"{named[0][0]} is no fixed operator: {named[0][1]}; leave it out by a pattern, for instance r'^(?!{re.escape(named[0][0])})'"
            + (f" (parameters that no layer accounts for: {names})" if len(named) > 1 else "")
        )
    return select_layers(layers, pattern)


def select_layers(layers: Sequence[Layer], pattern: Pattern) -> tuple[Layer, ...]:
    """The layers that fit the pattern (see `layers_of`); ValueError if there are none."""
    selected = tuple(layer for layer in layers if _fits(layer, pattern))
    if not selected:
        names = ", ".join(layer.name for layer in layers) or "none"
        raise ValueError(f"no layer fits the pattern {pattern!r}; linear layers found: {names}")
    return selected


def _fits(layer: Layer, pattern: Pattern) -> bool:
    if pattern is None:
        return True
    return bool(pattern(layer)) if callable(pattern) else re.search(pattern, layer.name) is not None


def _stand_in(name: str, shape: Sequence[int]) -> Layer:
    """A parameter that is no layer, as a layer for a pattern to be asked about."""
    *window, inputs, outputs = shape
    geometry = Geometry.of((*window, inputs, outputs), window, padding="VALID")
    return Layer(name, "conv" if window else "dense", geometry, -1, False, False, lambda parameter: parameter)


def _name(kernel: expressions.Expression, leaves: Sequence[int], paths: Sequence[str], parameters: Sequence) -> str:
    matrices = [leaf for leaf in leaves if len(parameters[leaf].shape) > 1] or leaves
    return " + ".join(paths[leaf] for leaf in matrices) + "".join(f"[{number}]" for number in kernel.part or ())


def inner_convolutions(layer: Layer) -> bool:
    """Whether a layer is a convolution, but not the first one or a shortcut: the layers of the paper's rank experiments."""
    return layer.kind == "conv" and not layer.first and not layer.shortcut


def of_network(
    fn: Callable, params: PyTree, inputs: PyTree, *, pattern: Pattern = None, padding: str | None = None, **options: Any
) -> dict[str, Spectrum]:
    """Spectra of the layers of ``fn(params, inputs)`` by name; layers of equal geometry are decomposed together.

    For stacked seeds: ``jax.vmap(lambda p: spectra.of_network(fn, p, inputs))(stacked)``.

    Args:
      fn, params, inputs, pattern: as in `layers_of`.
      padding: "circular" to treat every convolution as circular, as the paper does; None for the padding of the network.
      options: method, route, ends and key of `spectra.of_geometry`.

    Raises:
      ValueError: as `layers_of` and `spectra.of_geometry`.
    """
    if padding not in (None, "circular"):
        raise ValueError(f"padding must be None, for what the network does, or 'circular', got {padding!r}")
    layers, leaves = layers_of(fn, params, inputs, pattern=pattern), jax.tree.leaves(params)
    geometry_of = {layer.name: layer.geometry if padding is None else as_circular(layer.geometry) for layer in layers}
    spectrum_of: dict[str, Spectrum] = {}
    for members in grouped(layers, leaves, key=lambda layer: geometry_of[layer.name]):
        stack = jnp.stack([layer.kernel(leaves) for layer in members])
        stacked = of_geometry(stack, geometry_of[members[0].name], **options)
        for index, layer in enumerate(members):
            spectrum_of[layer.name] = jax.tree.map(lambda a, index=index: a[index], stacked)
    return {layer.name: spectrum_of[layer.name] for layer in layers}


def grouped(layers: Sequence[Layer], leaves: Sequence, key: Callable[[Layer], Any]) -> list[list[Layer]]:
    """Groups of layers that can be stacked: layers of equal ``key`` and dtype."""
    groups = collections.defaultdict(list)
    for layer in layers:
        groups[key(layer), jnp.result_type(*(leaves[leaf] for leaf in layer.leaves))].append(layer)
    return list(groups.values())


def as_circular(geometry: Geometry) -> Geometry:
    """The geometry of the circular convolution on the torus."""
    if geometry.circular:
        return geometry
    spatial = tuple(m * s for m, s in zip(geometry.torus, geometry.strides, strict=True))
    window = (*geometry.window, geometry.inputs // geometry.groups, geometry.outputs)
    return Geometry.of(window, spatial, strides=geometry.strides, dilation=geometry.dilation, groups=geometry.groups)


class NotFixedError(ValueError):
    """The operator of a parameter's use is not known before the program runs."""


def operator_of(use: weight_uses.WeightUse) -> tuple[Geometry, Callable[[jax.Array], jax.Array]]:
    """The geometry of a use, and the function from the kernel in the program to the kernel of the geometry.

    Raises:
      NotFixedError: the operator is not known before the program runs.
    """
    return _convolution(use, use.geometry) if isinstance(use.geometry, products.Convolution) else _matmul(use, use.geometry)


def _kernel_fn(kernel: expressions.Expression, leaves: Sequence[int], arrange_fn: Callable[[jax.Array], jax.Array]) -> Callable:
    def kernel_fn(*parameters: jax.Array) -> jax.Array:
        return arrange_fn(expressions.evaluate(kernel, dict(zip(leaves, parameters, strict=True))))

    return kernel_fn


class _Reader(NamedTuple):
    """A convolution and the map that it reads."""

    use: weight_uses.WeightUse
    geometry: products.Convolution

    @property
    def size(self) -> tuple[int, int]:
        return math.prod(self.geometry.window), -self.use.output.shape[self.geometry.output_spec[1]]


def _is_shortcut(use: weight_uses.WeightUse, readers: Sequence[_Reader]) -> bool:
    return len(readers) > 1 and use is min(readers, key=lambda reader: reader.size).use


def _convolution(use: weight_uses.WeightUse, g: products.Convolution) -> tuple[Geometry, Callable]:
    """The geometry, and the function from the weight to the kernel; a transposed convolution is represented by its adjoint."""
    extents = [use.data.shape[axis] for axis in g.data_spec[2:]]
    outward, inward, *space = g.weight_spec
    if max(g.data_dilation, default=1) == 1:
        inputs, outputs = use.data.shape[g.data_spec[1]], use.output.shape[g.output_spec[1]]
        shape = (*g.window, inputs // g.groups, outputs)
        if use.pixels is None:
            geometry = Geometry.of(shape, extents, strides=g.strides, padding=g.padding, dilation=g.weight_dilation, groups=g.groups)
        else:
            room = [(0, len(line) + low + high) for line, (low, high) in zip(use.pixels, g.padding, strict=True)]
            alone = Geometry.of(shape, extents, strides=g.strides, padding=room, dilation=g.weight_dilation, groups=g.groups)
            geometry = alone.padded_by([_widened(line, *pads) for line, pads in zip(use.pixels, g.padding, strict=True)])
        return geometry, lambda weight: weight.transpose(*space, inward, outward)
    if use.pixels is not None:
        raise NotFixedError("it has input dilation and reads a padded map")
    if max(g.strides) > 1 or g.groups > 1:
        raise NotFixedError("it has input dilation together with strides or groups")
    outer = [use.output.shape[axis] for axis in g.output_spec[2:]]
    pads = []
    for n, m, w, d, stride, (low, _) in zip(extents, outer, g.window, g.weight_dilation, g.data_dilation, g.padding, strict=True):
        reach = (w - 1) * d
        pads.append((reach - low, (n - 1) * stride + 1 + low - m))
    kernel = (*g.window, use.output.shape[g.output_spec[1]], use.data.shape[g.data_spec[1]])
    geometry = Geometry.of(kernel, outer, strides=g.data_dilation, padding=pads, dilation=g.weight_dilation)
    axes = tuple(range(len(g.window)))
    return geometry, lambda weight: jnp.flip(weight.transpose(*space, outward, inward), axes)


def _widened(line: Sequence[int], low: int, high: int) -> list[int]:
    """A line of pixels with zeros (-1) before and after it; negative numbers cut."""
    cut = list(line)[max(-low, 0) : len(line) - max(-high, 0)]
    return [-1] * low + cut + [-1] * high


def _matmul(use: weight_uses.WeightUse, g: products.Matmul) -> tuple[Geometry, Callable]:
    """The geometry of a dense layer, and the function from the weight to the kernel; axes shared with the data become groups."""
    groups, inputs = (math.prod(use.data.shape[axis] for axis in axes) for axes in (g.batch, g.contract))
    positions = math.prod(use.data.shape) // (groups * inputs)
    outputs = math.prod(use.output.shape) // (groups * positions)

    def arrange(weight: jax.Array) -> jax.Array:
        free = [axis for axis in range(weight.ndim) if axis not in (*g.weight_contract, *g.weight_batch)]
        return weight.transpose(*g.weight_contract, *g.weight_batch, *free).reshape(inputs, groups * outputs)

    return Geometry.of((inputs, groups * outputs), (), groups=groups), arrange
