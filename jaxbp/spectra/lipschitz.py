"""Upper and lower bounds of a network's Lipschitz constant in the Euclidean norm.

`upper` walks through the traced program and carries, for each intermediate value, a bound L of its Lipschitz constant as a function of the
inputs: a product multiplies L by the operator's norm (for a convolution that of the operator on its map, or an upper bound of it where
it is too large to decompose), a sum of two branches adds theirs, so that a residual network gets the sum over its paths, and an elementwise
function multiplies by its largest slope. Along a chain that is the product of norms of Szegedy et al. (ICLR 2014, section 4.3); it is
blind to how layers align, and loose in deep networks. An affine network has its exact norm. BatchNorm with
stored statistics is a diagonal operator.

`lower` climbs: the norm of the Jacobian at any point is a lower bound wherever the function is differentiable.

>>> import jax, jax.numpy as jnp
>>> from jaxbp.spectra import lipschitz
>>> def residual(params, inputs):
...     return inputs + jax.nn.relu(inputs @ params["kernel"])
>>> params, inputs = {"kernel": jnp.diag(jnp.array([3.0, 2.0]))}, jnp.ones((1, 2))
>>> bound = lipschitz.upper(residual, params, inputs)
>>> round(bound.value, 4), [(name, round(norm, 4)) for name, norm in bound.factors]
(4.0, [('dot_general', 3.0)])
>>> round(lipschitz.lower(residual, params, inputs, jax.random.key(0)), 4)
4.0
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxbp import checks
from jaxbp.jaxprs import expressions, interpret, products, weight_uses
from jaxbp.spectra.network import NotFixedError, operator_of
from jaxbp.spectra.spectrum import of_geometry

# Largest slopes of elementwise functions; of jax.nn's where they are jitted functions of their own.
_SLOPES = {"tanh": 1.0, "logistic": 0.25, "abs": 1.0, "neg": 1.0, "sin": 1.0, "cos": 1.0, "erf": 2 / math.sqrt(math.pi), "atan": 1.0}
_NN_SLOPES = dict.fromkeys(("relu", "relu6", "softplus", "log_sigmoid", "hard_tanh", "soft_sign"), 1.0) | {
    "silu": 1.0998394,
    "selu": 1.7580994,
}
_MOVING = ("reshape", "transpose", "squeeze", "expand_dims", "rev", "slice", "copy", "stop_gradient", "pad", "split")
_SUMS = ("broadcast_in_dim", "reduce_sum", "reduce_window_sum", "add", "sub", "add_any", "concatenate")
_LINEAR = (*_MOVING, *_SUMS, *products.BILINEAR, "neg", "mul", "div", "select_n", "convert_element_type")
_MOST_ENTRIES = 2**22  # of the matrix of an affine function that is decomposed
_ADVICE = "write the network with products, sums, jax.nn's ReLU-like functions, max and average pooling, and norms of stored statistics"


@dataclass(frozen=True)
class UpperBound:
    """An upper bound of a Lipschitz constant.

    Attributes:
      value: the bound, in float32 or float64 as the parameters are, exact up to its rounding.
      factors: (name of the operation, its Lipschitz constant) in the order of the program, those that are not 1; sums are not listed.
    """

    value: float
    factors: tuple[tuple[str, float], ...]


class _Data(NamedTuple):
    """A value that depends on the inputs: a bound of its Lipschitz constant, and whether it is an affine function of them."""

    bound: float
    affine: bool


def upper(apply_fn: Callable, params: PyTree, inputs: Any) -> UpperBound:
    """An upper bound of the Lipschitz constant of ``inputs -> apply_fn(params, inputs)``, over all inputs.

    Of an affine function whose matrix has at most 2^22 entries the value is the matrix' norm, not the product of ``factors``.

    Known are products and convolutions by what does not depend on the inputs, sums, differences, scaling, tanh, sigmoid, ReLU and most of
    its kin in `jax.nn`, max and average pooling, means, concatenation, and moving of entries. Products of two values that depend on the
    inputs (attention, batch statistics, LayerNorm, GELU) have no such bound, or none that is known here.

    Args:
      apply_fn: any function of one array of inputs that returns one array.
      params: arrays.
      inputs: (N, ...), only the shape matters; distances are those of whole batches, which for independent examples is the same.

    Raises:
      ValueError: another operation; the message names it.
    """
    params, examples = checks.parameters(params), checks.examples(inputs)
    checks.refuse_traced("params and inputs", *jax.tree.leaves(params), examples)
    if not jnp.issubdtype(examples.dtype, jnp.floating):
        raise ValueError(f"inputs must be floating-point numbers, as a Lipschitz constant is of a function of them, got {examples.dtype}")
    program = interpret.trace(functools.partial(apply_fn, params), jax.ShapeDtypeStruct(examples.shape, examples.dtype))
    walk = _Walk([])
    outputs = walk.run(program, [_Data(1.0, True)])
    if len(outputs) != 1:
        raise ValueError(f"apply_fn must return one array, got {len(outputs)}: of Flax's apply with mutable=[...] take the first entry")
    if not isinstance(outputs[0], _Data):
        return UpperBound(0.0, ())
    bound, affine = outputs[0]
    if affine and examples.size * math.prod(program.jaxpr.outvars[0].aval.shape) <= _MOST_ENTRIES:
        jacobian = jax.jit(jax.jacobian(functools.partial(apply_fn, params)))(jnp.zeros_like(examples))
        bound = float(np.linalg.norm(np.asarray(jacobian, np.float64).reshape(-1, examples.size), 2))
    return UpperBound(bound, tuple(walk.factors))


def lower(
    apply_fn: Callable, params: PyTree, inputs: Any, key: jax.Array, *, num_steps: int = 20, num_products: int = 10, radius: float = 0.1
) -> float:
    """A lower bound of the Lipschitz constant: the largest spectral norm of a Jacobian that a search from the inputs meets.

    From each example a search of ``num_steps`` steps moves by ``radius`` along the gradient of the norm and a random direction, and stays
    where the norm does not grow. The norm is \\|J v\\| for a unit v from ``num_products`` steps of power iteration, so never too large.

    Args:
      apply_fn: ``(params, inputs (1, ...)) -> array``, differentiable almost everywhere.
      params: arrays.
      inputs: (N, ...), where the search starts.
      key: random key.
      num_steps: steps of the search; 0 evaluates the inputs alone.
      num_products: products with J and its transpose for each norm; the direction is kept from step to step.
      radius: length of a step in units of the inputs.

    Raises:
      ValueError: other arguments.
    """
    params, examples = checks.parameters(params), checks.examples(inputs)
    if not jnp.issubdtype(examples.dtype, jnp.floating):
        raise ValueError(f"inputs must be floating-point numbers to take derivatives in, got {examples.dtype}")
    key, radius = checks.prng_key(key, known=True), checks.number(radius, "radius", positive=True, known=True)
    checks.refuse_traced("params and inputs", *jax.tree.leaves(params), examples)
    counts = checks.count(num_steps, "num_steps", least=0), checks.count(num_products, "num_products")
    output = jax.eval_shape(apply_fn, params, examples[:1])
    if not isinstance(output, jax.ShapeDtypeStruct) or not jnp.issubdtype(output.dtype, jnp.floating):
        raise ValueError(f"apply_fn must return one array of floating-point numbers, got {jax.tree.structure(output)}")
    return float(_climb(apply_fn, *counts, params, examples, key, radius).max())


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _climb(
    apply_fn: Callable, num_steps: int, num_products: int, params: PyTree, inputs: jax.Array, key: jax.Array, radius: Any
) -> jax.Array:
    """(N,) the largest norm of a Jacobian that each example's search meets."""

    def outputs(x: jax.Array) -> jax.Array:
        return apply_fn(params, x[None])

    def length(x: jax.Array, direction: jax.Array) -> jax.Array:
        return jnp.linalg.norm(jax.jvp(outputs, (x,), (direction,))[1].ravel())

    def unit(vector: jax.Array) -> jax.Array:
        size = jnp.linalg.norm(vector.ravel())
        return vector / jnp.where(size > 0, size, 1)

    def norm_at(x: jax.Array, direction: jax.Array) -> tuple[jax.Array, jax.Array]:
        def improve(_: int, v: jax.Array) -> jax.Array:
            pushed, pullback = jax.jvp(outputs, (x,), (v,))[1], jax.vjp(outputs, x)[1]
            (pulled,) = pullback(pushed)
            return jnp.where(jnp.any(pulled != 0), unit(pulled), v)

        direction = jax.lax.fori_loop(0, num_products, improve, direction)
        return length(x, direction), direction

    def step(state: tuple, step_key: jax.Array) -> tuple[tuple, None]:
        x, direction, largest = state
        noise = unit(jax.random.normal(step_key, x.shape, x.dtype))
        candidate = x + radius * unit(unit(jax.grad(length)(x, direction)) + noise)
        value, turned = norm_at(candidate, unit(direction + 0.1 * noise))
        better = value > largest
        return jax.tree.map(lambda a, b: jnp.where(better, a, b), (candidate, turned, value), state), None

    def search(arguments: tuple[jax.Array, jax.Array]) -> jax.Array:
        x, own = arguments
        first, rest = jax.random.split(own)
        value, direction = norm_at(x, unit(jax.random.normal(first, x.shape, x.dtype)))
        return jax.lax.scan(step, (x, direction, value), jax.random.split(rest, num_steps))[0][2]

    return jax.lax.map(search, (inputs, jax.random.split(key, len(inputs))))


