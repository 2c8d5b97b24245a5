"""Study 2: are small-norm solutions what makes weight decay work?

Paper: "Truth or Backpropaganda?", section on weight decay, Tables 2 and 3. Run it with ``python -m
experiments.norm_bias`` (``--help`` tells the options). The quick preset takes some minutes on two CPU cores and asks for
claims S2.a to S2.e.
"""

from experiments.norm_bias.settings import Arguments
from jaxbp import lab

STUDY = lab.Study(
    "S2",
    "Is a small norm what makes weight decay work?",
    "Weight decay pulls parameters towards zero, and is said to help because solutions of small norm generalise. Norm-bias pulls "
    "their norm to any value wanted, a large one too. Both are tuned on validation data with the same budget and compared with each "
    "other and with no regulariser, on paired seeds.",
    Arguments,
    __name__,
)
