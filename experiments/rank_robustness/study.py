"""Do layers of low rank generalise better, or resist attack? Paper: "Truth or Backpropaganda?", section on rank, Figure 2 and Table 4."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from experiments import papers
from experiments.rank_robustness import claims
from experiments.rank_robustness.measure import compare
from experiments.rank_robustness.settings import (
    ADVERSARIAL,
    ALL_ARMS,
    ARMS,
    CONTROL,
    NATURAL,
    OTHER_WAY,
    PROJECTED,
    RANK_MAX,
    RANK_MIN,
    ROTATED,
    TRAININGS,
    UNTRAINED,
    Case,
    Settings,
)
from jaxbp import lab, report
from jaxbp.claims import Above, Within

_PAPER = {  # Table 4: train, clean, PGD-20 at 8/255 and at 1/255
    (NATURAL, CONTROL): (99.99, 94.66, 0.00, 31.98),
    (NATURAL, RANK_MAX): (99.76, 93.66, 0.00, 22.01),
    (NATURAL, RANK_MIN): (99.90, 94.44, 0.00, 31.53),
    (ADVERSARIAL, CONTROL): (89.66, 85.06, 33.10, 80.49),
    (ADVERSARIAL, RANK_MAX): (89.21, 84.72, 32.40, 80.11),
    (ADVERSARIAL, RANK_MIN): (88.33, 84.68, 30.57, 79.98),
}


def log_rank(m: Any, weights: str) -> xr.DataArray:
    """log2 of the effective rank, mean over layers, by training and seed; a network that diverged has none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log2(m.compare.effective_rank.sel(weights=weights, drop=True)).mean("layer", skipna=False)


def change(m: Any, values: xr.DataArray, arms: Sequence[str] = PROJECTED) -> xr.DataArray:
    """Values of some arms minus those of the control, within pairs.

    A network that diverged has an accuracy of 0, which compares nothing: its difference is NaN.
    """

    def minus_control(array: xr.DataArray) -> xr.DataArray:
        return array.sel(arm=list(arms)) - array.sel(arm=CONTROL, drop=True)

    return minus_control(values).where(np.isfinite(minus_control(m.compare.train_loss)))


def rank_change(m: Any, arms: Sequence[str] = PROJECTED) -> xr.DataArray:
    """log2 of the effective rank in some arms minus that of the control."""
    return xr.concat([log_rank(m, arm) - log_rank(m, CONTROL) for arm in arms], xr.DataArray(list(arms), dims="arm", name="arm"))


def withstood(m: Any) -> xr.DataArray:
    """Share of the rightly classified examples that withstand attack, in per cent."""
    return 100 * m.compare.robust_accuracy / m.compare.test_accuracy.where(m.compare.test_accuracy > 0)


def of_arms(values: Callable[[Any], xr.DataArray], arms: Sequence[str] = PROJECTED) -> Callable[[Any], dict[str, xr.DataArray]]:
    """The slices of ``values(m)`` by kind of training and arm in words."""
    pairs = list(itertools.product(TRAININGS, arms))
    return lambda m: {f"{training}, {arm}": values(m).sel(training=training, arm=arm) for training, arm in pairs}


def intended_rank_change(m: Any) -> xr.DataArray:
    """The change of rank, positive where RankMin lowers the rank or RankMax raises it."""
    return rank_change(m) * xr.DataArray([-1.0, 1.0], coords={"arm": list(PROJECTED)})


def intended_robustness(m: Any) -> xr.DataArray:
    """What training the other way does to robust accuracy, positive where adversarial training is ahead."""
    sign = xr.DataArray([1.0 if training == NATURAL else -1.0 for training in TRAININGS], coords={"training": list(TRAININGS)})
    return sign * change(m, m.compare.robust_accuracy, [OTHER_WAY])


def adversarial_rank(m: Any) -> xr.DataArray:
    """log2 of the effective rank, adversarially minus naturally trained, without a projection."""
    return log_rank(m, CONTROL).sel(training=ADVERSARIAL, drop=True) - log_rank(m, CONTROL).sel(training=NATURAL, drop=True)


