"""Claims S3.a to S3.h, with the rules that turn intervals into verdicts, fixed before a run.

Kernels are compared where training first reaches the same training loss at every width. "Excess" is the correlation of the kernels before
training and then, beyond that of unrelated networks: (c - f) / (1 - f) with the correlation f of the kernels of two independent
initialisations of the same width. It is 1 for a kernel that training leaves alone and 0 for one that says no more about its start than
another network's does. It is taken over all entries of the full kernel, as the paper's correlation is.

A seed of which some network never reaches the loss has no slope, and its case is not decided: such seeds are neither dropped nor
guessed. Learning rates are such that all networks of a pilot did reach it (see `experiments.ntk_width.settings`).

What was changed after audits of earlier runs, each time before any run on the random numbers that are used now: networks of all widths
used to train equally long, and the narrow ones stopped at a far higher loss; unrelated kernels, too, correlate better as width grows,
since their entries between different logits vanish, so correlations alone rise by themselves (the plain difference c - f would fall by
itself, since f tends to 1); weight decay had 300 times less time than in the paper, so it is a factor now; S3.c presupposes S3.b;
rescaling is asked for with BatchNorm (S3.h) and without (S3.d) apart; and S3.f compares with the limit that theory states, where it used
to compare with that of a network without BatchNorm, which S3.g now does. Correlations on pairs of different images of the trace kernel
used to be judged beside those of all entries. A pilot of fresh networks on ten seeds told that no number of seeds in reach decides them:
at width 16 the floor is up to 0.89, and the excess of networks that are unrelated scatters from seed to seed by 0.8 to 1.5 (0.2 for all
entries), where 0.05 a doubling is looked for; with 20 images, or eight networks for the floor, still by 0.6 to 1.2. They are shown, and
judge nothing.
"""

from jaxbp.claims import Above, Below, Claim, Within

LEAST_DISTANCE = 0.1  # of limits that count as different

_SOURCE = "Goldblum et al., ICLR 2020"
_EXCESS = "change of the excess correlation per doubling of width, at equal training loss"
_SHARE = "share of the squared change that the best rescaling accounts for, at equal training loss"
_EXPONENT = "exponent of the relative distance to the exact kernel over width"

S3A = Claim(
    "S3.a",
    "For MLPs and ConvNets the correlation between the kernels before and after training rises with width.",
    f"{_SOURCE}, Figure 1a",
    _EXCESS,
    Above(0.0),
    "rises towards 1",
    belief="The kernel stays constant in training as width grows (Jacot et al., NeurIPS 2018).",
    smallest_effect=0.05,
)
S3B = Claim(
    "S3.b",
    "For ResNets with BatchNorm and skip connections the correlation of the kernels before and after training falls with width.",
    f"{_SOURCE}, Figure 1b",
    _EXCESS,
    Below(0.0),
    "falls",
    belief="The theory holds for any architecture, ResNets with BatchNorm included (Yang, arXiv 2006.14548).",
    smallest_effect=0.05,
)
S3C = Claim(
    "S3.c",
    "The interaction of skip connections and BatchNorm is what makes it fall.",
    f"{_SOURCE}, abstract and Figure 1b",
    f"interaction in the 2 x 2 factorial of the {_EXCESS}",
    Below(0.0),
    "responsible, by inspection",
    belief="Skip connections and BatchNorm change what the limit is, not that there is one (Yang, arXiv 2006.14548).",
    premise="S3.b",
    smallest_effect=0.1,
)
S3D = Claim(
    "S3.d",
    "Without BatchNorm most of the kernel's change in training is a mere rescaling.",
    f"{_SOURCE}, section on the NTK",
    _SHARE,
    Above(0.5),
    "most",
    belief="A wide network's kernel does not change at all, so not by a rescaling either (Jacot et al., NeurIPS 2018).",
    smallest_effect=0.1,
)
S3E = Claim(
    "S3.e",
    "The kernel at initialisation approaches the network's own exact infinite-width kernel as width^(-1/2).",
    "Jacot et al., NeurIPS 2018; rate by the central limit theorem",
    _EXPONENT,
    Within(0.25, centre=-0.5),
    belief="At initialisation a wide network has the kernel of the infinitely wide one (Jacot et al., NeurIPS 2018).",
    smallest_effect=0.25,
)
S3F = Claim(
    "S3.f",
    "With BatchNorm, too, it approaches the exact kernel, which is that with BatchNorm.",
    "Yang, arXiv 2006.14548",
    _EXPONENT,
    Within(0.25, centre=-0.5),
    belief="With BatchNorm the theory fails (Goldblum et al., ICLR 2020, abstract).",
    smallest_effect=0.25,
)
S3G = Claim(
    "S3.g",
    "That exact kernel is another than the one without BatchNorm.",
    "Yang, arXiv 2006.14548",
    "relative distance of the exact kernels with and without BatchNorm, after the best rescaling",
    Above(LEAST_DISTANCE),
    belief="BatchNorm makes training faster and leaves the function alone (folklore).",
    smallest_effect=0.1,
)
S3H = Claim(
    "S3.h",
    "With BatchNorm, too, most of the kernel's change in training is a mere rescaling.",
    f"{_SOURCE}, section on the NTK",
    _SHARE,
    Above(0.5),
    "most",
    belief="Weights before BatchNorm shrink or grow without changing the function, which rescales the kernel (van Laarhoven, 2017).",
    smallest_effect=0.1,
)
