"""Do layers of low rank generalise better, or resist attack? Paper: "Truth or Backpropaganda?", section on rank, Figure 2 and Table 4.

One stage: a job is a seed of a network under one kind of training. The base network is trained and fine-tuned three times, and each
outcome is measured: ranks of layers, accuracy, and what attacks leave of it. Ranks are those of the circular operators with true
strides and map sizes, in which RankMin and RankMax project.
"""

import dataclasses
import functools
import itertools
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from experiments.rank_robustness import claims
from experiments.rank_robustness.settings import (
    ADVERSARIAL,
    ARMS,
    CONTROL,
    NATURAL,
    PROJECTED,
    RANK_MAX,
    RANK_MIN,
    TRAININGS,
    UNTRAINED,
    Case,
    Settings,
)
from jaxbp import attacks, data, lab, metrics, models, report, spectra, training
from jaxbp.data import augment

_CURVE_STEPS = 20  # of PGD, as in the paper
_PAPER = {  # Table 4: train, clean, PGD-20 at 8/255 and at 1/255
    (NATURAL, CONTROL): (99.99, 94.66, 0.00, 31.98),
    (NATURAL, RANK_MAX): (99.76, 93.66, 0.00, 22.01),
    (NATURAL, RANK_MIN): (99.90, 94.44, 0.00, 31.53),
    (ADVERSARIAL, CONTROL): (89.66, 85.06, 33.10, 80.49),
    (ADVERSARIAL, RANK_MAX): (89.21, 84.72, 32.40, 80.11),
    (ADVERSARIAL, RANK_MIN): (88.33, 84.68, 30.57, 79.98),
}


@functools.lru_cache(maxsize=4)
def load(name: str, data_dir: Path | None) -> data.Dataset:
    """The data, raw: attacks are in the units of pixels, from 0 to 1."""
    return data.load(name, seed=0, validation=0, data_dir=data_dir)


