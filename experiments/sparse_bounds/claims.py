"""Claims S9.a to S9.e, with the rules that turn intervals into verdicts, fixed before a run.

The paper's text could not be had; "the published formula" is the formula as reported in the authors' public code and in a report that
restates the theorems. It counts the norm of the last layer, and not the number of pixels that this layer reads.
"""

from jaxbp.claims import Above, Below, Claim

_SOURCE = "Galanti et al., NeurIPS 2023, as reported in public code"
_BELIEF = (
    "Norms of filters, not of the matrices that convolutions are, decide the complexity of convolutional networks (Galanti et al. 2023)."
)

S9A = Claim(
    "S9.a",
    "The published formula bounds the Rademacher complexity.",
    _SOURCE,
    "log2 of (formula / lower bound of the complexity less 3 standard errors), norms 1",
    Above(0.0),
    "a theorem",
    belief=_BELIEF,
    smallest_effect=1.0,
)
S9B = Claim(
    "S9.b",
    "Filter norms in place of operator norms make the bound ten times smaller or more.",
    _SOURCE,
    "log10 of (peeling with operator norms / proven sparse bound), trained networks",
    Above(1.0),
    "orders of magnitude",
    belief=_BELIEF,
    smallest_effect=0.3,
)
S9C = Claim(
    "S9.c",
    "The sparse bound of the test error is smaller than every other known one.",
    _SOURCE,
    "log2 of (smallest bound of the test error by operator norms, numbers of parameters, ranks, or bits / sparse bound), uncapped",
    Above(0.0),
    "better than four competitors",
    belief=_BELIEF,
    smallest_effect=1.0,
)
S9D = Claim(
    "S9.d",
    "The sparse bound ranks networks by their generalisation gap.",
    _SOURCE,
    "Kendall's tau of bound and gap over one hyperparameter, networks with training error of at most 1 %",
    Above(0.5),
    "single curves",
    belief="A bound that explains generalisation orders networks by it (Jiang et al., ICLR 2020).",
    smallest_effect=0.25,
    no_value="fewer than three networks fitted the data",
)
S9E = Claim(
    "S9.e",
    "With weight decay as strong as the paper's the bound of the test error is nearly informative.",
    _SOURCE,
    "log10 of the sparse bound of the test error, best margin, squared error on one-hot targets",
    Below(1.0),
    "about 1 (as reported, unchecked)",
    belief="Strong weight decay makes the bound almost informative (Galanti et al. 2023).",
    smallest_effect=0.3,
)