class _Walk(NamedTuple):
    """One walk through a program, and the factors that it has met."""

    factors: list[tuple[str, float]]

    def run(self, program: interpret.Program, values: Sequence[Any]) -> list[Any]:
        return program.evaluate(values, self._evaluate, opened=(interpret.CUSTOM_DERIVATIVE,))

    def _evaluate(self, operation: interpret.Operation, operands: list[Any]) -> Sequence[Any]:
        data = [operand for operand in operands if isinstance(operand, _Data)]
        if not data:
            return operation.apply(operands)
        if operation.kind == interpret.CALL and (slope := _slope_of_call(operation, operands)) is None:
            return self.run(operation.programs[0], operands)
        factor = slope if operation.kind == interpret.CALL else _factor(operation, operands)
        name = operation.params.get("name", operation.name) if operation.kind == interpret.CALL else operation.name
        if factor is None:
            raise ValueError(f"the operation {name} has no known Lipschitz constant as it is used here: {_ADVICE}")
        if operation.name in ("add", "sub", "add_any"):
            bound = sum(operand.bound for operand in data)
        else:  # of several operands, entries of the output depend on one each, or by 1 on the one that changes most
            bound = factor * math.hypot(*(operand.bound for operand in data))
        if not math.isclose(factor, 1.0, rel_tol=1e-6):
            self.factors.append((name, factor))
        affine = operation.name in _LINEAR and all(operand.affine for operand in data)
        return [_Data(bound, affine)] * len(operation.output_types)


