"""Chains of dense layers with ReLUs: what they are made of, the affine map that they compute, and a curve out of flat saddles.

While all ReLUs are active, a chain of dense layers is a deep linear network. If no hidden layer is narrower than its inputs or outputs, a
convex differentiable loss has no local minimum other than those of the affine map itself (Laurent and von Brecht, ICML 2018; the bias of
the last layer makes the constant of the map free, so that their theorem for maps without bias holds at each constant, and a stationary
point of both parts is the minimum of a convex function).

A point where the map can still be improved is then a saddle, though one of L layers may be flat up to order L: only a unit that is idle
in every hidden layer, taken into use along a path through all of them, lowers the loss. `idle_path` finds such a path.

>>> import jax, jax.numpy as jnp
>>> from jaxbp.landscape import dense_chain
>>> def apply_fn(params, x):
...     return jax.nn.relu(x @ params["in"] + params["shift"]) @ params["out"]
>>> shapes = {"in": jnp.ones((3, 4)), "out": jnp.ones((4, 2)), "shift": jnp.ones(4)}
>>> [layer.kernel for layer in dense_chain.read(apply_fn, shapes, jnp.ones((5, 3)))]  # places among the leaves
[0, 1]
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core as jex_core
from jaxtyping import Float

from jaxbp.jaxprs import interpret


class Dense(NamedTuple):
    """One layer; a layer may multiply its kernel by a number.

    Attributes:
      kernel: place of the kernel (fan_in, fan_out) among the parameters' leaves.
      bias: place of the bias (fan_out,); None without one.
    """

    kernel: int
    bias: int | None


class _Leaf(NamedTuple):
    place: int
    size: int


class _Chain(NamedTuple):
    layers: tuple[Dense, ...]


class _NoChainError(Exception):
    """The program is something else than a chain of dense layers."""


def read(apply_fn: Callable, params: Any, inputs: Any) -> tuple[Dense, ...] | None:
    """The layers of a network that is a chain of dense layers with ReLUs on flattened inputs (N, ...); None for any other network."""
    program = interpret.trace(apply_fn, params, inputs)
    leaves = jax.tree.leaves(params)
    arguments: list[Any] = [*(_Leaf(i, leaf.size) for i, leaf in enumerate(leaves)), _Chain(())]
    opened = (interpret.CALL, interpret.CUSTOM_DERIVATIVE)
    try:
        (output,) = program.evaluate(arguments, _rule, opened=opened, constant_fn=lambda _: None)
    except _NoChainError:
        return None
    if not isinstance(output, _Chain) or not output.layers:
        return None
    used = [place for layer in output.layers for place in layer if place is not None]
    return output.layers if len(set(used)) == len(used) else None


def _rule(operation: interpret.Operation, operands: list[Any]) -> list[Any]:
    name, shape = operation.name, operation.output_types[0].shape
    chains = [o for o in operands if isinstance(o, _Chain)]
    leaves = [o for o in operands if isinstance(o, _Leaf)]
    if not chains and not leaves:
        return [None] * len(operation.output_types)
    if name in ("convert_element_type", "copy", "stop_gradient") or (name in ("mul", "div") and len(leaves) == 1 and not chains):
        return [operands[0] if operands[0] is not None else operands[1]]
    if name in ("reshape", "broadcast_in_dim", "squeeze") and leaves and shape[-1] == leaves[0].size:  # a bias, for all examples
        return [leaves[0]]
    if name in ("reshape", "squeeze") and chains and not chains[0].layers and shape[0] == operation.input_types[0].shape[0]:
        return [chains[0]]  # images are flattened
    if name == "dot_general" and isinstance(operands[0], _Chain) and isinstance(operands[1], _Leaf):
        is_plain = operation.params["dimension_numbers"] == (((1,), (0,)), ((), ()))
        if is_plain and operands[1].size == math.prod(operation.input_types[1].shape) and len(operation.input_types[1].shape) == 2:
            return [_Chain((*operands[0].layers, Dense(operands[1].place, None)))]
    if name in ("add", "add_any") and len(chains) == len(leaves) == 1 and chains[0].layers and chains[0].layers[-1].bias is None:
        *before, last = chains[0].layers
        if leaves[0].size == shape[-1]:
            return [_Chain((*before, last._replace(bias=leaves[0].place)))]
    if name == "max" and len(chains) == 1 and chains[0].layers and _is_zero(operation, operands):
        return [chains[0]]
    raise _NoChainError


def _is_zero(operation: interpret.Operation, operands: list[Any]) -> bool:
    (atom,) = (atom for atom, operand in zip(operation.equation.invars, operands, strict=True) if not isinstance(operand, _Chain))
    return isinstance(atom, jex_core.Literal) and np.ndim(atom.val) == 0 and atom.val == 0


def reaches_every_map(layers: Sequence[Dense], leaves: Sequence[Any]) -> bool:
    """Whether the theorem applies: no hidden layer is narrower than both ends of the chain, and the last layer has a bias."""
    widths = [leaves[layer.kernel].shape[1] for layer in layers]
    return layers[-1].bias is not None and min(widths) >= min(leaves[layers[0].kernel].shape[0], widths[-1])


def idle_path(
    layers: Sequence[Dense],
    leaves: Sequence[Float[np.ndarray, "..."]],
    map_gradient: Float[np.ndarray, "d c"],
    input_mean: Float[np.ndarray, " d"],
    sizes: Float[np.ndarray, " m"],
) -> Float[np.ndarray, "m p"] | None:
    """Changes (M, P) of all parameters, of the Euclidean norms ``sizes``, that take one idle unit of each hidden layer into use.

    The units form a path that adds a map of rank 1 along the steepest descent of the affine map's loss; the last bias keeps the mean logits
    as they are. All ReLUs are taken as active. None if some hidden layer has no idle unit: no direction that its inputs do not reach and
    its outputs do not use.

    Args:
      layers: of `read`.
      leaves: the parameters.
      map_gradient: (d, C) of the loss with respect to the affine map's kernel.
      input_mean: (d,).
      sizes: M positive numbers.
    """
    kernels = [np.asarray(leaves[layer.kernel], float) for layer in layers]
    units = _idle_units(kernels)
    if units is None:
        return None
    left, _, right = np.linalg.svd(-map_gradient, full_matrices=False)
    vectors = [left[:, 0], *units, right[0]]
    steps = [np.outer(a, b) for a, b in itertools.pairwise(vectors)]
    before = _mean_logits(layers, leaves, kernels, input_mean)
    offsets = []
    for size in sizes:
        changes = [np.zeros(np.shape(leaf)) for leaf in leaves]
        for layer, step in zip(layers, steps, strict=True):
            changes[layer.kernel] += size / math.sqrt(len(steps)) * step
        if (bias := layers[-1].bias) is not None:
            moved = [kernel + changes[layer.kernel] for kernel, layer in zip(kernels, layers, strict=True)]
            changes[bias] += (before - _mean_logits(layers, leaves, moved, input_mean)).reshape(changes[bias].shape)
        offset = np.concatenate([change.ravel() for change in changes])
        offsets.append(offset * (size / np.linalg.norm(offset)) if bias is None else offset)
    return np.stack(offsets)


def _idle_units(kernels: list[np.ndarray]) -> list[np.ndarray] | None:
    """For each hidden layer a unit vector that the map into the layer does not reach and the map out of it does not use."""
    units = []
    for k in range(1, len(kernels)):
        arriving, leaving = _product(kernels[:k]), _product(kernels[k:])
        rows = np.concatenate([arriving / (np.linalg.norm(arriving) or 1.0), leaving.T / (np.linalg.norm(leaving) or 1.0)])
        _, singular, right = np.linalg.svd(rows)
        rank = int((singular > 1e-10).sum())
        if rank == rows.shape[1]:
            return None
        units.append(right[-1])
    return units


def _product(kernels: list[np.ndarray]) -> np.ndarray:
    product = kernels[0]
    for kernel in kernels[1:]:
        product = product @ kernel
    return product


def _mean_logits(layers: Sequence[Dense], leaves: Sequence[Any], kernels: list[np.ndarray], features: np.ndarray) -> np.ndarray:
    for layer, kernel in zip(layers, kernels, strict=True):
        features = features @ kernel + (0.0 if layer.bias is None else np.ravel(leaves[layer.bias]))
    return features
