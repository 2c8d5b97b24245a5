"""Claims S4.a to S4.e, with the rules that turn intervals into verdicts, fixed before a run.

Ranks are effective ranks, ||W||_* / ||W||_F (paper, section on rank), of the convolutions that RankMin and RankMax treat, as circular
operators with their true strides and map sizes; one number a network, the geometric mean over its layers. All comparisons are
within pairs of networks that share data, initial parameters and the base network from which they were fine-tuned.

"Equivalent" means within 1 percentage point of accuracy: the paper's own differences, which it takes for none, are 0.2 to 1.0.
"Not more robust" means a gain of robust accuracy below 2 percentage points, a tenth of what adversarial training gives in the
paper at the least (33.1 against 0.0 and 80.5 against 32.0). It is asked of RankMin against the network left alone: that
RankMax harms a network would show nothing about low rank. A threshold of 7 % (2^0.1) separates "low rank" from
"about the same rank".
"""

from jaxbp.claims import Above, Below, Claim, Within

CLEAN_MARGIN = 1.0  # percentage points
ROBUST_MARGIN = 2.0  # percentage points
RANK_MARGIN = 0.1  # of log2

_SOURCE = "Goldblum et al., ICLR 2020, Table 4 and Figure 2"

S4A = Claim(
    "S4.a",
    "RankMin lowers and RankMax raises the effective rank.",
    _SOURCE,
    "log2 of the ratio of effective ranks to the network left alone, sign turned for RankMin",
    Above(0.0),
    "as intended",
    belief="Setting the singular values of a convolution sets its rank (Sedghi et al., ICLR 2019).",
)
S4B = Claim(
    "S4.b",
    "Accuracy without attack is the same after RankMin, after RankMax and without either.",
    _SOURCE,
    "clean test accuracy minus that of the network left alone, percentage points",
    Within(CLEAN_MARGIN),
    "-0.22 and -1.00 (natural), -0.38 and -0.34 (adversarial) for RankMin and RankMax",
    belief="Layers of low rank can be compressed, and so generalise better (Arora et al., ICML 2018).",
)
S4C = Claim(
    "S4.c",
    "Low rank does not make a network more robust.",
    _SOURCE,
    "robust test accuracy after RankMin minus that of the network left alone, percentage points",
    Below(ROBUST_MARGIN),
    "-0.45 (natural, 1/255), -0.51 and -2.53 (adversarial, 1/255 and 8/255), under PGD-20",
    belief="Layers of low rank make a network more robust (Langenberg et al., arXiv 1901.10371).",
)
S4D = Claim(
    "S4.d",
    "Adversarial training does not produce layers of low rank.",
    _SOURCE,
    "log2 of the ratio of effective ranks, adversarially to naturally trained",
    Above(-RANK_MARGIN),
    "not low",
    belief="Adversarial training promotes low rank (Langenberg et al., arXiv 1901.10371).",
)
S4E = Claim(
    "S4.e",
    "Untrained networks have a higher effective rank than trained ones.",
    _SOURCE,
    "log2 of the ratio of effective ranks, untrained to trained",
    Above(0.0),
    "higher",
    belief="Gradient descent is biased towards low rank (Arora et al., NeurIPS 2019).",
)
