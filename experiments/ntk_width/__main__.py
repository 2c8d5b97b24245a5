"""Run Study 3 from the command line."""

from experiments.ntk_width import STUDY

if __name__ == "__main__":
    STUDY.main()
