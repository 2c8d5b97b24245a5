"""From finished pieces of work to tidy rows and verdicts."""

import functools
from collections.abc import Iterator

import numpy as np

from experiments.norm_bias import claims, measure
from experiments.norm_bias.settings import BIAS, DECAY, NONE, Case
from jaxbp import lab, stats
from jaxbp.claims import Verdict, judge


class Results(lab.Results):
    """Reads a finished run."""

    @functools.cache  # noqa: B019 - lives as long as the program
    def get(self, case: Case, stage: str) -> dict[str, np.ndarray]:
        """What a stage of a case has measured."""
        return self.store.get(measure.piece_name(case, stage))

    def compared(self, case: Case, arm: str, name: str) -> np.ndarray:
        """A measurement of the comparison for one arm, seeds first."""
        return self.get(case, "compare")[name][measure.arms_of(case).index(arm)]

    def gain(self, case: Case, arm: str, over: str) -> np.ndarray:
        """Test accuracy of an arm minus that of another, percentage points within pairs, (S,)."""
        return self.compared(case, arm, "test_accuracy") - self.compared(case, over, "test_accuracy")

    def norm_ratio(self, case: Case) -> np.ndarray:
        """log2 of the final norm with norm-bias over that with weight decay, (S,)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log2(self.compared(case, BIAS, "norm")[:, -1] / self.compared(case, DECAY, "norm")[:, -1])


def verdicts(results: Results) -> list[Verdict]:
    """Judge S2.a to S2.e."""
    cases = results.settings.cases
    decay = {case.name: results.gain(case, DECAY, NONE) for case in cases}
    bias = {case.name: results.gain(case, BIAS, DECAY) for case in cases}
    without_norm = {case.name: bias[case.name] for case in cases if not case.batch_norm}
    return [
        judge(claims.S2A, decay),
        judge(claims.S2B, bias),
        judge(claims.S2C, bias),
        judge(claims.S2D, without_norm),
        judge(claims.S2E, {case.name: results.norm_ratio(case) for case in cases}),
    ]


def rows(results: Results) -> Iterator[tuple[str, str, int, int, str, float]]:
    """Everything measured: case, arm, seed, step, measure and value of each row; the step is the epoch."""
    settings = results.settings
    for case in settings.cases:
        tuned = results.get(case, "tune")
        for name, values in (("validation_accuracy", tuned["accuracy"]), ("final_norm", tuned["final norm"])):
            for (coefficient, mu), of_seeds in zip(tuned["arms"], values, strict=True):
                arm = f"tuning, coefficient {coefficient:.3g}, mu {mu:.3g}"
                for seed, value in zip(settings.tuning_seeds, of_seeds, strict=True):
                    yield case.name, arm, seed, settings.num_epochs, name, float(value)
        scanned = results.get(case, "scan")
        for mu, of_seeds in zip(scanned["mu"], scanned["accuracy"], strict=True):
            for seed, value in zip(settings.tuning_seeds, of_seeds, strict=True):
                yield case.name, f"scan, mu {mu:.3g}", seed, settings.num_epochs, "validation_accuracy", float(value)
        for arm in measure.arms_of(case):
            for seed, value in zip(settings.seeds, results.compared(case, arm, "test_accuracy"), strict=True):
                yield case.name, arm, seed, settings.num_epochs, "test_accuracy", float(value)
            for name in measure.CURVES:
                for seed, curve in zip(settings.seeds, results.compared(case, arm, name), strict=True):
                    for epoch, value in zip(settings.measure_epochs, curve, strict=True):
                        yield case.name, arm, seed, epoch, name, float(value)


def p_values(results: Results, arm: str, over: str) -> dict[str, float]:
    """Two-sided p values of paired differences over cases, adjusted by Holm."""
    found = {case.name: stats.p_value(results.gain(case, arm, over)) for case in results.settings.cases}
    return dict(zip(found, map(float, stats.holm(list(found.values()))), strict=True))
