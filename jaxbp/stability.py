"""Algorithmic stability of training whose weights never converge: averages over time, and what one example does to them.

Training on a set S with a constant learning rate is a random map of the weights with an invariant law. The average over time of a loss l
at an example z, ``<l(z)>_S``, converges although the weights do not. Statistical algorithmic stability (Chandramoorthy, Loukas, Gatmiry
and Jegelka, "On the generalization of learning algorithms that do not converge", NeurIPS 2022) is the supremum of
``|<l(z)>_S - <l(z)>_S'|`` over z and over sets S' that differ from S in one example. `coefficients` estimates it from runs that share
initial parameters, order and augmentation; `TimeAverage` accumulates the averages inside a compiled loop. `LabelNoise` is nested: more
noise changes the labels that less noise changed, and more, so levels are paired.

>>> import jax.numpy as jnp
>>> from jaxbp import stability
>>> base, others = jnp.array([0.5, 1.0]), jnp.array([[0.75, 1.0], [0.5, 2.0]])
>>> [x.item() for x in stability.coefficients(base, others)]
[0.3125, 0.3125, 1.0]
>>> stability.integrated_time(jnp.linspace(0, 1, 100)).reliable  # a drift is no correlation: see `detrend`
False
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from jaxbp import checks

CLASS_LOSSES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "cross_entropy": lambda logits: -jax.nn.log_softmax(logits),
    "one_minus_p": lambda logits: 1 - jax.nn.softmax(logits),
    "zero_one": lambda logits: 1 - jax.nn.one_hot(logits.argmax(-1), logits.shape[-1], dtype=logits.dtype),
}
"""Logits (N, C) to the loss of each label that an example might have, (N, C)."""

BOUNDED = ("one_minus_p", "zero_one")
"""Names of the losses in [0, 1]. Cross-entropy is not bounded: its coefficients grow with the loss itself."""

_LEAST_LENGTH = 8  # of a series whose correlations are estimated
_TIMES = 50  # a series is long enough if it holds as many integrated times (Sokal 1997)


def replace_example(
    inputs: Float[ArrayLike, "N ..."], labels: Int[ArrayLike, " N"], position: Any, new_input: Float[ArrayLike, "..."], new_label: Any
) -> tuple[Float[Array, "N ..."], Int[Array, " N"]]:
    """Inputs (N, ...) and labels (N,) with the example at ``position``, which may be traced, exchanged for another one.

    Raises:
      ValueError: a position that is not from 0 to N - 1, or shapes that do not fit.
    """
    inputs, labels = checks.examples(inputs), checks.numbers(labels, "labels")
    new_input, new_label = checks.numbers(new_input, "new_input"), checks.numbers(new_label, "new_label")
    if labels.shape != inputs.shape[:1] or np.shape(new_input) != inputs.shape[1:] or np.shape(new_label):
        raise ValueError(
            f"an example is one input of shape {inputs.shape[1:]} and one label, got shapes {np.shape(new_input)} and "
            f"{np.shape(new_label)}; labels have shape {labels.shape}"
        )
    if not isinstance(position, jax.core.Tracer) and not 0 <= checks.count(position, "position", least=0) < len(inputs):
        raise ValueError(f"position must be from 0 to {len(inputs) - 1}, got {position}")
    if jnp.issubdtype(labels.dtype, jnp.integer) and not jnp.issubdtype(new_label.dtype, jnp.integer):
        raise ValueError(f"new_label must be an integer as the labels are, got {new_label.dtype}")
    inputs = inputs.astype(jnp.result_type(inputs, new_input))
    return inputs.at[position].set(new_input.astype(inputs.dtype)), labels.at[position].set(new_label.astype(labels.dtype))


class LabelNoise(NamedTuple):
    """Which labels change first, and to what.

    Attributes:
      uniform: (N,), a label changes if the share of noise is above it.
      offset: (N,), from 1 to C - 1, added to the label modulo C.
    """

    uniform: Float[Array, " N"]
    offset: Int[Array, " N"]


def draw_label_noise(key: PRNGKeyArray, num_examples: int, num_classes: int) -> LabelNoise:
    """The noise of N examples, for every share at once; a changed label is uniform over the other classes.

    Raises:
      ValueError: fewer than one example or two classes.
    """
    if num_examples < 1 or num_classes < 2:
        raise ValueError(f"label noise needs at least 1 example and 2 classes, got {num_examples} and {num_classes}")
    share_key, offset_key = jax.random.split(checks.prng_key(key))
    return LabelNoise(jax.random.uniform(share_key, (num_examples,)), jax.random.randint(offset_key, (num_examples,), 1, num_classes))


def apply_label_noise(noise: LabelNoise, labels: Int[ArrayLike, " N"], share: Any, num_classes: int) -> Int[Array, " N"]:
    """Labels (N,) of which the expected ``share``, from 0 to 1 and maybe traced, are wrong.

    Raises:
      ValueError: a share outside [0, 1], or labels that do not fit.
    """
    labels = checks.labels(labels, num_classes, len(noise.uniform))
    return jnp.where(noise.uniform < _checked_share(share), (labels + noise.offset) % num_classes, labels)


def expected_loss(class_losses: Float[ArrayLike, "N C"], labels: Int[ArrayLike, " N"], share: Any) -> Float[Array, " N"]:
    """The expected loss (N,) under label noise: ``(1 - p) l_y + p / (C - 1) sum of the others``; nothing is sampled.

    Args:
      class_losses: (N, C), of one of `CLASS_LOSSES`.
      labels: (N,), the clean ones.
      share: p, of wrong labels, from 0 to 1; may be traced.

    Raises:
      ValueError: a share outside [0, 1], or labels that do not fit.
    """
    class_losses = checks.examples(class_losses, "class_losses")
    if class_losses.ndim != 2:
        raise ValueError(f"class_losses must be (N, C), got shape {class_losses.shape}")
    num_classes, share = class_losses.shape[1], _checked_share(share)
    own = jnp.take_along_axis(class_losses, checks.labels(labels, num_classes, len(class_losses))[:, None], 1)[:, 0]
    return (1 - share) * own + share / (num_classes - 1) * (class_losses.sum(1) - own)


def _checked_share(share: Any) -> Any:
    share = checks.number(share, "share", least=0)
    if not isinstance(share, jax.core.Tracer) and share > 1:
        raise ValueError(f"share is a part of the labels, from 0 to 1, got {share:g}")
    return share


class TimeAverage(NamedTuple):
    """Running mean and spread of an array over the steps after a run-up, and the means of the first and the second half of these.

    Means are updated, not sums (Welford, Technometrics 4, 1962), so float32 loses nothing over many steps.

    Attributes:
      counts: (2,), steps of each half.
      halves: (2, ...), means of the halves. Of an odd number of steps the second half has one more.
      mean: of all steps after the run-up.
      squares: sum of squared deviations from the mean.
    """

    counts: Float[Array, " 2"]
    halves: Float[Array, "2 ..."]
    mean: Float[Array, "..."]
    squares: Float[Array, "..."]

    @classmethod
    def init(cls, shape: tuple[int, ...] = (), dtype: Any = jnp.float32) -> "TimeAverage":
        """Nothing yet."""
        zero = jnp.zeros(shape, dtype)
        return cls(jnp.zeros(2, dtype), jnp.stack([zero, zero]), zero, zero)

    def update(self, value: Float[ArrayLike, "..."], step: Any, *, run_up: int, num_steps: int) -> "TimeAverage":
        """With the value of ``step``, which counts from 0 and may be traced; steps before ``run_up`` change nothing.

        Raises:
          ValueError: fewer than two steps after the run-up.
        """
        if not 0 <= run_up <= num_steps - 2:
            raise ValueError(f"run_up must leave at least 2 of {num_steps} steps, got {run_up}")
        value, step = checks.numbers(value, "value").astype(self.mean.dtype), checks.number(step, "step")
        if value.shape not in ((), self.mean.shape):
            raise ValueError(f"value must have the shape of the average, {self.mean.shape}, got {value.shape}")
        half = jnp.asarray(step >= run_up + (num_steps - run_up) // 2).astype(int)
        counts = self.counts.at[half].add(1)
        mean = self.mean + (value - self.mean) / counts.sum()
        halves = self.halves.at[half].add((value - self.halves[half]) / counts[half])
        updated = TimeAverage(counts, halves, mean, self.squares + (value - self.mean) * (value - mean))
        return jax.tree.map(lambda after, before: jnp.where(step >= run_up, after, before), updated, self)

    @property
    def variance(self) -> Float[Array, "..."]:
        """Over time, about the mean."""
        return self.squares / self.counts.sum()


class Coefficients(NamedTuple):
    """Lower bounds of the stability coefficient, the average over pairs of runs unless it says so.

    Attributes:
      of_mean: of the difference of the mean loss over examples; the form of the paper's experiments.
      mean: of the difference at each example, averaged over examples; the least noisy.
      largest: the largest difference over examples and pairs; the definition's own form.
    """

    of_mean: Float[Array, ""]
    mean: Float[Array, ""]
    largest: Float[Array, ""]


def coefficients(base: Float[ArrayLike, " N"], others: Float[ArrayLike, "K N"]) -> Coefficients:
    """Differences of K runs, each with one example replaced, from the run without; all time averages of losses at N examples.

    Raises:
      ValueError: no other run, or shapes that differ.
    """
    base, others = _real(checks.examples(base, "base")), _real(checks.numbers(others, "others"))
    if base.ndim != 1 or others.ndim != 2 or others.shape[1:] != base.shape or len(others) < 1:
        raise ValueError(f"base must be (N,) and others (K, N) with K of at least 1, got shapes {base.shape} and {others.shape}")
    return _summary(others - base)


def pairwise(runs: Float[ArrayLike, "R N"]) -> Coefficients:
    """Differences within all pairs of R runs, as the paper has them, each run without an example of its own.

    Pairs of few runs are not independent, so they give no error bar: repeat with other seeds. For normal values ``of_mean`` tends to
    ``2 / sqrt(pi)`` standard deviations.

    Raises:
      ValueError: fewer than two runs.
    """
    runs = _real(checks.examples(runs, "runs"))
    if runs.ndim != 2 or len(runs) < 2:
        raise ValueError(f"runs must be (R, N) with R of at least 2, got shape {runs.shape}")
    first, second = np.triu_indices(len(runs), 1)
    return _summary(runs[first] - runs[second])


def _real(losses: jax.Array) -> jax.Array:
    return losses if jnp.issubdtype(losses.dtype, jnp.floating) else losses.astype(float)


def _summary(differences: jax.Array) -> Coefficients:
    sizes = jnp.abs(differences)
    return Coefficients(jnp.abs(differences.mean(1)).mean(), sizes.mean(), sizes.max())


def sketch(key: PRNGKeyArray, params: PyTree, num_rows: int = 64) -> Float[Array, " m"]:
    """A Gaussian projection (m,) of parameters, linear in them, that keeps distances to a relative error of about sqrt(2 / m).

    The same key gives the same projection; no more than a row of it is in memory (Johnson and Lindenstrauss, 1984).

    Raises:
      ValueError: fewer than one row, or parameters that are not floating-point arrays.
    """
    if num_rows < 1:
        raise ValueError(f"num_rows must be at least 1, got {num_rows}")
    leaves = jax.tree.leaves(checks.parameters(params))

    def row(row_key: jax.Array) -> jax.Array:
        keys = jax.random.split(row_key, len(leaves))
        parts = [jnp.vdot(jax.random.normal(k, leaf.shape, leaf.dtype), leaf) for k, leaf in zip(keys, leaves, strict=True)]
        return jnp.stack(parts).sum()

    return jax.lax.map(row, jax.random.split(checks.prng_key(key), num_rows)) / num_rows**0.5


def weight_distances(sketches: Float[ArrayLike, "E m"]) -> Float[np.ndarray, " E-1"]:
    """Distances (E - 1,) of the weights of each epoch from those of the epoch before, from their `sketch` (E, m)."""
    return np.linalg.norm(np.diff(checks.host_values(sketches, "sketches", shape=(None, None)), axis=0), axis=1)


def detrend(series: Float[ArrayLike, " T"], degree: int = 3) -> Float[np.ndarray, " T"]:
    """A series (T,) without its least-squares polynomial: a drift passes for a slow correlation.

    Raises:
      ValueError: a series of fewer than 8 values, or no more than ``degree`` + 1.
    """
    values = _checked_series(series, degree + 2)
    fit = np.polynomial.Polynomial.fit(np.arange(len(values)), values, degree)
    return values - fit(np.arange(len(values)))


def autocorrelation(series: Float[ArrayLike, " T"]) -> Float[np.ndarray, " T"]:
    """Sample autocorrelations (T,) of a series at the lags 0 to T - 1; NaN of a series that is constant or not finite."""
    values = _checked_series(series)
    values = values - values.mean()
    transform = np.fft.rfft(values, 2 * len(values))
    covariance = np.fft.irfft(np.abs(transform) ** 2)[: len(values)]
    return covariance / covariance[0] if np.ptp(values) > 0 else np.full(len(values), np.nan)


class IntegratedTime(NamedTuple):
    """How long a series remembers, in steps.

    Attributes:
      time: ``1 + 2 sum of autocorrelations`` up to the window; 1 for white noise.
      window: the last lag that was summed.
      reliable: whether the series holds 50 such times.
    """

    time: float
    window: int
    reliable: bool


def integrated_time(series: Float[ArrayLike, " T"], *, factor: float = 5.0) -> IntegratedTime:
    """The integrated autocorrelation time, with the smallest window that is ``factor`` times as long (Sokal 1997, section 3).

    A constant series has the time 1, not reliable; one that is not finite the time NaN.

    Raises:
      ValueError: a series of fewer than 8 values.
    """
    values = _checked_series(series)
    if not np.isfinite(values).all():
        return IntegratedTime(float("nan"), 0, False)
    if np.ptp(values) == 0:
        return IntegratedTime(1.0, 0, False)
    times = 2 * np.cumsum(autocorrelation(values)) - 1
    wide = np.arange(len(times)) >= factor * times
    window = int(wide.argmax()) if wide.any() else len(times) - 1
    return IntegratedTime(float(times[window]), window, bool(wide.any() and len(values) >= _TIMES * times[window]))


def _checked_series(series: Any, least: int = 0) -> np.ndarray:
    values, least = checks.host_values(series, "series"), max(least, _LEAST_LENGTH)
    if values.ndim != 1 or len(values) < least:
        raise ValueError(f"a series needs at least {least} values along one axis, got shape {values.shape}: measure more epochs")
    return values