def examples(case: Case, settings: Settings, part: str, count: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The seed's examples of a part, classes in proportion."""
    split = getattr(load(case.dataset, settings.data_dir), part)
    if count is None:
        return split.inputs, split.labels
    rows = data.stratified_indices(split.labels, count, seed=seed)
    return split.inputs[rows], split.labels[rows]


@functools.cache
def network(case: Case, settings: Settings) -> models.Network:
    """The network of a case, of raw pixels.

    Raises:
      lab.SettingsError: its data set cannot be attacked.
    """
    dataset = load(case.dataset, settings.data_dir)
    pixels, most_targets = dataset.train.inputs, max(3, settings.num_targets)
    if pixels.min() < 0 or pixels.max() > 1:
        raise lab.SettingsError(
            f"inputs must lie from 0 to 1 to be attacked, got {pixels.min():.3g} to {pixels.max():.3g} in {case.dataset}: "
            "choose another data set"
        )
    if dataset.num_classes <= most_targets:
        raise lab.SettingsError(
            f"targeted attacks need more than {most_targets} classes, {case.dataset} has {dataset.num_classes}: choose another data set"
        )
    net = models.create(case.model, num_classes=dataset.num_classes, width=case.width, **dict(case.options))
    moments = tuple(pixels.mean((0, 1, 2)).tolist()), tuple((pixels.std((0, 1, 2)) + 1e-6).tolist())
    return models.with_normalised_inputs(net, *moments)


@functools.partial(jax.jit, static_argnums=0)
def initialise(net: models.Network, key: jax.Array, inputs: jax.Array) -> tuple[Any, Any]:
    """Fresh parameters and state."""
    return net.init(key, inputs[:1])


@functools.partial(jax.jit, static_argnums=0)
def layer_spectra(net: models.Network, params: Any, inputs: jax.Array, state: Any) -> dict[str, spectra.Spectrum]:
    """Spectra of the convolutions that RankMin and RankMax treat."""
    apply_fn = functools.partial(net.apply, state=state)
    return spectra.of_network(apply_fn, params, inputs[:1], pattern=spectra.inner_convolutions, padding="circular")


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def train_base(net: models.Network, settings: Settings, adversarial: bool, start: tuple, split: tuple, key: jax.Array) -> Any:
    """The base network, a `training.TrainResult`."""
    epochs = settings.num_epochs
    return _train(net, settings, adversarial, settings.learning_rate, start, split, key, num_epochs=epochs, measure_epochs=(epochs,))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def fine_tune(
    net: models.Network, settings: Settings, adversarial: bool, arm: jax.Array, start: tuple, split: tuple, key: jax.Array
) -> training.TrainResult:
    """An arm, given by its place in `ARMS`: one program serves all. Effective ranks, (epochs, layers), are measured."""
    (params, state), inputs = start, split[0]
    apply_fn, options = functools.partial(net.apply, state=state), {"num_projections": settings.num_projections}
    lower = spectra.rank_min(apply_fn, params, inputs[:1], threshold=settings.threshold, **options)
    cap = spectra.rank_max(apply_fn, params, inputs[:1], ceiling=settings.ceiling, **options)
    projections = {CONTROL: lambda p: p, RANK_MIN: lambda p: lower(p)[0], RANK_MAX: lambda p: cap(p)[0]}

    def measure_ranks(now: training.TrainState) -> jax.Array:
        by_layer = layer_spectra(net, now.params, inputs, now.model_state)
        return jnp.stack([spectra.nuclear_rank(spectrum) for spectrum in by_layer.values()])

    return _train(
        net,
        settings,
        adversarial,
        settings.fine_tuning_rate,
        start,
        split,
        key,
        measure_ranks,
        num_epochs=settings.num_fine_tuning,
        measure_epochs=settings.measure_epochs,
        project_epochs=settings.project_epochs,
        project_fn=lambda p: jax.lax.switch(arm, [projections[name] for name in ARMS], p),
    )


def _train(
    net: models.Network, settings: Settings, adversarial: bool, rate: float, start: tuple, split: tuple, key: jax.Array,
    measure_fn: Callable | None = None, **options: Any,
) -> training.TrainResult:  # fmt: skip
    perturbation = attacks.pgd_training(attacks.Threat("linf", settings.radius), num_steps=settings.training_steps)

    def perturb(key: jax.Array, state: training.TrainState, inputs: jax.Array, labels: jax.Array) -> jax.Array:
        # As in the code of Madry et al., BatchNorm goes by the batch, whose statistics then are dropped.
        logits_fn = models.with_batch_statistics(net)
        return perturbation(key, lambda x: logits_fn(state.params, x, state.model_state), inputs, labels)

    steps = training.num_steps(len(split[1]), options["num_epochs"], settings.batch_size)
    optimizer = training.sgd(rate, momentum=settings.momentum, weight_decay=settings.weight_decay, decay_steps=steps)
    plan = training.Settings(
        batch_size=settings.batch_size,
        augment_fn=augment.crop_and_flip(settings.crop, flip=settings.flip) if settings.crop else None,
        perturb_fn=perturb if adversarial else None,
        **options,
    )
    return training.train(net, optimizer, split, key, plan, start=start, measure_fn=measure_fn)


def compare(case: Case, settings: Settings, *, training: str, seed: int) -> xr.Dataset:
    """The three arms of one seed under one kind of training; accuracies in per cent, singular values largest first, NaN after the last."""
    net, adversarial = network(case, settings), training == ADVERSARIAL
    # The key is the same for both kinds of training and for all arms, so that they are paired.
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(case.name.encode()))
    start_key, order_key, tune_key, attack_key = jax.random.split(key, 4)
    inputs, labels = split = examples(case, settings, "train", settings.num_train, seed)
    fresh = initialise(net, start_key, inputs)
    base = train_base(net, settings, adversarial, fresh, split, order_key)
    start = base.params, base.state
    tuned = [fine_tune(net, settings, adversarial, place, start, split, tune_key) for place in range(len(ARMS))]
    by_weights = [layer_spectra(net, params, inputs, state) for params, state in (fresh, *((end.params, end.state) for end in tuned))]
    networks = [jax.tree_util.Partial(net.apply, end.params, state=end.state) for end in tuned]
    attacked = under_attack(networks, settings, *examples(case, settings, "test", settings.num_test, seed), attack_key)
    return xr.Dataset(
        {
            "train_loss": ("arm", [float(end.history["train_loss"][-1]) for end in tuned]),
            "train_accuracy": ("arm", [100 * float(metrics.accuracy(_logits(fn, inputs), labels).mean()) for fn in networks]),
            **attacked,
            "effective_rank": (("weights", "layer"), [[float(spectra.nuclear_rank(s)) for s in of.values()] for of in by_weights]),
            "effective_rank_along": (("arm", "epoch", "layer"), np.stack([np.asarray(end.measured) for end in tuned])),
            "singular_values": (("arm", "layer", "index"), _stack([[s.values for s in of.values()] for of in by_weights[1:]])),
        },
        {
            "arm": list(ARMS),
            "weights": [UNTRAINED, *ARMS],
            "layer": list(by_weights[0]),
            "epoch": list(settings.measure_epochs),
            "radius": list(settings.curve),
            "judged_radius": [settings.small_radius, settings.radius],
        },
    )


