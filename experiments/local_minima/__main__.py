"""Run Study 1 from the command line."""

import time

import tyro

from experiments import frame
from experiments.local_minima.settings import Arguments


def main() -> None:
    """Parse the arguments, do the work that is not done yet, judge, and write the page."""
    arguments = tyro.cli(Arguments, prog="python -m experiments.local_minima")
    with frame.guarded(arguments.folder):
        run(arguments)


def run(arguments: Arguments) -> None:
    """The study; raises what `frame.guarded` reports."""
    import dataclasses

    settings = arguments.settings()
    devices = frame.start_jax()
    from experiments.local_minima import figures, measure, page, results
    from jaxbp import report
    from jaxbp.store import Store

    began = time.monotonic()
    with Store(arguments.folder, dataclasses.asdict(settings), frame.facts(devices)) as store:
        frame.run_pieces(store, measure.pieces(settings, store, arguments.data_dir), num_workers=len(devices))
        found = results.Results(settings, store)
        verdicts = results.verdicts(found)
        frame.write_results(store, results.rows(found), verdicts)
        pictures = figures.draw(found, arguments.folder / "figures")
        store.note(wall_seconds=store.config.get("wall_seconds", 0) + round(time.monotonic() - began, 1))
        page_path = arguments.folder / "report.html"
        report.write_page(
            page_path,
            title="Do suboptimal local minima exist?",
            lead="The best affine classifier of a data set, embedded in a deep ReLU network, is said to be a local minimum of its "
            "loss, far above what training from a usual start reaches. Here such minima are built, certified, and left to SGD.",
            verdicts=verdicts,
            sections=page.sections(found, pictures),
            settings=store.config,
        )
    frame.print_verdicts(verdicts, page_path)


if __name__ == "__main__":
    main()
