"""Run Study 3 from the command line."""

import tyro

from experiments import frame
from experiments.ntk_width.settings import Arguments


def main() -> None:
    """Parse the arguments and run the study."""
    arguments = tyro.cli(Arguments, prog="python -m experiments.ntk_width")
    frame.run_study(
        "experiments.ntk_width",
        arguments,
        title="Do wide-network theories describe real networks?",
        lead="As networks grow wide, theory says, their tangent kernel becomes that of an infinitely wide network and stops changing in "
        "training. Here the kernels of finite networks are measured before, during and after training over a range of widths, with and "
        "without BatchNorm and skip connections, and compared with the exact infinite-width kernels.",
    )


if __name__ == "__main__":
    main()
