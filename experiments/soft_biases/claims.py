"""Claims S10.a to S10.e, with the rules that turn intervals into verdicts, fixed before a run.

The paper's text was not at hand; what it shows is said as reported.
"""

from jaxbp.claims import CLEAR_MAJORITY, Above, Below, Claim

_SOURCE = "Wilson, ICML 2025"
_BELIEF = (
    "Overparametrisation, benign overfitting and double descent follow from soft preferences for simple solutions (Wilson, ICML 2025)."
)

S10A = Claim(
    "S10.a",
    "One polynomial of degree 150 with penalties that grow with the order fits noise exactly and overfits benignly.",
    f"{_SOURCE}, Figure 1, a to c",
    "share of seeds with relative training error below 0.001 on pure noise and excess risk below the noise variance on structured data",
    Above(0.5),
    "shown in a figure (as reported, unchecked)",
    belief=_BELIEF,
    smallest_effect=CLEAR_MAJORITY,
)
S10B = Claim(
    "S10.b",
    "The second descent of a linear random-feature model ends below its first minimum.",
    f"{_SOURCE}, Figure 1, f",
    "log2 of (least test error over p <= 0.9 n / test error at p = 10 n), squared error, no ridge",
    Above(0.0),
    "the same pattern as a ResNet-18's (as reported, unchecked)",
    belief=_BELIEF,
    smallest_effect=0.5,
)
S10C = Claim(
    "S10.c",
    "A soft bias removes the peak.",
    _SOURCE,
    "largest log2 rise of the test error from one number of features to a larger one, ridge chosen on validation data",
    Below(0.1),
    "implied",
    belief="Optimal ridge regression has no double descent (Nakkiran et al., ICLR 2021).",
    smallest_effect=0.1,
)
S10D = Claim(
    "S10.d",
    "Effective dimensionality falls with the test loss along the second descent over a network's width.",
    f"{_SOURCE}, Figure 1, g",
    "Kendall's tau of effective dimensionality and test loss over widths that interpolate, the largest over alpha",
    Above(0.5),
    "tracks the test loss of a ResNet-18 (as reported, unchecked)",
    belief="Effective dimensionality explains double descent (Maddox, Benton and Wilson 2020).",
    smallest_effect=0.25,
    no_value="fewer than three widths fitted the data",
)
S10E = Claim(
    "S10.e",
    "The bound that counts bits is below chance on true labels, and not on random ones.",
    _SOURCE,
    "smaller of (0.9 - bound on true labels) and (bound on random labels - 0.9)",
    Above(0.0),
    "informative for CIFAR-10 (as reported, unchecked)",
    belief="Compression explains why networks that can fit noise generalise (Lotfi et al., NeurIPS 2022).",
    smallest_effect=0.05,
)
