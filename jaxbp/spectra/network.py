"""The linear layers of a network as operators, at the map sizes that they really meet, and the spectra of all of them.

Nothing is typed in: `jaxbp.jaxprs.linear_layers` traces the function and finds each place where a parameter multiplies data, with
window, strides, padding, dilation, groups and the extents of the map, in any Flax model or plain function. A rearranged or rescaled
parameter (the NTK parametrisation) is followed: the spectrum is that of the operator in effect. Layers of equal geometry are stacked
and decomposed at once.

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

from jaxbp.jaxprs import linear_layers
from jaxbp.spectra.geometry import Geometry
from jaxbp.spectra.spectrum import Spectrum, of_geometry

KINDS = ("conv", "dense")


@dataclass(frozen=True)
class Layer:
    """One linear layer of a network.

    Attributes:
      name: the path of its parameter, joined by "/"; a further use elsewhere of the same parameter is "... (use 2)".
      kind: "conv" or "dense".
      geometry: what it is as an operator.
      leaf: the parameter's place among the leaves of the parameters.
      first: whether no layer of its kind comes before it.
      shortcut: whether it is a convolution beside another one that reads the same map, and has the smaller window, or with equal
        windows the more outputs.
      kernel_fn: from the parameter to the kernel (\\*window, inputs / groups, outputs) of the geometry; linear, up to a number a
        rearrangement.
    """

    name: str
    kind: str
    geometry: Geometry
    leaf: int
    first: bool
    shortcut: bool
    kernel_fn: Callable[[jax.Array], jax.Array]

    def changed(self, parameter: jax.Array, change: jax.Array) -> jax.Array:
        """The parameter whose kernel is that of ``parameter`` plus ``change``."""
        kernel, pullback = jax.vjp(self.kernel_fn, parameter)
        (back,) = pullback(change.astype(kernel.dtype))
        # kernel_fn is scale times a permutation, so its adjoint is scale^2 times its inverse.
        (squared_scale,) = pullback(self.kernel_fn(jnp.ones_like(parameter)))
        return parameter + back / squared_scale


Pattern = str | Callable[[Layer], bool] | None


def layers_of(fn: Callable, params: Any, inputs: Any, *, pattern: Pattern = None) -> tuple[Layer, ...]:
    """The linear layers of ``fn(params, inputs)`` in the order of their use.

    Args:
      fn: any function, say a closure over a Flax model's `apply` and its state; it may return anything.
      params, inputs: arrays or `jax.ShapeDtypeStruct`; only shapes matter. Give one network's, not a stack of seeds.
      pattern: a regular expression to be found in the name, or a function of a `Layer`; None takes all.

    Raises:
      ValueError: no layer of that pattern; or one that the pattern names has no fixed geometry: its weight is multiplied
        by a number known only at run time, or it has both strides and input dilation.
    """
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), (params, inputs))
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(shapes[0])]
    found = linear_layers.uses(fn, *shapes)
    readers: dict[int, list[_Reader]] = collections.defaultdict(list)
    for use in found:
        if isinstance(use.geometry, linear_layers.Convolution):
            readers[use.source].append(_Reader(use, use.geometry))
    layers: list[Layer] = []
    refused: dict[str, str] = {}
    for use in found:
        kind = "conv" if isinstance(use.geometry, linear_layers.Convolution) else "dense"
        name, again = paths[use.leaf], [layer for layer in layers if layer.leaf == use.leaf]
        try:
            if use.steps is None:
                raise _NotFixedError("its weight is multiplied by a number that is known only at run time")
            if isinstance(use.geometry, linear_layers.Convolution):
                geometry, arrange = _convolution(use, use.geometry)
            else:
                geometry, arrange = _matmul(use, use.geometry)
        except _NotFixedError as reason:
            refused[name] = str(reason)
            continue
        if any(layer.geometry == geometry for layer in again):
            continue
        name += f" (use {len(again) + 1})" if again else ""
        shortcut = kind == "conv" and _is_shortcut(use, readers[use.source])
        first = all(layer.kind != kind for layer in layers)
        layers.append(Layer(name, kind, geometry, use.leaf, first, shortcut, _chained((*use.steps, arrange))))
    chosen = select_layers(layers, pattern)
    named = [name for name in refused if pattern is None or (isinstance(pattern, str) and re.search(pattern, name))]
    if named:
        raise ValueError(f"{named[0]} is no fixed operator: {refused[named[0]]}; leave it out by a pattern")
    return chosen


def select_layers(layers: Sequence[Layer], pattern: Pattern) -> tuple[Layer, ...]:
    """Those of ``layers`` that the pattern names; ValueError if there are none."""
    if pattern is None:
        fits = lambda layer: True  # noqa: E731
    else:
        fits = pattern if callable(pattern) else lambda layer: re.search(pattern, layer.name) is not None
    chosen = tuple(layer for layer in layers if fits(layer))
    if not chosen:
        names = ", ".join(layer.name for layer in layers) or "none"
        raise ValueError(f"no layer fits the pattern {pattern!r}; linear layers found: {names}")
    return chosen


def inner_convolutions(layer: Layer) -> bool:
    """The paper's choice of layers: all convolutions but the first and the shortcuts."""
    return layer.kind == "conv" and not layer.first and not layer.shortcut


