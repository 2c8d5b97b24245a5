"""The generalised Gauss-Newton matrix and Fisher information, as operators with the face of `jaxbp.landscape.hessian`.

With logits f(w, x) and a loss l(f, y), the Hessian is G + sum_i sum_c (dl/df_c) (d^2 f_c / dw^2), where G = mean_i J_i^T H_i J_i holds the
curvature of the loss in the logits, H_i, and the Jacobian of the logits, J_i (Schraudolph, Neural Computation 14, 2002). G has no negative
eigenvalue where the loss is convex in the logits. For both losses of `jaxbp.losses`, which are negative log-likelihoods of exponential
families up to a constant, G is the Fisher information, the expectation over the model's own labels (Martens, JMLR 21, 2020, section 9).

>>> import jax.numpy as jnp
>>> from jaxbp import landscape
>>> params, inputs = {"w": jnp.ones((2, 3))}, jnp.eye(2)
>>> fisher = landscape.gauss_newton(lambda p, x: x @ p["w"], params, inputs, jnp.array([0, 1]), loss="squared_error")
>>> fisher.matvec(jnp.ones(6)).tolist()
[0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from jaxtyping import Int, Key, PyTree, Shaped

from jaxbp import checks
from jaxbp.landscape.certificate import per_example_loss
from jaxbp.landscape.hessian import Data, Hessian, apply_linear, loss_and_gradient, multiply, shard, sum_over_chunks
from jaxbp.losses import LOSSES

Kind = Literal["exact", "sampled", "empirical"]
ApplyFn = Callable[[Any, jax.Array], jax.Array]  # (params, inputs) -> (N, C)


def gauss_newton(
    apply_fn: ApplyFn,
    params: PyTree,
    inputs: Shaped[jax.Array, "n ..."],
    labels: Int[jax.Array, " n"],
    *,
    loss: str,
    kind: Kind = "exact",
    key: Key[jax.Array, ""] | None = None,
    chunk_size: int | None = None,
    mesh: Mesh | None = None,
) -> Hessian:
    """The Gauss-Newton matrix of the mean loss over all N examples, as an operator on the P flattened parameters.

    Args:
      apply_fn: ``(params, inputs) -> logits`` (N, C); examples must not influence one another.
      params: pytree of floating-point arrays; their dtype is the dtype of every product.
      inputs: (N, ...).
      labels: (N,) class indices.
      loss: "cross_entropy" or "squared_error", as in `jaxbp.losses`.
      kind: "exact", the Gauss-Newton matrix, equal to the Fisher information; "sampled", mean_i g_i g_i^T with g_i the gradient at a label
        drawn from the model, whose expectation is the exact one; "empirical", the same at the true labels, which is another matrix
        (Kunstner, Balles and Hennig, NeurIPS 2019).
      key: for "sampled"; each example has its own label whatever ``chunk_size``.
      chunk_size: number of examples whose activations are held at a time; None holds all and reuses them for every product.
      mesh: devices over which the examples are sharded, as in `hessian`.

    Returns:
      loss, gradient and position are those of `hessian`; ``matvec`` multiplies with the Gauss-Newton matrix.

    Raises:
      BatchCouplingError: a ``chunk_size`` for logits that depend on the other examples of the batch.
      ValueError: arguments of other shapes, dtypes or names; a key that is missing, or one that is not used; a mesh that does not divide N,
        or one beside a ``chunk_size``.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    if (key is None) == (kind == "sampled"):
        raise ValueError(f"a key draws the labels of kind 'sampled' and nothing else, got kind {kind!r} and key {key!r}")
    if mesh is not None:
        examples = checks.labelled_examples((inputs, labels), "(inputs, labels)")
        params, (inputs, labels) = shard(checks.parameters(params), examples, chunk_size, mesh)
    value, gradient = loss_and_gradient(per_example_loss(apply_fn, loss), params, (inputs, labels), chunk_size=chunk_size)
    params, inputs = checks.parameters(params), checks.examples(inputs)
    targets = checks.labels(labels, jax.eval_shape(apply_fn, params, inputs).shape[-1], len(inputs))
    keys = jax.random.split(jax.random.key(0) if key is None else checks.prng_key(key), len(inputs))
    data = (inputs, targets, keys if mesh is None else jax.device_put(keys, inputs.sharding))
    position, unravel = ravel_pytree(params)
    if chunk_size is None or chunk_size >= len(inputs):
        linear_fn = _linearise(apply_fn, loss, kind, params, data)
        matvec = partial(multiply, linear_fn, product_fn=apply_linear, dimension=position.size)
    else:
        product_fn = partial(_chunked_product, apply_fn, loss, kind, chunk_size)
        matvec = partial(multiply, params, data, product_fn=product_fn, dimension=position.size)
    return Hessian(value, gradient, position, matvec, unravel)


def _in_logits(loss: str, kind: Kind, logits: jax.Array, labels: jax.Array, keys: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """The matrices that stand between the Jacobians, (N, C) to (N, C), for each example its own."""
    gradient_fn = jax.grad(lambda values, targets: LOSSES[loss](values, targets).sum())
    if kind == "exact":
        return lambda step: jax.jvp(lambda values: gradient_fn(values, labels), (logits,), (step,))[1]
    if kind == "empirical":
        slopes = gradient_fn(logits, labels)
    elif loss == "cross_entropy":
        slopes = gradient_fn(logits, jax.vmap(jax.random.categorical)(keys, logits))
    else:  # a Gaussian of variance 1 around the logits
        slopes = jax.vmap(lambda one_key: jax.random.normal(one_key, logits.shape[1:], logits.dtype))(keys)
    return lambda step: slopes * (slopes * step).sum(-1, keepdims=True)


def _product_fn(apply_fn: ApplyFn, loss: str, kind: Kind, params: PyTree, data: Data) -> Callable[[jax.Array], jax.Array]:
    """The sum over examples of J^T B J as a linear function of a flat vector."""
    position, unravel = ravel_pytree(params)
    inputs, labels, keys = map(jnp.asarray, data)
    logits, pushforward = jax.linearize(lambda point: apply_fn(unravel(point), inputs), position)
    pullback = jax.linear_transpose(pushforward, position)
    between = _in_logits(loss, kind, jax.lax.stop_gradient(logits), labels, keys)
    return lambda vector: pullback(between(pushforward(vector)))[0]


@partial(jax.jit, static_argnums=(0, 1, 2))
@jax.default_matmul_precision("highest")
def _linearise(apply_fn: ApplyFn, loss: str, kind: Kind, params: PyTree, data: Data) -> Any:
    product_fn = _product_fn(apply_fn, loss, kind, params, data)
    position, _ = ravel_pytree(params)
    return jax.linearize(lambda vector: product_fn(vector) / len(data[0]), position)[1]


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
@jax.default_matmul_precision("highest")
def _chunked_product(apply_fn: ApplyFn, loss: str, kind: Kind, chunk_size: int, params: PyTree, data: Data, vector: jax.Array) -> jax.Array:
    def chunk_product(chunk: Data) -> jax.Array:
        return _product_fn(apply_fn, loss, kind, params, chunk)(vector)

    return sum_over_chunks(chunk_product, chunk_size, data) / len(data[0])
