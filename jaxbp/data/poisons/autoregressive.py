"""Autoregressive noise: each pixel is a fixed linear filter of the pixels above and to the left of it, started from random ones."""

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int, PRNGKeyArray

from jaxbp import checks
from jaxbp.data.poisons.signals import Perturbation, Shape, checked_labels, paired, scaled

_TRIALS = 3  # signals by which a filter is judged


def ar_coefficients(
    key: PRNGKeyArray,
    num_classes: int,
    shape: Shape,
    *,
    window: tuple[int, int] = (3, 3),
    max_growth: float = 10.0,
    min_response: float = 0.3,
    max_draws: int = 100,
    crop: int = 4,
) -> Float[np.ndarray, "C c kh kw"]:
    """Filters for `autoregressive`, (C, channels, kh, kw): normal entries divided by their sum, the last entry 0.

    A filter is kept if three signals from it stay bounded, and if the filters kept before do not fit them nor it theirs.

    Args:
      key: of the draws.
      num_classes: C.
      shape: (H, W, channels) of an example.
      window: (kh, kw), the last entry is the pixel itself.
      max_growth: largest rms of a signal whose start has rms 1.
      min_response: smallest rms of `ar_response` to signals of another filter, relative to their rms.
      max_draws: filters to try for each one that is wanted.
      crop: as for `autoregressive`.

    Raises:
      ValueError: too few filters were found; or a window larger than the example.
    """
    _check_window(window, shape)
    draw_key, start_key = jax.random.split(checks.prng_key(key, known=True))
    wanted = num_classes * shape[2]
    draws = np.array(jax.random.normal(draw_key, (max_draws * wanted, *window)), np.float64)
    draws[:, -1, -1] = 0
    starts = np.asarray(jax.random.normal(start_key, (_TRIALS, *_scanned(shape, crop))), np.float64)
    filters: list[np.ndarray] = []
    signals: list[np.ndarray] = []
    for draw in draws:
        candidate = draw / draw.sum()
        with np.errstate(over="ignore", invalid="ignore"):
            signal = _scan(candidate, starts)
            bounded = np.sqrt((signal**2).mean()) <= max_growth
        if bounded and all(
            _relative_response(candidate, other) >= min_response and _relative_response(kept, signal) >= min_response
            for kept, other in zip(filters, signals, strict=True)
        ):
            filters.append(candidate)
            signals.append(signal)
            if len(filters) == wanted:
                return np.array(filters).reshape(num_classes, shape[2], *window)
    raise ValueError(f"{len(filters)} of {wanted} filters were found in {len(draws)} draws: raise max_growth, or lower min_response")


def autoregressive(
    key: PRNGKeyArray,
    labels: Int[ArrayLike, " N"],
    shape: Shape,
    coefficients: Float[ArrayLike, "C c kh kw"],
    *,
    rms: float,
    crop: int = 4,
    antithetic: bool = True,
) -> Perturbation:
    """Noise scanned row by row: each pixel is its class's filter applied to the window that ends there.

    The first rows and columns, as many as the window reaches back, are the start, N(0, 1).

    Args:
      key: of the starts.
      labels: (N,).
      shape: (H, W, channels) of an example.
      coefficients: of `ar_coefficients`.
      rms: root mean square over the entries of each example.
      crop: rows and columns that are scanned before the example begins; none along an axis of extent 1.
      antithetic: as for `waves`.

    Raises:
      ValueError: coefficients whose last entry is not 0, that do not fit the shape, or whose signals vanish or overflow.
    """
    filters = checks.host_values(coefficients, "coefficients")
    if filters.ndim != 4 or filters.shape[1] != shape[2] or filters[..., -1, -1].any():
        raise ValueError(f"coefficients must be (C, {shape[2]}, kh, kw) with a last entry of 0, got shape {filters.shape}")
    _check_window(filters.shape[2:], shape)
    labels = checked_labels(labels, len(filters), rms)
    size = _scanned(shape, crop)
    starts = np.asarray(jax.random.normal(checks.prng_key(key, known=True), (len(labels), shape[2], *size)), np.float64)
    if antithetic:
        starts = paired(starts, labels)
    with np.errstate(over="ignore", invalid="ignore"):
        signals = _scan(filters[labels], starts)[..., size[0] - shape[0] :, size[1] - shape[1] :]
    return scaled(np.moveaxis(signals, 1, -1), rms)


def ar_response(coefficients: Float[ArrayLike, "c kh kw"], perturbations: Float[ArrayLike, "N h w c"]) -> Float[np.ndarray, " N"]:
    """How badly a class's filters (channels, kh, kw) predict perturbations: rms of pixel minus prediction, (N,); 0 for their own.

    Raises:
      ValueError: shapes that do not fit.
    """
    filters = checks.host_values(coefficients, "coefficients", shape=(None, None, None))
    signals = np.moveaxis(checks.host_values(perturbations, "perturbations", shape=(None, None, None, len(filters))), -1, 1)
    _check_window(filters.shape[1:], (*signals.shape[2:], len(filters)))
    return np.sqrt((_residuals(filters, signals) ** 2).mean((1, 2, 3)))


def _residuals(filters: np.ndarray, signals: np.ndarray) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(signals, filters.shape[-2:], (-2, -1))
    return windows[..., -1, -1] - np.einsum("...ij,...ij->...", windows, filters[..., None, None, :, :])


def _relative_response(filters: np.ndarray, signals: np.ndarray) -> float:
    return float(np.sqrt((_residuals(filters, signals) ** 2).mean() / (signals**2).mean()))


def _scan(filters: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Signals (..., H, W) from starts of that shape; filters (..., kh, kw) broadcast to them."""
    signals, (rows, columns) = starts.copy(), filters.shape[-2:]
    for row in range(rows - 1, starts.shape[-2]):
        for column in range(columns - 1, starts.shape[-1]):
            window = signals[..., row - rows + 1 : row + 1, column - columns + 1 : column + 1]
            signals[..., row, column] = (filters * window).sum((-2, -1))
    return signals


def _scanned(shape: Shape, crop: int) -> tuple[int, int]:
    height, width = (extent + crop * (extent > 1) for extent in shape[:2])
    return height, width


def _check_window(window: tuple[int, ...], shape: Shape) -> None:
    if min(window) < 1 or np.prod(window) < 2 or window[0] > shape[0] or window[1] > shape[1]:
        raise ValueError(f"window must hold 2 or more entries of an example of extents {shape[:2]}, got {tuple(window)}")
