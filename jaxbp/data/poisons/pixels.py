"""Perturbations that are one of a few patterns for all examples of a class: patches of signs, single pixels."""

import itertools
from collections.abc import Sequence

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int, PRNGKeyArray

from jaxbp import checks
from jaxbp.data.poisons.signals import Perturbation, Shape, checked_labels, scaled

_FLAT = 1e-2  # added to the deviation in `one_pixel`'s score, which is 0 where a class is constant
_PREFIX = 16  # bits of a sign vector that differ between classes


def class_patches(
    key: PRNGKeyArray, labels: Int[ArrayLike, " N"], shape: Shape, num_classes: int, *, rms: float, patch: int, jitter: float = 0.1
) -> Perturbation:
    """Square patches of one value each: a sign vector of the example's class plus normal ``jitter``; each example has exactly ``rms``.

    Args:
      key: of the sign vectors and the jitter.
      labels: (N,).
      shape: (H, W, C) of an example.
      num_classes: C of the labels; their sign vectors differ.
      rms: root mean square over the entries of an example.
      patch: side of a patch in entries; along an axis of extent 1 a patch has 1.
      jitter: standard deviation relative to the signs.

    Raises:
      ValueError: a patch larger than the example, or fewer sign vectors than classes.
    """
    labels = checked_labels(labels, num_classes, rms)
    sides = [min(patch, extent) if extent == 1 else patch for extent in shape[:2]]
    if patch < 1 or any(side > extent for side, extent in zip(sides, shape[:2], strict=True)):
        raise ValueError(f"patch must be from 1 to the extents {shape[:2]}, got {patch}")
    cells = (-(-shape[0] // sides[0]), -(-shape[1] // sides[1]), shape[2])
    number = int(np.prod(cells))
    prefix = min(number, _PREFIX)
    if 2**prefix < num_classes:
        raise ValueError(
            f"{number} patches have {2**number} sign vectors, fewer than {num_classes} classes: use patches smaller than {patch}"
        )
    code_key, sign_key, jitter_key = jax.random.split(checks.prng_key(key, known=True), 3)
    codes = np.asarray(jax.random.permutation(code_key, 2**prefix)[:num_classes])
    signs = np.array(jax.random.rademacher(sign_key, (num_classes, number), float))
    signs[:, :prefix] = 2 * ((codes[:, None] >> np.arange(prefix)) & 1) - 1
    values = signs[labels] + jitter * np.asarray(jax.random.normal(jitter_key, (len(labels), number)))
    blown = values.reshape(len(labels), *cells).repeat(sides[0], 1).repeat(sides[1], 2)[:, : shape[0], : shape[1]]
    return scaled(blown, rms)


def one_pixel(
    inputs: Float[ArrayLike, "N h w c"], labels: Int[ArrayLike, " N"], num_classes: int, *, values: Sequence[float] = (0.0, 1.0)
) -> Perturbation:
    """One pixel of each class set to a corner colour: the pixel and colour v of the largest ``mean|v - x| / (std|v - x| + 0.01)``.

    Mean and deviation are over the examples of the class, ``|v - x|`` is the mean over channels. The source divides by the deviation
    alone, which is 0 at constant pixels. Classes choose in turn among the pairs of pixel and colour that are left.

    Raises:
      ValueError: a class without examples, or fewer pairs than classes.
    """
    inputs = checks.host_array(inputs, "inputs", shape=(None, None, None, None))
    inputs = inputs if np.issubdtype(inputs.dtype, np.floating) else inputs.astype(np.float32)
    labels = checks.host_labels(labels, num_classes, len(inputs))
    colours = np.array(list(itertools.product(values, repeat=inputs.shape[-1])), inputs.dtype)
    if inputs[0, ..., 0].size * len(colours) < num_classes:
        raise ValueError(f"{inputs[0, ..., 0].size} pixels and {len(colours)} colours make fewer pairs than {num_classes} classes")
    perturbation, used = np.zeros_like(inputs), np.zeros((len(colours), *inputs.shape[1:3]), bool)
    for label in range(num_classes):
        members = labels == label
        if not members.any():
            raise ValueError(f"every class needs an example, class {label} has none")
        scores = np.array([_shift_score(inputs[members], colour) for colour in colours])
        which, row, column = np.unravel_index(np.where(used, -np.inf, scores).argmax(), scores.shape)
        used[which, row, column] = True
        perturbation[members, row, column] = colours[which] - inputs[members, row, column]
    return perturbation


def _shift_score(inputs: np.ndarray, colour: np.ndarray) -> np.ndarray:
    distances = np.abs(colour - inputs).mean(-1)
    return distances.mean(0) / (distances.std(0) + _FLAT)
