"""Do bounds for sparse networks hold, and do they explain generalisation?

``compare`` trains the networks of a case, computes every bound of their complexity and of their test error, and a lower bound of the
complexity in between: the better of averaging filters and the trained lower layers, all scaled to norm 1. ``vary`` changes one
hyperparameter at a time, ``squared_error`` trains as the paper does, with strong decay.
"""

import functools
import math
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

from experiments import papers
from experiments.sparse_bounds import claims, nets
from experiments.sparse_bounds.settings import DECAY, DEPTH, EXAMPLES, NOISE, WIDTH, Case, Settings
from jaxbp import bounds, data, lab, losses, models, pac_bayes, report, stats, training
from jaxbp.claims import Above, Below

SPARSE, PATH, UNION, PUBLISHED = "sparse, proven", "sparse, path", "sparse, union", "as published"
PEELING, COUNTING, LOW_RANK, OCCAM, WITNESS = "operator norms", "parameters", "ranks", "32 bits a parameter", "lower bound"
RIVALS = (PEELING, COUNTING, LOW_RANK, OCCAM)
CHANCE = 0.9  # error of guessing one of ten classes
Arm = dict[str, float]


@functools.lru_cache(maxsize=4)
def load(case: Case, settings: Settings) -> data.Dataset:
    """Raw images, split alike for all seeds."""
    return data.load(case.dataset, seed=0, data_dir=settings.data_dir)


def noisy(labels: jax.Array, noise: jax.Array, key: jax.Array, num_classes: int) -> jax.Array:
    """Labels, a share of which is drawn anew."""
    which_key, label_key = jax.random.split(key)
    anew = jax.random.randint(label_key, labels.shape, 0, num_classes)
    return jnp.where(jax.random.uniform(which_key, labels.shape) < noise, anew, labels)


def train(
    key: jax.Array,
    inputs: jax.Array,
    labels: jax.Array,
    *,
    rows: jax.Array,
    noise: jax.Array,
    decay: jax.Array,
    net: models.Network,
    normalised: bool,
    settings: Settings,
    num_epochs: int,
    loss_fn: losses.Loss,
    num_classes: int,
) -> tuple[dict[str, jax.Array], Any]:
    """One run on the examples ``rows``: the labels that it was given, and its filters and last layer."""
    train_key, noise_key = jax.random.split(key)
    given = noisy(labels[rows], noise, noise_key, num_classes)
    steps = training.num_steps(len(rows), 1, settings.batch_size)
    drops = {epoch * steps: 0.1 for epoch in settings.rate_drops}
    schedule = optax.piecewise_constant_schedule(1.0, drops) if drops else None
    optimizer = training.sgd(settings.learning_rate, momentum=settings.momentum, weight_decay=decay, schedule=schedule)
    options = training.Settings(num_epochs=num_epochs, batch_size=settings.batch_size, loss_fn=loss_fn, measure_epochs=[num_epochs])
    trained = nets.with_weight_normalisation(net) if normalised else net
    result = training.train(trained, optimizer, (inputs[rows], given), train_key, options)
    return {"labels": lab.along("example", given)}, nets.kernels(result.params) if normalised else result.params


