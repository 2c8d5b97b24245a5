"""Do soft preferences explain what seems mysterious about deep learning?

Five kinds of cases, a stage each: polynomials with penalties by order, random features without and with ridge, the isotropic model whose
risk is known exactly, the Hessian's effective dimensionality over widths, and networks in a random subspace whose description is counted.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

from experiments import papers
from experiments.soft_biases import claims
from experiments.soft_biases.settings import CODE, FEATURES, FIRST_TUNING_SEED, ISOTROPIC, POLYNOMIAL, WIDTHS, Case, Settings
from jaxbp import data, descent, lab, landscape, models, pac_bayes, report, stats, training
from jaxbp.claims import Above, Below

FLAT, SOFT, SQUARES = "no preference", "gamma^j", "(1 + j)^2"
NO_RIDGE, RIDGE, EXACT = "smallest norm", "ridge", "exact"
TEST_ERROR = "test error"
FITS_NOISE = 1e-3  # relative training error
CHANCE = 0.9  # error of guessing one of ten classes
EXACT_SPECTRUM = 1000  # parameters up to which all eigenvalues are computed
TARGETS = {
    "smooth": lambda x: 1 - x + x**3 / 2,
    "waves": lambda x: 0.7 * np.cos(3 * np.pi * x) + 0.5 * np.sin(2.5 * np.pi * x),
}


def polynomials(case: Case, settings: Settings) -> xr.Dataset:
    """Errors of polynomials with three penalties, their strength chosen on other seeds to favour the claim; the fits of the first seed."""
    grid = np.linspace(-1, 1, 2001)
    truth = TARGETS[case.target](grid)
    shift, scale = truth.mean(), truth.std()
    basis = descent.legendre(grid, settings.degree)
    orders = np.arange(settings.degree + 1)
    penalties = {FLAT: [np.zeros_like(orders, float)], SQUARES: [2 * np.log1p(orders)], SOFT: [np.log(g) * orders for g in settings.gammas]}

    def errors(seed: int, penalty: np.ndarray) -> tuple[np.ndarray, ...]:
        rng = np.random.default_rng(seed)
        x = np.linspace(-1, 1, settings.num_points) if case.design == "grid" else rng.uniform(-1, 1, settings.num_points)
        structured = (TARGETS[case.target](x) - shift) / scale + settings.noise_sd * rng.normal(size=len(x))
        y = np.stack([structured, rng.normal(size=len(x))], 1)
        weights = np.exp(-penalty / 2)
        fits = descent.ridge_path(
            descent.legendre(x, settings.degree) * weights,
            y,
            settings.ridges,
            np.concatenate([descent.legendre(x, settings.degree), basis]) * weights,
        )
        noise_error = np.mean((fits[:, : len(x), 1] - y[:, 1]) ** 2, 1) / y[:, 1].var()
        risk = np.mean((fits[:, len(x) :, 0] - (truth - shift) / scale) ** 2, 1)
        return noise_error, risk, fits, np.concatenate([x[:, None], y], 1)

    results = []
    for arm, candidates in penalties.items():
        tuning = [[errors(FIRST_TUNING_SEED + t, c)[:2] for t in range(settings.num_tuning_seeds)] for c in candidates]
        noise_error, risk = np.moveaxis(np.array(tuning), 2, 0)  # (candidate, seed, ridge)
        benign = ((noise_error < FITS_NOISE) & (risk < settings.noise_sd**2)).mean(1)
        which, ridge = np.unravel_index(np.lexsort((risk.mean(1).ravel(), -benign.ravel()))[0], benign.shape)
        rows = [errors(seed, candidates[which]) for seed in settings.seeds]
        first, points = rows[0][2][ridge], rows[0][3]
        results.append(
            xr.Dataset(
                {
                    "noise_error": ("seed", [row[0][ridge] for row in rows]),
                    "risk": ("seed", [row[1][ridge] for row in rows]),
                    "gamma": settings.gammas[which] if arm == SOFT else math.nan,
                    "ridge": settings.ridges[ridge],
                    "curve": (("x", "data"), first[settings.num_points :]),
                    "points": (("point", "column"), points),
                },
                {"seed": list(settings.seeds), "x": grid, "data": ["structured", "noise"], "column": ["x", "structured", "noise"]},
            )
        )
    return xr.concat(results, xr.IndexVariable("arm", list(penalties)))


@functools.lru_cache(maxsize=2)
def load(case: Case, settings: Settings) -> data.Dataset:
    """Normalised inputs, split alike for all seeds."""
    return data.load(case.dataset, seed=0, normalise=True, data_dir=settings.data_dir)


def redrawn(labels: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Labels, a share of which is drawn anew from ten classes."""
    return np.where(rng.uniform(size=len(labels)) < noise, rng.integers(0, 10, len(labels)), labels)


