"""Find the linear layers of a function, and what flows into and back out of them.

A layer is a place where a parameter multiplies data: y = a W, a matrix product or a convolution. The gradient of an
output f_k with respect to W is then known without being formed: it is the sum over positions p of a_p (x) delta_kp,
delta_k being the gradient of f_k with respect to y. `find` walks through the program of any function of (params,
inputs) and says which parameters are used in this way and in no other, perhaps reshaped, transposed or multiplied by
a number first (the NTK parametrisation); all others are left to plain Jacobians. `run_fn` then evaluates the program
with a tap after each such layer: differentiating with respect to the taps gives all deltas in one backward pass that
forms no gradient of a weight. `uses` says less and asks for less: every place where a parameter multiplies data, of a
function with any outputs, be it the parameter's only use or not.

>>> import jax, jax.numpy as jnp
>>> from jaxbp.jaxprs import linear_layers
>>> found = linear_layers.find(lambda p, x: x @ (2.0 * p["kernel"]), {"kernel": jnp.ones((3, 5))}, jnp.ones((4, 3)))
>>> [(layer.leaf, layer.data.shape, layer.output.shape) for layer in found.layers]
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
from jax.extend import core as jex_core

from jaxbp.ops import convolution

_INLINED = {  # operations that only wrap a jaxpr, and the field that holds it; rules of differentiation of their own stay closed
    "jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr",
    "remat": "jaxpr", "remat2": "jaxpr", "checkpoint": "jaxpr",
}  # fmt: skip
_REARRANGING = ("reshape", "transpose", "squeeze", "rev", "copy", "expand_dims", "neg")  # entries keep their size
_BILINEAR = ("dot_general", "conv_general_dilated", "jaxbp_conv")


class Matmul(NamedTuple):
    """A `lax.dot_general` of data and a weight; ``weight_side``: 0 if the weight is the first operand."""

    contract: tuple[int, ...]  # axes of the data
    batch: tuple[int, ...]  # axes of the data, shared with the weight: each slice has a weight of its own
    weight_side: int
    weight_contract: tuple[int, ...]  # axes of the weight
    weight_batch: tuple[int, ...]

    def patches(self, data: jax.Array) -> jax.Array:
        """What multiplies the weight: data to (positions P, groups g, K)."""
        free = [axis for axis in range(data.ndim) if axis not in (*self.contract, *self.batch)]
        sizes = [math.prod(data.shape[axis] for axis in axes) for axes in (free, self.batch, self.contract)]
        return data.transpose(*free, *self.batch, *self.contract).reshape(sizes)

    def deltas(self, output: jax.Array, data: Any) -> jax.Array:
        """A gradient with respect to the output to (P, g, o)."""
        groups = math.prod(output.shape[: len(self.batch)])
        positions = math.prod(data.shape) // math.prod(data.shape[axis] for axis in (*self.contract, *self.batch))
        if self.weight_side == 1:
            return output.reshape(groups, positions, -1).transpose(1, 0, 2)
        return output.reshape(groups, -1, positions).transpose(2, 0, 1)


class Convolution(NamedTuple):
    """A convolution of data and a weight in any dimensions and layout, without batch groups."""

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    data_dilation: tuple[int, ...]
    weight_dilation: tuple[int, ...]
    window: tuple[int, ...]
    groups: int
    data_spec: tuple[int, ...]  # axes of batch, channels, space
    output_spec: tuple[int, ...]
    weight_spec: tuple[int, ...]  # axes of outputs, inputs, window

    def image(self, data: jax.Array) -> jax.Array:
        """Data as (batch, *space, channels), dilated and padded."""
        batch, channels, *space = self.data_spec
        holes = zip(self.padding, self.data_dilation, strict=True)
        pads = [(0, 0, 0), *((low, high, dilation - 1) for (low, high), dilation in holes), (0, 0, 0)]
        return lax.pad(data.transpose(batch, *space, channels), jnp.zeros((), data.dtype), pads)

    def taps(self, extents: Sequence[int]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """(start, stop) of the pixels of a padded image of these extents that each weight of the window sees."""
        sizes = zip(extents, self.window, self.weight_dilation, self.strides, strict=True)
        counts = [(extent - (width - 1) * dilation - 1) // stride + 1 for extent, width, dilation, stride in sizes]
        found = []
        for tap in itertools.product(*map(range, self.window)):
            start = tuple(t * d for t, d in zip(tap, self.weight_dilation, strict=True))
            found.append((start, tuple(a + (n - 1) * s + 1 for a, n, s in zip(start, counts, self.strides, strict=True))))
        return found

    def patches(self, data: jax.Array) -> jax.Array:
        """What multiplies the weight: data to (positions P, groups g, K), the batch being part of the positions."""
        image = self.image(data)
        steps = (1, *self.strides, 1)
        cut = [
            lax.slice(image, (0, *start, 0), (image.shape[0], *stop, image.shape[-1]), steps)
            for start, stop in self.taps(image.shape[1:-1])
        ]
        stacked = jnp.stack([part.reshape(-1, self.groups, image.shape[-1] // self.groups) for part in cut], axis=2)
        return stacked.reshape(*stacked.shape[:2], -1)

    def deltas(self, output: jax.Array, data: Any) -> jax.Array:
        """A gradient with respect to the output to (P, g, o)."""
        del data
        batch, channels, *space = self.output_spec
        features = output.shape[channels]
        return output.transpose(batch, *space, channels).reshape(-1, self.groups, features // self.groups)


class Layer(NamedTuple):
    """One use of a parameter as the weight of a linear layer; ``data`` and ``output`` are shapes with dtypes.

    ``source`` is the same number for layers that read the same array. ``steps`` lead from the leaf to the weight, one
    function after another, each a rearrangement or a multiplication by a number; None if a number is not known before the
    program runs.
    """

    leaf: int
    geometry: Matmul | Convolution
    data: jax.ShapeDtypeStruct
    output: jax.ShapeDtypeStruct
    source: int
    steps: tuple[Callable, ...] | None


class Layers(NamedTuple):
    """What `find` found: the program, its layers in the order of their use, and the leaves that want a plain Jacobian."""

    jaxpr: Any
    consts: list
    layers: tuple[Layer, ...]
    others: tuple[int, ...]
    num_leaves: int


def find(fn: Callable, params: Any, *arguments: Any) -> Layers:
    """Trace ``fn(params, *arguments)`` and find the layers of its leaves; only shapes of the arguments matter."""
    closed = jax.make_jaxpr(fn)(params, *arguments)
    num_leaves = len(jax.tree.leaves(params))
    walk = _Walk(structured=None)
    values = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in closed.jaxpr.invars]

    def evaluate(*values: jax.Array) -> Any:
        return walk.output(closed.jaxpr, closed.consts, values, num_leaves)

    jax.eval_shape(evaluate, *values)
    times = collections.Counter(layer.leaf for layer in walk.layers)
    layers = tuple(layer for layer in walk.layers if times[layer.leaf] == 1 and layer.leaf not in walk.others)
    others = tuple(sorted((walk.others | set(times)) - {layer.leaf for layer in layers}))
    return Layers(closed.jaxpr, closed.consts, layers, others, num_leaves)


def uses(fn: Callable, params: Any, *arguments: Any) -> tuple[Layer, ...]:
    """Trace ``fn(params, *arguments)`` and find every use of a leaf as the weight of a linear layer, in order.

    ``fn`` may return anything. A leaf that is used in other ways as well, or several times, is found all the same.
    """
    closed = jax.make_jaxpr(fn)(params, *arguments)
    num_leaves = len(jax.tree.leaves(params))
    walk = _Walk(structured=None)

    def evaluate(*values: jax.Array) -> None:
        weights = [_Weight(leaf, value, 1.0) for leaf, value in enumerate(values[:num_leaves])]
        walk.run(closed.jaxpr, closed.consts, [*weights, *values[num_leaves:]])

    jax.eval_shape(evaluate, *(jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in closed.jaxpr.invars))
    return tuple(walk.layers)


def run_fn(found: Layers) -> Callable:
    """``(taps, others, leaves, arguments) -> (output, data of each layer)`` for the program that was found.

    ``taps``: arrays added to the layers' outputs (zeros, to be differentiated); ``others``: the leaves `found.others`;
    ``leaves``: all leaves; ``arguments``: flat, as the function took them. The data are multiplied by whatever number
      multiplies the weight.
    """
    structured = frozenset(layer.leaf for layer in found.layers)

    def run(taps: Sequence, others: Sequence, leaves: Sequence, arguments: Sequence) -> tuple[jax.Array, list]:
        leaves = list(leaves)
        for leaf, value in zip(found.others, others, strict=True):
            leaves[leaf] = value
        walk = _Walk(structured=structured, taps=taps)
        return walk.output(found.jaxpr, found.consts, [*leaves, *arguments], found.num_leaves), walk.data

    return run


class _Weight(NamedTuple):
    """A leaf, perhaps rearranged or scaled: ``value`` is ``scale`` times the leaf's entries in some order."""

    leaf: int
    value: jax.Array
    scale: jax.Array | float
    steps: tuple[Callable, ...] | None = ()


