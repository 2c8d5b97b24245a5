"""Robust accuracy: the share of examples that a network gets right and that no attack breaks.

It is the worst case over attacks, example by example, so it can only overstate the truth; a diverse set of attacks overstates
it less, and `strongest` is one (after AutoAttack; Croce & Hein, ICML 2020). The order matters for time alone: each attack is
tried on what the ones before it have left, gathered into full batches, so a weak cheap attack in front saves much.

Examples are chance within a seed: Wilson's interval says what these N tell of the network. Seeds are chance between
networks: `over_seeds` gives Student's interval of their mean, which is what a claim about training needs.

>>> import jax, jax.numpy as jnp
>>> from jaxbp import attacks
>>> inputs = jax.random.uniform(jax.random.key(0), (200, 2)); labels = inputs.argmax(-1)
>>> found = attacks.robust_accuracy(lambda x: 3 * x, jax.random.key(1), inputs, labels,
...     {"fgsm": attacks.fgsm(attacks.Threat("linf", 0.1))}, batch_size=50)   # broken where |x1 - x2| <= 0.2
>>> print(f"{found.worst_case.estimate:.3f} in [{found.worst_case.low:.3f}, {found.worst_case.high:.3f}]")
0.655 in [0.587, 0.717]
>>> round(float((jnp.abs(inputs[:, 0] - inputs[:, 1]) > 0.2).mean()), 3)
0.655
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special as special

from jaxbp import metrics, stats
from jaxbp.attacks.apgd import apgd
from jaxbp.attacks.attack import Attack, LogitsFn
from jaxbp.attacks.masking import Sign, masking_signs
from jaxbp.attacks.square import square
from jaxbp.attacks.threat import Threat


def strongest(
    threat: Threat, *, num_steps: int = 100, num_restarts: int = 1, num_targets: int = 9, num_queries: int = 5000
) -> dict[str, Attack]:
    """APGD on the cross-entropy, APGD on the targeted DLR loss, Square: what there is to be tried before a claim is made.

    Args:
      threat: norm, radius and box.
      num_steps: gradients of each run of APGD.
      num_restarts: of each attack (for each target, of the targeted one).
      num_targets: likeliest wrong classes that are aimed at, fewer than there are classes; the loss needs 4 classes.
      num_queries: of Square.
    """
    return {
        "apgd_ce": apgd(threat, num_steps=num_steps, num_restarts=num_restarts),
        "apgd_dlr_targeted": apgd(threat, num_steps=num_steps, num_restarts=num_restarts, loss="dlr", targets=num_targets),
        "square": square(threat, num_queries=num_queries, num_restarts=num_restarts),
    }


@dataclass(frozen=True)
class RobustEvaluation:
    """What `robust_accuracy` found for N examples.

    Attributes:
      correct: (N,), right without any attack.
      tried, broken: for each attack (N,), whether it was tried on the example, and made the network err.
      num_evaluations: for each attack, forward passes over all examples.
      signs: of masked gradients; empty where they were not looked for.
    """

    correct: np.ndarray
    tried: dict[str, np.ndarray]
    broken: dict[str, np.ndarray]
    num_evaluations: dict[str, int]
    signs: tuple[Sign, ...] = ()

    @property
    def clean(self) -> stats.Interval:
        """Accuracy without attack, with Wilson's 95 % interval."""
        return _share(self.correct)

    @property
    def accuracy(self) -> dict[str, stats.Interval]:
        """Accuracy under each attack: with it and all before it if it was tried on survivors, else with it alone."""
        left = self.correct.copy()
        found = {}
        for name, broken in self.broken.items():
            left = left & ~broken
            found[name] = _share(self.correct & ~broken if self.tried[name][self.correct].all() else left)
        return found

    @property
    def worst_case(self) -> stats.Interval:
        """Robust accuracy: right and broken by no attack."""
        return _share(self.correct & ~np.any([np.zeros_like(self.correct), *self.broken.values()], axis=0))

    @property
    def masking_suspected(self) -> bool:
        """Whether any sign is suspicious."""
        return any(sign.suspicious for sign in self.signs)

    @property
    def warning(self) -> str:
        """What to print beside the robust accuracy if masking is suspected, else nothing."""
        reasons = "; ".join(str(sign) for sign in self.signs if sign.suspicious)
        return f"Gradients may be masked, and robust accuracy overstated: {reasons}." if reasons else ""


