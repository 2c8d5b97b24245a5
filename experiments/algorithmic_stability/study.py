"""Does stable training generalise, even if weights never converge?

Paper: "On the generalization of learning algorithms that do not converge" (Chandramoorthy et al., NeurIPS 2022). All runs of a seed are one
compiled program: a run is a share of wrong labels, a learning rate, and which example is replaced or whether the order is another.
Losses are averaged over time inside the program, so memory does not grow with epochs.
"""

import functools
import itertools
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

from experiments import papers
from experiments.algorithmic_stability import claims
from experiments.algorithmic_stability.settings import FIRST_SEED, Case, Settings
from jaxbp import data, lab, models, report, stability, stats, training
from jaxbp.claims import Within
from jaxbp.data import augment

LAGS = 40
RATE, SIGMA, POINTS = 0.1, 0.5, np.linspace(-2, 4, 7)  # of noisy SGD on a quadratic, and where its loss is averaged
MEANS = (1.0, 0.5)  # of the data, and of the data with an example replaced


@functools.lru_cache(maxsize=2)
def load(case: Case, settings: Settings, seed: int) -> tuple[data.Dataset, data.Split]:
    """Training examples of a seed, of which the last are spare, to replace the first; and its test examples."""
    number = None if settings.num_train is None else settings.num_train + settings.num_replaced
    split = data.load(case.dataset, seed=FIRST_SEED + seed, num_train=number, data_dir=settings.data_dir)
    rows = data.stratified_indices(split.test.labels, min(settings.num_test, len(split.test.labels)), seed=FIRST_SEED + seed)
    return split, data.Split(split.test.inputs[rows], split.test.labels[rows])


def train(
    key: jax.Array,
    train_data: tuple,
    test_data: tuple,
    *,
    share: jax.Array,
    learning_rate: jax.Array,
    run: jax.Array,
    case: Case,
    settings: Settings,
    num_classes: int,
) -> dict[str, Any]:
    """One run: 0 the base, 1 to K with an example replaced by a spare one, K + 1 in another order, K + 2 with one replaced by itself."""
    count = settings.num_replaced
    init_key, noise_key, order_key = jax.random.split(key, 3)
    inputs, labels = (values[:-count] for values in train_data)
    position = jnp.clip(run - 1, 0, count - 1)
    source = jnp.where((run >= 1) & (run <= count), len(labels) + position, position)
    inputs, labels = stability.replace_example(inputs, labels, position, train_data[0][source], train_data[1][source])
    noise = stability.draw_label_noise(noise_key, len(labels), num_classes)
    labels = stability.apply_label_noise(noise, labels, share, num_classes)
    order_key = jax.random.fold_in(order_key, run == count + 1)

    net = models.create(case.model, num_classes=num_classes, width=case.width)
    moves = augment.crop_and_flip(case.shift, flip=case.flip) if case.shift else None
    options = training.Settings(num_epochs=settings.num_epochs, batch_size=settings.batch_size, augment_fn=moves)
    optimizer = training.sgd(learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay)
    run_epoch = training.epoch_fn(training.step_fn(net, optimizer, options), (inputs, labels), options)
    params, model_state = net.init(init_key, inputs[:1])
    state = training.TrainState(params, optimizer.init(params), model_state)

    def measure(state: training.TrainState) -> dict[str, jax.Array]:
        everything = jnp.concatenate([test_data[0], inputs])
        logits = training.within_memory(lambda x: net.apply(state.params, x, state.model_state), everything)
        losses = {name: fn(logits) for name, fn in stability.CLASS_LOSSES.items() if name != "zero_one"}
        tested, trained = losses["cross_entropy"][: len(test_data[1])], losses["cross_entropy"][len(test_data[1]) :]
        of_labels = {name: stability.expected_loss(values[: len(tested)], test_data[1], 0.0) for name, values in losses.items()}
        risk = stability.expected_loss(tested, test_data[1], share).mean()
        return of_labels | {"gap": risk - stability.expected_loss(trained, labels, 0.0).mean()}

    def epoch(carry: tuple, draw: tuple) -> tuple[tuple, tuple]:
        (before, averages), (step, epoch_key) = carry, draw
        after = run_epoch(before, epoch_key)
        measured = measure(after)
        times = {"run_up": settings.run_up, "num_steps": settings.num_epochs}
        averages = {name: averages[name].update(value, step, **times) for name, value in measured.items()}
        distance = optax.tree.norm(jax.tree.map(jnp.subtract, after.params, before.params))
        return (after, averages), (distance, measured["cross_entropy"].mean())

    averages = {name: stability.TimeAverage.init(shape.shape) for name, shape in jax.eval_shape(measure, state).items()}
    draws = jnp.arange(settings.num_epochs), jax.random.split(order_key, settings.num_epochs)
    (_, averages), (distances, curve) = jax.lax.scan(epoch, (state, averages), draws)
    return {
        "cross_entropy": averages["cross_entropy"].mean,
        "one_minus_p": averages["one_minus_p"].mean,
        "gap": averages["gap"].mean,
        "halves": averages["cross_entropy"].halves.mean(1),
        "distances": distances,
        "curve": curve,
    }


