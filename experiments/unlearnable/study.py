"""What can be learnt from unlearnable data?

Paper: "What can we learn from unlearnable datasets?" (Sandoval-Segura et al., NeurIPS 2023). All trainings of a seed are one program: arms
differ in their training data alone. Projections come from a linear classifier of each poisoned set, and are tried on clean data, too.
"""

import functools
import zlib
from typing import Any

import jax
import numpy as np
import xarray as xr

from experiments import papers
from experiments.unlearnable import claims
from experiments.unlearnable.settings import FIRST_SEED, Case, Poison, Settings
from jaxbp import attacks, data, lab, metrics, models, report, stats, training, unlearnable
from jaxbp.claims import Above
from jaxbp.data import augment, poisons

TESTS = ("raw test data", "projected test data")
CUTMIX_SHARE = 0.5  # of the batches, as in the authors' defaults
LINEAR_STEPS = 49  # an epoch, as 1,024 of 50,000 images a step make in the paper
ROUNDS, ATTACK_STEPS, ATTACK_BATCH = 100, 250, 1024
RADIUS = 1.5  # of the frequencies of waves, radians a pixel


@functools.cache
def network(case: Case, num_classes: int) -> models.Network:
    """The network of a case."""
    return models.create(case.model, num_classes=num_classes, width=case.width, **dict(case.options))


def train(
    key: jax.Array,
    *,
    inputs: jax.Array,
    labels: jax.Array,
    cutmix: float | jax.Array = 0.0,
    case: Case,
    settings: Settings,
    num_classes: int,
) -> tuple[dict[str, Any], tuple]:
    """One run: its training accuracy, and the trained parameters and state."""
    steps = training.num_steps(len(inputs), case.num_epochs, settings.batch_size)
    sgd = training.sgd(case.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay, decay_steps=steps)
    options = training.Settings(
        num_epochs=case.num_epochs,
        batch_size=settings.batch_size,
        measure_epochs=(case.num_epochs,),
        augment_fn=augment.crop_and_flip(case.crop, flip=case.flip) if case.crop else None,
        mix_fn=augment.cutmix(cutmix) if case.cutmix else None,
    )
    result = training.train(network(case, num_classes), sgd, (inputs, labels), key, options)
    return {"train_accuracy": 100 * result.history["train_accuracy"][-1]}, (result.params, result.state)


def perturb(poison: Poison, key: jax.Array, split: data.Dataset, labels: np.ndarray, case: Case, settings: Settings) -> np.ndarray:
    """Perturbations of the training data, (N, H, W, C), for ``labels``, which are the data's but for the control."""
    inputs, shape, count = split.train.inputs, split.input_shape, split.num_classes
    if poison.kind == "patches":
        return poisons.class_patches(key, labels, shape, count, rms=poison.size, patch=poison.patch)
    if poison.kind == "one pixel":
        return poisons.one_pixel(inputs, labels, count)
    if poison.kind == "waves":
        angles, steps = np.pi * np.arange(count) / count, np.linspace(0.4, 2.8, count)
        turned = RADIUS * np.stack([np.cos(angles), np.sin(angles)], 1)
        return poisons.waves(key, labels, shape, turned if shape[1] > 1 else np.stack([steps, 0 * steps], 1), rms=poison.size)
    if poison.kind == "autoregressive":
        filter_key, start_key = jax.random.split(key)
        return poisons.autoregressive(start_key, labels, shape, poisons.ar_coefficients(filter_key, count, shape), rms=poison.size)
    return by_network(poison, key, split, case, settings)


