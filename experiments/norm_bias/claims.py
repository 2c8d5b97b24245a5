"""Claims S2.a to S2.e, with the rules that turn intervals into verdicts, fixed before a run.

Accuracies are on the test set, in per cent; differences are within pairs of runs that share data, initial parameters and
the order of the data. "At least as good" is non-inferiority: worse by less than a margin of 0.5 percentage points, half of
what weight decay gains over none in the paper's table (0.6 to 1.4 points for ResNet-18, 0.8 for MobileNetV2).
"""

from jaxbp.claims import Above, Claim

MARGIN = 0.5  # percentage points

_SOURCE = "Goldblum et al., ICLR 2020, Tables 2 and 3"

S2A = Claim(
    "S2.a",
    "Weight decay beats no regulariser.",
    _SOURCE,
    "test accuracy with weight decay minus without, percentage points",
    Above(0.0),
    "0.60 to 3.01 on ResNet-18 and DenseNet-40, 0 to 0.80 on MobileNetV2, 0.07 on an MLP",
    belief="Weight decay seeks solutions of small norm, which generalise better (Krogh & Hertz, NeurIPS 1991).",
)
S2B = Claim(
    "S2.b",
    "Norm-bias is at least as good as weight decay.",
    _SOURCE,
    "test accuracy with norm-bias minus with weight decay, percentage points",
    Above(-MARGIN),
    "0.00 to 0.80",
    belief="A small norm is what helps (Neyshabur et al., COLT 2015), so being pulled to a large one should do worse.",
)
S2C = Claim(
    "S2.c",
    "Norm-bias is better than weight decay.",
    _SOURCE,
    "test accuracy with norm-bias minus with weight decay, percentage points",
    Above(0.0),
    "0.00 to 0.80",
    belief="Bounds on the test error grow with the norm (Bartlett et al., NeurIPS 2017): a large one should not help.",
)
S2D = Claim(
    "S2.d",
    "Norm-bias is at least as good as weight decay in networks without BatchNorm, too.",
    _SOURCE,
    "test accuracy with norm-bias minus with weight decay, percentage points",
    Above(-MARGIN),
    "0.13 on ResNet-20 with Fixup, 0.18 on an MLP",
    belief="BatchNorm undoes the scale of weights (van Laarhoven, 2017); without it a small norm should matter more.",
)
S2E = Claim(
    "S2.e",
    "Solutions found with norm-bias have a larger norm than those found with weight decay.",
    _SOURCE,
    "log2 of (final norm of all parameters with norm-bias / with weight decay)",
    Above(0.0),
    belief="Folklore: the solution that generalises better is the one of smaller norm.",
)