def train_all(case: Case, settings: Settings, seed: int, share: tuple[float, ...], learning_rate: tuple[float, ...]) -> xr.Dataset:
    """All runs of a seed, reduced to coefficients, (share, learning_rate), and what is drawn."""
    split, test = load(case, settings, seed)
    count, last = settings.num_replaced, {"share": share[-1], "learning_rate": learning_rate[-1]}
    names = ("share", "learning_rate", "run")
    points = itertools.product(share, learning_rate, range(count + 2))
    arms = {str(point): dict(zip(names, point, strict=True)) for point in points}
    results = lab.sweep(
        functools.partial(train, case=case, settings=settings, num_classes=split.num_classes),
        arms=arms | {"itself": last | {"run": count + 2}},
        seeds=[seed],
        keys=jax.random.fold_in(jax.random.key(FIRST_SEED + seed), zlib.crc32(case.name.encode()))[None],
        shared=tuple((jnp.asarray(part.inputs), jnp.asarray(part.labels)) for part in (split.train, test)),
        plan="map" if case.apart else "auto",
    ).isel(seed=0)
    itself = np.abs(results.cross_entropy.values[-1] - results.cross_entropy.values[-1 - (count + 2)]).mean()
    runs = {
        name: values.values[:-1].reshape(len(share), len(learning_rate), count + 2, *values.shape[1:]) for name, values in results.items()
    }
    return reduced(runs, settings).assign(itself=itself).assign_coords(share=list(share), learning_rate=list(learning_rate))


