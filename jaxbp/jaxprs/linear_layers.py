"""Find the linear layers of a function, the data that each layer reads and the gradients of each layer's outputs.

A linear layer is a place where a parameter multiplies data: y = a W, a matrix product or a convolution. The gradient of an output f_k
with respect to W is the sum over positions p of a_p (x) delta_kp, with delta_k the gradient of f_k with respect to y; so it is known
without being formed. `find` walks through the program of any function of (params, inputs) and lists the parameters whose only use
is that of a layer's weight. Before this use a parameter may be reshaped, transposed or multiplied by a number (the NTK parametrisation).
All other parameters need plain Jacobians. `run_fn` evaluates the program with an array added to the output of each such layer:
derivatives with respect to these arrays (taps) give all deltas in one backward pass, which forms no gradient of a weight.
`uses` lists every place where a parameter multiplies data, for functions with any outputs, whether or not the parameter has other uses.

>>> import jax, jax.numpy as jnp
>>> from jaxbp.jaxprs import linear_layers
>>> network = linear_layers.find(lambda p, x: x @ (2.0 * p["kernel"]), {"kernel": jnp.ones((3, 5))}, jnp.ones((4, 3)))
>>> [(layer.leaf, layer.data.shape, layer.output.shape) for layer in network.layers]
[(0, (4, 3), (4, 5))]
"""

import collections
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Num, PyTree

from jaxbp.jaxprs import interpret
from jaxbp.ops import convolution

_REARRANGING = ("reshape", "transpose", "squeeze", "rev", "copy", "expand_dims", "neg")  # up to the sign, entries keep their values
_BILINEAR = ("dot_general", "conv_general_dilated", "jaxbp_conv")


class Matmul(NamedTuple):
    """A `lax.dot_general` of data and a weight.

    Attributes:
      contract: axes of the data that are summed over.
      batch: axes of the data that the weight shares: each slice has a weight of its own.
      weight_side: 0 if the weight is the first operand, 1 if it is the second.
      weight_contract: axes of the weight that are summed over.
      weight_batch: axes of the weight that the data share.
    """

    contract: tuple[int, ...]
    batch: tuple[int, ...]
    weight_side: int
    weight_contract: tuple[int, ...]
    weight_batch: tuple[int, ...]

    def patches(self, data: Num[jax.Array, "..."]) -> Num[jax.Array, "p g k"]:
        """Arrange data as the factor that multiplies the weight, (positions P, groups g, K)."""
        free = [axis for axis in range(data.ndim) if axis not in (*self.contract, *self.batch)]
        sizes = [math.prod(data.shape[axis] for axis in axes) for axes in (free, self.batch, self.contract)]
        return data.transpose(*free, *self.batch, *self.contract).reshape(sizes)

    def deltas(self, output: Num[jax.Array, "..."], data: Any) -> Num[jax.Array, "p g o"]:
        """Arrange a gradient with respect to the output as (P, g, o)."""
        groups = math.prod(output.shape[: len(self.batch)])
        positions = math.prod(data.shape) // math.prod(data.shape[axis] for axis in (*self.contract, *self.batch))
        if self.weight_side == 1:
            return output.reshape(groups, positions, -1).transpose(1, 0, 2)
        return output.reshape(groups, -1, positions).transpose(2, 0, 1)


