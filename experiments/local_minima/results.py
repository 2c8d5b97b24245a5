"""From finished pieces of work to tidy rows and verdicts."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from experiments.local_minima import claims, measure
from experiments.local_minima.settings import BOLD, DEFAULT, EMBEDDED, GENTLE, MOMENTUM_INIT, PLAIN, SHIFTED, Case
from jaxbp import lab, stats
from jaxbp.claims import Verdict, judge

_STAYS = 0.1  # share of the gap between the embedded minimum and default training
_WORSE = 2.0  # a point is far worse from this many times the other's loss


class Results(lab.Results):
    """Reads a finished run; every per-seed array has the seeds first."""

    @functools.cache  # noqa: B019 - lives as long as the program
    def _get(self, name: str) -> dict[str, np.ndarray]:
        return self.store.get(name)

    def embedded(self, case: Case, field: str) -> np.ndarray:
        """A field of the embedding's pieces, (S,)."""
        return np.array([self._get(measure.embed_name(case, s))[field] for s in self.settings.seeds])

    def proven(self, case: Case) -> np.ndarray:
        """1 where the embedded point is proven a local minimum, (S,)."""
        return (self.embedded(case, "status") == "proven").astype(float)

    def training(self, case: Case, arm: str) -> dict[str, np.ndarray]:
        """An arm's curves, each (S, E), and its ``epochs`` (E,)."""
        return self._get(measure.train_name(case, arm))

    def final_loss(self, case: Case, arm: str) -> np.ndarray:
        """Training loss at the end of an arm, (S,); not finite where it diverged."""
        return self.training(case, arm)["train_loss"][:, -1].astype(float)

    def ends(self, case: Case, arm: str, field: str) -> np.ndarray:
        """A field of the end points' certificates, one for each certified seed."""
        return np.array([self._get(measure.end_name(case, arm, s))[field] for s in self.settings.certified_seeds(case)])

    def starts(self, case: Case, arm: str, field: str) -> np.ndarray:
        """A field of the starting points' certificates, for the first seeds."""
        seeds = range(self.settings.num_densities)
        return np.array([self._get(measure.start_name(case, arm, s))[field] for s in seeds])

    def kicks(self, case: Case) -> dict[str, np.ndarray]:
        """Trainings from kicked minima: ``kicks`` (R,), ``start_loss`` and ``end_loss`` (S, R)."""
        return self._get(measure.kick_name(case))

    def escaped(self, case: Case) -> np.ndarray:
        """Whether training from a kicked minimum got more than half of the way down to default training's loss, (S, R)."""
        half = 0.5 * (self.embedded(case, "loss") + self.final_loss(case, DEFAULT))
        return self.kicks(case)["end_loss"] < half[:, None]

    def density(self, case: Case, arm: str) -> list[dict[str, np.ndarray]]:
        """Spectral densities of the first seeds."""
        return [self._get(measure.density_name(case, arm, s)) for s in range(self.settings.num_densities)]

    def slice(self, case: Case) -> dict[str, np.ndarray]:
        """The two-dimensional slice."""
        return self._get(measure.slice_name(case))

    @property
    def trained_cases(self) -> list[Case]:
        """Cases with trainings."""
        return [case for case in self.settings.cases if case.arms]

    def closed_gap(self, case: Case, arm: str) -> np.ndarray:
        """Share of the gap between the embedded minimum and default training that ``arm`` closed, (S,); NaN without a gap."""
        top = self.embedded(case, "loss")
        gap = top - self.final_loss(case, DEFAULT)
        return np.where(gap > 0, (top - self.final_loss(case, arm)) / gap, np.nan)

    def stays(self, case: Case, arm: str) -> np.ndarray:
        """1 where ``arm`` ended within a tenth of the gap of the embedded minimum's loss, below or above it, (S,)."""
        moved = self.closed_gap(case, arm)
        unknown = ~np.isfinite(self.final_loss(case, DEFAULT)) | (np.isnan(moved) & np.isfinite(self.final_loss(case, arm)))
        return np.where(unknown, np.nan, np.abs(moved) < _STAYS)

    def progress(self, case: Case, arm: str) -> np.ndarray:
        """Final loss on a scale from the best constant's (0) to default training's (1), (S,); 0 for divergence."""
        top = self.embedded(case, "constant_loss")
        share = (top - self.final_loss(case, arm)) / (top - self.final_loss(case, DEFAULT))
        return np.clip(np.nan_to_num(share, nan=0.0, posinf=0.0, neginf=0.0), 0.0, 1.0)

    def ends_badly(self, case: Case, arm: str) -> np.ndarray:
        """1 where the arm ended, without diverging, at over twice default training's loss, (S,)."""
        final, reference = self.final_loss(case, arm), self.final_loss(case, DEFAULT)
        return np.where(np.isfinite(reference), np.isfinite(final) & (final > _WORSE * reference), np.nan).astype(float)