class _Walk:
    """One evaluation of the program, operation by operation, that keeps an eye on the parameters.

    Without ``structured`` it collects layers and others; with it, it taps the layers of those leaves.
    """

    def __init__(self, structured: frozenset | None, taps: Sequence = ()):
        self.structured = structured
        self.taps = iter(taps)
        self.layers: list[Layer] = []
        self.others: set[int] = set()
        self.data: list[jax.Array] = []
        self.sources: list[jax.Array] = []  # held, so that their identities stay theirs
        self.casts: dict[int, jax.Array] = {}  # what an array was before a change of precision

    def output(self, jaxpr: Any, consts: Sequence, values: Sequence, num_leaves: int) -> jax.Array:
        """The program's one output; its first ``num_leaves`` arguments are the leaves."""
        weights = [_Weight(leaf, value, 1.0) for leaf, value in enumerate(values[:num_leaves])]
        (output,) = self.run(jaxpr, consts, [*weights, *values[num_leaves:]])
        if isinstance(output, _Weight):  # a function that hands a parameter out as it is
            self.others.add(output.leaf)
            return output.value
        return output

    def run(self, jaxpr: Any, consts: Sequence, arguments: Sequence) -> list:
        environment = dict(zip(jaxpr.constvars, consts, strict=True))
        environment.update(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, jex_core.Literal) else environment[atom]

        for eqn in jaxpr.eqns:
            environment.update(zip(eqn.outvars, self._evaluate(jaxpr, eqn, [read(a) for a in eqn.invars]), strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _evaluate(self, jaxpr: Any, eqn: Any, operands: list) -> list:
        name = eqn.primitive.name
        if name in _INLINED:
            inner = eqn.params[_INLINED[name]]
            inner, consts = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, [])
            return self.run(inner, consts, operands)
        weights = [o for o in operands if isinstance(o, _Weight)]
        values = [o.value if isinstance(o, _Weight) else o for o in operands]
        outputs = [_convolve(eqn, values)] if name == "conv_general_dilated" else _bind(jaxpr, eqn, values)
        if not weights:
            if name == "convert_element_type":
                self.sources.append(outputs[0])
                self.casts[id(outputs[0])] = self.casts.get(id(values[0]), values[0])
            return outputs
        if len(weights) == 1:
            if (scale := _rescaled(eqn, operands)) is not None:
                steps = _extended(weights[0].steps, jaxpr, eqn, operands)
                return [_Weight(weights[0].leaf, outputs[0], weights[0].scale * scale, steps)]
            if name in _BILINEAR and (layer := _layer(eqn, operands, outputs[0], self._source)) is not None:
                return [self._tap(layer, operands, outputs[0])]
        self.others.update(weight.leaf for weight in weights)
        return outputs

    def _source(self, data: jax.Array) -> int:
        data = self.casts.get(id(data), data)
        known = [index for index, array in enumerate(self.sources) if array is data]
        self.sources.append(data)
        return known[0] if known else len(self.sources) - 1

    def _tap(self, layer: Layer, operands: list, output: jax.Array) -> jax.Array:
        if self.structured is None:
            self.layers.append(layer)
            return output
        if layer.leaf not in self.structured:
            return output
        weight, data = operands if isinstance(operands[0], _Weight) else operands[::-1]
        self.data.append(data * jnp.asarray(weight.scale, data.dtype))
        return output + next(self.taps)


def _bind(jaxpr: Any, eqn: Any, values: list) -> list:
    """Evaluate one operation, as a program of its own: that serves every kind, whatever it wraps."""
    operands = {  # one may occur twice
        var: value for var, value in zip(eqn.invars, values, strict=True) if not isinstance(var, jex_core.Literal)
    }
    one = jaxpr.replace(constvars=[], invars=list(operands), outvars=eqn.outvars, eqns=[eqn], effects=eqn.effects)
    return jex_core.jaxpr_as_fun(jex_core.ClosedJaxpr(one, ()))(*operands.values())


def _extended(steps: tuple | None, jaxpr: Any, eqn: Any, operands: list) -> tuple | None:
    """The steps and this operation, or None if its other operand is not known now."""
    rest = [None if isinstance(operand, _Weight) else operand for operand in operands]
    if steps is None or any(isinstance(operand, jax.core.Tracer) for operand in rest):
        return None
    return (*steps, lambda value: _bind(jaxpr, eqn, [value if operand is None else operand for operand in rest])[0])


def _convolve(eqn: Any, values: list) -> jax.Array:
    """A convolution by the formulation that is fast here, in loops too."""
    names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers", "feature_group_count",
             "batch_group_count", "precision", "preferred_element_type")  # fmt: skip
    return convolution.conv_general_dilated(*values, **{name: eqn.params[name] for name in names})


