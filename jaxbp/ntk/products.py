"""Products with a tangent kernel that is too large to form, and its extreme eigenvalues.

Theta(x1, x2) = J1 J2^T, where J is the Jacobian of a set's outputs with respect to the parameters. So Theta v is one backward pass
over x2, J2^T v, followed by one forward-mode pass over x1, J1 (J2^T v): about the work of a training step, whatever the number of
logits, with the memory of one. The network is linearised once, when the product is built, and keeps its activations
for all products; ``chunk_size`` bounds their memory by recomputing, as in `jaxbp.landscape.hessian`.

>>> import jax, jax.numpy as jnp
>>> from jaxbp.ntk import products
>>> def apply_fn(params, inputs):
...     return inputs @ params
>>> matvec = products.ntk_vector_product(apply_fn, jnp.ones((3, 2)), jnp.eye(3))  # the kernel is the identity
>>> matvec(jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])).tolist()
[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped

from jaxbp import checks, landscape
from jaxbp.ntk._blocks import ApplyFn, num_examples, outputs
from jaxbp.ntk.empirical import output_type, refuse_coupling


def ntk_vector_product(
    apply_fn: ApplyFn,
    params: PyTree,
    x1: PyTree[Shaped[ArrayLike, "N ..."]],
    x2: PyTree[Shaped[ArrayLike, "M ..."]] | None = None,
    *,
    state: PyTree = None,
    chunk_size: int | None = None,
) -> Callable[[Float[Array, "M C"]], Float[Array, "N C"]]:
    """``matvec``: v (M, C) -> (N, C), sum over j, l of Theta[i, j, k, l] v[j, l], Theta that of `empirical_ntk`.

    Args:
      apply_fn: ``(params, inputs) -> (N, C)``, or ``(params, inputs, state)`` where a state is given; compiled once for each
        function object and shapes. Needs forward mode: `jaxbp.ops.convolution` has it, a `jax.custom_vjp` does not.
      params: pytree of float32 or float64 arrays, all differentiated.
      x1, x2: N and M examples on the leading axis of an array, or of each array of a pytree; ``x2`` is by default ``x1``, whose
        linearisation then serves both.
      state: further arguments of the function, not differentiated.
      chunk_size: examples whose activations are held at a time. None takes each set as one batch and keeps its
        activations; this is also right for outputs that depend on the batch (batch statistics).

    Raises:
      BatchCouplingError: a ``chunk_size`` for a function whose outputs depend on the other examples of the batch (not checked on
        traced values).
      ValueError: a chunk size below 1, no examples, parameters that are no real floating-point numbers of 32 bits or more, outputs that
        are not one real array (N, C); by ``matvec``, a vector that is not (M, C).
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    params, state = checks.parameters(params), checks.as_arrays(state)
    x1 = checks.example_tree(x1, "x1", complex_numbers=True)
    x2 = None if x2 is None else checks.example_tree(x2, "x2", complex_numbers=True)
    out = [output_type(apply_fn, params, x, state) for x in (x1, x2) if x is not None][-1]
    if chunk_size is None:
        rows = _linearise(apply_fn, params, x1, state)
        columns = rows if x2 is None else _linearise(apply_fn, params, x2, state)
        product = partial(_product, rows, columns, params)
    else:
        sets = x1, x1 if x2 is None else x2
        refuse_coupling(apply_fn, params, sets, state)
        product = partial(_chunked_product, apply_fn, chunk_size, params, *sets, state)

    def matvec(vector: jax.Array) -> jax.Array:
        if jnp.shape(vector) != out.shape:
            raise ValueError(f"the vector must be (M, C) = {out.shape}, got {jnp.shape(vector)}")
        return product(jnp.asarray(vector, out.dtype))

    return matvec


def ntk_extremes(
    apply_fn: ApplyFn,
    params: PyTree,
    x: PyTree[Shaped[ArrayLike, "N ..."]],
    key: PRNGKeyArray,
    *,
    state: PyTree = None,
    chunk_size: int | None = None,
    **options: Any,
) -> landscape.Extremes:
    """Smallest and largest eigenvalue of the (N C, N C) kernel of ``x`` (N, ...), by Lanczos from a Gaussian vector.

    Eigenvectors are (N C,) in the order (example, logit) of `measures.as_matrix`; reshaped to (N, C) they suit
    ``matvec``. A kernel's small eigenvalues crowd, so the smallest may take N C products to resolve: ask ``converged``.

    Args:
      apply_fn, params, x, state, chunk_size: as in `ntk_vector_product`.
      key: of the start vector.
      options: passed to `landscape.extreme_eigenvalues`: rtol, atol, max_products, confidence.
    """
    matvec = ntk_vector_product(apply_fn, params, x, state=state, chunk_size=chunk_size)
    out = output_type(apply_fn, params, checks.as_arrays(x), state)
    checks.refuse_traced("params, x and key", key, *jax.tree.leaves((params, x)))
    start = jax.random.normal(checks.prng_key(key), (out.shape[0] * out.shape[1],), out.dtype)
    return landscape.extreme_eigenvalues(lambda v: matvec(v.reshape(out.shape)).reshape(-1), start, **options)


# Matrix products at full precision: the reduced precision of accelerators would make the kernel unsymmetric.


@partial(jax.jit, static_argnums=0)
@jax.default_matmul_precision("highest")
def _linearise(apply_fn: ApplyFn, params: Any, x: Any, state: Any) -> Callable:
    """v -> J v, with the stored activations of the forward pass."""
    return jax.linearize(lambda p: outputs(apply_fn, p, x, state), params)[1]


@jax.jit
def _product(rows: Callable, columns: Callable, params: Any, vector: jax.Array) -> jax.Array:
    (gradient,) = jax.linear_transpose(columns, params)(vector)
    return rows(gradient)


@partial(jax.jit, static_argnums=(0, 1))
@jax.default_matmul_precision("highest")
def _chunked_product(apply_fn: ApplyFn, chunk_size: int, params: Any, x1: Any, x2: Any, state: Any, vector: jax.Array) -> jax.Array:
    def add(total: Any, chunk: tuple[Any, jax.Array]) -> tuple[Any, None]:
        _, pullback = jax.vjp(lambda p: outputs(apply_fn, p, chunk[0], state), params)
        return jax.tree.map(jnp.add, total, pullback(chunk[1])[0]), None

    def push_forward(gradient: Any, chunk: Any) -> tuple[Any, jax.Array]:
        return gradient, jax.jvp(lambda p: outputs(apply_fn, p, chunk, state), (params,), (gradient,))[1]

    short = -num_examples(x2) % chunk_size
    weights = jnp.pad(vector, ((0, short), (0, 0)))  # the padding of the last chunk has weight 0
    pairs = _chunks(x2, chunk_size), _chunks(weights, chunk_size)
    gradient, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), pairs)
    products = jax.lax.scan(push_forward, gradient, _chunks(x1, chunk_size))[1]
    return products.reshape(-1, products.shape[-1])[: num_examples(x1)]


def _chunks(x: Any, chunk_size: int) -> Any:
    """(chunks, chunk_size, ...), the last chunk padded with the last example."""
    num_chunks = -(-num_examples(x) // chunk_size)
    items = np.minimum(np.arange(num_chunks * chunk_size), num_examples(x) - 1)
    return jax.tree.map(lambda leaf: leaf[items].reshape(num_chunks, chunk_size, *leaf.shape[1:]), x)