def train_all(
    case: Case,
    settings: Settings,
    arms: dict[float, Arm],
    *,
    net: models.Network,
    num_train: int,
    num_epochs: int,
    loss_fn: losses.Loss = losses.cross_entropy,
) -> list[list[tuple[Any, np.ndarray, np.ndarray]]]:
    """For each arm and seed (parameters, rows of the training examples, labels that were given)."""
    dataset, seeds = load(case, settings), settings.seeds
    rows = np.stack([data.stratified_indices(dataset.train.labels, num_train, seed=seed) for seed in seeds])
    keys = jnp.stack([jax.random.fold_in(jax.random.key(seed), zlib.crc32(case.dataset.encode())) for seed in seeds])
    fixed = {"normalised": case.normalised, "settings": settings, "num_classes": dataset.num_classes}
    options = fixed | {"net": net, "num_epochs": num_epochs, "loss_fn": loss_fn}
    given, params = lab.sweep(
        functools.partial(train, **options),
        arms=arms,
        seeds=seeds,
        keys=keys,
        per_seed={"rows": rows},
        shared=(jnp.asarray(dataset.train.inputs), jnp.asarray(dataset.train.labels)),
        plan="loop" if lab.device().platform == "cpu" else "vmap",
    )
    given = given.labels.values
    return [
        [(jax.tree.map(lambda leaf, at=(a, s): leaf[at], params), rows[s], given[a, s]) for s in range(len(seeds))]
        for a in range(len(arms))
    ]


class Judged:
    """A trained network with its training examples, margins and errors."""

    def __init__(
        self, dataset: data.Dataset, net: models.Network, params: Any, rows: np.ndarray, given: np.ndarray, chunk_size: int | None
    ):
        self.inputs, self.params, self.num_classes = dataset.train.inputs[rows], params, dataset.num_classes
        logits_fn = functools.partial(jax.jit(net.apply), params)
        splits = self.inputs, dataset.test.inputs
        logits, test_logits = (training.in_chunks(logits_fn, inputs, chunk_size=chunk_size) for inputs in splits)
        self.margins = bounds.margins(logits, given)
        self.train_error = float(np.mean(~(self.margins > 0)))
        self.gap = float(np.mean(test_logits.argmax(1) != dataset.test.labels)) - self.train_error
        self.anatomy = bounds.anatomy(net.apply, params, self.inputs)

    def log_examples(self, bound: bounds.Bound, delta: float) -> float:
        """Logarithm of the number of examples from which on the bound of the test error would say something."""
        return bounds.log_examples_needed(bound, self.margins, delta=delta)

    def log_risk(self, bound: bounds.Bound, delta: float) -> float:
        """Logarithm of the bound of the test error."""
        return bounds.risk(bound, self.margins, delta=delta).log_value


def witness(judged: Judged, stride: int, key: jax.Array, settings: Settings) -> bounds.lower.Estimate:
    """The larger lower bound of the complexity of the class of norms 1: averaging filters, or the trained lower layers."""
    lower_layers = (nets.averages(len(judged.params) - 1, judged.inputs.shape[-1]), bounds.lower.unit_frobenius(judged.params[:-1]))
    estimates = [
        bounds.lower.top_layer(
            judged.inputs,
            1.0,
            judged.num_classes,
            key,
            settings.num_draws,
            features_fn=functools.partial(nets.maps, [*kernels, None], stride=stride),
            chunk_size=settings.chunk_size,
        )
        for kernels in lower_layers
    ]

    def certain(estimate: bounds.lower.Estimate) -> float:
        """The lower end in logarithms; the least of a network that diverged, whose maps may all be zero."""
        return estimate.log_value - 3 * estimate.standard_error / estimate.value if estimate.value > 0 else -math.inf

    return max(estimates, key=certain)


def compare(case: Case, settings: Settings) -> xr.Dataset:
    """Bounds of the complexity and of the test error of trained networks, logarithms to base 10 but for the errors."""
    dataset = load(case, settings)
    net = nets.network(case.depth, case.width, case.stride, dataset.num_classes)
    arms = {0.0: {"noise": 0.0, "decay": 0.0}}
    (runs,) = train_all(case, settings, arms, net=net, num_train=settings.num_train, num_epochs=settings.num_epochs)
    rows = []
    for seed, run in zip(settings.seeds, runs, strict=True):
        judged = Judged(dataset, net, *run, settings.chunk_size)
        estimate = witness(judged, case.stride, jax.random.fold_in(jax.random.key(seed), 1), settings)
        rows.append(_bounds(judged, estimate, settings.delta))
    return xr.concat(rows, xr.IndexVariable("seed", list(settings.seeds)))