def random_features(case: Case, settings: Settings) -> xr.Dataset:
    """Test error over numbers of features, by the fit of smallest norm and by ridge chosen on validation data."""
    dataset, table = load(case, settings), []
    parts = [(part.inputs.reshape(len(part.labels), -1), part.labels) for part in (dataset.train, dataset.validation, dataset.test)]
    for seed in settings.seeds:
        rng = np.random.default_rng(seed)
        rows = data.stratified_indices(dataset.train.labels, settings.num_train, seed=seed)
        inputs = jnp.concatenate([parts[0][0][rows], parts[1][0], parts[2][0]])
        every = np.asarray(descent.random_features(jax.random.key(seed), inputs, max(settings.counts)), np.float64)
        ends = np.cumsum([len(rows), len(parts[1][1])])
        train, other = every[: ends[0]], every[ends[0] :]
        noisy = [np.eye(10)[redrawn(labels, case.noise, rng)] for labels in (parts[0][1][rows], parts[1][1])]
        table.append([_feature_errors(train[:, :p], other[:, :p], noisy, np.eye(10)[parts[2][1]], settings) for p in settings.counts])
    coordinates = {"seed": list(settings.seeds), "features": list(settings.counts), "arm": [NO_RIDGE, RIDGE]}
    return xr.Dataset({"error": (list(coordinates), np.array(table))}, coordinates)


def _feature_errors(
    train: np.ndarray, other: np.ndarray, noisy: Sequence[np.ndarray], truth: np.ndarray, settings: Settings
) -> tuple[float, float]:
    fits = descent.ridge_path(train, noisy[0], [0.0, *settings.feature_ridges], other)
    validation, test = fits[:, : len(noisy[1])], fits[:, len(noisy[1]) :]
    chosen = 1 + np.argmin(np.mean((validation[1:] - noisy[1]) ** 2, (1, 2)))
    errors = np.mean((test - truth) ** 2, (1, 2))
    return errors[0], errors[chosen]


def isotropic_model(case: Case, settings: Settings) -> xr.Dataset:
    """Excess risk of fits to isotropic normal inputs, simulated and exact, and of the best ridge."""
    n, noise, table = settings.num_train, 0.5, []
    for seed in settings.seeds:
        rng, row = np.random.default_rng(seed), []
        for p in settings.counts:
            X, beta = rng.normal(size=(n, p)), np.full(p, 1 / math.sqrt(p))
            y = X @ beta + noise * rng.normal(size=n)
            fits = descent.ridge_path(X, y, [0.0, noise**2 * p], np.eye(p))  # the best ridge, n s^2 (p / n) / r^2
            risks = np.sum((fits - beta) ** 2, 1)
            exact = descent.isotropic_risk(n, p, 1.0, noise)
            row.append([*risks, exact if math.isfinite(exact) else math.nan])
        table.append(row)
    coordinates = {"seed": list(settings.seeds), "features": list(settings.counts), "arm": [NO_RIDGE, RIDGE, EXACT]}
    return xr.Dataset({"error": (list(coordinates), np.array(table))}, coordinates)


def width_sweep(case: Case, settings: Settings, width: int) -> xr.Dataset:
    """Test loss and effective dimensionality of trained MLPs of one width on noisy labels."""
    dataset, seeds = load(case, settings), settings.seeds
    rows = [data.stratified_indices(dataset.train.labels, settings.width_train, seed=seed) for seed in seeds]
    labels = np.stack([redrawn(dataset.train.labels[r], case.noise, np.random.default_rng(s)) for r, s in zip(rows, seeds, strict=True)])
    inputs = np.stack([dataset.train.inputs[r] for r in rows])
    net = models.create("mlp", num_classes=dataset.num_classes, width=width, depth=1)
    fn = functools.partial(_train_width, net=net, settings=settings)
    shared = (jnp.asarray(dataset.test.inputs), jnp.asarray(dataset.test.labels))
    results, params = lab.sweep(fn, seeds=seeds, per_seed={"inputs": inputs, "labels": labels}, shared=shared)
    loss_fn = landscape.per_example_loss(net.apply, "cross_entropy")
    dimensions = [
        _effective_dimensions(loss_fn, jax.tree.map(lambda leaf, s=s: leaf[s], params), (inputs[s], labels[s]), settings, seed)
        for s, seed in enumerate(seeds)
    ]
    return results.assign(effective_dimension=(("seed", "exponent"), dimensions)).assign_coords(exponent=list(settings.exponents))


