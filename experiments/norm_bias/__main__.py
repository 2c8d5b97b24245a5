"""Run Study 2 from the command line."""

import tyro

from experiments import frame
from experiments.norm_bias.settings import Arguments


def main() -> None:
    """Parse the arguments and run the study."""
    arguments = tyro.cli(Arguments, prog="python -m experiments.norm_bias")
    frame.run_study(
        "experiments.norm_bias",
        arguments,
        title="Is a small norm what makes weight decay work?",
        lead="Weight decay pulls parameters towards zero, and is said to help because solutions of small norm generalise. Norm-bias pulls "
        "their norm to any value wanted, a large one too. Both are tuned on validation data with the same budget and compared with each "
        "other and with no regulariser, on paired seeds.",
    )


if __name__ == "__main__":
    main()
