"""What can be learnt from unlearnable data? ``python -m experiments.unlearnable``.

Paper: Sandoval-Segura, Singla, Geiping, Goldblum and Goldstein, NeurIPS 2023, arXiv 2305.19254. Claims S8.a to S8.g.
"""

from experiments.unlearnable.settings import Arguments

ID, DOOR = "S8", "experiments.unlearnable.study:STUDY"
