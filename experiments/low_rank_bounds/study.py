"""Do low-rank layers and neural collapse tighten bounds?

``tune`` chooses each arm's learning rate; ``compare`` trains arms to one training loss, and computes their bounds, margins and errors;
``collapse`` trains full-rank networks on with three strengths of weight decay, and follows singular values, collapse and bounds.
"""

import functools
import itertools
import math
import zlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from experiments import papers
from experiments.low_rank_bounds import claims
from experiments.low_rank_bounds.settings import FULL, Case, Settings
from jaxbp import bounds, collapse, data, lab, models, report, training
from jaxbp.claims import Above

CHAIN, ONE_SCALE, PRODUCT, COUNTING, WITNESS = "chain, constants 1", "ranks, one scale", "product of norms", "parameters", "lower bound"
MARGIN_QUANTILE = 0.1
NUM_VALUES = 32  # singular values of a layer that are drawn


def product(kernel: Any) -> Any:
    """A kernel, or the product of its factors."""
    return kernel[0] @ kernel[1] if isinstance(kernel, tuple) else kernel


def apply(params: list, inputs: jax.Array) -> jax.Array:
    """A chain of layers with ReLU between, each a kernel or a pair of factors: logits (N, C)."""
    features = inputs.reshape(len(inputs), -1)
    for kernel in params[:-1]:
        features = jax.nn.relu(features @ product(kernel))
    return features @ params[-1]


def init(key: jax.Array, inputs: jax.Array, *, width: int, depth: int, rank: int, num_classes: int) -> tuple[list, dict]:
    """He's normal start; of factors U V, both of the standard deviation (2 / (d r))^(1/4), so that neither learns faster."""
    sizes = [math.prod(inputs.shape[1:]), *[width] * (depth - 1), num_classes]
    params: list = []
    for index, (inner, outer) in enumerate(itertools.pairwise(sizes)):
        left, right = jax.random.split(jax.random.fold_in(key, index))
        if rank and index < depth - 1:
            spread = (2 / (inner * rank)) ** 0.25
            params.append((spread * jax.random.normal(left, (inner, rank)), spread * jax.random.normal(right, (rank, outer))))
        else:
            params.append(math.sqrt(2 / inner) * jax.random.normal(left, (inner, outer)))
    return params, {}


@functools.cache
def network(case: Case, rank: int, num_classes: int) -> models.Network:
    """The network of an arm."""
    options = {"width": case.width, "depth": case.depth, "rank": rank, "num_classes": num_classes}
    return models.from_functions(apply, init=functools.partial(init, **options))


@functools.lru_cache(maxsize=4)
def load(case: Case, settings: Settings) -> data.Dataset:
    """Normalised inputs, split alike for all seeds."""
    return data.load(case.dataset, seed=0, normalise=True, validation=0.2, data_dir=settings.data_dir)


def train(
    key: jax.Array,
    *shared: jax.Array,
    rows: jax.Array,
    rate: jax.Array,
    decay: jax.Array,
    net: models.Network,
    settings: Settings,
    epochs: int,
) -> tuple[dict[str, Any], Any]:
    """One run: curves, and the parameters at each measurement."""
    inputs, labels, *test_data = shared
    options = training.Settings(epochs, settings.batch_size, measure_epochs=_measured(settings, epochs))
    optimizer = training.sgd(rate, momentum=settings.momentum, weight_decay=decay)
    batch = (inputs[rows], labels[rows])
    result = training.train(net, optimizer, batch, key, options, test_data=tuple(test_data), measure_fn=lambda state: state.params)
    return {name: lab.along("epoch", curve) for name, curve in result.history.items()}, result.measured


def _measured(settings: Settings, epochs: int) -> tuple[int, ...]:
    return tuple(range(0, epochs + 1, settings.every))


def train_all(
    case: Case, settings: Settings, rank: int, arms: dict[Any, dict[str, float]], seeds: Iterable[int], *, part: str = "test", epochs: int
) -> tuple[xr.Dataset, Any, list[np.ndarray]]:
    """Curves over (arm, seed, epoch), parameters with these leading axes, and the rows of each seed's examples."""
    dataset, seeds = load(case, settings), list(seeds)
    rows = [data.stratified_indices(dataset.train.labels, settings.num_train, seed=seed) for seed in seeds]
    held_out = getattr(dataset, part)
    fn = functools.partial(train, net=network(case, rank, dataset.num_classes), settings=settings, epochs=epochs)
    curves, params = lab.sweep(
        fn,
        arms=arms,
        seeds=seeds,
        keys=jnp.stack([jax.random.fold_in(jax.random.key(seed), zlib.crc32(case.name.encode())) for seed in seeds]),
        per_seed={"rows": np.stack(rows)},
        shared=tuple(map(jnp.asarray, (*dataset.train, *held_out))),
        plan="loop" if lab.device().platform == "cpu" else "vmap",
    )
    return curves.assign_coords(epoch=list(_measured(settings, epochs))), params, rows


