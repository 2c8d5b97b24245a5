"""The measurements of Study 2, as named pieces of work.

For each case three pieces: ``tune`` trains the unregularised network, takes its final norm as the unit of norm-bias's, and
tries both grids on validation data; ``scan`` trains with the chosen coefficient and a range of norms; ``compare`` trains
all arms on seeds of their own and evaluates them, once, on the test set. All runs of a case are one compiled program: an
arm is a coefficient and a norm.
"""

import functools
import itertools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.norm_bias.settings import ARMS, BIAS, DECAY, Case, Settings
from jaxbp import data, lab, losses, metrics, models, norms, sweep, training
from jaxbp.data import augment
from jaxbp.lab import Piece
from jaxbp.runtime.store import Store

_STAGES = ("tune", "compare", "scan")  # the longer of the two that remain comes first
CURVES = ("train_loss", "norm", "kernel_norm", "effective_learning_rate", "angle")


class Arm(NamedTuple):
    """One setting of the regulariser: norm-bias of ``coefficient`` towards the norm ``mu``; mu = 0 is weight decay."""

    coefficient: float
    mu: float


def piece_name(case: Case, stage: str) -> str:
    """Name of one of the three pieces of a case."""
    return f"{case.name}; {stage}"


def pieces(settings: Settings, store: Store, data_dir: Path | None) -> list[Piece]:
    """All the work of the study; each case is tuned before the rest, of which no piece waits for another."""
    lab = Lab(settings, store, data_dir)
    ordered = sorted(settings.cases, key=lambda case: -_cost(case))
    tuning = settings.num_tuning_seeds * (1 + 2 * len(settings.decay_grid))
    num_runs = {"tune": tuning, "scan": settings.num_tuning_seeds * len(settings.scan_ratios)}
    todo = []
    for stage, case in itertools.product(_STAGES, ordered):
        runs = num_runs.get(stage, settings.num_seeds * len(arms_of(case)))
        compute = functools.partial(getattr(lab, stage), case)
        group = "tune" if stage == "tune" else "tuned"
        todo.append(Piece(piece_name(case, stage), compute, weight=runs * _cost(case), group=group))
    return todo


def arms_of(case: Case) -> tuple[str, ...]:
    """The arms that are compared: those that were tuned and, where there are any, the published ones."""
    return (*ARMS, *(f"{arm}, published" for arm in (DECAY, BIAS) if case.published))


def _cost(case: Case) -> float:
    """A rough guess of the time of a run, good enough for the time left."""
    return 1.0 if case.model == "mlp" else 8.0


class Lab:
    """The data, and the pieces of work on them."""

    def __init__(self, settings: Settings, store: Store, data_dir: Path | None):
        self.settings, self.store, self.data_dir = settings, store, data_dir

    @functools.cache  # noqa: B019 - lives as long as the program
    def dataset(self, case: Case) -> data.Dataset:
        """The data, split alike for all seeds: no test example is ever validated on."""
        return data.load(case.dataset, seed=0, normalise=case.normalise, validation=self.settings.validation, data_dir=self.data_dir)

    def tune(self, case: Case) -> Mapping[str, np.ndarray]:
        """Validation accuracy of every setting, (settings, seeds), and the settings that won."""
        settings = self.settings
        plain = self._trained(case, [Arm(0.0, 0.0)], settings.tuning_seeds)
        unit = float(np.mean(plain["norm"][0, :, -1]))
        decay = [Arm(coefficient, 0.0) for coefficient in settings.decay_grid]
        bias = [Arm(c, ratio * unit) for c, ratio in itertools.product(settings.bias_grid, settings.norm_ratios)]
        found = self._trained(case, decay + bias, settings.tuning_seeds)
        accuracy = self._accuracies(case, found, "validation")
        means = np.split(accuracy.mean(1), [len(decay)])
        chosen = [arms[int(np.argmax(mean))] for arms, mean in zip((decay, bias), means, strict=True)]  # first of equals
        return {
            "arms": np.array(decay + bias),
            "accuracy": accuracy,
            "plain accuracy": self._accuracies(case, plain, "validation"),
            "final norm": found["norm"][:, :, -1],
            "plain norm": np.array(unit),
            "chosen": np.array(chosen),
        }

    def scan(self, case: Case) -> Mapping[str, np.ndarray]:
        """Validation accuracy and final norm over the norm wanted, (ratios, seeds), with norm-bias's coefficient."""
        tuned = self.store.get(piece_name(case, "tune"))
        coefficient, unit = float(tuned["chosen"][1][0]), float(tuned["plain norm"])
        arms = [Arm(coefficient, ratio * unit) for ratio in self.settings.scan_ratios]
        found = self._trained(case, arms, self.settings.tuning_seeds)
        return {
            "mu": np.array([arm.mu for arm in arms]),
            "accuracy": self._accuracies(case, found, "validation"),
            "final norm": found["norm"][:, :, -1],
        }

    def compare(self, case: Case) -> Mapping[str, np.ndarray]:
        """Test accuracy, (arms, seeds), and curves along training, (arms, seeds, times)."""
        decay, bias = (Arm(*map(float, arm)) for arm in self.store.get(piece_name(case, "tune"))["chosen"])
        arms = [Arm(0.0, 0.0), decay, bias]
        if case.published:
            squared_norm, coefficient, usual = case.published
            arms += [Arm(usual, 0.0), Arm(coefficient, squared_norm**0.5)]
        found = self._trained(case, arms, self.settings.seeds)
        curves = {name: found[name] for name in CURVES}
        return curves | {"test_accuracy": self._accuracies(case, found, "test"), "arms": np.array(arms)}

    def _trained(self, case: Case, arms: Sequence[Arm], seeds: range) -> dict[str, Any]:
        """All arms on all seeds: curves and final "params" and "state", with axes (arms, seeds, ...)."""
        train = self.dataset(case).train
        pairs = list(itertools.product(arms, seeds))
        runs = {
            "key": jnp.stack([self._key(case, seed) for _, seed in pairs]),
            "rows": jnp.stack([self._rows(case, seed) for _, seed in pairs]),
            "coefficient": jnp.array([arm.coefficient for arm, _ in pairs]),
            "mu": jnp.array([arm.mu for arm, _ in pairs]),
        }
        plan = "loop" if lab.device().platform == "cpu" else "vmap"
        program = _training_program(case, self.settings, self._fill(case), self.dataset(case).num_classes)
        shared = jnp.asarray(train.inputs), jnp.asarray(train.labels)
        result = sweep.evaluate(program, runs, *shared, plan=plan, devices=[lab.device()])
        found = result.measured | {
            "train_loss": result.history["train_loss"],
            "params": result.params,
            "state": result.state,
        }
        return jax.tree.map(lambda a: np.asarray(a).reshape(len(arms), len(seeds), *a.shape[1:]), found)

    def _accuracies(self, case: Case, found: dict[str, Any], part: str) -> np.ndarray:
        """Accuracy in per cent of the trained networks, (arms, seeds); a network that diverged gets what it earns."""
        split, net = getattr(self.dataset(case), part), _network(case, self.dataset(case).num_classes)
        shape = found["norm"].shape[:2]
        inputs, labels = jnp.asarray(split.inputs), jnp.asarray(split.labels)
        every = [float(_accuracy(net, *_at(found, index), inputs, labels)) for index in np.ndindex(*shape)]
        return np.reshape(every, shape)

    def _key(self, case: Case, seed: int) -> jax.Array:
        """The same for all arms, so that they are paired."""
        return jax.random.fold_in(jax.random.key(seed), zlib.crc32(case.name.encode()))

    def _rows(self, case: Case, seed: int) -> np.ndarray:
        """The seed's training examples, classes in proportion."""
        labels = self.dataset(case).train.labels
        if self.settings.num_train is None:
            return np.arange(len(labels))
        return data.stratified_indices(labels, self.settings.num_train, seed=seed)

    def _fill(self, case: Case) -> tuple[float, ...]:
        """What black is, to pad crops with."""
        dataset = self.dataset(case)
        return (0.0,) if dataset.mean is None else tuple((-dataset.mean / dataset.std).tolist())


