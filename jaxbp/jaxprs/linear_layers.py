"""Find the linear layers of a function, the data that each layer reads and the gradients of each layer's outputs.

A linear layer is a place where a parameter multiplies data: y = a W, a matrix product or a convolution. The gradient of an output f_k
with respect to W is the sum over positions p of a_p (x) delta_kp, with delta_k the gradient of f_k with respect to y; so it is known
without being formed. `find` walks through the program of any function of (params, inputs) and lists the parameters whose only use
is that of a layer's weight. Before this use a parameter may be reshaped, transposed or multiplied by a number (the NTK parametrisation).
A weight that is used several times, arranged in the same way, is one layer whose positions are those of all uses. All other parameters
need plain Jacobians. `run_fn` evaluates the program with an array added to the output of each such layer:
derivatives with respect to these arrays (taps) give all deltas in one backward pass, which forms no gradient of a weight.
`jaxbp.jaxprs.weight_uses` finds kernels that are other functions of parameters, too, and where they multiply data.

>>> import jax, jax.numpy as jnp
>>> from jaxbp.jaxprs import linear_layers
>>> network = linear_layers.find(lambda p, x: x @ (2.0 * p["kernel"]), {"kernel": jnp.ones((3, 5))}, jnp.ones((4, 3)))
>>> [(layer.leaf, layer.data.shape, layer.output.shape) for layer in network.layers]
[(0, (4, 3), (4, 5))]
"""

import collections
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Num, PyTree

from jaxbp.jaxprs import interpret
from jaxbp.jaxprs.products import BILINEAR, Convolution, Matmul, geometry_of
from jaxbp.ops import convolution

_REARRANGING = ("reshape", "transpose", "squeeze", "rev", "copy", "expand_dims", "neg")  # up to the sign, entries keep their values
_KEEPING_ORDER = ("mul", "div", "neg", "copy", "convert_element_type")


class Repeated(NamedTuple):
    """Several products with one weight; data and outputs are tuples with one array for each.

    Attributes:
      uses: the products, which arrange the weight in the same way.
    """

    uses: tuple[Matmul | Convolution, ...]

    def patches(self, data: Any) -> Num[jax.Array, "p g k"]:
        """Arrange data as the factor that multiplies the weight, (P, g, K); the positions P are those of one use after another."""
        return jnp.concatenate([use.patches(array) for use, array in zip(self.uses, data, strict=True)])

    def deltas(self, output: Any, data: Any) -> Num[jax.Array, "p g o"]:
        """Arrange gradients with respect to the outputs as (P, g, o)."""
        return jnp.concatenate([use.deltas(gradient, array) for use, gradient, array in zip(self.uses, output, data, strict=True)])


class WeightUse(NamedTuple):
    """A parameter that is the weight of a linear layer, and of nothing else.

    Attributes:
      leaf: index of the parameter among the leaves of the parameters.
      geometry: the product of data and weight.
      data: shape and dtype of the data; of a `Repeated` weight a tuple.
      output: shape and dtype of the output; of a `Repeated` weight a tuple.
    """

    leaf: int
    geometry: Matmul | Convolution | Repeated
    data: Any
    output: Any