def _rescaled(eqn: Any, operands: list) -> jax.Array | float | None:
    """The number by which an operation multiplies all entries of its weight, if that and rearranging is all that it does."""
    name, (result,) = eqn.primitive.name, [v.aval for v in eqn.outvars][:1]
    weight = next(o for o in operands if isinstance(o, _Weight))
    if result.size != weight.value.size:
        return None
    if name in _REARRANGING:
        return -1.0 if name == "neg" else 1.0
    if name == "broadcast_in_dim":  # of the same size: new axes of extent 1
        return 1.0
    if name == "convert_element_type" and jnp.issubdtype(result.dtype, jnp.floating):
        return 1.0
    if name == "mul":
        number = operands[1] if isinstance(operands[0], _Weight) else operands[0]
        return jnp.reshape(number, ()) if jnp.size(number) == 1 else None
    if name == "div" and isinstance(operands[0], _Weight) and jnp.size(operands[1]) == 1:
        return 1.0 / jnp.reshape(operands[1], ())
    return None


def _layer(eqn: Any, operands: list, output: Any, source_fn: Callable[[Any], int]) -> Layer | None:
    side = 0 if isinstance(operands[0], _Weight) else 1
    data, weight = operands[1 - side], operands[side]
    geometry = _GEOMETRIES[eqn.primitive.name](eqn.params, side, weight.value)
    if geometry is None:
        return None
    seen, made = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (data, output))
    return Layer(weight.leaf, geometry, seen, made, source_fn(data), weight.steps)


