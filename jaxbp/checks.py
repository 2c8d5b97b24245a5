"""Checks of arguments that all instruments share. An error says what is wrong, what was got, and what to do.

Each function returns its argument in the form in which instruments compute, or raises ValueError. What only a run can know (values under
`jax.jit`) is not checked.

>>> import jax.numpy as jnp
>>> from jaxbp import checks
>>> checks.labels([0, 2, 1], num_classes=3, num_examples=3).dtype
dtype('int32')
>>> checks.parameters({"kernel": jnp.ones(3), "step": jnp.int32(7)})
Traceback (most recent call last):
    ...
ValueError: params must be arrays of real floating-point numbers, got int32 at ['step']: pass it as state, or close over it
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from jaxbp.jaxprs import interpret

_MAX_DEPENDENCE = 1e-3  # relative change of an example's outputs by its companions; rounding stays far below, batch statistics far above
_NUM_UNITS = 8  # bfloat16 networks change by up to 0.7 units (0.005) with another rounding of their weights, by 28 with batch statistics
_COLLECTIONS = ("batch_stats", "cache", "intermediates")  # of Flax beside "params": values that no gradient trains
_COMPILED_FAST = {"xla_backend_optimization_level": 0}  # programs that run once or a few times
_ADVICE = {
    "complex": "split real and imaginary parts into two arrays",
    "half": "cast it with .astype(jnp.float32)",
}


class BatchCouplingError(ValueError):
    """Outputs of an example depend on the other examples of its batch, where each example has to stand for itself."""


def parameters(params: PyTree, name: str = "params", *, half: bool = False) -> PyTree:
    """A pytree of real floating-point arrays, as JAX arrays; ``half`` allows float16 and bfloat16.

    Raises:
      ValueError: no leaves, a leaf that is no such array, or all variables of a Flax module, of which "params" alone are parameters.
    """
    collections = params if isinstance(params, Mapping) and "params" in params else {}
    if others := [repr(other) for other in _COLLECTIONS if other in collections]:
        raise ValueError(
            f"{name} must be parameters alone, got the variables of a Flax module with {', '.join(others)} beside 'params': "
            "pass variables['params'], and the others as state or in a closure"
        )
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError(f"{name} must be a tree of arrays, got {_described(params)}, which holds none")
    for path, leaf in leaves:
        dtype = _dtype(leaf)
        kind = "other" if dtype is None else _kind(dtype)
        if kind != "float" and not (half and kind == "half"):
            place = jax.tree_util.keystr(path) or "the root"
            got = _described(leaf) if dtype is None else dtype
            advice = _ADVICE.get(kind, "pass it as state, or close over it")
            raise ValueError(f"{name} must be arrays of real floating-point numbers, got {got} at {place}: {advice}")
    return as_arrays(params)


def as_arrays(tree: PyTree) -> PyTree:
    """A pytree of JAX arrays; those that are some already cost nothing, where `jnp.asarray` takes 7 microseconds for each."""
    return jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf), tree)


def examples(inputs: Any, name: str = "inputs", *, complex_numbers: bool = False) -> jax.Array:
    """Examples (N, ...) on the leading axis, N >= 1, of real numbers or integers, or of ``complex_numbers`` where those are right.

    Raises:
      ValueError: no array, no examples, complex numbers.
    """
    array = _as_array(inputs, name, complex_numbers=complex_numbers)
    if array.ndim < 1 or array.shape[0] == 0:
        raise ValueError(f"{name} must hold examples on its leading axis, got shape {array.shape}")
    return jnp.asarray(array)


def example_tree(inputs: Any, name: str = "inputs", *, complex_numbers: bool = False, on_host: bool = False) -> PyTree:
    """Examples as one array, or as a dict, tuple or other pytree of arrays with one leading axis, such as tokens and their mask.

    A list is an array. Leaves are checked as `examples` or, with ``on_host``, as `host_examples` checks them.

    Raises:
      ValueError: a leaf that holds no examples, or leaves with unequally many.
    """

    def checked(leaf: Any, leaf_name: str) -> Any:
        return host_examples(leaf, leaf_name) if on_host else examples(leaf, leaf_name, complex_numbers=complex_numbers)

    if inputs is None or isinstance(inputs, list) or jax.tree_util.all_leaves([inputs]):
        return checked(inputs, name)
    leaves, tree = jax.tree_util.tree_flatten_with_path(inputs)
    if not leaves:
        raise ValueError(f"{name} must hold at least one array of examples, got {_described(inputs)}")
    arrays = [checked(leaf, name + jax.tree_util.keystr(path)) for path, leaf in leaves]
    if len({len(array) for array in arrays}) > 1:
        shapes = ", ".join(f"{list(array.shape)} at {jax.tree_util.keystr(path)}" for (path, _), array in zip(leaves, arrays, strict=True))
        raise ValueError(f"{name} must have the same number of examples in each array, got {shapes}")
    return jax.tree.unflatten(tree, arrays)


def numbers(values: Any, name: str) -> jax.Array:
    """One array of real numbers, integers or booleans.

    Raises:
      ValueError: no array, complex numbers.
    """
    return jnp.asarray(_as_array(values, name))


def labels(labels: Any, num_classes: int, num_examples: int, name: str = "labels") -> Int[Array, " N"]:
    """Class indices (N,), int32, from 0 to ``num_classes`` - 1; the range of values under `jax.jit` is not checked.

    Raises:
      ValueError: another shape or dtype, or a value outside the range.
    """
    return jnp.asarray(_class_indices(_as_array(labels, name), num_classes, num_examples, name)).astype(jnp.int32)


def _class_indices(array: Any, num_classes: int, num_examples: int, name: str) -> Any:
    """The array, once it holds class indices, as far as its values are known."""
    if array.ndim == 2:
        raise ValueError(f"{name} must be class indices (N,), got shape {array.shape}: of one-hot labels take .argmax(-1)")
    if array.shape != (num_examples,):
        raise ValueError(f"{name} must be class indices ({num_examples},), one per example, got shape {array.shape}")
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f"{name} must be integers, got {array.dtype}: cast them with .astype(int)")
    if num_classes < 2:
        raise ValueError(f"{name} need at least two classes, and the network has {num_classes} logit: give one logit per class")
    if not isinstance(array, jax.core.Tracer):
        values = np.asarray(array)
        if bad := values[(values < 0) | (values >= num_classes)].tolist():
            raise ValueError(f"{name} must lie from 0 to {num_classes - 1}, one of {num_classes} logits each, got {bad[0]}")
    return array


def logits_with_labels(logits: Any, labels: Any) -> tuple[jax.Array, jax.Array]:
    """Logits (N, C) and class indices (N,) that belong to them, by shape and dtype alone, so that it costs nothing in a loop.

    Raises:
      ValueError: other shapes, or dtypes.
    """
    rows, indices = _as_array(logits, "logits"), _as_array(labels, "labels")
    if rows.ndim != 2 or not jnp.issubdtype(rows.dtype, jnp.floating):
        hint = ": add an axis with logits[:, None]" if rows.ndim == 1 else ""
        raise ValueError(f"logits must be floating-point numbers (N, C), got {rows.dtype} of shape {rows.shape}{hint}")
    if indices.shape != rows.shape[:1]:
        hint = ": of one-hot labels take .argmax(-1)" if indices.ndim == 2 else ""
        raise ValueError(f"labels must be class indices ({len(rows)},), one per row of logits, got shape {indices.shape}{hint}")
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise ValueError(f"labels must be integers, got {indices.dtype}: cast them with .astype(int)")
    return jnp.asarray(rows), jnp.asarray(indices)


def labelled_examples(data: Any, name: str = "data") -> tuple[jax.Array, Any]:
    """The pair (inputs (N, ...), labels (N,)): inputs as `examples`, labels as they came, to be checked by `labels` once C is known.

    Raises:
      ValueError: no such pair, or unequally many.
    """
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise ValueError(f"{name} must be a pair (inputs (N, ...), labels (N,)), got {_described(data)}")
    inputs, indices = examples(data[0], f"{name}'s inputs"), _as_array(data[1], f"{name}'s labels")
    if inputs.shape[:1] != indices.shape[:1]:  # batches are gathered, and gathers past the end are silently clipped
        raise ValueError(f"{name} must have one label per input, got shapes {inputs.shape} and {indices.shape}")
    return inputs, indices


def on_host(data: Any, name: str = "data") -> tuple[np.ndarray, np.ndarray]:
    """The pair (inputs (N, ...), labels (N,)) as NumPy's arrays, which may be memory maps.

    Raises:
      ValueError: no such pair, no numbers, or values that only a run can know (under `jax.jit`).
    """
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise ValueError(f"{name} must be a pair (inputs (N, ...), labels (N,)), got {_described(data)}")
    inputs, indices = (_as_array(array, f"{name}'s {part}") for array, part in zip(data, ("inputs", "labels"), strict=True))
    refuse_traced(name, inputs, indices)
    return np.asarray(inputs), np.asarray(indices)


def host_array(values: Any, name: str, *, shape: tuple[Any, ...] | None = None, finite: bool = False) -> np.ndarray:
    """One array of real numbers, integers or booleans as NumPy's, of the dtype that it has; a tuple counts as a list.

    Args:
      values, name: what is checked, and how a message calls it.
      shape: what it must be, None for any length of an axis, ... at the end for any further axes.
      finite: whether NaN and infinities are refused.

    Raises:
      ValueError: no such array, or values that only a run can know (under `jax.jit`).
    """
    array = _as_array(list(values) if isinstance(values, tuple) else values, name)
    refuse_traced(name, array)
    array = np.asarray(array)
    if shape is not None and not _fits(array.shape, shape):
        wanted = ", ".join("any" if length is None else "..." if length is ... else str(length) for length in shape)
        raise ValueError(f"{name} must have shape ({wanted}), got {array.shape}")
    if finite and not np.isfinite(np.asarray(array, np.float64)).all():
        raise ValueError(f"{name} must be finite numbers, got NaN or infinite ones")
    return array


def host_values(values: Any, name: str, *, shape: tuple[Any, ...] | None = None, finite: bool = False) -> np.ndarray:
    """`host_array` as float64."""
    return np.asarray(host_array(values, name, shape=shape, finite=finite), np.float64)


def host_examples(values: Any, name: str = "inputs") -> np.ndarray:
    """`host_array` of examples (N, ...) on the leading axis, N >= 1."""
    array = host_array(values, name)
    if array.ndim < 1 or array.shape[0] == 0:
        raise ValueError(f"{name} must hold examples on its leading axis, got shape {array.shape}")
    return array


def host_labels(values: Any, num_classes: int, num_examples: int | None = None, name: str = "labels") -> np.ndarray:
    """`labels` on the host; None for any number of them."""
    array = host_array(values, name)
    return _class_indices(array, num_classes, array.size if num_examples is None else num_examples, name).astype(np.int32)


def _fits(shape: tuple[int, ...], wanted: tuple[Any, ...]) -> bool:
    if wanted and wanted[-1] is ...:
        shape, wanted = shape[: len(wanted) - 1], wanted[:-1]
    return len(shape) == len(wanted) and all(length in (None, size) for size, length in zip(shape, wanted, strict=True))


def refuse_traced(name: str, *values: Any, advice: str = "call this outside of jit and vmap") -> None:
    """Raise ValueError if a value is traced, for functions that compute on the host; ``advice`` is the end of the message."""
    for value in values:
        if isinstance(value, jax.core.Tracer):
            raise ValueError(f"{name} must be arrays whose values are known, got a traced one {value.aval}: {advice}")


def logits_shape(apply_fn: Callable, *args: Any, name: str = "apply_fn", num_examples: int | None = None) -> tuple[int, int]:
    """The shape (N, C) of the logits ``apply_fn(*args)``; see `logits_type`."""
    return logits_type(apply_fn, *args, name=name, num_examples=num_examples).shape


def logits_type(apply_fn: Callable, *args: Any, name: str = "apply_fn", num_examples: int | None = None) -> jax.ShapeDtypeStruct:
    """Shape (N, C) and dtype of the logits ``apply_fn(*args)``, by tracing alone; N must be ``num_examples``, if that is given.

    Raises:
      ValueError: the function returns something else.
    """
    if not callable(apply_fn):
        raise ValueError(f"{name} must be a function (params, inputs) -> logits (N, C), got {_described(apply_fn)}")
    logits = jax.eval_shape(apply_fn, *args)
    if not isinstance(logits, jax.ShapeDtypeStruct):
        hint = ": of Flax's apply with mutable=[...] take the first entry" if isinstance(logits, tuple) else ""
        raise ValueError(f"{name} must return logits (N, C), got {_described(logits)}{hint}")
    if len(logits.shape) != 2:
        hint = ": add an axis with logits[:, None]" if len(logits.shape) == 1 else ""
        raise ValueError(f"{name} must return logits (N, C), got shape {logits.shape}{hint}")
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"{name} must return logits of real floating-point numbers, got {logits.dtype}")
    if num_examples not in (None, logits.shape[0]):
        raise ValueError(f"{name} must return logits of each example ({num_examples}, C), got shape {logits.shape}")
    return logits


def independent_examples(
    outputs_fn: Callable[..., jax.Array], fn: Any, context: Any, sets: Sequence[tuple[jax.Array, ...]], advice: str
) -> None:
    """Wait for an `examples_check`.

    Raises:
      BatchCouplingError: the outputs of an example depend on its companion.
    """
    examples_check(outputs_fn, fn, context, sets, advice)()


def examples_check(
    outputs_fn: Callable[..., jax.Array], fn: Any, context: Any, sets: Sequence[tuple[jax.Array, ...]], advice: str
) -> Callable[[], None]:
    """Begin to check that ``outputs_fn(fn, context, *arrays)``, (N, ...), gives an example the same outputs alone and beside another one.

    The first example is tried with the last one of all sets that differs from it; where all are equal, with a changed copy. Traced values
    pass. Compiled once for each pair of functions, whatever the context.

    Args:
      outputs_fn, fn: the two functions, one for the form of the call and one of the user's, or anything hashable that holds it.
      context: pytree of arrays on which the outputs depend, such as parameters.
      sets: tuples of arrays with the examples first, alike but for their length.
      advice: the end of the message.

    Returns:
      A function that waits for the outcome, and raises BatchCouplingError if the outputs depend on the companion.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((context, list(sets)))):
        return lambda: None
    for arrays in sets:
        pair, differ = _two_examples(sets[0], arrays)
        if arrays is sets[-1] or differ:  # of the last set its value is not waited for
            break
    measured = _dependence(outputs_fn, fn, context, pair)

    def wait() -> None:
        dependence = float(measured)
        if dependence > _MAX_DEPENDENCE and dependence > _rounding(functools.partial(outputs_fn, fn), context, pair):
            raise BatchCouplingError(
                "examples are coupled, for instance by batch statistics: beside another example the outputs of an example differ from "
                f"those alone (relative change {dependence:.2g}). {advice}"
            )

    return wait


