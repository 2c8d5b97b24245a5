"""Run Study 1 from the command line."""

from experiments.local_minima import STUDY

if __name__ == "__main__":
    STUDY.main()