def _train_width(
    key: jax.Array, *test_data: jax.Array, inputs: jax.Array, labels: jax.Array, net: models.Network, settings: Settings
) -> tuple[dict[str, jax.Array], Any]:
    options = training.Settings(num_epochs=settings.width_epochs, batch_size=50, measure_epochs=[settings.width_epochs])
    optimizer = training.sgd(settings.learning_rate, momentum=0.9)
    result = training.train(net, optimizer, (inputs, labels), key, options, test_data=test_data)
    names = {"train_accuracy": "train_accuracy", "test_loss": "test_loss", "test_accuracy": "test_accuracy"}
    return {name: result.history[key][-1] for name, key in names.items()}, result.params


def _effective_dimensions(loss_fn: Any, params: Any, examples: tuple, settings: Settings, seed: int) -> list[float]:
    """Of the Hessian of the summed training loss, for each alpha."""
    operator = landscape.hessian(loss_fn, params, tuple(map(jnp.asarray, examples)))
    count, dimension = len(examples[1]), operator.dimension
    if dimension <= EXACT_SPECTRUM:
        values = np.linalg.eigvalsh(np.asarray(jax.vmap(operator.matvec)(jnp.eye(dimension)), np.float64)) * count
        return [descent.effective_dimension(values, 10.0**exponent) for exponent in settings.exponents]
    density = landscape.spectral_density(operator.matvec, dimension, jax.random.key(seed), num_probes=2, num_steps=60)
    values = np.maximum(density.nodes * count, 0)
    return [float(dimension * np.mean(np.sum(density.weights * values / (values + 10.0**e), 1))) for e in settings.exponents]


def code_lengths(case: Case, settings: Settings) -> xr.Dataset:
    """Networks trained in a random subspace on true and on random labels: bits, training and test errors, and the bound.

    Raises:
      SettingsError: the network has a state, such as BatchNorm's statistics, which a code of its parameters leaves out.
    """
    dataset, rows = load(case, settings), []
    net = models.create(case.model, num_classes=dataset.num_classes, width=settings.hidden[0], depth=len(settings.hidden))
    for seed in settings.seeds:
        start_key, plane_key, order_key = jax.random.split(jax.random.key(seed), 3)
        start, state = net.init(start_key, jnp.asarray(dataset.train.inputs[:1]))
        if jax.tree.leaves(state):
            raise lab.SettingsError(
                f"S10 counts the bits of parameters, and {case.model} has a state beside them ({', '.join(state)}), which the count would "
                "leave out: give a network without BatchNorm"
            )
        subspace = pac_bayes.Subspace(plane_key, start, settings.dimension)
        matrix, random = subspace.columns(), redrawn(dataset.train.labels, 1.0, np.random.default_rng(seed))
        rows.append([_code(net, settings, dataset, subspace, matrix, labels, order_key) for labels in (dataset.train.labels, random)])
    names, table = ("bound", "train_error", "test_error", "bits", "step"), np.array(rows)
    table[:, 1, names.index("test_error")] = CHANCE  # of random labels
    coordinates = {"seed": list(settings.seeds), "labels": ["true", "random"]}
    return xr.Dataset({name: (("seed", "labels"), table[..., i]) for i, name in enumerate(names)}, coordinates)


