"""Neural collapse: how far features of a class have become one point, and the points a simplex (Papyan, Han and Donoho, PNAS 2020).

With class means mu_c, their mean mu_G, and the averages Sigma_W over examples and Sigma_B over classes of the outer products of deviations:

- ``nc1``            tr(Sigma_W Sigma_B^+) / C, in the span of the means alone, by a thin decomposition, never a P x P inverse;
- ``variance_ratio`` tr Sigma_W / tr Sigma_B;
- ``cdnv``           class-distance normalised variance (Galanti, György and Hutter, ICLR 2022), the mean over pairs of classes of
                     (v_c + v_c') / (2 ||mu_c - mu_c'||^2);
- ``nc2_norms``      standard deviation over mean of ||mu_c - mu_G||;
- ``nc2_angles``     mean over pairs of \\|cos + 1 / (C - 1)\\|;
- ``nc3``            ||W / ||W|| - M / ||M|| ||_F of the head W and the centred means M, with rows of W as they are and centred;
- ``nc4``            share of examples on which the head and the nearest class mean disagree.

>>> import numpy as np
>>> from jaxbp import collapse
>>> simplex = np.eye(3) - 1 / 3
>>> result = collapse.measure(np.repeat(simplex, 5, axis=0), np.repeat(np.arange(3), 5), head=simplex.T)
>>> result.nc1 < 1e-20, result.nc2_angles < 1e-12, result.nc4
(True, True, 0.0)
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxbp import checks

_SPAN = 1e-10  # of singular values of the means, relative to the largest: smaller ones are rounding


@dataclass(frozen=True)
class Collapse:
    """Measures of collapse, see the module; ``nc3`` and ``nc4`` are None without a head.

    Attributes:
      nc1, variance_ratio, cdnv: spread within classes, relative to that between them; infinite where class means are equal.
      nc2_norms, nc2_angles: distance of the means from a simplex.
      nc3: (as it is, rows of the head centred).
      nc4: a share.
      note: what a reader has to know.
    """

    nc1: float
    variance_ratio: float
    cdnv: float
    nc2_norms: float
    nc2_angles: float
    nc3: tuple[float, float] | None = None
    nc4: float | None = None
    note: str = ""


def measure(features: Any, labels: Any, head: Any = None, *, bias: Any = None) -> Collapse:
    """Measure collapse of the features that the last layer reads.

    Args:
      features: (N, ...), flattened to (N, P).
      labels: (N,), from 0; every class from 0 to the largest label has at least two examples.
      head: kernel (P, C) of the last layer.
      bias: (C,) of the last layer.

    Raises:
      ValueError: a class with fewer than two examples, or shapes that do not fit.
    """
    rows = np.asarray(checks.host_examples(features, "features"), np.float64)
    rows = rows.reshape(len(rows), -1)
    if not np.isfinite(rows).all():
        raise ValueError("features must be finite numbers, got NaN or infinite ones")
    labels = checks.host_array(labels, "labels")
    largest = int(labels.max()) if labels.size and np.issubdtype(labels.dtype, np.integer) else 1
    labels = checks.host_labels(labels, max(largest + 1, 2), len(rows))
    counts = np.bincount(labels)
    if counts.min() < 2:
        raise ValueError(f"each class needs at least two examples, got {counts.min()} of class {counts.argmin()}")
    means = np.stack([rows[labels == c].mean(0) for c in range(len(counts))])
    centred = means - means.mean(0)
    deviations = rows - means[labels]  # a second pass: no differences of large sums
    spreads = np.array([np.sum(deviations[labels == c] ** 2) / counts[c] for c in range(len(counts))])
    total, between = np.sum(deviations**2) / len(rows), np.sum(centred**2) / len(counts)
    _, s, directions = np.linalg.svd(centred, full_matrices=False)
    if not s[0] > _SPAN * max(np.abs(rows).max(), 1e-300):
        return Collapse(math.inf, math.inf, math.inf, math.nan, math.nan, note="class means are equal")
    kept = s > _SPAN * s[0]
    within = np.mean((deviations @ directions[kept].T) ** 2, axis=0)
    norms = np.linalg.norm(centred, axis=1)
    pairs = list(itertools.combinations(range(len(counts)), 2))
    cosines = np.array([centred[a] @ centred[b] / max(norms[a] * norms[b], 1e-300) for a, b in pairs])
    gaps = np.array([np.sum((means[a] - means[b]) ** 2) for a, b in pairs])
    with np.errstate(divide="ignore"):
        cdnv = float(np.mean([(spreads[a] + spreads[b]) / (2 * gap) for (a, b), gap in zip(pairs, gaps, strict=True)]))
    return Collapse(
        nc1=float(np.sum(within / (s[kept] ** 2 / len(counts))) / len(counts)),
        variance_ratio=float(total / between),
        cdnv=cdnv,
        nc2_norms=float(norms.std() / norms.mean()),
        nc2_angles=float(np.abs(cosines + 1 / (len(counts) - 1)).mean()),
        **({} if head is None else _of_head(rows, means, centred, checks.host_values(head, "head"), bias)),
    )


def _of_head(rows: np.ndarray, means: np.ndarray, centred: np.ndarray, head: np.ndarray, bias: Any) -> dict[str, Any]:
    if head.shape != means.shape[::-1]:
        raise ValueError(f"head must be (P, C) = {means.shape[::-1]}, features by classes, got {head.shape}")
    logits = rows @ head + (0.0 if bias is None else checks.host_values(bias, "bias", shape=head.shape[1:]))
    nearest = ((rows[:, None] - means[None]) ** 2).sum(-1).argmin(1)
    shape = centred / np.linalg.norm(centred)
    heads = (head.T, head.T - head.T.mean(0))
    distances = tuple(float(np.linalg.norm(kernel / max(np.linalg.norm(kernel), 1e-300) - shape)) for kernel in heads)
    return {"nc3": distances, "nc4": float(np.mean(logits.argmax(1) != nearest))}