def _stack(values: list[list[Any]]) -> np.ndarray:
    """Singular values by arm and layer, largest first, (arms, layers, longest)."""
    longest = max(len(of_layer) for of_layer in values[0])
    pads = [[np.full(longest - len(of_layer), np.nan, np.float32) for of_layer in of_arm] for of_arm in values]
    pairs = [zip(of_arm, of_pad, strict=True) for of_arm, of_pad in zip(values, pads, strict=True)]
    return np.array([[np.concatenate([np.sort(np.asarray(of_layer))[::-1], pad]) for of_layer, pad in pair] for pair in pairs])


@jax.jit
def _logits(network_fn: Any, inputs: jax.Array) -> jax.Array:
    return network_fn(inputs)


def under_attack(networks: list, settings: Settings, inputs: np.ndarray, labels: np.ndarray, key: jax.Array) -> Mapping[str, tuple]:
    """Test accuracy in per cent without attack, under PGD at the radii of the curve and under the strongest attack at those judged."""
    evaluate = functools.partial(attacks.robust_accuracy, key=key, inputs=inputs, labels=labels, batch_size=settings.attack_batch)
    pgd, strongest = [], []
    for network_fn in networks:
        of_pgd = ({"pgd": attacks.pgd(attacks.Threat("linf", radius), num_steps=_CURVE_STEPS)} for radius in settings.curve)
        pgd.append([evaluate(network_fn, attacks=attack, check_masking=False) for attack in of_pgd])
        options = {"num_steps": settings.attack_steps, "num_targets": settings.num_targets, "num_queries": settings.num_queries}
        suites = (attacks.autoattack_suite(attacks.Threat("linf", r), **options) for r in (settings.small_radius, settings.radius))
        strongest.append([evaluate(network_fn, attacks=suite) for suite in suites])
    return {
        "test_accuracy": ("arm", [100 * of_arm[0].clean.estimate for of_arm in strongest]),
        "pgd_accuracy": (("arm", "radius"), [[100 * e.worst_case.estimate for e in of_arm] for of_arm in pgd]),
        "robust_accuracy": (("arm", "judged_radius"), [[100 * e.worst_case.estimate for e in of_arm] for of_arm in strongest]),
        "masking_suspected": (("arm", "judged_radius"), [[float(e.masking_suspected) for e in of_arm] for of_arm in strongest]),
    }