def by_network(poison: Poison, key: jax.Array, split: data.Dataset, case: Case, settings: Settings) -> np.ndarray:
    """Perturbations made by the gradients of a network like the one that is to be trained."""
    net, (inputs, labels) = network(case, split.num_classes), split.train
    threat = attacks.Threat("linf", poison.size)
    if poison.kind.startswith("error-minimising"):
        options = {"threat": threat, "step_size": poison.size / 10, "batch_size": settings.batch_size, "max_rounds": ROUNDS}
        return poisons.error_minimising(
            key,
            net.init,
            lambda variables, x: net.update(variables[0], x, variables[1])[0],
            training.sgd(0.1, momentum=0.9),
            (inputs, labels),
            stop_error=0.1 if poison.kind.endswith("class-wise") else 0.01,
            per_class=poison.kind.endswith("class-wise"),
            **options,
        ).perturbation
    _, (params, state) = train(key, inputs=inputs, labels=labels, case=case, settings=settings, num_classes=split.num_classes)
    attack = attacks.pgd(threat, num_steps=ATTACK_STEPS, targets="given")
    parts = [slice(first, first + ATTACK_BATCH) for first in range(0, len(inputs), ATTACK_BATCH)]
    logits_fn = jax.tree_util.Partial(lambda variables, x: net.apply(variables[0], x, variables[1]), (params, state))
    return np.concatenate([poisons.adversarial(key, logits_fn, inputs[part], labels[part], attack) for part in parts])


def training_sets(sets: dict[str, np.ndarray], spans: dict[str, np.ndarray], labels: np.ndarray, few: int) -> dict[str, tuple]:
    """Inputs and labels of the arms: each set, and projected by its own span; clean data projected by others', and their first alone."""
    clean, rows = sets["clean"], np.arange(len(labels)) % few  # as many examples, so that all arms take as many steps
    arms = {name: (part, labels) for name, part in sets.items()} | {"subset": (clean[rows], labels[rows])}
    arms |= {f"{name}, projected": (unlearnable.project_out(part, spans[name]), labels) for name, part in sets.items()}
    return arms | {f"clean, projected by {name}": (unlearnable.project_out(clean, spans[name]), labels) for name in sets if name != "clean"}


