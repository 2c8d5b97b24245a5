"""Starting points that are said to end badly: shifted or spread biases, zero and constant parameters (paper, Study 1, Table 1).

All are made from parameters drawn as usual, so that only what is named changes. A bias is every leaf called ``bias``.

>>> import jax, jax.numpy as jnp
>>> from jaxbp.landscape import perturb_init
>>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
>>> perturb_init("bias +20", params, jax.random.key(0))["dense"]["bias"].tolist()
[20.0, 20.0, 20.0]
>>> float(jnp.abs(perturb_init("bias U(-10, 10)", params, jax.random.key(0))["dense"]["bias"]).max()) < 10
True
"""

import re
from typing import Any

import jax
import jax.numpy as jnp

INITS = ("default", "zero", "constant C", "bias +V", "bias -V", "bias U(-V, V)")  # V, C: any positive number


def perturb_init(name: str, params: Any, key: jax.Array) -> Any:
    """Change freshly drawn ``params`` into the init ``name``, one of the forms in `INITS`.

    *default* leaves them; *zero* and *constant C* set every parameter; *bias +V*, *bias -V* shift every bias; *bias U(-V, V)* draws every
    bias uniformly. Only the last uses ``key``.

    Raises:
      ValueError: a name of no such form, or parameters without a bias where biases are to change.
    """
    if name == "default":
        return params
    if name == "zero":
        return jax.tree.map(jnp.zeros_like, params)
    if match := re.fullmatch(r"constant ([\d.]+)", name):
        value = float(match[1])
        return jax.tree.map(lambda leaf: jnp.full_like(leaf, value), params)
    if match := re.fullmatch(r"bias ([+-][\d.]+)", name):
        shift = float(match[1])
        return _change_biases(params, key, lambda bias, _: bias + shift)
    if match := re.fullmatch(r"bias U\(-([\d.]+), ([\d.]+)\)", name):
        low, high = -float(match[1]), float(match[2])
        return _change_biases(params, key, lambda bias, k: jax.random.uniform(k, bias.shape, bias.dtype, low, high))
    raise ValueError(f"init must be one of {', '.join(INITS)}, with a number for V and C, got {name!r}")


def _change_biases(params: Any, key: jax.Array, change_fn: Any) -> Any:
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    is_bias = [path[-1] == jax.tree_util.DictKey("bias") for path, _ in leaves]
    if not any(is_bias):
        raise ValueError("the parameters hold no leaf called 'bias', so there is none to change")
    keys = jax.random.split(key, len(leaves))
    changed = [change_fn(leaf, k) if biased else leaf for (_, leaf), k, biased in zip(leaves, keys, is_bias, strict=True)]
    return jax.tree.unflatten(structure, changed)
