"""Networks of your own by a name, "module:function", as command lines and settings hold it.

The function gets those of ``num_classes``, ``width`` and ``depth`` that it has as arguments, and returns a module of flax.linen, the
function that builds one of flax.nnx, or a `Network`.
"""

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from jaxbp.models.from_flax import from_linen, from_nnx
from jaxbp.models.network import Network


def is_own(name: str) -> bool:
    """Whether a name is that of a network of the user's own."""
    return ":" in name


def maker(name: str) -> Callable[..., Any]:
    """The function behind "module:function".

    Raises:
      ValueError: there is none.
    """
    module, _, attribute = name.partition(":")
    try:
        make = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise ValueError(
            f"cannot import {module!r} for the network {name!r} ({error}): start the command in the folder of {module}.py, or install it"
        ) from error
    except (AttributeError, ValueError, TypeError) as error:
        raise ValueError(f"a network of your own is MODULE:FUNCTION, and {name!r} is none ({error})") from error
    if not callable(make):
        raise ValueError(f"{name} must be a function that makes a network, got a {type(make).__name__}")
    return make


def takes(name: str, argument: str) -> bool:
    """Whether the function behind a name has an argument, such as "width".

    Raises:
      ValueError: there is no such function.
    """
    parameters = inspect.signature(maker(name)).parameters
    return argument in parameters or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


@functools.cache
def create_own(name: str, **choices: Any) -> Network:
    """The network that the function ``name`` makes; the same object for equal arguments.

    Args:
      name: "module:function".
      choices: of the network, such as ``num_classes``; those that the function lacks are left out.

    Raises:
      ValueError: there is no such function, it needs other arguments, or it returns no network.
    """
    make = maker(name)
    parameters = inspect.signature(make).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    given = {key: value for key, value in choices.items() if value is not None and (takes_all or key in parameters)}
    try:
        inspect.signature(make).bind(**given)
    except TypeError as error:
        raise ValueError(f"{name} is called with {', '.join(given) or 'nothing'}, and does not fit ({error})") from error
    made = make(**given)
    if isinstance(made, Network):
        return made
    if isinstance(made, nn.Module):
        return from_linen(made)
    if callable(made):
        return from_nnx(made)
    raise ValueError(f"{name} must return a module of flax.linen, a function that builds one of flax.nnx, or a Network, got {type(made)}")