class LinearLayers(NamedTuple):
    """A program and its linear layers, as `find` returns them.

    Attributes:
      program: the traced function.
      layers: the layers in the order of their first use.
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
    layers = tuple(layer for leaf, uses in walk.uses.items() if leaf not in walk.others and (layer := _layer(leaf, uses)) is not None)
    others = tuple(sorted((walk.others | set(walk.uses)) - {layer.leaf for layer in layers}))
    return LinearLayers(program, layers, others, num_leaves)


def _layer(leaf: int, uses: Sequence["_Use"]) -> WeightUse | None:
    """The layer of a parameter; None if its uses arrange it in several ways."""
    if len(uses) == 1:
        return WeightUse(leaf, uses[0].geometry, uses[0].data, uses[0].output)
    if len({(use.order, use.axes) for use in uses}) > 1:
        return None
    geometries, data, outputs = zip(*((use.geometry, use.data, use.output) for use in uses), strict=True)
    return WeightUse(leaf, Repeated(geometries), data, outputs)


def run_fn(network: LinearLayers) -> Callable:
    """Return ``(taps, others, leaves, arguments) -> (output, data of each layer)`` for the program of ``network``.

    Arguments of the function:

    - ``taps``: for each layer an array that is added to its output (zeros, to differentiate with respect to), or a tuple of them;
    - ``others``: values of the leaves ``network.others``;
    - ``leaves``: values of all leaves;
    - ``arguments``: the flat arguments of the traced function.

    If a number multiplies a weight, it multiplies the returned data of that layer. Data of a layer with several uses are a tuple.
    """
    structured = frozenset(layer.leaf for layer in network.layers)
    repeated = {layer.leaf for layer in network.layers if isinstance(layer.geometry, Repeated)}

    def run(taps: Sequence, others: Sequence, leaves: Sequence, arguments: Sequence) -> tuple[jax.Array, list]:
        leaves = list(leaves)
        for leaf, value in zip(network.others, others, strict=True):
            leaves[leaf] = value
        taps_of = {layer.leaf: iter(jax.tree.leaves(tap)) for layer, tap in zip(network.layers, taps, strict=True)}
        walk = _Walk(structured=structured, taps=taps_of)
        output = walk.output(network.program, [*leaves, *arguments], network.num_leaves)
        return output, [tuple(walk.data[leaf]) if leaf in repeated else walk.data[leaf][0] for leaf in taps_of]

    return run


class _Use(NamedTuple):
    """One use of a parameter as a weight.

    Attributes:
      geometry, data, output: as in `WeightUse`.
      order: the rearrangements that lead from the parameter to the weight.
      axes: what the product does with the axes of the weight.
    """

    geometry: Matmul | Convolution
    data: jax.ShapeDtypeStruct
    output: jax.ShapeDtypeStruct
    order: tuple[tuple[str, str], ...]
    axes: tuple


class _Weight(NamedTuple):
    """A leaf, perhaps rearranged or scaled.

    Attributes:
      leaf: index of the leaf.
      value: ``scale`` times the leaf's entries in some order.
      scale: the factor.
      order: the rearrangements, by name and parameters.
    """

    leaf: int
    value: jax.Array
    scale: jax.Array | float
    order: tuple[tuple[str, str], ...] = ()


class _Walk:
    """One evaluation of a program that follows the parameters from operation to operation.

    With ``structured`` None the walk collects layers and other uses; else it adds the taps to the outputs of the layers of the leaves
    in ``structured``. Wrappers with derivative rules of their own stay closed.
    """

    def __init__(self, structured: frozenset | None, taps: dict[int, Iterator[jax.Array]] | None = None):
        self.structured = structured
        self.taps = taps or {}
        self.uses: dict[int, list[_Use]] = collections.defaultdict(list)
        self.others: set[int] = set()
        self.data: dict[int, list[jax.Array]] = collections.defaultdict(list)

    def output(self, program: interpret.Program, values: Sequence, num_leaves: int) -> jax.Array:
        """The one output of the program, whose first ``num_leaves`` arguments are the leaves."""
        weights = [_Weight(leaf, value, 1.0) for leaf, value in enumerate(values[:num_leaves])]
        (output,) = program.evaluate([*weights, *values[num_leaves:]], self._evaluate)
        if isinstance(output, _Weight):  # a function that returns a parameter
            self.others.add(output.leaf)
            return output.value
        return output

    def _evaluate(self, operation: interpret.Operation, operands: list) -> Sequence:
        name = operation.name
        weights = [o for o in operands if isinstance(o, _Weight)]
        values = [o.value if isinstance(o, _Weight) else o for o in operands]
        outputs = [_convolve(operation, values)] if name == "conv_general_dilated" else operation.apply(values)
        if len(weights) == 1:
            (weight,) = weights
            if (scale := _rescaled(operation, operands)) is not None:
                order = weight.order if name in _KEEPING_ORDER else (*weight.order, (name, str(operation.params)))
                return [_Weight(weight.leaf, outputs[0], weight.scale * scale, order)]
            if name in BILINEAR and (use := _weight_use(operation, operands, outputs[0])) is not None:
                return [self._tap(use, operands, outputs[0])]
        self.others.update(weight.leaf for weight in weights)
        return outputs

    def _tap(self, use: _Use, operands: list, output: jax.Array) -> jax.Array:
        weight, data = operands if isinstance(operands[0], _Weight) else operands[::-1]
        if self.structured is None:
            self.uses[weight.leaf].append(use)
            return output
        if weight.leaf not in self.structured:
            return output
        self.data[weight.leaf].append(data * jnp.asarray(weight.scale, data.dtype))
        return output + next(self.taps[weight.leaf])


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


def _weight_use(operation: interpret.Operation, operands: list, output: Any) -> _Use | None:
    side = 0 if isinstance(operands[0], _Weight) else 1
    data, weight = operands[1 - side], operands[side]
    if not all(jnp.issubdtype(array.dtype, jnp.floating) for array in (data, weight.value, output)):
        return None  # complex data: the gradient of a real weight is the real part of the product
    geometry = geometry_of(operation, side, weight.value.shape)
    if geometry is None:
        return None
    data_type, output_type = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (data, output))
    if isinstance(geometry, Convolution):
        axes: tuple = (geometry.weight_spec, geometry.window, geometry.groups)
    else:
        axes = (geometry.weight_contract, geometry.weight_batch)
    return _Use(geometry, data_type, output_type, weight.order, axes)
