"""Claims S7.a to S7.g, with the rules that turn intervals into verdicts, fixed before a run.

The rules were put down after the authors' stored outputs and a pilot of four seeds had been seen: S7.a, c and e are the paper's own
statements, S7.b what it assumes, S7.d, f and g follow from what its experiment leaves open. Seeds here are not the pilot's. The numbers
of the paper are recomputed from the stored outputs; its text was not at hand. Beta is the mean over replaced examples and test examples
of the change of the time-averaged test loss, a lower bound of statistical algorithmic stability.
"""

from jaxbp.claims import Above, Claim, Within

_SOURCE = "Chandramoorthy et al., NeurIPS 2022"
_BELIEF = "Networks that train stably generalise better, though their weights never converge (Chandramoorthy et al., NeurIPS 2022)."
_INFLUENCE = "A small change of the loss when an example is replaced means a small gap (Bousquet & Elisseeff, JMLR 2002)."

WEIGHTS = Claim(
    "S7.a",
    "Weights do not converge in training at a constant learning rate.",
    _SOURCE,
    "log2 of (distance of weights from epoch to epoch, last quarter of epochs / second quarter)",
    Above(-1.0),
    "assumed",
    belief="Training ends where the gradient vanishes.",
    smallest_effect=0.5,
)
AVERAGES = Claim(
    "S7.b",
    "Time averages of the test loss converge all the same.",
    _SOURCE,
    "test loss after the run-up, (second half - first half) / mean",
    Within(0.05),
    "assumed; 0 to 0.11 in its stored outputs",
    belief=_BELIEF,
    smallest_effect=0.05,
)
NOISE = Claim(
    "S7.c",
    "Label noise makes training less stable.",
    _SOURCE,
    "log2 of (beta with the most label noise / beta with none), mean over learning rates",
    Above(0.0),
    "1.8 on VGG16, 3.7 on ResNet-18, of the mean loss",
    belief=_BELIEF,
    smallest_effect=0.5,
)
BEYOND_LOSS = Claim(
    "S7.d",
    "Label noise makes training less stable by more than it makes the loss larger.",
    f"{_SOURCE}; follows from its measure",
    "log2 of (beta / test loss with the most label noise / the same with none), mean over learning rates",
    Above(0.0),
    "not tested; 0.3 on VGG16, 2.0 on ResNet-18 in its stored outputs",
    belief=_BELIEF,
    smallest_effect=0.5,
)
GAP = Claim(
    "S7.e",
    "Settings that train more stably generalise better, label noise being equal.",
    _SOURCE,
    "Kendall's tau over learning rates of beta of the bounded loss and the generalisation gap, mean over label noise",
    Above(0.0),
    "claimed across levels of label noise only",
    belief=_INFLUENCE,
    smallest_effect=0.3,
)
INFLUENCE = Claim(
    "S7.f",
    "The coefficient is the influence of an example, larger than that of another order of the data.",
    f"{_SOURCE}; taken for granted",
    "log2 of (change by a replaced example / change by another order), mean over settings",
    Above(0.0),
    belief=_INFLUENCE,
    smallest_effect=0.5,
)
CORRELATION = Claim(
    "S7.g",
    "Slowly decaying correlations of the test loss foretell instability.",
    _SOURCE,
    "Kendall's tau over learning rates of the integrated autocorrelation time, drift removed, and beta, mean over label noise",
    Above(0.0),
    "raw times, across levels of label noise",
    belief="What mixes slowly is unstable: the paper bounds the coefficient by the rate of mixing.",
    smallest_effect=0.3,
)
