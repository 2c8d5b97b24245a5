"""Bounds on the test error that count bits: PAC-Bayes, Occam's bound, random subspaces, and certificates that decode.

With probability 1 - delta over N examples, for every hypothesis of a prefix-free code at once (Chernoff's bound, a union over the code),

    kl(err || risk) <= (bits log 2 + log(1 / delta)) / N,

with err the training error and kl the divergence of Bernoulli laws (Lotfi et al., NeurIPS 2022; Wilson, ICML 2025, states the weaker form
by Hoeffding). A stochastic classifier Q of prior P has KL(Q || P) + log(2 sqrt(N) / delta) in place of the bits (Maurer 2004). What is
chosen after a look at the labels is paid for in bits: the step of a quantiser, the alphabet. What comes from the seed alone is free: the
start, the subspace, the settings of the training.

>>> from jaxbp import pac_bayes
>>> round(pac_bayes.kl_inverse(0.0, 0.1), 4)                    # 1 - exp(-0.1)
0.0952
>>> round(pac_bayes.countable(0.1, 1000, bits=100, delta=0.05), 3)
0.25
>>> pac_bayes.code_length([0] * 100, alphabet=2) < 5            # a code that learns the frequencies
True
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree
from scipy.special import gammaln

from jaxbp import checks, metrics

_TOLERANCE = 1e-12  # of kl_inverse
_SYMBOL_BITS = 7  # to send the largest symbol, up to 127 either way
_PRIOR_SCALE, _PRIOR_STEPS = 0.1, 100  # standard deviations 0.1 exp(-j / 100), j = 1, 2, ..., of weight 6 / (pi^2 j^2)
_BLOCK = 16  # directions of a subspace that are held at a time


def kl(q: float, p: float) -> float:
    """The divergence q log(q / p) + (1 - q) log((1 - q) / (1 - p)) of Bernoulli laws; infinite where p excludes what q has."""
    terms = ((q, p), (1 - q, 1 - p))
    return sum(a * math.log(a / b) if b > 0 else math.inf for a, b in terms if a > 0)


def kl_inverse(q: float, c: float) -> float:
    """The largest p with kl(q || p) <= c, to 1e-12 from above.

    Raises:
      ValueError: q outside [0, 1], or a negative c.
    """
    q = _share(q, "q")
    c = c if isinstance(c, float) and c == math.inf else checks.number(c, "c", least=0.0, known=True)
    if c == 0 or q == 1:
        return q
    if q == 0:
        return -math.expm1(-c)
    low, high = q, 1.0
    while high - low > _TOLERANCE:
        middle = (low + high) / 2
        low, high = (middle, high) if kl(q, middle) <= c else (low, middle)
    return high


def countable(error: float, num_examples: int, *, bits: float, delta: float) -> float:
    """Occam's bound of the risk of a classifier whose description takes ``bits``, by the inverse of kl; at most 1.

    Args:
      error: share of the N training examples that the classifier gets wrong.
      num_examples: N.
      bits: length of its word in a prefix-free code, or -log2 of a prior; no rounding.
      delta: the probability with which the bound may fail.

    Raises:
      ValueError: numbers out of range.
    """
    return kl_inverse(error, _nats(bits, delta) / _count(num_examples))


def hoeffding(error: float, num_examples: int, *, bits: float, delta: float, loss_range: float = 1.0) -> float:
    """The same by Hoeffding: error + range sqrt((bits log 2 + log(1 / delta)) / (2 N)), not capped; for any loss in [0, range].

    Raises:
      ValueError: numbers out of range, or a loss without a range.
    """
    loss_range = checks.number(loss_range, "loss_range: an unbounded loss has no such bound, and loss_range", positive=True)
    if not 0 <= checks.number(error, "error", known=True) <= loss_range:
        raise ValueError(f"error must lie from 0 to loss_range = {loss_range:g}, got {error}")
    return error + loss_range * math.sqrt(_nats(bits, delta) / (2 * _count(num_examples)))


def catoni(error: float, num_examples: int, *, bits: float, delta: float, lambdas: Sequence[float] = (0.5, 1.0, 2.0, 4.0, 8.0)) -> float:
    """Catoni's bound (1 - exp(-lambda err - (bits log 2 + log(1 / delta)) / N)) / (1 - exp(-lambda)), the best of a grid that is paid for.

    Each lambda holds with delta / len(lambdas). Never below `countable` at the same confidence.

    Raises:
      ValueError: numbers out of range.
    """
    lambdas = checks.host_values(lambdas, "lambdas", shape=(None,), finite=True).tolist()
    if not lambdas or min(lambdas) <= 0:
        raise ValueError(f"lambdas must be positive, one at least, got {lambdas}")
    error, price = _share(error, "error"), (_nats(bits, delta) + math.log(len(lambdas))) / _count(num_examples)
    return min(1.0, *(-math.expm1(-lam * error - price) / -math.expm1(-lam) for lam in lambdas))


def code_length(symbols: Any, alphabet: int) -> float:
    """Bits of a sequence under the mixture of Krichevsky and Trofimov (IEEE Trans. IT 27, 1981): it adapts, so no table is sent.

    The probability is Gamma(K / 2) / Gamma(n + K / 2) prod_k Gamma(c_k + 1/2) / Gamma(1/2) for counts c_k of K symbols; over all
    sequences of a length it sums to 1. The result is -log2 of it, what an arithmetic coder takes but for 2 bits at most.

    Raises:
      ValueError: symbols that are not from 0 to ``alphabet`` - 1.
    """
    symbols, alphabet = checks.host_array(symbols, "symbols"), checks.count(alphabet, "alphabet")
    if symbols.ndim != 1 or (symbols.size and not np.issubdtype(symbols.dtype, np.integer)):
        raise ValueError(f"symbols must be whole numbers (n,) of an alphabet of at least 1, got {symbols.dtype}{list(symbols.shape)}")
    if symbols.size and not 0 <= symbols.min() <= symbols.max() < alphabet:
        raise ValueError(f"symbols must lie from 0 to {alphabet - 1}, got {symbols.min()} to {symbols.max()}")
    counts = np.bincount(symbols.astype(int), minlength=alphabet)
    log_probability = gammaln(alphabet / 2) - gammaln(len(symbols) + alphabet / 2) + np.sum(gammaln(counts + 0.5) - gammaln(0.5))
    return float(max(-log_probability / math.log(2), 0.0))


@dataclass(frozen=True, eq=False)
class Subspace:
    """Parameters theta_0 + scale P z, P (parameters, d) of columns of unit length drawn from the key: no entry of P is stored or sent.

    Attributes:
      key: of the columns.
      start: theta_0.
      dimension: d.
      scale: a number.
    """

    key: jax.Array
    start: PyTree
    dimension: int
    scale: float = 1.0

    def __post_init__(self):
        checks.prng_key(self.key)
        checks.parameters(self.start, "start")
        checks.count(self.dimension, "dimension")

    def params(self, z: Float[Array, " d"]) -> PyTree:
        """The parameters of coordinates z (d,); differentiable in z.

        Raises:
          ValueError: another number of coordinates.
        """
        z = checks.numbers(z, "z")
        if z.shape != (self.dimension,):
            raise ValueError(f"z must be coordinates ({self.dimension},), got shape {z.shape}")
        flat, unravel = ravel_pytree(self.start)
        padded = jnp.pad(z, (0, self._num_blocks * _BLOCK - self.dimension)).reshape(self._num_blocks, _BLOCK)

        def add(total: jax.Array, block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            index, coordinates = block
            return total + coordinates.astype(flat.dtype) @ _block(self.key, index, flat.size, flat.dtype), None

        total, _ = jax.lax.scan(add, jnp.zeros_like(flat), (jnp.arange(self._num_blocks), padded))
        return unravel(flat + self.scale * total)

    def columns(self) -> Float[Array, "d p"]:
        """All columns at once, one a row, for a training that holds them: `params` is start + scale z @ columns."""
        flat, _ = ravel_pytree(self.start)
        return _columns(self.key, self.dimension, flat.size, flat.dtype)

    @property
    def _num_blocks(self) -> int:
        return -(-self.dimension // _BLOCK)


def _block(key: jax.Array, index: Any, size: int, dtype: Any) -> jax.Array:
    """Some columns of a subspace, one a row: (_BLOCK, size)."""
    columns = jax.random.normal(jax.random.fold_in(key, index), (_BLOCK, size), dtype)
    return columns / jnp.linalg.norm(columns, axis=1, keepdims=True)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _columns(key: jax.Array, dimension: int, size: int, dtype: Any) -> jax.Array:
    """All columns of a subspace, one a row, with no second copy of them in memory on the way."""
    whole = dimension // _BLOCK

    def put(index: Any, rows: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(rows, _block(key, index, size, dtype), (index * _BLOCK, 0))

    rows = jnp.zeros((dimension, size), dtype)
    if whole:
        rows = jax.lax.fori_loop(0, whole, put, rows)
    if dimension % _BLOCK:
        rows = rows.at[whole * _BLOCK :].set(_block(key, whole, size, dtype)[: dimension % _BLOCK])
    return rows


@dataclass(frozen=True, eq=False)
class Certificate:
    """A classifier that can be decoded from its bits, and the bound of its risk.

    Attributes:
      bound: by `countable`.
      error: of the decoded classifier on the training examples.
      bits: by part: "coordinates", "largest symbol", "step".
      symbols: (d,) whole numbers.
      step: the width of the quantiser; coordinates are symbols times step.
    """

    bound: float
    error: float
    bits: dict[str, float]
    symbols: np.ndarray
    step: float

    @property
    def coordinates(self) -> np.ndarray:
        """What decoding gives: z (d,)."""
        return self.symbols * self.step


def usable_steps(z: Any, steps: Sequence[float]) -> list[float]:
    """Those of ``steps`` with which `certify` can send coordinates z (d,): no symbol exceeds 127. None of them if z is not finite."""
    largest = np.abs(checks.host_values(z, "z", shape=(None,))).max(initial=0.0)
    return [step for step in steps if largest / step < 2**_SYMBOL_BITS - 0.5]


def certify(
    predict_fn: Callable[[jax.Array], jax.Array],
    z: Any,
    labels: Any,
    *,
    steps: Sequence[float],
    delta: float = 0.05,
    name_bits: float = 0.0,
) -> Certificate:
    """Quantise z with each of ``steps``, and bound the risk of the best: what is sent are symbols, the largest of them, and the step.

    Args:
      predict_fn: from coordinates (d,) to the training examples' logits (N, C), such as ``lambda z: apply_fn(subspace.params(z), inputs)``.
      z: (d,) after training.
      labels: (N,).
      steps: widths that were fixed before the labels were seen, at least 1; log2 of their number is paid.
      delta: the probability with which the bound may fail.
      name_bits: what else was chosen after a look at the labels, such as log2 of the number of dimensions tried.

    Raises:
      ValueError: no steps, or steps so small that a symbol exceeds 127.
    """
    z, labels = checks.host_values(z, "z", shape=(None,), finite=True), jnp.asarray(checks.host_examples(labels, "labels"))
    steps = checks.host_values(steps, "steps", shape=(None,), finite=True).tolist()
    if not z.size or not steps or min(steps) <= 0:
        raise ValueError(f"z must hold coordinates, and steps must be positive, one at least, got {len(z)} and {steps}")
    usable = usable_steps(z, steps)
    if not usable:
        raise ValueError(f"steps must be positive, one at least no less than {np.abs(z).max() / 127:.3g}, got {list(steps)}")
    candidates = []
    for step in usable:
        symbols = np.rint(z / step).astype(int)
        largest = max(int(np.abs(symbols).max()), 1)
        bits = {
            "coordinates": code_length(symbols + largest, 2 * largest + 1),
            "largest symbol": float(_SYMBOL_BITS),
            "step": math.log2(len(steps)),
            "name": name_bits,
        }
        logits = predict_fn(jnp.asarray(symbols * step, jnp.float32))
        error = 1.0 - float(metrics.accuracy(logits, labels).mean())
        bound = countable(error, len(labels), bits=sum(bits.values()), delta=delta)
        candidates.append(Certificate(bound, error, bits, symbols, step))
    return min(candidates, key=lambda certificate: certificate.bound)


def gaussian_kl(mean: Any, deviation: float, prior_mean: Any, prior_deviation: float) -> float:
    """KL(N(m, s^2 I) || N(m_0, s_0^2 I)) in nats, for means (P,).

    Raises:
      ValueError: other shapes, or deviations that are not positive.
    """
    mean = checks.host_values(mean, "mean", shape=(None,))
    prior_mean = checks.host_values(prior_mean, "prior_mean", shape=mean.shape)
    deviation = checks.number(deviation, "deviation", positive=True, known=True)
    prior_deviation = checks.number(prior_deviation, "prior_deviation", positive=True, known=True)
    ratio = (deviation / prior_deviation) ** 2
    distance = np.sum((mean - prior_mean) ** 2) / prior_deviation**2
    return float(0.5 * (mean.size * (ratio - 1 - math.log(ratio)) + distance))


@dataclass(frozen=True)
class GaussianBound:
    """A bound of the mean risk of classifiers drawn from N(w, s^2 I).

    Attributes:
      bound: of the mean risk; holds with probability 1 - delta - sample_delta.
      error: mean training error of the draws.
      divergence: KL(Q || P) in nats.
      prior_index: j of the prior's deviation 0.1 exp(-j / 100).
    """

    bound: float
    error: float
    divergence: float
    prior_index: int


def gaussian(
    predict_fn: Callable[[PyTree], jax.Array],
    params: PyTree,
    start: PyTree,
    labels: Any,
    key: jax.Array,
    *,
    deviation: float,
    num_draws: int = 100,
    delta: float = 0.05,
    sample_delta: float = 0.01,
) -> GaussianBound:
    """PAC-Bayes for Q = N(params, deviation^2 I) and P = N(start, s_0^2 I).

    s_0 is the best of 0.1 exp(-j / 100), paid for by the share 6 delta / (pi^2 j^2) of the confidence. Twice the inverse of kl: from the
    draws to the mean training error, at confidence 1 - ``sample_delta``, and from there to the risk.

    Args:
      predict_fn: from parameters to the training examples' logits (N, C).
      params, start: of one structure; the start is what the seed alone decides.
      labels: (N,).
      key: of the draws.
      deviation: s of Q, fixed before the labels were seen or part of a grid of the caller's own, paid for by a smaller delta.
      num_draws, delta, sample_delta: of the Monte Carlo estimate and the two confidences.

    Raises:
      ValueError: a deviation that is not positive.
    """
    checks.number(deviation, "deviation", positive=True, known=True)
    params, start, key = checks.parameters(params), checks.parameters(start, "start"), checks.prng_key(key, known=True)
    checks.refuse_traced("params and start", *jax.tree.leaves((params, start)))
    labels = checks.host_examples(labels, "labels")
    if [leaf.shape for leaf in jax.tree.leaves(params)] != [leaf.shape for leaf in jax.tree.leaves(start)]:
        raise ValueError("params and start must have the same arrays, got others")
    mean, unravel = ravel_pytree(params)
    origin, labels = np.asarray(ravel_pytree(start)[0], np.float64), jnp.asarray(labels)
    count, center = len(labels), np.asarray(mean, np.float64)
    draw = jax.jit(lambda k: 1 - metrics.accuracy(predict_fn(unravel(mean + deviation * jax.random.normal(k, mean.shape))), labels).mean())
    error = float(np.mean([float(draw(k)) for k in jax.random.split(key, num_draws)]))
    upper = kl_inverse(error, math.log(2 / sample_delta) / num_draws)

    def price(j: int) -> float:
        divergence = gaussian_kl(center, deviation, origin, _PRIOR_SCALE * math.exp(-j / _PRIOR_STEPS))
        return divergence + math.log(2 * math.sqrt(count) / delta * math.pi**2 * j**2 / 6)

    index = min(range(1, 10 * _PRIOR_STEPS), key=price)
    divergence = gaussian_kl(center, deviation, origin, _PRIOR_SCALE * math.exp(-index / _PRIOR_STEPS))
    return GaussianBound(kl_inverse(upper, price(index) / count), error, divergence, index)


def _nats(bits: float, delta: float) -> float:
    if not 0 < checks.number(delta, "delta", known=True) < 1:
        raise ValueError(f"delta must lie between 0 and 1, got {delta}")
    return checks.number(bits, "bits", least=0.0, known=True) * math.log(2) + math.log(1 / delta)


def _share(value: float, name: str) -> float:
    if not 0 <= checks.number(value, name, known=True) <= 1:
        raise ValueError(f"{name} must lie from 0 to 1, got {value}")
    return float(value)


def _count(num_examples: int) -> int:
    return checks.count(num_examples, "num_examples")
