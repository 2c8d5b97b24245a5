"""One activated layer of infinite width: from covariance and tangent kernel of its pre-activations to those of its activations.

A layer's matrices are (D, D) over the D numbers that a channel holds: all pixels of all examples of a batch. The pre-activations z of
a channel are Gaussian of covariance Sigma with the tangent kernel Theta, alike and independent over channels. With batch statistics
u = G z / sqrt(|G z|^2 / D + epsilon), G = I - 11'/D, and the Jacobian J of z -> relu(u) couples the batch. One quadrature over the norm
(`jaxbp.ntk.batch_norm.quadrature`), with y = G z ~ N(0, S), C = S (I + 2 s S)^-1, T = G Theta G and M = I - s C, gives both

    K       = E[relu(u) relu(u)'] = D int w(s) E[relu relu'] ds,
    Theta_J = E[J Theta J']       = D int w(s) {(M T M) o E[step step'] + (b_i + b_j) d_ij + s^2 / 2 tr(T C) E[relu relu']} ds,

    b_i = [s^2 / 2 (C T C)_ii - s (T C)_ii] / C_ii,    d_ij / C_ii = E[delta(y_i) relu(y_j)],    expectations over N(0, C),

and trained scales and biases, which start at 1 and 0, add K + E[step step] to Theta_J. This is the forward counterpart of the backward
recursion in Yang, "Tensor Programs II" (arXiv 2006.14548), with epsilon, scale and bias: one quadrature a layer for all D^2 entries.

>>> import jax.numpy as jnp
>>> from jaxbp.ntk import batch_norm
>>> layer = batch_norm.batch_norm_relu(jnp.eye(8), jnp.eye(8), epsilon=0.0)
>>> round(float(layer.covariance.trace()), 3)  # D / 2, whatever the covariance: half of a normalised channel's square is positive
4.0
"""

import functools
import itertools
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxbp import checks
from jaxbp.ntk.batch_norm import quadrature
from jaxbp.ntk.batch_norm.closed_forms import ReluMoments, gated_products, relu_moments
from jaxbp.ops import dtypes

EPSILON = 1e-5
COUPLED = ("batch", "frozen")  # statistics of the batch at hand
LARGEST_TAIL = 100.0

_ROUNDING = 1e-12  # eigenvalues below this share of the largest are 0
_NEGLIGIBLE_EPSILON = 1e-3  # D epsilon / tr S below which only epsilon keeps a diverging moment finite
_LARGEST_ERROR = 1e-3  # of the nested estimate; the error itself is then about 1e-6
_NODES = 25, 49, 97, 193
_BLOCKED_FROM = 256  # D from which the upper triangle is computed in blocks of rows
_NUM_BLOCKS = 8
_RANK_STEP = 64  # ranks are rounded up to multiples, so that few programs are compiled


class DegenerateBatchError(ValueError):
    """A batch does not vary enough for its statistics to have an infinite-width kernel."""


class InaccurateQuadratureError(ArithmeticError):
    """The integral over the norm of a channel has not converged at the largest number of nodes."""


class SlowLimitWarning(UserWarning):
    """The infinite-width kernel exists, but finite networks come close to it only at very large widths."""


class Layer(NamedTuple):
    """What leaves an activated layer; arrays are NumPy's, float64 whatever the session's precision.

    Attributes:
      covariance: (D, D), mean over channels of products of activations.
      tangent: (D, D), mean over channels of their tangent kernels; None if none came in.
      error: estimate of the quadrature's error, relative to the largest entry; very generous, about the root of the error.
      tail: `quadrature.tail` of the channels' norm: 1 if it does not fluctuate.
    """

    covariance: Float[np.ndarray, "D D"]
    tangent: Float[np.ndarray, "D D"] | None
    error: float = 0.0
    tail: float = 1.0

    @classmethod
    def of(cls, covariance: jax.Array, tangent: jax.Array | None, error: float = 0.0, tail: float = 1.0) -> "Layer":
        """The layer of arrays that may be on a device."""
        return cls(np.asarray(covariance), None if tangent is None else np.asarray(tangent), error, tail)