def _factor(operation: interpret.Operation, operands: Sequence[Any]) -> float | None:
    """The Lipschitz constant of an operation; None if it is not known."""
    name, num_data = operation.name, sum(isinstance(operand, _Data) for operand in operands)
    if name in _SLOPES:
        return _SLOPES[name]
    if name in ("add", "sub", "add_any", "max", "min", "concatenate"):
        return 1.0
    if name in _MOVING:
        return 1.0 if isinstance(operands[0], _Data) and num_data == 1 else None
    if name == "select_n":
        return None if isinstance(operands[0], _Data) else 1.0
    if name == "convert_element_type":
        return 1.0 if jnp.issubdtype(operation.params["new_dtype"], jnp.floating) else None
    if num_data > 1 or (name == "div" and not isinstance(operands[0], _Data)):
        return None
    other = next((operand for operand in operands if not isinstance(operand, _Data)), None)
    if name in ("mul", "div"):
        size = np.abs(np.asarray(other, np.float64))
        return float(size.max(initial=0) if name == "mul" else (1 / size).max(initial=0))
    if name in products.BILINEAR:
        return _norm_of_product(operation, operands)
    return _pooling_norm(operation)


def _pooling_norm(operation: interpret.Operation) -> float | None:
    """Norms of sums over axes, copies along axes, and pooling."""
    name, params, read = operation.name, operation.params, operation.input_types[0]
    if name == "broadcast_in_dim":
        return math.sqrt(operation.output_types[0].size / read.size)
    if name == "reduce_sum":
        return math.sqrt(read.size / operation.output_types[0].size)
    if name in ("reduce_max", "reduce_min"):
        return 1.0
    if name not in ("reduce_window_max", "reduce_window_sum"):
        return None
    windows = params["window_dimensions"], params["window_strides"], params["window_dilation"], params["padding"], params["base_dilation"]
    incidences = [_incidence(n, *axis) for n, *axis in zip(read.shape, *windows, strict=True)]
    if name == "reduce_window_sum":  # a Kronecker product of one matrix per axis
        return math.prod(float(np.linalg.norm(incidence, 2)) for incidence in incidences)
    return math.sqrt(math.prod(int(incidence.sum(0).max()) for incidence in incidences))  # windows that one entry may be the largest of


