"""Does stable training generalise, even if weights never converge? ``python -m experiments.algorithmic_stability``.

Paper: Chandramoorthy, Loukas, Gatmiry and Jegelka, NeurIPS 2022, arXiv 2208.07951. Claims S7.a to S7.g.
"""

from experiments.algorithmic_stability.settings import Arguments

ID, DOOR = "S7", "experiments.algorithmic_stability.study:STUDY"
