"""Run Study 4 from the command line."""

import tyro

from experiments import frame
from experiments.rank_robustness.settings import Arguments


def main() -> None:
    """Parse the arguments and run the study."""
    arguments = tyro.cli(Arguments, prog="python -m experiments.rank_robustness")
    frame.run_study(
        "experiments.rank_robustness",
        arguments,
        title="Do layers of low rank generalise better, or resist attack?",
        lead="Trained networks are said to generalise, or to resist attack, because their layers are of low rank. RankMin and RankMax push "
        "the singular values of convolutions, taken as the operators that they are, down and up during fine-tuning; a third arm is "
        "fine-tuned alike and left alone. Accuracy is compared within pairs, without attack and under the strongest of several.",
    )


if __name__ == "__main__":
    main()