def log_rank(m: Any, weights: str) -> xr.DataArray:
    """log2 of the effective rank, mean over layers, by training and seed; a network that diverged has none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log2(m.compare.effective_rank.sel(weights=weights, drop=True)).mean("layer", skipna=False)


def _change(values: xr.DataArray) -> xr.DataArray:
    return values.sel(arm=list(PROJECTED)) - values.sel(arm=CONTROL, drop=True)


def change(m: Any, variable: str) -> xr.DataArray:
    """A variable of RankMin and RankMax minus that of the control, within pairs.

    A network that diverged has an accuracy of 0, which compares nothing: its difference is NaN.
    """
    return _change(m.compare[variable]).where(np.isfinite(_change(m.compare.train_loss)))


def rank_change(m: Any) -> xr.DataArray:
    """log2 of the effective rank after RankMin and after RankMax minus that of the control."""
    return xr.concat([log_rank(m, arm) - log_rank(m, CONTROL) for arm in PROJECTED], xr.DataArray(list(PROJECTED), dims="arm", name="arm"))


def of_projected(values: Callable[[Any], xr.DataArray]) -> Callable[[Any], dict[str, xr.DataArray]]:
    """The slices of ``values(m)`` by kind of training and arm in words."""
    pairs = list(itertools.product(TRAININGS, PROJECTED))
    return lambda m: {f"{training}, {arm}": values(m).sel(training=training, arm=arm) for training, arm in pairs}


def intended_rank_change(m: Any) -> xr.DataArray:
    """The change of rank, positive where it is the one intended."""
    return rank_change(m) * xr.DataArray([-1.0, 1.0], coords={"arm": list(PROJECTED)})


def robust_change(m: Any) -> dict[str, xr.DataArray]:
    """Robust accuracy after RankMin minus the control's, where it is judged.

    Naturally trained networks have little left to lose at the larger radius.
    """
    values, (small, large) = change(m, "robust_accuracy").sel(arm=RANK_MIN), m.compare.judged_radius.values.tolist()
    judged = ((NATURAL, small), (ADVERSARIAL, small), (ADVERSARIAL, large))
    return {f"{training}, radius {radius:.3g}": values.sel(training=training, judged_radius=radius) for training, radius in judged}


def adversarial_rank(m: Any) -> xr.DataArray:
    """log2 of the effective rank, adversarially minus naturally trained, without a projection."""
    return log_rank(m, CONTROL).sel(training=ADVERSARIAL, drop=True) - log_rank(m, CONTROL).sel(training=NATURAL, drop=True)


def untrained_rank(m: Any) -> dict[str, xr.DataArray]:
    """log2 of the effective rank, untrained minus trained, without a projection."""
    return {training: (log_rank(m, UNTRAINED) - log_rank(m, CONTROL)).sel(training=training) for training in TRAININGS}


def in_all_cases(values: Callable[[Any], Mapping[str, xr.DataArray]]) -> Callable[[Any], dict[str, np.ndarray]]:
    """The labelled values of every case of a run."""
    return lambda run: {f"{m.name}, {label}": array.values for m in run.cases for label, array in values(m).items()}


def over_radii(m: Any) -> xr.DataArray:
    """Test accuracy by radius under PGD; radius 0 is without attack."""
    return xr.concat([m.compare.test_accuracy.expand_dims(radius=[0.0]), m.compare.pgd_accuracy], "radius")


def clean_and_robust(m: Any) -> dict[str, xr.DataArray]:
    """Test accuracies of all arms, first without attack, then by radius."""
    clean = {f"{arm}, clean": m.compare.test_accuracy.sel(arm=arm, drop=True) for arm in ARMS}
    pairs = itertools.product(m.compare.judged_radius.values.tolist(), ARMS)
    return clean | {f"{arm}, radius {r:.3g}": m.compare.robust_accuracy.sel(arm=arm, judged_radius=r, drop=True) for r, arm in pairs}


def rank_along(m: Any) -> xr.DataArray:
    """log2 of the effective rank along fine-tuning, relative to its start, mean over layers."""
    ranks = np.log2(m.compare.effective_rank_along).mean("layer", skipna=False)
    return ranks - ranks.isel(epoch=0)


def last_singular_values(m: Any) -> xr.DataArray:
    """Singular values of the last treated convolution, largest first, over their share."""
    values = m.compare.singular_values.isel(layer=-1).dropna("index", how="all").rename(index="share")
    return values.assign_coords(share=np.linspace(0, 1, values.sizes["share"]))


def accuracies(m: Any) -> dict[str, xr.DataArray]:
    """All accuracies by heading."""
    values = {"train": m.compare.train_accuracy, "clean": m.compare.test_accuracy}
    for radius in m.compare.judged_radius.values.tolist():
        values[f"PGD-20, {radius:.3g}"] = m.compare.pgd_accuracy.sel(radius=radius, drop=True)
        values[f"strongest, {radius:.3g}"] = m.compare.robust_accuracy.sel(judged_radius=radius, drop=True)
    return values


def differences(m: Any) -> dict[str, xr.DataArray]:
    """Paired differences from the control by heading."""
    robust = change(m, "robust_accuracy")
    of_radius = {f"strongest, {r:.3g}": robust.sel(judged_radius=r, drop=True) for r in robust.judged_radius.values.tolist()}
    return {"log2 of rank": rank_change(m), "clean": change(m, "test_accuracy"), **of_radius}


def paper_table(run: Any) -> report.Table:
    """The paper's accuracies."""
    rows = [(training, arm, *(f"{value:.2f}" for value in values)) for (training, arm), values in _PAPER.items()]
    columns = ("training", "arm", "train", "clean", "PGD-20, 8/255", "PGD-20, 1/255")
    return report.Table(columns, rows, "The paper's Table 4 (ResNet-18, CIFAR-10), one run each.")


