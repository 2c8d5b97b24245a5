"""Do bounds for sparse networks hold, and do they explain generalisation? ``python -m experiments.sparse_bounds``.

Paper: Galanti, Xu, Galanti and Poggio, NeurIPS 2023 (arXiv 2301.12033). Claims S9.a to S9.e.
"""

from experiments.sparse_bounds.settings import Arguments

ID, DOOR = "S9", "experiments.sparse_bounds.study:STUDY"
