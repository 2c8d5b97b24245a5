"""Run Study 2 from the command line."""

from experiments.norm_bias import STUDY

if __name__ == "__main__":
    STUDY.main()