def masking_caption(run: Any) -> str:
    """What the table of masked gradients counts."""
    return (
        f"Networks, of {run.settings.num_seeds}, in which some sign of masked gradients was found (Athalye et al., ICML 2018): their "
        "robust accuracy may be overstated."
    )


def cost(case: Case, settings: Settings, *, training: str, seed: int) -> float:
    """Passes of a step. Earlier seeds come first, so that workers beside each other compile the programs of different networks."""
    return 1.0 + settings.training_steps * (training == ADVERSARIAL) - 1e-6 * seed


METHOD = (
    "Singular values are those of each convolution as an operator on its own feature map, with its stride: exact for circular padding, "
    "by folding the frequencies that a stride confounds. The networks pad with zeros; RankMin and RankMax, as in the paper, act on the "
    "circular operator. First convolution and shortcuts are left alone.",
    "RankMin sets singular values below the threshold to 0, RankMax cuts those above the ceiling; kernels then come back to their "
    "window, which undoes a part, and training goes on. What is judged is the rank at the end, whatever was asked. The network left "
    "alone is fine-tuned alike, from the same parameters, on the same batches.",
    "Adversarial training replaces each batch by PGD examples from a random start (Madry et al., ICLR 2018). Robust accuracy is the worst "
    "case over APGD on the cross-entropy, targeted APGD on the DLR loss (Croce & Hein, ICML 2020) and Square (Andriushchenko et al., "
    "ECCV 2020), each tried on what is left. PGD of 20 steps, the paper's measure, is shown beside it.",
    f"Clean accuracy counts as the same within {claims.CLEAN_MARGIN:g} percentage point, a gain of robust accuracy as none below "
    f"{claims.ROBUST_MARGIN:g}. A claim is supported only if it is in every case. Seeds draw training and test examples, initial "
    "parameters and the order of the data.",
)
_NOT_READ = ("preset", "cases", "num_seeds", "data_dir")  # so that more seeds keep the jobs of the first ones
_PANELS = {"panel_by": "training", "title": lambda m: m.case.network}
_ROWS = {"rows": ("training", "arm"), "headings": ("network", "training", "arm")}