def reduced(runs: dict[str, np.ndarray], settings: Settings) -> xr.Dataset:
    """Coefficients and times from runs, each (share, learning_rate, run, ...)."""
    count, arm = settings.num_replaced, ("share", "learning_rate")
    of_arms = jax.vmap(jax.vmap(stability.coefficients))
    beta, bounded = (of_arms(runs[name][:, :, 0], runs[name][:, :, 1 : count + 1]) for name in ("cross_entropy", "one_minus_p"))
    order = of_arms(runs["cross_entropy"][:, :, 0], runs["cross_entropy"][:, :, count + 1 :])
    series = runs["curve"][..., settings.run_up :]
    flat = {"raw": series - series.mean(-1, keepdims=True), "drift removed": np.apply_along_axis(stability.detrend, -1, series)}
    times = {kind: np.apply_along_axis(lambda row: stability.integrated_time(row).time, -1, rows) for kind, rows in flat.items()}
    correlations = [np.apply_along_axis(stability.autocorrelation, -1, rows[:, :, 0])[..., :LAGS] for rows in flat.values()]
    early, late = (runs["distances"][:, :, 0, first:last].mean(-1) for first, last in quarters(settings.num_epochs))
    first, second = np.moveaxis(runs["halves"][:, :, 0], -1, 0)
    loss = runs["cross_entropy"].mean(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = {
            "beta": beta.mean,
            "bounded": bounded.mean,
            "largest": beta.largest,
            "of_mean": beta.of_mean,
            "order": order.mean,
            "loss": loss[:, :, 0],
            "gap": runs["gap"][:, :, 0],
            "change": 2 * (second - first) / (first + second),
            "settling": np.log2(late / early),
            "time": times["drift removed"].mean(-1),
            "raw_time": times["raw"].mean(-1),
            "spread": flat["drift removed"][:, :, 0].std(-1) / series[:, :, 0].mean(-1),
        }
    drawn = {"average": ((*arm, "run"), loss), "correlation": (("kind", *arm, "lag"), np.array(correlations))}
    coordinates = {"run": ["base", *(f"replaced {k + 1}" for k in range(count)), "other order"], "kind": list(flat)}
    lags = {"lag": range(len(correlations[0][0, 0]))}
    return xr.Dataset({name: (arm, np.asarray(array)) for name, array in values.items()} | drawn, coordinates | lags)


def quarters(num_epochs: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The second and the last quarter of the epochs."""
    quarter = num_epochs // 4
    return (quarter, 2 * quarter), (num_epochs - quarter, num_epochs)


def quadratic(case: Case, settings: Settings, seed: tuple[int, ...]) -> xr.Dataset:
    """Noisy SGD on a quadratic, whose coefficient has a closed form: log2 of measured over true, (seed,)."""
    return lab.sweep(descend, seeds=seed, keys=jax.vmap(lambda s: jax.random.key(FIRST_SEED + s))(jnp.asarray(seed)))


def descend(key: jax.Array, num_steps: int = 4000, run_up: int = 100) -> dict[str, jax.Array]:
    """Pairs of runs that share their noise: w' = (1 - a) w + a m + sigma xi, with the loss (w - z)^2 / 2."""

    def step(carry: tuple, draw: tuple) -> tuple[tuple, None]:
        weights, average = carry
        weights = (1 - RATE) * weights + RATE * jnp.array(MEANS) + SIGMA * draw[1]
        return (weights, average.update((weights[:, None] - POINTS) ** 2 / 2, draw[0], run_up=run_up, num_steps=num_steps)), None

    start = jnp.zeros(2), stability.TimeAverage.init((2, len(POINTS)))
    (_, average), _ = jax.lax.scan(step, start, (jnp.arange(num_steps), jax.random.normal(key, (num_steps,))))
    true = np.abs(np.subtract(*((m - POINTS) ** 2 / 2 for m in MEANS))).mean()  # the variance of the weights is that of both
    return {"ratio": jnp.log2(stability.coefficients(average.mean[0], average.mean[1:]).mean / true)}


def by_share(name: str) -> Any:
    """A variable's mean over learning rates, for each share of wrong labels."""
    return lambda m: named(average(m.train_all[name], "learning_rate"))


def named(values: xr.DataArray) -> xr.DataArray:
    """Shares of wrong labels in words."""
    return values.assign_coords(share=[f"{share:.0%} wrong labels" for share in values.share.values])


def log2(ratio: xr.DataArray) -> xr.DataArray:
    """log2, without warnings: 0 becomes -inf, which no interval takes."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log2(ratio)


def average(values: xr.DataArray, *axes: str) -> xr.DataArray:
    """The mean over axes; NaN where a run diverged, whose seed then decides nothing."""
    return values.mean(axes, skipna=False)


def rise(values: xr.DataArray) -> xr.DataArray:
    """log2 of the value with the most label noise over that with none, mean over learning rates."""
    return average(log2(values.isel(share=-1, drop=True) / values.isel(share=0, drop=True)), "learning_rate")


def agreement(first: str, second: str) -> Any:
    """Kendall's tau over learning rates of two variables, mean over shares of wrong labels."""

    def measure(m: Any) -> xr.DataArray:
        taus = xr.apply_ufunc(
            stats.kendall, m.train_all[first], m.train_all[second], input_core_dims=[["learning_rate"]] * 2, vectorize=True
        )
        return average(taus, "share")

    return measure


def correlations(m: Any) -> xr.DataArray:
    """Autocorrelations of the base runs with the most label noise, mean over learning rates, raw and with drift removed."""
    return m.train_all.correlation.isel(share=-1).mean("learning_rate")


def coefficients(m: Any) -> xr.Dataset:
    """What the claims compare, by heading."""
    names = {
        "loss": "test loss",
        "beta": "beta",
        "largest": "largest",
        "of_mean": "of the mean loss",
        "order": "another order",
        "gap": "gap",
    }
    names |= {"time": "correlation time", "raw_time": "raw", "spread": "spread / loss"}
    return m.train_all[list(names)].rename(names).to_dataarray("measure")


METHOD = (
    "Beta is the mean, over replaced examples and test examples, of the absolute change of the time-averaged test loss when one training "
    "example is replaced by another. Runs of a seed share initial parameters, order and augmentation; a replaced example keeps its place "
    "and its draw of label noise. It is a lower bound of the coefficient of statistical algorithmic stability, which is a supremum.",
    "Label noise is nested: more noise changes what less noise changed, and more. The gap is the time average of the expected test loss "
    "under the same label noise, computed without drawing labels, minus the training loss. The bounded loss is 1 - p of the label.",
    "Cross-entropy is not bounded, so its coefficient grows with the loss: S7.d divides by it. Correlation times are Sokal's, after "
    "a cubic trend is removed, since drift passes for correlation. Kendall's tau over four learning rates is coarse.",
    "The rules were written down after a pilot of four other seeds and the authors' stored outputs had been seen. The numbers of the paper "
    "are recomputed from these outputs; its text was not at hand.",
)

STUDY = lab.Study(
    id="S7",
    title="Does stable training generalise, even if weights never converge?",
    lead="At a constant learning rate weights never settle, but averages of the loss over time do. How much such an average depends on a "
    "single training example is said to foretell how well a network generalises. Here examples are replaced one at a time, beside the "
    "control that the first experiment lacked: the same data in another order.",
    module="experiments.algorithmic_stability",
    paper=papers.STABILITY,
    stages=(
        lab.Stage(
            train_all,
            over=lambda case, settings: (
                {"seed": settings.seeds}
                | {
                    axis: [(value,) for value in values] if case.apart else [values]
                    for axis, values in (("share", settings.shares), ("learning_rate", settings.learning_rates))
                }
            ),
            cost=lambda case, settings, **point: settings.num_epochs,
        ),
        lab.Stage(
            quadratic,
            over=lambda case, settings: {"seed": settings.seed_blocks},
            where=lambda case, settings: case == settings.cases[0],
            cost=lambda case, settings, **point: 1,
        ),
    ),
    measures=(
        lab.Measure(claims.WEIGHTS, by_share("settling")),
        lab.Measure(claims.AVERAGES, by_share("change")),
        lab.Measure(claims.NOISE, lambda m: rise(m.train_all.beta)),
        lab.Measure(claims.BEYOND_LOSS, lambda m: rise(m.train_all.beta / m.train_all.loss)),
        lab.Measure(claims.GAP, agreement("bounded", "gap")),
        lab.Measure(claims.INFLUENCE, lambda m: average(log2(m.train_all.beta / m.train_all.order), "share", "learning_rate")),
        lab.Measure(claims.CORRELATION, agreement("time", "beta")),
    ),
    controls=(
        lab.Control(
            "positive",
            "Noisy SGD on a quadratic has the coefficient of the closed form.",
            "log2 of (measured coefficient / closed form)",
            Within(0.1),
            lambda run: {"quadratic": run.cases[0].quadratic.ratio.values},
            across=True,
        ),
        lab.Control(
            "negative",
            "An example replaced by itself changes nothing.",
            "mean change of the time-averaged loss",
            Within(1e-9),
            lambda m: m.train_all.itself,
        ),
    ),
    figures=(
        report.SeedCurves(
            lambda m: named(
                xr.concat([m.train_all.beta, m.train_all.beta / m.train_all.loss], xr.Variable("of", ["beta", "over test loss"]))
            ),
            x="learning_rate",
            by="share",
            panel_by="of",
            x_scale="log2",
            log=True,
            name="beta",
            ylabel="beta",
            xlabel="learning rate",
            alt="stability coefficient against learning rate by label noise",
            caption="Beta, the change of the time-averaged test loss when one training example is replaced, and beta over that loss.",
        ),
        report.SeedScatter(
            lambda m: named(m.train_all.beta),
            x=lambda m: named(m.train_all.order),
            by="share",
            log_x=True,
            log=True,
            diagonal=True,
            name="influence",
            xlabel="change by another order",
            ylabel="by a replaced example",
            alt="change by a replaced example against change by another order",
            caption="Change of the averages by a replaced example against the change by another order of the data; a dot a seed and "
            "learning rate, the diagonal dotted. Below it the order matters more than the example.",
        ),
        report.SeedStrip(
            lambda m: named(m.train_all.average).isel(seed=0, learning_rate=-1, drop=True).rename(run="seed"),
            by="share",
            name="runs",
            stacked=True,
            xlabel="time-averaged test loss, largest learning rate",
            alt="time-averaged test loss of all runs of the first seed",
            caption="Time-averaged test loss of the runs of the first seed, a dot a run: the base, those with an example replaced, and the "
            "one in another order.",
        ),
        report.SeedScatter(
            lambda m: named(m.train_all.gap),
            x=lambda m: named(m.train_all.bounded),
            by="share",
            joined="learning_rate",
            log_x=True,
            name="gap",
            xlabel="beta of the bounded loss",
            ylabel="generalisation gap",
            alt="generalisation gap against the stability coefficient",
            caption="Generalisation gap against beta of the bounded loss. A line joins the learning rates of a seed, the square the least: "
            "its slope is what S7.e judges, within equal label noise.",
        ),
        report.SeedCurves(
            correlations,
            x="lag",
            by="kind",
            name="correlation",
            xlabel="lag, epochs",
            ylabel="autocorrelation",
            lines=0.0,
            alt="autocorrelation of the test loss, raw and with drift removed",
            caption="Autocorrelation of the test loss after the run-up with the most label noise, raw and with a cubic trend removed.",
        ),
    ),
    tables=(
        report.MeanTable(
            coefficients,
            columns="measure",
            rows=("share", "learning_rate"),
            section="Coefficients",
            not_finite="diverged",
            headings=("case", "wrong labels", "learning rate"),
            caption="Means and 95 % intervals over seeds. Largest: over examples and test examples. Times are in epochs.",
        ),
        report.ClaimMeans(),
    ),
    method=METHOD,
)