class Convolution(NamedTuple):
    """A convolution of data and a weight in any dimensions and layout, without batch groups.

    Attributes:
      strides: of the window, one an axis.
      padding: (low, high) zeros of each axis.
      data_dilation: dilation of the data (transposed convolutions).
      weight_dilation: dilation of the window.
      window: extents of the window.
      groups: groups of channels.
      data_spec: axes of batch, channels and space of the data.
      output_spec: axes of batch, channels and space of the output.
      weight_spec: axes of outputs, inputs and window of the weight.
    """

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    data_dilation: tuple[int, ...]
    weight_dilation: tuple[int, ...]
    window: tuple[int, ...]
    groups: int
    data_spec: tuple[int, ...]
    output_spec: tuple[int, ...]
    weight_spec: tuple[int, ...]

    def image(self, data: Num[jax.Array, "..."]) -> Num[jax.Array, "n ... c"]:
        """Data as (batch, *space, channels), dilated and padded."""
        batch, channels, *space = self.data_spec
        holes = zip(self.padding, self.data_dilation, strict=True)
        pads = [(0, 0, 0), *((low, high, dilation - 1) for (low, high), dilation in holes), (0, 0, 0)]
        return lax.pad(data.transpose(batch, *space, channels), jnp.zeros((), data.dtype), pads)

    def taps(self, extents: Sequence[int]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """For each weight of the window, (start, stop) of the pixels that it sees in a padded image of these extents."""
        sizes = zip(extents, self.window, self.weight_dilation, self.strides, strict=True)
        counts = [(extent - (width - 1) * dilation - 1) // stride + 1 for extent, width, dilation, stride in sizes]
        ranges = []
        for tap in itertools.product(*map(range, self.window)):
            start = tuple(t * d for t, d in zip(tap, self.weight_dilation, strict=True))
            ranges.append((start, tuple(a + (n - 1) * s + 1 for a, n, s in zip(start, counts, self.strides, strict=True))))
        return ranges

    def patches(self, data: Num[jax.Array, "..."]) -> Num[jax.Array, "p g k"]:
        """Arrange data as the factor that multiplies the weight, (P, g, K); the positions P run over batch and space."""
        image = self.image(data)
        steps = (1, *self.strides, 1)
        cut = [
            lax.slice(image, (0, *start, 0), (image.shape[0], *stop, image.shape[-1]), steps)
            for start, stop in self.taps(image.shape[1:-1])
        ]
        stacked = jnp.stack([part.reshape(-1, self.groups, image.shape[-1] // self.groups) for part in cut], axis=2)
        return stacked.reshape(*stacked.shape[:2], -1)

    def deltas(self, output: Num[jax.Array, "..."], data: Any) -> Num[jax.Array, "p g o"]:
        """Arrange a gradient with respect to the output as (P, g, o)."""
        del data
        batch, channels, *space = self.output_spec
        features = output.shape[channels]
        return output.transpose(batch, *space, channels).reshape(-1, self.groups, features // self.groups)


class WeightUse(NamedTuple):
    """One use of a parameter as the weight of a linear layer.

    Attributes:
      leaf: index of the parameter among the leaves of the parameters.
      geometry: the product of data and weight.
      data: shape and dtype of the data.
      output: shape and dtype of the output.
      source: a number that is equal for uses that read the same array.
      steps: functions that lead from the leaf to the weight, one after another, each a rearrangement or a multiplication by a
        number; None if a number is known only when the program runs.
    """

    leaf: int
    geometry: Matmul | Convolution
    data: jax.ShapeDtypeStruct
    output: jax.ShapeDtypeStruct
    source: int
    steps: tuple[Callable, ...] | None


class LinearLayers(NamedTuple):
    """A program and its linear layers, as `find` returns them.

    Attributes:
      program: the traced function.
      layers: the layers in the order of their use; the weight of each has no other use.
      others: indices of the leaves that need a plain Jacobian.
      num_leaves: number of leaves of the parameters.
    """

    program: interpret.Program
    layers: tuple[WeightUse, ...]
    others: tuple[int, ...]
    num_leaves: int


def find(fn: Callable, params: PyTree, *arguments: PyTree) -> LinearLayers:
    """Trace ``fn(params, *arguments)`` and find the layers of the leaves of ``params``; only shapes of the arguments matter."""
    program = interpret.trace(fn, params, *arguments)
    num_leaves = len(jax.tree.leaves(params))
    walk = _Walk(structured=None)

    def evaluate(*values: jax.Array) -> Any:
        return walk.output(program, values, num_leaves)

    jax.eval_shape(evaluate, *program.input_types)
    times = collections.Counter(layer.leaf for layer in walk.layers)
    layers = tuple(layer for layer in walk.layers if times[layer.leaf] == 1 and layer.leaf not in walk.others)
    others = tuple(sorted((walk.others | set(times)) - {layer.leaf for layer in layers}))
    return LinearLayers(program, layers, others, num_leaves)


def uses(fn: Callable, params: PyTree, *arguments: PyTree) -> tuple[WeightUse, ...]:
    """Trace ``fn(params, *arguments)`` and find every use of a leaf as the weight of a linear layer, in order.

    ``fn`` may return anything. Leaves that have other uses, or several, are included.
    """
    program = interpret.trace(fn, params, *arguments)
    num_leaves = len(jax.tree.leaves(params))
    walk = _Walk(structured=None)

    def evaluate(*values: jax.Array) -> None:
        walk.run(program, values, num_leaves)

    jax.eval_shape(evaluate, *program.input_types)
    return tuple(walk.layers)


def run_fn(network: LinearLayers) -> Callable:
    """Return ``(taps, others, leaves, arguments) -> (output, data of each layer)`` for the program of ``network``.

    Arguments of the function:

    - ``taps``: arrays that are added to the layers' outputs (zeros, to differentiate with respect to);
    - ``others``: values of the leaves ``network.others``;
    - ``leaves``: values of all leaves;
    - ``arguments``: the flat arguments of the traced function.

    If a number multiplies a weight, it multiplies the returned data of that layer.
    """
    structured = frozenset(layer.leaf for layer in network.layers)

    def run(taps: Sequence, others: Sequence, leaves: Sequence, arguments: Sequence) -> tuple[jax.Array, list]:
        leaves = list(leaves)
        for leaf, value in zip(network.others, others, strict=True):
            leaves[leaf] = value
        walk = _Walk(structured=structured, taps=taps)
        return walk.output(network.program, [*leaves, *arguments], network.num_leaves), walk.data

    return run


class _Weight(NamedTuple):
    """A leaf, perhaps rearranged or scaled.

    Attributes:
      leaf: index of the leaf.
      value: ``scale`` times the leaf's entries in some order.
      scale: the factor.
      steps: as in `WeightUse`.
    """

    leaf: int
    value: jax.Array
    scale: jax.Array | float
    steps: tuple[Callable, ...] | None = ()


class _Walk:
    """One evaluation of a program that follows the parameters from operation to operation.

    With ``structured`` None the walk collects layers and other uses; else it adds the taps to the outputs of the layers of the leaves
    in ``structured``. Wrappers with derivative rules of their own stay closed.
    """

    def __init__(self, structured: frozenset | None, taps: Sequence = ()):
        self.structured = structured
        self.taps = iter(taps)
        self.layers: list[WeightUse] = []
        self.others: set[int] = set()
        self.data: list[jax.Array] = []
        self.sources: list[jax.Array] = []  # references that keep the ids of the arrays unique
        self.casts: dict[int, jax.Array] = {}  # from the id of an array to the array before its change of precision

    def run(self, program: interpret.Program, values: Sequence, num_leaves: int) -> list:
        """Outputs of the program, whose first ``num_leaves`` arguments are the leaves."""
        weights = [_Weight(leaf, value, 1.0) for leaf, value in enumerate(values[:num_leaves])]
        return program.evaluate([*weights, *values[num_leaves:]], self._evaluate)

    def output(self, program: interpret.Program, values: Sequence, num_leaves: int) -> jax.Array:
        """The one output of the program, whose first ``num_leaves`` arguments are the leaves."""
        (output,) = self.run(program, values, num_leaves)
        if isinstance(output, _Weight):  # a function that returns a parameter
            self.others.add(output.leaf)
            return output.value
        return output

    def _evaluate(self, operation: interpret.Operation, operands: list) -> Sequence:
        name = operation.name
        weights = [o for o in operands if isinstance(o, _Weight)]
        values = [o.value if isinstance(o, _Weight) else o for o in operands]
        outputs = [_convolve(operation, values)] if name == "conv_general_dilated" else operation.apply(values)
        if not weights:
            if name == "convert_element_type":
                self.sources.append(outputs[0])
                self.casts[id(outputs[0])] = self.casts.get(id(values[0]), values[0])
            return outputs
        if len(weights) == 1:
            if (scale := _rescaled(operation, operands)) is not None:
                steps = _extended(weights[0].steps, operation, operands)
                return [_Weight(weights[0].leaf, outputs[0], weights[0].scale * scale, steps)]
            if name in _BILINEAR and (layer := _weight_use(operation, operands, outputs[0], self._source)) is not None:
                return [self._tap(layer, operands, outputs[0])]
        self.others.update(weight.leaf for weight in weights)
        return outputs

    def _source(self, data: jax.Array) -> int:
        data = self.casts.get(id(data), data)
        known = [index for index, array in enumerate(self.sources) if array is data]
        self.sources.append(data)
        return known[0] if known else len(self.sources) - 1

    def _tap(self, layer: WeightUse, operands: list, output: jax.Array) -> jax.Array:
        if self.structured is None:
            self.layers.append(layer)
            return output
        if layer.leaf not in self.structured:
            return output
        weight, data = operands if isinstance(operands[0], _Weight) else operands[::-1]
        self.data.append(data * jnp.asarray(weight.scale, data.dtype))
        return output + next(self.taps)


def _extended(steps: tuple | None, operation: interpret.Operation, operands: list) -> tuple | None:
    """The steps and this operation; None if the other operand is known only when the program runs."""
    rest = [None if isinstance(operand, _Weight) else operand for operand in operands]
    if steps is None or any(isinstance(operand, jax.core.Tracer) for operand in rest):
        return None
    return (*steps, lambda value: operation.apply([value if operand is None else operand for operand in rest])[0])


_CONVOLUTION_OPTIONS = (
    "window_strides",
    "padding",
    "lhs_dilation",
    "rhs_dilation",
    "dimension_numbers",
    "feature_group_count",
    "batch_group_count",
    "precision",
    "preferred_element_type",
)


def _convolve(operation: interpret.Operation, values: list) -> jax.Array:
    """The convolution by the formulation of `jaxbp.ops.convolution` that is fast on this platform, also inside loops."""
    return convolution.conv_general_dilated(*values, **{name: operation.params[name] for name in _CONVOLUTION_OPTIONS})


def _rescaled(operation: interpret.Operation, operands: list) -> jax.Array | float | None:
    """The number by which an operation multiplies all entries of its weight; None if the operation does more than rearrange and scale."""
    name, output = operation.name, operation.output_types[0]
    weight = next(o for o in operands if isinstance(o, _Weight))
    if output.size != weight.value.size:
        return None
    if name in _REARRANGING:
        return -1.0 if name == "neg" else 1.0
    if name == "broadcast_in_dim":  # of the same size: new axes of extent 1
        return 1.0
    if name == "convert_element_type" and jnp.issubdtype(output.dtype, jnp.floating):
        return 1.0
    if name == "mul":
        number = operands[1] if isinstance(operands[0], _Weight) else operands[0]
        return jnp.reshape(number, ()) if jnp.size(number) == 1 else None
    if name == "div" and isinstance(operands[0], _Weight) and jnp.size(operands[1]) == 1:
        return 1.0 / jnp.reshape(operands[1], ())
    return None


def _weight_use(operation: interpret.Operation, operands: list, output: Any, source_fn: Callable[[Any], int]) -> WeightUse | None:
    side = 0 if isinstance(operands[0], _Weight) else 1
    data, weight = operands[1 - side], operands[side]
    geometry = _GEOMETRIES[operation.name](operation.params, side, weight.value)
    if geometry is None:
        return None
    data_type, output_type = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (data, output))
    return WeightUse(weight.leaf, geometry, data_type, output_type, source_fn(data), weight.steps)


def _matmul(params: dict, side: int, weight: Any) -> Matmul:
    contract, batch = params["dimension_numbers"]
    return Matmul(tuple(contract[1 - side]), tuple(batch[1 - side]), side, tuple(contract[side]), tuple(batch[side]))


def _convolution(params: dict, side: int, weight: Any) -> Convolution | None:
    if side == 0 or params["batch_group_count"] != 1:
        return None
    numbers = params["dimension_numbers"]
    return Convolution(
        strides=tuple(params["window_strides"]),
        padding=tuple(params["padding"]),
        data_dilation=tuple(params["lhs_dilation"]),
        weight_dilation=tuple(params["rhs_dilation"]),
        window=tuple(weight.shape[axis] for axis in numbers.rhs_spec[2:]),
        groups=params["feature_group_count"],
        data_spec=tuple(numbers.lhs_spec),
        output_spec=tuple(numbers.out_spec),
        weight_spec=tuple(numbers.rhs_spec),
    )


def _channels_last_convolution(params: dict, side: int, weight: Any) -> Convolution | None:
    spec = params["spec"]
    if side == 0 or spec.product != "output" or spec.stacked:
        return None
    n = len(spec.spatial)
    last = (0, n + 1, *range(1, n + 1))
    return Convolution(spec.strides, spec.padding, (1,) * n, spec.dilation, spec.window, 1, last, last, (n + 1, n, *range(n)))


_GEOMETRIES = {"dot_general": _matmul, "conv_general_dilated": _convolution, "jaxbp_conv": _channels_last_convolution}