class Spectrum(NamedTuple):
    """Eigenpairs of the covariance of a channel whose mean is subtracted.

    Attributes:
      eigenvalues: (D,), ascending, at least 0, on the host; what rounding alone makes is 0.
      vectors: (D, D), in columns.
    """

    eigenvalues: Float[np.ndarray, " D"]
    vectors: Float[Array, "D D"]

    @property
    def rank(self) -> int:
        """Number of directions in which the channel varies."""
        return int(np.count_nonzero(self.eigenvalues))


def batch_norm_relu(
    covariance: Float[Array, "D D"],
    tangent: Float[Array, "D D"] | None = None,
    *,
    statistics: str = "batch",
    epsilon: float = EPSILON,
    affine: bool = True,
    num_nodes: int | None = None,
) -> Layer:
    """BatchNorm by the statistics of a batch, then ReLU.

    Time grows as D^3, memory as D^2 (about 28 matrices). float64 whatever the inputs.

    Args:
      covariance, tangent: (D, D), of the pre-activations; without the tangent kernel the NNGP alone is computed, in a quarter of the time.
      statistics: "batch", or "frozen": the same statistics, held constant in the derivative.
      epsilon: under BatchNorm's root.
      affine: scale and bias are trained.
      num_nodes: of the quadrature, odd; default 25, doubled until the error estimate is below 1e-3.

    Raises:
      ValueError: arrays that are not square, of one size and finite.
      DegenerateBatchError: the batch does not vary, or, for a tangent kernel, in too few directions.
      InaccurateQuadratureError: 193 nodes do not suffice.

    Warns:
      SlowLimitWarning: the norm of a channel has a heavy tail.
    """
    if statistics not in COUPLED:
        raise ValueError(f"statistics must be one of {COUPLED}, got {statistics!r}")
    with dtypes.float64():
        covariance, tangent = checked(covariance, tangent)
        epsilon = checks.number(epsilon, "epsilon", least=0, known=True)
        shift = len(covariance) * epsilon
        spectrum = centred_spectrum(covariance)
        tail = judge(spectrum, shift, tangent is not None)
        derivative = tangent if tangent is None or statistics == "frozen" else centred(tangent)
        rank = min(len(covariance), -(-spectrum.rank // _RANK_STEP) * _RANK_STEP)
        kept = Spectrum(spectrum.eigenvalues[-rank:], spectrum.vectors[:, -rank:])
        share = None if tangent is None or not affine else relu_moments(centred(covariance)).step
        for number in _NODES if num_nodes is None else (num_nodes,):
            layer = _integrated(kept, derivative, share, quadrature.nodes(kept.eigenvalues, shift, number), statistics)
            if layer.error <= _LARGEST_ERROR or num_nodes is not None:
                return layer._replace(tail=tail)
    raise InaccurateQuadratureError(
        f"{_NODES[-1]} nodes leave an error estimate of {layer.error:.1g}, above {_LARGEST_ERROR:g}: take a larger batch or epsilon"
    )


def stored_norm_relu(branches: Sequence[tuple[jax.Array, jax.Array | None]], *, epsilon: float = EPSILON) -> Layer:
    """BatchNorm by the statistics that are stored at initialisation, mean 0 and variance 1, of each branch; their sum; ReLU.

    Closed form; trained scales are correlated with the ReLU's steps, which `gated_products` accounts for.

    Args:
      branches: (covariance, tangent kernel or None), each (D, D), of independent pre-activations.
      epsilon: under BatchNorm's root.

    Raises:
      ValueError: arrays that are not square, of one size and finite.
    """
    with dtypes.float64():
        branches = [checked(*branch) for branch in branches]
        parts = [covariance / (1 + epsilon) for covariance, _ in branches]
        total = functools.reduce(jnp.add, parts)
        _, step, relu = relu_moments(total)
        if branches[0][1] is None:
            return Layer.of(relu, None)
        shares = [gated_products(part, total, step) for part in parts]
        shares += [step * (tangent / (1 + epsilon) + 1) for _, tangent in branches if tangent is not None]
        return Layer.of(relu, functools.reduce(jnp.add, shares))


def checked(covariance: Any, tangent: Any) -> tuple[jax.Array, jax.Array | None]:
    """Covariance and tangent kernel, or None, as finite (D, D) of one size; under `dtypes.float64`.

    Raises:
      ValueError: they are not.
    """
    arrays = {"covariance": covariance} | ({} if tangent is None else {"tangent": tangent})
    kernels = {name: checks.numbers(array, name) for name, array in arrays.items()}
    checks.refuse_traced("covariance and tangent", *kernels.values())
    size = kernels["covariance"].shape[:1]
    for name, kernel in kernels.items():
        if kernel.shape != size * 2 or not kernel.size:
            raise ValueError(f"{name} must be a square array (D, D), alike for both kernels, got shape {kernel.shape}")
        if not bool(jnp.isfinite(kernel).all()):
            raise ValueError(f"{name} must be finite numbers, got NaN or infinite ones")
    wide = {name: kernel.astype(float) for name, kernel in kernels.items()}
    return wide["covariance"], wide.get("tangent")


def relu(covariance: Float[Array, "D D"], tangent: Float[Array, "D D"] | None) -> Layer:
    """ReLU without a normalisation."""
    with dtypes.float64():
        _, step, products = relu_moments(jnp.asarray(covariance, float))
        return Layer.of(products, None if tangent is None else tangent * step)


@jax.jit
def centred(matrix: Float[Array, "D D"]) -> Float[Array, "D D"]:
    """G M G of a symmetric matrix: of numbers from which their mean is subtracted."""
    means = matrix.mean(0)
    return matrix - means[None, :] - means[:, None] + means.mean()


def spectrum(covariance: Float[Array, "D D"]) -> Spectrum:
    """Eigenpairs of a covariance."""
    values, vectors = _eigh(covariance)
    host = np.asarray(values)
    return Spectrum(np.where(host > _ROUNDING * host[-1], host, 0.0), vectors)


def centred_spectrum(covariance: Float[Array, "D D"]) -> Spectrum:
    """Eigenpairs of G Sigma G. Raises `DegenerateBatchError` if it is 0 up to rounding."""
    result = spectrum(centred(covariance))
    if not result.eigenvalues[-1] > _ROUNDING * float(jnp.trace(covariance)):
        raise DegenerateBatchError(
            f"the {len(covariance)} normalised numbers of a channel are all equal, so that batch statistics would normalise rounding: give "
            "examples that differ"
        )
    return result


def judge(spectrum: Spectrum, shift: float, tangent: bool) -> float:
    """The tail of a channel's norm; raises or warns if finite networks of no, or of very large widths, show the tangent kernel."""
    tail, rank = quadrature.tail(spectrum.eigenvalues, shift), spectrum.rank
    if not tangent or shift > _NEGLIGIBLE_EPSILON * spectrum.eigenvalues.sum():
        return tail
    if rank <= 2:
        raise DegenerateBatchError(
            "a tangent kernel with batch statistics needs at least 4 normalised numbers a channel that vary (3 directions beside their "
            f"mean), got {len(spectrum.eigenvalues)} numbers that vary in {rank}: give more examples, or take the NNGP alone"
        )
    reason = f"vary in {rank} directions only" if rank <= 4 else f"have a norm of tail {tail:.3g}, above {LARGEST_TAIL:g}"
    if rank <= 4 or tail > LARGEST_TAIL:
        warnings.warn(
            f"normalised numbers of a channel {reason}: single channels dominate the tangent kernels of finite networks, which come close "
            "to the infinite-width kernel only slowly: give more examples, or more that differ",
            SlowLimitWarning,
            stacklevel=3,
        )
    return tail


@jax.jit
def _eigh(covariance: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.linalg.eigh(covariance)


def _integrated(spectrum: Spectrum, tangent: jax.Array | None, share: jax.Array | None, rule: quadrature.Nodes, statistics: str) -> Layer:
    """The layer by one rule; ``share``: E[step step], where scale and bias are trained."""
    num_blocks = _NUM_BLOCKS if len(spectrum.vectors) >= _BLOCKED_FROM else 1
    padded = [np.pad(values, (0, _NODES[-1] - len(values))) for values in rule]
    covariance, derivative, errors = _integrals(
        spectrum.vectors, spectrum.eigenvalues, tangent, share, *padded, len(rule.values), statistics=statistics, num_blocks=num_blocks
    )
    return Layer.of(covariance, derivative, float(errors))


@functools.partial(jax.jit, static_argnames=("statistics", "num_blocks"))
def _integrals(vectors, eigenvalues, tangent, share, nodes, weights, signed, num_nodes, *, statistics, num_blocks):  # type: ignore[no-untyped-def]
    """Covariance, tangent kernel and error estimate. The loop runs over nodes, its body over blocks of rows of the upper triangle."""
    size = len(vectors)
    blocks = [slice(start, end) for start, end in itertools.pairwise(np.linspace(0, size, num_blocks + 1).astype(int).tolist())]
    coupled = tangent is not None and statistics == "batch"
    projected = tangent @ vectors if coupled else None

    def add_node(node: jax.Array, sums: list) -> list:
        s, weight, signed_weight = nodes[node], weights[node], signed[node]
        terms = _Node(s, vectors, eigenvalues, projected)
        for block, old in zip(blocks, sums, strict=True):
            moments = terms.moments(block)
            values = [moments.relu]
            if tangent is not None:
                values.append(terms.derivative(block, tangent, moments) if coupled else moments.step)
            for index, value in enumerate(values):
                old[2 * index] += weight * value
                old[2 * index + 1] += signed_weight * value
        return sums

    num_sums = 2 if tangent is None else 4
    zeros = [[jnp.zeros((block.stop - block.start, size - block.start), vectors.dtype)] * num_sums for block in blocks]
    sums = jax.lax.fori_loop(0, num_nodes, add_node, zeros)
    covariance, change, *rest = (size * _mirrored([block[index] for block in sums], size) for index in range(num_sums))
    if tangent is None:
        return covariance, None, _relative(change, covariance)
    scale = 1.0 if coupled else tangent
    derivative = scale * rest[0]
    if share is not None:
        derivative = _mirrored([derivative + covariance + share], size)  # rounding of the shares, too
    return covariance, derivative, jnp.maximum(_relative(change, covariance), _relative(scale * rest[1], derivative))


class _Node:
    """What the blocks of rows share at one node s: C = S (I + 2 s S)^-1 and, with M = I - s C, M T M = T - V Z' - Z V'."""

    def __init__(self, s: jax.Array, vectors: jax.Array, eigenvalues: jax.Array, projected: jax.Array | None):
        self.s, self.vectors = s, vectors
        self.spectrum = eigenvalues / (1 + 2 * s * eigenvalues)
        self.variances = vectors**2 @ self.spectrum
        if projected is None:
            return
        inner, filters = vectors.T @ projected, s * self.spectrum
        self.trace = jnp.sum(jnp.diagonal(inner) * self.spectrum)
        self.update = projected * filters - 0.5 * vectors @ (filters[:, None] * inner * filters)
        positive = self.variances > 0
        # [s^2/2 (C T C)_ii - s (T C)_ii] / C_ii, of E[delta(y_i) ...]
        self.edges = -jnp.where(positive, jnp.sum(vectors * self.update, 1) / jnp.where(positive, self.variances, 1.0), 0.0)

    def moments(self, rows: slice) -> ReluMoments:
        """Of N(0, C), for rows and the columns from the first of them on."""
        covariance = (self.vectors[rows] * self.spectrum) @ self.vectors[rows.start :].T
        return relu_moments(covariance, self.variances[rows], self.variances[rows.start :])

    def derivative(self, rows: slice, tangent: jax.Array, moments: ReluMoments) -> jax.Array:
        """The integrand of E[J T J'], in the same rows and columns."""
        density, step, products = moments
        left, right = self.vectors[rows] @ self.update[rows.start :].T, self.update[rows] @ self.vectors[rows.start :].T
        edges = self.edges[rows, None] + self.edges[None, rows.start :]
        return (tangent[rows, rows.start :] - left - right) * step + edges * density + 0.5 * self.s**2 * self.trace * products


def _mirrored(blocks: list[jax.Array], size: int) -> jax.Array:
    """The symmetric matrix of blocks of rows of its upper triangle."""
    rows = jnp.concatenate([jnp.pad(block, ((0, 0), (size - block.shape[1], 0))) for block in blocks])
    return jnp.triu(rows) + jnp.triu(rows, 1).T


def _relative(change: jax.Array, whole: jax.Array) -> jax.Array:
    largest = jnp.max(jnp.abs(whole))
    return jnp.where(largest > 0, jnp.max(jnp.abs(change)) / jnp.where(largest > 0, largest, 1.0), 0.0)
