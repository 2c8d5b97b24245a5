"""Are small-norm solutions what makes weight decay work? ``python -m experiments.norm_bias``.

Paper: "Truth or Backpropaganda?", section on weight decay, Tables 2 and 3. Claims S2.a to S2.e.
"""

from experiments.norm_bias.settings import Arguments

ID, DOOR = "S2", "experiments.norm_bias.study:STUDY"
