"""ReLUs of sums of normalised maps, as at the end of a residual block: by channels drawn from the exact covariances.

The two norms of relu(u_1 + u_2), u_k = sqrt(D) y_k / r_k, differ, so that the sum is no Gaussian, not even given its scale, and a
rectified map carried on by an identity shortcut is none either. So M channels of each branch are drawn from the branch's exact law and
averaged over. With gate s = step(h) of a channel's sum h, a branch contributes to the tangent kernel the mean of

    s s' o (a^2 T + W y' + y W' + 11'),    a = sqrt(D) / r,    W = -D T y / r^4 + y [D y' T y / (2 r^6) + a^2 / 2]

(T: its own tangent kernel, centred; the last term of W is the trained scale's, 11' the bias's). Nothing else is random: layers between
sums are exact, and the cost is M D^2 a block. Leading directions are Sobol points; -y goes with each y. The error falls as M^(-1/2) or
faster.

>>> import jax, jax.numpy as jnp
>>> from jaxbp.ntk import batch_norm
>>> branch = batch_norm.Branch(jnp.eye(6), None)
>>> layer, _ = batch_norm.sampled_sum_relu(jax.random.key(0), [branch, branch], channels=256)
>>> layer.covariance.shape
(6, 6)
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy.special import ndtri
from scipy.stats import qmc

from jaxbp import checks
from jaxbp.ntk.batch_norm import layers
from jaxbp.ntk.batch_norm.layers import COUPLED, EPSILON, Layer
from jaxbp.ops import dtypes

STATISTICS = (*COUPLED, "stored", None)

_SOBOL_DIRECTIONS = 64  # leading ones of a branch
_CHUNK = 2048  # channels that are summed over at once


class Branch(NamedTuple):
    """Gaussian pre-activations, one of the terms of a sum.

    Attributes:
      covariance, tangent: (D, D); ``tangent`` None where the NNGP alone is wanted.
      statistics: how they are normalised: "batch" or "frozen" (see `layers.batch_norm_relu`), "stored" (see `layers.stored_norm_relu`), or
        None for no normalisation, with no scale and bias.
    """

    covariance: Float[Array, "D D"]
    tangent: Float[Array, "D D"] | None
    statistics: str | None = "batch"


class Drawn(NamedTuple):
    """Channels of a branch.

    Attributes:
      values: (M, D), pre-activations, of mean 0 over the batch with batch statistics.
      gates: (M, D), whether the ReLUs since have let them pass.
      tangent: (D, D), of the branch, centred with batch statistics; or None.
    """

    values: Float[Array, "M D"]
    gates: Bool[Array, "M D"]
    tangent: Float[Array, "D D"] | None


class Carried(NamedTuple):
    """Channels of an activated sum, which an identity shortcut carries to the next sum.

    Attributes:
      activations: (M, D).
      branches: all that the sum is made of, from the last projection on.
      statistics: of each branch.
    """

    activations: Float[Array, "M D"]
    branches: tuple[Drawn, ...]
    statistics: tuple[str | None, ...]


def sampled_sum_relu(
    key: jax.Array, branches: Sequence[Branch], *, channels: int, carried: Carried | None = None, epsilon: float = EPSILON
) -> tuple[Layer, Carried]:
    """ReLU of the sum of ``branches``, and of a map ``carried`` by an identity shortcut, by M = ``channels`` channels. float64.

    Args:
      key: of the channels. Half the distance of two keys' results estimates the error of their mean.
      branches: at least one.
      channels: M, a power of 2. About M D (2 + the number of branches) numbers are held, those of ``carried`` included.
      carried: of the sum before, of as many channels.
      epsilon: under BatchNorm's root.

    Returns:
      The layer, and its channels for a following identity shortcut.

    Raises:
      ValueError: no power of 2, no branch, or ``carried`` of another number of channels.
      DegenerateBatchError, SlowLimitWarning: as `layers.batch_norm_relu`, for every normalised branch.
    """
    checks.prng_key(key, known=True)
    _check(branches, channels, carried)
    with dtypes.float64():
        branches = [Branch(*layers.checked(branch.covariance, branch.tangent), branch.statistics) for branch in branches]
        factors, tails = zip(*(_factor(branch, epsilon) for branch in branches), strict=True)
        normals = _normals(key, channels // 2, [factor.shape[1] for factor in factors])
        drawn = tuple(
            Drawn(_antithetic(normal, factor), jnp.ones((), bool), _tangent(branch))
            for branch, factor, normal in zip(branches, factors, normals, strict=True)
        )
        old = () if carried is None else carried.branches
        statistics = (() if carried is None else carried.statistics) + tuple(branch.statistics for branch in branches)
        activations = None if carried is None else carried.activations
        covariance, tangent, activations, gates = _sums(activations, old, drawn, epsilon, statistics=statistics)
        kept = tuple(branch._replace(gates=branch.gates & gates) for branch in (*old, *drawn))
    return Layer.of(covariance, tangent, 0.0, max(tails)), Carried(activations, kept, statistics)


def _check(branches: Sequence[Branch], channels: int, carried: Carried | None) -> None:
    if channels < 2 or channels & (channels - 1):
        raise ValueError(f"channels must be a power of 2, at least 2, got {channels}")
    if not branches:
        raise ValueError("branches must hold at least one Branch, got none")
    for branch in branches:
        if branch.statistics not in STATISTICS:
            raise ValueError(f"statistics must be one of {STATISTICS}, got {branch.statistics!r}")
    if carried is not None and len(carried.activations) != channels:
        raise ValueError(f"channels must be those of the map that is carried, {len(carried.activations)}, got {channels}")


def _factor(branch: Branch, epsilon: float) -> tuple[jax.Array, float]:
    """L (D, R) with L L' = S, leading directions first, and the tail of the norm."""
    covariance = branch.covariance
    if branch.statistics in COUPLED:
        spectrum = layers.centred_spectrum(covariance)
        tail = layers.judge(spectrum, len(covariance) * epsilon, branch.tangent is not None)
    else:
        spectrum, tail = layers.spectrum(covariance), 1.0
    kept = np.flatnonzero(spectrum.eigenvalues)[::-1]
    return spectrum.vectors[:, kept] * np.sqrt(spectrum.eigenvalues[kept]), tail


