"""Load neural-tangents on current JAX: the one module that uses names which JAX keeps private.

neural-tangents 0.6.5, its last release, imports names from `jax.core` and related modules that have moved or gone, and
imports TensorFlow for an experimental part. `load` adds the names while the package is imported, removes them afterwards, and
puts an empty module in place of that part. JAX and the warning filters stay as they were: the modules of neural-tangents that use a
missing name when they are called get views of `jax`, SciPy and others that have it. Afterwards the infinite-width
kernels (`stax`), `predict`, `batch`, `linearize`, Monte-Carlo kernels and all empirical implementations work, their choice by counted
operations (AUTO) included. Structured derivatives (implementation 3) relied on JAX's former automatic differentiation: the linear part of
a network is now traced from `jax.linearize`.

>>> import numpy
>>> from jaxbp.ntk import compat
>>> nt = compat.load()
>>> _, _, kernel_fn = nt.stax.serial(nt.stax.Dense(1), nt.stax.Relu(), nt.stax.Dense(1))
>>> kernel_fn(numpy.ones((3, 4)), None, "ntk").shape
(3, 3)
"""

import contextlib
import functools
import importlib
import importlib.metadata
import math
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.core
import jax.extend.core
import jax.interpreters.ad
import jax.numpy as jnp
import jax.random
import scipy
import scipy.linalg

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
        _replace(name, jax=_view(jax, core=_view(jax.core, eval_context=_eval_context)))
    _replace("predict", _is_on_cpu=_is_on_cpu, sp=_view(scipy, linalg=_view(scipy.linalg, eigvalsh=_eigvalsh)))
    names = {
        "source_info_util": importlib.import_module("jax._src.source_info_util"),
        "config": types.SimpleNamespace(jax_enable_checks=False),
    }
    core = _view(jax.core, ShapedArray=importlib.import_module("jax._src.core").ShapedArray, DShapedArray=_NoShape)
    _replace("empirical", ad=_view(jax.interpreters.ad, **names), core=core, jnp=_view(jnp, dtype=_dtype))
    _replace("empirical", _get_flops=_count_flops, _get_primals_out_and_pullback=_primals_out_and_pullback, _eqn_vjp_fn=_transposed)
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


def _view(module: types.ModuleType, **names: Any) -> types.ModuleType:
    """A module with the given names; all others are those of ``module``."""
    view = types.ModuleType(module.__name__)
    view.__getattr__ = functools.partial(getattr, module)  # type: ignore[method-assign]
    vars(view).update(names)
    return view


def _replace(name: str, **names: Any) -> None:
    """Set names of a module of neural-tangents, whose functions look them up when they are called."""
    vars(sys.modules[f"neural_tangents._src.{name}"]).update(names)


class _NoShape:
    """The type of shapes that are known at run time only, which JAX no longer has; nothing is an instance."""


def _eval_context() -> contextlib.AbstractContextManager:
    """A context for what a predictor computes once from its kernel: at compile time, unless the caller's kernel is traced itself."""
    local = sys._getframe(1).f_locals.values()
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(list(local)))
    return contextlib.nullcontext() if traced else jax.ensure_compile_time_eval()


def _eigvalsh(matrix: Any, eigvals: tuple[int, int]) -> Any:
    """Eigenvalues from the index ``eigvals[0]`` to ``eigvals[1]``."""
    return scipy.linalg.eigvalsh(matrix, subset_by_index=eigvals)


def _is_on_cpu(arrays: Any) -> bool:
    """Whether arrays are on the CPU, where SciPy takes them; False for traced ones."""
    return not any(isinstance(a, jax.core.Tracer) or (isinstance(a, jax.Array) and _platform(a) != "cpu") for a in jax.tree.leaves(arrays))


def _platform(array: jax.Array) -> str:
    return next(iter(array.devices())).platform


def _dtype(value: Any) -> Any:
    """The dtype of an array, which JAX no longer converts by itself, or of a name."""
    return jnp.dtype(getattr(value, "dtype", value))


def _count_flops(fn: Callable, optimize: bool, *args: Any, **kwargs: Any) -> float:
    """Floating-point operations of ``fn(*args, **kwargs)``, before or after optimisation; NaN where the backend does not count them."""
    lowered = jax.jit(fn).lower(*args, **kwargs)
    analysis = lowered.compile().cost_analysis() if optimize else lowered.cost_analysis()
    analysis = analysis[0] if isinstance(analysis, list | tuple) else analysis
    return (analysis or {}).get("flops", math.nan)


def _primals_out_and_pullback(fn: Callable, mode: Any, _j_rules: bool, _s_rules: bool, _fwd: bool | None, *primals_in: Any) -> tuple:
    """Outputs of ``fn``, and the function from their cotangents to the factors of the structured derivatives.

    The linear part of ``fn`` is traced without calls, so that each equation has a rule.
    """
    empirical = sys.modules["neural_tangents._src.empirical"]
    with jax.disable_jit():
        primals_out, linear_fn = jax.linearize(fn, *primals_in)
        closed = jax.make_jaxpr(linear_fn)(*primals_in)
    tree = jax.tree.structure(primals_in)

    def pullback(*cotangents: Any) -> Any:
        undefined = [empirical.UndefinedPrimal(variable.aval) for variable in closed.jaxpr.invars]
        factors = empirical._backward_pass(
            closed.jaxpr,
            mode=mode,
            consts=closed.consts,
            primals_in=undefined,
            cotangents_in=tuple(jax.tree.leaves(cotangents)),
            _j_rules=_j_rules,
            _s_rules=_s_rules,
            _fwd=_fwd,
        )
        return jax.tree.unflatten(tree, factors)

    return primals_out, pullback


def _transposed(equation: Any, cotangent: Any, *values: Any) -> Any:
    """The cotangents of an equation's operands, by the primitive's rule of transposition; of no equation, the identity's."""
    if equation is None:
        return (cotangent,)
    rule_fn = jax.interpreters.ad.get_primitive_transpose(equation.primitive)
    return rule_fn(cotangent, *values, **equation.params)


@contextlib.contextmanager
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