def _bounds(judged: Judged, estimate: bounds.lower.Estimate, delta: float) -> xr.Dataset:
    net, inputs = judged.anatomy, judged.inputs
    by_name = {
        PUBLISHED: bounds.sparse(net, inputs, form="published"),
        PATH: bounds.sparse(net, inputs, form="path"),
        UNION: bounds.sparse(net, inputs, form="union"),
        PEELING: bounds.peeling(net, inputs),
        LOW_RANK: bounds.low_rank(net, inputs),
        COUNTING: bounds.counting(net, inputs),
    }
    norms = net.log_norms("frobenius")
    complexities = {WITNESS: estimate.log_value + norms} | {name: bound.log_value for name, bound in by_name.items()}
    risks = {name: judged.log_risk(bound, delta) for name, bound in by_name.items()}
    bits = 32.0 * net.num_parameters
    risks[OCCAM] = math.log(pac_bayes.hoeffding(judged.train_error, len(inputs), bits=bits, delta=delta))
    best = bounds.sparse(net, inputs)
    risks[SPARSE] = judged.log_risk(best, delta)
    needed = {name: judged.log_examples(bound, delta) for name, bound in (by_name | {SPARSE: best}).items()}
    certain = estimate.value - 3 * estimate.standard_error  # norms 1
    return xr.Dataset(
        {
            "complexity": xr.DataArray(list(complexities.values()), {"bound": list(complexities)}) / math.log(10),
            "risk": xr.DataArray(list(risks.values()), {"risk_bound": list(risks)}, ["risk_bound"]) / math.log(10),
            "examples": xr.DataArray(list(needed.values()), {"needed_by": list(needed)}, ["needed_by"]) / math.log(10),
            "factors": xr.DataArray(list(best.factors.values()), {"factor": list(best.factors)}, ["factor"]) / math.log(10),
            "published_over_witness": (by_name[PUBLISHED].log_value - norms - math.log(certain)) / math.log(2),
            "path_over_witness": (by_name[PATH].log_value - norms - math.log(certain)) / math.log(2),
            "sparse_norms": norms / math.log(10),
            "train_error": judged.train_error,
            "gap": judged.gap,
        }
    )


def vary(case: Case, settings: Settings, hyperparameter: str) -> xr.Dataset:
    """Bound of the test error and generalisation gap at the levels of one hyperparameter."""
    levels = settings.levels[hyperparameter]
    runs = _noise_or_decay(case, settings, hyperparameter, levels) if hyperparameter in (NOISE, DECAY) else []
    for level in levels if not runs else ():
        depth = int(level) if hyperparameter == DEPTH else case.depth
        width = int(level) if hyperparameter == WIDTH else settings.varied_width
        num_train = int(level) if hyperparameter == EXAMPLES else settings.varied_train
        runs.append(_varied(case, settings, {level: {"noise": 0.0, "decay": 0.0}}, depth, width, num_train)[0])
    table = {
        "log_risk": [[judged.log_risk(bounds.sparse(judged.anatomy, judged.inputs), settings.delta) for judged in row] for row in runs],
        "gap": [[judged.gap for judged in row] for row in runs],
        "train_error": [[judged.train_error for judged in row] for row in runs],
    }
    names = ["level", "seed"]
    coordinates = {"level": list(map(float, range(len(levels)))), "seed": list(settings.seeds)}
    return xr.Dataset({name: (names, values) for name, values in table.items()}, coordinates)


def _noise_or_decay(case: Case, settings: Settings, hyperparameter: str, levels: Sequence[float]) -> list[list[Judged]]:
    names = ("noise", "decay") if hyperparameter == NOISE else ("decay", "noise")
    arms = {level: {names[0]: level, names[1]: 0.0} for level in levels}
    return _varied(case, settings, arms, case.depth, settings.varied_width, settings.varied_train)


