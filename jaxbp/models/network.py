"""A network as one value: pure functions of ``(params, inputs, state)``, whichever library its module comes from.

A `Network` takes a place beside optax's `GradientTransformation`: training, sweeps, kernels and attacks ask for nothing else. Equal
networks hold the same function objects, so a program is traced once for all of them, and `jax.jit` takes one as a static argument.

>>> import jax.numpy as jnp
>>> from jaxbp import models
>>> def apply_fn(params, inputs):
...     return inputs @ params
>>> net = models.from_functions(apply_fn)
>>> net.apply(jnp.eye(2), jnp.ones((3, 2))).shape, net == models.from_functions(apply_fn)
((3, 2), True)
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from jaxbp import checks

State = Mapping[str, Any]  # the collections of a network beside its parameters: {"batch_stats": ...}, or {}
NO_STATE: State = {}


@dataclasses.dataclass(frozen=True)
class Network:
    """The functions of a network; hashable, and equal to every network of an equal configuration.

    `from_linen`, `from_nnx`, `from_functions` and `jaxbp.models.create` build one; `dataclasses.replace` exchanges a function.

    Attributes:
      init: ``(key, inputs) -> (params, state)``, fresh; only the shape (N, ...) of ``inputs`` matters. ``state`` is `State`.
      apply: ``(params, inputs, state={}) -> logits`` (N, C) in evaluation: BatchNorm uses its stored statistics.
      update: ``(params, inputs, state) -> (logits, new_state)`` in training: BatchNorm uses the statistics of the batch.
      features: ``(params, inputs, state={}) -> (N, F)``, the input of the linear head, in evaluation.
      module: the configuration, for instance a Flax module; None for plain functions.
    """

    init: Callable[[jax.Array, jax.Array], tuple[Any, State]]
    apply: Callable[..., jax.Array]
    update: Callable[[Any, jax.Array, State], tuple[jax.Array, State]]
    features: Callable[..., jax.Array]
    module: Any = dataclasses.field(default=None, compare=False)  # its functions stand for it: equal modules share them

    def __repr__(self) -> str:
        return f"Network({self.apply if self.module is None else self.module!r})"


@dataclasses.dataclass(frozen=True)
class _Stateless:
    """A function of ``(params, inputs)`` as the ``apply`` of a network without state."""

    fn: Callable[[Any, jax.Array], jax.Array]

    def __call__(self, params: Any, inputs: jax.Array, state: State = NO_STATE) -> jax.Array:
        return self.fn(params, inputs)


@dataclasses.dataclass(frozen=True)
class _StatelessUpdate:
    """A function of ``(params, inputs)`` as the ``update`` of a network without state."""

    fn: Callable[[Any, jax.Array], jax.Array]

    def __call__(self, params: Any, inputs: jax.Array, state: State) -> tuple[jax.Array, State]:
        return self.fn(params, inputs), state


@dataclasses.dataclass(frozen=True)
class _Missing:
    """A function that a network lacks."""

    name: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError(f"this network has no {self.name} function: give {self.name} to models.from_functions")


def from_functions(
    apply: Callable[..., jax.Array],
    *,
    init: Callable[[jax.Array, jax.Array], tuple[Any, State]] | None = None,
    update: Callable[[Any, jax.Array, State], tuple[jax.Array, State]] | None = None,
    features: Callable[..., jax.Array] | None = None,
) -> Network:
    """The network of plain functions; equal functions give equal networks.

    Args:
      apply: ``(params, inputs) -> logits``, a network without state; with an ``update`` ``(params, inputs, state) -> logits``.
      init, update, features: of `Network`. A network without ``init`` is trained from a given start.
    """
    stateful = update is not None
    return Network(
        init=init or _Missing("init"),
        apply=apply if stateful else _Stateless(apply),
        update=update or _StatelessUpdate(apply),
        features=features or _Missing("features"),
    )


@functools.cache
def with_batch_statistics(net: Network) -> Callable[[Any, jax.Array, State], jax.Array]:
    """``(params, inputs, state) -> logits`` by the statistics of the batch, as in training; the same object for equal networks.

    The logits of an example depend on the other examples: a tangent kernel of this function is a coupled one.
    """

    def apply(params: Any, inputs: jax.Array, state: State = NO_STATE) -> jax.Array:
        return net.update(params, inputs, state)[0]

    return apply


def with_normalised_inputs(net: Network, mean: ArrayLike, std: ArrayLike) -> Network:
    """A network of raw inputs: ``net`` of ``(inputs - mean) / std``; the same object for equal arguments.

    Args:
      net: a network of normalised inputs.
      mean, std: a number, or (C,), one for each entry of the last axis of the inputs, for instance each channel.

    Raises:
      ValueError: a mean or std that is no such numbers, a std that is not positive; when called, inputs of another number of channels.
    """
    shift, scale = _channel_numbers(mean, "mean"), _channel_numbers(std, "std")
    if np.min(scale) <= 0:
        raise ValueError(f"std must be positive, got {std}")
    return _normalised(net, shift, scale)


@functools.cache
def _normalised(net: Network, mean: float | tuple[float, ...], std: float | tuple[float, ...]) -> Network:
    shift, scale = np.asarray(mean, np.float32)[()], np.asarray(std, np.float32)[()]

    def normalised(fn: Callable) -> Callable:
        def of_raw(params: Any, inputs: jax.Array, state: State = NO_STATE) -> Any:
            for numbers in (shift, scale):
                if numbers.ndim and numbers.shape != inputs.shape[-1:]:
                    raise ValueError(
                        f"mean and std of {len(numbers)} channels need inputs (N, ..., {len(numbers)}), got shape {inputs.shape}"
                    )
            return fn(params, (inputs - shift) / scale, state)

        return of_raw

    return dataclasses.replace(net, apply=normalised(net.apply), update=normalised(net.update), features=normalised(net.features))


def _channel_numbers(value: ArrayLike, name: str) -> float | tuple[float, ...]:
    """A finite number, or a tuple of at least one: hashable.

    Raises:
      ValueError: something else.
    """
    checks.refuse_traced(name, value)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:  # ragged lists, random keys
        raise ValueError(f"{name} must be one number or (C,), one for each channel, got {value!r}") from error
    if array.ndim == 0:
        return checks.number(value, name)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{name} must be one number or (C,), one for each channel, got shape {array.shape}")
    return tuple(checks.number(entry, name) for entry in array)
