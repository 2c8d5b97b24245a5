"""Measures of change: how two kernels, two sets of features and two sets of parameters differ.

They are those of "Truth or Backpropaganda?" (Goldblum et al., ICLR 2020), section 4, and others. Kernels are (N, M) or, with logits,
(N, M, C, D) as `empirical_ntk` returns them; measures over entries take any two equal
shapes. All are plain functions of arrays that can be jitted and vmapped. An undefined value (the direction of a zero
kernel, a change relative to zero) is NaN or inf, never an exception.

>>> import jax.numpy as jnp
>>> from jaxbp.ntk import measures
>>> before = jnp.array([[2.0, 1.0], [1.0, 2.0]])
>>> change, scale = measures.rescaled_change(before, 3 * before)
>>> float(measures.relative_change(before, 3 * before)), float(change), float(scale)
(2.0, 0.0, 3.0)
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree

from jaxbp import checks
from jaxbp.linalg import scaling

Kernel = Float[ArrayLike, "N M *logits"]
Scalar = Float[Array, ""]


class Rescaling(NamedTuple):
    """The best rescaling of one kernel to another.

    Attributes:
      change: the relative change that remains.
      scale: the factor that minimises it.
    """

    change: Scalar
    scale: Scalar


class SpectralRanks(NamedTuple):
    """Two effective ranks of a kernel, both n for n equal eigenvalues and 1 for a single nonzero eigenvalue.

    Attributes:
      entropy_rank: exp of the entropy of the normalised eigenvalues (Roy and Vetterli, EUSIPCO 2007).
      participation_ratio: squared sum over sum of squares.
    """

    entropy_rank: Scalar
    participation_ratio: Scalar


def relative_change(before: Kernel, after: Kernel) -> Scalar:
    """||after - before||_F / ||before||_F (Goldblum et al., 2020, section 4); inf or NaN for a zero ``before``."""
    before, after = _alike(before, after)
    return scaling.norm(after - before) / scaling.norm(before)


def rescaled_change(before: Kernel, after: Kernel) -> Rescaling:
    """The change that no rescaling explains, min over s of ||after - s before||_F / ||after||_F, from 0 to 1, and the best s.

    s = ``<before, after> / <before, before>``. The change is relative to ``after``, so that it equals sqrt(1 - cosine^2)
    and depends on the scale of neither kernel. The residual is formed before its norm is taken: 1 - cosine^2 would lose
    half of the digits where kernels are nearly parallel.
    """
    before, after = _alike(before, after)
    units = [scaling.power_of_two(array) for array in (before, after)]  # squares of 1e30 would overflow in float32
    old, new = before / units[0], after / units[1]
    scale = jnp.sum(old * new) / jnp.sum(old * old)
    return Rescaling(scaling.norm(new - scale * old) / scaling.norm(new), scale * (units[1] / units[0]).reshape(()))


def cosine(before: Kernel, after: Kernel) -> Scalar:
    """``<before, after> / (||before||_F ||after||_F)``, from -1 to 1: alignment (Cristianini et al., NeurIPS 2001)."""
    before, after = _alike(before, after)
    return jnp.sum(scaling.unit(before) * scaling.unit(after))


def correlation(before: Kernel, after: Kernel) -> Scalar:
    """Pearson correlation over all entries (Goldblum et al., 2020, section 4), from -1 to 1; NaN if all entries are equal."""
    before, after = _alike(before, after)
    before, after = (array / scaling.power_of_two(array) for array in (before, after))  # sums of 1e30 might overflow
    return cosine(before - before.mean(), after - after.mean())


def centred_alignment(before: Kernel, after: Kernel) -> Scalar:
    """Centred kernel alignment, from 0 to 1 for semidefinite kernels: the cosine of H K H and H L H, H = I - 11^T / n.

    Cortes et al. (JMLR 13, 2012, definition 4); as a similarity of representations, Kornblith et al. (ICML 2019),
    "CKA". Takes (N, N), or (N, N, C, C), which is laid out as one (N C, N C) matrix and centred over all n = N C rows.
    """
    before, after = _alike(before, after)
    return cosine(_centred(_square(before)), _centred(_square(after)))


def label_alignment(kernel: Kernel, labels: Int[ArrayLike, " N"], num_classes: int) -> Scalar:
    """Centred kernel-target alignment: `centred_alignment` of a kernel with that of the labels, 1 for pairs of one class and 0 for others.

    Cristianini et al. (NeurIPS 2001), centred as in Cortes et al. (JMLR 13, 2012, section 3). Traced, so that it can be measured along a
    training: ``measure_fn=lambda s: label_alignment(empirical_ntk(net.apply, s.params, probe, logits="trace"), labels, num_classes)``.

    Args:
      kernel: (N, N), or (N, N, C, C), which is summed over equal logits.
      labels: (N,) class indices.
      num_classes: number of classes.

    Returns:
      From 0 to 1 for a semidefinite kernel; NaN if all labels are equal.
    """
    kernel = _real(kernel, "kernel")
    kernel = jnp.trace(kernel, axis1=2, axis2=3) if kernel.ndim == 4 else kernel
    kernel = _square(kernel)
    one_hot = jax.nn.one_hot(checks.labels(labels, num_classes, len(kernel)), num_classes, dtype=kernel.dtype)
    return centred_alignment(kernel, jnp.matmul(one_hot, one_hot.T, precision="highest"))


def as_matrix(kernel: Kernel) -> Float[Array, "rows columns"]:
    """(N, M, C, D) as (N C, M D), rows in the order (example, logit), logits fastest; (N, M) stays as it is."""
    kernel = _real(kernel, "kernel")
    if kernel.ndim == 2:
        return kernel
    if kernel.ndim != 4:
        raise ValueError(f"a kernel is (N, M) or (N, M, C, D), got shape {kernel.shape}")
    n, m, c, d = kernel.shape
    return kernel.transpose(0, 2, 1, 3).reshape(n * c, m * d)


def spectrum(kernel: Kernel) -> Float[Array, " n"]:
    """Eigenvalues, largest first, of a symmetric kernel: (N,) for (N, N), (N C,) for (N, N, C, C)."""
    return jnp.linalg.eigvalsh(_square(kernel))[::-1]


def spectral_ranks(eigenvalues: Float[ArrayLike, " n"]) -> SpectralRanks:
    """Effective ranks of a symmetric kernel with these ``eigenvalues`` (n,), from 1 to n; NaN if all are 0.

    ``entropy_rank`` is exp(-sum p log p) for p = eigenvalues / their sum (Roy and Vetterli, EUSIPCO 2007, take singular
    values), ``participation_ratio`` is (sum of eigenvalues)^2 / sum of their squares. Negative eigenvalues count as 0, as they come
    from rounding.
    """
    eigenvalues = _real(eigenvalues, "eigenvalues")
    if eigenvalues.ndim != 1:
        raise ValueError(f"eigenvalues must be (n,), got shape {eigenvalues.shape}: take those of a kernel by `spectrum`")
    shares = jnp.maximum(eigenvalues, 0)  # NaN stays NaN
    shares = shares / scaling.power_of_two(shares)
    shares = shares / jnp.sum(shares)
    return SpectralRanks(jnp.exp(jnp.sum(jax.scipy.special.entr(shares))), 1 / jnp.sum(shares**2))


def velocity(kernels: Float[ArrayLike, "T ..."], times: Float[ArrayLike, " T"]) -> Float[Array, " T-1"]:
    """Speed (T - 1,) of the rotation of ``kernels`` (T, ...), measured at increasing ``times`` (T,); per unit of time.

    (1 - cosine of consecutive kernels) / time between them, the kernel velocity of Fort et al. (NeurIPS 2020, arXiv
    2010.15110), formed as half the squared distance of unit kernels, which keeps the digits of a small angle.
    It grows as the square of the angle, so half the time between measurements of a steady rotation gives half the
    value: compare at equal time steps.
    """
    kernels, times = _real(kernels, "kernels"), _real(times, "times")
    if times.ndim != 1 or kernels.shape[:1] != times.shape or len(times) < 2:
        raise ValueError(f"velocity needs (T, ...) kernels at (T,) times, T at least 2, got shapes {kernels.shape} and {times.shape}")
    units = jax.vmap(scaling.unit)(kernels)
    return jax.vmap(lambda step: jnp.sum(step**2) / 2)(jnp.diff(units, axis=0)) / jnp.diff(times)


def parameter_movement(before: PyTree, after: PyTree) -> dict[str, Any]:
    """The change between two pytrees of parameters of equal structure (Goldblum et al., 2020, section 4).

    Returns:
      norm_before, norm_after: l2 norms of all parameters.
      l2: the norm of the difference.
      relative_l2: ``l2`` over ``norm_before``.
      l_inf: the largest absolute entry of the difference.
      leaves: the relative l2 change of each leaf by path ("Dense_0/kernel"): inf for a leaf that started at 0 and changed, NaN for
        a leaf that stayed 0.
    """
    before, after = (jax.tree.map(lambda leaf, name=name: _real(leaf, name), tree) for name, tree in (("before", before), ("after", after)))
    trees = jax.tree.map(jnp.shape, (before, after))
    if jax.tree.structure(before) != jax.tree.structure(after) or trees[0] != trees[1] or not jax.tree.leaves(before):
        raise ValueError(f"before and after must be pytrees of equal structure with at least one leaf, got shapes {trees}")
    pairs = {
        jax.tree_util.keystr(path, simple=True, separator="/"): _alike(old, new)
        for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
    }
    changes = [new - old for old, new in pairs.values()]
    norm, distance = _total_norm(old for old, _ in pairs.values()), _total_norm(changes)
    return {
        "norm_before": norm,
        "norm_after": _total_norm(new for _, new in pairs.values()),
        "l2": distance,
        "relative_l2": distance / norm,
        "l_inf": jnp.max(jnp.stack([jnp.max(jnp.abs(change)) for change in changes])),
        "leaves": {path: relative_change(*pair) for path, pair in pairs.items()},
    }


def feature_maps(features: Float[ArrayLike, "N ..."]) -> dict[str, Float[Array, "N N"]]:
    """Maps (N, N) of "distance" (Euclidean), "cosine" and "inner_product" between ``features`` (N, ...) of examples.

    Features before the head show which examples are similar to the network (Goldblum et al., 2020, section 4). A zero feature
    has the cosine NaN. Distances are computed from differences, one row at a time; from inner products, the distances of close
    pairs would be lost in rounding.
    """
    features = _real(features, "features")
    if features.ndim < 2 or not len(features):
        raise ValueError(f"features must be (N, ...), got shape {features.shape}")
    features = features.reshape(len(features), -1)
    units = jax.vmap(scaling.unit)(features)
    return {
        "distance": jax.lax.map(lambda row: jax.vmap(scaling.norm)(features - row), features),
        "cosine": jnp.matmul(units, units.T, precision="highest"),
        "inner_product": jnp.matmul(features, features.T, precision="highest"),
    }


def compare_feature_maps(before: Mapping[str, jax.Array], after: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Pearson correlation of two `feature_maps`, map by map, over pairs of different examples.

    The diagonals are excluded: a distance of 0 and a cosine of 1 agree in any two networks.
    """
    for name, maps in (("before", before), ("after", after)):
        if not isinstance(maps, Mapping):
            raise ValueError(f"{name} must be maps by name, as feature_maps returns them, got {type(maps).__name__}")
    if before.keys() != after.keys():
        raise ValueError(f"maps must have the same names, got {sorted(before)} and {sorted(after)}")
    return {name: _pair_correlation(before[name], after[name]) for name in before}


