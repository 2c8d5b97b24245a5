"""Do low-rank layers and neural collapse tighten bounds? ``python -m experiments.low_rank_bounds``.

Paper: Pinto, Rangamani and Poggio, ALT 2025 (PMLR 272:921-936). Claims S6.a to S6.e.
"""

from experiments.low_rank_bounds.settings import Arguments

ID, DOOR = "S6", "experiments.low_rank_bounds.study:STUDY"