def verdicts(results: Results) -> list[Verdict]:
    """Judge S1.a to S1.e."""
    trained = results.trained_cases
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = {c.name: np.log2(results.embedded(c, "loss") / results.final_loss(c, DEFAULT)) for c in trained if DEFAULT in c.arms}
        stays = _over_arms(trained, (EMBEDDED, GENTLE), results.stays)
        badly = _over_arms(trained, SHIFTED, results.ends_badly)
        helped = _momentum_gains(results)
    return [
        judge(claims.S1A, {c.name: results.proven(c) for c in results.settings.cases}, interval_fn=stats.event_interval),
        judge(claims.S1B, ratio),
        judge(claims.S1C, stays, interval_fn=stats.event_interval),
        judge(claims.S1D, badly, interval_fn=stats.event_interval),
        judge(claims.S1E, helped),
    ]


def _over_arms(cases: list[Case], arms: tuple[str, ...], value_fn: Callable[[Case, str], np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{c.name}: {arm}": value_fn(c, arm) for c in cases for arm in arms if arm in c.arms}


def _momentum_gains(results: Results) -> dict[str, np.ndarray]:
    """Progress with momentum minus without, at the same step size and at the same effective one, step / (1 - momentum)."""
    gains = {}
    for case in results.trained_cases:
        for suffix, label in ((PLAIN, "same step size"), (BOLD, "same effective step size")):
            arm = f"{MOMENTUM_INIT}, {suffix}"
            if arm in case.arms:
                gains[f"{case.name}: {label}"] = results.progress(case, MOMENTUM_INIT) - results.progress(case, arm)
    return gains


def rows(results: Results) -> Iterator[tuple[str, str, int, int, str, float]]:
    """Everything measured: case, arm, seed, step, measure and value of each row."""
    settings = results.settings
    for case in settings.cases:
        for seed in settings.seeds:
            yield from _point(results, case, "embedded minimum", seed, 0, measure.embed_name(case, seed))
        for arm in case.arms:
            yield from _curves(results, case, arm)
            for seed in settings.seeds:
                yield from _point(results, case, arm, seed, 0, measure.start_name(case, arm, seed))
                yield from _point(results, case, arm, seed, case.num_epochs, measure.end_name(case, arm, seed))
        if measure.kick_name(case) in results.store:
            yield from _kicks(results, case)
        for arm, seed in [(arm, seed) for arm in (EMBEDDED, DEFAULT) for seed in range(settings.num_densities)]:
            name = measure.density_name(case, arm, seed)
            if name in results.store:
                density = results.store.get(name)
                for field in ("nodes", "weights"):
                    for step, value in enumerate(density[field].ravel()):
                        yield case.name, arm, seed, step, f"spectral density, {field}", float(value)
        if measure.slice_name(case) in results.store:
            for step, value in enumerate(results.slice(case)["losses"].ravel()):
                yield case.name, "slice", 0, step, "train_loss", float(value)


def _point(results: Results, case: Case, arm: str, seed: int, step: int, name: str) -> Iterator[tuple]:
    """A certificate's numbers; words become a measure of value 1."""
    if name not in results.store:
        return
    for field, value in results.store.get(name).items():
        if field in ("status", "class"):
            yield case.name, arm, seed, step, f"{field}: {value}", 1.0
        elif field not in ("params", "reasons"):
            yield case.name, arm, seed, step, field, float(value)


def _curves(results: Results, case: Case, arm: str) -> Iterator[tuple]:
    found = results.training(case, arm)
    for field in ("train_loss", "train_accuracy"):
        for seed, curve in zip(results.settings.seeds, found[field], strict=True):
            for epoch, value in zip(found["epochs"], curve, strict=True):
                yield case.name, arm, seed, int(epoch), field, float(value)


def _kicks(results: Results, case: Case) -> Iterator[tuple]:
    found = results.kicks(case)
    for i, kick in enumerate(found["kicks"]):
        for seed in results.settings.seeds:
            yield case.name, f"kick {kick:g}", seed, 0, "train_loss", float(found["start_loss"][seed, i])
            yield case.name, f"kick {kick:g}", seed, case.num_epochs, "train_loss", float(found["end_loss"][seed, i])


def shares(values: np.ndarray) -> dict[str, Any]:
    """How often each word occurs, most frequent first."""
    words, counts = np.unique(values, return_counts=True)
    return {str(words[i]): int(counts[i]) for i in np.argsort(-counts)}
