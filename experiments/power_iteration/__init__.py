"""Does power iteration show that a point is a minimum? ``python -m experiments.power_iteration``."""

from experiments.power_iteration.settings import Arguments

ID, DOOR = "S5", "experiments.power_iteration.study:STUDY"
