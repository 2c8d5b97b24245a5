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

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

_MAX_DEPENDENCE = 1e-3  # relative change of an example's outputs by its companions; rounding stays far below, batch statistics far above
_ADVICE = {
    "complex": "split real and imaginary parts into two arrays",
    "half": "cast it with .astype(jnp.float32)",
}


class BatchCouplingError(ValueError):
    """Outputs of an example depend on the other examples of its batch, where each example has to stand for itself."""


def parameters(params: PyTree, name: str = "params", *, half: bool = False) -> PyTree:
    """A pytree of real floating-point arrays, as JAX arrays; ``half`` allows float16 and bfloat16.

    Raises:
      ValueError: no leaves, or a leaf that is no such array.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError(f"{name} must be a tree of arrays, got {_described(params)}, which holds none")
    for path, leaf in leaves:
        place = jax.tree_util.keystr(path) or "the root"
        dtype = _dtype(leaf)
        kind = "other" if dtype is None else _kind(dtype)
        if kind != "float" and not (half and kind == "half"):
            got = _described(leaf) if dtype is None else dtype
            advice = _ADVICE.get(kind, "pass it as state, or close over it")
            raise ValueError(f"{name} must be arrays of real floating-point numbers, got {got} at {place}: {advice}")
    return jax.tree.map(jnp.asarray, params)


def examples(inputs: Any, name: str = "inputs") -> jax.Array:
    """Examples (N, ...) on the leading axis, N >= 1, of real numbers or integers.

    Raises:
      ValueError: no array, no examples, complex numbers.
    """
    array = _as_array(inputs, name)
    if array.ndim < 1 or array.shape[0] == 0:
        raise ValueError(f"{name} must hold examples on its leading axis, got shape {array.shape}")
    return array


def labels(labels: Any, num_classes: int, num_examples: int, name: str = "labels") -> Int[Array, " N"]:
    """Class indices (N,), int32, from 0 to ``num_classes`` - 1; the range of values under `jax.jit` is not checked.

    Raises:
      ValueError: another shape or dtype, or a value outside the range.
    """
    array = _as_array(labels, name)
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
    return array.astype(jnp.int32)


def logits_shape(apply_fn: Callable, *args: Any) -> tuple[int, int]:
    """The shape (N, C) of the logits ``apply_fn(*args)``, by tracing alone.

    Raises:
      ValueError: the function returns something else.
    """
    if not callable(apply_fn):
        raise ValueError(f"apply_fn must be a function (params, inputs) -> logits (N, C), got {_described(apply_fn)}")
    logits = jax.eval_shape(apply_fn, *args)
    if not isinstance(logits, jax.ShapeDtypeStruct):
        hint = ": of Flax's apply with mutable=[...] take the first entry" if isinstance(logits, tuple) else ""
        raise ValueError(f"apply_fn must return logits (N, C), got {_described(logits)}{hint}")
    if len(logits.shape) != 2:
        hint = ": add an axis with logits[:, None]" if len(logits.shape) == 1 else ""
        raise ValueError(f"apply_fn must return logits (N, C), got shape {logits.shape}{hint}")
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"apply_fn must return logits of real floating-point numbers, got {logits.dtype}")
    return logits.shape


def independent_examples(outputs_fn: Callable[..., jax.Array], data: tuple[jax.Array, ...], advice: str) -> None:
    """Check that ``outputs_fn(*data)``, of shape (N, ...), gives an example the same outputs alone and beside another one.

    The first example is tried with the first one that differs from it. Where all are equal, companions change nothing. Traced values pass.

    Raises:
      BatchCouplingError: the outputs depend on the companion; the message ends with ``advice``.
    """
    if data[0].shape[0] < 2 or any(isinstance(array, jax.core.Tracer) for array in data):
        return
    others = [np.asarray(array[1:] != array[:1]).reshape(len(array) - 1, -1).any(1) for array in data]
    differing = np.flatnonzero(np.any(others, axis=0))
    if not differing.size:
        return
    pair = tuple(array[np.array([0, differing[0] + 1])] for array in data)
    dependence = float(_dependence(outputs_fn, pair))
    if dependence > _MAX_DEPENDENCE:
        raise BatchCouplingError(
            f"examples are coupled, for instance by batch statistics: beside another example the outputs of an example differ from those "
            f"alone (relative change {dependence:.2g}). {advice}"
        )


def number(value: Any, name: str, *, least: float = -math.inf, positive: bool = False) -> Any:
    """One finite real number, at least ``least``, as a float; a tracer as it is, unchecked.

    Raises:
      ValueError: no such number.
    """
    if isinstance(value, jax.core.Tracer) and value.ndim == 0:
        return value
    wanted = f"{name} must be one {'positive ' if positive else ''}finite number" + (f", at least {least:g}" if least > -math.inf else "")
    array = None if isinstance(value, str | bytes | bool | None) else _numeric(value)
    if array is None or array.ndim != 0 or _kind(array.dtype) not in ("float", "half", "integer") or not np.isfinite(float(array)):
        raise ValueError(f"{wanted}, got {_described(value)}")
    if float(array) < least or (positive and float(array) <= 0):
        raise ValueError(f"{wanted}, got {float(array):g}")
    return float(array)


def prng_key(key: Any, name: str = "key") -> jax.Array:
    """One random key, typed or raw.

    Raises:
      ValueError: no key, or several.
    """
    dtype = getattr(key, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and key.ndim == 0:
        return key
    if isinstance(key, jax.Array) and dtype == jnp.uint32 and key.ndim == 1:
        return key
    raise ValueError(f"{name} must be one random key, such as jax.random.key(0), got {_described(key)}")


def _dependence(outputs_fn: Callable[..., jax.Array], pair: tuple[jax.Array, ...]) -> jax.Array:
    """Largest difference between the outputs of two examples together and alone, relative to the largest output."""
    together = outputs_fn(*pair)
    alone = jnp.concatenate([outputs_fn(*(array[i : i + 1] for array in pair)) for i in range(2)])
    return jnp.max(jnp.abs(together - alone)) / jnp.maximum(jnp.max(jnp.abs(together)), jnp.finfo(together.dtype).tiny)


def _as_array(value: Any, name: str) -> jax.Array:
    array = value if isinstance(value, jax.Array) else None if isinstance(value, Mapping | tuple | str | bytes) else _numeric(value)
    if array is None or _kind(array.dtype) == "other":
        raise ValueError(f"{name} must be one array, got {_described(value)}")
    if _kind(array.dtype) == "complex":
        raise ValueError(f"{name} must be real numbers, got {array.dtype}: {_ADVICE['complex']}")
    return jnp.asarray(array)


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
