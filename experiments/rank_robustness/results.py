"""From finished pieces of work to tidy rows and verdicts."""

import functools
import itertools
from collections.abc import Iterator

import numpy as np

from experiments.rank_robustness import claims, measure
from experiments.rank_robustness.settings import (
    ADVERSARIAL,
    ALONE,
    ARMS,
    NATURAL,
    RANK_MAX,
    RANK_MIN,
    TRAININGS,
    UNTRAINED,
    Case,
    Settings,
)
from jaxbp import lab
from jaxbp.claims import Verdict, judge


class Results(lab.Results):
    """Reads a finished run; everything comes with seeds first."""

    @functools.cache  # noqa: B019 - lives as long as the program
    def get(self, case: Case, kind: str, name: str) -> np.ndarray:
        """A measurement of a network and a kind of training, over all seeds."""
        return np.stack([self.store.get(measure.piece_name(case, kind, seed))[name] for seed in self.settings.seeds])

    def of_arm(self, case: Case, kind: str, arm: str, name: str) -> np.ndarray:
        """One arm of a measurement that is over arms."""
        return self.get(case, kind, name)[:, ARMS.index(arm)]

    def layers(self, case: Case) -> list[str]:
        """Names of the layers that are treated."""
        return [str(name) for name in self.get(case, NATURAL, "layers")[0]]

    def log_rank(self, case: Case, kind: str, arm: str) -> np.ndarray:
        """log2 of the effective rank, mean over layers, (S,); ``arm`` may be `UNTRAINED`."""
        ranks = self.get(case, kind, "untrained rank") if arm == UNTRAINED else self.of_arm(case, kind, arm, "rank")
        with np.errstate(divide="ignore", invalid="ignore"):  # a network that diverged has none
            return np.log2(ranks).mean(1)

    def change(self, case: Case, kind: str, arm: str, name: str, at: int | None = None) -> np.ndarray:
        """A measurement of an arm minus that of the network left alone, within pairs, (S,)."""
        difference = self.of_arm(case, kind, arm, name) - self.of_arm(case, kind, ALONE, name)
        losses = self.of_arm(case, kind, arm, "loss") + self.of_arm(case, kind, ALONE, "loss")
        difference[~np.isfinite(losses)] = np.nan  # a network that diverged has an accuracy of 0, which compares nothing
        return difference if at is None else difference[:, at]


def robust_cases(settings: Settings) -> tuple[tuple[str, int, str], ...]:
    """Where robustness is judged: kind of training, index of the radius, and both in words.

    Naturally trained networks have little left to lose at the larger radius.
    """
    radii = settings.small_radius, settings.radius
    chosen = ((NATURAL, 0), (ADVERSARIAL, 0), (ADVERSARIAL, 1))
    return tuple((kind, at, f"{kind}, radius {radii[at]:.3g}") for kind, at in chosen)


def verdicts(results: Results) -> list[Verdict]:
    """Judge S4.a to S4.e."""
    cases = results.settings.cases
    ranks, clean = {}, {}
    for case, kind, arm in itertools.product(cases, TRAININGS, (RANK_MIN, RANK_MAX)):
        name = f"{case.name}, {kind}, {arm}"
        difference = results.log_rank(case, kind, arm) - results.log_rank(case, kind, ALONE)
        ranks[name] = -difference if arm == RANK_MIN else difference
        clean[name] = results.change(case, kind, arm, "clean")
    robust = {
        f"{case.name}, {words}": results.change(case, kind, RANK_MIN, "strongest", at)
        for case in cases
        for kind, at, words in robust_cases(results.settings)
    }
    adversarial = {case.name: results.log_rank(case, ADVERSARIAL, ALONE) - results.log_rank(case, NATURAL, ALONE) for case in cases}
    untrained = {
        f"{case.name}, {kind}": results.log_rank(case, kind, UNTRAINED) - results.log_rank(case, kind, ALONE)
        for case, kind in itertools.product(cases, TRAININGS)
    }
    judged = zip(
        (claims.S4A, claims.S4B, claims.S4C, claims.S4D, claims.S4E),
        (ranks, clean, robust, adversarial, untrained),
        strict=True,
    )
    return [judge(claim, values) for claim, values in judged]


def rows(results: Results) -> Iterator[tuple[str, str, int, int, str, float]]:
    """Everything measured: case, arm, seed, step, measure and value of each row; the step is the epoch of fine-tuning."""
    settings = results.settings
    for case, kind in itertools.product(settings.cases, TRAININGS):
        for arm, (row, seed) in itertools.product(ARMS, enumerate(settings.seeds)):
            for step, name, value in _of_run(results, case, kind, arm, row):
                yield case.name, f"{kind}, {arm}", seed, step, name, float(value)
        for row, seed in enumerate(settings.seeds):
            for layer, value in zip(results.layers(case), results.get(case, kind, "untrained rank")[row], strict=True):
                yield case.name, f"{kind}, {UNTRAINED}", seed, 0, f"effective_rank, {layer}", float(value)


def _of_run(results: Results, case: Case, kind: str, arm: str, row: int) -> Iterator[tuple[int, str, float]]:
    """Step, measure and value of each number of one run."""
    settings = results.settings
    end = settings.num_fine_tuning

    def take(name: str) -> np.ndarray:
        return results.of_arm(case, kind, arm, name)[row]

    yield end, "train_loss", take("loss")
    yield end, "train_accuracy", take("train accuracy")
    yield end, "test_accuracy", take("clean")
    for radius, value in zip(settings.curve, take("curve"), strict=True):
        yield end, f"accuracy, PGD-20, radius {radius:.4g}", value
    for at, radius in enumerate((settings.small_radius, settings.radius)):
        yield end, f"accuracy, strongest attack, radius {radius:.4g}", take("strongest")[at]
        yield end, f"masking_suspected, radius {radius:.4g}", take("masked")[at]
    for epoch, of_layers in zip(settings.measure_epochs, take("ranks along"), strict=True):
        for layer, value in zip(results.layers(case), of_layers, strict=True):
            yield epoch, f"effective_rank, {layer}", value