def tune(case: Case, settings: Settings) -> xr.Dataset:
    """The learning rate of each arm with the best validation accuracy at the end."""
    arms = {rate: {"rate": rate, "decay": settings.weight_decay} for rate in settings.learning_rates}
    chosen = []
    for rank in settings.arms.values():
        curves, _, _ = train_all(case, settings, rank, arms, settings.tuning_seeds, part="validation", epochs=settings.num_epochs)
        chosen.append(settings.learning_rates[int(curves.test_accuracy.isel(epoch=-1).mean("seed").values.argmax())])
    return xr.Dataset({"rate": ("arm", chosen)}, {"arm": list(settings.arms)})


def compare(case: Case, settings: Settings, tuned: xr.Dataset) -> xr.Dataset:
    """Bounds, margins and errors of the arms where they first reach the training loss; NaN where they do not.

    The factors of the bound by ranks are always there, those of the last epoch where the loss is not reached.
    """
    parts = []
    for arm, rank in settings.arms.items():
        rate = float(tuned.rate.sel(arm=arm))
        options = {arm: {"rate": rate, "decay": settings.weight_decay}}
        curves, params, rows = train_all(case, settings, rank, options, settings.seeds, epochs=settings.num_epochs)
        points = []
        for s in range(settings.num_seeds):
            losses = curves.train_loss.values[0, s]
            reached = np.flatnonzero(losses <= settings.target_loss)
            at = int(reached[0] if len(reached) else np.flatnonzero(np.isfinite(losses))[-1])  # the last before it diverged
            point = judge(case, settings, kernels(params, (0, s, at)), rows[s])
            curve = curves.isel(arm=0, seed=s, epoch=at, drop=True)
            point = point.assign(test_accuracy=100 * curve.test_accuracy, stop_epoch=int(curves.epoch[at]))
            points.append(point if len(reached) else point.where(False).assign(factors=point.factors))
        parts.append(xr.concat(points, xr.IndexVariable("seed", list(settings.seeds))))
    return xr.concat(parts, xr.IndexVariable("arm", list(settings.arms)))


def kernels(params: list, at: tuple[int, ...]) -> list[np.ndarray]:
    """The kernels of one network in float64, factors multiplied, so that ranks are exact."""
    float64 = jax.tree.map(lambda leaf: np.asarray(leaf[at], np.float64), params)
    return [product(kernel) for kernel in float64]


def judge(case: Case, settings: Settings, params: list[np.ndarray], rows: np.ndarray) -> xr.Dataset:
    """Bounds of a network's complexity and of its test error, natural logarithms, and its margins; NaN of one that diverged."""
    if not all(np.isfinite(kernel).all() for kernel in params):
        return judge(case, settings, [np.ones_like(kernel) for kernel in params], rows).where(False)
    dataset = load(case, settings)
    inputs, labels = dataset.train.inputs[rows].reshape(len(rows), -1).astype(np.float64), dataset.train.labels[rows]
    net = bounds.anatomy(apply, params, inputs)
    by_name = {
        CHAIN: bounds.low_rank(net, inputs, form="chain"),
        ONE_SCALE: bounds.low_rank(net, inputs),
        PRODUCT: bounds.peeling(net, inputs),
        COUNTING: bounds.counting(net, inputs),
    }
    features = inputs
    for kernel in params[:-1]:
        features = np.maximum(features @ kernel, 0)
    top = float(np.linalg.norm(params[-1], 2))
    witness = bounds.lower.top_layer(features, top, dataset.num_classes, jax.random.key(0))
    margins = bounds.margins(features @ params[-1], labels)
    gamma = float(np.quantile(margins, MARGIN_QUANTILE))
    tails = [float(np.sum(layer.values[dataset.num_classes :] ** 2) / np.sum(layer.values**2)) for layer in net.layers[1:-1]]
    fell = collapse.measure(features, labels, params[-1])
    return xr.Dataset(
        {
            "complexity": ("bound", [witness.log_value, *(bound.log_value for bound in by_name.values())]),
            "risk": ("risk_bound", [bounds.risk(bound, margins, delta=settings.delta).log_value for bound in by_name.values()]),
            "factors": ("factor", list(by_name[ONE_SCALE].factors.values())),
            "log_margin": math.log(gamma) if gamma > 0 else math.nan,
            "train_error": float(np.mean(margins <= 0)),
            "beyond": max(tails, default=math.nan),  # none in a network of two layers
            "nc1": fell.nc1,
        },
        {"bound": [WITNESS, *by_name], "risk_bound": list(by_name), "factor": list(by_name[ONE_SCALE].factors)},
    )