def untrained_rank(m: Any) -> xr.DataArray:
    """log2 of the effective rank, untrained minus trained, without a projection, by training."""
    return log_rank(m, UNTRAINED) - log_rank(m, CONTROL)


def over_radii(m: Any) -> xr.DataArray:
    """Test accuracy by radius under PGD; radius 0 is without attack."""
    return xr.concat([m.compare.test_accuracy.expand_dims(radius=[0.0]), m.compare.pgd_accuracy], "radius").sel(arm=list(ARMS))


def clean_and_robust(m: Any) -> dict[str, xr.DataArray]:
    """Test accuracies of all arms, first without attack, then under the strongest."""
    values = {"clean": m.compare.test_accuracy, "attacked": m.compare.robust_accuracy}
    return {f"{arm}, {name}": array.sel(arm=arm, drop=True) for (name, array), arm in itertools.product(values.items(), ALL_ARMS)}


def rank_along(m: Any) -> xr.DataArray:
    """log2 of the effective rank along fine-tuning, relative to its start, mean over layers."""
    ranks = np.log2(m.compare.effective_rank_along.sel(arm=[*ARMS, ROTATED])).mean("layer", skipna=False)
    return ranks - ranks.isel(epoch=0)


def last_singular_values(m: Any) -> xr.DataArray:
    """Singular values of the last treated convolution, largest first, over their share."""
    values = m.compare.singular_values.isel(layer=-1).sel(arm=list(ARMS)).dropna("index", how="all").rename(index="share")
    return values.assign_coords(share=np.linspace(0, 1, values.sizes["share"]))


def accuracies(m: Any) -> dict[str, xr.DataArray]:
    """All accuracies by heading."""
    return {
        "train": m.compare.train_accuracy,
        "clean": m.compare.test_accuracy,
        "strongest attack": m.compare.robust_accuracy,
        "withstood, of the right ones": withstood(m),
    }


def differences(m: Any) -> dict[str, xr.DataArray]:
    """Paired differences from the control by heading."""
    arms = [arm for arm in ALL_ARMS if arm != CONTROL]
    values = {"clean": m.compare.test_accuracy, "strongest attack": m.compare.robust_accuracy, "withstood": withstood(m)}
    return {"log2 of rank": rank_change(m, arms)} | {name: change(m, array, arms) for name, array in values.items()}


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
    """Passes of a step through the network."""
    return 1.0 + settings.training_steps * (training == ADVERSARIAL)


CONTROLS = (
    lab.Control(
        "positive",
        "Fine-tuning a natural network adversarially makes it more robust, and the reverse less.",
        "robust test accuracy, adversarially minus naturally fine-tuned, percentage points",
        Above(claims.ROBUST_MARGIN),
        of_arms(intended_robustness, [OTHER_WAY]),
        claims=("S4.c",),
        smallest_effect=5.0,
    ),
    lab.Control(
        "negative",
        "Turning output channels, which leaves singular values as they are, moves no rank.",
        "log2 of the ratio of effective ranks to the network left alone",
        Within(claims.RANK_MOVED),
        of_arms(lambda m: rank_change(m, [ROTATED]), [ROTATED]),
    ),
)

