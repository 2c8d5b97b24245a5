"""What can be learnt from unlearnable data?

Paper: "What can we learn from unlearnable datasets?" (Sandoval-Segura et al., NeurIPS 2023). All trainings of a seed are one program: arms
differ in their training data alone. Projections come from a linear classifier of each poisoned set, and are tried on clean data, too.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import xarray as xr

from experiments import papers
from experiments.unlearnable import arms, claims, trainings
from experiments.unlearnable.settings import FIRST_SEED, Case, Settings
from jaxbp import data, lab, report, stats, unlearnable
from jaxbp.claims import Above

TESTS = ("raw test data", "projected test data")
FACTS = ("train_accuracy", "inseparable", "separable", "linear_accuracy", "relative_size", "clipped")


def learn(case: Case, settings: Settings, seed: int, poison: tuple[str, ...] | None = None) -> xr.Dataset:
    """Test accuracies in per cent of all arms, separability, refitted heads, and pictures of one example.

    Arms without a perturbation go with the case's first one.
    """
    split = data.load(case.dataset, seed=FIRST_SEED + seed, num_train=settings.num_train, data_dir=settings.data_dir)
    names, first = poison or case.names, not poison or case.names[0] in poison
    train_key = arms.keys_of(case, seed).train
    run = trainings.in_turn if case.streamed else trainings.together
    measured: dict[str, dict[str, Any]] = {}
    for arm, trained in run(_arms(split, case, settings, seed, names, first), train_key, case, settings, split.num_classes):
        measured[arm.name] = measure(arm, trained, split, case, settings)
        del arm, trained  # before the next arm is made
    values = of_poisons(measured, names, case)
    if not first:
        return values
    start = trainings.network(case, split.num_classes).init(jax.random.split(train_key)[0], split.train.inputs[:1])
    untrained = refitted([start], split, case, settings)
    scalars = {arm: measured[arm]["raw"] for arm in ("clean", "subset", "shuffled")}
    scalars |= {"refitted_clean": measured["clean"]["along"][-1], "refitted_untrained": untrained[0]}
    values = values.assign(scalars).assign(own_projected=("test", measured["clean, projected"]["both"]))
    return values.assign(clean_along=("epoch", measured["clean"]["along"])) if case.refit_every else values


def _arms(split: data.Dataset, case: Case, settings: Settings, seed: int, names: Sequence[str], first: bool) -> Iterator[trainings.Arm]:
    if first:
        yield from arms.of_clean(split, case, settings, seed)
    for poison in case.poisons:
        if poison.name in names:
            yield from arms.of_poison(poison, split, case, settings, seed)


def measure(arm: trainings.Arm, trained: trainings.Trained, split: data.Dataset, case: Case, settings: Settings) -> dict[str, Any]:
    """Accuracies in per cent of a trained arm: on training data, raw test data, both kinds of test data, and of refitted heads."""
    inputs, labels = split.test
    tested = functools.partial(trainings.accuracy, case, split.num_classes, trained.variables, labels=labels)
    values = dict(arm.facts) | {"train_accuracy": trained.train_accuracy, "raw": tested(inputs)}
    if arm.span is not None:
        values["both"] = [values["raw"], tested(unlearnable.project_out(inputs, arm.span))]
    return values | ({"along": refitted(trained.along, split, case, settings)} if arm.refitted else {})


def refitted(along: Sequence[trainings.Variables], split: data.Dataset, case: Case, settings: Settings) -> list[float]:
    """Test accuracies of heads refitted on the clean subset, for each of some networks."""
    count, num_clean = split.num_classes, arms.num_clean(split, settings)
    accuracies = []
    for variables in along:
        parts = [trainings.features(case, count, variables, part) for part in (split.train.inputs[:num_clean], split.test.inputs)]
        head = unlearnable.reweigh(parts[0], split.train.labels[:num_clean], count, l2=settings.l2)
        accuracies.append(100 * head.accuracy(parts[1], split.test.labels))
    return accuracies


def of_poisons(measured: dict[str, dict[str, Any]], names: Sequence[str], case: Case) -> xr.Dataset:
    """What was measured of each poison, as labelled arrays."""
    values: dict[str, Any] = {
        "perturbed": ("poison", [measured[name]["raw"] for name in names]),
        "projected": (("poison", "test"), [measured[f"{name}, projected"]["both"] for name in names]),
        "clean_projected": (("poison", "test"), [measured[f"clean, projected by {name}"]["both"] for name in names]),
        "refitted": ("poison", [measured[name]["along"][-1] for name in names]),
    }
    pictures = [measured[f"{name}, projected"]["pictures"] for name in names]
    values |= {"pictures": (("poison", "picture", "row", "column", "channel"), np.array(pictures))}
    values |= {fact: ("poison", [measured[name][fact] for name in names]) for fact in FACTS}
    result = xr.Dataset(values, {"poison": list(names), "test": list(TESTS)})
    if case.refit_every:
        along = [measured[name]["along"] for name in names]
        result = result.assign(refitted_along=(("poison", "epoch"), along)).assign_coords(epoch=list(case.refit_epochs))
    if not case.cutmix:
        return result
    pairs = [[(arm, arms.mixed(arm)) for arm in (name, f"{name}, projected")] for name in names]
    remedies = [[[measured[arm]["raw"] for arm in pair] for pair in of_name] for of_name in pairs]
    coordinates = {"poison": list(names), "data": ["perturbed", "projected"], "augmentation": ["plain", "CutMix"]}
    return result.assign(remedies=xr.DataArray(remedies, coordinates, list(coordinates)))


def of(values: xr.DataArray, m: Any, kind: str) -> xr.DataArray:
    """The poisons with a property."""
    return values.sel(poison=[poison.name for poison in m.case.poisons if getattr(poison, kind)])


def loss_of_accuracy(m: Any) -> xr.DataArray:
    """Test accuracy after training on perturbed data minus that on clean data."""
    return m.learn.perturbed - m.learn.clean


def proven_failures(m: Any) -> xr.DataArray:
    """1 where the perturbations are proven inseparable and accuracy is at least 10 points below clean, NaN where a network diverged."""
    loss = loss_of_accuracy(m)
    both = (m.learn.inseparable == 1) & (loss <= -claims.DROP)
    return of(both.where(np.isfinite(loss)), m, "antithetic")


def by_arm(m: Any) -> dict[str, xr.DataArray]:
    """Test accuracies by arm."""
    arms = {"clean": m.learn.clean, "clean subset": m.learn.subset, "shuffled": m.learn.shuffled}
    return arms | report.split(m.learn.perturbed, "poison")


def by_head(m: Any) -> dict[str, xr.DataArray]:
    """Accuracies of refitted heads by what the features were trained on, and of the network trained on the clean subset."""
    heads = {"untrained": m.learn.refitted_untrained, "trained on clean data": m.learn.refitted_clean}
    return heads | report.split(m.learn.refitted, "poison") | {"network on the clean subset": m.learn.subset}


def along_training(m: Any) -> dict[str, xr.DataArray]:
    """Accuracies of heads refitted in the course of training, by what was trained on."""
    return {"clean": m.learn.clean_along} | report.split(m.learn.refitted_along, "poison")


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


def cost(case: Case, settings: Settings, seed: int, poison: Sequence[str] = ()) -> int:
    """Epochs of all trainings of a job."""
    own, of_each = (4 if not poison or case.names[0] in poison else 0), (5 if case.cutmix else 3)
    return case.num_epochs * (own + of_each * len(poison or case.names))


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
            over=lambda case, settings: {"seed": settings.seeds} | ({"poison": [(name,) for name in case.names]} if case.streamed else {}),
            cost=cost,
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
        report.SeedCurves(
            along_training,
            name="heads_along",
            where=lambda case: bool(case.refit_every),
            by=None,
            ylabel="accuracy of the refitted head, %",
            alt="accuracy of refitted heads over epochs",
            caption="Heads refitted on the clean tenth of the training data to features of the network as training goes on.",
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