def _pair_correlation(before: jax.Array, after: jax.Array) -> jax.Array:
    before, after = _alike(before, after)
    if before.ndim != 2 or before.shape[0] != before.shape[1] or len(before) < 3:
        raise ValueError(f"maps must be (N, N) for at least 3 examples, got shape {before.shape}")
    pairs = np.triu_indices(len(before), 1)
    return correlation(before[pairs], after[pairs])


def _alike(before: ArrayLike, after: ArrayLike) -> tuple[jax.Array, jax.Array]:
    before, after = _real(before, "before"), _real(after, "after")
    if before.shape != after.shape:
        raise ValueError(f"before and after must have one shape, got {before.shape} and {after.shape}")
    return before, after


def _square(kernel: Kernel) -> jax.Array:
    matrix = as_matrix(kernel)
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"needs the kernel of a set with itself, (N, N) or (N, N, C, C), got {jnp.shape(kernel)}")
    return matrix


def _centred(matrix: jax.Array) -> jax.Array:
    """H K H, without forming H, divided by a power of two near the largest entry of K."""
    matrix = matrix / scaling.power_of_two(matrix)
    matrix = matrix - matrix.mean(0, keepdims=True)
    return matrix - matrix.mean(1, keepdims=True)


def _total_norm(leaves: Iterable[jax.Array]) -> jax.Array:
    return scaling.norm(jnp.stack([scaling.norm(leaf) for leaf in leaves]))


def _real(value: ArrayLike, name: str) -> jax.Array:
    """The value as an array of real floating-point numbers; integers, whose differences may wrap, and short floats are converted.

    Raises:
      ValueError: complex numbers, or no array of numbers.
    """
    array = checks.numbers(value, name)
    return array if jnp.issubdtype(array.dtype, jnp.floating) and jnp.finfo(array.dtype).bits >= 32 else array.astype(float)
