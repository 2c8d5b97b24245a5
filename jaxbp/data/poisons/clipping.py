"""A perturbation on inputs: what clipping leaves of it, and how large it is."""

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxbp import checks


class Poisoned(NamedTuple):
    """Inputs with what is left of a perturbation after clipping.

    Attributes:
      inputs: (N, ...).
      perturbation: (N, ...), as it was given where it was not clipped, without the rounding of the sum.
      clipped: the share of entries that clipping changed.
    """

    inputs: Float[np.ndarray, "N ..."]
    perturbation: Float[np.ndarray, "N ..."]
    clipped: float


def apply(inputs: Float[ArrayLike, "N ..."], perturbation: Float[ArrayLike, "N ..."], low: float, high: float) -> Poisoned:
    """Add a perturbation to inputs and clip to the box; -inf and inf for no box.

    Clipping writes the image into the perturbation: black backgrounds clip away half of every signed one. See `headroom`.

    Raises:
      ValueError: shapes that differ, or a box whose ends are not in order.
    """
    inputs, perturbation = checks.host_array(inputs, "inputs"), checks.host_array(perturbation, "perturbation")
    low, high = (float(checks.host_values(value, name, shape=())) for value, name in ((low, "low"), (high, "high")))
    if inputs.shape != perturbation.shape or not low < high:
        raise ValueError(f"inputs and perturbation need one shape and low < high, got {inputs.shape}, {perturbation.shape}, {low}, {high}")
    poisoned = np.clip(inputs + perturbation, low, high)
    clipped = poisoned != inputs + perturbation
    return Poisoned(poisoned, np.where(clipped, poisoned - inputs, perturbation), float(clipped.mean()))


def headroom(inputs: Float[ArrayLike, "N ..."], margin: float) -> Float[np.ndarray, "N ..."]:
    """Inputs in [0, 1] moved to [margin, 1 - margin], so that perturbations up to the margin are never clipped.

    Raises:
      ValueError: a margin that is not from 0 to below 1/2.
    """
    if not 0 <= checks.number(margin, "margin", known=True) < 0.5:
        raise ValueError(f"margin must be from 0 to below 0.5, got {margin}")
    return margin + (1 - 2 * margin) * checks.host_array(inputs, "inputs")


def budget(perturbation: Float[ArrayLike, "N ..."]) -> dict[str, float]:
    """How large a perturbation is: ``rms`` over all entries, the largest entry ``l_inf``, and ``l_0``, changed entries per example.

    Raises:
      ValueError: no perturbation of an example.
    """
    values = np.asarray(checks.host_examples(perturbation, "perturbation"), np.float64)
    return {
        "rms": float(np.sqrt((values**2).mean())),
        "l_inf": float(np.abs(values).max()),
        "l_0": float(np.count_nonzero(values) / len(values)),
    }
