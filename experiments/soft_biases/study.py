"""Do soft preferences explain what seems mysterious about deep learning?

Six kinds of cases, a stage each: polynomials with penalties by order, random features without and with ridge, the isotropic model whose
risk is known exactly, the evidence of a Gaussian process over label noise, the Hessian's effective dimensionality over widths, and networks
in a random subspace whose description is counted.
"""

from collections.abc import Callable, Mapping
from typing import Any

from experiments import papers
from experiments.soft_biases import claims, figures, measure, outcomes, trainings
from experiments.soft_biases.settings import CODE, EVIDENCE, FEATURES, ISOTROPIC, POLYNOMIAL, WIDTHS, Case
from jaxbp import lab, report, stats
from jaxbp.claims import Above, Below


def kind_is(kind: str) -> Any:
    """A filter of cases, also as a stage's."""
    return lambda case, settings=None: case.kind == kind


COSTS: Mapping[str, float] = {POLYNOMIAL: 1, FEATURES: 8, ISOTROPIC: 8, EVIDENCE: 4, WIDTHS: 4, CODE: 20}


def stage(fn: Callable, kind: str, *, reads: tuple[str, ...], **options: Any) -> lab.Stage:
    """The stage of one kind of cases; it reads the fields ``reads`` and the number of seeds alone."""
    return lab.Stage(fn, where=kind_is(kind), reads=("num_seeds", *reads), group="all", cost=cost, **options)


def cost(case: Case, settings: Any, width: int = 1) -> float:
    """The time of a job; of MLPs it hardly grows with their width."""
    return COSTS[case.kind] * (1 if case.model == "mlp" else width)


METHOD = (
    "Polynomials are sums of orthonormal Legendre polynomials up to degree 150; a penalty gamma^j on coefficient j and its strength are "
    "chosen on other seeds to favour the claim. Excess risk is the mean over 2,001 points of [-1, 1].",
    "Random features are ReLUs of directions of unit length, regressed on one-hot labels, nested in their number. Ridge is chosen on "
    "validation data whose labels are as noisy as the training data's. The isotropic model's risk is known exactly, and drawn beside.",
    "Evidence is the log marginal likelihood of centred one-hot labels, per example, under the exact Gaussian process of an infinitely "
    "wide MLP of two hidden layers, its scale and noise variance those of largest evidence. It decides no claim.",
    "Effective dimensionality sums lambda / (lambda + alpha) over the Hessian of the summed training loss; of alpha that value counts "
    "which favours the claim. BatchNorm's statistics are those stored, held constant. For nested random features it can never fall: a "
    "theorem, so that no case of S10.d is one.",
    "A network is trained in a random subspace of a start that the seed alone decides, its coordinates quantised and coded by the mixture "
    "of Krichevsky and Trofimov; step, largest symbol, alphabet and the choice among dimensions are paid for, and the best bound counts. "
    "The bound inverts kl. On random labels training fails in few dimensions, so that the bound is uninformative by the training error as "
    "well as by the bits. A start that is trained on a share of the examples is an arm of its own, bounded on the others; S10.e is judged "
    "without it.",
)

STUDY = lab.Study(
    id="S10",
    title="Do soft preferences explain what seems mysterious about deep learning?",
    lead="Benign overfitting, double descent and models that can fit noise are said to be no mystery: a flexible model with a soft "
    "preference for simple solutions shows them all, and bounds that count bits explain them. Here each statement is measured.",
    module="experiments.soft_biases",
    paper=papers.SOFT_BIASES,
    stages=(
        stage(
            measure.polynomials,
            POLYNOMIAL,
            reads=("degree", "num_points", "noise_sd", "gammas", "ridges", "num_tuning_seeds"),
        ),
        stage(measure.random_features, FEATURES, reads=("num_train", "counts", "feature_ridges")),
        stage(measure.isotropic_model, ISOTROPIC, reads=("num_train", "counts")),
        stage(measure.evidence, EVIDENCE, reads=("hidden", "evidence_train", "evidence_noises", "evidence_ridges")),
        stage(
            trainings.width_sweep,
            WIDTHS,
            reads=("width_train", "width_epochs", "learning_rate", "exponents"),
            over=lambda case, settings: {"width": settings.widths},
        ),
        stage(
            trainings.code_lengths,
            CODE,
            reads=("dimensions", "hidden", "code_epochs", "code_rate", "prior_share", "prior_rate", "steps", "delta"),
        ),
    ),
    measures=(
        lab.Measure(claims.S10A, outcomes.benign, where=kind_is(POLYNOMIAL), interval_fn=stats.event_interval),
        lab.Measure(claims.S10B, outcomes.second_descent, where=kind_is(FEATURES)),
        lab.Measure(claims.S10C, outcomes.rise, where=kind_is(FEATURES)),
        lab.Measure(claims.S10D, outcomes.tracking, where=kind_is(WIDTHS)),
        lab.Measure(claims.S10E, outcomes.informative, where=kind_is(CODE)),
    ),
    controls=(
        lab.Control(
            "positive",
            "In the isotropic model, whose risk is known, the fit of smallest norm has a peak, and the largest model lies below it.",
            "log2 of (excess risk just beyond p = n / that of the largest model)",
            Above(1.0),
            outcomes.peak,
            where=kind_is(ISOTROPIC),
            claims=("S10.b", "S10.c"),
        ),
        lab.Control(
            "negative",
            "No bound lies below the test error.",
            "test error minus bound, true labels",
            Below(0.0),
            outcomes.least_slack,
            where=kind_is(CODE),
            claims=("S10.e",),
        ),
    ),
    figures=(
        report.CustomFigure(
            figures.draw_polynomials,
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
        report.SeedCurves(
            "evidence.log_evidence",
            x="noise",
            name="evidence",
            xlabel="share of labels drawn anew",
            ylabel="log evidence per example",
            alt="log evidence per example against label noise",
            caption="Log evidence per example of the Gaussian process of an infinitely wide network against label noise; the data are "
            "the same, and the process could fit them all.",
        ),
        report.CustomFigure(
            figures.draw_widths,
            per_case=False,
            name="widths",
            alt="test loss and effective dimensionality over widths",
            caption="Test loss (left axis) and effective dimensionality of the Hessian (right axis) over widths, for three of the alphas. "
            "Tau is that of S10.d, the mean over seeds.",
        ),
        report.StackedBars(
            figures.error_and_bits,
            parts="part",
            mark=figures.TEST_ERROR,
            by="labels",
            lines={"chance": trainings.CHANCE},
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
            lambda m: m.evidence.to_dataarray("measure"),
            columns="measure",
            rows=("noise",),
            section="Evidence",
            caption="A Gaussian process on noisy labels: log evidence per example, the ridge that it chose, training accuracy on the noisy "
            "labels and test accuracy on true ones; means and 95 % intervals over seeds.",
        ),
        report.MeanTable(
            lambda m: m.code_lengths.to_dataarray("measure"),
            columns="measure",
            rows=("labels", "prior", "dimension"),
            section="Bits",
            caption="Bound, errors and bits of networks in a subspace, by its start and dimension; means and 95 % intervals over seeds. "
            "The bound of a trained start is on the examples that did not train it, as is the training error.",
        ),
    ),
    method=METHOD,
)