def learn(case: Case, settings: Settings, seed: int) -> xr.Dataset:
    """Test accuracies in per cent of all arms, separability, refitted heads, and pictures of one example."""
    split = data.load(case.dataset, seed=FIRST_SEED + seed, num_train=settings.num_train, data_dir=settings.data_dir)
    (inputs, labels), names = split.train, [poison.name for poison in case.poisons]
    key = jax.random.fold_in(jax.random.key(FIRST_SEED + seed), zlib.crc32(case.name.encode()))
    poison_key, linear_key, train_key = jax.random.split(key, 3)
    keys = dict(zip(names, jax.random.split(poison_key, len(names)), strict=True))
    box = (0.0, 1.0) if case.clip else (-np.inf, np.inf)
    make = functools.partial(perturb, split=split, case=case, settings=settings)
    poisoned = {p.name: poisons.apply(inputs, make(p, keys[p.name], labels=labels), *box) for p in case.poisons}
    shuffled = make(case.poisons[0], keys[names[0]], labels=np.random.default_rng(seed).permutation(labels))
    sets = {"clean": inputs, **{name: part.inputs for name, part in poisoned.items()}}
    fit = functools.partial(unlearnable.linear_weights, batch_size=len(inputs) // LINEAR_STEPS)
    weights = {name: fit(part, labels, split.num_classes, linear_key) for name, part in sets.items()}
    spans = {name: unlearnable.projection(columns) for name, columns in weights.items()}
    few = round(settings.clean_share * len(inputs))  # the first examples have the classes in proportion
    arms = training_sets(sets, spans, labels, few) | {"shuffled": (poisons.apply(inputs, shuffled, *box).inputs, labels)}
    fixed = {"case": case, "settings": settings, "num_classes": split.num_classes}
    arguments = {name: {"inputs": part[0], "labels": part[1], "cutmix": 0.0} for name, part in arms.items()}
    if case.cutmix:
        arguments |= {mixed(arm): arguments[arm] | {"cutmix": CUTMIX_SHARE} for name in names for arm in (name, f"{name}, projected")}
    results, ends = lab.sweep(functools.partial(train, **fixed), arms=arguments, seeds=[seed], keys=train_key[None])
    trained = {name: jax.tree.map(lambda leaf, i=i: leaf[i, 0], ends) for i, name in enumerate(arguments)}
    trained["untrained"] = network(case, split.num_classes).init(jax.random.split(train_key)[0], inputs[:1])

    tests = {name: unlearnable.project_out(split.test.inputs, Q) for name, Q in spans.items()}

    def tested(arm: str, span: str | None = None) -> float:
        return accuracy(case, split.num_classes, trained[arm], split.test.inputs if span is None else tests[span], split.test.labels)

    def both(arm: str, span: str) -> list[float]:
        return [tested(arm), tested(arm, span)]

    def refitted(arm: str) -> float:
        parts = [features(case, split.num_classes, trained[arm], part) for part in (inputs[:few], split.test.inputs)]
        return 100 * unlearnable.reweigh(parts[0], labels[:few], split.num_classes, l2=settings.l2).accuracy(parts[1], split.test.labels)

    linear = [separability(poisoned[name].perturbation, labels, split.num_classes) for name in names]
    columns = {name: np.asarray(weights[name])[:, 0].reshape(split.input_shape) for name in names}
    projected = {name: arms[f"{name}, projected"][0][0] for name in names}
    pictures = [[inputs[0], poisoned[n].inputs[0], poisoned[n].perturbation[0], columns[n], projected[n]] for n in names]
    values = {
        "clean": tested("clean"),
        "subset": tested("subset"),
        "shuffled": tested("shuffled"),
        "perturbed": ("poison", [tested(name) for name in names]),
        "projected": (("poison", "test"), [both(f"{name}, projected", name) for name in names]),
        "clean_projected": (("poison", "test"), [both(f"clean, projected by {name}", name) for name in names]),
        "own_projected": ("test", both("clean, projected", "clean")),
        "refitted": ("poison", [refitted(name) for name in names]),
        "refitted_clean": refitted("clean"),
        "refitted_untrained": refitted("untrained"),
        "train_accuracy": ("poison", results.train_accuracy.sel(arm=names).values[:, 0]),
        "inseparable": ("poison", [float(whole.status == "inseparable") for whole, _ in linear]),
        "separable": ("poison", [float(whole.status == "separable") for whole, _ in linear]),
        "linear_accuracy": ("poison", [100 * half.fresh_accuracy for _, half in linear]),
        "relative_size": ("poison", [poisons.budget(poisoned[name].perturbation)["rms"] / inputs.std() for name in names]),
        "clipped": ("poison", [poisoned[name].clipped for name in names]),
        "pictures": (("poison", "picture", "row", "column", "channel"), np.array(pictures)),
    }
    result = xr.Dataset(values, {"poison": names, "test": list(TESTS)})
    if not case.cutmix:
        return result
    remedies = [[[tested(arm), tested(mixed(arm))] for arm in (name, f"{name}, projected")] for name in names]
    coordinates = {"poison": names, "data": ["perturbed", "projected"], "augmentation": ["plain", "CutMix"]}
    return result.assign(remedies=xr.DataArray(remedies, coordinates, list(coordinates)))


def mixed(arm: str) -> str:
    """The name of an arm with CutMix."""
    return f"{arm}, CutMix"


@functools.partial(jax.jit, static_argnums=(0, 1))
def _correct(case: Case, num_classes: int, variables: tuple, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    return metrics.accuracy(network(case, num_classes).apply(variables[0], inputs, variables[1]), labels).mean()


def accuracy(case: Case, num_classes: int, variables: tuple, inputs: np.ndarray, labels: np.ndarray) -> float:
    """In per cent; non-finite logits count as wrong."""
    return 100 * float(_correct(case, num_classes, variables, inputs, labels))


@functools.partial(jax.jit, static_argnums=(0, 1))
def features(case: Case, num_classes: int, variables: tuple, inputs: jax.Array) -> jax.Array:
    """Inputs of the linear head (N, F), with stored statistics."""
    return network(case, num_classes).features(variables[0], inputs, variables[1])


def separability(perturbation: np.ndarray, labels: np.ndarray, num_classes: int) -> tuple[unlearnable.Separability, ...]:
    """Of all perturbations, and of one half of them with the other half fresh; pairs of opposite signs stay together."""
    ranks = np.empty(len(labels), int)
    for label in np.unique(labels):
        ranks[labels == label] = np.arange((labels == label).sum())
    half = ranks // 2 % 2 == 0
    whole = unlearnable.separability(perturbation, labels, num_classes)
    parts = (perturbation[half], labels[half]), (perturbation[~half], labels[~half])
    return whole, unlearnable.separability(*parts[0], num_classes, fresh=parts[1])


def of(values: xr.DataArray, m: Any, kind: str) -> xr.DataArray:
    """The poisons with a property."""
    return values.sel(poison=[poison.name for poison in m.case.poisons if getattr(poison, kind)])


def loss_of_accuracy(m: Any) -> xr.DataArray:
    """Test accuracy after training on perturbed data minus that on clean data."""
    return m.learn.perturbed - m.learn.clean


def proven_failures(m: Any) -> xr.DataArray:
    """1 where the perturbations are proven inseparable and accuracy is at least 10 points below clean."""
    both = (m.learn.inseparable == 1) & (loss_of_accuracy(m) <= -claims.DROP)
    return of(both.astype(float), m, "antithetic")


def by_arm(m: Any) -> dict[str, xr.DataArray]:
    """Test accuracies by arm."""
    arms = {"clean": m.learn.clean, "clean subset": m.learn.subset, "shuffled": m.learn.shuffled}
    return arms | report.split(m.learn.perturbed, "poison")


def by_head(m: Any) -> dict[str, xr.DataArray]:
    """Accuracies of refitted heads by what the features were trained on, and of the network trained on the clean subset."""
    heads = {"untrained": m.learn.refitted_untrained, "trained on clean data": m.learn.refitted_clean}
    return heads | report.split(m.learn.refitted, "poison") | {"network on the clean subset": m.learn.subset}


def after_projection(m: Any) -> dict[str, xr.DataArray]:
    """Accuracies after projection, beside those of clean data projected alike."""
    rows = {}
    for name in m.learn.poison.values:
        for kind, values in (("clean alike", m.learn.clean_projected), ("perturbed", m.learn.projected)):
            rows |= {f"{name}: {kind}, {test.split()[0]} test": values.sel(poison=name, test=test) for test in TESTS}
    return rows


def draw_pictures(m: Any) -> Any:
    """An image, perturbed; its perturbation; weights of the linear classifier; the perturbed image projected. A row a poison."""
    images = m.learn.pictures.isel(seed=0).mean("channel")
    if images.sizes["column"] == 1:
        return None
    titles = ("clean", "perturbed", "perturbation", "linear weights", "projected")
    fig, axes = report.figure(images.sizes["poison"], len(titles), width=7.0, height=1.5 * images.sizes["poison"], squeeze=False)
    with report.style():
        for row, name in zip(axes, images.poison.values, strict=True):
            for ax, image, title in zip(row, images.sel(poison=name).values, titles, strict=True):
                ax.imshow(image, cmap="gray")
                ax.set_title(title, fontsize=8)
                ax.set_xticks([])
                ax.set_yticks([])
                ax.grid(False)
            row[0].set_ylabel(name, fontsize=8)
    return fig


def facts(m: Any) -> xr.Dataset:
    """What the perturbations are, by heading."""
    names = {"train_accuracy": "training accuracy, %", "relative_size": "rms / deviation of the data", "clipped": "share clipped"}
    names |= {"separable": "share separable", "inseparable": "share inseparable", "linear_accuracy": "linear accuracy, fresh, %"}
    return m.learn[list(names)].rename(names).to_dataarray("measure")


METHOD = (
    "All arms of a seed share initial parameters, the order of the data, and the number of steps; they differ in training data. Test data "
    "are clean. Accuracies are those of the last epoch.",
    "Separability is proven either way: by a linear classifier that is right on all perturbations, or by pairs d and -d in two classes, "
    "which no affine classifier can get right. The linear accuracy is measured on perturbations to which the classifier was not fitted.",
    "A refitted head is a multinomial logistic regression with a fixed penalty on standardised features of the tenth of the training data "
    "that is kept clean; no other parameter, and no statistic of a normalisation, changes. The clean subset alone, with as many steps, is "
    "what those images teach without the perturbed ones.",
    "Orthogonal projection removes what the weights of a linear classifier, trained on the poisoned data without bias, span. It is applied "
    "to training data, and to test data or not; clean data projected alike are the comparison. The classifier takes as many steps as the "
    "paper's.",
    "The rules were written down after pilots of two other seeds had been seen.",
)

STUDY = lab.Study(
    id="S8",
    title="What can be learnt from unlearnable data?",
    lead="Small perturbations make training data useless: networks fit them and fail on clean data. It is said that such networks learn "
    "nothing but shortcuts, and that the shortcuts work because they are linearly separable. Here both are put to the test, the second by "
    "perturbations that are proven inseparable, and so is a remedy, projecting the perturbations out.",
    module="experiments.unlearnable",
    paper=papers.UNLEARNABLE,
    stages=(
        lab.Stage(
            learn,
            over=lambda case, settings: {"seed": settings.seeds},
            cost=lambda case, settings, seed: case.num_epochs * (4 + 3 * len(case.poisons)),
        ),
    ),
    measures=(
        lab.Measure(claims.FAIL, loss_of_accuracy),
        lab.Measure(claims.REWEIGHED, lambda m: m.learn.refitted - m.learn.refitted_untrained),
        lab.Measure(claims.BEYOND_SUBSET, lambda m: m.learn.refitted - m.learn.subset),
        lab.Measure(claims.INSEPARABLE, proven_failures, interval_fn=stats.event_interval),
        lab.Measure(claims.RECOVERED, lambda m: of(m.learn.projected - m.learn.clean_projected, m, "class_wise")),
        lab.Measure(claims.KEPT, lambda m: of(m.learn.projected - m.learn.perturbed, m, "antithetic")),
        lab.Measure(claims.HARMLESS_ON_CLEAN, lambda m: m.learn.own_projected - m.learn.clean),
    ),
    controls=(
        lab.Control(
            "positive",
            "A linear classifier recognises fresh perturbations that are one pattern a class.",
            "linear accuracy on fresh perturbations, %",
            Above(90.0),
            lambda m: of(m.learn.linear_accuracy, m, "class_wise"),
            claims=("S8.d", "S8.e", "S8.f"),
        ),
        lab.Control(
            "negative",
            "Perturbations as large that do not depend on the label leave the data learnable.",
            "test accuracy, first perturbation with shuffled labels minus clean, percentage points",
            Above(-claims.DROP),
            lambda m: m.learn.shuffled - m.learn.clean,
        ),
    ),
    figures=(
        report.SeedStrip(
            by_arm,
            name="accuracy",
            xlabel="test accuracy, %",
            alt="test accuracy by training data",
            caption="Test accuracy on clean data by what the network was trained on. Shuffled: the first perturbation, for random labels.",
        ),
        report.CustomFigure(
            draw_pictures,
            name="pictures",
            alt="a perturbed image, the perturbation, linear weights and the projected image",
            caption="The first training example: clean, perturbed, the perturbation (scaled), the weights of the linear classifier for the "
            "first class, and the perturbed example after projection.",
        ),
        report.SeedScatter(
            "learn.perturbed",
            x="learn.linear_accuracy",
            by="poison",
            name="separability",
            xlabel="linear accuracy, fresh, %",
            ylabel="network's test accuracy, %",
            decorate=lambda ax, m: ax.set_xlim(0, 105),
            alt="network accuracy against linear accuracy on perturbations",
            caption="Test accuracy of the network against that of a linear classifier on fresh perturbations; a dot a seed. The lower "
            "left holds counterexamples to the belief that perturbations work because they are linearly separable.",
        ),
        report.SeedStrip(
            by_head,
            name="heads",
            stacked=True,
            xlabel="accuracy of the refitted head, %",
            alt="accuracy of refitted heads by features",
            caption="Heads refitted on the clean tenth of the training data, by what the features were trained on; last, the network "
            "trained on that tenth alone.",
        ),
        report.SeedStrip(
            after_projection,
            name="projection",
            xlabel="test accuracy, %",
            stacked=True,
            alt="accuracy after projection",
            caption="Test accuracy after the projection made for each perturbation: of clean data projected alike, and of perturbed data, "
            "on raw and on projected test data.",
        ),
    ),
    tables=(
        report.MeanTable(
            facts,
            columns="measure",
            rows=("poison",),
            section="Perturbations",
            caption="Means and 95 % intervals over seeds.",
        ),
        report.MeanTable(
            lambda m: m.learn.remedies,
            columns="augmentation",
            rows=("poison", "data"),
            where=lambda case: case.cutmix,
            section="Projection and CutMix",
            caption="Test accuracy in %, raw test data, by what was trained on and whether half of the batches were mixed by CutMix.",
        ),
        report.ClaimMeans(),
    ),
    method=METHOD,
)