def _varied(case: Case, settings: Settings, arms: dict[float, Arm], depth: int, width: int, num_train: int) -> list[list[Judged]]:
    dataset = load(case, settings)
    net = nets.network(depth, width, 1, dataset.num_classes)
    runs = train_all(case, settings, arms, net=net, num_train=num_train, num_epochs=settings.varied_epochs)
    return [[Judged(dataset, net, *run, settings.chunk_size) for run in row] for row in runs]


def squared_error(case: Case, settings: Settings) -> xr.Dataset:
    """The paper's training, squared error and strong decay: the bound of the test error, and the share of margins below 1."""
    dataset = load(case, settings)
    net = nets.network(case.depth, case.width, case.stride, dataset.num_classes)
    arms = {decay: {"noise": 0.0, "decay": decay} for decay in settings.mse_decays}
    options = {"num_train": settings.num_train, "num_epochs": settings.mse_epochs, "loss_fn": losses.squared_error}
    runs = [[Judged(dataset, net, *run, settings.chunk_size) for run in row] for row in train_all(case, settings, arms, net=net, **options)]
    values = {
        "log10_risk": [[j.log_risk(bounds.sparse(j.anatomy, j.inputs), settings.delta) / math.log(10) for j in row] for row in runs],
        "log10_published": [
            [j.log_risk(bounds.sparse(j.anatomy, j.inputs, form="published"), settings.delta) / math.log(10) for j in row] for row in runs
        ],
        "norms": [[math.exp(j.anatomy.log_norms("frobenius")) for j in row] for row in runs],
        "below_one": [[float(np.mean(j.margins < 1)) for j in row] for row in runs],
        "train_error": [[j.train_error for j in row] for row in runs],
        "gap": [[j.gap for j in row] for row in runs],
    }
    names = ["decay", "seed"]
    coordinates = {"decay": [f"decay {decay:g}" for decay in settings.mse_decays], "seed": list(settings.seeds)}
    return xr.Dataset({name: (names, value) for name, value in values.items()}, coordinates)


def over_peeling(m: Any) -> xr.DataArray:
    """Peeling over the smaller proven sparse bound, log10."""
    complexity = m.compare.complexity
    return complexity.sel(bound=PEELING, drop=True) - complexity.sel(bound=[PATH, UNION]).min("bound")


def over_rivals(m: Any) -> xr.DataArray:
    """The smallest rival over the sparse bound of the test error, log2."""
    risk = m.compare.risk
    return (risk.sel(risk_bound=list(RIVALS)).min("risk_bound") - risk.sel(risk_bound=SPARSE, drop=True)) * math.log2(10)


def ranking(m: Any, *, shuffled: bool = False) -> xr.DataArray:
    """Kendall's tau for each hyperparameter and seed; NaN with fewer than three networks that fit. ``shuffled``: gaps of other levels."""
    results = m.vary

    def tau(log_risk: np.ndarray, gap: np.ndarray, error: np.ndarray) -> float:
        fits = error <= 0.01
        if fits.sum() < 3:
            return math.nan
        gap = np.random.default_rng(int(1e6 * gap.sum())).permutation(gap[fits]) if shuffled else gap[fits]
        return stats.kendall(log_risk[fits], gap)

    core = [["level"]] * 3
    return xr.apply_ufunc(tau, results.log_risk, results.gap, results.train_error, input_core_dims=core, vectorize=True)


def is_tree(case: Case) -> bool:
    """Whether the last layer reads one pixel, so that the published formula lacks nothing."""
    return case.stride > 1


def over_lower_bound(m: Any) -> xr.DataArray:
    """Bounds of the complexity over the lower bound, log10."""
    complexity = m.compare.complexity
    return complexity.drop_sel(bound=WITNESS) - complexity.sel(bound=WITNESS, drop=True)


def mean(values: xr.DataArray) -> float:
    """Over the seeds."""
    return float(values.mean("seed"))