def _matmul(params: dict, side: int, weight: Any) -> Matmul:
    contract, batch = params["dimension_numbers"]
    return Matmul(
        tuple(contract[1 - side]), tuple(batch[1 - side]), side, tuple(contract[side]), tuple(batch[side])
    )  # fmt: skip


def _convolution(params: dict, side: int, weight: Any) -> Convolution | None:
    if side == 0 or params["batch_group_count"] != 1:
        return None
    numbers = params["dimension_numbers"]
    return Convolution(
        tuple(params["window_strides"]), tuple(params["padding"]),
        tuple(params["lhs_dilation"]), tuple(params["rhs_dilation"]),
        tuple(weight.shape[axis] for axis in numbers.rhs_spec[2:]),
        params["feature_group_count"], tuple(numbers.lhs_spec), tuple(numbers.out_spec), tuple(numbers.rhs_spec),
    )  # fmt: skip


def _house_convolution(params: dict, side: int, weight: Any) -> Convolution | None:
    spec = params["spec"]
    if side == 0 or spec.product != "output" or spec.stacked:
        return None
    n = len(spec.spatial)
    last = (0, n + 1, *range(1, n + 1))
    return Convolution(spec.strides, spec.padding, (1,) * n, spec.dilation, spec.window, 1, last, last, (n + 1, n, *range(n)))


_GEOMETRIES = {"dot_general": _matmul, "conv_general_dilated": _convolution, "jaxbp_conv": _house_convolution}
