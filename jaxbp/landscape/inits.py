"""Initial parameters that lead training to bad end points: shifted or spread biases, zero and constant parameters.

Table 1 of "Truth or Backpropaganda?" (Goldblum et al., ICLR 2020) trains from such points. Each is made from parameters drawn as usual,
so that only the named property changes. Biases are the leaves called ``bias``.

>>> import jax, jax.numpy as jnp
>>> from jaxbp.landscape import perturb_init
>>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
>>> perturb_init("bias +20", params, jax.random.key(0))["dense"]["bias"].tolist()
[20.0, 20.0, 20.0]
>>> float(jnp.abs(perturb_init("bias U(-10, 10)", params, jax.random.key(0))["dense"]["bias"]).max()) < 10
True
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxbp import checks

INITS = ("default", "zero", "constant C", "bias +V", "bias -V", "bias U(-V, V)")  # V, C: positive numbers


def perturb_init(name: str, params: PyTree, key: jax.Array) -> PyTree:
    """Change freshly drawn ``params`` into the initialisation ``name``, one of the forms in `INITS`.

    - *default*: no change;
    - *zero*, *constant C*: every parameter is 0 or C;
    - *bias +V*, *bias -V*: every bias is shifted by V or -V;
    - *bias U(-V, V)*: every bias is drawn uniformly; the only form that uses ``key``.

    Raises:
      ValueError: for a name of another form, for parameters without a bias where biases change, or that are no real floating-point arrays.
    """
    params = checks.parameters(params, half=True)
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


def _change_biases(params: Any, key: jax.Array, change_fn: Callable[[jax.Array, jax.Array], jax.Array]) -> Any:
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    bias_flags = [path[-1] == jax.tree_util.DictKey("bias") for path, _ in leaves]
    if not any(bias_flags):
        raise ValueError("the parameters hold no leaf called 'bias', so there is no bias to change")
    keys = jax.random.split(key, len(leaves))
    changed = [change_fn(leaf, k) if is_bias else leaf for (_, leaf), k, is_bias in zip(leaves, keys, bias_flags, strict=True)]
    return jax.tree.unflatten(structure, changed)