@jax.jit  # optimised, since it may look at many examples
def _two_examples(first: tuple[jax.Array, ...], arrays: tuple[jax.Array, ...]) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """The first example of ``first`` with the last one of ``arrays`` that differs from it, and whether one does; else with a changed copy.

    Equal examples have the statistics of each, so that batch statistics make their outputs constant.
    """
    example = [array[0] for array in first]
    axes = [tuple(range(1, array.ndim)) for array in arrays]
    different = [jnp.any(array != start[None], axis) for array, start, axis in zip(arrays, example, axes, strict=True)]
    differ = functools.reduce(jnp.logical_or, different)
    last = len(differ) - 1 - jnp.argmax(differ[::-1])
    others = [jnp.where(differ[last], array[last], _changed(start)) for array, start in zip(arrays, example, strict=True)]
    return tuple(jnp.stack(pair) for pair in zip(example, others, strict=True)), differ[last]


def _changed(example: jax.Array) -> jax.Array:
    if jnp.issubdtype(example.dtype, jnp.inexact):
        return example / 2 + jnp.cos(jnp.arange(example.size, dtype=example.real.dtype)).reshape(example.shape)
    zeros = jnp.zeros_like(example)  # a token that every vocabulary has, a label of every class
    return jnp.where(jnp.any(example != zeros), zeros, jnp.ones_like(example))


