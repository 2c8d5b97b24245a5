"""Study 4: do layers of low rank generalise better, or resist attack?

Paper: "Truth or Backpropaganda?", section on rank, Figure 2 and Table 4. Run it with ``python -m
experiments.rank_robustness`` (``--help`` tells the options). The quick preset takes some minutes on two CPU cores and
asks for claims S4.a to S4.e.
"""

from experiments.rank_robustness.settings import Arguments
from jaxbp import lab

STUDY = lab.Study(
    "S4",
    "Do layers of low rank generalise better, or resist attack?",
    "Trained networks are said to generalise, or to resist attack, because their layers are of low rank. RankMin and RankMax push "
    "the singular values of convolutions, taken as the operators that they are, down and up during fine-tuning; a third arm is "
    "fine-tuned alike and left alone. Accuracy is compared within pairs, without attack and under the strongest of several.",
    Arguments,
    __name__,
)
