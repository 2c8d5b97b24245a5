"""Do wide-network theories describe real networks? ``python -m experiments.ntk_width``.

Paper: "Truth or Backpropaganda?", section on the neural tangent kernel, Figure 1. Claims S3.a to S3.h.
"""

from experiments.ntk_width.settings import Arguments

ID, DOOR = "S3", "experiments.ntk_width.study:STUDY"