def _rounding(fn: Callable[..., jax.Array], context: Any, pair: tuple[jax.Array, ...]) -> float:
    """Relative change that another order of sums may cause in the shortest floats of a program: some units in the last place."""
    types = interpret.trace(fn, context, *pair).float_types
    return _NUM_UNITS * max((float(jnp.finfo(dtype).eps) for dtype in types), default=0.0)


@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options=_COMPILED_FAST)
@jax.default_matmul_precision("highest")
def _dependence(outputs_fn: Callable[..., jax.Array], fn: Any, context: Any, pair: tuple[jax.Array, ...]) -> jax.Array:
    """Largest difference between the outputs of two examples together and alone, relative to the largest output."""
    together = outputs_fn(fn, context, *pair)
    alone = jax.lax.map(lambda example: outputs_fn(fn, context, *(array[None] for array in example))[0], pair)  # compiles the body once
    return jnp.max(jnp.abs(together - alone)) / jnp.maximum(jnp.max(jnp.abs(together)), jnp.finfo(together.dtype).tiny)


def number(value: Any, name: str, *, least: float = -math.inf, positive: bool = False, known: bool = False) -> Any:
    """One finite real number, at least ``least``, as a float; a tracer as it is, unchecked, unless the value must be ``known``.

    Raises:
      ValueError: no such number.
    """
    if known:
        refuse_traced(name, value)
    if isinstance(value, jax.core.Tracer) and value.ndim == 0:
        return value
    wanted = f"{name} must be one {'positive ' if positive else ''}finite number" + (f", at least {least:g}" if least > -math.inf else "")
    array = None if isinstance(value, str | bytes | bool | None) else _numeric(value)
    if array is None or array.ndim != 0 or _kind(array.dtype) not in ("float", "half", "integer") or not np.isfinite(float(array)):
        raise ValueError(f"{wanted}, got {_described(value)}")
    if float(array) < least or (positive and float(array) <= 0):
        raise ValueError(f"{wanted}, got {float(array):g}")
    return float(array)


