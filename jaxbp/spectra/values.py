"""Singular values of a batch of matrices, with gradients that stay finite.

There are two routes.

- *svd*: LAPACK's; small values have the absolute rounding error of the largest one.
- *gram*: eigenvalues of the smaller of A* A and A A*, computed in float64 even in a float32 session. With condition number c the smallest
  value has a relative error of about c^2 1e-16: better than a float32 SVD (c 1e-7) up to c = 1e9, worse than a float64 SVD.

Measured on the CPU (JAX 0.10.2, one thread, 64x64 to 512x512, complex, equal precision), gram takes 1.6-1.9 times as long as svd, so the
CPU uses *svd*. Other platforms use *gram*: on an H200 the spectra of a ResNet-18 of width 16 take 13 ms by gram and 1.1 s by PyTorch's
`svdvals` (two runs, beside other work). Matrices of one row or column need neither.

The derivative of sigma_i along dA is Re(u_i* dA v_i). It does not involve gaps between the values, so repeated values do no harm to a sum
over them. At sigma_i = 0, where there is no derivative, it is taken as 0, the subgradient of least norm.

>>> import jax, jax.numpy as jnp
>>> from jaxbp.spectra import values
>>> A = jnp.zeros((3, 2)).at[0, 0].set(2.0)                       # rank 1
>>> [round(float(v), 5) for v in values.matrix_values(A)]
[2.0, 0.0]
>>> jax.grad(lambda A: values.matrix_values(A).sum())(A).tolist()
[[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Inexact

from jaxbp.linalg import scaling
from jaxbp.ops import platform

ROUTES = ("auto", "svd", "gram")


def choose_route(backend: str) -> str:
    """The route of ``auto`` on a backend, named as by `jax.default_backend`."""
    return "svd" if backend == "cpu" else "gram"


def matrix_values(matrices: Inexact[jax.Array, "*batch m n"], route: str = "auto") -> Float[jax.Array, "*batch k"]:
    """Singular values (..., min(m, n)), descending, of real or complex matrices (..., m, n); differentiable once.

    Raises:
      ValueError: for a route that is not in `ROUTES`.
    """
    if route not in ROUTES:
        raise ValueError(f"route must be one of {', '.join(ROUTES)}, got {route!r}")
    return _values(choose_route(platform.current()) if route == "auto" else route, matrices)


def decompose_sequentially(decompose_fn: Callable, matrices: jax.Array) -> Any:
    """Apply ``decompose_fn`` to a batch of matrices (..., m, n); on the CPU in a loop over single matrices.

    Two batched decompositions in one program can deadlock on XLA's CPU backend (JAX 0.10.2, two cores: every thread sleeps at the second
    call). No deadlock was observed with a loop over single matrices.
    """
    if platform.current() != "cpu":
        return decompose_fn(matrices)
    flat = jax.lax.map(decompose_fn, matrices.reshape(-1, *matrices.shape[-2:]))
    return jax.tree.map(lambda a: a.reshape(*matrices.shape[:-2], *a.shape[1:]), flat)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _values(route: str, matrices: jax.Array) -> jax.Array:
    if min(matrices.shape[-2:]) == 1:
        return scaling.norm(matrices, (-2, -1))[..., None]
    if matrices.size == 0:
        return jnp.zeros((*matrices.shape[:-2], min(matrices.shape[-2:])), matrices.real.dtype)
    if route == "svd":
        return decompose_sequentially(lambda matrix: jnp.linalg.svd(matrix, compute_uv=False), matrices)
    return _by_gram(matrices)


@_values.defjvp
def _values_jvp(route: str, primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (matrices,), (change,) = primals, tangents
    if matrices.size == 0:
        values = _values(route, matrices)
        return values, jnp.zeros_like(values)
    left, values, right = decompose_sequentially(lambda matrix: jnp.linalg.svd(matrix, full_matrices=False), matrices)
    along = jnp.einsum("...mi,...mn,...in->...i", left.conj(), change, right.conj(), precision="highest").real
    noise = max(matrices.shape[-2:]) * jnp.finfo(values.dtype).eps * values[..., :1]
    return values, jnp.where(values > noise, along, 0)


def _by_gram(matrices: jax.Array) -> jax.Array:
    """Square roots of the eigenvalues of the smaller Gram matrix, computed in float64 and returned in the matrices' precision."""
    with jax.enable_x64(True):
        wide = matrices.astype(jnp.complex128 if jnp.iscomplexobj(matrices) else jnp.float64)
        spec = "...ma,...mb->...ab" if matrices.shape[-1] <= matrices.shape[-2] else "...am,...bm->...ab"
        squares = decompose_sequentially(jnp.linalg.eigvalsh, jnp.einsum(spec, wide.conj(), wide, precision="highest"))
        roots = jnp.sqrt(jnp.maximum(squares, 0))[..., ::-1]
        return roots.astype(jnp.float64 if matrices.dtype in (jnp.float64, jnp.complex128) else jnp.float32)
