"""Do soft preferences explain what seems mysterious about deep learning? ``python -m experiments.soft_biases``.

Paper: Wilson, ICML 2025, position paper (PMLR 267). Claims S10.a to S10.e.
"""

from experiments.soft_biases.settings import Arguments

ID, DOOR = "S10", "experiments.soft_biases.study:STUDY"
