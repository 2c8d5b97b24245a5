"""neural-tangents on today's JAX: the one place that touches names which JAX keeps to itself.

neural-tangents 0.6.5, its last release, takes names from `jax.core` and its neighbours that have moved or gone, and
imports TensorFlow for an experimental part that nothing here needs. `load` puts the names back while the package is
imported, takes them away again, and leaves an empty module where that part would be. Afterwards the infinite-width
kernels (`stax`), `predict`, `batch`, `linearize`, Monte-Carlo kernels and the empirical implementations 1 and 2 work;
implementation 3 does not, since it walks through JAX's former automatic differentiation.

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


class IncompatibleJax(ImportError):
    """neural-tangents cannot be loaded on the JAX that is installed."""


@functools.cache
def load() -> types.ModuleType:
    """The module `neural_tangents`, its `stax` and `predict` included; imported once.

    Raises:
      IncompatibleJax: neural-tangents is missing, or needs a name that this JAX does not have and this module does
        not know.
    """
    sys.modules.setdefault("neural_tangents.experimental", types.ModuleType("neural_tangents.experimental"))  # wants TensorFlow
    with _restored():
        try:
            module = importlib.import_module("neural_tangents")
        except (ImportError, AttributeError) as error:
            raise IncompatibleJax(
                f"neural-tangents {_version('neural-tangents')} does not load on JAX {_version('jax')}: {error}. "
                f"Versions of JAX known to work: {_KNOWN}; install one of them, or teach jaxbp.ntk.compat the name that is missing"
            ) from error
    # It cannot see that branches which are added end in layers of their own; said once here, as filters are not local to threads.
    warnings.filterwarnings("ignore", "`FanIn` layers assume independent inputs", UserWarning)
    return module


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _names() -> Iterator[tuple[types.ModuleType, str, Any]]:
    """(module, name, what to put there) for the names that neural-tangents takes at import."""
    core, util = importlib.import_module("jax._src.core"), importlib.import_module("jax._src.util")
    for name in ("Jaxpr", "JaxprEqn", "Literal", "Primitive", "Var"):
        yield jax.core, name, getattr(jax.extend.core, name)
    for name in ("AbstractValue", "ShapedArray", "Value"):
        yield jax.core, name, getattr(core, name, object)  # Value, where gone, only annotated
    yield jax.random, "KeyArray", jax.Array
    yield jax.interpreters.ad, "zeros_like_p", jax.extend.core.Primitive("zeros_like")  # the key of a rule, never bound
    for name in ("safe_map", "safe_zip"):
        yield sys.modules["jax.util"], name, getattr(util, name)


@contextmanager
def _restored() -> Iterator[None]:
    """Put back the names that JAX no longer has, for the time of the import; one of them is asked for later and stays."""
    added, had_util = [], "jax.util" in sys.modules
    sys.modules.setdefault("jax.util", types.ModuleType("jax.util"))
    if not hasattr(jax.core, "eval_context"):
        jax.core.eval_context = jax.ensure_compile_time_eval
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