def ladder(variable: str, factor: str) -> Any:
    """The values of one kind, by bound, no logarithms."""
    return lambda m: 10 ** m.compare[variable].rename({factor: "arm"})


def cost(case: Case, settings: Settings, hyperparameter: str = "") -> float:
    """Steps of training times the size of a network, roughly."""
    if hyperparameter:
        return len(settings.levels[hyperparameter]) * settings.varied_epochs * settings.varied_train * settings.varied_width
    return settings.num_epochs * settings.num_train * case.width * (3 if "14" in case.dataset else 1)


METHOD = (
    "Networks are CONV-L-H: L convolutions with windows of 2 x 2, H channels, no padding, no biases, ReLU, and a linear layer that reads "
    "every pixel; a tree has strides of 2, and its last layer reads one pixel. Images are raw, in training as in bounds.",
    "The published formula is the one reported in the authors' public code and in a report that restates the theorems; the paper's text "
    "was not at hand. The proven forms are derived from Golowich, Rakhlin and Shamir's peeling, one by squares and one by exponentials; "
    "they keep the number of pixels that the last layer reads. An example by hand: of one image of eight white pixels, with "
    "windows of one pixel and one channel, the complexity is the root of 8, 2.83, and the formula gives 2.67.",
    "The lower bound fixes all layers but the last, each scaled to norm 1, and takes the last layer's supremum in closed form. Whatever "
    "lies below it, less three standard errors, is no bound.",
    "Bounds of the test error hold with probability 95 %, 99.9 % in the preset `paper`, pay for the norm and for the margin, and are not "
    "capped at 1. Rivals share all conventions: peeling with Frobenius norms of operators, covering numbers by numbers of parameters and "
    "by ranks with spectral norms of operators, and 32 bits a parameter.",
)