def follow_collapse(case: Case, settings: Settings) -> xr.Dataset:
    """Full-rank networks over the epochs, for each weight decay."""
    arms = {decay: {"rate": settings.decay_rate, "decay": decay} for decay in settings.decays}
    curves, params, rows = train_all(case, settings, 0, arms, settings.seeds, epochs=settings.decay_epochs)
    table = []
    for a in range(len(arms)):
        of_seeds = []
        for s in range(settings.num_seeds):
            fits = np.flatnonzero(curves.train_accuracy.values[a, s] == 1)
            first = int(fits[0]) if len(fits) else len(curves.epoch) - 1
            ends = [judge(case, settings, kernels(params, (a, s, at)), rows[s]) for at in (first, -1)]
            point = xr.concat(ends, xr.IndexVariable("when", ["first fit", "end"]))
            of_seeds.append(point if len(fits) else point.where(False))
        table.append(xr.concat(of_seeds, xr.IndexVariable("seed", list(settings.seeds))))
    result = xr.concat(table, xr.IndexVariable("decay", [f"decay {decay:g}" for decay in settings.decays]))
    return result.assign(singular_values=singular_values(params, curves.epoch.values, list(result.decay.values)))


def singular_values(params: list, epochs: np.ndarray, decays: list[str]) -> xr.DataArray:
    """Those of the first seed's layers over the largest, at up to 12 epochs: (decay, drawn_epoch, layer, index)."""
    drawn = np.unique(np.linspace(0, len(epochs) - 1, 12).round().astype(int))
    values = np.full((len(decays), len(drawn), len(params), NUM_VALUES), np.nan)
    for place in np.ndindex(values.shape[:3]):
        decay, epoch, layer = place
        kernel = np.asarray(params[layer][decay, 0, drawn[epoch]], np.float64)
        if np.isfinite(kernel).all():
            spectrum = np.linalg.svd(kernel, compute_uv=False)[:NUM_VALUES]
            values[place][: len(spectrum)] = spectrum / spectrum[0]
    names = [f"layer {layer + 1}" for layer in range(len(params))]
    coordinates = {"decay": decays, "drawn_epoch": epochs[drawn], "layer": names, "index": np.arange(1, NUM_VALUES + 1)}
    return xr.DataArray(values, coordinates, list(coordinates))


def over_margin(results: xr.Dataset, forms: list[str]) -> xr.DataArray:
    """Logarithm, to base 2, of a bound over the margin."""
    return (results.complexity.sel(bound=forms) - results.log_margin) / math.log(2)


def gain(m: Any) -> xr.DataArray:
    """Bound over margin of the full network over that of each low-rank one, log2."""
    values = over_margin(m.compare, [CHAIN, ONE_SCALE])
    return values.sel(arm=FULL, drop=True) - values.drop_sel(arm=FULL)


def accuracy_gain(m: Any) -> xr.DataArray:
    """Test accuracy of each low-rank network minus the full one's."""
    accuracy = m.compare.test_accuracy
    return accuracy.drop_sel(arm=FULL) - accuracy.sel(arm=FULL, drop=True)


def product_over_ranks(m: Any) -> xr.DataArray:
    """The product bound over the one by ranks, log2, by arm."""
    complexity = m.compare.complexity / math.log(2)
    return complexity.sel(bound=PRODUCT, drop=True) - complexity.sel(bound=ONE_SCALE, drop=True)


def tail_share(m: Any) -> xr.DataArray:
    """Share beyond the C largest singular values at the end, of trainings with decay."""
    return m.follow_collapse.beyond.sel(when="end", drop=True).isel(decay=slice(1, None))


def tightening(m: Any) -> xr.DataArray:
    """Bound over margin at the end over that at the first fit, log2."""
    values = over_margin(m.follow_collapse, [ONE_SCALE]).sel(bound=ONE_SCALE, drop=True)
    return values.sel(when="end", drop=True) - values.sel(when="first fit", drop=True)