METHOD = (
    "Singular values are those of each convolution as an operator on its own feature map, with its stride: exact for circular padding, "
    "by folding the frequencies that a stride confounds. The networks pad with zeros; RankMin and RankMax, as in the paper, act on the "
    "circular operator. First convolution and shortcuts are left alone.",
    "RankMin sets singular values below the threshold to 0, RankMax cuts those above the ceiling; kernels then come back to their "
    "window, which undoes a part. They keep the norms that they had before, and training goes on, so that the network recovers. What is "
    "judged is the rank at the end, whatever was asked. The network left alone is fine-tuned alike, from the same parameters, on the "
    "same batches.",
    "Adversarial training replaces each batch by PGD examples from a random start (Madry et al., ICLR 2018). Robust accuracy is the worst "
    "case over AutoAttack's set, APGD on the cross-entropy, targeted APGD on the DLR loss, targeted FAB (Croce & Hein, ICML 2020) and "
    "Square (Andriushchenko et al., ECCV 2020), each tried on what is left. PGD of 20 steps, the paper's measure, is shown beside it.",
    f"Clean accuracy counts as the same within {claims.CLEAN_MARGIN:g} percentage point, robustness within {claims.ROBUST_MARGIN:g} of the "
    "share of rightly classified examples that withstand attack, both only where the rank moved. Naturally trained networks are "
    "judged at the smaller radius, adversarially trained ones at the larger. Seeds draw training and test examples, initial "
    "parameters and the order of the data.",
)
_PANELS = {"panel_by": "training", "title": lambda m: m.case.network}
_ROWS = {"rows": ("training", "arm"), "headings": ("network", "training", "arm")}

STUDY = lab.Study(
    id="S4",
    title="Do layers of low rank generalise better, or resist attack?",
    lead="Trained networks are said to generalise, or to resist attack, because their layers are of low rank. RankMin and RankMax push "
    "the singular values of convolutions, taken as the operators that they are, down and up during fine-tuning; a third arm is "
    "fine-tuned alike and left alone. Accuracy is compared within pairs, without attack and under the strongest of several.",
    module="experiments.rank_robustness",
    paper=papers.TRUTH,
    stages=(
        lab.Stage(
            compare, over=lambda case, settings: {"training": TRAININGS, "seed": settings.seeds}, cost=cost,
        ),
    ),
    measures=(
        lab.Measure(claims.S4A, of_arms(intended_rank_change)),
        lab.Measure(claims.S4B, of_arms(lambda m: change(m, m.compare.test_accuracy))),
        lab.Measure(claims.S4C, of_arms(lambda m: change(m, withstood(m)), [RANK_MIN])),
        lab.Measure(claims.S4D, adversarial_rank),
        lab.Measure(claims.S4E, untrained_rank),
    ),
    controls=CONTROLS,
    figures=(
        report.SeedCurves(
            "compare.effective_rank", x="layer", by="weights", show=(*ARMS, UNTRAINED), **_PANELS, xlabel="convolution",
            ylabel="effective rank", dashed=(CONTROL,), name="rank_by_layer", alt="effective rank of each convolution, by arm",
            caption="Figure 2 of the paper rebuilt: effective rank (nuclear over Frobenius norm) of each treated convolution as an "
            "operator, after fine-tuning and before any training. Thin lines are seeds, bands 95 % intervals. The largest possible value "
            "is the root of the number of singular values, which differs between layers.",
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
            "the DLR loss, targeted FAB, and Square) at the radius of the training. A dot is a seed, bars are 95 % intervals of the mean.",
        ),
        report.SeedCurves(
            rank_along, **_PANELS, xlabel="epoch of fine-tuning", ylabel="log2 of rank over start", legend="below", height=3.2,
            name="rank_along",
            alt="effective rank along fine-tuning, by arm",
            caption="Effective rank along fine-tuning, relative to its start, mean of log2 over layers: right after each projection, and "
            "at the end, some epochs after the last one. What training undoes shows at the end.",
        ),
        report.SeedCurves(
            last_singular_values, x="share", **_PANELS, mean_only=True, dashed=(CONTROL,), xlabel="share of singular values",
            ylabel="singular value", name="singular_values",
            alt="singular values of the last treated convolution, largest first, by arm",
            caption="Singular values of the last treated convolution after fine-tuning, largest first, mean over seeds at each rank.",
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
            lambda m: {"suspected": m.compare.masking_suspected}, **_ROWS,
            cell_fn=lambda suspected: int(suspected.sum()), section="Signs of masked gradients", caption=masking_caption,
        ),
    ),
    method=METHOD,
)  # fmt: skip