STUDY = lab.Study(
    id="S9",
    title="Do bounds for sparse networks hold, and do they explain generalisation?",
    lead="A convolution shares a small filter among all pixels, and a recent bound counts the norm of the filter in place of that of the "
    "matrix. Here each bound is computed with every factor and held against a lower bound of what it bounds, against its rivals, and "
    "against the gap between training and test errors.",
    module="experiments.sparse_bounds",
    paper=papers.SPARSE,
    stages=(
        lab.Stage(compare, cost=cost, group="train"),
        lab.Stage(
            vary,
            over=lambda case, settings: {"hyperparameter": list(settings.levels)},
            where=lambda case, settings: case.varied,
            cost=cost,
            group="train",
        ),
        lab.Stage(squared_error, where=lambda case, settings: case.varied, cost=cost, group="train"),
    ),
    measures=(
        lab.Measure(claims.S9A, lambda m: m.compare.published_over_witness, where=lambda case: not is_tree(case)),
        lab.Measure(claims.S9B, over_peeling, where=lambda case: not is_tree(case)),
        lab.Measure(claims.S9C, over_rivals),
        lab.Measure(claims.S9D, ranking, where=lambda case: case.varied),
        lab.Measure(claims.S9E, lambda m: m.squared_error.log10_risk, where=lambda case: case.varied),
    ),
    controls=(
        lab.Control(
            "positive",
            "Where the last layer reads one pixel, the published formula is a bound.",
            "log2 of (formula / lower bound of the complexity less 3 standard errors), norms 1",
            Above(0.0),
            lambda m: m.compare.published_over_witness,
            where=is_tree,
            claims=("S9.a",),
        ),
        lab.Control(
            "negative",
            "No lower bound lies above the proven bound.",
            "log2 of (path form / lower bound of the complexity less 3 standard errors), norms 1",
            Above(0.0),
            lambda m: m.compare.path_over_witness,
        ),
        lab.Control(
            "negative",
            "Gaps of other networks are not ranked.",
            "Kendall's tau of bounds and gaps that are shuffled within a seed",
            Below(0.5),
            functools.partial(ranking, shuffled=True),
            where=lambda case: case.varied,
            claims=("S9.d",),
        ),
    ),
    figures=(
        report.SeedStrip(
            ladder("complexity", "bound"),
            log=True,
            stacked=True,
            lines=lambda m: {WITNESS: 10 ** mean(m.compare.complexity.sel(bound=WITNESS))},
            name="complexity",
            xlabel="Rademacher complexity",
            alt="bounds of the Rademacher complexity, and a lower bound",
            caption="Bounds of the complexity of all networks with the norms of the trained one, and a lower bound of it. A formula to the "
            "left of the lower bound is no bound, but for ranks and parameters: they bound another class, that of the spectral norms.",
        ),
        report.SeedStrip(
            ladder("risk", "risk_bound"),
            log=True,
            stacked=True,
            lines=lambda m: {"chance": CHANCE, "truth": mean(m.compare.train_error + m.compare.gap)},
            name="risk",
            xlabel="bound of the test error",
            alt="bounds of the test error",
            caption="Bounds of the test error, not capped; dashed: the error of guessing, and the truth.",
        ),
        report.SeedStrip(
            ladder("examples", "needed_by"),
            log=True,
            stacked=True,
            lines={"60,000, as in the paper": 60_000},
            name="examples",
            xlabel="examples needed",
            alt="number of examples from which on each bound of the test error says something",
            caption="Number of examples at which each bound of the test error would fall to 1, with norms, margins and training errors "
            "as they are.",
        ),
        report.StackedBars(
            lambda m: xr.concat([m.compare.factors, m.compare.complexity.sel(bound=[WITNESS]).rename(bound="factor")], "factor"),
            parts="factor",
            mark=WITNESS,
            by=report.CASES,
            name="factors",
            xlabel="log10 of the Rademacher complexity",
            alt="factors of the smaller proven sparse bound, by network",
            caption="Logarithms of the factors of the smaller proven bound; they add up to the dots, one a seed. The black line is the "
            "lower bound.",
        ),
        report.SeedScatter(
            lambda m: 100 * m.vary.gap,
            x=lambda m: np.exp(m.vary.log_risk),
            by=None,
            joined="level",
            panel_by="hyperparameter",
            log_x=True,
            per_case=True,
            name="gaps",
            xlabel="bound of the test error",
            ylabel="gap, points",
            alt="generalisation gap against the bound of the test error, by hyperparameter",
            caption="Gap between test and training error against the proven sparse bound of the test error, one hyperparameter at a time. "
            "A line is a seed; the square is the first level.",
        ),
    ),
    tables=(
        report.MeanTable(
            "compare.factors", columns="factor", section="Factors", caption="log10 of the factors of the smaller proven bound."
        ),
        report.MeanTable(
            over_lower_bound,
            columns="bound",
            section="Against lower bound and truth",
            caption="log10 of bounds of the complexity over the lower bound. Below 0: no bound.",
        ),
        report.MeanTable(
            lambda m: m.compare.risk - np.log10(m.compare.gap.where(m.compare.gap > 0)),
            columns="risk_bound",
            section="Against lower bound and truth",
            caption="log10 of bounds of the test error over the gap between test and training error.",
        ),
        report.MeanTable(
            lambda m: {"training error": m.compare.train_error, "gap": m.compare.gap, "log10 norms": m.compare.sparse_norms},
            section="Networks",
            caption="Trained by cross-entropy; means and 95 % intervals over seeds.",
        ),
        report.MeanTable(
            lambda m: m.squared_error[["log10_risk", "log10_published", "norms", "below_one", "train_error", "gap"]].to_dataarray(
                "measure"
            ),
            columns="measure",
            rows=("decay",),
            section="Squared error, strong decay",
            caption="Bound of the test error, the published formula in its place (no bound here), product of norms, margins below 1.",
        ),
    ),
    method=METHOD,
)