def _at(found: dict[str, Any], index: tuple[int, ...]) -> Iterator[Any]:
    """Parameters and state of one run."""
    return (jax.tree.map(lambda a: a[index], found[name]) for name in ("params", "state"))


@functools.cache
def _network(case: Case, num_classes: int) -> Any:
    return models.create(case.model, num_classes=num_classes, width=case.width, **dict(case.options))


@functools.partial(jax.jit, static_argnums=0)
def _accuracy(net: Any, params: Any, state: Any, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    logits = models.stateful_apply_fn(net, train=False)(params, inputs, state)
    return 100 * metrics.accuracy(logits, labels).mean()


@functools.cache
def _training_program(case: Case, settings: Settings, fill: tuple[float, ...], num_classes: int) -> Callable:
    """One training as a pure function of a run and the training part; the same object for equal arguments."""
    net = _network(case, num_classes)

    def train(one: dict[str, Any], inputs: jax.Array, labels: jax.Array) -> training.TrainResult:
        init_key, order_key = jax.random.split(one["key"])
        params, state = models.initialise(net, init_key, inputs[:1])
        steps = training.num_steps(one["rows"].shape[0], settings.num_epochs, settings.batch_size)
        rate_at = optax.cosine_decay_schedule(case.learning_rate, steps)
        optimizer = optax.chain(
            training.sgd(
                case.learning_rate, momentum=settings.momentum, decay_steps=steps,
                regulariser=norms.norm_bias(one["coefficient"], one["mu"]),
            ),
            norms.watch_angles(),
        )  # fmt: skip
        return training.train(
            models.stateful_apply_fn(net, train=False), params, optimizer, (inputs[one["rows"]], labels[one["rows"]]),
            order_key, loss_fn=losses.cross_entropy, num_epochs=settings.num_epochs, batch_size=settings.batch_size,
            measure_epochs=settings.measure_epochs, measure_fn=functools.partial(_norms, rate_at), state=state,
            train_fn=models.stateful_apply_fn(net, train=True),
            augment_fn=augment.crop_and_flip(settings.crop, flip=settings.flip, fill=fill) if settings.crop else None,
        )  # fmt: skip

    return train


def _norms(rate_at: optax.Schedule, now: training.TrainState) -> dict[str, jax.Array]:
    """Norms, and what they do to layers that a normalisation follows: means over kernels, geometric for rates.

    A kernel that is 0, as Fixup starts some, has no effective rate.
    """
    rates = norms.effective_learning_rates(now.params, rate_at(optax.tree.get(now.opt_state, "count")))
    logarithms = jnp.where(jnp.isfinite(rates), jnp.log(rates), jnp.nan)
    return {
        "norm": jnp.sqrt(norms.squared_norm(now.params)),
        "kernel_norm": jnp.sqrt(norms.squared_norm(now.params, norms.kernels_only)),
        "effective_learning_rate": jnp.exp(jnp.nanmean(logarithms)),
        "angle": norms.angular_updates(now.opt_state).mean(),
    }
