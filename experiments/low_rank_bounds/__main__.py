"""Run the study from the command line."""

from experiments.low_rank_bounds import DOOR, Arguments
from jaxbp.lab import main

if __name__ == "__main__":
    main(Arguments, DOOR)