def _incidence(n: int, width: int, stride: int, dilation: int, padding: tuple[int, int], base: int) -> np.ndarray:
    """(outputs, n): which entries of an axis each window sees."""
    places = np.arange(n) * base + padding[0]
    room = (n - 1) * base + 1 + sum(padding)
    starts = np.arange(0, room - (width - 1) * dilation, stride)
    offsets = places[None] - starts[:, None]
    return ((offsets >= 0) & (offsets % dilation == 0) & (offsets < width * dilation)).astype(float)


def _norm_of_product(operation: interpret.Operation, operands: Sequence[Any]) -> float | None:
    """An upper bound of the norm of a product with a kernel, as an operator."""
    side = 1 if isinstance(operands[0], _Data) else 0
    kernel = jnp.asarray(operands[side])
    geometry = products.geometry_of(operation, side, kernel.shape)
    if geometry is None:
        return None
    data, output = (jax.ShapeDtypeStruct(like.shape, like.dtype) for like in (operation.input_types[1 - side], operation.output_types[0]))
    use = weight_uses.WeightUse(expressions.Expressions().constant(kernel), geometry, data, output, 0)
    try:
        layer, arrange_fn = operator_of(use)
    except NotFixedError:
        return None
    return float(of_geometry(arrange_fn(kernel), layer).upper.max())


def _slope_of_call(operation: interpret.Operation, operands: Sequence[Any]) -> float | None:
    """The slope of a function of `jax.nn`, recognised by its name and its program; None for any other call."""
    name = operation.params.get("name")
    if name not in (*_NN_SLOPES, "leaky_relu", "elu", "celu") or not isinstance(operands[0], _Data):
        return None
    types = [jax.ShapeDtypeStruct(like.shape, like.dtype, weak_type=like.weak_type) for like in operation.input_types]
    own = interpret.trace(getattr(jax.nn, name), *types).operations[0]
    if [str(program.jaxpr) for program in own.programs] != [str(program.jaxpr) for program in operation.programs]:
        return None
    if name in _NN_SLOPES:
        return _NN_SLOPES[name]
    if any(isinstance(operand, _Data) for operand in operands[1:]):
        return None
    slope = abs(float(operands[1])) if len(operands) > 1 else 1.0  # defaults, of at most 1, are part of the program
    return max(1.0, slope if name != "celu" else 1.0)
