"""A Flax module as a function of parameters, with the mode of its BatchNorm said out loud.

A tangent kernel is a kernel of the function that the network computes, and with BatchNorm there are two: with stored
statistics, where examples are independent, and with those of the batch, where each output depends on all of them.
Flax lets a model choose silently; here the caller has to.

>>> import flax.linen as nn, jax, jax.numpy as jnp
>>> from jaxbp import ntk
>>> net = nn.Sequential([nn.Dense(4), nn.BatchNorm(use_running_average=True), nn.tanh, nn.Dense(2)])
>>> variables = net.init(jax.random.key(0), jnp.ones((3, 5)))
>>> ntk.flax_ntk(net, variables, jnp.ones((3, 5)), batch_norm="stored").shape
(3, 3, 2, 2)
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import flax.linen as nn
import jax

from jaxbp.ntk.empirical import empirical_ntk

BATCH_NORM = (None, "stored", "batch")


def flax_ntk(
    module: nn.Module,
    variables: Mapping[str, Any],
    x1: jax.Array,
    x2: jax.Array | None = None,
    *,
    batch_norm: str | None = None,
    apply_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> jax.Array:
    """`empirical_ntk` of a Flax module, differentiated with respect to the collection "params".

    Args:
      module, variables: the module and all its collections, as `module.init` returns them.
      x1, x2: examples.
      batch_norm: "stored" statistics (the paper's) or those of the "batch", differentiated through; needed if the
        module holds a BatchNorm.
      apply_options: keyword arguments of the module's call, such as ``train=False``; hashable.
      options: of `empirical_ntk`.

    Raises:
      ValueError: as `flax_function`, and when the module holds a BatchNorm and ``batch_norm`` is not said.
    """
    fn = flax_function(module, batch_norm=batch_norm, **dict(apply_options or {}))
    params, state = variables["params"], {name: value for name, value in variables.items() if name != "params"}
    return empirical_ntk(fn, params, x1, x2, state=state, coupled=batch_norm == "batch", **options)


def flax_function(module: nn.Module, *, batch_norm: str | None = None, **apply_options: Any) -> Callable[[Any, jax.Array, Any], jax.Array]:
    """``(params, inputs, state) -> logits`` of a Flax module; the same object for equal arguments, so that programs
    are compiled once.

    ``state``: the other collections, ``{"batch_stats": ...}`` or ``{}``. Every BatchNorm is made to use the
      statistics named.

    Raises:
      ValueError: an unknown mode; when traced, a BatchNorm without a mode, or one that was built for the other.
    """
    if batch_norm not in BATCH_NORM:
        raise ValueError(f"batch_norm must be one of {BATCH_NORM}, got {batch_norm!r}")
    options = tuple(sorted(apply_options.items()))
    try:
        hash((module, options))
    except TypeError:
        return _function(module, batch_norm, options)
    return _cached_function(module, batch_norm, options)


def _function(module: nn.Module, batch_norm: str | None, options: tuple) -> Callable:
    def steer(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        if isinstance(context.module, nn.BatchNorm) and context.method_name == "__call__":
            kwargs = _steered(context.module, kwargs, batch_norm)
            args = args[:1]  # a mode given by position
        return call(*args, **kwargs)

    def apply(params: Any, inputs: jax.Array, state: Any) -> jax.Array:
        variables = {"params": params, **(state or {})}
        with nn.intercept_methods(steer):
            if batch_norm == "batch":  # Flax updates the stored statistics as it goes; they are let go
                return module.apply(variables, inputs, mutable=["batch_stats"], **dict(options))[0]
            return cast(jax.Array, module.apply(variables, inputs, **dict(options)))

    return apply


_cached_function = functools.cache(_function)


def _steered(layer: nn.BatchNorm, kwargs: dict, batch_norm: str | None) -> dict:
    name = "/".join(layer.path) or "the module"
    if batch_norm is None:
        raise ValueError(
            f'{name} is a BatchNorm: say batch_norm="stored" (its running statistics) or "batch" (those of the examples given)'
        )
    stored = batch_norm == "stored"
    if layer.use_running_average is None:
        return {**kwargs, "use_running_average": stored}
    if layer.use_running_average != stored:
        raise ValueError(
            f"{name} is built with use_running_average={layer.use_running_average}, against batch_norm={batch_norm!r}: pass the module's "
            "own argument for it, such as train=False, in apply_options"
        )
    return kwargs
