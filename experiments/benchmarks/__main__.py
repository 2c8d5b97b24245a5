"""``python -m experiments.benchmarks NAME [options]``: time this project beside others, each in turn, in one run.

``python -m experiments.benchmarks --help`` lists the benchmarks, ``... NAME --help`` the options of one.
"""

import importlib

import tyro

from experiments.benchmarks.settings import BENCHMARKS
from jaxbp import lab


def main() -> None:
    """Parse the command line, then import the benchmark and run it."""
    options = {name: tyro.conf.OmitArgPrefixes[settings] for name, settings in BENCHMARKS.items()}
    arguments = tyro.extras.subcommand_cli_from_dict(options, prog="python -m experiments.benchmarks", use_underscores=True)
    name = next(name for name, settings in BENCHMARKS.items() if type(arguments) is settings)
    with lab.guarded("no folder: nothing is kept but what --out has"):
        importlib.import_module(f"experiments.benchmarks.{name}").run(arguments)


if __name__ == "__main__":
    main()
