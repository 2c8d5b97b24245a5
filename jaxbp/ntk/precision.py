"""The error of a kernel computed in short numbers, measured against float64 on a random part of it.

>>> import jax, jax.numpy as jnp
>>> from jaxbp import ntk
>>> def apply_fn(params, inputs):
...     return jnp.tanh(inputs @ params["hidden"]) @ params["head"]
>>> shapes = {"hidden": (5, 16), "head": (16, 3)}
>>> params = {name: jax.random.normal(jax.random.key(0), shape) for name, shape in shapes.items()}
>>> inputs = jax.random.normal(jax.random.key(1), (20, 5))
>>> kernel = ntk.empirical_ntk(apply_fn, params, inputs, compute_dtype=jnp.bfloat16)
>>> error = ntk.precision.kernel_error(kernel, apply_fn, params, inputs, key=jax.random.key(2))
>>> bool(1e-4 < error.relative < 0.05), error.num_entries
(True, 576)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Key, PyTree, Shaped

from jaxbp import checks
from jaxbp.ntk._blocks import ApplyFn, num_examples
from jaxbp.ntk.empirical import empirical_ntk
from jaxbp.ops import dtypes


class KernelError(NamedTuple):
    """How far some entries of a kernel are from float64.

    Attributes:
      relative: Frobenius norm of the difference over that of the float64 entries.
      largest: largest difference over the root mean square of the float64 entries.
      num_entries: number of entries that were compared.
    """

    relative: float
    largest: float
    num_entries: int


def kernel_error(
    kernel: Float[ArrayLike, "N M *logits"],
    apply_fn: ApplyFn,
    params: PyTree,
    x1: PyTree[Shaped[ArrayLike, "N ..."]],
    x2: PyTree[Shaped[ArrayLike, "M ..."]] | None = None,
    *,
    key: Key[jax.Array, ""],
    num_rows: int = 8,
    state: PyTree = None,
    logits: str | int = "full",
    **options: Any,
) -> KernelError:
    """The error of ``kernel`` on the pairs of ``num_rows`` random examples of ``x1`` with as many of ``x2``, default ``x1``.

    The truth is `empirical_ntk` in float64: parameters, real inputs and state are cast, so that their own rounding is no part of the error.
    A function that itself casts to short numbers is as inexact there.

    Args:
      kernel: as `empirical_ntk` returned it for ``x1``, ``x2`` and ``logits``.
      apply_fn, params, x1, x2, state, logits: as in `empirical_ntk`.
      key: of the choice of examples.
      num_rows: examples of each set.
      options: passed to `empirical_ntk`: memory, method, compiler_options.

    Raises:
      ValueError: a kernel that is not one of these examples.
    """
    params, key = checks.parameters(params), checks.prng_key(key, known=True)
    checks.refuse_traced("params, examples and kernel", *jax.tree.leaves((params, x1, x2, state, kernel)))
    entries = checks.host_values(kernel, "kernel")
    sets = [checks.example_tree(x1, "x1"), *([] if x2 is None else [checks.example_tree(x2, "x2")])]
    shape = (num_examples(sets[0]), num_examples(sets[-1]))
    if entries.shape[:2] != shape:
        raise ValueError(f"kernel must be {shape} for these examples, got shape {entries.shape}")
    num_rows = checks.count(num_rows, "num_rows")
    chosen = [_chosen(k, n, num_rows) for k, n in zip(jax.random.split(key), shape, strict=True)]
    parts = [jax.tree.map(lambda leaf, rows=rows: leaf[rows], x) for x, rows in zip((sets[0], sets[-1]), chosen, strict=True)]
    with dtypes.float64():
        exact = empirical_ntk(apply_fn, *_wide((params, *parts)), state=_wide(state), logits=logits, **options)
        truth = np.asarray(exact)
    part = entries[np.ix_(*chosen)]
    if part.shape != truth.shape:
        raise ValueError(f"kernel must be {(*shape, *truth.shape[2:])} for logits={logits!r}, got shape {entries.shape}")
    difference, norm = part - truth, np.linalg.norm(truth)
    with np.errstate(divide="ignore", invalid="ignore"):
        largest = np.abs(difference).max() / (norm / np.sqrt(truth.size))
        return KernelError(float(np.linalg.norm(difference) / norm), float(largest), truth.size)


def _chosen(key: jax.Array, number: int, most: int) -> np.ndarray:
    return np.asarray(jax.random.permutation(key, number))[:most]


def _wide(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree)
