"""Study 4: do layers of low rank generalise better, or resist attack?

Paper: "Truth or Backpropaganda?", section on rank, Figure 2 and Table 4. Run it with ``python -m
experiments.rank_robustness`` (``--help`` tells the options). The quick preset takes some minutes on two CPU cores and
asks for claims S4.a to S4.e.
"""
