"""Run Study 4 from the command line."""

from experiments.rank_robustness import STUDY

if __name__ == "__main__":
    STUDY.main()
