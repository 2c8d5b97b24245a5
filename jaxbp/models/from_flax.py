"""Flax modules as `Network`s: linen modules by `from_linen`, nnx modules by `from_nnx`.

The mode of a network is in the function's name: `Network.apply` evaluates, `Network.update` trains. A BatchNorm goes by its stored
statistics in the first and by those of the batch in the second. Flax lets a module choose silently; here one that is fixed to the
other statistics is refused.

>>> import flax.linen as nn, jax, jax.numpy as jnp
>>> from jaxbp import models
>>> net = models.from_linen(nn.Sequential([nn.Dense(4), nn.BatchNorm(), nn.tanh, nn.Dense(2)]))
>>> params, state = net.init(jax.random.key(0), jnp.ones((1, 5)))
>>> logits, state = net.update(params, jnp.ones((3, 5)), state)
>>> net.apply(params, jnp.ones((3, 5)), state).shape
(3, 2)
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, cast

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from jaxbp import checks
from jaxbp.models.network import NO_STATE, Network, State

TRAINING_VALUES = {  # arguments of a module's call that tell its mode, and what each is in training
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}


def from_linen(module: nn.Module, *, mode_argument: str | None = None, training_value: bool = True) -> Network:
    """The network of a linen module; the same object for equal arguments.

    The collections of the module beside "params" are the state. Features are what the module sows as ``features`` into the
    collection "intermediates": ``self.sow("intermediates", "features", ...)``.

    Args:
      module: from inputs (N, ...) to logits (N, C).
      mode_argument: the argument of the module's call that tells training from evaluation. By default all those of
        `TRAINING_VALUES` that the call has, if any.
      training_value: what ``mode_argument`` is in training; its opposite in evaluation.

    Raises:
      TypeError: not a linen module.
      ValueError: the call has no argument ``mode_argument``; when traced, a function called without the state that the module
        keeps, parameters or inputs that do not fit the module, a BatchNorm fixed to the other statistics, random numbers in
        training (dropout), features that are not sown.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"from_linen takes a module of flax.linen, got {type(module).__name__}")
    arguments = inspect.signature(type(module).__call__).parameters
    if mode_argument is None:
        modes = tuple((name, value) for name, value in TRAINING_VALUES.items() if name in arguments)
    elif mode_argument in arguments:
        modes = ((mode_argument, training_value),)
    else:
        raise ValueError(f"the call of {type(module).__name__} has no argument {mode_argument!r}: choose from {', '.join(arguments)}")
    try:
        hash(module)
    except TypeError:  # a field is an array, for instance
        return _linen_network(module, modes)
    return _cached_linen_network(module, modes)


def _linen_network(module: nn.Module, modes: tuple[tuple[str, bool], ...]) -> Network:
    in_training: dict[str, Any] = dict(modes)
    in_evaluation: dict[str, Any] = {name: not value for name, value in modes}

    def call(params: Any, inputs: jax.Array, state: State, *, train: bool, mutable: Any = False) -> Any:
        inputs = checks.examples(inputs)
        with nn.intercept_methods(functools.partial(_steer_batch_norm, train)):
            try:
                return module.apply({"params": params, **state}, inputs, mutable=mutable, **(in_training if train else in_evaluation))
            except flax.errors.ScopeCollectionNotFound as error:
                raise _state_error(
                    type(module).__name__,
                    f"the collections {sorted(state)}",
                    ", or of a collection of your own {'batch_stats': batch_stats}",
                ) from error
            except (flax.errors.ScopeParamShapeError, flax.errors.ScopeParamNotFoundError) as error:
                raise ValueError(
                    f"the parameters do not fit {type(module).__name__} and inputs of shape {inputs.shape}: {error}: draw them by init for "
                    "inputs of this shape"
                ) from error
            except flax.errors.InvalidRngError as error:
                raise ValueError(
                    f"{type(module).__name__} draws random numbers (dropout), for which a network's functions have no key: set its "
                    "rates to 0"
                ) from error

    def init(key: jax.Array, inputs: jax.Array) -> tuple[Any, State]:
        key, inputs = checks.prng_key(key), checks.examples(inputs)
        with nn.intercept_methods(functools.partial(_steer_batch_norm, False)):
            variables = module.init(key, inputs, **in_evaluation)
        return variables.get("params", {}), {name: value for name, value in variables.items() if name != "params"}

    def apply(params: Any, inputs: jax.Array, state: State = NO_STATE) -> jax.Array:
        return cast(jax.Array, call(params, inputs, state, train=False))

    def update(params: Any, inputs: jax.Array, state: State) -> tuple[jax.Array, State]:
        return call(params, inputs, state, train=True, mutable=list(state))

    def features(params: Any, inputs: jax.Array, state: State = NO_STATE) -> jax.Array:
        _, sown = call(params, inputs, state, train=False, mutable=["intermediates"])
        if "features" not in sown.get("intermediates", {}):
            raise ValueError(f"{type(module).__name__} does not sow its features: self.sow('intermediates', 'features', ...)")
        return sown["intermediates"]["features"][0]

    return Network(init, apply, update, features, module)


_cached_linen_network = functools.cache(_linen_network)


