"""Run the study from the command line."""

from experiments.soft_biases import DOOR, Arguments
from jaxbp.lab import main

if __name__ == "__main__":
    main(Arguments, DOOR)
