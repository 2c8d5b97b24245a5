"""Curvature in some of the parameters: an operator restricted to layers, or to any subset, the others frozen.

>>> import jax.numpy as jnp
>>> from jaxbp import landscape
>>> params = {"first": jnp.ones(2), "last": jnp.ones(1)}
>>> operator = landscape.hessian(lambda p, x: (p["first"].sum() * p["last"][0] * x) ** 2, params, (jnp.ones(3),))
>>> landscape.restrict(operator, params, "last").matvec(jnp.ones(1)).tolist()
[8.0]
>>> landscape.layers(params)
('first', 'last')
"""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Bool, Key, PyTree

from jaxbp import checks
from jaxbp.landscape.hessian import Hessian, multiply
from jaxbp.linalg.lanczos import Extremes, extreme_eigenvalues


def restrict(operator: Hessian, params: PyTree, only: str | PyTree) -> Hessian:
    """The operator between the chosen parameters alone, P' of P: a principal submatrix. A product costs as much as one of all.

    Args:
      operator: from `hessian` or `gauss_newton`.
      params: the parameters at which the operator was taken; gives names and shapes.
      only: a regular expression that is searched in the names of leaves, such as "Dense_0/kernel"; or a pytree like ``params`` of
        booleans, or of boolean arrays of the leaves' shapes.

    Returns:
      gradient and position of the chosen parameters (P',); ``unravel`` gives the whole pytree, with the others as they are.

    Raises:
      ValueError: nothing is chosen, another structure, or parameters of another size.
    """
    chosen = np.flatnonzero(_mask(params, only))
    if operator.dimension != sum(np.size(leaf) for leaf in jax.tree.leaves(params)):
        raise ValueError(f"params must be those of the operator, {operator.dimension} numbers, got another size")
    if not chosen.size:
        raise ValueError(f"no parameter is chosen by {only!r}: the names are {', '.join(_names(params))}")
    product_fn = partial(_submatrix_product, dimension=operator.dimension)
    matvec = partial(multiply, operator.matvec, jnp.asarray(chosen), product_fn=product_fn, dimension=chosen.size)

    def unravel(position: jax.Array) -> PyTree:
        return operator.unravel(operator.position.at[chosen].set(position))

    return Hessian(operator.loss, operator.gradient[chosen], operator.position[chosen], matvec, unravel)


def layers(params: PyTree) -> tuple[str, ...]:
    """The names of the layers: what the names of the leaves are without their last part, or the leaf's name where there is no other."""
    return tuple(dict.fromkeys(name.rpartition("/")[0] or name for name in _names(params)))


def block_spectra(operator: Hessian, params: PyTree, key: Key[jax.Array, ""], **options: Any) -> dict[str, Extremes]:
    """Both ends of the spectrum of each layer's diagonal block; ``options`` are those of `extreme_eigenvalues`."""
    spectra = {}
    for name, layer_key in zip(layers(params), jax.random.split(checks.prng_key(key), len(layers(params))), strict=True):
        block = restrict(operator, params, rf"^{re.escape(name)}(/[^/]+)?$")
        start = jax.random.normal(layer_key, (block.dimension,), block.position.dtype)
        spectra[name] = extreme_eigenvalues(block.matvec, start, **options)
    return spectra


def _names(params: PyTree) -> list[str]:
    paths = jax.tree_util.tree_leaves_with_path(params)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]


def _mask(params: PyTree, only: str | PyTree) -> Bool[np.ndarray, " p"]:
    leaves, structure = jax.tree.flatten(params)
    if isinstance(only, str):
        flags: list[Any] = [bool(re.search(only, name)) for name in _names(params)]
    else:
        flags, given = jax.tree.flatten(only)
        if given != structure:
            raise ValueError(f"only must be a pattern, or a pytree like params, {structure}, got {given}")
    for flag in flags:
        if np.asarray(flag).dtype != bool:
            raise ValueError(f"only must hold booleans, got {np.asarray(flag).dtype}")
    spread = [np.broadcast_to(np.asarray(flag), np.shape(leaf)) for flag, leaf in zip(flags, leaves, strict=True)]
    return np.asarray(ravel_pytree(jax.tree.unflatten(structure, spread))[0], bool)


def _submatrix_product(matvec: Any, chosen: jax.Array, vector: jax.Array, *, dimension: int) -> jax.Array:
    return matvec(jnp.zeros(dimension, vector.dtype).at[chosen].set(vector))[chosen]
