"""Study 3: do wide-network theories describe real networks?

Paper: "Truth or Backpropaganda?", section on the neural tangent kernel, Figure 1. Run it with ``python -m
experiments.ntk_width`` (``--help`` tells the options). The quick preset takes some minutes on two CPU cores and asks
for claims S3.a to S3.f.
"""

from experiments.ntk_width.settings import Arguments
from jaxbp import lab

STUDY = lab.Study(
    "S3",
    "Do wide-network theories describe real networks?",
    "As networks grow wide, theory says, their tangent kernel becomes that of an infinitely wide network and stops changing in "
    "training. Here the kernels of finite networks are measured before, during and after training over a range of widths, with and "
    "without BatchNorm and skip connections, and compared with the exact infinite-width kernels.",
    Arguments,
    __name__,
)
