"""Do layers of low rank generalise better, or resist attack? ``python -m experiments.rank_robustness``.

Paper: "Truth or Backpropaganda?", section on rank, Figure 2 and Table 4. Claims S4.a to S4.e.
"""

from experiments.rank_robustness.settings import Arguments

ID, DOOR = "S4", "experiments.rank_robustness.study:STUDY"
