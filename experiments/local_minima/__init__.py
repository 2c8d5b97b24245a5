"""Do suboptimal local minima exist? They are built from affine minimisers and certified: ``python -m experiments.local_minima``.

Paper: "Truth or Backpropaganda?", section on local minima, Lemma 1, Theorem 1 and Table 1. Claims S1.a to S1.e.
"""

from experiments.local_minima.settings import Arguments

ID, DOOR = "S1", "experiments.local_minima.study:STUDY"