def _code(
    net: models.Network,
    settings: Settings,
    dataset: data.Dataset,
    subspace: pac_bayes.Subspace,
    matrix: jax.Array,
    labels: np.ndarray,
    key: jax.Array,
) -> list[float]:
    """Bound, training and test error, bits and step of the quantiser, after training in the subspace on ``labels``."""
    inputs, start = jnp.asarray(dataset.train.inputs), subspace.params(jnp.zeros(settings.dimension))
    coordinates = _train_code(matrix, start, inputs, jnp.asarray(labels), key, net, settings)
    predict = jax.jit(lambda z: net.apply(subspace.params(z), inputs))
    certificate = pac_bayes.certify(predict, coordinates, labels, steps=settings.steps, delta=settings.delta)
    logits = net.apply(subspace.params(jnp.asarray(certificate.coordinates, jnp.float32)), jnp.asarray(dataset.test.inputs))
    test_error = float(np.mean(np.asarray(logits).argmax(1) != dataset.test.labels))
    return [certificate.bound, certificate.error, test_error, sum(certificate.bits.values()), certificate.step]


@functools.partial(jax.jit, static_argnames=("net", "settings"))
def _train_code(
    matrix: jax.Array, start: Any, inputs: jax.Array, labels: jax.Array, key: jax.Array, net: models.Network, settings: Settings
) -> jax.Array:
    """Coordinates after training by Adam."""
    flat, unravel = jax.flatten_util.ravel_pytree(start)
    plane = models.from_functions(lambda z, x: net.apply(unravel(flat + z @ matrix), x))
    options = training.Settings(num_epochs=settings.code_epochs, batch_size=100, measure_epochs=[settings.code_epochs])
    begin = (jnp.zeros(settings.dimension), {})
    return training.train(plane, optax.adam(settings.code_rate), (inputs, labels), key, options, start=begin).params


def benign(m: Any) -> xr.DataArray:
    """1 where the preference by order fits noise and overfits benignly."""
    chosen = m.polynomials.sel(arm=SOFT, drop=True)
    return ((chosen.noise_error < FITS_NOISE) & (chosen.risk < m.settings.noise_sd**2)).astype(float)


def second_descent(m: Any) -> xr.DataArray:
    """Least error before the threshold over the error at 10 n, log2."""
    error = m.random_features.error.sel(arm=NO_RIDGE, drop=True)
    first = error.sel(features=[p for p in m.settings.counts if p <= 0.9 * m.settings.num_train]).min("features")
    return np.log2(first / error.sel(features=10 * m.settings.num_train, drop=True))


def rise(m: Any) -> xr.DataArray:
    """Largest rise of the error with ridge from one number of features to a larger one, log2."""
    error = np.log2(m.random_features.error.sel(arm=RIDGE, drop=True))
    least = xr.apply_ufunc(
        functools.partial(np.minimum.accumulate, axis=-1), error, input_core_dims=[["features"]], output_core_dims=[["features"]]
    )
    return (error - least).max("features")


def tracking(m: Any) -> xr.DataArray:
    """Kendall's tau of effective dimensionality and test loss, over widths from the first that interpolates, largest over alpha."""
    results = m.width_sweep

    def tau(accuracy: np.ndarray, loss: np.ndarray, dimensions: np.ndarray) -> float:
        fits = np.flatnonzero(accuracy >= 0.99)
        if not len(fits) or len(loss) - fits[0] < 3:
            return math.nan
        taus = [stats.kendall(row[fits[0] :], loss[fits[0] :]) for row in dimensions]
        return float(np.nanmax(taus))

    core = [["width"], ["width"], ["exponent", "width"]]
    return xr.apply_ufunc(tau, results.train_accuracy, results.test_loss, results.effective_dimension, input_core_dims=core, vectorize=True)


def informative(m: Any) -> xr.DataArray:
    """The smaller of two distances from chance."""
    bound = m.code_lengths.bound
    return np.minimum(CHANCE - bound.sel(labels="true", drop=True), bound.sel(labels="random", drop=True) - CHANCE)


def peak(m: Any) -> xr.DataArray:
    """Risk just beyond the threshold over the risk of the largest model, log2."""
    error, n = m.isotropic_model.error.sel(arm=NO_RIDGE, drop=True), m.settings.num_train
    beyond = min(p for p in m.settings.counts if p > n)
    return np.log2(error.sel(features=beyond, drop=True) / error.sel(features=max(m.settings.counts), drop=True))


