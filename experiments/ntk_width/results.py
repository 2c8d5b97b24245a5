"""From finished pieces of work to tidy rows and verdicts."""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.ntk_width import claims, measure
from experiments.ntk_width.settings import BATCH, CALIBRATED, STORED, Network
from jaxbp import lab, stats
from jaxbp.claims import Verdict, judge


class Results(lab.Results):
    """Reads a finished run; every per-seed array has the seeds first."""

    @functools.cache  # noqa: B019 - lives as long as the program
    def _get(self, name: str) -> dict[str, np.ndarray]:
        return self.store.get(name)

    @property
    def trained(self) -> list[Network]:
        """Networks with trainings."""
        return [network for network in self.settings.networks if network.trained]

    @property
    def exact(self) -> list[Network]:
        """Networks that are compared with an exact kernel."""
        return [network for network in self.settings.networks if network.exact]

    def training(self, network: Network, width: int) -> dict[str, np.ndarray]:
        """All measurements of a width, the groups of seeds joined; those without seeds are of the first seed."""
        parts = [self._get(measure.train_name(network, width, group)) for group in self.settings.groups]
        single = {"kernel before", "kernel after", "epochs"}
        return {name: parts[0][name] if name in single else np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def change(self, network: Network, name: str, mode: str = STORED) -> np.ndarray:
        """A measure of the kernel after training against the one before, (S, W) over widths."""
        return np.stack([self.training(network, width)[f"{mode}: {name}"][:, -1] for width in network.widths], 1)

    def field(self, network: Network, name: str) -> np.ndarray:
        """Any measurement with one number a seed, or the last of a curve, (S, W)."""
        found = [self.training(network, width)[name] for width in network.widths]
        return np.stack([values if values.ndim == 1 else values[:, -1] for values in found], 1)

    def distance(self, network: Network, mode: str, name: str = "distance") -> np.ndarray:
        """Relative distance of fresh networks' kernels to the exact one, (S, W)."""
        return np.stack([self._get(measure.exact_name(network, width))[f"{mode}: {name}"] for width in network.widths], 1)

    def exact_kernels(self, network: Network) -> dict[str, np.ndarray]:
        """The exact kernel and that of the widest fresh network, (N, N)."""
        return self._get(measure.exact_name(network, network.widths[-1]))

    def regression(self, network: Network) -> dict[str, float] | None:
        """Test accuracy by kernel, if it was measured."""
        name = measure.regression_name(network)
        if name not in self.store:
            return None
        found = self._get(name)
        return dict(zip(found["names"].tolist(), found["accuracies"].tolist(), strict=True))

    def correlation_slopes(self, network: Network, mode: str) -> np.ndarray:
        """Each seed's change of the correlation per doubling of width, (S,); NaN for a seed that diverged."""
        return _slopes(network.widths, self.change(network, "correlation", mode))

    def cell(self, skip: bool, batch_norm: bool) -> Network | None:
        """The trained ResNet of a cell of the factorial."""
        cells = [n for n in self.trained if (n.model, n.skip, n.batch_norm) == ("resnet", skip, batch_norm)]
        return cells[0] if cells else None

    def interaction(self, mode: str) -> np.ndarray:
        """Interaction of skips and BatchNorm in the slopes of the correlation, (S,), BatchNorm in ``mode``."""
        cells = {(s, b): self.cell(s, b) for s in (True, False) for b in (True, False)}
        slopes = {key: self.correlation_slopes(n, mode if key[1] else STORED) for key, n in cells.items()}
        return slopes[True, True] - slopes[False, True] - slopes[True, False] + slopes[False, False]


def _slopes(widths: tuple[int, ...], values: np.ndarray, *, log_values: bool = False) -> np.ndarray:
    """`stats.slopes` of the seeds that have them; NaN for the others, which then stand in the way of a verdict."""
    usable = np.isfinite(values).all(1) & ((values > 0).all(1) | (not log_values))
    found = np.full(len(values), np.nan)
    if usable.sum() >= 2:
        found[usable] = stats.slopes(widths, values[usable], log_values=log_values)
    return found


def verdicts(results: Results) -> list[Verdict]:
    """Judge S3.a to S3.f."""
    plain = [n for n in results.trained if n.model in ("mlp", "convnet")]
    both = results.cell(True, True)
    modes = (STORED, CALIBRATED, BATCH)
    falls = {f"{m} statistics": results.correlation_slopes(both, m) for m in modes} if both else {}
    interaction = {f"{m} statistics": results.interaction(m) for m in modes} if both else {}
    with np.errstate(invalid="ignore", divide="ignore"):
        rescaling = {n.name: results.change(n, "share of rescaling").mean(1) for n in results.trained}
    rates = {
        f"{n.name}{f', {m} statistics' if n.batch_norm else ''}": _slopes(n.widths, results.distance(n, m), log_values=True)
        for n in results.exact
        for m in n.modes
    }
    with_norm = {f"{n.name}, {m} statistics" for n in results.exact if n.batch_norm for m in n.modes}
    return [
        judge(claims.S3A, {n.name: results.correlation_slopes(n, STORED) for n in plain}),
        judge(claims.S3B, falls),
        judge(claims.S3C, interaction),
        judge(claims.S3D, rescaling),
        judge(claims.S3E, {name: values for name, values in rates.items() if name not in with_norm}),
        judge(claims.S3F, {name: values for name, values in rates.items() if name in with_norm}),
    ]


def rows(results: Results) -> Iterator[tuple[str, str, int, int, str, float]]:
    """Everything measured: case, arm, seed, step, measure and value of each row; the arm is the width."""
    for network in results.settings.networks:
        for width in network.widths:
            arm = f"width {width}"
            if network.trained:
                yield from _training_rows(results, network, width, arm)
            if network.exact:
                found = results.store.get(measure.exact_name(network, width))
                for name, values in found.items():
                    if not name.startswith("kernel"):
                        for seed, value in zip(results.settings.seeds, values, strict=True):
                            yield network.name, arm, seed, 0, f"exact, {name}", float(value)
        for kernel, value in (results.regression(network) or {}).items():
            yield network.name, "regression", 0, 0, f"test_accuracy, {kernel}", value


def _training_rows(results: Results, network: Network, width: int, arm: str) -> Iterator[tuple[Any, ...]]:
    found = results.training(network, width)
    epochs = found["epochs"]
    for name, values in found.items():
        if name == "epochs" or name.startswith("kernel"):
            continue
        for seed, row in zip(results.settings.seeds, values, strict=True):
            if row.ndim == 0:
                yield network.name, arm, seed, int(epochs[-1]), name, float(row)
            elif len(row) == len(epochs):
                yield from ((network.name, arm, seed, int(e), name, float(v)) for e, v in zip(epochs, row, strict=True))
            else:  # velocities between epochs, layers, or the two ends
                last = [int(e) for e in epochs[1:]] if name == "velocity" else range(len(row))
                yield from ((network.name, arm, seed, e, name, float(v)) for e, v in zip(last, row, strict=True))
