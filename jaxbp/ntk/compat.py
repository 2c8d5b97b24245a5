"""Load neural-tangents on current JAX: the one module that uses names which JAX keeps private.

neural-tangents 0.6.5, its last release, imports names from `jax.core` and related modules that have moved or gone, and
imports TensorFlow for an experimental part. `load` adds the names while the package is imported, removes them afterwards, and
puts an empty module in place of that part. JAX and the warning filters stay as they were: the two modules of neural-tangents that use a
missing name when they are called get a view of `jax` that has it. Afterwards the infinite-width
kernels (`stax`), `predict`, `batch`, `linearize`, Monte-Carlo kernels and the empirical implementations 1 and 2 work;
implementation 3 does not, because it relies on JAX's former automatic differentiation.

>>> import numpy
>>> from jaxbp.ntk import compat
>>> nt = compat.load()
>>> _, _, kernel_fn = nt.stax.serial(nt.stax.Dense(1), nt.stax.Relu(), nt.stax.Dense(1))
>>> kernel_fn(numpy.ones((3, 4)), None, "ntk").shape
(3, 3)
"""

import functools
import importlib
import importlib.metadata
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.core
import jax.extend.core
import jax.interpreters.ad
import jax.random

_KNOWN = "0.10 to 0.12"


class IncompatibleJaxError(ImportError):
    """neural-tangents cannot be loaded on the JAX that is installed."""


@functools.cache
def load() -> types.ModuleType:
    """The module `neural_tangents`, its `stax` and `predict` included; imported once.

    Raises:
      IncompatibleJaxError: neural-tangents is missing, or needs a name that neither this JAX nor this module has.
    """
    sys.modules.setdefault("neural_tangents.experimental", types.ModuleType("neural_tangents.experimental"))  # imports TensorFlow
    with _missing_names():
        try:
            module = importlib.import_module("neural_tangents")
        except (ImportError, AttributeError) as error:
            raise IncompatibleJaxError(
                f"neural-tangents {_version('neural-tangents')} does not load on JAX {_version('jax')}: {error}. "
                f"Versions of JAX known to work: {_KNOWN}; install one of them, or add the missing name to jaxbp.ntk.compat"
            ) from error
    for name in ("predict", "stax.linear"):
        sys.modules[f"neural_tangents._src.{name}"].jax = _jax_with_eval_context()  # type: ignore[attr-defined]
    branching = sys.modules["neural_tangents._src.stax.branching"]
    branching.warnings = types.SimpleNamespace(warn=_warn)  # type: ignore[attr-defined]
    return module


def _warn(message: str) -> None:
    """`warnings.warn`, except that `FanIn` cannot verify independent inputs: branches that end in their own layers have them."""
    if not message.startswith("`FanIn` layers assume independent inputs"):
        warnings.warn(message, stacklevel=3)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _names() -> Iterator[tuple[types.ModuleType, str, Any]]:
    """(module, name, value) for the names that neural-tangents imports."""
    core, util = importlib.import_module("jax._src.core"), importlib.import_module("jax._src.util")
    for name in ("Jaxpr", "JaxprEqn", "Literal", "Primitive", "Var"):
        yield jax.core, name, getattr(jax.extend.core, name)
    for name in ("AbstractValue", "ShapedArray", "Value"):
        yield jax.core, name, getattr(core, name, object)  # Value, where gone, is only an annotation
    yield jax.random, "KeyArray", jax.Array
    yield jax.interpreters.ad, "zeros_like_p", jax.extend.core.Primitive("zeros_like")  # the key of a rule, never bound
    for name in ("safe_map", "safe_zip"):
        yield sys.modules["jax.util"], name, getattr(util, name)


def _jax_with_eval_context() -> types.ModuleType:
    """A view of `jax` whose ``core`` has ``eval_context``; all other names are those of `jax`."""
    core, view = types.ModuleType("jax.core"), types.ModuleType("jax")
    core.__getattr__ = functools.partial(getattr, jax.core)  # type: ignore[method-assign]
    core.eval_context = jax.ensure_compile_time_eval  # type: ignore[attr-defined]
    view.__getattr__ = functools.partial(getattr, jax)  # type: ignore[method-assign]
    view.core = core  # type: ignore[attr-defined]
    return view


@contextmanager
def _missing_names() -> Iterator[None]:
    """Add the names that JAX no longer has, for the duration of the import."""
    added, had_util = [], "jax.util" in sys.modules
    sys.modules.setdefault("jax.util", types.ModuleType("jax.util"))
    try:
        for module, name, value in _names():
            if not hasattr(module, name):
                setattr(module, name, value)
                added.append((module, name))
        yield
    finally:
        for module, name in added:
            delattr(module, name)
        if not had_util:
            del sys.modules["jax.util"]
