"""Robust accuracy: the fraction of examples that a network classifies correctly and that no attack breaks.

It is the worst case over attacks, example by example, so it can only overstate the truth; a diverse set of attacks overstates
it less, and `jaxbp.attacks.autoattack` is such a set. The order of attacks changes the running time only: each attack is tried
on the examples that the attacks before it left, gathered into full batches, so a weak, cheap attack in front saves much time.

Examples vary within a seed: Wilson's interval says how well N examples determine the accuracy of one network. Seeds vary between
networks: `mean_over_seeds` gives Student's interval of their mean, which is the right interval for a claim about training.

>>> import jax, jax.numpy as jnp
>>> from jaxbp import attacks
>>> inputs = jax.random.uniform(jax.random.key(0), (200, 2)); labels = inputs.argmax(-1)
>>> evaluation = attacks.robust_accuracy(lambda x: 3 * x, jax.random.key(1), inputs, labels,
...     {"fgsm": attacks.fgsm(attacks.Threat("linf", 0.1))}, batch_size=50)   # broken where |x1 - x2| <= 0.2
>>> accuracy = evaluation.worst_case
>>> print(f"{accuracy.estimate:.3f} in [{accuracy.low:.3f}, {accuracy.high:.3f}]")
0.655 in [0.587, 0.717]
>>> round(float((jnp.abs(inputs[:, 0] - inputs[:, 1]) > 0.2).mean()), 3)
0.655
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from jaxbp import checks, metrics, stats
from jaxbp.attacks.attack import Attack, LogitsFn, checked_attacks, checked_examples, logits_of, network_of
from jaxbp.attacks.batching import correct_examples, full_batches
from jaxbp.attacks.masking import GradientMaskingCheck, gradient_masking_checks
from jaxbp.attacks.randomised import refuse_coupling
from jaxbp.attacks.threat import Threat


@dataclass(frozen=True)
class RobustEvaluation:
    """The result of `robust_accuracy` for N examples.

    Attributes:
      correct: (N,), whether the network classifies the clean example correctly.
      tried, broken: for each attack (N,), whether it was tried on the example, and whether it made the network err.
      num_evaluations: for each attack, forward passes over all examples.
      gradient_masking_checks: empty where the evaluation did not ask for them.
      adversarial: (N, ...), for each example the input of the first attack that broke it, the example itself where none did.
      threats: the threat of each attack.
    """

    correct: Bool[np.ndarray, " N"]
    tried: dict[str, Bool[np.ndarray, " N"]]
    broken: dict[str, Bool[np.ndarray, " N"]]
    num_evaluations: dict[str, int]
    gradient_masking_checks: tuple[GradientMaskingCheck, ...] = ()
    adversarial: Float[np.ndarray, "N ..."] | None = None
    threats: dict[str, Threat] = field(default_factory=dict)

    @property
    def clean(self) -> stats.Interval:
        """Accuracy without attack, with Wilson's 95 % interval."""
        return _proportion(self.correct)

    @property
    def accuracy(self) -> dict[str, stats.Interval]:
        """Accuracy under each attack: alone if it was tried on all correct examples, else together with all attacks before it."""
        survivors = self.correct.copy()
        intervals = {}
        for name, broken in self.broken.items():
            survivors = survivors & ~broken
            intervals[name] = _proportion(self.correct & ~broken if self.tried[name][self.correct].all() else survivors)
        return intervals

    @property
    def worst_case(self) -> stats.Interval:
        """Robust accuracy: the fraction of examples that are correct and that no attack broke."""
        return _proportion(self.robust)

    @property
    def robust(self) -> Bool[np.ndarray, " N"]:
        """Whether the network classifies each example correctly and no attack broke it."""
        return self.correct & ~np.any([np.zeros_like(self.correct), *self.broken.values()], axis=0)

    def record(self) -> dict[str, Any]:
        """The evaluation in the terms of RobustBench's leaderboard: accuracies in percent, the norm, and epsilon; plain values for JSON.

        Raises:
          ValueError: attacks under different threats, or none.
        """
        threats = {(threat.norm, float(threat.check_epsilon())) for threat in self.threats.values()}
        if len(threats) != 1:
            raise ValueError(f"a record states one norm and one epsilon, got {sorted(threats) or 'no attacks'}: evaluate each threat alone")
        ((norm, epsilon),) = threats
        names = {"linf": "Linf", "l2": "L2", "l1": "L1"}
        return {
            "clean_acc": 100 * self.clean.estimate,
            "robust_acc": 100 * self.worst_case.estimate,
            "robust_acc_low": 100 * self.worst_case.low,
            "robust_acc_high": 100 * self.worst_case.high,
            "norm": names[norm],
            "eps": epsilon,
            "attacks": list(self.broken),
            "num_examples": len(self.correct),
            "warning": self.warning,
        }

    @property
    def masking_suspected(self) -> bool:
        """Whether any check for gradient masking is suspicious."""
        return any(check.suspicious for check in self.gradient_masking_checks)

    @property
    def warning(self) -> str:
        """A sentence to print beside the robust accuracy if masking is suspected, else the empty string."""
        reasons = "; ".join(str(check) for check in self.gradient_masking_checks if check.suspicious)
        return f"Gradients may be masked, and robust accuracy overstated: {reasons}." if reasons else ""


