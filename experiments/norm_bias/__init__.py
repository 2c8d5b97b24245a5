"""Study 2: are small-norm solutions what makes weight decay work?

Paper: "Truth or Backpropaganda?", section on weight decay, Tables 2 and 3. Run it with ``python -m
experiments.norm_bias`` (``--help`` tells the options). The quick preset takes some minutes on two CPU cores and asks for
claims S2.a to S2.e.
"""