def cheaper_cover(m: Any) -> xr.DataArray:
    """The covering factor of the full network over that of each low-rank one, log2."""
    factor = m.compare.factors.sel(factor="covering", drop=True) / math.log(2)
    return factor.sel(arm=FULL, drop=True) - factor.drop_sel(arm=FULL)


def over_lower_bound(m: Any) -> xr.DataArray:
    """Bounds over the lower bound, natural logarithm."""
    complexity = m.compare.complexity
    return complexity.drop_sel(bound=WITNESS) - complexity.sel(bound=WITNESS, drop=True)


def risk_over_gap(m: Any) -> xr.DataArray:
    """Bounds of the test error over the gap between test and training error, log10; NaN where there is no gap."""
    gap = 1 - m.compare.test_accuracy / 100 - m.compare.train_error
    return m.compare.risk / math.log(10) - np.log10(gap.where(gap > 0))


def factors(m: Any) -> xr.DataArray:
    """Factors of the bound by ranks over the margin, and the lower bound over the margin; log10, (arm, seed, factor)."""
    results = m.compare
    margin = (-results.log_margin).expand_dims(factor=["1 / margin"])
    lower = (results.complexity.sel(bound=WITNESS, drop=True) - results.log_margin).expand_dims(factor=[WITNESS])
    return xr.concat([results.factors, margin, lower], "factor") / math.log(10)


def draw_singular_values(m: Any) -> Any:
    """A panel a layer and weight decay: each singular value over the epochs, the C largest in colour."""
    values = m.follow_collapse.singular_values
    layers, decays = values.layer.values, values.decay.values
    fig, axes = report.figure(len(decays), len(layers), width=9.0, height=2.0 * len(decays) + 0.4, squeeze=False, sharex=True, sharey=True)
    num_classes = int(np.isfinite(values.isel(layer=-1, decay=0, drawn_epoch=0)).sum())  # the last layer has no more
    with report.style():
        for (row, decay), (column, layer) in itertools.product(enumerate(decays), enumerate(layers)):
            ax, curves = axes[row, column], values.sel(decay=decay, layer=layer).values
            ax.plot(values.drawn_epoch, curves[:, num_classes:], color="#999999", linewidth=0.7)
            ax.plot(values.drawn_epoch, curves[:, :num_classes], color="C0", linewidth=0.9)
            ax.set_title(f"{layer}, {decay}", fontsize=8)
        for ax in axes[-1]:
            ax.set_xlabel("epoch")
        for ax in axes[:, 0]:
            ax.set_ylabel("over largest")
    return fig


METHOD = (
    "Networks are MLPs without biases, of four layers unless the case says otherwise. A low-rank arm's hidden layers are products of two "
    "factors, both trained, drawn with one spread; the last layer is full. Arms are compared where each first reaches one training loss; a "
    "run that does not counts as not finite.",
    "Ranks are exact: factors are multiplied in float64. Bounds are of the Rademacher complexity of all networks with the same norms and "
    "ranks, but for the chain form, which bounds the Gaussian one and is rebuilt from the paper's abstract with unknown constants taken "
    "as 1: less than the paper's bound.",
    "The lower bound fixes the trained layers but the last, whose Frobenius norm may reach its spectral norm.",
)