def robust_accuracy(
    logits_fn: LogitsFn,
    key: PRNGKeyArray,
    inputs: Float[ArrayLike, "N ..."],
    labels: Int[ArrayLike, " N"],
    attacks: Mapping[str, Attack],
    *,
    batch_size: int = 128,
    only_survivors: bool = True,
    check_masking: bool = True,
) -> RobustEvaluation:
    """Attack the correctly classified examples, by one attack after another, and count the survivors.

    An example counts as broken if a fresh evaluation of the returned input confirms it. Programs are compiled once for a
    batch of ``batch_size`` and once for each method. Networks and radii share them if ``logits_fn`` is a
    `jax.tree_util.Partial` of a function and its parameters; a plain function is compiled anew in each call.

    Args:
      logits_fn: inputs (N, ...) -> logits (N, C), in evaluation mode.
      key: of all random numbers; an attack's draws for an example depend on the batch that holds the example.
      inputs, labels: floating-point (N, ...) inside the bounds of every threat, and integers (N,).
      attacks: by name, in the order of their use.
      batch_size: examples attacked at a time.
      only_survivors: try an attack only on the examples that the attacks before it left. If False, try each attack on all correct
        examples, so that `RobustEvaluation.accuracy` describes each attack alone; the worst case is the same, up to randomness.
      check_masking: measure `gradient_masking_checks` on the first batch of correct examples, under the first threat.

    Raises:
      ValueError: no examples, inputs outside the bounds, labels that are no class, shapes that do not fit, attacks that are no dict by
        name, more targets than wrong classes, or an attack with ``targets="given"``, whose labels are not the true ones.
      BatchCouplingError: logits of an example depend on the other examples, for instance by batch statistics: the accuracy would depend
        on ``batch_size``. Networks that draw random numbers pass; `gradient_masking_checks` names them.
    """
    checks.refuse_traced("inputs, labels and key", inputs, labels, checks.prng_key(key))
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    network = network_of(logits_fn)
    outputs_fn = functools.partial(logits_of, network)
    inputs, labels = map(np.asarray, checked_examples(outputs_fn, inputs, labels))
    attacks = checked_attacks(attacks, "robust_accuracy", inputs, checks.logits_shape(outputs_fn, inputs)[1])
    refuse_coupling(network, inputs)
    correct = correct_examples(network, inputs, labels, batch_size)
    tried, broken, num_evaluations, worst = {}, {}, {}, inputs.copy()
    survivors = correct.copy()
    for index, (name, attack) in enumerate(attacks.items()):
        tried[name] = (survivors if only_survivors else correct).copy()
        broken[name], num_evaluations[name] = np.zeros(len(inputs), bool), 0
        for batch, (rows, places) in enumerate(full_batches(np.flatnonzero(tried[name]), batch_size)):
            batch_key = jax.random.fold_in(jax.random.fold_in(key, index), batch)
            is_broken, adversarial, evaluations = _try(attack, network, batch_key, inputs[rows], labels[rows])
            broken[name][places] = np.asarray(is_broken)[: len(places)]
            newly = broken[name][places] & survivors[places]
            worst[places[newly]] = np.asarray(adversarial)[: len(places)][newly]
            num_evaluations[name] += int(evaluations) * len(places)
        survivors &= ~broken[name]

    masking: tuple[GradientMaskingCheck, ...] = ()
    if check_masking and attacks and correct.any():
        rows = np.resize(np.flatnonzero(correct), batch_size)  # repeated in turn, which weights examples almost equally
        threat = next(iter(attacks.values())).threat
        masking = gradient_masking_checks(
            network,
            jax.random.fold_in(key, len(attacks)),
            inputs[rows],
            labels[rows],
            threat,
            gradient_free_share=_only_without_gradients(attacks, tried, broken),
        )
    threats = {name: attack.threat for name, attack in attacks.items()}
    return RobustEvaluation(correct, tried, broken, num_evaluations, masking, worst, threats)


def mean_over_seeds(evaluations: Sequence[RobustEvaluation]) -> dict[str, stats.Interval]:
    """Student's 95 % interval of the mean over seeds of "clean", of each attack's accuracy and of "worst_case".

    Raises:
      SampleError: fewer than two seeds.
      ValueError: seeds with different attacks.
    """
    tables = [
        {name: interval.estimate for name, interval in {"clean": e.clean, **e.accuracy, "worst_case": e.worst_case}.items()}
        for e in evaluations
    ]
    if len({tuple(table) for table in tables}) > 1:
        raise ValueError(f"all seeds must have the same attacks, got {sorted({tuple(table) for table in tables})}")
    names = list(tables[0]) if tables else ["clean"]
    return {name: stats.t_interval([table[name] for table in tables]) for name in names}


def _proportion(flags: np.ndarray) -> stats.Interval:
    return stats.wilson_interval(flags.sum(), len(flags))


def _only_without_gradients(
    attacks: Mapping[str, Attack], tried: Mapping[str, np.ndarray], broken: Mapping[str, np.ndarray]
) -> float | None:
    """Fraction of examples that gradient attacks faced and only gradient-free attacks broke; None unless both kinds were tried."""
    kinds = {kind: [broken[n] for n, a in attacks.items() if a.gradient_free == kind] for kind in (False, True)}
    if not (kinds[False] and kinds[True]):
        return None
    faced = np.any([tried[n] for n, a in attacks.items() if not a.gradient_free], axis=0)
    return float((faced & np.any(kinds[True], axis=0) & ~np.any(kinds[False], axis=0)).mean())


@jax.jit
def _try(
    attack: Attack, logits_fn: LogitsFn, key: jax.Array, inputs: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Whether a fresh evaluation confirms each mistake, the adversarial inputs, and the evaluations."""
    result = attack(logits_fn, key, inputs, labels)
    still_right = metrics.accuracy(logits_fn(result.adversarial), labels) > 0
    is_finite = jnp.isfinite(result.adversarial).reshape(len(inputs), -1).all(-1)
    return ~still_right & is_finite, result.adversarial, result.num_evaluations