def _steer_batch_norm(train: bool, call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
    """Call a method of a linen module, a BatchNorm by the statistics that belong to the mode.

    Raises:
      ValueError: a BatchNorm fixed to the other statistics.
    """
    layer = context.module
    if not isinstance(layer, nn.BatchNorm) or context.method_name != "__call__":
        return call(*args, **kwargs)
    given = args[1] if len(args) > 1 else kwargs.get("use_running_average")
    stored = layer.use_running_average if given is None else given
    if stored is None:
        return call(*args[:1], **{**kwargs, "use_running_average": not train})
    if stored == train:
        mode, needed = ("training", "the batch's") if train else ("evaluation", "its stored")
        raise ValueError(
            f"{'/'.join(layer.path) or 'the module'} is a BatchNorm with use_running_average={stored} in {mode}, which goes by {needed} "
            "statistics: leave use_running_average out, or pass it on from an argument of the module's call (mode_argument)"
        )
    return call(*args, **kwargs)


def _state_error(name: str, got: str, other: str = "") -> ValueError:
    return ValueError(
        f"{name} keeps a state beside its parameters (BatchNorm's statistics), got {got}: pass the state that init or update returned, "
        f"as in apply(params, inputs, state){other}"
    )


@functools.cache
def from_nnx(build: Callable[..., nnx.Module]) -> Network:
    """The network of an nnx module; the same object for the same ``build``.

    Parameters are the module's `nnx.Param`s, as nested dictionaries of arrays; all its other variables (BatchNorm's statistics, the
    counters of random streams, so that dropout draws anew at each step) are the state, nested likewise. Features are
    ``module.features(inputs)``, if it has such a method.

    A module that was trained elsewhere comes in with its values: ``models.from_nnx(lambda rngs: module)``, of which ``init`` returns the
    module's parameters and state as they are at that time, whatever the key.

    Args:
      build: ``(rngs) -> module``, called as ``build(rngs=nnx.Rngs(key))``: a class, or ``lambda rngs: Net(10, rngs=rngs)``. The module
        takes inputs (N, ...) to logits (N, C).

    Raises:
      TypeError: a module in place of the function that builds it.
      ValueError: when traced, a function called without the state that the module keeps, parameters or inputs that do not fit the
        module, features of a module without such a method.
    """
    if isinstance(build, nnx.Module):
        raise TypeError(
            f"from_nnx takes the function that builds a module, got a {type(build).__name__}: give lambda rngs: Net(..., rngs=rngs), "
            "or lambda rngs: module for one whose parameters are there already"
        )
    shapes = nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0)))  # nothing is drawn
    name = type(shapes).__name__
    graph, *parts = nnx.split(shapes, nnx.Param, ...)  # type: ignore[misc]  # as many states as filters
    param_places, state_places = (_places(nnx.to_pure_dict(part)) for part in parts)

    def merged(params: Any, state: State, *, train: bool) -> Any:
        params, state = (nnx.to_pure_dict(tree) if isinstance(tree, nnx.State) else tree for tree in (params, state))
        if missing := state_places - _places(state):
            raise _state_error(name, f"nothing at {min(missing)}")
        for what, tree, places in (("params", params, param_places), ("state", state, state_places)):
            if other := places ^ _places(tree):
                got = f"nothing at {min(other)}" if min(other) in places else f"a value at {min(other)}, which it does not keep"
                raise ValueError(f"the values of {what} do not fit {name}, got {got}: pass those that init or training returned")
        module: Any = nnx.merge(graph, params, jax.tree.map(jnp.asarray, state))  # NumPy's arrays take no traced updates
        module.train() if train else module.eval()
        return module

    def outputs_of(fn: Callable[[jax.Array], Any], inputs: Any) -> Any:
        inputs = checks.examples(inputs)
        try:
            return fn(inputs)
        except (TypeError, ValueError) as error:  # of JAX's operations, which name neither module nor inputs
            if isinstance(error, jax.errors.JAXTypeError):
                raise
            raise ValueError(
                f"{name} failed on inputs of shape {inputs.shape}, which may not fit its parameters: {error}: images need their channels, "
                "(N, height, width, channels)"
            ) from error

    def init(key: jax.Array, inputs: jax.Array) -> tuple[Any, State]:
        _, params, state = nnx.split(build(rngs=nnx.Rngs(checks.prng_key(key))), nnx.Param, ...)  # type: ignore[misc]  # as many states as filters
        return nnx.to_pure_dict(params), nnx.to_pure_dict(state)

    def apply(params: Any, inputs: jax.Array, state: State = NO_STATE) -> jax.Array:
        return outputs_of(merged(params, state, train=False), inputs)

    def update(params: Any, inputs: jax.Array, state: State) -> tuple[jax.Array, State]:
        module = merged(params, state, train=True)
        logits = outputs_of(module, inputs)
        return logits, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.Any(nnx.Param, nnx.Intermediate))))

    def features(params: Any, inputs: jax.Array, state: State = NO_STATE) -> jax.Array:
        module = merged(params, state, train=False)
        if not hasattr(module, "features"):
            raise ValueError(f"{name} has no features: give it a method features(inputs), which returns (N, F)")
        return outputs_of(module.features, inputs)

    return Network(init, apply, update, features, build)


def _places(tree: Any) -> set[str]:
    """Where the leaves of nested dictionaries are."""
    return {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}