def robust_accuracy(
    logits_fn: LogitsFn,
    key: jax.Array,
    inputs: jax.Array | np.ndarray,
    labels: jax.Array | np.ndarray,
    attacks: Mapping[str, Attack],
    *,
    batch_size: int = 128,
    only_survivors: bool = True,
    check_masking: bool = True,
) -> RobustEvaluation:
    """Attack the examples that the network gets right, by one attack after another, and count what is left.

    An example counts as broken if a fresh evaluation of what the attack returned confirms it. Programs are compiled once for a
    batch of ``batch_size`` and once for each method: hand in a `jax.tree_util.Partial` of a function and its parameters
    for ``logits_fn``, and networks and radii share them. A plain function has them compiled anew each time.

    Args:
      logits_fn: inputs (N, ...) -> logits (N, C), in evaluation mode.
      key: of all random numbers; what an attack draws for an example depends on the batch that it is gathered into.
      inputs, labels: floating-point (N, ...) inside the bounds of every threat, and integers (N,).
      attacks: in this order.
      batch_size: examples attacked at a time.
      only_survivors: try an attack only on what the ones before it left, or on all that is right without attack, so that
        `RobustEvaluation.accuracy` tells of each alone. The worst case is the same but for the random numbers.
      check_masking: look for `masking_signs`, on the first batch of examples that are right, under the first threat.

    Raises:
      ValueError: no examples, or inputs outside the bounds, or shapes that do not fit.
    """
    inputs, labels = np.asarray(inputs), np.asarray(labels)
    if not len(inputs) or labels.shape != inputs.shape[:1]:
        raise ValueError(f"inputs and labels must be as many, and some, got shapes {inputs.shape} and {labels.shape}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    for name, attack in attacks.items():
        low, high = attack.threat.bounds
        if not (inputs.min() >= low and inputs.max() <= high):
            raise ValueError(
                f"inputs must lie in the bounds {low, high} of {name!r}, got {inputs.min()} to {inputs.max()}: normalise "
                "inside logits_fn, or state other bounds"
            )
    network = logits_fn if isinstance(logits_fn, jax.tree_util.Partial) else jax.tree_util.Partial(logits_fn)
    correct = np.zeros(len(inputs), bool)
    for rows, places in _batches(np.arange(len(inputs)), batch_size):
        correct[places] = np.asarray(_is_right(network, inputs[rows], labels[rows]))[: len(places)]

    tried, broken, spent = {}, {}, {}
    left = correct.copy()
    for index, (name, attack) in enumerate(attacks.items()):
        tried[name] = (left if only_survivors else correct).copy()
        broken[name], spent[name] = np.zeros(len(inputs), bool), 0
        for batch, (rows, places) in enumerate(_batches(np.flatnonzero(tried[name]), batch_size)):
            batch_key = jax.random.fold_in(jax.random.fold_in(key, index), batch)
            fell, evaluations = _try(attack, network, batch_key, inputs[rows], labels[rows])
            broken[name][places] = np.asarray(fell)[: len(places)]
            spent[name] += int(evaluations) * len(places)
        left &= ~broken[name]

    signs: tuple[Sign, ...] = ()
    if check_masking and attacks and correct.any():
        rows = np.resize(np.flatnonzero(correct), batch_size)  # in turn, so that filling up shifts no share by much
        threat = next(iter(attacks.values())).threat
        signs = masking_signs(
            network,
            jax.random.fold_in(key, len(attacks)),
            inputs[rows],
            labels[rows],
            threat,
            gradient_free_share=_only_without_gradients(attacks, tried, broken),
        )
    return RobustEvaluation(correct, tried, broken, spent, signs)


def over_seeds(evaluations: Sequence[RobustEvaluation]) -> dict[str, stats.Interval]:
    """Student's 95 % interval of the mean over seeds of "clean", of each attack's accuracy and of "worst_case".

    DataError below two seeds; ValueError if the seeds were not attacked alike.
    """
    tables = [
        {name: found.estimate for name, found in {"clean": e.clean, **e.accuracy, "worst_case": e.worst_case}.items()} for e in evaluations
    ]
    if len({tuple(table) for table in tables}) > 1:
        raise ValueError(f"all seeds must have the same attacks, got {sorted({tuple(table) for table in tables})}")
    names = list(tables[0]) if tables else ["clean"]
    return {name: stats.t_interval([table[name] for table in tables]) for name in names}


def wilson_interval(successes: int, trials: int, *, confidence: float = stats.CONFIDENCE) -> stats.Interval:
    """Wilson's score interval (JASA 22, 1927) for the chance behind ``successes`` of ``trials``.

    Its mean coverage is the nominal one, for some chances below it; where coverage must hold for every chance, take
    `stats.proportion_interval`. ``num_seeds`` of the result is the number of trials.

    Raises:
      ValueError: successes not from 0 to trials, or a confidence not between 0 and 1.
      DataError: no trials.
    """
    successes, trials = int(successes), int(trials)
    if not 0 <= successes <= trials:
        raise ValueError(f"successes lie between 0 and trials = {trials}, got {successes}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is a fraction between 0 and 1, got {confidence}: write 0.95 for 95 %")
    if not trials:
        raise stats.SampleError("an interval needs at least 1 trial, got 0")
    z, share = float(special.ndtri((1 + confidence) / 2)), successes / trials
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    low = centre - half if successes else 0.0  # exact ends, which rounding would miss
    high = centre + half if successes < trials else 1.0
    return stats.Interval(share, low, high, confidence, trials, "Wilson")


def _share(flags: np.ndarray) -> stats.Interval:
    return wilson_interval(flags.sum(), len(flags))


def _batches(chosen: np.ndarray, batch_size: int):
    """Rows of full batches, the last one filled up with its first row, and the places that they stand for."""
    for start in range(0, len(chosen), batch_size):
        places = chosen[start : start + batch_size]
        yield np.concatenate([places, np.repeat(places[:1], batch_size - len(places))]), places


def _only_without_gradients(
    attacks: Mapping[str, Attack], tried: Mapping[str, np.ndarray], broken: Mapping[str, np.ndarray]
) -> float | None:
    """The share of all examples that gradient attacks were tried on and only others broke; None unless both kinds were tried."""
    kinds = {kind: [broken[n] for n, a in attacks.items() if a.gradient_free == kind] for kind in (False, True)}
    if not (kinds[False] and kinds[True]):
        return None
    faced = np.any([tried[n] for n, a in attacks.items() if not a.gradient_free], axis=0)
    return float((faced & np.any(kinds[True], axis=0) & ~np.any(kinds[False], axis=0)).mean())


@jax.jit
def _is_right(logits_fn: LogitsFn, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    return metrics.accuracy(logits_fn(inputs), labels) > 0


@jax.jit
def _try(attack: Attack, logits_fn: LogitsFn, key: jax.Array, inputs: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    result = attack(logits_fn, key, inputs, labels)
    still_right = metrics.accuracy(logits_fn(result.adversarial), labels) > 0
    return ~still_right & jnp.isfinite(result.adversarial).reshape(len(inputs), -1).all(-1), result.num_evaluations
