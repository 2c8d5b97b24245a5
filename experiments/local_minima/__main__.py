"""Run Study 1 from the command line."""

import tyro

from experiments import frame
from experiments.local_minima.settings import Arguments


def main() -> None:
    """Parse the arguments and run the study."""
    arguments = tyro.cli(Arguments, prog="python -m experiments.local_minima")
    frame.run_study(
        "experiments.local_minima",
        arguments,
        title="Do suboptimal local minima exist?",
        lead="The best affine classifier of a data set, embedded in a deep ReLU network, is said to be a local minimum of its "
        "loss, far above what training from a usual start reaches. Here such minima are built, certified, and left to SGD.",
    )


if __name__ == "__main__":
    main()
