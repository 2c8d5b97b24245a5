"""Study 1: suboptimal local minima exist, can be built from shallow minimisers, and can be certified.

Paper: "Truth or Backpropaganda?", section on local minima, Lemma 1, Theorem 1 and Table 1. Run it with
``python -m experiments.local_minima`` (``--help`` tells the options). The quick preset takes some minutes on two CPU cores and
asks for claims S1.a to S1.e.
"""

from experiments.local_minima.settings import Arguments
from jaxbp import lab

STUDY = lab.Study(
    "S1",
    "Do suboptimal local minima exist?",
    "The best affine classifier of a data set, embedded in a deep ReLU network, is said to be a local minimum of its "
    "loss, far above what training from a usual start reaches. Here such minima are built, certified, and left to SGD.",
    Arguments,
    __name__,
)
