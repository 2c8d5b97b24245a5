"""What every interval is made of: checked values over seeds, the interval itself, and the error for values that allow none."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

CONFIDENCE = 0.95


class SampleError(ValueError):
    """The measurements allow no interval: too few seeds, not finite, or outside the measure's domain."""


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval.

    Attributes:
      estimate: the value of the statistic over all seeds.
      low, high: the ends, finite. They are equal where all seeds agree to the last bit: right for a deterministic measure; for a
        random one it says only that these seeds show no spread.
      confidence: the nominal coverage, a fraction.
      num_seeds: the number of independent runs (or trials).
      method: how the ends were computed.
    """

    estimate: float
    low: float
    high: float
    confidence: float
    num_seeds: int
    method: str

    def __post_init__(self):
        ends = (self.estimate, self.low, self.high)
        if not (np.isfinite(ends).all() and self.low <= self.high):
            raise SampleError(f"an interval needs finite ends in order, got estimate, low, high = {ends}")


IntervalFn = Callable[..., Interval]


def check_confidence(confidence: float) -> None:
    """Raise ValueError unless ``confidence`` is a fraction."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is a fraction between 0 and 1, got {confidence}: write 0.95 for 95 %")


def numbers(values: ArrayLike, name: str = "values") -> np.ndarray:
    """``values`` as float64, masked ones as NaN: NumPy would drop the mask, and what lies under it would count.

    Raises:
      ValueError: no real numbers, or ones that only a run can know (under `jax.jit`).
    """
    try:
        array = values if isinstance(values, np.ma.MaskedArray) else np.asarray(values)
        if array.dtype.kind not in "cUSMm":
            wide = array.astype(np.float64)
            return np.ma.filled(wide, np.nan) if isinstance(wide, np.ma.MaskedArray) else wide
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be real numbers whose values are known, got {type(values).__name__}") from error
    raise ValueError(f"{name} must be real numbers, got {array.dtype}")


def scaled(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Values divided by a power of two near their largest size, and that power: squares of 1e-200 would be 0, those of 1e200 infinite."""
    scale = float(2.0 ** np.floor(np.log2(max(np.abs(values).max(), np.finfo(np.float64).tiny))))
    return values / scale, scale


def checked(values: ArrayLike, confidence: float = CONFIDENCE, *, least: int = 2, ndim: int = 1) -> np.ndarray:
    """``values`` as float64, refused if they are too few, not finite or have other than ``ndim`` axes."""
    check_confidence(confidence)
    values = numbers(values)
    if values.ndim != ndim and values.size:  # no seeds at all may come without the other axes
        raise ValueError(f"values need {ndim} axes, the first over seeds, got shape {values.shape}")
    if len(values) < least:
        raise SampleError(f"an interval needs at least {least} seeds, got {len(values)}")
    num_bad = len(values) - np.count_nonzero(np.isfinite(values).reshape(len(values), -1).all(1))
    if num_bad:
        raise SampleError(f"{num_bad} of {len(values)} seeds are not finite: settle what that means, then pass the rest")
    return values


@contextlib.contextmanager
def no_runtime_warnings() -> Iterator[None]:
    """SciPy warns of values that are nearly equal; the interval is then narrow, as it should be."""
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # SciPy's DegenerateDataWarning is a RuntimeWarning
        yield
