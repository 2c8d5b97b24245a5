"""Lower bounds of the Rademacher complexity, and its exact value where all signs can be listed: the truth that upper bounds are held to.

R(F) = E_xi sup_f sum_i sum_r xi_ir f_r(x_i) / N, over signs xi (N, C). Whatever reaches a value for each xi bounds R from below.

>>> import jax, jax.numpy as jnp
>>> from jaxbp.bounds import lower
>>> estimate = lower.top_layer(jnp.ones((100, 4)), 1.0, num_outputs=10, key=jax.random.key(0), num_draws=64)
>>> round(estimate.value, 1)  # about sqrt(10 * 4 / 100)
0.6
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxbp import checks

_MAX_SIGNS = 20  # a million vectors of signs
_CHUNK = 4096


@dataclass(frozen=True)
class Estimate:
    """A Monte Carlo estimate of a lower bound.

    Attributes:
      log_value: logarithm of the mean over the draws.
      standard_error: of the mean.
    """

    log_value: float
    standard_error: float

    @property
    def value(self) -> float:
        """The mean over the draws."""
        return math.exp(self.log_value)

    @classmethod
    def of(cls, values: np.ndarray) -> "Estimate":
        """From the values of independent draws (D,), D >= 2."""
        with np.errstate(divide="ignore"):
            return cls(float(np.log(values.mean())), float(values.std(ddof=1) / math.sqrt(len(values))))


def exact(sup_fn: Callable[[np.ndarray], np.ndarray], num_examples: int, num_outputs: int = 1) -> float:
    """The Rademacher complexity of a class whose supremum is known in closed form, over all signs.

    Args:
      sup_fn: from signs (B, N, C), -1 or 1, to sup_f sum_i sum_r xi_ir f_r(x_i), (B,).
      num_examples, num_outputs: N and C, N C at most 20.

    Raises:
      ValueError: more signs than can be listed.
    """
    count = num_examples * num_outputs
    if count > _MAX_SIGNS:
        raise ValueError(f"all signs can be listed up to N C = {_MAX_SIGNS}, got {count}: use top_layer or search")
    total = 0.0
    for start in range(0, 2**count, _CHUNK):
        numbers = np.arange(start, min(start + _CHUNK, 2**count))
        signs = 1.0 - 2.0 * ((numbers[:, None] >> np.arange(count)) & 1)
        total += float(np.sum(sup_fn(signs.reshape(-1, num_examples, num_outputs))))
    return total / 2**count / num_examples


def top_layer(
    features: Any,
    top_norm: float,
    num_outputs: int,
    key: jax.Array,
    num_draws: int = 32,
    *,
    features_fn: Callable[[Any], Any] | None = None,
    chunk_size: int | None = None,
) -> Estimate:
    """The complexity with all layers fixed but the last: exact in law, no search.

    Over ||W_L||_F <= rho_L the supremum is rho_L ||sum_i xi_i (x) v(x_i)||_F with v the features. So R is at least its mean over N,
    for any lower layers that the class admits. Beside the features of a chunk, memory holds the sums, (num_draws, C, features) in float64.

    Args:
      features: (N, ...) what the last layer reads, from layers that are members of the class; or what ``features_fn`` makes it of.
      top_norm: rho_L.
      num_outputs: C.
      key: of the signs.
      num_draws: at least 2.
      features_fn: from examples (n, ...) to what the last layer reads, (n, ...), a chunk at a time.
      chunk_size: examples whose features are held at a time; None holds all.

    Raises:
      ValueError: wrong arguments.
    """
    examples = checks.host_examples(features, "features")
    top_norm = checks.number(top_norm, "top_norm", positive=True, known=True)
    size = len(examples) if chunk_size is None else checks.count(chunk_size, "chunk_size")
    if num_draws < 2:
        raise ValueError(f"num_draws must be at least 2, for a standard error, got {num_draws}")
    rng = np.random.default_rng(np.asarray(jax.random.bits(checks.prng_key(key, known=True), (4,))).tolist())
    signs = np.stack([rng.choice(np.array([-1, 1], np.int8), (num_outputs, len(examples))) for _ in range(num_draws)])
    sums: Any = 0.0
    for start in range(0, len(examples), size):
        chunk = examples[start : start + size]
        read = np.asarray(chunk if features_fn is None else features_fn(chunk), np.float64)
        if len(read) != len(chunk):
            raise ValueError(f"features_fn must give a row for each example, got {len(read)} for {len(chunk)} examples")
        sums += signs[..., start : start + size].astype(np.float64) @ read.reshape(len(read), -1)
    return Estimate.of(top_norm * np.linalg.norm(sums, axis=(1, 2)) / len(examples))


def unit_frobenius(params: PyTree) -> PyTree:
    """Each kernel scaled to Frobenius norm 1.

    Raises:
      ValueError: parameters that are not floating-point arrays.
    """
    return jax.tree.map(lambda leaf: leaf / jnp.maximum(jnp.linalg.norm(leaf.ravel()), 1e-30), checks.parameters(params))


def search(
    apply_fn: Callable,
    params: PyTree,
    inputs: Any,
    key: jax.Array,
    *,
    project_fn: Callable[[PyTree], PyTree] = unit_frobenius,
    num_draws: int = 16,
    num_steps: int = 200,
    num_starts: int = 4,
    step_size: float = 0.1,
) -> Estimate:
    """The complexity of a class of small networks by projected gradient ascent over all layers, for each draw of signs.

    What ascent reaches is at most the supremum, so the mean is a lower bound in expectation, however badly ascent does.

    Args:
      apply_fn: ``(params, inputs) -> (N, C)``.
      params: a member of the class; only shapes matter.
      inputs: (N, ...).
      key: of signs and starts.
      project_fn: from any parameters to a member of the class; default kernels of Frobenius norm 1.
      num_draws, num_steps, num_starts: signs, steps of ascent, starts of which the best counts.
      step_size: length of a step at the start, relative to the parameters; it falls to 0.
    """
    inputs, params = checks.examples(inputs), checks.parameters(params)
    num_outputs = checks.logits_shape(apply_fn, params, inputs)[1]
    signs_key, start_key = jax.random.split(checks.prng_key(key))
    signs = jax.random.rademacher(signs_key, (num_draws, len(inputs), num_outputs), dtype=inputs.dtype)
    shapes = jax.tree.map(lambda leaf: (num_draws, num_starts, *leaf.shape), params)
    keys = jax.random.split(start_key, len(jax.tree.leaves(params)))
    leaves = [
        jax.random.normal(leaf_key, shape)
        for leaf_key, shape in zip(keys, jax.tree.leaves(shapes, is_leaf=lambda node: isinstance(node, tuple)), strict=True)
    ]
    starts = jax.tree.unflatten(jax.tree.structure(params), leaves)
    ascend = functools.partial(_ascend, apply_fn, project_fn, num_steps, step_size, inputs)
    reached = jax.jit(jax.vmap(jax.vmap(ascend, (0, None)), (0, 0)))(starts, signs)
    return Estimate.of(np.asarray(reached, np.float64).max(1) / len(inputs))


def _ascend(
    apply_fn: Callable, project_fn: Callable, num_steps: int, step_size: float, inputs: jax.Array, start: PyTree, signs: jax.Array
) -> jax.Array:
    def value(params: PyTree) -> jax.Array:
        return jnp.sum(signs * apply_fn(params, inputs))

    def step(params: PyTree, rate: jax.Array) -> tuple[PyTree, jax.Array]:
        height, gradient = jax.value_and_grad(value)(params)
        direction = unit_frobenius(gradient)
        return project_fn(jax.tree.map(lambda leaf, change: leaf + rate * change, params, direction)), height

    end, heights = jax.lax.scan(step, project_fn(start), step_size * jnp.linspace(1.0, 0.0, num_steps))
    return jnp.maximum(value(end), heights.max())
