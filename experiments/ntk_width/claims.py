"""Claims S3.a to S3.f, with the rules that turn intervals into verdicts, fixed before a run."""

from jaxbp.claims import Above, Below, Claim, Within

_SOURCE = "Goldblum et al., ICLR 2020"

S3A = Claim(
    "S3.a",
    "For MLPs and ConvNets the correlation between the kernels before and after training rises with width.",
    f"{_SOURCE}, Figure 1a",
    "change of the correlation per doubling of width",
    Above(0.0),
    "rises towards 1",
    belief="The kernel stays constant in training as width grows (Jacot et al., NeurIPS 2018).",
)
S3B = Claim(
    "S3.b",
    "For ResNets with BatchNorm and skip connections that correlation falls with width.",
    f"{_SOURCE}, Figure 1b",
    "change of the correlation per doubling of width",
    Below(0.0),
    "falls",
    belief="The theory holds for any architecture, ResNets with BatchNorm included (Yang, arXiv 2006.14548).",
)
S3C = Claim(
    "S3.c",
    "The interaction of skip connections and BatchNorm is what makes it fall.",
    f"{_SOURCE}, abstract and Figure 1b",
    "interaction in the 2 x 2 factorial of the change of the correlation per doubling of width",
    Below(0.0),
    "responsible, by inspection",
    belief="Skip connections and BatchNorm change what the limit is, not that there is one (Yang, arXiv 2006.14548).",
)
S3D = Claim(
    "S3.d",
    "Most of the kernel's change in training is a mere rescaling.",
    f"{_SOURCE}, section on the NTK",
    "share of the squared change that the best rescaling accounts for",
    Above(0.5),
    "most",
    belief="A wide network's kernel does not change at all, so not by a rescaling either (Jacot et al., NeurIPS 2018).",
)
S3E = Claim(
    "S3.e",
    "Without BatchNorm the kernel at initialisation approaches the exact infinite-width kernel as width^(-1/2).",
    "Jacot et al., NeurIPS 2018; rate by the central limit theorem",
    "exponent of the relative distance to the exact kernel over width",
    Within(0.25, centre=-0.5),
    belief="At initialisation a wide network has the kernel of the infinitely wide one (Jacot et al., NeurIPS 2018).",
)
S3F = Claim(
    "S3.f",
    "With BatchNorm it does not approach it.",
    f"{_SOURCE}; compared with the twin without BatchNorm",
    "exponent of the relative distance to the exact kernel over width",
    Above(-0.25),
    belief="With BatchNorm the kernel has a limit, but another one (Yang, arXiv 2006.14548).",
)