STUDY = lab.Study(
    id="S4",
    title="Do layers of low rank generalise better, or resist attack?",
    lead="Trained networks are said to generalise, or to resist attack, because their layers are of low rank. RankMin and RankMax push "
    "the singular values of convolutions, taken as the operators that they are, down and up during fine-tuning; a third arm is "
    "fine-tuned alike and left alone. Accuracy is compared within pairs, without attack and under the strongest of several.",
    module="experiments.rank_robustness",
    stages=(
        lab.Stage(
            compare, over=lambda case, settings: {"training": TRAININGS, "seed": settings.seeds}, cost=cost,
            reads=tuple(field.name for field in dataclasses.fields(Settings) if field.name not in _NOT_READ),
        ),
    ),
    measures=(
        lab.Measure(claims.S4A, in_all_cases(of_projected(intended_rank_change)), across=True),
        lab.Measure(claims.S4B, in_all_cases(of_projected(lambda m: change(m, "test_accuracy"))), across=True),
        lab.Measure(claims.S4C, in_all_cases(robust_change), across=True),
        lab.Measure(claims.S4D, adversarial_rank),
        lab.Measure(claims.S4E, in_all_cases(untrained_rank), across=True),
    ),
    figures=(
        report.SeedCurves(
            "compare.effective_rank", x="layer", by="weights", show=(*ARMS, UNTRAINED), **_PANELS, xlabel="convolution",
            ylabel="effective rank", name="rank_by_layer", alt="effective rank of each convolution, by arm",
            caption="Figure 2 of the paper rebuilt: effective rank (nuclear over Frobenius norm) of each treated convolution as an operator, "
            "after fine-tuning and before any training. Thin lines are seeds, bands 95 % intervals. The largest possible value is the root "
            "of the number of singular values, which differs between layers.",
        ),
        report.SeedCurves(
            over_radii, x="radius", **_PANELS, ylabel="accuracy, %", name="accuracy_by_radius",
            alt="test accuracy under PGD against the radius, by arm",
            caption="Test accuracy under PGD of 20 steps against the radius of the l_inf ball; radius 0 is without attack.",
        ),
        report.SeedStrip(
            clean_and_robust, **_PANELS, xlabel="test accuracy, %", name="clean_and_robust",
            alt="test accuracy without attack and under the strongest attack, by arm",
            caption="Test accuracy without attack and under the strongest attack (the worst of APGD on the cross-entropy, targeted APGD on "
            "the DLR loss, and Square) at both radii. A dot is a seed, bars are 95 % intervals of the mean.",
        ),
        report.SeedCurves(
            rank_along, **_PANELS, xlabel="epoch of fine-tuning", ylabel="log2 of rank / rank at start", name="rank_along",
            alt="effective rank along fine-tuning, by arm",
            caption="Effective rank along fine-tuning, relative to its start, mean of log2 over layers: right after each projection, and at "
            "the end, some epochs after the last one. What training undoes shows at the end.",
        ),
        report.SeedCurves(
            last_singular_values, x="share", **_PANELS, mean_only=True, dashed=(CONTROL,), xlabel="share of singular values",
            ylabel="singular value", lines=lambda m: (m.settings.threshold, m.settings.ceiling), name="singular_values",
            alt="singular values of the last treated convolution, largest first, by arm",
            caption="Singular values of the last treated convolution after fine-tuning, largest first, mean over seeds at each rank. "
            "Dotted: the threshold of RankMin and the ceiling of RankMax.",
        ),
    ),
    tables=(
        report.MeanTable(
            accuracies, **_ROWS, section="Accuracy", caption="Accuracy in per cent; means and 95 % intervals over seeds.",
        ),
        report.CustomTable(paper_table, section="Accuracy"),
        report.MeanTable(
            differences, **_ROWS, section="Paired differences from the network left alone",
            caption="Percentage points within pairs; means and 95 % intervals over seeds.",
        ),
        report.MeanTable(
            "compare.effective_rank", columns="weights", rows=("training", "layer"), headings=("network", "training", "layer"),
            section="Effective rank", caption="Nuclear over Frobenius norm; means and 95 % intervals over seeds.",
        ),
        report.MeanTable(
            "compare.masking_suspected", columns="judged_radius", labels=lambda radius: f"radius {radius:.3g}", **_ROWS,
            cell_fn=lambda suspected: int(suspected.sum()), section="Signs of masked gradients", caption=masking_caption,
        ),
    ),
    method=METHOD,
)  # fmt: skip
