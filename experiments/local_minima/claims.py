"""Claims S1.a to S1.e, with the rules that turn intervals into verdicts, fixed before a run.

One rule was mended after a pilot: S1.c first asked only that SGD get no lower, which called runs that were thrown upwards "staying". The
verdict was the same by both.
"""

from jaxbp.claims import Above, Claim

_SOURCE = "Goldblum et al., ICLR 2020"

S1A = Claim(
    "S1.a",
    "The shallow minimiser, embedded in a deep ReLU network, is a local minimum of the deep network's loss.",
    f"{_SOURCE}, Theorem 1 and Table 1",
    "share of seeds whose embedded point is proven to be a local minimum",
    Above(0.5),
    "1 of 1, by its smallest eigenvalue 0.03",
    belief="Every local minimum is global, or nearly so (proven for deep linear networks: Kawaguchi, NeurIPS 2016).",
)
S1B = Claim(
    "S1.b",
    "That minimum is far worse than what default training reaches.",
    f"{_SOURCE}, Table 1",
    "log2 of (loss at the embedded minimum / loss after default training)",
    Above(1.0),
    "8.0 (1.570 against 0.0061)",
    belief="Local minima of large networks lie close to the lowest loss (Choromanska et al., AISTATS 2015).",
)
S1C = Claim(
    "S1.c",
    "Stochastic gradient descent that starts there stays.",
    f"{_SOURCE}, Table 1",
    "share of seeds whose loss after SGD differs from the embedded minimum's by under a tenth of the gap to default training",
    Above(0.5),
    "1 of 1 (a change of 0.0002 of the gap), at a learning rate of 0.0001",
    belief="The noise of SGD carries it out of poor minima (Kleinberg et al., ICML 2018).",
)
S1D = Claim(
    "S1.d",
    "Large or widely spread initial biases make training end at suboptimal points.",
    f"{_SOURCE}, Table 1",
    "share of seeds that end, without diverging, at more than twice the loss after default training",
    Above(0.5),
    "3 of 3 inits",
    belief="From random parameters, gradient descent finds global minima of wide networks (Du et al., ICML 2019).",
)
S1E = Claim(
    "S1.e",
    "Momentum helps to leave them.",
    f"{_SOURCE}, Table 1",
    "progress from the best constant's loss (0) to default training's (1), with momentum minus without",
    Above(0.0),
    "a single run without momentum ends at 0.22, default at 0.006",
    belief="Folklore: momentum carries training through poor minima.",
)