def of_network(
    fn: Callable, params: Any, inputs: Any, *, pattern: Pattern = None, padding: str | None = None, **options: Any
) -> dict[str, Spectrum]:
    """Spectra of the layers of ``fn(params, inputs)`` by name; those of equal geometry are decomposed together.

    For stacked seeds: ``jax.vmap(lambda p: spectra.of_network(fn, p, inputs))(stacked)``.

    Args:
      fn, params, inputs, pattern: as in `layers_of`.
      padding: "circular" to take every convolution for a circular one, as the paper does; None for what the network does.
      options: method, route, ends and key of `spectra.of_geometry`.

    Raises:
      ValueError: as in `layers_of` and `spectra.of_geometry`.
    """
    if padding not in (None, "circular"):
        raise ValueError(f"padding must be None, for what the network does, or 'circular', got {padding!r}")
    layers, leaves = layers_of(fn, params, inputs, pattern=pattern), jax.tree.leaves(params)
    geometry_of = {layer.name: layer.geometry if padding is None else as_circular(layer.geometry) for layer in layers}
    found: dict[str, Spectrum] = {}
    for members in grouped(layers, leaves, key=lambda layer: geometry_of[layer.name]):
        stack = jnp.stack([layer.kernel_fn(leaves[layer.leaf]) for layer in members])
        together = of_geometry(stack, geometry_of[members[0].name], **options)
        for index, layer in enumerate(members):
            found[layer.name] = jax.tree.map(lambda a, index=index: a[index], together)
    return {layer.name: found[layer.name] for layer in layers}


def grouped(layers: Sequence[Layer], leaves: Sequence, key: Callable[[Layer], Any]) -> list[list[Layer]]:
    """Layers that can be stacked: of equal ``key`` and dtype."""
    groups = collections.defaultdict(list)
    for layer in layers:
        groups[key(layer), jnp.result_type(leaves[layer.leaf])].append(layer)
    return list(groups.values())


def as_circular(geometry: Geometry) -> Geometry:
    """The circular convolution on the geometry's torus."""
    if geometry.circular:
        return geometry
    spatial = tuple(m * s for m, s in zip(geometry.torus, geometry.strides, strict=True))
    window = (*geometry.window, geometry.inputs // geometry.groups, geometry.outputs)
    return Geometry.of(
        window, spatial, strides=geometry.strides, dilation=geometry.dilation, groups=geometry.groups
    )  # fmt: skip


class _NotFixedError(ValueError):
    """A use of a parameter that is no operator known before the program runs."""


def _chained(steps: tuple[Callable, ...]) -> Callable[[jax.Array], jax.Array]:
    def kernel_fn(parameter: jax.Array) -> jax.Array:
        for step in steps:
            parameter = step(parameter)
        return parameter

    return kernel_fn


class _Reader(NamedTuple):
    """A convolution that reads a map."""

    use: linear_layers.WeightUse
    geometry: linear_layers.Convolution

    @property
    def size(self) -> tuple[int, int]:
        return math.prod(self.geometry.window), -self.use.output.shape[self.geometry.output_spec[1]]


def _is_shortcut(use: linear_layers.WeightUse, readers: Sequence[_Reader]) -> bool:
    return len(readers) > 1 and use is min(readers, key=lambda reader: reader.size).use


def _convolution(use: linear_layers.WeightUse, g: linear_layers.Convolution) -> tuple[Geometry, Callable]:
    """The geometry, and from the weight to its kernel; a transposed convolution is taken by its adjoint."""
    extents = [use.data.shape[axis] for axis in g.data_spec[2:]]
    outward, inward, *space = g.weight_spec
    if max(g.data_dilation, default=1) == 1:
        inputs, outputs = use.data.shape[g.data_spec[1]], use.output.shape[g.output_spec[1]]
        geometry = Geometry.of(
            (*g.window, inputs // g.groups, outputs), extents, strides=g.strides, padding=g.padding,
            dilation=g.weight_dilation, groups=g.groups,
        )  # fmt: skip
        return geometry, lambda weight: weight.transpose(*space, inward, outward)
    if max(g.strides) > 1 or g.groups > 1:
        raise _NotFixedError("it has input dilation together with strides or groups")
    outer = [use.output.shape[axis] for axis in g.output_spec[2:]]
    pads = []
    for n, m, w, d, stride, (low, _) in zip(extents, outer, g.window, g.weight_dilation, g.data_dilation, g.padding, strict=True):
        reach = (w - 1) * d
        pads.append((reach - low, (n - 1) * stride + 1 + low - m))
    kernel = (*g.window, use.output.shape[g.output_spec[1]], use.data.shape[g.data_spec[1]])
    geometry = Geometry.of(kernel, outer, strides=g.data_dilation, padding=pads, dilation=g.weight_dilation)
    axes = tuple(range(len(g.window)))
    return geometry, lambda weight: jnp.flip(weight.transpose(*space, outward, inward), axes)


def _matmul(use: linear_layers.WeightUse, g: linear_layers.Matmul) -> tuple[Geometry, Callable]:
    """The geometry of a dense layer; weights that share axes with the data are groups of it."""
    groups, inputs = (math.prod(use.data.shape[axis] for axis in axes) for axes in (g.batch, g.contract))
    positions = math.prod(use.data.shape) // (groups * inputs)
    outputs = math.prod(use.output.shape) // (groups * positions)

    def arrange(weight: jax.Array) -> jax.Array:
        free = [axis for axis in range(weight.ndim) if axis not in (*g.weight_contract, *g.weight_batch)]
        return weight.transpose(*g.weight_contract, *g.weight_batch, *free).reshape(inputs, groups * outputs)

    return Geometry.of((inputs, groups * outputs), (), groups=groups), arrange
