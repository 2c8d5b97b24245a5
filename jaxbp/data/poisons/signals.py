"""Perturbations of a class's own frequency, and what signals of all kinds have in common: scale, and pairs of opposite sign."""

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int, PRNGKeyArray

from jaxbp import checks

Shape = tuple[int, int, int]
Perturbation = Float[np.ndarray, "N h w c"]


def waves(
    key: PRNGKeyArray,
    labels: Int[ArrayLike, " N"],
    shape: Shape,
    frequencies: Float[ArrayLike, "C 2"],
    *,
    rms: float,
    antithetic: bool = True,
) -> Perturbation:
    """``cos(k . position + phase)`` in every channel, with the frequency k of the class and a uniform phase an example.

    Args:
      key: of the phases.
      labels: (N,).
      shape: (H, W, C) of an example.
      frequencies: (C, 2), radians an entry along each axis.
      rms: root mean square over the entries of each example.
      antithetic: of each two examples of a class the second has the negative of the first; the last of an odd number is alone.

    Raises:
      ValueError: frequencies that are not (C, 2) or equal for two classes.
    """
    frequencies = checks.host_values(frequencies, "frequencies")
    if frequencies.ndim != 2 or frequencies.shape[1] != 2 or len(np.unique(frequencies, axis=0)) < len(frequencies):
        raise ValueError(f"frequencies must be (C, 2), a row of its own for each class, got {frequencies.tolist()}")
    labels = checked_labels(labels, len(frequencies), rms)
    phases = np.asarray(jax.random.uniform(checks.prng_key(key, known=True), (len(labels),), maxval=2 * np.pi), np.float64)
    grid = np.stack(np.meshgrid(*map(np.arange, shape[:2]), indexing="ij"))
    angles = np.einsum("na,ahw->nhw", frequencies[labels], grid) + phases[:, None, None]
    signals = np.repeat(np.cos(angles)[..., None], shape[2], -1)
    return scaled(paired(signals, labels) if antithetic else signals, rms)


def checked_labels(labels: ArrayLike, num_classes: int, rms: float) -> np.ndarray:
    """Labels (N,) of a maker that scales to a positive ``rms``."""
    checks.number(rms, "rms", positive=True, known=True)
    return checks.host_labels(labels, num_classes)


def paired(signals: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Signals (N, ...) of which, of each two examples of a class, the second is the negative of the first."""
    signals = signals.copy()
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        pairs = len(members) // 2
        signals[members[1 : 2 * pairs : 2]] = -signals[members[: 2 * pairs : 2]]
    return signals


def scaled(signals: np.ndarray, rms: float) -> np.ndarray:
    """Signals (N, H, W, C), each with exactly this root mean square over its entries, as float32.

    Raises:
      ValueError: signals that are 0 or not finite, which no scale makes an example of.
    """
    signals = np.asarray(signals, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        sizes = np.sqrt((signals**2).mean((1, 2, 3), keepdims=True))
    if count := int(np.sum(~(np.isfinite(sizes) & (sizes > 0)))):
        raise ValueError(f"{count} of {len(signals)} signals are 0 or not finite: use filters that neither vanish nor grow without bound")
    return (rms * signals / sizes).astype(np.float32)
