"""Claims S6.a to S6.e, with the rules that turn intervals into verdicts, fixed before a run.

The paper's full text could not be had. Its bound, the form "chain", is rebuilt from the public abstract and from Maurer's chain rule; the
rule's constants are universal but unknown, and taken as 1 the form is less than what the paper states.
"""

from jaxbp.claims import Above, Below, Claim

_SOURCE = "Pinto, Rangamani and Poggio, ALT 2025, abstract"
_BELIEF = "Networks with low-rank layers can generalise better than their full-rank twins (Pinto et al. 2025)."

S6A = Claim(
    "S6.a",
    "A network trained with low-rank layers has a smaller bound than its full-rank twin.",
    _SOURCE,
    "log2 of (bound over margin of the full network / of the low-rank one), equal training loss, margin: 10 % quantile",
    Above(0.0),
    "implied, not measured",
    belief=_BELIEF,
    smallest_effect=1.0,
    no_value="a network did not reach the training loss at which they are compared, or has training errors in the quantile",
)
S6B = Claim(
    "S6.b",
    "It generalises better.",
    _SOURCE,
    "test accuracy, low rank minus full rank, percentage points, equal training loss",
    Above(0.0),
    "possible",
    belief=_BELIEF,
    smallest_effect=0.5,
    no_value="a network did not reach the training loss at which they are compared",
)
S6C = Claim(
    "S6.c",
    "Adding factors beats multiplying them on low-rank networks.",
    _SOURCE,
    "log2 of (bound by the product of Frobenius norms / bound by ranks, one scale), same network",
    Above(0.0),
    "yes, in rates",
    belief="Rank and dimension enter a bound as a sum over layers, not as a product (Pinto et al. 2025).",
    smallest_effect=1.0,
    no_value="a network did not reach the training loss at which they are compared",
)
S6D = Claim(
    "S6.d",
    "Layers behind collapsed features have as many dimensions as there are classes.",
    "Rangamani et al. 2023",
    "share of ||W||_F^2 beyond the C largest singular values, largest over hidden layers but the first, weight decay",
    Below(0.05),
    "rank about C (as reported, unchecked)",
    belief="Intermediate layers of networks in neural collapse are of low rank (Rangamani et al. 2023).",
    smallest_effect=0.03,
    no_value="training never fitted all examples",
)
S6E = Claim(
    "S6.e",
    "Collapse tightens the bound.",
    _SOURCE,
    "log2 of (bound over margin at the end of training / at the first measurement without training errors)",
    Below(0.0),
    "argued",
    belief="Networks in neural collapse have layers of low rank, and so a smaller bound (Pinto et al. 2025).",
    smallest_effect=0.5,
    no_value="training never fitted all examples, or not at its end",
)