STUDY = lab.Study(
    id="S6",
    title="Do low-rank layers and neural collapse tighten bounds?",
    lead="A recent bound grows with the ranks of the layers, which add up in place of multiplying; networks in neural collapse are said to "
    "have such layers. Here low-rank networks and their full-rank twins are trained to one loss, and the bounds compared with margins, "
    "test accuracy and a lower bound.",
    module="experiments.low_rank_bounds",
    paper=papers.LOW_RANK,
    stages=(
        lab.Stage(tune, cost=lambda case, settings: len(settings.learning_rates) * settings.num_tuning_seeds * settings.num_epochs),
        lab.Stage(compare, needs=(tune,), cost=lambda case, settings: settings.num_seeds * settings.num_epochs, group="train"),
        lab.Stage(follow_collapse, cost=lambda case, settings: settings.num_seeds * settings.decay_epochs, group="train"),
    ),
    measures=(
        lab.Measure(claims.S6A, gain),
        lab.Measure(claims.S6B, accuracy_gain),
        lab.Measure(claims.S6C, lambda m: product_over_ranks(m).drop_sel(arm=FULL)),
        lab.Measure(claims.S6D, tail_share, where=lambda case: case.depth > 2),
        lab.Measure(claims.S6E, tightening),
    ),
    controls=(
        lab.Control(
            "positive",
            "Low rank makes the cover cheaper.",
            "log2 of (covering factor of the full network / of the low-rank one)",
            Above(0.0),
            cheaper_cover,
            claims=("S6.a", "S6.c"),
        ),
        lab.Control(
            "negative",
            "No lower bound lies above the proven bound.",
            "log2 of (bound by ranks, one scale / lower bound), the least of the arms that reach the loss",
            Above(0.0),
            lambda m: over_lower_bound(m).sel(bound=ONE_SCALE, drop=True).min("arm") / math.log(2),
        ),
    ),
    figures=(
        report.SeedStrip(
            lambda m: np.exp(m.compare.complexity.dropna("arm", how="all")),
            by="bound",
            panel_by="arm",
            log=True,
            stacked=True,
            name="complexity",
            xlabel="complexity",
            alt="bounds of the complexity, and a lower bound, by arm",
            caption="Bounds of the complexity of all networks with the norms and ranks of the trained one, and a lower bound of it. An arm "
            "of which no seed reaches the training loss has no panel.",
        ),
        report.SeedStrip(
            "compare.test_accuracy",
            joined=True,
            name="accuracy",
            xlabel="test accuracy, %",
            alt="test accuracy of the arms at equal training loss",
            caption="Test accuracy where each arm first reaches the training loss; lines join runs that share data.",
        ),
        report.StackedBars(
            factors,
            parts="factor",
            mark=WITNESS,
            name="factors",
            xlabel="log10 of the bound over the margin",
            alt="factors of the bound by ranks, by arm",
            caption="Logarithms of the factors of the bound by ranks, one scale, over the margin; they add up to the dots, one a seed. The "
            "black line is the lower bound over the margin.",
        ),
        report.SeedStrip(
            product_over_ranks,
            lines=0.0,
            name="adding",
            xlabel="log2 of (bound by norms / by ranks)",
            alt="bound by the product of norms over the bound by ranks, by rank",
            caption="What is gained by adding factors of rank in place of multiplying norms, by the rank of the hidden layers.",
        ),
        report.CustomFigure(
            draw_singular_values,
            name="singular_values",
            alt="singular values of all layers over epochs, by weight decay",
            caption="The 32 largest singular values of every layer, over the largest one, first seed, by weight decay; blue: as many as "
            "there are classes.",
        ),
        report.SeedScatter(
            lambda m: m.follow_collapse.beyond.sel(when="end"),
            x=lambda m: m.follow_collapse.nc1.sel(when="end"),
            by="decay",
            log_x=True,
            name="tails",
            xlabel="NC1 of the last features",
            ylabel="share beyond C",
            decorate=lambda ax, m: ax.set_ylim(bottom=0),
            alt="collapse of the features against the share of singular values beyond the number of classes",
            caption="Within-class spread of the last features (NC1) against the share of ||W||^2 beyond the C largest singular values, the "
            "largest of the hidden layers but the first, at the end of training.",
        ),
    ),
    tables=(
        report.MeanTable(
            lambda m: m.compare.factors / math.log(10),
            columns="factor",
            rows=("arm",),
            section="Factors",
            caption="log10 of the factors of the bound by ranks, one scale.",
        ),
        report.MeanTable(
            lambda m: m.compare[["log_margin", "stop_epoch", "test_accuracy", "beyond", "nc1"]].to_dataarray("measure"),
            columns="measure",
            rows=("arm",),
            section="Networks",
            caption="Where each arm first reaches the training loss: logarithm of the margin, epoch, test accuracy, share beyond C, NC1.",
        ),
        report.MeanTable(
            lambda m: over_lower_bound(m) / math.log(10),
            columns="bound",
            rows=("arm",),
            section="Against lower bound and truth",
            caption="log10 of bounds of the complexity over the lower bound. The chain form bounds the Gaussian complexity.",
        ),
        report.MeanTable(
            risk_over_gap,
            columns="risk_bound",
            rows=("arm",),
            section="Against lower bound and truth",
            caption="log10 of bounds of the test error over the gap between test and training error.",
        ),
        report.MeanTable(
            lambda m: np.exp(m.compare.risk),
            columns="risk_bound",
            rows=("arm",),
            section="Bounds of the test error",
            caption="They hold with probability 95 % and are not capped: 1 says nothing. The chain form is no bound with constants of 1.",
        ),
    ),
    method=METHOD,
)
