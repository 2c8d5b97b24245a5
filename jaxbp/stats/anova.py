"""Which axis of a design explains how much: functional analysis of variance of effects over the cells of a grid.

An effect is split into a mean, a part that each axis adds by itself, and a part that each pair of axes adds together (Hooker, J. Comp.
Graph. Stat. 16, 2007; Hutter, Hoos and Leyton-Brown, ICML 2014, ask the same of hyperparameters). What is left is of higher order.

>>> from jaxbp import stats
>>> levels = {"rate": [0, 0, 1, 1], "epochs": [0, 1, 0, 1]}
>>> for part in stats.functional_anova(levels, [0.0, 1.0, 3.0, 4.0], errors=[0.1] * 4):
...     print(part.axes, round(part.share, 3), round(part.noise, 4))
('rate',) 0.9 0.001
('epochs',) 0.1 0.001
('rate', 'epochs') 0.0 0.001
"""

import collections
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike

_RELATIVE_ZERO = 1e-10  # of singular values


@dataclass(frozen=True)
class Component:
    """What some axes explain together, beyond what fewer of them do.

    Attributes:
      axes: one axis, or two; empty for what is left.
      share: of the variance of effects over the grid.
      noise: the share that the errors of the effects alone would give.
    """

    axes: tuple[str, ...]
    share: float
    noise: float


def functional_anova(levels: Mapping[str, Sequence[int]], effects: ArrayLike, *, errors: ArrayLike) -> list[Component]:
    """Split the variance of effects among axes and pairs of axes.

    Each axis has sum-coded indicators of its levels, and each pair the products of theirs; the least-squares fit of least norm gives the
    parts. A part's variance is that over all combinations of its levels, each counted once, so the shares describe the grid even where
    cells are missing. For a complete grid this is the classical analysis of variance. An axis that another decides, as a case decides
    its loss, cannot be told from it and is left out. Pairs enter if the cells tell all of them apart.

    Args:
      levels: for each axis the number of each cell's level, (N,).
      effects: N finite effects.
      errors: their standard errors, which make the noise of each share.

    Returns:
      The parts, those of single axes first, without axes of one level. A last part without axes is what the fit leaves, if it leaves any.
      No parts if the effects are all alike.
    """
    values, variances = np.asarray(effects, float), np.asarray(errors, float) ** 2
    codes = {axis: _sum_codes(levels[axis]) for axis in _apart(levels)}
    if not codes or np.ptp(values) == 0:
        return []
    sets: list[tuple[str, ...]] = [(axis,) for axis in codes]
    pairs = list(itertools.combinations(codes, 2))
    design = _design(codes, [*sets, *pairs])
    if _rank(design) == design.shape[1]:
        sets += pairs
    else:
        design = _design(codes, sets)
    inverse = np.linalg.pinv(design, rcond=_RELATIVE_ZERO)
    weights = inverse @ values
    parts, at = [], 1
    for axes in sets:
        rows = slice(at, at := at + math.prod(codes[axis].shape[1] for axis in axes))
        grid = _all_codes(codes, axes)
        by_noise = ((grid @ inverse[rows]) ** 2 @ variances).mean()
        parts.append((axes, ((grid @ weights[rows]) ** 2).mean(), by_noise))
    residual_maker = np.eye(len(values)) - design @ inverse
    if _rank(design) < len(values):
        parts.append(((), ((residual_maker @ values) ** 2).mean(), (residual_maker**2 @ variances).mean()))
    total = sum(variance for _, variance, _ in parts)
    return [Component(axes, float(variance / total), float(noise / total)) for axes, variance, noise in parts]


def _apart(levels: Mapping[str, Sequence[int]]) -> list[str]:
    """The axes of more than one level, without those that another axis decides; of two that decide each other the first stays."""
    axes = [axis for axis, numbers in levels.items() if len(set(numbers)) > 1]
    for axis in list(axes)[::-1]:
        if any(_decides(levels[other], levels[axis]) for other in axes if other != axis):
            axes.remove(axis)
    return axes


def _decides(numbers: Sequence[int], others: Sequence[int]) -> bool:
    """Whether each level of one axis goes with a single level of the other, in more cells than one: a single cell decides nothing."""
    repeated = min(collections.Counter(numbers).values()) > 1
    return repeated and len(set(zip(numbers, others, strict=True))) == len(set(numbers))


def _design(codes: Mapping[str, np.ndarray], sets: Sequence[Sequence[str]]) -> np.ndarray:
    """A column of ones and those of each set of axes, (N, columns)."""
    return np.hstack([np.ones((len(next(iter(codes.values()))), 1)), *(_columns(codes, axes) for axes in sets)])


def _rank(design: np.ndarray) -> int:
    values = np.linalg.svd(design, compute_uv=False)
    return int((values > _RELATIVE_ZERO * values[0]).sum())


def _sum_codes(numbers: Sequence[int]) -> np.ndarray:
    """Orthonormal codes (N, L - 1) of L levels, each column of which sums to zero over the levels."""
    _, places = np.unique(numbers, return_inverse=True)
    return _contrasts(int(places.max()) + 1)[places]


def _contrasts(num_levels: int) -> np.ndarray:
    return scipy.linalg.helmert(num_levels).T


def _columns(codes: Mapping[str, np.ndarray], axes: Sequence[str]) -> np.ndarray:
    columns = codes[axes[0]]
    for axis in axes[1:]:
        columns = (columns[:, :, None] * codes[axis][:, None, :]).reshape(len(columns), -1)
    return columns


def _all_codes(codes: Mapping[str, np.ndarray], axes: Sequence[str]) -> np.ndarray:
    """The codes of every combination of the levels of some axes."""
    return np.array([[1.0]]) if not axes else _kron([_contrasts(codes[axis].shape[1] + 1) for axis in axes])


def _kron(matrices: Sequence[np.ndarray]) -> np.ndarray:
    product = matrices[0]
    for matrix in matrices[1:]:
        product = np.kron(product, matrix)
    return product