def real_dtype(value: Any, name: str) -> str:
    """The name of a type of real floating-point numbers, given as a type, a name or a NumPy dtype.

    Raises:
      ValueError: no such type, or 64 bits while JAX has them disabled.
    """
    try:
        dtype = None if value is None else jnp.dtype(value)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{name} must be a type of real floating-point numbers, such as jnp.bfloat16, got {_described(value)}")
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(f'{name} must be a type that JAX has, got {dtype}: enable it with jax.config.update("jax_enable_x64", True)')
    return str(dtype)


def count(value: Any, name: str, *, least: int = 1) -> int:
    """One whole number of at least ``least``, whose value is known.

    Raises:
      ValueError: no such number.
    """
    refuse_traced(name, value)
    array = None if isinstance(value, str | bytes | bool | None) else _numeric(value)
    if array is None or array.ndim != 0 or _kind(array.dtype) != "integer":
        raise ValueError(f"{name} must be a whole number of at least {least}, got {_described(value)}")
    if int(array) < least:
        raise ValueError(f"{name} must be at least {least}, got {int(array)}")
    return int(array)


def prng_key(key: Any, name: str = "key", *, known: bool = False) -> jax.Array:
    """One random key, typed or raw; not traced if it must be ``known``.

    Raises:
      ValueError: no key, or several.
    """
    if known:
        refuse_traced(name, key)
    dtype = getattr(key, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and key.ndim == 0:
        return key
    if isinstance(key, jax.Array) and dtype == jnp.uint32 and key.shape == jax.eval_shape(jax.random.PRNGKey, 0).shape:
        return key
    raise ValueError(f"{name} must be one random key, such as jax.random.key(0), got {_described(key)}")


def _as_array(value: Any, name: str, *, complex_numbers: bool = False) -> jax.Array | np.ndarray:
    """A JAX array as it is, all else in NumPy's own precision: checks of values come before a cast that may wrap them."""
    array = value if isinstance(value, jax.Array) else None if isinstance(value, Mapping | tuple | str | bytes) else _numeric(value)
    if array is None or _kind(array.dtype) == "other":
        raise ValueError(f"{name} must be one array, got {_described(value)}")
    if _kind(array.dtype) == "complex" and not complex_numbers:
        raise ValueError(f"{name} must be real numbers, got {array.dtype}: {_ADVICE['complex']}")
    return array


@functools.cache  # JAX's comparisons of dtypes take microseconds, for each array of each call
def _kind(dtype: Any) -> str:
    """One of "float", "half", "complex", "integer", "bool", "other"."""
    if jnp.issubdtype(dtype, jnp.floating):
        return "half" if jnp.finfo(dtype).bits < 32 else "float"
    kinds = {"complex": jnp.complexfloating, "integer": jnp.integer, "bool": jnp.bool_}
    return next((kind for kind, parent in kinds.items() if jnp.issubdtype(dtype, parent)), "other")


def _numeric(value: Any) -> np.ndarray | None:
    """The value as a NumPy array of numbers; None if it is none."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        return None
    return None if _kind(array.dtype) == "other" else array


def _dtype(leaf: Any) -> Any:
    """The dtype of a number or an array; None for anything else."""
    if isinstance(leaf, bool | int | float | complex):
        return np.asarray(leaf).dtype
    return leaf.dtype if isinstance(leaf, np.generic | np.ndarray | jax.Array) else None


def _described(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array {value.dtype}{list(value.shape)}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else ''}".strip()