def _tangent(branch: Branch) -> jax.Array | None:
    if branch.tangent is None:
        return None
    return layers.centred(branch.tangent) if branch.statistics == "batch" else branch.tangent


def _normals(key: jax.Array, number: int, ranks: Sequence[int]) -> list[np.ndarray]:
    """Standard normals (number, rank) for each branch; the leading directions of all branches from one scrambled Sobol sequence.

    Rows are permuted: channels of the next sum, of another scrambling of the same sequence, must not meet these in order.
    """
    seed = np.asarray(jax.random.bits(key, (2,), np.uint32)).tolist()
    rng = np.random.default_rng(seed)
    leading = [min(rank, _SOBOL_DIRECTIONS) for rank in ranks]
    points = qmc.Sobol(sum(leading), scramble=True, seed=np.random.default_rng([*seed, 1])).random(number)
    points = ndtri(np.clip(points, 1e-12, 1 - 1e-12))[rng.permutation(number)]
    # The first directions of the sequence are its best: the leading ones of every branch come before the next.
    order = np.argsort(np.concatenate([np.arange(count) for count in leading]), kind="stable")
    columns = np.empty_like(points)
    columns[:, order] = points
    parts = np.split(columns, np.cumsum(leading)[:-1], axis=1)
    return [np.hstack([part, rng.standard_normal((number, rank - part.shape[1]))]) for part, rank in zip(parts, ranks, strict=True)]


@jax.jit
def _antithetic(normals: jax.Array, factor: jax.Array) -> jax.Array:
    values = normals @ factor.T
    return jnp.concatenate([values, -values])


@functools.partial(jax.jit, static_argnames=("statistics",))
def _sums(activations, old, new, epsilon, *, statistics):  # type: ignore[no-untyped-def]
    """Covariance, tangent kernel (D, D), activations and gates (M, D); a scan over chunks of channels."""
    count, size = new[0].values.shape
    wanted = new[0].tangent is not None
    tangents = [branch.tangent for branch in (*old, *new)]
    chunk = min(_CHUNK, count)

    def add(sums: tuple, part: tuple) -> tuple[tuple, tuple]:
        before, values, gates = part
        scales = [_scale(value, epsilon, kind) for value, kind in zip(values, statistics, strict=True)]
        total = before if activations is not None else 0.0
        for value, scale in list(zip(values, scales, strict=True))[len(old) :]:
            total = total + scale * value
        gate = jnp.greater(total, 0)
        active = jnp.where(gate, total, 0.0)
        covariance, tangent = sums
        covariance += active.T @ active
        if wanted:
            for index, kind in enumerate(statistics):
                passed = gate if index >= len(old) else gate & gates[index]
                tangent += _share(values[index], scales[index], passed, tangents[index], kind)
        return (covariance, tangent), (active, gate)

    def chunks(array: jax.Array) -> jax.Array:
        return array.reshape(count // chunk, chunk, size)

    before = chunks(activations) if activations is not None else jnp.zeros(count // chunk)
    parts = before, [chunks(branch.values) for branch in (*old, *new)], [chunks(branch.gates) for branch in old]
    zero = jnp.zeros((size, size), new[0].values.dtype)
    (covariance, tangent), (active, gates) = jax.lax.scan(add, (zero, zero), parts)
    flat = (array.reshape(count, size) for array in (active, gates))
    return covariance / count, (tangent + tangent.T) / (2 * count) if wanted else None, *flat


def _scale(values: jax.Array, epsilon: float, statistics: str | None) -> jax.Array:
    """What normalisation multiplies channels (M, D) by, (M, 1)."""
    if statistics in COUPLED:
        return jax.lax.rsqrt(jnp.mean(values**2, 1, keepdims=True) + epsilon)
    return jnp.full((len(values), 1), 1.0 if statistics is None else 1 / jnp.sqrt(1 + epsilon))


def _share(values: jax.Array, scale: jax.Array, gate: jax.Array, tangent: jax.Array, statistics: str | None) -> jax.Array:
    """Sum over channels of a branch's share of the tangent kernel, up to its antisymmetric part."""
    gates = gate.astype(values.dtype)
    if statistics is None:
        return tangent * (gates.T @ gates)
    passed = scale * gates
    weights = scale**2 * values  # the scale's; the bias's is the square of the gates
    if statistics == "batch":
        size = values.shape[1]
        moved = values @ tangent  # 1 / r^2 = scale^2 / D
        form = jnp.sum(moved * values, 1, keepdims=True)
        weights += scale**4 / size * (scale**2 / size * form * values - 2 * moved)
    return tangent * (passed.T @ passed) + (weights * gates).T @ (values * gates) + gates.T @ gates