def draw_polynomials(run: Any) -> Any:
    """The fits of the first seed, with and without a preference, structured data above and noise below."""
    cases = [m for m in run.cases if m.case.kind == POLYNOMIAL]
    fig, axes = report.figure(len(cases), 2, width=7.0, height=2.0 * len(cases), squeeze=False)
    with report.style():
        for row, m in zip(axes, cases, strict=True):
            results = m.polynomials
            for ax, kind in zip(row, ("structured", "noise"), strict=True):
                points = results.points.isel(arm=0)
                for arm in (FLAT, SQUARES, SOFT):
                    ax.plot(results.x, results.curve.sel(arm=arm, data=kind), linewidth=0.9, label=arm)
                ax.plot(points.sel(column="x"), points.sel(column=kind), "k.", markersize=4)
                ax.set_ylim(-3.5, 3.5)
                ax.set_title(f"{m.name}: {kind}", fontsize=9)
        fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return fig


def draw_widths(run: Any) -> Any:
    """Test loss on the left axis, effective dimensionality on the right one, over widths; a panel a case."""
    cases = [m for m in run.cases if m.case.kind == WIDTHS]
    if not cases:
        return None
    fig, axes = report.figure(len(cases), 1, squeeze=False)
    for ax, m in zip(axes[:, 0], cases, strict=True):
        results = m.width_sweep.transpose("seed", "exponent", "width")
        with report.style():
            right = ax.twinx()
        exponents = results.exponent.values
        report.curve(ax, results.width, results.test_loss, label="test loss")
        right.set_prop_cycle(color=report.PALETTE[1:])
        for exponent in dict.fromkeys((exponents[0], exponents[len(exponents) // 2], exponents[-1])):
            report.curve(right, results.width, results.effective_dimension.sel(exponent=exponent), label=f"alpha = 1e{exponent}", log=True)
        taus = tracking(m)
        with report.style():
            ax.set_xscale("log", base=2)
            ax.set_xticks(results.width, [f"{width}" for width in results.width.values])
            ax.set(xlabel="width", ylabel="test loss")
            right.set_ylabel("effective dimensionality")
            right.grid(False)
            right.spines["right"].set_visible(True)
            ax.set_title(f"{m.name}: tau {float(taus.mean()):.2f}" if taus.notnull().any() else f"{m.name}: too few widths fit for a tau")
            handles, labels = (ours + theirs for ours, theirs in zip(*(a.get_legend_handles_labels() for a in (ax, right)), strict=True))
            ax.legend(handles, labels, fontsize=8, loc="upper center")
    return fig


def kind_is(kind: str) -> Any:
    """A filter of cases, also as a stage's."""
    return lambda case, settings=None: case.kind == kind


def error_and_bits(m: Any) -> xr.DataArray:
    """The bound as training error and price of the bits, and the test error, (seed, labels, part)."""
    results = m.code_lengths
    parts = {"training error": results.train_error, "price of the bits": results.bound - results.train_error}
    return xr.concat((parts | {TEST_ERROR: results.test_error}).values(), xr.IndexVariable("part", [*parts, TEST_ERROR]))


COSTS: Mapping[str, float] = {POLYNOMIAL: 1, FEATURES: 8, ISOTROPIC: 8, WIDTHS: 4, CODE: 20}

METHOD = (
    "Polynomials are sums of orthonormal Legendre polynomials up to degree 150; a penalty gamma^j on coefficient j and its strength are "
    "chosen on other seeds to favour the claim. Excess risk is the mean over 2,001 points of [-1, 1].",
    "Random features are ReLUs of directions of unit length, regressed on one-hot labels, nested in their number. Ridge is chosen on "
    "validation data whose labels are as noisy as the training data's. The isotropic model's risk is known exactly, and drawn beside.",
    "Effective dimensionality sums lambda / (lambda + alpha) over the Hessian of the summed training loss; of alpha that value counts "
    "which favours the claim. For nested random features it can never fall: a theorem, so that no case of S10.d is one.",
    "A network is trained in a random subspace of a start that the seed alone decides, its coordinates quantised and coded by the mixture "
    "of Krichevsky and Trofimov; step, largest symbol and alphabet are paid for. The bound inverts kl. On random labels training fails in "
    "so few dimensions, so that the bound is uninformative by the training error as well as by the bits.",
)

STUDY = lab.Study(
    id="S10",
    title="Do soft preferences explain what seems mysterious about deep learning?",
    lead="Benign overfitting, double descent and models that can fit noise are said to be no mystery: a flexible model with a soft "
    "preference for simple solutions shows them all, and bounds that count bits explain them. Here each statement is measured.",
    module="experiments.soft_biases",
    paper=papers.SOFT_BIASES,
    stages=(
        lab.Stage(polynomials, where=kind_is(POLYNOMIAL), group="all"),
        lab.Stage(random_features, where=kind_is(FEATURES), cost=lambda case, settings: COSTS[case.kind], group="all"),
        lab.Stage(isotropic_model, where=kind_is(ISOTROPIC), cost=lambda case, settings: COSTS[case.kind], group="all"),
        lab.Stage(
            width_sweep,
            over=lambda case, settings: {"width": settings.widths},
            where=kind_is(WIDTHS),
            cost=lambda case, settings, width: COSTS[case.kind],
            group="all",
        ),
        lab.Stage(code_lengths, where=kind_is(CODE), cost=lambda case, settings: COSTS[case.kind], group="all"),
    ),
    measures=(
        lab.Measure(claims.S10A, benign, where=kind_is(POLYNOMIAL), interval_fn=stats.event_interval),
        lab.Measure(claims.S10B, second_descent, where=kind_is(FEATURES)),
        lab.Measure(claims.S10C, rise, where=kind_is(FEATURES)),
        lab.Measure(claims.S10D, tracking, where=kind_is(WIDTHS)),
        lab.Measure(claims.S10E, informative, where=kind_is(CODE)),
    ),
    controls=(
        lab.Control(
            "positive",
            "In the isotropic model, whose risk is known, the fit of smallest norm has a peak, and the largest model lies below it.",
            "log2 of (excess risk just beyond p = n / that of the largest model)",
            Above(1.0),
            peak,
            where=kind_is(ISOTROPIC),
            claims=("S10.b", "S10.c"),
        ),
        lab.Control(
            "negative",
            "No bound lies below the test error.",
            "test error minus bound, true labels",
            Below(0.0),
            lambda m: (m.code_lengths.test_error - m.code_lengths.bound).sel(labels="true", drop=True),
            where=kind_is(CODE),
            claims=("S10.e",),
        ),
    ),
    figures=(
        report.CustomFigure(
            draw_polynomials,
            per_case=False,
            name="polynomials",
            alt="polynomials of degree 150 over data",
            caption="Polynomials of degree 150 over 40 points, first seed: without a preference, with penalties (1 + j)^2, and with "
            "gamma^j as chosen. Left structured data, right pure noise; a curve that leaves the panel is cut.",
        ),
        report.SeedCurves(
            "random_features.error",
            x="features",
            x_scale="log",
            log=True,
            name="features",
            ylabel="test error (squared)",
            caption="Test error over the number of random features, by the fit of smallest norm and with ridge chosen on validation data.",
        ),
        report.SeedCurves(
            "isotropic_model.error",
            x="features",
            x_scale="log",
            log=True,
            name="isotropic",
            ylabel="excess risk",
            caption="The isotropic model: simulated fits, the best ridge, and the exact risk of the fit of smallest norm.",
        ),
        report.CustomFigure(
            draw_widths,
            per_case=False,
            name="widths",
            alt="test loss and effective dimensionality over widths",
            caption="Test loss (left axis) and effective dimensionality of the Hessian (right axis) over widths, for three of the alphas. "
            "Tau is that of S10.d, the mean over seeds.",
        ),
        report.StackedBars(
            error_and_bits,
            parts="part",
            mark=TEST_ERROR,
            by="labels",
            lines={"chance": CHANCE},
            name="codes",
            xlabel="bound of the error",
            alt="bound that counts bits, split into training error and bits",
            caption="The bound that counts bits, true and random labels, split into the training error and what the bits cost; dots are "
            "seeds, the black line is the test error, that of guessing for random labels.",
        ),
    ),
    tables=(
        report.MeanTable(
            lambda m: m.polynomials[["noise_error", "risk", "gamma", "ridge"]].to_dataarray("measure"),
            columns="measure",
            rows=("arm",),
            section="Polynomials",
            caption="Relative training error on noise, excess risk on structured data (noise variance 0.01), and what tuning chose.",
        ),
        report.MeanTable(
            lambda m: m.code_lengths.to_dataarray("measure"),
            columns="measure",
            rows=("labels",),
            section="Bits",
            caption="Bound, errors and bits of networks in a subspace; means and 95 % intervals over seeds.",
        ),
    ),
    method=METHOD,
)
