"""Study 3: do wide-network theories describe real networks?

Paper: "Truth or Backpropaganda?", section on the neural tangent kernel, Figure 1. Run it with ``python -m
experiments.ntk_width`` (``--help`` tells the options). The quick preset takes some minutes on two CPU cores and asks
for claims S3.a to S3.f.
"""
